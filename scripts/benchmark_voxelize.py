"""Times the voxeliser and the SSIM3D loss: `python -m benchmarks.voxelize` (--help)."""

import sys
from pathlib import Path

# The repository's own packages where none are installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measure import run
from benchmarks.voxelize import main

if __name__ == "__main__":
    run(main)
