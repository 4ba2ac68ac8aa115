"""The checks of arguments that all public functions share: they say what is required and what was got."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from splat_ssim.options import SSIMOptions, one_or_each

PADDINGS = ("same", "valid", "reflect", "replicate")
MASK_MODES = ("zero", "weight", "normalize")
MAX_WINDOW_SIZE = 33

#: Bounds of sigma, k1 and k2, and of the data range. Outside, their squares leave the range of the images' dtype.
_CONSTANTS = (1e-9, 1e9)
DATA_RANGES = (1e-36, 1e36)

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8)
_LAYOUTS = {
    (2, False): "(B, C, H, W)",
    (2, True): "(B, H, W, C)",
    (3, False): "(B, C, D, H, W)",
    (3, True): "(B, D, H, W, C)",
}


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """`value` is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def _plain_number(name: str, value: Any) -> Any:
    """`value` as Python's own number: an int, a float, numpy's scalars, an array or a tensor without axes."""
    if type(value) in (int, float) or isinstance(value, (torch.SymInt, torch.SymFloat)):
        return value
    if isinstance(value, Tensor) and value.requires_grad:
        raise ValueError(f"{name} must be a constant: it is not differentiated, got a tensor that requires a gradient")
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {_described(value)}")
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def _described(value: object) -> str:
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else f"{type(value).__name__} of shape {tuple(shape)}"


def check_number(name: str, value: Any, *, low: float = 0.0, high: float = math.inf, closed: bool = False) -> float:
    """`value` as a number, which is finite and above `low`, or with `closed` in [low, high]."""
    number: float = _plain_number(name, value)
    inside = low <= number <= high if closed else low < number < high
    if not inside:
        required = f"in [{low:g}, {high:g}]" if closed else f"a finite number above {low:g}"
        raise ValueError(f"{name} must be {required}, got {number}")
    return number


def check_data_range(value: Any) -> float:
    """`value` as the data range, a number whose powers can be computed."""
    low, high = DATA_RANGES
    return check_number("data_range", value, low=low, high=high, closed=True)


def _check_constant(name: str, value: Any) -> float:
    """`value` as sigma, k1 or k2, likewise."""
    low, high = _CONSTANTS
    return check_number(name, value, low=low, high=high, closed=True)


def check_weights(values: Any) -> list[float]:
    """`values` as the exponents of MS-SSIM, one for each scale."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"weights must have one exponent for each scale, got {values!r}")
    exponents = [check_number("weights", value) for value in values]
    if not exponents:
        raise ValueError("weights must have at least one exponent, got none")
    return exponents


def check_window_size(value: Any) -> int:
    """`value` as an int, which is odd and from 3 to MAX_WINDOW_SIZE."""
    return _taps(value, "an int", "odd,", 3)


def _taps(value: Any, kind: str, rule: str, least: int) -> int:
    """`value` as an int, which is odd and from `least` to MAX_WINDOW_SIZE; `kind` and `rule` word what is required."""
    size = _plain_number("window_size", value)
    if isinstance(size, float):
        raise TypeError(f"window_size must be {kind}, got {_described(value)}")
    if not least <= size <= MAX_WINDOW_SIZE or size % 2 == 0:
        raise ValueError(f"window_size must be {rule} from {least} to {MAX_WINDOW_SIZE}, got {size}")
    return cast(int, size)


def _check_axis_window(value: Any) -> int:
    """`value`, of one axis of several, as an int: odd, from 1 to MAX_WINDOW_SIZE."""
    return _taps(value, "ints", "odd, along one axis", 1)


def _each_axis(name: str, value: Sequence[Any], spatial_dims: int) -> Sequence[Any]:
    """`value`, which is no number, has one for each axis of volumes."""
    if spatial_dims != 3:
        raise TypeError(f"{name} must be one number for images; only volumes take three, got {value}")
    if len(value) != 3:
        raise ValueError(f"{name} must be one number, or three for the axes (D, H, W), got {value}")
    return value


def check_windows(value: Any, spatial_dims: int = 3) -> int | tuple[int, ...]:
    """`value` as the taps of the window: a number, or of volumes a tuple of three that are not all equal."""
    if isinstance(value, (tuple, list)):
        sizes = one_or_each([_check_axis_window(size) for size in _each_axis("window_size", value, spatial_dims)])
        if isinstance(sizes, tuple):
            return sizes
        value = sizes
    return check_window_size(value)


def check_sigmas(value: Any, spatial_dims: int = 3) -> float | tuple[float, ...]:
    """`value` as the standard deviation of the window, likewise."""
    if isinstance(value, (tuple, list)):
        sigmas: float | tuple[float, ...] = one_or_each(
            [_check_constant("sigma", sigma) for sigma in _each_axis("sigma", value, spatial_dims)]
        )
        return sigmas
    return _check_constant("sigma", value)


def check_constants(
    constants: Iterable[Any], spatial_dims: int = 3
) -> tuple[int | tuple[int, ...], float | tuple[float, ...], float, float, float]:
    """window_size, sigma, data_range, k1 and k2, checked, as plain numbers; volumes may have a window for each axis."""
    window_size, sigma, data_range, k1, k2 = constants
    return (
        check_windows(window_size, spatial_dims),
        check_sigmas(sigma, spatial_dims),
        check_data_range(data_range),
        _check_constant("k1", k1),
        _check_constant("k2", k2),
    )


def check_images(
    img1: Tensor,
    img2: Tensor,
    spatial_dims: Sequence[int],
    channels_last: bool = False,
    names: tuple[str, str] = ("img1", "img2"),
) -> None:
    """Two tensors of one shape and device, of a rank and dtype that is read."""
    if not isinstance(channels_last, bool):
        raise TypeError(f"channels_last must be a bool, got {channels_last!r}")
    for name, img in zip(names, (img1, img2), strict=True):
        _check_dense(name, img)
        if img.dtype not in _DTYPES:
            allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPES)
            raise TypeError(f"{name} must be of dtype {allowed}, got {str(img.dtype).removeprefix('torch.')}")
    first, second = names
    if img1.ndim - 2 not in spatial_dims:
        layouts = " or ".join(_LAYOUTS[dims, channels_last] for dims in spatial_dims)
        raise ValueError(f"{first} must have the shape {layouts}, got {tuple(img1.shape)}")
    if img1.shape != img2.shape:
        raise ValueError(
            f"{first} and {second} must have the same shape, got {tuple(img1.shape)} and {tuple(img2.shape)}"
        )
    if img1.device != img2.device:
        raise ValueError(f"{first} and {second} must be on the same device, got {img1.device} and {img2.device}")
    if 0 in img1.shape[1:]:
        raise ValueError(f"{first} must have no empty axis but the batch, got {tuple(img1.shape)}")


def _check_dense(name: str, value: Any) -> None:
    """`value` is a tensor that has strides."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if value.layout is not torch.strided or value.is_nested:
        got = "a nested tensor" if value.is_nested else str(value.layout).removeprefix("torch.")
        raise TypeError(f"{name} must be a dense tensor of layout strided, got {got}")


def spatial_shape(img: Tensor, channels_last: bool) -> tuple[int, ...]:
    """(H, W) or (D, H, W)."""
    return tuple(img.shape[1:-1] if channels_last else img.shape[2:])


def check_padding(options: SSIMOptions, img: Tensor) -> None:
    """The padding is known and the images are large enough for it."""
    padding, window_size = options.padding, options.window_size
    check_choice("padding", padding, PADDINGS)
    if padding == "same":
        return
    sides = spatial_shape(img, options.channels_last)
    sizes = options.windows(len(sides))
    if padding == "valid" and any(side < size for side, size in zip(sides, sizes, strict=True)):
        raise ValueError(f"padding 'valid' needs every side to be at least window_size={window_size}, got {sides}")
    if padding != "valid" and any(side <= size // 2 for side, size in zip(sides, sizes, strict=True)):
        radii = one_or_each([size // 2 for size in sizes])
        raise ValueError(
            f"padding {padding!r} needs every side to be larger than window_size // 2 = {radii}, got {sides}"
        )


def check_reduction(reduction: str, choices: Sequence[str], img: Tensor) -> None:
    """The reduction is known, and there is something to take the mean of."""
    check_choice("reduction", reduction, choices)
    if reduction == "mean" and img.shape[0] == 0:
        raise ValueError(f"reduction 'mean' needs at least one image, got the shape {tuple(img.shape)}")


def check_mask(mask: Tensor | None, mask_mode: str, img: Tensor, channels_last: bool) -> None:
    """The mask has the shape of the images, with one channel or all."""
    check_choice("mask_mode", mask_mode, MASK_MODES)
    if mask is None:
        return
    _check_dense("mask", mask)
    if not (mask.dtype == torch.bool or mask.is_floating_point()):
        raise TypeError(f"mask must be bool or floating point, got {str(mask.dtype).removeprefix('torch.')}")
    if mask.requires_grad:
        raise ValueError("mask must not require a gradient: it is not differentiated, got requires_grad=True")
    channel = -1 if channels_last else 1
    one_channel = list(img.shape)
    one_channel[channel] = 1
    if tuple(mask.shape) not in (tuple(img.shape), tuple(one_channel)):
        raise ValueError(
            f"mask must have the shape {tuple(one_channel)} or {tuple(img.shape)}, got {tuple(mask.shape)}"
        )
    if mask.device != img.device:
        raise ValueError(f"mask must be on the device of the images, {img.device}, got {mask.device}")
