"""The CUDA path: gsplat's rasterizer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .gsplat_accumulate import accumulate

#: The clamp of alpha that is compiled into gsplat 1.5.3.
GSPLAT_MAX_ALPHA = 0.999


def render(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colors: Tensor | tuple[Tensor, Tensor],
    *cameras_and_size: Any,
    antialiased: bool,
    max_alpha: float,
    raw: bool,
    tile_size: int | None,
    pixel_weights: Tensor | None,
    **options: Any,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Calls gsplat.rasterization with the equivalent arguments.

    Raises:
        ValueError: `max_alpha` is not the one gsplat was compiled with.
    """
    if max_alpha != GSPLAT_MAX_ALPHA:
        raise ValueError(f"max_alpha must be {GSPLAT_MAX_ALPHA} on CUDA (compiled into gsplat), got {max_alpha}")
    from gsplat import rasterization as gsplat_rasterization
    from gsplat import rasterize_to_indices_in_range

    if raw:
        scales, opacities = scales.exp(), opacities.sigmoid()
    if isinstance(colors, tuple):
        colors = torch.cat(colors, 1)
    if tile_size is not None:
        options["tile_size"] = tile_size
    mode = "antialiased" if antialiased else "classic"
    scene = (means, quats, scales, opacities, colors, *cameras_and_size)
    images, alphas, info = gsplat_rasterization(*scene, rasterize_mode=mode, **options)
    if pixel_weights is not None:
        info["accumulators"] = accumulate(info, pixel_weights, max_alpha=max_alpha, query=rasterize_to_indices_in_range)
    return images, alphas, info
