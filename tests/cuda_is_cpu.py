"""Runs scripts that ask for "cuda" on the CPU: inside `cuda_is_cpu()`, the device "cuda" stands for the CPU.

It works for code that never asks whether a tensor is on a GPU. Everything is computed by the CPU. A transfer that a GPU
would need is not checked (tests/pretend_device.py does that).
"""

from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
import torch._dynamo
from torch.overrides import TorchFunctionMode

#: Functions of torch.cuda that scripts call, and their results on the CPU.
_FUNCTIONS = {
    "is_available": True,
    "device_count": 1,
    "current_device": 0,
    "synchronize": None,
    "set_device": None,
    "empty_cache": None,
    "max_memory_allocated": 0,
    "max_memory_reserved": 0,
    "memory_allocated": 0,
    "reset_peak_memory_stats": None,
    "manual_seed": None,
    "manual_seed_all": None,
}


def _on_cpu(value):
    if isinstance(value, torch.device) and value.type == "cuda":
        return torch.device("cpu")
    if isinstance(value, str) and (value == "cuda" or value.startswith("cuda:")):
        return "cpu"
    return value


class _Mode(TorchFunctionMode):
    def __torch_function__(self, function, types, arguments=(), keywords=None):
        if function in (torch.Tensor.cuda, torch.Tensor.pin_memory):
            return arguments[0]
        keywords = {name: _on_cpu(value) for name, value in (keywords or {}).items()}
        return function(*map(_on_cpu, arguments), **keywords)


@contextmanager
def cuda_is_cpu():
    """Makes "cuda" the CPU for all of torch."""
    parse = torch._C._nn._parse_to  # nn.Module.to calls it directly, so no mode sees the call

    def parse_to(*arguments, **keywords):
        return parse(*map(_on_cpu, arguments), **{name: _on_cpu(value) for name, value in keywords.items()})

    load = torch.load

    def load_here(*arguments, map_location=None, **keywords):
        return load(*arguments, map_location=_on_cpu(map_location), **keywords)

    with ExitStack() as stack:
        for name, result in _FUNCTIONS.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, lambda *_, result=result, **__: result))
        stack.enter_context(mock.patch.object(torch._C._nn, "_parse_to", parse_to))
        stack.enter_context(mock.patch.object(torch, "load", load_here))
        # torch.compile would ask CUDA for its state. Without it the same code runs uncompiled.
        stack.enter_context(mock.patch.object(torch._dynamo.config, "disable", True))
        stack.enter_context(_Mode())
        yield
