"""The axes of a file's array put in order: channels first, one time point, and where the voxels lie in the world."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .grid import VoxelGrid
from .stored import Stored, read_option

#: Of four unnamed axes, the first or the last holds channels if it is at most this long and the other is longer.
_COLOURS = 4


class Arranged:
    """An array that is read piece by piece, with some axes fixed at an index and one moved to the front.

    Args:
        source: Array with shape, dtype and indexing by slices.
        picks: For each axis of the source, an index to fix it at, or None to keep it.
        first: Which of the kept axes comes first.
    """

    def __init__(self, source: Any, picks: Sequence[int | None], first: int = 0) -> None:
        self.source, self.picks = source, tuple(picks)
        kept = [axis for axis, pick in enumerate(self.picks) if pick is None]
        self._order = (first, *(i for i in range(len(kept)) if i != first))
        self._axes = [kept[i] for i in self._order]
        self.shape = tuple(int(source.shape[axis]) for axis in self._axes)
        self.dtype, self.ndim = source.dtype, len(self.shape)

    def __getitem__(self, index: Any) -> np.ndarray:
        index = index if isinstance(index, tuple) else (index,)
        if Ellipsis in index:
            at = index.index(Ellipsis)
            index = index[:at] + (slice(None),) * (self.ndim - len(index) + 1) + index[at + 1 :]
        index += (slice(None),) * (self.ndim - len(index))
        whole: list[Any] = list(self.picks)
        for axis, part in zip(self._axes, index, strict=True):
            whole[axis] = slice(part, part + 1) if isinstance(part, int | np.integer) else part
        # Fixed axes are read as slices of length 1, so that every library keeps the same axes.
        parts = tuple(slice(part, part + 1) if isinstance(part, int) else part for part in whole)
        block = np.asarray(self.source[parts])
        block = block.reshape([n for n, pick in zip(block.shape, self.picks, strict=True) if pick is None])
        block = block.transpose(self._order)
        dropped = tuple(axis for axis, part in enumerate(index) if isinstance(part, int | np.integer))
        kept: np.ndarray = block.squeeze(dropped) if dropped else block
        return kept


def arrange(
    stored: Stored, path: Path, *, axes: str | None, channel: int | None, time: int | None
) -> tuple[Any, str, list[str]]:
    """Returns the array as (n0, n1, n2) or (C, n0, n1, n2), the letters of its spatial axes, and notes on assumptions.

    Raises:
        ValueError: The axes do not fit, or the caller has to choose a channel or a time.
    """
    shape = tuple(int(n) for n in stored.array.shape)
    letters, notes = _letters(stored, shape, path, axes)
    picks: list[int | None] = [None] * len(shape)
    for axis, letter in enumerate(letters):
        if letter in "ct?" and shape[axis] == 1:
            picks[axis] = 0
    kept = {letter: axis for axis, letter in enumerate(letters) if picks[axis] is None}
    if "?" in kept:
        raise ValueError(
            f"{path} must hold axes x, y, z, c, t only, got {letters} of shape {shape}; name them by axes, such as "
            f"axes: {letters.replace('?', 't')}"
        )
    if time is not None:
        size = shape[letters.index("t")] if "t" in letters else 1
        _check_index("time", time, size, "time points", path)
        if "t" in kept:
            picks[kept.pop("t")] = time
    if "t" in kept and "c" in kept and channel is None:
        raise ValueError(
            f"{path} has {shape[kept['t']]} time points and {shape[kept['c']]} channels: time or channel must be given "
            f"{read_option('time: 0')}, got neither"
        )
    if "t" in kept and "c" in kept:
        _check_index("channel", channel or 0, shape[kept["c"]], "channels", path)
        picks[kept.pop("c")], channel = channel, None
    if "t" in kept and channel is None:
        notes.append(f"its {shape[kept['t']]} time points become channels of one volume; time: 0 takes the first alone")
    first = kept.get("t", kept.get("c"))
    _check_index("channel", channel or 0, 1 if first is None else shape[first], "channels", path)
    if first is not None and channel is not None:
        picks[first], first = channel, None
    spatial = "".join(letter for letter in letters if letter in "xyz")
    remaining = [axis for axis, pick in enumerate(picks) if pick is None]
    place = 0 if first is None else remaining.index(first)
    if isinstance(stored.array, np.ndarray):
        array = stored.array[tuple(slice(None) if pick is None else pick for pick in picks)]
        return np.moveaxis(array, place, 0), spatial, notes
    if place == 0 and len(remaining) == len(shape):
        return stored.array, spatial, notes
    return Arranged(stored.array, picks, place), spatial, notes


def _check_index(name: str, index: int, size: int, what: str, path: Path) -> None:
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < size:
        raise ValueError(f"{name} must be from 0 to {size - 1} for the {size} {what} of {path}, got {index!r}")


def _letters(stored: Stored, shape: tuple[int, ...], path: Path, axes: str | None) -> tuple[str, list[str]]:
    """A letter for each axis, from the option axes, the file, or the shape."""
    if axes is not None and (
        not isinstance(axes, str) or not set("xyz") <= set(axes) <= set("xyzct") or len(set(axes)) != len(axes)
    ):
        raise ValueError(f'axes must name x, y, z, and c and t where there are such, as in "czyx", got {axes!r}')
    if axes is not None and len(axes) == len(shape):
        return axes, list(stored.notes)
    if axes is not None and len(axes) != 3:
        raise ValueError(f"axes must have a letter for each of the {len(shape)} axes of {path}, got {axes!r}")
    letters, notes = (stored.axes, list(stored.notes)) if stored.axes else guessed_axes(stored, shape, path)
    if not set("xyz") <= set(letters):
        raise ValueError(
            f"{path} must hold (n0, n1, n2) or (C, n0, n1, n2) voxels, got shape {shape} with axes {letters}"
        )
    if axes is not None:
        own = iter(axes)
        letters = "".join(next(own) if letter in "xyz" else letter for letter in letters)
    return letters, notes


def guessed_axes(stored: Stored, shape: tuple[int, ...], path: Path) -> tuple[str, list[str]]:
    """Letters for an array whose file does not name its axes."""
    letters, notes = stored.order, list(stored.notes)
    more = [axis for axis in range(len(shape) - 3) if shape[axis] > 1]
    if len(shape) == 4:
        at = 0 if stored.order == "zyx" else 3
        if shape[0] <= _COLOURS < shape[3]:
            at = 0
        elif shape[3] <= _COLOURS < shape[0]:
            at = 3
        letters = "c" + letters if at == 0 else letters + "c"
        notes.append(
            f"shape {shape} is read as {shape[at]} channels, axes {letters}; axes says otherwise, such as axes: tzyx"
        )
    elif len(shape) > 4 and len(more) <= 1:
        letters = "".join("c" if axis in more else "?" for axis in range(len(shape) - 3)) + letters
    elif len(shape) != 3:
        raise ValueError(
            f"{path} must hold (n0, n1, n2) or (C, n0, n1, n2) voxels, got shape {shape}"
            + ("; name its axes by axes, such as axes: tczyx" if len(shape) > 4 else "")
        )
    return letters, notes


def nearest_axes(matrix: np.ndarray) -> str:
    """The world axis that each array axis of an affine follows best: "zyx" where the first axis runs along z.

    Example:
        >>> import numpy as np
        >>> from splat_ssim.volume.layout import nearest_axes
        >>> nearest_axes(np.array([[0.0, 0.1, -2.0, 0], [0.0, 1.0, 0.1, 0], [5.0, 0.0, 0.0, 0], [0, 0, 0, 1]]))
        'zyx'
    """
    directions = np.abs(matrix[:3, :3]) / np.linalg.norm(matrix[:3, :3], axis=0)
    orders = itertools.permutations(range(3))
    best = max(orders, key=lambda order: sum(directions[row, column] for column, row in enumerate(order)))
    return "".join("xyz"[row] for row in best)


def place(
    stored: Stored,
    path: Path,
    shape: Sequence[int],
    spatial: str,
    *,
    axes: str | None,
    spacing: float | Sequence[float] | None,
    origin: float | Sequence[float] | None,
) -> VoxelGrid:
    """Returns the grid of the voxels. Options override the position that the file states.

    Raises:
        ValueError: The affine is not valid, or an option is not finite.
    """
    own: VoxelGrid | None = None
    if stored.affine is not None:
        try:
            own = VoxelGrid(tuple(shape), np.asarray(stored.affine).tolist())
        except ValueError as error:
            if spacing is None:
                raise ValueError(
                    f"{path}: {error}; pass spacing=1.0 {read_option('spacing: 1.0')}, along x, y, z, to replace what "
                    f"the file says"
                ) from None
            spatial = spatial if axes is not None else stored.order
    if own is None:
        return VoxelGrid.regular(
            shape, spacing=1.0 if spacing is None else spacing, origin=0.0 if origin is None else origin, axes=spatial
        )
    follows = nearest_axes(own.matrix)
    if axes is not None and spatial != follows and spatial != stored.axes_in_space():
        # The axes differ from the file's, so only its spacing is kept and its origin is meaningless.
        steps = dict(zip(spatial, own.spacing, strict=True))
        return VoxelGrid.regular(
            shape,
            spacing=[steps[letter] for letter in "xyz"] if spacing is None else spacing,
            origin=0.0 if origin is None else origin,
            axes=spatial,
        )
    # Checks both options, and brings the spacing into the order of the array's axes.
    asked = VoxelGrid.regular(
        shape, spacing=1.0 if spacing is None else spacing, origin=0.0 if origin is None else origin, axes=follows
    )
    matrix = own.matrix
    if spacing is not None:
        signs = np.sign(asked.matrix[:3, :3].sum(0))
        matrix[:3, :3] *= signs * asked.spacing / np.asarray(own.spacing)
    if origin is not None:
        matrix[:3, 3] = asked.origin
    return VoxelGrid(tuple(shape), matrix.tolist())
