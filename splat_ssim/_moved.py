"""Import paths of before the trainer was divided: they warn, for one release, and then this file goes.

A module that moved is found under its old name too; a name that moved to another module is found in its old one.
Every such import warns.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from splat_ssim._importing import imported

#: Old module -> new module.
MODULES = {
    **{
        f"splat_ssim.trainer.{name}": f"splat_ssim.scene.{name}"
        for name in ("data", "evaluation", "model", "optimizers", "scoring", "training")
    },
    **{
        f"splat_ssim.trainer.data.{name}": f"splat_ssim.scene.data.{name}"
        for name in ("blender", "colmap", "images", "nerfstudio", "scene")
    },
    "splat_ssim.trainer.ply": "splat_ssim.ply",
    "splat_ssim.trainer.runs": "splat_ssim.trainer.cli",
    "splat_ssim.trainer.video": "splat_ssim.scene.cameras",
    "splat_ssim.volume.fitting": "splat_ssim.volume.training",
}

#: Old module -> names that it had -> where they are now, unless in the module that stands for it.
NAMES = {
    "splat_ssim.trainer.config": {
        "Config": "splat_ssim.scene.config:SceneConfig",
        **{
            name: f"splat_ssim.scene.config:{name}"
            for name in ("DataConfig", "ModelConfig", "OptimizerConfig", "StrategyConfig")
        },
    },
    "splat_ssim.trainer.runs": {"load_run": "splat_ssim.trainer.loop:load"},
    "splat_ssim.trainer.video": {"write_video": "splat_ssim.trainer.pictures:write_video"},
    "splat_ssim.trainer.evaluation": {
        "write_json": "splat_ssim._files:write_json",
        **{name: f"splat_ssim.trainer.pictures:{name}" for name in ("save_comparison", "save_image", "to_bytes")},
    },
    "splat_ssim.trainer.training": {
        "Trainer": "splat_ssim.trainer._old:Trainer",
        "train": "splat_ssim.trainer._old:train",
        "pick_device": "splat_ssim.trainer.device:pick_device",
        "peak_memory": "splat_ssim.trainer.device:peak_memory",
        "coarseness": "splat_ssim.scene.config:coarseness",
    },
    "splat_ssim.volume.fitting": {
        "Fitting": "splat_ssim.trainer._old:Fitting",
        "fit": "splat_ssim.trainer._old:fit",
        "Target": "splat_ssim.volume.target:Target",
    },
    "splat_ssim.strategy": {
        "STRATEGIES": "splat_ssim.scene.strategies:STRATEGIES",
        "make_strategy": "splat_ssim.scene.strategies:make_strategy",
    },
}


def _warn(old: str, new: str, stacklevel: int) -> None:
    message = f"{old} is now {new}; the old path goes with the next release"
    warnings.warn(message, DeprecationWarning, stacklevel=stacklevel + 1)


def names(module: str) -> Callable[[str], Any]:
    """The `__getattr__` of a module that has stayed and from which names have moved."""

    def getattr_(name: str) -> Any:
        new = NAMES[module].get(name)
        if new is None:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        _warn(f"{module}.{name}", new.replace(":", "."), stacklevel=2)
        return imported(new)

    return getattr_


class _Forward(ModuleType):
    """Stands for a module that has moved."""

    def __getattr__(self, name: str) -> Any:
        new = NAMES.get(self.__name__, {}).get(name)
        return getattr(importlib.import_module(MODULES[self.__name__]), name) if new is None else imported(new)


class _Finder(MetaPathFinder, Loader):
    """Finds modules under their old names."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in MODULES:
            return None
        return ModuleSpec(name, self, is_package=any(other.startswith(f"{name}.") for other in MODULES))

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Forward(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        _warn(module.__name__, MODULES[module.__name__], stacklevel=2)


def install() -> None:
    """Makes the old names importable; the packages they were in call this."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
