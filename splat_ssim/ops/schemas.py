"""Parts that the SSIM operators' schemas share, and the argument checks for operators that are called directly."""

from __future__ import annotations

from torch import Tensor

from .._maps import channels_first
from ..options import SSIMOptions, one_or_each
from ..reference import PADDINGS

IMAGES = "Tensor img1, Tensor img2"
#: Window and sigma are lists of three, one for each axis of volumes; torch takes a number for all three.
OPTIONS = (
    "int[3] window_size, float[3] sigma, float data_range, float k1, float k2, str padding, bool channels_last, "
    "float eps"
)
NEEDS = "bool need1, bool need2"


def require(condition: bool, required: str, got: object) -> None:
    """Raises ValueError, saying what is required and what came, unless the condition holds."""
    if not condition:
        raise ValueError(f"{required}, got {got}")


def check_images(img1: Tensor, img2: Tensor, options: SSIMOptions) -> None:
    """Checks all that a kernel relies on. The public functions check it too, but operators may be called directly."""
    padding, spatial_dims = options.padding, img1.ndim - 2
    require(img1.shape == img2.shape, "img1 and img2 must have the same shape", (tuple(img1.shape), tuple(img2.shape)))
    require(img1.ndim in (4, 5), "img1 must have 4 or 5 axes", tuple(img1.shape))
    require(img1.device == img2.device, "img1 and img2 must be on the same device", (img1.device, img2.device))
    for name, value in (("window_size", options.window_size), ("sigma", options.sigma)):
        as_axes = not isinstance(value, tuple) or spatial_dims == len(value) == 3
        require(as_axes, f"{name} must be one number, or three for volumes", value)
    sizes = options.windows(spatial_dims)
    odd = all(1 <= size <= 33 and size % 2 == 1 for size in sizes) and max(sizes) >= 3
    require(odd, "window_size must be odd, from 3 to 33", options.window_size)
    require(padding in PADDINGS, f"padding must be one of {PADDINGS}", padding)
    if padding != "same":
        smallest = [size if padding == "valid" else size // 2 + 1 for size in sizes]
        sides = tuple(channels_first(img1, options.channels_last).shape[2:])
        enough = all(side >= least for side, least in zip(sides, smallest, strict=True))
        require(enough, f"padding {padding!r} needs sides of at least {one_or_each(smallest)}", sides)


def check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Raises ValueError unless the tensor has this shape."""
    require(tuple(tensor.shape) == shape, f"{name} must have the shape {shape}", tuple(tensor.shape))
