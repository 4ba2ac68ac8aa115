"""How each format of volumes is read and written: the array, and its affine where the format has a place for one.

Readers return (array, affine or None); formats without a place for an affine (npy, raw) keep it in a JSON file beside
them, `volume.npy.json`. The package of a format is imported when it is needed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .._files import replacing, replacing_path, write_json
from .grid import VoxelGrid

# --- the JSON file beside formats that have no place for an affine


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def read_sidecar(path: Path) -> dict[str, Any]:
    """What the JSON file beside a volume says; nothing where there is none."""
    file = _sidecar(path)
    return json.loads(file.read_text()) if file.exists() else {}


def _write_sidecar(path: Path, **content: Any) -> None:
    write_json(_sidecar(path), content)


# --- npy, npz, raw


def _read_npy(path: Path):
    return np.load(path, allow_pickle=False), read_sidecar(path).get("affine")


def _write_npy(path: Path, data: np.ndarray, affine: np.ndarray) -> None:
    with replacing(path) as file:
        np.save(file, data)
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
    with replacing(path) as file:
        np.savez_compressed(file, data=data, affine=affine)


def read_raw(path: Path, shape: Sequence[int] | None, dtype: str | np.dtype | None):
    """The memory-mapped array of a raw file, and its affine; what is None comes from its JSON file."""
    described = read_sidecar(path)
    shape = tuple(shape if shape is not None else described.get("shape", ()))
    dtype = dtype if dtype is not None else described.get("dtype")
    if not shape or dtype is None:
        raise ValueError(f"{path} is raw: shape and dtype must be given, got shape={shape or None}, dtype={dtype}")
    try:
        dtype = np.dtype(dtype)
    except TypeError:
        raise ValueError(f'{path} is raw: dtype must be one of numpy\'s, such as "int16", got {dtype!r}') from None
    expected, size = math.prod(shape) * dtype.itemsize, path.stat().st_size
    if expected != size:
        raise ValueError(f"{path} must have {expected} bytes for shape {shape} of {dtype}, got {size}")
    return np.memmap(path, dtype=dtype, mode="r", shape=shape), described.get("affine")


def _write_raw(path: Path, data: np.ndarray, affine: np.ndarray) -> None:
    with replacing(path) as file:
        # Not by tofile, which keeps to itself why the system refused.
        file.write(np.ascontiguousarray(data).reshape(-1).view(np.uint8).data)
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
    with replacing_path(path) as new:
        nibabel.save(nibabel.Nifti1Image(data, affine, dtype=data.dtype), new)


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
    with replacing_path(path) as new:
        tifffile.imwrite(new, data, photometric="minisblack", metadata=metadata)


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
    with replacing_path(path) as new:
        nrrd.write(str(new), data, header, index_order="F")


# --- zarr


def open_zarr(path: Path, key: str | None):
    """The zarr array at a path, or the one that key names in a group."""
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
    array = open_zarr(path, key)
    return array[...], array.attrs.get("affine")


def _write_zarr(path: Path, data: np.ndarray, affine: np.ndarray) -> None:
    import zarr

    chunks = (*[1] * (data.ndim - 3), *[min(n, 64) for n in data.shape[-3:]])
    # zarr 2, the last for Python 3.10, has this function too.
    with replacing_path(path) as new:
        array = zarr.open_array(str(new), mode="w", shape=data.shape, dtype=data.dtype, chunks=chunks)
        array[...] = data
        array.attrs["affine"] = affine.tolist()


#: Format -> function of a path (of npz and zarr also a key); raw is read by `read_raw`.
READERS: dict[str, Any] = {
    "npy": _read_npy,
    "npz": _read_npz,
    "nifti": _read_nifti,
    "tiff": _read_tiff,
    "nrrd": _read_nrrd,
    "zarr": _read_zarr,
}
#: Format -> function of a path, the array and its affine.
WRITERS: dict[str, Any] = {
    "npy": _write_npy,
    "npz": _write_npz,
    "raw": _write_raw,
    "nifti": _write_nifti,
    "tiff": _write_tiff,
    "nrrd": _write_nrrd,
    "zarr": _write_zarr,
}
