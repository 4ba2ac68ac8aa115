"""SSIM with a Gaussian or uniform window for each axis: by the operators where they take it, else in plain torch.

The drop-ins for torchmetrics, MONAI, piq and scikit-image use these functions. A uniform window runs on the kernels as
a Gaussian that is so wide that its taps are equal. A window that differs between axes runs on the kernels for volumes,
with images as volumes of one slice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from splat_ssim import _maps, reference
from splat_ssim.compat._options import Number, are_kernels_barred, is_positive, number
from splat_ssim.ops import ssim as operators
from splat_ssim.ops.photometric import photometric
from splat_ssim.options import SSIMOptions, one_or_each

#: Standard deviation of a Gaussian whose taps differ by less than 1e-13 over the longest window.
_FLAT = 1e8
#: dtypes that are computed in float32; float64 is computed in itself.
NARROW = (torch.float32, torch.float16, torch.bfloat16)


class Window(NamedTuple):
    """The window: taps and standard deviation for each spatial axis, in the order of the tensor."""

    sizes: tuple[int, ...]
    #: None: uniform.
    sigmas: tuple[float, ...] | None

    def taps(self) -> tuple[tuple[float, ...], ...]:
        """The weights of each axis in float64, which sum to 1."""
        if self.sigmas is None:
            return tuple((1 / size,) * size for size in self.sizes)
        return tuple(reference.gaussian_taps(*axis) for axis in zip(self.sizes, self.sigmas, strict=True))


class Constants(NamedTuple):
    """The data range and the two small constants. Tensors where a gradient reaches them."""

    data_range: Number
    k1: Number
    k2: Number

    def of_unit_range(self) -> Constants:
        """These for images divided by the data range. Not `_replace`, which the Dynamo of torch 2.4 can't trace."""
        return Constants(1.0, self.k1, self.k2)

    @property
    def c1(self) -> Any:
        """(k1 · data_range)²."""
        return (self.k1 * self.data_range) ** 2

    @property
    def c2(self) -> Any:
        """(k2 · data_range)²."""
        return (self.k2 * self.data_range) ** 2


def read_constants(data_range: object, k1: object, k2: object) -> Constants:
    """The constants as numbers.

    Raises:
        TypeError: One is not a number.
    """
    return Constants(number("data_range", data_range), number("k1", k1), number("k2", k2))


def each_axis(value: Any, spatial_dims: int) -> tuple[Any, ...]:
    """A sequence unchanged; a single value repeated for each axis."""
    if isinstance(value, (int, float)):  # first, because torch.compile cannot ask a symbol for attributes
        return (value,) * spatial_dims
    if isinstance(value, Sequence) or getattr(value, "ndim", None):
        return tuple(value)
    return (value,) * spatial_dims


def rounded(values: Iterable[float]) -> list[float]:
    """Numbers rounded to float32, for exponents that the originals keep in a tensor."""
    parts = [math.frexp(value) for value in values]
    return [math.ldexp(round(math.ldexp(mantissa, 24)), exponent - 24) for mantissa, exponent in parts]


def normalised(img1: Tensor, img2: Tensor, constants: Constants) -> tuple[Tensor, Tensor, Constants]:
    """Images divided by a data range that is a tensor, so that its gradient follows from theirs.

    S does not change if images and data range are multiplied by the same number.
    """
    data_range = constants.data_range
    if not isinstance(data_range, Tensor):
        return img1, img2, constants
    dtype = _maps.compute_dtype(img1, img2)
    return img1.to(dtype) / data_range, img2.to(dtype) / data_range, constants.of_unit_range()


# --------------------------------------------------------------------------------------------------------------------
# Padding
# --------------------------------------------------------------------------------------------------------------------


def pad(images: Tensor, amounts: Sequence[int], padding: str) -> Tensor:
    """Pads each spatial axis of images (B, C, spatial…) by its own amount on both sides, as `padding` names."""
    for dim, amount in enumerate(amounts, start=images.ndim - len(amounts)):
        if amount:
            moved = images.transpose(dim, -1)
            images = reference.pad(moved, amount, amount, padding, 1).transpose(dim, -1)
    return images


# --------------------------------------------------------------------------------------------------------------------
# Values
# --------------------------------------------------------------------------------------------------------------------


def image_means(img1: Tensor, img2: Tensor, constants: Constants, window: Window, padding: str = "valid") -> Tensor:
    """Returns the mean SSIM of each image.

    Args:
        img1: (B, C, H, W) or (B, C, D, H, W), any float dtype.
        img2: Same shape, dtype and device as `img1`.
        constants: Data range and small constants.
        window: The window of each axis.
        padding: "valid" or "reflect". The caller has checked that images and window fit it.

    Returns:
        (B,) float32 or float64.
    """
    options = _options(img1, img2, constants, window, padding)
    if options is None:
        return _moments(img1, img2, constants, window, padding).ssim().flatten(1).mean(1)
    img1, img2 = _as_volumes(img1, img2, options)
    # One pass gives the values and the gradients.
    found, _, _ = photometric(
        img1, img2, options, l1_weight=0.0, dssim_weight=-1.0, per_image=True, offset=1.0, terms=False
    )
    return found


def channel_means(img1: Tensor, img2: Tensor, constants: Constants, window: Window, padding: str = "valid") -> Tensor:
    """(B, C, 2): for each image and channel the means of S and of its contrast-structure factor."""
    options = _options(img1, img2, constants, window, padding)
    if options is None:
        maps = _moments(img1, img2, constants, window, padding)
        return torch.stack([values.flatten(2).mean(2) for values in (maps.ssim(), maps.contrast_structure())], -1)
    return operators.ssim_channel_means(*_as_volumes(img1, img2, options), options)


def ssim_map(img1: Tensor, img2: Tensor, constants: Constants, window: Window, padding: str = "valid") -> Tensor:
    """S for every position of the window."""
    options = _options(img1, img2, constants, window, padding)
    if options is None:
        return _moments(img1, img2, constants, window, padding).ssim()
    found = operators.ssim_map(*_as_volumes(img1, img2, options), options)
    return found[:, :, 0] if found.ndim > img1.ndim else found


def maps(
    img1: Tensor, img2: Tensor, constants: Constants, window: Window, padding: str = "valid"
) -> tuple[Tensor, Tensor]:
    """S and its contrast-structure factor for every position of the window, in plain torch."""
    found = _moments(img1, img2, constants, window, padding)
    return found.ssim(), found.contrast_structure()


def ms_ssim(
    img1: Tensor, img2: Tensor, constants: Constants, window: Window, exponents: Sequence[float]
) -> Tensor | None:
    """(B, C): MS-SSIM of each channel as `splat_ssim.ms_ssim` defines it; None where the operator has no kernel."""
    options = _options(img1, img2, constants, window, "valid")
    if options is None or not options.is_cubic() or not all(exponent > 0 for exponent in exponents):
        return None
    return operators.ms_ssim(img1, img2, options, exponents)


def power_product(terms: Tensor, exponents: Sequence[float] | Tensor) -> Tensor:
    """The product over the last axis of terms to the power of their exponents; negative terms count as 0.

    Exponents may be 0 or negative: 0 to the power of 0 is 1, to a negative power it is inf. Where a term is 0 or less
    its gradient is 0: that of the power of a clamped 0 would be NaN.
    """
    if not isinstance(exponents, Tensor):
        if all(exponent > 0 for exponent in exponents):
            return _maps.combine_terms(terms, exponents)
        exponents = terms.new_tensor(exponents)
    is_clamped = terms <= 0
    powers = torch.where(is_clamped, 1, terms) ** exponents
    return torch.where(is_clamped, torch.zeros_like(terms) ** exponents.detach(), powers).prod(-1)


def _options(img1: Tensor, img2: Tensor, constants: Constants, window: Window, padding: str) -> SSIMOptions | None:
    """The options for the operators if these give the same numbers, else None."""
    sizes = window.sizes
    # float64 images need exact taps, but those of the wide Gaussian are off by 1e-13.
    exact = window.sigmas is None and torch.float64 in (img1.dtype, img2.dtype)
    if exact or len(sizes) == 1 or img1.numel() == 0 or max(sizes) == 1 or any(size % 2 == 0 for size in sizes):
        return None
    if are_kernels_barred():
        return None
    values = [math.nan if isinstance(value, Tensor) else abs(value) for value in constants]
    if not is_positive(*values):
        return None
    sigmas = (_FLAT,) * len(sizes) if window.sigmas is None else window.sigmas
    if len(sizes) == 2 and (sizes[0] != sizes[1] or sigmas[0] != sigmas[1]):
        sizes, sigmas = (1, *sizes), (1.0, *sigmas)
    data_range, k1, k2 = values
    return SSIMOptions(one_or_each(sizes), one_or_each(sigmas), data_range, k1, k2, padding)


def _as_volumes(img1: Tensor, img2: Tensor, options: SSIMOptions) -> tuple[Tensor, Tensor]:
    """Images as volumes of one slice, where the window differs by axis."""
    if img1.ndim == 4 and not options.is_cubic():
        return img1[:, :, None], img2[:, :, None]
    return img1, img2


def _moments(img1: Tensor, img2: Tensor, constants: Constants, window: Window, padding: str) -> reference.Moments:
    dtype = _maps.compute_dtype(img1, img2)
    amounts = [size // 2 for size in window.sizes] if padding != "valid" else [0] * len(window.sizes)
    img1, img2 = (pad(image.to(dtype), amounts, padding) for image in (img1, img2))
    return reference.moments(img1, img2, window.taps(), constants.c1, constants.c2)
