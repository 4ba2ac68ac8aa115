"""Peers that compute SSIM by value alone, most of them of bytes."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.candidate import BYTES, GREY_BYTES, SIGMA, Candidate
from benchmarks.ffmpeg import ffmpeg_version, libvmaf_call, ssim_filter_call

Pixels = NDArray[np.uint8]


# --- scikit-image


def _scikit_image(x: Tensor, y: Tensor, data_range: float) -> Tensor:
    from skimage.metrics import structural_similarity

    options = {"gaussian_weights": True, "sigma": SIGMA, "use_sample_covariance": False, "data_range": data_range}
    values = [structural_similarity(a.numpy(), b.numpy(), channel_axis=0, **options) for a, b in zip(x, y, strict=True)]
    return torch.tensor(sum(values) / len(values))


def _scikit_image_uniform(x: Pixels, y: Pixels, data_range: float) -> float:
    from skimage.metrics import structural_similarity

    value: float = structural_similarity(x, y, channel_axis=2, data_range=data_range)
    return value


def _ours_uniform(x: Pixels, y: Pixels, data_range: float, padding: str) -> float:
    """Our drop-in for scikit-image's defaults; its windows lie inside."""
    from splat_ssim.compat.skimage import structural_similarity

    value: float = structural_similarity(x, y, channel_axis=2, data_range=data_range)
    return value


# --- Fast-SSIM


def _fast_ssim(x: Pixels, y: Pixels, data_range: float) -> float:
    import fast_ssim

    value: float = fast_ssim.ssim(x, y, data_range=int(data_range))
    return value


# --- OpenCV


def _opencv(x: Pixels, y: Pixels, data_range: float) -> float:
    import cv2

    means, _ = cv2.quality.QualitySSIM_compute(x, y)
    mean: float = sum(means[: x.shape[2]]) / x.shape[2]
    return mean


def _opencv_threads(count: int) -> None:
    import cv2

    cv2.setNumThreads(count)


def _opencv_version() -> str:
    if importlib.util.find_spec("cv2") is None:
        raise ImportError("the package opencv-contrib-python-headless is not installed")
    import cv2

    if not hasattr(cv2, "quality"):
        raise ImportError(f"OpenCV {cv2.__version__} was built without its module quality (opencv-contrib has it)")
    version: str = cv2.__version__
    return version


# --- rmgr::ssim, a C++ library with a C interface

#: Names its shared library, built by its own CMake with BUILD_SHARED_LIBS and its OpenMP entry.
RMGR = "BENCHMARK_RMGR_SSIM"


class _Image(ctypes.Structure):
    _fields_ = (("pixels", ctypes.c_void_p), ("step", ctypes.c_ssize_t), ("stride", ctypes.c_ssize_t))


class _Parameters(ctypes.Structure):
    _fields_ = (
        ("width", ctypes.c_uint32),
        ("height", ctypes.c_uint32),
        ("images", _Image * 2),
        ("map", ctypes.c_void_p),
        ("map_step", ctypes.c_ssize_t),
        ("map_stride", ctypes.c_ssize_t),
        ("allocate", ctypes.c_void_p),  # NULL: it works on the stack.
        ("deallocate", ctypes.c_void_p),
    )


class _Version(ctypes.Structure):
    _fields_ = (("numbers", ctypes.c_uint32 * 3), ("text", ctypes.c_char_p))


@functools.cache
def _rmgr() -> ctypes.CDLL:
    path = os.environ.get(RMGR)
    if not path:
        raise ImportError(f"{RMGR} does not name its shared library")
    try:
        library = ctypes.CDLL(path)
        arguments = (ctypes.POINTER(ctypes.c_float), ctypes.POINTER(_Parameters))
        library.rmgr_ssim_compute_ssim_openmp.argtypes = arguments
        library.rmgr_ssim_compute_ssim.argtypes = (*arguments, ctypes.c_void_p)
        library.rmgr_ssim_get_version.argtypes = (ctypes.POINTER(_Version),)
    except (OSError, AttributeError) as error:
        raise ImportError(f"{RMGR} required a shared library of rmgr::ssim with OpenMP, got {path}: {error}") from error
    return library


def _rmgr_version() -> str:
    version = _Version()
    _rmgr().rmgr_ssim_get_version(version)
    decoded: str = version.text.decode()
    return decoded


def _rmgr_ssim(x: Pixels, y: Pixels, data_range: float) -> float:
    images = (_Image * 2)(*(_Image(a.ctypes.data, a.strides[1], a.strides[0]) for a in (x, y)))
    value, parameters = ctypes.c_float(), _Parameters(x.shape[1], x.shape[0], images)
    if torch.get_num_threads() > 1:
        status = _rmgr().rmgr_ssim_compute_ssim_openmp(value, parameters)
    else:  # Its team of one thread would wait for the operating system.
        status = _rmgr().rmgr_ssim_compute_ssim(value, parameters, None)
    if status != 0:
        raise RuntimeError(f"rmgr::ssim ended with {status}")
    return value.value


def _rmgr_threads(count: int) -> None:
    """Threads of the OpenMP runtime that the library is linked with, which need not be torch's."""
    _rmgr()
    ctypes.CDLL("libgomp.so.1").omp_set_num_threads(count)


_BY_VALUE: dict[str, Any] = {"dims": (2,), "differentiable": False}
_UNIFORM: dict[str, Any] = {
    **_BY_VALUE,
    "padding": "valid",
    "images": BYTES,
    "definition": "7-tap uniform, sample covariance",
    "counterpart": _ours_uniform,
}
_FILTER: dict[str, Any] = {**_BY_VALUE, "images": GREY_BYTES, "same": False, "clocked": True}

CANDIDATES = [
    Candidate(
        "scikit-image",
        "scikit-image",
        _scikit_image,
        "valid",
        "planes, one thread",
        dims=(2, 3),
        differentiable=False,
        module="skimage",
    ),
    Candidate(
        "scikit-image, defaults",
        "scikit-image",
        _scikit_image_uniform,
        form="one thread",
        module="skimage",
        **_UNIFORM,
    ),
    Candidate(
        "Fast-SSIM",
        "Fast-SSIM",
        _fast_ssim,
        form="C++, a thread for each core",
        module="fast_ssim",
        **_UNIFORM,
    ),
    Candidate(
        "OpenCV",
        "opencv-contrib-python-headless",
        _opencv,
        "reflect",
        "quality.QualitySSIM_compute",
        images=BYTES,
        find=_opencv_version,
        set_threads=_opencv_threads,
        **_BY_VALUE,
    ),
    Candidate(
        "rmgr::ssim",
        "rmgr::ssim",
        _rmgr_ssim,
        "replicate",
        "C++, OpenMP for several threads",
        images=GREY_BYTES,
        find=_rmgr_version,
        set_threads=_rmgr_threads,
        **_BY_VALUE,
    ),
    Candidate(
        "ffmpeg ssim",
        "ffmpeg ssim",
        ssim_filter_call,
        "",
        "filter, marginal time of a frame, slice threads",
        definition="8x8 uniform, every 4th pixel",
        find=ffmpeg_version,
        **_FILTER,
    ),
    Candidate(
        "libvmaf float_ssim",
        "libvmaf",
        libvmaf_call,
        "valid",
        "ffmpeg's filter, marginal time of a frame, frame threads, scale=1",
        find=functools.partial(ffmpeg_version, "libvmaf"),
        **_FILTER,
    ),
]
