"""The compiled library and the torch operators on it. Private: the public functions check their arguments first."""

from . import ssim, ssim_cpu, ssim_cuda  # noqa: F401 - each device registers its SSIM kernels
