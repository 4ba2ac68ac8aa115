"""Fused, differentiable SSIM for images and volumes, and a Gaussian-splatting trainer around it."""

from typing import TYPE_CHECKING

from splat_ssim._version import __version__ as __version__
from splat_ssim.functional import ms_ssim, ssim, ssim3d
from splat_ssim.loss import photometric_loss
from splat_ssim.modules import MSSSIM, SSIM, SSIM3D

if TYPE_CHECKING:
    from splat_ssim.ply import load_ply, save_ply

__all__ = ["MSSSIM", "SSIM", "SSIM3D", "load_ply", "ms_ssim", "photometric_loss", "save_ply", "ssim", "ssim3d"]


def __getattr__(name: str) -> object:
    """Imports the trainer's part on first use: the losses need none of its packages."""
    if name in ("load_ply", "save_ply"):
        from splat_ssim import ply

        return getattr(ply, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
