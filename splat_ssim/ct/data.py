"""Reads and writes measured projections: a folder with geometry.json and one file of pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._files import UNFINISHED, check_output, check_output_folder, described, replacing
from .._json import parsed
from ..errors import UserError
from ..volume.grid import VoxelGrid, real_numbers
from ..volume.io import Volume, load_stack, save_volume
from ..volume.stored import METRES, in_unit
from .geometry import XrayGeometry

#: Name of the file that describes a folder, and of the projections and their volume that are written beside it.
GEOMETRY, PROJECTIONS, TRUTH = "geometry.json", "projections.npy", "truth.npz"
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
        ValueError: The number or the size of the pictures does not match the geometry, the source is inside the
            volume, or no ray meets the volume.
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
        # Of each view, the box of columns and rows around the volume's shadow.
        shadow = geometry.pixels(self.corners)
        if not ((shadow.amax(1) > -0.5) & (shadow.amin(1) < self._ends)).all(1).any():
            low, high = (end(self.corners, 0).tolist() for end in (torch.amin, torch.amax))
            raise ValueError(
                f"the rays must meet the volume, got none that does: the volume reaches from {_place(low)} to "
                f"{_place(high)} mm, and views turn about {_place(geometry.center)}"
            )

    @property
    def corners(self) -> Tensor:
        """(8, 3) float64 world x, y, z of the volume's corners, in mm."""
        ends = [(-0.5, n - 0.5) for n in self.grid.shape]
        return self.grid.to_world(torch.tensor(np.stack(np.meshgrid(*ends, indexing="ij"), -1).reshape(-1, 3)))

    @property
    def reach(self) -> float:
        """Largest distance of the volume's corners from the rotation axis, in mm."""
        across = self.corners[:, :2] - torch.tensor(self.geometry.center[:2], dtype=torch.float64)
        return float(across.norm(dim=1).max())

    @property
    def _ends(self) -> Tensor:
        """Column and row at which the detector ends; it begins half a pixel before the first."""
        rows, columns = self.geometry.detector
        return torch.tensor([columns - 0.5, rows - 0.5], dtype=torch.float64)

    def lines(self) -> list[str]:
        """What a user should know about the views, one sentence for each line."""
        angles, shadow = self.geometry.angles, self.geometry.pixels(self.corners)
        # A tolerance of a millionth of a pixel, so that a detector that just fits sees everything.
        seen = ((shadow > -0.5 - 1e-6) & (shadow < self._ends + 1e-6)).all(2)
        lines = [
            f"angles from {min(angles):.4g} to {max(angles):.4g} degrees; the detector sees "
            f"{100 * float(seen.double().mean()):.3g}% of the volume's corners, over all views"
        ]
        if max(angles) == min(angles):
            lines.append(f"warning: all views have the angle {angles[0]:.4g} degrees, and show nothing of the depth")
        elif max(angles) - min(angles) <= 2 * math.pi:
            lines.append("warning: the views lie within a few degrees: angles are read as degrees, not as radians")
        return lines


def in_mm(volume: Volume) -> tuple[VoxelGrid, list[str]]:
    """The grid of a volume with lengths in mm, and what was assumed for it, one sentence each."""
    if volume.unit == "mm":
        return volume.grid, []
    if volume.unit not in METRES:
        return volume.grid, ["its unit of length is not known: mm is taken"]
    matrix = volume.grid.matrix
    matrix[:3] *= in_unit(1.0, volume.unit, "mm")
    grid = VoxelGrid(volume.grid.shape, matrix.tolist(), volume.grid.start)
    return grid, [f"its lengths are converted from {volume.unit} to mm"]


def check_float32(values: np.ndarray, name: str) -> None:
    """Checks that float32 holds the values.

    Raises:
        ValueError: Not all are finite there, or all become 0. The message begins with `name`.
    """
    known = np.finfo(np.float32)
    largest = max(abs(float(values.min())), abs(float(values.max())))
    if largest != 0 and not float(known.tiny) <= largest <= float(known.max):
        raise ValueError(
            f"{name} must be numbers that float32 holds, the largest from {known.tiny:.2g} to {known.max:.2g}, got "
            f"{largest:.3g}"
        )


def in_float32(values: np.ndarray, name: str) -> np.ndarray:
    """Values in float32, checked by `check_float32`."""
    check_float32(values, name)
    return np.ascontiguousarray(values, dtype=np.float32)


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
        header = parsed(path.read_text())
        if not isinstance(header, dict):
            raise ValueError(f"a JSON object must be given, got {type(header).__name__}")
        if UNFINISHED in header:
            raise ValueError("it and the projections must be of one writing, got the end of a process between them")
        volume, name = header.pop("volume", None), header.pop("projections", None)
        geometry, grid = XrayGeometry.of_header(header), _grid(volume)
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from error
    file = _file(folder, name)
    pictures = in_float32(load_stack(file), f"the values of {file}")
    try:
        return Projections(torch.from_numpy(pictures), geometry, grid)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def save_projections(folder: str | Path, projections: Projections, *, truth: Volume | None = None) -> Path:
    """Writes a folder that `load_projections` reads, and the volume that was projected if given. Returns its path."""
    folder, grid = Path(folder), projections.grid.rebased()
    volume = {"shape": list(grid.shape), "affine": [list(row) for row in grid.affine]}
    header = {**projections.geometry.header(), "volume": volume, "projections": PROJECTIONS}

    @contextmanager
    def with_others() -> Iterator[None]:
        with described(folder / GEOMETRY, header):
            if truth is not None:
                save_volume(folder / TRUTH, truth)
            yield

    with replacing(folder / PROJECTIONS, commit=with_others()) as file:
        np.save(file, projections.pictures.numpy().astype(np.float32))
    return folder


def check_projections_written(folder: Path, *, inputs: Sequence[Path], with_truth: bool) -> None:
    """Checks, before anything is computed, that `save_projections` could write.

    Raises:
        WriteError: There is something at a path that is not replaced, it is an input, or the system refuses to write.
        UserError: The folder would keep the truth of other projections.
    """
    check_output_folder(folder, inputs=inputs)
    for name in (GEOMETRY, PROJECTIONS, *([TRUTH] if with_truth else [])):
        check_output(folder / name, inputs=inputs)
    if not with_truth and (folder / TRUTH).exists():
        raise UserError(f"{folder}: required a folder without {TRUTH}, since none is written without --size, got one")


def _grid(volume: Any) -> VoxelGrid:
    if not isinstance(volume, Mapping) or "shape" not in volume:
        raise ValueError(f"volume must hold shape and either affine or low and high, got {volume!r}")
    keys = set(volume)
    shape = volume["shape"]
    if not isinstance(shape, list) or len(shape) != 3 or any(type(n) is not int or not 0 < n < 1 << 31 for n in shape):
        raise ValueError(f"volume.shape must be three whole numbers of at least 1, got {shape!r}")
    sizes = tuple(shape)
    if keys == {"shape", "affine"}:
        return VoxelGrid(sizes, volume["affine"])
    if keys != {"shape", "low", "high"}:
        raise ValueError(f"volume must hold shape and either affine or low and high, got {', '.join(sorted(keys))}")
    low, high = (real_numbers(volume[end]) for end in ("low", "high"))
    if low.shape != (3,) or high.shape != (3,) or not np.isfinite([low, high]).all() or not (low < high).all():
        raise ValueError(
            f"volume.low must be below volume.high, x, y, z each, got {volume['low']} and {volume['high']}"
        )
    spacing = (high - low) / np.array(shape[::-1])
    return VoxelGrid.regular(sizes, spacing=spacing.tolist(), origin=(low + spacing / 2).tolist())


def _place(point: Sequence[float]) -> str:
    return f"({', '.join(f'{v:.4g}' for v in point)})"


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
