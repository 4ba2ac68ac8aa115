"""The voxeliser as torch operators: splat_ssim::voxelize and its backward, in float32 on the CPU.

voxelize_cuda.py registers their kernels on CUDA.
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


def lattice_numbers(affine: list[float]) -> list[float]:
    """The matrix (3x3) from index to world, its inverse, and the origin. Indices have the last array axis first."""
    matrix = torch.tensor(affine, dtype=torch.float64).reshape(4, 4)
    to_world = matrix[:3, :3].flip(1)
    return [*to_world.flatten().tolist(), *torch.linalg.inv(to_world).flatten().tolist(), *matrix[:3, 3].tolist()]


def _geometry(affine: list[float], window: list[int]) -> tuple[ctypes.Array[Any], ctypes.Array[Any], list[int]]:
    """Matrices and window in the kernels' axis order, and the shape that is rendered."""
    numbers = lattice_numbers(affine)
    constants = compiled.constants()
    # Kernels load and store whole vectors, so a crop narrower than this is rendered wider and then cut.
    shape = [*window[3:5], max(window[5], constants["voxel_min_width"])]
    crop = (ctypes.c_int64 * constants["voxel_window"])(*window[2::-1], *shape[::-1])
    return (ctypes.c_double * constants["voxel_geometry"])(*numbers), crop, shape


# Schemas are written out, since torch 2.4 cannot infer one from annotations that are strings.
_GAUSSIANS = "Tensor means, Tensor quats, Tensor scales, Tensor values"
_LATTICE = "float[] affine, SymInt[] window"


@torch.library.custom_op(
    "splat_ssim::voxelize", mutates_args=(), device_types="cpu", schema=f"({_GAUSSIANS}, {_LATTICE}) -> Tensor"
)
def voxelize(
    means: Tensor, quats: Tensor, scales: Tensor, values: Tensor, affine: list[float], window: list[int]
) -> Tensor:
    """V_c = sum of values_ic · g_i on a window of a lattice.

    Args:
        means: (N, 3) float32, world x, y, z.
        quats: (N, 4) float32, w, x, y, z, of any length above 0.
        scales: (N, 3) float32, standard deviations.
        values: (N, C) float32.
        affine: 16 numbers, row by row: array index to world.
        window: First index of the crop along each of the three array axes, then its three sizes.

    Returns:
        (C, size0, size1, size2) float32.
    """
    inputs = [t.detach().contiguous() for t in (means, quats, scales, values)]
    geometry, crop, shape = _geometry(affine, window)
    count, channels = values.shape
    volume = torch.empty((channels, *shape), dtype=torch.float32)
    if channels > 0:
        status = compiled.kernel("voxelize_forward", _FORWARD)(
            *[t.data_ptr() for t in inputs],
            count,
            channels,
            ctypes.addressof(geometry),
            ctypes.addressof(crop),
            volume.data_ptr(),
            torch.get_num_threads(),
        )
        compiled.check(status, "voxelize", [(count, channels), shape])
    return volume if shape[2] == window[5] else volume[..., : window[5]].contiguous()


@voxelize.register_fake
def _(means: Tensor, quats: Tensor, scales: Tensor, values: Tensor, affine: list[float], window: list[int]) -> Tensor:
    return means.new_empty((values.shape[1], *window[3:]))


@torch.library.custom_op(
    "splat_ssim::voxelize_backward",
    mutates_args=(),
    device_types="cpu",
    schema=f"(Tensor gradient, {_GAUSSIANS}, {_LATTICE}) -> (Tensor, Tensor, Tensor, Tensor)",
)
def voxelize_backward(
    gradient: Tensor,
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    values: Tensor,
    affine: list[float],
    window: list[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `voxelize` with respect to means, quats, scales and values, from dL/dV."""
    inputs = [t.detach().contiguous() for t in (means, quats, scales, values)]
    geometry, crop, shape = _geometry(affine, window)
    gradient = gradient.detach()
    if shape[2] != window[5]:
        gradient = torch.nn.functional.pad(gradient, (0, shape[2] - window[5]))
    gradient = gradient.contiguous()
    outputs = tuple(torch.empty(t.shape, dtype=t.dtype) for t in inputs)
    count, channels = values.shape
    if channels == 0:
        return tuple(torch.zeros_like(t) for t in outputs)  # type: ignore[return-value]
    status = compiled.kernel("voxelize_backward", _BACKWARD)(
        *[t.data_ptr() for t in inputs],
        count,
        channels,
        ctypes.addressof(geometry),
        ctypes.addressof(crop),
        gradient.data_ptr(),
        *[t.data_ptr() for t in outputs],
        torch.get_num_threads(),
    )
    compiled.check(status, "voxelize_backward", [(count, channels), shape])
    return outputs  # type: ignore[return-value]


@voxelize_backward.register_fake
def _(
    gradient: Tensor,
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    values: Tensor,
    affine: list[float],
    window: list[int],
) -> tuple[Tensor, ...]:
    return tuple(torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (means, quats, scales, values))


def _save(ctx: Any, inputs: Any, output: Any) -> None:
    *tensors, ctx.affine, ctx.window = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    return *voxelize_backward(gradient, *ctx.saved_tensors, ctx.affine, ctx.window), None, None


def _refuse(ctx: Any, *gradients: Any) -> None:
    raise NotImplementedError("voxelize is differentiable only once, got a request for a second derivative")


voxelize.register_autograd(_differentiate, setup_context=_save)
voxelize_backward.register_autograd(_refuse)
