"""Trains a scene: `python scripts/train.py [--config FILE.yaml] [--data-dir FOLDER] …`; --help lists every option."""

import sys
from pathlib import Path

# The repository's own package where none is installed.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from splat_ssim.trainer.cli import main

if __name__ == "__main__":
    main()
