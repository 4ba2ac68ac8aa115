"""Writes a trained scene as a volume: `python scripts/distill_volume.py RUN/scene.ply OUT.npz [--size 96]`."""

import sys
from pathlib import Path

# The repository's own package where none is installed.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from splat_ssim.trainer.cli import call

if __name__ == "__main__":
    call("splat_ssim.volume.distill:distill")
