"""The definition of SSIM and of the losses on it in plain torch: any float dtype, every option, any device.

Every kernel is tested against this file, and it is what runs where there is no kernel. With s = x + y, d = x - y,
mu the windowed means and V the windowed variances

    A = (mu_s² + mu_d²)/2 + C1        1 - luminance          = mu_d² / A
    B = (V_s + V_d)/2 + C2            1 - contrast-structure = V_d / B

which is the usual SSIM, luminance · contrast-structure, rearranged: only four maps are convolved, and the distance
from 1 comes out without subtracting two nearly equal numbers.

Source: Z. Wang, A. C. Bovik, H. R. Sheikh, E. P. Simoncelli, "Image quality assessment: from error visibility to
structural similarity", IEEE TIP 13(4), 2004, eq. 13; Z. Wang, E. P. Simoncelli, A. C. Bovik, "Multiscale structural
similarity for image quality assessment", Asilomar 2003, eq. 7.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from splat_ssim import _maps
from splat_ssim.options import MapKeywords, SSIMOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack

#: Wang's exponents of the five scales of MS-SSIM, fine to coarse.
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)

PADDINGS = ("same", "valid", "reflect", "replicate")


def gaussian_taps(window_size: int = 11, sigma: float = 1.5) -> tuple[float, ...]:
    """The Gaussian window of one axis in float64, summing to 1. An even window is centred between two samples."""
    # Beyond these limits the window is a single sample or uniform, but the square of sigma is 0 or overflows.
    sigma = min(max(abs(sigma), 1e-140), 1e140)
    exponents = [-((i - (window_size - 1) / 2) ** 2) / (2 * sigma**2) for i in range(window_size)]
    weights = [math.exp(exponent - max(exponents)) for exponent in exponents]
    total = math.fsum(weights)
    return tuple(weight / total for weight in weights)


#: The window of one axis, which is that of all of them, or the windows of each.
Windows = Sequence[float] | Sequence[Sequence[float]]


def _of_axes(taps: Windows, spatial_dims: int) -> Sequence[Sequence[float]]:
    """The window of each spatial axis."""
    return taps if isinstance(taps[0], (tuple, list)) else [taps] * spatial_dims  # type: ignore[return-value, list-item]


def correlate(images: Tensor, taps: Windows, spatial_dims: int) -> Tensor:
    """Correlates the last `spatial_dims` axes with `taps`, one after the other, keeping what the window covers fully.

    A sum of shifted slices: faster than a one-channel convolution on a CPU, and not subject to autocast.
    """
    for dim, own in enumerate(_of_axes(taps, spatial_dims), start=images.ndim - spatial_dims):
        length = images.shape[dim] - len(own) + 1
        total = images.narrow(dim, 0, length) * own[0]
        for offset, tap in enumerate(own[1:], start=1):
            total = torch.add(total, images.narrow(dim, offset, length), alpha=tap)
        images = total
    return images


def pad(images: Tensor, before: int, after: int, padding: str, spatial_dims: int) -> Tensor:
    """Pads each spatial axis (the last ones) the way `padding` names."""
    return _pad_axes(images, [(before, after)] * spatial_dims, padding)


def _pad_axes(images: Tensor, amounts: Sequence[tuple[int, int]], padding: str) -> Tensor:
    """Pads the last axes, each by its own amount before and after."""
    if padding == "valid" or not any(map(any, amounts)):
        return images
    if padding == "same":
        return F.pad(images, [side for amount in reversed(amounts) for side in amount])
    # Joined slices: the backward of torch's own padding adds in any order on CUDA, so that its bits change.
    for dim, (before, after) in enumerate(amounts, start=images.ndim - len(amounts)):
        if before == after == 0:
            continue
        length = images.shape[dim]
        if padding == "reflect":
            first = images.narrow(dim, 1, before).flip(dim)
            last = images.narrow(dim, length - 1 - after, after).flip(dim)
        else:
            first, last = (
                images.narrow(dim, at, 1).expand(*(n if d == dim else -1 for d in range(images.ndim)))
                for at, n in ((0, before), (length - 1, after))
            )
        images = torch.cat([first, images, last], dim)
    return images


class Moments(NamedTuple):
    """Windowed means and variances of s = x + y and d = x - y, and A and B of the module's docstring."""

    mean_s: Tensor
    mean_d: Tensor
    var_s: Tensor
    var_d: Tensor
    c1: float
    c2: float

    @property
    def a(self) -> Tensor:
        """The denominator of the luminance term."""
        return (self.mean_s * self.mean_s + self.mean_d * self.mean_d) / 2 + self.c1

    @property
    def b(self) -> Tensor:
        """The denominator of the contrast-structure term."""
        return (self.var_s + self.var_d) / 2 + self.c2

    def dssim(self, eps: float = 0.0) -> Tensor:
        """1 - S; `eps` is added to S's denominator: S is multiplied by `a b / (a b + eps)`."""
        a, b = self.a, self.b
        luminance, contrast_structure = self.mean_d * self.mean_d / a, self.var_d / b
        dssim = luminance + contrast_structure - luminance * contrast_structure
        if not eps:
            return dssim
        product = a * b
        return (eps + product * dssim) / (product + eps)

    def contrast_structure(self) -> Tensor:
        """CS itself: 1 less a distance would not be exact where CS is nearly 0."""
        return ((self.var_s - self.var_d) / 2 + self.c2) / self.b

    def ssim(self) -> Tensor:
        """S itself, likewise."""
        luminance = ((self.mean_s * self.mean_s - self.mean_d * self.mean_d) / 2 + self.c1) / self.a
        return luminance * self.contrast_structure()


def moments(img1: Tensor, img2: Tensor, taps: Windows, c1: float, c2: float, valid: Tensor | None = None) -> Moments:
    """Computes the moments for every position of the window in images (B, C, spatial…) that are already padded.

    Args:
        img1: (B, C, H, W) or (B, C, D, H, W), any float dtype.
        img2: Same shape as `img1`.
        taps: The window along one axis, used for all axes; or one window for each axis.
        c1: (k1 L)².
        c2: (k2 L)².
        valid: Weights (B, 1 or C, spatial…) of a normalised convolution: windows see the pixels in proportion to them.
            None: all pixels count alike.
    """
    spatial_dims = img1.ndim - 2
    axes = tuple(range(2, img1.ndim))
    if valid is None:

        def overall(images: Tensor) -> Tensor:
            # Without the border: zeros there are far from an image's own mean.
            for dim, own in zip(axes, _of_axes(taps, spatial_dims), strict=True):
                images = images.narrow(dim, (len(own) - 1) // 2, images.shape[dim] - len(own) + 1)
            return _finite_mean(images, torch.ones_like(images))

        def mean(images: Tensor) -> Tensor:
            return correlate(images, taps, spatial_dims)
    else:
        # A window that sees nothing gets 0 / 1; its own pixel is invalid too, so nobody reads the result.
        seen = correlate(valid, taps, spatial_dims)
        seen = torch.where(seen > 0, seen, 1)

        def overall(images: Tensor) -> Tensor:
            return _finite_mean(images, valid)

        def mean(images: Tensor) -> Tensor:
            return correlate(images * valid, taps, spatial_dims) / seen

    # Moments are taken about a constant of each image and channel: no cancellation in E[x²] - E[x]².
    centre1, centre2 = overall(img1.detach()), overall(img2.detach())
    x, y = img1 - centre1, img2 - centre2
    s, d = x + y, x - y
    mean_s, mean_d = mean(s), mean(d)
    var_s, var_d = mean(s * s) - mean_s * mean_s, mean(d * d) - mean_d * mean_d
    mean_s, mean_d = mean_s + (centre1 + centre2), mean_d + (centre1 - centre2)
    return Moments(mean_s, mean_d, var_s, var_d, c1, c2)


def _finite_mean(images: Tensor, weight: Tensor) -> Tensor:
    """The weighted mean of each plane, (B, C, 1…), of the pixels that are finite; 0 where nothing has weight."""
    axes = tuple(range(2, images.ndim))
    finite = images.isfinite()
    total = torch.where(finite, images * weight, 0).sum(axes, keepdim=True)
    weight = torch.where(finite, weight, 0).sum(axes, keepdim=True)
    return total / torch.where(weight > 0, weight, 1)


def _scale(data_range: float) -> float:
    """The power of two that images are multiplied by, 1 for usual ranges: S does not depend on it.

    Beyond them the squares of squares of C1 and C2 would over- or underflow in float32.
    """
    return 1.0 if 1e-6 <= data_range <= 1e6 else 2.0 ** -math.frexp(data_range)[1]


def _moments(img1: Tensor, img2: Tensor, options: SSIMOptions, valid: Tensor | None = None) -> Moments:
    """`moments` of images in any layout and dtype; channels-first, and scaled by `_scale`."""
    # A window that sees few pixels may lie far from the mean of its image, so that V cancels in float32.
    dtype = _maps.compute_dtype(img1, img2) if valid is None else torch.float64
    windows = options.windows(img1.ndim - 2)
    scale = _scale(options.data_range)

    def prepare(images: Tensor) -> Tensor:
        images = _maps.channels_first(images, options.channels_last)
        return _pad_axes(images, [((size - 1) // 2, size // 2) for size in windows], options.padding)

    def prepare_image(image: Tensor) -> Tensor:
        image = _maps.as_float(image, dtype, options.data_range)
        return prepare(image if scale == 1.0 else image * scale)

    return moments(
        prepare_image(img1),
        prepare_image(img2),
        [gaussian_taps(size, sigma) for size, sigma in zip(windows, options.sigmas(len(windows)), strict=True)],
        (options.k1 * options.data_range * scale) ** 2,
        (options.k2 * options.data_range * scale) ** 2,
        None if valid is None else prepare(valid.to(dtype)),
    )


def dssim_map(img1: Tensor, img2: Tensor, *, valid: Tensor | None = None, **keywords: Unpack[MapKeywords]) -> Tensor:
    """Returns 1 - S for every position of the window, in the layout of the images. "valid" gives a smaller map.

    Args:
        img1: As for `splat_ssim.ssim`.
        img2: As for `splat_ssim.ssim`.
        valid: As for `moments`, but in the layout of the images.
        **keywords: The fields of `SSIMOptions`.
    """
    options = SSIMOptions(**keywords)
    found = _moments(img1, img2, options, valid)
    dssim = found.dssim(options.eps * _scale(options.data_range) ** 4).to(_maps.compute_dtype(img1, img2))
    return _maps.to_channels_last(dssim) if options.channels_last else dssim


def ssim_map(img1: Tensor, img2: Tensor, **keywords: Unpack[MapKeywords]) -> Tensor:
    """S for every position of the window; all else is as for `dssim_map`."""
    return 1 - dssim_map(img1, img2, **keywords)


def ssim_channel_means(img1: Tensor, img2: Tensor, **keywords: Unpack[MapKeywords]) -> Tensor:
    """(B, C, 2): for each image and channel the means of S and of its contrast-structure factor, without `eps`."""
    found = _moments(img1, img2, SSIMOptions(**keywords))
    return torch.stack([values.flatten(2).mean(2) for values in (found.ssim(), found.contrast_structure())], dim=-1)


def ssim(
    img1: Tensor,
    img2: Tensor,
    *,
    reduction: str = "mean",
    mask: Tensor | None = None,
    mask_mode: str = "weight",
    **keywords: Unpack[MapKeywords],
) -> Tensor:
    """`splat_ssim.ssim` and `ssim3d` (by rank) without its checks; see there for the options."""
    options = SSIMOptions(**keywords)
    img1, img2, weights, valid = _maps.apply_mask(img1, img2, mask, mask_mode, options.data_range)
    dssim = dssim_map(img1, img2, valid=valid, **keywords)
    return _maps.similarity(dssim, weights, reduction, options.channels_last)


def photometric_loss(
    pred: Tensor,
    target: Tensor,
    *,
    lambda_dssim: float = 0.2,
    reduction: str = "mean",
    mask: Tensor | None = None,
    mask_mode: str = "weight",
    **keywords: Unpack[MapKeywords],
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, l1, ssim) of `(1 - lambda_dssim)·L1 + lambda_dssim·(1 - SSIM)`; `reduction` is "mean" or "image"."""
    options = SSIMOptions(**keywords)
    pred, target = _maps.in_one_dtype(pred, target, options.data_range)
    pred, target, weights, valid = _maps.apply_mask(pred, target, mask, mask_mode, options.data_range)
    dssim = _maps.weighted_mean(
        dssim_map(pred, target, valid=valid, **keywords), weights, reduction, options.channels_last
    )
    l1 = _maps.weighted_mean(_maps.absolute_difference(pred, target), weights, reduction, options.channels_last)
    return _maps.weighted_sum((l1, 1 - lambda_dssim), (dssim, lambda_dssim)), l1, 1 - dssim


def ms_ssim(
    img1: Tensor, img2: Tensor, *, weights: Sequence[float] = MS_SSIM_WEIGHTS, **keywords: Unpack[MapKeywords]
) -> Tensor:
    """(B, C): MS-SSIM of each image and channel. Windows lie inside, whatever the padding."""
    options = SSIMOptions(**keywords)
    pairs = _maps.pyramid(img1, img2, len(weights), options.data_range, options.channels_last)
    of_scale = options._replace(padding="valid", channels_last=False).keywords()
    means = [ssim_channel_means(*pair, **of_scale) for pair in pairs]
    return _maps.combine_terms(_maps.scale_terms(means), weights)
