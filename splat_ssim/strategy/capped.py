"""Densification under a hard cap: Gaussians are split where gradients are large, and transparent ones recycled."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from gsplat.strategy.base import Strategy
from torch import Tensor

from splat_ssim.render.reference import rotations
from splat_ssim.strategy.operations import Optimizers, Params, check_parameters, replace_parameters, zero_state
from splat_ssim.strategy.scoring import ViewStats


@dataclass
class CappedStrategy(Strategy):
    """Splits the Gaussians with the largest summed image-plane gradients, never beyond a fixed number of Gaussians.

    Every `refine_every` steps, transparent Gaussians are recycled, and the number grows by at most the share `growth`.
    Each new Gaussian comes from a split. Parent and child move apart by half a standard deviation along the longest
    axis, which is divided by 1.6. They share the opacity, so that together they cover about what the parent did. The
    order of Gaussians never changes. Opacities are never reset, so quality rises steadily, as a short run needs.

    Attributes:
        budget: Largest number of Gaussians.
        refine_start_iter: Events happen only after this step.
        refine_stop_iter: Events happen only before this step.
        refine_every: Number of steps between events.
        growth: Largest number of Gaussians that an event adds, as a fraction of the current number. Unless it is 0, an
            event may add at least one. Recycled Gaussians do not count.
        prune_opa: Gaussians with a lower opacity are recycled.
        split_shrink: The longest axis of a split Gaussian is divided by this.
        final_prune: Fraction of the Gaussians that is removed at `refine_stop_iter`: those with the smallest sum of
            transmittance times alpha over the pixels of a few training views, since others cover them.
        score_views: Function that takes a number and yields a `ViewStats` for each of that many training views.
            `final_prune` needs it.
        num_views: Number of views to request from `score_views`.

    Example:
        >>> from splat_ssim.strategy import CappedStrategy
        >>> strategy = CappedStrategy(budget=30_000)
        >>> state = strategy.initialize_state(scene_scale=1.0)
    """

    budget: int = 30_000
    refine_start_iter: int = 100
    refine_stop_iter: int = 6_000
    refine_every: int = 100
    growth: float = 0.05
    prune_opa: float = 0.005
    split_shrink: float = 1.6
    final_prune: float = 0.0
    score_views: Callable[[int], Iterable[ViewStats]] | None = None
    num_views: int = 10

    def __post_init__(self) -> None:
        if self.budget < 1 or self.refine_every < 1:
            raise ValueError(f"budget and refine_every must be at least 1, got {self.budget} and {self.refine_every}")
        if not 0 <= self.final_prune < 1:
            raise ValueError(f"final_prune must be in [0, 1), got {self.final_prune}")
        if self.final_prune > 0 and self.score_views is None:
            raise ValueError("final_prune needs score_views, the training views it judges by, got None")

    @property
    def max_start(self) -> int:
        """The largest number of Gaussians to start with: the budget, which this strategy only grows to."""
        return self.budget

    def initialize_state(self, scene_scale: float = 1.0) -> dict[str, Any]:
        """Returns the running state for both hooks. Its tensors are created on the device of the first step."""
        return {"grad2d": None, "scene_scale": scene_scale}

    def check_sanity(self, params: Params, optimizers: Optimizers) -> None:
        """Raises ValueError where a parameter this strategy reads is missing."""
        super().check_sanity(params, optimizers)
        check_parameters(params)

    def step_pre_backward(
        self, params: Params, optimizers: Optimizers, state: dict[str, Any], step: int, info: dict[str, Any]
    ) -> None:
        """Call before `loss.backward()`: keeps the gradient of the projected centres."""
        if step < self.refine_stop_iter:
            info["means2d"].retain_grad()

    @torch.no_grad()
    def step_post_backward(
        self,
        params: Params,
        optimizers: Optimizers,
        state: dict[str, Any],
        step: int,
        info: dict[str, Any],
        packed: bool = False,
    ) -> None:
        """Call after `loss.backward()` and the optimisers: gathers gradients and, at an event, recycles and grows."""
        if step == self.refine_stop_iter and self.final_prune > 0:
            self._prune_least_seen(params, optimizers)
            # The sum belongs to the Gaussians before pruning. Nothing needs it, and a checkpoint with it is refused.
            state["grad2d"] = None
        if step >= self.refine_stop_iter:
            return
        means = params["means"]
        if state["grad2d"] is None:
            zero_state(state, ("grad2d",), len(means), means.device)
        # In half images, so that views of different sizes weigh alike. The sum, not the mean over the views that saw
        # a Gaussian: what many views ask for comes first.
        gradient = info["means2d"].grad.clone()
        # Multiply by Python numbers, because a tensor of them would have to be uploaded.
        gradient[..., 0] *= info["width"] / 2
        gradient[..., 1] *= info["height"] / 2
        gradient = gradient.norm(dim=-1)  # [C, N] or [nnz]
        if packed:
            state["grad2d"].index_add_(0, info["gaussian_ids"], gradient)
        else:
            state["grad2d"] += gradient.sum(0)
        if step > self.refine_start_iter and step % self.refine_every == 0:
            self._refine(params, optimizers, state)

    def _refine(self, params: Params, optimizers: Optimizers, state: dict[str, Any]) -> None:
        count = len(params["means"])
        opacities = torch.sigmoid(params["opacities"]).flatten()
        dead = torch.where(opacities < self.prune_opa)[0]
        demand = state["grad2d"]
        demand[dead] = 0
        room = max(self.budget - count, 0)
        grown = max(int(self.growth * count), 1 if self.growth > 0 else 0)
        children = min(len(dead) + min(grown, room), max(count // 2, 1))
        parents = demand.topk(children).indices
        parents = parents[demand[parents] > 0]
        if len(parents) > 0:
            self._split(params, optimizers, parents, dead[: len(parents)])
        zero_state(state, ("grad2d",), len(params["means"]), demand.device)

    def _prune_least_seen(self, params: Params, optimizers: Optimizers) -> None:
        """Source: Z. Fan et al., "LightGaussian", NeurIPS 2024: the global significance, here without its volume."""
        assert self.score_views is not None
        seen = torch.stack([stats.contribution for stats in self.score_views(self.num_views)]).sum(0)
        count = len(params["means"])
        # Keep the old order.
        kept = seen.topk(count - int(self.final_prune * count)).indices.sort().values
        replace_parameters(params, optimizers, lambda name, values: values[kept], lambda moment: moment[kept])

    def _split(self, params: Params, optimizers: Optimizers, parents: Tensor, recycled: Tensor) -> None:
        """Splits `parents`. The first children take the places of `recycled`; the others are appended."""
        scales = params["scales"].detach()[parents]
        longest = scales.argmax(dim=1, keepdim=True)  # [K, 1]
        axis = rotations(params["quats"].detach()[parents]).gather(2, longest[:, None].expand(-1, 3, 1))
        offset = 0.5 * scales.gather(1, longest).exp() * axis.squeeze(-1)  # [K, 3]
        shrink = torch.zeros_like(scales).scatter_(1, longest, math.log(self.split_shrink))
        opacity = torch.sigmoid(params["opacities"].detach()[parents])
        # Where they overlap, two of opacity 1 - sqrt(1 - o) cover as much as one of o. Apart, each needs o itself.
        overlapping = (1 - (1 - opacity.clamp(max=0.99)).sqrt()).clamp(0.01, 0.95)
        shared = torch.logit(0.5 * (opacity + overlapping), eps=1e-6)
        replaced = len(recycled)

        def new_values(name: str, values: Tensor) -> Tensor:
            values = values.clone()
            child = values[parents]
            if name == "means":
                values[parents] -= offset
                child = child + offset
            elif name == "scales":
                values[parents] = child = child - shrink
            elif name == "opacities":
                values[parents] = child = shared
            values[recycled] = child[:replaced]
            return torch.cat([values, child[replaced:]])

        def new_moments(moment: Tensor) -> Tensor:
            moment = moment.clone()
            moment[parents] = 0
            moment[recycled] = 0
            return torch.cat([moment, moment.new_zeros(len(parents) - replaced, *moment.shape[1:])])

        replace_parameters(params, optimizers, new_values, new_moments)
