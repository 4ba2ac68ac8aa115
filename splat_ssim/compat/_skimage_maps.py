"""scikit-image's SSIM in float64 and plain torch: any number of axes, any window, and the map of its gradient."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from splat_ssim import reference

#: Number of pixels in a slab: a quarter of a MiB in float64.
_SLAB = 1 << 15


class Filter(NamedTuple):
    """The window of every axis: uniform of `size` taps, or the Gaussian of `sigma`."""

    size: int
    sigma: float | None

    @property
    def radius(self) -> int:
        """Radius of the window."""
        return self.size // 2

    def valid(self, planes: Tensor) -> Tensor:
        """Windowed means of planes (C, spatial…), keeping what the window covers fully."""
        if self.size == 1:
            return planes
        taps = None if self.sigma is None else reference.gaussian_taps(self.size, self.sigma)
        for dim in range(1, planes.ndim):
            planes = _box_sum(planes, dim, self.size) / self.size if taps is None else _fold(planes, dim, taps)
        return planes

    def full(self, planes: Tensor) -> Tensor:
        """Windowed means everywhere, the planes being continued by mirroring."""
        return self.valid(mirrored(planes, self.radius))


def mirrored(planes: Tensor, amount: int) -> Tensor:
    """Planes (C, spatial…) continued on all sides by mirroring, the border pixel repeated, as often as it takes."""
    for dim in range(1, planes.ndim) if amount else ():
        side = planes.shape[dim]
        places = torch.arange(-amount, side + amount, device=planes.device) % (2 * side)
        planes = planes.index_select(dim, torch.where(places < side, places, 2 * side - 1 - places))
    return planes


def cropped(planes: Tensor, amount: int) -> Tensor:
    """Planes (C, spatial…) without a border."""
    for dim in range(1, planes.ndim) if amount else ():
        planes = planes.narrow(dim, amount, planes.shape[dim] - 2 * amount)
    return planes


class Constants(NamedTuple):
    """The constants of S."""

    #: Factor of variances and covariances.
    factor: float
    c1: float
    c2: float


class Maps(NamedTuple):
    """The windowed moments of two images."""

    mean1: Tensor
    mean2: Tensor
    #: Sum of the variances, and the covariance, of samples or of populations.
    variance: Tensor
    covariance: Tensor
    constants: Constants

    @property
    def numerators(self) -> tuple[Tensor, Tensor]:
        """2 mu1 mu2 + C1 and 2 cov + C2."""
        return 2 * self.mean1 * self.mean2 + self.constants.c1, 2 * self.covariance + self.constants.c2

    @property
    def denominators(self) -> tuple[Tensor, Tensor]:
        """mu1² + mu2² + C1 and var1 + var2 + C2."""
        return self.mean1**2 + self.mean2**2 + self.constants.c1, self.variance + self.constants.c2

    def ssim(self) -> Tensor:
        """The map of S."""
        (above1, above2), (below1, below2) = self.numerators, self.denominators
        return above1 * above2 / (below1 * below2)


def maps(img1: Tensor, img2: Tensor, window: Filter, constants: Constants) -> Maps:
    """The moments where the window lies inside float64 planes (C, spatial…)."""
    mean1, mean2 = window.valid(img1), window.valid(img2)
    # Both squares in one sum: for equal images it is exactly twice the covariance, and S is exactly 1.
    variance = window.valid(img1 * img1 + img2 * img2) - (mean1 * mean1 + mean2 * mean2)
    covariance = window.valid(img1 * img2) - mean1 * mean2
    return Maps(mean1, mean2, constants.factor * variance, constants.factor * covariance, constants)


def ssim_by_slabs(img1: Tensor, img2: Tensor, window: Filter, constants: Constants) -> Tensor:
    """The map of S where the window lies inside, a few rows or slices at a time so that they stay cached."""
    lost = window.size - 1
    length = img1.shape[1] - lost
    rows = max(2 * lost, _SLAB * img1.shape[1] // max(1, img1.numel()), 1)
    slabs = []
    for start in range(0, length, rows):
        part = (1, start, min(rows, length - start) + lost)
        slabs.append(maps(img1.narrow(*part), img2.narrow(*part), window, constants).ssim())
    return slabs[0] if len(slabs) == 1 else torch.cat(slabs, 1)


def gradient(img1: Tensor, img2: Tensor, window: Filter, found: Maps) -> Tensor:
    """The gradient of the mean of S by the second image as scikit-image gives it, from maps of full size.

    It leaves out the factor of a sample's covariance, and takes the window at the borders for its own adjoint.

    Source: A. N. Avanaki, "Exact global histogram specification optimized for structural similarity", Optical Review
    16, 2009, eq. 7 and 8.
    """
    (above1, above2), (below1, below2) = found.numerators, found.denominators
    below = below1 * below2
    ssim = above1 * above2 / below
    total = window.full(above1 / below) * img1 - window.full(ssim / below2) * img2
    rest = (found.mean1 * (above2 - above1) - found.mean2 * (below2 - below1) * ssim) / below
    return (total + window.full(rest)) * (2 / math.prod(img1.shape[1:]))


def _box_sum(planes: Tensor, dim: int, size: int) -> Tensor:
    """Sums of `size` neighbours along an axis, from sums of 2, 4, 8, … by the binary digits of `size`."""
    length = planes.shape[dim] - size + 1
    total, offset, span = None, 0, 1
    while True:
        if size & span:
            part = planes.narrow(dim, offset, length)
            total = part if total is None else total + part
            offset += span
        if 2 * span > size:
            assert total is not None
            return total
        pairs = planes.shape[dim] - span
        planes = planes.narrow(dim, 0, pairs) + planes.narrow(dim, span, pairs)
        span *= 2


def _fold(planes: Tensor, dim: int, taps: tuple[float, ...]) -> Tensor:
    """Correlates an axis with symmetric taps."""
    radius, length = len(taps) // 2, planes.shape[dim] - len(taps) + 1
    total = planes.narrow(dim, radius, length) * taps[radius]
    for offset, tap in enumerate(taps[:radius]):
        both = planes.narrow(dim, offset, length) + planes.narrow(dim, len(taps) - 1 - offset, length)
        total = torch.add(total, both, alpha=tap)
    return total
