"""Volume files in and out: npy, npz, raw, NIfTI, TIFF stacks, NRRD, zarr.

What is read has its channels first and a grid whose affine carries spacing, orientation and axis order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .formats import READERS, WRITERS, open_zarr, read_raw, read_sidecar
from .grid import VoxelGrid

#: How each format is recognised, longest suffix first.
SUFFIXES = {
    ".nii.gz": "nifti",
    ".nii": "nifti",
    ".npy": "npy",
    ".npz": "npz",
    ".raw": "raw",
    ".tiff": "tiff",
    ".tif": "tiff",
    ".nrrd": "nrrd",
    ".nhdr": "nrrd",
    ".zarr": "zarr",
}


@dataclass
class Volume:
    """An array of voxels and where they lie.

    Args:
        data: (C, n0, n1, n2), any real dtype.
        grid: Its voxels; `grid.shape` is (n0, n1, n2).

    Raises:
        ValueError: Shapes that do not fit each other.
        TypeError: A dtype that is not real.
    """

    data: np.ndarray
    grid: VoxelGrid

    def __post_init__(self) -> None:
        if self.data.ndim != 4 or self.data.shape[1:] != self.grid.shape or self.data.shape[0] < 1:
            raise ValueError(f"data must have shape (C, {self.grid.shape}), got {self.data.shape}")
        if self.data.dtype.kind not in "biuf":
            raise TypeError(f"data must be real numbers, got {self.data.dtype}")


def volume_format(path: str | Path) -> str:
    """The format of a path by its suffix; a folder without a known suffix is a TIFF stack of its slices.

    Raises:
        ValueError: A suffix that is none of `SUFFIXES`.
    """
    name = Path(path).name.lower()
    for suffix, kind in SUFFIXES.items():
        if name.endswith(suffix):
            return kind
    if Path(path).is_dir():
        return "tiff"
    raise ValueError(f"a volume file must end in one of {', '.join(SUFFIXES)}, got {Path(path).name!r}")


def load_volume(
    path: str | Path,
    *,
    shape: Sequence[int] | None = None,
    dtype: str | np.dtype | None = None,
    spacing: float | Sequence[float] | None = None,
    origin: float | Sequence[float] | None = None,
    axes: str = "zyx",
    key: str | None = None,
    nonfinite: float | None = None,
) -> Volume:
    """Reads a volume, in its own dtype.

    Args:
        path: A file, a zarr folder, or a folder of TIFF slices in the order of their names.
        shape: Of a raw file: (n0, n1, n2) or (C, n0, n1, n2), unless a JSON file beside it says.
        dtype: Of a raw file, such as "uint8" or ">i2", unless a JSON file beside it says.
        spacing: Replaces what the file says: distance of voxel centres along x, y, z.
        origin: Goes with spacing: world x, y, z of voxel (0, 0, 0).
        axes: Goes with spacing, and is the axis order of files that do not say: "zyx" for (depth, height, width).
        key: Which array of an npz file or a zarr group, where it holds several.
        nonfinite: What NaN and infinite voxels become; None refuses them.

    Returns:
        The volume, channels first. Its grid has the file's affine, or spacing 1 along `axes` where it has none.

    Raises:
        FileNotFoundError: Nothing at the path.
        ValueError: An unknown suffix, a damaged or truncated file, a wrong shape, NaN or infinite voxels.
        ImportError: The package that reads the format is not installed.
    """
    path = Path(path)
    kind = volume_format(path)
    if not path.exists():
        raise FileNotFoundError(f"no volume at {path}")
    try:
        if kind == "raw":
            data, affine = read_raw(path, shape, dtype)
        elif kind in ("npz", "zarr"):
            data, affine = READERS[kind](path, key)
        else:
            data, affine = READERS[kind](path)
    except ImportError as error:
        raise ImportError(f"reading {kind} volumes needs pip install 'splat_ssim[volume]': {error}") from error
    except (ValueError, TypeError):
        raise
    except Exception as error:
        # Each library has its own errors for a damaged file (EOFError, zlib.error, ImageFileError, NRRDError …).
        raise ValueError(f"{path} must be a complete {kind} volume, got {type(error).__name__}: {error}") from error
    if data.ndim == 3:
        data = data[None]
    if data.ndim != 4 or 0 in data.shape:
        raise ValueError(f"{path} must hold (n0, n1, n2) or (C, n0, n1, n2) voxels, got shape {data.shape}")
    if spacing is not None or origin is not None or affine is None:
        grid = VoxelGrid.regular(
            data.shape[1:],
            spacing=1.0 if spacing is None else spacing,
            origin=0.0 if origin is None else origin,
            axes=axes,
        )
    else:
        try:
            grid = VoxelGrid(data.shape[1:], np.asarray(affine).tolist())
        except ValueError as error:
            raise ValueError(f"{path}: {error}; pass spacing=1.0 to replace what the file says") from None
    return Volume(_finite(data, path, nonfinite), grid)


def _finite(data: np.ndarray, path: Path, nonfinite: float | None) -> np.ndarray:
    if data.dtype.kind != "f":
        return data
    bad = ~np.isfinite(data)
    if not bad.any():
        return data
    if nonfinite is None:
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"{path} must hold finite voxels, got {int(bad.sum())} NaN or infinite ones, the first at (channel, index) "
            f"{where}; pass nonfinite=0.0 to replace them"
        )
    return np.where(bad, data.dtype.type(nonfinite), data)


def save_volume(path: str | Path, volume: Volume) -> Path:
    """Writes a volume in the format of the path's suffix, with its affine; returns the path.

    A single channel is written as a three-dimensional array. NIfTI and NRRD put channels last, as their readers expect.

    Raises:
        ValueError: An unknown suffix.
        ImportError: The package that writes the format is not installed.
    """
    path = Path(path)
    kind = volume_format(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = volume.data[0] if volume.data.shape[0] == 1 else volume.data
    try:
        WRITERS[kind](path, np.ascontiguousarray(data), volume.grid.rebased().matrix)
    except ImportError as error:
        raise ImportError(f"writing {kind} volumes needs pip install 'splat_ssim[volume]': {error}") from error
    return path


def open_array(path: str | Path, *, key: str | None = None) -> Any:
    """The voxels of a file as an array that is read piece by piece where the format allows: npy, raw and zarr.

    Returns:
        A numpy array, memory-mapped for npy and raw (with its JSON file), or a zarr array: (n0, n1, n2) or
        (C, n0, n1, n2). Other formats are read whole.
    """
    path = Path(path)
    kind = volume_format(path)
    if not path.exists():
        raise FileNotFoundError(f"no volume at {path}")
    if kind == "npy":
        return np.load(path, mmap_mode="r")
    if kind == "raw":
        return read_raw(path, None, None)[0]
    if kind == "zarr":
        return open_zarr(path, key)
    data = load_volume(path, key=key).data
    return data[0] if data.shape[0] == 1 else data


def open_grid(path: str | Path) -> VoxelGrid:
    """The grid of a volume file as `load_volume` gives it, its voxels unread where `open_array` leaves them so."""
    path = Path(path)
    kind = volume_format(path)
    if kind not in ("npy", "raw", "zarr"):
        return load_volume(path).grid
    array = open_array(path)
    shape = tuple(array.shape[-3:])
    affine = array.attrs.get("affine") if kind == "zarr" else read_sidecar(path).get("affine")
    return VoxelGrid.regular(shape) if affine is None else VoxelGrid(shape, np.asarray(affine).tolist())
