"""Makes the densification strategy that the options of a run describe."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

from splat_ssim.scene.options import STRATEGY_OPTIONS, StrategyConfig
from splat_ssim.strategy import CappedStrategy, DefaultStrategy, MCMCStrategy, Strategy, TamingStrategy
from splat_ssim.strategy.scoring import ViewStats
from splat_ssim.trainer.config import ConfigError, given

ScoreViews = Callable[[int], Iterable[ViewStats]]

#: Name of --strategy.name -> class.
STRATEGIES: dict[str, type[Strategy]] = {
    "capped": CappedStrategy,
    "default": DefaultStrategy,
    "mcmc": MCMCStrategy,
    "taming": TamingStrategy,
}


def make_strategy(config: StrategyConfig, score_views: ScoreViews) -> Strategy:
    """Makes the strategy that a resolved config names.

    Args:
        config: Config in which every schedule is a number of steps, see `SceneConfig.resolved`.
        score_views: Function that takes a number and yields that many scored training views, for the strategies that
            need it.

    Raises:
        ConfigError: No strategy has this name.
    """
    if config.name not in STRATEGIES:
        raise ConfigError(f"strategy.name must be one of {', '.join(STRATEGIES)}, got {config.name!r}")
    given(config.refine_stop)
    kind = STRATEGIES[config.name]
    options = {own: getattr(config, name) for name, own in STRATEGY_OPTIONS[config.name].items() if own is not None}
    if "score_views" in {field.name for field in dataclasses.fields(kind)}:
        options["score_views"] = score_views
    if config.name == "capped":
        # Final pruning always needs at least one view.
        options["num_views"] = max(1, config.score_views)
    return kind(**options)


#: Default growth of capped if that reaches the budget, and the largest growth that is chosen by itself.
_GROWTH, _MOST_GROWTH = 0.05, 0.5


def settle_budget(config: StrategyConfig, count: int) -> None:
    """Sets the values of a resolved config that depend on the number of Gaussians at the start.

    These are a budget that is stated as a multiple of that number, and the growth that reaches the budget.
    """
    if config.budget_multiplier is not None:
        config.budget = max(1, int(config.budget_multiplier * count))
    if config.growth is None and config.name == "capped":
        # Plan for one event less, since each event adds a whole number of Gaussians.
        events, wanted = _events(config) - 1, config.budget / count
        needed = wanted ** (1 / events) - 1 if events > 0 and wanted > 1 else 0.0
        config.growth = round(min(max(_GROWTH, needed), _MOST_GROWTH), 4)


def _events(config: StrategyConfig) -> int:
    """Number of events at which a strategy adds Gaussians."""
    last = given(config.refine_stop) - 1
    return max(0, last // config.refine_every - config.refine_start // config.refine_every)


def growth_note(config: StrategyConfig, count: int) -> str | None:
    """Returns a note if the strategy cannot reach its budget from this number of Gaussians, otherwise None.

    Args:
        config: Resolved config.
        count: Number of Gaussians at the start.
    """
    share = {"capped": config.growth, "mcmc": 0.05}.get(config.name)
    if share is None or count >= config.budget:
        return None
    reached, events = count, _events(config)
    for _ in range(events):
        reached += max(int(share * reached), 1 if share > 0 else 0)
        if reached >= config.budget:
            return None
    if events == 0:
        return None
    return (
        f"{count} Gaussians at the start become at most about {reached}, less than the budget of {config.budget}, in "
        f"{events} events (--model.init random, --strategy.growth)"
    )
