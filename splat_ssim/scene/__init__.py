"""Training Gaussian scenes by images: Blender, COLMAP and nerfstudio scenes, the model, and its task."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from splat_ssim.scene.api import TrainedScene, train
    from splat_ssim.scene.training import SceneTask as Task

__all__ = ["Task", "TrainedScene", "train"]


def __getattr__(name: str) -> object:
    """Imports the training code at first use, since reading a scene needs no renderer."""
    if name in ("TrainedScene", "train"):
        from splat_ssim.scene import api

        return getattr(api, name)
    if name == "Task":
        from splat_ssim.scene.training import SceneTask

        return SceneTask
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
