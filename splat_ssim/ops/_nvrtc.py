"""Compiles the CUDA kernels at first use with NVRTC, which comes with PyTorch for CUDA; results are kept on disk."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import sys
import tempfile
from pathlib import Path

from splat_ssim._files import cache_folder

_OPTIONS = ("--std=c++17",)


def _candidates() -> list[str]:
    """Possible paths of NVRTC: NVIDIA's wheels and PyTorch's own libraries on sys.path, then the system's."""
    found: list[str] = []
    for entry in map(Path, sys.path):
        for pattern in ("nvidia/*/lib/libnvrtc.so.*", "torch/lib/libnvrtc*.so*"):
            with contextlib.suppress(OSError):
                found += [str(p) for p in sorted(entry.glob(pattern), reverse=True) if "builtins" not in p.name]
    return [*found, *(f"libnvrtc.so.{version}" for version in ("13", "12", "11.2"))]


@functools.cache
def library() -> ctypes.CDLL | None:
    """NVRTC, or None where there is none."""
    for name in _candidates():
        with contextlib.suppress(OSError):
            loaded = ctypes.CDLL(name)
            loaded.nvrtcGetErrorString.restype = ctypes.c_char_p
            return loaded
    return None


def _check(nvrtc: ctypes.CDLL, result: int, what: str) -> None:
    if result:
        raise RuntimeError(f"NVRTC could not {what}: {nvrtc.nvrtcGetErrorString(result).decode()}")


def _text(nvrtc: ctypes.CDLL, program: ctypes.c_void_p, kind: str) -> bytes:
    """The output of nvrtcGet<kind>, of the size that nvrtcGet<kind>Size gives."""
    size = ctypes.c_size_t()
    _check(nvrtc, nvrtc[f"nvrtcGet{kind}Size"](program, ctypes.byref(size)), f"size the {kind}")
    buffer = ctypes.create_string_buffer(size.value)
    _check(nvrtc, nvrtc[f"nvrtcGet{kind}"](program, buffer), f"give the {kind}")
    return buffer.raw


def version(nvrtc: ctypes.CDLL) -> tuple[int, int]:
    """NVRTC's version."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(nvrtc, nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)), "say its version")
    return major.value, minor.value


def _target(nvrtc: ctypes.CDLL, architecture: str) -> tuple[str, str]:
    """The architecture to compile for a device such as "sm_90", and the kind of the result.

    The kind is CUBIN, or PTX if NVRTC does not know the device's architecture.
    """
    count = ctypes.c_int()
    _check(nvrtc, nvrtc.nvrtcGetNumSupportedArchs(ctypes.byref(count)), "count its architectures")
    known = (ctypes.c_int * count.value)()
    _check(nvrtc, nvrtc.nvrtcGetSupportedArchs(known), "name its architectures")
    wanted = int(architecture.removeprefix("sm_"))
    older = [found for found in known if found < wanted]
    if wanted in known or not older:
        return architecture, "CUBIN"
    return f"compute_{max(older)}", "PTX"


def compile_kernels(source: bytes, architecture: str, unit: int) -> bytes:
    """Compiles one unit of the kernels for one architecture.

    Args:
        source: Source text of all kernels.
        architecture: Architecture to compile for, such as "sm_90".
        unit: Unit of csrc/cuda/problem.h: the size of a window, or `SHARED`, `AXES`, `VOXELS` or `XRAYS`
            of _cuda_kernels.py.

    Returns:
        A cubin; or, if NVRTC is older than the device, PTX for the newest architecture that it knows, which the driver
        compiles.

    Raises:
        RuntimeError: There is no NVRTC, or it cannot compile the source. The message contains its log.
    """
    nvrtc = library()
    if nvrtc is None:
        raise RuntimeError("no NVRTC found: install the CUDA build of PyTorch, or nvidia-cuda-nvrtc")
    program = ctypes.c_void_p()
    created = nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, b"splat_ssim.cu", 0, None, None)
    _check(nvrtc, created, "take the source")
    target, kind = _target(nvrtc, architecture)
    try:
        options = [o.encode() for o in (f"--gpu-architecture={target}", f"-DSPLAT_UNIT={unit}", *_OPTIONS)]
        if nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options)):
            log = _text(nvrtc, program, "ProgramLog").rstrip(b"\0").decode(errors="replace")
            raise RuntimeError(f"NVRTC could not compile the kernels for {architecture}:\n{log}")
        return _text(nvrtc, program, kind)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def cached_kernels(source: bytes, architecture: str, unit: int) -> bytes:
    """`compile_kernels` with a cache on disk: compiles once for each unit, architecture, source and version of NVRTC.

    Compiling takes a few seconds. If the cache cannot be read or written, it is done every time.
    """
    nvrtc, folder = library(), cache_folder()
    if folder is None:
        return compile_kernels(source, architecture, unit)
    key = repr((source, architecture, unit, _OPTIONS, version(nvrtc) if nvrtc is not None else None))
    path = folder / f"kernels-{architecture}-{unit}-{hashlib.sha256(key.encode()).hexdigest()[:24]}.cubin"
    with contextlib.suppress(OSError):
        # The digest at the start of the file shows whether the rest is damaged.
        kept = path.read_bytes()
        if hashlib.sha256(kept[32:]).digest() == kept[:32]:
            return kept[32:]
    cubin = compile_kernels(source, architecture, unit)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(cubin).digest() + cubin)
        os.replace(temporary, path)
    return cubin
