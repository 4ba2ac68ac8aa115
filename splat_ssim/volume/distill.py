"""Turns a trained scene into a volume: density and colour on a voxel grid, to be fitted, sliced or exported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import tyro
from torch import Tensor

from ..errors import UserError, user_errors
from ..ply import SH0, load_ply
from .grid import VoxelGrid
from .io import Volume, save_volume
from .suffixes import check_written
from .voxelize import morton_order, voxelize


def radiance_volume(splats: dict[str, Tensor], grid: VoxelGrid, *, min_sigma: float = 0.5) -> Tensor:
    """Computes density and density-weighted colour of a scene's Gaussians.

    Args:
        splats: means (N, 3), scales (N, 3) logarithms, quats (N, 4), opacities (N,) logits, sh0 (N, 1, 3), as
            `splat_ssim.load_ply` reads them.
        grid: The voxels.
        min_sigma: Smallest standard deviation in voxels. Thinner Gaussians are widened to it, and their density is
            reduced by as much, so that a surface thinner than a voxel is not lost between voxels.

    Returns:
        (4, *grid.shape): the density Σ opacity · g, and the same sum with each term times the red, green or blue of the
        constant spherical harmonic. This density is additive; alpha compositing of overlapping Gaussians would give
        other values.
    """
    order = morton_order(splats["means"], grid)
    floor = min_sigma * min(grid.spacing)
    sizes = splats["scales"][order].exp()
    widened = sizes.clamp(min=floor)
    density = torch.sigmoid(splats["opacities"][order]) * (sizes / widened).prod(1)
    colors = (0.5 + SH0 * splats["sh0"][order, 0]).clamp(0, 1)
    return voxelize(splats["means"][order], splats["quats"][order], widened, density, grid, features=colors)


def distill(
    scene: tyro.conf.Positional[Path],
    output: tyro.conf.Positional[Path],
    *,
    size: int = 96,
    outliers: float = 0.005,
) -> Path:
    """Writes the density and colour of a trained scene as a volume of four channels.

    Args:
        scene: scene.ply of a run, or any PLY of 3D Gaussian splatting.
        output: Volume file to write: npz, npy, nii.gz, tif, nrrd, mha, h5, mrc or zarr.
        size: Number of voxels along the longest side.
        outliers: Fraction of the Gaussians that may lie outside the volume, at each end of each axis.

    Returns:
        The file written.
    """
    if size < 2 or not 0 <= outliers < 0.5:
        raise UserError(f"size must be at least 2 and outliers in [0, 0.5), got {size} and {outliers}")
    with user_errors():
        check_written(output, inputs=[scene])
    splats = load_ply(scene)
    opaque = splats["means"][torch.sigmoid(splats["opacities"]) > 0.05].double().numpy()
    if len(opaque) == 0:
        raise UserError(f"{scene} must hold Gaussians of opacity above 0.05, got none among {len(splats['means'])}")
    low, high = np.quantile(opaque, [outliers, 1 - outliers], axis=0)
    spacing = float((high - low).max()) / (size - 1) or 1.0
    # Two voxels of air on each side; z, y, x order.
    counts = np.ceil((high - low) / spacing).astype(int) + 5
    grid = VoxelGrid.regular(counts[::-1].tolist(), spacing=spacing, origin=low - 2 * spacing, axes="zyx")
    volume = radiance_volume(splats, grid)
    path = save_volume(output, Volume(volume.numpy(), grid))
    print(f"{path}: density and colour on {grid.shape} voxels of {spacing:.4g}")
    return path
