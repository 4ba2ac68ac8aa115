"""Objects by their import path: "package.module:name"."""

from __future__ import annotations

import functools
import importlib
from typing import Any


def imported(path: str) -> Any:
    """Returns the object that "package.module:name" names. The name may be dotted.

    Raises:
        ImportError: There is no such module.
        AttributeError: The module has no such name.
        ValueError: The path does not name a module.

    Example:
        >>> from splat_ssim._importing import imported
        >>> imported("math:pi")
        3.141592653589793
    """
    module, _, name = path.partition(":")
    return functools.reduce(getattr, name.split("."), importlib.import_module(module))
