"""Taming 3DGS as a gsplat strategy: a hard budget, growth along a known curve, Gaussians chosen by score.

Source: S. S. Mallick et al., "Taming 3DGS: High-Quality Radiance Fields with Limited Resources", SIGGRAPH Asia 2024.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from gsplat.strategy.base import Strategy
from gsplat.strategy.ops import duplicate, remove, reset_opa, split
from torch import Tensor

from splat_ssim.strategy.operations import Optimizers, Params, check_parameters, replace_parameters, zero_state
from splat_ssim.strategy.scoring import ViewStats, budget_curve, view_score


@dataclass
class TamingStrategy(Strategy):
    """Densification to an exact budget by the score of Taming 3DGS, for any loop written for gsplat's strategies.

    At each event the Gaussians are scored over a few training views. Transparent and oversized ones are pruned at
    random, those of low score more likely. Clones and splits, drawn by score, then raise the number to the curve.
    After event i there are exactly `state["budget_curve"][i]` Gaussians; the last entry is the budget.
    `state["num_gaussians"]` records the number after each event.

    Attributes:
        budget: Number of Gaussians after the last event.
        score_views: Function that takes a number and yields a `ViewStats` for each of that many training views, drawn
            without replacement, or for all of them if there are fewer. The caller provides it, because a strategy has
            neither renderer nor data.
        num_views: Number of views scored at an event.
        refine_start_iter: Events happen only after this step.
        refine_stop_iter: Events happen only before this step.
        refine_every: Number of steps between events: 500 in the paper's "budget" runs, 100 in its "big" ones.
        grow_grad2d: Gaussians with a larger mean image-plane gradient are the first candidates to clone and split.
        grow_scale3d: Gaussians up to this fraction of the scene's extent are cloned, larger ones are split.
        prune_opa: Gaussians with a lower opacity are candidates for pruning.
        prune_scale3d: Gaussians above this fraction of the scene's extent are candidates too, once `reset_every` steps
            have passed.
        prune_fraction: Fraction of the number of candidates that is drawn for pruning.
        reset_every: Number of steps between opacity resets, while densification lasts.
        reset_opacity: Largest opacity after a reset.
        high_opacity: Whether opacities may exceed 1 after `high_opacity_start`. Their activation then changes from the
            sigmoid to the absolute value. The renderer clamps alpha, so such Gaussians have a flat top. "intended": the
            values are optimised on, with fresh moments. "released": they stay frozen, as in the published code,
            whose new tensor never reaches the optimiser. The loop must render with `state["opacity_activation"]`,
            which is "sigmoid" or "absolute".
        high_opacity_start: Step after which opacities may exceed 1; by default `refine_stop_iter`, and never earlier.

    Example:
        >>> from splat_ssim.strategy import TamingStrategy
        >>> def score_views(count):
        ...     yield from ()  # a ViewStats for each of `count` training views
        >>> strategy = TamingStrategy(budget=50_000, score_views=score_views)
        >>> state = strategy.initialize_state(scene_scale=1.0)
    """

    budget: int
    score_views: Callable[[int], Iterable[ViewStats]]
    num_views: int = 10
    refine_start_iter: int = 500
    refine_stop_iter: int = 15_000
    refine_every: int = 500
    grow_grad2d: float = 2e-4
    grow_scale3d: float = 0.01
    prune_opa: float = 0.005
    prune_scale3d: float = 0.1
    prune_fraction: float = 0.5
    reset_every: int = 3000
    reset_opacity: float = 0.01
    high_opacity: Literal["off", "intended", "released"] = "off"
    high_opacity_start: int | None = None
    verbose: bool = False

    def __post_init__(self) -> None:
        if self.budget < 1:
            raise ValueError(f"budget must be at least 1 Gaussian, got {self.budget}")
        if self.refine_every < 1 or self.reset_every < 1:
            raise ValueError(
                f"refine_every and reset_every must be at least 1, got {self.refine_every} and {self.reset_every}"
            )
        if self.high_opacity not in ("off", "intended", "released"):
            raise ValueError(f"high_opacity must be off, intended or released, got {self.high_opacity!r}")
        if self.high_opacity_start is None:
            self.high_opacity_start = self.refine_stop_iter
        if self.high_opacity != "off" and self.high_opacity_start < self.refine_stop_iter:
            # Scores, pruning and resets expect logits.
            raise ValueError(
                f"high_opacity_start must not come before refine_stop_iter ({self.refine_stop_iter}), "
                f"got {self.high_opacity_start}"
            )

    @property
    def max_start(self) -> int:
        """The largest number of Gaussians to start with: the budget. More are sampled down to it at the first step."""
        return self.budget

    @property
    def event_steps(self) -> list[int]:
        """The steps at which densification happens: multiples of `refine_every` strictly between start and stop."""
        first = self.refine_start_iter // self.refine_every + 1
        return list(range(first * self.refine_every, self.refine_stop_iter, self.refine_every))

    def initialize_state(self, scene_scale: float = 1.0) -> dict[str, Any]:
        """Returns the running state for both hooks. Its tensors are created on the device of the first step."""
        return {
            "grad2d": None,
            "count": None,
            "scene_scale": scene_scale,
            "budget_curve": None,
            "num_gaussians": [],
            "opacity_activation": "sigmoid",
        }

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
        """Call after `loss.backward()` and the optimisers: gathers gradients and, at an event, densifies."""
        if self.high_opacity != "off" and step == self.high_opacity_start:
            self._turn_opacities(params, optimizers, state)
        if step >= self.refine_stop_iter:
            return
        if state["budget_curve"] is None:
            self._start(params, state)
        self._gather_gradients(state, info, packed)
        if state["trim"] > 0:
            self._trim_start(params, optimizers, state)
        events = self.event_steps
        if step in events:
            self._densify(params, optimizers, state, step, state["budget_curve"][events.index(step)])
        if step > 0 and step % self.reset_every == 0:
            reset_opa(params=params, optimizers=optimizers, state=state, value=self.reset_opacity)

    def _turn_opacities(self, params: Params, optimizers: Optimizers, state: dict[str, Any]) -> None:
        """Replaces logits by the opacities themselves, which does not change the picture."""
        replace_parameters(
            params,
            optimizers,
            new_values=lambda name, logits: torch.sigmoid(logits),
            new_moments=torch.zeros_like,
            names=("opacities",),
        )
        # Without a gradient, no optimiser changes the opacities. The released code has the same effect.
        params["opacities"].requires_grad_(self.high_opacity == "intended")
        state["opacity_activation"] = "absolute"

    def _start(self, params: Params, state: dict[str, Any]) -> None:
        means = params["means"]
        if len(means) == 0:
            raise ValueError("densification needs at least 1 Gaussian to start from, got 0")
        state["budget_curve"] = budget_curve(len(means), self.budget, len(self.event_steps))
        state["trim"] = max(len(means) - self.max_start, 0)
        zero_state(state, ("grad2d", "count"), len(means), means.device)

    def _trim_start(self, params: Params, optimizers: Optimizers, state: dict[str, Any]) -> None:
        """If a run starts with more Gaussians than the budget, draws as many as the budget, once."""
        means = params["means"]
        mask = torch.zeros(len(means), dtype=torch.bool, device=means.device)
        mask[torch.randperm(len(means), device=means.device)[: state["trim"]]] = True
        remove(params=params, optimizers=optimizers, state=state, mask=mask)
        state["trim"] = 0

    def _gather_gradients(self, state: dict[str, Any], info: dict[str, Any], packed: bool) -> None:
        # As in gsplat, gradients are scaled to a screen of [-1, 1]², which makes the threshold resolution-free.
        gradient = info["means2d"].grad.clone()
        gradient[..., 0] *= info["width"] / 2 * info["n_cameras"]
        gradient[..., 1] *= info["height"] / 2 * info["n_cameras"]
        lengths = gradient.norm(dim=-1)
        if packed:
            ids = info["gaussian_ids"]
            state["grad2d"].index_add_(0, ids, lengths)
            state["count"].index_add_(0, ids, torch.ones_like(lengths))
            return
        # torch.where instead of indexing, which would wait for the device to count the visible ones.
        visible = (info["radii"] > 0).all(dim=-1)  # [C, N]
        state["grad2d"] += torch.where(visible, lengths, 0).sum(0)
        state["count"] += visible.sum(0)

    def _densify(self, params: Params, optimizers: Optimizers, state: dict[str, Any], step: int, target: int) -> None:
        # These are kept in the state, so that gsplat's operations keep them aligned with the Gaussians.
        state["gradient"] = state["grad2d"] / state["count"].clamp_min(1)
        state["score"] = self._score(params, state["gradient"])
        self._prune(params, optimizers, state, step)
        self._remove_excess(params, optimizers, state, target)
        # A round at most doubles the number, and the first events of a large budget need more than that.
        while len(params["means"]) < target:
            self._grow(params, optimizers, state, target)
        del state["gradient"], state["score"]
        state["grad2d"].zero_()
        state["count"].zero_()
        state["num_gaussians"].append(len(params["means"]))
        if self.verbose:
            print(f"Step {step}: {len(params['means'])} Gaussians, {target} wanted by the budget curve.")

    def _score(self, params: Params, gradient: Tensor) -> Tensor:
        opacities = torch.sigmoid(params["opacities"]).flatten()
        scales = torch.exp(params["scales"])
        score = torch.zeros_like(opacities)
        for stats in self.score_views(self.num_views):
            score += view_score(stats, gradient, opacities, scales)
        return score

    def _prune(self, params: Params, optimizers: Optimizers, state: dict[str, Any], step: int) -> None:
        candidates = torch.sigmoid(params["opacities"]).flatten() < self.prune_opa
        if step > self.reset_every:
            largest = torch.exp(params["scales"]).amax(dim=-1)
            candidates |= largest > self.prune_scale3d * state["scene_scale"]
        # Draw from all Gaussians, so that a candidate of low importance is likely to be removed.
        draws = int(self.prune_fraction * int(candidates.sum()))
        mask = _draw(1 / (1e-6 + state["score"]), draws) & candidates
        if bool(mask.all()):
            mask[state["score"].argmax()] = False
        if bool(mask.any()):
            remove(params=params, optimizers=optimizers, state=state, mask=mask)

    def _remove_excess(self, params: Params, optimizers: Optimizers, state: dict[str, Any], target: int) -> None:
        """Removes random Gaussians beyond the curve, preferably of low score. Only changes from outside add such."""
        excess = len(params["means"]) - target
        if excess > 0:
            mask = _draw(1 / (1e-6 + state["score"]), excess)
            remove(params=params, optimizers=optimizers, state=state, mask=mask)

    def _grow(self, params: Params, optimizers: Optimizers, state: dict[str, Any], target: int) -> None:
        """One round of clones and splits. Each adds one Gaussian, and each Gaussian is used at most once."""
        count = len(params["means"])
        growth = min(target - count, count)
        qualified = state["gradient"] >= self.grow_grad2d
        small = torch.exp(params["scales"]).amax(dim=-1) <= self.grow_scale3d * state["scene_scale"]
        clone_set, split_set = qualified & small, qualified & ~small
        num_clone, num_split = int(clone_set.sum()), int(split_set.sum())
        from_qualified = min(growth, num_clone + num_split)
        clones = from_qualified * num_clone // max(num_clone + num_split, 1)
        chosen = _draw(torch.where(clone_set, state["score"], 0), clones, clone_set)
        chosen |= _draw(torch.where(split_set, state["score"], 0), from_qualified - clones, split_set)
        # If too few qualify, the rest is drawn by score from those that do not.
        chosen |= _draw(torch.where(qualified, 0, state["score"]), growth - from_qualified, ~qualified)
        cloned, divided = chosen & small, chosen & ~small
        num_cloned = int(cloned.sum())
        if num_cloned:
            duplicate(params=params, optimizers=optimizers, state=state, mask=cloned)
        if bool(divided.any()):
            # The clones were appended; they are not split in the same round.
            divided = torch.cat([divided, divided.new_zeros(num_cloned)])
            split(params=params, optimizers=optimizers, state=state, mask=divided)


def _draw(weights: Tensor, count: int, among: Tensor | None = None) -> Tensor:
    """Draws `count` elements without replacement, with probability proportional to `weights`, and returns their mask.

    Args:
        weights: (N,) weights, non-negative.
        count: Number of elements to draw, at most as many as `among` allows.
        among: (N,) bool, the elements that may be drawn; all of them if None. Elements of weight zero are drawn only
            after all others.

    Returns:
        (N,) bool. Exactly `count` elements are true.
    """
    # Sampling without replacement by exponential clocks: element i rings at Exp(w_i), the first `count` are taken.
    # Equal to torch.multinomial(replacement=False) in distribution, without its limits on size and on zero weights.
    clocks = torch.empty_like(weights, dtype=torch.float64).exponential_() / weights.double()
    # Weightless elements never ring: they queue after all others, in random order, and those not allowed come last.
    clocks = torch.where(weights > 0, clocks, torch.finfo(torch.float64).max * (0.5 + 0.25 * torch.rand_like(clocks)))
    if among is not None:
        clocks = torch.where(among, clocks, torch.inf)
    mask = torch.zeros_like(weights, dtype=torch.bool)
    mask[clocks.topk(count, largest=False).indices] = True
    return mask
