"""Rounding a field to codes, a part at a time, while what is not rounded yet makes up for it.

Rounded all at once, the numbers of a field leave errors that nothing corrects. Here some are rounded and kept, the
others are trained on, then more are rounded: weights first, by which the steps of shapes and places go; then shapes;
then places; then weights again, as far as the steps of the others stay what they are.

Source:
    A. Zhou et al., "Incremental Network Quantization", ICLR 2017, which rounds a network's weights in this way.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from tqdm import tqdm

from ...trainer.signals import Interrupted, Signals
from ..grid import VoxelGrid
from .field import CodedField
from .loss import cut_error
from .quantizer import CLASS_STARTS, MAX_WEIGHT, Steps, classes, coded_values
from .ties import without_ties

#: What is rounded at the beginning of each stage: a kind of numbers, and the share of them that then is. A share of 0
#: frees them all again, within the class that the other numbers' steps go by.
STAGES = (
    *(("weights", share) for share in (0.5, 1.0)),
    *(("shapes", share) for share in (0.25, 0.5, 0.7, 0.85, 1.0)),
    *(("means", share) for share in (0.4, 0.75, 1.0)),
    *(("weights", share) for share in (0.0, 0.4, 0.75, 1.0)),
)
#: Adam's rates at the first step: voxels, logarithms of voxels, and shares of a step of weights.
_RATES = {"means": 0.05, "shapes": 0.01, "weights": 0.08}
#: The rates at the last step over those at the first, and within each stage.
_FINAL, _STAGE_FINAL = 0.1, 0.3


def round_field(
    field: CodedField,
    target: Tensor,
    steps: Steps,
    *,
    low: float = -math.inf,
    length: int,
    seed: int = 0,
    progress: bool = False,
) -> None:
    """Rounds every number of a field, in place, to a value that its codes can represent.

    Args:
        field: Field as it was fitted.
        target: (1, n0, n1, n2) volume that it was fitted to, with a range of about 1.
        steps: Quantisation steps.
        low: The lowest value of the target, see `cut_error`.
        length: Number of training steps.
        seed: Seed of the choice of the numbers that are rounded first.
        progress: Whether to show a progress bar.

    Raises:
        Interrupted: SIGINT or SIGTERM came.
    """
    rounder, grid = _Rounder(field, steps, target, seed), VoxelGrid(field.shape)
    # The last stage has nothing to train, nor has one whose successor frees what is to be trained.
    trained = [k for k in range(len(STAGES) - 1) if STAGES[k + 1][1] > 0]
    bar = tqdm(total=length, unit="it", desc="rounding", disable=not progress, dynamic_ncols=True)
    with Signals() as signals, bar:
        done = 0
        for stage, (name, share) in enumerate(STAGES):
            rounder.round(name, share)
            if stage not in trained:
                continue
            until = length * (trained.index(stage) + 1) // len(trained)
            for step in range(until - done):
                decay = _FINAL ** ((done + step) / length) * _STAGE_FINAL ** (step / (until - done))
                rounder.optimizer.zero_grad(set_to_none=True)
                cut_error(field(grid), target, low=low).backward()
                rounder.step(decay * min(1.0, (step + 1) / 5))
                bar.update()
                if signals.caught:
                    raise Interrupted(signals.caught)
            done = until


class _Rounder:
    """Keeps track of the rounded numbers of a field, and optimises only the others."""

    def __init__(self, field: CodedField, steps: Steps, target: Tensor, seed: int) -> None:
        self.field, self.steps = field, steps
        generator = torch.Generator().manual_seed(seed)
        tensors = dict(field.tensors.items())
        self._turns = {name: torch.rand(t.shape, generator=generator).to(target.device) for name, t in tensors.items()}
        self._free = {name: torch.ones_like(tensor) for name, tensor in tensors.items()}
        self._sizes: tuple[Tensor, Tensor] | None = None
        self._rates = {**_RATES, "weights": _RATES["weights"] * steps.weight}
        groups = [{"params": [tensor], "lr": 0.0, "name": name} for name, tensor in tensors.items()]
        self.optimizer = torch.optim.Adam(groups, betas=(0.9, 0.95), eps=1e-8 / target.numel(), fused=True)

    @torch.no_grad()
    def round(self, name: str, share: float) -> None:
        """Rounds numbers of a kind until a share of them is rounded; or frees them, for a share of 0."""
        tensor, free = self.field.tensors[name], self._free[name]
        if share == 0:
            free.fill_(1.0)
            self._sizes = self._bounds()
            return
        chosen = self._turns[name] < share if share < 1 else torch.ones_like(free, dtype=torch.bool)
        codes = self.field.codes(self.steps)
        if name == "means" and share == 1:
            # Where a Gaussian ends goes by nothing that changes from here on.
            codes, free = without_ties(codes, self.steps, self.field.shape), free.fill_(1.0)
        rounded = torch.from_numpy(coded_values(codes, self.steps)[name]).to(tensor)
        tensor.copy_(torch.where(chosen & (free > 0), rounded, tensor))
        free.masked_fill_(chosen, 0.0)
        state = self.optimizer.state.get(tensor)
        if state:
            # No momentum moves them either.
            state["exp_avg"].mul_(free)

    def _bounds(self) -> tuple[Tensor, Tensor]:
        """Least and largest magnitude of each weight in its class."""
        weights = self.field.tensors["weights"]
        kind = torch.from_numpy(classes(self.field.codes(self.steps).weights)).to(weights.device)
        edges = torch.tensor([*CLASS_STARTS, MAX_WEIGHT + 1], device=weights.device).to(weights)
        return (edges[kind] - 0.49) * self.steps.weight, (edges[kind + 1] - 0.51) * self.steps.weight

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """A step of the optimiser on what is free, at a factor of its rates."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._rates[group["name"]] * factor
        for name, tensor in self.field.tensors.items():
            if tensor.grad is not None:
                tensor.grad *= self._free[name]
        self.optimizer.step()
        if self._sizes is not None:
            weights = self.field.tensors["weights"]
            size = torch.minimum(torch.maximum(weights.abs(), self._sizes[0]), self._sizes[1])
            weights.copy_(torch.where(self._free["weights"] > 0, size.copysign(weights), weights))
