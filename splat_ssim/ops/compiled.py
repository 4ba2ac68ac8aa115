"""Loads the compiled library and hands out its kernels for the instruction set in use."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from splat_ssim._version import __version__

if TYPE_CHECKING:
    from _ctypes import CFuncPtr

#: The ABI version that this package needs. csrc/cpu/library.cpp states the version that a library has.
ABI_VERSION = 9

#: Sizes in bytes of the structures in csrc/cpu/layout.h that Python packs or allocates. Loading compares them with the
#: library's.
SIZES = {
    "sizeof_arguments": 58 * 8,
    "sizeof_loss_arguments": 64 * 8,
    "sizeof_pyramid_arguments": 64 * 8,
    "sizeof_record": 16 * 4,
}

#: Environment variable that names another library to load, such as the build with sanitizers. For tests.
LIBRARY_VARIABLE = "SPLAT_SSIM_LIBRARY"


def library_name(platform: str = sys.platform) -> str:
    """Returns the library's file name on a system, as csrc/toolchain.py builds it.

    Args:
        platform: Name of the system, as in sys.platform.
    """
    return {"darwin": "libsplat_ssim.dylib", "win32": "libsplat_ssim.dll"}.get(platform, "libsplat_ssim.so")


#: The folder of this package, and where the library is built.
_PACKAGE = Path(__file__).resolve().parent.parent
_BUILT = _PACKAGE / library_name()


def _find_library() -> Path:
    """The path of the library to load. If there is none, the path where a build puts it."""
    named = os.environ.get(LIBRARY_VARIABLE)
    if named:
        return Path(named)
    return _BUILT if _BUILT.exists() else _find_installed_library() or _BUILT


def _find_installed_library() -> Path | None:
    """The library of the installed package, if this one is the source folder of the same version.

    Python that starts in the source folder imports the package from there. After `pip install .` it has no library
    there, because pip builds elsewhere.
    """
    from importlib import metadata  # slow to import, and seldom needed

    for installed in metadata.distributions(name="splat_ssim"):
        if installed.version == __version__:
            for file in installed.files or ():
                if file.name == _BUILT.name and (path := Path(str(file.locate()))).exists():
                    return path
    return None


LIBRARY_PATH = _find_library()

#: Environment variable that names the instruction set to use: "avx512", "avx2" or "baseline". For tests and benchmarks.
ISA_VARIABLE = "SPLAT_SSIM_CPU"


@functools.cache
def library() -> ctypes.CDLL | None:
    """Returns the compiled library, or None after one warning if there is none.

    Raises:
        ImportError: The library has another ABI version than this package, a structure has another size, or this
            machine cannot load it.
    """
    if not LIBRARY_PATH.exists():
        is_source = (_PACKAGE.parent / "setup.py").exists()
        remedy = f"run `pip install -e .` in {_PACKAGE.parent}" if is_source else "reinstall the package"
        warnings.warn(
            f"splat_ssim has no compiled library in {_PACKAGE}: every function gives the same numbers through plain "
            f"torch, more slowly. To get the library, install a C++ compiler and {remedy}.",
            RuntimeWarning,
            stacklevel=3,
        )
        return None
    try:
        loaded = ctypes.CDLL(str(LIBRARY_PATH))
    except OSError as error:
        raise ImportError(
            f"{LIBRARY_PATH} must be a library for this machine, got: {error}; reinstall the package"
        ) from error
    found = loaded.splat_ssim_abi_version()
    if found != ABI_VERSION:
        raise ImportError(
            f"{LIBRARY_PATH} must have ABI version {ABI_VERSION}, got {found}: reinstall the package "
            "(pip install -e . rebuilds it)"
        )
    loaded.splat_ssim_cpu_isas.restype = ctypes.c_char_p
    loaded.splat_ssim_prefer_huge_pages.argtypes = [ctypes.c_void_p, ctypes.c_int64]
    loaded.splat_ssim_prefer_huge_pages.restype = None
    numbers = _constants(loaded)
    for name, size in SIZES.items():
        if numbers.get(name) != size:
            raise ImportError(
                f"{LIBRARY_PATH} must have {name} {size}, got {numbers.get(name)}: reinstall the package "
                "(pip install -e . rebuilds it)"
            )
    return loaded


def _constants(loaded: ctypes.CDLL) -> dict[str, int]:
    loaded.splat_ssim_constant_name.restype = ctypes.c_char_p
    loaded.splat_ssim_constant.restype = ctypes.c_int64
    numbers: dict[str, int] = {}
    while (name := loaded.splat_ssim_constant_name(len(numbers))) is not None:
        numbers[name.decode()] = loaded.splat_ssim_constant(len(numbers))
    return numbers


@functools.cache
def constants() -> dict[str, int]:
    """The numbers that the library shares with Python, by their names in csrc/cpu/library.cpp; empty without it."""
    loaded = library()
    return {} if loaded is None else _constants(loaded)


def available_isas() -> list[str]:
    """Instruction sets that are built in and that this processor runs, best first; empty without the library."""
    loaded = library()
    return loaded.splat_ssim_cpu_isas().decode().split(",") if loaded is not None else []


@functools.cache
def isa() -> str | None:
    """Returns the instruction set in use: the one $SPLAT_SSIM_CPU names or the best one; None without the library.

    Raises:
        ValueError: $SPLAT_SSIM_CPU names an instruction set that is not available here.
    """
    names = available_isas()
    if not names:
        return None
    wanted = os.environ.get(ISA_VARIABLE, names[0])
    if wanted not in names:
        raise ValueError(f"{ISA_VARIABLE} must be one of {', '.join(names)} on this machine, got {wanted!r}")
    return wanted


@functools.cache
def kernel(
    name: str, argtypes: tuple[type, ...], restype: type | None = ctypes.c_int, isa_name: str | None = None
) -> CFuncPtr:
    """Returns the C function splat_ssim_<name>_<isa> with its argument types set.

    Args:
        name: Name without prefix and suffix, such as "ssim2d_forward".
        argtypes: ctypes types of the arguments, in order. Pointers are ctypes.c_void_p: pass tensor.data_ptr().
        restype: ctypes type of the result. By default an int status, see `check`.
        isa_name: Instruction set to use instead of the one in use, for tests.
    """
    loaded = library()
    if loaded is None:
        raise RuntimeError(f"the compiled library is missing, kernel {name!r} cannot be called")
    function = loaded[f"splat_ssim_{name}_{isa_name or isa()}"]
    function.argtypes = list(argtypes)
    function.restype = restype
    return function


#: From this size in bytes, glibc maps fresh memory for every tensor, and page faults take longer than the kernels.
FRESH_BYTES = 32 << 20


def prefer_huge_pages(output: torch.Tensor) -> None:
    """Asks the system to use huge pages for a large CPU output that is about to be written."""
    loaded = library()
    size = output.numel() * output.element_size()
    if size >= FRESH_BYTES and loaded is not None:
        loaded.splat_ssim_prefer_huge_pages(output.data_ptr(), size)


def check(status: int, name: str, shapes: Sequence[object] = ()) -> None:
    """Raises if a kernel's status is not 0. It means a lack of memory or a defect, never a user error."""
    if status == 0:
        return
    if status == constants()["status_out_of_memory"]:
        raise MemoryError(f"{name} could not allocate its workspace for {list(shapes)}")
    raise RuntimeError(f"{name} rejected its arguments (status {status}) for {list(shapes)}")
