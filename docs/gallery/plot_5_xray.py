"""
A CT from X-rays
================

``splat_ssim.ct`` projects 3D Gaussians onto an X-ray detector, differentiably. So Gaussians can be
fitted to few projections. The loss is L1 + SSIM of the projections plus the total variation of the
volume. Here a part of an MRI stands for a patient: it is X-rayed from 24 sides and reconstructed.
"""

# %%
# Projections
# -----------
#
# ``simulate`` sums the voxels along the rays of a cone beam. It writes what a scanner would: pictures,
# and a file that says where source and detector were.

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import splat_ssim
from splat_ssim.ct.config import CTConfig, CTStrategyConfig
from splat_ssim.ct.data import load_projections
from splat_ssim.ct.fdk import fdk
from splat_ssim.ct.simulate import simulate
from splat_ssim.ct.training import CTTask
from splat_ssim.trainer.unkept import Unkept
from splat_ssim.volume import Volume, load_volume, save_volume

ASSETS = Path(splat_ssim.__file__).resolve().parent.parent / "assets"  # of the source folder

head = load_volume(ASSETS / "brain_mri" / "T1.nii.gz")
start, shape = (22, 40, 30), (80, 80, 80)
block = tuple(slice(first, first + count) for first, count in zip(start, shape, strict=True))
folder = Path(tempfile.mkdtemp())
save_volume(folder / "part.nii.gz", Volume(np.asarray(head.data[(0, *block)])[None], head.grid.crop(start, shape)))

simulate(folder / "part.nii.gz", folder / "projections", views=24, size=48)
projections = load_projections(folder / "projections")
truth = load_volume(folder / "projections" / "truth.npz").data[0]

# %%
# Filtered backprojection
# -----------------------
#
# The classical method of Feldkamp, Davis and Kress takes a moment. With so few views the result has
# streaks.


def psnr(volume):
    error = np.clip(volume, 0, None) - truth
    return 10 * np.log10((truth.max() - truth.min()) ** 2 / np.mean(error**2))


backprojected = fdk(projections.pictures, projections.geometry, projections.grid).numpy()
print(f"filtered backprojection: {psnr(backprojected):.2f} dB")

# %%
# Gaussians
# ---------
#
# ``CTTask`` starts from the backprojection and fits Gaussians to the projections. Nothing of the true
# volume is used.

config = CTConfig(
    data_dir=folder / "projections", steps=600, checkpoint_every=0, strategy=CTStrategyConfig(budget=4_000)
)
config.output.progress = False
task = CTTask(config, projections)
Unkept(task).train()
fitted = task.volume()[0].cpu().numpy()
print(f"{len(task.model)} Gaussians: {psnr(fitted):.2f} dB")

# %%
# What they look like
# -------------------

figure, axes = plt.subplots(1, 4, figsize=(12, 3.4))
pictures = {
    "a projection": projections.pictures[0].numpy(),
    "truth": truth[:, :, 24].T[::-1],
    "backprojection": backprojected[:, :, 24].T[::-1],
    "Gaussians": fitted[:, :, 24].T[::-1],
}
for place, (title, picture) in zip(axes, pictures.items(), strict=True):
    place.imshow(picture, cmap="gray", vmin=0, vmax=None if title == "a projection" else truth.max())
    place.set_title(title)
    place.axis("off")
figure.tight_layout()
plt.show()

# %%
# On the command line (a cone beam is the default):
#
# .. code-block:: console
#
#    python scripts/project.py VOLUME projections --views 50
#    python scripts/train.py --config configs/ct.yaml --data-dir projections
