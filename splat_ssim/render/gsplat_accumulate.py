"""Each Gaussian's sums over its pixels on CUDA, from gsplat's query of Gaussian–pixel pairs.

The counterpart of `cpu.accumulate`. It has not run on a GPU yet: tests put a torch function in the query's place and
find the sums equal to those of the compiled renderer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .reference import Accumulators

#: A function with the arguments and results of gsplat.rasterize_to_indices_in_range, whose pairs lie pixel by pixel and
#: within a pixel front to back, up to the last Gaussian before transmittance falls to 1e-4 or below.
PairQuery = Callable[..., tuple[Tensor, Tensor, Tensor]]

#: Rows of tiles are queried together up to about so many pairs, at some 100 bytes of memory each.
MAX_PAIRS = 1 << 24

#: Past every batch of Gaussians a tile may have.
_ALL_BATCHES = 2**31 - 1


@torch.no_grad()
def accumulate(info: dict[str, Any], pixel_weights: Tensor, *, max_alpha: float, query: PairQuery) -> Accumulators:
    """Computes sums, for each Gaussian, over the pixels that it contributes to.

    Args:
        info: Third result of gsplat.rasterization, packed or not.
        pixel_weights: [C, H, W] float32.
        max_alpha: Number that alpha was clamped to.
        query: The function gsplat.rasterize_to_indices_in_range.

    Returns:
        Sums [C, N], or [nnz] if `info` is packed. They are added in float64 and rounded to float32, because on CUDA the
        order of additions varies from call to call. After rounding, the difference is almost never visible.
    """
    height, width = pixel_weights.shape[1:]
    tile = info["tile_size"]
    # Packed or not, gsplat's tile lists count the rows of these.
    means2d = info["means2d"].detach().reshape(-1, 2)
    conics, opacities = info["conics"].detach().reshape(-1, 3), info["opacities"].detach().reshape(-1)
    offsets, flatten_ids = info["isect_offsets"], info["flatten_ids"]  # [C, tile rows, tile columns], [pairs of tiles]
    # Each query is over the full range of depth: where one leaves off, the next is not told which pixels are finished,
    # and would let later Gaussians pass.
    transmittances = means2d.new_ones(1, height, width)
    sums = torch.zeros(4, len(means2d), dtype=torch.float64, device=means2d.device)
    for camera, start, end in _bands(offsets, len(flatten_ids), tile):
        # Rows of tiles outside of the band are left without Gaussians.
        band = (offsets[camera, None].clamp(start, end) - start).to(offsets.dtype)
        rows, pixels, _ = query(
            0,
            _ALL_BATCHES,
            transmittances,
            means2d[None],
            conics[None],
            opacities[None],
            width,
            height,
            tile,
            band,
            flatten_ids[start:end],
        )
        x, y = pixels % width + 0.5, torch.div(pixels, width, rounding_mode="floor") + 0.5
        dx, dy = x - means2d[rows, 0], y - means2d[rows, 1]
        a, b, c = conics[rows].unbind(-1)
        sigmas = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
        alphas = (opacities[rows] * torch.exp(-sigmas)).clamp(max=max_alpha).double()
        parts = torch.stack(
            [
                torch.ones_like(alphas),
                pixel_weights[camera].reshape(-1)[pixels].double(),
                transmittance_before(alphas, pixels) * alphas,
                torch.hypot(dx, dy).double(),
            ]
        )
        sums.index_add_(1, rows, parts)
    return Accumulators(*sums.to(means2d.dtype).reshape(4, *info["opacities"].shape))


def transmittance_before(alphas: Tensor, pixels: Tensor) -> Tensor:
    """Returns, for each pair of a pixel and a Gaussian, the product [M] of 1 - alpha over the pixel's earlier pairs.

    Args:
        alphas: [M] float64, below 1.
        pixels: [M] pixel of each pair. Pairs of the same pixel are adjacent.

    Example:
        >>> import torch
        >>> from splat_ssim.render.gsplat_accumulate import transmittance_before
        >>> transmittance_before(torch.tensor([0.5, 0.5, 0.5]).double(), torch.tensor([3, 3, 4]))
        tensor([1.0000, 0.5000, 1.0000], dtype=torch.float64)
    """
    logs = torch.log1p(-alphas)
    before = logs.cumsum(0) - logs
    _, segment, lengths = torch.unique_consecutive(pixels, return_inverse=True, return_counts=True)
    first = lengths.cumsum(0) - lengths
    return torch.exp(before - before[first][segment])


def _bands(offsets: Tensor, pairs: int, tile: int) -> Iterator[tuple[int, int, int]]:
    """Camera, and begin and end in the tile lists, of rows of tiles that together stay within MAX_PAIRS if they can."""
    rows = offsets.shape[1]
    # Where the list of each row of tiles of each camera begins, and the end of all.
    begins = [*offsets[:, :, 0].flatten().tolist(), pairs]
    for camera in range(len(offsets)):
        start = begins[camera * rows]
        for row in range(camera * rows, (camera + 1) * rows):
            last = row + 1 == (camera + 1) * rows
            if last or (begins[row + 2] - start) * tile * tile > MAX_PAIRS:
                if begins[row + 1] > start:
                    yield camera, start, begins[row + 1]
                start = begins[row + 1]
