"""Values and rows of values by a few of them: one-dimensional and multi-dimensional k-means.

Source: S. P. Lloyd, "Least squares quantization in PCM", IEEE Trans. Information Theory 28(2), 1982.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

#: Rounds of Lloyd's iteration: more than these change hardly anything.
_ROUNDS = 10
#: Rows that a first pass of `palette` sees, and distances that are held at once.
_SEEN, _AT_ONCE = 65536, 2**24


def codebook(values: np.ndarray, count: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Replaces numbers by `count` centres with a small squared error. Returns the centres, ascending, and the indices.

    Args:
        values: Any shape, finite.
        count: Number of centres, at most 256.

    Returns:
        Centres (count,) float32, and the uint8 index of each value's centre, in the shape of the values.

    Example:
        >>> import numpy as np
        >>> from splat_ssim.formats.palette import codebook
        >>> numbers, index = codebook(np.array([1.0, 5.0, 1.0, 5.5]), 3)
        >>> numbers[index]
        array([1. , 5. , 1. , 5.5], dtype=float32)
    """
    ordered = np.sort(values.astype(np.float64), axis=None)
    distinct = np.unique(ordered)
    if len(distinct) <= count:
        centers = np.concatenate([distinct, np.full(count - len(distinct), distinct[-1])])
    else:
        sums = np.concatenate([[0.0], np.cumsum(ordered)])
        # Starting evenly over the range serves the tails, starting at quantiles the bulk: half of each.
        even = np.linspace(ordered[0], ordered[-1], count)
        centers = 0.5 * (even + np.quantile(ordered, np.linspace(0, 1, count)))
        for _ in range(2 * _ROUNDS):
            ends = np.searchsorted(ordered, 0.5 * (centers[:-1] + centers[1:]))
            ends = np.concatenate([[0], ends, [len(ordered)]])
            members = np.diff(ends)
            centers = np.where(members > 0, np.diff(sums[ends]) / np.maximum(members, 1), centers)
            centers = np.sort(centers)
    centers = centers.astype(np.float32)
    middles = 0.5 * (centers[:-1].astype(np.float64) + centers[1:])
    return centers, np.searchsorted(middles, values).astype(np.uint8)


def palette(rows: np.ndarray, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Replaces rows by at most `count` centres with a small squared error. Returns the centres and the indices.

    First all rows are split into about √count groups. Then each group gets its share of the centres. This is faster
    than one search over all centres and hardly worse.

    Args:
        rows: (N, D) float32, finite.
        count: Largest number of centres. If there are no more different rows than that, they are kept as they are.
        seed: Seed of the choice of the rows to start from.

    Returns:
        Centres (at most count, D) float32, and the int64 index of each row's centre, (N,).
    """
    distinct, index = np.unique(rows, axis=0, return_inverse=True)
    if len(distinct) <= count:
        return distinct, index.reshape(-1)
    points = torch.from_numpy(np.ascontiguousarray(rows, np.float32))
    generator = torch.Generator().manual_seed(seed)
    drawn = points[torch.randperm(len(points), generator=generator)[:_SEEN]]
    groups = min(max(1, math.isqrt(count)), count)
    group_of = _nearest(points, _lloyd(drawn, groups, generator))
    centers, labels, used = [], torch.empty(len(points), dtype=torch.int64), 0
    for group in range(groups):
        members = torch.nonzero(group_of == group)[:, 0]
        if not len(members):
            continue
        share = max(1, int(len(members) * (count - groups) / len(points)))
        found = _lloyd(points[members], min(share, len(members)), generator)
        labels[members] = used + _nearest(points[members], found)
        centers.append(found)
        used += len(found)
    return torch.cat(centers).numpy(), labels.numpy()


def _lloyd(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """(count, D) centres of k-means, from rows drawn at random."""
    centers = points[torch.randperm(len(points), generator=generator)[:count]]
    for _ in range(_ROUNDS):
        nearest = _nearest(points, centers)
        sums = torch.zeros_like(centers).index_add_(0, nearest, points)
        members = torch.bincount(nearest, minlength=len(centers))[:, None]
        centers = torch.where(members > 0, sums / members.clamp(min=1), centers)
    return centers


def _nearest(points: Tensor, centers: Tensor) -> Tensor:
    """(N,) indices of the nearest centre of each point."""
    half_squares = 0.5 * centers.square().sum(1)
    step = max(1, _AT_ONCE // len(centers))
    return torch.cat([(half_squares - part @ centers.T).argmin(1) for part in points.split(step)])
