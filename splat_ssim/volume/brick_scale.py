"""Bricks at a part of their resolution: voxels averaged in blocks, and Gaussians in such voxels and back."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .blocks import Block, BlockedVolume

#: Voxels a Gaussian from which the first pass sees half of the resolution: so few Gaussians show no more.
VOXELS_A_GAUSSIAN = 512
#: Voxels along the shortest axis from which it does.
LEAST_SIDE = 64
#: Values that are read at once of a region that is averaged.
_AT_ONCE = 1 << 22


def coarse_factor_for(shape: Sequence[int], budget: int) -> int:
    """By how much the first pass of a fit by bricks reduces a volume, where nothing was asked for.

    Example:
        >>> from splat_ssim.volume.brick_scale import coarse_factor_for
        >>> coarse_factor_for((1024, 1024, 1024), 500_000), coarse_factor_for((128, 128, 128), 50_000)
        (2, 1)
    """
    return 2 if min(shape) >= LEAST_SIDE and math.prod(shape) >= VOXELS_A_GAUSSIAN * budget else 1


def averaged(values: Tensor, factor: int) -> Tensor:
    """(C, n0, n1, n2) voxels as means of blocks of `factor` along each axis; those at the far borders may be cut."""
    if factor == 1:
        return values
    kernel = [min(factor, side) for side in values.shape[1:]]  # A slab may be thinner than a block.
    return F.avg_pool3d(values[None], kernel, ceil_mode=True, count_include_pad=False)[0]


def read_averaged(volume: BlockedVolume, region: Block, factor: int) -> Tensor:
    """`averaged` of a region, of which only a slab is in memory at its resolution."""
    if factor == 1:
        return volume.read(region)
    return torch.cat([averaged(volume.read(slab), factor) for slab in slabs_of(region, volume.channels, factor)], 1)


def weight_of(volume: BlockedVolume, core: Block) -> float:
    """Sums of the slopes of a brick, and a little of its values, in parts of the range; of the first channel."""
    weight = 0.0
    for (row, *_), (count, *_) in slabs_of(core, volume.channels):
        (first, *others), (rows, *across) = core
        # A row more at either side, as far as the brick goes: slopes are taken between both neighbours.
        low, high = max(first, row - 1), min(first + rows, row + count + 1)
        values = volume.read(((low, *others), (high - low, *across)))[0] / volume.data_range
        axes = [axis for axis in range(3) if values.shape[axis] > 1]
        own = slice(row - low, row - low + count)
        slopes = torch.gradient(values, dim=axes) if axes else ()
        weight += sum(float(slope[own].abs().sum(dtype=torch.float64)) for slope in slopes)
        weight += 0.05 * float(values[own].abs().sum(dtype=torch.float64))
    return weight


def slabs_of(region: Block, channels: int, factor: int = 1) -> Iterator[Block]:
    """Slabs across the first axis that cover a region, each of whole blocks of `factor` and of some 4 million values.

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
    """A block of voxels that begins at a multiple of `factor`, counted in blocks of it; the last ones may be cut."""
    return tuple(first // factor for first in block[0]), blocks_along(block[1], factor)


def into(tensors: Mapping[str, Tensor], start: Sequence[int], factor: int) -> dict[str, Tensor]:
    """Gaussians in voxels of the volume as they are in a region that begins at `start`, in blocks of `factor`."""
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
    """How many blocks of `factor` voxels there are along each axis."""
    n0, n1, n2 = (-(-side // factor) for side in shape)
    return n0, n1, n2
