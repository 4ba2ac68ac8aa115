"""Rebuilds a volume from fitted Gaussians: `python scripts/voxelize.py RUN/gaussians.quantized OUT.nii.gz`."""

import sys
from pathlib import Path

# The repository's own package where none is installed.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from splat_ssim_commands import voxelize

if __name__ == "__main__":
    voxelize()
