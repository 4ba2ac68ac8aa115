"""Depths of images: from a file for each, or of the points that a reconstruction has seen in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from splat_ssim._files import is_file
from splat_ssim.scene.data.lens import fits
from splat_ssim.scene.data.photos import Photo
from splat_ssim.scene.data.scene import SceneError, View
from splat_ssim.scene.data.transforms import read_path
from splat_ssim.trainer import pictures


def depth_map(frame: dict[str, Any], folder: Path, photo: Photo, view: View, unit: float) -> Tensor | None:
    """Reads the depths of a nerfstudio frame. Returns None if the frame names no depth file.

    The file is an image of one channel, usually of 16 bits, or .npy. It is resized by its nearest pixels. The result is
    (H, W) float32 in the scene's unit, 0 where the depth is unknown.

    Args:
        frame: Frame of transforms.json.
        folder: Scene folder.
        photo: The photograph that the view was made from.
        view: The image and its camera.
        unit: Size of one unit of the file, in units of the scene.

    Raises:
        SceneError: The file is missing, cannot be read, or does not fit the image.
    """
    named = read_path(frame, "depth_file_path", photo.where)
    if named is None:
        return None
    path = folder / named
    if not is_file(path):
        raise SceneError(f"{path}: required the depth file that {photo.where} names, got nothing there")
    if photo.camera.model_name not in ("PINHOLE", "SIMPLE_PINHOLE"):
        raise SceneError(
            f"{photo.where}: depth_file_path requires an image without lens distortion, got the camera model "
            f"{photo.camera.model_name}: undistort images and depths"
        )
    values = _read(path)
    if not fits(values.shape, (view.height, view.width)):
        raise SceneError(
            f"{path}: required a depth map of its image's shape, got {values.shape[1]}x{values.shape[0]} and an image "
            f"of {view.width}x{view.height}"
        )
    rows = np.arange(view.height) * values.shape[0] // view.height
    columns = np.arange(view.width) * values.shape[1] // view.width
    depth = (unit * values[rows[:, None], columns].astype(np.float64)).astype(np.float32)
    # Depths that are not finite or not in front of the camera are unknown.
    return torch.from_numpy(np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(0)))


def _read(path: Path) -> np.ndarray:
    """(H, W) numbers of a depth file."""
    if path.suffix.lower() == ".npy":
        try:
            values: np.ndarray = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as broken:
            raise SceneError(f"{path}: required an array of depths, got one that does not read: {broken}") from None
    else:
        try:
            with pictures.opened(path) as file:
                if file.mode not in ("L", "I", "F") and not file.mode.startswith("I;16"):
                    raise SceneError(f"{path}: required depths of one channel, got an image of mode {file.mode}")
                values = np.asarray(file)
        except pictures.PictureError as broken:
            raise SceneError(str(broken)) from None
    values = values[..., 0] if values.ndim == 3 and values.shape[2] == 1 else values
    if values.ndim != 2 or values.dtype.kind not in "uif" or values.size == 0:
        raise SceneError(f"{path}: required depths of one channel, got {values.dtype} of shape {values.shape}")
    return values


def seen_points(image: Any, reconstruction: Any) -> np.ndarray:
    """(M, 3) float64 positions of the points that a pycolmap image has seen."""
    seen = [point.point3D_id for point in image.points2D if point.has_point3D()]
    points = [reconstruction.points3D[index].xyz for index in seen if index in reconstruction.points3D]
    return np.array(points, dtype=np.float64).reshape(-1, 3)


def depths_at_points(view: View, points: np.ndarray) -> Tensor:
    """(M, 3) float32: columns, rows and depths of the points (N, 3) that lie in the image, in front of the camera."""
    camera = torch.from_numpy(points) @ view.viewmat[:3, :3].double().T + view.viewmat[:3, 3].double()
    depth = camera[:, 2]
    pixels = (camera @ view.K.double().T)[:, :2] / depth[:, None].clamp(min=1e-12)
    inside = (pixels >= 0).all(1) & (pixels[:, 0] < view.width) & (pixels[:, 1] < view.height) & (depth > 0)
    return torch.cat([pixels, depth[:, None]], 1)[inside].float()
