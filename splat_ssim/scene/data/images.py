"""The images of a scene: decoding in parallel, masks, removal of lens distortion."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from splat_ssim.scene.data.scene import SceneError, View
from splat_ssim.trainer import pictures
from splat_ssim.trainer.pictures import over_background

#: Lens models we undo, by COLMAP's name; the first two have no distortion.
CAMERA_MODELS = ("PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "OPENCV_FISHEYE")


def read_image(path: Path, factor: int = 1) -> np.ndarray:
    """As `splat_ssim.trainer.pictures.read_image`.

    Raises:
        SceneError: The file is missing or does not decode.
    """
    try:
        return pictures.read_image(path, factor)
    except pictures.PictureError as broken:
        raise SceneError(str(broken)) from None


def read_images(paths: list[Path], factor: int = 1) -> list[np.ndarray]:
    """All images of a list, decoded in parallel; the first error in list order is raised."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda path: read_image(path, factor), paths))


def mask_of_size(path: Path, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool of a mask image, true where the image counts, resized to `size` by its nearest pixels.

    Whatever is not zero counts, as with COLMAP and nerfstudio; in a file of lossy compression, whatever exceeds half of
    its maximum. A mask may be in the alpha channel.

    Raises:
        SceneError: The file is missing or does not decode.
    """
    try:
        with pictures.opened(path) as file:
            threshold = 0.5 if file.format in ("JPEG", "WEBP", "JPEG2000") else 0.0
            if file.mode in ("1", "L", "I", "F") or file.mode.startswith("I;16"):
                layers = [np.asarray(file)]
            else:
                rgba = np.asarray(file.convert("RGBA"))
                layers = [rgba[..., :3].max(axis=2), rgba[..., 3]]
    except pictures.PictureError as broken:
        raise SceneError(str(broken)) from None
    # Colours that are the same everywhere say nothing where the alpha channel varies.
    if len(layers) == 2 and np.ptp(layers[0]) == 0 and np.ptp(layers[1]) > 0:
        del layers[0]
    mask = np.logical_and.reduce([layer > threshold * layer.max() for layer in layers])
    rows = np.arange(size[0]) * mask.shape[0] // size[0]
    columns = np.arange(size[1]) * mask.shape[1] // size[1]
    return mask[rows[:, None], columns]


def make_view(
    name: str,
    image: np.ndarray,
    viewmat: np.ndarray,
    camera: Any,
    *,
    mask: np.ndarray | None = None,
    background: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> View:
    """A view of a pycolmap camera: intrinsics rescaled to the image's real size, lens distortion undone.

    Args:
        name: File name, for reports and for the order of views.
        image: (H, W, 3 or 4) uint8.
        viewmat: (4, 4) world to camera.
        camera: pycolmap.Camera of any model in CAMERA_MODELS, at any resolution.
        mask: (H, W) bool, at the image's size, or None.
        background: RGB under a transparent image.
    """
    height, width = image.shape[:2]
    camera = rescaled(camera, width, height)
    if camera.model_name not in ("PINHOLE", "SIMPLE_PINHOLE"):
        image, mask, camera = _undistort(image, mask, camera)
    pixels, alpha = over_background(image, background)
    return View(
        name=name,
        viewmat=torch.tensor(viewmat, dtype=torch.float32),
        K=torch.tensor(camera.calibration_matrix(), dtype=torch.float32),
        image=pixels,
        mask=None if mask is None else torch.from_numpy(mask),
        alpha=alpha,
    )


def rescaled(camera: Any, width: int, height: int) -> Any:
    """A copy of a pycolmap camera for another image size."""
    import pycolmap

    camera = pycolmap.Camera(camera.todict())
    if (camera.width, camera.height) != (width, height):
        camera.rescale(width, height)
    return camera


def _undistort(image: np.ndarray, mask: np.ndarray | None, camera: Any) -> tuple[np.ndarray, np.ndarray | None, Any]:
    """Image, mask and pinhole camera without distortion; no pixel of the result lies outside the original."""
    import pycolmap

    def warp(channels: np.ndarray) -> tuple[np.ndarray, Any]:
        bitmap = pycolmap.Bitmap.from_array(np.ascontiguousarray(channels))
        warped, pinhole = pycolmap.undistort_image(pycolmap.UndistortCameraOptions(), bitmap, camera)
        array = warped.to_array()
        return (array[..., None] if array.ndim == 2 else array), pinhole

    color, pinhole = warp(image[..., :3])
    if image.shape[2] == 4:
        alpha, _ = warp(image[..., 3])
        color = np.concatenate([color, alpha[..., :1]], axis=2)
    if mask is not None:
        warped, _ = warp(mask.astype(np.uint8) * 255)
        # A pixel that mixes valid and masked ones is masked.
        mask = warped[..., 0] == 255
    return color, mask, pinhole
