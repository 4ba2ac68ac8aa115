"""The X-ray projector as torch operators: splat_ssim::xray and its backward, in float32 on the CPU.

xray_cuda.py registers their kernels on CUDA.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from . import compiled

_POINTERS = (ctypes.c_void_p,)
_FORWARD = (*_POINTERS * 4, ctypes.c_int64, ctypes.c_int64, *_POINTERS * 3, ctypes.c_int)
_BACKWARD = (*_POINTERS * 4, ctypes.c_int64, ctypes.c_int64, *_POINTERS * 7, ctypes.c_int)


def checked_frames(frames: Tensor, detector: list[int]) -> Tensor:
    """Checks the frames and returns them contiguous. They are on the CPU, whatever the device of the Gaussians is."""
    if tuple(frames.shape[1:]) != (4, 3) or frames.dtype != torch.float64 or len(detector) != 2:
        raise ValueError(f"frames must be (V, 4, 3) float64, got {tuple(frames.shape)} {frames.dtype}")
    if frames.device.type != "cpu":
        raise ValueError(f"frames must be on the CPU, got {frames.device}")
    return frames.detach().contiguous()


def checked_gaussians(means: Tensor, quats: Tensor, scales: Tensor, values: Tensor) -> list[Tensor]:
    """Checks the Gaussians and returns them contiguous. Kernels would read past the end of tensors of other shapes."""
    count = len(means)
    for name, tensor, shape in (
        ("means", means, (count, 3)),
        ("quats", quats, (count, 4)),
        ("scales", scales, (count, 3)),
        ("values", values, (count, *values.shape[1:2])),
    ):
        if tuple(tensor.shape) != shape or tensor.ndim != 2 or tensor.dtype != torch.float32:
            raise ValueError(f"{name} must be {shape} float32, got {tuple(tensor.shape)} {tensor.dtype}")
        if tensor.device != means.device:
            raise ValueError(f"{name} must be on {means.device}, where means is, got {tensor.device}")
    return [t.detach().contiguous() for t in (means, quats, scales, values)]


def checked_gradient(gradient: Tensor, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Checks dL/dP and returns it detached."""
    if tuple(gradient.shape) != shape or gradient.dtype != torch.float32:
        raise ValueError(f"gradient must be {shape} float32, got {tuple(gradient.shape)} {gradient.dtype}")
    if gradient.device != device:
        raise ValueError(f"gradient must be on {device}, where means is, got {gradient.device}")
    return gradient.detach()


def _numbers(views: int, detector: list[int], cone: bool) -> tuple[ctypes.Array[ctypes.c_int64], int]:
    """The sizes as the kernels take them, and the number of floats from one detector row to the next."""
    constants = compiled.constants()
    stride = detector[1] + constants["xray_slack"]
    return (ctypes.c_int64 * constants["xray_numbers"])(views, *detector, stride, cone), stride


# Written out, for the same reason as in voxelize.py.
_SCHEMA = "Tensor means, Tensor quats, Tensor scales, Tensor values, Tensor frames, SymInt[] detector, bool cone"


@torch.library.custom_op("splat_ssim::xray", mutates_args=(), device_types="cpu", schema=f"({_SCHEMA}) -> Tensor")
def xray(
    means: Tensor, quats: Tensor, scales: Tensor, values: Tensor, frames: Tensor, detector: list[int], cone: bool
) -> Tensor:
    """P_c(ray) = sum over i of values_ic · ∫ exp(-q_i/2) dl, over the part of each pixel's ray where q_i ≤ 9.

    Args:
        means: (N, 3) float32, world x, y, z.
        quats: (N, 4) float32, w, x, y, z, of any length above 0.
        scales: (N, 3) float32, standard deviations.
        values: (N, C) float32.
        frames: (V, 4, 3) float64, see `XrayGeometry.frames`. They must be on the CPU on every device.
        detector: Number of rows and of columns.
        cone: Whether all rays of a view start at one point.

    Returns:
        (V, C, rows, columns) float32, on the Gaussians' device.

    Raises:
        ValueError: A tensor has another shape or dtype, or is on the wrong device.
    """
    inputs, frames = checked_gaussians(means, quats, scales, values), checked_frames(frames, detector)
    numbers, stride = _numbers(len(frames), detector, cone)
    count, channels = values.shape
    pictures = torch.empty((len(frames), channels, detector[0], stride), dtype=torch.float32)
    if channels > 0 and len(frames) > 0:
        status = compiled.kernel("xray_forward", _FORWARD)(
            *[t.data_ptr() for t in inputs],
            count,
            channels,
            frames.data_ptr(),
            ctypes.addressof(numbers),
            pictures.data_ptr(),
            torch.get_num_threads(),
        )
        compiled.check(status, "xray", [(count, channels), tuple(pictures.shape)])
    return pictures[..., : detector[1]].contiguous()


@xray.register_fake
def _(
    means: Tensor, quats: Tensor, scales: Tensor, values: Tensor, frames: Tensor, detector: list[int], cone: bool
) -> Tensor:
    return means.new_empty((frames.shape[0], values.shape[1], *detector))


@torch.library.custom_op(
    "splat_ssim::xray_backward",
    mutates_args=(),
    device_types="cpu",
    schema=f"(Tensor gradient, {_SCHEMA}) -> (Tensor, Tensor, Tensor, Tensor)",
)
def xray_backward(
    gradient: Tensor,
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    values: Tensor,
    frames: Tensor,
    detector: list[int],
    cone: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `xray` with respect to means, quats, scales and values, from dL/dP."""
    inputs, frames = checked_gaussians(means, quats, scales, values), checked_frames(frames, detector)
    numbers, stride = _numbers(len(frames), detector, cone)
    count, channels = values.shape
    shape = (len(frames), channels, *detector)
    gradient = checked_gradient(gradient, shape, means.device)
    if channels == 0 or len(frames) == 0:
        return tuple(torch.zeros_like(t) for t in inputs)  # type: ignore[return-value]
    gradient = torch.nn.functional.pad(gradient, (0, stride - detector[1]))
    outputs = tuple(torch.empty_like(t) for t in inputs)
    status = compiled.kernel("xray_backward", _BACKWARD)(
        *[t.data_ptr() for t in inputs],
        count,
        channels,
        frames.data_ptr(),
        ctypes.addressof(numbers),
        gradient.contiguous().data_ptr(),
        *[t.data_ptr() for t in outputs],
        torch.get_num_threads(),
    )
    compiled.check(status, "xray_backward", [(count, channels), shape])
    return outputs  # type: ignore[return-value]


@xray_backward.register_fake
def _(
    gradient: Tensor,
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    values: Tensor,
    frames: Tensor,
    detector: list[int],
    cone: bool,
) -> tuple[Tensor, ...]:
    return tuple(torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (means, quats, scales, values))


def _save(ctx: Any, inputs: Any, output: Any) -> None:
    *tensors, ctx.detector, ctx.cone = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    return *xray_backward(gradient, *ctx.saved_tensors, ctx.detector, ctx.cone), None, None, None


def _refuse(ctx: Any, *gradients: Any) -> None:
    raise NotImplementedError("xray is differentiable only once, got a request for a second derivative")


xray.register_autograd(_differentiate, setup_context=_save)
xray_backward.register_autograd(_refuse)
