"""Writes a trained scene for viewers: `python scripts/export.py RUN_FOLDER [OUT.spz] [--all] [--views 8]`."""

import sys
from pathlib import Path

# The repository's own package where none is installed.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from splat_ssim_commands import export

if __name__ == "__main__":
    export()
