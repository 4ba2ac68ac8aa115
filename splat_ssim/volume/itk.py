"""NRRD and MetaImage through SimpleITK, whose world is LPS: x to the left, y to the back, z up."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .._files import replacing_path
from .layout import guessed_axes
from .stored import Stored, unit_name

#: Converts LPS to RAS, and back.
TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
#: The header field that keeps the unit: ITK has none of its own.
_UNIT = "unit"
#: Spaces of NRRD -> signs that bring the axes ITK gives to RAS. ITK brings the spaces without time to LPS itself.
_SIGNS = {
    "left-posterior-superior": (-1.0, -1.0, 1.0),
    "left-posterior-superior-time": (-1.0, -1.0, 1.0),
    "left-anterior-superior-time": (-1.0, 1.0, 1.0),
    "right-anterior-superior-time": (1.0, 1.0, 1.0),
}
#: Kinds of NRRD's axes -> letters of `Stored`; any other kind is a channel.
_KINDS = {"domain": "s", "space": "s", "time": "t"}


def call_itk(function: Callable[[], Any]) -> Any:
    """Calls a function of SimpleITK without its warnings on stderr.

    Raises:
        ValueError: ITK reports an error. The message is its text without the lines of its source.
    """
    import SimpleITK as sitk

    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        return function()
    except RuntimeError as error:
        said = re.split(r"ITK ERROR: (?:\w+\(0x[0-9a-f]+\): )?|sitk::ERROR: ", str(error))[-1]
        raise ValueError(" ".join(said.split())) from error
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)


def lps_affine(image: Any) -> np.ndarray:
    """The affine (D+1, D+1) of an image of D dimensions, or of its reader, in ITK's own world."""
    size = image.GetDimension()
    affine = np.eye(size + 1)
    affine[:size, :size] = np.reshape(image.GetDirection(), (size, size)) * np.asarray(image.GetSpacing())
    affine[:size, size] = image.GetOrigin()
    return affine


def itk_header(path: Path, key: str | None) -> tuple[tuple[int, ...], int]:
    """Shape of an image and bytes of a number. Its voxels are not read."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    call_itk(reader.ReadImageInformation)
    # An image of one pixel is asked for the size of its numbers.
    kind = sitk.Image([1] * reader.GetDimension(), reader.GetPixelID(), reader.GetNumberOfComponents())
    components = reader.GetNumberOfComponents()
    more = (components,) if components > 1 else ()
    return (*reader.GetSize(), *more), kind.GetSizeOfPixelComponent()


def read_itk(path: Path, key: str | None) -> Stored:
    """Reads an image with three or four axes, NRRD or MetaImage. ITK's x is the first axis of the array."""
    import SimpleITK as sitk

    kind = "nrrd" if path.name.lower().endswith((".nrrd", ".nhdr")) else "metaimage"
    try:
        if kind == "metaimage":
            _check_voxels(path)
        image = call_itk(lambda: sitk.ReadImage(str(path)))
    except ValueError as error:
        raise ValueError(f"{path} must be a complete {kind} volume, got {error}") from error
    fields = {name: image.GetMetaData(name) for name in image.GetMetaDataKeys()}
    size, components = image.GetDimension(), image.GetNumberOfComponentsPerPixel()
    array = sitk.GetArrayFromImage(image)
    array = array.transpose([*range(size - 1, -1, -1), *range(size, array.ndim)])
    stored = Stored(array, order="xyz")
    if size not in (3, 4):
        raise ValueError(f"{path} must have three axes in space, got {size} axes of shape {array.shape[:size]}")
    letters = "xyz" if size == 3 else _four_axes(stored, fields, path, kind)
    affine = lps_affine(image)
    spatial = [axis for axis, letter in enumerate(letters) if letter in "xyz"]
    rows = [*spatial, size]
    affine = affine[np.ix_(rows, rows)]
    stored.axes = letters + "c" if components > 1 else letters
    stored.unit = unit_name(fields.get(_UNIT, fields.get(f"NRRD_units[{spatial[0]}]")))
    space = fields.get("NRRD_space", "").lower()
    if kind == "metaimage":
        stored.affine = TO_RAS @ affine
    elif space in _SIGNS:
        stored.affine = np.diag([*_SIGNS[space], 1.0]) @ affine
    elif not np.array_equal(affine, np.eye(4)):
        stored.affine = affine
    if kind == "nrrd" and space not in _SIGNS and (space or not _only_spacing(affine)):
        named = repr(space) if space else "no space"
        stored.notes.append(f"its header says {named}: its axes are taken for RAS")
    if kind == "nrrd":
        # ITK reads 1 for them.
        lost = [
            letter for letter, step in zip(letters, _spacings(path), strict=False) if step == "nan" and letter in "xyz"
        ]
        stored.notes += [f"its header has no spacing along {', '.join(lost)}: 1 is taken"] if lost else []
    return stored


def _check_voxels(path: Path) -> None:
    """Raises for a MetaImage with too few voxels, of which ITK says that there is no such file."""
    shape, size = itk_header(path, None)
    fields: dict[str, str] = {}
    with open(path, "rb") as file:
        while "ElementDataFile" not in fields and (line := file.readline()):
            name, _, value = line.decode("latin-1").partition("=")
            fields[name.strip()] = value.strip()
        start = file.tell()
    where = fields.get("ElementDataFile", "")
    if where.startswith("LIST") or "%" in where:
        return
    data, start = (path, start) if where.upper() == "LOCAL" else (path.parent / where, 0)
    if not data.is_file():
        raise ValueError(f"no file {where} for its voxels")
    packed = fields.get("CompressedData", "").lower() == "true"
    expected = int(fields.get("CompressedDataSize", 0)) if packed else math.prod(shape) * size
    if data.stat().st_size - start < expected:
        raise ValueError(f"{data.stat().st_size - start} of {expected} bytes of voxels in {data.name}")


def _spacings(path: Path) -> list[str]:
    """The spacings in a NRRD's header, as they are written there."""
    with open(path, "rb") as file:
        while (line := file.readline()).strip():
            if line.lower().startswith(b"spacings:"):
                return line.decode("latin-1").lower().split()[1:]
    return []


def _only_spacing(affine: np.ndarray) -> bool:
    return np.array_equal(affine, np.diag(np.diag(affine)))


def _four_axes(stored: Stored, fields: dict[str, str], path: Path, kind: str) -> str:
    """A letter for each of four axes: of NRRD by their kinds or else by their lengths, of MetaImage x, y, z, time."""
    if kind == "metaimage":
        return "xyzt"
    kinds = [fields.get(f"NRRD_kinds[{axis}]", "") for axis in range(4)]
    letters = [_KINDS.get(kind, "c" if kind else "") for kind in kinds]
    if letters.count("s") == 3:
        names = iter("xyz")
        return "".join(next(names) if letter == "s" else letter or "c" for letter in letters)
    if "time" in fields.get("NRRD_space", ""):
        return "xyzt"
    guess, stored.notes = guessed_axes(stored, stored.array.shape[:4], path)
    return guess


def write_itk(path: Path, data: np.ndarray, affine: np.ndarray, unit: str) -> None:
    """NRRD or MetaImage in LPS, which is what ITK and Slicer write, compressed, in one file."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.ascontiguousarray(data.T), isVector=data.ndim == 4)
    theirs = TO_RAS @ affine
    steps = np.linalg.norm(theirs[:3, :3], axis=0)
    image.SetSpacing(steps.tolist())
    image.SetOrigin(theirs[:3, 3].tolist())
    image.SetDirection((theirs[:3, :3] / steps).ravel().tolist())
    if unit:
        image.SetMetaData(_UNIT, unit)
    with replacing_path(path) as new:
        _write_whole(image, new)


def _write_whole(image: Any, path: Path) -> None:
    """Writes an image and reads it back, because ITK does not always report a full disk."""
    import SimpleITK as sitk

    try:
        call_itk(lambda: sitk.WriteImage(image, str(path), useCompression=True))
        back = call_itk(lambda: sitk.ReadImage(str(path)))
    except ValueError as error:
        raise OSError(str(error)) from error
    if not np.array_equal(sitk.GetArrayViewFromImage(back), sitk.GetArrayViewFromImage(image), equal_nan=True):
        raise OSError("fewer voxels than were written")
