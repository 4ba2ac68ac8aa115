"""LPIPS in evaluations: by torchmetrics, whose networks' weights torchvision fetches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from splat_ssim.errors import UserError
from splat_ssim.scene.data import View

#: (1, 3, H, W) render and photograph in [0, 1], and a mask (H, W) or None -> their distance.
Perceptual = Callable[[Tensor, Tensor, "Tensor | None"], float]


def make_lpips(
    network: Literal["off", "alex", "vgg", "squeeze"], views: Sequence[View], device: torch.device
) -> Perceptual | None:
    """Makes the LPIPS metric of an evaluation. Returns None if it is off.

    Pixels that a mask excludes are those of the photograph in both pictures, so they add nothing.

    Args:
        network: off, alex, vgg or squeeze. Papers on Gaussian splatting report vgg.
        views: Views that will be compared. Each must be large enough for the network.
        device: Device that the network computes on.

    Raises:
        UserError: A package or the weights are not available, or a view is too small.

    Source: Zhang et al., The Unreasonable Effectiveness of Deep Features as a Perceptual Metric, CVPR 2018.
    """
    if network == "off":
        return None
    try:
        import torchvision  # noqa: F401 - a build for another torch ends in a RuntimeError
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
    except (ImportError, RuntimeError) as error:
        raise UserError(
            "output.lpips requires torchmetrics, and the torchvision that fits "
            f"torch {torch.__version__}: install splat_ssim with its extra 'lpips': {error}"
        ) from None
    try:
        metric = LearnedPerceptualImagePatchSimilarity(net_type=network, normalize=True).to(device)
    except OSError as error:
        raise UserError(
            f"output.lpips {network}: required the network's weights, from download.pytorch.org or in "
            f"{torch.hub.get_dir()}/checkpoints, got {error}"
        ) from None

    @torch.no_grad()
    def distance(pred: Tensor, target: Tensor, mask: Tensor | None) -> float:
        if mask is not None:
            pred = torch.where(mask, pred, target)
        metric.reset()
        # Rounding may lead out of [0, 1], and the metric refuses that.
        metric.update(pred.clamp(0, 1), target.clamp(0, 1))
        return float(metric.compute())

    smallest = {min(view.height, view.width): view for view in views}
    view = smallest[min(smallest)]
    probe = torch.zeros(1, 3, view.height, view.width, device=device)
    try:
        distance(probe, probe, None)
    except RuntimeError as error:
        raise UserError(
            f"{view.name}: output.lpips {network} requires larger pictures, got {view.height}x{view.width}: {error}"
        ) from None
    return distance
