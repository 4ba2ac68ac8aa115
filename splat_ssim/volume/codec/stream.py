"""The codes of Gaussians as bytes, in an order and under contexts that make them few.

First how many Gaussians each cell holds; then, along a Morton curve through the cells, all weights, all shapes and all
places. So what a number is coded under may depend on every number of the kinds before it, on either side of the curve.
"""

from __future__ import annotations

import numpy as np

from .entropy import Adaptive, Coder, Decoder, Encoder
from .occupancy import code_occupancy
from .quantizer import CLASS_STARTS, MAX_SHAPE, MAX_STEP, MAX_WEIGHT, Codes, Steps, classes, place_levels, shape_values

#: The numbers of shapes are coded as one of the parts of this width that lie around 0, and the place in it.
_WIDTH = 0.25
#: Parts on either side of 0.
_PARTS = round((MAX_SHAPE + MAX_STEP) / _WIDTH)


def encode(codes: Codes, steps: Steps, shape: tuple[int, ...]) -> bytes:
    """Encodes the Gaussians of a volume of `shape` voxels. Decoding returns them in another order."""
    cells = _cells(shape, steps)
    counts = np.zeros(cells, np.int64)
    np.add.at(counts, tuple(codes.cells.T), 1)
    flat = np.ravel_multi_index(tuple(codes.cells.T), cells)
    order = np.lexsort((codes.weights, _curve(cells)[flat]))
    encoder = Encoder()
    _code(encoder, codes.taken(order), counts, steps, shape, len(codes))
    return encoder.finish()


def decode(content: bytes, steps: Steps, shape: tuple[int, ...], count: int) -> Codes:
    """Decodes the result of `encode`.

    Raises:
        ValueError: The bytes are not such a code.
    """
    return _code(Decoder(content), None, None, steps, shape, count)


def _cells(shape: tuple[int, ...], steps: Steps) -> tuple[int, ...]:
    return tuple(-(-n // steps.cell) for n in shape)


def _curve(cells: tuple[int, ...]) -> np.ndarray:
    """(cells,) the place of each cell, in the order of the array, along a Morton curve."""
    result = np.zeros(cells, np.int64)
    for axis, n in enumerate(cells):
        spread = np.zeros(n, np.int64)
        for bit in range(max(1, n - 1).bit_length()):
            spread |= (np.arange(n) >> bit & 1) << (3 * bit + axis)
        result += spread.reshape([-1 if k == axis else 1 for k in range(3)])
    return result.ravel()


def _code(
    coder: Coder, codes: Codes | None, counts: np.ndarray | None, steps: Steps, shape: tuple[int, ...], total: int
) -> Codes:
    """Both sides of the coder: codes are given to be encoded, or come back decoded."""
    counts = code_occupancy(coder, counts, _cells(shape, steps), total)
    curve = _curve(counts.shape)
    held = np.flatnonzero(counts.ravel())
    held = held[np.argsort(curve[held], kind="stable")]
    owner = np.repeat(held, counts.ravel()[held])
    weights = _weights(coder, None if codes is None else codes.weights, total)
    shapes = _shapes(coder, None if codes is None else codes.shapes, weights, steps)
    levels = place_levels(weights, shape_values(weights, shapes, steps), steps)
    places = coder.uniform(None if codes is None else codes.places.ravel(), levels.ravel()).reshape(-1, 3)
    cells = np.stack(np.unravel_index(owner, counts.shape), 1).astype(np.int64)
    return Codes(cells, weights, shapes, places)


def _weights(coder: Coder, weights: np.ndarray | None, total: int) -> np.ndarray:
    """Codes the weights: the class, the place in it, and the sign by the class."""
    starts = np.array([*CLASS_STARTS, MAX_WEIGHT + 1])
    size = None if weights is None else np.abs(weights)
    kind = Adaptive(1, len(CLASS_STARTS)).code(
        coder, None if size is None else classes(size), np.zeros(total, np.int64)
    )
    room = (starts[1:] - starts[:-1])[kind]
    found = starts[kind] + coder.uniform(None if size is None else size - starts[kind], room)
    signs = Adaptive(len(CLASS_STARTS), 2)
    negative = signs.code(coder, None if weights is None else (weights < 0).astype(np.int64), kind)
    signed: np.ndarray = np.where(negative > 0, -found, found)
    return signed


def _shapes(coder: Coder, shapes: np.ndarray | None, weights: np.ndarray, steps: Steps) -> np.ndarray:
    """Codes the six numbers of each shape by the class of its weight."""
    kind = classes(weights)
    result = np.zeros((len(weights), 6), np.int64)
    # Of each class: the part of each number, and the first number of each part.
    fine = steps.of_class()[:, :1]
    most = int(np.floor(MAX_SHAPE / fine.min() + 0.5))
    numbers = np.arange(-most, most + 1)
    parts = np.floor(numbers * fine / _WIDTH + 0.5).astype(np.int64) + _PARTS
    firsts = np.stack([np.searchsorted(row, np.arange(2 * _PARTS + 2)) for row in parts]) - most
    for k in range(6):
        given = None if shapes is None else shapes[:, k]
        part = None if given is None else parts[kind, given + most]
        part = Adaptive(len(CLASS_STARTS), 2 * _PARTS + 1).code(coder, part, kind)
        first = firsts[kind, part]
        result[:, k] = first + coder.uniform(None if given is None else given - first, firsts[kind, part + 1] - first)
    return result
