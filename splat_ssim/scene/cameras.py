"""Cameras: a circle around the scene, and the final cameras of the training views."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from splat_ssim.scene.data import Scene, View
from splat_ssim.scene.data.placement import nearest_point
from splat_ssim.scene.exposure import Exposures
from splat_ssim.scene.poses import RefinedPoses


def orbit(views: Sequence[View], frames: int) -> list[View]:
    """Makes cameras on a circle around the point that the given cameras look at.

    They have the median distance, height and lens of the given ones.

    Args:
        views: Cameras of the scene, at least one.
        frames: Number of cameras on the circle.

    Returns:
        Views of even width and height, as video codecs require. They have the image of the first given view, which is
        meaningless.
    """
    rotations = torch.stack([view.viewmat[:3, :3] for view in views]).double()
    centers = torch.stack([view.center for view in views]).double()
    forward, up = rotations[:, 2], torch.nn.functional.normalize(-rotations[:, 1].mean(0), dim=0)
    target = nearest_point(centers, forward)
    offsets = centers - target
    heights = offsets @ up
    flat = offsets - heights[:, None] * up
    radius, height = flat.norm(dim=1).median(), heights.median()
    first = flat[flat.norm(dim=1).argmax()]
    side = torch.nn.functional.normalize(first, dim=0)
    other = torch.linalg.cross(up, side)
    view = views[0]
    image = view.image[: view.height // 2 * 2, : view.width // 2 * 2]
    path = []
    for index in range(frames):
        angle = 2 * math.pi * index / frames
        center = target + height * up + radius * (math.cos(angle) * side + math.sin(angle) * other)
        path.append(replace(view, viewmat=_look_at(center, target, up), image=image, mask=None, index=-1))
    return path


def _look_at(center: Tensor, target: Tensor, up: Tensor) -> Tensor:
    """(4, 4) float32 world to camera, OpenCV axes."""
    forward = target - center
    if forward.norm() < 1e-9:
        forward = torch.linalg.cross(up, torch.roll(up, 1))
    forward = torch.nn.functional.normalize(forward, dim=0)
    right = torch.nn.functional.normalize(torch.linalg.cross(forward, up), dim=0)
    rotation = torch.stack([right, torch.linalg.cross(forward, right), forward])
    viewmat = torch.eye(4, dtype=torch.float64)
    viewmat[:3, :3], viewmat[:3, 3] = rotation, -rotation @ center
    return viewmat.float()


@torch.no_grad()
def camera_rows(
    scene: Scene, poses: RefinedPoses | None, exposures: Exposures | None, device: torch.device
) -> list[dict[str, Any]]:
    """For each training view its name, camera_to_world (OpenCV axes, the files' coordinates) and 3x4 exposure."""
    matrices = None if exposures is None else exposures.matrices()
    rows: list[dict[str, Any]] = []
    for view in scene.train:
        viewmat = (view if poses is None else poses.apply(view.to(device))).viewmat
        camera = torch.linalg.inv(viewmat.double()).cpu()
        camera[:3, 3] += torch.tensor(scene.offset, dtype=torch.float64)
        row = {"name": view.name, "camera_to_world": camera.tolist()}
        rows.append(row if matrices is None else {**row, "exposure": matrices[view.index]})
    return rows
