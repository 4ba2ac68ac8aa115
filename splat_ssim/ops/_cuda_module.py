"""Loads the CUDA kernels on a device through the CUDA driver.

The library carries them compiled where it was built with nvcc, and always as source. What the driver does not take (an
image for other architectures, or of a newer toolkit) is compiled by NVRTC instead. Nothing here runs without a GPU.
"""

from __future__ import annotations

import ctypes
import functools
import warnings

import torch

from . import _library, _nvrtc
from ._cuda_launch import Kernels, kernel_names


class _Driver:
    """The functions of libcuda that are used, raising RuntimeError with the driver's words."""

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
    library = _library.library()
    if library is None:
        return None
    library.splat_ssim_cuda_image.restype = ctypes.c_void_p
    return library.splat_ssim_cuda_image()


def source() -> bytes:
    """The kernels in one text."""
    library = _library.library()
    if library is None:
        raise RuntimeError("the compiled library is missing")
    library.splat_ssim_cuda_source.restype = ctypes.c_char_p
    return library.splat_ssim_cuda_source()


class _Module(ctypes.Structure):
    """`Module` of csrc/cuda/launch_driver.cpp, followed by its table of functions."""

    _fields_ = (
        ("launch_kernel", ctypes.c_void_p),
        ("get_current", ctypes.c_void_p),
        ("set_current", ctypes.c_void_p),
        ("context", ctypes.c_void_p),
    )


def _load(driver: _Driver, image: ctypes.c_void_p | bytes, names: list[str]) -> list[int]:
    """Loads an image into the current context. Returns its functions."""
    module = ctypes.c_void_p()
    driver.call("cuModuleLoadData", ctypes.byref(module), image)
    functions = []
    for name in names:
        function = ctypes.c_void_p()
        driver.call("cuModuleGetFunction", ctypes.byref(function), module, name.encode())
        functions.append(function.value or 0)
    return functions


def _load_or_compile(driver: _Driver, names: list[str], capability: tuple[int, int]) -> list[int]:
    image, refused = embedded_image(), None
    if image is not None:
        try:
            return _load(driver, ctypes.c_void_p(image), names)
        except RuntimeError as error:
            refused = error
    try:
        cubin = _nvrtc.cached_kernels(source(), f"sm_{capability[0]}{capability[1]}")
        return _load(driver, cubin, names)
    except RuntimeError as error:
        raise error from refused


# Kernels are never unloaded: the tables live as long as the process.
_tables: list[ctypes.Array] = []


def load(index: int) -> Kernels:
    """The kernels on CUDA device `index` of torch.

    Raises:
        RuntimeError: Neither the compiled image nor NVRTC gives kernels for it.
        OSError: There is no CUDA driver.
    """
    library = _library.library()
    if library is None:
        raise RuntimeError("the compiled library is missing")
    names = kernel_names(library)
    driver = _driver()
    properties = torch.cuda.get_device_properties(index)
    device, context, previous = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
    driver.call("cuDeviceGet", ctypes.byref(device), index)
    driver.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)  # the one torch uses
    driver.call("cuCtxGetCurrent", ctypes.byref(previous))
    driver.call("cuCtxSetCurrent", context)
    try:
        functions = _load_or_compile(driver, names, (properties.major, properties.minor))
    finally:
        if previous.value:
            driver.call("cuCtxSetCurrent", previous)
    head = _Module(
        driver.address("cuLaunchKernel"),
        driver.address("cuCtxGetCurrent"),
        driver.address("cuCtxSetCurrent"),
        context.value,
    )
    words = [head.launch_kernel, head.get_current, head.set_current, head.context, *functions]
    table = (ctypes.c_void_p * len(words))(*words)
    _tables.append(table)
    return Kernels(library, ctypes.addressof(table), properties.multi_processor_count)


@functools.cache
def kernels(index: int) -> Kernels | None:
    """`load`, once for each device; None, with one warning, where there are no kernels for it."""
    try:
        return load(index)
    except (RuntimeError, OSError) as error:
        warnings.warn(
            f"splat_ssim has no CUDA kernels for {torch.cuda.get_device_name(index)}: every function gives the same "
            f"numbers through plain torch, more slowly. The cause: {error}",
            RuntimeWarning,
            stacklevel=3,
        )
        return None
