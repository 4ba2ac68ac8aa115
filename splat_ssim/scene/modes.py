"""Pictures of a scene's colours, depths, normals and opacity."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from splat_ssim.errors import UserError
from splat_ssim.scene.data import View
from splat_ssim.trainer.colormap import colored

if TYPE_CHECKING:
    from splat_ssim.scene.training import SceneTask

Mode = Literal["rgb", "depth", "normal", "alpha"]
MODES: tuple[str, ...] = get_args(Mode)
#: Number of views from which the scale of depths is chosen, and the fraction of pixels beyond each end of the scale.
_SAMPLED, _BEYOND = 8, 0.01


@dataclass
class Scale:
    """Depths that are black and white in a picture, in the scene's unit."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"depth {self.low:.4g} (black) to {self.high:.4g} (white)"


@torch.no_grad()
def draw(task: SceneTask, view: View, mode: str = "rgb", scale: Scale | None = None) -> Tensor:
    """Draws a picture of a view.

    Args:
        task: Task with the scene's model.
        view: The camera. Its image is not used.
        mode: rgb: colours. depth: the mean depth of each pixel along the camera's axis, in the colours of `colored`.
            normal: the normals of the surface that these depths describe, turned towards the camera, with world x, y
            and z from -1 to 1 as red, green and blue. alpha: opacity. Depth and normal are black where nothing is.
        scale: Scale of depths. By default the scale of this view.

    Returns:
        (1, 3, H, W) float32 in [0, 1] on the task's device.

    Raises:
        UserError: There is no such mode.
    """
    check_mode(mode)
    if mode == "rgb":
        return task.picture(view).permute(0, 3, 1, 2).clamp(0, 1)
    view = view.to(task.device)
    depth, alpha = depth_of(task, view)
    if mode == "alpha":
        return alpha.clamp(0, 1).expand(1, 3, -1, -1)
    if mode == "normal":
        picture = 0.5 + 0.5 * normals_of(depth[0, 0], view).permute(2, 0, 1)[None]
    else:
        scale = scale or _scale_of([_seen(depth, alpha)])
        picture = colored(depth[0, 0], scale.low, scale.high).permute(2, 0, 1)[None]
    return picture * alpha.clamp(0, 1)


def check_mode(mode: str) -> None:
    """Raises UserError for an unknown mode."""
    if mode not in MODES:
        raise UserError(f"--mode must be one of {', '.join(MODES)}, got {mode!r}")


def depth_of(task: SceneTask, view: View) -> tuple[Tensor, Tensor]:
    """Mean depths and opacities of a view's pixels, (1, 1, H, W) each. Both are 0 where nothing is."""
    depth, alpha, _ = task.render_view(view, render_mode="ED")
    depth, alpha = depth.permute(0, 3, 1, 2), alpha.permute(0, 3, 1, 2)
    return torch.where(alpha > 0, depth, 0.0), alpha


def normals_of(depth: Tensor, view: View) -> Tensor:
    """(H, W, 3) unit normals, in world axes, of the surface that depths (H, W) along the camera's axis describe.

    A normal is that of the plane through the pixel's neighbours, turned towards the camera; 0 if it has no neighbours.
    """
    height, width = depth.shape
    sides = [torch.arange(size, dtype=depth.dtype, device=depth.device) + 0.5 for size in (height, width)]
    rows, columns = torch.meshgrid(*sides, indexing="ij")
    K = view.K
    rays = torch.stack([(columns - K[0, 2]) / K[0, 0], (rows - K[1, 2]) / K[1, 1], torch.ones_like(depth)], -1)
    points = rays * depth[..., None]
    if min(height, width) < 2:
        return torch.zeros_like(points)
    down, right = torch.gradient(points, dim=(0, 1))
    # Right times down looks along the camera's axis; its opposite looks at the camera.
    normals = torch.nn.functional.normalize(torch.linalg.cross(down, right), dim=-1)
    away = (normals * rays).sum(-1, keepdim=True) > 0
    normals = torch.where(away, -normals, normals)
    return normals @ view.viewmat[:3, :3]


def depth_scale(task: SceneTask, views: Iterable[View]) -> Scale:
    """One scale of depths for all pictures of a path."""
    views = list(views)
    every = max(1, len(views) // _SAMPLED)

    def seen() -> Iterator[Tensor]:
        with torch.no_grad():
            for view in views[::every]:
                yield _seen(*depth_of(task, view.to(task.device)))

    return _scale_of(seen())


def _seen(depth: Tensor, alpha: Tensor) -> Tensor:
    """Depths of the pixels that are at least half opaque."""
    return depth[alpha > 0.5]


def _scale_of(depths: Iterable[Tensor]) -> Scale:
    """The scale from the nearest to the farthest depth, without a few outliers. 0 to 1 if there are no depths."""
    ends = []
    for seen in depths:
        if len(seen):
            values = seen.sort().values
            ends.append((values[int(_BEYOND * (len(seen) - 1))], values[int((1 - _BEYOND) * (len(seen) - 1))]))
    if not ends:
        return Scale(0.0, 1.0)
    return Scale(float(min(low for low, _ in ends)), float(max(high for _, high in ends)))
