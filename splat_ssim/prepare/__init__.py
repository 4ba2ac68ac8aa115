"""From photographs or a video to a COLMAP scene, on the CPU: what scripts/prepare.py does."""

from splat_ssim.prepare.options import Options
from splat_ssim.prepare.run import prepare

__all__ = ["Options", "prepare"]
