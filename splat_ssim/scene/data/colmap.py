"""COLMAP scenes: a sparse reconstruction and a folder of images, read by pycolmap."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from splat_ssim.scene.data.colmap_files import check_binary
from splat_ssim.scene.data.depths import depths_at_points, seen_points
from splat_ssim.scene.data.images import check_found, find_image
from splat_ssim.scene.data.lens import CAMERA_MODELS
from splat_ssim.scene.data.photos import Photo, read_views
from splat_ssim.scene.data.scene import Scene, SceneError, split_views, split_words


def find_models(folder: Path) -> list[Path]:
    """The folders of reconstructions: sparse/0 and sparse first, then the others in sparse by name."""
    sparse = folder / "sparse"
    others = sorted(path for path in sparse.iterdir() if path.is_dir()) if sparse.is_dir() else []
    candidates = dict.fromkeys([sparse / "0", sparse, *others])
    return [path for path in candidates if any((path / f"cameras.{suffix}").is_file() for suffix in ("bin", "txt"))]


def load_colmap(
    folder: Path,
    *,
    factor: int = 1,
    test_every: int = 8,
    background: tuple[float, float, float] = (0.0, 0.0, 0.0),
    cache: Path | None = None,
    model: str | None = None,
    depth_unit: float | None = None,
) -> Scene:
    """Reads a COLMAP scene; see `load_scene`. Distorted images are undistorted.

    Of several models the one with the most images is read, unless `model` names a folder; "" is the first one.
    """
    notes: list[str] = []
    chosen = _choose_model(folder, model, notes)
    first = chosen == find_models(folder)[0]
    scene = _load_model(folder, chosen, factor, test_every, background, cache, notes, depth_unit is not None)
    scene.model = "" if first else chosen.relative_to(folder).as_posix()
    return scene


def _choose_model(folder: Path, named: str | None, notes: list[str]) -> Path:
    models = find_models(folder)
    if not models:
        raise SceneError(f"{folder}: required sparse/0/cameras.bin or .txt, got neither")
    if named is not None:
        if named and folder / named not in models:
            raise SceneError(f"{folder}: required the COLMAP model {named}, which the run was trained on, got none")
        return folder / named if named else models[0]
    if len(models) == 1:
        return models[0]
    counts = [_image_count(path) for path in models]
    largest = int(np.argmax(counts))
    listed = ", ".join(f"{path.relative_to(folder)} of {count}" for path, count in zip(models, counts, strict=True))
    notes.append(f"of the COLMAP models {listed} images {models[largest].relative_to(folder)} is read")
    return models[largest]


def _image_count(model: Path) -> int:
    """The number of images of a model, without reading all of it. 0 if it cannot be determined."""
    binary, text = model / "images.bin", model / "images.txt"
    if binary.is_file():
        with binary.open("rb") as file:
            return int.from_bytes(file.read(8), "little")
    if not text.is_file():
        return 0
    # The tenth word of an image's line is its name. Lines of points have three numbers for each point.
    with text.open(encoding="utf-8", errors="replace") as lines:
        words = [line.split() for line in lines if not line.startswith("#")]
    return sum(len(line) >= 10 and not _is_number(line[9]) for line in words)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _load_model(
    folder: Path,
    model: Path,
    factor: int,
    test_every: int,
    background: tuple[float, float, float],
    cache: Path | None,
    notes: list[str],
    with_depths: bool,
) -> Scene:
    reconstruction = _read_model(model)
    for camera in reconstruction.cameras.values():
        if camera.model_name not in CAMERA_MODELS:
            raise SceneError(
                f"{model}: required a camera model among {', '.join(CAMERA_MODELS)}, got {camera.model_name}: "
                "undistort the images by `colmap image_undistorter`"
            )
    try:
        images = sorted((image for image in reconstruction.images.values() if image.has_pose), key=lambda i: i.name)
    except UnicodeDecodeError as broken:
        raise SceneError(f"{model}: required names of images in UTF-8, got another encoding: {broken}") from None
    if not images:
        raise SceneError(f"{model}: required registered images, got none")
    if len(images) < len(reconstruction.images):
        notes.append(f"{model}: images without a pose, left out: {len(reconstruction.images) - len(images)}")
    files, factors = _image_files(folder, [image.name for image in images], factor)
    try:
        check_found([folder / "images" / image.name for image in images], files, "images", notes)
    except SceneError as error:
        raise SceneError(f"{error}{_blank_in_name(model, images, files)}") from None
    there = [
        (image, file, reduce) for image, file, reduce in zip(images, files, factors, strict=True) if file is not None
    ]
    masks = _mask_files(folder, [image.name for image, *_ in there], notes)
    photos = []
    for (image, file, reduce), mask in zip(there, masks, strict=True):
        viewmat = np.eye(4)
        viewmat[:3] = image.cam_from_world().matrix()
        camera, where = reconstruction.cameras[image.camera_id], f"{model}: image {image.name}"
        photos.append(Photo(image.name, file, viewmat, camera, where, reduce, mask))
    views = read_views(photos, background, cache, notes)
    if with_depths:
        for view, (image, *_) in zip(views, there, strict=True):
            view.sparse_depth = depths_at_points(view, seen_points(image, reconstruction))
    train, test = split_views(views, test_every)
    # Opaque photographs say nothing about the background, so renders have a black one.
    transparent = any(view.is_transparent for view in views)
    points = [point for _, point in sorted(reconstruction.points3D.items())]
    return Scene(
        name=folder.resolve().name,
        train=train,
        test=test,
        points=np.array([point.xyz for point in points], dtype=np.float64).reshape(-1, 3) if points else None,
        colors=np.array([point.color for point in points], dtype=np.float32) / 255.0 if points else None,
        background=background if transparent else (0.0, 0.0, 0.0),
        split=split_words(test_every),
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
    check_binary(model)
    try:
        return pycolmap.Reconstruction(str(model))
    except Exception as broken:
        # pycolmap raises errors of its C++ code, so name the file, which the user can do something about.
        raise SceneError(f"{model}: required a COLMAP reconstruction, got one that does not read: {broken}") from None


def _image_files(folder: Path, names: list[str], factor: int) -> tuple[list[Path | None], list[int]]:
    """The file of each image, None if there is none, and the factor by which it must still be reduced."""
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
    """A hint if COLMAP's reader of images.txt has cut names at a space."""
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
