"""Readers and writers of volume formats: npy, npz, raw and NIfTI are here, the others in files beside this one.

Readers give a `Stored`; formats without a place for an affine (npy, raw) keep it in a JSON file beside them,
`volume.npy.json`. The package of a format is imported when it is needed. The world is RAS: x to the right, y to the
front, z up, as in NIfTI; what a format counts otherwise is turned on the way in and out.
"""

from __future__ import annotations

import gzip
import itertools
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from .._files import UNFINISHED, described, replacing, replacing_path
from .._json import parsed
from .dicom import read_dicom
from .hdf5 import read_hdf5, write_hdf5
from .itk import itk_header, read_itk, write_itk
from .mrc import mrc_header, read_mrc, write_mrc
from .ome_zarr import read_zarr, write_zarr
from .stored import Stored, unit_name
from .tiff import read_tiff, tiff_header, write_tiff

# --- the JSON file beside formats that have no place for an affine


def sidecar(path: Path) -> Path:
    """The JSON file beside a volume."""
    return path.with_name(path.name + ".json")


def read_sidecar(path: Path) -> dict[str, Any]:
    """The content of the JSON file beside a volume, empty if there is none."""
    file = sidecar(path)
    if not file.exists():
        return {}
    try:
        content = parsed(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} must be JSON that describes {path.name}, got {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} must be a JSON object, got {type(content).__name__}")
    if UNFINISHED in content:
        raise ValueError(
            f"{path} and {file.name} must be of one writing, got the end of a process between them: write {path.name} "
            f"again, or keep of {file.name} the description that it fits"
        )
    return content


def with_sidecar(path: Path, ndim: int, affine: np.ndarray, unit: str, **content: Any) -> AbstractContextManager[None]:
    """Writes the JSON file beside an array of three axes, or of four with channels first: `commit` of `replacing`."""
    axes = "czyx"[-ndim:]
    return described(sidecar(path), {**content, "affine": affine.tolist(), "axes": axes, "unit": unit})


def _described(data: Any, path: Path) -> Stored:
    content = read_sidecar(path)
    stored = Stored(data, "", content.get("affine"), unit_name(content.get("unit")))
    names = content.get("axes") or ""
    stored.name_axes(names)
    if names and not stored.axes:
        raise ValueError(
            f"{sidecar(path)} must name the {data.ndim} axes of {path.name} by x, y, z, and c and t where there are "
            f"such, got axes {names!r}"
        )
    return stored


# --- npy, npz, raw


def _read_npy(path: Path, key: str | None, *, lazy: bool = False) -> Stored:
    try:
        data = np.load(path, allow_pickle=False, mmap_mode="r" if lazy else None)
    except ValueError as error:
        if "bject" in str(error):
            raise ValueError(f"{path} must hold an array of real numbers, got Python objects") from error
        raise
    return _described(data, path)


def _write_npy(path: Path, data: np.ndarray, affine: np.ndarray, unit: str) -> None:
    with replacing(path, commit=with_sidecar(path, data.ndim, affine, unit)) as file:
        np.save(file, data)


def _read_npz(path: Path, key: str | None) -> Stored:
    with np.load(path, allow_pickle=False) as archive:
        arrays = [name for name in archive.files if name not in ("affine", "unit")]
        if key is None and len(arrays) != 1:
            raise ValueError(f"{path} must hold one array, or key must name one of {arrays}")
        if key is not None and key not in arrays:
            raise ValueError(f"key must be one of {arrays} in {path}, got {key!r}")
        data = archive[key or arrays[0]]
        affine = archive["affine"] if "affine" in archive.files else None
        unit = unit_name(archive["unit"]) if "unit" in archive.files else ""
    # Files with an affine are of `save_volume`, which puts channels first.
    return Stored(data, "czyx"[-data.ndim :] if affine is not None and data.ndim in (3, 4) else "", affine, unit)


def _write_npz(path: Path, data: np.ndarray, affine: np.ndarray, unit: str) -> None:
    with replacing(path) as file:
        np.savez_compressed(file, data=data, affine=affine, unit=np.array(unit))


def read_raw(path: Path, shape: Sequence[int] | None, dtype: str | np.dtype | None) -> Stored:
    """Memory-maps the array of a raw file. Arguments that are None come from its JSON file."""
    content = read_sidecar(path)
    sizes = shape if shape is not None else content.get("shape", ())
    dtype = dtype if dtype is not None else content.get("dtype")
    if not sizes or dtype is None:
        raise ValueError(f"{path} is raw: shape and dtype must be given, got shape={sizes or None}, dtype={dtype}")
    if isinstance(sizes, str) or not isinstance(sizes, Sequence) or any(type(n) is not int or n < 1 for n in sizes):
        raise ValueError(f"{path} is raw: shape must be whole numbers, such as [40, 44, 36], got {sizes!r}")
    shape = tuple(sizes)
    try:
        dtype = np.dtype(dtype)
    except TypeError:
        raise ValueError(f'{path} is raw: dtype must be one of numpy\'s, such as "int16", got {dtype!r}') from None
    expected, size = math.prod(shape) * dtype.itemsize, path.stat().st_size
    if expected != size:
        raise ValueError(f"{path} must have {expected} bytes for shape {shape} of {dtype}, got {size}")
    stored = _described(np.memmap(path, dtype=dtype, mode="r", shape=shape), path)
    # A shape that a person gives has its channels first.
    stored.axes = stored.axes or ("czyx" if len(shape) == 4 else "")
    return stored


def _write_raw(path: Path, data: np.ndarray, affine: np.ndarray, unit: str) -> None:
    beside = with_sidecar(path, data.ndim, affine, unit, shape=data.shape, dtype=data.dtype.str)
    with replacing(path, commit=beside) as file:
        # Not by tofile, whose error does not say why the system refused.
        file.write(np.ascontiguousarray(data).reshape(-1).view(np.uint8).data)


# --- NIfTI


def _load_nifti(path: Path) -> tuple[Any, list[str]]:
    """The image of a file, also of one whose name says that it is compressed and is not, or the other way round."""
    import nibabel

    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    if packed == path.name.lower().endswith(".gz"):
        return nibabel.load(path), []
    content = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
    kind: Any = nibabel.Nifti1Image if 348 in _header_sizes(content) else nibabel.Nifti2Image
    note = f"it is {'gzip' if packed else 'not gzip'}, whatever its name says"
    return kind.from_bytes(content), [note]


def _header_sizes(content: bytes) -> tuple[int, int]:
    return int.from_bytes(content[:4], "little"), int.from_bytes(content[:4], "big")


def _scaled(image: Any) -> tuple[np.ndarray, list[str]]:
    """The numbers of an image, slope and intercept applied, in a dtype that needs no more bytes than they do."""
    slope, inter = (float(getattr(image.dataobj, name, default)) for name, default in (("slope", 1.0), ("inter", 0.0)))
    stored = image.get_data_dtype()
    if (slope, inter) == (1.0, 0.0) or stored.kind not in "iuf":
        return np.asanyarray(image.dataobj), []
    data = np.asarray(image.dataobj, dtype=np.float64)
    dtype: np.dtype = np.dtype(np.float64)
    if stored.kind != "f":
        low, high = float(data.min()), float(data.max())
        # The file's own dtype where it will do, else the smallest that does.
        wholes = [stored.newbyteorder("="), *(np.dtype(f"{kind}{size}") for size in (1, 2, 4) for kind in "iu")]
        fitting = [t for t in wholes if np.iinfo(t).min <= low and high <= np.iinfo(t).max and t.itemsize <= 4]
        if slope.is_integer() and inter.is_integer() and fitting:
            dtype = fitting[0]
        elif max(-low, high) <= min(abs(slope) * 2**21, float(np.finfo(np.float32).max)):
            # float32 rounds them by less than an eighth of the distance between neighbours.
            dtype = np.dtype(np.float32)
    note = f"its numbers, {stored.name}, have slope {slope:g} and intercept {inter:g}: they are read as {dtype}"
    return data.astype(dtype, copy=False), [note]


def _read_nifti(path: Path, key: str | None) -> Stored:
    image, notes = _load_nifti(path)
    data, scaling = _scaled(image)
    notes += scaling
    itemsize = image.get_data_dtype().itemsize if scaling else None
    if not hasattr(image.header, "get_xyzt_units"):
        notes.append("it is an Analyze file, which says no directions: x is taken to run to the left, as in SPM")
    else:
        notes += _directions(image.header, image.shape)
    letters = "xyztc"[: data.ndim] + "?" * (data.ndim - 5)
    if data.dtype.names:  # RGB and RGBA voxels
        data = np.stack([data[name] for name in data.dtype.names], -1)
        letters = letters.replace("c", "?") + "c"
    unit = ""
    if hasattr(image.header, "get_xyzt_units"):
        try:
            unit = unit_name(image.header.get_xyzt_units()[0])
        except KeyError:  # a code that is not in the standard
            notes.append("its unit of length is none of NIfTI's")
    return Stored(data, letters, image.affine, unit, "xyz", notes, itemsize)


def _directions(header: Any, shape: tuple[int, ...]) -> list[str]:
    """A note where a NIfTI header has no directions, or two that disagree."""
    from nibabel.spatialimages import HeaderDataError

    codes = [int(header["sform_code"]), int(header["qform_code"])]
    if codes == [0, 0]:
        return [
            "its header has no directions, sform_code and qform_code are 0: x is taken to run to the left, and the "
            "middle of the volume for the origin"
        ]
    if 0 in codes:
        return []
    try:
        sform, qform = header.get_sform(), header.get_qform()
    except HeaderDataError:  # a quaternion that is none; the sform is read
        return []
    ends = [(0, size - 1) for size in (*shape, 1, 1)[:3]]
    corners = np.array([(*corner, 1) for corner in itertools.product(*ends)])
    apart = float(np.linalg.norm(corners @ (sform - qform).T, axis=1).max())
    # Quaternions are rounded to float32.
    if apart <= 0.1 * np.linalg.norm(sform[:3, :3], axis=0).min():
        return []
    return [f"its sform and its qform are up to {apart:.3g} apart: the sform is taken"]


def _write_nifti(path: Path, data: np.ndarray, affine: np.ndarray, unit: str) -> None:
    import nibabel

    data = np.moveaxis(data, 0, 3) if data.ndim == 4 else data
    image = nibabel.Nifti1Image(data, affine, dtype=data.dtype)
    image.header.set_xyzt_units({"m": "meter", "mm": "mm", "um": "micron"}.get(unit, "unknown"))
    with replacing_path(path) as new:
        nibabel.save(image, new)


def _nifti_header(path: Path, key: str | None) -> tuple[tuple[int, ...], int]:
    image, _ = _load_nifti(path)
    # Numbers with a slope go through float64.
    plain = getattr(image.dataobj, "slope", 1.0) == 1 and getattr(image.dataobj, "inter", 0.0) == 0
    return tuple(image.shape), image.get_data_dtype().itemsize if plain else 8


#: Format -> function of a path and a key to shape and bytes of a number, the voxels unread.
HEADERS: dict[str, Any] = {
    "nifti": _nifti_header,
    "nrrd": itk_header,
    "metaimage": itk_header,
    "mrc": mrc_header,
    "tiff": tiff_header,
}
#: Format -> function of a path and a key; raw is read by `read_raw`.
READERS: dict[str, Any] = {
    "npy": _read_npy,
    "npz": _read_npz,
    "nifti": _read_nifti,
    "tiff": read_tiff,
    "nrrd": read_itk,
    "metaimage": read_itk,
    "dicom": read_dicom,
    "hdf5": read_hdf5,
    "mrc": read_mrc,
    "zarr": read_zarr,
}
#: Format -> function of a path, the array (three axes, or four with channels first), its affine and its unit.
WRITERS: dict[str, Any] = {
    "npy": _write_npy,
    "npz": _write_npz,
    "raw": _write_raw,
    "nifti": _write_nifti,
    "tiff": write_tiff,
    "nrrd": write_itk,
    "metaimage": write_itk,
    "hdf5": write_hdf5,
    "mrc": write_mrc,
    "zarr": write_zarr,
}
#: Format -> dtypes that it lacks -> those that hold the same numbers.
_WIDER = {
    **{kind: {"bool": "uint8", "float16": "float32"} for kind in ("nifti", "nrrd", "metaimage")},
    "tiff": {"bool": "uint8"},
    "mrc": {"bool": "int8", "uint8": "uint16"},
}


def written_dtype(kind: str, dtype: np.dtype) -> np.dtype:
    """The dtype in which a format keeps voxels of another: the same, or one that holds the same numbers."""
    return np.dtype(_WIDER.get(kind, {}).get(dtype.name, dtype))
