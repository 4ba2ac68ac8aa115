"""What the page about a volume's run shows: slices across each axis beside the volume's own, and it turning."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError
from ..trainer.pictures import ERROR_GAIN
from ..trainer.report import Section, picture, read_metrics, turntable, write_report
from .grid import VoxelGrid
from .pictures import exposed, mip_frames, plane_picture, shown_size
from .target import Target

#: Longest side of a slice in a page, and of the volume that turns there: more is averaged, or its maximum taken.
SLICE_SIDE, TURNING_SIDE = 320, 128
#: Pictures of a turn.
FRAMES = 24
#: Channels of a volume that is neither grey nor coloured which a page shows.
MOST_CHANNELS = 4

#: Axis and index of a slice -> (C, …) of the fit and of the volume, None where there is none; both in [0, 1] as shown.
Planes = Callable[[int, int], tuple[Tensor, Tensor | None]]


@dataclass
class Shown:
    """A fit as a page shows it.

    Attributes:
        planes: Its slices and the volume's.
        grid: Of the voxels.
        channels: Of a voxel.
        unit: Of the grid's spacing, such as mm; empty where it has none.
        whole: (C, n0, n1, n2) of fit and volume, which turn in the page, or None where they are beyond memory.
    """

    planes: Planes
    grid: VoxelGrid
    channels: int
    unit: str = ""
    whole: tuple[Tensor, Tensor | None] | None = None


@torch.no_grad()
def write_volume_report(
    task: Any, folder: Path, evaluation: Mapping[str, Any], shown: Shown, *, views: int = 12, notes: Sequence[str] = ()
) -> Path:
    """Writes report.html of a run.

    A page holds `views` slices an axis, each of up to 320 pixels a side beside the volume's own and the error (60 kB at
    most), and 24 pictures of a turn.

    Args:
        task: With the config, the name and the device of the run.
        folder: Run folder.
        evaluation: What eval/<step>.json has of the model: step, train_seconds, psnr3d, ssim3d.
        shown: What there is to see.
        views: Slices an axis, evenly spaced between the borders.
        notes: Lines above the slices.

    Raises:
        UserError: Something in the folder does not read, or views is below 1.
        WriteError: The page cannot be written.
    """
    if views < 1:
        raise UserError(f"--views must be at least 1, got {views}")
    known = {key: value for key, value in evaluation.items() if isinstance(value, int | float | str)}
    metrics = read_metrics(folder) or {**known, "device": task.device.type}
    own = [Section("Slices", _slices(shown, views, notes))]
    if shown.whole is not None:
        own.append(Section("Maximum intensity", _turning(shown.whole, shown.grid)))
    done = evaluation["step"]
    title = task.name if done >= task.config.steps else f"{task.name}, step {done:,} of {task.config.steps:,}"
    return write_report(folder, task.config, title=title, metrics=metrics, own=own)


def report_fit(fit: Tensor, target: Target, task: Any, folder: Path, evaluation: Mapping[str, Any], views: int) -> Path:
    """Writes the page of a fit in memory, see `write_volume_report`; `fit` is the field as it is compared."""
    fit, volume = target.shown(fit).cpu(), target.shown(target.values).cpu()

    def planes(axis: int, index: int) -> tuple[Tensor, Tensor]:
        return fit.select(1 + axis, index), volume.select(1 + axis, index)

    shown = Shown(planes, target.grid, len(volume), target.unit, (fit, volume))
    return write_volume_report(task, folder, evaluation, shown, views=views, notes=target.lines)


def _groups(channels: int) -> list[tuple[str, slice]]:
    """Channels that are shown together: all of a grey or coloured voxel, else one by one."""
    if channels in (1, 3, 4):
        return [("", slice(0, channels))]
    return [(f", channel {index}", slice(index, index + 1)) for index in range(min(channels, MOST_CHANNELS))]


def _slices(shown: Shown, views: int, notes: Sequence[str]) -> str:
    """A slider through the slices across each axis."""
    shape, spacing = shown.grid.shape, shown.grid.spacing
    html = "".join(f"<p class=note>{escape(line)}</p>" for line in notes)
    groups = _groups(shown.channels)
    if len(groups) < shown.channels and shown.channels not in (3, 4):
        html += f"<p class=note>The first {len(groups)} of {shown.channels} channels.</p>"
    beside = ""
    for axis in range(3):
        count = min(views, shape[axis])
        places = [round((i + 0.5) * shape[axis] / count - 0.5) for i in range(count)]
        size = _at_most(shown_size(shape, spacing, axis), SLICE_SIDE)
        pictures: list[list[str]] = [[] for _ in groups]
        for place in places:
            planes = shown.planes(axis, place)
            for frames, (_, channels) in zip(pictures, groups, strict=True):
                frames.append(_beside(*planes, channels, size))
            beside = "fit, volume, their difference times 5" if planes[1] is not None else "fit"
        unit = f" {shown.unit}" if shown.unit else ""
        labels = [
            f"Slice {place + 1} of {shape[axis]}, {place * spacing[axis]:.4g}{unit} from the first" for place in places
        ]
        for (name, _), frames in zip(groups, pictures, strict=True):
            told = f"Across axis {axis}{name}: {beside}"
            html += turntable(f"slices-{axis}{name}", frames, labels=labels, start=count // 2, told=told)
    return html


def _beside(fit: Tensor, volume: Tensor | None, channels: slice, size: tuple[int, int]) -> str:
    """A slice of the fit, the volume's and the error, side by side, as a data URI."""
    fit = fit.cpu()
    volume = None if volume is None else volume.cpu()
    like = fit if volume is None else volume
    planes = [exposed(fit, like)[channels]]
    if volume is not None:
        planes.append(exposed(volume, like)[channels])
        planes.append((planes[0] - planes[1]).abs() * ERROR_GAIN)
    parts = [plane_picture(plane, size) for plane in planes]
    gap = np.full((parts[0].shape[0], 4, 3), 40, np.uint8)
    row = parts[0]
    for part in parts[1:]:
        row = np.concatenate([row, gap, part], 1)
    return picture(row, longest=max(row.shape[:2]))


def _turning(whole: tuple[Tensor, Tensor | None], grid: VoxelGrid) -> str:
    """A turn of the fit beside one of the volume."""
    axis, runs_down = grid.upright
    turns = []
    for volume in whole:
        if volume is None:
            continue
        factor = -(-max(volume.shape[1:]) // TURNING_SIDE)
        if factor > 1:
            kernel = [min(factor, side) for side in volume.shape[1:]]
            volume = F.max_pool3d(volume.cpu()[None], kernel, ceil_mode=True)[0]
        volume = volume.flip(1 + axis) if runs_down else volume
        turns.append(mip_frames(volume, frames=FRAMES, axis=axis, spacing=grid.spacing))
    frames = [np.concatenate(parts, 1) for parts in zip(*turns, strict=True)]
    told = "Fit and volume, turning about the upright axis" if len(turns) > 1 else "Fit, turning about the upright axis"
    return turntable("turn", [picture(pixels) for pixels in frames], told=told)


def _at_most(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Rows and columns of a picture whose longest side is at most so long."""
    scale = min(1.0, side / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
