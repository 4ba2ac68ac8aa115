"""Trains a scene, a volume or an image: `python scripts/train.py [--config FILE.yaml] [--data-dir DATA] …` (--help)."""

import os
import sys
from pathlib import Path

# The repository's own package where none is installed.
sys.path.append(str(Path(__file__).resolve().parent.parent))

# OpenMP's workers, which torch's own operations use, would spin between them on the cores our kernels need.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from splat_ssim.trainer.cli import main

if __name__ == "__main__":
    main()
