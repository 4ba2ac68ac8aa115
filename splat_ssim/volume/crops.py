"""Random crops inside which SSIM equals that of the whole volume."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..options import of_each, one_or_each
from .grid import VoxelGrid


def loss_reach(options: Mapping[str, Any]) -> int | tuple[int, ...]:
    """Returns how many voxels around a crop a loss needs: half of SSIM's window, one number or one for each axis.

    The number is exact for the SSIM losses of one scale. A loss with a larger reach, such as ms_ssim, sees the edge of
    the crop.

    Args:
        options: Options of the loss, `--loss-kwargs`. Its window_size is one number or three, one for each axis. The
            default is 11.
    """
    reach: int | tuple[int, ...] = one_or_each([int(size) // 2 for size in of_each(options.get("window_size", 11), 3)])
    return reach


@dataclass(frozen=True)
class Crop:
    """A core of voxels, and the halo around it that SSIM's windows reach.

    Args:
        start: First voxel of the crop, which is the core with its halo.
        shape: Number of voxels of the crop along each axis.
        core_start: First voxel of the core, counted from `start`.
        core_shape: Number of voxels of the core along each axis.
    """

    start: tuple[int, ...]
    shape: tuple[int, ...]
    core_start: tuple[int, ...]
    core_shape: tuple[int, ...]

    def of(self, volume: Tensor) -> Tensor:
        """The part of a volume (..., n0, n1, n2) in core and halo, as a view."""
        for axis in range(3):
            volume = volume.narrow(axis - 3, self.start[axis], self.shape[axis])
        return volume

    def core(self, cropped: Tensor) -> Tensor:
        """The core of what `of` returned, as a view."""
        for axis in range(3):
            cropped = cropped.narrow(axis - 3, self.core_start[axis], self.core_shape[axis])
        return cropped

    def mask(self, device: torch.device | str = "cpu") -> Tensor:
        """(1, 1, *shape) weights for a loss: 1 in the core, 0 in the halo."""
        mask = torch.zeros(1, 1, *self.shape, device=device)
        self.core(mask).fill_(1.0)
        return mask

    def grid(self, grid: VoxelGrid) -> VoxelGrid:
        """The crop's part of the volume's grid."""
        return grid.crop(self.start, self.shape)


def make_crop(
    shape: Sequence[int], core_start: Sequence[int], core_shape: Sequence[int], *, halo: int | Sequence[int]
) -> Crop:
    """Makes a crop of a volume of `shape`. The halo ends at the volume's borders, where every window sees the padding.

    With halo = window_size // 2, the SSIM map inside the core equals the whole volume's, zero padding included. `halo`
    is one number for all axes, or one for each axis.

    Raises:
        ValueError: The core does not lie inside the volume.
    """
    for axis in range(3):
        if not (0 <= core_start[axis] and core_shape[axis] >= 1 and core_start[axis] + core_shape[axis] <= shape[axis]):
            raise ValueError(f"the core must lie in {tuple(shape)}, got {tuple(core_shape)} at {tuple(core_start)}")
    halos = of_each(halo, 3)
    start = [max(0, s - h) for s, h in zip(core_start, halos, strict=True)]
    stop = [min(n, s + c + h) for n, s, c, h in zip(shape, core_start, core_shape, halos, strict=True)]
    return Crop(
        tuple(start),
        tuple(b - a for a, b in zip(start, stop, strict=True)),
        tuple(s - a for s, a in zip(core_start, start, strict=True)),
        tuple(core_shape),
    )


def random_crop(
    shape: Sequence[int],
    size: int,
    *,
    halo: int | Sequence[int],
    generator: torch.Generator,
    inside: Tensor | None = None,
) -> Crop:
    """Makes a crop whose core, at a random place, has `size` voxels along each axis, or all of a shorter axis.

    The place may reach beyond the volume. The core is then moved back into it. Therefore a voxel at the border is drawn
    as often as one in the middle. Voxels near the border are drawn up to twice as often.

    Args:
        shape: Shape of the volume in voxels.
        size: Edge of the core in voxels.
        halo: As for `make_crop`.
        generator: Generator of the random numbers.
        inside: (N, 3) indices of voxels, on the CPU. The core contains one of them, which is drawn uniformly.
    """

    def below(count: int) -> int:
        return int(torch.randint(count, (), generator=generator))

    core_shape = [min(size, n) for n in shape]
    if inside is None:
        places = [below(n + core - 1) - (core - 1) for n, core in zip(shape, core_shape, strict=True)]
    else:
        voxel = inside[below(len(inside))].tolist()
        places = [v - below(core) for v, core in zip(voxel, core_shape, strict=True)]
    core_start = [min(max(a, 0), n - core) for a, n, core in zip(places, shape, core_shape, strict=True)]
    return make_crop(shape, core_start, core_shape, halo=halo)
