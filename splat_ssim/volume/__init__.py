"""Volumes and 3D Gaussians: `fit` and its fields, the voxeliser, volume files, and the trainer of volumes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import _moved
from .export import load_field
from .gaussians import GaussianField
from .grid import VoxelGrid
from .io import Volume, load_volume, save_volume
from .normalization import Normalization, choose_normalization
from .voxelize import morton_order, voxelize

if TYPE_CHECKING:
    from .api import fit
    from .training import VolumeTask as Task

__all__ = [
    "GaussianField",
    "Normalization",
    "Task",
    "Volume",
    "VoxelGrid",
    "choose_normalization",
    "fit",
    "load_field",
    "load_volume",
    "morton_order",
    "save_volume",
    "voxelize",
]

_moved.install()


def __getattr__(name: str) -> object:
    """Imports the task and `fit` at first use, since the voxeliser needs none of the trainer's packages."""
    if name == "fit":
        from .api import fit

        return fit
    if name == "Task":
        from .training import VolumeTask

        return VolumeTask
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
