"""The SSIM operators: schemas, fake kernels, autograd, and the CPU kernels. ops/ssim_cuda.py registers CUDA's.

The five schemas end in the same options (`Options`), so that an operator passes them on in one piece. A tensor is in
"interleaved" layout when its channels are the innermost axis in memory (channels-last data, or torch's channels_last
memory format), else "planar": kernels read both in place, and outputs are allocated in the layout of the first image.
"""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .. import reference
from . import _library


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
    #: Added to the denominator of S, as kornia does; the package's own functions leave it at 0.
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
    # loss = l1_weight * l1 + dssim_weight * dssim, the means of |x - y| and of 1 - S: over the batch, or (B,) with
    # per_image. Only the loss is differentiable; grad1 and grad2 are its gradients (empty where not needed).
    "photometric": (
        f"(Tensor img1, Tensor img2, Tensor? weight, float l1_weight, float dssim_weight, bool per_image, {_OPTIONS}, "
        "bool need1, bool need2) -> (Tensor loss, Tensor l1, Tensor dssim, Tensor grad1, Tensor grad2)"
    ),
    # (B, C, 2): for each image and channel the means of S and of its contrast-structure factor.
    "ssim_channel_means": f"(Tensor img1, Tensor img2, {_OPTIONS}) -> Tensor",
    "ssim_channel_means_backward": (
        f"(Tensor grad_means, Tensor img1, Tensor img2, {_OPTIONS}, bool need1, bool need2) -> (Tensor, Tensor)"
    ),
    # A gradient of `photometric` times the upstream one, () or (B,). The image only says what it is the gradient by.
    "scaled_gradient": "(Tensor gradient, Tensor upstream, Tensor image) -> Tensor",
}

_definitions = torch.library.Library("splat_ssim", "FRAGMENT")
for _name, _schema in _SCHEMAS.items():
    _definitions.define(_name + _schema)


# --------------------------------------------------------------------------------------------------------------------
# Shapes and layouts
# --------------------------------------------------------------------------------------------------------------------


def _channels_first(images: Tensor, channels_last: bool) -> Tensor:
    """A view (B, C, spatial…) of images in either logical layout."""
    return images.movedim(-1, 1) if channels_last else images


def _is_interleaved(images: Tensor) -> bool:
    """Whether a (B, C, spatial…) tensor has the channels innermost in memory."""
    return images.shape[1] > 1 and images.stride(1) == 1 and images.stride(-1) == images.shape[1]


def _result_dtype(*images: Tensor) -> torch.dtype:
    return torch.float64 if any(image.dtype == torch.float64 for image in images) else torch.float32


def _new_like(
    images: Tensor, shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool, planar: bool = False
) -> Tensor:
    """An uninitialised tensor whose (B, C, spatial…) shape is `shape`, in the logical and memory layout of `images`."""
    if not planar and _is_interleaved(_channels_first(images, channels_last)):
        made = images.new_empty((shape[0], *shape[2:], shape[1]), dtype=dtype)
        return made if channels_last else made.movedim(-1, 1)
    made = images.new_empty(shape, dtype=dtype)
    return made.movedim(1, -1) if channels_last else made


def _map_shape(images: Tensor, options: Options) -> tuple[int, ...]:
    """The shape (B, C, spatial…) of the map of S."""
    first = _channels_first(images, options.channels_last)
    lost = options.window_size - 1 if options.padding == "valid" else 0
    return (*first.shape[:2], *(side - lost for side in first.shape[2:]))


def _new_gradients(
    img1: Tensor, img2: Tensor, options: Options, need1: bool, need2: bool, planar: bool = False
) -> tuple[Tensor, Tensor]:
    """Both gradients, float32 or wider, in the layout of the first image, so that one kernel writes both."""
    dtype, channels_last = _result_dtype(img1, img2), options.channels_last
    shape = tuple(_channels_first(img1, channels_last).shape)
    grads = [
        _new_like(img1, shape, dtype, channels_last, planar) if needed else img1.new_empty(0, dtype=dtype)
        for needed in (need1, need2)
    ]
    return grads[0], grads[1]


@torch.library.register_fake("splat_ssim::ssim_map", lib=_definitions)
def _(img1, img2, *options):
    options = Options(*options)
    return _new_like(img1, _map_shape(img1, options), _result_dtype(img1, img2), options.channels_last)


@torch.library.register_fake("splat_ssim::ssim_map_backward", lib=_definitions)
def _(grad_map, img1, img2, *arguments):
    *options, need1, need2 = arguments
    return _new_gradients(img1, img2, Options(*options), need1, need2)


@torch.library.register_fake("splat_ssim::photometric", lib=_definitions)
def _(img1, img2, weight, l1_weight, dssim_weight, per_image, *arguments):
    *options, need1, need2 = arguments
    shape = (img1.shape[0],) if per_image else ()
    dtype = _result_dtype(img1, img2)
    means = [img1.new_empty(shape, dtype=dtype) for _ in range(3)]
    return (*means, *_new_gradients(img1, img2, Options(*options), need1, need2))


@torch.library.register_fake("splat_ssim::ssim_channel_means", lib=_definitions)
def _(img1, img2, *options):
    batch, channels = _map_shape(img1, Options(*options))[:2]
    return img1.new_empty((batch, channels, 2), dtype=_result_dtype(img1, img2))


@torch.library.register_fake("splat_ssim::ssim_channel_means_backward", lib=_definitions)
def _(grad_means, img1, img2, *arguments):
    *options, need1, need2 = arguments
    return _new_gradients(img1, img2, Options(*options), need1, need2, planar=True)


# --------------------------------------------------------------------------------------------------------------------
# CPU: the compiled kernels
# --------------------------------------------------------------------------------------------------------------------

_DTYPE_CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.uint8: 3}
#: Asked once: torch.compile could not trace the loader.
_HAS_LIBRARY = _library.library() is not None

_PADDING_CODES = {"same": 0, "valid": 1, "reflect": 2, "replicate": 3}

#: `Arguments` of csrc/cpu/ssim.h: six views of six words, eleven sizes, three pointers, four doubles.
_ARGUMENTS = struct.Struct("=50q4d")
_NO_VIEW = (0, 0, 0, 0, 0, 0)


@functools.cache
def _window(window_size: int, sigma: float) -> ctypes.Array:
    return (ctypes.c_double * window_size)(*reference.gaussian_taps(window_size, sigma))


def _supports_cpu(img1: Tensor, img2: Tensor, options: Options) -> bool:
    return (
        img1.dtype in _DTYPE_CODES
        and img2.dtype in _DTYPE_CODES
        and options.window_size % 2 == 1
        and options.window_size <= 33
        and img1.numel() > 0
        and _HAS_LIBRARY
    )


def _readable(images: Tensor, interleaved: bool) -> Tensor:
    """(B, C, spatial…) such that a kernel can read it: itself where its innermost axes are dense, else a copy."""
    if interleaved:
        if images.stride(1) == 1 and images.stride(-1) == images.shape[1]:
            return images
        return images.movedim(1, -1).contiguous().movedim(-1, 1)
    return images if images.stride(-1) == 1 or images.shape[-1] == 1 else images.contiguous()


def _view(tensor: Tensor | None, inset: int = 0) -> tuple[int, ...]:
    """`View` of csrc/cpu/ssim.h for a (B, C, spatial…) tensor whose first element is at image position (inset, …)."""
    if tensor is None:
        return _NO_VIEW
    strides = tensor.stride()
    slices = strides[2] if len(strides) == 5 else 0
    address = tensor.data_ptr() - inset * sum(strides[2:]) * tensor.element_size()
    return address, _DTYPE_CODES[tensor.dtype], strides[0], strides[1], slices, strides[-2]


class _Call:
    """One kernel call: `run` fills the outputs it is given and returns the totals, three of each plane.

    Totals are a plain array, and coefficients may be: an operation on a tiny tensor can cost more than the kernel.

    A weight that starts `weight_inset` into the images weighs 1 - S alone; without an inset it is as large as they are
    and weighs |x - y| too.
    """

    def __init__(self, img1: Tensor, img2: Tensor, options: Options, planar: bool = False):
        first, second = (_channels_first(image, options.channels_last) for image in (img1, img2))
        self.interleaved = not planar and _is_interleaved(first)
        self.first, self.second = _readable(first, self.interleaved), _readable(second, self.interleaved)
        self.options = options
        self.batch, self.channels = first.shape[0], first.shape[1]
        self.planes = self.batch if self.interleaved else self.batch * self.channels

    def spread(self, weight: Tensor) -> Tensor:
        """A float32 weight for every channel, as the kernel reads it: (B, C, spatial…)."""
        weight = _channels_first(weight, self.options.channels_last).float()
        return _readable(weight.expand(self.batch, self.channels, *weight.shape[2:]), self.interleaved)

    def run(
        self,
        coefficients: Tensor | ctypes.Array,
        weight: Tensor | None = None,
        weight_inset: int | None = None,
        map_: Tensor | None = None,
        grad1: Tensor | None = None,
        grad2: Tensor | None = None,
        similarities: bool = False,
    ) -> ctypes.Array:
        options, first = self.options, self.first
        for output in (map_, grad1, grad2):
            if output is not None:
                _library.prefer_huge_pages(output)
        outputs = [t if t is None else _channels_first(t, options.channels_last) for t in (map_, grad1, grad2)]
        totals = (ctypes.c_double * (3 * self.planes))()
        window = _window(options.window_size, options.sigma)
        sides = first.shape[2:] if first.ndim == 5 else (1, *first.shape[2:])
        packed = _ARGUMENTS.pack(
            *_view(first),
            *_view(self.second),
            *_view(weight, weight_inset or 0),
            *_view(outputs[0], options.window_size // 2 if options.padding == "valid" else 0),
            *_view(outputs[1]),
            *_view(outputs[2]),
            self.batch,
            self.channels,
            *sides,
            self.interleaved,
            options.window_size,
            _PADDING_CODES[options.padding],
            torch.get_num_threads(),
            weight_inset is None,
            similarities,
            ctypes.addressof(window),
            coefficients.data_ptr() if isinstance(coefficients, Tensor) else ctypes.addressof(coefficients),
            ctypes.addressof(totals),
            (options.k1 * options.data_range) ** 2,
            (options.k2 * options.data_range) ** 2,
            options.data_range,
            options.eps,
        )
        name = f"ssim{options.spatial_dims}d"
        status = _library.kernel(name, (ctypes.c_char_p,))(packed)
        _library.check(status, name, (first.shape, self.second.shape))
        return totals


def _rows(totals: ctypes.Array) -> Tensor:
    """The totals of `_Call.run` as a tensor, (planes, 3)."""
    return torch.frombuffer(totals, dtype=torch.float64).view(-1, 3)


def _positions(options: Options, shape: torch.Size) -> int:
    """How many values of S each plane of images (B, C, spatial…) has."""
    lost = options.window_size - 1 if options.padding == "valid" else 0
    count = 1
    for side in shape[2:]:
        count *= side - lost
    return count


def _ssim_map_cpu(img1, img2, *arguments):
    options = Options(*arguments)
    found = _new_like(img1, _map_shape(img1, options), _result_dtype(img1, img2), options.channels_last)
    call = _Call(img1, img2, options)
    call.run(torch.zeros((call.planes, 3), dtype=torch.float64), map_=found)
    return found


def _ssim_map_backward_cpu(grad_map, img1, img2, *arguments):
    *values, need1, need2 = arguments
    options = Options(*values)
    grads = _new_gradients(img1, img2, options, need1, need2)
    call = _Call(img1, img2, options)
    coefficients = torch.tensor([-1.0, 0.0, 0.0], dtype=torch.float64).repeat(call.planes, 1)
    inset = options.window_size // 2 if options.padding == "valid" else 0
    call.run(coefficients, call.spread(grad_map), inset, None, *_wanted(grads, need1, need2))
    return grads


def _wanted(grads: tuple[Tensor, Tensor], need1: bool, need2: bool) -> tuple[Tensor | None, Tensor | None]:
    return grads[0] if need1 else None, grads[1] if need2 else None


def _photometric_cpu(img1, img2, weight, l1_weight, dssim_weight, per_image, *arguments):
    *values, need1, need2 = arguments
    options = Options(*values)
    grads = _new_gradients(img1, img2, options, need1, need2)
    call = _Call(img1, img2, options)
    if weight is None and not per_image:
        positions, elements = call.batch * call.channels * _positions(options, call.first.shape), call.first.numel()
        row = (dssim_weight / positions, 0.0, l1_weight / elements)
        coefficients = (ctypes.c_double * (3 * call.planes))(*row * call.planes)
        totals = call.run(coefficients, None, None, None, *_wanted(grads, need1, need2))
        dssim, l1 = sum(totals[0::3]) / positions, sum(totals[2::3]) / elements
        means = (l1_weight * l1 + dssim_weight * dssim, l1, dssim)
        return *(torch.scalar_tensor(mean, dtype=torch.float32) for mean in means), *grads
    counts, weight = _photometric_counts(call, weight, per_image)  # [B or 1, 2]: of 1 - S, of |x - y|
    coefficients = torch.zeros((call.batch, 3), dtype=torch.float64)
    coefficients[:, 0] = dssim_weight / counts[:, 0]
    coefficients[:, 2] = l1_weight / counts[:, 1]
    per_plane = coefficients.repeat_interleave(call.planes // call.batch, 0)
    totals = _rows(call.run(per_plane, weight, None, None, *_wanted(grads, need1, need2)))
    totals = totals.view(call.batch, -1, 3).sum(1)
    if not per_image:
        totals = totals.sum(0, keepdim=True)
    dssim, l1 = totals[:, 0] / counts[:, 0], totals[:, 2] / counts[:, 1]
    means = torch.stack((l1_weight * l1 + dssim_weight * dssim, l1, dssim)).float()
    loss, l1, dssim = (means if per_image else means[:, 0]).unbind(0)
    return loss.clone(), l1.clone(), dssim.clone(), *grads


def _photometric_counts(call: _Call, weight: Tensor | None, per_image: bool) -> tuple[Tensor, Tensor | None]:
    """What the sums of 1 - S and of |x - y| are divided by, (B or 1, 2), and the weight as the kernel reads it."""
    options, shape = call.options, call.first.shape
    images = 1 if per_image else call.batch
    if weight is None:
        plain = (images * call.channels * _positions(options, shape), images * call.first.numel() // call.batch)
        return torch.tensor([plain], dtype=torch.float64), None
    spread = call.spread(weight)
    inset = options.window_size // 2 if options.padding == "valid" else 0
    inner = spread
    for dim in range(2, spread.ndim):
        inner = inner.narrow(dim, inset, spread.shape[dim] - 2 * inset)
    counts = torch.stack([w.flatten(1).sum(1, dtype=torch.float64) for w in (inner, spread)], dim=1)
    counts = counts if per_image else counts.sum(0, keepdim=True)
    return torch.where(counts > 0, counts, 1.0), spread


def _ssim_channel_means_cpu(img1, img2, *arguments):
    options = Options(*arguments)
    call = _Call(img1, img2, options, planar=True)
    totals = _rows(call.run(torch.zeros((call.planes, 3), dtype=torch.float64), similarities=True))
    means = totals[:, :2] / _positions(options, call.first.shape)
    return means.float().view(call.batch, call.channels, 2)


def _ssim_channel_means_backward_cpu(grad_means, img1, img2, *arguments):
    *values, need1, need2 = arguments
    options = Options(*values)
    grads = _new_gradients(img1, img2, options, need1, need2, planar=True)
    call = _Call(img1, img2, options, planar=True)
    coefficients = torch.zeros((call.planes, 3), dtype=torch.float64)
    coefficients[:, :2] = grad_means.reshape(-1, 2) * (-1.0 / _positions(options, call.first.shape))
    call.run(coefficients, None, None, None, *_wanted(grads, need1, need2))
    return grads


def _per_image(upstream, gradient):
    """The upstream gradient, () or (B,), shaped to multiply a gradient."""
    return upstream.view(-1, *(1,) * (gradient.ndim - 1)) if upstream.ndim else upstream


def _scaled_gradient(gradient, upstream, image):
    return gradient * _per_image(upstream, gradient)


#: Device type -> function (gradient, upstream) that multiplies in place while the host does not read `upstream`; it
#: returns False where it does not take them.
SCALES: dict[str, Callable[[Tensor, Tensor], bool]] = {}


def _scale_in_place(gradient, upstream):
    # Mostly the loss is what backward starts from: then there is nothing to do. To ask a GPU for it would stop it.
    if upstream.ndim == 0 and upstream.device.type == "cpu" and upstream.item() == 1.0:
        return gradient
    scale = SCALES.get(gradient.device.type)
    if scale is not None and upstream.device == gradient.device and scale(gradient, upstream):
        return gradient
    return gradient.mul_(_per_image(upstream, gradient))


torch.library.register_fake("splat_ssim::scaled_gradient", _scaled_gradient, lib=_definitions)
_definitions.impl("scaled_gradient", _scaled_gradient, "CompositeExplicitAutograd")

for _name, _function in {
    "ssim_map": _ssim_map_cpu,
    "ssim_map_backward": _ssim_map_backward_cpu,
    "photometric": _photometric_cpu,
    "ssim_channel_means": _ssim_channel_means_cpu,
    "ssim_channel_means_backward": _ssim_channel_means_backward_cpu,
}.items():
    _definitions.impl(_name, _function, "CPU")


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
        operator = getattr(torch.ops.splat_ssim, name + "_backward")
        grad1, grad2 = operator(upstream, img1, img2, *ctx.options, need1, need2)
        grads = (grad1.to(img1.dtype) if need1 else None, grad2.to(img2.dtype) if need2 else None)
        return *grads, *(None,) * len(ctx.options)

    torch.library.register_autograd("splat_ssim::" + name, backward, setup_context=setup_context, lib=_definitions)


_register_recomputing("ssim_map")
_register_recomputing("ssim_channel_means")


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
        grads = ctx.grads
        if grads is None:
            # A second backward through a retained graph: the first one gave the gradients away.
            with torch.no_grad():
                *_, grad1, grad2 = torch.ops.splat_ssim.photometric(*ctx.saved_tensors, *ctx.options)
            grads = [grad1, grad2]
        # In place, so that no second image is needed; not where the gradient is to be differentiated again or this is
        # traced by torch.compile, which plans the memory itself.
        in_place = not torch.is_grad_enabled() and type(grads[0]) is Tensor
        if in_place:
            ctx.grads = None
        for i, grad in enumerate(grads):
            if ctx.needs_input_grad[i]:
                if in_place:
                    scaled = _scale_in_place(grad, upstream)
                else:
                    scaled = torch.ops.splat_ssim.scaled_gradient(grad, upstream, ctx.saved_tensors[i])
                found[i] = scaled.to(ctx.dtypes[i])
    return *found, *(None,) * (len(ctx.options) + 1)


torch.library.register_autograd(
    "splat_ssim::photometric", _photometric_backward, setup_context=_photometric_context, lib=_definitions
)


def _photometric_below_autograd(*arguments):
    *values, offset = arguments
    if _nobody_watches(*values[:3]):
        output = _photometric_cpu(*values)
    else:
        with torch._C._AutoDispatchBelowAutograd():
            output = torch.ops.splat_ssim.photometric.default(*values)
    return output if offset == 0.0 else (output[0] + offset, *output[1:])


def _nobody_watches(*tensors: Tensor | None) -> bool:
    """Whether a call on these tensors may go past the dispatcher, which takes as long as a small image.

    CPU tensors of no subclass, no dispatch mode, no profiler.
    """
    if torch._C._len_torch_dispatch_stack() > 0 or torch.autograd._profiler_enabled():
        return False
    return all(t is None or (type(t) in (Tensor, torch.nn.Parameter) and t.device.type == "cpu") for t in tensors)


class _Photometric(torch.autograd.Function):
    """The same autograd for eager calls: torch.library's takes 0.3 ms a call to look up the schema's defaults."""

    @staticmethod
    def forward(ctx, *arguments):
        output = _photometric_below_autograd(*arguments)
        _photometric_context(ctx, arguments[:-1], output)
        return output

    @staticmethod
    def backward(ctx, *upstream):
        return (*_photometric_backward(ctx, *upstream), None)


def _keep_nothing(ctx, inputs, output):
    pass


def _refuse_second_derivative(ctx, *grads):
    raise NotImplementedError("splat_ssim is differentiable once: the second derivative of SSIM is not implemented")


for _name in ("ssim_map_backward", "ssim_channel_means_backward", "scaled_gradient"):
    torch.library.register_autograd(
        "splat_ssim::" + _name, _refuse_second_derivative, setup_context=_keep_nothing, lib=_definitions
    )


# --------------------------------------------------------------------------------------------------------------------
# What the public functions call: an operator where the device has a kernel for the images, else the definition
# --------------------------------------------------------------------------------------------------------------------

#: Device type -> whether its kernels take (img1, img2, options). ops/ssim_cuda.py adds CUDA's.
KERNELS = {"cpu": _supports_cpu}


def has_kernel(img1: Tensor, img2: Tensor, options: Options) -> bool:
    """Whether the operators can run; where not, splat_ssim.reference gives the same numbers."""
    supports = KERNELS.get(img1.device.type)
    if supports is None or not supports(img1, img2, options):
        return False
    # Inside the transforms of torch.func the definition runs: operators of torch.library know no other than vmap.
    transformed = torch._C._functorch.is_functorch_wrapped_tensor
    return torch.compiler.is_compiling() or not (transformed(img1) or transformed(img2))


def definition_options(options: Options) -> reference.MapOptions:
    """The options as keyword arguments of splat_ssim.reference, which tells images from volumes by their rank."""
    return {
        "window_size": options.window_size,
        "sigma": options.sigma,
        "data_range": options.data_range,
        "k1": options.k1,
        "k2": options.k2,
        "padding": options.padding,
        "channels_last": options.channels_last,
    }


def ssim_map(img1: Tensor, img2: Tensor, options: Options) -> Tensor:
    """S for every position of the window, in the layout of the images: float32, or float64 where an image is."""
    if has_kernel(img1, img2, options):
        return torch.ops.splat_ssim.ssim_map(img1, img2, *options)
    return reference.ssim_map(img1, img2, eps=options.eps, **definition_options(options))


def ssim_channel_means(img1: Tensor, img2: Tensor, options: Options) -> Tensor:
    """(B, C, 2): for each image and channel the means of S and of its contrast-structure factor."""
    if has_kernel(img1, img2, options):
        return torch.ops.splat_ssim.ssim_channel_means(img1, img2, *options)
    return reference.ssim_channel_means(img1, img2, eps=options.eps, **definition_options(options))


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
        offset: Of the loss: 1 and a `dssim_weight` of -1 make it SSIM.

    Returns:
        The loss, differentiable in both images, and its two terms, which carry no gradient.
    """
    if has_kernel(img1, img2, options):
        recording = torch.is_grad_enabled()
        need1, need2 = recording and img1.requires_grad, recording and img2.requires_grad
        arguments = (img1, img2, weight, l1_weight, dssim_weight, per_image, *options, need1, need2)
        if not torch.compiler.is_compiling():
            operator = _Photometric.apply if need1 or need2 else _photometric_below_autograd
            loss, l1, dssim, _, _ = operator(*arguments, offset)
            return loss, l1, dssim
        loss, l1, dssim, _, _ = torch.ops.splat_ssim.photometric(*arguments)
    else:
        loss, l1, dssim = _photometric_definition(img1, img2, options, l1_weight, dssim_weight, weight, per_image)
    return (offset + loss if offset else loss), l1, dssim


def _photometric_definition(img1, img2, options: Options, l1_weight, dssim_weight, weight, per_image: bool):
    reduction, channels_last = "image" if per_image else "mean", options.channels_last
    dssim_map = reference.dssim_map(img1, img2, eps=options.eps, **definition_options(options))
    dssim = reference.weighted_mean(dssim_map, weight, reduction, channels_last)
    difference = reference.absolute_difference(img1, img2, options.data_range)
    l1 = reference.weighted_mean(difference, weight, reduction, channels_last)
    return l1_weight * l1 + dssim_weight * dssim, l1.detach(), dssim.detach()


# Registers the CUDA kernels; it builds on what is defined above.
from . import ssim_cuda  # noqa: E402, F401
