"""One Adam for each kind of parameter, as gsplat's strategies expect, with its steps and its learning rates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from splat_ssim.optim import Adam, SelectiveAdam, hold_gradient, release_gradient, step_together
from splat_ssim.scene.options import OptimizerConfig
from splat_ssim.trainer.config import given

Optimizers = dict[str, torch.optim.Optimizer]

#: Value of --optimizer.name -> class.
KINDS: dict[str, type[torch.optim.Optimizer]] = {
    "adam": Adam,
    "torch_adam": torch.optim.Adam,
    "sparse_adam": SelectiveAdam,
}


def make_optimizers(splats: torch.nn.ParameterDict, config: OptimizerConfig, batch_size: int = 1) -> Optimizers:
    """Name of a parameter -> its optimiser. Learning rates are set at each step, see `set_learning_rates`.

    With several views in a step, moments decay as fast as over as many steps of one view, as in gsplat's trainer.
    """
    kind = KINDS[config.name]
    options: dict[str, Any] = {"eps": 1e-15}
    if batch_size > 1:
        options["betas"] = tuple(max(0.0, 1 - batch_size * (1 - beta)) for beta in (0.9, 0.999))
    return {name: kind([{"params": [param], "lr": getattr(config, name)}], **options) for name, param in splats.items()}


@torch.no_grad()
def step_optimizers(optimizers: Optimizers, config: OptimizerConfig, *, step: int, radii: Tensor) -> None:
    """Steps every optimiser and clears its gradients. The higher harmonics are stepped only every `sh_every` steps.

    Args:
        optimizers: Optimisers made by `make_optimizers`.
        config: Options, of which `name` and `sh_every` are used.
        step: Step, from 0. The higher harmonics are stepped at sh_every - 1, 2·sh_every - 1, ..., with the sum of their
            gradients.
        radii: [C, N, 2] radii of the Gaussians in the views of this step, 0 if not in view. Sparse Adam skips the
            latter.
    """
    sparse, lazy = config.name == "sparse_adam", config.sh_every > 1 and "shN" in optimizers
    visible = (radii > 0).all(-1).any(0) if sparse or lazy else None
    due = dict(optimizers)
    seen: dict[str, Tensor | None] = dict.fromkeys(optimizers, visible)
    if lazy:
        hold_gradient(optimizers["shN"], visible)
        if (step + 1) % config.sh_every == 0:
            seen["shN"] = release_gradient(optimizers["shN"])
        else:
            del due["shN"]
    if sparse:
        for name, optimizer in due.items():
            rows = seen[name]
            if isinstance(optimizer, SelectiveAdam) and rows is not None:
                optimizer.step(rows)
    else:
        step_together(due.values())
    for optimizer in due.values():
        for parameter in optimizer.param_groups[0]["params"]:
            parameter.grad = None


def set_learning_rates(
    optimizers: Optimizers, config: OptimizerConfig, *, step: int, steps: int, extent: float, batch_size: int = 1
) -> None:
    """Sets the learning rates of a step. That of positions decays log-linearly throughout, others from decay_start on.

    Args:
        optimizers: Optimisers made by `make_optimizers`.
        config: Resolved config, so that decay_start is a number.
        step: Step, from 0.
        steps: Length of the run.
        extent: Extent of the scene, the unit of the positions' rate.
        batch_size: Number of views in a step. Rates grow by its square root.
    """
    progress = step / steps
    decay_start = given(config.decay_start)
    late = max(0, step - decay_start) / max(1, steps - decay_start)
    for name, optimizer in optimizers.items():
        if name == "means":
            decay = (config.means_final / config.means) ** progress if config.means else 1.0
            rate = extent * config.means * decay
        else:
            rate = getattr(config, name) * config.final_factor**late
        optimizer.param_groups[0]["lr"] = rate * batch_size**0.5
