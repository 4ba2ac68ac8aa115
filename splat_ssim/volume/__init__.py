"""Volumes and 3D Gaussians: the voxeliser, volume files, and fitting Gaussians or a grid to a volume."""

from .grid import VoxelGrid
from .voxelize import morton_order, voxelize

__all__ = ["VoxelGrid", "morton_order", "voxelize"]
