"""
Photographs with all steps (long)
=================================

This example trains the street in Lund at half size with the default quality. It takes minutes on two
processors, so only ``make gallery`` runs this page.
"""

# %%
# The same call as before, now with the preset's own number of steps and budget:

from pathlib import Path

import matplotlib.pyplot as plt

import splat_ssim
from splat_ssim.scene import train

ASSETS = Path(splat_ssim.__file__).resolve().parent.parent / "assets"  # of the source folder

trained = train(ASSETS / "lund", quality="default", device="cpu", options={"data": {"factor": 2}})
print(f"{len(trained.splats['means'])} Gaussians after {trained.metrics['train_seconds']:.0f} seconds")
print(f"test views: PSNR {trained.metrics['psnr']:.2f} dB, SSIM {trained.metrics['ssim']:.4f}")

# %%
# A view that was not trained on:

view = trained.task.scene.test[1]
figure, axes = plt.subplots(1, 2, figsize=(10, 4))
axes[0].imshow(view.pixels()[0].permute(1, 2, 0))
axes[1].imshow(trained.render(view).detach())
for place in axes:
    place.axis("off")
figure.tight_layout()
plt.show()
