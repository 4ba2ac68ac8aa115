"""Results of a fit by bricks, computed block by block: PSNR and SSIM, projections, pictures and the field itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._files import replacing_path
from ..functional import ssim3d
from ..trainer.metrics import psnr_of_mse, reported_psnr
from ..trainer.pictures import save_comparison
from .blocks import Block, BlockedVolume, blocks_of, checked
from .crops import make_crop
from .evaluation import psnr_of_squares, source_squares
from .formats import with_sidecar

#: Region -> (C, …) field there.
Field = Callable[[Block], Tensor]
#: Radius in voxels of the window of the SSIM that is reported.
_RADIUS = 5


class Projections:
    """Maximum-intensity projections of a fit and of its volume along each axis, collected from blocks.

    Attributes:
        planes: For each axis, the projections (C, …) of the fit and of the volume, mapped to [0, 1] for display.
    """

    def __init__(self, volume: BlockedVolume) -> None:
        sides = [[n for other, n in enumerate(volume.shape) if other != axis] for axis in range(3)]
        self.planes = [(torch.zeros(volume.channels, *two), torch.zeros(volume.channels, *two)) for two in sides]

    def add(self, first: tuple[int, ...], fit: Tensor, own: Tensor) -> None:
        """Adds a block of both, (C, n0, n1, n2), at its first voxel."""
        for axis, planes in enumerate(self.planes):
            for plane, values in zip(planes, (fit, own), strict=True):
                most = values.amax(1 + axis)
                a, b = (start for other, start in enumerate(first) if other != axis)
                part = plane[:, a : a + most.shape[1], b : b + most.shape[2]]
                torch.maximum(part, most, out=part)


def _as_shown(volume: BlockedVolume, values: Tensor) -> Tensor:
    """Maps values as they are fitted or compared to [0, 1]."""
    low = 0.0 if volume.normalization.clip else volume.intensities.source_low
    return (values - low) / volume.data_range


@torch.no_grad()
def evaluate_blocks(volume: BlockedVolume, field: Field) -> tuple[dict[str, Any], Projections]:
    """Computes the metrics that a fit in memory reports, the range of the values, and projections.

    Args:
        volume: The volume that was fitted.
        field: Function that returns the fit in a region.

    Raises:
        UserError: The voxels of the volume are no longer those that were fitted.
    """
    squares = own_squares = similarity = 0.0
    checksum, projections = 0, Projections(volume)
    scale, count = volume.normalization, volume.channels * int(np.prod(volume.shape))
    for first, shape in blocks_of(volume.shape, volume.edge):
        crop = make_crop(volume.shape, first, shape, halo=_RADIUS)
        region = (crop.start, crop.shape)
        raw = volume.raw(region)
        pred, truth = field(region), torch.from_numpy(np.ascontiguousarray(scale.apply(raw)))
        pred = pred.to(truth.device)
        own, expected = crop.core(pred), crop.core(truth)
        squares += float((own.double() - expected.double()).square().sum())
        inside = (slice(None), *(slice(a, a + n) for a, n in zip(crop.core_start, crop.core_shape, strict=True)))
        source = raw[inside]
        checksum = checked(source, checksum)
        own_squares += source_squares(scale.invert(own.numpy()), source, volume.intensities.span)
        projections.add(first, _as_shown(volume, own), _as_shown(volume, expected))
        maps = ssim3d(pred[None], truth[None], data_range=volume.data_range, reduction="none")
        similarity += float(crop.core(maps).double().sum())
    volume.check_unchanged(checksum)
    return {
        "psnr3d": reported_psnr(psnr_of_mse(squares / count, volume.data_range)),
        "ssim3d": similarity / count,
        "psnr3d_source": psnr_of_squares(own_squares, count, volume.intensities.span),
        **dataclasses.asdict(volume.intensities),
    }, projections


@torch.no_grad()
def shown_planes(volume: BlockedVolume, field: Field, axis: int, index: int) -> tuple[Tensor, Tensor]:
    """A slice of the fit and the volume's, (C, …) each, in [0, 1] as they are shown."""
    first, shape = [0, 0, 0], list(volume.shape)
    first[axis], shape[axis] = index, 1
    region = ((first[0], first[1], first[2]), (shape[0], shape[1], shape[2]))
    fit, own = (_as_shown(volume, each.cpu().select(1 + axis, 0)) for each in (field(region), volume.read(region)))
    return fit, own


def save_middle_slices(folder: Path, volume: BlockedVolume, field: Field) -> None:
    """slice_0.png to slice_2.png: the slice through the middle across each axis, field | volume | error."""
    folder.mkdir(parents=True, exist_ok=True)
    for axis in range(3):
        planes = shown_planes(volume, field, axis, volume.shape[axis] // 2)
        colours = [plane[:3] if volume.channels >= 3 else plane[:1].expand(3, *plane.shape[1:]) for plane in planes]
        save_comparison(folder / f"slice_{axis}.png", *(plane[None] for plane in colours))


@torch.no_grad()
def write_npy(path: Path, volume: BlockedVolume, field: Field, edge: int) -> None:
    """The field in the file's intensities and at its place, written block by block."""
    shape = volume.shape if volume.channels == 1 else (volume.channels, *volume.shape)
    with replacing_path(path, commit=with_sidecar(path, len(shape), volume.grid.matrix, volume.unit)) as new:
        array = np.lib.format.open_memmap(new, mode="w+", dtype=volume.normalization.dtype, shape=shape)
        for block in blocks_of(volume.shape, edge):
            where = tuple(slice(first, first + count) for first, count in zip(*block, strict=True))
            values = volume.normalization.invert(field(block).cpu().numpy())
            array[where if volume.channels == 1 else (slice(None), *where)] = (
                values[0] if volume.channels == 1 else values
            )
        array.flush()
        del array
