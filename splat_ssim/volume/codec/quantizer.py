"""Gaussians as whole numbers: steps that suit what each Gaussian contributes.

A Gaussian's weight is a = density · sqrt(det Sigma)^(1/2) · pi^(3/4), the root of the integral of its square. Moved by
a small part d of its standard deviation, or with its shape changed by d, it leaves an error of about |a| d. Equal
errors for equal bits therefore ask for steps of weight that are all the same, and for steps of place and shape in
proportion to 1 / |a|. So the weight is coded first, and the others' steps follow from its code.

The shape is the symmetric matrix L = log(Sigma)/2, whose eigenvalues are the logarithms of the standard deviations.
Equal steps of its six numbers are about equal errors whatever the Gaussian's size and orientation, and a round one
needs no rotation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .exact import eigen, exp

#: pi^(3/4), which makes a weight the root of an integral.
UNIT_WEIGHT = 2.359834926178218
#: Least |code of a weight| of each class; the classes' steps shrink by sqrt(2).
CLASS_STARTS = (1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 128, 181, 256)
#: Largest code of a weight, and largest of a shape's numbers: standard deviations from e^-6 to e^6 voxels, about.
MAX_WEIGHT, MAX_SHAPE = 2047, 6.0
#: Largest step of a shape's numbers. Means have twice as many standard deviations.
MAX_STEP = 0.5
#: Smallest step of a shape or a mean that a file may have: the tables of the coder grow as it shrinks.
LEAST_STEP = 0.01
#: Places inside a cell along an axis.
MAX_LEVELS = 256


@dataclass(frozen=True)
class Steps:
    """Quantisation steps. Codes count these.

    Args:
        weight: Step of a weight, in values times voxels^(3/2).
        shape: Step of a shape's numbers, for a Gaussian whose weight is one step.
        place: Step of a mean in standard deviations, for a Gaussian whose weight is one step.
        cell: Edge in voxels of the cells. A mean is coded as its cell and its place in it.
    """

    weight: float
    shape: float = 0.7
    place: float = 1.0
    cell: int = 2

    def of_class(self) -> np.ndarray:
        """(classes, 2) float64: the steps of shape and place."""
        fine = np.array([1.0, *((1.0 if c % 2 else 0.7071067811865476) / 2.0 ** ((c + 1) // 2) for c in range(1, 16))])
        steps: np.ndarray = np.minimum(
            fine[:, None] * np.array([self.shape, self.place]), np.array([MAX_STEP, 2.0 * MAX_STEP])
        )
        return steps


@dataclass(frozen=True)
class Codes:
    """Gaussians as whole numbers, int64.

    Args:
        cells: (N, 3) cell of each mean, in the order of the array's axes.
        weights: (N,) codes of weights, never 0.
        shapes: (N, 6) codes of xx, yy, zz, xy, xz, yz.
        places: (N, 3) place of the mean in its cell.
    """

    cells: np.ndarray
    weights: np.ndarray
    shapes: np.ndarray
    places: np.ndarray

    def __len__(self) -> int:
        return len(self.weights)

    @classmethod
    def none(cls) -> Codes:
        """The codes of no Gaussians."""
        zero = np.zeros((0, 6), np.int64)
        return cls(zero[:, :3], zero[:, 0], zero, zero[:, :3])

    def taken(self, chosen: np.ndarray) -> Codes:
        """The codes at the chosen indices, in the order of these."""
        return Codes(self.cells[chosen], self.weights[chosen], self.shapes[chosen], self.places[chosen])


def classes(weights: np.ndarray) -> np.ndarray:
    """(N,) the class of each weight's code."""
    found: np.ndarray = np.searchsorted(np.array(CLASS_STARTS), np.abs(weights), side="right") - 1
    return found


def shape_values(weights: np.ndarray, shapes: np.ndarray, steps: Steps) -> np.ndarray:
    """(N, 6) float64: the shapes that codes stand for."""
    values: np.ndarray = shapes * steps.of_class()[classes(weights), 0][:, None]
    return values


def place_levels(weights: np.ndarray, values: np.ndarray, steps: Steps) -> np.ndarray:
    """(N, 3) int64: how many places a cell has along each axis, given the codes of weights and the values of shapes.

    Along an axis a Gaussian is as narrow as its conditional standard deviation, one over the root of (Sigma^-1)_kk.
    """
    log_scales, quats = eigen(values)
    w, x, y, z = quats.T
    precisions = exp(-2.0 * log_scales)
    rows = (
        (1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y - w * z), 2.0 * (x * z + w * y)),
        (2.0 * (x * y + w * z), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z - w * x)),
        (2.0 * (x * z - w * y), 2.0 * (y * z + w * x), 1.0 - 2.0 * (x * x + y * y)),
    )
    a, b, c = precisions.T
    narrow = [row[0] * row[0] * a + row[1] * row[1] * b + row[2] * row[2] * c for row in rows]
    fine = steps.of_class()[classes(weights), 1]
    levels = [steps.cell * np.sqrt(precision) / fine for precision in narrow]
    clipped: np.ndarray = np.clip(np.rint(np.stack(levels, 1)), 1, MAX_LEVELS).astype(np.int64)
    return clipped


def quantize(means: np.ndarray, shapes: np.ndarray, weights: np.ndarray, steps: Steps, shape: tuple[int, ...]) -> Codes:
    """Quantises Gaussians. The codes have the same order.

    Args:
        means: (N, 3) float64, in voxels. Means outside the volume are moved to its border.
        shapes: (N, 6) shapes.
        weights: (N,) weights. None of them is rounded to 0.
        steps: Quantisation steps.
        shape: Shape of the volume in voxels.
    """
    sizes = np.clip(np.rint(np.abs(weights) / steps.weight), 1, MAX_WEIGHT)
    coded = np.where(weights < 0, -sizes, sizes).astype(np.int64)
    fine = steps.of_class()[classes(coded), 0][:, None]
    coded_shapes = np.rint(np.clip(shapes, -MAX_SHAPE, MAX_SHAPE) / fine).astype(np.int64)
    levels = place_levels(coded, coded_shapes * fine, steps)
    inside = np.clip((means + 0.5) / steps.cell, 0.0, np.array(shape) / steps.cell - 1e-6)
    cells = np.floor(inside).astype(np.int64)
    places = np.minimum(np.floor((inside - cells) * levels).astype(np.int64), levels - 1)
    return Codes(cells, coded, coded_shapes, places)


def coded_values(codes: Codes, steps: Steps) -> dict[str, np.ndarray]:
    """The values of codes in float64: means (N, 3), shapes (N, 6) and weights (N,)."""
    shapes = shape_values(codes.weights, codes.shapes, steps)
    levels = place_levels(codes.weights, shapes, steps)
    means = (codes.cells + (codes.places + 0.5) / levels) * float(steps.cell) - 0.5
    return {"means": means, "shapes": shapes, "weights": codes.weights * steps.weight}


def dequantize(codes: Codes, steps: Steps) -> dict[str, np.ndarray]:
    """Decodes Gaussians to float32, in voxels, with the same bits on every machine.

    Returns:
        means (N, 3), log_scales (N, 3), quats (N, 4) and densities (N,), as `GaussianField` takes them.
    """
    values = coded_values(codes, steps)
    shapes = values["shapes"]
    log_scales, quats = eigen(shapes)
    size = exp(0.5 * (shapes[:, 0] + shapes[:, 1] + shapes[:, 2]))
    densities = values["weights"] / (UNIT_WEIGHT * size)
    found = {"means": values["means"], "log_scales": log_scales, "quats": quats, "densities": densities}
    return {name: array.astype(np.float32) for name, array in found.items()}
