"""Measures everybody's error against float64: `python -m benchmarks.accuracy` (--help)."""

import sys
from pathlib import Path

# The repository's own packages where none are installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.accuracy import main
from benchmarks.measure import run

if __name__ == "__main__":
    run(main)
