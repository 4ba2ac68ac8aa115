"""The interfaces of other packages, computed by this one, for code that one does not want to edit.

`import splat_ssim.compat.fused_ssim as fused_ssim` in a single place, or, before that code is imported,

    import splat_ssim.compat
    splat_ssim.compat.install("fused_ssim", "pytorch_msssim")

after which `import fused_ssim` anywhere gives ours.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

__all__ = ["install"]

_WHOLE_PACKAGES = ("fused_ssim", "fused_ssim3d", "pytorch_msssim")


def install(*names: str) -> None:
    """Puts our module in the place of each package named.

    "fused_ssim", "fused_ssim3d" and "pytorch_msssim" are entered into `sys.modules`: every later import gives ours,
    whether the package is installed or not. For "kornia" the functions and classes of `splat_ssim.compat.kornia` (for
    an installed kornia 0.8 or earlier of `splat_ssim.compat.kornia_0_8`) replace those of the same name in the
    installed `kornia.losses` and `kornia.metrics`; all else stays kornia's. What other code has imported by
    `from package import name` before stays what it was.

    Raises:
        ValueError: A name is none of these; nothing is installed then.
        ImportError: "kornia" is asked for and not installed.

    Example:
        >>> install("fused_ssim")
        >>> from fused_ssim import fused_ssim
    """
    known = (*_WHOLE_PACKAGES, "kornia")
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ValueError(f"install needs names out of {', '.join(known)}, got {', '.join(unknown) or 'none'}")
    for name in names:
        if name == "kornia":
            _install_kornia()
        else:
            sys.modules[name] = importlib.import_module(f"splat_ssim.compat.{name}")


def _install_kornia() -> None:
    kornia = importlib.import_module("kornia")
    version = tuple(int(part) for part in kornia.__version__.split(".")[:2])
    ours = importlib.import_module(f"splat_ssim.compat.{'kornia' if version >= (0, 9) else 'kornia_0_8'}")
    for package in ("kornia.losses", "kornia.metrics"):
        theirs: ModuleType = importlib.import_module(package)
        for name in ours.__all__:
            if hasattr(theirs, name):
                setattr(theirs, name, getattr(ours, name))
