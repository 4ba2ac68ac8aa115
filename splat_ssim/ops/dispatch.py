"""Calls operators: straight through the device's implementation where that is safe, else through torch's dispatcher.

The dispatcher takes as long as the loss of a small image. It is bypassed if nothing traces, transforms, profiles or
batches the call (`is_watched`). Devices register their implementations here (`register_device`), and `ops/ssim.py`
its schemas (`define`) and derivatives (`register_autograd`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..options import SSIMOptions

# Looked up once: for a small image, some of these lookups take as long as the call itself.
_dispatch_modes = torch._C._len_torch_dispatch_stack
_profiler_enabled = torch.autograd._profiler_enabled
_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor
_is_legacy_batched = torch._C._functorch.is_legacy_batchedtensor
_transforms_active = torch._C._are_functorch_transforms_active
_tracing_state = torch._C._get_tracing_state

_library = torch.library.Library("splat_ssim", "FRAGMENT")

#: All tensors that an operator takes are among its first arguments, at most this many.
_TENSORS = 4


class Device(NamedTuple):
    """The operators on one type of device.

    Attributes:
        implementations: Operator -> its implementation on the device.
        supports: Function (img1, img2, options) that says whether the kernels accept them.
        scale: Function (gradient, upstream) that multiplies the gradient in place without the host reading `upstream`.
            It returns False if it cannot. In that case, and if there is no such function, torch multiplies.
        prepare: Function that prepares the operator `photometric` without a weight, see `prepared.prepare`.
        composites: Function (img1, options, need1) that says whether the operator `photometric` accepts a background.
    """

    implementations: dict[str, Callable[..., Any]]
    supports: Callable[[Tensor, Tensor, SSIMOptions], bool]
    scale: Callable[[Tensor, Tensor], bool] | None = None
    prepare: Callable[..., Any] | None = None
    composites: Callable[[Tensor, SSIMOptions, bool], bool] | None = None


#: Type of torch's device, "cpu" or "cuda" -> its operators.
DEVICES: dict[str, Device] = {}
#: Operator -> the check of its arguments, for calls that do not come from the public functions.
_checks: dict[str, Callable[..., None]] = {}
#: Operator -> `apply` of its autograd.Function, for eager calls. The one that torch.library makes costs 0.3 ms a call.
_eager: dict[str, Callable[..., Any]] = {}


# --------------------------------------------------------------------------------------------------------------------
# Registration
# --------------------------------------------------------------------------------------------------------------------


def define(name: str, schema: str, check: Callable[..., None], fake: Callable[..., Any]) -> None:
    """Defines an operator `splat_ssim::name`. Its fake kernel and every device's kernel check the arguments first."""
    _library.define(name + schema)
    _checks[name] = check
    torch.library.register_fake("splat_ssim::" + name, _checked(name, fake), lib=_library)


def _checked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        _checks[name](*arguments)
        return function(*arguments)

    return run


def define_for_all_devices(name: str, schema: str, function: Callable[..., Any]) -> None:
    """Defines an operator that is made of torch's own operators and so runs on every device."""
    _library.define(name + schema)
    torch.library.register_fake("splat_ssim::" + name, function, lib=_library)
    _library.impl(name, function, "CompositeExplicitAutograd")


def register_device(device_type: str, device: Device) -> None:
    """Registers a device's kernels. The dispatcher checks their arguments; direct calls do not."""
    for name, function in device.implementations.items():
        _library.impl(name, _checked(name, function), device_type.upper())
    DEVICES[device_type] = device


def register_autograd(name: str, setup_context: Callable[..., None], backward: Callable[..., Any]) -> None:
    """Registers the derivative of an operator, for the dispatcher and for direct calls."""

    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> Any:
            output = below_autograd(name, *arguments)
            setup_context(ctx, arguments, output)
            return output

    Eager.backward = staticmethod(backward)  # type: ignore[method-assign]
    _eager[name] = Eager.apply
    torch.library.register_autograd("splat_ssim::" + name, backward, setup_context=setup_context, lib=_library)


def refuse_second_derivative(name: str) -> None:
    """Registers a derivative of a backward operator that raises NotImplementedError."""

    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    def backward(ctx: Any, *grads: Any) -> None:
        raise NotImplementedError(
            "splat_ssim is differentiable once: for a second derivative of SSIM, pass float64 images or use torch.func"
        )

    torch.library.register_autograd("splat_ssim::" + name, backward, setup_context=setup_context, lib=_library)


# --------------------------------------------------------------------------------------------------------------------
# Calls
# --------------------------------------------------------------------------------------------------------------------


def has_kernel(img1: Tensor, img2: Tensor, options: SSIMOptions) -> bool:
    """Whether the operators can run on these images. If not, splat_ssim.reference gives the same numbers."""
    device = DEVICES.get(img1.device.type)
    if device is None or not device.supports(img1, img2, options):
        return False
    return torch.compiler.is_compiling() or not _is_transformed(img1, img2)


def _is_transformed(*images: Tensor) -> bool:
    """Whether torch.func transforms the call or an image carries a tangent. Only torch's own operators support that."""
    if _transforms_active():
        return True
    tangents = forward_ad._current_level >= 0
    return tangents and any(forward_ad.unpack_dual(image).tangent is not None for image in images)


def call(name: str, *arguments: Any) -> Any:
    """Calls an operator whose first two arguments are the images, and records its derivative if one requires grad."""
    if torch.compiler.is_compiling() or _tracing_state() is not None:
        return getattr(torch.ops.splat_ssim, name)(*arguments)
    if torch.is_grad_enabled() and (arguments[0].requires_grad or arguments[1].requires_grad):
        return _eager[name](*arguments)
    return below_autograd(name, *arguments)


def call_backward(name: str, *arguments: Any) -> Any:
    """Calls a backward operator. If it may be differentiated, the dispatcher is used, which refuses that."""
    if torch.is_grad_enabled():
        return getattr(torch.ops.splat_ssim, name)(*arguments)
    return below_autograd(name, *arguments)


def below_autograd(name: str, *arguments: Any) -> Any:
    """Calls an operator without recording its derivative."""
    if _nobody_watches(arguments):
        return DEVICES["cpu" if arguments[0].is_cpu else "cuda"].implementations[name](*arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return getattr(torch.ops.splat_ssim, name).default(*arguments)


def _nobody_watches(arguments: Sequence[Any]) -> bool:
    """Whether the tensors are of no subclass, all on the CPU or all on CUDA, and not watched (`is_watched`)."""
    tensors = [a for a in arguments[:_TENSORS] if isinstance(a, Tensor)]
    on_cpu = tensors[0].is_cpu
    for tensor in tensors:
        kind = type(tensor)
        if kind is not Tensor and kind is not torch.nn.Parameter:
            return False
        if not (tensor.is_cpu if on_cpu else tensor.is_cuda):
            return False
    return not is_watched(*tensors)


def is_watched(*tensors: Tensor) -> bool:
    """Whether an eager call must use the dispatcher, because something traces, transforms, profiles or batches it.

    The dispatcher is also needed for a tensor whose memory does not hold its values (`is_lazy`).
    """
    return (
        _dispatch_modes() > 0
        or _profiler_enabled()
        or _transforms_active()
        or _tracing_state() is not None
        or forward_ad._current_level >= 0
        or any(_is_wrapped(tensor) or _is_legacy_batched(tensor) or is_lazy(tensor) for tensor in tensors)
    )


def is_lazy(tensor: Tensor) -> bool:
    """Whether the tensor's memory does not hold its values, so that kernels must not read it.

    The imaginary part of a conjugate is negated lazily: its memory holds the opposite sign. Some zeros, such as the
    derivative of `Tensor.sgn`, have no memory at all.
    """
    return tensor.is_neg() or tensor._is_zerotensor()


def is_batched(tensor: Tensor) -> bool:
    """Whether the tensor comes from torch.vmap, or from the vmap that is_grads_batched uses."""
    return _is_wrapped(tensor) or _is_legacy_batched(tensor)


def may_change_in_place(*tensors: Tensor) -> bool:
    """Whether the tensors may be changed in place, since nothing differentiates, traces or batches the change."""
    return (
        not torch.is_grad_enabled()
        and _dispatch_modes() == 0
        and all(type(tensor) is Tensor and not is_batched(tensor) and not is_lazy(tensor) for tensor in tensors)
    )
