"""Writes a volume as a file of Gaussians: `python scripts/compress.py VOLUME OUT.gsv --bytes 100000`."""

import sys
from pathlib import Path

# The repository's own package where none is installed.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from splat_ssim_commands import compress

if __name__ == "__main__":
    compress()
