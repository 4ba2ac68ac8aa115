"""Gaussians under an affine map: a fit runs in voxel coordinates, and its results are in world coordinates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .grid import VoxelGrid
from .reference import quaternions, rotation_matrices

if TYPE_CHECKING:
    from .export import FieldSource

#: Distance in voxels from the world's origin from which float32 coordinates are too coarse: 1/2048 of a voxel.
_FAR = float(1 << 13)


@torch.no_grad()
def transformed(tensors: Mapping[str, Tensor], matrix: np.ndarray) -> dict[str, Tensor]:
    """Maps the tensors of a `GaussianField` by x -> matrix · x. The result is exact up to rounding.

    An affine map turns a Gaussian into a Gaussian: the covariance R S² Rᵀ becomes M Mᵀ with M = A R S.

    Args:
        tensors: Tensors of the field. Means and log_scales are in its own coordinates.
        matrix: (4, 4) float64, invertible affine map.

    Returns:
        Every tensor in its own dtype and on its own device. Densities and features are unchanged.

    Raises:
        ValueError: A Gaussian is too large for float64.
    """
    dtype, device = tensors["means"].dtype, tensors["means"].device
    A = torch.from_numpy(np.ascontiguousarray(matrix[:3, :3])).to(device)
    shift = torch.from_numpy(np.ascontiguousarray(matrix[:3, 3])).to(device)
    rotations, scales = rotation_matrices(tensors["quats"].double()), tensors["log_scales"].double().exp()
    if not torch.isfinite(scales).all():
        raise ValueError(f"log_scales whose exponentials float64 holds, got {float(tensors['log_scales'].max()):.6g}")
    size = abs(np.linalg.det(matrix[:3, :3])) ** (1 / 3)
    turn = matrix[:3, :3] / size
    if np.allclose(turn @ turn.T, np.eye(3), atol=1e-9):
        # A rotation with a scale keeps the axes of every Gaussian orthogonal.
        axes, sizes = torch.from_numpy(turn).to(device) @ rotations, scales * size
    else:
        axes, sizes, _ = torch.linalg.svd(A @ (rotations * scales[:, None]))
    # A mirrored axis is the same axis.
    axes = axes * torch.cat([axes.det().sign()[:, None, None], axes.new_ones(len(axes), 1, 2)], 2)
    moved = {
        "means": tensors["means"].double() @ A.T + shift,
        "log_scales": sizes.clamp(min=1e-300).log(),
        "quats": quaternions(axes),
    }
    return {name: moved[name].to(dtype) if name in moved else tensor.clone() for name, tensor in tensors.items()}


def world_offset(grid: VoxelGrid) -> tuple[float, float, float]:
    """The offset to subtract from world coordinates so that float32 is precise: 0, or the origin of a grid far away."""
    corners = torch.tensor(grid.shape, dtype=torch.float64) * torch.tensor([[0.0] * 3, [1.0] * 3])
    if float(grid.to_world(corners).abs().max()) < _FAR * min(grid.spacing):
        return (0.0, 0.0, 0.0)
    x, y, z = grid.origin
    return (x, y, z)


def in_world(
    tensors: Mapping[str, Tensor], grid: VoxelGrid, source: FieldSource
) -> tuple[dict[str, Tensor], FieldSource, tuple[float, float, float]]:
    """Converts Gaussians in the lattice of a grid to the arguments of a `GaussianField` in world coordinates."""
    offset = world_offset(grid)
    # `rebased`: the lattice counts from the first voxel.
    return transformed(tensors, grid.rebased().moved([-v for v in offset]).matrix), source, offset
