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
from typing import TYPE_CHECKING, NamedTuple, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from typing_extensions import Unpack

#: Wang's exponents of the five scales of MS-SSIM, fine to coarse.
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)

PADDINGS = ("same", "valid", "reflect", "replicate")
#: torch's name of each padding; "valid" pads nothing.
_PAD_MODES = {"same": "constant", "reflect": "reflect", "replicate": "replicate"}


class Constants(TypedDict, total=False):
    """The window and the constants of SSIM, by keyword."""

    window_size: int
    sigma: float
    data_range: float
    k1: float
    k2: float


class MapOptions(Constants, total=False):
    """What the map of S depends on besides the images, by keyword."""

    padding: str
    channels_last: bool


def gaussian_taps(window_size: int = 11, sigma: float = 1.5) -> tuple[float, ...]:
    """The Gaussian window of one axis in float64, summing to 1. An even window is centred between two samples."""
    exponents = [-((i - (window_size - 1) / 2) ** 2) / (2 * sigma**2) for i in range(window_size)]
    weights = [math.exp(exponent - max(exponents)) for exponent in exponents]
    total = math.fsum(weights)
    return tuple(weight / total for weight in weights)


def correlate(images: Tensor, taps: Sequence[float], spatial_dims: int) -> Tensor:
    """Correlates the last `spatial_dims` axes with `taps`, one after the other, keeping what the window covers fully.

    A sum of shifted slices: faster than a one-channel convolution on a CPU, and not subject to autocast.
    """
    for dim in range(images.ndim - spatial_dims, images.ndim):
        length = images.shape[dim] - len(taps) + 1
        total = images.narrow(dim, 0, length) * taps[0]
        for offset, tap in enumerate(taps[1:], start=1):
            total = torch.add(total, images.narrow(dim, offset, length), alpha=tap)
        images = total
    return images


def pad(images: Tensor, before: int, after: int, padding: str, spatial_dims: int) -> Tensor:
    """Pads each spatial axis (the last ones) the way `padding` names."""
    if padding == "valid" or before == after == 0:
        return images
    return F.pad(images, (before, after) * spatial_dims, mode=_PAD_MODES[padding])


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
        missing = eps / (a * b + eps)
        return missing + (1 - missing) * dssim

    def contrast_structure(self) -> Tensor:
        """CS itself: 1 less a distance would not be exact where CS is nearly 0."""
        return ((self.var_s - self.var_d) / 2 + self.c2) / self.b

    def ssim(self) -> Tensor:
        """S itself, likewise."""
        luminance = ((self.mean_s * self.mean_s - self.mean_d * self.mean_d) / 2 + self.c1) / self.a
        return luminance * self.contrast_structure()


def moments(
    img1: Tensor, img2: Tensor, taps: Sequence[float], c1: float, c2: float, valid: Tensor | None = None
) -> Moments:
    """The moments for every position of the window in images (B, C, spatial…), which are padded already.

    Args:
        img1: (B, C, H, W) or (B, C, D, H, W), any float dtype.
        img2: The same.
        taps: The window of one axis.
        c1: (k1 L)².
        c2: (k2 L)².
        valid: Weights (B, 1 or C, spatial…) of a normalised convolution: windows see the pixels in proportion to them.
    """
    spatial_dims = img1.ndim - 2
    axes = tuple(range(2, img1.ndim))
    if valid is None:

        def overall(images: Tensor) -> Tensor:
            # Without the border: zeros there are far from an image's own mean.
            for dim in axes:
                images = images.narrow(dim, (len(taps) - 1) // 2, images.shape[dim] - len(taps) + 1)
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


def as_float(img: Tensor, dtype: torch.dtype, data_range: float = 1.0) -> Tensor:
    """The image in `dtype`; uint8 means value / 255 · data_range."""
    return img.to(dtype) * data_range / 255 if img.dtype == torch.uint8 else img.to(dtype)


def compute_dtype(*images: Tensor) -> torch.dtype:
    """float64 where an image is float64, else float32."""
    return torch.float64 if any(img.dtype == torch.float64 for img in images) else torch.float32


def in_one_dtype(img1: Tensor, img2: Tensor, data_range: float) -> tuple[Tensor, Tensor]:
    """Both images in the dtype they are computed in.

    A function of several terms converts before the first, so that their gradients are summed before they are rounded.
    """
    dtype = compute_dtype(img1, img2)
    return as_float(img1, dtype, data_range), as_float(img2, dtype, data_range)


def to_channels_first(images: Tensor) -> Tensor:
    """(B, spatial…, C) -> (B, C, spatial…), a view."""
    return images.movedim(-1, 1)


def to_channels_last(images: Tensor) -> Tensor:
    """(B, C, spatial…) -> (B, spatial…, C), a view."""
    return images.movedim(1, -1)


def _moments(
    img1: Tensor,
    img2: Tensor,
    window_size: int,
    sigma: float,
    data_range: float,
    k1: float,
    k2: float,
    padding: str,
    channels_last: bool,
    valid: Tensor | None = None,
) -> Moments:
    """`moments` from the public options; channels-first whatever the layout of the images."""
    # A window that sees few pixels may lie far from the mean of its image, so that V cancels in float32.
    dtype = compute_dtype(img1, img2) if valid is None else torch.float64
    radius = (window_size - 1) // 2
    scale = _scale(data_range)

    def prepare(images: Tensor) -> Tensor:
        images = to_channels_first(images) if channels_last else images
        return pad(images, radius, window_size - 1 - radius, padding, images.ndim - 2)

    def prepare_image(image: Tensor) -> Tensor:
        image = as_float(image, dtype, data_range)
        return prepare(image if scale == 1.0 else image * scale)

    return moments(
        prepare_image(img1),
        prepare_image(img2),
        gaussian_taps(window_size, sigma),
        (k1 * data_range * scale) ** 2,
        (k2 * data_range * scale) ** 2,
        None if valid is None else prepare(as_float(valid, dtype)),
    )


def _scale(data_range: float) -> float:
    """The power of two that images are multiplied by, 1 for usual ranges: S does not depend on it.

    Beyond them the squares of squares of C1 and C2 would over- or underflow in float32.
    """
    return 1.0 if 1e-6 <= data_range <= 1e6 else 2.0 ** -math.frexp(data_range)[1]


def dssim_map(
    img1: Tensor,
    img2: Tensor,
    *,
    window_size: int = 11,
    sigma: float = 1.5,
    data_range: float = 1.0,
    k1: float = 0.01,
    k2: float = 0.03,
    padding: str = "same",
    channels_last: bool = False,
    valid: Tensor | None = None,
    eps: float = 0.0,
) -> Tensor:
    """1 - S for every position of the window, in the layout of the images; "valid" gives the smaller map."""
    found = _moments(img1, img2, window_size, sigma, data_range, k1, k2, padding, channels_last, valid)
    dssim = found.dssim(eps * _scale(data_range) ** 4).to(compute_dtype(img1, img2))
    return to_channels_last(dssim) if channels_last else dssim


def ssim_map(img1: Tensor, img2: Tensor, *, eps: float = 0.0, **options: Unpack[MapOptions]) -> Tensor:
    """S for every position of the window; the options are those of `dssim_map`."""
    return 1 - dssim_map(img1, img2, eps=eps, **options)


def ssim_channel_means(
    img1: Tensor,
    img2: Tensor,
    *,
    window_size: int = 11,
    sigma: float = 1.5,
    data_range: float = 1.0,
    k1: float = 0.01,
    k2: float = 0.03,
    padding: str = "valid",
    channels_last: bool = False,
) -> Tensor:
    """(B, C, 2): for each image and channel the means of S and of its contrast-structure factor."""
    found = _moments(img1, img2, window_size, sigma, data_range, k1, k2, padding, channels_last)
    return torch.stack([values.flatten(2).mean(2) for values in (found.ssim(), found.contrast_structure())], dim=-1)


def absolute_difference(img1: Tensor, img2: Tensor, data_range: float = 1.0) -> Tensor:
    """|img1 - img2| in the images' own layout, in float32 or wider. The gradient where they are equal is 0."""
    img1, img2 = in_one_dtype(img1, img2, data_range)
    return (img1 - img2).abs()


def _mask_like(values: Tensor, mask: Tensor, channels_last: bool) -> Tensor:
    """The mask as float weights, cropped at the borders to the positions `values` has, expanded to its shape."""
    first_axis = 1 if channels_last else 2
    for dim in range(first_axis, first_axis + values.ndim - 2):
        crop = mask.shape[dim] - values.shape[dim]
        mask = mask.narrow(dim, crop // 2, values.shape[dim])
    return mask.to(values.dtype).expand(values.shape)


def weighted_mean(values: Tensor, mask: Tensor | None, reduction: str, channels_last: bool = False) -> Tensor:
    """Reduces a map whose best value is 0, such as 1 - S or |x - y|.

    Args:
        values: The map, (B, C, spatial…) or, with `channels_last`, (B, spatial…, C).
        mask: Weights (B, 1 or C, spatial…) in the layout of the map, as large as the images; None weighs all alike.
        reduction: "mean": over all weights of the batch; "image": for each image, (B,); "sum": of value times weight;
            "none": value times weight. Where no pixel has weight, the mean is 0.
        channels_last: The layout of the map and the mask.
    """
    if mask is not None:
        mask = _mask_like(values, mask, channels_last)
        values = values * mask
    if reduction == "none":
        return values
    if reduction == "sum":
        return values.sum()
    if mask is None:
        return values.mean() if reduction == "mean" else values.flatten(1).mean(1)
    if reduction == "mean":
        total, weight = values.sum(), mask.sum()
    else:
        total, weight = values.flatten(1).sum(1), mask.flatten(1).sum(1)
    return total / torch.where(weight > 0, weight, 1)


def weighted_sum(*terms: tuple[Tensor, float], offset: float = 0.0) -> Tensor:
    """`offset + Σ weight · value` of tensors of one shape."""
    # A tensor for each number: torch promotes the tangent of a tensor without axes times a number to float64.
    # A term of weight 0 is left out: what it overflows to is not read.
    total = terms[0][0].new_full((), offset)
    for value, weight in terms:
        if weight != 0:
            total = total + value * value.new_full((), weight)
    return total


def similarity(dssim: Tensor, mask: Tensor | None, reduction: str, channels_last: bool = False) -> Tensor:
    """Reduces S, given the map of 1 - S, as `weighted_mean` would: a mean where nothing has weight is 1."""
    if reduction in ("mean", "image"):
        return 1 - weighted_mean(dssim, mask, reduction, channels_last)
    return weighted_mean(1 - dssim, mask, reduction, channels_last)


def ssim(
    img1: Tensor,
    img2: Tensor,
    *,
    window_size: int = 11,
    sigma: float = 1.5,
    data_range: float = 1.0,
    k1: float = 0.01,
    k2: float = 0.03,
    padding: str = "same",
    reduction: str = "mean",
    mask: Tensor | None = None,
    mask_mode: str = "weight",
    channels_last: bool = False,
) -> Tensor:
    """`splat_ssim.ssim` and `ssim3d` (by rank) without its checks; see there for the options."""
    img1, img2, weights, valid = apply_mask(img1, img2, mask, mask_mode, data_range)
    constants: Constants = {"window_size": window_size, "sigma": sigma, "data_range": data_range, "k1": k1, "k2": k2}
    dssim = dssim_map(img1, img2, padding=padding, channels_last=channels_last, valid=valid, **constants)
    return similarity(dssim, weights, reduction, channels_last)


def apply_mask(
    img1: Tensor, img2: Tensor, mask: Tensor | None, mask_mode: str, data_range: float
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """(img1, img2, weights of the map, weights inside the windows) for a mask of one of the three meanings."""
    if mask is None:
        return img1, img2, None, None
    mask = mask.to(compute_dtype(img1, img2))
    if mask_mode == "weight":
        return img1, img2, mask, None
    # Selected rather than multiplied by 0: what is masked out may be NaN.
    img1, img2 = in_one_dtype(img1, img2, data_range)
    img1, img2 = torch.where(mask > 0, img1, 0), torch.where(mask > 0, img2, 0)
    if mask_mode == "zero":
        return img1 * mask, img2 * mask, None, None
    return img1, img2, mask, mask


def photometric_loss(
    pred: Tensor,
    target: Tensor,
    *,
    lambda_dssim: float = 0.2,
    window_size: int = 11,
    sigma: float = 1.5,
    data_range: float = 1.0,
    k1: float = 0.01,
    k2: float = 0.03,
    padding: str = "same",
    reduction: str = "mean",
    mask: Tensor | None = None,
    mask_mode: str = "weight",
    channels_last: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, l1, ssim) of `(1 - lambda_dssim)·L1 + lambda_dssim·(1 - SSIM)`; `reduction` is "mean" or "image"."""
    pred, target = in_one_dtype(pred, target, data_range)
    pred, target, weights, valid = apply_mask(pred, target, mask, mask_mode, data_range)
    constants: Constants = {"window_size": window_size, "sigma": sigma, "data_range": data_range, "k1": k1, "k2": k2}
    dissimilar = dssim_map(pred, target, padding=padding, channels_last=channels_last, valid=valid, **constants)
    dssim = weighted_mean(dissimilar, weights, reduction, channels_last)
    l1 = weighted_mean(absolute_difference(pred, target, data_range), weights, reduction, channels_last)
    return weighted_sum((l1, 1 - lambda_dssim), (dssim, lambda_dssim)), l1, 1 - dssim


def halve(images: Tensor) -> Tensor:
    """The next coarser scale of (B, C, spatial…): means of blocks of 2, an odd side padded by a zero that counts."""
    pool = F.avg_pool2d if images.ndim == 4 else F.avg_pool3d
    return pool(images, kernel_size=2, padding=[side % 2 for side in images.shape[2:]])


def spread(grad: Tensor, shape: Sequence[int]) -> Tensor:
    """The gradient of images of this shape from that of `halve`."""
    for dim in range(2, grad.ndim):
        side = shape[dim]
        # An odd side has a zero before its first place.
        grad = (grad / 2).repeat_interleave(2, dim).narrow(dim, side % 2, side)
    return grad


def scale_terms(means: Sequence[Tensor]) -> Tensor:
    """(B, C, scales): MS-SSIM's terms from `ssim_channel_means` of each scale: contrast-structure, of the last S."""
    return torch.stack([*(scale[..., 1] for scale in means[:-1]), means[-1][..., 0]], dim=-1)


def combine_terms(terms: Tensor, weights: Sequence[float]) -> Tensor:
    """(B, C): the product over scales of MS-SSIM's terms (B, C, scales) to the power of `weights`, one a scale.

    Where a term is not positive the product is 0 and so is its gradient: a power of a clamped 0 would give NaN. Where a
    term is NaN, the product is.
    """
    positive = terms > 0
    powers = [term**weight for term, weight in zip(torch.where(positive, terms, 1).unbind(-1), weights, strict=True)]
    product = torch.where(positive.all(-1), math.prod(powers[1:], start=powers[0]), 0)
    return torch.where(terms.isnan().any(-1), torch.nan, product)


def term_gradients(grad_values: Tensor, terms: Tensor, weights: Sequence[float]) -> Tensor:
    """(B, C, scales): the gradient of `combine_terms` by the terms."""
    exponents = torch.tensor(weights, dtype=terms.dtype, device=terms.device)
    by_term = combine_terms(terms, weights)[..., None] * exponents / terms
    return torch.where((terms <= 0).any(-1, keepdim=True), 0, by_term) * grad_values[..., None]


def pyramid(
    img1: Tensor, img2: Tensor, scales: int, data_range: float, channels_last: bool
) -> list[tuple[Tensor, Tensor]]:
    """The images (B, C, spatial…) of each scale, fine to coarse, in float32 or wider."""
    img1, img2 = in_one_dtype(img1, img2, data_range)
    if channels_last:
        img1, img2 = to_channels_first(img1), to_channels_first(img2)
    pairs = [(img1, img2)]
    while len(pairs) < scales:
        img1, img2 = halve(img1), halve(img2)
        pairs.append((img1, img2))
    return pairs


def ms_ssim(
    img1: Tensor,
    img2: Tensor,
    *,
    window_size: int = 11,
    sigma: float = 1.5,
    data_range: float = 1.0,
    k1: float = 0.01,
    k2: float = 0.03,
    weights: Sequence[float] = MS_SSIM_WEIGHTS,
    channels_last: bool = False,
) -> Tensor:
    """(B, C): MS-SSIM of each image and channel."""
    constants: Constants = {"window_size": window_size, "sigma": sigma, "data_range": data_range, "k1": k1, "k2": k2}
    pairs = pyramid(img1, img2, len(weights), data_range, channels_last)
    return combine_terms(scale_terms([ssim_channel_means(*pair, **constants) for pair in pairs]), weights)
