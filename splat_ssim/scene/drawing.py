"""Files of pictures and videos of a scene: its views, an orbit, or a camera path from a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from splat_ssim._files import check_output_folder
from splat_ssim.errors import UserError
from splat_ssim.scene.camera_path import even, read_path
from splat_ssim.scene.cameras import orbit
from splat_ssim.scene.data import View
from splat_ssim.scene.modes import Scale, check_mode, depth_scale, draw
from splat_ssim.trainer.pictures import SUFFIXES, comparison, save_image, to_bytes, write_video

if TYPE_CHECKING:
    from splat_ssim.scene.training import SceneTask


def render_views(task: SceneTask, views: str, output: Path, frames: int, mode: str = "rgb") -> None:
    """Draws an orbit as a video, or the training or test views as PNG files.

    If `output` has no suffix, an orbit is drawn as PNG files too.

    Args:
        task: Task with the scene and its model.
        views: orbit, train or test.
        output: File or folder to write.
        frames: Number of frames of the orbit.
        mode: As for `scene.modes.draw`.

    Raises:
        UserError: There are no such views, or they are too small for a video.
    """
    check_mode(mode)
    if views == "orbit":
        check_orbit(task.scene.train[0])
        _write(task, orbit(task.scene.train, frames), output, mode, 30)
        return
    chosen = getattr(task.scene, views)
    if not chosen:
        raise UserError(f"--views {views} requires {views} views, got a scene without any: {task.config.data_dir}")
    _write_pictures(task, chosen, output, mode)


def render_path(task: SceneTask, path: Path, output: Path, mode: str = "rgb", transform: Path | None = None) -> None:
    """Draws a camera path as a video, or as a folder of PNG files if `output` has no suffix.

    Args:
        task: Task with the scene and its model.
        path: File of the path, see `scene.camera_path.read_path`.
        output: File or folder to write.
        mode: As for `scene.modes.draw`.
        transform: File of the transform, see `scene.camera_path.read_path`.

    Raises:
        UserError: A file is not as required, or its pictures are too small for a video.
    """
    check_mode(mode)
    found = read_path(path, task.scene, transform)
    views = found.views
    if output.suffix:
        check_orbit(views[0])
        views = [even(view) for view in views]
    first = views[0]
    for note in found.notes:
        print(note)
    print(f"{path}: {len(views)} cameras, {first.width}x{first.height} pixels, {found.fps:g} frames a second")
    _write(task, views, output, mode, found.fps)


def _write(task: SceneTask, views: Sequence[View], output: Path, mode: str, fps: float) -> None:
    """Writes a video or, if the output has no suffix, a folder of PNG files."""
    if not output.suffix:
        _write_pictures(task, views, output, mode)
        return
    scale = _told_scale(task, views, mode)
    write_video(output, (to_bytes(draw(task, view, mode, scale)) for view in views), fps=fps)


def _write_pictures(task: SceneTask, views: Sequence[View], output: Path, mode: str) -> None:
    """Writes a picture of each view to a folder.

    Raises:
        UserError: The name is of a video or a picture, or the folder holds further numbered pictures, which would pass
            for some of these, or pictures of these names that may be the photographs.
    """
    if output.suffix.lower() in (".mp4", *SUFFIXES):
        raise UserError(f"{output}: required a folder for {len(views)} pictures, got a name with {output.suffix}")
    files = [output / f"{index:04d}.png" for index in range(len(views))]
    other = sorted(file for file in output.glob("*.png") if file.stem.isdigit() and file not in files)
    if other:
        raise UserError(f"{output}: required a folder for {len(views)} pictures, got one with {other[0].name} already")
    there, own = (Path(place).resolve() for place in (task.config.data_dir, task.config.result_dir or "."))
    inside = there in output.resolve().parents and own not in output.resolve().parents
    if inside and (photo := next((file for file in files if file.exists()), None)) is not None:
        raise UserError(f"{output}: required a folder apart from {there}, got one there with {photo.name} already")
    check_output_folder(output)
    scale = _told_scale(task, views, mode)
    for file, view in zip(files, views, strict=True):
        save_image(file, draw(task, view, mode, scale))


def _told_scale(task: SceneTask, views: Sequence[View], mode: str) -> Scale | None:
    """Chooses one scale for all depths and prints it. None in other modes."""
    if mode != "depth":
        return None
    scale = depth_scale(task, views)
    print(scale)
    return scale


def check_orbit(view: View) -> None:
    """Raises UserError if views are too small for a video, whose sides must be even and not 0."""
    if min(view.height, view.width) < 2:
        raise UserError(f"a video requires images of at least 2x2 pixels, got {view.height}x{view.width}")


@torch.no_grad()
def previews(task: SceneTask) -> dict[str, Tensor]:
    """Render | truth | error of the first test view, (3, H, 3 W) in [0, 1], by its name."""
    view = task.evaluated[0]
    pred = task.picture(view).permute(0, 3, 1, 2).clamp(0, 1).cpu()
    return {view.name: comparison(pred, view.pixels().cpu())[0]}
