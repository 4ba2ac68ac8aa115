"""Parts of kornia's `MS_SSIMLoss`: windows, and maps of SSIM and of its factors at one sigma."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from splat_ssim.compat import _textbook
from splat_ssim.ops.ssim import ssim_map
from splat_ssim.options import SSIMOptions


def masks_of(sigmas: Sequence[float], size: int) -> Tensor:
    """(windows, 1, size, size): the windows of kornia's buffer. One of even size is centred on a pixel too."""
    taps = [_textbook.float32_gaussian(size, sigma, centre=size // 2) for sigma in sigmas]
    return torch.stack([torch.outer(window, window) for window in taps])[:, None]


def sigmas_of(masks: Tensor) -> tuple[float, ...] | None:
    """The sigmas from which `masks_of` makes these windows, or None if there are none."""
    if masks.device.type != "cpu":
        return None
    found = [_textbook.gaussian_sigma(taps, tolerance=1e-6) for taps in taps_of(masks, masks)]
    sigmas = tuple(sigma for sigma in found if sigma is not None)
    if len(sigmas) < len(found) or (masks_of(sigmas, masks.shape[-1]) - masks).abs().max() > 1e-6:
        return None
    return sigmas


class Maps:
    """Maps of S and of its factors for two batches of images, zero-padded, by the operators."""

    #: A value of k1 or k2 that is so large that its factor of S is 1.
    _HUGE = 1e7

    def __init__(self, img1: Tensor, img2: Tensor, taps: int, data_range: float, c1: float, c2: float):
        self._images = img1, img2
        self._taps = taps
        self._data_range = data_range
        self._k1, self._k2 = math.sqrt(c1) / data_range, math.sqrt(c2) / data_range

    @classmethod
    def of(
        cls,
        img1: Tensor,
        img2: Tensor,
        taps: int,
        sigmas: tuple[float, ...] | None,
        data_range: float,
        c1: float,
        c2: float,
    ) -> Maps | None:
        """The maps for the options of a loss, or None where these options need plain torch."""
        if sigmas is None or img1.dtype == torch.float64 or img1.numel() == 0:
            return None
        if isinstance(data_range, Tensor) or isinstance(c1, Tensor) or isinstance(c2, Tensor):
            return None
        if not _textbook.has_kernel(taps, abs(data_range), c1, c2, *sigmas):
            return None
        return cls(img1, img2, taps, abs(data_range), c1, c2)

    def ssim(self, sigma: float, channel: int | None = None) -> Tensor:
        """S of all channels, or of one: (B, 1, H, W)."""
        return self._map(sigma, self._k1, self._k2, channel)

    def luminance(self, sigma: float, channel: int | None = None) -> Tensor:
        """The luminance factor of S."""
        return self._map(sigma, self._k1, self._HUGE, channel)

    def contrast_structure(self, sigma: float, channel: int | None = None) -> Tensor:
        """The contrast-structure factor of S."""
        return self._map(sigma, self._HUGE, self._k2, channel)

    def _map(self, sigma: float, k1: float, k2: float, channel: int | None) -> Tensor:
        img1, img2 = self._images
        if channel is not None:
            img1, img2 = img1[:, channel : channel + 1], img2[:, channel : channel + 1]
        return ssim_map(img1, img2, SSIMOptions(self._taps, sigma, self._data_range, k1, k2))


def taps_of(masks: Tensor, images: Tensor) -> Tensor:
    """(windows, taps): each window along one axis. The windows are outer products, whose sum is not exactly 1."""
    rows = masks[:, 0].to(images.device, torch.float64).sum(2)
    return (rows / rows.sum(1, keepdim=True).sqrt()).to(images.dtype)


def _smooth(images: Tensor, taps: Tensor, groups: int, pad: int) -> Tensor:
    """Smooths each channel of zero-padded images by its share of the windows. Returns (B, windows, H, W).

    Args:
        images: (B, groups, H, W).
        taps: (windows, taps) weights of each window along one axis.
        groups: Number of channels. It divides the number of windows.
        pad: Number of zeros at each end of both axes.
    """
    columns = F.conv2d(images, taps[:, None, :, None], padding=[pad, 0], groups=groups)
    return F.conv2d(columns, taps[:, None, None, :], padding=[0, pad], groups=taps.shape[0])


def smooth_or_weigh(images: Tensor, taps: Tensor, groups: int, pad: int, reduction: str) -> Tensor:
    """`_smooth`, or a map with the same sum: each pixel times the sum of the weights that windows give it."""
    if reduction == "none" or taps.shape[1] % 2 == 0:
        return _smooth(images, taps, groups, pad)
    shares = [
        F.conv1d(torch.ones([1, 1, side], dtype=taps.dtype, device=taps.device), taps.flip(1)[:, None], padding=pad)
        for side in images.shape[-2:]
    ]
    return images * shares[0][0, :, :, None] * shares[1][0, :, None, :]


def terms(
    img1: Tensor, img2: Tensor, taps: Tensor, groups: int, pad: int, c1: float, c2: float
) -> tuple[Tensor, Tensor]:
    """Luminance and contrast-structure terms (B, windows, H, W); the arguments are those of `_smooth`."""
    mu1, mu2 = _smooth(img1, taps, groups, pad), _smooth(img2, taps, groups, pad)
    var1 = _smooth(img1 * img1, taps, groups, pad) - mu1 * mu1
    var2 = _smooth(img2 * img2, taps, groups, pad) - mu2 * mu2
    cov = _smooth(img1 * img2, taps, groups, pad) - mu1 * mu2
    luminance = (2 * mu1 * mu2 + c1) / (mu1 * mu1 + mu2 * mu2 + c1)
    return luminance, (2 * cov + c2) / (var1 + var2 + c2)
