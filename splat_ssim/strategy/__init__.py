"""Densification strategies with gsplat's interface, and their names on the command line.

A strategy has `check_sanity(params, optimizers)`, `initialize_state(scene_scale=)`, `step_pre_backward(params,
optimizers, state, step, info)` and `step_post_backward(params, optimizers, state, step, info, packed=False)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from gsplat.strategy.base import Strategy

from splat_ssim.strategy.capped import CappedStrategy
from splat_ssim.strategy.default import DefaultStrategy
from splat_ssim.strategy.mcmc import MCMCStrategy
from splat_ssim.strategy.scoring import ViewStats
from splat_ssim.strategy.taming import TamingStrategy
from splat_ssim.trainer.config import StrategyConfig, given

__all__ = ["STRATEGIES", "CappedStrategy", "DefaultStrategy", "MCMCStrategy", "TamingStrategy", "make_strategy"]

ScoreViews = Callable[[int], Iterable[ViewStats]]


def _capped(config: StrategyConfig, score_views: ScoreViews) -> Strategy:
    return CappedStrategy(
        budget=config.budget,
        refine_start_iter=config.refine_start,
        refine_stop_iter=given(config.refine_stop),
        refine_every=config.refine_every,
        growth=config.growth,
        final_prune=config.final_prune,
        score_views=score_views,
        num_views=max(1, config.score_views),
        prune_opa=config.prune_opacity,
    )


def _default(config: StrategyConfig, score_views: ScoreViews) -> Strategy:
    return DefaultStrategy(
        prune_opa=config.prune_opacity,
        grow_grad2d=config.grow_gradient,
        grow_scale3d=config.grow_scale,
        refine_start_iter=config.refine_start,
        refine_stop_iter=given(config.refine_stop),
        refine_every=config.refine_every,
        reset_every=given(config.reset_every),
    )


def _mcmc(config: StrategyConfig, score_views: ScoreViews) -> Strategy:
    return MCMCStrategy(
        cap_max=config.budget,
        noise_lr=config.noise,
        refine_start_iter=config.refine_start,
        refine_stop_iter=given(config.refine_stop),
        refine_every=config.refine_every,
        min_opacity=config.prune_opacity,
    )


def _taming(config: StrategyConfig, score_views: ScoreViews) -> Strategy:
    return TamingStrategy(
        budget=config.budget,
        score_views=score_views,
        refine_start_iter=config.refine_start,
        refine_stop_iter=given(config.refine_stop),
        refine_every=config.refine_every,
        grow_grad2d=config.grow_gradient,
        grow_scale3d=config.grow_scale,
        prune_opa=config.prune_opacity,
        reset_every=given(config.reset_every),
        num_views=config.score_views,
        high_opacity=config.high_opacity,
        high_opacity_start=config.high_opacity_start,
    )


#: Name of --strategy.name -> what builds it from the (resolved) config and the trainer's views to score.
STRATEGIES: dict[str, Callable[[StrategyConfig, ScoreViews], Strategy]] = {
    "capped": _capped,
    "default": _default,
    "mcmc": _mcmc,
    "taming": _taming,
}


def make_strategy(config: StrategyConfig, score_views: ScoreViews) -> Strategy:
    """The strategy a resolved config names.

    Args:
        config: With every schedule a number of steps, see `Config.resolved`.
        score_views: Called with a number; yields that many scored training views, for the strategies that ask.

    Raises:
        ValueError: No strategy has this name.
    """
    if config.name not in STRATEGIES:
        raise ValueError(f"strategy.name must be one of {', '.join(STRATEGIES)}, got {config.name!r}")
    return STRATEGIES[config.name](config, score_views)
