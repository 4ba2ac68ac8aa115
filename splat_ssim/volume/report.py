"""The page about a volume's run: slices across each axis beside the volume's own, and a rotating projection."""

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
from ..trainer.report import Section, picture, read_metrics, title_of, turntable, write_report
from .grid import VoxelGrid
from .pictures import evenly, exposed, mip_frames, plane_picture, shown_size
from .target import Target

#: Longest side in pixels of a slice and of the rotating volume. Larger slices are averaged, larger volumes maximised.
SLICE_SIDE, TURNING_SIDE = 320, 128
#: Number of pictures of a full rotation.
FRAMES = 24
#: Largest number of bytes of all slices of a page. If there are more, slices are left out.
MOST_BYTES = 6 << 20
#: Largest number of channels that a page shows of a volume that is neither grey nor coloured.
MOST_CHANNELS = 4

_BESIDE = f"fit, volume, their difference times {ERROR_GAIN:g}"

#: Axis and index of a slice -> (C, …) of the fit and of the volume, None where there is none; both in [0, 1] as shown.
Planes = Callable[[int, int], tuple[Tensor, Tensor | None]]


@dataclass
class Shown:
    """The parts of a fit that a page shows.

    Attributes:
        planes: Function that returns slices of the fit and of the volume.
        grid: Grid of the voxels.
        channels: Number of channels of a voxel.
        unit: Unit of the grid's spacing, such as mm. Empty if unknown.
        whole: (C, n0, n1, n2) of the fit and of the volume, which rotate in the page. None if they do not fit in
            memory.
        projections: For each axis, the maxima (C, …) of the fit and of the volume along it. They are shown if `whole`
            is None.
    """

    planes: Planes
    grid: VoxelGrid
    channels: int
    unit: str = ""
    whole: tuple[Tensor, Tensor | None] | None = None
    projections: Sequence[tuple[Tensor, Tensor]] = ()


@torch.no_grad()
def write_volume_report(
    task: Any, folder: Path, evaluation: Mapping[str, Any], shown: Shown, *, views: int = 12, notes: Sequence[str] = ()
) -> Path:
    """Writes report.html of a run.

    A page holds `views` slices an axis, each of up to 320 pixels a side beside the volume's own and the error, and 24
    pictures of a turn. All slices together take 6 MiB at most: it says where there are fewer for that.

    Args:
        task: Task with the config, the name and the device of the run.
        folder: Run folder.
        evaluation: Contents of the model's eval/<step>.json: step, train_seconds, psnr3d, ssim3d.
        shown: Parts of the fit to show.
        views: Number of slices across each axis, evenly spaced between the borders.
        notes: Lines above the slices.

    Raises:
        UserError: A file of the folder cannot be read, or views is below 1.
        WriteError: The page cannot be written.
    """
    if views < 1:
        raise UserError(f"--views must be at least 1, got {views}")
    known = {key: value for key, value in evaluation.items() if isinstance(value, int | float | str)}
    metrics = read_metrics(folder) or {**known, "device": task.device.type}
    own = [Section("Slices", _slices(shown, views, notes))]
    if shown.whole is not None:
        own.append(Section("Maximum intensity", _turning(shown.whole, shown.grid)))
    elif shown.projections:
        own.append(Section("Maximum intensity", _projections(shown)))
    return write_report(folder, task.config, title=title_of(task, evaluation["step"]), metrics=metrics, own=own)


def report_fit(fit: Tensor, target: Target, task: Any, folder: Path, evaluation: Mapping[str, Any], views: int) -> Path:
    """Writes the page of a fit in memory, see `write_volume_report`; `fit` is the field as it is compared."""
    fit, volume = target.shown(fit).cpu(), target.shown(target.values).cpu()

    def planes(axis: int, index: int) -> tuple[Tensor, Tensor]:
        return fit.select(1 + axis, index), volume.select(1 + axis, index)

    shown = Shown(planes, target.grid, len(volume), target.unit, (fit, volume))
    return write_volume_report(task, folder, evaluation, shown, views=views, notes=target.lines)


def _groups(channels: int) -> list[tuple[str, slice]]:
    """Groups of channels that are shown together: all of a grey or coloured voxel, otherwise each by itself."""
    if channels in (1, 3, 4):
        return [("", slice(0, channels))]
    return [(f", channel {index}", slice(index, index + 1)) for index in range(min(channels, MOST_CHANNELS))]


@dataclass
class _Slider:
    """Slices across an axis, of which a slider shows one."""

    name: str
    told: str
    frames: list[str]
    labels: list[str]

    def at_most(self, count: int) -> _Slider:
        """So many of them, evenly spaced."""
        chosen = evenly(len(self.frames), min(count, len(self.frames)))
        return _Slider(self.name, self.told, [self.frames[i] for i in chosen], [self.labels[i] for i in chosen])


def _slices(shown: Shown, views: int, notes: Sequence[str]) -> str:
    """A slider through the slices across each axis."""
    grid, groups = shown.grid, _groups(shown.channels)
    told = list(notes)
    if len(groups) < shown.channels and shown.channels not in (3, 4):
        told.append(f"The first {len(groups)} of {shown.channels} channels.")
    longest = max(max(shown_size(grid.shape, grid.spacing, axis)) for axis in range(3))
    if longest > SLICE_SIDE:
        told.append(f"Slices of up to {longest} pixels a side are shown at {SLICE_SIDE}, each a mean.")
    sliders = every = [slider for axis in range(3) for slider in _sliders(shown, axis, views)]
    count = most = max(len(slider.frames) for slider in every)
    while count > 1 and sum(len(frame) for slider in sliders for frame in slider.frames) > MOST_BYTES:
        count -= 1
        sliders = [slider.at_most(count) for slider in every]
    if count < most:
        told.append(f"{count} instead of {most} slices an axis: all together may take {MOST_BYTES / 2**20:.3g} MiB.")
    html = "".join(f"<p class=note>{escape(line)}</p>" for line in told)
    return html + "".join(
        turntable(each.name, each.frames, labels=each.labels, start=len(each.frames) // 2, told=each.told)
        for each in sliders
    )


def _sliders(shown: Shown, axis: int, views: int) -> list[_Slider]:
    """The slices across an axis, of the channels that are shown together."""
    shape, spacing, groups = shown.grid.shape, shown.grid.spacing, _groups(shown.channels)
    size, unit = _size(shown.grid, axis), f" {shown.unit}" if shown.unit else ""
    sliders = [_Slider(f"slices-{axis}{name}", f"Across axis {axis}{name}: ", [], []) for name, _ in groups]
    for place in evenly(shape[axis], min(views, shape[axis])):
        planes = shown.planes(axis, place)
        for slider, (_, channels) in zip(sliders, groups, strict=True):
            slider.frames.append(_beside(*planes, channels, size))
            slider.labels.append(
                f"Slice {place + 1} of {shape[axis]}, {place * spacing[axis]:.4g}{unit} from the first"
            )
    for slider in sliders:
        slider.told += _BESIDE if planes[1] is not None else "fit"
    return sliders


def _projections(shown: Shown) -> str:
    """The maxima along each axis."""
    html = ""
    for name, channels in _groups(shown.channels):
        frames = [_beside(*planes, channels, _size(shown.grid, axis)) for axis, planes in enumerate(shown.projections)]
        labels = [f"Along axis {axis}" for axis in range(3)]
        html += turntable(f"projections{name}", frames, labels=labels, told=f"Maxima{name}: {_BESIDE}")
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
    """A full rotation of the fit beside one of the volume."""
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


def _size(grid: VoxelGrid, axis: int) -> tuple[int, int]:
    """Rows and columns of a slice across an axis, whose longest side is at most that of a page's slices."""
    size = shown_size(grid.shape, grid.spacing, axis)
    scale = min(1.0, SLICE_SIDE / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
