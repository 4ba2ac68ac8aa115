"""The interface of the `fused_ssim3d` package. `splat_ssim.compat.fused_ssim` says how it differs from the original."""

from __future__ import annotations

from torch import Tensor

from splat_ssim import functional
from splat_ssim.compat.fused_ssim import FusedSSIMMap, allowed_padding, fused_ssim3d, mean_ssim

__all__ = ["FusedSSIMMap", "allowed_padding", "fused_ssim2d", "fused_ssim3d"]


def fused_ssim2d(img1: Tensor, img2: Tensor, padding: str = "same", train: bool = True) -> Tensor:
    """Mean SSIM of two batches of images (B, C, H, W). It is `splat_ssim.compat.fused_ssim.fused_ssim` by another name.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.fused_ssim3d import fused_ssim2d
        >>> image = torch.rand(1, 3, 32, 32)
        >>> fused_ssim2d(image, image)
        tensor(1.)
    """
    return mean_ssim(functional.ssim, img1, img2, padding, train)
