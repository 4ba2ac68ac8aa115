"""HDF5 through h5py: one dataset of a file, chosen by its name, with what its attributes say of its voxels."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from .._files import replacing
from .grid import VoxelGrid
from .layout import nearest_axes
from .stored import Stored, in_unit, unit_name

#: The dataset that is written.
_NAME = "volume"


def read_hdf5(path: Path, key: str | None) -> Stored:
    """A dataset, whose voxels are not read yet. `key` is its path in the file."""
    import h5py

    file = h5py.File(path, "r")
    found: dict[str, Any] = {}

    def note(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset) and node.ndim >= 3 and node.dtype.kind in "biufc":
            found[name] = node

    file.visititems(note)
    listed = ", ".join(f"{name} {data.shape} {data.dtype}" for name, data in found.items()) or "no arrays"
    if key is not None:
        name = key.strip("/")
        node = file.get(name)
        if not isinstance(node, h5py.Dataset):
            raise ValueError(f"key must name an array of three or more axes in {path}, {listed}; got {key!r}")
        return _described(node)
    if len(found) != 1:
        raise ValueError(f"{path} must hold one array of three or more axes, or key must name one of: {listed}")
    return _described(next(iter(found.values())))


def _described(data: Any) -> Stored:
    """Axes, affine and unit of a dataset: our own attributes, or the voxel size of ilastik, PlantSeg and CREMI."""
    attributes = data.attrs
    stored = Stored(data)
    names = attributes.get("axes", "")
    stored.name_axes(names if len(np.ravel(names)) and np.any(names) else _labels(data))
    _note_absent(stored, data)
    stored.unit = unit_name(attributes.get("unit"))
    if "affine" in attributes:
        stored.affine = np.asarray(attributes["affine"], dtype=np.float64)
        return stored
    spatial = stored.axes_in_space()
    for name, unit in (("element_size_um", "um"), ("resolution", "nm")):
        steps = np.ravel(attributes.get(name, ()))
        if len(steps) == 3 and steps.dtype.kind in "iuf" and sorted(spatial) == ["x", "y", "z"]:
            lengths = dict(zip(spatial, steps.astype(float).tolist(), strict=True))
            stored.affine = VoxelGrid.regular((1, 1, 1), spacing=[lengths[a] for a in "xyz"], axes=spatial).matrix
            stored.unit = unit
            stored.notes.append(f"its attribute {name} is taken for the voxel size in {unit}, along {spatial}")
            break
    return stored


def _labels(data: Any) -> list[str]:
    """The names of the axes by vigra's axis tags, or by HDF5's labels of dimensions, which may be empty."""
    if "axistags" in data.attrs:
        return [str(axis.get("key", "")) for axis in json.loads(data.attrs["axistags"])["axes"]]
    return [dimension.label for dimension in data.dims]


def _note_absent(stored: Stored, data: Any) -> None:
    """Says which parts of a dataset were never written, or lie in files that are not there."""
    import h5py

    if data.is_virtual:
        folder = Path(data.file.filename).parent
        # A name with % stands for many files.
        sources = [source for source in data.virtual_sources() if "%" not in source.file_name]
        files = {source.file_name: folder / source.file_name for source in sources if source.file_name != "."}
        lost = [name for name, file in files.items() if not file.exists() and not Path(name).exists()]
        if lost:
            stored.notes.append(f"of its source files {', '.join(lost)} are absent and read as {data.fillvalue}")
    elif data.chunks is not None:
        total = math.prod(-(-size // chunk) for size, chunk in zip(data.shape, data.chunks, strict=True))
        stored.note_absent(total - data.id.get_num_chunks(), total, data.fillvalue)
    elif data.external is None and data.id.get_space_status() == h5py.h5d.SPACE_STATUS_NOT_ALLOCATED:
        stored.note_absent(1, 1, data.fillvalue)


def write_hdf5(path: Path, data: np.ndarray, affine: np.ndarray, unit: str) -> None:
    """One dataset in compressed chunks of 64 voxels a side; affine, axes and unit are its attributes."""
    import h5py

    chunks = (*[1] * (data.ndim - 3), *[min(n, 64) for n in data.shape[-3:]])
    # HDF5 itself does not survive a full disk, so the compressed file is made in memory first.
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        dataset = file.create_dataset(_NAME, data=data, chunks=chunks, compression="gzip", shuffle=True)
        letters = "c" * (data.ndim - 3) + nearest_axes(affine)
        dataset.attrs.update({"affine": affine, "axes": "czyx"[-data.ndim :], "unit": unit})
        for dimension, letter in zip(dataset.dims, letters, strict=True):
            dimension.label = letter
        if unit:
            steps = [in_unit(float(step), unit, "um") for step in np.linalg.norm(affine[:3, :3], axis=0)]
            dataset.attrs["element_size_um"] = steps
    with replacing(path) as out:
        out.write(content.getbuffer())
