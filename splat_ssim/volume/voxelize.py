from __future__ import annotations

import torch
from torch import Tensor

from ..ops import compiled
from ..ops import voxelize as _ops
from ..ops import voxelize_cuda as _cuda
from .grid import VoxelGrid
from .reference import voxelize_reference


def check_gaussians(means: Tensor, quats: Tensor, scales: Tensor, densities: Tensor, features: Tensor | None) -> None:
    """Raises ValueError or TypeError for tensors of Gaussians that do not fit each other, see `voxelize`."""
    count = means.shape[0] if means.ndim else 0
    expected: dict[str, tuple[Tensor, tuple[int, ...]]] = {}
    expected |= {"means": (means, (count, 3)), "quats": (quats, (count, 4)), "scales": (scales, (count, 3))}
    expected["densities"] = (densities, (count,))
    if features is not None:
        if features.ndim != 2:
            raise ValueError(f"features must have shape (N, F), got {tuple(features.shape)}")
        expected["features"] = (features, (count, features.shape[1]))
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")
        if tensor.dtype not in (torch.float32, torch.float64) or tensor.dtype != means.dtype:
            raise TypeError(f"{name} must be float32 or float64, as means, got {tensor.dtype} beside {means.dtype}")
        if tensor.device != means.device:
            raise ValueError(f"{name} must be on {means.device}, where means is, got {tensor.device}")


def _has_kernels(device: torch.device) -> bool:
    if device.type == "cuda":
        return _cuda.has_kernels(device)
    return device.type == "cpu" and compiled.library() is not None


def voxelize(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    densities: Tensor,
    grid: VoxelGrid,
    *,
    features: Tensor | None = None,
) -> Tensor:
    """Evaluates 3D Gaussians on a voxel grid: V(x) = Σ rho_i exp(-½ (x - mu_i)ᵀ Sigma_i⁻¹ (x - mu_i)).

    A Gaussian is zero beyond Mahalanobis distance 3. The result is differentiable once, with respect to every tensor.
    Neither values nor gradients depend on the number of threads. It is faster if Gaussians that are near in space are
    near in memory (`morton_order`); only the order of additions then differs.

    Args:
        means: (N, 3) float32 or float64, world x, y, z.
        quats: (N, 4), rotations as w, x, y, z of any length above 0.
        scales: (N, 3), standard deviations along the rotated axes in world units, above 0.
        densities: (N,) densities rho. They may be negative.
        grid: Voxels to evaluate. `grid.crop` gives a part of them, with the same bits.
        features: (N, F) features f, such as colours. They add F channels Σ rho_i f_i exp(…), weighted by density.

    Returns:
        (1 + F, *grid.shape), density first. float64 tensors, and devices other than the CPU and CUDA, use the
        definition in plain torch, which is slow.

    Raises:
        ValueError: The shapes do not fit, or the tensors are on different devices.
        TypeError: A dtype is neither float32 nor float64, or the dtypes differ.

    Source:
        The additive field of R²-Gaussian (Zha et al., NeurIPS 2024), eq. 2, with a cut-off.

    Example:
        >>> import torch
        >>> from splat_ssim.volume import VoxelGrid, voxelize
        >>> grid = VoxelGrid.regular((8, 8, 8))
        >>> volume = voxelize(torch.full((1, 3), 4.0), torch.eye(4)[:1], torch.ones(1, 3), torch.ones(1), grid)
        >>> volume.shape, float(volume[0, 4, 4, 4])
        (torch.Size([1, 8, 8, 8]), 1.0)
    """
    check_gaussians(means, quats, scales, densities, features)
    values = densities[:, None]  # [N, 1]
    if features is not None:
        values = torch.cat([values, values * features], dim=1)  # [N, 1 + F]
    if means.dtype == torch.float32 and _has_kernels(means.device):
        affine = [v for row in grid.affine for v in row]
        volume: Tensor = _ops.voxelize(means, quats, scales, values, affine, [*grid.start, *grid.shape])
        return volume
    return voxelize_reference(means, quats, scales, values, grid)


def morton_order(means: Tensor, grid: VoxelGrid, *, cell: float = 4.0) -> Tensor:
    """Returns the order of Gaussians along a Morton curve through cells of `cell` voxels.

    Args:
        means: (N, 3), world x, y, z.
        grid: Grid that gives the axes and sizes of the voxels.
        cell: Edge of a cell in voxels.

    Returns:
        (N,) int64, a permutation. Gaussians in the same cell keep their order.
    """
    cells = (grid.to_index(means.detach()) / cell).floor().clamp(0, 1023).long()  # [N, 3]
    for shift, mask in ((16, 0x030000FF), (8, 0x0300F00F), (4, 0x030C30C3), (2, 0x09249249)):
        cells = (cells | (cells << shift)) & mask
    return torch.argsort((cells[:, 0] << 2) | (cells[:, 1] << 1) | cells[:, 2], stable=True)
