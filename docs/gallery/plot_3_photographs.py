"""
Photographs
===========

A folder of photographs with a COLMAP reconstruction trains like any other scene. This example
uses 27 photographs of a street in Lund, which come with the source, at a quarter of their size. The
next page has the full training.
"""

# %%
# From photographs to a scene
# ---------------------------
#
# If you have photographs or a video and no reconstruction, one command makes one, on the CPU:
#
# .. code-block:: console
#
#    python scripts/prepare.py PHOTOS_OR_VIDEO SCENE
#
# Then train it. By default every eighth photograph is kept for testing.

from pathlib import Path

import matplotlib.pyplot as plt

import splat_ssim
from splat_ssim.scene import train

ASSETS = Path(splat_ssim.__file__).resolve().parent.parent / "assets"  # of the source folder

trained = train(
    ASSETS / "lund",
    quality="fast",
    steps=600,
    budget=8_000,
    device="cpu",
    options={"data": {"factor": 4}},
)
print(*trained.notes, sep="\n")
print(f"training took {trained.metrics['train_seconds']:.0f} seconds")
print(f"test views: PSNR {trained.metrics['psnr']:.2f} dB, SSIM {trained.metrics['ssim']:.4f}")

# %%
# A view it has not seen
# ----------------------
#
# The camera drives down the street, so the far end is seen by few photographs and from nearly the
# same direction: a hard scene for any method. People who walk through it come out as ghosts.

view = trained.task.scene.test[1]
figure, axes = plt.subplots(1, 2, figsize=(10, 4))
axes[0].imshow(view.pixels()[0].permute(1, 2, 0))
axes[0].set_title("photograph")
axes[1].imshow(trained.render(view).detach())
axes[1].set_title("render")
for place in axes:
    place.axis("off")
figure.tight_layout()
plt.show()
