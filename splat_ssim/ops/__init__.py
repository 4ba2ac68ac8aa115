"""The compiled operators. Importing them registers their schemas, and then each device's implementations."""

from . import photometric, ssim, ssim_cpu, ssim_cuda  # noqa: F401
