"""MRC, the format of electron microscopy, through mrcfile: voxel size, origin and the order of axes, in ångström."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .._files import replacing_path
from .grid import VoxelGrid
from .layout import nearest_axes
from .stored import Stored, in_unit

#: Dtypes that MRC's modes hold exactly.
_DTYPES = ("int8", "int16", "uint16", "float16", "float32")


def read_mrc(path: Path, key: str | None) -> Stored:
    """Reads a map, or a stack of images as slices. The file may be compressed."""
    import mrcfile

    with mrcfile.open(path, mode="r") as file:
        data, header = file.data, file.header
        steps = {letter: float(file.voxel_size[letter]) for letter in "xyz"}
        stacked = file.is_image_stack()
    stored = Stored(np.asarray(data), unit="angstrom")
    order = [int(header[name]) for name in ("maps", "mapr", "mapc")]
    if sorted(order) != [1, 2, 3]:
        stored.notes.append(f"its header names no order of axes, {order}: sections along z, rows along y are taken")
        order = [3, 2, 1]
    letters = "".join("xyz"[axis - 1] for axis in order)
    if data.ndim not in (3, 4):
        raise ValueError(f"{path} must hold a map of three axes, got shape {data.shape}")
    stored.axes = "t" * (data.ndim - 3) + letters
    if stacked:
        stored.notes.append(f"it is a stack of {len(data)} images, which are taken for slices")
    if data.dtype == np.int8:
        stored.notes.append("its bytes are read with a sign, as MRC2014 says")
    if not all(step > 0 for step in steps.values()):
        stored.notes.append("its header has no voxel size: 1 is taken")
        steps, stored.unit = dict.fromkeys("xyz", 1.0), ""
    angles = [float(header.cellb[name]) for name in ("alpha", "beta", "gamma")]
    if any(abs(angle - 90) > 0.01 for angle in angles if angle):
        told = ", ".join(f"{angle:g}" for angle in angles)
        stored.notes.append(f"the angles of its cell are {told}: right angles are taken")
    origin = {letter: float(header.origin[letter]) for letter in "xyz"}
    if not any(origin.values()):
        # nxstart counts columns, nystart rows, nzstart sections.
        first = [int(header[name]) for name in ("nzstart", "nystart", "nxstart")]
        origin = {letter: start * steps[letter] for letter, start in zip(letters, first, strict=True)}
    spacing, corner = ([values[letter] for letter in "xyz"] for values in (steps, origin))
    stored.affine = VoxelGrid.regular((1, 1, 1), spacing=spacing, origin=corner, axes=letters).matrix
    return stored


def mrc_header(path: Path, key: str | None) -> tuple[tuple[int, ...], int]:
    """Shape of a map and bytes of a number. Its voxels are not read."""
    import mrcfile
    from mrcfile.utils import data_dtype_from_header, data_shape_from_header

    with mrcfile.open(path, mode="r", header_only=True) as file:
        return tuple(data_shape_from_header(file.header)), data_dtype_from_header(file.header).itemsize


def write_mrc(path: Path, data: np.ndarray, affine: np.ndarray, unit: str) -> None:
    """A map with sections along z, rows along y and columns along x, all running upwards."""
    import mrcfile

    letters = nearest_axes(affine)
    steps = np.array([affine["xyz".index(letter), axis] for axis, letter in enumerate(letters)])
    if np.abs(affine[:3, :3]).sum() > np.abs(steps).sum() * (1 + 1e-4):
        raise ValueError(
            f"an MRC volume must lie along the world's axes, got a turned one for {path.name}; .nrrd and "
            f".nii.gz hold turned ones"
        )
    if data.ndim != 3:
        raise ValueError(f"an MRC volume must have one channel, got {len(data)} for {path.name}")
    if data.dtype.name not in _DTYPES:
        raise ValueError(f"an MRC volume must have dtype {', '.join(_DTYPES)}, got {data.dtype} for {path.name}")
    corner = affine[:3, 3].copy()
    for axis, letter in enumerate(letters):
        if steps[axis] < 0:
            corner["xyz".index(letter)] += steps[axis] * (data.shape[axis] - 1)
            data = np.flip(data, axis)
    data = np.ascontiguousarray(data.transpose([letters.index(letter) for letter in "zyx"]))
    sizes = {letter: abs(float(step)) for letter, step in zip(letters, steps, strict=True)}
    with replacing_path(path) as new:
        packed = "gzip" if path.name.lower().endswith(".gz") else None
        with mrcfile.new(new, compression=packed) as file:
            file.set_data(data)
            file.voxel_size = tuple(in_unit(sizes[letter], unit, "angstrom") for letter in "xyz")
            for letter, start in zip("xyz", corner.tolist(), strict=True):
                file.header.origin[letter] = in_unit(start, unit, "angstrom")
