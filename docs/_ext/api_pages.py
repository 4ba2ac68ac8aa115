"""The pages of the Python interface: every public name of every public module, by autodoc."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

#: Title -> modules. A public module with an `__all__` that is not named here is put under the last title.
GROUPS: dict[str, list[str]] = {
    "Losses and metrics": [
        "splat_ssim",
        "splat_ssim.loss",
        "splat_ssim.registry",
        "splat_ssim.reference",
        "splat_ssim.distributed",
        "splat_ssim.comparison",
    ],
    "Drop-ins": ["splat_ssim.compat"],
    "Scenes": [
        "splat_ssim.scene",
        "splat_ssim.scene.data",
        "splat_ssim.render",
        "splat_ssim.strategy",
        "splat_ssim.optim",
        "splat_ssim.ply",
        "splat_ssim.prepare",
    ],
    "Volumes": ["splat_ssim.volume"],
    "Training": ["splat_ssim.trainer", "splat_ssim.errors"],
    "More": [],
}


def modules() -> list[str]:
    """The public modules of the package that have an `__all__`."""
    package = importlib.import_module("splat_ssim")
    names = ["splat_ssim", *(found.name for found in pkgutil.walk_packages(package.__path__, "splat_ssim."))]
    public = [n for n in names if "._" not in n and not n.endswith((".__main__", "libsplat_ssim"))]
    return [name for name in public if hasattr(importlib.import_module(name), "__all__")]


def groups() -> dict[str, list[str]]:
    """`GROUPS` with every module that has an `__all__`."""
    result = {title: list(names) for title, names in GROUPS.items()}
    known = {name for names in result.values() for name in names}
    for name in modules():
        if name not in known:
            result["Drop-ins" if name.startswith("splat_ssim.compat.") else "More"].append(name)
    return {title: names for title, names in result.items() if names}


def public_names(module: ModuleType) -> list[str]:
    """The names that a module offers: its `__all__`, else what it defines itself."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
    ]


_CODE = re.compile(r"``.+?``|`[^`]+`")


def as_rst(lines: Sequence[str]) -> list[str]:
    """The lines of a docstring as reStructuredText.

    Docstrings here are plain text: names in single backticks are code, and stars and bars are themselves. Examples
    stay as they are.
    """
    result, in_example = [], False
    for line in lines:
        in_example = line.lstrip().startswith(">>>") or (in_example and bool(line.strip()))
        if in_example:
            result.append(line)
            continue
        bullet = re.match(r"\s*\* ", line)
        start = bullet.end() if bullet else 0
        parts, place = [line[:start]], start
        for code in _CODE.finditer(line, start):
            parts += [_escaped(line[place : code.start()]), f"``{code[0].strip('`')}``"]
            place = code.end()
        result.append("".join([*parts, _escaped(line[place:])]))
    return result


def _escaped(text: str) -> str:
    return re.sub(r"(?<!\\)([*|])|(?<=\w)_(?=\W|$)", lambda found: "\\" + found[0], text)


def _with_blocks(lines: Sequence[str]) -> list[str]:
    """Indented lines after a colon as blocks of code."""
    result = list(lines)
    for index in range(len(result) - 2):
        if result[index].endswith(":") and not result[index + 1].strip() and result[index + 2].startswith("    "):
            result[index] += ":"
    return result


def entries(name: str) -> list[str]:
    """The text of a module's page, as reStructuredText."""
    module = importlib.import_module(name)
    title = f"``{name}``"
    lines = [title, "=" * len(title), "", f".. py:module:: {name}", ""]
    lines += [*_module_text(inspect.getdoc(module) or ""), ""]
    for public in public_names(module):
        value = getattr(module, public)
        home = _home(value, name)
        if home is not None:
            lines += [f".. py:data:: {public}", "", f"   That of ``{home}``.", ""]
        elif inspect.isclass(value):
            lines += [f".. autoclass:: {name}.{public}", "   :members:", ""]
        elif callable(value):
            lines += [f".. autofunction:: {name}.{public}", ""]
        else:
            lines += [f".. py:data:: {public}", "", f"   {type(value).__name__}", ""]
    return lines


def _module_text(text: str) -> list[str]:
    """A module's docstring: its paragraphs escaped, its indented blocks as code."""
    lines: list[str] = []
    for line in _with_blocks(text.splitlines()):
        lines += [line] if line.startswith("    ") else as_rst([line])
    return lines


def _home(value: object, name: str) -> str | None:
    """The other drop-in of kornia, whose very names a module hands on, or the package that they come from."""
    home = getattr(value, "__module__", None) or name
    if home.partition(".")[0] != "splat_ssim":
        return home if home != "builtins" else None
    if name != "splat_ssim.compat.kornia_0_8":
        return None
    kornia = importlib.import_module("splat_ssim.compat.kornia")
    public = getattr(value, "__name__", "")
    return "splat_ssim.compat.kornia" if getattr(kornia, public, None) is value else None


def write(folder: Path) -> list[str]:
    """Writes a page for each module, and returns the full names of all that they document."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    documented: list[str] = []
    toctrees: list[str] = []
    for title, names in groups().items():
        toctrees += ["```{toctree}", f":caption: {title}", ":maxdepth: 1", ""]
        for name in names:
            (folder / f"{name}.rst").write_text("\n".join(entries(name)) + "\n")
            documented += [f"{name}.{public}" for public in public_names(importlib.import_module(name))]
            toctrees.append(f"/generated/api/{name}")
        toctrees += ["```", ""]
    (folder / "toctrees.txt").write_text("\n".join(toctrees))
    return documented
