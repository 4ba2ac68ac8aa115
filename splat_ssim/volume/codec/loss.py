"""The squared error that a decoded volume has, whose values are cut to those that were fitted."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

#: Further than any value lies below any target but the lowest.
_FAR = 1e9


class _CutError(torch.autograd.Function):
    """Mean of squared differences; none where a value is cut to the target's."""

    @staticmethod
    def forward(ctx: Any, pred: Tensor, target: Tensor, low: float) -> Tensor:
        difference = pred - target
        if low > -math.inf:
            # Where the target is the lowest value, what lies below is no error: there, and only there, the bound is 0.
            torch.maximum(difference, (target - low).mul_(-_FAR), out=difference)
        ctx.save_for_backward(difference)
        flat = difference.flatten()
        return torch.dot(flat, flat) / max(1, flat.numel())

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        (difference,) = ctx.saved_tensors
        return difference * (2.0 * upstream[0] / max(1, difference.numel())), None, None


def cut_error(pred: Tensor, target: Tensor, *, mask: Tensor | None = None, low: float = -math.inf) -> Tensor:
    """Mean squared error of values that a decoder will clamp to at least `low`. `pred` gets a gradient.

    A value below `low` costs nothing where the target is `low`. Elsewhere values are compared without clamping, so that
    all of them have a gradient.

    Args:
        pred: Any shape, float32 or float64.
        target: Same shape as `pred`, values of at least `low`.
        mask: Must be None. The argument exists because losses of the registry have it.
        low: The lowest value. By default there is none.

    Raises:
        ValueError: A mask is given.

    Example:
        >>> import torch
        >>> from splat_ssim.volume.codec.loss import cut_error
        >>> cut_error(torch.tensor([-3.0, 0.5]), torch.tensor([0.0, 0.5]), low=0.0)
        tensor(0.)
    """
    if mask is not None:
        raise ValueError("cut_error takes no mask, got one")
    apply: Callable[[Tensor, Tensor, float], Tensor] = _CutError.apply
    return apply(pred, target, low)
