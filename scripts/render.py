"""Draws what a run has trained: `python scripts/render.py RUN_FOLDER [--views VIEWS]` (--help)."""

import sys
from pathlib import Path

# The repository's own package where none is installed.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from splat_ssim_commands import render

if __name__ == "__main__":
    render()
