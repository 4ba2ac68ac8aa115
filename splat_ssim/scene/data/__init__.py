"""Scenes from disk: Blender, COLMAP and nerfstudio folders, which are read and checked before training starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from splat_ssim._files import exists, is_file
from splat_ssim.scene.data.blender import load_blender
from splat_ssim.scene.data.colmap import find_models, load_colmap
from splat_ssim.scene.data.nerfstudio import load_nerfstudio
from splat_ssim.scene.data.placement import choose_offset, moved_viewmat, ordinary
from splat_ssim.scene.data.scene import Scene, SceneError, View, shortened

__all__ = ["FORMATS", "Scene", "SceneError", "View", "detect_format", "load_scene"]

#: Folder inside a scene's folder for decoded images.
CACHE = ".cache"
#: Readers by name; each takes (folder, factor=, test_every=, background=, cache=) and returns a Scene.
FORMATS: dict[str, Callable[..., Scene]] = {
    "blender": load_blender,
    "colmap": load_colmap,
    "nerfstudio": load_nerfstudio,
}


def detect_format(folder: Path) -> str:
    """Recognises the format of a scene folder by its files.

    Raises:
        SceneError: The folder is missing, or no known format has its files.
    """
    if not exists(folder) or not folder.is_dir():
        found = "a file" if is_file(folder) else "nothing there"
        raise SceneError(f"{folder}: required a scene folder, got {found} (--data-dir)")
    if (folder / "transforms_train.json").is_file():
        return "blender"
    if (folder / "transforms.json").is_file():
        return "nerfstudio"
    if find_models(folder):
        return "colmap"
    raise SceneError(
        f"{folder}: required transforms_train.json (Blender), transforms.json (nerfstudio) or sparse/0/cameras.bin "
        f"(COLMAP), got {', '.join(sorted(path.name for path in folder.iterdir())[:8]) or 'an empty folder'}"
    )


def load_scene(
    folder: str | Path,
    *,
    format: str = "auto",
    factor: int = 1,
    test_every: int = 8,
    background: tuple[float, float, float] = (1.0, 1.0, 1.0),
    cache: str | Path | None = None,
    origin: Mapping[str, Any] | None = None,
    depth_unit: float | None = None,
) -> Scene:
    """Reads a scene: all its cameras and images, split into training and test views.

    Args:
        folder: Scene folder, or the transforms file in it.
        format: "auto", or a key of FORMATS.
        factor: Divides width and height of the images. They are read from `images_{factor}` if there is such a folder,
            otherwise reduced by a box filter.
        test_every: Every such view in the order of file names, starting with the first, is a test view, unless the
            files state a split. 0: all views are training views.
        background: RGB in [0, 1] behind images with an alpha channel.
        cache: Folder for decoded images, used if they take more than half of the free memory. By default `.cache` in
            the scene folder.
        depth_unit: Size of one unit of a depth file in units of the scene. By default depths are not read.
        origin: `Scene.origin` of an earlier reading, to get the same coordinates. By default they are chosen.

    Returns:
        The scene.

    Raises:
        SceneError: A file is missing or wrong. The message names it and says what was expected.

    Example:
        >>> from splat_ssim.scene.data import load_scene
        >>> scene = load_scene("assets/chair_200")
        >>> len(scene.train), len(scene.test)
        (100, 25)
    """
    folder = Path(folder)
    if is_file(folder) and (folder.name == "transforms.json" or folder.name.startswith("transforms_")):
        folder = folder.parent
    name = detect_format(folder) if format == "auto" else format
    if name not in FORMATS:
        raise SceneError(f"format must be auto, {', '.join(FORMATS)}, got {name!r}")
    if factor < 1 or test_every < 0:
        raise SceneError(f"factor must be at least 1 and test_every at least 0, got {factor} and {test_every}")
    options: dict[str, Any] = {} if origin is None or name != "colmap" else {"model": origin["model"]}
    if depth_unit is not None:
        options["depth_unit"] = depth_unit
    options["cache"] = folder / CACHE if cache is None else Path(cache)
    scene = FORMATS[name](folder, factor=factor, test_every=test_every, background=background, **options)
    scene.format = name
    if not scene.train:
        raise SceneError(f"{folder}: required at least one training view, got none")
    _place(scene, folder, None if origin is None else origin["offset"])
    _drop_masked(scene, folder)
    for index, view in enumerate(scene.train):
        view.index = index
    _note_depths(scene, folder, depth_unit)
    far = [view.name for view, near in zip(scene.train, ordinary(scene.centers).tolist(), strict=True) if not near]
    if far:
        scene.notes.append(f"cameras far from all the others, which the scene's extent leaves out: {shortened(far)}")
    return scene


def _note_depths(scene: Scene, folder: Path, depth_unit: float | None) -> None:
    """Adds a note on which training views have depths.

    Raises:
        SceneError: Depths were requested, and no view has any.
    """
    if depth_unit is None:
        return
    maps = sum(view.depth is not None for view in scene.train)
    points = [len(view.sparse_depth) for view in scene.train if view.sparse_depth is not None]
    if not maps and not sum(points):
        raise SceneError(
            f"{folder}: depth.weight requires depths, depth_file_path of nerfstudio or points of COLMAP, got none"
        )
    words = [f"depth maps of {maps}"] if maps else []
    words += [f"depths at {sum(points)} points of {len(points)}"] if points else []
    scene.notes.append(f"{' and '.join(words)} of {len(scene.train)} training views")


def _place(scene: Scene, folder: Path, offset: Sequence[float] | None) -> None:
    """Centres a scene far from the origin, or as `offset` says, in float64, and makes all of it float32."""
    views = [*scene.train, *scene.test]
    if scene.points is not None and not np.isfinite(scene.points).all():
        count = int((~np.isfinite(scene.points)).any(axis=1).sum())
        raise SceneError(f"{folder}: required points with finite coordinates, got {count} others")
    x, y, z = choose_offset(torch.stack([view.center for view in views])) if offset is None else offset
    scene.offset = (x, y, z)
    if any(scene.offset):
        scene.world_viewmats = [view.viewmat.float() for view in views]
        for view in views:
            view.viewmat = moved_viewmat(view.viewmat, scene.offset)
        if scene.points is not None:
            scene.points = scene.points - np.asarray(scene.offset)
        if scene.box is not None:
            low, high = (np.asarray(corner) - np.asarray(scene.offset) for corner in scene.box)
            scene.box = (low.tolist(), high.tolist())
        scene.notes.append(f"coordinates are large: ({x:.10g}, {y:.10g}, {z:.10g}) is subtracted, also in scene.ply")
    for view in views:
        view.viewmat = view.viewmat.float()
        if not torch.isfinite(view.viewmat).all():
            raise SceneError(f"{folder}: {view.name}: required a position that float32 holds, got a larger one")
    if scene.points is not None:
        with np.errstate(over="ignore"):
            scene.points = scene.points.astype(np.float32)
        if not np.isfinite(scene.points).all():
            raise SceneError(f"{folder}: required points whose coordinates float32 holds, got larger ones")


def _drop_masked(scene: Scene, folder: Path) -> None:
    """Leaves out views without any pixel that counts, since there is nothing to train on or to compare with."""
    empty = [view.name for view in (*scene.train, *scene.test) if view.mask is not None and not view.mask.any()]
    if not empty:
        return
    if scene.world_viewmats is not None:
        pairs = zip((*scene.train, *scene.test), scene.world_viewmats, strict=True)
        scene.world_viewmats = [viewmat for view, viewmat in pairs if view.name not in empty]
    before = len(scene.train)
    scene.train = [view for view in scene.train if view.name not in empty]
    scene.test = [view for view in scene.test if view.name not in empty]
    if before and not scene.train:
        raise SceneError(f"{folder}: required masks that keep a pixel of a training view, got none of {before}")
    scene.notes.append(f"left out, since their masks keep no pixel: {shortened(empty)}")
