"""Densification strategies made for images, on the Gaussians of a volume."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..strategy import CappedStrategy, DefaultStrategy, MCMCStrategy, Strategy
from ..trainer.config import ConfigError
from .config import STRATEGY_OPTIONS, VolumeStrategyConfig
from .gaussians import GaussianField, voxel_size
from .grid import VoxelGrid
from .growth import replace_gaussians

#: Name of a field's tensor -> name that strategies use for it.
_NAMES = {"means": "means", "log_scales": "scales", "quats": "quats", "densities": "densities", "features": "features"}

#: Fraction of the Gaussians that an event of gsplat's MCMC adds.
_MCMC_GROWTH = 0.05

#: More steps than any run has, so that opacities are never reset: an additive field has no use for that.
_NEVER = 1 << 40


@dataclass
class _Group:
    """One parameter group of an optimiser, in the form of an optimiser of its own, which strategies expect."""

    state: dict[Tensor, Any]
    param_groups: list[dict[str, Any]]


class StrategyGrowth:
    """Drives a strategy with gsplat's hooks on a `GaussianField`, by volumetric gradients.

    The strategy was written for images, so it gets the quantities of a volume under the names it knows:

    * the gradient of a projected centre is the length of the summed loss's gradient by the mean, in voxels, under one
      camera that sees every Gaussian;
    * the opacity is |density|, cut off at 1;
    * scales up to `small` voxels count as small.

    The field is a sum, so a Gaussian that is split divides its mass, |density| · volume, equally among its parts.
    The budget is hard for every strategy. One that grows by a threshold (gsplat's default) is given, at every event,
    the threshold that only as many Gaussians pass as there is room for; should any be beyond the budget all the same,
    those of least mass go.

    Args:
        strategy: Strategy with the methods `step_pre_backward` and `step_post_backward` of gsplat's strategies.
        budget: Largest number of Gaussians that the field ever has.
        grid: The voxels of the volume.
        small: Scale in voxels up to which a Gaussian counts as small.
    """

    def __init__(self, strategy: Any, budget: int, grid: VoxelGrid, *, small: float = 1.2) -> None:
        self.strategy, self.budget = strategy, budget
        self.threshold: float | None = getattr(strategy, "grow_grad2d", None)
        self.voxel_size = voxel_size(grid)
        self.voxels = math.prod(grid.shape)
        # Strategies call small what is up to a hundredth of the scene.
        self.state = strategy.initialize_state(scene_scale=100 * small * self.voxel_size)

    def check(self, field: GaussianField, optimizer: torch.optim.Optimizer) -> None:
        """The strategy's own check of parameters and optimisers."""
        self.strategy.check_sanity(*self._shown(field, optimizer))

    @torch.no_grad()
    def step(self, step: int, field: GaussianField, optimizer: torch.optim.Optimizer) -> bool:
        """Runs the strategy after an optimiser step, before gradients are cleared. Returns whether Gaussians changed.

        Args:
            step: Number of steps done before this one.
            field: Field whose parameters are replaced in place.
            optimizer: Optimiser of the field. Its state follows the Gaussians; that of new ones starts from zero.
        """
        gradient = field.tensors["means"].grad
        if gradient is None:
            raise ValueError("a strategy needs the gradients of the step: call it before they are cleared")
        params, optimizers = self._shown(field, optimizer)
        means2d = torch.zeros(1, len(field), 2, device=gradient.device, requires_grad=True)
        info = {
            **{"width": 2, "height": 2, "n_cameras": 1, "gaussian_ids": None},
            **{"means2d": means2d, "radii": torch.ones_like(means2d)},
        }
        self.strategy.step_pre_backward(params, optimizers, self.state, step, info)
        means2d.grad = torch.zeros_like(means2d)
        lengths = gradient.norm(dim=1) * (self.voxels * self.voxel_size)
        means2d.grad[0, :, 0] = lengths
        if self.threshold is not None and step % self.strategy.refine_every == 0:
            self.strategy.grow_grad2d = max(self.threshold, self._threshold_for_room(lengths))
        before = {name: params[name] for name in ("means", "densities", "scales")}
        self.strategy.step_post_backward(params, optimizers, self.state, step, info)
        if params["means"] is before["means"]:
            return False
        self._share_mass(params, before)
        for name, shown in _NAMES.items():
            if name in field.tensors:
                field.tensors[name] = params[shown]
        self._keep_budget(field, optimizer)
        return True

    def reorder(self, order: Tensor) -> None:
        """To be called when the field's Gaussians were put in another order."""
        for name, value in self.state.items():
            if isinstance(value, Tensor) and value.shape[:1] == order.shape:
                self.state[name] = value[order]

    def _threshold_for_room(self, lengths: Tensor) -> float:
        """The mean gradient that at most as many Gaussians exceed as may be added."""
        room = self.budget - len(lengths)
        if room >= len(lengths):
            return 0.0
        if room <= 0:
            return math.inf
        if self.state["grad2d"] is not None:
            lengths = (self.state["grad2d"] + lengths) / (self.state["count"] + 1)
        return float(lengths.topk(room + 1).values[-1])

    def _shown(
        self, field: GaussianField, optimizer: torch.optim.Optimizer
    ) -> tuple[dict[str, nn.Parameter], dict[str, _Group]]:
        """The field's tensors and optimiser in the strategy's terms."""
        params = {_NAMES[name]: tensor for name, tensor in field.tensors.items()}
        opacities = field.tensors["densities"].detach().abs().clamp(1e-6, 1 - 1e-6)
        params["opacities"] = nn.Parameter(torch.logit(opacities), requires_grad=False)
        # The index of the Gaussian that each one comes from. Strategies copy parameters that they do not know.
        origin = torch.arange(len(field), device=opacities.device)
        params["origin"] = nn.Parameter(origin, requires_grad=False)
        groups = {_NAMES[group["name"]]: _Group(optimizer.state, [group]) for group in optimizer.param_groups}
        return params, groups

    @staticmethod
    def _share_mass(params: dict[str, nn.Parameter], before: dict[str, nn.Parameter]) -> None:
        origin = params["origin"]
        family = torch.bincount(origin, minlength=len(before["means"]))[origin]
        shrunk = (before["scales"].sum(1)[origin] - params["scales"].sum(1)).exp()
        shared = before["densities"][origin] * shrunk / family
        params["densities"].copy_(torch.where(family > 1, shared, params["densities"]))

    def _keep_budget(self, field: GaussianField, optimizer: torch.optim.Optimizer) -> None:
        if len(field) <= self.budget:
            return
        mass = field.mass()
        keep = mass.topk(self.budget, sorted=False).indices.sort().values
        for name, value in self.state.items():
            if isinstance(value, Tensor) and value.shape[:1] == mass.shape:
                self.state[name] = value[keep]
        replace_gaussians(field, optimizer, keep)


#: The image strategies that work on a volume.
STRATEGIES = ("capped", "default", "mcmc")


def make_growth(config: VolumeStrategyConfig, steps: int, start: int, grid: VoxelGrid) -> StrategyGrowth:
    """Makes the strategy for images that a config names, and adapts it to a volume.

    Args:
        config: Options. The rounds are spread over the first `stop` of the run.
        steps: Number of steps of the run.
        start: Number of Gaussians at the start.
        grid: The voxels of the volume.

    Raises:
        ConfigError: There is no such strategy, or it makes no sense on a volume.
    """
    if config.name == "taming":
        raise ConfigError(
            "strategy.name must not be taming for a volume: its score is over training views, of which a volume has "
            "none; residual is the nearest to it"
        )
    if config.name not in STRATEGIES:
        raise ConfigError(
            f"strategy.name must be one of {', '.join(STRATEGY_OPTIONS)} for a volume, got {config.name!r}"
        )
    factor, rounds = max(1.0, config.budget / start), config.rounds
    if config.name == "mcmc":
        rounds = max(rounds, math.ceil(math.log(factor) / math.log(1 + _MCMC_GROWTH)) + 1)
    every = max(1, round(steps * config.stop) // rounds)
    events: dict[str, Any] = {"refine_start_iter": 0, "refine_every": every, "refine_stop_iter": every * rounds + 1}
    strategy: Strategy
    if config.name == "capped":
        # The budget is reached in the last round.
        growth = factor ** (1 / rounds) - 1 + 1 / start
        strategy = CappedStrategy(budget=config.budget, growth=growth, prune_opa=config.prune_density, **events)
    elif config.name == "mcmc":
        strategy = MCMCStrategy(
            cap_max=config.budget, noise_lr=config.noise, min_opacity=config.prune_density, **events
        )
    else:
        strategy = DefaultStrategy(
            prune_opa=config.prune_density, grow_grad2d=config.grow_gradient, reset_every=_NEVER, **events
        )
    return StrategyGrowth(strategy, config.budget, grid, small=config.sigma)
