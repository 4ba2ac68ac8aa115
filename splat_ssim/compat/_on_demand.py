"""Classes of ours that extend another package's: it is imported when they are asked for, not before."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any


def import_on_demand(name: str, offered: Sequence[str], module: str, package: str) -> Any:
    """`name` of our `module`, for the `__getattr__` of a drop-in.

    Args:
        name: What is asked for.
        offered: The names that the drop-in has.
        module: The module of `splat_ssim.compat` that defines those of them which need `package`.
        package: The package that `module` imports.

    Raises:
        AttributeError: The name is not offered.
        ImportError: The package is not installed.
    """
    if name not in offered:
        raise AttributeError(f"the drop-in for {package} has no {name!r}, only {', '.join(offered)}")
    try:
        return getattr(importlib.import_module(f"splat_ssim.compat.{module}"), name)
    except ModuleNotFoundError as error:
        raise ImportError(f"{name} needs {package} to be installed, got: {error}") from error
