"""Adam on the tensors of a field, with learning rates that warm up and decay over a run."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def make_optimizer(
    tensors: Mapping[str, Tensor], rates: Mapping[str, float], *, elements: int, beta2: float
) -> torch.optim.Optimizer:
    """Makes an Adam with a parameter group for each tensor, named after it.

    Args:
        tensors: Name -> parameter.
        rates: Name -> learning rate at the first step.
        elements: Number of elements of the target. The loss is a mean over them, so gradients shrink with this number,
            and Adam's usual epsilon would be too large.
        beta2: Decay rate of the second moments.
    """
    groups = [{"params": [tensor], "name": name, "lr": rates[name]} for name, tensor in tensors.items()]
    return torch.optim.Adam(groups, betas=(0.9, beta2), eps=1e-8 / elements, fused=True)


def set_learning_rates(
    optimizer: torch.optim.Optimizer,
    rates: Mapping[str, float],
    *,
    step: int,
    steps: int,
    final: float,
    warmup: int,
) -> None:
    """Sets the rates of a step. They rise over `warmup` steps and decay exponentially to the fraction `final`."""
    factor = final ** (step / steps) * min(1.0, (step + 1) / max(1, warmup))
    for group in optimizer.param_groups:
        group["lr"] = rates[group["name"]] * factor
