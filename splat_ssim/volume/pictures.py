"""Volumes to look at: sheets of slices, and a turning maximum-intensity projection."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..trainer.pictures import ERROR_GAIN, save_bytes, write_video

#: Largest side in pixels of a volume of unequal spacing that is shown.
_LARGEST = 2048


def _grey_or_colour(plane: Tensor) -> np.ndarray:
    """(C, H, W) in [0, 1] to uint8 (H, W, 3): red, green and blue of three or four channels, else channel 0."""
    if plane.shape[0] == 4:
        # Colours are weighted by density, see `voxelize`.
        plane = plane[1:]
    elif plane.shape[0] != 3:
        plane = plane[:1].expand(3, -1, -1)
    return (plane.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()


def exposed(volume: Tensor, like: Tensor) -> Tensor:
    """Brightens the colours of four channels, so that only the brightest hundredth of `like`'s reaches 1.

    Densities add up where Gaussians overlap, so the largest is far above that of most voxels.
    """
    if volume.shape[0] != 4:
        return volume
    bright = like[1:].amax(0)
    bright = bright[bright > 0]
    level = float(np.percentile(bright.numpy(), 99)) if len(bright) else 1.0
    return torch.cat([volume[:1], volume[1:] / min(1.0, level)])


def _pixels(shape: Sequence[int], spacing: Sequence[float] | None) -> tuple[int, ...]:
    """Pixels along each axis of a volume that is shown in proportion. The shortest edge of a voxel is one pixel."""
    if spacing is None or max(spacing) < 1.001 * min(spacing):
        return tuple(shape)
    extents = [n * s for n, s in zip(shape, spacing, strict=True)]
    pixel = max(min(spacing), max(extents) / _LARGEST)
    return tuple(max(1, round(extent / pixel)) for extent in extents)


def _resized(plane: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes (C, H, W) to another number of pixels for the same extent. If they are fewer, each is a mean."""
    if tuple(plane.shape[1:]) == size:
        return plane
    return F.interpolate(plane[None], size, mode="bilinear", align_corners=False, antialias=True)[0]


def shown_size(shape: Sequence[int], spacing: Sequence[float] | None, axis: int) -> tuple[int, int]:
    """Pixels of a slice across an axis along its first and second remaining axis, see `slice_sheet`."""
    pixels = _pixels(shape, spacing)
    return pixels[1 if axis == 0 else 0], pixels[1 if axis == 2 else 2]


def evenly(places: int, count: int) -> list[int]:
    """This many positions between two borders, evenly spaced. Some repeat if there are too few."""
    return [round((i + 0.5) * places / count - 0.5) for i in range(count)]


def plane_picture(plane: Tensor, size: tuple[int, int]) -> np.ndarray:
    """A slice (C, a, b) in [0, 1] as a picture, (b, a, 3) uint8 of `size` (a, b): its first axis runs to the right.

    The second runs up.
    """
    picture: np.ndarray = _grey_or_colour(_resized(plane, size)).transpose(1, 0, 2)[::-1]
    return picture


def slice_sheet(
    field: Tensor, target: Tensor | None = None, *, count: int = 5, spacing: Sequence[float] | None = None
) -> np.ndarray:
    """Draws slices across each axis, as one (H, W, 3) uint8 picture.

    Args:
        field: (C, n0, n1, n2), values in [0, 1].
        target: Same shape and range. If given, each slice of the field is followed below by the target's slice and by
            |field - target| times 5.
        count: Number of slices across each axis, evenly spaced between the borders.
        spacing: Edges of a voxel along the array's axes, for pictures in the right proportions. Equal by default.

    Returns:
        The picture. For each axis it has a row of slices of the field, one of the target and one of the error. The
        first remaining axis of a slice points up. Colours weighted by density are shown brighter, see `exposed`.
    """
    field = field.cpu()
    target = None if target is None else target.cpu()
    exposure = field if target is None else target
    field = exposed(field, exposure)
    target = None if target is None else exposed(target, exposure)
    volumes = [field] if target is None else [field, target, (field - target).abs() * ERROR_GAIN]
    rows = []
    for axis in range(3):
        size = shown_size(field.shape[1:], spacing, axis)
        at = evenly(field.shape[1 + axis], count)
        for volume in volumes:
            planes = [plane_picture(volume.select(1 + axis, index), size) for index in at]
            rows.append(np.concatenate([np.pad(p, ((2, 2), (2, 2), (0, 0)), constant_values=40) for p in planes], 1))
    width = max(row.shape[1] for row in rows)
    return np.concatenate([np.pad(r, ((0, 0), (0, width - r.shape[1]), (0, 0)), constant_values=40) for r in rows])


def save_slice_sheet(
    path: str | Path,
    field: Tensor,
    target: Tensor | None = None,
    *,
    count: int = 5,
    spacing: Sequence[float] | None = None,
) -> Path:
    """Writes `slice_sheet` as a picture. Returns the path."""
    save_bytes(path, slice_sheet(field, target, count=count, spacing=spacing))
    return Path(path)


def mip_frames(
    field: Tensor, *, frames: int = 48, axis: int = 2, spacing: Sequence[float] | None = None
) -> list[np.ndarray]:
    """Draws maximum-intensity projections of a volume that turns about one of its axes.

    Args:
        field: (C, n0, n1, n2), values in [0, 1].
        frames: Number of pictures for a full turn.
        axis: Array axis that stays upright.
        spacing: Edges of a voxel along the array's axes, for pictures in the right proportions. Equal by default.

    Returns:
        uint8 pictures (H, W, 3) with even sides, as video codecs require.
    """
    volume = torch.movedim(exposed(field.cpu(), field.cpu()), 1 + axis, 1)  # [C, up, a, b]
    channels, height, a, b = volume.shape
    pixels = list(_pixels(field.shape[1:], spacing))
    tall = pixels.pop(axis)
    side = math.ceil(math.hypot(*pixels))
    # Every plane across the axis has the same rotation, so one 2D sampling takes all planes as channels.
    planes = volume.reshape(1, channels * height, a, b)
    ticks = (torch.arange(side, dtype=torch.float32) - (side - 1) / 2) * 2
    depth, across = torch.meshgrid(ticks, ticks, indexing="ij")
    pictures = []
    for i in range(frames):
        angle = 2 * math.pi * i / frames
        # From pixels to voxel coordinates, from -1 at the first voxel to 1 at the last.
        first = (math.cos(angle) * depth - math.sin(angle) * across) * (a / pixels[0] / max(a - 1, 1))
        second = (math.sin(angle) * depth + math.cos(angle) * across) * (b / pixels[1] / max(b - 1, 1))
        turned = F.grid_sample(planes, torch.stack([second, first], -1)[None], align_corners=True)
        picture = turned.reshape(channels, height, side, side).amax(2).flip(1)  # [C, up, across]
        picture = _resized(picture, (tall, side))
        picture = F.pad(picture, (0, side % 2, 0, tall % 2))
        pictures.append(_grey_or_colour(picture))
    return pictures


def save_mip_video(
    path: str | Path,
    field: Tensor,
    *,
    frames: int = 48,
    axis: int = 2,
    spacing: Sequence[float] | None = None,
    fps: int = 16,
) -> Path:
    """Writes `mip_frames` as an MP4. Returns the path."""
    write_video(path, mip_frames(field, frames=frames, axis=axis, spacing=spacing), fps=fps)
    return Path(path)
