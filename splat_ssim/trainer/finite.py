"""Detects NaN and infinite values in losses and states before they replace a good checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from splat_ssim.errors import UserError
from splat_ssim.trainer.task import Report


class NotFiniteError(UserError):
    """The loss or the state of a run is NaN or infinite. The message names the step and the tensor."""


class LossWatch:
    """Finds the first loss that is not finite.

    A loss on the CPU is read at once. A loss on another device is kept there with its step until `check` reads all kept
    losses in one copy. So noting a loss neither starts a kernel nor waits.
    """

    def __init__(self) -> None:
        self._gathered: list[tuple[int, dict[str, Tensor]]] = []

    def note(self, step: int, report: Report) -> str | None:
        """Takes the loss of a step. Returns what is wrong with it if that is known already, else None."""
        scalars = report.known()
        loss = scalars.get("loss", 0.0)
        if isinstance(loss, Tensor) and loss.device.type != "cpu":
            tensors = {name: value.detach() for name, value in scalars.items() if isinstance(value, Tensor)}
            self._gathered.append((step, {name: value for name, value in tensors.items() if _is_scalar(value)}))
            return None
        return None if math.isfinite(_number(loss)) else _problem(step, scalars)

    def check(self) -> str | None:
        """Reads the kept losses. Returns what is wrong with the first bad one, or None if all are finite.

        It waits for the device if there are any losses to read.
        """
        gathered, self._gathered = self._gathered, []
        if not gathered:
            return None
        losses = torch.stack([tensors["loss"].reshape(()).float() for _, tensors in gathered])
        for (step, tensors), loss in zip(gathered, losses.cpu().tolist(), strict=True):
            if not math.isfinite(loss):
                return _problem(step, tensors)
        return None


def _is_scalar(value: float | Tensor) -> bool:
    return not isinstance(value, Tensor) or value.numel() == 1


def _number(value: float | Tensor) -> float:
    return value.item() if isinstance(value, Tensor) else value


def _problem(step: int, scalars: Mapping[str, float | Tensor]) -> str:
    """A message with every scalar of the step at which the loss was not finite."""
    values = {name: _number(value) for name, value in scalars.items() if _is_scalar(value)}
    loss = values.pop("loss")
    terms = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
    return f"the loss must be finite, got {loss} at step {step}" + (f" ({terms})" if terms else "")


def state_problem(step: int, state: Mapping[str, Any]) -> str | None:
    """Describes the first tensor with values that are not finite in a state that is about to be saved, if there is one.

    Args:
        step: Number of steps done.
        state: State as `Task.state_dict` returns it: tensors in nested mappings and sequences. Only float tensors are
            checked.

    Returns:
        One sentence, or None. The function waits for the device once, and a second time only if something is wrong.

    Example:
        >>> import torch
        >>> from splat_ssim.trainer.finite import state_problem
        >>> state_problem(7, {"splats": {"means": torch.tensor([1.0, float("nan")])}})
        'splats.means must be finite, got 1 of 2 values that are not after step 7'
    """
    tensors = [(name, tensor) for name, tensor in _tensors("", state) if tensor.numel()]
    if not tensors:
        return None
    # A finite sum means that all values are finite. An infinite sum may be an overflow, so those are checked again.
    sums = torch.stack([tensor.detach().sum(dtype=torch.float32).to(tensors[0][1].device) for _, tensor in tensors])
    for (name, tensor), total in zip(tensors, sums.cpu().tolist(), strict=True):
        if math.isfinite(total):
            continue
        bad = int((~torch.isfinite(tensor.detach())).sum())
        if bad:
            return f"{name} must be finite, got {bad} of {tensor.numel()} values that are not after step {step}"
    return None


def _tensors(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors of floats in nested containers, by dotted name."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _tensors(f"{name}.{key}" if name else str(key), item)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _tensors(f"{name}.{index}", item)
