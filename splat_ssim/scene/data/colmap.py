"""COLMAP scenes: a sparse reconstruction and a folder of images, read by pycolmap."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from splat_ssim.scene.data.images import CAMERA_MODELS, make_view, mask_of_size, read_images
from splat_ssim.scene.data.scene import Scene, SceneError, split_views


def find_model(folder: Path) -> Path | None:
    """The folder of the reconstruction: sparse/0, else sparse; None where neither holds cameras."""
    for candidate in (folder / "sparse" / "0", folder / "sparse"):
        if any((candidate / f"cameras.{suffix}").is_file() for suffix in ("bin", "txt")):
            return candidate
    return None


def load_colmap(
    folder: Path, *, factor: int = 1, test_every: int = 8, background: tuple[float, float, float] = (0.0, 0.0, 0.0)
) -> Scene:
    """Reads a COLMAP scene; see `load_scene`. Distorted images are undistorted."""
    model = find_model(folder)
    if model is None:
        raise SceneError(f"{folder}: required sparse/0/cameras.bin or .txt, got neither")
    reconstruction = _read_model(model)
    for camera in reconstruction.cameras.values():
        if camera.model_name not in CAMERA_MODELS:
            raise SceneError(
                f"{model}: required a camera model among {', '.join(CAMERA_MODELS)}, got {camera.model_name}"
            )
    # Masks of COLMAP's own convention: masks/<image name>.png, black where the image does not count.
    images = sorted((image for image in reconstruction.images.values() if image.has_pose), key=lambda i: i.name)
    if not images:
        raise SceneError(f"{model}: required registered images, got none")
    image_folder, reduce = _image_folder(folder, factor)
    pixels = read_images([image_folder / image.name for image in images], reduce)
    views = []
    for image, values in zip(images, pixels, strict=True):
        viewmat = np.eye(4)
        viewmat[:3] = image.cam_from_world().matrix()
        mask = _read_mask(folder / "masks" / f"{image.name}.png", values.shape[:2])
        camera = reconstruction.cameras[image.camera_id]
        views.append(make_view(image.name, values, viewmat, camera, mask=mask, background=background))
    train, test = split_views(views, test_every)
    # Opaque photographs have no background of their own: the renders' is black.
    transparent = any(view.alpha is not None for view in views)
    points = [point for _, point in sorted(reconstruction.points3D.items())]
    return Scene(
        name=folder.resolve().name,
        train=train,
        test=test,
        points=np.array([point.xyz for point in points], dtype=np.float32).reshape(-1, 3) if points else None,
        colors=np.array([point.color for point in points], dtype=np.float32) / 255.0 if points else None,
        background=background if transparent else (0.0, 0.0, 0.0),
    )


def _read_model(model: Path) -> Any:
    try:
        import pycolmap
    except ImportError:
        raise SceneError(f"{model}: reading COLMAP needs the package pycolmap: pip install pycolmap") from None
    for stem in ("images", "points3D"):
        if not any((model / f"{stem}.{suffix}").is_file() for suffix in ("bin", "txt")):
            raise SceneError(f"{model}: required {stem}.bin or {stem}.txt beside the cameras, got neither")
    try:
        return pycolmap.Reconstruction(str(model))
    except Exception as broken:
        # pycolmap raises whatever its C++ threw; the file is what the user can act on.
        raise SceneError(f"{model}: required a COLMAP reconstruction, got one that does not read: {broken}") from None


def _image_folder(folder: Path, factor: int) -> tuple[Path, int]:
    """The folder to read images from, and by how much to reduce them still."""
    if factor > 1 and (folder / f"images_{factor}").is_dir():
        return folder / f"images_{factor}", 1
    if not (folder / "images").is_dir():
        names = "images" if factor == 1 else f"images_{factor} or images"
        raise SceneError(f"{folder}: required a folder {names}, got neither")
    return folder / "images", factor


def _read_mask(path: Path, size: tuple[int, int]) -> np.ndarray | None:
    if not path.is_file():
        return None
    return mask_of_size(path, size)
