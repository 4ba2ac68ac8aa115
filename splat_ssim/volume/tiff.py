"""TIFF: stacks, folders of slices, ImageJ's and OME's voxel sizes; stacks that Fiji shows in the right proportions."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from .._files import replacing_path
from .grid import VoxelGrid
from .layout import nearest_axes
from .stored import Stored, in_unit, unit_name
from .tiff_checks import open_tiff, pixels

#: tifffile's letters for axes -> those of `Stored`; I, Q and others may be anything.
_LETTERS = {"X": "x", "Y": "y", "Z": "z", "C": "c", "S": "c", "T": "t"}
#: Codes of the dtypes that ImageJ's stacks may have, and of those that OME's may have.
_IMAGEJ, _OME = "BHhf", "bBhHiIfd"
#: Kinds of pixels that are not intensities, by TIFF's numbers.
_PHOTOMETRIC = {
    0: "its values are inverted (MINISWHITE): the least is the brightest",
    3: "its values are numbers of colours in a palette, which are taken for intensities",
}
#: Largest number of bytes of an ImageJ stack, just below 4 GB.
_IMAGEJ_BYTES = (1 << 32) - (1 << 20)
#: Namespace that marks our affine in an OME annotation.
_NAMESPACE = "splat_ssim/volume"


def natural_key(name: str) -> list[Any]:
    """Sorts names by the numbers in them: img_2 before img_10.

    Example:
        >>> from splat_ssim.volume.tiff import natural_key
        >>> sorted(["img_10.tif", "img_2.tif", "img_1.tif"], key=natural_key)
        ['img_1.tif', 'img_2.tif', 'img_10.tif']
    """
    return [(int(part), "") if part.isdigit() else (-1, part.lower()) for part in re.split(r"(\d+)", name) if part]


def _slices(folder: Path) -> list[Path]:
    return [p for p in folder.iterdir() if p.suffix.lower() in (".tif", ".tiff") and not p.name.startswith(".")]


def holds_tiff(folder: Path) -> bool:
    """Whether a folder has TIFF files."""
    return bool(_slices(folder))


def read_tiff(path: Path, key: str | None) -> Stored:
    """A TIFF file, of which `key` names a series by number or name, or a folder of slices."""
    if path.is_dir():
        return _read_slices(path)
    with open_tiff(path) as (file, said):
        index, notes = _series(file, path, key)
        series = file.series[index]
        letters = "".join(_LETTERS.get(letter, "?") for letter in series.axes)
        data = pixels(file, series, path)
        stored = Stored(data, _named(letters, data.shape), notes=notes)
        _need_slices(stored)
        shaped = file.shaped_metadata
        own = next((m for m in shaped or () if "affine" in m), None) or _own_metadata(file)
        if own is not None:
            _restore(stored, own)
        else:
            stored.notes += [f"tifffile warns: {text}" for text in dict.fromkeys(said)]
            _place(stored, file, index)
    return stored


def tiff_header(path: Path, key: str | None) -> tuple[tuple[int, ...], int]:
    """Shape of the series of a file that is read and bytes of a number, its pixels unread."""
    with open_tiff(path) as (file, _):
        series = file.series[_series(file, path, key)[0]]
        return tuple(series.shape), series.dtype.itemsize


def _series(file: Any, path: Path, key: str | None) -> tuple[int, list[str]]:
    """Number of the series to read: the one asked for, or the largest."""
    names = [series.name for series in file.series]
    listed = ", ".join(f"{i} {s.name!r} {s.shape}" for i, s in enumerate(file.series))
    if key is not None:
        if str(key).isdigit() and int(key) < len(names):
            return int(key), []
        if str(key) not in names:
            raise ValueError(f"key must name one of the series of {path}, {listed}; got {key!r}")
        return names.index(str(key)), []
    largest = max(range(len(names)), key=lambda i: math.prod(file.series[i].shape))
    if len(names) == 1:
        return 0, []
    return largest, [f"it holds {len(names)} series, the largest is read: {listed}; key chooses another"]


def _named(letters: str, shape: tuple[int, ...]) -> str:
    """Names unknown axes longer than 1: z first, then c, unless there are such axes already."""
    named = list(letters)
    # Of two axes of channels one is of length 1 as a rule: RGB samples beside a channel axis.
    for axis, letter in enumerate(letters):
        if letter == "c" and letters.count("c") > 1 and shape[axis] == 1:
            named[axis] = "?"
    for axis, letter in enumerate(letters):
        if letter == "?" and shape[axis] > 1:
            named[axis] = next((free for free in "zc" if free not in named), "?")
    if named.count("c") > 1:
        named[named.index("c")] = "?"
    return "".join(named)


def _need_slices(stored: Stored) -> None:
    """Takes pages that a file calls frames, or channels beyond colours, for slices if there are no others."""
    letters, shape = stored.axes, stored.array.shape
    paged = [i for i, letter in enumerate(letters) if letter in "ct" and shape[i] > (4 if letter == "c" else 1)]
    if "z" not in letters and set("xy") <= set(letters) and len(paged) == 1:
        what = "time points" if letters[paged[0]] == "t" else "channels"
        stored.notes.append(f"its {shape[paged[0]]} {what} are taken for slices: it has none")
        stored.axes = letters[: paged[0]] + "z" + letters[paged[0] + 1 :]


def _read_slices(path: Path) -> Stored:
    import tifffile

    files = sorted(_slices(path), key=lambda p: natural_key(p.name))
    if not files:
        raise ValueError(f"{path} must hold TIFF slices or the files of a DICOM series, got none")
    notes = [f"{len(files)} slices in the order of their numbers, {files[0].name} to {files[-1].name}"]
    notes += _check_names(path, files)
    planes: list[np.ndarray] = []
    for file in files:
        try:
            plane = _plane(file)
        except tifffile.TiffFileError as error:
            raise ValueError(f"{file} must be a TIFF slice, got {error}") from error
        if planes and (plane.shape, plane.dtype) != (planes[0].shape, planes[0].dtype):
            raise ValueError(
                f"slices must all have one shape and dtype, got {plane.shape} {plane.dtype} in {file} and "
                f"{planes[0].shape} {planes[0].dtype} in {files[0].name}"
            )
        planes.append(plane)
    stored = Stored(np.stack(planes), "zyxc" if planes[0].ndim == 3 else "zyx", notes=notes)
    with open_tiff(files[0]) as (tiff, _):
        _place(stored, tiff, 0)
    if stored.affine is not None:
        steps = np.linalg.norm(stored.affine[:3, :3], axis=0)[::-1]
        if stored.unit or not np.array_equal(steps, np.ones(3)):
            size = ", ".join(f"{step:g}" for step in steps)
            stored.notes.append(
                f"its voxel size along x, y, z, {size} {stored.unit}".rstrip() + f", is {files[0].name}'s"
            )
    return stored


def _check_names(path: Path, files: list[Path]) -> list[str]:
    """What the numbers in the names of slices leave open; names of several stacks are refused."""
    split = [re.split(r"(\d+(?:\.\d+)?)", file.stem.lower()) for file in files]
    texts = {tuple(parts[::2]) for parts in split}
    varying = [column for column in zip(*(parts[1::2] for parts in split), strict=False) if len(set(column)) > 1]
    if len(texts) > 1:
        several = len(texts) < len(files)
    else:
        # Each channel or time point has each slice.
        several = len(varying) > 1 and math.prod(len(set(column)) for column in varying) == len(files)
    if several:
        raise ValueError(
            f"{path} must hold the slices of one stack, got names of several, such as {files[0].name} and "
            f"{files[-1].name}; each needs a folder of its own"
        )
    if len(texts) > 1 or len(varying) != 1:
        return []
    gaps = np.diff([float(number) for number in varying[0]])
    widest = int(gaps.argmax())
    if gaps.max() - gaps.min() <= 1e-6 * abs(gaps.max()):
        return []
    between = f"{files[widest].name} and {files[widest + 1].name}"
    return [f"its numbers are uneven, as between {between}: the slices are taken for evenly spaced"]


def _plane(file: Path) -> np.ndarray:
    """One slice (height, width), or (height, width, channels)."""
    with open_tiff(file) as (tiff, _):
        series = tiff.series[0]
        letters = "".join(_LETTERS.get(letter, "?") for letter in series.axes)
        plane = pixels(tiff, series, file)
    kept = "".join(letter for letter, size in zip(letters, plane.shape, strict=True) if size > 1 or letter in "yx")
    if sorted(kept) not in (["x", "y"], ["c", "x", "y"]):
        raise ValueError(
            f"{file} must be one slice (height, width), or one in colour, got shape {plane.shape}; a stack is read by "
            f"the path of its file"
        )
    plane = plane.reshape([n for n, letter in zip(plane.shape, letters, strict=True) if n > 1 or letter in "yx"])
    return np.moveaxis(plane, kept.index("c"), 2) if "c" in kept else plane


# --- where the voxels lie


def _place(stored: Stored, file: Any, index: int) -> None:
    """Spacing of a series as OME's or ImageJ's metadata have it, and what its pixels are if not intensities."""
    meaning = _PHOTOMETRIC.get(file.series[index].keyframe.photometric)
    if meaning is not None:
        stored.notes.append(meaning)
    if file.ome_metadata:
        _place_ome(stored, file.ome_metadata, index)
    elif file.imagej_metadata:
        _place_imagej(stored, file)


def _regular(stored: Stored, steps: dict[str, float], unit: str) -> None:
    """Sets the affine of a grid along the world's axes, steps by the letters of the array's axes."""
    spatial = stored.axes_in_space()
    if sorted(spatial) == ["x", "y", "z"]:
        spacing = [steps.get(letter, 1.0) for letter in "xyz"]
        stored.affine = VoxelGrid.regular((1, 1, 1), spacing=spacing, axes=spatial).matrix
        stored.unit = unit


def _place_imagej(stored: Stored, file: Any) -> None:
    """Spacing as ImageJ writes it: pixels a unit in the resolution tags, the distance of slices in its own field."""
    tags = file.pages[0].tags
    steps = {"z": float(file.imagej_metadata.get("spacing", 1.0)) or 1.0}
    for letter, name in (("y", "YResolution"), ("x", "XResolution")):
        above, below = tags[name].value if name in tags else (1, 1)
        steps[letter] = below / above if above and below else 1.0
    _regular(stored, steps, unit_name(file.imagej_metadata.get("unit")))


def _ome(text: str) -> dict[str, Any]:
    """OME-XML as nested dictionaries, numbers parsed."""
    import tifffile

    ome: dict[str, Any] = tifffile.xml2dict(text)["OME"]
    return ome


def _listed(node: Any) -> list[Any]:
    """The elements of one name as a list. `xml2dict` makes a list only if there are several."""
    return [] if node is None else node if isinstance(node, list) else [node]


def _place_ome(stored: Stored, text: str, index: int) -> None:
    """Spacing as OME-XML has it: PhysicalSizeX, Y and Z of an image, each in a unit of its own, µm by default."""
    images = _listed(_ome(text).get("Image"))
    if index >= len(images):
        return
    found = images[index]["Pixels"]
    units = {letter: unit_name(found.get(f"PhysicalSize{letter.upper()}Unit", "µm")) for letter in "xyz"}
    steps = {
        letter: in_unit(float(found[f"PhysicalSize{letter.upper()}"]), units[letter], units["x"])
        for letter in "xyz"
        if f"PhysicalSize{letter.upper()}" in found
    }
    if not steps:
        stored.notes.append("its OME metadata have no PhysicalSize: voxels are taken for cubes of edge 1")
        return
    for letter in "xyz":
        if letter not in steps:
            stored.notes.append(f"its OME metadata have no PhysicalSize{letter.upper()}: 1 is taken")
    _regular(stored, steps, units["x"])


# --- our own stacks


def _own_metadata(file: Any) -> dict[str, Any] | None:
    """The metadata that `write_tiff` put into ImageJ's or OME's."""
    text = (file.imagej_metadata or {}).get("splat_ssim")
    if text is None and file.ome_metadata and _NAMESPACE in file.ome_metadata:
        notes = _listed(_ome(file.ome_metadata)["StructuredAnnotations"]["MapAnnotation"])
        ours = next(note for note in notes if note.get("Namespace") == _NAMESPACE)
        text = next(entry["value"] for entry in _listed(ours["Value"]["M"]) if entry["K"] == "splat_ssim")
    return None if text is None else json.loads(text)


def _restore(stored: Stored, own: dict[str, Any]) -> None:
    """Restores the array and affine that `write_tiff` was given. Older files state no order, so their array stays."""
    stored.affine = np.asarray(own["affine"])
    stored.unit = own.get("unit", "")
    order = own.get("order")
    if order is not None:
        # The shape tells what tifffile leaves out: axes of length 1.
        shape = own["stored_shape"]
        channels, sizes = shape[:-3], [shape[len(shape) - 3 + axis] for axis in order]
        if own["z_first"] and channels:
            pages = stored.array.reshape([sizes[0], *channels, *sizes[1:]]).swapaxes(0, 1)
        else:
            pages = stored.array.reshape([*channels, *sizes])
        back = np.argsort(order)
        offset = pages.ndim - 3
        stored.array = pages.transpose([*range(offset), *(offset + int(axis) for axis in back)])
    stored.axes = "czyx"[-stored.array.ndim :]


def write_tiff(path: Path, data: np.ndarray, affine: np.ndarray, unit: str) -> None:
    """A stack whose pages are planes across the world's z as near as may be, with voxel size and unit.

    An ImageJ hyperstack where ImageJ has dtype and size, else, and as .ome.tif, OME-TIFF; 64-bit integers have neither.
    The affine and the order of the array's axes are in the metadata besides, so that the volume reads back as it was.
    """
    import tifffile

    follows = nearest_axes(affine)
    order = [follows.index(letter) for letter in "zyx"]
    named_ome = path.name.lower().endswith((".ome.tif", ".ome.tiff"))
    if named_ome and data.dtype.char not in _OME:
        raise ValueError(
            f"an OME-TIFF must have dtype {', '.join(np.dtype(code).name for code in _OME)}, got {data.dtype} for "
            f"{path.name}; a name that ends in .tif alone holds it"
        )
    imagej = data.dtype.char in _IMAGEJ and data.nbytes < _IMAGEJ_BYTES and not named_ome
    # ImageJ's order is ZCYX.
    own = {
        "affine": affine.tolist(),
        "order": order,
        "stored_shape": list(data.shape),
        "unit": unit,
        "z_first": imagej,
    }
    offset = data.ndim - 3
    pages = np.ascontiguousarray(data.transpose([*range(offset), *(offset + axis for axis in order)]))
    steps = {letter: float(np.linalg.norm(affine[:3, column])) for column, letter in enumerate(follows)}
    options: dict[str, Any] = {"photometric": "minisblack"}
    if imagej:
        pages = pages.swapaxes(0, 1) if offset else pages
        metadata: dict[str, Any] = {"axes": "ZCYX" if offset else "ZYX", "spacing": steps["z"], "unit": unit or "pixel"}
        options |= {"imagej": True, "resolution": (1 / steps["x"], 1 / steps["y"])}
        metadata["splat_ssim"] = json.dumps(own)
    elif data.dtype.char in _OME:
        metadata = {"axes": "CZYX" if offset else "ZYX"}
        for letter, step in steps.items():
            metadata[f"PhysicalSize{letter.upper()}"] = step
            metadata[f"PhysicalSize{letter.upper()}Unit"] = {"um": "µm", "": "reference frame"}.get(unit, unit)
        metadata["MapAnnotation"] = {"Namespace": _NAMESPACE, "splat_ssim": json.dumps(own)}
        options["ome"] = True
    else:
        metadata = {"axes": "CZYX"[-data.ndim :], **own}
    with replacing_path(path) as new:
        tifffile.imwrite(new, pages, metadata=metadata, **options)
