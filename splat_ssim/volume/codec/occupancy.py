"""Codes the number of Gaussians in each cell of a grid, from the whole volume down by halves.

A box that holds n Gaussians is cut across its longest side; coded is how many of the n lie in the lower half. How full
its neighbours are on either side, known for all of them before, tells much of it. An empty box costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .entropy import Adaptive, Coder

#: Boxes of more Gaussians say first in which of so many equal parts the number lies.
_EXACT, _PARTS = 15, 16
#: Classes of how the neighbours compare, and of the many.
_BINS, _SIZES = 9, 4


def _levels(shape: tuple[int, ...]) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Yields the axis that each level halves, and the numbers of boxes along the axes after it; down to cells."""
    size = [1 << max(0, n - 1).bit_length() for n in shape]
    while max(size) > 1:
        axis = size.index(max(size))
        size[axis] //= 2
        yield axis, tuple(-(-n // s) for n, s in zip(shape, size, strict=True))


def _shifted(counts: np.ndarray, axis: int, by: int) -> np.ndarray:
    """The counts of the neighbours on one side, 0 beyond the border."""
    result = np.zeros_like(counts)
    n = counts.shape[axis]
    if by > 0:
        np.moveaxis(result, axis, 0)[by:] = np.moveaxis(counts, axis, 0)[: n - by]
    else:
        np.moveaxis(result, axis, 0)[:by] = np.moveaxis(counts, axis, 0)[-by:]
    return result


def _bins(counts: np.ndarray, axis: int) -> np.ndarray:
    """Classifies each box by how much fuller its neighbours on the side of the lower half are, in `_BINS` classes."""
    wide = 4 * counts
    for other in range(3):
        if other != axis:
            wide = wide + _shifted(counts, other, 1) + _shifted(counts, other, -1)
    below, above = (2 * _shifted(counts, axis, by) + _shifted(wide, axis, by) for by in (1, -1))
    # 16 times the share of the lower side, rounded, then classes about the middle.
    share = (16 * below + 8) // (below + above + 1)
    bins: np.ndarray = np.searchsorted(np.array([2, 4, 6, 8, 9, 11, 13, 15]), share, side="right")
    return bins


def code_occupancy(coder: Coder, counts: np.ndarray | None, shape: tuple[int, ...], total: int) -> np.ndarray:
    """Codes the number of Gaussians in each cell.

    Args:
        coder: The encoder or the decoder.
        counts: (n0, n1, n2) int64 counts to encode, or None to decode them.
        shape: Number of cells along each axis.
        total: Sum of all counts.

    Returns:
        The counts, (n0, n1, n2) int64.
    """
    few = Adaptive((_EXACT + 1) * _BINS, _EXACT + 1)
    many = Adaptive(_SIZES * _BINS, _PARTS)
    known: np.ndarray = np.full((1, 1, 1), total, np.int64)
    levels = list(_levels(shape))
    truth = [] if counts is None else _pyramid(counts, levels)
    for level, (axis, after) in enumerate(levels):
        full = known > 0
        # The last box along the axis may have no upper half.
        n = np.moveaxis(full, axis, 0)
        if after[axis] % 2:
            n[-1] = False
        boxes = np.flatnonzero(full)
        inside, kind = known.ravel()[boxes], _bins(known, axis).ravel()[boxes]
        lower = None
        if truth:
            lower = np.moveaxis(np.moveaxis(truth[level], axis, 0)[::2], 0, axis).ravel()[boxes]
        found = _split(coder, lower, inside, kind, few, many)
        below = known.copy()
        below.ravel()[boxes] = found
        result = np.zeros(after, np.int64)
        np.moveaxis(result, axis, 0)[::2] = np.moveaxis(below, axis, 0)
        np.moveaxis(result, axis, 0)[1::2] = np.moveaxis(known - below, axis, 0)[: after[axis] // 2]
        known = result
    return known


def _pyramid(counts: np.ndarray, levels: list[tuple[int, tuple[int, ...]]]) -> list[np.ndarray]:
    """The counts after each level, from the top."""
    result = [counts]
    for axis, _ in reversed(levels[1:]):
        fine = np.moveaxis(result[0], axis, 0)
        coarse = fine[::2].copy()
        coarse[: len(fine) // 2] += fine[1::2]
        result.insert(0, np.moveaxis(coarse, 0, axis))
    return result if levels else []


def _split(
    coder: Coder, lower: np.ndarray | None, inside: np.ndarray, kind: np.ndarray, few: Adaptive, many: Adaptive
) -> np.ndarray:
    """Codes how many of the Gaussians inside each box lie in its lower half."""
    found = np.zeros(len(inside), np.int64)
    small = inside <= _EXACT
    found[small] = few.code(coder, None if lower is None else lower[small], inside[small] * _BINS + kind[small])
    large = ~small
    n = inside[large]
    size = np.minimum(_SIZES - 1, np.searchsorted(np.array([32, 128, 512]), n))
    part = None if lower is None else lower[large] * _PARTS // (n + 1)
    part = many.code(coder, part, size * _BINS + kind[large])
    # Numbers k with k · parts // (n + 1) == part are those from `first` up to the next part's first.
    first, after = -(-part * (n + 1) // _PARTS), -(-(part + 1) * (n + 1) // _PARTS)
    rest = None if lower is None else lower[large] - first
    found[large] = first + coder.uniform(rest, after - first)
    if (found > inside).any():
        raise ValueError("bytes that code Gaussians, got others: more in half a box than in the whole")
    return found
