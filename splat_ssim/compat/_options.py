"""Options as callers of the originals pass them: Python numbers, numpy scalars, tensors with one element."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Iterable
from typing import TypeAlias

import torch
from torch import Tensor

#: An option after it was read. It stays a tensor if more than its value matters, such as its gradient: see `number`.
Number: TypeAlias = float | Tensor


def number(name: str, value: object) -> Number:
    """Reads an option as a number, or keeps it a tensor if the caller differentiates or traces it.

    A tensor of one element becomes a float, which waits for its device. It stays a tensor if it carries a gradient, or
    while torch.compile, torch.jit.trace or a transform of torch.func is active, since a float would drop it from those.

    Raises:
        TypeError: The value is neither a number nor a tensor of numbers.
    """
    if type(value) is float or type(value) is int:
        return float(value)
    if isinstance(value, Tensor):
        if value.numel() != 1 or value.requires_grad or is_watched(value):
            return value
        return float(value)
    found = value.item() if getattr(value, "size", None) == 1 and hasattr(value, "item") else value  # of numpy
    if isinstance(found, (numbers.Real, torch.SymInt, torch.SymFloat)):
        return float(found)
    raise TypeError(f"{name} must be a number, got {type(value).__name__}")


def pair(name: str, values: Iterable[object]) -> tuple[Number, Number]:
    """Reads two numbers from a sequence, an array or a tensor.

    Raises:
        ValueError: There are more or fewer than two.
        TypeError: One is not a number, or `values` is not a sequence.
    """
    if not isinstance(values, Iterable):
        raise TypeError(f"{name} must be two numbers, got {type(values).__name__}")
    try:
        first, second = values
    except ValueError:
        raise ValueError(f"{name} must be two numbers, got {values}") from None
    return number(f"{name}[0]", first), number(f"{name}[1]", second)


def integer(name: str, value: object) -> int:
    """Reads an int, a numpy integer or an integer tensor of one element as an int.

    Raises:
        TypeError: The value is none of these.
    """
    if type(value) is int:
        return value
    if isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got bool")
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} must be an int, got {type(value).__name__}") from None


def whole(name: str, value: object) -> int:
    """`integer` that also accepts a bool and a float without a fraction.

    Raises:
        TypeError: The value is not a number.
        ValueError: It has a fraction.
    """
    if type(value) is int:
        return value
    found = float(number(name, value))
    if not found.is_integer():
        raise ValueError(f"{name} must be a whole number, got {value}")
    return int(found)


def is_positive(*values: Number) -> bool:
    """Whether all are finite floats above 0, as the operators require."""
    return all(isinstance(value, float) and 0 < value < math.inf for value in values)


def is_watched(*tensors: Tensor) -> bool:
    """Whether something records or transforms the operations on these tensors, so that plain torch must compute."""
    if torch.compiler.is_compiling() or are_kernels_barred():
        return True
    return any(torch._C._functorch.is_functorch_wrapped_tensor(tensor) for tensor in tensors)


def are_kernels_barred() -> bool:
    """Whether torch.jit.trace records, which keeps plain operations only, or a forward-mode derivative is taken."""
    return torch.jit.is_tracing() or torch.autograd.forward_ad._current_level >= 0
