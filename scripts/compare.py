"""Compares images, folders or volumes: `python scripts/compare.py A B [--map FILE]`; --help lists every option."""

import sys
from pathlib import Path

# The repository's own package where none is installed.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from splat_ssim_commands import compare

if __name__ == "__main__":
    compare()
