"""COLMAP scenes: a sparse reconstruction and a folder of images, read by pycolmap."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from splat_ssim.scene.data.images import check_found, find_image, make_view, mask_of_size, read_images
from splat_ssim.scene.data.lens import CAMERA_MODELS
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
                f"{model}: required a camera model among {', '.join(CAMERA_MODELS)}, got {camera.model_name}: "
                "undistort the images by `colmap image_undistorter`"
            )
    images = sorted((image for image in reconstruction.images.values() if image.has_pose), key=lambda i: i.name)
    if not images:
        raise SceneError(f"{model}: required registered images, got none")
    notes: list[str] = []
    files, factors = _image_files(folder, [image.name for image in images], factor)
    try:
        check_found([folder / "images" / image.name for image in images], files, "images", notes)
    except SceneError as error:
        raise SceneError(f"{error}{_blank_in_name(model, images, files)}") from None
    there = [
        (image, file, reduce) for image, file, reduce in zip(images, files, factors, strict=True) if file is not None
    ]
    pixels = read_images([file for _, file, _ in there], [reduce for *_, reduce in there])
    masks = _mask_files(folder, [image.name for image, *_ in there], notes)
    views = []
    for (image, file, _), mask_file, values in zip(there, masks, pixels, strict=True):
        viewmat = np.eye(4)
        viewmat[:3] = image.cam_from_world().matrix()
        mask = None if mask_file is None else mask_of_size(mask_file, values.shape[:2])
        camera, where = reconstruction.cameras[image.camera_id], f"{model}: image {image.name}"
        views.append(
            make_view(image.name, values, viewmat, camera, mask=mask, background=background, where=where, file=file)
        )
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
        notes=notes,
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


def _image_files(folder: Path, names: list[str], factor: int) -> tuple[list[Path | None], list[int]]:
    """The files to read, None where there is none, and by how much to reduce each still."""
    ready, whole = folder / f"images_{factor}", folder / "images"
    if not whole.is_dir() and not (factor > 1 and ready.is_dir()):
        expected = "images" if factor == 1 else f"images_{factor} or images"
        raise SceneError(f"{folder}: required a folder {expected}, got {'none' if factor == 1 else 'neither'}")
    files, factors = [], []
    for name in names:
        file = find_image(ready / name) if factor > 1 else None
        factors.append(1 if file is not None else factor)
        files.append(file if file is not None else find_image(whole / name))
    return files, factors


def _blank_in_name(model: Path, images: list[Any], files: list[Path | None]) -> str:
    """A hint for names that COLMAP's reader of images.txt cuts at a blank."""
    cut = any(file is None and not Path(image.name).suffix for image, file in zip(images, files, strict=True))
    if cut and not (model / "images.bin").is_file():
        return " (COLMAP cuts names in images.txt at a blank: rename the images, or convert the model to images.bin)"
    return ""


def _mask_files(folder: Path, names: list[str], notes: list[str]) -> list[Path | None]:
    """The mask of each image: masks/<name>.png, as COLMAP has it, or masks/<stem> with the extension of an image."""
    masks = folder / "masks"
    if not masks.is_dir():
        return [None] * len(names)
    files = []
    for name in names:
        own = masks / f"{name}.png"
        files.append(own if own.is_file() else find_image(masks / name))
    found = sum(file is not None for file in files)
    if found < len(names):
        notes.append(f"{masks}: masks for {found} of {len(names)} images, named <image>.png or as the image is")
    return files
