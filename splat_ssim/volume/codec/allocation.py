"""The number of Gaussians and the quantisation steps for a given number of bytes."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from torch import Tensor

from .field import CodedField
from .quantizer import Codes, Steps, classes, place_levels, shape_values
from .stream import encode

#: Bits that a Gaussian takes at the steps of `suitable_steps`, about; a fit is given as many as they pay for.
BITS = 42.0
#: The range of weights' steps, as multiples of the suitable one, that bytes are met by; beyond it Gaussians go.
_FINEST, _COARSEST = 0.6, 3.0


def suitable_steps(mse: float, voxels: int, count: int) -> Steps:
    """Returns quantisation steps whose error is a sensible share of the fit's own error.

    Rounding a weight to a step adds step²/12 to the squared error, summed over all voxels. Rounding each of a
    Gaussian's other nine numbers adds as much. For this to be a given share of the error of the fit, mse · voxels, the
    step must be proportional to the root of mse · voxels / count.

    Args:
        mse: Mean squared error of the fit, whose values are between 0 and 1.
        voxels: Number of voxels of the volume.
        count: Number of Gaussians.
    """
    return Steps(float(np.float32(math.sqrt(max(mse, 1e-12) * voxels / count))))


def encoded_size(field: CodedField, steps: Steps) -> int:
    """Bytes of the coded Gaussians of a field."""
    return len(encode(field.codes(steps), steps, field.shape))


def steps_for_size(field: CodedField, suitable: Steps, size: int) -> Steps:
    """The finest steps, within some range of the suitable ones, by which a field takes no more than `size` bytes.

    The coarsest of the range where none does.
    """
    low, high = math.log(_FINEST), math.log(_COARSEST)

    def scaled(log_scale: float) -> Steps:
        return dataclasses.replace(suitable, weight=float(np.float32(suitable.weight * math.exp(log_scale))))

    if encoded_size(field, scaled(low)) <= size:
        return scaled(low)
    if encoded_size(field, scaled(high)) > size:
        return scaled(high)
    for _ in range(7):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if encoded_size(field, scaled(middle)) > size else (low, middle)
    return scaled(high)


def worth(codes: Codes, steps: Steps) -> np.ndarray:
    """(N,) what each Gaussian is worth: the squared error it takes away for each of its bits.

    A field whose weights are fitted loses the square of a weight with its Gaussian, its neighbours aside.
    """
    kind = classes(codes.weights)
    levels = place_levels(codes.weights, shape_values(codes.weights, codes.shapes, steps), steps)
    # About 5 bits for the cell and 4 for the class, the sign and the like; a shape's numbers spread over a unit or so.
    bits = 9.0 + np.log2(levels).sum(1) + 6 * np.log2(2.0 / steps.of_class()[kind, 0]) + np.maximum(0, kind - 3) / 2
    per_bit: np.ndarray = np.square(codes.weights * steps.weight) / bits
    return per_bit


def most_worthy(field: CodedField, steps: Steps, count: int) -> Tensor:
    """The indices of the `count` Gaussians that are worth most, in their order."""
    values = worth(field.codes(steps), steps)
    chosen = np.sort(np.argsort(-values, kind="stable")[:count])
    return torch.from_numpy(chosen).to(field.tensors["weights"].device)
