"""Evaluates a run of any kind: `python scripts/eval.py RUN_FOLDER`."""

import sys
from pathlib import Path

# The repository's own package where none is installed.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from splat_ssim_commands import evaluate

if __name__ == "__main__":
    evaluate()
