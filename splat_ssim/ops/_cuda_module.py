"""Loads the CUDA kernels on a device through the CUDA driver.

The library always contains their source, and a compiled image too if it was built with nvcc. If the driver rejects the
image (it is for other architectures, or from a newer toolkit), NVRTC compiles the source instead. It compiles one unit
at its first use: the kernels of a window, or those that all windows share. Nothing here runs without a GPU.
"""

from __future__ import annotations

import ctypes
import functools
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from . import _nvrtc, compiled
from ._cuda_kernels import SHARED, Kernels, kernel_names, kernel_units

_RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED

#: Seconds between a failure to load kernels and the next attempt. Each further failure doubles them.
_FIRST_PAUSE = 1.0


class _Driver:
    """Calls functions of libcuda and raises their errors as RuntimeError with the driver's message."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL("libcuda.so.1")
        self.call("cuInit", 0)

    def call(self, name: str, *arguments: object) -> None:
        result = self.library[name](*arguments)
        if result:
            text = ctypes.c_char_p()
            self.library.cuGetErrorString(result, ctypes.byref(text))
            raise RuntimeError(f"{name} failed: {(text.value or b'unknown error').decode()} ({result})")

    def address(self, name: str) -> int:
        """The function's address, for the launcher to call."""
        return ctypes.cast(self.library[name], ctypes.c_void_p).value or 0


@functools.cache
def _driver() -> _Driver:
    return _Driver()


def embedded_image() -> int | None:
    """Address of the fat binary in the library, or None where it was built without nvcc."""
    library = compiled.library()
    if library is None:
        return None
    library.splat_ssim_cuda_image.restype = ctypes.c_void_p
    image: int | None = library.splat_ssim_cuda_image()
    return image


def source() -> bytes:
    """The source text of all kernels."""
    library = compiled.library()
    if library is None:
        raise RuntimeError("the compiled library is missing")
    library.splat_ssim_cuda_source.restype = ctypes.c_char_p
    source: bytes = library.splat_ssim_cuda_source()
    return source


class _Module(ctypes.Structure):
    """`Module` of csrc/cuda/launch_driver.cpp, followed by its table of functions."""

    _fields_ = (
        ("launch_kernel", ctypes.c_void_p),
        ("get_current", ctypes.c_void_p),
        ("set_current", ctypes.c_void_p),
        ("context", ctypes.c_void_p),
    )


class _Device:
    """The kernels on one CUDA device of torch: a table of functions. Each is null until its unit is loaded."""

    def __init__(self, index: int) -> None:
        library = compiled.library()
        if library is None:
            raise RuntimeError("the compiled library is missing")
        self._driver = _driver()
        properties = torch.cuda.get_device_properties(index)
        self._architecture = f"sm_{properties.major}{properties.minor}"
        device, self._context = ctypes.c_int(), ctypes.c_void_p()
        self._driver.call("cuDeviceGet", ctypes.byref(device), index)
        self._driver.call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)  # the one torch uses
        head = _Module(
            self._driver.address("cuLaunchKernel"),
            self._driver.address("cuCtxGetCurrent"),
            self._driver.address("cuCtxSetCurrent"),
            self._context.value,
        )
        words = [head.launch_kernel, head.get_current, head.set_current, head.context]
        self._names, self._units = kernel_names(library), kernel_units(library)
        self._first = len(words)
        self._table = (ctypes.c_void_p * (len(words) + len(self._names)))(*words)
        self._loaded: set[int] = set()
        self._refused: RuntimeError | None = None
        self.kernels = Kernels(library, ctypes.addressof(self._table), properties.multi_processor_count)

    def load(self, unit: int) -> None:
        """Loads the kernels of a unit. If the library's compiled image fits the device, it loads all units at once.

        Raises:
            RuntimeError: Neither the compiled image nor NVRTC gives kernels for the device.
        """
        if unit in self._loaded:
            return
        previous, mode = ctypes.c_void_p(), ctypes.c_int(_RELAXED)
        self._driver.call("cuCtxGetCurrent", ctypes.byref(previous))
        self._driver.call("cuCtxSetCurrent", self._context)
        # Without this the driver refuses to load a module while a CUDA graph is captured, and ends the capture.
        self._driver.call("cuThreadExchangeStreamCaptureMode", ctypes.byref(mode))
        try:
            self._load_or_compile(unit)
        finally:
            self._driver.call("cuThreadExchangeStreamCaptureMode", ctypes.byref(mode))
            if previous.value:
                self._driver.call("cuCtxSetCurrent", previous)

    def _load_or_compile(self, unit: int) -> None:
        image = embedded_image()
        if image is not None and self._refused is None:
            try:
                return self._load(ctypes.c_void_p(image), set(self._units))
            except RuntimeError as error:
                self._refused = error
        try:
            self._load(_nvrtc.cached_kernels(source(), self._architecture, unit), {unit})
        except RuntimeError as error:
            raise error from self._refused

    def _load(self, image: ctypes.c_void_p | bytes, units: set[int]) -> None:
        """Loads an image into the current context, and the functions of its units into the table."""
        module, functions = ctypes.c_void_p(), {}
        self._driver.call("cuModuleLoadData", ctypes.byref(module), image)
        for place, (name, unit) in enumerate(zip(self._names, self._units, strict=True), start=self._first):
            if unit in units:
                function = ctypes.c_void_p()
                self._driver.call("cuModuleGetFunction", ctypes.byref(function), module, name.encode())
                functions[place] = function.value
        for place, value in functions.items():
            self._table[place] = value
        self._loaded |= units


#: Index of a device -> its kernels. They are never unloaded: the tables live as long as the process.
_devices: dict[int, _Device] = {}


def load(index: int, unit: int) -> Kernels:
    """The kernels on CUDA device `index` of torch. Those of the unit and of `SHARED` are loaded.

    Raises:
        RuntimeError: Neither the compiled image nor NVRTC gives kernels for it.
        OSError: There is no CUDA driver.
    """
    device = _devices.get(index)
    if device is None:
        device = _devices[index] = _Device(index)
    device.load(SHARED)
    device.load(unit)
    return device.kernels


#: (device, unit) -> its kernels.
_ready: dict[tuple[int, int], Kernels] = {}
#: (device, unit) -> time of the next attempt to load its kernels, and the pause if that attempt fails too.
_paused: dict[tuple[int, int], tuple[float, float]] = {}
#: (device, cause) of every failure that a warning has told.
_told: set[tuple[int, str]] = set()


def kernels(index: int, unit: int) -> Kernels | None:
    """`load` with its result kept for each device and unit. Returns None if loading fails, after one warning a cause.

    A failure may be temporary, if memory was short or another process held the cache. Loading is therefore tried again
    after a pause.
    """
    found = _ready.get((index, unit))
    if found is not None:
        return found
    again, pause = _paused.get((index, unit), (0.0, _FIRST_PAUSE))
    if time.monotonic() < again:
        return None
    try:
        found = _ready[index, unit] = load(index, unit)
        return found
    except (RuntimeError, OSError) as error:
        _paused[index, unit] = (time.monotonic() + pause, 2 * pause)
        if (index, str(error)) in _told:
            return None
        _told.add((index, str(error)))
        warnings.warn(
            f"splat_ssim has no CUDA kernels for {torch.cuda.get_device_name(index)}: every function gives the same "
            f"numbers through plain torch, more slowly. The cause: {error}",
            RuntimeWarning,
            stacklevel=3,
        )
        return None


# torch.cuda.current_stream makes a Stream object at every call, which this avoids.
_current_stream: Callable[[int], int] = getattr(
    torch._C, "_cuda_getCurrentRawStream", lambda index: torch.cuda.current_stream(index).cuda_stream
)


def target(tensor: Tensor, unit: int) -> tuple[Kernels, int]:
    """Returns a unit's kernels for the tensor's device, and the device's current stream.

    Raises:
        RuntimeError: There are no kernels. Public functions check that there are first.
    """
    found = kernels(tensor.device.index, unit)
    if found is None:
        raise RuntimeError(f"there are no CUDA kernels for {tensor.device}")
    return found, _current_stream(tensor.device.index)
