"""Shows a run of a scene in a browser: `python scripts/viewer.py RUN_FOLDER [--port 8080]`."""

import sys
from pathlib import Path

# The repository's own package where none is installed.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from splat_ssim_commands import viewer

if __name__ == "__main__":
    viewer()
