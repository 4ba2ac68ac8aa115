"""Small volumes and fits for the tests of volume files and of fits."""

import numpy as np

from splat_ssim.trainer.cli import main
from splat_ssim.volume import Volume, VoxelGrid, load_volume, save_volume

SHAPE = (14, 12, 16)
GRID = VoxelGrid.regular(SHAPE, spacing=(0.5, 1.0, 2.0), origin=(-3, 4, 5), axes="xyz")
VOXELS = np.random.default_rng(1).integers(0, 200, SHAPE).astype(np.uint8)
#: A left-handed, turned affine as scanners write it: x points left, and z decreases along the first axis.
TURNED = np.array([[0, 0, -0.7, 120.5], [0, 0.8, 0, -90.25], [-2.5, 0, 0, 33], [0, 0, 0, 1]])


def ball(low, high, dtype):
    """A ball with texture, whose intensities span low to high exactly."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    values = (x**2 + y**2 + z**2 < 0.6) * (1 + 0.2 * np.sin(5 * x) * np.cos(4 * y))
    return (low + (high - low) * values / values.max()).astype(dtype)


def save(path, data, grid=GRID):
    return save_volume(path, Volume(data[None], grid))


def write_nrrd(path, data, *lines):
    """Writes a NRRD file with these lines in its header. The first axis of the array is the fastest, as in ITK."""
    names = {"uint8": "uint8", "uint16": "uint16", "int16": "int16", "float32": "float", "float64": "double"}
    head = ["NRRD0005", f"type: {names[data.dtype.name]}", f"dimension: {data.ndim}"]
    head += ["sizes: " + " ".join(map(str, data.shape)), "endian: little", "encoding: raw", *lines]
    path.write_bytes(("\n".join(head) + "\n\n").encode() + data.tobytes("F"))


def nrrd_place(affine):
    """The lines of a NRRD header that give the position of the voxels."""
    columns = " ".join(f"({','.join(map(repr, column))})" for column in np.asarray(affine)[:3, :3].T.tolist())
    origin = ",".join(map(repr, np.asarray(affine)[:3, 3].tolist()))
    return f"space directions: {columns}", f"space origin: ({origin})"


def fit(folder, scan, *more, steps=12, budget=100):
    arguments = ["--data-dir", str(scan), "--result-dir", str(folder), "--steps", str(steps)]
    arguments += ["--strategy.budget", str(budget), "--output.no-progress", "--output.no-video", *more]
    return main(["--config", "configs/voxel_mri.yaml", *arguments])


def true_psnr(exported, source):
    """PSNR of a run's exported volume in the file's own intensities, over their full span."""
    error = np.square(load_volume(exported).data[0].astype(np.float64) - source).mean()
    return 10 * np.log10(float(source.max() - source.min()) ** 2 / error)
