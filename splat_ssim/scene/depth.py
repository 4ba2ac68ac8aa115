"""Supervision by depths: of a whole image, or at the points that a reconstruction saw in it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from splat_ssim.scene.data import View


def depth_loss(depth: Tensor, alpha: Tensor, view: View, extent: float) -> Tensor:
    """Computes the mean absolute difference of inverse depths, times the scene's extent.

    Inverse depths are bounded far away, where depths are least accurate. Pixels that a mask excludes do not count, nor
    do pixels where nothing is rendered.

    Args:
        depth: (1, H, W, 1) expected depth of a render.
        alpha: (1, H, W, 1) opacity of the render.
        view: View with a `depth` or a `sparse_depth` to compare with. If it has both, `depth` is used. A depth of 0 is
            unknown.
        extent: Extent of the scene.

    Source: gsplat's trainer, which compares disparities at COLMAP's points.
    """
    if view.depth is not None:
        known = view.depth > 0
        if view.mask is not None:
            known = known & view.mask
        rendered, opaque, truth = depth[0, ..., 0], alpha[0, ..., 0], view.depth
    else:
        assert view.sparse_depth is not None
        places, truth = view.sparse_depth[:, :2], view.sparse_depth[:, 2]
        size = places.new_tensor([view.width, view.height])
        both = torch.cat([depth, alpha], -1).permute(0, 3, 1, 2)
        # Pixel centres are at +0.5, as in a view.
        rendered, opaque = F.grid_sample(both, (places / size * 2 - 1)[None, None], align_corners=False)[0, :, 0]
        known = truth > 0
    weight = (known & (opaque.detach() > 0.01)).to(rendered.dtype)
    difference = (1 / rendered.clamp(min=1e-6) - 1 / torch.where(known, truth, 1.0)).abs()
    return extent * (weight * difference).sum() / weight.sum().clamp(min=1)
