"""SSIM and MS-SSIM as torchmetrics defines them, for each image. `splat_ssim.compat.torchmetrics` is the interface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from splat_ssim import _maps
from splat_ssim.compat import _windowed
from splat_ssim.compat._errors import RefusedDtypeError, RefusedRuntimeError, RefusedTypeError
from splat_ssim.compat._options import integer, number
from splat_ssim.compat._windowed import Constants, Window, each_axis

#: Type of `data_range`: a number, (low, high) to clamp to, or None for the range of the images.
DataRange = float | tuple[float, float] | None
REDUCTIONS = ("elementwise_mean", "sum", "none", None)


class Options(NamedTuple):
    """The options of a call, as given."""

    gaussian_kernel: bool = True
    sigma: float | Sequence[float] = 1.5
    kernel_size: int | Sequence[int] = 11
    data_range: DataRange = None
    k1: float = 0.01
    k2: float = 0.03
    return_full_image: bool = False
    return_contrast_sensitivity: bool = False


class Geometry(NamedTuple):
    """The window, and the width of the reflected border along each axis."""

    window: Window
    reach: tuple[int, ...]


def check_images(preds: Tensor, target: Tensor, data_range: DataRange = None) -> tuple[Tensor, Tensor]:
    """Both images in the dtype of `preds`, checked. Integers are clamped where a range is given as (low, high).

    Whether the dtype is a float is left to `check_dtype`, because the original refuses wrong options first.
    """
    for name, image in (("preds", preds), ("target", target)):
        if not isinstance(image, Tensor):
            raise RefusedTypeError(f"{name} must be a torch.Tensor, got {type(image).__name__}")
        if image.is_complex():
            raise RefusedDtypeError(f"{name} must be of a floating-point dtype, got {image.dtype}")
    if preds.shape != target.shape:
        raise RefusedRuntimeError(
            f"preds and target must have the same shape, got {tuple(preds.shape)} and {tuple(target.shape)}"
        )
    if preds.ndim not in (4, 5):
        raise ValueError(
            f"preds and target must have the shape (B, C, H, W) or (B, C, D, H, W), got {tuple(preds.shape)}"
        )
    if preds.device != target.device:
        raise RefusedRuntimeError(
            f"preds and target must be on the same device, got {preds.device} and {target.device}"
        )
    target = target.to(preds.dtype)
    if isinstance(data_range, tuple) and not preds.is_floating_point():
        low, high = limits(data_range)
        preds, target = preds.clamp(low, high), target.clamp(low, high)  # a range of floats makes them floats
    return preds, target


def check_dtype(preds: Tensor) -> None:
    if not preds.is_floating_point():
        raise TypeError(f"preds must be of a floating-point dtype, got {preds.dtype}")


def limits(data_range: Sequence[float]) -> tuple[float, float]:
    """(low, high) of a data range. As in the original, further values are ignored."""
    if len(data_range) < 2:
        raise ValueError(f"data_range must be a number, (low, high) or None, got {data_range}")
    return data_range[0], data_range[1]


def reduced(values: Tensor, reduction: str | None) -> Tensor:
    """Reduces the values of images, (B,)."""
    if reduction == "elementwise_mean":
        return values.mean()
    if reduction == "sum":
        return values.sum()
    if reduction == "none" or reduction is None:
        return values
    raise ValueError(f"reduction must be one of 'elementwise_mean', 'sum', 'none' or None, got {reduction!r}")


def similarity(preds: Tensor, target: Tensor, options: Options) -> tuple[Tensor, Tensor | None]:
    """SSIM of each image, (B,), and what else is asked for: the map, the contrast-structure means (B,), or None."""
    preds, target = check_images(preds, target, options.data_range)
    geometry = _geometry(options, preds)
    check_dtype(preds)
    dtype = preds.dtype
    preds, target, constants = _prepared(preds, target, options)
    if options.return_full_image:
        found = _windowed.ssim_map(*_continued(preds, target, geometry, constants))
        return found.flatten(1).mean(1).to(dtype), found.to(dtype)
    value = _windowed.image_means(*_continued(preds, target, geometry, constants)).to(dtype)
    if options.return_contrast_sensitivity:
        return value, _contrast_structure(preds, target, geometry, constants).to(dtype)
    return value, None


def multiscale(
    preds: Tensor, target: Tensor, options: Options, betas: tuple[float, ...], normalize: str | None
) -> Tensor:
    """MS-SSIM of each image, (B,)."""
    preds, target = check_images(preds, target)
    geometry = _geometry(options, preds)
    _check_sides(preds, betas, each_axis(options.kernel_size, preds.ndim - 2))
    check_dtype(preds)
    dtype = torch.promote_types(preds.dtype, torch.float32)  # that of the exponents
    preds, target = (image.to(_maps.compute_dtype(image)) for image in (preds, target))
    pool = F.avg_pool2d if preds.ndim == 4 else F.avg_pool3d
    terms = []
    for scale in range(len(betas)):
        if scale:
            preds, target = pool(preds, 2), pool(target, 2)
        _check_reach(preds, geometry)
        # A range that comes from the images, or that they are clamped to, is that of the scale.
        img1, img2, constants = _prepared(preds, target, options)
        if scale < len(betas) - 1:
            terms.append(_contrast_structure(img1, img2, geometry, constants))
        else:
            terms.append(_windowed.image_means(*_continued(img1, img2, geometry, constants)))
    stacked = torch.stack(terms, -1)
    # The original rounds the exponents to float32.
    exponents = _windowed.rounded(betas)
    if normalize == "relu":
        return _windowed.power_product(stacked, exponents).to(dtype)
    if normalize == "simple":
        stacked = (stacked + 1) / 2
    return (
        torch.stack([term**power for term, power in zip(stacked.unbind(-1), exponents, strict=True)]).prod(0).to(dtype)
    )


def check_multiscale(betas: Any, normalize: Any) -> None:
    """Checks the options that only MS-SSIM has."""
    if not isinstance(betas, tuple) or not betas or not all(isinstance(beta, float) for beta in betas):
        raise ValueError(f"betas must be a tuple of floats, got {betas!r}")
    if normalize and normalize not in ("relu", "simple"):
        raise ValueError(f"normalize must be 'relu', 'simple' or None, got {normalize!r}")


def _geometry(options: Options, preds: Tensor) -> Geometry:
    """Checks the options of the window."""
    spatial_dims = preds.ndim - 2
    sizes, sigmas = each_axis(options.kernel_size, spatial_dims), each_axis(options.sigma, spatial_dims)
    for name, values in (("kernel_size", sizes), ("sigma", sigmas)):
        if len(values) != spatial_dims:
            raise ValueError(f"{name} must have one value for each of the {spatial_dims} spatial axes, got {values}")
    sizes = tuple(integer("kernel_size", size) for size in sizes)
    sigmas = tuple(float(number("sigma", sigma)) for sigma in sigmas)
    if options.return_full_image and options.return_contrast_sensitivity:
        raise ValueError("return_full_image and return_contrast_sensitivity must not both be set, got both")
    if any(size % 2 == 0 or size <= 0 for size in sizes):
        raise ValueError(f"kernel_size must be odd and positive, got {sizes}")
    if any(sigma <= 0 for sigma in sigmas):
        raise ValueError(f"sigma must be positive, got {sigmas}")
    reach = tuple(size // 2 for size in sizes)
    window = Window(sizes, None)
    if options.gaussian_kernel:
        window = Window(tuple(int(3.5 * sigma + 0.5) * 2 + 1 for sigma in sigmas), sigmas)
        # Of volumes the original continues the last axis by what kernel_size says, whatever the Gaussian.
        reach = (*(size // 2 for size in window.sizes[:2]), *reach[2:])
    geometry = Geometry(window, reach)
    _check_reach(preds, geometry)
    return geometry


def _check_reach(preds: Tensor, geometry: Geometry) -> None:
    """Checks that the images are larger than their reflected borders, and that the window then fits into them."""
    sides = tuple(preds.shape[2:])
    if any(side <= reach for side, reach in zip(sides, geometry.reach, strict=True)):
        raise RefusedRuntimeError(
            f"preds must be larger than the padding of {geometry.reach}, got {tuple(preds.shape)}"
        )
    axes = zip(sides, geometry.reach, geometry.window.sizes, strict=True)
    if any(side + 2 * reach < size for side, reach, size in axes):
        raise RefusedRuntimeError(
            f"preds must be as large as the window of {geometry.window.sizes} once padded by {geometry.reach}, got "
            f"{tuple(preds.shape)}"
        )


def _check_sides(preds: Tensor, betas: tuple[float, ...], sizes: tuple[int, ...]) -> None:
    """Checks that the last two axes are long enough for all scales. As in the original, the first two windows count."""
    least, share = 2 ** len(betas), max(1, len(betas) - 1) ** 2
    if min(preds.shape[-2:]) < least:
        raise ValueError(
            f"the two last axes of preds must be at least {least} for {len(betas)} betas, got {tuple(preds.shape)}"
        )
    for side, size in zip(preds.shape[-2:], sizes, strict=False):
        if side // share <= size - 1:
            raise ValueError(
                f"the two last axes of preds must be larger than {(size - 1) * share} for {len(betas)} betas and "
                f"kernel_size {size}, got {tuple(preds.shape)}"
            )


def _prepared(preds: Tensor, target: Tensor, options: Options) -> tuple[Tensor, Tensor, Constants]:
    """Images clamped where a range is given as (low, high), and the constants."""
    given: Any = options.data_range
    if given is None:
        first, second = (image.max() - image.min() for image in (preds, target))
        given = torch.where(second > first, second, first)
    elif isinstance(given, tuple):
        low, high = limits(given)
        preds, target = preds.clamp(low, high), target.clamp(low, high)
        given = high - low
    return _windowed.normalised(preds, target, _windowed.read_constants(given, options.k1, options.k2))


def _continued(
    preds: Tensor, target: Tensor, geometry: Geometry, constants: Constants
) -> tuple[Tensor, Tensor, Constants, Window, str]:
    """The arguments of `_windowed`'s functions: the window sees the images continued by reflection."""
    window, reach = geometry
    if reach == tuple(size // 2 for size in window.sizes):
        return preds, target, constants, window, "reflect"
    preds, target = (_windowed.pad(image, reach, "reflect") for image in (preds, target))
    return preds, target, constants, window, "valid"


def _contrast_structure(preds: Tensor, target: Tensor, geometry: Geometry, constants: Constants) -> Tensor:
    """(B,): the mean of the contrast-structure factor over the windows that lie inside, NaN where there are none."""
    window, reach = geometry
    # Where an axis is not padded the original crops it to nothing.
    if 0 in reach or any(side < size for side, size in zip(preds.shape[2:], window.sizes, strict=True)):
        return preds.new_full((preds.shape[0],), torch.nan)
    return _windowed.channel_means(preds, target, constants, window, "valid")[..., 1].mean(1)
