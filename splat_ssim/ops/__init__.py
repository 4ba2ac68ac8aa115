"""The compiled operators. Importing them registers their schemas, and then each device's implementations."""

from . import photometric, photometric_cpu, photometric_cuda, ssim  # noqa: F401
