"""Gaussians whose cut-off no voxel lies on.

A Gaussian ends at three standard deviations, where it still has a hundredth of its density. A voxel that lies there is
inside on one machine and outside on another, as their kernels round. So that all decode the same voxels, an encoder
moves such a Gaussian by a place: about one in a hundred.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from ..reference import CUTOFF, rotation_matrices
from .quantizer import Codes, Steps, dequantize, place_levels, shape_values

#: Squared Mahalanobis distances so near the cut-off may fall on either side of it, by some way of rounding.
_NEAR = 3e-5
#: Rows of voxels that are looked at together.
_CHUNK = 1 << 20
#: How often a Gaussian is moved, at most.
_TRIES = 18


def without_ties(codes: Codes, steps: Steps, shape: tuple[int, ...]) -> Codes:
    """Moves the few Gaussians that have a voxel on their cut-off. All other codes stay as they are.

    A Gaussian whose weight is so small that it has only one or two places along each axis may keep such a voxel.

    Args:
        codes: Codes of a volume's Gaussians.
        steps: Quantisation steps.
        shape: Shape of the volume in voxels.
    """
    levels = place_levels(codes.weights, shape_values(codes.weights, codes.shapes, steps), steps)
    places, look = codes.places.copy(), np.arange(len(codes))
    for turn in range(_TRIES):
        moved = dataclasses.replace(codes, places=places)
        look = look[has_ties(dequantize(moved.taken(look), steps), shape)]
        if not len(look):
            return moved
        # To either side along the axis with most places, then along the others, then further.
        axis = np.argsort(-levels[look], axis=1, kind="stable")[:, turn // 2 % 3]
        by = (turn // 6 + 1) * (1 if turn % 2 else -1)
        places[look] = codes.places[look]
        places[look, axis] = (codes.places[look, axis] + by) % levels[look, axis]
    return dataclasses.replace(codes, places=places)


def has_ties(gaussians: dict[str, np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """(N,) whether a voxel of the volume lies on a Gaussian's cut-off; Gaussians as `dequantize` returns them."""
    means = gaussians["means"].astype(np.float64)
    R = rotation_matrices(torch.from_numpy(gaussians["quats"].astype(np.float64))).numpy()
    scales = np.exp(gaussians["log_scales"].astype(np.float64))
    reach = np.sqrt(CUTOFF) * np.sqrt(np.square(R * scales[:, None]).sum(2)) + 1e-3
    low = np.ceil(np.maximum(means - reach, 0)).astype(np.int64)
    sides = np.maximum(np.floor(np.minimum(means + reach, np.array(shape) - 1)).astype(np.int64) - low + 1, 0)
    M = R / scales[:, None]
    P = M @ M.transpose(0, 2, 1)  # Sigma⁻¹
    rows = sides[:, 0] * sides[:, 1]
    result, ends, first = np.zeros(len(means), bool), np.cumsum(rows), 0
    while first < len(means):
        before = ends[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends, before + _CHUNK, side="right")))
        owner = np.repeat(np.arange(first, last), rows[first:last])
        row = np.arange(len(owner)) - np.repeat(ends[first:last] - rows[first:last] - before, rows[first:last])
        x = row // sides[owner, 1] + (low[:, 0] - means[:, 0])[owner]
        y = row % sides[owner, 1] + (low[:, 1] - means[:, 1])[owner]
        # Along a row the squared distance less its cut-off is a z² + b z + c.
        p = P[owner]
        a, b = p[:, 2, 2], 2 * (p[:, 0, 2] * x + p[:, 1, 2] * y)
        c = p[:, 0, 0] * x * x + 2 * p[:, 0, 1] * x * y + p[:, 1, 1] * y * y - CUTOFF
        root = np.sqrt(np.maximum(b * b - 4 * a * c, 0))
        for sign in (-1, 1):
            voxel = np.rint((sign * root - b) / (2 * a) + means[owner, 2]).clip(0, shape[2] - 1)
            z = voxel - means[owner, 2]
            result[owner[np.abs((a * z + b) * z + c) < _NEAR]] = True
        first = last
    return result
