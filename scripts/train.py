"""Trains a scene, a volume, a CT or an image: `python scripts/train.py [--config FILE] [--data-dir DATA]` (--help)."""

import sys
from pathlib import Path

# The repository's own package where none is installed.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from splat_ssim_commands import train

if __name__ == "__main__":
    train()
