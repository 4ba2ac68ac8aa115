"""Blender / NeRF-synthetic scenes: transforms_{train,test}.json with one field of view, RGBA images."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from splat_ssim.scene.data.images import read_images
from splat_ssim.scene.data.scene import (
    Scene,
    SceneError,
    View,
    opengl_to_viewmat,
    read_frames,
    read_number,
    split_views,
)
from splat_ssim.trainer.pictures import over_background

#: Half the edge of the cube every NeRF-synthetic scene fits in.
HALF_BOX = 1.3


def load_blender(
    folder: Path, *, factor: int = 1, test_every: int = 8, background: tuple[float, float, float] = (1.0, 1.0, 1.0)
) -> Scene:
    """Reads a Blender scene; see `load_scene`. The test views are those of transforms_test.json where there is one."""
    train = _read_split(folder, "train", factor, background)
    if (folder / "transforms_test.json").exists():
        test = _read_split(folder, "test", factor, background)
    else:
        train, test = split_views(train, test_every)
    return Scene(
        name=folder.resolve().name,
        train=train,
        test=test,
        background=background,
        box=((-HALF_BOX,) * 3, (HALF_BOX,) * 3),
    )


def _read_split(folder: Path, split: str, factor: int, background: tuple[float, float, float]) -> list[View]:
    path = folder / f"transforms_{split}.json"
    content, frames = read_frames(path)
    field_of_view = read_number(content, "camera_angle_x", path)
    if not 0 < field_of_view < math.pi:
        raise SceneError(f"{path}: required camera_angle_x in (0, pi) radians, got {field_of_view}")
    # NeRF-synthetic leaves out the extension.
    files = [folder / frame["file_path"] for frame in frames]
    files = [file if file.suffix else file.with_suffix(".png") for file in files]
    views = []
    for file, frame, image in zip(files, frames, read_images(files, factor), strict=True):
        height, width = image.shape[:2]
        focal = 0.5 * width / math.tan(0.5 * field_of_view)
        K = np.array([[focal, 0, 0.5 * width], [0, focal, 0.5 * height], [0, 0, 1]], dtype=np.float32)
        viewmat = opengl_to_viewmat(frame["transform_matrix"]).astype(np.float32)
        pixels, alpha = over_background(image, background)
        views.append(
            View(
                name=str(file.relative_to(folder)) if file.is_relative_to(folder) else file.name,
                viewmat=torch.from_numpy(viewmat),
                K=torch.from_numpy(K),
                image=pixels,
                alpha=alpha,
            )
        )
    return views
