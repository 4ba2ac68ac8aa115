"""
A scene of Gaussians
====================

``splat_ssim.scene.train`` reads a folder of images with their cameras and returns a trained scene of
3D Gaussians. It needs no GPU. This example trains the chair at a quarter of its size, 50 by 50
pixels, so that it takes seconds; leave ``data.factor`` out for the full 200 by 200.
"""

# %%
# Train
# -----
#
# The folder is a Blender scene; COLMAP and nerfstudio folders are recognised too. ``quality`` chooses
# how long the training is and how many Gaussians it may use, and any option of the trainer can be
# given as a config file would name it.

from pathlib import Path

import matplotlib.pyplot as plt

import splat_ssim
from splat_ssim.scene import train

ASSETS = Path(splat_ssim.__file__).resolve().parent.parent / "assets"  # of the source folder

trained = train(
    ASSETS / "chair_200",
    quality="fast",
    steps=800,
    budget=4_000,
    device="cpu",
    options={"data": {"factor": 4}},
)
print(*trained.notes, sep="\n")
print(f"{len(trained.splats['means'])} Gaussians after {trained.metrics['train_seconds']:.0f} seconds")
print(f"test views: PSNR {trained.metrics['psnr']:.2f} dB, SSIM {trained.metrics['ssim']:.4f}")

# %%
# Look at it
# ----------
#
# ``render`` draws the scene from any camera. Here are three test views, which the training has not
# seen, beside the images.

views = trained.task.scene.test[::9]
figure, axes = plt.subplots(2, len(views), figsize=(9, 6))
for column, view in zip(axes.T, views, strict=True):
    column[0].imshow(view.pixels()[0].permute(1, 2, 0))
    column[0].set_title(view.name)
    column[1].imshow(trained.render(view).detach())
    for place in column:
        place.axis("off")
figure.tight_layout()
plt.show()

# %%
# Keep it
# -------
#
# ``trained.save("chair.ply")`` writes the Gaussians for any splat viewer. With ``folder="results/chair"``
# the training keeps its checkpoints, its metrics and its pictures there, as the command line does:
#
# .. code-block:: console
#
#    python scripts/train.py --config configs/fast.yaml
