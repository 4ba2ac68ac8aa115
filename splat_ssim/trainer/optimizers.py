"""One Adam for each kind of parameter, as gsplat's strategies ask for, and their learning rates over a run."""

from __future__ import annotations

import torch

from splat_ssim.optim import Adam
from splat_ssim.trainer.config import OptimizerConfig, given

Optimizers = dict[str, torch.optim.Optimizer]


def make_optimizers(splats: torch.nn.ParameterDict, config: OptimizerConfig) -> Optimizers:
    """Name of a parameter -> its optimiser. Learning rates are set at each step, see `set_learning_rates`."""
    return {name: Adam([param], lr=getattr(config, name), eps=1e-15) for name, param in splats.items()}


def set_learning_rates(
    optimizers: Optimizers, config: OptimizerConfig, *, step: int, steps: int, extent: float
) -> None:
    """Learning rates of a step: positions decay log-linearly from first to last, the others from decay_start on.

    Args:
        optimizers: As of `make_optimizers`.
        config: Resolved, so that decay_start is a number.
        step: From 0.
        steps: Length of the run.
        extent: Of the scene, the unit of the positions' rate.
    """
    progress = step / steps
    decay_start = given(config.decay_start)
    late = max(0, step - decay_start) / max(1, steps - decay_start)
    for name, optimizer in optimizers.items():
        if name == "means":
            rate = extent * config.means * (config.means_final / config.means) ** progress
        else:
            rate = getattr(config, name) * config.final_factor**late
        optimizer.param_groups[0]["lr"] = rate
