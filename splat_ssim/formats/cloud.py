"""Gaussians as all file formats here exchange them, and code that several formats share. It needs only numpy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from splat_ssim.errors import UserError
from splat_ssim.ply import SH0, ply_comments

#: Names of the tensors of Gaussians, as `splat_ssim.ply` has them.
NAMES = ("means", "scales", "quats", "opacities", "sh0", "shN")
#: Logits beyond it are 0 or 1 in every format.
MAX_LOGIT = 30.0
#: Part of a Gaussian's size that rounding a position to float32 may take, in the median.
_MAX_LOST = 0.1
#: Coefficients of degree 1, 2 and 3, in the order of shN, as products of the coordinates: 1 where x, y or z occurs
#: an odd number of times.
_ODD = np.array(
    [
        *[(0, 1, 0), (0, 0, 1), (1, 0, 0)],
        *[(1, 1, 0), (0, 1, 1), (0, 0, 0), (1, 0, 1), (0, 0, 0)],
        *[(0, 1, 0), (1, 1, 1), (0, 1, 0), (0, 0, 1), (1, 0, 0), (0, 0, 1), (1, 0, 0)],
    ]
)


class FormatError(UserError):
    """A format cannot hold the Gaussians, or a file is not what its name says. The message says which."""


@dataclass
class Cloud:
    """Gaussians as arrays, independent of any file format.

    Attributes:
        means: (N, 3) float32.
        scales: (N, 3) float32, logarithms.
        quats: (N, 4) float32, unit quaternions wxyz.
        opacities: (N,) float32, logits.
        sh0: (N, 3) float32.
        shN: (N, K-1, 3) float32, with K = 1, 4, 9 or 16.
        antialiased: Whether they were trained with Mip-Splatting's compensation.
        offset: Offset that was subtracted from the coordinates. World coordinates are means + offset.
        notes: One line for each thing that was cut, left out or assumed.
    """

    means: np.ndarray
    scales: np.ndarray
    quats: np.ndarray
    opacities: np.ndarray
    sh0: np.ndarray
    shN: np.ndarray
    antialiased: bool = False
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.means)

    @property
    def degree(self) -> int:
        """Highest degree of spherical harmonics."""
        return {0: 0, 3: 1, 8: 2, 15: 3}[self.shN.shape[1]]

    @property
    def alphas(self) -> np.ndarray:
        """(N,) float64 opacities in [0, 1]."""
        return 1 / (1 + np.exp(-self.opacities.astype(np.float64)))

    @property
    def colors(self) -> np.ndarray:
        """(N, 3) float64 colours of degree 0, in [0, 1] unless training has moved them outside."""
        return 0.5 + SH0 * self.sh0.astype(np.float64)

    def note_cut(self, cut: np.ndarray, what: str) -> None:
        """Notes how many entries of an array of booleans are true, if any are."""
        if count := int(np.count_nonzero(cut)):
            self.notes.append(f"{count} of {cut.size} {what}")

    def note_moved(self, means: np.ndarray) -> None:
        """Notes how many Gaussians a format puts farther from their place than they are large, if any.

        Args:
            means: (N, 3) positions as they were written.
        """
        moved = np.linalg.norm(means.astype(np.float64) - self.means, axis=1) > np.exp(self.scales.max(1))
        self.note_cut(moved, "positions are rounded by more than the size of their Gaussian")

    def ordered(self, order: np.ndarray) -> Cloud:
        """The same Gaussians in another order."""
        return replace(self, **{name: getattr(self, name)[order] for name in NAMES})

    def flipped(self, axes: str) -> Cloud:
        """The Gaussians in a frame in which the named axes, such as "yz", are reversed. Exact, and its own inverse.

        Two axes at once are a turn by 180 degrees, so rotations stay rotations.
        """
        turned = np.array([axis in axes for axis in "xyz"])
        if turned.sum() != 2:
            raise ValueError(f"axes must be two of x, y and z, got {axes!r}")
        signs = np.where(turned, -1, 1).astype(np.float32)
        odd = _ODD[: self.shN.shape[1]] @ turned % 2
        return replace(
            self,
            means=self.means * signs,
            # The axis of the turn keeps its component.
            quats=self.quats * np.concatenate([[1], signs]).astype(np.float32),
            shN=self.shN * np.where(odd, -1, 1).astype(np.float32)[:, None],
        )

    def splats(self) -> dict[str, Tensor]:
        """The tensors as `splat_ssim.load_ply` returns them, float32 on the CPU."""
        arrays = {name: getattr(self, name) for name in NAMES}
        arrays["sh0"] = self.sh0[:, None]
        return {name: torch.from_numpy(np.ascontiguousarray(value, np.float32)) for name, value in arrays.items()}


def cloud_of(
    splats: Mapping[str, Tensor],
    *,
    antialiased: bool = False,
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0),
    source: str | Path = "splats",
) -> Cloud:
    """Checks Gaussians as `splat_ssim.save_ply` takes them, and normalises their quaternions.

    Infinite opacity logits are allowed and cut to a large finite value.

    Raises:
        ValueError: A tensor is missing or has another shape.
        FormatError: There are no Gaussians, another value is NaN or infinite, or the degree of the harmonics is above
            3.
    """
    missing = [name for name in NAMES if name not in splats]
    if missing:
        raise ValueError(f"splats must have {', '.join(NAMES)}, got none of {', '.join(missing)}")
    arrays = {name: splats[name].detach().cpu().float().numpy() for name in NAMES}
    count = len(arrays["means"])
    rest = arrays["shN"].shape[1] if arrays["shN"].ndim == 3 else -1
    shapes = {"means": (3,), "scales": (3,), "quats": (4,), "opacities": (), "sh0": (1, 3), "shN": (rest, 3)}
    for name, shape in shapes.items():
        if arrays[name].shape != (count, *shape):
            raise ValueError(f"{name} must have shape {(count, *shape)}, got {arrays[name].shape}")
    if rest not in (0, 3, 8, 15):
        raise FormatError(f"{source}: required harmonics of degree 0 to 3 (shN of 0, 3, 8 or 15), got {rest}")
    if count == 0:
        raise FormatError(f"{source}: required at least one Gaussian, got none")
    # Logits of opaque Gaussians may well be infinite.
    arrays["opacities"] = np.clip(arrays["opacities"], -MAX_LOGIT, MAX_LOGIT)
    check_finite(arrays, source)
    lengths = np.linalg.norm(arrays["quats"].astype(np.float64), axis=1, keepdims=True)
    quats = np.where(lengths > 0, arrays["quats"] / np.where(lengths > 0, lengths, 1), [1.0, 0, 0, 0])
    means, scales, _, opacities, sh0, shN = (arrays[name] for name in NAMES)
    cloud = Cloud(means, scales, quats.astype(np.float32), opacities, sh0[:, 0], shN, antialiased, offset)
    cloud.note_cut(lengths[:, 0] == 0, "rotations had no length and were written as none")
    return cloud


def large_offset(means: Tensor, scales: Tensor) -> tuple[float, float, float]:
    """What to subtract from positions in double precision, so that float32 keeps them: 0 where it does as they are.

    Args:
        means: (N, 3) positions; those that are float32 already are kept as they are.
        scales: (N, 3) logarithms.
    """
    rounding = (means - means.float().double()).abs().amax(1)
    lost = float((rounding / scales.double().amax(1).exp()).median())
    if not _MAX_LOST < lost < np.inf:
        return 0.0, 0.0, 0.0
    x, y, z = means.median(dim=0).values.round().tolist()
    return x, y, z


def check_finite(arrays: Mapping[str, np.ndarray], source: str | Path) -> None:
    """Raises FormatError where an array of `Cloud`, by name, has NaN or infinity, or another length than the first."""
    count = len(arrays["means"])
    for name in NAMES:
        if len(arrays[name]) != count:
            raise FormatError(f"{source}: required as many {name} as means, got {len(arrays[name])} and {count}")
        bad = np.flatnonzero(~np.isfinite(arrays[name].reshape(count, -1)).all(1))
        if len(bad):
            raise FormatError(
                f"{source}: required finite numbers, got NaN or infinity in the {name} of {len(bad)} of {count} "
                f"Gaussians, number {bad[0]} first"
            )


def logits(alphas: np.ndarray) -> np.ndarray:
    """Float32 logits of opacities. Opacities that a file has rounded to 0 or 1 stay finite."""
    clipped = np.clip(alphas.astype(np.float64), 1e-6, 1 - 1e-6)
    return np.log(clipped / (1 - clipped)).astype(np.float32)


def smallest_three(quats: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The index (N,) of the largest component and the other three (N, 3), in [-√½, √½], of q or -q.

    Source: the "smallest three" encoding of rotations: the largest component is what the unit length leaves.
    """
    largest = np.abs(quats).argmax(1)
    rows = np.arange(len(quats))
    signed = quats * np.where(quats[rows, largest] < 0, -1, 1)[:, None]
    others = signed[np.arange(4)[None] != largest[:, None]].reshape(-1, 3)
    return largest, others


def from_smallest_three(largest: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(N, 4) float32 unit quaternions of what `smallest_three` returns, perhaps rounded."""
    quats = np.empty((len(others), 4))
    quats[np.arange(4)[None] != largest[:, None]] = others.reshape(-1)
    quats[np.arange(len(others)), largest] = np.sqrt(np.maximum(0, 1 - np.square(others).sum(1)))
    unit: np.ndarray = (quats / np.linalg.norm(quats, axis=1, keepdims=True)).astype(np.float32)
    return unit


def morton_order(means: np.ndarray) -> np.ndarray:
    """The order of points along a Morton curve through 1024³ cells of a cube around them: neighbours stay together.

    Points far from nearly all the others come last, in such an order of their own. A single one of them in the cube
    would leave all the others in one cell.
    """
    points = means.astype(np.float64)
    low, high = np.percentile(points, (1, 99), axis=0)
    near = ((points >= 2 * low - high) & (points <= 2 * high - low)).all(1)
    if near.all() or not near.any():
        return _along_the_curve(points)
    near_rows, far_rows = np.flatnonzero(near), np.flatnonzero(~near)
    return np.concatenate([near_rows[_along_the_curve(points[near])], far_rows[morton_order(points[far_rows])]])


def _along_the_curve(points: np.ndarray) -> np.ndarray:
    low, edge = points.min(0), max(float(np.ptp(points, axis=0).max()), 1e-30)
    cells = np.clip((points - low) / edge * 1024, 0, 1023).astype(np.int64)
    for shift, mask in ((16, 0x030000FF), (8, 0x0300F00F), (4, 0x030C30C3), (2, 0x09249249)):
        cells = (cells | (cells << shift)) & mask
    return np.argsort((cells[:, 2] << 2) | (cells[:, 1] << 1) | cells[:, 0], kind="stable")


def comments_of(offset: tuple[float, float, float], antialiased: bool) -> list[str]:
    """The comments in which PLY files record them; `said_by_comments` reads them."""
    comments = [f"offset {' '.join(map(repr, offset))}"] if any(offset) else []
    return [*comments, "antialiased"] if antialiased else comments


def said_by_comments(path: Path) -> tuple[tuple[float, float, float], bool]:
    """What the comments of a PLY say was subtracted from its coordinates, and whether it is antialiased."""
    comments = [line.split() for line in ply_comments(path)]
    antialiased = ["antialiased"] in comments
    for words in comments:
        if words[:1] == ["offset"] and len(words) == 4:
            try:
                x, y, z = map(float, words[1:])
            except ValueError:
                raise FormatError(f"{path}: required three numbers after comment offset, got {words[1:]}") from None
            require(all(abs(each) < 1e30 for each in (x, y, z)), path, "a finite offset", " ".join(words[1:]))
            return (x, y, z), antialiased
    return (0.0, 0.0, 0.0), antialiased


def to_bytes(values: np.ndarray) -> np.ndarray:
    """Uint8 of values in [0, 255], rounded and cut."""
    rounded: np.ndarray = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return rounded


def require(condition: bool, path: Path, required: str, got: str) -> None:
    """Raises FormatError in the words of this package where a condition does not hold."""
    if not condition:
        raise FormatError(f"{path}: required {required}, got {got}")
