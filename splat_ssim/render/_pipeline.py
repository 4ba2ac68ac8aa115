"""From Gaussians to pictures with gsplat's meanings, over a backend that projects and composites."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .reference import Projection, absolute_gradient


def default_tile_size(width: int, height: int) -> int:
    """Measured: small tiles waste fewer lanes, large ones repeat less work once there are enough of them."""
    return 16 if width * height <= 256 * 256 else 32


def render(
    backend: ModuleType,
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colors: Tensor | tuple[Tensor, Tensor],
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    *,
    sh_degree: int | None,
    packed: bool,
    tile_size: int | None,
    backgrounds: Tensor | None,
    render_mode: str,
    absgrad: bool,
    max_alpha: float,
    pixel_weights: Tensor | None,
    **projection_options: Any,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """`backend` is a module with `project`, `composite` and `accumulate` as in `reference`."""
    cameras, tile = len(viewmats), tile_size or default_tile_size(width, height)
    projected, values = _project(
        backend, means, quats, scales, opacities, colors, viewmats, Ks, width, height, sh_degree, projection_options
    )
    camera_ids = gaussian_ids = None
    if packed:
        camera_ids, gaussian_ids = (projected.radii > 0).all(-1).nonzero(as_tuple=True)
        values = values[camera_ids, gaussian_ids]
        projected = _geometry(projected, (camera_ids, gaussian_ids))
    # The graph goes through this very tensor, so that a strategy may ask for its gradient.
    means2d = projected.means2d

    if render_mode != "RGB":
        depth = projected.depths[..., None]
        values = torch.cat([values, depth], -1) if "RGB" in render_mode else depth
        if backgrounds is not None:
            dark = backgrounds.new_zeros(cameras, 1)
            backgrounds = torch.cat([backgrounds, dark], -1) if "RGB" in render_mode else dark
    options = {"max_alpha": max_alpha, "tile_size": tile}
    if camera_ids is not None:
        images, alphas, sums = _packed(
            backend, projected, values, backgrounds, camera_ids, cameras, width, height, absgrad, pixel_weights, options
        )
    else:
        images, alphas = backend.composite(projected, values, backgrounds, width, height, absgrad=absgrad, **options)
        sums = None if pixel_weights is None else backend.accumulate(projected, pixel_weights, **options)
    if render_mode.endswith("ED"):
        expected = images[..., -1:] / alphas.clamp(min=1e-10)
        images = torch.cat([images[..., :-1], expected], -1)

    info = {
        "batch_ids": None if camera_ids is None else torch.zeros_like(camera_ids),
        "camera_ids": camera_ids,
        "gaussian_ids": gaussian_ids,
        "radii": projected.radii,
        "means2d": means2d,
        "depths": projected.depths,
        "conics": projected.conics,
        "opacities": projected.opacities,
        "tile_width": math.ceil(width / tile),
        "tile_height": math.ceil(height / tile),
        "tile_size": tile,
        "width": width,
        "height": height,
        "n_batches": 1,
        "n_cameras": cameras,
    }
    if sums is not None:
        info["accumulators"] = sums
    return images, alphas, info


def _project(
    backend: ModuleType,
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colors: Tensor | tuple[Tensor, Tensor],
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    sh_degree: int | None,
    options: dict[str, Any],
) -> tuple[Projection, Tensor]:
    """The projection and the colours [C, N, D]."""
    sh0, shN = colors if isinstance(colors, tuple) else (colors, None)
    geometry = (means, quats, scales, opacities)
    if sh_degree is None:
        projected = backend.project(*geometry, None, None, viewmats, Ks, width, height, sh_degree=None, **options)
        return projected, sh0 if sh0.dim() == 3 else sh0.expand(len(viewmats), -1, -1)
    if sh0.dim() == 4:
        # Coefficients of its own for each camera.
        each = [
            backend.project(
                *geometry, sh0[c], None, viewmats[c, None], Ks[c, None], width, height, sh_degree=sh_degree, **options
            )
            for c in range(len(viewmats))
        ]
        projected = Projection(*(torch.cat(fields) for fields in zip(*each, strict=True)))
    else:
        projected = backend.project(*geometry, sh0, shN, viewmats, Ks, width, height, sh_degree=sh_degree, **options)
    return projected, projected.colors


def _geometry(projected: Projection, index: tuple[Tensor | slice | None, ...]) -> Projection:
    """The Gaussians `index` picks, without their colours."""
    radii, means2d, depths, conics, opacities = (field[index] for field in projected[:5])
    return Projection(radii, means2d, depths, conics, opacities, None)


def _packed(
    backend: ModuleType,
    projected: Projection,
    values: Tensor,
    backgrounds: Tensor | None,
    camera_ids: Tensor,
    cameras: int,
    width: int,
    height: int,
    absgrad: bool,
    pixel_weights: Tensor | None,
    options: dict[str, Any],
) -> tuple[Tensor, Tensor, Any]:
    """Composites each camera's part of the packed rows."""
    images, alphas, sums = [], [], []
    ends = torch.bincount(camera_ids, minlength=cameras).cumsum(0).tolist()
    start = 0
    for camera, end in enumerate(ends):
        rows = slice(start, end)
        start = end
        part = _geometry(projected, (None, rows))
        if absgrad and part.means2d.requires_grad:
            _forward_absgrad(projected.means2d, part.means2d, rows)
        background = None if backgrounds is None else backgrounds[camera, None]
        image, alpha = backend.composite(
            part, values[None, rows], background, width, height, absgrad=absgrad, **options
        )
        images.append(image)
        alphas.append(alpha)
        if pixel_weights is not None:
            sums.append(backend.accumulate(part, pixel_weights[camera, None], **options))
    joined = None
    if sums:
        joined = type(sums[0])(*(torch.cat(field, 1)[0] for field in zip(*sums, strict=True)))
    return torch.cat(images), torch.cat(alphas), joined


def _forward_absgrad(packed: Tensor, part: Tensor, rows: slice) -> None:
    """Hands the |gradient| sums of one camera's rows on to the packed tensor the caller holds."""

    def hook(_: Tensor) -> None:
        absolute_gradient(packed)[rows] = absolute_gradient(part)[0]

    part.register_hook(hook)
