"""
Compare two volumes
===================

How much has compression, denoising or reconstruction changed a volume, and where?
``splat_ssim.comparison.compare`` computes PSNR, SSIM3D and MS-SSIM of two files, and writes the map of
SSIM3D to a third file. It reads zarr, HDF5, npy and raw files block by block, so they may be larger
than memory.
"""

# %%
# Two volumes
# -----------
#
# We take a part of the MRI and make two changed copies of it with the same mean squared error: one is
# brighter, the other has added noise.

import contextlib
import io
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import splat_ssim
from splat_ssim.comparison import compare
from splat_ssim.volume import Volume, load_volume, save_volume

ASSETS = Path(splat_ssim.__file__).resolve().parent.parent / "assets"  # of the source folder

head = load_volume(ASSETS / "brain_mri" / "T1.nii.gz")
start, shape = (22, 30, 30), (80, 96, 80)
scan = np.asarray(head.data[0][tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))], np.float32)
grid = head.grid.crop(start, shape)

brighter = 1.15 * scan
error = np.sqrt(np.mean((brighter - scan) ** 2))
noisy = scan + error * np.random.default_rng(0).standard_normal(shape, dtype=np.float32)

folder = Path(tempfile.mkdtemp())
for name, values in (("scan", scan), ("brighter", brighter), ("noisy", noisy)):
    save_volume(folder / f"{name}.nii.gz", Volume(values[None], grid))

# %%
# Compare them
# ------------
#
# ``data_range`` is the largest possible value minus the smallest. SSIM depends on it, so give the
# same one to every comparison. ``map`` says where to write SSIM of every voxel.

results = {}
for name in ("brighter", "noisy"):
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it returns
        results[name] = compare(
            folder / "scan.nii.gz",
            folder / f"{name}.nii.gz",
            data_range=float(scan.max()),
            map=folder / f"{name}_map.nii.gz",
        )
    print(f"{name}: PSNR {results[name]['psnr']:.2f} dB, SSIM3D {results[name]['ssim']:.4f}")

# %%
# Where they differ
# -----------------
#
# PSNR cannot tell the two apart. SSIM3D can: the brighter volume keeps all of its structure, while the
# noise hides the structure of flat and dark parts. The map shows where.

figure, axes = plt.subplots(2, 3, figsize=(10, 7))
middle = shape[2] // 2
axes[0, 0].imshow(scan[:, :, middle].T, cmap="gray", origin="lower")
axes[0, 0].set_title("scan")
for column, (name, values) in zip((1, 2), (("brighter", brighter), ("noisy", noisy)), strict=True):
    axes[0, column].imshow(values[:, :, middle].T, cmap="gray", origin="lower", vmin=0, vmax=scan.max())
    axes[0, column].set_title(name)
    ssim_map = load_volume(folder / f"{name}_map.nii.gz").data[0]
    shown = axes[1, column].imshow(ssim_map[:, :, middle].T, cmap="viridis", origin="lower", vmin=0, vmax=1)
    axes[1, column].set_title(f"SSIM3D, mean {results[name]['ssim']:.3f}")
figure.colorbar(shown, ax=axes[1, 0], fraction=0.5)
for place in axes.flat:
    place.axis("off")
plt.show()

# %%
# On the command line:
#
# .. code-block:: console
#
#    python scripts/compare.py A.nii.gz B.nii.gz --map MAP.nii.gz
