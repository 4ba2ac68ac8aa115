"""Samples a field of Gaussians at arbitrary points, and crops a field to a box."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .reference import CUTOFF, rotation_matrices

if TYPE_CHECKING:
    from .gaussians import GaussianField

#: Average points of a cell, largest number of cells along an axis, and rows of cells and pairs processed at once.
_POINTS_A_CELL, _CELLS, _ROWS, _PAIRS = 8, 1024, 1 << 22, 1 << 20


def sample_gaussians(means: Tensor, quats: Tensor, scales: Tensor, values: Tensor, points: Tensor) -> Tensor:
    """V_c(x) = sum over i of values_ic · exp(-q_i(x)/2), zero where q_i > 9: `voxelize_reference` at any points.

    Points are sorted into cells, so that a Gaussian meets only those around it. For backward 16 bytes are kept for each
    such pair, and the rest is computed again.

    Args:
        means: (N, 3), world x, y, z.
        quats: (N, 4), w, x, y, z.
        scales: (N, 3), standard deviations in world units.
        values: (N, C).
        points: (..., 3), world x, y, z.

    Returns:
        (C, ...) in the wider of the dtypes of points and means, differentiable.

    Raises:
        ValueError: The points have another shape or are on another device.
        TypeError: The points are neither float32 nor float64.
    """
    if points.ndim < 1 or points.shape[-1] != 3:
        raise ValueError(f"points must have shape (..., 3), got {tuple(points.shape)}")
    if points.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"points must be float32 or float64, got {points.dtype}")
    if points.device != means.device:
        raise ValueError(f"points must be on {means.device}, where the field is, got {points.device}")
    dtype = torch.promote_types(points.dtype, means.dtype)
    means, scales, values = means.to(dtype), scales.to(dtype), values.to(dtype)
    rotations = rotation_matrices(quats.to(dtype))
    flat = points.reshape(-1, 3).to(dtype)
    result = values.new_zeros(len(flat), values.shape[1])
    if len(flat) and len(means):
        reach = extents(rotations, scales)
        for pair, point in _pairs(means.detach(), reach, flat.detach()):
            inputs = (means, rotations, scales, values, flat, pair, point)
            if torch.is_grad_enabled():
                part = checkpoint(_contributions, *inputs, use_reentrant=False)
            else:
                part = _contributions(*inputs)
            result.index_add_(0, point, part)
    return result.T.reshape(values.shape[1], *points.shape[:-1])


def _contributions(
    means: Tensor, rotations: Tensor, scales: Tensor, values: Tensor, points: Tensor, pair: Tensor, point: Tensor
) -> Tensor:
    """(P, C) contributions of P pairs of a Gaussian and a point, which are given by their indices (P,)."""
    d = ((points[point] - means[pair])[:, None] @ rotations[pair])[:, 0] / scales[pair]
    q = d.square().sum(1)
    return values[pair] * torch.where(q <= CUTOFF, torch.exp(-0.5 * q), q.new_zeros(()))[:, None]


@torch.no_grad()
def extents(rotations: Tensor, scales: Tensor) -> Tensor:
    """(N, 3) half edges, along x, y, z, of the boxes outside which the Gaussians are zero."""
    sides: Tensor = CUTOFF**0.5 * (rotations * scales[:, None]).norm(dim=2)
    return sides


@torch.no_grad()
def _pairs(means: Tensor, reach: Tensor, points: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Indices of all pairs of a Gaussian and a point where it may not be zero, each pair once, in chunks."""
    low, high = points.amin(0), points.amax(0)
    edge, shape = _cells(low, high, len(points))
    last = torch.tensor(shape, device=points.device) - 1
    places = ((points - low) / edge).floor().long().clamp(min=torch.zeros_like(last), max=last)
    numbers = (places[:, 0] * shape[1] + places[:, 1]) * shape[2] + places[:, 2]
    order = numbers.argsort()
    # Where the points of each cell begin in that order.
    starts = torch.cat([numbers.new_zeros(1), numbers.bincount(minlength=shape[0] * shape[1] * shape[2]).cumsum(0)])
    # A little more than the reach, so that rounding loses no pair. An extra pair adds zero.
    half = reach * (1 + 1e-5) + 1e-6 * means.abs()
    near = ((means + half >= low) & (means - half <= high)).all(1).nonzero()[:, 0]
    means, half = means[near], half[near]
    first = ((means - half - low) / edge).floor().clamp(min=0).long().minimum(last)
    stop = ((means + half - low) / edge).floor().clamp(min=0).long().minimum(last) + 1
    # Along z the cells of a Gaussian are adjacent, so each x and y gives one run of points.
    width = stop[:, 1] - first[:, 1]
    for which, at in _chunks((stop[:, 0] - first[:, 0]) * width, _ROWS):
        column = (first[which, 0] + at // width[which]) * shape[1] + first[which, 1] + at % width[which]
        run = starts[column * shape[2] + first[which, 2]]
        length = starts[column * shape[2] + stop[which, 2]] - run
        for row, point in _chunks(length, _PAIRS):
            yield near[which[row]], order[run[row] + point]


def _chunks(lengths: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The pairs (i, 0) … (i, lengths[i] - 1) of every i, in chunks of about `size` that do not split an i."""
    used = (lengths > 0).nonzero()[:, 0]
    lengths = lengths[used]
    begin, total = 0, lengths.cumsum(0)
    while begin < len(used):
        before = int(total[begin - 1]) if begin else 0
        end = max(begin + 1, int(torch.searchsorted(total, before + size, right=True)))
        which = torch.repeat_interleave(torch.arange(begin, end, device=used.device), lengths[begin:end])
        at = torch.arange(len(which), device=used.device) - (total[which] - lengths[which] - before)
        yield used[which], at
        begin = end


def _cells(low: Tensor, high: Tensor, count: int) -> tuple[Tensor, list[int]]:
    """Edges (3,) and numbers of cells over the box of the points."""
    size = (high - low).double().cpu().numpy()
    sized = size > 0
    shape = np.ones(3, np.int64)
    if sized.any():
        edge = (np.prod(size[sized]) * _POINTS_A_CELL / count) ** (1 / sized.sum())
        shape[sized] = np.clip(np.ceil(size[sized] / edge), 1, _CELLS)
    edges = np.where(sized, size / shape, 1.0)
    return torch.as_tensor(edges, dtype=low.dtype, device=low.device), shape.tolist()


def crop_field(field: GaussianField, box: Sequence[Sequence[float]]) -> GaussianField:
    """See `GaussianField.crop`."""
    from .gaussians import GaussianField

    corners = np.asarray(box, dtype=np.float64)
    if corners.shape != (2, 3) or not np.isfinite(corners).all() or not (corners[0] < corners[1]).all():
        raise ValueError(f"box must be least and largest x, y, z, ((x, y, z), (x, y, z)), got {box}")
    tensors, source = field.tensors, field.source
    means = field.positions().double()
    reach = extents(rotation_matrices(tensors["quats"].double()), tensors["log_scales"].double().exp()) * (1 + 1e-5)
    low, high = (torch.as_tensor(corner, device=means.device) for corner in corners)
    kept = ((means + reach >= low) & (means - reach <= high)).all(1).nonzero()[:, 0]
    if not len(kept):
        raise ValueError(f"box must be where the field is not zero, got {corners.tolist()}")
    if source is not None:
        source = source.cropped(corners)
    return GaussianField({name: tensor[kept].clone() for name, tensor in tensors.items()}, source, field.offset)
