"""kornia's losses without a window: PSNR, total variation, smoothness of inverse depth and the robust losses."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from splat_ssim.compat._errors import RefusedDtypeError
from splat_ssim.compat._kornia_checks import (
    check_reduction,
    check_tensor,
    dtype_or,
    float_dtype,
    reduce,
    setting,
    shape_of,
    wide,
)


def psnr(image: Tensor, target: Tensor, max_val: float) -> Tensor:
    """Peak signal-to-noise ratio in dB, `10 log10(max_val² / mse)`, of two tensors of the same shape.

    The shape and the dtype may be any. The result is a scalar, float32 for integers. It is inf for equal tensors.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.kornia import psnr
        >>> psnr(torch.ones(1), 1.2 * torch.ones(1), 2.0)
        tensor(20.0000)
    """
    if not torch.jit.is_scripting():
        check_tensor("image", image)
        check_tensor("target", target)
        if not isinstance(max_val, Tensor):
            max_val = setting("max_val", max_val)
    if image.shape != target.shape:
        raise TypeError(f"image and target must have the same shape, got {shape_of(image)} and {shape_of(target)}")
    dtype = torch.promote_types(dtype_or(image, torch.float32), dtype_or(target, torch.float32))
    if not torch.jit.is_scripting():
        if isinstance(max_val, Tensor) and max_val.is_floating_point():
            dtype = torch.promote_types(dtype, max_val.dtype)
    mse = F.mse_loss(wide(image), wide(target))
    # Use tensors instead of numbers, because torch promotes the tangent of (0-dim tensor · number) to float64.
    top = max_val * max_val * torch.ones_like(mse)
    return (torch.full_like(mse, 10.0) * torch.log10(top / mse)).to(dtype)


def psnr_loss(image: Tensor, target: Tensor, max_val: float) -> Tensor:
    """The negative PSNR in dB, `-10 log10(max_val² / mse)`, of two tensors of the same shape and any dtype.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.kornia import psnr_loss
        >>> psnr_loss(torch.ones(1), 1.2 * torch.ones(1), 2.0)
        tensor(-20.0000)
    """
    return -psnr(image, target, max_val)


def total_variation(img: Tensor, reduction: str = "sum") -> Tensor:
    """Total variation: the absolute differences between neighbours along the last two axes, reduced and added.

    Args:
        img: (…, H, W), any dtype. Differences of integers are computed in int64.
        reduction: "sum" adds all differences. "mean" averages the differences of each axis and adds the two means.

    Returns:
        A tensor of the shape of `img` without its last two axes, in its dtype. For integers, sums are int64 and means
        float32.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.kornia import total_variation
        >>> total_variation(torch.ones(4, 4))
        tensor(0.)
    """
    if not torch.jit.is_scripting():
        check_tensor("img", img)
        if img.ndim < 2:
            raise ValueError(f"img must have the shape (…, H, W), got {tuple(img.shape)}")
    if reduction != "sum" and reduction != "mean":
        raise ValueError(f"reduction must be one of 'mean', 'sum', got '{reduction}'")
    values = img
    if not img.is_floating_point() and not img.is_complex():
        values = img.long()
    elif img.is_floating_point():
        values = wide(img)
    vertical, horizontal = values.diff(dim=-2).abs(), values.diff(dim=-1).abs()
    along_height, along_width = vertical.sum([-2, -1]), horizontal.sum([-2, -1])
    if reduction == "mean":
        along_height = along_height / max(1, vertical.shape[-2] * vertical.shape[-1])
        along_width = along_width / max(1, horizontal.shape[-2] * horizontal.shape[-1])
    total = along_height + along_width
    if img.is_floating_point():
        return total.to(img.dtype)
    return total.float() if total.is_floating_point() and not img.is_complex() else total


def inverse_depth_smoothness_loss(idepth: Tensor, image: Tensor) -> Tensor:
    """Penalises differences between neighbouring inverse depths, less at edges of the image.

    Each absolute difference is multiplied by exp(-|difference of the image|). The loss is the mean over horizontal
    neighbours plus the mean over vertical ones.

    Args:
        idepth: (B, 1, H, W) inverse depths, any float dtype.
        image: (B, C, H, W), same dtype and device as `idepth`. Its absolute differences are averaged over channels.

    Returns:
        A scalar in the dtype of `idepth`.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.kornia import inverse_depth_smoothness_loss
        >>> loss = inverse_depth_smoothness_loss(torch.rand(1, 1, 8, 8), torch.rand(1, 3, 8, 8))
    """
    if not torch.jit.is_scripting():
        _check_depth(idepth, image)
    total = _edge_aware(wide(idepth), wide(image), -1) + _edge_aware(wide(idepth), wide(image), -2)
    return total.to(idepth.dtype) if idepth.is_floating_point() else total


def _edge_aware(idepth: Tensor, image: Tensor, dim: int) -> Tensor:
    """The mean over one axis of `inverse_depth_smoothness_loss`."""
    weights = torch.exp(-image.diff(dim=dim).abs().mean(1, keepdim=True))
    return (idepth.diff(dim=dim) * weights).abs().mean()


def _check_depth(idepth: Tensor, image: Tensor) -> None:
    for name, tensor in (("idepth", idepth), ("image", image)):
        check_tensor(name, tensor)
        if tensor.ndim != 4:
            raise ValueError(f"{name} must have the shape (B, C, H, W), got {tuple(tensor.shape)}")
    if idepth.shape[-2:] != image.shape[-2:]:
        raise ValueError(
            f"idepth and image must have the same H and W, got {tuple(idepth.shape)}, {tuple(image.shape)}"
        )
    if idepth.device != image.device:
        raise ValueError(f"idepth and image must be on the same device, got {idepth.device} and {image.device}")
    if idepth.dtype != image.dtype:
        raise ValueError(f"idepth and image must have the same dtype, got {idepth.dtype} and {image.dtype}")
    if not (idepth.is_floating_point() or idepth.is_complex()):
        raise RefusedDtypeError(f"idepth and image must be floating point, got {idepth.dtype}")


def charbonnier_loss(img1: Tensor, img2: Tensor, reduction: str | None = "none") -> Tensor:
    """`sqrt((x - y)² + 1) - 1`, accurate for small differences and finite for large ones.

    Args:
        img1: Any shape; a float dtype, int32 or int64.
        img2: Same shape and device as `img1`.
        reduction: "mean", "sum" or "none".

    Returns:
        A scalar, or for "none" a tensor of the shape of the images. Its dtype is theirs, or torch's default dtype if
        both hold integers.

    Raises:
        TypeError: An image is not a tensor, is complex, or is not float and neither int32 nor int64. kornia wraps
            around on shorter integers.
        ValueError: The shapes or devices differ, or the reduction is unknown. For an unknown reduction, the error is a
            NotImplementedError too.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.kornia import charbonnier_loss
        >>> charbonnier_loss(torch.zeros(2), torch.tensor([0.0, 1.0]))
        tensor([0.0000, 0.4142])
    """
    difference = _difference(img1, img2, reduction)
    squared = _moderate(difference) ** 2
    values = torch.where(_is_large(difference), difference.abs() - 1, squared / ((squared + 1).sqrt() + 1))
    return reduce(values, reduction).to(float_dtype(img1, img2))


def welsch_loss(img1: Tensor, img2: Tensor, reduction: str | None = "none") -> Tensor:
    """`1 - exp(-(x - y)² / 2)`. Everything else is as for `charbonnier_loss`.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.kornia import welsch_loss
        >>> welsch_loss(torch.zeros(2), torch.tensor([0.0, 1.0]))
        tensor([0.0000, 0.3935])
    """
    halved = 0.5 * _moderate(_difference(img1, img2, reduction)) ** 2
    # The gradient of expm1 is its value plus 1, which is inexact where the value is close to -1.
    values = torch.where(halved < 0.5, -torch.expm1(-halved), 1 - torch.exp(-halved))
    return reduce(values, reduction).to(float_dtype(img1, img2))


def cauchy_loss(img1: Tensor, img2: Tensor, reduction: str | None = "none") -> Tensor:
    """`log((x - y)² / 2 + 1)`. Everything else is as for `charbonnier_loss`.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.kornia import cauchy_loss
        >>> cauchy_loss(torch.zeros(2), torch.tensor([0.0, 1.0]))
        tensor([0.0000, 0.4055])
    """
    difference = _difference(img1, img2, reduction)
    values = torch.where(
        _is_large(difference),
        2 * difference.abs().clamp(min=1e9).log() - math.log(2),
        torch.log1p(0.5 * _moderate(difference) ** 2),
    )
    return reduce(values, reduction).to(float_dtype(img1, img2))


def geman_mcclure_loss(img1: Tensor, img2: Tensor, reduction: str | None = "none") -> Tensor:
    """`2 (x - y)² / ((x - y)² + 4)`. Everything else is as for `charbonnier_loss`.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.kornia import geman_mcclure_loss
        >>> geman_mcclure_loss(torch.zeros(2), torch.tensor([0.0, 1.0]))
        tensor([0.0000, 0.4000])
    """
    difference = _difference(img1, img2, reduction)
    squared = _moderate(difference) ** 2
    # Two forms of the same function, each used where its gradient does not suffer from cancellation.
    small = squared.clamp(max=4.0)
    values = torch.where(squared < 4, 2 * small / (small + 4), 2 - 8 / (squared + 4))
    # As in the original, an infinite difference gives infinity divided by infinity.
    values = torch.where(difference.isinf(), torch.nan, values)
    return reduce(values, reduction).to(float_dtype(img1, img2))


def _is_large(difference: Tensor) -> Tensor:
    """True where adding 1 to the square of a difference has no effect, even in float64. No smaller square overflows."""
    return difference.abs() > 1e9


def _moderate(difference: Tensor) -> Tensor:
    """The differences, with large ones cut off."""
    return difference.clamp(-1e9, 1e9)


def _difference(img1: Tensor, img2: Tensor, reduction: str | None) -> Tensor:
    """`img1 - img2` of checked images, in float32 or, for float64 and integers, in float64."""
    if not torch.jit.is_scripting():
        check_tensor("img1", img1)
        check_tensor("img2", img2)
        if img1.device != img2.device:
            raise ValueError(f"img1 and img2 must be on the same device, got {img1.device} and {img2.device}")
        if torch.bool in (img1.dtype, img2.dtype) and not (img1.is_floating_point() or img2.is_floating_point()):
            raise RefusedDtypeError(f"integer images must be int32 or int64, got {img1.dtype} and {img2.dtype}")
        check_reduction("none" if reduction is None else reduction)
    if img1.shape != img2.shape:
        raise ValueError(f"img1 and img2 must have the same shape, got {shape_of(img1)} and {shape_of(img2)}")
    dtype = torch.promote_types(img1.dtype, img2.dtype)
    if img1.is_complex() or img2.is_complex():
        raise TypeError(f"img1 and img2 must be real, got {img1.dtype} and {img2.dtype}")
    if img1.is_floating_point() or img2.is_floating_point():
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        return img1.to(wide) - img2.to(wide)
    if dtype != torch.int32 and dtype != torch.int64:
        raise TypeError(
            "integer images must be int32 or int64, because kornia wraps round on shorter integers: convert them to "
            f"float, got {img1.dtype} and {img2.dtype}"
        )
    return img1.double() - img2.double()
