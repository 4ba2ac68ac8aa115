"""A volume on disk whose voxels are read block by block, with statistics from one pass over all of them."""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .config import VolumeDataConfig
from .io import LAZY, volume_format
from .normalization import Normalization, ValueRange, describe_values
from .opened import open_volume
from .target import label_lines, normalization_of

#: Options of `load_volume` that also apply to a volume that is read by blocks.
_OPTIONS = ("key", "channel", "time")
#: Number of voxels that percentiles are estimated from.
_SAMPLE = 1 << 22

Block = tuple[tuple[int, ...], tuple[int, ...]]  # first voxel, and voxels along each axis


def blocks_of(shape: Sequence[int], edge: int, *, shift: int = 0) -> Iterator[Block]:
    """Yields blocks of at most `edge` voxels a side that cover a volume, in row-major order.

    Args:
        shape: Shape (n0, n1, n2) of the volume.
        edge: Number of voxels of a block along each axis.
        shift: Unless it is 0, the first block along each axis ends after this many voxels.

    Example:
        >>> from splat_ssim.volume.blocks import blocks_of
        >>> list(blocks_of((4, 2, 2), 3)), len(list(blocks_of((4, 4, 4), 2, shift=1)))
        ([((0, 0, 0), (3, 2, 2)), ((3, 0, 0), (1, 2, 2))], 27)
    """
    cuts = [sorted({0, n, *range(shift or edge, n, edge)}) for n in shape]
    spans = [[(a, b - a) for a, b in itertools.pairwise(cut)] for cut in cuts]
    for a in spans[0]:
        for b in spans[1]:
            for c in spans[2]:
                yield (a[0], b[0], c[0]), (a[1], b[1], c[1])


def checked(voxels: np.ndarray, checksum: int = 0) -> int:
    """Updates a checksum (CRC-32) with more voxels."""
    return zlib.crc32(np.ascontiguousarray(voxels).reshape(-1).view(np.uint8).data, checksum)


class BlockedVolume:
    """A volume in a file. Its voxels are read when they are needed, and normalised for the fit.

    One pass over all of them determines their range and a checksum, and finds NaN and infinite values.

    Args:
        path: Volume file. The voxels of npy, raw, zarr and HDF5 files are read piece by piece, other files whole.
        config: Options of normalisation and of reading.
        edge: Number of voxels along each axis that are read at once.

    Attributes:
        lines: What a user should know about it, as of `Target`, without the name of the file.

    Raises:
        ValueError: The file cannot be read, holds numbers that are not finite, or has no range of intensities to fit.
    """

    def __init__(self, path: Path, config: VolumeDataConfig, edge: int) -> None:
        unknown = sorted(set(config.read) - set(_OPTIONS))
        if unknown:
            raise ValueError(f"data.read of a fit by bricks must hold {', '.join(_OPTIONS)} only, got {unknown[0]}")
        if config.mask is not None:
            raise ValueError(f"data.mask requires a fit of the whole volume at once, got one by bricks: {config.mask}")
        self.path, self.lazy = path, volume_format(path) in LAZY
        self.opened = open_volume(path, **config.read)
        self.grid, self.unit = self.opened.grid, self.opened.unit
        self.shape: tuple[int, ...] = self.grid.shape
        self.channels, self.edge = math.prod(self.opened.array.shape[:-3]), edge
        self.normalization, self.intensities, self.checksum, labels = self._look(config)
        self.lines = [*self.opened.notes, *self.intensities.lines(), *labels]

    def raw(self, block: Block) -> np.ndarray:
        """(C, …) voxels of a block in the file's own dtype."""
        where = tuple(slice(first, first + count) for first, count in zip(*block, strict=True))
        voxels = self.opened.read(where if len(self.opened.array.shape) == 3 else (slice(None), *where))
        return voxels[None] if voxels.ndim == 3 else voxels

    def read(self, block: Block) -> Tensor:
        """(C, …) float32 voxels of a block as they are fitted."""
        return torch.from_numpy(np.ascontiguousarray(self.normalization.apply(self.raw(block))))

    @property
    def data_range(self) -> float:
        """The difference between the largest and the smallest value that is fitted."""
        return 1.0 if self.normalization.clip else self.intensities.span

    def check_unchanged(self, checksum: int) -> None:
        """Checks that the voxels have not changed since the first pass.

        zarr reads a missing chunk as zeros, so otherwise nobody would notice that a volume was deleted meanwhile.

        Args:
            checksum: Checksum by `checked` of all blocks of `edge` voxels, in their order.

        Raises:
            UserError: The voxels have another checksum than in the first pass.
        """
        if checksum != self.checksum:
            raise UserError(
                f"{self.path} must stay as it is while it is fitted, got other voxels than at first "
                f"(checksum {checksum:08x}, at first {self.checksum:08x})"
            )

    def _look(self, config: VolumeDataConfig) -> tuple[Normalization, ValueRange, int, list[str]]:
        """Determines normalisation, range, checksum and `label_lines` in one pass over all voxels."""
        least, most, checksum, samples = np.inf, -np.inf, 0, []
        stride = max(1, self.channels * int(np.prod(self.shape)) // _SAMPLE)
        for block in blocks_of(self.shape, self.edge):
            voxels = self.raw(block)
            if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
                raise ValueError(f"{self.path} must hold finite voxels, got others in the block from {block[0]} on")
            least, most = min(least, voxels.min()), max(most, voxels.max())
            checksum = checked(voxels, checksum)
            samples.append(voxels.ravel()[::stride])
        # The normalisation only needs the extremes, and percentiles of a sample.
        values = np.concatenate([np.array([least, most]).astype(samples[0].dtype), *samples])
        normalization = normalization_of(values, config)
        return normalization, describe_values(values, normalization), checksum, label_lines(values)
