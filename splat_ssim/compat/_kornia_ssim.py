"""SSIM as kornia defines it, of images and volumes: maps and losses. `splat_ssim.compat.kornia` is the interface."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from splat_ssim import reference
from splat_ssim.compat import _textbook
from splat_ssim.compat._errors import RefusedRuntimeError
from splat_ssim.compat._kornia_checks import check_real, check_reduction, check_tensor, dtype_or, reduce, setting
from splat_ssim.compat._options import integer
from splat_ssim.ops.photometric import photometric
from splat_ssim.ops.ssim import ssim_map
from splat_ssim.options import SSIMOptions

_SIGMA, _K1, _K2 = 1.5, 0.01, 0.03
#: dtypes that the kernels read. Others are converted to float32, even uint8, because kornia does not divide by 255.
_READ = (torch.float32, torch.float16, torch.bfloat16)


def ssim(
    img1: Tensor, img2: Tensor, window_size: int, max_val: float = 1.0, eps: float = 1e-12, padding: str = "same"
) -> Tensor:
    """The SSIM map of two batches of images.

    Args:
        img1: (B, C, H, W), any real dtype, values in [0, max_val]. Integers are not rescaled.
        img2: Same shape and device as `img1`.
        window_size: Number of taps of the Gaussian window, whose sigma is 1.5. For an even window, the images are
            padded by one pixel more at the end of an axis than at its start.
        max_val: Largest possible value.
        eps: Number added to the denominator.
        padding: "same" pads the images by reflection. "valid" uses only windows that lie inside them. Case is ignored.

    Returns:
        The map, (B, C, H, W), smaller for "valid". Its dtype is that of the images, of which integers count as float32.

    Raises:
        TypeError: An image is not a real tensor, or an option has the wrong type.
        ValueError: The shapes or devices differ, the padding is unknown, or the images are too small for the window and
            the padding. In the last case the error is a RuntimeError too, as in the original.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.kornia import ssim
        >>> ssim(torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32), window_size=11).shape
        torch.Size([1, 3, 32, 32])
    """
    return similarity(check_call(img1, img2, window_size, max_val, eps, padding, spatial_dims=2))


def ssim3d(
    img1: Tensor, img2: Tensor, window_size: int, max_val: float = 1.0, eps: float = 1e-12, padding: str = "same"
) -> Tensor:
    """The SSIM map of two batches of volumes (B, C, D, H, W). Everything else is as for `ssim`.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.kornia import ssim3d
        >>> ssim3d(torch.rand(1, 1, 8, 8, 8), torch.rand(1, 1, 8, 8, 8), window_size=5).shape
        torch.Size([1, 1, 8, 8, 8])
    """
    return similarity(check_call(img1, img2, window_size, max_val, eps, padding, spatial_dims=3))


def ssim_loss(
    img1: Tensor,
    img2: Tensor,
    window_size: int,
    max_val: float = 1.0,
    eps: float = 1e-12,
    reduction: str = "mean",
    padding: str = "same",
) -> Tensor:
    """`(1 - S) / 2`, clamped to [0, 1], of two batches of images. S is the map of `ssim`, which has the same arguments.

    `reduction` is "mean", "sum" or "none". For "mean" and "sum", one pass over the images gives the value and the
    gradient.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.kornia import ssim_loss
        >>> loss = ssim_loss(torch.rand(1, 3, 32, 32, requires_grad=True), torch.rand(1, 3, 32, 32), window_size=11)
    """
    check_reduction(reduction)
    return half_dissimilarity(check_call(img1, img2, window_size, max_val, eps, padding, spatial_dims=2), reduction)


def ssim3d_loss(
    img1: Tensor,
    img2: Tensor,
    window_size: int,
    max_val: float = 1.0,
    eps: float = 1e-12,
    reduction: str = "mean",
    padding: str = "same",
) -> Tensor:
    """`(1 - S) / 2`, clamped to [0, 1], of two batches of volumes. kornia 0.8 and earlier return `1 - S`.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.kornia import ssim3d_loss
        >>> loss = ssim3d_loss(torch.rand(1, 1, 8, 8, 8), torch.rand(1, 1, 8, 8, 8), window_size=5)
    """
    check_reduction(reduction)
    return half_dissimilarity(check_call(img1, img2, window_size, max_val, eps, padding, spatial_dims=3), reduction)


class Call(NamedTuple):
    """A checked call of SSIM."""

    img1: Tensor
    img2: Tensor
    window_size: int
    max_val: float
    eps: float
    #: Padding, as `splat_ssim.reference.pad` names it.
    padding: str
    #: dtype of the result.
    dtype: torch.dtype
    #: kornia 0.8 rounds the window of volumes to float32, which shows on float64 volumes.
    is_window_rounded: bool
    #: Options for the operators. None if plain torch computes.
    options: SSIMOptions | None


def check_call(
    img1: Tensor,
    img2: Tensor,
    window_size: int,
    max_val: float,
    eps: float,
    padding: str,
    spatial_dims: int,
    same: str = "reflect",
    is_window_rounded: bool = False,
) -> Call:
    for name, image in (("img1", img1), ("img2", img2)):
        check_tensor(name, image)
        if image.ndim != spatial_dims + 2:
            layout = "(B, C, H, W)" if spatial_dims == 2 else "(B, C, D, H, W)"
            raise ValueError(f"{name} must have the shape {layout}, got {tuple(image.shape)}")
        check_real(name, image)
    if img1.shape != img2.shape:
        raise ValueError(f"img1 and img2 must have the same shape, got {tuple(img1.shape)} and {tuple(img2.shape)}")
    if img1.device != img2.device:
        raise ValueError(f"img1 and img2 must be on the same device, got {img1.device} and {img2.device}")
    window_size = integer("window_size", window_size)
    if window_size < 1:
        raise ValueError(f"window_size must be 1 or more, got {window_size}")
    if not isinstance(padding, str) or padding.lower() not in ("same", "valid"):
        raise ValueError(f"padding must be one of 'same', 'valid', got {padding!r}")
    padding = same if padding.lower() == "same" else "valid"
    after, sides = window_size // 2, tuple(img1.shape[2:])
    if padding == "valid" and min(sides) < window_size:
        raise RefusedRuntimeError(
            f"padding 'valid' needs every side to be at least window_size={window_size}, got {sides}"
        )
    if padding == "reflect" and min(sides) <= after:
        raise RefusedRuntimeError(f"padding 'same' needs every side to be larger than {after}, got {sides}")

    dtype = torch.promote_types(dtype_or(img1, torch.float32), dtype_or(img2, torch.float32))
    top, added = _scalar("max_val", max_val), _scalar("eps", eps)
    if not isinstance(top, Tensor) and not -math.inf < top < math.inf:
        raise ValueError(f"max_val must be finite, got {max_val}")
    options = None
    # The operators do not repeat a border further than an image is wide; kornia 0.8 does.
    if dtype != torch.float64 and not (padding == "replicate" and min(sides) <= after):
        img1, img2 = (img if img.dtype in _READ else img.float() for img in (img1, img2))
        options = _options(window_size, top, added, padding)
    return Call(img1, img2, window_size, top, added, padding, dtype, is_window_rounded, options)


def _scalar(name: str, value: object) -> float:
    if isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got bool")
    found = setting(name, value)
    if isinstance(found, Tensor) and found.numel() != 1:
        raise TypeError(f"{name} must be a number, got a tensor of the shape {tuple(found.shape)}")
    return found


def _options(window_size: int, max_val: float, eps: float, padding: str) -> SSIMOptions | None:
    """The options for the operators if these give kornia's numbers, else None."""
    if isinstance(max_val, Tensor) or isinstance(eps, Tensor) or not 0 <= eps < math.inf:
        return None
    if not _textbook.has_kernel(window_size, abs(max_val)):
        return None
    return SSIMOptions(window_size, _SIGMA, abs(max_val), _K1, _K2, padding, eps=eps)


def similarity(call: Call) -> Tensor:
    """The map of S."""
    if call.options is not None:
        return ssim_map(call.img1, call.img2, call.options).to(call.dtype)
    return (1 - _dissimilarity(call)).to(call.dtype)


def half_dissimilarity(call: Call, reduction: str, share: float = 0.5) -> Tensor:
    """(1 - S) / 2, or another share of 1 - S, reduced."""
    if call.options is not None:
        if reduction == "none" or call.img1.numel() == 0:
            return reduce(share * (1 - ssim_map(call.img1, call.img2, call.options)), reduction).to(call.dtype)
        # The clamp of the original is not needed: S is in [-1, 1].
        weight = share * (1 if reduction == "mean" else _count(call))
        loss, _, _ = photometric(call.img1, call.img2, call.options, l1_weight=0.0, dssim_weight=weight)
        return loss.to(call.dtype)
    values = share * _dissimilarity(call)
    return reduce(torch.clamp(values, 0, 1) if share == 0.5 else values, reduction).to(call.dtype)


def _count(call: Call) -> int:
    """Number of values of the map."""
    lost = call.window_size - 1 if call.padding == "valid" else 0
    return math.prod((*call.img1.shape[:2], *(side - lost for side in call.img1.shape[2:])))


def _dissimilarity(call: Call) -> Tensor:
    """The map of 1 - S in plain torch, in float32 or float64."""
    before, after = (call.window_size - 1) // 2, call.window_size // 2
    spatial_dims = call.img1.ndim - 2
    wide = torch.float64 if call.dtype == torch.float64 else torch.float32
    img1, img2 = (
        reference.pad(img.to(wide), before, after, call.padding, spatial_dims) for img in (call.img1, call.img2)
    )
    c1, c2 = (_K1 * call.max_val) ** 2, (_K2 * call.max_val) ** 2
    if call.is_window_rounded and wide == torch.float64:
        rounded = _textbook.float32_gaussian(call.window_size, _SIGMA)
        cube = (rounded[:, None] * rounded)[:, :, None] * rounded
        # The sum of kornia's weights is that of the products, rounded too; flat volumes show it.
        rounded = rounded.double() / rounded.double().sum() * cube.double().sum() ** (1 / 3)
        return 1 - _textbook.moments(img1, img2, [rounded.tolist()] * spatial_dims).ssim(c1, c2, call.eps)
    taps = reference.gaussian_taps(call.window_size, _SIGMA)
    return reference.moments(img1, img2, taps, c1, c2).dssim(call.eps)
