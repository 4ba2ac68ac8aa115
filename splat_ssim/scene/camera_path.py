"""Camera paths from files: nerfstudio's camera paths, and transforms.json."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from splat_ssim.scene.data import Scene, View
from splat_ssim.scene.data.lens import Pinhole, check_pose
from splat_ssim.scene.data.placement import moved_viewmat
from splat_ssim.scene.data.scene import SceneError
from splat_ssim.scene.data.transforms import (
    merged,
    opengl_to_viewmat,
    read_camera,
    read_frames,
    read_json,
    read_number,
)

#: Frames a second if the file does not state a rate.
FPS = 30.0
#: Largest number of pixels of a picture. A larger one means a mistake in the file.
_LARGEST = 2**26


@dataclass
class CameraPath:
    """A sequence of cameras. Their images only have a size."""

    views: list[View]
    fps: float
    #: What was assumed or left out, a line each.
    notes: list[str] = field(default_factory=list)


def read_path(path: Path, scene: Scene, transform: Path | None = None) -> CameraPath:
    """Reads a camera path.

    Args:
        path: nerfstudio's camera_path.json (camera_path with camera_to_world and fov, render_width, render_height, fps
            or seconds), or a transforms.json, whose frames are used in their order with the file's lens. Poses have
            OpenGL's axes and the coordinates of the scene's files.
        scene: Scene whose offset is subtracted from the poses.
        transform: nerfstudio's dataparser_transforms.json (transform, scale). Its transform is undone, for a path in
            coordinates that nerfstudio chose.

    Raises:
        SceneError: A file is not as required. The message names it.
    """
    content = read_json(path)
    if "camera_path" in content:
        found = _nerfstudio(content, path)
    elif "frames" in content:
        found = _transforms(path)
    else:
        raise SceneError(f"{path}: required a 'camera_path' or 'frames', got {', '.join(content) or 'an empty object'}")
    undo = None if transform is None else _transform(transform)
    for view in found.views:
        matrix = view.viewmat.numpy()
        if undo is not None:
            matrix = _undone(matrix, *undo)
        view.viewmat = moved_viewmat(torch.from_numpy(matrix), scene.offset).float()
    return found


def _nerfstudio(content: dict[str, Any], path: Path) -> CameraPath:
    frames = content["camera_path"]
    if not isinstance(frames, list) or not frames:
        raise SceneError(f"{path}: required a non-empty list 'camera_path', got {type(frames).__name__}")
    kind = content.get("camera_type", "perspective")
    if kind != "perspective":
        raise SceneError(f"{path}: required camera_type 'perspective', got {kind!r:.80}")
    width, height = (_pixels(content, f"render_{side}", path) for side in ("width", "height"))
    _check_size(width, height, path)
    views = []
    for index, frame in enumerate(frames):
        where = f"{path}: camera_path[{index}]"
        if not isinstance(frame, dict):
            raise SceneError(f"{where}: required an object, got {type(frame).__name__}")
        try:
            matrix = np.asarray(frame.get("camera_to_world"), dtype=np.float64).reshape(4, 4)
        except (TypeError, ValueError, OverflowError):
            raise SceneError(f"{where}: required the 16 numbers of camera_to_world, row by row") from None
        angle = read_number(frame, "fov", where)
        if not 0 < angle < 180:
            raise SceneError(f"{where}: required a fov in (0, 180) degrees, got {angle:g}")
        focal = 0.5 * height / math.tan(math.radians(0.5 * angle))
        camera = Pinhole(width, height, focal, focal, 0.5 * width, 0.5 * height)
        views.append(_view(f"{index:05d}", opengl_to_viewmat(check_pose(matrix, where)), camera))
    return CameraPath(views, *_fps(content, len(frames), path))


def _transforms(path: Path) -> CameraPath:
    content, frames, notes = read_frames(path)
    views, distorted = [], 0
    size = None
    for index, frame in enumerate(frames):
        where = f"{path}: frame {index}"
        fields = merged(content, frame)
        for key in "wh":
            read_number(fields, key, where)
        camera = read_camera(fields, where, (0, 0))
        distorted += not isinstance(camera, Pinhole)
        _check_size(camera.width, camera.height, where)
        size = size or (camera.width, camera.height)
        if (camera.width, camera.height) != size:
            raise SceneError(f"{where}: required pictures of one size, {size}, got {(camera.width, camera.height)}")
        views.append(_view(frame["file_path"], opengl_to_viewmat(frame["transform_matrix"]), camera))
    if distorted:
        notes.append(f"{path.name}: {distorted} of {len(frames)} lenses distort; they are drawn without distortion")
    fps, more = _fps(content, len(frames), path)
    return CameraPath(views, fps, [*notes, *more])


def _view(name: str, viewmat: np.ndarray, camera: Any) -> View:
    """A view of the camera's size with an empty picture. Its viewmat stays in float64 for now."""
    K = torch.from_numpy(camera.calibration_matrix()).float()
    # One pixel in memory, expanded to the whole picture.
    image = torch.zeros(1, 1, 3, dtype=torch.uint8).expand(camera.height, camera.width, 3)
    return View(name, torch.from_numpy(viewmat), K, image)


def _pixels(content: dict[str, Any], key: str, path: Path) -> int:
    value = read_number(content, key, path)
    if value < 1 or value != int(value):
        raise SceneError(f"{path}: required a positive whole number {key!r}, got {value:g}")
    return int(value)


def _check_size(width: int, height: int, where: Path | str) -> None:
    if width * height > _LARGEST:
        raise SceneError(f"{where}: required pictures of at most {_LARGEST} pixels, got {width}x{height}")


def _fps(content: dict[str, Any], count: int, path: Path) -> tuple[float, list[str]]:
    """Frames a second, and a note if the rate is assumed."""
    if content.get("fps") is not None:
        fps = read_number(content, "fps", path)
    elif content.get("seconds") is not None:
        seconds = read_number(content, "seconds", path)
        fps = count / seconds if seconds > 0 else 0.0
    else:
        return FPS, [f"{path.name}: says no fps: {FPS:g} frames a second"]
    if not 0.01 <= fps <= 1000:
        raise SceneError(f"{path}: required 0.01 to 1000 frames a second, got {fps:g}")
    return fps, []


def _transform(path: Path) -> tuple[np.ndarray, float]:
    """The (3, 4) rotation and translation and the scale of a dataparser_transforms.json."""
    content = read_json(path)
    try:
        matrix = np.asarray(content.get("transform"), dtype=np.float64).reshape(3, 4)
    except (TypeError, ValueError, OverflowError):
        raise SceneError(f"{path}: required the 3x4 numbers of 'transform'") from None
    scale = read_number(content, "scale", path)
    if scale <= 0 or not np.isfinite(matrix).all():
        raise SceneError(f"{path}: required a positive scale and a finite transform, got {scale:g}")
    check_pose(np.vstack([matrix, [0, 0, 0, 1]]), f"{path}: 'transform'")
    return matrix, scale


def _undone(viewmat: np.ndarray, transform: np.ndarray, scale: float) -> np.ndarray:
    """Converts a (4, 4) world-to-camera matrix from nerfstudio's coordinates, scale · (R x + t), to the files', x."""
    rotation, translation = transform[:, :3], transform[:, 3]
    result = np.eye(4)
    result[:3, :3] = viewmat[:3, :3] @ rotation
    # R' (s (R x + t)) + t' is this scene's camera in units that are s times as small.
    result[:3, 3] = viewmat[:3, :3] @ translation + viewmat[:3, 3] / scale
    return result


def even(view: View) -> View:
    """The view without its last row or column where the number of them is odd, as video codecs require."""
    return replace(view, image=view.image[: view.height // 2 * 2, : view.width // 2 * 2])
