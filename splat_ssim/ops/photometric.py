"""The operator of the losses: one pass over the images computes L1, 1 - S and the gradient of the loss.

With a background, the second image is RGBA in bytes. The kernels composite its colours over the background as they
read them.

loss = offset + l1_weight · l1 + dssim_weight · dssim, with l1 and dssim the means of |x - y| and of 1 - S: over the
batch, or (B,) with `per_image`. The gradients are empty where they are not needed. Only the loss is differentiable: its
derivative multiplies the gradients that the forward pass computed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from .. import _maps, reference
from .._maps import channels_first
from ..options import SSIMOptions
from . import dispatch, prepared
from .dispatch import call, has_kernel
from .layout import new_gradients
from .schemas import IMAGES, NEEDS, OPTIONS, check_images, check_shape, require


def _check_photometric(
    img1: Tensor,
    img2: Tensor,
    weight: Tensor | None,
    background: Tensor | None,
    l1_weight: float,
    dssim_weight: float,
    offset: float,
    per_image: bool,
    *arguments: Any,
) -> None:
    options = SSIMOptions.of(*arguments[:-2])
    if background is None:
        check_images(img1, img2, options)
    else:
        require(img2.dtype == torch.uint8, "img2 must be of bytes where there is a background", img2.dtype)
        require(img2.ndim == 4, "img2 must have 4 axes where there is a background", tuple(img2.shape))
        rgba = channels_first(img2, options.channels_last)
        require(rgba.shape[1] == 4, "img2 must have 4 channels where there is a background", tuple(img2.shape))
        require(not arguments[-1], "need2 must not be set where there is a background", arguments[-1])
        check_images(img1, rgba[:, :3].movedim(1, -1) if options.channels_last else rgba[:, :3], options)
        check_shape("background", background, (img1.shape[0] if background.shape[:1] != (1,) else 1, 3))
        contiguous = background.dtype == torch.float32 and background.is_contiguous()
        require(contiguous, "background must be contiguous float32", (background.dtype, background.stride()))
        same = background.device == img1.device
        require(same, "background must be on the device of the images", (background.device, img1.device))
    if weight is not None:
        batch, channels, *sides = channels_first(img1, options.channels_last).shape
        got = channels_first(weight, options.channels_last)
        check_shape("weight", got, (batch, 1 if got.ndim == img1.ndim and got.shape[1] == 1 else channels, *sides))


def _fake_photometric(
    img1: Tensor,
    img2: Tensor,
    weight: Tensor | None,
    background: Tensor | None,
    l1_weight: float,
    dssim_weight: float,
    offset: float,
    per_image: bool,
    *arguments: Any,
) -> tuple[Tensor, ...]:
    shape = (img1.shape[0],) if per_image else ()
    means = [img1.new_empty(shape, dtype=_maps.compute_dtype(img1, img2)) for _ in range(3)]
    return (*means, *new_gradients(img1, img2, SSIMOptions.of(*arguments[:-2]), *arguments[-2:]))


def _keep_gradients(ctx: Any, inputs: Any, output: Any) -> None:
    _loss, l1, dssim, *grads = output
    ctx.mark_non_differentiable(l1, dssim, *grads)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:4])
    ctx.options = inputs[4:]
    ctx.grads = grads


def _photometric_backward(ctx: Any, upstream: Tensor | None, *unused: Any) -> tuple[Any, ...]:
    return *_gradients(ctx, upstream), *(None,) * (len(ctx.options) + 2)


def _gradients(ctx: Any, upstream: Tensor | None) -> list[Tensor | None]:
    """The gradients of both images, None where not needed, from what `_keep_gradients` or `_Prepared` saved."""
    found: list[Tensor | None] = [None, None]
    if upstream is not None:
        needs, saved = ctx.needs_input_grad, ctx.saved_tensors
        grads = ctx.grads
        if grads is None or _lacks(grads[0], needs[0]) or _lacks(grads[1], needs[1]):
            # The gradients are missing in a second backward through a retained graph, because the first one gave them
            # away, and in a traced call whose example needed none.
            with torch.no_grad():
                *_, grad1, grad2 = torch.ops.splat_ssim.photometric(*saved, *ctx.options[:-2], *needs[:2])
            grads = [grad1, grad2]
        # In place where possible, which saves the memory of another image.
        scale = _scale
        if dispatch.may_change_in_place(grads[0], upstream):
            ctx.grads, scale = None, _scale_in_place
        for i in (0, 1):
            if needs[i]:
                found[i] = scale(grads[i], upstream, saved[i]).to(saved[i].dtype)
    return found


class _Prepared(torch.autograd.Function):
    """The operator through a prepared loss, in an eager call that is not watched (`dispatch.is_watched`)."""

    @staticmethod
    def forward(ctx: Any, img1: Tensor, img2: Tensor, background: Tensor | None, loss: prepared.Prepared) -> Any:
        value, l1, dssim, *ctx.grads = loss.run(img1, img2, background)
        ctx.loss = loss
        ctx.save_for_backward(img1, img2, None, background)
        ctx.set_materialize_grads(False)
        if not loss.terms:
            return value
        ctx.mark_non_differentiable(l1, dssim)
        return value, l1, dssim

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, *unused: Any) -> tuple[Any, ...]:
        if upstream is not None and ctx.grads is not None and dispatch.may_change_in_place(upstream):
            grads, ctx.grads = ctx.grads, None
            needed = zip(grads, ctx.loss.dtypes, ctx.needs_input_grad, strict=False)
            found = [_scale_in_place(grad, upstream).to(dtype) if need else None for grad, dtype, need in needed]
            return *found, None, None
        ctx.options = ctx.loss.arguments
        return *_gradients(ctx, upstream), None, None


_apply_prepared: Callable[..., Any] = _Prepared.apply


def call_prepared(
    loss: prepared.Prepared, img1: Tensor, img2: Tensor, background: Tensor | None = None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Returns (loss, l1, dssim). The last two are None if they were not asked for."""
    if not loss.needs:
        return loss.run(img1, img2, background)[:3]
    found = _apply_prepared(img1, img2, background, loss)
    return found if loss.terms else (found, None, None)


def _lacks(gradient: Tensor, is_needed: bool) -> bool:
    return is_needed and gradient.numel() == 0


def _scale_in_place(gradient: Tensor, upstream: Tensor, image: Tensor | None = None) -> Tensor:
    # The upstream gradient is usually 1. Reading it on a GPU would synchronise, so the kernel checks it there.
    if upstream.is_cpu and upstream.ndim == 0 and upstream.item() == 1.0:
        return gradient
    device = dispatch.DEVICES.get(gradient.device.type)
    scale = None if device is None else device.scale
    if scale is not None and upstream.device == gradient.device and scale(gradient, upstream):
        return gradient
    return gradient.mul_(_per_image(upstream, gradient))


def _scale(gradient: Tensor, upstream: Tensor, image: Tensor) -> Tensor:
    if dispatch.is_batched(upstream):
        return _scaled_gradient(gradient, upstream, image)  # torch's own operators can be batched.
    scaled: Tensor = torch.ops.splat_ssim.scaled_gradient(gradient, upstream, image)
    return scaled


def _per_image(upstream: Tensor, gradient: Tensor) -> Tensor:
    """The upstream gradient, () or (B,), shaped to multiply a gradient."""
    return upstream.view(-1, *(1,) * (gradient.ndim - 1)) if upstream.ndim else upstream


def _scaled_gradient(gradient: Tensor, upstream: Tensor, image: Tensor) -> Tensor:
    return gradient * _per_image(upstream, gradient)


dispatch.define(
    "photometric",
    f"({IMAGES}, Tensor? weight, Tensor? background, float l1_weight, float dssim_weight, float offset, "
    f"bool per_image, {OPTIONS}, {NEEDS}) -> (Tensor loss, Tensor l1, Tensor dssim, Tensor grad1, Tensor grad2)",
    _check_photometric,
    _fake_photometric,
)
# A gradient of `photometric` times the upstream one, () or (B,). The image is an argument only so that autograd sees
# that the result depends on it, and a second derivative is refused.
dispatch.define_for_all_devices(
    "scaled_gradient", "(Tensor gradient, Tensor upstream, Tensor image) -> Tensor", _scaled_gradient
)
dispatch.register_autograd("photometric", _keep_gradients, _photometric_backward)
dispatch.refuse_second_derivative("scaled_gradient")


def photometric(
    img1: Tensor,
    img2: Tensor,
    options: SSIMOptions,
    *,
    l1_weight: float,
    dssim_weight: float,
    weight: Tensor | None = None,
    per_image: bool = False,
    offset: float = 0.0,
    background: Tensor | None = None,
    terms: bool = True,
    key: Hashable | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Returns (loss, l1, dssim): `loss = offset + l1_weight * l1 + dssim_weight * dssim`, of means |x - y| and 1 - S.

    Args:
        img1: Images in the layout that `options` names: float32, float64, float16, bfloat16 or uint8.
        img2: Same shape as `img1`. The dtype may differ.
        options: Window, data range, padding and layout.
        l1_weight: Weight of the mean of |img1 - img2|.
        dssim_weight: Weight of the mean of 1 - S.
        weight: Weights of the positions, (B, 1 or C, spatial…) in the images' layout; the means are weighted by them,
            and are 0 if all weights are 0. With padding "valid", the weights are cropped for 1 - S.
        per_image: Whether to return a mean for each image, (B,), instead of one for the batch.
        offset: Number that is added to the loss. With 1 and a `dssim_weight` of -1, the loss is SSIM.
        background: (1 or B, 3) colours in the dtype of the computation. `img2` is then uint8 RGBA and is composited
            over it.
        terms: Whether l1 and dssim are needed. If not, they may be None.
        key: Key of ops/prepared.py under which the prepared loss is kept for later calls.

    Returns:
        The loss, differentiable in both images, and its two terms, which carry no gradient.
    """
    recording = torch.is_grad_enabled()
    needs = (recording and img1.requires_grad, recording and img2.requires_grad)
    if background is not None and not _composites(img1, img2, options, needs[0]):
        img2 = _maps.composited(img2, background, _maps.compute_dtype(img1), options.data_range, options.channels_last)
        background = key = None  # The key belongs to the call with RGBA.
    if has_kernel(img1, img2, options):
        scalars = (l1_weight, dssim_weight, offset, per_image)
        if key is not None and weight is None:
            loss = prepared.prepare(img1, img2, background, (*scalars, *options, *needs), terms)
            if loss is not None:
                prepared.store(key, loss)
                return call_prepared(loss, img1, img2, background)
        loss, l1, dssim, _, _ = call("photometric", img1, img2, weight, background, *scalars, *options, *needs)
        return loss, l1, dssim
    return photometric_definition(img1, img2, options, l1_weight, dssim_weight, weight, per_image, offset)


def _composites(img1: Tensor, img2: Tensor, options: SSIMOptions, need1: bool) -> bool:
    """Whether the kernel of the device composites RGBA."""
    if not has_kernel(img1, img2, options):
        return False
    composites = dispatch.DEVICES[img1.device.type].composites
    return composites is not None and composites(img1, options, need1)


def photometric_definition(
    img1: Tensor,
    img2: Tensor,
    options: SSIMOptions,
    l1_weight: float,
    dssim_weight: float,
    weight: Tensor | None = None,
    per_image: bool = False,
    offset: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """`photometric` in plain torch, even where there are kernels."""
    reduction, channels_last = "image" if per_image else "mean", options.channels_last
    img1, img2 = _maps.in_one_dtype(img1, img2, options.data_range)
    dssim_map = reference.dssim_map(img1, img2, **options.keywords())
    dssim = _maps.weighted_mean(dssim_map, weight, reduction, channels_last)
    l1 = _maps.weighted_mean(_maps.absolute_difference(img1, img2), weight, reduction, channels_last)
    loss = _maps.weighted_sum((l1, l1_weight), (dssim, dssim_weight), offset=offset)
    return loss, l1.detach(), dssim.detach()
