"""Helpers of the renderer's operators: they call kernels and give operators their gradients."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from . import compiled

P, D = ctypes.c_void_p, ctypes.c_double


def call(name: str, argtypes: tuple[type, ...], *arguments: object) -> None:
    """Calls a kernel for the instruction set in use, and raises if its status is an error."""
    compiled.check(compiled.kernel(name, argtypes)(*arguments), name)


def int_array(*values: int) -> ctypes.Array[ctypes.c_int64]:
    """Numbers as an array of int64."""
    return (ctypes.c_int64 * len(values))(*values)


def pointer(tensor: Tensor | None) -> int | None:
    """The address of a tensor, null for None."""
    return None if tensor is None else tensor.data_ptr()


def pointers(tensors: Sequence[Tensor | None]) -> ctypes.Array[ctypes.c_void_p]:
    """The addresses of tensors as an array."""
    return (P * len(tensors))(*map(pointer, tensors))


def dense(tensor: Tensor | None) -> Tensor | None:
    """The tensor itself if it is contiguous, else a contiguous copy."""
    return None if tensor is None else tensor.contiguous()


def below_autograd(operator: torch._ops.OpOverload, inputs: Sequence[object]) -> tuple[Tensor, ...]:
    """Calls an operator without recording its derivative."""
    with torch._C._AutoDispatchBelowAutograd():
        outputs: tuple[Tensor, ...] = operator(*inputs)
    return outputs


def differentiable(name: str, function: type[torch.autograd.Function]) -> None:
    """Gives an operator its gradient. torch.library.register_autograd would make each call 0.2 ms slower."""
    torch.library.impl(name, "Autograd", lambda *inputs: function.apply(*inputs))
