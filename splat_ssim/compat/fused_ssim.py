"""The interface of the `fused_ssim` package: mean SSIM, window 11, sigma 1.5, data range 1.

Differences from the original: it runs on a CPU too, in 3D too; the second image gets its true gradient when it asks
for one, where the original silently gives none; the value never exceeds 1; and images smaller than the window in
"valid" are a ValueError, where the original returns NaN.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from splat_ssim import functional
from splat_ssim.compat._errors import RefusedValueError

__all__ = ["fused_ssim", "fused_ssim3d"]


def fused_ssim(img1: Tensor, img2: Tensor, padding: str = "same", train: bool = True) -> Tensor:
    """Mean SSIM of two batches of images.

    Args:
        img1: (B, C, H, W), values in [0, 1]; dtypes and strides as for `splat_ssim.ssim`.
        img2: The same shape and device.
        padding: "same", zeros, or "valid", only the windows inside.
        train: Whether a gradient is needed; without one only the value is computed.

    Returns:
        A scalar, float32 or float64.

    Raises:
        ValueError: As `splat_ssim.ssim`; an unknown padding is an AssertionError as well, as in the original.
        TypeError: As `splat_ssim.ssim`.

    Example:
        >>> loss = 1 - fused_ssim(torch.rand(1, 3, 32, 32, requires_grad=True), torch.rand(1, 3, 32, 32))
    """
    return mean_ssim(functional.ssim, img1, img2, padding, train)


def fused_ssim3d(img1: Tensor, img2: Tensor, padding: str = "same", train: bool = True) -> Tensor:
    """Mean SSIM of two batches of volumes (B, C, D, H, W); all else is as for `fused_ssim`.

    Example:
        >>> loss = 1 - fused_ssim3d(torch.rand(1, 1, 16, 16, 16), torch.rand(1, 1, 16, 16, 16), train=False)
    """
    return mean_ssim(functional.ssim3d, img1, img2, padding, train)


def mean_ssim(function: Callable[..., Tensor], img1: Tensor, img2: Tensor, padding: str, train: bool) -> Tensor:
    """What the three functions of both packages share."""
    if padding not in ("same", "valid"):
        raise RefusedValueError(f"padding must be 'same' or 'valid', got {padding!r}")
    with torch.set_grad_enabled(torch.is_grad_enabled() and train):
        return function(img1, img2, padding=padding)
