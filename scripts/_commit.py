"""Which commit a measurement belongs to."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def commit() -> str:
    """The commit of the working tree, marked -dirty where it has changes; $COMMIT where the files are no repository."""
    named = os.environ.get("COMMIT", "")
    if not named and shutil.which("git"):
        command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=9"]
        named = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return named or "unknown"
