"""From Gaussians to pictures with gsplat's meanings, over a backend that projects and composites."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import _exchange
from ._problem import Options, Scene
from .reference import Projection, absolute_gradient


def default_tile_size(width: int, height: int) -> int:
    """Measured: small tiles waste fewer lanes, large ones repeat less work once there are enough of them."""
    return 16 if width * height <= 256 * 256 else 32


def render(backend: ModuleType, scene: Scene, options: Options) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """`backend` is a module with `project`, `composite` and `accumulate` as in `reference`."""
    cameras, width, height = len(scene.viewmats), scene.width, scene.height
    tile = options.tile_size or default_tile_size(width, height)
    counts = None
    if options.distributed:
        scene, counts = _exchange.with_all_cameras(scene)
    projected, values = _project(backend, scene, options)
    backgrounds, render_mode = options.backgrounds, options.render_mode
    camera_ids = gaussian_ids = None
    if options.packed:
        camera_ids, gaussian_ids = (projected.radii > 0).all(-1).nonzero(as_tuple=True)
        values = values[camera_ids, gaussian_ids]
        projected = _geometry(projected, (camera_ids, gaussian_ids))
    # The graph goes through this very tensor, so that a strategy may ask for its gradient.
    means2d = projected.means2d
    shown = projected
    if counts is not None:
        shown, values = _exchange.to_cameras(projected, values, counts)

    if render_mode != "RGB":
        depth = shown.depths[..., None]
        values = torch.cat([values, depth], -1) if "RGB" in render_mode else depth
        if backgrounds is not None:
            dark = backgrounds.new_zeros(cameras, 1)
            backgrounds = torch.cat([backgrounds, dark], -1) if "RGB" in render_mode else dark
    limits = {"max_alpha": options.max_alpha, "tile_size": tile}
    sums = None
    if camera_ids is not None:
        images, alphas, sums = _packed(backend, projected, values, backgrounds, camera_ids, scene, options, limits)
    else:
        images, alphas = backend.composite(shown, values, backgrounds, width, height, absgrad=options.absgrad, **limits)
        if options.pixel_weights is not None:
            sums = backend.accumulate(shown, options.pixel_weights, **limits)
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


def _project(backend: ModuleType, scene: Scene, options: Options) -> tuple[Projection, Tensor]:
    """The projection and the colours [C, N, D]."""
    sh0, shN = scene.colors if isinstance(scene.colors, tuple) else (scene.colors, None)
    if options.sh_degree is None:
        projected = backend.project(scene, None, None, options)
        return projected, sh0 if sh0.dim() == 3 else sh0.expand(len(scene.viewmats), -1, -1)
    if sh0.dim() == 4:
        # Coefficients of its own for each camera.
        each = [
            backend.project(
                scene._replace(viewmats=scene.viewmats[c, None], Ks=scene.Ks[c, None]), sh0[c], None, options
            )
            for c in range(len(scene.viewmats))
        ]
        projected = Projection(*(torch.cat(fields) for fields in zip(*each, strict=True)))
    else:
        projected = backend.project(scene, sh0, shN, options)
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
    scene: Scene,
    options: Options,
    limits: dict[str, Any],
) -> tuple[Tensor, Tensor, Any]:
    """Composites each camera's part of the packed rows."""
    images, alphas, sums = [], [], []
    ends = torch.bincount(camera_ids, minlength=len(scene.viewmats)).cumsum(0).tolist()
    start = 0
    for camera, end in enumerate(ends):
        rows = slice(start, end)
        start = end
        part = _geometry(projected, (None, rows))
        if options.absgrad and part.means2d.requires_grad:
            _forward_absgrad(projected.means2d, part.means2d, rows)
        background = None if backgrounds is None else backgrounds[camera, None]
        image, alpha = backend.composite(
            part, values[None, rows], background, scene.width, scene.height, absgrad=options.absgrad, **limits
        )
        images.append(image)
        alphas.append(alpha)
        if options.pixel_weights is not None:
            sums.append(backend.accumulate(part, options.pixel_weights[camera, None], **limits))
    joined = None
    if sums:
        joined = type(sums[0])(*(torch.cat(field, 1)[0] for field in zip(*sums, strict=True)))
    return torch.cat(images), torch.cat(alphas), joined


def _forward_absgrad(packed: Tensor, part: Tensor, rows: slice) -> None:
    """Hands the |gradient| sums of one camera's rows on to the packed tensor the caller holds."""

    def hook(_: Tensor) -> None:
        absolute_gradient(packed)[rows] = absolute_gradient(part)[0]

    part.register_hook(hook)
