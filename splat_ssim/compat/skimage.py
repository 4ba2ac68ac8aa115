"""The interface of scikit-image's `structural_similarity` (0.26) for numpy arrays.

As in the original, the window is uniform with 7 taps by default, and covariances are sample covariances by default. The
mean leaves out a border of half the window. With `gaussian_weights`, the window has int(3.5 · sigma + 0.5) · 2 + 1 taps
whatever `win_size`, which then only sets that border. `gradient` leaves out the factor of the sample covariance.
Unknown keywords are ignored.

It differs from the original in these ways. A numpy scalar as `data_range` counts as a plain number, so that it changes
neither the dtype of the maps nor the last digits of the constants. A numpy.matrix counts as an array: its products are
by pixel. Options are checked even if there are no channels, where the result is NaN, as in the original.

The kernels compute most cases fast, in float32: images and volumes of float32, float16, bool and integers of 8 or 16
bits, with windows up to 33 taps, for the mean and with `full`. The mean is within 1e-6 of the original's, which
computes integers in float64. The other cases are slower: they are computed in float64 on torch's threads, to the
original's full precision. These are float64, integers of 32 and 64 bits, `gradient`, longer windows, and arrays with
one axis or with four and more.
"""

from __future__ import annotations

import math
import numbers
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from splat_ssim.compat import _skimage_maps, _windowed
from splat_ssim.compat._errors import RefusedTypeError, RefusedZeroDivisionError
from splat_ssim.compat._options import is_positive
from splat_ssim.compat._skimage_maps import Filter

__all__ = ["structural_similarity"]

Array = NDArray[Any]

#: Dtypes whose values float32 holds exactly.
_NARROW = ("?", "b", "B", "h", "H", "e", "f")


class _Options(NamedTuple):
    """The checked options of a call, as numbers."""

    window: Filter
    #: The width of the border that the mean leaves out.
    border: int
    #: Factor of covariances: n / (n - 1) for sample covariances.
    factor: float
    data_range: float
    k1: float
    k2: float


def structural_similarity(
    im1: Array,
    im2: Array,
    *,
    win_size: int | None = None,
    gradient: bool = False,
    data_range: float | None = None,
    channel_axis: int | None = None,
    gaussian_weights: bool = False,
    full: bool = False,
    **kwargs: Any,
) -> Any:
    """Mean structural similarity of two arrays, over the windows that lie inside them.

    Args:
        im1: An array of any shape and real dtype, such as (H, W), or (H, W, C) with `channel_axis=-1`.
        im2: Same shape as `im1`.
        win_size: Number of taps of the uniform window, odd; 7 by default.
        gradient: Whether to return the gradient of the mean with respect to `im2` too.
        data_range: Difference between the largest and the smallest possible value. By default that of the integer
            dtype.
        channel_axis: Axis of the channels, over which SSIM is averaged. None, the default: there are no channels.
        gaussian_weights: Whether the window is a Gaussian instead of uniform.
        full: Whether to return the SSIM map too. It is as large as the images.
        **kwargs: `K1` (0.01), `K2` (0.03), `sigma` (1.5) of the Gaussian and `use_sample_covariance` (True). Others are
            ignored.

    Returns:
        The mean, a numpy scalar. It is float64, or with `channel_axis` in the dtype of the maps. With `gradient` or
        `full`, a tuple of the mean, the gradient and the map, as requested. Maps have the shape of the images. They are
        float32 if `im1` is float32 or float16, otherwise float64.

    Raises:
        ValueError: The shapes differ, an image is complex, `data_range` is missing for floats, the window is even or
            larger than an axis, or a constant is negative.
        TypeError: An image is not an array. The error is an AttributeError too, as in the original.
        ZeroDivisionError: Sample covariances are requested for windows of one pixel. The error is a ValueError too.

    Example:
        >>> import numpy as np
        >>> from splat_ssim.compat.skimage import structural_similarity
        >>> image = np.arange(256, dtype=np.uint8).reshape(16, 16)
        >>> float(structural_similarity(image, image))
        1.0
        >>> structural_similarity(image, image[::-1], gaussian_weights=True, sigma=1.0, full=True)[1].shape
        (16, 16)
    """
    im1, im2 = _check_arrays(im1, im2)
    dtype = np.float32 if im1.dtype.char in "fe" else np.float64
    img1, img2 = (image[None] if channel_axis is None else np.moveaxis(image, channel_axis, 0) for image in (im1, im2))
    options = _read(img1, img2, win_size, data_range, gaussian_weights, kwargs)
    if not gradient and _is_narrow(img1, img2, options):
        found = _by_kernel(_planes(img1), _planes(img2), options, full)
    else:
        # The original takes im2 in the precision of im1.
        exact1, exact2 = (_tensor(image.astype(dtype, copy=False), np.float64) for image in (img1, img2))
        found = _by_definition(exact1, exact2, options, gradient, full)
    means, arrays = found[0], [values.numpy().astype(dtype, copy=False) for values in found[1:]]
    if channel_axis is None:
        mean, arrays = np.float64(means[0].item()), [values[0] for values in arrays]
    else:
        mean, arrays = dtype(means.mean().item()), [np.moveaxis(values, 0, channel_axis) for values in arrays]
    return (mean, *arrays) if arrays else mean


structural_similarity.__module__ = __name__


def _check_arrays(im1: Any, im2: Any) -> tuple[Array, Array]:
    """Both images as plain arrays: a numpy.matrix, for one, has two axes whatever is done with it."""
    for name, image in (("im1", im1), ("im2", im2)):
        if not isinstance(image, np.ndarray):
            raise RefusedTypeError(f"{name} must be a numpy.ndarray, got {type(image).__name__}")
        if image.dtype.kind not in "biuf":
            raise ValueError(f"{name} must be real, got {image.dtype}")
    if im1.shape != im2.shape:
        raise ValueError(f"im1 and im2 must have the same shape, got {im1.shape} and {im2.shape}")
    return np.asarray(im1), np.asarray(im2)


def _read(
    img1: Array, img2: Array, win_size: int | None, data_range: float | None, is_gaussian: bool, further: dict[str, Any]
) -> _Options:
    """The options, for planes (C, spatial…)."""
    k1, k2, sigma = (_number(name, further.get(name, value)) for name, value in _DEFAULTS.items())
    for name, value in (("K1", k1), ("K2", k2), ("sigma", sigma)):
        if value < 0:
            raise ValueError(f"{name} must not be negative, got {value}")
    reach = int(3.5 * sigma + 0.5) if is_gaussian else 3
    size = 2 * reach + 1 if win_size is None else win_size
    sides = img1.shape[1:]
    if any(side < size for side in sides):
        raise ValueError(f"win_size must not exceed an axis of the images, got {size} and the shape {sides}")
    if size % 2 != 1 or size < 1:
        raise ValueError(f"win_size must be odd and positive, got {size}")
    if data_range is None:
        data_range = _range_of(img1.dtype, img2.dtype)
    count = size ** len(sides)
    is_sample = further.get("use_sample_covariance", True)
    if is_sample and count == 1:
        raise RefusedZeroDivisionError("win_size must be above 1 for a sample's covariance, got 1")
    # A Gaussian of no width is that of one pixel.
    window = Filter(2 * reach + 1, sigma or 1.0) if is_gaussian else Filter(int(size), None)
    factor = count / (count - 1) if is_sample else 1.0
    return _Options(window, int(size - 1) // 2, factor, _number("data_range", data_range), k1, k2)


_DEFAULTS = {"K1": 0.01, "K2": 0.03, "sigma": 1.5}


def _number(name: str, value: Any) -> float:
    found = value.item() if getattr(value, "size", None) == 1 and hasattr(value, "item") else value
    if not isinstance(found, numbers.Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    return float(found)


def _range_of(first: np.dtype[Any], second: np.dtype[Any]) -> float:
    """The data range of an integer dtype, with the original's warnings."""
    if "f" in (first.kind, second.kind):
        raise ValueError(f"data_range must be given for floating-point images, got None for {first} and {second}")
    if first != second:
        warnings.warn(f"im1 and im2 differ in dtype, {first} and {second}: data_range is that of im1", stacklevel=4)
    if first.kind == "b":
        return 1.0
    limits = np.iinfo(first)
    data_range = float(int(limits.max) - int(limits.min))
    if first != np.uint8:
        warnings.warn(f"data_range is that of {first}, {data_range:.0f}: pass it to avoid mistakes", stacklevel=4)
    return data_range


def _is_narrow(img1: Array, img2: Array, options: _Options) -> bool:
    """Whether float32 holds both images, planes (C, spatial…), and the kernels take the window."""
    # The original takes im2 in the precision of im1.
    narrow = img1.dtype.char in _NARROW and (img2.dtype.char in _NARROW or img1.dtype.char in "fe")
    constants = (abs(options.data_range), options.k1, options.k2)
    window = options.window.size
    return narrow and img1.ndim in (3, 4) and 3 <= window <= 33 and img1.size > 0 and is_positive(*constants)


def _tensor(planes: Array, dtype: type) -> Tensor:
    values: Array = np.ascontiguousarray(planes, dtype=dtype)
    return torch.from_numpy(values if values.flags.writeable else values.copy())  # torch warns about what is not


def _planes(planes: Array) -> Tensor:
    """Bytes as they are, other numbers in float32; in the order of memory, if that has no gaps and is not reversed."""
    values = planes if planes.dtype == np.uint8 else planes.astype(np.float32, order="K", copy=False)
    # torch takes no steps back, and none of a part of a number, such as from field to field of a packed structure.
    if any(stride < 0 or stride % values.itemsize for stride in values.strides) or not values.flags.writeable:
        values = values.copy(order="K")
    return torch.from_numpy(values)


def _by_kernel(img1: Tensor, img2: Tensor, options: _Options, full: bool) -> list[Tensor]:
    """[(1,) or (C,) means, maybe the map (C, spatial…)] of planes (C, spatial…) of bytes or float32."""
    window, border, factor, data_range, k1, k2 = options
    if img1.dtype == img2.dtype == torch.uint8:
        # The kernels take a byte as its share of 255 of the data range. S depends on k · data_range alone.
        k1, k2, data_range = k1 * data_range / 255, k2 * data_range / 255, 255.0
    else:
        img1, img2 = img1.float(), img2.float()
    spatial_dims = img1.ndim - 1
    sigmas = None if window.sigma is None else (window.sigma,) * spatial_dims
    taps = _windowed.Window((window.size,) * spatial_dims, sigmas)
    # (2 n cov + C2) / (n var + C2) = (2 cov + C2 / n) / (var + C2 / n)
    constants = _windowed.Constants(data_range, k1, k2 / math.sqrt(factor))

    def called(function: Callable[..., Tensor], reach: int) -> Tensor:
        """A function of `_windowed` on the planes continued this far, each for itself."""
        wide1, wide2 = (_skimage_maps.mirrored(image, reach)[None] for image in (img1, img2))
        return function(wide1, wide2, constants, taps)[0]

    if border > window.radius:
        found = called(_windowed.ssim_map, window.radius)
        return [_means(found, border), *([found] if full else [])]
    # The mean has the same bits with the map and without.
    means = called(_windowed.image_means, window.radius - border).double().reshape(1)
    return [means, called(_windowed.ssim_map, window.radius)] if full else [means]


def _by_definition(img1: Tensor, img2: Tensor, options: _Options, gradient: bool, full: bool) -> list[Tensor]:
    """[(C,) means, maybe the gradient, maybe the map (C, spatial…)] of float64 planes."""
    window, border, factor, data_range, k1, k2 = options
    constants = _skimage_maps.Constants(factor, (k1 * data_range) ** 2, (k2 * data_range) ** 2)
    reach = window.radius if full or gradient else max(0, window.radius - border)
    wide1, wide2 = _skimage_maps.mirrored(img1, reach), _skimage_maps.mirrored(img2, reach)
    further = []
    if gradient:
        maps = _skimage_maps.maps(wide1, wide2, window, constants)
        further.append(_skimage_maps.gradient(img1, img2, window, maps))
        found = maps.ssim()
    else:
        found = _skimage_maps.ssim_by_slabs(wide1, wide2, window, constants)
    return [_means(found, border - window.radius + reach), *further, *([found] if full else [])]


def _means(maps: Tensor, border: int) -> Tensor:
    """(C,): the means of maps (C, spatial…) without a border."""
    return _skimage_maps.cropped(maps, border).double().flatten(1).mean(1)
