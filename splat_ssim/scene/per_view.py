"""Parameters of each training view, such as its exposure and its pose."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from splat_ssim.optim import Adam
from splat_ssim.trainer.ranks import Ranks
from splat_ssim.trainer.states import load_optimizer


def rate_that_reaches(distance: float, updates: float, final: float) -> float:
    """Returns the initial learning rate with which Adam can move a parameter this far, if all steps have full length.

    Args:
        distance: Total distance that the parameter can move.
        updates: Number of steps that each view gets in the run.
        final: Final learning rate as a fraction of the initial one, as in `PerView`.

    Example:
        >>> from splat_ssim.scene.per_view import rate_that_reaches
        >>> rate_that_reaches(1.0, 100.0, 1.0)
        0.01
    """
    mean = 1.0 if final == 1 else (1 - final) / -math.log(final)
    return distance / (mean * max(updates, 1.0))


class PerView:
    """A tensor for each training view, initially zero, and one Adam that steps the tensors that were used.

    Args:
        count: Number of training views.
        shape: Shape of each view's tensor.
        device: Device of the tensors.
        rate: Initial learning rate.
        final: Final learning rate as a fraction of the initial one. The rate decays log-linearly.
    """

    def __init__(self, count: int, shape: Sequence[int], device: torch.device, rate: float, final: float) -> None:
        self.values = [torch.nn.Parameter(torch.zeros(tuple(shape), device=device)) for _ in range(count)]
        self.rate, self.final = rate, final
        # Adam counts the steps of each parameter separately, and skips those without a gradient.
        self.optimizer = Adam(self.values, lr=rate, eps=1e-15)

    def __getitem__(self, index: int) -> Tensor:
        """The tensor of a view."""
        return self.values[index]

    def __len__(self) -> int:
        return len(self.values)

    def share(self, used: Sequence[int], ranks: Ranks) -> None:
        """Sums the gradients of a step's views over the ranks. Each rank has rendered some of the views."""
        if ranks.count == 1:
            return
        for index in sorted(set(used)):
            value = self.values[index]
            value.grad = torch.zeros_like(value) if value.grad is None else value.grad
            ranks.sum([value.grad])

    def step(self, progress: float) -> None:
        """Performs one step for the views that have a gradient, and clears the gradients.

        Args:
            progress: Fraction of the run that is done. It sets the learning rate.
        """
        self.optimizer.param_groups[0]["lr"] = self.rate * self.final**progress
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """The tensors and their optimiser."""
        return {"values": [value.detach() for value in self.values], "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Any, name: str) -> None:
        """Restores the state that `state_dict` returned.

        Raises:
            ValueError: The state does not fit. The message begins with `name`.
        """
        values = state.get("values") if isinstance(state, Mapping) else None
        if not isinstance(values, list) or len(values) != len(self.values):
            raise ValueError(f"{name}: required a tensor for each of {len(self.values)} training views, got others")
        for own, value in zip(self.values, values, strict=True):
            if not isinstance(value, Tensor) or value.shape != own.shape or value.dtype != own.dtype:
                raise ValueError(f"{name}.values: required tensors of shape {tuple(own.shape)}, got another")
        with torch.no_grad():
            for own, value in zip(self.values, values, strict=True):
                own.copy_(value)
        load_optimizer(self.optimizer, state.get("optimizer"), f"{name}.optimizer")
