"""nerfstudio scenes: transforms.json with intrinsics for all frames or for each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from splat_ssim.ply import PlyError, read_ply
from splat_ssim.scene.data.images import CAMERA_MODELS, make_view, mask_of_size, read_images
from splat_ssim.scene.data.scene import (
    Scene,
    SceneError,
    View,
    opengl_to_viewmat,
    read_frames,
    read_number,
    split_views,
)


def load_nerfstudio(
    folder: Path, *, factor: int = 1, test_every: int = 8, background: tuple[float, float, float] = (0.0, 0.0, 0.0)
) -> Scene:
    """Reads a nerfstudio scene; see `load_scene`.

    Read: fl_x, fl_y, cx, cy, w, h and the distortion k1…k4, p1, p2 of the file or of a frame, camera_model,
    mask_path, ply_file_path, {train,val,test}_filenames. Not read: depth_file_path, since no loss here asks for depth.
    """
    path = folder / "transforms.json"
    content, frames = read_frames(path)
    files = [folder / frame["file_path"] for frame in frames]
    reduced = [_reduced(file, folder, factor) for file in files]
    images = read_images([file for file, _ in reduced])
    views = []
    for frame, (_, reduce), image in zip(frames, reduced, images, strict=True):
        if reduce > 1:
            height, width = (size // reduce for size in image.shape[:2])
            image = image[: height * reduce, : width * reduce].reshape(height, reduce, width, reduce, -1)
            image = image.mean((1, 3)).round().astype(np.uint8)
        camera = _camera({**content, **frame}, path)
        viewmat = opengl_to_viewmat(frame["transform_matrix"])
        mask = mask_of_size(folder / frame["mask_path"], image.shape[:2]) if frame.get("mask_path") else None
        views.append(make_view(frame["file_path"], image, viewmat, camera, mask=mask, background=background))
    train, test = _split(content, views, test_every, path)
    points, colors = _points(folder, content, path)
    has_alpha = any(view.alpha is not None for view in views)
    return Scene(
        name=folder.resolve().name,
        train=train,
        test=test,
        points=points,
        colors=colors,
        background=background if has_alpha else (0.0, 0.0, 0.0),
    )


def _reduced(file: Path, folder: Path, factor: int) -> tuple[Path, int]:
    """The file to read and by how much to reduce it still: images_4/a.png stands for images/a.png at factor 4."""
    if factor > 1 and file.parent.name == "images":
        ready = file.parent.parent / f"images_{factor}" / file.name
        if ready.is_file():
            return ready, 1
    return file, factor


def _camera(content: dict[str, Any], path: Path) -> Any:
    """The pycolmap camera of a frame: its own intrinsics over those of the file."""
    try:
        import pycolmap
    except ImportError:
        raise SceneError(
            f"{path}: reading nerfstudio scenes needs the package pycolmap: pip install pycolmap"
        ) from None
    width, height = (int(read_number(content, key, path)) for key in ("w", "h"))
    if "fl_x" in content:
        focal_x = read_number(content, "fl_x", path)
    else:
        focal_x = 0.5 * width / np.tan(0.5 * read_number(content, "camera_angle_x", path))
    focal_y = read_number(content, "fl_y", path, focal_x)
    center = [read_number(content, "cx", path, 0.5 * width), read_number(content, "cy", path, 0.5 * height)]
    model = content.get("camera_model", "OPENCV")
    if model not in CAMERA_MODELS:
        raise SceneError(f"{path}: required a camera_model among {', '.join(CAMERA_MODELS)}, got {model!r}")
    if model == "OPENCV_FISHEYE":
        names = ("k1", "k2", "k3", "k4")
    else:
        # The simpler models are OPENCV with terms that are zero.
        names = ("k1", "k2", "p1", "p2")
        for name in ("k3", "k4"):
            if read_number(content, name, path, 0.0) != 0:
                raise SceneError(f"{path}: required {name} = 0 for camera_model {model}, got {content[name]}")
    distortion = [read_number(content, name, path, 0.0) for name in names]
    if not any(distortion) and model != "OPENCV_FISHEYE":
        return pycolmap.Camera(model="PINHOLE", width=width, height=height, params=[focal_x, focal_y, *center])
    model = model if model == "OPENCV_FISHEYE" else "OPENCV"
    return pycolmap.Camera(model=model, width=width, height=height, params=[focal_x, focal_y, *center, *distortion])


def _split(content: dict[str, Any], views: list[View], test_every: int, path: Path) -> tuple[list[View], list[View]]:
    """The split the file names, else every `test_every`-th view."""
    if "train_filenames" not in content:
        return split_views(views, test_every)
    by_name = {view.name: view for view in views}
    splits = {}
    for key in ("train_filenames", "val_filenames", "test_filenames"):
        names = content.get(key, [])
        unknown = [name for name in names if name not in by_name]
        if unknown:
            raise SceneError(f"{path}: {key}: required names of frames, got {unknown[0]!r}")
        splits[key] = [by_name[name] for name in names]
    return splits["train_filenames"], splits["test_filenames"] or splits["val_filenames"]


def _points(folder: Path, content: dict[str, Any], path: Path) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Positions and colours of the point cloud the file names."""
    if not content.get("ply_file_path"):
        return None, None
    cloud = folder / content["ply_file_path"]
    if not cloud.is_file():
        raise SceneError(f"{cloud}: required the point cloud that {path.name} names, got nothing there")
    try:
        vertices = read_ply(cloud)
    except PlyError as broken:
        raise SceneError(str(broken)) from None
    if not {"x", "y", "z"} <= set(vertices):
        raise SceneError(f"{cloud}: required vertex properties x, y, z, got {', '.join(vertices)}")
    points = np.stack([vertices[key] for key in "xyz"], axis=1).astype(np.float32)
    if not {"red", "green", "blue"} <= set(vertices):
        return points, None
    return points, np.stack([vertices[key] for key in ("red", "green", "blue")], axis=1).astype(np.float32) / 255.0
