"""Volume files in and out: NIfTI, NRRD, MetaImage, DICOM, TIFF, MRC, HDF5, zarr and OME-Zarr, npy, npz and raw.

What is read has its channels first and a grid whose affine carries spacing, orientation and axis order.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .dicom import holds_dicom, is_dicom
from .formats import HEADERS, READERS, WRITERS, read_raw, written_dtype
from .grid import VoxelGrid
from .layout import arrange, place
from .ome_zarr import split_zarr
from .stored import Stored, plain_array, read_option
from .suffixes import CONVERTERS, SUFFIXES, check_written, kind_of_suffix
from .tiff import holds_tiff

#: Formats whose voxels are read piece by piece.
LAZY = ("npy", "raw", "zarr", "hdf5")


@dataclass
class Volume:
    """An array of voxels and their position in the world.

    Args:
        data: (C, n0, n1, n2), any real dtype.
        grid: Position of the voxels; `grid.shape` is (n0, n1, n2).
        unit: Unit of the grid's world: m, cm, mm, um, nm, angstrom, inch, or empty if unknown.
        notes: One sentence for each thing that was assumed when it was read.
        itemsize: Bytes of a number in the file that it was read from, or None if they are those of `data`.

    Raises:
        ValueError: The shapes of data and grid differ.
        TypeError: The dtype is not real.
    """

    data: np.ndarray
    grid: VoxelGrid
    unit: str = ""
    notes: tuple[str, ...] = ()
    itemsize: int | None = None

    @property
    def stored_bytes(self) -> int:
        """Bytes of the voxels as their file has them, uncompressed."""
        return self.data.size * (self.itemsize or self.data.itemsize)

    def __post_init__(self) -> None:
        if self.data.ndim != 4 or self.data.shape[1:] != self.grid.shape or self.data.shape[0] < 1:
            raise ValueError(f"data must have shape (C, {self.grid.shape}), got {self.data.shape}")
        if self.data.dtype.kind not in "biuf":
            raise TypeError(f"data must be real numbers, got {self.data.dtype}")


def volume_format(path: str | Path) -> str:
    """Returns the format of a path by its suffix. Paths inside a zarr folder are zarr, other folders TIFF or DICOM.

    Raises:
        ValueError: The suffix is none of `SUFFIXES`. For some other formats, the message names a program that converts
            the file.
    """
    path = Path(path)
    name = path.name.lower()
    if (kind := kind_of_suffix(path)) is not None:
        return kind
    if split_zarr(path)[1] is not None:
        return "zarr"
    if path.is_dir():
        tiff, dicom = holds_tiff(path), holds_dicom(path)
        if tiff and dicom:
            raise ValueError(f"{path} must hold TIFF slices or a DICOM series, got files of both; move one kind away")
        return "dicom" if dicom else "tiff"
    if is_dicom(path):
        return "dicom"
    for suffix, tool in CONVERTERS.items():
        if name.endswith(suffix):
            raise ValueError(f"{path.name} is of a format that is not read here: {tool} converts it")
    raise ValueError(f"a volume file must end in one of {', '.join(SUFFIXES)}, got {path.name!r}")


def load_volume(
    path: str | Path,
    *,
    shape: Sequence[int] | None = None,
    dtype: str | np.dtype | None = None,
    spacing: float | Sequence[float] | None = None,
    origin: float | Sequence[float] | None = None,
    axes: str | None = None,
    key: str | None = None,
    channel: int | None = None,
    time: int | None = None,
    nonfinite: float | None = None,
) -> Volume:
    """Reads a volume, in its own dtype, into a world of x to the right, y to the front and z up (RAS).

    Args:
        path: A file, a zarr folder or a path inside it, a folder of TIFF slices in the order of their numbers, or a
            folder of DICOM files.
        shape: Shape of a raw file, (n0, n1, n2) or (C, n0, n1, n2). A JSON file beside it may give it instead.
        dtype: Dtype of a raw file, such as "uint8" or ">i2". A JSON file beside it may give it instead.
        spacing: Distance between voxel centres along the world's x, y, z, instead of the file's. The directions of the
            axes remain the file's, or follow `axes` if it has none.
        origin: World x, y, z of voxel (0, 0, 0), instead of the file's.
        axes: The world axis that each axis of the array follows, with c for channels and t for time, such as "zyx",
            "tczyx" or "xyzc". By default the file decides. If it does not, "xyz" for NIfTI and NRRD, otherwise "zyx".
        key: The array in an npz or HDF5 file or a zarr group (a path inside it), or the series of a TIFF file or a
            DICOM folder (its number, name or UID).
        channel: Index of the only channel to read. By default all channels are read.
        time: Index of the only time point to read. By default all are read, as channels, if the file has no channels.
        nonfinite: Number that replaces NaN and infinite voxels. None, the default, refuses them.

    Returns:
        The volume, channels first. Axes of length 1 are dropped. Its grid has the file's affine, or spacing 1 if the
        file has none. Its notes say what was assumed.

    Raises:
        FileNotFoundError: There is nothing at the path.
        ValueError: The suffix is unknown, the file is damaged or truncated, the shape is wrong, voxels are NaN or
            infinite, or there is too little memory.
        ImportError: The package that reads the format is not installed.
    """
    path = Path(path)
    stored = open_stored(path, shape=shape, dtype=dtype, key=key)
    return _arranged(
        stored, path, axes=axes, channel=channel, time=time, spacing=spacing, origin=origin, nonfinite=nonfinite
    )


def array_volume(
    array: np.ndarray,
    *,
    spacing: float | Sequence[float] | None = None,
    origin: float | Sequence[float] | None = None,
    axes: str | None = None,
    nonfinite: float | None = None,
    name: str = "volume",
) -> Volume:
    """Makes a volume of an array. Options and the treatment of axes are those of `load_volume` for npy files.

    Args:
        array: (n0, n1, n2) real numbers, or with channels.
        spacing: Distance between voxel centres along the world's x, y, z; 1 by default.
        origin: World x, y, z of voxel (0, 0, 0); 0 by default.
        axes: The world axis that each axis of the array follows, "zyx" by default.
        nonfinite: Number that replaces NaN and infinite voxels. None, the default, refuses them.
        name: Name of the array in messages.

    Raises:
        ValueError: The shape is not that of a volume, or voxels are NaN or infinite.
        TypeError: The array does not hold real numbers.
    """
    options = {"axes": axes, "spacing": spacing, "origin": origin, "nonfinite": nonfinite}
    stored = Stored(plain_array(array, name))
    return _arranged(stored, Path(name), channel=None, time=None, **options)  # type: ignore[arg-type]


def _arranged(
    stored: Stored,
    path: Path,
    *,
    axes: str | None,
    channel: int | None,
    time: int | None,
    spacing: float | Sequence[float] | None,
    origin: float | Sequence[float] | None,
    nonfinite: float | None,
) -> Volume:
    """Makes a volume of a reader's result."""
    array, spatial, notes = arrange(stored, path, axes=axes, channel=channel, time=time)
    data = array if isinstance(array, np.ndarray) else reading(path, lambda: np.asarray(array[...]))
    data = data[None] if data.ndim == 3 else data
    if data.ndim != 4 or 0 in data.shape:
        raise ValueError(f"{path} must hold (n0, n1, n2) or (C, n0, n1, n2) voxels, got shape {data.shape}")
    if data.dtype.kind not in "biuf":
        raise TypeError(f"{path} must hold real numbers, got {data.dtype}")
    grid = place(stored, path, data.shape[1:], spatial, axes=axes, spacing=spacing, origin=origin)
    data, replaced = _finite(data, path, nonfinite)
    return Volume(data, grid, stored.unit, (*notes, *replaced), stored.itemsize)


def open_stored(
    path: Path,
    *,
    shape: Sequence[int] | None = None,
    dtype: str | np.dtype | None = None,
    key: str | None = None,
    lazy: bool = False,
) -> Stored:
    """The result of the reader for the path's format. Errors name the path."""
    kind = volume_format(path)
    if not path.exists() and not (kind == "zarr" and split_zarr(path)[0].exists()):
        raise FileNotFoundError(f"no volume at {path}")
    key = None if key is None else str(key)
    if kind == "raw":
        stored: Stored = reading(path, lambda: read_raw(path, shape, dtype))
    elif kind == "npy":
        stored = reading(path, lambda: READERS[kind](path, key, lazy=lazy))
    else:
        stored = reading(path, lambda: READERS[kind](path, key))
    if key is not None and kind not in ("npz", "tiff", "zarr", "hdf5", "dicom"):
        stored.notes.append(f"key {key} is left out: a {kind} file holds one array")
    if kind != "raw" and (shape is not None or dtype is not None):
        stored.notes.append(f"shape and dtype are left out: a {kind} file says its own")
    return stored


def reading(path: Path, function: Callable[[], Any]) -> Any:
    """Calls a function that reads a file. Errors name the file, or the missing package."""
    kind = volume_format(path)
    try:
        return function()
    except ImportError as error:
        raise ImportError(f"reading {kind} volumes needs pip install 'splat_ssim[volume]': {error}") from error
    except (ValueError, TypeError) as error:
        if str(path) in str(error) or path.name in str(error):
            raise
        raise ValueError(f"{path} must be a complete {kind} volume, got {error}") from error
    except Exception as error:
        # Each library has its own errors for a damaged file (EOFError, zlib.error, ImageFileError, NRRDError …).
        if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
            raise ValueError(f"{path} requires more memory than there is, got {error}") from error
        raise ValueError(f"{path} must be a complete {kind} volume, got {type(error).__name__}: {error}") from error


def _finite(data: np.ndarray, path: Path, nonfinite: float | None) -> tuple[np.ndarray, list[str]]:
    """The voxels with NaN and infinities replaced, and a note of how many they were."""
    if nonfinite is not None:
        number = isinstance(nonfinite, int | float) and not isinstance(nonfinite, bool)
        largest = float(np.finfo(data.dtype if data.dtype.kind == "f" else np.float64).max)
        if not number or not abs(nonfinite) <= largest:
            raise ValueError(f"nonfinite must be a finite number that {data.dtype} holds, got {nonfinite!r} for {path}")
    if data.dtype.kind != "f":
        return data, []
    bad = ~np.isfinite(data)
    if not bad.any():
        return data, []
    if nonfinite is None:
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"{path} must hold finite voxels, got {int(bad.sum())} NaN or infinite ones, the first at (channel, index) "
            f"{where}; pass nonfinite=0.0 {read_option('nonfinite: 0.0')} to replace them"
        )
    note = f"{int(bad.sum())} NaN or infinite voxels are replaced by {nonfinite:g}, as nonfinite says"
    return np.where(bad, data.dtype.type(nonfinite), data), [note]


def load_stack(path: str | Path) -> np.ndarray:
    """Reads pictures of equal size, such as projections, as (pictures, rows, columns) in the file's dtype.

    The order of the axes in memory is kept: npy and TIFF list pictures first, NIfTI, NRRD and MetaImage columns first.

    Raises:
        FileNotFoundError: There is nothing at the path.
        ValueError: The file cannot be read, does not have three axes, or holds NaN or infinite numbers.
        TypeError: The file does not hold real numbers.
        ImportError: The package that reads the format is not installed.
    """
    path = Path(path)
    stored = open_stored(path)
    data: np.ndarray = reading(path, lambda: np.asarray(stored.array[...]))
    if data.ndim != 3 or 0 in data.shape:
        raise ValueError(f"{path} must hold (pictures, rows, columns), got shape {data.shape}")
    if data.dtype.kind not in "biuf":
        raise TypeError(f"{path} must hold real numbers, got {data.dtype}")
    if volume_format(path) in ("nifti", "nrrd", "metaimage"):
        data = data.transpose(2, 1, 0)
    if data.dtype.kind == "f" and not np.isfinite(data).all():
        raise ValueError(f"{path} must hold finite numbers, got {int((~np.isfinite(data)).sum())} NaN or infinite ones")
    return data


def save_volume(path: str | Path, volume: Volume) -> Path:
    """Writes a volume in the format of the path's suffix, with its affine. Returns the path.

    A single channel is written as a three-dimensional array. A dtype that the format lacks becomes one that holds the
    same numbers: see `written_dtype`. NIfTI, NRRD and MetaImage put channels last, as their
    readers expect; a TIFF stack has planes across the world's z on its pages.

    Raises:
        ValueError: The suffix is unknown, the format can only be read (DICOM), or it cannot hold the volume.
        WriteError: There is something at the path that is not replaced, or the system refuses to write.
        ImportError: The package that writes the format is not installed.
    """
    path = Path(path)
    kind = check_written(path)
    data = volume.data[0] if volume.data.shape[0] == 1 else volume.data
    data = data.astype(written_dtype(kind, data.dtype), copy=False)
    try:
        WRITERS[kind](path, np.ascontiguousarray(data), volume.grid.rebased().matrix, volume.unit)
    except ImportError as error:
        raise ImportError(f"writing {kind} volumes needs pip install 'splat_ssim[volume]': {error}") from error
    return path


def open_grid(path: str | Path, *, key: str | None = None) -> VoxelGrid:
    """The grid of a volume file as `load_volume` gives it, its voxels unread where `open_volume` leaves them so."""
    path = Path(path)
    if volume_format(path) not in LAZY:
        return load_volume(path, key=key).grid
    stored = open_stored(path, key=key, lazy=True)
    # The grid is the same for every channel and time point.
    array, spatial, _ = arrange(stored, path, axes=None, channel=0, time=0 if "t" in stored.axes else None)
    return place(stored, path, array.shape[-3:], spatial, axes=None, spacing=None, origin=None)


def stored_shape(
    path: str | Path, *, shape: Sequence[int] | None = None, dtype: str | None = None, key: str | None = None
) -> tuple[tuple[int, ...], int] | None:
    """Returns the shape of a file's array and the bytes of each number, without reading voxels; None if unknown.

    Raises:
        FileNotFoundError: There is nothing at the path.
        ValueError: The file cannot be read.
    """
    path = Path(path)
    kind = volume_format(path)
    if kind in LAZY:
        array = open_stored(path, shape=shape, dtype=dtype, key=key, lazy=True).array
        return tuple(int(n) for n in array.shape), int(array.dtype.itemsize)
    if kind not in HEADERS or not path.is_file():
        return None
    header: tuple[tuple[int, ...], int] | None = reading(path, lambda: HEADERS[kind](path, key))
    return header
