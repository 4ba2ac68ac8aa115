"""The software that a run was trained with: versions.json in its folder."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from splat_ssim._files import write_json
from splat_ssim._version import __version__

NAME = "versions.json"


def write_versions(folder: Path) -> None:
    """Writes versions.json to a run folder."""
    write_json(folder / NAME, versions())


def versions() -> dict[str, str]:
    """Name -> version of this package, of those it computes with and of the machine.

    Example:
        >>> from splat_ssim.trainer.versions import versions
        >>> {"splat_ssim", "python", "torch", "machine"} <= versions().keys()
        True
    """
    found = {"splat_ssim": __version__, "python": platform.python_version(), "torch": torch.__version__}
    for package in ("numpy", "gsplat"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    found["machine"] = f"{platform.system()} {platform.machine()}"
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found
