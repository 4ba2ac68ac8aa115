"""Bricks at a reduced resolution: averages voxels in blocks, and converts Gaussians to such voxels and back."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .blocks import Block, BlockedVolume

#: From this many voxels for each Gaussian, the first pass has half of the resolution: few Gaussians show no more.
VOXELS_A_GAUSSIAN = 512
#: The first pass has half of the resolution only if the shortest axis has at least this many voxels.
LEAST_SIDE = 64
#: Number of values that are read at once while a region is averaged.
_AT_ONCE = 1 << 22


def coarse_factor_for(shape: Sequence[int], budget: int) -> int:
    """The default factor by which the first pass of a fit by bricks reduces a volume.

    Example:
        >>> from splat_ssim.volume.brick_scale import coarse_factor_for
        >>> coarse_factor_for((1024, 1024, 1024), 500_000), coarse_factor_for((128, 128, 128), 50_000)
        (2, 1)
    """
    return 2 if min(shape) >= LEAST_SIDE and math.prod(shape) >= VOXELS_A_GAUSSIAN * budget else 1


def averaged(values: Tensor, factor: int) -> Tensor:
    """Averages (C, n0, n1, n2) voxels over blocks of `factor` along each axis, smaller ones at the far borders."""
    if factor == 1:
        return values
    kernel = [min(factor, side) for side in values.shape[1:]]  # A slab may be thinner than a block.
    return F.avg_pool3d(values[None], kernel, ceil_mode=True, count_include_pad=False)[0]


def read_averaged(volume: BlockedVolume, region: Block, factor: int) -> Tensor:
    """`averaged` of a region. Only a slab of it is in memory at full resolution at a time."""
    if factor == 1:
        return volume.read(region)
    return torch.cat([averaged(volume.read(slab), factor) for slab in slabs_of(region, volume.channels, factor)], 1)


def weight_of(volume: BlockedVolume, core: Block) -> float:
    """Weight of a brick: the sum of its slopes and a little of its values, relative to the range, of channel 0."""
    weight = 0.0
    for (row, *_), (count, *_) in slabs_of(core, volume.channels):
        (first, *others), (rows, *across) = core
        # Read one more row on either side, inside the brick, since slopes are differences of both neighbours.
        low, high = max(first, row - 1), min(first + rows, row + count + 1)
        values = volume.read(((low, *others), (high - low, *across)))[0] / volume.data_range
        axes = [axis for axis in range(3) if values.shape[axis] > 1]
        own = slice(row - low, row - low + count)
        slopes = torch.gradient(values, dim=axes) if axes else ()
        weight += sum(float(slope[own].abs().sum(dtype=torch.float64)) for slope in slopes)
        weight += 0.05 * float(values[own].abs().sum(dtype=torch.float64))
    return weight


def slabs_of(region: Block, channels: int, factor: int = 1) -> Iterator[Block]:
    """Slabs across the first axis that cover a region, of whole blocks of `factor` and about 4 million values each.

    Example:
        >>> from splat_ssim.volume.brick_scale import slabs_of
        >>> [shape for _, shape in slabs_of(((0, 0, 0), (300, 300, 301)), 1, 2)]
        [(46, 300, 301), (46, 300, 301), (46, 300, 301), (46, 300, 301), (46, 300, 301), (46, 300, 301), (24, 300, 301)]
    """
    (first, *others), (count, *across) = region
    rows = max(1, _AT_ONCE // (channels * math.prod(across) * factor)) * factor
    for row in range(0, count, rows):
        yield (first + row, *others), (min(rows, count - row), *across)


def in_blocks(block: Block, factor: int) -> Block:
    """Converts a block of voxels that begins at a multiple of `factor` to blocks of `factor`, the last perhaps cut."""
    return tuple(first // factor for first in block[0]), blocks_along(block[1], factor)


def into(tensors: Mapping[str, Tensor], start: Sequence[int], factor: int) -> dict[str, Tensor]:
    """Converts Gaussians from voxels of the volume to blocks of `factor` in a region that begins at `start`."""
    first = tensors["means"].new_tensor(start)
    # The middle of block i is voxel factor i + (factor - 1) / 2.
    means = (tensors["means"] - first - (factor - 1) / 2) / factor
    return {**tensors, "means": means, "log_scales": tensors["log_scales"] - math.log(factor)}


def out_of(tensors: Mapping[str, Tensor], start: Sequence[int], factor: int) -> dict[str, Tensor]:
    """The inverse of `into`."""
    first = tensors["means"].new_tensor(start)
    means = tensors["means"] * factor + (factor - 1) / 2 + first
    return {**tensors, "means": means, "log_scales": tensors["log_scales"] + math.log(factor)}


def blocks_along(shape: Sequence[int], factor: int) -> tuple[int, int, int]:
    """Number of blocks of `factor` voxels along each axis."""
    n0, n1, n2 = (-(-side // factor) for side in shape)
    return n0, n1, n2
