"""
The loss in a training loop
===========================

``photometric_loss`` is 0.8 L1 + 0.2 DSSIM, where DSSIM is 1 - SSIM. It is the loss of 3D Gaussian
splatting, computed in one pass over the images. Here it trains a small network that maps a pixel's
coordinates to its colour. Any model whose output is an image is trained the same way.
"""

# %%
# The image
# ---------
#
# Losses take batches of images, channels first, with values in [0, 1]. This one is a view of the
# chair that comes with the source. Its background is transparent, so we put it on white.

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image

import splat_ssim

ASSETS = Path(splat_ssim.__file__).resolve().parent.parent / "assets"  # of the source folder

rgba = np.asarray(Image.open(ASSETS / "chair_200" / "train" / "r_0.png").resize((100, 100)), np.float32) / 255
pixels = rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:]
truth = torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous()  # (1, 3, 100, 100)

# %%
# The model and the loop
# ----------------------
#
# The two runs below differ in one number, ``lambda_dssim``: the share of DSSIM in the loss. With 0
# the loss is L1 alone.

size = truth.shape[-1]
axis = torch.linspace(-1, 1, size)
coordinates = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1).reshape(-1, 2)
frequencies = 8 * torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
features = torch.cat([(coordinates @ frequencies).sin(), (coordinates @ frequencies).cos()], dim=1)


def fit(lambda_dssim, steps=150):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(128, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 3)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    values = []
    for _ in range(steps):
        render = model(features).sigmoid().T.reshape(1, 3, size, size)
        loss = splat_ssim.photometric_loss(render, truth, lambda_dssim=lambda_dssim)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(float(splat_ssim.ssim(render.detach(), truth)))
    return render.detach(), values


l1_alone, l1_curve = fit(lambda_dssim=0.0)
with_dssim, dssim_curve = fit(lambda_dssim=0.5)
print(f"SSIM after training with L1 alone:   {l1_curve[-1]:.4f}")
print(f"SSIM after training with L1 + DSSIM: {dssim_curve[-1]:.4f}")

# %%
# The result
# ----------
#
# L1 counts every pixel by itself. DSSIM compares neighbourhoods, so it pushes the model towards the
# edges and textures that L1 alone leaves blurred.

figure, axes = plt.subplots(1, 4, figsize=(12, 3.2))
for place, image, title in zip(axes, (truth, l1_alone, with_dssim), ("truth", "L1 alone", "L1 + DSSIM"), strict=False):
    place.imshow(image[0].permute(1, 2, 0).clamp(0, 1))
    place.set_title(title)
    place.axis("off")
axes[3].plot(l1_curve, label="L1 alone")
axes[3].plot(dssim_curve, label="L1 + DSSIM")
axes[3].set(xlabel="step", title="SSIM")
axes[3].legend()
figure.tight_layout()
plt.show()
