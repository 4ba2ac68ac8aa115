"""The interface of kornia 0.8 and earlier: `splat_ssim.compat.kornia`, but for what kornia 0.9 changed.

For volumes "same" is replicate padding, the window is rounded to float32 even where they are float64, and `ssim3d_loss`
is `1 - S` without the division by two and the clamp (its documentation says `(1 - S) / 2`). In `MS_SSIMLoss` the
channels see different sigmas.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from splat_ssim.compat import _textbook
from splat_ssim.compat import kornia as _kornia
from splat_ssim.compat.kornia import (
    SSIM,
    CauchyLoss,
    CharbonnierLoss,
    GemanMcclureLoss,
    InverseDepthSmoothnessLoss,
    PSNRLoss,
    SSIMLoss,
    TotalVariation,
    WelschLoss,
    cauchy_loss,
    charbonnier_loss,
    geman_mcclure_loss,
    inverse_depth_smoothness_loss,
    psnr_loss,
    ssim,
    ssim_loss,
    total_variation,
    welsch_loss,
)

__all__ = [
    "SSIM",
    "SSIM3D",
    "CauchyLoss",
    "CharbonnierLoss",
    "GemanMcclureLoss",
    "InverseDepthSmoothnessLoss",
    "MS_SSIMLoss",
    "PSNRLoss",
    "SSIM3DLoss",
    "SSIMLoss",
    "TotalVariation",
    "WelschLoss",
    "cauchy_loss",
    "charbonnier_loss",
    "geman_mcclure_loss",
    "inverse_depth_smoothness_loss",
    "psnr_loss",
    "ssim",
    "ssim3d",
    "ssim3d_loss",
    "ssim_loss",
    "total_variation",
    "welsch_loss",
]


def ssim3d(
    img1: Tensor, img2: Tensor, window_size: int, max_val: float = 1.0, eps: float = 1e-12, padding: str = "same"
) -> Tensor:
    """The map of SSIM of two batches of volumes; "same" is replicate padding.

    Example:
        >>> ssim3d(torch.rand(1, 1, 8, 8, 8), torch.rand(1, 1, 8, 8, 8), window_size=5).shape
        torch.Size([1, 1, 8, 8, 8])
    """
    gaussian = _textbook.float32_gaussian
    return _kornia._ssim_map(img1, img2, window_size, max_val, eps, padding, 3, same="replicate", gaussian=gaussian)


def ssim3d_loss(
    img1: Tensor,
    img2: Tensor,
    window_size: int,
    max_val: float = 1.0,
    eps: float = 1e-12,
    reduction: str = "mean",
    padding: str = "same",
) -> Tensor:
    """`1 - S` of two batches of volumes, without a division by two or a clamp.

    Example:
        >>> loss = ssim3d_loss(torch.rand(1, 1, 8, 8, 8), torch.rand(1, 1, 8, 8, 8), window_size=5)
    """
    _kornia._check_reduction(reduction)
    return _kornia._reduce(1 - ssim3d(img1, img2, window_size, max_val, eps, padding), reduction)


class SSIM3D(_kornia.SSIM3D):
    """`ssim3d` as a module.

    Example:
        >>> value = SSIM3D(window_size=5)(torch.rand(1, 1, 8, 8, 8), torch.rand(1, 1, 8, 8, 8))
    """

    _function = staticmethod(ssim3d)


class SSIM3DLoss(_kornia.SSIM3DLoss):
    """`ssim3d_loss` as a module.

    Example:
        >>> loss = SSIM3DLoss(window_size=5)(torch.rand(1, 1, 8, 8, 8), torch.rand(1, 1, 8, 8, 8))
    """

    _function = staticmethod(ssim3d_loss)


class MS_SSIMLoss(_kornia.MS_SSIMLoss):  # noqa: N801 - the original's name
    """L1 and SSIM at several sigmas, three windows for each sigma dealt out to the channels in order.

    With the default sigmas and 3 channels, R sees {.5, .5, .5, 1, 1}, G {1, 2, 2, 2, 4} and B {4, 4, 8, 8, 8}. The
    product of the last three luminance terms and of all fifteen contrast-structure terms takes the place of the mean
    over channels. The L1 term is smoothed by the last C windows: all of the last sigma only for C of 3 or less. The
    number of channels must divide the number of windows.

    Example:
        >>> loss = MS_SSIMLoss()(torch.rand(1, 3, 32, 32, requires_grad=True), torch.rand(1, 3, 32, 32))
    """

    def _windows(self, channels: int) -> list[float]:
        """The sigma of every window, in the order they are dealt out."""
        windows = [sigma for sigma in self.sigmas for _ in range(3)]
        if len(windows) % channels != 0:
            raise ValueError(
                f"the number of channels must divide the {len(windows)} windows, three for each sigma, got {channels}"
            )
        return windows

    def _similarity(self, img1: Tensor, img2: Tensor) -> Tensor:
        img1, img2 = self._padded(img1), self._padded(img2)
        windows = self._windows(img1.shape[1])
        share = len(windows) // img1.shape[1]
        luminances, contrast_structures = [], []
        for index, sigma in enumerate(windows):
            channel = slice(index // share, index // share + 1)
            found = _textbook.moments(img1[:, channel], img2[:, channel], self._taps(sigma))
            luminances.append(found.luminance(self.c1))
            contrast_structures.append(found.contrast_structure(self.c2))
        return (luminances[-1] * luminances[-2] * luminances[-3] * math.prod(contrast_structures))[:, 0]

    def _distance(self, img1: Tensor, img2: Tensor) -> Tensor:
        difference = self._padded((img1 - img2).abs())
        last = self._windows(img1.shape[1])[-img1.shape[1] :]
        smoothed = [_textbook.smooth(difference[:, index], self._taps(sigma)) for index, sigma in enumerate(last)]
        return torch.stack(smoothed, dim=1).mean(1)
