"""The interface of kornia 0.8 and earlier. It is `splat_ssim.compat.kornia` without the changes of kornia 0.9.

For volumes, "same" is replicate padding, the window is rounded to float32 even if they are float64, and `ssim3d_loss`
is `1 - S`, without the division by two and the clamp (its documentation says `(1 - S) / 2`). In `MS_SSIMLoss`, the
channels see different sigmas.

Everything else is as in kornia 0.9, even where 0.8 gives a wrong result: 0.8 returns NaN for half precision and for the
mean of total variation along an axis of one pixel, truncates the window of integer images, and takes "VALID" for
"same".
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from splat_ssim.compat import kornia as _kornia
from splat_ssim.compat._kornia_checks import check_reduction
from splat_ssim.compat._kornia_ms_ssim import Maps, masks_of, sigmas_of, smooth_or_weigh, taps_of, terms
from splat_ssim.compat._kornia_ssim import Call, check_call, half_dissimilarity, similarity
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
    psnr,
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
    "psnr",
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
    """The SSIM map of two batches of volumes. "same" is replicate padding. Everything else is as in kornia 0.9.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.kornia_0_8 import ssim3d
        >>> ssim3d(torch.rand(1, 1, 8, 8, 8), torch.rand(1, 1, 8, 8, 8), window_size=5).shape
        torch.Size([1, 1, 8, 8, 8])
    """
    return similarity(_check_call(img1, img2, window_size, max_val, eps, padding))


def ssim3d_loss(
    img1: Tensor,
    img2: Tensor,
    window_size: int,
    max_val: float = 1.0,
    eps: float = 1e-12,
    reduction: str = "mean",
    padding: str = "same",
) -> Tensor:
    """`1 - S` of two batches of volumes, without the division by two and the clamp of kornia 0.9.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.kornia_0_8 import ssim3d_loss
        >>> loss = ssim3d_loss(torch.rand(1, 1, 8, 8, 8), torch.rand(1, 1, 8, 8, 8), window_size=5)
    """
    check_reduction(reduction)
    call = _check_call(img1, img2, window_size, max_val, eps, padding)
    return half_dissimilarity(call, reduction, share=1.0)


def _check_call(img1: Tensor, img2: Tensor, window_size: int, max_val: float, eps: float, padding: str) -> Call:
    return check_call(img1, img2, window_size, max_val, eps, padding, 3, same="replicate", is_window_rounded=True)


def _count(windows: list[tuple[float, int]], window: tuple[float, int]) -> int:
    """`windows.count(window)`, which the Dynamo of torch 2.4 can't trace."""
    count = 0
    for other in windows:
        if other[0] == window[0] and other[1] == window[1]:
            count += 1
    return count


class SSIM3D(_kornia.SSIM3D):
    """`ssim3d` as a module.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.kornia_0_8 import SSIM3D
        >>> value = SSIM3D(window_size=5)(torch.rand(1, 1, 8, 8, 8), torch.rand(1, 1, 8, 8, 8))
    """

    _function = staticmethod(ssim3d)


class SSIM3DLoss(_kornia.SSIM3DLoss):
    """`ssim3d_loss` as a module.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.kornia_0_8 import SSIM3DLoss
        >>> loss = SSIM3DLoss(window_size=5)(torch.rand(1, 1, 8, 8, 8), torch.rand(1, 1, 8, 8, 8))
    """

    _function = staticmethod(ssim3d_loss)


class MS_SSIMLoss(_kornia.MS_SSIMLoss):  # noqa: N801 - the original's name
    """Combines L1 with SSIM for several sigmas. Each sigma has three windows, which are dealt out to the channels.

    With the default sigmas and 3 channels, R sees {.5, .5, .5, 1, 1}, G {1, 2, 2, 2, 4} and B {4, 4, 8, 8, 8}. SSIM is
    the product of the last three luminance terms and of all fifteen contrast-structure terms, not a mean over channels.
    The last C windows smooth the L1 term. These all have the last sigma only if C is 3 or less. The number of channels
    must divide the number of windows.

    Windows have int(4 · last sigma + 1) taps. If that is even, the result is one pixel smaller than the images along
    each axis, as in the original. The windows are part of the state dict.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.kornia_0_8 import MS_SSIMLoss
        >>> loss = MS_SSIMLoss()(torch.rand(1, 3, 32, 32, requires_grad=True), torch.rand(1, 3, 32, 32))
        >>> loss.backward()
    """

    def _register_masks(self, sigmas: list[float]) -> None:
        windows = [sigma for sigma in sigmas for _ in range(3)]
        self.register_buffer("_g_masks", masks_of(windows, int(4 * sigmas[-1] + 1)).to(torch.get_default_dtype()))
        self._mask_sigmas = tuple(windows)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        nn.Module._load_from_state_dict(self, *arguments)
        self._mask_sigmas = sigmas_of(self._g_masks)

    def _check_channels(self, channels: int) -> None:
        windows = self._g_masks.shape[0]
        if channels == 0 or windows % channels != 0:
            raise ValueError(
                f"the number of channels must divide the {windows} windows, three for each sigma, got {channels}"
            )

    def _similarity(self, img1: Tensor, img2: Tensor) -> Tensor:
        """(B, H, W): the last three luminance terms times all contrast-structure terms."""
        channels = img1.shape[1]
        if not torch.jit.is_scripting():
            self._check_channels(channels)
            maps = self._maps(img1, img2)
            if maps is not None:
                return self._product(maps, channels)
        luminances, contrast_structures = terms(
            img1, img2, taps_of(self._g_masks, img1), channels, self.pad, self.C1, self.C2
        )
        return luminances[:, -3:].prod(1) * contrast_structures.prod(1)

    def _product(self, maps: Maps, channels: int) -> Tensor:
        """`_similarity` by the operators: each window that is dealt out several times is computed once."""
        assert self._mask_sigmas is not None
        share = len(self._mask_sigmas) // channels
        windows = [(sigma, index // share) for index, sigma in enumerate(self._mask_sigmas)]
        factors = [maps.luminance(*window) ** _count(windows[-3:], window) for window in dict.fromkeys(windows[-3:])]
        factors += [maps.contrast_structure(*window) ** _count(windows, window) for window in dict.fromkeys(windows)]
        similarity = factors[0]
        for factor in factors[1:]:
            similarity = similarity * factor
        return similarity[:, 0]

    def _distance(self, img1: Tensor, img2: Tensor) -> Tensor:
        """(B, H, W): the mean over channels of the absolute difference, each channel smoothed by one window."""
        channels = img1.shape[1]
        taps = taps_of(self._g_masks, img1)[-channels:]
        difference = (img1 - img2).abs()
        return smooth_or_weigh(difference, taps, channels, self.pad, self.reduction).mean(1)
