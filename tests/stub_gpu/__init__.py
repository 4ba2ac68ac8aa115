"""A stub GPU for the scripts of `make gpu` on machines without one: a stub driver, and the kernels' host emulation.

After `install()`, torch reports one CUDA device. Its tensors claim to be on it and lie in the CPU's memory. The
package loads its kernels through a stub of libcuda, whose cuLaunchKernel runs the emulation, so that everything above
the driver is what runs on a GPU: the choice of the device's operators, loading, launchers, counts of starts. Times are
those of an imaginary clock, and torch.compile compiles nothing.

`python -m tests.stub_gpu PROGRAM …` runs a program on it, with Python's own -c, -m and -.
"""

import contextlib
import ctypes
import functools
import types

import torch
from torch.overrides import TorchFunctionMode

from splat_ssim.ops import _cuda_module, dispatch
from tests import devices

CUDA = torch.device("cuda", 0)
NAME = "Stub GPU"


class Driver:
    """Replaces `_cuda_module._Driver`. A kernel's handle is its place in the table plus one."""

    def __init__(self):
        self._emulated = devices.emulated()
        self._emulated.library.splat_emulation_configure(2, 1, -1, 0)
        pointer, unsigned = ctypes.c_void_p, ctypes.c_uint
        launch = ctypes.CFUNCTYPE(ctypes.c_int, pointer, *([unsigned] * 7), pointer, ctypes.POINTER(pointer), pointer)
        get, set_ = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(pointer)), ctypes.CFUNCTYPE(ctypes.c_int, pointer)
        self._functions = {
            "cuLaunchKernel": launch(self._launch),
            "cuCtxGetCurrent": get(lambda context: 0),
            "cuCtxSetCurrent": set_(lambda context: 0),
        }

    def call(self, name, *arguments):
        """Gives `load` an object at the address of each function, which it needs."""
        if name in ("cuDevicePrimaryCtxRetain", "cuModuleLoadData"):
            arguments[0]._obj.value = 1
        if name == "cuModuleGetFunction":
            arguments[0]._obj.value = 1 + self._emulated.names.index(arguments[2].decode())

    def address(self, name):
        return ctypes.cast(self._functions[name], ctypes.c_void_p).value

    def _launch(self, function, *rest):
        kernel, argument = self._emulated.names[function - 1], rest[-2][0]
        name = kernel.removeprefix("splat_")
        if name not in ("pad", "fold", "l1", "reduce", "scale"):
            name = {"voxel": "voxelize", "xray": "xray"}.get(name.partition("_")[0], "ssim")
        status = self._emulated._launchers[name](None, argument, None)
        return 719 if status else 0  # CUDA_ERROR_LAUNCH_FAILED


class _Tensors(TorchFunctionMode):
    """Makes tensors claim to be on the device, and creates new tensors for the device on the CPU."""

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        if function is torch.Tensor.device.__get__:
            return CUDA
        if function in (torch.Tensor.is_cuda.__get__, torch.Tensor.is_cpu.__get__):
            return function is torch.Tensor.is_cuda.__get__
        if function is torch.Tensor.cuda:
            return arguments[0]
        if function is torch.device:
            return function(*arguments, **(keywords or {}))
        arguments = [_on_the_cpu(value) for value in arguments]
        return function(*arguments, **{name: _on_the_cpu(value) for name, value in (keywords or {}).items()})


def _on_the_cpu(value):
    if isinstance(value, torch.device):
        return torch.device("cpu")
    return "cpu" if isinstance(value, str) and value.split(":")[0] == "cuda" else value


class Event:
    """An event of an imaginary clock, on which a millisecond passes from one event to the next."""

    now = 0.0

    def __init__(self, enable_timing=False):
        self.time = 0.0

    def record(self, stream=None):
        Event.now += 1.0
        self.time = Event.now

    def elapsed_time(self, end):
        return end.time - self.time

    def query(self):
        return False

    def synchronize(self):
        pass


class Stream:
    """A stream whose work is always done."""

    cuda_stream = 0

    def __init__(self, *arguments, **keywords):
        pass

    def wait_stream(self, other):
        pass

    def synchronize(self):
        pass


class Graph:
    """A captured call. It is not recorded."""

    def replay(self):
        pass


@contextlib.contextmanager
def _in_place(*arguments, **keywords):
    yield


def _profile(profile, activities):
    return profile(activities=[torch.profiler.ProfilerActivity.CPU])


def _stub_cuda():
    properties = types.SimpleNamespace(name=NAME, major=9, minor=0, multi_processor_count=2, total_memory=1 << 34)
    torch.cuda.is_available = lambda: True
    torch.cuda.is_current_stream_capturing = lambda: False
    torch.cuda.device_count = lambda: 1
    torch.cuda.current_device = lambda: 0
    torch.cuda.get_device_name = lambda device=None: NAME
    torch.cuda.get_device_capability = lambda device=None: (9, 0)
    torch.cuda.get_device_properties = lambda device=None: properties
    torch.cuda.current_stream = lambda device=None: Stream()
    # A torch built for CUDA queries the driver itself.
    _cuda_module._current_stream = lambda index: torch.cuda.current_stream(index).cuda_stream
    torch.cuda.Stream, torch.cuda.Event, torch.cuda.CUDAGraph = Stream, Event, Graph
    torch.cuda.stream = torch.cuda.graph = _in_place
    torch.cuda.get_rng_state = torch.get_rng_state
    torch.cuda.get_rng_state_all = lambda: []
    for name in ("memory_allocated", "max_memory_allocated"):
        setattr(torch.cuda, name, lambda device=None: 0)
    for name in ("init", "synchronize", "_sleep", "reset_peak_memory_stats", "empty_cache", "set_rng_state"):
        setattr(torch.cuda, name, lambda *arguments: None)
    torch.profiler.profile = functools.partial(_profile, torch.profiler.profile)
    torch.compile = lambda function, **options: function


def _differentiate(*arguments, run=torch.autograd._engine_run_backward, **keywords):
    # `backward` and `grad` reach the mode first, which is then left.
    with _Tensors():
        return run(*arguments, **keywords)


_kept = []


def install():
    """Gives this process the device, permanently."""
    _kept.append(devices.run_cuda_operators_on_the_cpu())
    driver = Driver()
    _cuda_module._driver = lambda: driver
    _cuda_module.embedded_image = lambda: 4096
    _stub_cuda()
    torch.autograd._engine_run_backward = _differentiate
    # Code below a function of torch sees the CPU.
    dispatch.DEVICES["cpu"] = dispatch.DEVICES["cuda"]
    _kept.append(_Tensors().__enter__())
