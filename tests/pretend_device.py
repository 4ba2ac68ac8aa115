"""Pretends a device other than the CPU, for machines without one: tensors say "meta" and compute on the CPU.

Inside `pretend_device()`, operations on tensors of device("meta") compute on hidden CPU tensors and raise what CUDA
would: for tensors of both devices in one operation (except numbers without axes, and CPU indices), for a CPU
generator that should draw on the device, and for `.numpy()`. `waits()` lists where the host would wait for a GPU.
"""

import os
import traceback
from contextlib import contextmanager
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")

#: Operators that also read small CPU tensors: the projector's frames, of shape (V, 4, 3).
_READ_ON_THE_CPU = {"splat_ssim::xray": (4, 3), "splat_ssim::xray_backward": (4, 3)}

#: Operations that copy between devices.
_COPIES = ("aten::_to_copy", "aten::copy_", "aten::to")


#: Operations for which the host waits for CUDA: they return a number, or tensors whose size depends on values.
_WAITING = {
    f"aten::{name}"
    for name in (
        "_local_scalar_dense item is_nonzero equal nonzero masked_select unique_dim _unique _unique2 "
        "unique_consecutive bincount multinomial histc linalg_inv_ex linalg_eigh _linalg_eigh _linalg_svd"
    ).split()
}

#: The waits so far: (operation, file and number of the innermost line outside of torch and the tests).
_listed = None


def _waits(name, arguments, keywords):
    """Whether the host would wait for a GPU because of this operation."""
    tensors = [t for t in tree_flatten((arguments, keywords))[0] if isinstance(t, torch.Tensor)]
    on_device = [isinstance(t, _Pretend) for t in tensors]
    if name in _COPIES:
        # A copy from the device, or to it from memory that is not page-locked. `non_blocking` means that it is.
        to = keywords.get("device")
        crosses = len(set(on_device)) > 1 or (to is not None and (torch.device(to) == DEVICE) != any(on_device))
        return crosses and not (keywords.get("non_blocking") or (name == "aten::copy_" and arguments[2:3] == (True,)))
    if not any(on_device):
        return False
    if name.startswith("aten::index"):
        indices = [t for t in tree_flatten(arguments[1:2])[0] if isinstance(t, torch.Tensor)]
        return any(t.dtype in (torch.bool, torch.uint8) for t in indices)
    return name in _WAITING or (name == "aten::repeat_interleave" and len(tensors) > 0)


def _list(name):
    outside = [
        frame
        for frame in traceback.extract_stack()
        if f"{os.sep}torch{os.sep}" not in frame.filename and f"{os.sep}tests{os.sep}" not in frame.filename
    ]
    if outside[-1].filename.endswith("_background.py"):
        return  # a constant that is cached, and only created again under a mode such as this one
    _listed.append((name, outside[-1].filename, outside[-1].lineno))


@contextmanager
def waits():
    """Yields a list that grows by (operation, file, line) wherever the host would wait for the device."""
    global _listed
    before, _listed = _listed, []
    try:
        yield _listed
    finally:
        _listed = before


class _Pretend(torch.Tensor):
    @staticmethod
    def __new__(cls, hidden):
        return torch.Tensor._make_wrapper_subclass(
            cls, hidden.shape, hidden.stride(), hidden.storage_offset(), dtype=hidden.dtype, device=DEVICE
        )

    def __init__(self, hidden):
        self.hidden = hidden

    def __repr__(self):
        return f"pretend({self.hidden!r})"

    @classmethod
    def __torch_dispatch__(cls, function, types, arguments=(), keywords=None):
        return _run(function, arguments, keywords or {})


def _run(function, arguments, keywords):
    tensors = [t for t in tree_flatten((arguments, keywords))[0] if isinstance(t, torch.Tensor)]
    here, away = [[t for t in tensors if isinstance(t, _Pretend) == wanted] for wanted in (True, False)]
    name = function._schema.name
    if _listed is not None and _waits(name, arguments, keywords):
        _list(name)
    if here and name not in _COPIES:
        if name in ("aten::index.Tensor", "aten::index", "aten::index_put_", "aten::index_put"):
            away = away[:0]
        away = [t for t in away if t.ndim and tuple(t.shape[1:]) != _READ_ON_THE_CPU.get(name)]
        if away:
            shapes = [tuple(t.shape) for t in away]
            raise RuntimeError(f"{name}: all tensors must be on the same device, got some on the CPU: {shapes}")
    device, generator = keywords.get("device"), keywords.get("generator")
    on_device = torch.device(device) == DEVICE if device is not None else bool(here)
    if on_device and generator is not None:
        raise RuntimeError(f"{name}: a generator on the device must be given, got one on {generator.device}")
    if device is not None and torch.device(device) == DEVICE:
        keywords = {**keywords, "device": "cpu"}
    arguments, plain = tree_map(lambda t: t.hidden if isinstance(t, _Pretend) else t, (arguments, keywords))
    result = function(*arguments, **plain)
    if name.endswith("_") and name != "aten::_to_copy" and isinstance(here[0] if here else None, _Pretend):
        # In-place operations return the caller's tensor, whose hidden tensor has changed.
        return result if not isinstance(result, torch.Tensor) else here[0]
    if not on_device:
        return result
    return tree_map(lambda t: _Pretend(t) if isinstance(t, torch.Tensor) else t, result)


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        return _run(function, arguments, keywords or {})


def _constants(make):
    """`torch.tensor(numbers, device=...)`, which a dispatch mode does not see as one operation."""

    def made(*arguments, device=None, **keywords):
        if device is not None and torch.device(device) == DEVICE:
            return make(*arguments, **keywords).to(DEVICE)
        return make(*arguments, device=device, **keywords)

    return made


@contextmanager
def pretend_device():
    """Makes tensors on device("meta") compute inside the block."""
    patched = [mock.patch.object(torch, name, _constants(getattr(torch, name))) for name in ("tensor", "as_tensor")]
    with patched[0], patched[1], _Mode():
        yield DEVICE
