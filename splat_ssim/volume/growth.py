"""Growth of a field of Gaussians under a budget, and their order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .gaussians import GaussianField, blur, sample_voxels
from .grid import VoxelGrid
from .voxelize import morton_order

#: Steps between two Morton sorts.
SORT_EVERY = 200


def growth_rounds(steps: int, stop: float, rounds: int) -> tuple[int, ...]:
    """The steps after which `rounds` rounds of growth happen, evenly over the first fraction `stop` of the run."""
    last = max(1, round(steps * stop))
    return tuple(sorted({max(1, round(last * (k + 1) / rounds)) for k in range(rounds)}))


@dataclass
class CappedGrowth:
    """Adds Gaussians where the residual is large, up to a hard budget, and replaces those that contribute least.

    A round draws voxels in proportion to the square of the blurred residual, which is the gradient of the squared error
    with respect to the field. A new Gaussian has the residual there, or its share of it, as density, of either sign.

    Args:
        budget: Largest number of Gaussians.
        at_steps: Steps after which a round happens. The last one reaches the budget.
        recycle: Fraction of the Gaussians that each round replaces. These are the Gaussians of the smallest `mass`.
        sigma: Standard deviation of new Gaussians in voxels.
    """

    budget: int
    at_steps: tuple[int, ...]
    recycle: float = 0.0
    sigma: float = 1.2

    def step(
        self,
        step: int,
        field: GaussianField,
        optimizer: torch.optim.Optimizer,
        target: Tensor,
        grid: VoxelGrid,
        generator: torch.Generator,
        *,
        mask: Tensor | None = None,
    ) -> bool:
        """Performs a round if one is due after `step`. Returns whether it did.

        Args:
            step: Number of steps done.
            field: Field whose parameters are replaced in place.
            optimizer: Optimiser of the field. Its state follows the Gaussians; that of new ones starts from zero.
            target: (C, n0, n1, n2), the volume that is fitted.
            grid: Voxels of the volume.
            generator: Generator of the random numbers, on the CPU.
            mask: (n0, n1, n2) weights of 0 or more for the squared residual. Nothing grows where they are 0.
        """
        if step not in self.at_steps:
            return False
        left = len(self.at_steps) - self.at_steps.index(step)
        with torch.no_grad():
            residual = torch.stack([blur(channel) for channel in target - field(grid)])
            keep = torch.arange(len(field), device=target.device)
            replaced = int(self.recycle * len(field))
            if replaced:
                keep = field.mass().topk(len(field) - replaced, sorted=False).indices.sort().values
            grown = replaced + (self.budget - len(field)) // left
            weight = residual.square().sum(0)
            if mask is not None:
                weight = weight * mask
                # No more voxels can be drawn than the mask has, and no more Gaussians are removed than are added.
                grown = min(grown, int((mask > 0).sum()))
                if replaced > grown:
                    keep = field.mass().topk(len(field) - grown, sorted=False).indices.sort().values
            if grown <= 0:
                return False
            chosen = sample_voxels(weight, grown, generator)
            new = field.spawn(chosen, self.sigma, residual, target, grid, generator)
        replace_gaussians(field, optimizer, keep, new)
        return True


def replace_gaussians(
    field: GaussianField, optimizer: torch.optim.Optimizer, keep: Tensor, new: Mapping[str, Tensor] | None = None
) -> None:
    """Replaces the field's Gaussians by those of `keep` (N',) followed by `new`, with the optimiser's moments."""
    groups = {group["name"]: group for group in optimizer.param_groups}
    for name, old in list(field.tensors.items()):
        added = new[name] if new is not None else old.detach()[:0]
        parameter = nn.Parameter(torch.cat([old.detach()[keep], added]))
        state = optimizer.state.pop(old, {})
        for key, value in state.items():
            if torch.is_tensor(value) and value.shape == old.shape:
                state[key] = torch.cat([value[keep], torch.zeros_like(added)])
        if state:
            optimizer.state[parameter] = state
        groups[name]["params"] = [parameter]
        field.tensors[name] = parameter


def sort_gaussians(field: GaussianField, optimizer: torch.optim.Optimizer, grid: VoxelGrid) -> Tensor:
    """Sorts the Gaussians along a Morton curve, which makes the voxeliser fastest. Returns the order."""
    order = morton_order(field.positions(), grid)
    replace_gaussians(field, optimizer, order)
    return order
