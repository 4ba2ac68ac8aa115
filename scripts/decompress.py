"""Writes the volume of a file of Gaussians: `python scripts/decompress.py FILE.gsv OUT.nii.gz`."""

import sys
from pathlib import Path

# The repository's own package where none is installed.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from splat_ssim_commands import decompress

if __name__ == "__main__":
    decompress()
