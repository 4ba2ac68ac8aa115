"""Fits a volume in several ways: `python -m benchmarks.volume` (--help)."""

import sys
from pathlib import Path

# The repository's own packages where none are installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.volume import command

if __name__ == "__main__":
    command()
