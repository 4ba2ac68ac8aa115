"""Backgrounds of RGBA targets: their checks, and the tensor that the operators take."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from splat_ssim import _maps
from splat_ssim._checks import check_number, spatial_shape
from splat_ssim.ops import dispatch

#: A number for all channels, one for each of the three, or a tensor (3,) or (B, 3).
Background = float | Sequence[float] | Tensor


def as_tensor(background: Background, pred: Tensor) -> Tensor:
    """Returns the background as a contiguous (1 or B, 3) tensor in `pred`'s dtype of computation and on its device.

    Raises:
        TypeError: The background has the wrong type.
        ValueError: The background has a wrong shape or device, or requires a gradient.
    """
    device, dtype = pred.device, _maps.compute_dtype(pred)
    if not isinstance(background, Tensor):
        if isinstance(background, Sequence) and not isinstance(background, str):
            values = list(background)
        else:
            values = [background] * 3
        if len(values) != 3:
            raise ValueError(f"background must be one number or three, got {len(values)}")
        numbers = tuple(check_number("background", value, low=-torch.inf) for value in values)
        if torch.compiler.is_compiling() or dispatch.is_watched():
            return torch.tensor([numbers], dtype=dtype, device=device)
        return _maps.constant(numbers, dtype, device)
    batch = pred.shape[0] if pred.ndim else 1
    if tuple(background.shape) not in ((3,), (1, 3), (batch, 3)) or not background.is_floating_point():
        got = f"{tuple(background.shape)} of {str(background.dtype).removeprefix('torch.')}"
        raise ValueError(f"background must be floating point of the shape (3,) or ({batch}, 3), got {got}")
    if background.requires_grad:
        raise ValueError("background must not require a gradient: it is not differentiated, got requires_grad=True")
    if background.device != device:
        raise ValueError(f"background must be on the device of the images, {device}, got {background.device}")
    return background.detach().to(dtype).reshape(-1, 3).contiguous()


def check_rgba(pred: Tensor, target: Tensor, channels_last: bool) -> None:
    """The target is RGBA in bytes, and the prediction its colours."""
    if not isinstance(target, Tensor) or not isinstance(pred, Tensor):
        raise TypeError(f"pred and target must be tensors, got {type(pred).__name__} and {type(target).__name__}")
    channel = -1 if channels_last else 1
    layout = "(B, H, W, 4)" if channels_last else "(B, 4, H, W)"
    if target.ndim != 4 or target.shape[channel] != 4 or target.dtype != torch.uint8:
        got = f"{tuple(target.shape)} of {str(target.dtype).removeprefix('torch.')}"
        raise ValueError(f"target must be uint8 of the shape {layout} where a background is given, got {got}")
    sides = (target.shape[0], *spatial_shape(target, channels_last))
    same = pred.ndim == 4 and pred.shape[channel] == 3
    if not same or (pred.shape[0], *spatial_shape(pred, channels_last)) != sides:
        raise ValueError(
            f"pred must have the size of target and 3 channels, got {tuple(pred.shape)} and {tuple(target.shape)}"
        )


def alpha_of(target: Tensor, channels_last: bool) -> Tensor:
    """The alpha of an RGBA target as a mask, in [0, 1]."""
    channel = target.ndim - 1 if channels_last else 1
    return target.narrow(channel, 3, 1).float() / 255
