"""Removal of lens distortion: an image as a pinhole camera sees it, and which of its pixels the lens has seen."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

#: Points along each side of an image at which a lens is examined.
_POINTS = 64


def is_distorted(camera: Any) -> bool:
    """Whether the camera's model has lens distortion."""
    return camera.model_name not in ("PINHOLE", "SIMPLE_PINHOLE")


def undistort(image: np.ndarray, mask: np.ndarray | None, camera: Any) -> tuple[np.ndarray, np.ndarray | None, Any]:
    """Image, mask and pinhole camera without distortion; the mask excludes pixels that the lens has not seen."""
    import pycolmap

    def warp(channels: np.ndarray) -> tuple[np.ndarray, Any]:
        bitmap = pycolmap.Bitmap.from_array(np.ascontiguousarray(channels))
        warped, pinhole = pycolmap.undistort_image(pycolmap.UndistortCameraOptions(), bitmap, camera)
        array = warped.to_array()
        return (array[..., None] if array.ndim == 2 else array), pinhole

    if image.shape[2] == 4:
        # Weighted by alpha, so that colours of transparent pixels are not mixed in.
        weighted = np.asarray(Image.fromarray(image).convert("RGBa"))
        color, pinhole = warp(weighted[..., :3])
        alpha, _ = warp(weighted[..., 3])
        joined = np.concatenate([color, alpha[..., :1]], axis=2)
        color = np.asarray(Image.frombytes("RGBa", joined.shape[1::-1], joined.tobytes()).convert("RGBA"))
    else:
        color, pinhole = warp(image)
    if mask is not None:
        warped, _ = warp(mask.astype(np.uint8) * 255)
        # A pixel that mixes valid and masked pixels is masked.
        mask = warped[..., 0] == 255
    seen = seen_pixels(camera)
    return color, seen if mask is None else mask if seen is None else mask & seen, pinhole


def seen_pixels(camera: Any) -> np.ndarray | None:
    """(H, W) bool of an image that `undistort` returns: which pixels the lens has seen. None: all of them.

    Beyond some angle a polynomial turns back, so that rays farther out meet pixels that nearer ones have met.
    """
    return _seen_pixels(camera.model_name, camera.width, camera.height, tuple(camera.params))


def lens_remarks(camera: Any) -> list[str]:
    """What `undistort` does to the images of a camera: the same words for cameras that differ little."""
    import pycolmap

    pinhole = pycolmap.undistort_camera(pycolmap.UndistortCameraOptions(), camera)
    same = (pinhole.width, pinhole.height) == (camera.width, camera.height)
    remarks = [f"undistorted{'' if same else ', to another size'}"]
    seen = seen_pixels(camera)
    if seen is not None:
        part = "for the most part" if seen.mean() < 0.5 else "in part"
        remarks.append(f"masked {part}, where by the lens parameters a pixel is none of the photograph")
    return remarks


@lru_cache(maxsize=16)
def _seen_pixels(model: str, width: int, height: int, params: tuple[float, ...]) -> np.ndarray | None:
    import pycolmap

    camera: Any = pycolmap.Camera(model=model, width=width, height=height, params=params)
    pinhole: Any = pycolmap.undistort_camera(pycolmap.UndistortCameraOptions(), camera)
    columns, rows = (np.linspace(0.5, side - 0.5, _POINTS) for side in (pinhole.width, pinhole.height))
    rays = pinhole.cam_from_img(np.stack(np.meshgrid(columns, rows), -1).reshape(-1, 2))
    points = camera.img_from_cam(np.concatenate([rays, np.ones_like(rays[:, :1])], 1))
    inside = ((points >= 0) & (points <= (width, height))).all(1)
    differences = np.linalg.norm(camera.cam_from_img(points) - rays, axis=1)
    known = inside & (differences <= 1e-3 * (1 + np.linalg.norm(rays, axis=1)))
    if known.all():
        return None
    # A pixel counts if all four points around it do.
    grid = known.reshape(_POINTS, _POINTS)
    cells = grid[:-1, :-1] & grid[:-1, 1:] & grid[1:, :-1] & grid[1:, 1:]
    row, column = (np.arange(side) * (_POINTS - 1) // side for side in (pinhole.height, pinhole.width))
    seen: np.ndarray = cells[row[:, None], column]
    return seen
