"""The score of Taming 3DGS: how much each Gaussian matters to the pixels that are still wrong.

Source: S. S. Mallick et al., "Taming 3DGS: High-Quality Radiance Fields with Limited Resources", SIGGRAPH Asia 2024,
section 4 and its supplement. Written from the paper's formulas.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

#: Weights of the terms of the score, by name: nine per-Gaussian quantities and, over all of them, the view's loss.
SCORE_WEIGHTS = {
    "gradient": 25.0,
    "opacity": 100.0,
    "depth": 5.0,
    "radius": 10.0,
    "volume": 25.0,
    "distance": 50.0,
    "pixel_weight": 10.0,
    "pixel_count": 0.1,
    "contribution": 50.0,
}
VIEW_IMPORTANCE = 50.0
ERROR_WEIGHT = 50.0
EDGE_WEIGHT = 50.0


@dataclass
class ViewStats:
    """Statistics of each Gaussian in one training view. The trainer's `score_views` yields them.

    Attributes:
        loss: The view's photometric loss, 0.8·L1 + 0.2·(1 - SSIM).
        depths: (N,) distance along the viewing axis, in scene units.
        radii: (N,) screen radius in pixels. It is 0 if the Gaussian is not visible in this view.
        pixel_count: (N,) number of pixels that the Gaussian contributes to.
        pixel_weight: (N,) sum of `pixel_weights` over those pixels.
        contribution: (N,) sum of transmittance times alpha over those pixels.
        distance: (N,) sum of the distances in pixels from those pixels to the projected centre.
    """

    loss: float
    depths: Tensor
    radii: Tensor
    pixel_count: Tensor
    pixel_weight: Tensor
    contribution: Tensor
    distance: Tensor

    def of(self, rows: slice) -> ViewStats:
        """The statistics of some of the Gaussians."""
        parts: dict[str, Any] = {name: value[rows] for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **parts)


def budget_curve(start: int, budget: int, num_events: int) -> list[int]:
    """Returns the number of Gaussians after each densification event: a parabola that ends flat at the budget.

    `count(x) = S + (B - S)·(2x/N - x²/N²)` for x = 1 … N, rounded down, so the last count is the budget itself.

    Args:
        start: S, the number of Gaussians before the first event. If it exceeds the budget, every count is the budget.
        budget: B, the number of Gaussians after the last event.
        num_events: N, the number of events.

    Returns:
        `num_events` counts. They never fall and never exceed the budget.

    Example:
        >>> from splat_ssim.strategy.scoring import budget_curve
        >>> budget_curve(1000, 5000, 4)
        [2750, 4000, 4750, 5000]
    """
    if num_events < 0 or start < 0 or budget < 0:
        raise ValueError(f"start, budget and num_events must not be negative, got {start}, {budget} and {num_events}")
    start, span = min(start, budget), max(budget - start, 0)
    # Whole numbers throughout: (2xN - x²)/N² of the span, rounded down, is exact.
    return [start + span * (2 * x * num_events - x * x) // num_events**2 for x in range(1, num_events + 1)]


def _min_max(values: Tensor) -> Tensor:
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else torch.zeros_like(values)


def edge_map(image: Tensor) -> Tensor:
    """Returns the magnitude of the Laplacian of the greyscale image, zero at the border.

    Args:
        image: (3, H, W) float, values in [0, 1].

    Returns:
        (H, W), non-negative.
    """
    red, green, blue = image
    grey = 0.299 * red + 0.587 * green + 0.114 * blue  # ITU-R BT.601
    edges = torch.zeros_like(grey)
    if min(grey.shape) >= 3:
        centre = grey[1:-1, 1:-1]
        edges[1:-1, 1:-1] = (grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * centre).abs()
    return edges


def pixel_weights(render: Tensor, truth: Tensor) -> Tensor:
    """Weights each pixel by `50·minmax(mean_c |render - truth|) + 50·minmax(edges(truth))`.

    Args:
        render: (3, H, W) float, values in [0, 1].
        truth: Same shape and range as `render`.

    Returns:
        (H, W), values in [0, 100].
    """
    if render.shape != truth.shape or render.dim() != 3 or render.shape[0] != 3:
        raise ValueError(
            f"render and truth must have the same shape (3, H, W), got {tuple(render.shape)} and {tuple(truth.shape)}"
        )
    return ERROR_WEIGHT * _min_max((render - truth).abs().mean(0)) + EDGE_WEIGHT * _min_max(edge_map(truth))


def normalize_by_median(weight: float, values: Tensor) -> Tensor:
    """`weight · q / median(q over q > 0)` where q > 0, else 0: each term's typical value becomes its weight."""
    positive = values > 0
    if not bool(positive.any()):
        return torch.zeros_like(values)
    return torch.where(positive, weight * values / values[positive].median(), torch.zeros_like(values))


def view_score(stats: ViewStats, gradient: Tensor, opacities: Tensor, scales: Tensor) -> Tensor:
    """Returns the score that one view gives each Gaussian. It is zero for Gaussians that the view does not see.

    Args:
        stats: The view's statistics.
        gradient: (N,) mean norm of the image-plane gradient of the centre, over the views that saw the Gaussian.
        opacities: (N,) in [0, 1].
        scales: (N, 3) standard deviations along the principal axes, in scene units.

    Returns:
        (N,) scores, non-negative.
    """
    visible = stats.radii > 0
    terms = {
        "gradient": gradient,
        "opacity": opacities,
        "depth": stats.depths,
        "radius": stats.radii,
        "volume": scales.prod(dim=-1),
        "distance": stats.distance,
        "pixel_weight": stats.pixel_weight,
        "pixel_count": stats.pixel_count,
        "contribution": stats.contribution,
    }
    score = torch.zeros_like(opacities)
    for name, values in terms.items():
        if values.shape != opacities.shape:
            raise ValueError(f"{name} must have shape {tuple(opacities.shape)}, got {tuple(values.shape)}")
        # The median is taken among the Gaussians this view sees.
        score += normalize_by_median(SCORE_WEIGHTS[name], torch.where(visible, values, 0).to(score.dtype))
    if not math.isfinite(stats.loss):
        raise ValueError(f"a view's loss must be finite, got {stats.loss}")
    return VIEW_IMPORTANCE * stats.loss * score
