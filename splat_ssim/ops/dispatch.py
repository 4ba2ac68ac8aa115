"""How an operator is called: by an implementation itself where nobody watches, else by torch's dispatcher.

The dispatcher takes as long as a small image. Devices register their implementations here (`register_device`), and
`ops/ssim.py` its schemas (`define`) and derivatives (`register_autograd`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..options import SSIMOptions

# Looked up once: a call of a small image takes as long as some of these attributes.
_dispatch_modes = torch._C._len_torch_dispatch_stack
_profiler_enabled = torch.autograd._profiler_enabled
_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor
_is_legacy_batched = torch._C._functorch.is_legacy_batchedtensor
_transforms_active = torch._C._are_functorch_transforms_active
_tracing_state = torch._C._get_tracing_state

_library = torch.library.Library("splat_ssim", "FRAGMENT")

#: At most so many tensors are the first arguments of an operator.
_TENSORS = 4


class Device(NamedTuple):
    """What a type of device does for the operators.

    Attributes:
        implementations: Operator -> its implementation.
        supports: Whether the kernels take (img1, img2, options).
        scale: Function (gradient, upstream) that multiplies in place while the host does not read `upstream`; it
            returns False where it does not take them. None: torch multiplies.
        prepare: Prepares the operator `photometric` without a weight, see `prepared.prepare`.
        composites: Whether that operator takes a background, for (img1, options, needs of img1).
    """

    implementations: dict[str, Callable[..., Any]]
    supports: Callable[[Tensor, Tensor, SSIMOptions], bool]
    scale: Callable[[Tensor, Tensor], bool] | None = None
    prepare: Callable[..., Any] | None = None
    composites: Callable[[Tensor, SSIMOptions, bool], bool] | None = None


#: By the type of torch's device.
DEVICES: dict[str, Device] = {}
#: Operator -> the check of its arguments, for calls that do not come from the public functions.
_checks: dict[str, Callable[..., None]] = {}
#: Operator -> the apply of an autograd.Function for eager calls: torch.library's own takes 0.3 ms a call.
_eager: dict[str, Callable[..., Any]] = {}


# --------------------------------------------------------------------------------------------------------------------
# Registration
# --------------------------------------------------------------------------------------------------------------------


def define(name: str, schema: str, check: Callable[..., None], fake: Callable[..., Any]) -> None:
    """Defines an operator `splat_ssim::name`; its fake kernel, and every device's, checks the arguments first."""
    _library.define(name + schema)
    _checks[name] = check
    torch.library.register_fake("splat_ssim::" + name, _checked(name, fake), lib=_library)


def _checked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        _checks[name](*arguments)
        return function(*arguments)

    return run


def define_for_all_devices(name: str, schema: str, function: Callable[..., Any]) -> None:
    """Defines an operator that torch's own operators compute."""
    _library.define(name + schema)
    torch.library.register_fake("splat_ssim::" + name, function, lib=_library)
    _library.impl(name, function, "CompositeExplicitAutograd")


def register_device(device_type: str, device: Device) -> None:
    """Makes a device's kernels known: to the dispatcher with checks, to eager calls without."""
    for name, function in device.implementations.items():
        _library.impl(name, _checked(name, function), device_type.upper())
    DEVICES[device_type] = device


def register_autograd(name: str, setup_context: Callable[..., None], backward: Callable[..., Any]) -> None:
    """The derivative of an operator, for the dispatcher and for eager calls."""

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
    """Makes the derivative of a backward operator an error."""

    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    def backward(ctx: Any, *grads: Any) -> None:
        raise NotImplementedError("splat_ssim is differentiable once: the second derivative of SSIM is not implemented")

    torch.library.register_autograd("splat_ssim::" + name, backward, setup_context=setup_context, lib=_library)


# --------------------------------------------------------------------------------------------------------------------
# Calls
# --------------------------------------------------------------------------------------------------------------------


def has_kernel(img1: Tensor, img2: Tensor, options: SSIMOptions) -> bool:
    """Whether the operators can run; where not, splat_ssim.reference gives the same numbers."""
    device = DEVICES.get(img1.device.type)
    if device is None or not device.supports(img1, img2, options):
        return False
    return torch.compiler.is_compiling() or not _is_transformed(img1, img2)


def _is_transformed(*images: Tensor) -> bool:
    """Whether torch.func transforms the call or an image carries a tangent: the definition's operators know how."""
    if _transforms_active():
        return True
    tangents = forward_ad._current_level >= 0
    return tangents and any(forward_ad.unpack_dual(image).tangent is not None for image in images)


def call(name: str, *arguments: Any) -> Any:
    """An operator of the images `arguments[:2]`."""
    if torch.compiler.is_compiling() or _tracing_state() is not None:
        return getattr(torch.ops.splat_ssim, name)(*arguments)
    if torch.is_grad_enabled() and (arguments[0].requires_grad or arguments[1].requires_grad):
        return _eager[name](*arguments)
    return below_autograd(name, *arguments)


def call_backward(name: str, *arguments: Any) -> Any:
    """A backward operator; one that is to be differentiated goes where the second derivative is refused."""
    if torch.is_grad_enabled():
        return getattr(torch.ops.splat_ssim, name)(*arguments)
    return below_autograd(name, *arguments)


def below_autograd(name: str, *arguments: Any) -> Any:
    """An operator without a record of its derivative."""
    if _nobody_watches(arguments):
        return DEVICES["cpu" if arguments[0].is_cpu else "cuda"].implementations[name](*arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return getattr(torch.ops.splat_ssim, name).default(*arguments)


def _nobody_watches(arguments: Sequence[Any]) -> bool:
    """Tensors of no subclass, all on the CPU or all on CUDA, and nothing that `is_watched` sees."""
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
    """Whether an eager call must not go past the dispatcher: somebody traces, transforms, profiles or batches it.

    Nor may it where a tensor is negated lazily, as the imaginary part of a conjugate is: its memory holds another sign.
    """
    return (
        _dispatch_modes() > 0
        or _profiler_enabled()
        or _transforms_active()
        or _tracing_state() is not None
        or forward_ad._current_level >= 0
        or any(_is_wrapped(tensor) or _is_legacy_batched(tensor) or tensor.is_neg() for tensor in tensors)
    )


def is_batched(tensor: Tensor) -> bool:
    """Whether torch.vmap, or the vmap of is_grads_batched, hands the tensor in."""
    return _is_wrapped(tensor) or _is_legacy_batched(tensor)


def may_change_in_place(*tensors: Tensor) -> bool:
    """Whether nobody differentiates, traces or batches what is done to the tensors."""
    return (
        not torch.is_grad_enabled()
        and _dispatch_modes() == 0
        and all(type(tensor) is Tensor and not is_batched(tensor) for tensor in tensors)
    )
