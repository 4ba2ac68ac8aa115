"""Writes the page about a run of a scene or a volume: `python scripts/report.py RUN_FOLDER` (--install-viewer once)."""

import sys
from pathlib import Path

# The repository's own package where none is installed.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from splat_ssim_commands import report

if __name__ == "__main__":
    report()
