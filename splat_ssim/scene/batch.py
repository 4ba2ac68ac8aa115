"""Several views a step, as one to a strategy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def joined(infos: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What a strategy asks of the views of a step, after their backward passes.

    Views may differ in size. Gradients of projected centres are handed on in half images, as strategies count them:
    the joined image measures 2x2.

    Args:
        infos: Of `splat_ssim.render.rasterization`, one camera each, not packed.
    """
    if len(infos) == 1:
        return infos[0]
    sizes = [torch.tensor([info["width"] / 2, info["height"] / 2]) for info in infos]
    means2d = torch.cat([info["means2d"].detach() for info in infos])
    kept = means2d.requires_grad_()
    kept.grad = _scaled([_gradient(info["means2d"]) for info in infos], sizes)
    absolute = _scaled([getattr(info["means2d"], "absgrad", None) for info in infos], sizes)
    if absolute is not None:
        kept.absgrad = absolute  # type: ignore[attr-defined]
    return {
        "means2d": kept,
        "radii": torch.cat([info["radii"] for info in infos]),
        "depths": torch.cat([info["depths"] for info in infos]),
        "width": 2,
        "height": 2,
        "n_cameras": len(infos),
        "gaussian_ids": None,
    }


def _gradient(means2d: Tensor) -> Tensor | None:
    """The gradient of projected centres, which only strategies that count it have asked autograd to keep."""
    return means2d.grad if means2d.is_leaf or means2d.retains_grad else None


def _scaled(gradients: Sequence[Tensor | None], sizes: Sequence[Tensor]) -> Tensor | None:
    """Gradients in pixels -> (C, N, 2) in half images, or None where none was kept."""
    known = [gradient for gradient in gradients if gradient is not None]
    if len(known) < len(gradients):
        return None
    return torch.cat([gradient * size.to(gradient) for gradient, size in zip(known, sizes, strict=True)])
