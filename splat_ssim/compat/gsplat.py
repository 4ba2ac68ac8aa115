"""The interface of gsplat's SSIM losses (`gsplat.losses` of gsplat 1.6): `ssim_loss` and `masked_ssim`.

gsplat's `ssim_loss` pads in two ways. It uses "valid" (windows lie inside) if fused_ssim can be imported, the images
are not on the CPU, the window has 11 taps and the second image requires no gradient. Otherwise it uses "same" (the
images are padded by zeros). Here `padding` chooses: "valid", "same", or "auto", the default, which is gsplat's own
rule and what `install("gsplat")` installs.

As in the original, the window is a Gaussian of sigma 1.5 and the data range is 1. An even window is centred at its
sample size // 2; with "same", its map is one pixel larger than the images. `masked_ssim` averages over all pixels,
masked ones included. With GSPLAT_ENFORCE_CONTRACTS=1, values outside [0, 1] are an error.

It differs from the original in these ways. "valid" gives the second image its gradient and takes any window size. With
"valid", images smaller than the window are an error, where fused_ssim returns NaN. Half precision is computed in
float32 and rounded once.

Odd windows of 3 to 33 taps use the kernels for float32 and half precision. `install("gsplat")` does not replace the
other losses of `gsplat.losses`.
"""

from __future__ import annotations

import importlib.util
import os
import sys

import torch.nn.functional as F
from torch import Tensor

from splat_ssim.compat import _textbook, _windowed
from splat_ssim.compat._errors import RefusedRuntimeError, RefusedTypeError, RefusedValueError
from splat_ssim.compat._options import whole
from splat_ssim.compat._windowed import Constants, Window

__all__ = ["masked_ssim", "ssim_loss"]

_SIGMA = 1.5
_CONSTANTS = Constants(1.0, 0.01, 0.03)
_PADDINGS = ("auto", "same", "valid")
_ENFORCE = os.environ.get("GSPLAT_ENFORCE_CONTRACTS") == "1" or os.environ.get("PYTHONOPTIMIZE") == "0"


def ssim_loss(img1: Tensor, img2: Tensor, window_size: int = 11, padding: str = "auto") -> Tensor:
    """`1 - SSIM`, averaged over images, channels and pixels.

    Args:
        img1: (B, C, H, W), any float dtype, values in [0, 1].
        img2: Same shape, dtype and device as `img1`.
        window_size: Number of taps of the Gaussian window.
        padding: "same" pads the images with zeros. "valid" uses only windows that lie inside them. "auto" chooses the
            one of these that gsplat would use.

    Returns:
        A scalar in the dtype of the images, differentiable with respect to both.

    Raises:
        ValueError: The shapes do not fit, `padding` is unknown, or the images are smaller than the window with "valid".
            Where gsplat raises a RuntimeError, the error is a RuntimeError too.
        TypeError: An image is not a float tensor.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.gsplat import ssim_loss
        >>> render, target = torch.rand(1, 3, 32, 32, requires_grad=True), torch.rand(1, 3, 32, 32)
        >>> ssim_loss(render, target, padding="valid").backward()
    """
    _check(img1, img2)
    size = whole("window_size", window_size)
    if size < 1:
        raise RefusedRuntimeError(f"window_size must be 1 or more, got {size}")
    if padding not in _PADDINGS:
        raise ValueError(f"padding must be one of 'auto', 'same', 'valid', got {padding!r}")
    if padding == "auto":
        padding = "valid" if _takes_fused(img1, img2, size) else "same"
    if padding == "valid" and min(img1.shape[2:]) < size:
        raise ValueError(f"padding 'valid' needs sides of at least window_size={size}, got {tuple(img1.shape)}")
    if size % 2 == 0:
        return _of_even_window(img1, img2, size, padding).to(img1.dtype)
    window = Window((size, size), (_SIGMA, _SIGMA))
    return (1 - _windowed.image_means(img1, img2, _CONSTANTS, window, padding).mean()).to(img1.dtype)


def masked_ssim(pred: Tensor, gt: Tensor, mask: Tensor, padding: str = "auto") -> Tensor:
    """Multiplies both images by a mask and returns their `ssim_loss`, averaged over all pixels.

    Args:
        pred: (B, C, H, W), any float dtype, values in [0, 1].
        gt: Same shape, dtype and device as `pred`.
        mask: Factor for both images, of any shape that broadcasts to theirs, such as (B, 1, H, W).
        padding: As for `ssim_loss`.

    Returns:
        A scalar, as for `ssim_loss`.

    Raises:
        ValueError: In the same cases as `ssim_loss`.
        TypeError: In the same cases as `ssim_loss`.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.gsplat import masked_ssim
        >>> images = torch.rand(1, 3, 32, 32)
        >>> masked_ssim(images, images, torch.ones(1, 1, 32, 32))
        tensor(0.)
    """
    _check(pred, gt, ("pred", "gt"))
    return ssim_loss((pred * mask).to(pred.dtype), (gt * mask).to(gt.dtype), padding=padding)


for _function in (ssim_loss, masked_ssim):
    _function.__module__ = __name__


def _check(img1: Tensor, img2: Tensor, names: tuple[str, str] = ("img1", "img2")) -> None:
    for name, image in zip(names, (img1, img2), strict=True):
        if not isinstance(image, Tensor):
            raise RefusedTypeError(f"{name} must be a torch.Tensor, got {type(image).__name__}")
        if not image.is_floating_point():
            raise TypeError(f"{name} must be of a floating-point dtype, got {image.dtype}")
    first, second = names
    if img1.shape != img2.shape:
        raise RefusedRuntimeError(
            f"{first} and {second} must have the same shape, got {tuple(img1.shape)} and {tuple(img2.shape)}"
        )
    if img1.ndim != 4:
        raise RefusedRuntimeError(f"{first} must have the shape (B, C, H, W), got {tuple(img1.shape)}")
    if img1.device != img2.device or img1.dtype != img2.dtype:
        got = f"{img1.dtype} on {img1.device} and {img2.dtype} on {img2.device}"
        raise RefusedRuntimeError(f"{first} and {second} must have the same dtype and device, got {got}")
    if getattr(sys.modules.get("gsplat.losses"), "ENFORCE_CONTRACTS", _ENFORCE):
        for name, image in zip(names, (img1, img2), strict=True):
            low, high = (float(value) for value in image.detach().aminmax())
            if not 0 <= low <= high <= 1:
                raise RefusedValueError(f"{name} must be in [0, 1], got [{low:.3f}, {high:.3f}]")


def _takes_fused(img1: Tensor, img2: Tensor, size: int) -> bool:
    """Whether gsplat would call fused_ssim."""
    if size != 11 or img2.requires_grad or img1.is_cpu:
        return False
    return "fused_ssim" in sys.modules or importlib.util.find_spec("fused_ssim") is not None


def _of_even_window(img1: Tensor, img2: Tensor, size: int, padding: str) -> Tensor:
    """`1 - SSIM` of a window with one tap more before its centre than after it."""
    taps = _textbook.float32_gaussian(size, _SIGMA, centre=size // 2).tolist()
    amount = size // 2 if padding == "same" else 0
    wide1, wide2 = (F.pad(_textbook.wide(image), [amount] * 4) for image in (img1, img2))
    return 1 - _textbook.moments(wide1, wide2, [taps, taps]).ssim(_CONSTANTS.c1, _CONSTANTS.c2, 0.0).mean()
