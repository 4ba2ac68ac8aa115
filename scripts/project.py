"""Writes X-ray projections of a volume: `python scripts/project.py VOLUME OUT [--views 50] [--geometry cone]`."""

import sys
from pathlib import Path

# The repository's own package where none is installed.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from splat_ssim_commands import project

if __name__ == "__main__":
    project()
