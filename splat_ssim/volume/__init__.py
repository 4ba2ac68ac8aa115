"""Volumes and 3D Gaussians: the voxeliser, volume files, and fitting Gaussians or a grid to a volume."""

from .grid import VoxelGrid
from .io import Volume, load_volume, save_volume
from .normalization import Normalization, choose_normalization
from .voxelize import morton_order, voxelize

__all__ = [
    "Normalization",
    "Volume",
    "VoxelGrid",
    "choose_normalization",
    "load_volume",
    "morton_order",
    "save_volume",
    "voxelize",
]
