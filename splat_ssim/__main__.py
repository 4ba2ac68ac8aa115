"""`python -m splat_ssim`: what is built and what is used."""

from __future__ import annotations

import ctypes

import torch

import splat_ssim
from splat_ssim.ops import compiled


def describe() -> dict[str, str]:
    """Describes the built and the used parts: name -> text."""
    cpu = ", ".join(compiled.available_isas())
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {
        "splat_ssim": splat_ssim.__version__,
        "library": str(compiled.LIBRARY_PATH) if cpu else "none: plain torch",
        "CPU kernels": f"{compiled.isa()} (of {cpu})" if cpu else "none",
        "threads": str(torch.get_num_threads()),
        "CUDA architectures": ", ".join(cuda_architectures()) or "none: compiled at first use",
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}",
        "device": device,
    }


def cuda_architectures() -> list[str]:
    """The CUDA architectures whose kernels are in the library, such as sm_90; empty where it was built without nvcc."""
    loaded = compiled.library()
    if loaded is None or not hasattr(loaded, "splat_ssim_cuda_architectures"):
        return []
    loaded.splat_ssim_cuda_architectures.restype = ctypes.c_char_p
    return [name for name in loaded.splat_ssim_cuda_architectures().decode().split(",") if name]


if __name__ == "__main__":
    for name, value in describe().items():
        print(f"{name + ':':20}{value}")
