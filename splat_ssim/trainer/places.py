"""Finds configs and examples that are named without their folder, and says how the user calls the commands."""

from __future__ import annotations

import sys
from pathlib import Path

from splat_ssim._files import exists, is_file
from splat_ssim.trainer.mappings import ConfigError

_PACKAGE = Path(__file__).resolve().parent.parent
#: The folder of the configs, in the source folder and, copied there by setup.py, in an installed package.
CONFIGS = "configs"
#: The folder of the examples, which only the source folder has: they are larger than the package.
EXAMPLES = "assets"


def source_folder() -> Path | None:
    """The source folder that this package is used from, in a checkout or an editable installation; None elsewhere."""
    return _PACKAGE.parent if (_PACKAGE.parent / "setup.py").exists() else None


def find_config(path: Path) -> Path:
    """Returns the path of a config file, or if there is no such file, of the package's config with the same name.

    Args:
        path: Path of the file; or a name such as fast.yaml or configs/fast.yaml, which works in any folder.
    """
    if not exists(path) and path.parent in (Path(), Path(CONFIGS)):
        for folder in (_PACKAGE, source_folder()):
            if folder is not None and is_file(folder / CONFIGS / path.name):
                return folder / CONFIGS / path.name
    return path


def find_example(path: Path) -> Path:
    """The path of a training's default data, in the source folder if they are not in the working directory."""
    source = source_folder()
    return path if exists(path) or source is None or not exists(source / path) else source / path


def check_example(path: Path) -> None:
    """Raises ConfigError if the path names an example that only the source folder has."""
    if path.parts[:1] == (EXAMPLES,) and not exists(path) and source_folder() is None:
        raise ConfigError(
            f"{path}: required data to train on, got nothing there: the examples are in the source folder alone, "
            "so start there or name your own data (--data-dir)"
        )


def program(name: str) -> str:
    """The command line of a command such as "train": splat-train, or python scripts/train.py in the source folder."""
    if Path(sys.argv[0]).stem.startswith("splat-") or source_folder() is None:
        return f"splat-{name}"
    return f"python scripts/{name}.py"
