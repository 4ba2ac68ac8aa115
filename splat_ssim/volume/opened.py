"""A volume file whose voxels are read when they are needed, with everything else that it says of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .grid import VoxelGrid
from .io import LAZY, load_volume, open_stored, reading, volume_format
from .layout import arrange, place


@dataclass(frozen=True)
class OpenVolume:
    """The voxels of a file, unread if its format allows it, and their position in the world.

    Args:
        path: The file.
        array: (n0, n1, n2) or (C, n0, n1, n2): a numpy array, memory-mapped for npy and raw (with its JSON file), or
            one with shape, dtype and indexing by slices.
        grid: Position of the voxels; `grid.shape` is (n0, n1, n2).
        unit: Unit of the grid's world, or empty if unknown.
        notes: What was assumed when it was opened, one sentence each.
    """

    path: Path
    array: Any
    grid: VoxelGrid
    unit: str = ""
    notes: tuple[str, ...] = ()

    def read(self, index: tuple[slice, ...]) -> np.ndarray:
        """The voxels at an index. Errors name the file."""
        voxels: np.ndarray = reading(self.path, lambda: np.asarray(self.array[index]))
        return voxels


def open_volume(
    path: str | Path,
    *,
    key: str | None = None,
    axes: str | None = None,
    channel: int | None = None,
    time: int | None = None,
) -> OpenVolume:
    """Opens a volume file. Its voxels are read piece by piece if the format allows it: npy, raw, zarr and HDF5.

    The options and the errors are those of `load_volume`. Other formats are read whole.

    Example:
        >>> import numpy as np, tempfile
        >>> from pathlib import Path
        >>> from splat_ssim.volume.opened import open_volume
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(Path(folder) / "volume.npy", np.zeros((2, 3, 4, 5)))
        ...     volume = open_volume(Path(folder) / "volume.npy", channel=0)
        >>> volume.grid.shape, volume.notes[0][:43]
        ((3, 4, 5), 'shape (2, 3, 4, 5) is read as 2 channels, a')
    """
    path = Path(path)
    if volume_format(path) not in LAZY:
        volume = load_volume(path, key=key, axes=axes, channel=channel, time=time)
        data = volume.data[0] if volume.data.shape[0] == 1 else volume.data
        return OpenVolume(path, data, volume.grid, volume.unit, volume.notes)
    stored = open_stored(path, key=key, lazy=True)
    array, spatial, notes = arrange(stored, path, axes=axes, channel=channel, time=time)
    grid = place(stored, path, array.shape[-3:], spatial, axes=axes, spacing=None, origin=None)
    return OpenVolume(path, array, grid, stored.unit, tuple(notes))
