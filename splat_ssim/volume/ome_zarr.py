"""zarr: reads plain arrays, arrays in groups and OME-Zarr images at full resolution; writes OME-Zarr images."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from .._files import replacing_path
from .grid import VoxelGrid
from .layout import nearest_axes
from .stored import Stored, in_unit, unit_name
from .tiff import natural_key

#: Units here -> OME's names.
_OME_UNITS = {
    **{"m": "meter", "cm": "centimeter", "mm": "millimeter", "um": "micrometer", "nm": "nanometer"},
    **{"angstrom": "angstrom", "inch": "inch"},
}

#: What makes a folder a zarr folder, of formats 3 and 2.
_METADATA = ("zarr.json", ".zgroup", ".zarray")


def split_zarr(path: Path) -> tuple[Path, str | None]:
    """The zarr folder that a path lies in, and the rest of the path, which names an array inside."""
    for folder in (path, *path.parents):
        if folder.name.lower().endswith(".zarr"):
            rest = path.relative_to(folder).as_posix()
            return folder, None if rest == "." else rest
    return path, None


#: Files of a zarr folder: metadata, and chunks by their places.
_OWN = re.compile(r"zarr\.json|\.z(group|array|attrs|metadata)|c|\d+(\.\d+)*")


def foreign(folder: Path) -> str | None:
    """What keeps a folder from being replaced by a zarr folder: anything in it that is not zarr's own."""
    for place, _, names in os.walk(folder):
        for name in names:
            if not _OWN.fullmatch(name):
                return f"a folder with {Path(place, name).relative_to(folder).as_posix()}, which is not of zarr"
    # Folders alone may be anyone's.
    if any(folder.iterdir()) and not any((folder / name).exists() for name in _METADATA):
        return f"a folder without {' or '.join(_METADATA)}"
    return None


def read_zarr(path: Path, key: str | None) -> Stored:
    """An array of a zarr folder, whose voxels are not read yet.

    `key` is the path of an array or of a multiscale image inside; an image is read at its full resolution.
    """
    import zarr

    path, inside = split_zarr(path)
    key = "/".join(part.strip("/") for part in (inside, key) if part) or None
    if (path / "zarr.json").exists() and int(zarr.__version__.split(".")[0]) < 3:
        raise ValueError(
            f"{path} is of zarr's format 3, which Python 3.11 and newer read, got zarr {zarr.__version__} of an older "
            f"Python"
        )
    root: Any = zarr.open(str(path), mode="r")
    node = root
    if key is not None:
        try:
            node = root[key] if isinstance(root, zarr.Group) else None
        except KeyError:
            node = None
        if node is None:
            raise ValueError(f"key must be one of {_arrays(root)} in {path}, got {key!r}")
    notes: list[str] = []
    while isinstance(node, zarr.Group):
        image = _multiscale(node)
        children = [name for name, _ in node.arrays()]
        groups = [name for name, _ in node.groups() if name.lower() not in ("ome", "labels")]
        if image is not None:
            names = [dataset["path"] for dataset in image["datasets"]]
            sizes = [math.prod(getattr(node[name], "shape", (0,))) for name in names]
            name = names[sizes.index(max(sizes))]
            if len(names) > 1:
                notes.append(
                    f"of the resolutions {', '.join(names)} the full one, {name}, is read; key chooses another"
                )
        elif len(children) == 1 and not groups:
            name = children[0]
        elif not children and len(groups) == 1:
            name = groups[0]
        else:
            raise ValueError(f"{path} must hold one array, or key must name one of {_arrays(root)}")
        key = f"{key}/{name}" if key else name
        node = node[name]
    attributes = node.attrs
    stored = Stored(node, affine=attributes.get("affine"), unit=unit_name(attributes.get("unit")), notes=notes)
    found = _image_of(root, key) if stored.affine is None and key is not None else None
    if found is not None:
        _place(stored, *found)
    else:
        # zarr 3 has a field for the names; xarray writes an attribute in zarr 2.
        own = getattr(node.metadata, "dimension_names", None) if hasattr(node, "metadata") else None
        stored.name_axes(attributes.get("axes") or own or attributes.get("_ARRAY_DIMENSIONS") or ())
    folder = path / key if key else path
    chunks = getattr(node, "shards", None) or node.chunks
    total = math.prod(-(-size // chunk) for size, chunk in zip(node.shape, chunks, strict=True))
    stored.note_absent(total - _files(folder), total, node.fill_value)
    return stored


def _files(folder: Path) -> int:
    """The number of chunks in an array's folder. zarr's own count takes time quadratic in it."""
    names = (name for _, _, names in os.walk(folder) for name in names)
    return sum(name != "zarr.json" and not name.startswith(".") for name in names)


def _arrays(root: Any) -> list[str]:
    """The paths of the arrays in a group, in the order of their numbers."""
    if not hasattr(root, "arrays"):
        return []
    names = [name for name, _ in root.arrays()]
    for folder, group in root.groups():
        names += [f"{folder}/{name}" for name in _arrays(group)]
    return sorted(names, key=natural_key)


def _multiscale(group: Any) -> dict[str, Any] | None:
    """The first multiscale image of a group's attributes: OME-Zarr 0.5 has them under "ome"."""
    attributes = dict(group.attrs)
    images: list[dict[str, Any] | None] = attributes.get("ome", attributes).get("multiscales") or [None]
    return images[0]


def _image_of(root: Any, key: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The multiscale image that an array belongs to, and its entry there: a group above it has both."""
    parts = key.split("/")
    for count in reversed(range(len(parts))):
        # A folder may have no metadata of a group.
        group = root.get("/".join(parts[:count])) if count else root
        image = (None if group is None else _multiscale(group)) or {}
        for dataset in image.get("datasets", ()):
            if dataset["path"].strip("/") == "/".join(parts[count:]):
                return image, dataset
    return None


def _place(stored: Stored, image: dict[str, Any], dataset: dict[str, Any]) -> None:
    """Axes, spacing, origin and unit of an array that belongs to a multiscale image."""
    axes = image.get("axes") or [{"name": letter} for letter in "tczyx"[-stored.array.ndim :]]
    axes = [{"name": axis} if isinstance(axis, str) else axis for axis in axes]
    letters = [str(axis["name"]).lower() for axis in axes]
    stored.axes = "".join(letter if letter in tuple("xyzct") else "?" for letter in letters)
    scale, shift = np.ones(len(letters)), np.zeros(len(letters))
    # The dataset's own transformations come first, then those of the whole image.
    for change in [*dataset.get("coordinateTransformations", ()), *image.get("coordinateTransformations", ())]:
        if change.get("type") == "scale" and "scale" in change:
            scale, shift = scale * change["scale"], shift * change["scale"]
        elif change.get("type") == "translation" and "translation" in change:
            shift = shift + change["translation"]
        elif change.get("type") != "identity":
            stored.notes.append(
                f"its transformation of type {change.get('type')} is left out: scales and translations are read, "
                f"their numbers in the metadata"
            )
    spatial = stored.axes_in_space()
    if sorted(spatial) != ["x", "y", "z"]:
        return
    units = {letter: unit_name(axis.get("unit")) for letter, axis in zip(letters, axes, strict=True)}
    at = {letter: letters.index(letter) for letter in "xyz"}
    stored.unit = units["x"]
    steps, origin = (
        [in_unit(float(v[at[letter]]), units[letter], stored.unit) for letter in "xyz"] for v in (scale, shift)
    )
    stored.affine = VoxelGrid.regular((1, 1, 1), spacing=steps, origin=origin, axes=spatial).matrix


def write_zarr(path: Path, data: np.ndarray, affine: np.ndarray, unit: str) -> None:
    """An OME-Zarr image of one resolution in chunks of 64 voxels a side: 0.5, or 0.4 where zarr is of before 3.

    OME-Zarr has a step and an origin for each axis, but no rotation. The whole affine is therefore also stored, as an
    attribute of the array.
    """
    import zarr

    chunks = (*[1] * (data.ndim - 3), *[min(n, 64) for n in data.shape[-3:]])
    image = _image(data.ndim, affine, unit)
    options: dict[str, Any] = {"shape": data.shape, "dtype": data.dtype, "chunks": chunks}
    # zarr leaves out chunks of nothing but the fill value, and a reader could not tell them from lost ones.
    if int(zarr.__version__.split(".")[0]) < 3:
        attributes: dict[str, Any] = {"multiscales": [{"version": "0.4", **image}]}
        options["write_empty_chunks"] = True
    else:
        attributes = {"ome": {"version": "0.5", "multiscales": [image]}}
        options["dimension_names"] = [axis["name"] for axis in image["axes"]]
        options["config"] = {"write_empty_chunks": True}
    with replacing_path(path, store=foreign) as new:
        zarr.open_group(str(new), mode="w").attrs.update(attributes)
        # zarr 2, the last for Python 3.10, has this function too.
        array = zarr.open_array(str(new / "0"), mode="w", **options)
        array[...] = data
        array.attrs.update({"affine": affine.tolist(), "axes": "czyx"[-data.ndim :], "unit": unit})


def _image(ndim: int, affine: np.ndarray, unit: str) -> dict[str, Any]:
    """The entry of multiscales: axes by the world's axis that each is nearest to, with signed steps along it."""
    letters = nearest_axes(affine)
    rows = ["xyz".index(letter) for letter in letters]
    steps = np.linalg.norm(affine[:3, :3], axis=0) * np.sign([affine[row, axis] for axis, row in enumerate(rows)])
    named = {"unit": _OME_UNITS[unit]} if unit in _OME_UNITS else {}
    axes = [{"name": "c", "type": "channel"}] * (ndim - 3)
    axes += [{"name": letter, "type": "space", **named} for letter in letters]
    more = ndim - 3
    changes = [
        {"type": "scale", "scale": [1.0] * more + steps.tolist()},
        {"type": "translation", "translation": [0.0] * more + affine[rows, 3].tolist()},
    ]
    return {"name": "volume", "axes": axes, "datasets": [{"path": "0", "coordinateTransformations": changes}]}
