"""Checks, dtypes and reductions that our losses for kornia share. torch.jit.script compiles what takes tensors."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from splat_ssim.compat._errors import RefusedDtypeError, UnsupportedOptionError
from splat_ssim.compat._options import number


def setting(name: str, value: object) -> float:
    """Reads a number, see `number`. It has the type that torch.jit.script expects, although it may stay a tensor."""
    return cast(float, number(name, value))


def dtype_or(images: Tensor, otherwise: torch.dtype) -> torch.dtype:
    """The dtype that images count as: their own, or another where they hold integers."""
    return images.dtype if images.is_floating_point() else otherwise


def float_dtype(img1: Tensor, img2: Tensor) -> torch.dtype:
    """The dtype of a loss on two images: torch's default dtype where both hold integers."""
    if img1.is_floating_point() or img2.is_floating_point():
        return torch.promote_types(img1.dtype, img2.dtype)
    # torch.compile supports only one of these two calls, torch.jit.script only the other.
    if torch.jit.is_scripting():
        return torch.result_type(img1, 1.0)
    return torch.get_default_dtype()


def wide(images: Tensor) -> Tensor:
    """Images in a dtype to compute in: half precision in float32, integers in float64."""
    if images.dtype == torch.float16 or images.dtype == torch.bfloat16:
        return images.float()
    return images if images.is_floating_point() or images.is_complex() else images.double()


def shape_of(images: Tensor) -> str:
    """A shape in an error."""
    if torch.jit.is_scripting():
        return str(images.shape)
    return str(tuple(images.shape))


def reduce(values: Tensor, reduction: str | None) -> Tensor:
    if reduction is None or reduction == "none":
        return values
    if reduction == "mean":
        return values.mean()
    if reduction == "sum":
        return values.sum()
    raise NotImplementedError(f"reduction must be 'mean', 'sum' or 'none', got '{reduction}'")


def check_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")


def check_real(name: str, image: Tensor) -> None:
    if image.is_complex():
        raise RefusedDtypeError(f"{name} must be real, got {image.dtype}")


def check_reduction(reduction: str) -> None:
    if reduction not in ("mean", "sum", "none"):
        raise UnsupportedOptionError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")


def check_broadcast(img1: Tensor, img2: Tensor) -> None:
    """Two batches (B, C, H, W), either of which may have a single image."""
    for name, image in (("img1", img1), ("img2", img2)):
        check_tensor(name, image)
        if image.ndim != 4:
            raise ValueError(f"{name} must have the shape (B, C, H, W), got {tuple(image.shape)}")
        check_real(name, image)
    if img1.shape[1:] != img2.shape[1:] or (img1.shape[0] != img2.shape[0] and 1 not in (len(img1), len(img2))):
        raise ValueError(
            f"img1 and img2 must have the same shape, but for a batch of one, got {tuple(img1.shape)} and "
            f"{tuple(img2.shape)}"
        )
