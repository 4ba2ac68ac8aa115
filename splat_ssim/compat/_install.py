"""`install` and `uninstall`: replace another package's modules, functions and classes by ours, and restore them.

A package that has not been imported is replaced by our modules in `sys.modules`. If it has been imported, its functions
and classes are replaced in each of its modules, so that code that holds such a module gets ours too. A submodule that
has a counterpart here is replaced in `sys.modules` even then, and itself stays as it is: the classes of
`pytorch_msssim.ssim` look up their own names in it when they are made.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Collection, MutableMapping
from types import ModuleType
from typing import Any, NamedTuple

#: Stands for an entry that did not exist.
_ABSENT: Any = object()

#: Module of a package that is replaced as a whole -> our module.
_MODULES = {
    "fused_ssim": {"fused_ssim": "fused_ssim"},
    "fused_ssim3d": {"fused_ssim3d": "fused_ssim3d"},
    "fussim": {"fussim": "fussim"},
    "pytorch_msssim": {"pytorch_msssim": "pytorch_msssim", "pytorch_msssim.ssim": "_pytorch_msssim_ssim"},
}


class _Part(NamedTuple):
    """The part of an installed package that is replaced: the names that our modules offer."""

    #: Modules of `splat_ssim.compat`.
    ours: tuple[str, ...]
    #: The modules in which names are replaced, with all below them that are imported.
    packages: tuple[str, ...]


#: The packages of which only the names that ours offers are replaced.
_PARTS = {
    "kornia": _Part(("kornia",), ("kornia.losses", "kornia.metrics")),
    "gsplat": _Part(("gsplat_rendering", "gsplat"), ("gsplat", "gsplat.losses")),
    "monai": _Part(("monai",), ("monai.losses", "monai.metrics")),
    "piq": _Part(("piq",), ("piq",)),
    "skimage": _Part(("skimage",), ("skimage.metrics", "skimage.metrics._structural_similarity")),
    "torchmetrics": _Part(("torchmetrics",), ("torchmetrics", "torchmetrics.functional.image", "torchmetrics.image")),
}
_NAMES = (*_MODULES, *_PARTS)


class _Change(NamedTuple):
    """A changed entry of `sys.modules` or of a module's namespace, with its old and its new value."""

    entries: MutableMapping[str, Any]
    key: str
    before: Any
    ours: Any


_installed: dict[str, list[_Change]] = {}


def install(*names: str) -> None:
    """Replaces each named package, or the part of it that we have, by our version.

    "fused_ssim", "fused_ssim3d", "fussim" and "pytorch_msssim" are replaced as a whole. They need not be installed.

    "gsplat", "kornia", "monai", "piq", "skimage" and "torchmetrics" must be installed. The functions and classes of
    `splat_ssim.compat.<name>` replace those of the same name, also in modules such as `kornia.losses.ssim`. Everything
    else stays as it is. kornia 0.8 and earlier get `splat_ssim.compat.kornia_0_8`. gsplat's `rasterization` is replaced
    by that of `splat_ssim.compat.gsplat_rendering`, which uses our renderer for tensors on the CPU and gsplat's own for
    all others. gsplat's losses are replaced from gsplat 1.6 on, the first version that has them.

    It does not matter whether the package has been imported: `import package`, `package.function` and pickles of the
    original's modules give ours afterwards. Only a name that other code has already bound by `from package import name`
    does not change, nor does a subclass of the original's class; both work as before. So does a module object
    `pytorch_msssim.ssim` that code holds. Installing again also covers modules of the package that were imported in the
    meantime.

    While ours is installed, objects of the original's classes cannot be pickled, because pickle finds ours under their
    name: this also concerns `torch.save` of a whole model, and worker processes that are started by "spawn". Install
    before you make such objects. MONAI's bundles find our classes and functions by the full path, such as
    `"_target_": "monai.losses.SSIMLoss"`, but not by the name alone.

    Args:
        *names: One or more of the names above.

    Raises:
        ValueError: No name is given, or a name is unknown. Nothing is installed.
        ImportError: A package that must be installed is missing, or kornia's version cannot be read. Nothing is
            installed.

    Example:
        >>> from splat_ssim import compat
        >>> compat.install("fused_ssim")
        >>> from fused_ssim import fused_ssim
        >>> fused_ssim.__module__
        'splat_ssim.compat.fused_ssim'
        >>> compat.uninstall("fused_ssim")
    """
    if not names:
        raise ValueError(f"install needs names out of {', '.join(_NAMES)}, got none")
    _check_names("install", names)
    plans = {name: _plan_part(name) if name in _PARTS else _plan_package(name) for name in names}
    for name, replace in plans.items():
        _restore(name)
        changes = _installed[name] = []
        for entries, key, ours in replace():
            changes.append(_Change(entries, key, entries.get(key, _ABSENT), ours))
            entries[key] = ours


def uninstall(*names: str) -> None:
    """Restores what `install` has replaced.

    A package that was not replaced stays as it is. So does a name that other code has changed since.

    Args:
        *names: The packages to restore, named as for `install`. Without names, all packages are restored.

    Raises:
        ValueError: A name is not one that `install` takes. Nothing is changed.

    Example:
        >>> from splat_ssim import compat
        >>> compat.install("fused_ssim")
        >>> compat.uninstall()
    """
    _check_names("uninstall", names)
    for name in names or tuple(_installed):
        _restore(name)


def _check_names(function: str, names: tuple[str, ...]) -> None:
    unknown = [str(name) for name in names if name not in _NAMES]
    if unknown:
        raise ValueError(f"{function} needs names out of {', '.join(_NAMES)}, got {', '.join(unknown)}")


def _restore(name: str) -> None:
    for change in reversed(_installed.pop(name, [])):
        if change.entries.get(change.key, _ABSENT) is not change.ours:
            continue
        if change.before is _ABSENT:
            del change.entries[change.key]
        else:
            change.entries[change.key] = change.before


#: Returns the changes (entries, key, ours) when it is called. Everything that can fail has been done before.
_Plan = Callable[[], list[tuple[MutableMapping[str, Any], str, Any]]]


def _plan_package(name: str) -> _Plan:
    ours = {theirs: importlib.import_module(f"splat_ssim.compat.{own}") for theirs, own in _MODULES[name].items()}

    def replacements() -> list[tuple[MutableMapping[str, Any], str, Any]]:
        if sys.modules.get(name) is None:
            return [(sys.modules, theirs, module) for theirs, module in ours.items()]
        # Submodules that we have, even if the imported package lacks them, and names that its top module lacks.
        submodules = ours.keys() - {name}
        found = _replacements_in(name, ours[name], excluded=submodules)
        found += [(sys.modules, theirs, ours[theirs]) for theirs in submodules]
        namespace = vars(sys.modules[name])
        found += [(namespace, key, getattr(ours[name], key)) for key in ours[name].__all__ if key not in namespace]
        return found

    return replacements


def _plan_part(name: str) -> _Plan:
    part = _installed_part(name)
    for package in part.packages:
        importlib.import_module(package)
    modules = [importlib.import_module(f"splat_ssim.compat.{own}") for own in part.ours]
    for package in part.packages:
        # Classes of ours that extend the package's are made while its own are still in their places; and a package that
        # imports its names on demand keeps its own, which can be put back.
        for ours in modules:
            for key in _definitions(ours):
                getattr(sys.modules[package], key, None)

    def replacements() -> list[tuple[MutableMapping[str, Any], str, Any]]:
        found = [change for package in part.packages for ours in modules for change in _replacements_in(package, ours)]
        # Only one change for each entry, because a listed package may be inside another one.
        return list({(id(entries), key): (entries, key, value) for entries, key, value in found}.values())

    return replacements


def _installed_part(name: str) -> _Part:
    """The part to replace in the installed version."""
    if name == "kornia":
        return _PARTS[name]._replace(ours=(_kornia_module(),))
    if name == "gsplat" and importlib.util.find_spec("gsplat.losses") is None:
        return _Part(("gsplat_rendering",), ("gsplat",))  # before 1.6
    return _PARTS[name]


def _kornia_module() -> str:
    """The name of our module for the installed version of kornia."""
    kornia = importlib.import_module("kornia")
    try:
        version = tuple(int(part) for part in kornia.__version__.split(".")[:2])
    except (AttributeError, ValueError):
        got = getattr(kornia, "__version__", None)
        raise ImportError(f"kornia.__version__ must start with two numbers, got {got!r}") from None
    return "kornia" if version >= (0, 9) else "kornia_0_8"


def _replacements_in(
    package: str, ours: ModuleType, excluded: Collection[str] = ()
) -> list[tuple[MutableMapping[str, Any], str, Any]]:
    """Our functions and classes for those of the same name in the imported modules of a package.

    A module is never replaced by a function: in kornia.losses "ssim" is a module, in kornia.metrics a function.
    """
    modules = [
        module
        for name, module in list(sys.modules.items())
        if isinstance(module, ModuleType)
        and (name == package or name.startswith(package + "."))
        and name not in excluded
    ]
    return [
        (vars(module), name, value)
        for module in modules
        for name, value in _definitions(ours).items()
        if callable(vars(module).get(name))
    ]


def _definitions(module: ModuleType) -> dict[str, Any]:
    """The functions and classes that a module of ours offers in place of the original's, private ones included."""
    return {name: getattr(module, name) for name in (*module.__all__, *getattr(module, "_PRIVATE_NAMES", ()))}
