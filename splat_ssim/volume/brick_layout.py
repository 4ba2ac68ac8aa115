"""The division of a fit by bricks: regions, weights of their voxels, and shares of the budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .blocks import Block, blocks_of

#: Width of the margin around a brick's core, in voxels of its pass. Voxels there count if they are fitted already.
MARGIN = 6


@dataclass(frozen=True)
class Pass:
    """One pass over a volume. Its bricks are fitted one after the other.

    Attributes:
        cores: First voxel and size of each brick.
        factor: Voxels of the pass are means of blocks of this many voxels along each axis.
        steps: Number of steps of each brick.
    """

    cores: list[Block]
    factor: int
    steps: int


def passes_of(shape: Sequence[int], brick: int, factor: int, steps: int) -> list[Pass]:
    """Plans the passes over a volume.

    Bricks of the second are shifted by half an edge and have half as many steps. If the first two see a part of the
    resolution, a third with a sixth of the steps sees all of it.

    Args:
        shape: Shape of the volume in voxels.
        brick: Edge of a brick in voxels of its pass.
        factor: Factor of the first two passes.
        steps: Number of steps of a brick in the first pass.
    """
    edge = brick * factor
    passes = [
        Pass(list(blocks_of(shape, edge)), factor, steps),
        Pass(list(blocks_of(shape, edge, shift=edge // 2)), factor, max(1, steps // 2)),
    ]
    if factor > 1:
        passes.append(Pass(list(blocks_of(shape, brick)), 1, max(1, steps // 6)))
    return passes


@dataclass(frozen=True)
class Stage:
    """The training steps of one brick.

    Attributes:
        turn: Index of its pass, from 0.
        place: Index of the brick in its pass.
        core: First voxel and size of the brick.
        first: Number of the brick's first step in the run.
        steps: Number of the brick's steps.
    """

    turn: int
    place: int
    core: Block
    first: int
    steps: int


def region_of(core: Block, halo: int, shape: Sequence[int]) -> Block:
    """A core with its halo, cut at the volume's borders."""
    start = tuple(max(0, first - halo) for first in core[0])
    stop = tuple(min(n, first + count + halo) for first, count, n in zip(*core, shape, strict=True))
    return start, tuple(b - a for a, b in zip(start, stop, strict=True))


def counted(region: Block, done: Sequence[Block], reach: int, whole: Sequence[int]) -> Tensor:
    """Returns (n0, n1, n2) weights of a region's voxels: 1 in the blocks in `done`, 0 elsewhere.

    Voxels whose SSIM windows reach beyond the region get 0 too.

    Args:
        region: Region of the volume.
        done: Blocks of the volume that are or have been fitted.
        reach: Radius of the SSIM windows in voxels.
        whole: Number of voxels of the volume along each axis.
    """
    start, shape = region
    weights = torch.zeros(shape)
    for first, count in done:
        low = [max(0, f - s) for f, s in zip(first, start, strict=True)]
        high = [min(n, f + c - s) for f, c, s, n in zip(first, count, start, shape, strict=True)]
        if all(a < b for a, b in zip(low, high, strict=True)):
            weights[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = 1
    for axis in range(3):
        if start[axis] > 0:
            weights.narrow(axis, 0, reach).zero_()
        if start[axis] + shape[axis] < whole[axis]:
            weights.narrow(axis, shape[axis] - reach, reach).zero_()
    return weights


def shares(weights: Sequence[float], total: int, cores: Sequence[Block], factor: int = 1) -> list[int]:
    """Splits a total into whole numbers in proportion to the weights, each at most an eighth of its brick's voxels.

    A voxel is a block of `factor` along each axis.

    Example:
        >>> from splat_ssim.volume.brick_layout import shares
        >>> shares([1.0, 2.0, 0.0], 10, [((0, 0, 0), (9, 9, 9))] * 3)
        [3, 7, 0]
    """
    whole = sum(weights)
    if whole <= 0 or total <= 0:
        return [0] * len(weights)
    exact = np.array(weights) / whole * total
    parts = np.floor(exact).astype(int)
    for place in np.argsort(parts - exact, kind="stable")[: total - int(parts.sum())]:
        parts[place] += 1
    most = [max(1, int(np.prod(core[1])) // (8 * factor**3)) for core in cores]
    return [int(part) for part in np.minimum(parts, most)]
