"""Gaussians that are divided among the processes of a run (`--sharded`), as in gsplat's distributed mode."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from splat_ssim.errors import UserError
from splat_ssim.scene.config import SceneConfig
from splat_ssim.scene.data import Scene
from splat_ssim.scene.model import Splats
from splat_ssim.scene.options import StrategyConfig
from splat_ssim.trainer.draws import seed_of
from splat_ssim.trainer.ranks import ALONE, Ranks


class Collected(NamedTuple):
    """The state with the Gaussians of all processes, and the Gaussians of this process alone."""

    state: dict[str, Any]
    own: Splats


class Shards:
    """The part of the Gaussians that this process holds, and how all of them come together.

    If the run is not sharded, or has one process, every process holds all Gaussians, and the methods change nothing.

    Args:
        config: Config of the run.
        ranks: The processes of the run.
        scene: Scene that is trained.

    Raises:
        UserError: The run cannot be sharded. The message says why.
    """

    def __init__(self, config: SceneConfig, ranks: Ranks, scene: Scene) -> None:
        self.ranks = ranks if config.sharded else ALONE
        self.seed = config.seed
        if self.active:
            _check(config, scene)

    @property
    def active(self) -> bool:
        """Whether this process holds only a part of the Gaussians."""
        return self.ranks.count > 1

    def notes(self, config: SceneConfig) -> list[str]:
        """What is printed before a run: how Gaussians are divided, or that there is nothing to divide."""
        if self.active:
            return [f"Gaussians: divided among {self.ranks.count} processes (--sharded)"]
        return (
            ["Gaussians: all in this process, since there is no other (--sharded, torchrun)"] if config.sharded else []
        )

    def own_strategy(self, config: StrategyConfig) -> StrategyConfig:
        """The strategy of this process: its budget is this process's part of the budget."""
        return replace(config, budget=max(1, self._shares(config.budget)[self.ranks.rank]))

    def own_start(self, splats: Splats) -> Splats:
        """Every n-th Gaussian of a start, for n processes, so that all parts cover the whole scene."""
        if not self.active:
            return splats
        own = {name: value.detach()[self.ranks.rank :: self.ranks.count].clone() for name, value in splats.items()}
        return Splats({name: torch.nn.Parameter(value, splats[name].requires_grad) for name, value in own.items()})

    def own_state(self, state: dict[str, Any], count: int) -> dict[str, Any]:
        """This process's part of the state of a checkpoint with `count` Gaussians.

        A run with as many processes as before continues with the parts that it had. Otherwise all parts are equal.
        """
        if not self.active:
            return state
        counts = self._held(state.get("shards"), count) or self._shares(count)
        start = sum(counts[: self.ranks.rank])
        return _mapped(state, lambda rows: rows[start : start + counts[self.ranks.rank]].clone())

    def whole_state(self, state: Mapping[str, Any]) -> dict[str, Any] | None:
        """The state with the Gaussians of all processes, on the CPU of the first process. The others get None."""
        counts = self.ranks.counts(len(state["splats"]["means"]))
        whole = _mapped(state, lambda rows: self.ranks.rows_to_first(rows, counts))
        return {**whole, "shards": counts} if self.ranks.is_first else None

    def everywhere(self, splats: Splats) -> tuple[Splats, slice]:
        """The Gaussians of all processes, in every process, and which of them are this process's own."""
        if not self.active:
            return splats, slice(None)
        counts = self.ranks.counts(len(splats["means"]))
        start = sum(counts[: self.ranks.rank])
        parts = {name: self.ranks.rows(value.detach(), counts) for name, value in splats.items()}
        whole = Splats({name: torch.nn.Parameter(value, False) for name, value in parts.items()})
        return whole, slice(start, start + counts[self.ranks.rank])

    def total(self, count: int) -> int:
        """The number of Gaussians of all processes."""
        return sum(self.ranks.counts(count))

    def weighted(self, penalty: Tensor, count: int) -> Tensor:
        """This process's part of a mean over the Gaussians of all processes, of which it holds `count`."""
        return penalty * (count / self.total(count)) if self.active else penalty

    def sum(self, part: Tensor) -> Tensor:
        """The sum of a number over the processes, without a gradient."""
        return self.ranks.gather(part.detach()[None]).sum() if self.active else part.detach()

    def seed_step(self, step: int) -> None:
        """Seeds torch's generators for a step, so that processes draw different numbers, and a resumed run the same."""
        if self.active:
            torch.manual_seed(seed_of(self.seed, step * self.ranks.count + self.ranks.rank))

    def _shares(self, count: int) -> list[int]:
        """`count` divided evenly among the processes."""
        each, more = divmod(count, self.ranks.count)
        return [each + (rank < more) for rank in range(self.ranks.count)]

    def _held(self, parts: Any, count: int) -> list[int] | None:
        """How as many processes as now divided the Gaussians of a checkpoint, or None if they were not as many."""
        if not isinstance(parts, list) or not all(type(part) is int and part >= 0 for part in parts):
            return None
        return parts if len(parts) == self.ranks.count and sum(parts) == count else None


def _check(config: SceneConfig, scene: Scene) -> None:
    """Raises UserError for what the processes of a sharded run cannot share."""
    where = "sharded with several processes (--sharded)"
    if config.strategy.name == "taming":
        raise UserError(
            f"{where}: strategy.name must be capped, default or mcmc, got taming, which ranks all Gaussians"
        )
    if config.strategy.absgrad:
        raise UserError(f"{where}: strategy.absgrad must be off, as in gsplat's distributed mode, got on")
    sizes = sorted({(view.width, view.height) for view in scene.train})
    if len(sizes) > 1:
        got = ", ".join(f"{width}x{height}" for width, height in sizes[:3])
        raise UserError(f"{where}: {scene.name}: required training images of one size, got {got}")


def _mapped(state: Mapping[str, Any], function: Callable[[Tensor], Any]) -> dict[str, Any]:
    """The state with a function applied to each tensor that has a row for each Gaussian, in the same order everywhere.

    These are the parameters, the moments of their optimisers, and the sums of a strategy, which are one-dimensional.
    """

    def rows(value: Any, dimensions: Sequence[int]) -> Any:
        return function(value) if isinstance(value, Tensor) and value.dim() in dimensions else value

    optimizers = {}
    for name, optimizer in state["optimizers"].items():
        moments = {
            index: {key: rows(value, (1, 2, 3)) for key, value in own.items()}
            for index, own in optimizer["state"].items()
        }
        optimizers[name] = {**optimizer, "state": moments}
    return {
        **state,
        "splats": {name: rows(value, (1, 2, 3)) for name, value in state["splats"].items()},
        "optimizers": optimizers,
        "strategy": {name: rows(value, (1,)) for name, value in state["strategy"].items()},
    }
