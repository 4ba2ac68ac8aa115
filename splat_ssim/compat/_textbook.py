"""SSIM as the originals compute it, in plain torch: any taps for each axis, and an optional eps in the denominator.

The drop-ins use it where the operators would give another number: windows rounded to float32 on float64 images, axes
that are not smoothed, windows given by the caller, constants that are tensors. It also runs under torch.jit.trace and
forward-mode differentiation.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from splat_ssim.compat._options import Number, are_kernels_barred, is_positive

#: The window of one axis: numbers, or tensors that differ by channel; None leaves the axis as it is.
Taps = Sequence[Number] | None


class Moments(NamedTuple):
    """Windowed means, variances and covariance of two batches of images."""

    mu1: Tensor
    mu2: Tensor
    var1: Tensor
    var2: Tensor
    cov: Tensor

    def luminance(self, c1: Number) -> Tensor:
        """(2 mu1 mu2 + C1) / (mu1² + mu2² + C1)."""
        return (2 * self.mu1 * self.mu2 + c1) / (self.mu1**2 + self.mu2**2 + c1)

    def contrast_structure(self, c2: Number) -> Tensor:
        """(2 cov + C2) / (var1 + var2 + C2)."""
        return (2 * self.cov + c2) / (self.var1 + self.var2 + c2)

    def ssim(self, c1: Number, c2: Number, eps: Number) -> Tensor:
        """S with `eps` added to the whole denominator."""
        numerator = (2 * self.mu1 * self.mu2 + c1) * (2 * self.cov + c2)
        denominator = (self.mu1**2 + self.mu2**2 + c1) * (self.var1 + self.var2 + c2)
        return numerator / (denominator + eps)


def smooth(images: Tensor, taps: Sequence[Taps]) -> Tensor:
    """Correlates each of the last axes with its taps, keeping what the window covers fully."""
    for dim, weights in zip(range(images.ndim - len(taps), images.ndim), taps, strict=True):
        if weights is None:
            continue
        length = images.shape[dim] - len(weights) + 1
        terms = [images.narrow(dim, offset, length) * tap for offset, tap in enumerate(weights)]
        images = functools.reduce(torch.add, terms)
    return images


def moments(img1: Tensor, img2: Tensor, taps: Sequence[Taps]) -> Moments:
    """The moments of images (B, C, spatial…) that are padded already, with one window for each spatial axis."""
    mu1, mu2 = smooth(img1, taps), smooth(img2, taps)
    var1 = smooth(img1 * img1, taps) - mu1 * mu1
    var2 = smooth(img2 * img2, taps) - mu2 * mu2
    return Moments(mu1, mu2, var1, var2, smooth(img1 * img2, taps) - mu1 * mu2)


def float32_gaussian(
    size: int, sigma: Number, device: torch.device | str | None = "cpu", centre: int | None = None
) -> Tensor:
    """The Gaussian window of one axis, [size], computed and rounded in float32.

    Args:
        size: Number of taps.
        sigma: Standard deviation.
        device: Device of the result. None: torch's default device.
        centre: Index of the tap that the Gaussian is centred at. By default the middle of the window, which for an even
            window lies between two taps.
    """
    middle = (size - 1) / 2 if centre is None else centre
    offsets = torch.arange(size, dtype=torch.float32, device=device) - middle
    weights = torch.exp(-(offsets**2) / (2 * sigma**2))
    return weights / weights.sum()


def gaussian_sigma(taps: Tensor, tolerance: float = 3e-8) -> float | None:
    """The sigma of the window that `float32_gaussian` makes, or None where the taps [size] are no such window."""
    size = taps.numel()
    if taps.device.type != "cpu" or size < 3 or size % 2 == 0:
        return None
    middle, beside = taps.detach().double()[size // 2 : size // 2 + 2].tolist()
    if not 0 < beside < middle:
        return None
    sigma = math.sqrt(0.5 / math.log(middle / beside))
    # Try the rounded value first, because callers usually give round numbers.
    for candidate in (round(sigma, 4), sigma):
        if candidate > 0 and (float32_gaussian(size, candidate) - taps).abs().max() < tolerance:
            return candidate
    return None


def wide(images: Tensor) -> Tensor:
    """Images in float32, which replaces half precision and integers. float64 images stay as they are."""
    return images if images.dtype == torch.float64 else images.float()


def has_kernel(window_size: int, *constants: Number) -> bool:
    """Whether the operators take this window, with constants that are positive finite numbers."""
    return window_size % 2 == 1 and 3 <= window_size <= 33 and is_positive(*constants) and not are_kernels_barred()
