"""Joins the views of a step, possibly from several processes, so that optimisers and strategy see a single step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from splat_ssim.scene.data import View
from splat_ssim.scene.model import Splats
from splat_ssim.trainer.metrics import psnr
from splat_ssim.trainer.ranks import ALONE, Ranks


@dataclass
class Seen:
    """A view of a training step, after its backward pass.

    Attributes:
        view: The view that was rendered.
        loss: Loss of this view alone.
        terms: Terms of the loss, by name.
        pred: (1, 3, H, W), the rendered image.
        info: The info that `splat_ssim.render.rasterization` returned, not packed.
    """

    view: View
    loss: Tensor
    terms: Mapping[str, Tensor]
    pred: Tensor
    info: dict[str, Any]

    def psnr(self) -> float | Tensor:
        """PSNR of the render."""
        return psnr(self.pred, self.view.pixels(), self.view.mask)


@dataclass
class Together:
    """A step over all of its views: the mean of the losses and of their terms, and what a strategy asks for."""

    loss: Tensor
    terms: dict[str, Tensor]
    info: dict[str, Any]


def together(seen: Sequence[Seen], splats: Splats, ranks: Ranks, *, sharded: bool = False) -> Together:
    """Sums the gradients of the Gaussians over the ranks, and joins the results of their views.

    Args:
        seen: The views of this process. `splats` holds the sum of their gradients, each weighted by the view's share of
            the loss.
        splats: The Gaussians, the same in every process; or, sharded, those of this process.
        ranks: The processes of the run.
        sharded: Whether each process has Gaussians of its own. The renderer has then exchanged their gradients, and the
            infos are of the views of all processes.
    """
    if ranks.count == 1 and len(seen) == 1:
        return Together(seen[0].loss, dict(seen[0].terms), seen[0].info)
    for value in splats.values():
        value.grad = torch.zeros_like(value) if value.grad is None else value.grad
    if not sharded:
        ranks.sum([value.grad for value in splats.values() if value.grad is not None])
    names = list(seen[0].terms)
    rows = torch.stack([torch.stack([one.loss, *(one.terms[name] for name in names)]) for one in seen])
    means = ranks.gather(rows).mean(0)
    info = joined([one.info for one in seen], ALONE if sharded else ranks)
    return Together(means[0], dict(zip(names, means[1:], strict=True)), info)


def joined(infos: Sequence[dict[str, Any]], ranks: Ranks) -> dict[str, Any]:
    """Joins the infos of a step's views, after their backward passes, to the one info that a strategy expects.

    Views may differ in size. Gradients of projected centres are therefore converted to units of half an image, which
    strategies use anyway: the joined image measures 2x2.

    Args:
        infos: Infos of `splat_ssim.render.rasterization`, not packed.
        ranks: The processes of the run. Each has the same number of views.
    """
    sizes = [torch.tensor([info["width"] / 2, info["height"] / 2]) for info in infos]
    means2d = ranks.gather(torch.cat([info["means2d"].detach() for info in infos])).requires_grad_()
    gradients = _scaled([_gradient(info["means2d"]) for info in infos], sizes)
    means2d.grad = None if gradients is None else ranks.gather(gradients)
    absolute = _scaled([getattr(info["means2d"], "absgrad", None) for info in infos], sizes)
    if absolute is not None:
        means2d.absgrad = ranks.gather(absolute)  # type: ignore[attr-defined]
    return {
        "means2d": means2d,
        "radii": ranks.gather(torch.cat([info["radii"] for info in infos])),
        "depths": ranks.gather(torch.cat([info["depths"].detach() for info in infos])),
        "width": 2,
        "height": 2,
        "n_cameras": len(means2d),
        "gaussian_ids": None,
    }


def _gradient(means2d: Tensor) -> Tensor | None:
    """The gradient of projected centres, or None if the strategy has not asked autograd to keep it."""
    return means2d.grad if means2d.is_leaf or means2d.retains_grad else None


def _scaled(gradients: Sequence[Tensor | None], sizes: Sequence[Tensor]) -> Tensor | None:
    """Gradients in pixels -> (C, N, 2) in half images, or None where none was kept."""
    known = [gradient for gradient in gradients if gradient is not None]
    if len(known) < len(gradients):
        return None
    return torch.cat([gradient * size.to(gradient) for gradient, size in zip(known, sizes, strict=True)])
