"""Changes to the set of Gaussians that keep parameters, optimisers and a strategy's own state aligned."""

from __future__ import annotations

from collections.abc import Callable, Iterable, MutableMapping
from typing import Any

import torch
from torch import Tensor

Params = MutableMapping[str, torch.nn.Parameter] | torch.nn.ParameterDict
Optimizers = dict[str, torch.optim.Optimizer]


def check_parameters(params: Params) -> None:
    """Raises ValueError where a parameter that densification reads is missing."""
    missing = {"means", "scales", "quats", "opacities"} - set(params.keys())
    if missing:
        raise ValueError(f"params must hold means, scales, quats and opacities, got none for {sorted(missing)}")


@torch.no_grad()
def replace_parameters(
    params: Params,
    optimizers: Optimizers,
    new_values: Callable[[str, Tensor], Tensor],
    new_moments: Callable[[Tensor], Tensor],
    names: Iterable[str] | None = None,
) -> None:
    """Gives every parameter new values, possibly of another length, and carries its optimiser's state over.

    Args:
        params: Name -> (N, …) parameter. It is changed in place.
        optimizers: Name -> optimiser of that parameter alone.
        new_values: Function (name, old values) -> new values.
        new_moments: Function (old (N, …) moment of an optimiser) -> new moment.
        names: Names of the parameters to replace. By default all.
    """
    for name in list(params.keys() if names is None else names):
        old = params[name]
        new = torch.nn.Parameter(new_values(name, old.detach()), requires_grad=old.requires_grad)
        params[name] = new
        optimizer = optimizers.get(name)
        if optimizer is None:
            continue
        moments = optimizer.state.pop(old, {})
        # A step count and other scalars belong to the optimiser, not to a Gaussian.
        optimizer.state[new] = {
            key: new_moments(value) if isinstance(value, Tensor) and value.shape[:1] == old.shape[:1] else value
            for key, value in moments.items()
        }
        optimizer.param_groups[0]["params"] = [new]


def zero_state(state: dict[str, Any], keys: tuple[str, ...], count: int, device: torch.device) -> None:
    """Sets running sums of a strategy to zeros for `count` Gaussians."""
    for key in keys:
        state[key] = torch.zeros(count, device=device)
