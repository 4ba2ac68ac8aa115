"""Adam's compiled step on the CPU."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from . import _library

_P, _N = ctypes.c_void_p, ctypes.c_int64
_ADAM = (_P, _P, _P, _P, _P, _N, ctypes.c_int)
_ADAM_ROWS = (_P, _P, _P, _P, _P, _P, _N, _N, ctypes.c_int)


def supported(*tensors: Tensor) -> bool:
    """Whether the compiled step can run on these: dense float32 on the CPU, and the library is there."""
    fit = all(t.device.type == "cpu" and t.dtype == torch.float32 and t.is_contiguous() for t in tensors)
    return fit and _library.library() is not None


def step(
    parameter: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    rate: float,
    betas: tuple[float, float],
    eps: float,
    second_correction: float,
    visible: Tensor | None = None,
) -> None:
    """One step of Adam, in place.

    m = β1 m + (1 - β1) g, v = β2 v + (1 - β2) g², p -= rate·m / (sqrt(v / second_correction) + eps).

    Args:
        parameter: float32, contiguous, on the CPU, as are the next three, all of one shape.
        gradient: Of the parameter.
        exp_avg: First moment m.
        exp_avg_sq: Second moment v.
        rate: Learning rate, divided by the first bias correction where there is one.
        betas: β1 and β2.
        eps: Added to the denominator.
        second_correction: 1 - β2^step, or 1 for none.
        visible: [rows] bool or uint8; where given, only these rows change.
    """
    constants = (ctypes.c_double * 5)(*betas, eps, rate, second_correction**-0.5)
    pointers = (t.data_ptr() for t in (parameter, gradient, exp_avg, exp_avg_sq))
    threads = torch.get_num_threads()
    if visible is None:
        status = _library.kernel("adam", _ADAM)(*pointers, constants, parameter.numel(), threads)
    else:
        rows = len(visible)
        width = parameter.numel() // rows if rows else 0
        call = _library.kernel("adam_rows", _ADAM_ROWS)
        status = call(*pointers, constants, visible.data_ptr(), rows, width, threads)
    _library.check(status, "adam", (tuple(parameter.shape),))
