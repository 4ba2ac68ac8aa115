"""Volume files in and out: npy, npz, raw, NIfTI, TIFF stacks, NRRD, zarr.

Every reader gives channels first and a grid whose affine carries spacing, orientation and axis order. Formats without a
place for an affine (npy, raw) keep it in a JSON file beside them, `volume.npy.json`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

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
            data, affine = _read_raw(path, shape, dtype)
        elif kind in ("npz", "zarr"):
            data, affine = _READERS[kind](path, key)
        else:
            data, affine = _READERS[kind](path)
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
        _WRITERS[kind](path, np.ascontiguousarray(data), volume.grid.rebased().matrix)
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
        return _read_raw(path, None, None)[0]
    if kind == "zarr":
        return _open_zarr(path, key)
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
    affine = array.attrs.get("affine") if kind == "zarr" else _read_sidecar(path).get("affine")
    return VoxelGrid.regular(shape) if affine is None else VoxelGrid(shape, np.asarray(affine).tolist())


# --- the JSON file beside formats that have no place for an affine


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _read_sidecar(path: Path) -> dict[str, Any]:
    file = _sidecar(path)
    return json.loads(file.read_text()) if file.exists() else {}


def _write_sidecar(path: Path, **content: Any) -> None:
    _sidecar(path).write_text(json.dumps(content, indent=1) + "\n")


# --- npy, npz, raw


def _read_npy(path: Path):
    return np.load(path, allow_pickle=False), _read_sidecar(path).get("affine")


def _write_npy(path: Path, data: np.ndarray, affine: np.ndarray) -> None:
    np.save(path, data)
    _write_sidecar(path, affine=affine.tolist())


def _read_npz(path: Path, key: str | None):
    with np.load(path, allow_pickle=False) as archive:
        arrays = [name for name in archive.files if name != "affine"]
        if key is None and len(arrays) != 1:
            raise ValueError(f"{path} must hold one array, or key must name one of {arrays}")
        if key is not None and key not in arrays:
            raise ValueError(f"key must be one of {arrays} in {path}, got {key!r}")
        affine = archive["affine"] if "affine" in archive.files else None
        return archive[key or arrays[0]], affine


def _write_npz(path: Path, data: np.ndarray, affine: np.ndarray) -> None:
    np.savez_compressed(path, data=data, affine=affine)


def _read_raw(path: Path, shape: Sequence[int] | None, dtype: str | np.dtype | None):
    described = _read_sidecar(path)
    shape = tuple(shape if shape is not None else described.get("shape", ()))
    dtype = dtype if dtype is not None else described.get("dtype")
    if not shape or dtype is None:
        raise ValueError(f"{path} is raw: shape and dtype must be given, got shape={shape or None}, dtype={dtype}")
    try:
        dtype = np.dtype(dtype)
    except TypeError:
        raise ValueError(f'{path} is raw: dtype must be one of numpy\'s, such as "int16", got {dtype!r}') from None
    wanted, found = math.prod(shape) * dtype.itemsize, path.stat().st_size
    if wanted != found:
        raise ValueError(f"{path} must have {wanted} bytes for shape {shape} of {dtype}, got {found}")
    return np.memmap(path, dtype=dtype, mode="r", shape=shape), described.get("affine")


def _write_raw(path: Path, data: np.ndarray, affine: np.ndarray) -> None:
    data.tofile(path)
    _write_sidecar(path, shape=data.shape, dtype=data.dtype.str, affine=affine.tolist())


# --- NIfTI


def _read_nifti(path: Path):
    import nibabel

    image: Any = nibabel.load(path)
    data = np.asanyarray(image.dataobj)
    while data.ndim > 4 and data.shape[3] == 1:  # (x, y, z, 1, channels)
        data = data[:, :, :, 0]
    if data.dtype.names:  # RGB and RGBA voxels
        data = np.stack([data[name] for name in data.dtype.names], -1)
    return (np.moveaxis(data, 3, 0) if data.ndim == 4 else data), image.affine


def _write_nifti(path: Path, data: np.ndarray, affine: np.ndarray) -> None:
    import nibabel

    if data.dtype == bool:
        data = data.astype(np.uint8)
    data = np.moveaxis(data, 0, 3) if data.ndim == 4 else data
    nibabel.save(nibabel.Nifti1Image(data, affine, dtype=data.dtype), path)


# --- TIFF


def _read_tiff(path: Path):
    import tifffile

    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix.lower() in (".tif", ".tiff"))
        if not files:
            raise ValueError(f"{path} must hold TIFF slices, got none")
        return np.stack([tifffile.imread(p) for p in files]), None
    with tifffile.TiffFile(path) as file:
        series = file.series[0]
        data, axes = series.asarray(), series.axes.replace("S", "C").replace("I", "Z").replace("Q", "Z")
        shaped = file.shaped_metadata
        if shaped and "affine" in shaped[0]:
            return data, shaped[0]["affine"]
        affine = _imagej_affine(file)
    if data.ndim == 4 and axes.count("C") == 1:
        data = np.moveaxis(data, axes.index("C"), 0)
    return data, affine


def _imagej_affine(file) -> np.ndarray | None:
    """Spacing as ImageJ writes it: pixels a unit in the resolution tags, the distance of slices in its own field."""
    if not file.imagej_metadata:
        return None
    tags = file.pages[0].tags
    steps = [float(file.imagej_metadata.get("spacing", 1.0))]
    for name in ("YResolution", "XResolution"):
        above, below = tags[name].value if name in tags else (1, 1)
        steps.append(below / above if above else 1.0)
    return VoxelGrid.regular((1, 1, 1), spacing=steps[::-1]).matrix


def _write_tiff(path: Path, data: np.ndarray, affine: np.ndarray) -> None:
    import tifffile

    # Pages are planes of the first array axis; the affine goes into tifffile's JSON description.
    data = data.astype(np.uint8) if data.dtype == bool else data
    metadata = {"axes": "CZYX"[-data.ndim :], "affine": affine.tolist()}
    tifffile.imwrite(path, data, photometric="minisblack", metadata=metadata)


# --- NRRD


def _read_nrrd(path: Path):
    import nrrd

    data, header = nrrd.read(str(path), index_order="F")
    directions = header.get("space directions")
    affine = None
    if directions is not None:
        directions = np.asarray([[np.nan] * 3 if row is None else row for row in directions], dtype=np.float64)
        spatial = np.isfinite(directions).all(1)
        if spatial.sum() != 3:
            raise ValueError(f"{path} must have three spatial axes, got space directions {directions.tolist()}")
        affine = np.eye(4)
        affine[:3, :3] = directions[spatial].T
        affine[:3, 3] = header.get("space origin", np.zeros(3))
        channel = np.flatnonzero(~spatial)
    else:
        kinds = header.get("kinds", ["domain"] * data.ndim)
        channel = np.flatnonzero([kind not in ("domain", "space") for kind in kinds])
        spacings = header.get("spacings")
        if spacings is not None:
            affine = np.diag([*np.delete(np.nan_to_num(spacings, nan=1.0), channel), 1.0])
    if data.ndim == 4:
        data = np.moveaxis(data, int(channel[0]) if len(channel) else 3, 0)
    return data, affine


def _write_nrrd(path: Path, data: np.ndarray, affine: np.ndarray) -> None:
    import nrrd

    data = data.astype(np.uint8) if data.dtype == bool else data
    directions = affine[:3, :3].T
    kinds = ["domain"] * 3
    if data.ndim == 4:
        data = np.moveaxis(data, 0, 3)
        directions = np.vstack([directions, np.full(3, np.nan)])
        kinds.append("vector")
    header = {
        "space dimension": 3,
        "space directions": directions,
        "space origin": affine[:3, 3],
        "kinds": kinds,
    }
    nrrd.write(str(path), data, header, index_order="F")


# --- zarr


def _open_zarr(path: Path, key: str | None):
    import zarr

    node = zarr.open(str(path), mode="r")
    if isinstance(node, zarr.Array):
        return node
    arrays = [name for name, _ in node.arrays()]
    if key is None and len(arrays) != 1:
        raise ValueError(f"{path} must hold one array, or key must name one of {arrays}")
    if key is not None and key not in arrays:
        raise ValueError(f"key must be one of {arrays} in {path}, got {key!r}")
    return node[key or arrays[0]]


def _read_zarr(path: Path, key: str | None):
    array = _open_zarr(path, key)
    return array[...], array.attrs.get("affine")


def _write_zarr(path: Path, data: np.ndarray, affine: np.ndarray) -> None:
    import zarr

    chunks = (*[1] * (data.ndim - 3), *[min(n, 64) for n in data.shape[-3:]])
    array = zarr.create_array(store=str(path), shape=data.shape, dtype=data.dtype, chunks=chunks, overwrite=True)
    array[...] = data
    array.attrs["affine"] = affine.tolist()


_READERS: dict[str, Any] = {
    "npy": _read_npy,
    "npz": _read_npz,
    "nifti": _read_nifti,
    "tiff": _read_tiff,
    "nrrd": _read_nrrd,
    "zarr": _read_zarr,
}
_WRITERS: dict[str, Any] = {
    "npy": _write_npy,
    "npz": _write_npz,
    "raw": _write_raw,
    "nifti": _write_nifti,
    "tiff": _write_tiff,
    "nrrd": _write_nrrd,
    "zarr": _write_zarr,
}
