"""Rounding a field to codes, a part at a time, while what is not rounded yet makes up for it.

Rounded all at once, the numbers of a field leave errors that nothing corrects. Here some are rounded and kept, the
others are trained on, then more are rounded: weights first, by which the steps of shapes and places go; then shapes;
then places.

Source:
    A. Zhou et al., "Incremental Network Quantization", ICLR 2017, which rounds a network's weights in this way.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from tqdm import tqdm

from ...trainer.loop import Interrupted, Signals
from ..grid import VoxelGrid
from .field import CodedField
from .loss import cut_error
from .quantizer import Steps, coded_values

#: What is rounded at the beginning of each stage: a kind of numbers, and the share of them that then is.
STAGES = (
    *(("weights", share) for share in (0.5, 1.0)),
    *(("shapes", share) for share in (0.25, 0.5, 0.7, 0.85, 1.0)),
    *(("means", share) for share in (0.4, 0.75, 1.0)),
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
    """Makes every number of a field one that its codes stand for, in place.

    Args:
        field: As it was fitted.
        target: (1, n0, n1, n2) what it is fitted to, of any range about 1.
        steps: What the codes count.
        low: The lowest value of the target: see `cut_error`.
        length: Steps of training; the last stage has none.
        seed: Of which numbers are rounded first.
        progress: Shows a progress bar.

    Raises:
        Interrupted: SIGINT or SIGTERM came.
    """
    generator = torch.Generator().manual_seed(seed)
    device, grid = target.device, VoxelGrid(field.shape)
    turns = {name: torch.rand(tensor.shape, generator=generator).to(device) for name, tensor in field.tensors.items()}
    free = {name: torch.ones_like(tensor) for name, tensor in field.tensors.items()}
    rates = {**_RATES, "weights": _RATES["weights"] * steps.weight}
    groups = [{"params": [tensor], "lr": rates[name], "name": name} for name, tensor in field.tensors.items()]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.95), eps=1e-8 / target.numel(), fused=True)
    trained = STAGES[:-1]
    bar = tqdm(total=length, unit="it", desc="rounding", disable=not progress, dynamic_ncols=True)
    with Signals() as signals, bar:
        done = 0
        for index, (name, share) in enumerate(trained):
            _round(field, steps, name, turns[name] < share, free, optimizer)
            until = length * (index + 1) // len(trained)
            for step in range(until - done):
                decay = _FINAL ** ((done + step) / length) * _STAGE_FINAL ** (step / (until - done))
                for group in optimizer.param_groups:
                    group["lr"] = rates[group["name"]] * decay * min(1.0, (step + 1) / 5)
                optimizer.zero_grad(set_to_none=True)
                cut_error(field(grid), target, low=low).backward()
                for each, tensor in field.tensors.items():
                    if tensor.grad is not None:
                        tensor.grad *= free[each]
                optimizer.step()
                bar.update()
                if signals.caught:
                    raise Interrupted(signals.caught)
            done = until
        _round(field, steps, STAGES[-1][0], torch.ones_like(turns[STAGES[-1][0]], dtype=torch.bool), free, optimizer)


@torch.no_grad()
def _round(
    field: CodedField, steps: Steps, name: str, chosen: Tensor, free: dict[str, Tensor], optimizer: torch.optim.Adam
) -> None:
    """Rounds the chosen numbers that are still free, and keeps them from then on."""
    tensor = field.tensors[name]
    rounded = torch.from_numpy(coded_values(field.codes(steps), steps)[name]).to(tensor)
    tensor.copy_(torch.where(chosen & (free[name] > 0), rounded, tensor))
    free[name].masked_fill_(chosen, 0.0)
    state = optimizer.state.get(tensor)
    if state:
        # No momentum moves them either.
        state["exp_avg"].mul_(free[name])
