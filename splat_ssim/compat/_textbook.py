"""SSIM as the originals compute it, in plain torch: any taps for each axis, and a small number in the denominator.

The drop-ins use it where the operators would give another number: windows rounded to float32 on float64 images, axes
that are not smoothed, `eps`, windows of even size or given by the caller.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

#: The window of one axis: numbers, or tensors that differ by channel; None leaves the axis as it is.
Taps = Sequence[float | Tensor] | None


class Moments(NamedTuple):
    """Windowed means, variances and covariance of two batches of images."""

    mu1: Tensor
    mu2: Tensor
    var1: Tensor
    var2: Tensor
    cov: Tensor

    def luminance(self, c1: float) -> Tensor:
        """(2 mu1 mu2 + C1) / (mu1² + mu2² + C1)."""
        return (2 * self.mu1 * self.mu2 + c1) / (self.mu1**2 + self.mu2**2 + c1)

    def contrast_structure(self, c2: float) -> Tensor:
        """(2 cov + C2) / (var1 + var2 + C2)."""
        return (2 * self.cov + c2) / (self.var1 + self.var2 + c2)

    def ssim(self, c1: float, c2: float, eps: float) -> Tensor:
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


def float32_gaussian(size: int, sigma: float) -> list[float]:
    """The Gaussian window of one axis, computed and rounded in float32."""
    offsets = torch.arange(size, dtype=torch.float32) - (size - 1) / 2
    weights = torch.exp(-(offsets**2) / (2 * sigma**2))
    return (weights / weights.sum()).tolist()


def wide(images: Tensor) -> Tensor:
    """Images in float32, or float64 as they are: half precision and integers are not computed in."""
    return images if images.dtype == torch.float64 else images.float()


def has_kernel(window_size: int, sides: Sequence[int], *constants: float) -> bool:
    """Whether the operators take this window on these sides, with constants that are positive finite numbers."""
    fits = window_size % 2 == 1 and 3 <= window_size <= 33 and window_size <= min(sides)
    return fits and all(isinstance(c, (int, float)) and 0 < c < math.inf for c in constants)
