"""Computed tomography with 3D Gaussians: the X-ray projector, its geometry, and the fit to measured projections."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .data import Projections, load_projections, save_projections
from .geometry import XrayGeometry, circle
from .project import project, project_field

if TYPE_CHECKING:
    from .training import CTTask as Task

__all__ = [
    "Projections",
    "Task",
    "XrayGeometry",
    "circle",
    "load_projections",
    "project",
    "project_field",
    "save_projections",
]


def __getattr__(name: str) -> object:
    """Imports the task on first use: the projector needs none of the trainer's packages."""
    if name == "Task":
        from .training import CTTask

        return CTTask
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
