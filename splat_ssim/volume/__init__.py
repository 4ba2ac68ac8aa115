"""Volumes and 3D Gaussians: the voxeliser, volume files, and fitting Gaussians or a grid to a volume."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import _moved
from .grid import VoxelGrid
from .io import Volume, load_volume, save_volume
from .normalization import Normalization, choose_normalization
from .voxelize import morton_order, voxelize

if TYPE_CHECKING:
    from .training import VolumeTask as Task

__all__ = [
    "Normalization",
    "Task",
    "Volume",
    "VoxelGrid",
    "choose_normalization",
    "load_volume",
    "morton_order",
    "save_volume",
    "voxelize",
]

_moved.install()


def __getattr__(name: str):
    """Imports the task on first use: the voxeliser needs none of the trainer's packages."""
    if name == "Task":
        from .training import VolumeTask

        return VolumeTask
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
