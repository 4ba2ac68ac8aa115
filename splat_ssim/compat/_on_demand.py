"""Imports our classes that extend another package's on first use, so that the package itself is not needed before."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any


def import_on_demand(name: str, offered: Sequence[str], module: str, package: str) -> Any:
    """Returns the attribute `name` of our `module`. The `__getattr__` of a drop-in calls it.

    Args:
        name: Name of the requested attribute.
        offered: All names that the drop-in has.
        module: Module of `splat_ssim.compat` that defines the names which need `package`.
        package: The package that `module` imports.

    Raises:
        AttributeError: The drop-in does not have the name.
        ImportError: The package is not installed.
    """
    if name not in offered:
        raise AttributeError(f"the drop-in for {package} has no {name!r}, only {', '.join(offered)}")
    try:
        return getattr(importlib.import_module(f"splat_ssim.compat.{module}"), name)
    except ModuleNotFoundError as error:
        raise ImportError(f"{name} needs {package} to be installed, got: {error}") from error
