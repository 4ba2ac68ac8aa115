"""The operators of SSIM and MS-SSIM. Each section has one operator's checks, fake kernel, derivative and schema.

All schemas end with the same options, so that these are passed on together (`SSIMOptions`). ops/photometric.py has the
operator of the losses. ops/ssim_cpu.py and ops/ssim_cuda.py implement the operators, and ops/dispatch.py calls them.
The package calls the functions at the end. They run an operator if the device has a kernel for the images, else the
definition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _maps, reference
from .._maps import channels_first
from ..options import SSIMOptions, one_or_each
from . import dispatch
from .dispatch import call, call_backward, has_kernel
from .layout import map_shape, new_gradients, new_like
from .schemas import IMAGES, NEEDS, OPTIONS, check_images, check_shape, require


def _gradients_of(
    img1: Tensor, img2: Tensor, grads: tuple[Tensor, Tensor], needs: Sequence[bool]
) -> list[Tensor | None]:
    """The needed gradients in the images' own dtypes."""
    return [
        grad.to(image.dtype) if need else None for image, grad, need in zip((img1, img2), grads, needs, strict=True)
    ]


# --------------------------------------------------------------------------------------------------------------------
# ssim_map: S for every position of the window, in the layout of the images; "valid" gives the smaller map
# --------------------------------------------------------------------------------------------------------------------


def _check_map(img1: Tensor, img2: Tensor, *options: Any) -> None:
    check_images(img1, img2, SSIMOptions.of(*options))


def _fake_map(img1: Tensor, img2: Tensor, *arguments: Any) -> Tensor:
    options = SSIMOptions.of(*arguments)
    return new_like(img1, map_shape(img1, options), _maps.compute_dtype(img1, img2), options.channels_last)


def _check_map_backward(grad_map: Tensor, img1: Tensor, img2: Tensor, *arguments: Any) -> None:
    options = SSIMOptions.of(*arguments[:-2])
    check_images(img1, img2, options)
    check_shape("grad_map", channels_first(grad_map, options.channels_last), map_shape(img1, options))


def _fake_map_backward(grad_map: Tensor, img1: Tensor, img2: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    return new_gradients(img1, img2, SSIMOptions.of(*arguments[:-2]), *arguments[-2:])


def _keep_images(ctx: Any, inputs: Any, output: Any) -> None:
    img1, img2, *ctx.options = inputs
    ctx.save_for_backward(img1, img2)


def _recomputing(name: str) -> Callable[..., tuple[Any, ...]]:
    """The derivative of an operator (img1, img2, *options), which calls the operator `<name>_backward`."""

    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        img1, img2 = ctx.saved_tensors
        needs = ctx.needs_input_grad[:2]
        grads = call_backward(name + "_backward", upstream, img1, img2, *ctx.options, *needs)
        return *_gradients_of(img1, img2, grads, needs), *(None,) * len(ctx.options)

    return backward


dispatch.define("ssim_map", f"({IMAGES}, {OPTIONS}) -> Tensor", _check_map, _fake_map)
dispatch.define(
    "ssim_map_backward",
    f"(Tensor grad_map, {IMAGES}, {OPTIONS}, {NEEDS}) -> (Tensor, Tensor)",
    _check_map_backward,
    _fake_map_backward,
)
dispatch.register_autograd("ssim_map", _keep_images, _recomputing("ssim_map"))
dispatch.refuse_second_derivative("ssim_map_backward")


# --------------------------------------------------------------------------------------------------------------------
# ssim_channel_means: (B, C, 2), for each image and channel the means of S and of its contrast-structure factor
# --------------------------------------------------------------------------------------------------------------------


def _fake_channel_means(img1: Tensor, img2: Tensor, *options: Any) -> Tensor:
    planes = map_shape(img1, SSIMOptions.of(*options))[:2]
    return img1.new_empty((*planes, 2), dtype=_maps.compute_dtype(img1, img2))


def _check_channel_means_backward(grad_means: Tensor, img1: Tensor, img2: Tensor, *arguments: Any) -> None:
    options = SSIMOptions.of(*arguments[:-2])
    check_images(img1, img2, options)
    check_shape("grad_means", grad_means, (*map_shape(img1, options)[:2], 2))


def _fake_planar_gradients(upstream: Tensor, img1: Tensor, img2: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    *values, need1, need2 = arguments
    return new_gradients(img1, img2, SSIMOptions.of(*values), need1, need2, planar=True)


dispatch.define("ssim_channel_means", f"({IMAGES}, {OPTIONS}) -> Tensor", _check_map, _fake_channel_means)
dispatch.define(
    "ssim_channel_means_backward",
    f"(Tensor grad_means, {IMAGES}, {OPTIONS}, {NEEDS}) -> (Tensor, Tensor)",
    _check_channel_means_backward,
    _fake_planar_gradients,
)
dispatch.register_autograd("ssim_channel_means", _keep_images, _recomputing("ssim_channel_means"))
dispatch.refuse_second_derivative("ssim_channel_means_backward")


# --------------------------------------------------------------------------------------------------------------------
# ms_ssim: MS-SSIM, (B, C), and the terms whose product it is, (B, C, scales); only the first is differentiable
# --------------------------------------------------------------------------------------------------------------------


def _check_ms_ssim(img1: Tensor, img2: Tensor, weights: Sequence[float], *arguments: Any) -> None:
    options = SSIMOptions.of(*arguments)
    check_images(img1, img2, options)
    sides = tuple(channels_first(img1, options.channels_last).shape[2:])
    smallest = [(size - 1) * 2 ** (len(weights) - 1) + 1 for size in options.windows(len(sides))]
    require(len(weights) > 0, "weights must have at least one exponent", weights)
    enough = all(side >= least for side, least in zip(sides, smallest, strict=True))
    require(enough, f"{len(weights)} scales need sides of at least {one_or_each(smallest)}", sides)


def _fake_ms_ssim(img1: Tensor, img2: Tensor, weights: Sequence[float], *options: Any) -> tuple[Tensor, Tensor]:
    planes = map_shape(img1, SSIMOptions.of(*options))[:2]
    values = img1.new_empty(planes, dtype=_maps.compute_dtype(img1, img2))
    return values, img1.new_empty((*planes, len(weights)), dtype=torch.float64)


def _check_ms_ssim_backward(
    grad_values: Tensor, img1: Tensor, img2: Tensor, terms: Tensor, weights: Sequence[float], *arguments: Any
) -> None:
    options = SSIMOptions.of(*arguments[:-2])
    _check_ms_ssim(img1, img2, weights, *options)
    planes = map_shape(img1, options)[:2]
    check_shape("grad_values", grad_values, planes)
    check_shape("terms", terms, (*planes, len(weights)))


def _fake_ms_ssim_backward(
    grad_values: Tensor, img1: Tensor, img2: Tensor, terms: Tensor, weights: Sequence[float], *arguments: Any
) -> tuple[Tensor, Tensor]:
    return _fake_planar_gradients(grad_values, img1, img2, *arguments)


def _keep_terms(ctx: Any, inputs: Any, output: Any) -> None:
    img1, img2, ctx.weights, *ctx.options = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(img1, img2, output[1])


def _ms_ssim_backward(ctx: Any, upstream: Tensor, _unused: Any) -> tuple[Any, ...]:
    img1, img2, terms = ctx.saved_tensors
    needs = ctx.needs_input_grad[:2]
    grads = call_backward("ms_ssim_backward", upstream, img1, img2, terms, ctx.weights, *ctx.options, *needs)
    return *_gradients_of(img1, img2, grads, needs), *(None,) * (len(ctx.options) + 1)


dispatch.define("ms_ssim", f"({IMAGES}, float[] weights, {OPTIONS}) -> (Tensor, Tensor)", _check_ms_ssim, _fake_ms_ssim)
dispatch.define(
    "ms_ssim_backward",
    f"(Tensor grad_values, {IMAGES}, Tensor terms, float[] weights, {OPTIONS}, {NEEDS}) -> (Tensor, Tensor)",
    _check_ms_ssim_backward,
    _fake_ms_ssim_backward,
)
dispatch.register_autograd("ms_ssim", _keep_terms, _ms_ssim_backward)
dispatch.refuse_second_derivative("ms_ssim_backward")


# --------------------------------------------------------------------------------------------------------------------
# Functions that the package calls
# --------------------------------------------------------------------------------------------------------------------


def ssim_map(img1: Tensor, img2: Tensor, options: SSIMOptions) -> Tensor:
    """S for every position of the window, in the layout of the images: float32, or float64 if an image is float64."""
    if has_kernel(img1, img2, options):
        similarities: Tensor = call("ssim_map", img1, img2, *options.arguments())
        return similarities
    return reference.ssim_map(img1, img2, **options.keywords())


def ssim_channel_means(img1: Tensor, img2: Tensor, options: SSIMOptions) -> Tensor:
    """(B, C, 2): for each image and channel the means of S and of its contrast-structure factor."""
    if has_kernel(img1, img2, options):
        means: Tensor = call("ssim_channel_means", img1, img2, *options.arguments())
        return means
    return reference.ssim_channel_means(img1, img2, **options.keywords())


def ms_ssim(img1: Tensor, img2: Tensor, options: SSIMOptions, weights: Sequence[float]) -> Tensor:
    """(B, C): MS-SSIM of each image and channel, with one exponent for each scale; `options.padding` is "valid"."""
    if has_kernel(img1, img2, options):
        values: Tensor = call("ms_ssim", img1, img2, list(weights), *options.arguments())[0]
        return values
    return reference.ms_ssim(img1, img2, weights=weights, **options.keywords())
