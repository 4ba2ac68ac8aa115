"""Reads and writes measured projections: a folder with geometry.json and one file of pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._files import replacing, write_json
from ..volume.grid import VoxelGrid
from ..volume.io import load_stack
from .geometry import XrayGeometry

#: Name of the file that describes a folder, and of the file of projections that `save_projections` writes beside it.
GEOMETRY, PROJECTIONS = "geometry.json", "projections.npy"
#: File names of projections end in one of these.
_SUFFIXES = (".npy", ".tif", ".tiff", ".nii", ".nii.gz", ".mha", ".mhd")


@dataclass
class Projections:
    """Projections, their geometry, and the voxels to reconstruct.

    Args:
        pictures: (V, rows, columns) float32, line integrals of the density along the rays, in the density's unit times
            mm.
        geometry: Source, detector and angle of each view.
        grid: Voxels of the volume to reconstruct, in mm.

    Raises:
        ValueError: The number or the size of the pictures does not match the geometry, or the source is inside the
            volume.
    """

    pictures: Tensor
    geometry: XrayGeometry
    grid: VoxelGrid

    def __post_init__(self) -> None:
        geometry, shape = self.geometry, tuple(self.pictures.shape)
        expected = (geometry.views, *geometry.detector)
        if shape != expected:
            raise ValueError(f"projections must have shape {expected} (angles, rows, columns), got {shape}")
        if geometry.kind == "cone" and (reach := self.reach) >= geometry.source_object:  # type: ignore[operator]
            raise ValueError(
                f"the source must turn outside the volume, at more than {reach:.4g} mm from the axis, got "
                f"source_object {geometry.source_object:g} mm"
            )

    @property
    def reach(self) -> float:
        """Largest distance of the volume's corners from the rotation axis, in mm."""
        ends = [(-0.5, n - 0.5) for n in self.grid.shape]
        corners = torch.tensor(np.stack(np.meshgrid(*ends, indexing="ij"), -1).reshape(-1, 3))
        across = self.grid.to_world(corners)[:, :2] - torch.tensor(self.geometry.center[:2], dtype=torch.float64)
        return float(across.norm(dim=1).max())


def load_projections(folder: str | Path) -> Projections:
    """Reads a folder of projections.

    geometry.json holds the keys that `XrayGeometry.header` returns, and "volume", the voxels to reconstruct. "volume"
    has a "shape" and either an "affine" (4x4, index to mm) or the corners "low" and "high" of the box (x, y, z in mm).
    With corners, the shape is in the order z, y, x. "projections" names an npy, TIFF, NIfTI or MetaImage file of
    (views, rows, columns), see `load_stack`. It may be left out if the folder has only one such file.

    Raises:
        FileNotFoundError: The folder, geometry.json or the projections do not exist.
        ValueError: A file is not as required. The message names the file.
    """
    folder = Path(folder)
    path = folder / GEOMETRY
    if not path.is_file():
        raise FileNotFoundError(f"{folder} must be a folder with {GEOMETRY}, got none there")
    try:
        header = json.loads(path.read_text())
        if not isinstance(header, dict):
            raise ValueError(f"a JSON object must be given, got {type(header).__name__}")
        volume, name = header.pop("volume", None), header.pop("projections", None)
        geometry, grid = XrayGeometry.of_header(header), _grid(volume)
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from error
    file = _file(folder, name)
    pictures = load_stack(file).astype(np.float32)
    try:
        return Projections(torch.from_numpy(np.ascontiguousarray(pictures)), geometry, grid)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def save_projections(folder: str | Path, projections: Projections) -> Path:
    """Writes a folder that `load_projections` reads. Returns its path."""
    folder, grid = Path(folder), projections.grid.rebased()
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / PROJECTIONS) as file:
        np.save(file, projections.pictures.numpy().astype(np.float32))
    volume = {"shape": list(grid.shape), "affine": [list(row) for row in grid.affine]}
    write_json(folder / GEOMETRY, {**projections.geometry.header(), "volume": volume, "projections": PROJECTIONS})
    return folder


def _grid(volume: Any) -> VoxelGrid:
    if not isinstance(volume, Mapping) or "shape" not in volume:
        raise ValueError(f"volume must hold shape and either affine or low and high, got {volume!r}")
    keys = set(volume)
    shape = np.asarray(volume["shape"])
    if shape.shape != (3,) or shape.dtype.kind not in "iu" or shape.min() < 1:
        raise ValueError(f"volume.shape must be three whole numbers of at least 1, got {volume['shape']!r}")
    sizes = tuple(int(n) for n in shape)
    if keys == {"shape", "affine"}:
        return VoxelGrid(sizes, volume["affine"])
    if keys != {"shape", "low", "high"}:
        raise ValueError(f"volume must hold shape and either affine or low and high, got {', '.join(sorted(keys))}")
    low, high = (np.asarray(volume[end], dtype=np.float64) for end in ("low", "high"))
    if low.shape != (3,) or high.shape != (3,) or not np.isfinite([low, high]).all() or not (low < high).all():
        raise ValueError(
            f"volume.low must be below volume.high, x, y, z each, got {volume['low']} and {volume['high']}"
        )
    spacing = (high - low) / shape[::-1]
    return VoxelGrid.regular(sizes, spacing=spacing.tolist(), origin=(low + spacing / 2).tolist())


def _file(folder: Path, name: Any) -> Path:
    if name is not None:
        if not isinstance(name, str) or not name.lower().endswith(_SUFFIXES):
            raise ValueError(f"{folder / GEOMETRY}: projections must name a {', '.join(_SUFFIXES)} file, got {name!r}")
        return folder / name
    found = sorted(path for path in folder.iterdir() if path.name.lower().endswith(_SUFFIXES))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise ValueError(f"{folder} must hold one file of projections, or projections in {GEOMETRY}, got {names}")
    return found[0]
