"""The images of a scene: found by name, decoded, masked, and made views."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from splat_ssim._files import is_file
from splat_ssim.scene.data.lens import check_camera, check_pose, check_shape, fits, proportions, rescaled
from splat_ssim.scene.data.scene import SceneError, View, shortened
from splat_ssim.scene.data.undistortion import is_distorted, undistort
from splat_ssim.trainer import pictures

#: Extensions as they are tried if a name has none or a file has another one: .png, .PNG and .Png.
_TRIED = [form(suffix) for form in (str.lower, str.upper, str.title) for suffix in pictures.SUFFIXES]
#: Extensions of images, which a name may have had before its file was converted. Others, as in v1.5, are of the name.
_OF_IMAGES = (*pictures.SUFFIXES, *".heic .heif .gif .jp2 .tga .ppm .exr .dng .cr2 .nef .arw".split())
#: Formats whose compression blurs edges, and the compressions of TIFF that do.
_LOSSY, _LOSSY_TIFF = ("JPEG", "MPO", "WEBP", "JPEG2000", "AVIF", "HEIF"), ("jpeg", "tiff_jpeg", "webp")


@contextmanager
def _scene_errors() -> Iterator[None]:
    """Turns the error of a picture that does not read into a SceneError."""
    try:
        yield
    except pictures.PictureError as broken:
        raise SceneError(str(broken)) from None


def read_image(path: Path, factor: int = 1) -> np.ndarray:
    """`splat_ssim.trainer.pictures.read_image`, with errors as SceneError.

    Raises:
        SceneError: The file is missing or cannot be decoded.
    """
    with _scene_errors():
        return pictures.read_image(path, factor)


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) of an image file. Its pixels are not decoded."""
    with _scene_errors(), pictures.opened(path) as file:
        return file.size


def file_remarks(path: Path) -> list[str]:
    """As `splat_ssim.trainer.pictures.remarks`."""
    with _scene_errors():
        return pictures.remarks(path)


def find_image(file: Path) -> Path | None:
    """Finds the file of an image, under its name or with another extension. Returns None if there is none."""
    if is_file(file):
        return file
    if not file.name:  # the root, to which no extension can be added
        return None
    for stem in (file.name, file.stem) if file.suffix.lower() in _OF_IMAGES else (file.name,):
        for suffix in _TRIED:
            candidate = file.with_name(stem + suffix)
            if is_file(candidate):
                return candidate
    return None


def check_found(files: Sequence[Path], found: Sequence[Path | None], where: str, notes: list[str]) -> None:
    """Adds a note on images that are left out because they are missing.

    Raises:
        SceneError: At least half of the images are missing. The message names the first.
    """
    missing = [file for file, image in zip(files, found, strict=True) if image is None]
    if not missing:
        return
    if 2 * len(missing) >= len(files):
        more = f", as for {len(missing)} of {len(files)} views" if len(files) > 1 else ""
        raise SceneError(f"{missing[0]}: required an image, got nothing there{more} of {where}")
    names = shortened([file.name for file in missing])
    notes.append(f"left out of {where}, since their images are missing: {names} of {len(files)}")


def mask_of_size(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Reads a mask image as (H, W) bool, true where the image counts, resized to `size` by its nearest pixels.

    Every pixel that is not zero counts, as with COLMAP and nerfstudio; NaN does not. In a format with lossy
    compression, such as JPEG, a pixel counts if it exceeds half of the maximum. The mask may be in the alpha channel.

    Raises:
        SceneError: The file is missing, cannot be decoded, or has another shape than the image.
    """
    with _scene_errors(), pictures.opened(path) as file:
        is_lossy = file.format in _LOSSY or file.info.get("compression") in _LOSSY_TIFF
        threshold = 0.5 if is_lossy else 0.0
        if file.mode in ("1", "L", "I", "F") or file.mode.startswith("I;16"):
            layers = [np.nan_to_num(np.asarray(file))]
        else:
            rgba = np.asarray(file.convert("RGBA"))
            layers = [rgba[..., :3].max(axis=2), rgba[..., 3]]
    # If the colours are constant and the alpha channel varies, the mask is in the alpha channel.
    if len(layers) == 2 and np.ptp(layers[0]) == 0 and np.ptp(layers[1]) > 0:
        del layers[0]
    mask = np.logical_and.reduce([layer > threshold * layer.max() for layer in layers])
    if not fits(mask.shape, size):
        raise SceneError(
            f"{path}: required a mask of its image's shape, got a mask of {mask.shape[1]}x{mask.shape[0]} and an image "
            f"of {size[1]}x{size[0]}"
        )
    rows = np.arange(size[0]) * mask.shape[0] // size[0]
    columns = np.arange(size[1]) * mask.shape[1] // size[1]
    resized: np.ndarray = mask[rows[:, None], columns]
    return resized


def make_view(
    name: str,
    image: np.ndarray,
    viewmat: np.ndarray,
    camera: Any,
    *,
    mask: np.ndarray | None = None,
    background: tuple[float, float, float] = (0.0, 0.0, 0.0),
    where: str | None = None,
    file: Path | None = None,
) -> View:
    """Makes a view: checks image and camera, rescales intrinsics to the image's real size, and undoes lens distortion.

    Args:
        name: File name, for reports and for the order of views.
        image: (H, W, 3 or 4) uint8.
        viewmat: (4, 4) world to camera.
        camera: Pinhole, or a pycolmap.Camera of any model in CAMERA_MODELS, at any resolution.
        mask: (H, W) bool, of the image's size, or None.
        background: RGB behind a transparent image.
        where: Source of the camera, such as file and frame, for messages. By default the name.
        file: Source of the image, for messages. By default the name.

    Returns:
        The view. Its viewmat is float64.

    Raises:
        SceneError: The pose or the camera is not as required, or the image does not fit it.
    """
    height, width = image.shape[:2]
    check_pose(viewmat, f"{where or name}: pose")
    check_camera(camera, where or name)
    check_shape((width, height), camera, file or Path(name))
    of_file = proportions(camera)
    camera = rescaled(camera, width, height)
    if is_distorted(camera):
        try:
            image, mask, camera = undistort(image, mask, camera)
        except (RuntimeError, ValueError) as failed:
            raise SceneError(f"{where or name}: required a lens that can be undistorted, got: {failed}") from None
        check_camera(camera, f"{where or name}: after undistortion")
    return View(
        name=name,
        viewmat=torch.tensor(viewmat, dtype=torch.float64),
        K=torch.tensor(camera.calibration_matrix(), dtype=torch.float32),
        image=torch.from_numpy(np.ascontiguousarray(image) if image.flags.writeable else image.copy()),
        mask=None if mask is None else torch.from_numpy(mask),
        background=background,
        proportions=of_file,
    )
