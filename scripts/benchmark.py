"""Measures SSIM beside its peers: `python scripts/benchmark.py [speed] [memory] [sweep] [plot] …` (speed --help).

Each name is a module of benchmarks/, run with the same options; all of them without a name.
"""

import importlib
import sys
from pathlib import Path

# The repository's own packages where none are installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measure import run

WHATS = ("speed", "memory", "sweep", "plot")

if __name__ == "__main__":
    whats = [word for word in sys.argv[1:] if word in WHATS]
    sys.argv[1:] = [word for word in sys.argv[1:] if word not in WHATS]
    for what in whats or WHATS:
        run(importlib.import_module(f"benchmarks.{what}").main)
