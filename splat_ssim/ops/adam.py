"""Adam's compiled step on the CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import compiled

_P, _N = ctypes.c_void_p, ctypes.c_int64
_ADAM = (_P, _P, _P, _N, ctypes.c_int)
_ADAM_ROWS = (_P, _P, _P, _P, _P, _P, _N, _N, ctypes.c_int)


class Update(NamedTuple):
    """The values that one step reads and changes.

    m = β1 m + (1 - β1) g, v = β2 v + (1 - β2) g², p -= rate·m / (sqrt(v / second_correction) + eps).
    """

    parameter: Tensor  # float32, contiguous, on the CPU, as are the next three, all of one shape
    gradient: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    rate: float  # divided by the first bias correction where there is one
    betas: tuple[float, float]
    eps: float
    second_correction: float  # 1 - β2^step, or 1 for none


def supported(*tensors: Tensor) -> bool:
    """Whether the compiled step can run: the tensors are dense float32 on the CPU and the library is there."""
    for tensor in tensors:
        if not (tensor.device.type == "cpu" and tensor.dtype == torch.float32 and tensor.is_contiguous()):
            return False
    return compiled.library() is not None


def _constants(update: Update) -> tuple[float, ...]:
    return (*update.betas, update.eps, update.rate, update.second_correction**-0.5)


def step(updates: Sequence[Update]) -> None:
    """One step of Adam on several parameters, in place, as one piece of work for all threads."""
    if not updates:
        return
    pointers = [t.data_ptr() for update in updates for t in update[:4]]
    constants = [value for update in updates for value in _constants(update)]
    counts = [update.parameter.numel() for update in updates]
    status = compiled.kernel("adam", _ADAM)(
        (_P * len(pointers))(*pointers),
        (ctypes.c_double * len(constants))(*constants),
        (_N * len(counts))(*counts),
        len(counts),
        torch.get_num_threads(),
    )
    compiled.check(status, "adam", [tuple(update.parameter.shape) for update in updates])


def step_rows(update: Update, visible: Tensor) -> None:
    """One step of the rows (first dimension) where `visible`, [rows] bool, is true; the others do not change."""
    rows = len(visible)
    width = update.parameter.numel() // rows if rows else 0
    status = compiled.kernel("adam_rows", _ADAM_ROWS)(
        *(t.data_ptr() for t in update[:4]),
        (ctypes.c_double * compiled.constants()["adam_constants"])(*_constants(update)),
        visible.data_ptr(),
        rows,
        width,
        torch.get_num_threads(),
    )
    compiled.check(status, "adam", [tuple(update.parameter.shape)])
