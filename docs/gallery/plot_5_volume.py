"""
A volume as Gaussians
=====================

``splat_ssim.volume.fit`` turns a scan into 3D Gaussians. What comes back is a function of space: it
can be rendered on any grid, sampled at any point, cut, saved and differentiated. Here it fits a part
of an MRI under L1 + SSIM3D.
"""

# %%
# Read a scan
# -----------
#
# The file says how large its voxels are and where they lie. We take a block from the middle of the
# head, 56 by 64 by 56 voxels.

from pathlib import Path

import matplotlib.pyplot as plt
import torch

import splat_ssim
from splat_ssim.volume import Volume, fit, load_volume

ASSETS = Path(splat_ssim.__file__).resolve().parent.parent / "assets"  # of the source folder

head = load_volume(ASSETS / "brain_mri" / "T1.nii.gz")
start, shape = (34, 50, 50), (56, 64, 56)
block = tuple(slice(first, first + count) for first, count in zip(start, shape, strict=True))
part = Volume(head.data[(0, *block)][None], head.grid.crop(start, shape))

# %%
# Fit it
# ------
#
# ``budget`` is the largest number of Gaussians and ``steps`` the length of the fit. Each Gaussian is
# eleven numbers, so 4,000 of them are about a fifth of the numbers that the block has.

field = fit(part, budget=4_000, steps=300, device="cpu")
print(*field.notes, sep="\n")
print(f"{len(field)} Gaussians: PSNR {field.metrics['psnr3d']:.2f} dB, SSIM3D {field.metrics['ssim3d']:.4f}")

# %%
# Render it
# ---------
#
# Rendered on the scan's own grid, the field approximates the scan, in the scan's intensities. The last
# picture evaluates the same Gaussians at four times as many points along each axis of one slice. Only
# the coordinates of these points are interpolated, not the values.

rendered = field.render().detach()
middle = shape[0] // 2
points = part.grid.points()[middle]  # (64, 56, 3): where the voxels of one slice lie
fine = torch.nn.functional.interpolate(
    points.permute(2, 0, 1)[None], scale_factor=4, mode="bilinear", align_corners=True
)[0].permute(1, 2, 0)
sampled = field.sample(fine.contiguous())[0].detach()

figure, axes = plt.subplots(1, 3, figsize=(11, 4))
pictures = (torch.as_tensor(part.data[0, middle]), rendered[0, middle], sampled)
top = float(pictures[0].max())
for place, picture, title in zip(axes, pictures, ("scan", "4,000 Gaussians", "sampled four times finer"), strict=True):
    place.imshow(picture.T, cmap="gray", origin="lower", vmin=0, vmax=top)
    place.set_title(title)
    place.axis("off")
figure.tight_layout()
plt.show()

# %%
# The command line fits the whole head and keeps the run in a folder:
#
# .. code-block:: console
#
#    python scripts/train.py --config configs/voxel_mri.yaml --strategy.budget 10000 --steps 1600
