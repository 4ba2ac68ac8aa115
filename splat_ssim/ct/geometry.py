"""The geometry of X-ray projections: source, detector and angles, in the form that kernels and files use."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..volume.grid import real_numbers

#: The shapes of a beam.
KINDS = ("cone", "parallel")


def _numbers(value: Any, name: str, count: int) -> tuple[float, ...]:
    """Checks `count` finite numbers. One number stands for all of them."""
    array = real_numbers(value)
    array = np.broadcast_to(array, (count,)) if array.ndim == 0 else array
    if array.shape != (count,) or not np.isfinite(array).all():
        raise ValueError(f"{name} must be {count} finite numbers, got {value!r}")
    return tuple(float(v) for v in array)


@dataclass(frozen=True)
class XrayGeometry:
    """A flat detector and a source that rotate about an axis parallel to the world's z. Lengths are in mm.

    At angle θ the source lies from `center` in the direction (cos θ, sin θ, 0), and the detector on the opposite side.
    The column index of the detector grows along (-sin θ, cos θ, 0), the row index along -z. In a parallel beam all rays
    have the direction (-cos θ, -sin θ, 0).

    Args:
        kind: "cone" or "parallel".
        detector: Number of pixel rows and of pixel columns.
        spacing: Distance in mm between pixel centres of adjacent rows and of adjacent columns, on the detector.
        angles: (V,) angle θ of each view, in degrees.
        source_object: Distance in mm from the source to the rotation axis. Only a cone beam has one.
        source_detector: Distance in mm from the source to the detector. Only a cone beam has one.
        offset: Shift of the detector in mm, in the directions in which the row index and the column index grow.
        center: World x, y, z of the point that the source rotates about.

    Raises:
        ValueError: A number is missing or not finite, or is not positive although it must be.

    Example:
        >>> from splat_ssim.ct import XrayGeometry
        >>> geometry = XrayGeometry("cone", (64, 96), (1.5, 1.5), (0, 90), source_object=500, source_detector=750)
        >>> geometry.magnification, geometry.frames().shape
        (1.5, torch.Size([2, 4, 3]))
    """

    kind: str
    detector: tuple[int, int]
    spacing: tuple[float, float]
    angles: tuple[float, ...]
    source_object: float | None = None
    source_detector: float | None = None
    offset: tuple[float, float] = (0.0, 0.0)
    center: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"geometry must be one of {', '.join(KINDS)}, got {self.kind!r}")
        detector = _numbers(self.detector, "detector rows and columns", 2)
        if any(n != int(n) or not 1 <= n <= 1 << 15 for n in detector):
            raise ValueError(f"detector must have from 1 to 32768 rows and columns, got {self.detector}")
        spacing = _numbers(self.spacing, "detector spacing", 2)
        if min(spacing) <= 0:
            raise ValueError(f"detector spacing must be above 0 mm, got {self.spacing}")
        angles = real_numbers(self.angles)
        if angles.ndim != 1 or not len(angles) or not np.isfinite(angles).all():
            raise ValueError(f"angles must be one finite number or more, got {self.angles}")
        cone = self.kind == "cone"
        if cone:
            near, far = real_numbers(self.source_object), real_numbers(self.source_detector)
            if near.ndim or far.ndim or not 0 < near < far < math.inf:
                raise ValueError(
                    "a cone must have 0 < source_object < source_detector in mm, got source_object "
                    f"{self.source_object!r} and source_detector {self.source_detector!r}"
                )
        elif self.source_object is not None or self.source_detector is not None:
            raise ValueError("a parallel beam has no source: source_object and source_detector must be left out")
        values: dict[str, Any] = {"detector": tuple(int(n) for n in detector), "angles": tuple(angles.tolist())}
        values |= {"spacing": spacing} | ({"source_object": float(near), "source_detector": float(far)} if cone else {})
        values |= {"offset": _numbers(self.offset, "detector offset", 2)}
        values |= {"center": _numbers(self.center, "center", 3)}
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def views(self) -> int:
        """Number of views."""
        return len(self.angles)

    @property
    def magnification(self) -> float:
        """Size of an object's image on the detector, divided by its size at the rotation axis."""
        return 1.0 if self.kind == "parallel" else self.source_detector / self.source_object  # type: ignore[operator]

    def frames(self, views: Sequence[int] | Tensor | None = None) -> Tensor:
        """The frame of each view, which defines its rays: (V, 4, 3) float64, in world x, y, z.

        Vector 1 is the step from one detector column to the next, vector 2 the step from one row to the next.

        In a cone, vector 0 is the position of the source, and vector 3 leads from it to the first pixel. The ray of
        pixel (row i, column j) starts at vector 0 and has the direction vector 3 + j · vector 1 + i · vector 2.

        In a parallel beam, vector 0 is the position of the first pixel, and vector 3 is the unit direction of all rays.
        The ray of pixel (i, j) runs through vector 0 + j · vector 1 + i · vector 2.

        Args:
            views: Indices of views. By default all.

        Raises:
            ValueError: There is no such view.
        """
        theta = np.deg2rad(self.angles if views is None else self._angles_of(views))
        zero, one = np.zeros_like(theta), np.ones_like(theta)
        towards = np.stack([np.cos(theta), np.sin(theta), zero], 1)  # from the axis to the source
        columns, rows = np.stack([-np.sin(theta), np.cos(theta), zero], 1), np.stack([zero, zero, -one], 1)
        (height, width), (row_step, column_step) = self.detector, self.spacing
        first = (self.offset[0] - (height - 1) / 2 * row_step) * rows
        first = first + (self.offset[1] - (width - 1) / 2 * column_step) * columns
        center = np.asarray(self.center)
        if self.kind == "parallel":
            origin, last = center + first, -towards
        else:
            origin, last = center + self.source_object * towards, first - self.source_detector * towards
        frames = np.stack([origin, column_step * columns, row_step * rows, last], 1)
        return torch.from_numpy(np.ascontiguousarray(frames))

    def pixels(self, points: Tensor) -> Tensor:
        """Column and row of the detector at which points (N, 3) appear in each view: (V, N, 2) float64.

        The points of a cone must lie on the detector's side of the source.
        """
        frames = self.frames()
        along = (points.double() - frames[:, :1]) @ torch.linalg.inv(frames[:, 1:])  # [V, N, 3]: column, row, depth
        places: Tensor = along[..., :2] / along[..., 2:] if self.kind == "cone" else along[..., :2]
        return places

    def chosen(self, views: Sequence[int]) -> XrayGeometry:
        """The same geometry with only these views, given by their indices."""
        return dataclasses.replace(self, angles=self._angles_of(views))

    def _angles_of(self, views: Sequence[int] | Tensor) -> tuple[float, ...]:
        return tuple(self.angles[_index(view, self.views)] for view in views)

    def moved(self, offset: Sequence[float]) -> XrayGeometry:
        """The same geometry, shifted: `offset` (x, y, z in mm) is added to its centre."""
        x, y, z = (c + float(o) for c, o in zip(self.center, offset, strict=True))
        return dataclasses.replace(self, center=(x, y, z))

    def header(self) -> dict[str, Any]:
        """The geometry as a mapping for geometry.json."""
        (rows, columns), spacing, offset = self.detector, list(self.spacing), list(self.offset)
        distances = {"source_object": self.source_object, "source_detector": self.source_detector}
        return {
            "geometry": self.kind,
            **(distances if self.kind == "cone" else {}),
            "detector": {"rows": rows, "columns": columns, "spacing": spacing, "offset": offset},
            "angles": list(self.angles),
            "center": list(self.center),
        }

    @classmethod
    def of_header(cls, header: Mapping[str, Any]) -> XrayGeometry:
        """Makes the geometry that a `header` describes.

        Raises:
            ValueError: A key is missing or unknown, or a value is not as required.
        """
        known = {"geometry", "source_object", "source_detector", "detector", "angles", "center"}
        detector = header.get("detector")
        if not isinstance(detector, Mapping) or not {"rows", "columns", "spacing"} <= set(detector):
            raise ValueError(f"detector must hold rows, columns and spacing, got {detector!r}")
        _only(header, known, "")
        _only(detector, {"rows", "columns", "spacing", "offset"}, "detector.")
        if "geometry" not in header or "angles" not in header:
            raise ValueError(f"geometry and angles must be given, got {', '.join(header)}")
        return cls(
            header["geometry"],
            (detector["rows"], detector["columns"]),
            detector["spacing"],
            header["angles"],
            source_object=header.get("source_object"),
            source_detector=header.get("source_detector"),
            offset=detector.get("offset", (0.0, 0.0)),
            center=header.get("center", (0.0, 0.0, 0.0)),
        )


def _index(view: Any, views: int) -> int:
    """Checks the index of a view. As elsewhere, -1 is the last one."""
    try:
        index = operator.index(view)
    except TypeError:
        index = views
    truth = isinstance(view, bool) or getattr(view, "dtype", None) == torch.bool
    if truth or not -views <= index < views:
        raise ValueError(f"views must be whole numbers from 0 to {views - 1}, got {view!r}")
    return index


def _only(given: Mapping[str, Any], known: set[str], prefix: str) -> None:
    unknown = sorted(set(given) - known)
    if unknown:
        raise ValueError(f"{prefix}{unknown[0]} is unknown: required {', '.join(sorted(known))} only")


def circle(views: int, kind: str) -> tuple[float, ...]:
    """Angles in degrees, spread evenly over 360° for a cone and over 180° for a parallel beam."""
    arc = 360.0 if kind == "cone" else 180.0
    return tuple(arc * i / views for i in range(views))
