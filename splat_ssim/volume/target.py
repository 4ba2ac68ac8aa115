"""The target of a fit: the volume of a file, normalised, with its mask."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import user_errors
from ..trainer.checkpoint import fingerprint
from .config import VolumeDataConfig
from .grid import VoxelGrid
from .io import Volume, load_volume
from .normalization import Normalization, ValueRange, choose_normalization, describe_values

#: A volume of integers gets a note that it looks like labels if it has this few values in a sample of this many voxels.
_LABELS, _SAMPLE = 12, 1 << 12
#: Largest weight of a mask, which float32 holds.
_HEAVIEST = float(np.finfo(np.float32).max)


@dataclass
class Target:
    """The target of a fit: normalised values, their grid, how they follow from the file, and weights.

    `source` is the file's voxels (C, n0, n1, n2) where some of their values are cut off, else None.
    """

    values: Tensor  # [C, n0, n1, n2] float32
    grid: VoxelGrid
    normalization: Normalization
    mask: Tensor | None  # [1, 1, n0, n1, n2]
    fingerprint: str  # of the file's own voxels
    intensities: ValueRange
    source: np.ndarray | None = None
    unit: str = ""  # of the grid's world
    lines: tuple[str, ...] = ()  # what a user should know about it

    @property
    def data_range(self) -> float:
        """Largest minus least value that is fitted: 1, or the span of the file where its values are fitted as is."""
        return 1.0 if self.normalization.clip else self.intensities.span

    @property
    def inside(self) -> Tensor | None:
        """(n0, n1, n2) weights of the mask on the target's device; None without one."""
        return None if self.mask is None else self.mask[0, 0]

    def shown(self, volume: Tensor) -> Tensor:
        """Maps a volume of such values to the range 0 to 1, for display."""
        if self.normalization.clip:
            return volume
        return (volume - self.intensities.source_low) / self.data_range

    def to(self, device: torch.device) -> Target:
        """The same with its tensors on a device."""
        mask = None if self.mask is None else self.mask.to(device)
        return replace(self, values=self.values.to(device), mask=mask)


@user_errors()
def read_target(path: Path, config: VolumeDataConfig) -> Target:
    """Reads a volume and its mask from files, and normalises the volume.

    Raises:
        UserError: The volume cannot be read, is constant, or differs from its mask in shape.
    """
    check_read(config.read, "data.read")
    volume = load_volume(path, **config.read)
    mask = None if config.mask is None else load_volume(config.mask)
    placed = not {"spacing", "origin", "axes"}.isdisjoint(config.read)
    return make_target(volume, config, mask=mask, name=str(path), mask_name=str(config.mask), placed=placed)


def check_read(read: Mapping[str, Any], name: str) -> None:
    """Checks the names of options of `load_volume`.

    Raises:
        ValueError: One is not there. The message begins with `name`, the option of a command that holds them.
    """
    options = list(inspect.signature(load_volume).parameters)[1:]
    for key in read:
        if key not in options:
            raise ValueError(f"{name} must hold {', '.join(options)} only, got {key!r}")


def make_target(
    volume: Volume,
    config: VolumeDataConfig,
    *,
    mask: Volume | None = None,
    name: str = "volume",
    mask_name: str = "mask",
    placed: bool = False,
) -> Target:
    """Makes a volume the target of a fit.

    Args:
        volume: The volume to fit.
        config: Options of the normalisation. Its mask is not read.
        mask: Weights of the voxels.
        name: Name of the volume in messages.
        mask_name: Name of the mask in messages.
        placed: Whether the config, not the file, gives the position of the volume.

    Raises:
        ValueError: The volume is constant or not finite, or a window cuts all of it off; or the mask has another shape,
            lies elsewhere or has no weights.
    """
    if not np.isfinite([volume.data.min(), volume.data.max()]).all():
        raise ValueError(f"{name} must hold finite voxels, got NaN or infinite ones")
    normalization = normalization_of(volume.data, config)
    intensities = describe_values(volume.data, normalization)
    weights: Tensor | None = None
    mask_lines: tuple[str, ...] = ()
    if mask is not None:
        mask_lines = tuple(f"{mask_name}: {line}" for line in mask.notes)
        values = mask.data
        low, high = values.min(), values.max()
        # NaN compares as false.
        if values.shape != (1, *volume.grid.shape) or not 0 <= low <= high <= _HEAVIEST or np.float32(high) == 0:
            raise ValueError(
                f"mask must be one channel of weights, finite and 0 or more, not all 0, on {volume.grid.shape}, got "
                f"{values.shape} from {low} to {high}"
            )
        _check_place(mask.grid, volume.grid, given=placed)
        weights = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))[None]
    # NIfTI files are Fortran-ordered, and the kernels would copy such a target in every step.
    scaled = np.ascontiguousarray(normalization.apply(volume.data))
    own = fingerprint("voxels of shape " + "x".join(map(str, volume.data.shape)), volume.data)
    return Target(
        torch.from_numpy(scaled),
        volume.grid,
        normalization,
        weights,
        own,
        intensities,
        source=volume.data if intensities.cut_below or intensities.cut_above else None,
        lines=tuple(f"{name}: {line}" for line in (*volume.notes, *intensities.lines(), *label_lines(volume.data)))
        + mask_lines,
        unit=volume.unit,
    )


def normalization_of(data: np.ndarray, config: VolumeDataConfig) -> Normalization:
    """Makes the normalisation that the options normalize, low and high describe.

    Args:
        data: Voxels. For a volume that is read by blocks, its extremes and a sample.
        config: Options of the data.

    Raises:
        ValueError: A window lacks one of its bounds, or the voxels have no range of intensities to fit.
    """
    mode, low, high = config.normalize, config.low, config.high
    if mode == "percentile":
        return choose_normalization(
            data, mode, percentiles=(0.5 if low is None else low, 99.5 if high is None else high)
        )
    if mode == "auto" and (low is not None or high is not None):
        mode = "window"
    if mode != "window":
        return choose_normalization(data, mode)
    if low is None or high is None:
        raise ValueError(f"a window must be given by both data.low and data.high, got low={low}, high={high}")
    return choose_normalization(data, mode, window=(low, high))


def label_lines(data: np.ndarray) -> list[str]:
    """Notes for a volume of a few whole numbers: labels are names, but a field takes values between them."""
    if data.dtype.kind not in "iu" or data.size < _SAMPLE:
        return []
    # In the order of memory, which is fast for any order of the axes.
    numbers = np.unique(data.ravel(order="K")[:: data.size // _SAMPLE])
    if len(numbers) > _LABELS:
        return []
    return [
        f"warning: it seems to hold {len(numbers)} whole numbers only, as label maps do: a field of Gaussians is "
        f"smooth, and between two labels it has the numbers between them"
    ]


def _check_place(mask: VoxelGrid, volume: VoxelGrid, *, given: bool) -> None:
    """Refuses a mask whose file says that it lies elsewhere; `given`: the config says where the volume lies."""
    silent = VoxelGrid.regular(volume.shape).affine
    if given or silent in (mask.affine, volume.affine):
        return
    # To a tenth of a voxel over the whole volume: headers keep float32.
    apart = volume.apart(mask)
    if apart > 0.1:
        raise ValueError(
            f"mask must lie where the volume does, got an affine that puts it up to {apart:.3g} voxels away; "
            f"mask {[list(row) for row in mask.affine[:3]]}, volume {[list(row) for row in volume.affine[:3]]}"
        )
