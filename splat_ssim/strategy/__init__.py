"""Densification strategies with gsplat's interface, for any loop written for gsplat's own.

A strategy has `check_sanity(params, optimizers)`, `initialize_state(scene_scale=)`, `step_pre_backward(params,
optimizers, state, step, info)` and `step_post_backward(params, optimizers, state, step, info, packed=False)`. Beyond
gsplat's interface each has `max_start`, the largest number of Gaussians that a run may start with, or None.
"""

from __future__ import annotations

from gsplat.strategy.base import Strategy

from splat_ssim import _moved
from splat_ssim.strategy.capped import CappedStrategy
from splat_ssim.strategy.default import DefaultStrategy
from splat_ssim.strategy.mcmc import MCMCStrategy
from splat_ssim.strategy.taming import TamingStrategy

__all__ = ["CappedStrategy", "DefaultStrategy", "MCMCStrategy", "Strategy", "TamingStrategy"]

__getattr__ = _moved.names(__name__)
