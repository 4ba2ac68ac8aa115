"""The squared error that a decoded volume has, whose values are cut to those that were fitted."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _CutError(torch.autograd.Function):
    """Mean of squared differences; none where a value beyond 0 or 1 is cut to the target's."""

    @staticmethod
    def forward(ctx: Any, pred: Tensor, target: Tensor) -> Tensor:
        # Where the target is 0, what lies below is no error, and where it is 1, what lies above.
        difference = torch.where(target <= 0, pred.clamp(min=0), pred)
        difference = torch.where(target >= 1, difference.clamp(max=1), difference).sub_(target)
        ctx.save_for_backward(difference)
        flat = difference.flatten()
        return torch.dot(flat, flat) / max(1, flat.numel())

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        (difference,) = ctx.saved_tensors
        return difference * (2.0 * upstream[0] / max(1, difference.numel())), None


def cut_error(pred: Tensor, target: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Mean squared error of `pred` cut to [0, 1], for targets in that range; differentiable by `pred`.

    Where 0 < target < 1, values are compared as they are, so that every one of them has a gradient.

    Args:
        pred: Any shape, float32 or float64.
        target: The same shape, values in [0, 1].
        mask: Not taken.

    Raises:
        ValueError: A mask.

    Example:
        >>> import torch
        >>> from splat_ssim.volume.codec.loss import cut_error
        >>> cut_error(torch.tensor([-3.0, 0.5, 1.5]), torch.tensor([0.0, 0.5, 1.0]))
        tensor(0.)
    """
    if mask is not None:
        raise ValueError("cut_error takes no mask, got one")
    return _CutError.apply(pred, target)
