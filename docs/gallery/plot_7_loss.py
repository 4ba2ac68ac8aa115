"""
Your own loss
=============

The trainer takes any function of two images. This page adds a term for edges to the standard loss,
looks at its gradient, and trains a scene with it.
"""

# %%
# The function
# ------------
#
# A loss takes ``pred`` and ``target`` as (B, C, H, W) and returns one number that falls as they become
# alike. A second return value, a dictionary of numbers, is logged. With an argument ``mask`` it can be
# used on scenes that have masks.

from pathlib import Path

import matplotlib.pyplot as plt
import torch

import splat_ssim
from splat_ssim.registry import get_loss
from splat_ssim.scene import train
from splat_ssim.scene.data import load_scene

ASSETS = Path(splat_ssim.__file__).resolve().parent.parent / "assets"  # of the source folder


def edge_loss(pred, target, *, weight=0.3):
    """L1 + DSSIM, and the L1 difference of neighbouring pixels."""
    difference = pred - target
    edges = difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
    return splat_ssim.photometric_loss(pred, target) + weight * edges, {"edges": edges.detach()}


# %%
# Try it
# ------
#
# The trainer passes the name ``module:function`` to ``get_loss``, which imports the function and tries
# it on two copies of an image, one better than the other. If the better copy gets the higher value, the
# function is refused: people often pass a similarity by mistake. The name below says ``__main__``
# because the function is in this script.

criterion = get_loss("__main__:edge_loss", weight=0.3)
scene = load_scene(ASSETS / "chair_200", factor=2)
target = scene.train[0].pixels()
blurred = torch.nn.functional.avg_pool2d(target, 5, 1, 2, count_include_pad=False).requires_grad_()
value, terms = criterion(blurred, target)
value.backward()
print(f"loss {float(value.detach()):.4f}, of which edges {float(terms['edges']):.4f} times 0.3")

# %%
# The gradient says where the loss asks for a change, and in which direction.

figure, axes = plt.subplots(1, 3, figsize=(10, 3.6))
axes[0].imshow(target[0].permute(1, 2, 0))
axes[0].set_title("target")
axes[1].imshow(blurred[0].detach().permute(1, 2, 0))
axes[1].set_title("prediction")
gradient = blurred.grad[0].mean(0)
limit = float(gradient.abs().max()) / 2
axes[2].imshow(gradient, cmap="coolwarm", vmin=-limit, vmax=limit)
axes[2].set_title("gradient of the loss")
for place in axes:
    place.axis("off")
figure.tight_layout()
plt.show()

# %%
# Train with it
# -------------
#
# From a file ``my_losses.py`` on Python's path, the command line is
# ``python scripts/train.py --loss my_losses:edge_loss --loss-kwargs '{weight: 0.3}'``.

trained = train(
    ASSETS / "chair_200",
    quality="fast",
    steps=600,
    budget=3_000,
    device="cpu",
    options={"loss": "__main__:edge_loss", "loss_kwargs": {"weight": 0.3}, "data": {"factor": 4}},
)
print(f"test views: PSNR {trained.metrics['psnr']:.2f} dB, SSIM {trained.metrics['ssim']:.4f}")
