"""Makes a COLMAP scene from photographs or a video: `python scripts/prepare.py PHOTOS_OR_VIDEO SCENE` (--help)."""

import sys
from pathlib import Path

# The repository's own package where none is installed.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from splat_ssim_commands import prepare

if __name__ == "__main__":
    prepare()
