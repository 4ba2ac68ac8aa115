"""A volume rebuilt from the Gaussians of a run, without the run."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
import tyro

from ..errors import UserError, user_errors
from ..trainer.device import available_memory
from .export import FieldSource, load_gaussians_ply, load_quantized, read_source
from .gaussians import GaussianField
from .grid import VoxelGrid
from .io import Volume, open_grid, save_volume
from .layout import nearest_axes
from .normalization import check_window, spoken
from .suffixes import check_written
from .voxelize import morton_order


def respaced(grid: VoxelGrid, spacing: tuple[float, float, float]) -> VoxelGrid:
    """Returns a grid over the same extent with other distances between voxel centres along the world's x, y, z.

    Raises:
        ValueError: A distance is not positive.
    """
    if not all(np.isfinite(s) and s > 0 for s in spacing):
        raise ValueError(f"spacing must be above 0 along x, y, z, got {spacing}")
    old = np.asarray(grid.spacing)
    new = np.array([spacing["xyz".index(letter)] for letter in nearest_axes(grid.matrix)])
    shape = np.maximum(1, np.round(np.asarray(grid.shape) * old / new)).astype(int)
    matrix = grid.rebased().matrix
    directions = matrix[:3, :3] / old
    # The first voxel's corner stays where it is.
    matrix[:3, 3] += directions @ (new - old) / 2
    matrix[:3, :3] = directions * new
    return VoxelGrid(tuple(shape.tolist()), matrix.tolist())


@torch.no_grad()
def rebuild(
    gaussians: tyro.conf.Positional[Path],
    output: tyro.conf.Positional[Path],
    *,
    spacing: tuple[float, float, float] | None = None,
    like: Path | None = None,
    low: float | None = None,
    high: float | None = None,
) -> Path:
    """Writes the volume that fitted Gaussians stand for, with the intensities and the position of the original.

    Args:
        gaussians: gaussians.quantized or gaussians.ply of a run.
        output: Volume file to write: nii.gz, nii, npy, npz, raw, tif, nrrd, mha, h5, mrc or zarr.
        spacing: Distance between voxel centres along x, y, z, in the unit of the original. By default its own.
        like: Volume file whose grid is used. It is needed if the file of Gaussians has none.
        low: Intensity that the fitted value 0 stands for. By default as in the original.
        high: Intensity that the fitted value 1 stands for. By default as in the original.

    Returns:
        The file written.

    Raises:
        UserError: The file cannot be read, or it has no grid or no intensities and none are given.
    """
    if not gaussians.is_file():
        raise UserError(f"required gaussians.quantized or gaussians.ply of a run, got no file {gaussians}")
    if gaussians.suffix.lower() == ".gsv":
        raise UserError(f"{gaussians} is a file of splat-compress: splat-decompress writes its volume")
    with user_errors():
        check_written(output, inputs=[gaussians] if like is None else [gaussians, like])
        load = load_gaussians_ply if gaussians.suffix.lower() == ".ply" else load_quantized
        field, source = load(gaussians), read_source(gaussians)
        if like is not None:
            grid = open_grid(like)
        elif source is not None:
            grid = source.grid
        else:
            raise UserError(f"{gaussians} must hold its grid, got an older file without one; give --like VOLUME")
        grid = grid if spacing is None else respaced(grid, spacing)
    given = (low, high) != (None, None)
    low = source.low if low is None and source is not None else low
    high = source.high if high is None and source is not None else high
    if low is None or high is None:
        raise UserError(f"{gaussians} must hold its intensities, got a file without them; give --low and --high")
    with user_errors():
        check_window(low, high, "--low and --high" if given else f"the intensities of {gaussians}")
    needed, room = 12 * (1 + len(field.tensors)) * math.prod(grid.shape), available_memory()
    if room is not None and needed > room:
        raise UserError(
            f"{gaussians}: required a grid that fits into {room / 1e9:.1f} GB of memory, got {grid.shape} voxels"
        )
    order = morton_order(field.positions(), grid)
    field = GaussianField({name: parameter[order] for name, parameter in field.tensors.items()}, offset=field.offset)
    values = field(grid)
    if source is None or source.clip:
        values = values.clamp(0, 1)
    whole = FieldSource(grid, low, high, unit="" if source is None else source.unit)
    with user_errors():
        save_volume(output, Volume(whole.normalization.invert(values.numpy()), grid, whole.unit))
    print(f"{output}: {len(field)} Gaussians on {grid.shape} voxels, intensities {' to '.join(spoken(low, high))}")
    return output
