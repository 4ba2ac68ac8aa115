"""Bricks at a part of their resolution: voxels averaged in blocks, and Gaussians in such voxels and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor

#: Voxels a Gaussian from which the first pass sees half of the resolution: so few Gaussians show no more.
VOXELS_A_GAUSSIAN = 512
#: Voxels along the shortest axis from which it does.
LEAST_SIDE = 64


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
    return F.avg_pool3d(values[None], factor, ceil_mode=True, count_include_pad=False)[0]


def wholly_counted(weights: Tensor, factor: int) -> Tensor:
    """(n0, n1, n2) weights of 0 and 1 of such blocks: 1 where all of a block counts."""
    return (averaged(weights[None], factor)[0] == 1).to(weights.dtype)


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
