"""What the schemas of the SSIM operators share, and the checks of arguments that do not come from public functions."""

from __future__ import annotations

from torch import Tensor

from ..options import SSIMOptions
from ..reference import PADDINGS
from .layout import channels_first

IMAGES = "Tensor img1, Tensor img2"
OPTIONS = (
    "int window_size, float sigma, float data_range, float k1, float k2, str padding, bool channels_last, float eps"
)
NEEDS = "bool need1, bool need2"


def require(condition: bool, required: str, got: object) -> None:
    """Raises ValueError, saying what is required and what came, unless the condition holds."""
    if not condition:
        raise ValueError(f"{required}, got {got}")


def check_images(img1: Tensor, img2: Tensor, options: SSIMOptions) -> None:
    """Everything a kernel relies on. The public functions check it before; an operator may be called by itself."""
    size, padding = options.window_size, options.padding
    require(img1.shape == img2.shape, "img1 and img2 must have the same shape", (tuple(img1.shape), tuple(img2.shape)))
    require(img1.ndim in (4, 5), "img1 must have 4 or 5 axes", tuple(img1.shape))
    require(img1.device == img2.device, "img1 and img2 must be on the same device", (img1.device, img2.device))
    require(3 <= size <= 33 and size % 2 == 1, "window_size must be odd, from 3 to 33", size)
    require(padding in PADDINGS, f"padding must be one of {PADDINGS}", padding)
    if padding != "same":
        smallest = size if padding == "valid" else size // 2 + 1
        sides = tuple(channels_first(img1, options.channels_last).shape[2:])
        require(min(sides) >= smallest, f"padding {padding!r} needs sides of at least {smallest}", sides)


def check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """The tensor has this shape."""
    require(tuple(tensor.shape) == shape, f"{name} must have the shape {shape}", tuple(tensor.shape))
