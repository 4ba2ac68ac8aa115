"""gsplat's DefaultStrategy with its opacity resets, which gsplat 1.5.3 never performs."""

from __future__ import annotations

import functools
from typing import Any

import gsplat
import torch
from gsplat.strategy.ops import reset_opa

from splat_ssim.strategy.operations import Optimizers, Params


class DefaultStrategy(gsplat.DefaultStrategy):
    """gsplat's strategy of the same name. It resets opacities itself where the installed gsplat fails to.

    gsplat 1.5.3 tests `step % self.reset_every == 0 & step > 0`, a chained comparison that is always false.
    """

    @property
    def max_start(self) -> None:
        """The largest number of Gaussians to start with: this strategy knows none."""
        return None

    def step_post_backward(
        self,
        params: Params,
        optimizers: Optimizers,
        state: dict[str, Any],
        step: int,
        info: dict[str, Any],
        packed: bool = False,
    ) -> None:
        """Call after `loss.backward()` and the optimisers: densifies, prunes, resets."""
        super().step_post_backward(params, optimizers, state, step, info, packed)
        due = 0 < step < self.refine_stop_iter and step % self.reset_every == 0
        if due and not gsplat_resets_opacity():
            reset_opa(params=params, optimizers=optimizers, state=state, value=2 * self.prune_opa)


@functools.cache
def gsplat_resets_opacity() -> bool:
    """Whether the installed gsplat's DefaultStrategy resets opacities when it should, tested on one Gaussian."""
    strategy = gsplat.DefaultStrategy(refine_start_iter=10, refine_stop_iter=10, reset_every=2)
    values = {"means": (1, 3), "scales": (1, 3), "quats": (1, 4), "opacities": (1,)}
    params = {name: torch.nn.Parameter(torch.full(shape, 3.0)) for name, shape in values.items()}
    optimizers = {name: torch.optim.Adam([param]) for name, param in params.items()}
    means2d = torch.zeros(1, 1, 2, requires_grad=True)
    means2d.grad = torch.zeros(1, 1, 2)
    info = {
        **{"width": 1, "height": 1, "n_cameras": 1, "radii": torch.ones(1, 1, 2), "gaussian_ids": None},
        "means2d": means2d,
    }
    strategy.step_post_backward(params, optimizers, strategy.initialize_state(), step=2, info=info)
    return bool(params["opacities"].item() < 3.0)
