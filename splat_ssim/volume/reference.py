"""The voxeliser in plain torch: the definition, and the path where no kernel runs."""

from __future__ import annotations

import torch
from torch import Tensor

from .grid import VoxelGrid

#: Squared Mahalanobis distance beyond which a Gaussian is zero.
CUTOFF = 9.0

#: Number of (Gaussian, voxel) pairs that are evaluated at once.
_CHUNK = 1 << 22


def rotation_matrices(quats: Tensor) -> Tensor:
    """Quaternions (N, 4), w x y z, of any length above 0, to rotations (N, 3, 3)."""
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1, eps=0.0).unbind(-1)
    rows = [
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def quaternions(rotations: Tensor) -> Tensor:
    """Rotations (N, 3, 3) to unit quaternions (N, 4), w x y z: the inverse of `rotation_matrices`."""
    R = rotations
    xx, yy, zz = R[:, 0, 0], R[:, 1, 1], R[:, 2, 2]
    # Row k is the quaternion times four times its k-th component. Dividing by the largest one is most accurate.
    rows = [
        (1 + xx + yy + zz, R[:, 2, 1] - R[:, 1, 2], R[:, 0, 2] - R[:, 2, 0], R[:, 1, 0] - R[:, 0, 1]),
        (R[:, 2, 1] - R[:, 1, 2], 1 + xx - yy - zz, R[:, 1, 0] + R[:, 0, 1], R[:, 0, 2] + R[:, 2, 0]),
        (R[:, 0, 2] - R[:, 2, 0], R[:, 1, 0] + R[:, 0, 1], 1 - xx + yy - zz, R[:, 2, 1] + R[:, 1, 2]),
        (R[:, 1, 0] - R[:, 0, 1], R[:, 0, 2] + R[:, 2, 0], R[:, 2, 1] + R[:, 1, 2], 1 - xx - yy + zz),
    ]
    table = torch.stack([torch.stack(row, -1) for row in rows], 1)  # [N, 4, 4]
    largest = table.diagonal(dim1=1, dim2=2).argmax(1)
    return torch.nn.functional.normalize(table[torch.arange(len(R), device=R.device), largest], dim=-1)


def mahalanobis_squared(means: Tensor, quats: Tensor, scales: Tensor, points: Tensor) -> Tensor:
    """(x - mean)ᵀ Sigma⁻¹ (x - mean) for each Gaussian and point: (N, M) from M points (M, 3)."""
    # Sigma⁻¹ = R diag(1/s²) Rᵀ, so q = |diag(1/s) Rᵀ d|².
    rotations = rotation_matrices(quats)  # [N, 3, 3]
    d = points[None] - means[:, None]  # [N, M, 3]
    return ((d @ rotations) / scales[:, None]).square().sum(-1)


def voxelize_reference(means: Tensor, quats: Tensor, scales: Tensor, values: Tensor, grid: VoxelGrid) -> Tensor:
    """V_c(x) = sum over i of values_ic · exp(-q_i(x)/2), zero where q_i > 9, in the dtype of the inputs.

    Args:
        means: (N, 3), world x, y, z.
        quats: (N, 4), w, x, y, z.
        scales: (N, 3), standard deviations in world units.
        values: (N, C).
        grid: Voxels to compute.

    Returns:
        (C, *grid.shape), differentiable any number of times. It is slow, because every Gaussian is evaluated at every
        voxel.
    """
    points = grid.points(dtype=means.dtype, device=means.device).reshape(-1, 3)
    volume = values.new_zeros(values.shape[1], len(points))
    step = max(1, _CHUNK // len(points))
    for i in range(0, len(means), step):
        q = mahalanobis_squared(means[i : i + step], quats[i : i + step], scales[i : i + step], points)
        g = torch.where(q <= CUTOFF, torch.exp(-0.5 * q), q.new_zeros(()))
        volume = volume + values[i : i + step].T @ g
    return volume.reshape(-1, *grid.shape)
