"""The Gaussians: where they start, how they are rendered, what optimises them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from splat_ssim.ply import SH0
from splat_ssim.render import rasterization
from splat_ssim.scene.config import SceneConfig
from splat_ssim.scene.data import Scene, View
from splat_ssim.scene.data.scene import NEAR
from splat_ssim.scene.options import ModelConfig
from splat_ssim.scene.start import check_visible, starting_points, trained_splats
from splat_ssim.scene.start import random_points as random_points  # callers may still import it from here

Splats = torch.nn.ParameterDict
#: Far plane if none is asked for.
FAR = 1e10
#: How opacities may be stored, see `activated_opacities`.
OPACITY_ACTIVATIONS = ("sigmoid", "absolute")


def create_splats(
    scene: Scene, config: ModelConfig, *, seed: int, device: torch.device, max_count: int | None = None
) -> Splats:
    """Creates the Gaussians that a run starts from.

    Args:
        scene: Scene whose points, or otherwise whose silhouettes or cameras, determine where Gaussians start.
        config: Options of the start, and the highest degree of the spherical harmonics.
        seed: Seed of random positions and rotations.
        device: Device of the parameters.
        max_count: Largest number of Gaussians. If the scene has more points, this number of them is drawn.

    Returns:
        float32 parameters: means (N, 3), scales (N, 3) as logarithms, quats (N, 4) wxyz, opacities (N,) as logits,
        sh0 (N, 1, 3) and shN (N, (degree+1)² - 1, 3). The initial scale, in every direction, is the mean distance to
        the three nearest neighbours.

    Raises:
        SceneError: No training camera would see any of them.
    """
    if config.init == "ply":
        return _on_device(trained_splats(scene, config, max_count), device)
    generator = np.random.default_rng(seed)
    points, colors = starting_points(scene, config, generator)
    check_visible(points, scene)
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
    return _on_device(values, device)


def _on_device(values: Mapping[str, Any], device: torch.device) -> Splats:
    """Arrays or tensors as parameters on the device."""
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
    kept: np.ndarray = np.maximum(distances.mean(1), 1e-6 * unit)
    return kept


def activated_opacities(splats: Mapping[str, Tensor] | Splats, activation: str) -> Tensor:
    """Returns (N,) opacities: the sigmoid of the parameters ("sigmoid"), or their absolute value, which may exceed 1.

    Raises:
        ValueError: The activation is neither "sigmoid" nor "absolute".
    """
    if activation not in OPACITY_ACTIVATIONS:
        raise ValueError(f"the activation of opacities must be sigmoid or absolute, got {activation!r}")
    values = splats["opacities"]
    return torch.sigmoid(values) if activation == "sigmoid" else values.abs()


def penalty_of(splats: Splats, config: SceneConfig, activation: str) -> Tensor | None:
    """The penalty on opacities and scales that is added to the loss, or None if both weights are 0."""
    parts = []
    if config.opacity_penalty:
        parts.append(config.opacity_penalty * activated_opacities(splats, activation).mean())
    if config.scale_penalty:
        parts.append(config.scale_penalty * torch.exp(splats["scales"]).mean())
    return sum(parts[1:], parts[0]) if parts else None


def standard_splats(splats: Splats, activation: str) -> dict[str, Tensor]:
    """The Gaussians with opacities as logits, as PLY files and viewers expect them. Opacities are cut at 0.99."""
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
    far: float = FAR,
    antialiased: bool = False,
    opacity_activation: str = "sigmoid",
    render_mode: str = "RGB",
    pixel_weights: Tensor | None = None,
    absgrad: bool = False,
    distributed: bool = False,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Renders one view of the Gaussians, see `splat_ssim.render.rasterization`.

    Args:
        splats: Parameters as `create_splats` makes them.
        view: The camera. Its image is not used.
        sh_degree: Highest degree of spherical harmonics to use.
        background: (3,) float32 colour behind the Gaussians.
        near: Gaussians whose centre is nearer to the camera are left out.
        far: Gaussians whose centre is farther from the camera are left out.
        antialiased: Whether to compensate opacities for the blur on the screen, as Mip-Splatting does.
        opacity_activation: Activation, see `activated_opacities`.
        render_mode: RGB, D, ED, RGB+D or RGB+ED.
        pixel_weights: [1, H, W] or None. If given, info has sums over pixels for each Gaussian.
        absgrad: Whether to store sums of absolute gradients in info["means2d"].absgrad.
        distributed: Whether the processes of the run render together, each with a part of the Gaussians.

    Returns:
        Colours (1, H, W, 3), alphas (1, H, W, 1) and gsplat's info.
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
        far_plane=far,
        sh_degree=sh_degree,
        packed=False,
        backgrounds=background[None],
        render_mode=render_mode,
        rasterize_mode="antialiased" if antialiased else "classic",
        raw=raw,
        pixel_weights=pixel_weights,
        absgrad=absgrad,
        distributed=distributed,
    )
