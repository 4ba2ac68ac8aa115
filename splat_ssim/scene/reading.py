"""Reads the scene of a run as its config says, in coordinates that stay the same when the run is resumed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from splat_ssim.scene.config import SceneConfig
from splat_ssim.scene.data import Scene, View, load_scene
from splat_ssim.scene.data.lens import Pinhole, proportions
from splat_ssim.scene.start import boxed
from splat_ssim.trainer.checkpoint import fingerprint

#: `Scene.origin` for a checkpoint without one: it used the coordinates of the first model, unchanged.
FIRST_ORIGIN = {"offset": [0.0, 0.0, 0.0], "model": ""}


def scene_fingerprint(scene: Scene) -> str:
    """Fingerprint of the views' names and cameras. Images do not count, because they may be read at another size.

    It begins with that of older checkpoints, which knew no focal lengths.
    """
    views = [*scene.train, *scene.test]
    viewmats = scene.world_viewmats or [view.viewmat for view in views]
    parts = [part for view, viewmat in zip(views, viewmats, strict=True) for part in (view.name, viewmat)]
    text = fingerprint(f"{len(scene.train)} training and {len(scene.test)} test views", *parts)
    # In float32, so that the rounding of the size does not count.
    lenses = [torch.tensor(_proportions(view), dtype=torch.float32) for view in views]
    return fingerprint(f"{text}, lenses", *lenses)


def _proportions(view: View) -> tuple[float, ...]:
    (focal_x, _, x), (_, focal_y, y), _ = view.K.tolist()
    return view.proportions or proportions(Pinhole(view.width, view.height, focal_x, focal_y, x, y))


def check_origin(origin: Any) -> None:
    """Raises ValueError if the origin in a checkpoint is not of the form of `Scene.origin`. None is allowed."""
    if origin is None:
        return
    offset = origin.get("offset") if isinstance(origin, Mapping) else None
    numbers = isinstance(offset, list) and len(offset) == 3 and all(type(value) in (float, int) for value in offset)
    if not numbers or not all(abs(value) < 1e30 for value in offset or ()) or type(origin.get("model")) is not str:
        raise ValueError("origin: required an offset of three finite numbers and a model, got others")


def read_scene(config: SceneConfig, origin: Mapping[str, Any] | None = None) -> Scene:
    """The scene of a config, in the coordinates of an origin or in those that are chosen for it."""
    backgrounds = {"white": (1.0, 1.0, 1.0), "black": (0.0, 0.0, 0.0)}
    scene = load_scene(
        config.data_dir,
        format=config.data.format,
        factor=config.data.factor,
        test_every=config.data.test_every,
        background=backgrounds[config.data.background],
        cache=config.data.cache,
        origin=origin,
        depth_unit=config.depth.unit if config.depth.weight > 0 else None,
    )
    return in_box(scene, config)


def in_box(scene: Scene, config: SceneConfig) -> Scene:
    """The scene, limited to the box that the config asks for, if any."""
    return scene if config.data.box is None else boxed(scene, config.data.box)
