"""Where the tests of public functions run: the CPU's kernels, CUDA's through the host emulation, and a GPU.

A module takes part by `pytestmark = pytest.mark.usefixtures("device")` (conftest.py). Its tests make tensors on torch's
default device; a generator is of the CPU and so are the tensors it fills, until they are moved to `torch_device()`.
"""

import ctypes
import functools
import inspect
import os
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
import torch

from splat_ssim.ops import (
    _cuda_kernels,
    _cuda_module,
    dispatch,
    photometric_cuda,
    prepared,
    ssim_cuda,
    voxelize_cuda,
    xray_cuda,
)

ROOT = Path(__file__).resolve().parent.parent
FAST_CONTEXT = ROOT / "tests" / "native" / "fast_context.h"
#: `make gpu` sets SPLAT_SSIM_GPU=1: tests then fail, rather than being skipped, where CUDA is not reached.
needs_gpu = pytest.mark.skipif(
    not (torch.cuda.is_available() or os.environ.get("SPLAT_SSIM_GPU")), reason="PyTorch reaches no CUDA device"
)
EMULATION = pytest.param("emulation", marks=pytest.mark.emulation)
DEVICES = (
    "cpu",
    EMULATION,
    pytest.param("cuda", marks=[pytest.mark.cuda, needs_gpu]),
)
#: For tests of code above the operators, such as the reading of options: there the emulation adds nothing.
NATIVE = tuple(name for name in DEVICES if name is not EMULATION)


def draws(count, emulated):
    """(device, seed) pairs for tests that draw their case at random. The slow emulation gets fewer."""
    return [
        pytest.param(getattr(device, "values", (device,))[0], seed, marks=getattr(device, "marks", ()))
        for device in DEVICES
        for seed in range(emulated if device is EMULATION else count)
    ]


def cases(every, emulated):
    """(device, *case) for tests of listed cases. The slow emulation gets those of `emulated`."""
    return [
        pytest.param(getattr(device, "values", (device,))[0], *case, marks=getattr(device, "marks", ()))
        for device in DEVICES
        for case in (emulated if device is EMULATION else every)
    ]


_current = "cpu"


def current():
    """The device of the running test: "cpu", "emulation" or "cuda"."""
    return _current


def torch_device():
    """The torch device of the running test's tensors."""
    return torch.device("cuda" if _current == "cuda" else "cpu")


def build_emulation(variant):
    """The emulation's library, or its program "sanitize". It is compiled if it is out of date, by one process alone."""
    sys.path.insert(0, str(ROOT / "csrc"))
    import build_emulation

    (ROOT / "build").mkdir(exist_ok=True)
    with (ROOT / "build" / f"emulation-{variant}.lock").open("w") as file:
        if sys.platform != "win32":
            import fcntl

            # Several processes want it at once: the others wait, rather than compile the same for half a minute.
            fcntl.flock(file, fcntl.LOCK_EX)
        if variant != "plain":
            return build_emulation.build(variant)
        built = ROOT / "build" / "emulation" / "libsplat_ssim_emulation_plain.so"
        if built.exists() and built.stat().st_mtime < FAST_CONTEXT.stat().st_mtime:
            built.unlink()
        command = [*build_emulation.native.compiler(), "-include", str(FAST_CONTEXT)]
        with mock.patch.object(build_emulation.native, "compiler", lambda: command):
            return build_emulation.build(variant)


@functools.cache
def emulated():
    """The launchers of the emulation, for a device of two multiprocessors."""
    return _cuda_kernels.Kernels(ctypes.CDLL(str(build_emulation("plain"))), None, 2)


def _available(index, window_size):
    return True


_available._dynamo_marked_constant = True


def run_cuda_operators_on_the_cpu():
    """Makes the dispatcher pass CPU tensors to CUDA's operators until the returned library is destroyed."""
    library = torch.library.Library("splat_ssim", "IMPL")
    operators = {"voxelize": voxelize_cuda._voxelize, "voxelize_backward": voxelize_cuda._voxelize_backward}
    operators |= {"xray": xray_cuda._xray, "xray_backward": xray_cuda._xray_backward}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # operators are overridden on purpose
        for name, function in (photometric_cuda.IMPLEMENTATIONS | operators).items():
            _override(library, name, function)
    return library


def _override(library, name, function):
    """Gives an operator another kernel for the CPU, for as long as the library lives."""
    if "allow_override" in inspect.signature(library.impl).parameters:
        library.impl(name, function, "CPU", allow_override=True)
        return
    # torch 2.4 refuses a second kernel from Python, so for a moment it must not know of the first.
    key = f"splat_ssim/{name}/CPU"
    torch.library._impls.discard(key)
    library.impl(name, function, "CPU")
    library._op_impls.discard(key)


@contextmanager
def _emulation():
    """The CPU's operators run CUDA's launchers and kernels."""
    kernels = emulated()
    kernels.library.splat_emulation_configure(2, 1, -1, 0)
    library = run_cuda_operators_on_the_cpu()
    with (
        mock.patch.object(_cuda_module, "target", lambda tensor, unit: (kernels, 0)),
        mock.patch.object(ssim_cuda, "_has_device_kernels", _available),
        # Eager calls on CPU tensors bypass the dispatcher.
        mock.patch.dict(dispatch.DEVICES, cpu=dispatch.DEVICES["cuda"]),
    ):
        prepared.forget()
        try:
            yield
        finally:
            prepared.forget()
            library._destroy()


@contextmanager
def use(name):
    """Runs the block on the device called `name`."""
    global _current
    _current = name
    try:
        if name == "emulation":
            with _emulation():
                yield
        elif name == "cuda":
            # Peers must compute float32 convolutions in float32, not in TF32.
            with torch.device("cuda"), torch.backends.cudnn.flags(allow_tf32=False, deterministic=True):
                yield
        else:
            yield
    finally:
        _current = "cpu"
