"""The compiled renderer behind `rasterization`: the interface of `reference`, on float32 tensors of the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops import raster_composite, raster_project  # noqa: F401 - both register operators
from ._problem import Options, Scene
from .reference import Accumulators, Projection


def project(scene: Scene, sh0: Tensor | None, shN: Tensor | None, options: Options) -> Projection:
    """`reference.project` by the compiled library."""
    degree = -1 if options.sh_degree is None else options.sh_degree
    means2d, depths, conics, effective, colors, radii = torch.ops.splat_ssim.raster_project(
        *scene[:4],
        sh0,
        shN,
        *scene[5:],
        options.near_plane,
        options.far_plane,
        options.radius_clip,
        options.eps2d,
        degree,
        options.antialiased,
        options.raw,
    )
    return Projection(radii, means2d, depths, conics, effective, None if options.sh_degree is None else colors)


def composite(
    projection: Projection,
    colors: Tensor,
    backgrounds: Tensor | None,
    width: int,
    height: int,
    *,
    max_alpha: float,
    absgrad: bool,
    tile_size: int,
) -> tuple[Tensor, Tensor]:
    """`reference.composite` by the compiled library. More than `max_channels()` channels take several passes.

    The gradients of the passes add up; so do the sums of `absgrad`, which then are those of the parts, as in gsplat.
    """
    p = projection
    geometry = (p.means2d, p.conics, p.opacities)
    images, masks = [], []
    limit = raster_composite.max_channels()
    for first in range(0, colors.shape[-1], limit):
        part = colors[..., first : first + limit] if colors.shape[-1] > limit else colors
        behind = None if backgrounds is None else backgrounds[:, first : first + limit]
        image, mask, _, _ = torch.ops.splat_ssim.raster_composite(
            *geometry, part, p.radii, p.depths, behind, width, height, tile_size, max_alpha, absgrad
        )
        images.append(image)
        masks.append(mask)
    return images[0] if len(images) == 1 else torch.cat(images, -1), masks[0]


@torch.no_grad()
def accumulate(projection: Projection, pixel_weights: Tensor, *, max_alpha: float, tile_size: int) -> Accumulators:
    """`reference.accumulate` by the compiled library."""
    p = projection
    _, height, width = pixel_weights.shape
    _, _, records, lists = torch.ops.splat_ssim.raster_composite(
        p.means2d,
        p.conics,
        p.opacities,
        p.depths[..., None],
        p.radii,
        p.depths,
        None,
        width,
        height,
        tile_size,
        max_alpha,
        False,
    )
    sums = torch.ops.splat_ssim.raster_accumulate(p.opacities, records, lists, pixel_weights, tile_size, max_alpha)
    return Accumulators(*sums)
