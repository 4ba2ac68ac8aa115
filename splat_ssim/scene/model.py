"""The Gaussians: where they start, how they are rendered, what optimises them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from splat_ssim.ply import SH0
from splat_ssim.render import rasterization
from splat_ssim.scene.config import ModelConfig
from splat_ssim.scene.data import Scene, SceneError, View
from splat_ssim.scene.data.placement import ordinary
from splat_ssim.scene.data.scene import NEAR

#: Cells along each axis of the grid that silhouettes carve.
CARVE_CELLS = 48

Splats = torch.nn.ParameterDict


def starting_points(
    scene: Scene, config: ModelConfig, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray | None]:
    """Where Gaussians may start: (N, 3) positions, and (N, 3) colours or None.

    Raises:
        SceneError: The config asks for the scene's point cloud, and it has none.
    """
    if config.init == "points" and scene.points is None:
        raise SceneError(f"{scene.name}: model.init points requires a scene with a point cloud, got none")
    if config.init == "random" or scene.points is None:
        return random_points(scene, config.init_count, generator), None
    return scene.points, scene.colors


def start_count(scene: Scene, config: ModelConfig) -> int:
    """How many Gaussians `create_splats` starts with where nothing limits it."""
    return config.init_count if config.init == "random" or scene.points is None else len(scene.points)


def create_splats(
    scene: Scene, config: ModelConfig, *, seed: int, device: torch.device, max_count: int | None = None
) -> Splats:
    """Gaussians to start from: means, scales (logarithms), quats, opacities (logits), sh0, shN.

    Args:
        scene: Its points, or else its silhouettes or cameras, say where Gaussians start.
        config: Start and highest degree of spherical harmonics.
        seed: Of random positions and rotations.
        device: Where the parameters live.
        max_count: How many Gaussians there may be: of more points, as many are drawn.

    Returns:
        means (N, 3), scales (N, 3), quats (N, 4) wxyz, opacities (N,), sh0 (N, 1, 3), shN (N, (degree+1)² - 1, 3),
        float32. Scales: the mean distance to the three nearest neighbours, in every direction.
    """
    generator = np.random.default_rng(seed)
    points, colors = starting_points(scene, config, generator)
    if max_count is not None and len(points) > max_count:
        drawn = np.sort(generator.choice(len(points), max_count, replace=False))
        points, colors = points[drawn], None if colors is None else colors[drawn]
    count = len(points)
    colors = np.full((count, 3), 0.5, np.float32) if colors is None else colors
    distances = neighbour_distance(points, min(1.0, scene.extent))
    values = {
        "means": points,
        "scales": np.log(distances)[:, None].repeat(3, 1),
        "quats": generator.normal(size=(count, 4)),
        "opacities": np.full(count, math.log(config.init_opacity / (1 - config.init_opacity))),
        "sh0": (colors[:, None] - 0.5) / SH0,
        "shN": np.zeros((count, (config.sh_degree + 1) ** 2 - 1, 3)),
    }
    return Splats(
        {
            name: torch.nn.Parameter(torch.as_tensor(np.asarray(value, np.float32), device=device).contiguous())
            for name, value in values.items()
        }
    )


def neighbour_distance(points: np.ndarray, unit: float = 1.0) -> np.ndarray:
    """(N,) mean distance of each point to its three nearest neighbours, at least 1e-6 of a unit of length."""
    from scipy.spatial import KDTree

    if len(points) < 2:
        return np.full(len(points), 0.1 * unit)
    neighbours = min(3, len(points) - 1)
    distances, _ = KDTree(points).query(points, k=range(2, 2 + neighbours), workers=-1)
    return np.maximum(distances.mean(1), 1e-6 * unit)


def random_points(scene: Scene, count: int, generator: np.random.Generator) -> np.ndarray:
    """(count, 3) float32 positions, uniform in the scene's box where no silhouette excludes them."""
    if scene.box is None:
        # Without a promise of a box, what the cameras may see: a cube of their own extent about their mean.
        middle = scene.centers[ordinary(scene.centers)].float().mean(0).numpy()
        low, high = middle - scene.extent, middle + scene.extent
    else:
        low, high = (np.asarray(corner, dtype=np.float64) for corner in scene.box)
    cell = (high - low) / CARVE_CELLS
    corners = np.stack(np.meshgrid(*[np.arange(CARVE_CELLS)] * 3, indexing="ij"), -1).reshape(-1, 3) * cell + low
    centers = torch.as_tensor(corners + 0.5 * cell, dtype=torch.float32)
    kept = torch.ones(len(centers), dtype=torch.bool)
    for view in scene.train:
        if view.alpha is not None:
            inside = torch.where(kept)[0]
            kept[inside] = _seen(centers[inside], view, radius=0.5 * float(np.linalg.norm(cell)))
    if not kept.any():
        kept[:] = True
    chosen = generator.choice(np.flatnonzero(kept.numpy()), count)
    return (corners[chosen] + generator.uniform(size=(count, 3)) * cell).astype(np.float32)


def _seen(points: Tensor, view: View, radius: float) -> Tensor:
    """(N,) bool: false where a ball about the point surely projects outside the silhouette of a view."""
    camera = points @ view.viewmat[:3, :3].T + view.viewmat[:3, 3]
    depth = camera[:, 2].clamp(min=1e-6)
    pixel = camera @ view.K.T / depth[:, None]
    column, row = pixel[:, 0].floor().long(), pixel[:, 1].floor().long()
    within = (column >= 0) & (column < view.width) & (row >= 0) & (row < view.height) & (camera[:, 2] > radius)
    # The silhouette is widened by the ball's radius in pixels at the nearest of the points.
    reach = math.ceil(float(view.K[0, 0]) * radius / float(depth[within].min())) if within.any() else 0
    alpha = torch.ones(view.height, view.width) if view.alpha is None else view.alpha
    silhouette = torch.nn.functional.max_pool2d(alpha[None], 2 * reach + 1, stride=1, padding=reach)[0]
    # What a view does not show, or shows too close to tell, it does not exclude.
    return ~within | (silhouette[row.clamp(0, view.height - 1), column.clamp(0, view.width - 1)] > 0)


def activated_opacities(splats: Mapping[str, Tensor] | Splats, activation: str) -> Tensor:
    """(N,) opacities: the sigmoid of logits ("sigmoid") or the absolute value of what may pass 1 ("absolute").

    Raises:
        ValueError: The activation is another.
    """
    if activation not in ("sigmoid", "absolute"):
        raise ValueError(f"the activation of opacities must be sigmoid or absolute, got {activation!r}")
    values = splats["opacities"]
    return torch.sigmoid(values) if activation == "sigmoid" else values.abs()


def standard_splats(splats: Splats, activation: str) -> dict[str, Tensor]:
    """The Gaussians with opacities as logits, as PLY files and viewers have them; what exceeds 0.99 is cut there."""
    if activation == "sigmoid":
        return dict(splats)
    opacities = activated_opacities(splats, activation).detach().clamp(max=0.99)
    return {**splats, "opacities": torch.logit(opacities, eps=1e-6)}


def render(
    splats: Splats,
    view: View,
    *,
    sh_degree: int,
    background: Tensor,
    near: float = NEAR,
    antialiased: bool = False,
    opacity_activation: str = "sigmoid",
    render_mode: str = "RGB",
    pixel_weights: Tensor | None = None,
) -> tuple[Tensor, Tensor, dict]:
    """One view of the Gaussians; see `splat_ssim.render.rasterization`.

    Args:
        splats: As of `create_splats`.
        view: The camera; its image is not used.
        sh_degree: Highest degree of spherical harmonics that takes part.
        background: (3,) float32.
        near: Gaussians whose centre is nearer to the camera are left out.
        antialiased: Mip-Splatting's opacity compensation.
        opacity_activation: See `activated_opacities`.
        render_mode: RGB, D, ED, RGB+D or RGB+ED.
        pixel_weights: [1, H, W] or None; where given, info has each Gaussian's sums over its pixels.

    Returns:
        colours (1, H, W, 3), alphas (1, H, W, 1) and gsplat's info.
    """
    # The renderer applies exp and sigmoid by itself, or neither.
    raw = opacity_activation == "sigmoid"
    return rasterization(
        means=splats["means"],
        quats=splats["quats"],
        scales=splats["scales"] if raw else splats["scales"].exp(),
        opacities=splats["opacities"] if raw else activated_opacities(splats, opacity_activation),
        colors=(splats["sh0"], splats["shN"]),
        viewmats=view.viewmat[None],
        Ks=view.K[None],
        width=view.width,
        height=view.height,
        near_plane=near,
        sh_degree=sh_degree,
        packed=False,
        backgrounds=background[None],
        render_mode=render_mode,
        rasterize_mode="antialiased" if antialiased else "classic",
        raw=raw,
        pixel_weights=pixel_weights,
    )
