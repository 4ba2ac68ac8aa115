"""Training Gaussian scenes by images: Blender, COLMAP and nerfstudio scenes, the model, and its task."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from splat_ssim.scene.training import SceneTask as Task

__all__ = ["Task"]


def __getattr__(name: str):
    """Imports the task on first use: reading a scene needs no renderer."""
    if name == "Task":
        from splat_ssim.scene.training import SceneTask

        return SceneTask
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
