"""Reads DICOM through SimpleITK: the series of a folder, with its slices sorted by position.

Only voxels, position and unit of a file are passed on, so no tag of a patient reaches an output.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .itk import TO_RAS, call_itk, lps_affine
from .stored import Stored, read_option

_DESCRIPTION, _MODALITY, _THICKNESS, _PHOTOMETRIC = "0008|103e", "0008|0060", "0018|0050", "0028|0004"
_POSITION = "0020|0032"
#: Kinds of DICOM files that hold no image of a grid -> what reads them.
_NO_IMAGES = {"SEG": "dcmqi's segimage2itkimage", "RTSTRUCT": "plastimatch convert", "RTPLAN": "", "SR": "", "PR": ""}
#: Deviation of a slice from even spacing, in slice distances, from which a note is made, and from which it is refused.
_UNEVEN, _TOO_UNEVEN = 0.01, 0.1


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM files do."""
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def holds_dicom(folder: Path) -> bool:
    """Whether a file of a folder is DICOM."""
    return any(is_dicom(path) for path in _files(folder) if path.suffix.lower() not in (".tif", ".tiff"))


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


@dataclass
class _Slice:
    """The header of one file."""

    path: str
    affine: np.ndarray  # LPS
    size: tuple[int, ...]
    fields: dict[str, str]

    @classmethod
    def read(cls, path: str) -> _Slice:
        """Reads the header."""
        import SimpleITK as sitk

        reader = sitk.ImageFileReader()
        reader.SetFileName(path)
        call_itk(reader.ReadImageInformation)
        names = (_DESCRIPTION, _MODALITY, _THICKNESS, _PHOTOMETRIC, _POSITION)
        fields = {name: reader.GetMetaData(name).strip() for name in names if reader.HasMetaDataKey(name)}
        return cls(path, lps_affine(reader), tuple(reader.GetSize()), fields)


def read_dicom(path: Path, key: str | None) -> Stored:
    """The series of a folder that `key` names by number, UID or description, or one file of several frames."""
    if not path.is_dir():
        return _one_file(path)
    uid, files, notes = _series(path, key)
    slices = [_Slice.read(file) for file in files]
    _check_alike(slices, path, uid)
    if len(slices) == 1:
        stored = _one_file(Path(slices[0].path))
        stored.notes[:0] = notes
        return stored
    affine, order, more = _stack(slices, path, notes)
    planes = [_pixels(slices[index].path) for index in order]
    array = np.concatenate(planes) if planes[0].ndim >= 3 else np.stack(planes)
    return Stored(array, "zyx" + "c" * (array.ndim - 3), affine, "mm", notes=[*notes, *_told(slices[0]), *more])


def _series(folder: Path, key: str | None) -> tuple[str, tuple[str, ...], list[str]]:
    """Returns the UID and the files of the series to read.

    Raises:
        ValueError: There is no series, there are several and none is chosen, or the choice is not one of them.
    """
    import SimpleITK as sitk

    finder = sitk.ImageSeriesReader
    uids = sorted(call_itk(lambda: finder.GetGDCMSeriesIDs(str(folder))))
    if not uids:
        raise ValueError(f"{folder} must hold the files of a DICOM series, got none that GDCM reads")
    files = {uid: call_itk(partial(finder.GetGDCMSeriesFileNames, str(folder), uid)) for uid in uids}
    notes = _left_out(folder, {Path(name).name for names in files.values() for name in names})
    if len(uids) == 1 and key is None:
        return uids[0], files[uids[0]], notes
    headers = {uid: _Slice.read(files[uid][0]).fields for uid in uids}
    descriptions = [headers[uid].get(_DESCRIPTION, "") for uid in uids]
    listed = ", ".join(
        f"{index} {uid} {described!r} ({headers[uid].get(_MODALITY, '?')}, {len(files[uid])} files)"
        for index, (uid, described) in enumerate(zip(uids, descriptions, strict=True))
    )
    if key is None:
        raise ValueError(
            f"{folder} must hold one DICOM series, or key must name one of them {read_option('key: 0')}: {listed}"
        )
    if key in uids:
        uid = key
    elif descriptions.count(key) == 1:
        uid = uids[descriptions.index(key)]
    elif key.isdigit() and int(key) < len(uids):
        uid = uids[int(key)]
    else:
        raise ValueError(
            f"key must name one of the DICOM series of {folder} by number, UID or description, {listed}; got {key!r}"
        )
    notes.append(f"of {len(uids)} DICOM series {uid} {headers[uid].get(_DESCRIPTION, '')!r} is read")
    return uid, files[uid], notes


def _left_out(folder: Path, read: set[str]) -> list[str]:
    """A note on the DICOM files that GDCM leaves out without a word: those cut short, and those without an image."""
    named = [path for path in _files(folder) if path.suffix.lower() in (".dcm", ".ima") or is_dicom(path)]
    left = [path.name for path in named if path.name not in read and path.name.upper() != "DICOMDIR"]
    if not left:
        return []
    shown = ", ".join(left[:3]) + (", …" if len(left) > 3 else "")
    return [f"{len(left)} DICOM files that GDCM does not read as slices are left out: {shown}"]


def _check_alike(slices: list[_Slice], path: Path, uid: str) -> None:
    first = slices[0]
    modality = first.fields.get(_MODALITY, "")
    if modality in _NO_IMAGES:
        tool = f"; {_NO_IMAGES[modality]} converts it" if _NO_IMAGES[modality] else ""
        raise ValueError(f"{path} must hold a DICOM image, got one of modality {modality}{tool}")
    for other in slices[1:]:
        if other.size != first.size or not np.allclose(other.affine[:3, :3], first.affine[:3, :3], atol=1e-4):
            raise ValueError(
                f"{path}: the slices of series {uid} must have one size and one orientation, got {other.size} in "
                f"{Path(other.path).name} and {first.size} in {Path(first.path).name}; dcm2niix sorts them"
            )
        if other.size[2] > 1:
            raise ValueError(
                f"{path}: series {uid} must be of single slices or one file, got several files of "
                f"{first.size[2]} frames; give one of the files"
            )


def _stack(slices: list[_Slice], path: Path, left_out: list[str]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """The affine (RAS) of slices along z, y, x, the order of the slices, and notes on what was assumed."""
    nowhere = [Path(one.path).name for one in slices if not one.fields.get(_POSITION)]
    if nowhere:
        raise ValueError(
            f"{path} must hold slices with a position (0020,0032), got {len(nowhere)} without, such as {nowhere[0]}; "
            f"dcm2niix orders them"
        )
    columns = slices[0].affine[:3, :2]
    normal = np.cross(columns[:, 0], columns[:, 1])
    normal /= np.linalg.norm(normal)
    positions = np.stack([one.affine[:3, 3] for one in slices])
    heights = positions @ normal
    order = np.argsort(heights, kind="stable")
    gaps = np.diff(heights[order])
    step = (positions[order[-1]] - positions[order[0]]) / (len(slices) - 1)
    usual = float(np.median(gaps))
    if gaps.min() <= 1e-3 * max(usual, 1e-6):
        where = heights[order][int(gaps.argmin())]
        raise ValueError(
            f"{path} must hold one slice at each place, got several at {where:.6g} mm, such as time points or echoes; "
            f"dcm2niix separates them"
        )
    expected = positions[order[0]] + np.arange(len(slices))[:, None] * step
    off = float(np.linalg.norm(positions[order] - expected, axis=1).max()) / usual
    told = f"distances from {gaps.min():.6g} to {gaps.max():.6g} mm, usually {usual:.6g} mm"
    if off > _TOO_UNEVEN:
        raise ValueError(
            f"{path} must hold evenly spaced slices, got {'; '.join([told, *left_out])}: some may be missing; dcm2niix "
            f"resamples series of uneven distance"
        )
    notes = [f"{len(slices)} slices, {told}, are taken for evenly spaced"] if off > _UNEVEN else []
    lps = np.eye(4)
    # The array has its slices first, then rows, then columns.
    lps[:3, :3] = np.stack([step, columns[:, 1], columns[:, 0]], axis=1)
    lps[:3, 3] = positions[order[0]]
    return TO_RAS @ lps, order, notes


def _one_file(path: Path) -> Stored:
    """A file of one slice, or of several frames, as GDCM places them."""
    one = call_itk(lambda: _Slice.read(str(path)))
    _check_alike([one], path, "")
    array, notes = _pixels(str(path)), _told(one)
    lps = one.affine.copy()
    if one.size[2] == 1:
        thickness = float(one.fields.get(_THICKNESS) or 0) or 1.0
        lps[:3, 2] *= thickness / np.linalg.norm(lps[:3, 2])
        notes.append(f"it is one slice, taken to be {thickness:g} mm thick; its folder is the series")
    else:
        notes.append(f"its {one.size[2]} frames are {np.linalg.norm(lps[:3, 2]):.6g} mm apart as GDCM reads them")
    lps[:3, :3] = lps[:3, 2::-1]
    return Stored(array, "zyx" + "c" * (array.ndim - 3), TO_RAS @ lps, "mm", notes=notes)


def _told(one: _Slice) -> list[str]:
    inverted = one.fields.get(_PHOTOMETRIC) == "MONOCHROME1"
    return ["its values are inverted (MONOCHROME1): the least is the brightest"] if inverted else []


def _pixels(path: str) -> Any:
    """(1, rows, columns), with colours (1, rows, columns, 3); rescaled, such as to Hounsfield units."""
    import SimpleITK as sitk

    return sitk.GetArrayFromImage(call_itk(lambda: sitk.ReadImage(path)))
