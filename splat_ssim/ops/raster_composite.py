"""The renderer's compositing operators on `torch.library`, for the CPU and float32, and the sums for scoring Gaussians.

Each has a fake kernel and, where it makes sense, a gradient, so that eager mode, torch.compile and opcheck work.
Compositing saves `records` and `lists` for its backward pass; csrc/cpu/layout.h and raster_bins.h define their layout.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from . import compiled
from ._raster_calls import D, P, below_autograd, call, dense, differentiable, int_array, pointer

_RECORDS = (P,) * 9
_COMPOSITE = (P, D) + (P,) * 7
_COMPOSITE_BACKWARD = (P, D) + (P,) * 13
_ACCUMULATE = (P, D) + (P,) * 4

torch.library.define(
    "splat_ssim::raster_composite",
    "(Tensor means2d, Tensor conics, Tensor opacities, Tensor colors, Tensor radii, Tensor depths, "
    "Tensor? backgrounds, int width, int height, int tile_size, float max_alpha, bool absgrad) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
)
torch.library.define(
    "splat_ssim::raster_composite_backward",
    "(Tensor conics, Tensor opacities, Tensor records, Tensor lists, Tensor images, Tensor alphas, Tensor? v_images, "
    "Tensor? v_alphas, int tile_size, float max_alpha, bool absgrad) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
torch.library.define(
    "splat_ssim::raster_accumulate",
    "(Tensor opacities, Tensor records, Tensor lists, Tensor pixel_weights, int tile_size, float max_alpha) -> Tensor",
)


def max_channels() -> int:
    """Largest number of channels that one pass of compositing takes."""
    return compiled.constants()["max_channels"]


def _record_floats() -> int:
    return compiled.constants()["sizeof_record"] // 4


def _tile_count(width: int, height: int, tile_size: int) -> int:
    return -(-width // tile_size) * -(-height // tile_size)


def _composite_sizes(opacities: Tensor, images: Tensor, tile_size: int, lists: Tensor | None = None) -> tuple[int, ...]:
    """Cameras, Gaussians, width, height, tile size and channels; with `lists`, also the bound on pairs in its size."""
    cameras, height, width, channels = images.shape
    sizes = (*opacities.shape, width, height, tile_size, channels)
    if lists is None:
        return sizes
    # Solves the length of `lists`, list_size in csrc/cpu/layout.h, for the number of (Gaussian, tile) pairs.
    constants, tiles = compiled.constants(), cameras * _tile_count(width, height, tile_size)
    rest = constants["list_rest"] + constants["list_per_instance"] * opacities.numel()
    return (*sizes, (len(lists) - rest - constants["list_per_tile"] * tiles) // constants["list_per_pair"])


@torch.library.impl("splat_ssim::raster_composite", "CPU")
def _composite(
    means2d: Tensor,
    conics: Tensor,
    opacities: Tensor,
    colors: Tensor,
    radii: Tensor,
    depths: Tensor,
    backgrounds: Tensor | None,
    width: int,
    height: int,
    tile_size: int,
    max_alpha: float,
    absgrad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    cameras, n, channels = colors.shape
    inputs = [dense(t) for t in (means2d, conics, opacities, colors, radii)]
    depths, backgrounds = depths.contiguous(), dense(backgrounds)
    images = means2d.new_empty((cameras, height, width, channels))
    alphas = means2d.new_empty((cameras, height, width, 1))
    records = means2d.new_empty((cameras * n, _record_floats()))
    boxes = radii.new_empty((cameras * n, 2))
    totals = (ctypes.c_int64 * 2)()
    sizes = _composite_sizes(opacities, images, tile_size)
    threads = torch.get_num_threads()
    call(
        "raster_records",
        _RECORDS,
        int_array(*sizes, threads),
        *map(pointer, inputs),
        *map(pointer, (records, boxes)),
        totals,
    )
    lists = radii.new_empty((totals[1],))
    call(
        "raster_composite",
        _COMPOSITE,
        int_array(*sizes, totals[0], threads),
        max_alpha,
        *map(pointer, (records, lists, boxes, depths, backgrounds, images, alphas)),
    )
    return images, alphas, records, lists


@torch.library.register_fake("splat_ssim::raster_composite")
def _(
    means2d: Tensor,
    conics: Tensor,
    opacities: Tensor,
    colors: Tensor,
    radii: Tensor,
    depths: Tensor,
    backgrounds: Tensor | None,
    width: int,
    height: int,
    tile_size: int,
    max_alpha: float,
    absgrad: bool,
) -> tuple[Tensor, ...]:
    cameras, n, channels = colors.shape
    length = torch.library.get_ctx().new_dynamic_size()
    return (
        means2d.new_empty((cameras, height, width, channels)),
        means2d.new_empty((cameras, height, width, 1)),
        means2d.new_empty((cameras * n, _record_floats())),
        radii.new_empty((length,)),
    )


@torch.library.impl("splat_ssim::raster_composite_backward", "CPU")
def _composite_backward(
    conics: Tensor,
    opacities: Tensor,
    records: Tensor,
    lists: Tensor,
    images: Tensor,
    alphas: Tensor,
    v_images: Tensor | None,
    v_alphas: Tensor | None,
    tile_size: int,
    max_alpha: float,
    absgrad: bool,
) -> tuple[Tensor, ...]:
    inputs = [dense(t) for t in (records, lists, conics, opacities, images, alphas, v_images, v_alphas)]
    results = _composite_gradients_like(conics, opacities, images, absgrad)
    outputs = results if absgrad else (*results[:4], None)
    sizes = _composite_sizes(opacities, images, tile_size, lists)
    call(
        "raster_composite_backward",
        _COMPOSITE_BACKWARD,
        int_array(*sizes, torch.get_num_threads()),
        max_alpha,
        *map(pointer, (*inputs, *outputs)),
    )
    return results


def _composite_gradients_like(conics: Tensor, opacities: Tensor, images: Tensor, absgrad: bool) -> tuple[Tensor, ...]:
    """Uninitialised gradients of means2d, conics, colours and opacities, and the absolute one of means2d."""
    shape = opacities.shape
    return (
        conics.new_empty((*shape, 2)),
        conics.new_empty((*shape, 3)),
        conics.new_empty((*shape, images.shape[-1])),
        conics.new_empty(shape),
        conics.new_empty((*shape, 2) if absgrad else (0,)),
    )


@torch.library.register_fake("splat_ssim::raster_composite_backward")
def _(
    conics: Tensor,
    opacities: Tensor,
    records: Tensor,
    lists: Tensor,
    images: Tensor,
    alphas: Tensor,
    v_images: Tensor,
    v_alphas: Tensor,
    tile_size: int,
    max_alpha: float,
    absgrad: bool,
) -> tuple[Tensor, ...]:
    return _composite_gradients_like(conics, opacities, images, absgrad)


class _Composite(torch.autograd.Function):
    """The gradient of raster_composite."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        images, alphas, records, lists = below_autograd(torch.ops.splat_ssim.raster_composite.default, inputs)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(records, lists)
        ctx.save_for_backward(*inputs[:3], records, lists, images, alphas)
        ctx.options = inputs[9:]
        return images, alphas, records, lists

    @staticmethod
    def backward(ctx: Any, v_images: Tensor, v_alphas: Tensor, _records: Any, _lists: Any) -> tuple[Tensor | None, ...]:
        means2d, *saved = ctx.saved_tensors
        v_means2d, v_conics, v_colors, v_opacities, absolute = torch.ops.splat_ssim.raster_composite_backward.default(
            *saved, v_images, v_alphas, *ctx.options
        )
        if ctx.options[-1]:
            means2d.absgrad = absolute
        v_backgrounds = None
        if ctx.needs_input_grad[6] and v_images is not None:
            alphas = saved[-1]
            v_backgrounds = (v_images * (1 - alphas)).sum((1, 2))
        return v_means2d, v_conics, v_opacities, v_colors, None, None, v_backgrounds, *(None,) * 5


differentiable("splat_ssim::raster_composite", _Composite)


@torch.library.impl("splat_ssim::raster_accumulate", "CPU")
def _accumulate(
    opacities: Tensor, records: Tensor, lists: Tensor, pixel_weights: Tensor, tile_size: int, max_alpha: float
) -> Tensor:
    sums = opacities.new_empty((4, *opacities.shape))
    sizes = _composite_sizes(opacities, pixel_weights[..., None], tile_size, lists)
    call(
        "raster_accumulate",
        _ACCUMULATE,
        int_array(*sizes, torch.get_num_threads()),
        max_alpha,
        *map(pointer, (records, lists, pixel_weights.contiguous(), sums)),
    )
    return sums


@torch.library.register_fake("splat_ssim::raster_accumulate")
def _(
    opacities: Tensor, records: Tensor, lists: Tensor, pixel_weights: Tensor, tile_size: int, max_alpha: float
) -> Tensor:
    return opacities.new_empty((4, *opacities.shape))
