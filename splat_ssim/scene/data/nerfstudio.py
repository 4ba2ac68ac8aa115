"""nerfstudio scenes: transforms.json with intrinsics for all frames or for each."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from splat_ssim._files import is_file
from splat_ssim.ply import SH0, PlyError, read_ply
from splat_ssim.scene.data.depths import depth_map
from splat_ssim.scene.data.images import check_found, find_image, image_size, read_image
from splat_ssim.scene.data.photos import Photo, read_views
from splat_ssim.scene.data.scene import Scene, SceneError, View, shortened, split_views, split_words
from splat_ssim.scene.data.transforms import (
    frame_mask,
    merged,
    opengl_to_viewmat,
    read_camera,
    read_frames,
    read_path,
    with_slashes,
)

#: Names of the colours of a point cloud; the last are spherical harmonics of Gaussians.
_COLORS = (
    ("red", "green", "blue"),
    ("diffuse_red", "diffuse_green", "diffuse_blue"),
    ("r", "g", "b"),
    ("f_dc_0", "f_dc_1", "f_dc_2"),
)
#: Lists of file names that split the views.
_SPLITS = ("train_filenames", "val_filenames", "test_filenames")


def load_nerfstudio(
    folder: Path,
    *,
    factor: int = 1,
    test_every: int = 8,
    background: tuple[float, float, float] = (0.0, 0.0, 0.0),
    cache: Path | None = None,
    depth_unit: float | None = None,
) -> Scene:
    """Reads a nerfstudio scene; see `load_scene`.

    Read: fl_x, fl_y or camera_angle_x, camera_angle_y, cx, cy, w, h and the distortion k1…k6, p1, p2 of the file or
    of a frame, camera_model, is_fisheye,
    mask_path, ply_file_path, {train,val,test}_filenames; and depth_file_path, where a unit of depth is given.
    """
    path = folder / "transforms.json"
    content, frames, notes = read_frames(path)
    reduced = [_reduced(folder / frame["file_path"], folder, factor) for frame in frames]
    check_found([folder / frame["file_path"] for frame in frames], [file for file, _ in reduced], path.name, notes)
    there = [(index, file, reduce) for index, (file, reduce) in enumerate(reduced) if file is not None]
    photos = []
    for index, file, reduce in there:
        frame, where = frames[index], f"{path}: frame {index}"
        # The full size of an image that is already reduced is the file's size times the factor.
        whole = factor if reduce == 1 else 1
        width, height = (whole * pixels for pixels in image_size(file))
        camera = read_camera(merged(content, frame), where, (width, height))
        viewmat, mask = opengl_to_viewmat(frame["transform_matrix"]), frame_mask(frame, folder, where)
        photos.append(Photo(frame["file_path"], file, viewmat, camera, where, reduce, mask, _read_reduced))
    views = read_views(photos, background, cache, notes)
    if depth_unit is not None:
        for view, photo, (index, *_) in zip(views, photos, there, strict=True):
            view.depth = depth_map(frames[index], folder, photo, view, depth_unit)
    train, test = _split(content, frames, views, test_every, path, notes)
    points, colors = _points(folder, content, path)
    has_alpha = any(view.is_transparent for view in views)
    return Scene(
        name=folder.resolve().name,
        train=train,
        test=test,
        points=points,
        colors=colors,
        background=background if has_alpha else (0.0, 0.0, 0.0),
        split=f"split by {path.name}" if any(content.get(key) for key in _SPLITS) else split_words(test_every),
        notes=notes,
    )


def _read_reduced(file: Path, factor: int) -> np.ndarray:
    """Reads an image at 1/factor of its size. Rows and columns beyond a whole box are left out."""
    image = read_image(file)
    if factor == 1:
        return image
    height, width = (size // factor for size in image.shape[:2])
    if min(height, width) < 1:
        raise SceneError(
            f"{file}: required at least {factor}x{factor} pixels to reduce by {factor}, got "
            f"{image.shape[1]}x{image.shape[0]}"
        )
    image = image[: height * factor, : width * factor].reshape(height, factor, width, factor, -1)
    reduced: np.ndarray = image.mean((1, 3)).round().astype(np.uint8)
    return reduced


def _reduced(file: Path, folder: Path, factor: int) -> tuple[Path | None, int]:
    """The file to read and the remaining factor: at factor 4, images_4/a.png stands for images/a.png."""
    if factor > 1 and file.parent.name == "images":
        ready = find_image(file.parent.parent / f"images_{factor}" / file.name)
        if ready is not None:
            return ready, 1
    return find_image(file), factor


def _split(
    content: dict[str, Any],
    frames: list[dict[str, Any]],
    views: list[View],
    test_every: int,
    path: Path,
    notes: list[str],
) -> tuple[list[View], list[View]]:
    """The split the file names, else every `test_every`-th view. Without a list for training, all other views train."""
    lists = {key: _names(content, key, frames, path) for key in _SPLITS if content.get(key) is not None}
    if not any(lists.values()):
        return split_views(views, test_every)
    by_name = {view.name: view for view in views}
    named = {key: [by_name[name] for name in names if name in by_name] for key, names in lists.items()}
    test = named.get("test_filenames") or named.get("val_filenames") or []
    held_out = {name for key in _SPLITS[1:] for name in lists.get(key, [])}
    if not lists.get("train_filenames"):
        notes.append(f"{path.name} names no training views: all that it does not name train")
        return [view for view in views if view.name not in held_out], test
    train = named["train_filenames"]
    both = sorted(held_out & set(lists["train_filenames"]))
    if both:
        notes.append(f"{path.name} names views both for training and as held out: {shortened(both)}")
    chosen = {view.name for view in (*train, *test)}
    unused = [view.name for view in views if view.name not in chosen]
    if unused:
        notes.append(f"not used, by the split of {path.name}: {shortened(unused)}")
    return train, test


def _names(content: dict[str, Any], key: str, frames: list[dict[str, Any]], path: Path) -> list[str]:
    """The frames of a list of file names, each once, as their file_path has them."""
    names = content[key]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise SceneError(f"{path}: {key}: required a list of file names, got {names!r:.80}")
    known = {_plain(frame["file_path"]): frame["file_path"] for frame in frames}
    unknown = [name for name in names if _plain(name) not in known]
    if unknown:
        raise SceneError(f"{path}: {key}: required names of frames, got {unknown[0]!r}")
    return list(dict.fromkeys(known[_plain(name)] for name in names))


def _plain(name: str) -> str:
    """A path without ./ and backslashes, to compare."""
    return str(PurePosixPath(with_slashes(name)))


def _points(folder: Path, content: dict[str, Any], path: Path) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Positions and colours of the point cloud the file names."""
    named = read_path(content, "ply_file_path", str(path))
    if named is None:
        return None, None
    cloud = folder / named
    if not is_file(cloud):
        raise SceneError(f"{cloud}: required the point cloud that {path.name} names, got nothing there")
    try:
        vertices = read_ply(cloud)
    except PlyError as broken:
        raise SceneError(str(broken)) from None
    if not {"x", "y", "z"} <= set(vertices):
        raise SceneError(f"{cloud}: required vertex properties x, y, z, got {', '.join(vertices)}")
    points = np.stack([vertices[key] for key in "xyz"], axis=1).astype(np.float64)
    if not len(points):
        raise SceneError(f"{cloud}: required at least one point, got none")
    if not np.isfinite(points).all():
        count = int((~np.isfinite(points)).any(axis=1).sum())
        raise SceneError(f"{cloud}: required finite positions, got {count} of {len(points)} that are not")
    return points, _colors(vertices, cloud)


def _colors(vertices: dict[str, np.ndarray], cloud: Path) -> np.ndarray | None:
    """(N, 3) float32 colours in [0, 1], from red, green and blue under one of their names, or None without them."""
    names = next((names for names in _COLORS if set(names) <= set(vertices)), None)
    if names is None:
        return None
    colors = np.stack([vertices[name] for name in names], axis=1)
    if not np.isfinite(colors).all():
        raise SceneError(f"{cloud}: required finite colours, got others")
    if names[0] == "f_dc_0":
        colors = 0.5 + SH0 * colors
    elif colors.dtype.kind == "f":
        # Floating-point colours are in [0, 1], or are bytes stored as floats.
        colors = colors / (255.0 if colors.max() > 1 else 1.0)
    else:
        # Divide by the largest value of the type: 255 for bytes, 65535 for 16 bits.
        colors = colors / float(np.iinfo(colors.dtype).max if colors.dtype.itemsize <= 2 else 255)
    return colors.astype(np.float32).clip(0, 1)
