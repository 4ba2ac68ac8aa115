"""The SSIM operators: schemas, checks, fake kernels, autograd, and the choice between kernels and the definition.

ops/ssim_cpu.py and ops/ssim_cuda.py implement them for a device. The schemas end in the same
options (`Options`), so that an operator passes them on in one piece. A tensor is in "interleaved"
layout when its channels are the innermost axis in memory (channels-last data, or torch's
channels_last memory format), else "planar": kernels read both in place, and outputs are allocated in
the layout of the first image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import reference

# Looked up once: a call of a small image takes as long as some of these attributes.
_dispatch_modes = torch._C._len_torch_dispatch_stack
_profiler_enabled = torch.autograd._profiler_enabled
_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor
_is_legacy_batched = torch._C._functorch.is_legacy_batchedtensor


class Options(NamedTuple):
    """What every SSIM operator takes after its tensors; the public functions document and check the values."""

    window_size: int = 11
    sigma: float = 1.5
    data_range: float = 1.0
    k1: float = 0.01
    k2: float = 0.03
    padding: str = "same"
    spatial_dims: int = 2
    channels_last: bool = False
    #: Added to the denominator of S in maps and losses, as kornia does; the package's own functions leave it at 0.
    eps: float = 0.0


_OPTIONS = (
    "int window_size, float sigma, float data_range, float k1, float k2, str padding, int spatial_dims, "
    "bool channels_last, float eps"
)

_SCHEMAS = {
    # S for every position of the window, in the layout of the images; "valid" gives the smaller map.
    "ssim_map": f"(Tensor img1, Tensor img2, {_OPTIONS}) -> Tensor",
    "ssim_map_backward": (
        f"(Tensor grad_map, Tensor img1, Tensor img2, {_OPTIONS}, bool need1, bool need2) -> (Tensor, Tensor)"
    ),
    # loss = offset + l1_weight * l1 + dssim_weight * dssim, the means of |x - y| and of 1 - S: over the batch, or (B,)
    # with per_image. Only the loss is differentiable; grad1 and grad2 are its gradients (empty where not needed).
    "photometric": (
        "(Tensor img1, Tensor img2, Tensor? weight, float l1_weight, float dssim_weight, float offset, bool per_image, "
        f"{_OPTIONS}, bool need1, bool need2) -> (Tensor loss, Tensor l1, Tensor dssim, Tensor grad1, Tensor grad2)"
    ),
    # (B, C, 2): for each image and channel the means of S and of its contrast-structure factor.
    "ssim_channel_means": f"(Tensor img1, Tensor img2, {_OPTIONS}) -> Tensor",
    "ssim_channel_means_backward": (
        f"(Tensor grad_means, Tensor img1, Tensor img2, {_OPTIONS}, bool need1, bool need2) -> (Tensor, Tensor)"
    ),
    # (B, C): MS-SSIM, and (B, C, scales): the terms it is the product of. Only the first is differentiable.
    "ms_ssim": f"(Tensor img1, Tensor img2, float[] weights, {_OPTIONS}) -> (Tensor, Tensor)",
    "ms_ssim_backward": (
        f"(Tensor grad_values, Tensor img1, Tensor img2, Tensor terms, float[] weights, {_OPTIONS}, "
        "bool need1, bool need2) -> (Tensor, Tensor)"
    ),
    # A gradient of `photometric` times the upstream one, () or (B,). The image only says what it is the gradient by.
    "scaled_gradient": "(Tensor gradient, Tensor upstream, Tensor image) -> Tensor",
}

_definitions = torch.library.Library("splat_ssim", "FRAGMENT")
for _name, _schema in _SCHEMAS.items():
    _definitions.define(_name + _schema)

#: Device type -> operator -> its implementation.
IMPLEMENTATIONS: dict[str, dict[str, Callable[..., Any]]] = {}
#: Device type -> whether its kernels take (img1, img2, options).
KERNELS: dict[str, Callable[[Tensor, Tensor, Options], bool]] = {}
#: Device type -> function (gradient, upstream) that multiplies in place while the host does not read `upstream`; it
#: returns False where it does not take them.
SCALES: dict[str, Callable[[Tensor, Tensor], bool]] = {}


# --------------------------------------------------------------------------------------------------------------------
# Shapes and layouts
# --------------------------------------------------------------------------------------------------------------------


def channels_first(images: Tensor, channels_last: bool) -> Tensor:
    """A view (B, C, spatial…) of images in either logical layout."""
    return images.movedim(-1, 1) if channels_last else images


def is_interleaved(images: Tensor) -> bool:
    """Whether a (B, C, spatial…) tensor has the channels innermost in memory."""
    return images.shape[1] > 1 and images.stride(1) == 1 and images.stride(-1) == images.shape[1]


def result_dtype(*images: Tensor) -> torch.dtype:
    """float64 where an image is float64, else float32."""
    return torch.float64 if any(image.dtype == torch.float64 for image in images) else torch.float32


def new_like(
    images: Tensor, shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool, planar: bool = False
) -> Tensor:
    """An uninitialised tensor whose (B, C, spatial…) shape is `shape`, in the logical and memory layout of `images`."""
    if not planar and is_interleaved(channels_first(images, channels_last)):
        made = images.new_empty((shape[0], *shape[2:], shape[1]), dtype=dtype)
        return made if channels_last else made.movedim(-1, 1)
    made = images.new_empty(shape, dtype=dtype)
    return made.movedim(1, -1) if channels_last else made


def map_shape(images: Tensor, options: Options) -> tuple[int, ...]:
    """The shape (B, C, spatial…) of the map of S."""
    first = channels_first(images, options.channels_last)
    lost = options.window_size - 1 if options.padding == "valid" else 0
    return (*first.shape[:2], *(side - lost for side in first.shape[2:]))


def new_gradients(
    img1: Tensor, img2: Tensor, options: Options, need1: bool, need2: bool, planar: bool = False
) -> tuple[Tensor, Tensor]:
    """Both gradients, float32 or wider, in the layout of the first image, so that one kernel writes both."""
    dtype, channels_last = result_dtype(img1, img2), options.channels_last
    shape = tuple(channels_first(img1, channels_last).shape)
    grads = [
        new_like(img1, shape, dtype, channels_last, planar) if needed else img1.new_empty(0, dtype=dtype)
        for needed in (need1, need2)
    ]
    return grads[0], grads[1]


# --------------------------------------------------------------------------------------------------------------------
# Checks, for calls that do not come from the public functions, and fake kernels
# --------------------------------------------------------------------------------------------------------------------


def _require(condition: bool, required: str, got: object) -> None:
    if not condition:
        raise ValueError(f"{required}, got {got}")


def _check_images(img1: Tensor, img2: Tensor, options: Options) -> None:
    """Everything a kernel relies on; what the public functions check before they call."""
    size, dims, padding = options.window_size, options.spatial_dims, options.padding
    _require(img1.shape == img2.shape, "img1 and img2 must have the same shape", (tuple(img1.shape), tuple(img2.shape)))
    _require(dims in (2, 3), "spatial_dims must be 2 or 3", dims)
    _require(img1.ndim == dims + 2, f"img1 must have {dims + 2} axes", tuple(img1.shape))
    _require(img1.device == img2.device, "img1 and img2 must be on the same device", (img1.device, img2.device))
    _require(3 <= size <= 33 and size % 2 == 1, "window_size must be odd, from 3 to 33", size)
    _require(padding in reference.PADDINGS, f"padding must be one of {reference.PADDINGS}", padding)
    if padding != "same":
        smallest = size if padding == "valid" else size // 2 + 1
        sides = tuple(channels_first(img1, options.channels_last).shape[2:])
        _require(min(sides) >= smallest, f"padding {padding!r} needs sides of at least {smallest}", sides)


def _check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    _require(tuple(tensor.shape) == shape, f"{name} must have the shape {shape}", tuple(tensor.shape))


def _check_ssim_map(img1, img2, *options):
    _check_images(img1, img2, Options(*options))


def _check_ssim_map_backward(grad_map, img1, img2, *arguments):
    options = Options(*arguments[:-2])
    _check_images(img1, img2, options)
    _check_shape("grad_map", channels_first(grad_map, options.channels_last), map_shape(img1, options))


def _check_photometric(img1, img2, weight, l1_weight, dssim_weight, offset, per_image, *arguments):
    options = Options(*arguments[:-2])
    _check_images(img1, img2, options)
    if weight is not None:
        batch, channels, *sides = channels_first(img1, options.channels_last).shape
        got = channels_first(weight, options.channels_last)
        _check_shape("weight", got, (batch, 1 if got.ndim == img1.ndim and got.shape[1] == 1 else channels, *sides))


def _check_channel_means_backward(grad_means, img1, img2, *arguments):
    options = Options(*arguments[:-2])
    _check_images(img1, img2, options)
    _check_shape("grad_means", grad_means, (*map_shape(img1, options)[:2], 2))


def _check_ms_ssim(img1, img2, weights, *arguments):
    options = Options(*arguments)
    _check_images(img1, img2, options)
    smallest = (options.window_size - 1) * 2 ** (len(weights) - 1) + 1
    sides = tuple(channels_first(img1, options.channels_last).shape[2:])
    _require(len(weights) > 0, "weights must have at least one exponent", weights)
    _require(min(sides) >= smallest, f"{len(weights)} scales need sides of at least {smallest}", sides)


def _check_ms_ssim_backward(grad_values, img1, img2, terms, weights, *arguments):
    options = Options(*arguments[:-2])
    _check_ms_ssim(img1, img2, weights, *options)
    planes = map_shape(img1, options)[:2]
    _check_shape("grad_values", grad_values, planes)
    _check_shape("terms", terms, (*planes, len(weights)))


_CHECKS: dict[str, Callable[..., None]] = {
    "ssim_map": _check_ssim_map,
    "ssim_map_backward": _check_ssim_map_backward,
    "photometric": _check_photometric,
    "ssim_channel_means": _check_ssim_map,
    "ssim_channel_means_backward": _check_channel_means_backward,
    "ms_ssim": _check_ms_ssim,
    "ms_ssim_backward": _check_ms_ssim_backward,
}


def _checked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    check = _CHECKS[name]

    def run(*arguments):
        check(*arguments)
        return function(*arguments)

    return run


def _fake_ssim_map(img1, img2, *options):
    options = Options(*options)
    return new_like(img1, map_shape(img1, options), result_dtype(img1, img2), options.channels_last)


def _fake_gradients(upstream, img1, img2, *arguments):
    *options, need1, need2 = arguments
    return new_gradients(img1, img2, Options(*options), need1, need2)


def _fake_planar_gradients(upstream, img1, img2, *arguments):
    *options, need1, need2 = arguments
    return new_gradients(img1, img2, Options(*options), need1, need2, planar=True)


def _fake_photometric(img1, img2, weight, l1_weight, dssim_weight, offset, per_image, *arguments):
    *options, need1, need2 = arguments
    shape = (img1.shape[0],) if per_image else ()
    means = [img1.new_empty(shape, dtype=result_dtype(img1, img2)) for _ in range(3)]
    return (*means, *new_gradients(img1, img2, Options(*options), need1, need2))


def _fake_ssim_channel_means(img1, img2, *options):
    batch, channels = map_shape(img1, Options(*options))[:2]
    return img1.new_empty((batch, channels, 2), dtype=result_dtype(img1, img2))


def _fake_ms_ssim(img1, img2, weights, *options):
    planes = map_shape(img1, Options(*options))[:2]
    values = img1.new_empty(planes, dtype=result_dtype(img1, img2))
    return values, img1.new_empty((*planes, len(weights)), dtype=torch.float64)


def _fake_ms_ssim_backward(grad_values, img1, img2, terms, weights, *arguments):
    return _fake_planar_gradients(grad_values, img1, img2, *arguments)


_FAKES: dict[str, Callable[..., Any]] = {
    "ssim_map": _fake_ssim_map,
    "ssim_map_backward": _fake_gradients,
    "photometric": _fake_photometric,
    "ssim_channel_means": _fake_ssim_channel_means,
    "ssim_channel_means_backward": _fake_planar_gradients,
    "ms_ssim": _fake_ms_ssim,
    "ms_ssim_backward": _fake_ms_ssim_backward,
}
for _name, _fake in _FAKES.items():
    torch.library.register_fake("splat_ssim::" + _name, _checked(_name, _fake), lib=_definitions)


def register_device(
    device_type: str,
    implementations: dict[str, Callable[..., Any]],
    supports: Callable[[Tensor, Tensor, Options], bool],
    scale: Callable[[Tensor, Tensor], bool] | None = None,
) -> None:
    """Makes a device's kernels known: to the dispatcher with checks, to eager calls without."""
    for name, function in implementations.items():
        _definitions.impl(name, _checked(name, function), device_type.upper())
    IMPLEMENTATIONS[device_type] = implementations
    KERNELS[device_type] = supports
    if scale is not None:
        SCALES[device_type] = scale


# --------------------------------------------------------------------------------------------------------------------
# Calls: of an implementation itself where nobody watches, since the dispatcher takes as long as a small image
# --------------------------------------------------------------------------------------------------------------------


#: At most so many tensors are the first arguments of an operator.
_TENSORS = 4


def _nobody_watches(arguments: Sequence[Any]) -> bool:
    """CPU tensors of no subclass and not batched, no dispatch mode, no profiler."""
    if _dispatch_modes() > 0 or _profiler_enabled():
        return False
    for a in arguments[:_TENSORS]:
        kind = type(a)
        if kind is Tensor or kind is torch.nn.Parameter:
            if not a.is_cpu or _is_wrapped(a) or _is_legacy_batched(a):
                return False
        elif isinstance(a, Tensor):
            return False
    return True


def _is_batched(tensor: Tensor) -> bool:
    """Whether torch.vmap, or the vmap of is_grads_batched, hands the tensor in."""
    return _is_wrapped(tensor) or _is_legacy_batched(tensor)


def _below_autograd(name: str, *arguments):
    if _nobody_watches(arguments):
        return IMPLEMENTATIONS["cpu"][name](*arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return getattr(torch.ops.splat_ssim, name).default(*arguments)


def _backward_call(name: str, *arguments):
    """A backward operator; one that is to be differentiated goes where the second derivative is refused."""
    if torch.is_grad_enabled():
        return getattr(torch.ops.splat_ssim, name)(*arguments)
    return _below_autograd(name, *arguments)


#: Operator -> the apply of an autograd.Function for eager calls: torch.library's own takes 0.3 ms a call.
_EAGER: dict[str, Callable[..., Any]] = {}


def _register_autograd(name: str, setup_context: Callable[..., None], backward: Callable[..., Any]) -> None:
    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *arguments):
            output = _below_autograd(name, *arguments)
            setup_context(ctx, arguments, output)
            return output

    Eager.backward = staticmethod(backward)  # type: ignore[method-assign, assignment]
    _EAGER[name] = Eager.apply
    torch.library.register_autograd("splat_ssim::" + name, backward, setup_context=setup_context, lib=_definitions)


def _call(name: str, *arguments):
    """An operator of the images `arguments[:2]`."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return getattr(torch.ops.splat_ssim, name)(*arguments)
    if torch.is_grad_enabled() and (arguments[0].requires_grad or arguments[1].requires_grad):
        return _EAGER[name](*arguments)
    return _below_autograd(name, *arguments)


# --------------------------------------------------------------------------------------------------------------------
# Autograd
# --------------------------------------------------------------------------------------------------------------------


def _register_recomputing(name: str) -> None:
    """Autograd of an operator (img1, img2, *options) whose backward is the operator `<name>_backward`."""

    def setup_context(ctx, inputs, output):
        img1, img2, *ctx.options = inputs
        ctx.save_for_backward(img1, img2)

    def backward(ctx, upstream):
        img1, img2 = ctx.saved_tensors
        need1, need2 = ctx.needs_input_grad[:2]
        grad1, grad2 = _backward_call(name + "_backward", upstream, img1, img2, *ctx.options, need1, need2)
        grads = (grad1.to(img1.dtype) if need1 else None, grad2.to(img2.dtype) if need2 else None)
        return *grads, *(None,) * len(ctx.options)

    _register_autograd(name, setup_context, backward)


_register_recomputing("ssim_map")
_register_recomputing("ssim_channel_means")


def _ms_ssim_context(ctx, inputs, output):
    img1, img2, ctx.weights, *ctx.options = inputs
    _values, terms = output
    ctx.mark_non_differentiable(terms)
    ctx.save_for_backward(img1, img2, terms)


def _ms_ssim_backward(ctx, upstream, _unused):
    img1, img2, terms = ctx.saved_tensors
    need1, need2 = ctx.needs_input_grad[:2]
    arguments = (upstream, img1, img2, terms, ctx.weights, *ctx.options, need1, need2)
    grad1, grad2 = _backward_call("ms_ssim_backward", *arguments)
    grads = (grad1.to(img1.dtype) if need1 else None, grad2.to(img2.dtype) if need2 else None)
    return *grads, *(None,) * (len(ctx.options) + 1)


_register_autograd("ms_ssim", _ms_ssim_context, _ms_ssim_backward)


def _photometric_context(ctx, inputs, output):
    _loss, l1, dssim, *grads = output
    ctx.mark_non_differentiable(l1, dssim, *grads)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:3])
    ctx.dtypes = inputs[0].dtype, inputs[1].dtype
    ctx.options = inputs[3:]
    ctx.grads = grads


def _photometric_backward(ctx, upstream, *unused):
    found = [None, None]
    if upstream is not None:
        wanted = ctx.needs_input_grad[:2]
        grads = ctx.grads
        if grads is None or _lacks(grads[0], wanted[0]) or _lacks(grads[1], wanted[1]):
            # A second backward through a retained graph, since the first one gave the gradients away; or a traced call
            # whose example needed no gradient.
            with torch.no_grad():
                *_, grad1, grad2 = torch.ops.splat_ssim.photometric(*ctx.saved_tensors, *ctx.options[:-2], *wanted)
            grads = [grad1, grad2]
        # In place, so that no second image is needed.
        in_place = _may_scale_in_place(grads[0], upstream)
        if in_place:
            ctx.grads = None
        for i, grad in enumerate(grads):
            if wanted[i]:
                scale = _scale_in_place if in_place else _scale
                found[i] = scale(grad, upstream, ctx.saved_tensors[i]).to(ctx.dtypes[i])
    return *found, *(None,) * (len(ctx.options) + 1)


def _lacks(gradient: Tensor, is_wanted: bool) -> bool:
    return is_wanted and gradient.numel() == 0


def _may_scale_in_place(gradient: Tensor, upstream: Tensor) -> bool:
    """Whether nobody differentiates, traces or batches the multiplication."""
    return (
        not torch.is_grad_enabled()
        and _dispatch_modes() == 0
        and type(gradient) is Tensor
        and type(upstream) is Tensor
        and not _is_batched(upstream)
    )


def _per_image(upstream: Tensor, gradient: Tensor) -> Tensor:
    """The upstream gradient, () or (B,), shaped to multiply a gradient."""
    return upstream.view(-1, *(1,) * (gradient.ndim - 1)) if upstream.ndim else upstream


def _scale_in_place(gradient: Tensor, upstream: Tensor, image: Tensor) -> Tensor:
    # The upstream gradient is usually 1. Reading it on a GPU would synchronise, so the kernel checks it there.
    if upstream.ndim == 0 and upstream.device.type == "cpu" and upstream.item() == 1.0:
        return gradient
    scale = SCALES.get(gradient.device.type)
    if scale is not None and upstream.device == gradient.device and scale(gradient, upstream):
        return gradient
    return gradient.mul_(_per_image(upstream, gradient))


def _scale(gradient: Tensor, upstream: Tensor, image: Tensor) -> Tensor:
    if _is_batched(upstream):
        return _scaled_gradient(gradient, upstream, image)  # Operators of torch's, which can be batched.
    return torch.ops.splat_ssim.scaled_gradient(gradient, upstream, image)


def _scaled_gradient(gradient, upstream, image):
    return gradient * _per_image(upstream, gradient)


_register_autograd("photometric", _photometric_context, _photometric_backward)
torch.library.register_fake("splat_ssim::scaled_gradient", _scaled_gradient, lib=_definitions)
_definitions.impl("scaled_gradient", _scaled_gradient, "CompositeExplicitAutograd")


def _keep_nothing(ctx, inputs, output):
    pass


def _refuse_second_derivative(ctx, *grads):
    raise NotImplementedError("splat_ssim is differentiable once: the second derivative of SSIM is not implemented")


for _name in ("ssim_map_backward", "ssim_channel_means_backward", "ms_ssim_backward", "scaled_gradient"):
    torch.library.register_autograd(
        "splat_ssim::" + _name, _refuse_second_derivative, setup_context=_keep_nothing, lib=_definitions
    )


# --------------------------------------------------------------------------------------------------------------------
# What the public functions call: an operator where the device has a kernel for the images, else the definition
# --------------------------------------------------------------------------------------------------------------------


def has_kernel(img1: Tensor, img2: Tensor, options: Options) -> bool:
    """Whether the operators can run; where not, splat_ssim.reference gives the same numbers."""
    supports = KERNELS.get(img1.device.type)
    if supports is None or not supports(img1, img2, options):
        return False
    return torch.compiler.is_compiling() or not _is_transformed(img1, img2)


def _is_transformed(*images: Tensor) -> bool:
    """Whether torch.func transforms the call or an image carries a tangent: the definition's operators know how."""
    if torch._C._are_functorch_transforms_active():
        return True
    tangents = forward_ad._current_level >= 0
    return tangents and any(forward_ad.unpack_dual(image).tangent is not None for image in images)


def definition_options(options: Options) -> reference.MapOptions:
    """The options as keyword arguments of splat_ssim.reference, which tells images from volumes by their rank."""
    return {**_constants(options), "padding": options.padding, "channels_last": options.channels_last}


def _constants(options: Options) -> reference.Constants:
    return {
        "window_size": options.window_size,
        "sigma": options.sigma,
        "data_range": options.data_range,
        "k1": options.k1,
        "k2": options.k2,
    }


def ssim_map(img1: Tensor, img2: Tensor, options: Options) -> Tensor:
    """S for every position of the window, in the layout of the images: float32, or float64 where an image is."""
    if has_kernel(img1, img2, options):
        return _call("ssim_map", img1, img2, *options)
    return reference.ssim_map(img1, img2, eps=options.eps, **definition_options(options))


def ssim_channel_means(img1: Tensor, img2: Tensor, options: Options) -> Tensor:
    """(B, C, 2): for each image and channel the means of S and of its contrast-structure factor."""
    if has_kernel(img1, img2, options):
        return _call("ssim_channel_means", img1, img2, *options)
    return reference.ssim_channel_means(img1, img2, **definition_options(options))


def ms_ssim(img1: Tensor, img2: Tensor, options: Options, weights: Sequence[float]) -> Tensor:
    """(B, C): MS-SSIM of each image and channel, with one exponent a scale; `options.padding` is "valid"."""
    if has_kernel(img1, img2, options):
        return _call("ms_ssim", img1, img2, list(weights), *options)[0]
    constants = _constants(options)
    return reference.ms_ssim(img1, img2, weights=weights, channels_last=options.channels_last, **constants)


def photometric(
    img1: Tensor,
    img2: Tensor,
    options: Options,
    *,
    l1_weight: float,
    dssim_weight: float,
    weight: Tensor | None = None,
    per_image: bool = False,
    offset: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, l1, dssim), the means of |x - y| and of 1 - S: `loss = offset + l1_weight * l1 + dssim_weight * dssim`.

    Args:
        img1: Images in the layout `options` names, float32, float64, float16, bfloat16 or uint8.
        img2: The same shape; the dtype may be another one.
        options: Window, range, padding and layout.
        l1_weight: Weight of the mean of |img1 - img2|.
        dssim_weight: Weight of the mean of 1 - S.
        weight: Weights of the positions, (B, 1 or C, spatial…) in the images' layout; the means are weighted by them,
            and are 0 where nothing has weight. "valid" crops them for 1 - S.
        per_image: Results of shape (B,), a mean for each image, instead of a mean over the batch.
        offset: Added to the loss: 1 and a `dssim_weight` of -1 make it SSIM.

    Returns:
        The loss, differentiable in both images, and its two terms, which carry no gradient.
    """
    if has_kernel(img1, img2, options):
        recording = torch.is_grad_enabled()
        needs = (recording and img1.requires_grad, recording and img2.requires_grad)
        scalars = (l1_weight, dssim_weight, offset, per_image)
        loss, l1, dssim, _, _ = _call("photometric", img1, img2, weight, *scalars, *options, *needs)
        return loss, l1, dssim
    return photometric_definition(img1, img2, options, l1_weight, dssim_weight, weight, per_image, offset)


def photometric_definition(
    img1: Tensor,
    img2: Tensor,
    options: Options,
    l1_weight: float,
    dssim_weight: float,
    weight: Tensor | None = None,
    per_image: bool = False,
    offset: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """`photometric` in plain torch, whatever kernels there are."""
    reduction, channels_last = "image" if per_image else "mean", options.channels_last
    img1, img2 = reference.in_one_dtype(img1, img2, options.data_range)
    dssim_map = reference.dssim_map(img1, img2, eps=options.eps, **definition_options(options))
    dssim = reference.weighted_mean(dssim_map, weight, reduction, channels_last)
    difference = reference.absolute_difference(img1, img2, options.data_range)
    l1 = reference.weighted_mean(difference, weight, reduction, channels_last)
    loss = reference.weighted_sum((l1, l1_weight), (dssim, dssim_weight), offset=offset)
    return loss, l1.detach(), dssim.detach()
