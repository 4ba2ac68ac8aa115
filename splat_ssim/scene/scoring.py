"""Statistics of each Gaussian over training views, for strategies that score Gaussians."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from splat_ssim.loss import photometric_loss
from splat_ssim.scene.data import View
from splat_ssim.strategy.scoring import ViewStats, pixel_weights

#: Renders a view: (view, pixel_weights=None or [1, H, W]) -> colours (1, H, W, 3), alphas, info.
RenderView = Callable[..., tuple[Tensor, Tensor, dict[str, Any]]]


@torch.no_grad()
def score_views(
    render_view: RenderView, views: Sequence[View], count: int, device: torch.device
) -> Iterator[ViewStats]:
    """Yields the statistics of `count` views drawn without replacement, or of all views if there are fewer.

    Args:
        render_view: Renderer of the trainer with its accumulators, see `splat_ssim.render.rasterization`.
        views: Training views.
        count: Number of views to draw, with torch's global generator.
        device: Device to render on.

    Yields:
        The statistics of one view.
    """
    for index in torch.randperm(len(views))[:count].tolist():
        view = views[index].to(device)
        truth = view.pixels()
        pred = render_view(view)[0].permute(0, 3, 1, 2)
        mask = None if view.mask is None else view.mask[None, None]
        loss, _ = photometric_loss(pred, truth, mask=mask, return_terms=True)
        weights = pixel_weights(pred[0].clamp(0, 1), truth[0])
        # Weights depend on the render, so the weighted sums need a second render.
        info = render_view(view, pixel_weights=weights[None])[2]
        sums = info["accumulators"]
        yield ViewStats(
            loss=float(loss),
            depths=info["depths"][0],
            radii=info["radii"][0].amax(-1).float(),
            pixel_count=sums.count.reshape(-1).float(),
            pixel_weight=sums.weight.reshape(-1),
            contribution=sums.opacity.reshape(-1),
            distance=sums.distance.reshape(-1),
        )
