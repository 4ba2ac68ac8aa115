"""One Adam for each kind of parameter, as gsplat's strategies ask for: its steps, and its learning rate over a run."""

from __future__ import annotations

import torch
from torch import Tensor

from splat_ssim.optim import Adam, SelectiveAdam, hold_gradient, release_gradient
from splat_ssim.trainer.config import OptimizerConfig, given

Optimizers = dict[str, torch.optim.Optimizer]

#: Value of --optimizer.name -> class.
KINDS: dict[str, type[torch.optim.Optimizer]] = {
    "adam": Adam,
    "torch_adam": torch.optim.Adam,
    "sparse_adam": SelectiveAdam,
}


def make_optimizers(splats: torch.nn.ParameterDict, config: OptimizerConfig) -> Optimizers:
    """Name of a parameter -> its optimiser. Learning rates are set at each step, see `set_learning_rates`."""
    kind = KINDS[config.name]
    return {
        name: kind([{"params": [param], "lr": getattr(config, name)}], eps=1e-15)  # type: ignore[call-arg]
        for name, param in splats.items()
    }


@torch.no_grad()
def step_optimizers(optimizers: Optimizers, config: OptimizerConfig, *, step: int, visible: Tensor) -> None:
    """Steps every optimiser and clears the gradients; the higher harmonics' only each `sh_every` steps, on their sum.

    Args:
        optimizers: As of `make_optimizers`.
        config: Which optimiser, and sh_every.
        step: From 0; the harmonics are stepped at sh_every - 1, 2·sh_every - 1, ...
        visible: [N] bool, the Gaussians in the view of this step: all that sparse Adam changes.
    """
    for name, optimizer in optimizers.items():
        seen: Tensor | None = visible
        if name == "shN" and config.sh_every > 1:
            hold_gradient(optimizer, visible)
            if (step + 1) % config.sh_every != 0:
                continue
            seen = release_gradient(optimizer)
        if isinstance(optimizer, SelectiveAdam):
            if seen is not None:
                optimizer.step(seen)
        else:
            optimizer.step()
        optimizer.zero_grad()


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
