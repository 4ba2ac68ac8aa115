"""3DGS-MCMC on every device. gsplat's strategy needs CUDA for relocation and for noise."""

from __future__ import annotations

from typing import Any

import gsplat
import torch
from torch import Tensor

from splat_ssim.render.reference import rotations
from splat_ssim.strategy.operations import Optimizers, Params, replace_parameters


class MCMCStrategy(gsplat.MCMCStrategy):
    """gsplat's strategy of the same name in plain torch, with the hooks of every other strategy.

    It reads the learning rate that scales the noise from the optimiser of the positions, so that the training loop does
    not have to pass it. It has the options of `gsplat.MCMCStrategy`.

    Source: Kheradmand et al., 3D Gaussian Splatting as Markov Chain Monte Carlo, NeurIPS 2024.

    Example:
        >>> from splat_ssim.strategy import MCMCStrategy
        >>> strategy = MCMCStrategy(cap_max=30_000)
    """

    @property
    def max_start(self) -> int:
        """The largest number of Gaussians to start with: the cap, which this strategy only grows to."""
        cap: int = self.cap_max
        return cap

    def initialize_state(self, scene_scale: float = 1.0) -> dict[str, Any]:
        """The running state: this strategy keeps none."""
        return {"scene_scale": scene_scale}

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
        """Call after `loss.backward()` and the optimisers: relocates, adds, and moves every Gaussian a little."""
        if self.refine_start_iter < step < self.refine_stop_iter and step % self.refine_every == 0:
            opacities = torch.sigmoid(params["opacities"]).flatten()
            dead = torch.where(opacities <= self.min_opacity)[0]
            alive = torch.where(opacities > self.min_opacity)[0]
            # Grow by 5%, but by at least one, so that a few Gaussians can become many.
            grown = max(int(1.05 * len(opacities)), len(opacities) + 1)
            added = max(0, min(self.cap_max, grown) - len(opacities))
            if len(alive) > 0 and len(dead) + added > 0:
                self._relocate(params, optimizers, alive, dead, added)
        scaler = optimizers["means"].param_groups[0]["lr"] * self.noise_lr
        params["means"].add_(position_noise(params, scaler))

    def _relocate(self, params: Params, optimizers: Optimizers, alive: Tensor, dead: Tensor, added: int) -> None:
        """Draws Gaussians by opacity. Their copies replace those of `dead` and are appended."""
        opacities = torch.sigmoid(params["opacities"].detach()).flatten()
        chosen = alive[torch.multinomial(opacities[alive], len(dead) + added, replacement=True)]
        copies = torch.bincount(chosen, minlength=len(opacities))[chosen] + 1
        new_opacities, new_scales = relocation(opacities[chosen], params["scales"].detach()[chosen].exp(), copies)
        new_opacities = new_opacities.clamp(self.min_opacity, 1 - torch.finfo(torch.float32).eps)

        def new_values(name: str, values: Tensor) -> Tensor:
            values = values.clone()
            if name == "opacities":
                values[chosen] = torch.logit(new_opacities).reshape(-1, *values.shape[1:])
            elif name == "scales":
                values[chosen] = new_scales.log()
            values[dead] = values[chosen[: len(dead)]]
            return torch.cat([values, values[chosen[len(dead) :]]])

        def new_moments(moment: Tensor) -> Tensor:
            moment = moment.clone()
            moment[chosen] = 0
            moment[dead] = 0
            return torch.cat([moment, moment.new_zeros(added, *moment.shape[1:])])

        replace_parameters(params, optimizers, new_values, new_moments)


def relocation(opacities: Tensor, scales: Tensor, copies: Tensor, max_copies: int = 51) -> tuple[Tensor, Tensor]:
    """Computes the opacity and scale with which n equal Gaussians together render nearly as one did.

    o' = 1 - (1 - o)^(1/n);  s' = s · o / Σ_{i=1..n} Σ_{k=0..i-1} C(i-1, k) (-1)^k o'^(k+1) / sqrt(k+1)

    Args:
        opacities: (N,) in (0, 1).
        scales: (N, 3) standard deviations.
        copies: (N,) integers n ≥ 1. Those above `max_copies` count as `max_copies`.
        max_copies: Largest n.

    Returns:
        New opacities (N,) and scales (N, 3), in the dtype of the inputs.

    Source: Kheradmand et al. 2024, equation 9.

    Example:
        >>> import torch
        >>> from splat_ssim.strategy.mcmc import relocation
        >>> relocation(torch.tensor([0.75]), torch.ones(1, 3), torch.tensor([2]))[0]
        tensor([0.5000])
    """
    copies = copies.clamp(1, max_copies)
    # Alternating sums of binomials cancel. With 51 copies of opacities up to 0.99, float64 loses less than 1e-6.
    opacity = opacities.double()
    new_opacity = 1 - (1 - opacity) ** (1 / copies.double())
    largest = int(copies.max()) if len(copies) else 1
    terms = torch.arange(largest, device=opacities.device, dtype=torch.float64)  # k
    powers = new_opacity[:, None] ** (terms + 1) / (terms + 1).sqrt()  # [N, n]
    signs = (-1.0) ** terms
    # Σ_i C(i-1, k) over i = 1…n is C(n, k+1).
    n = copies.double()[:, None]
    binomials = torch.where(
        terms < n, (torch.lgamma(n + 1) - torch.lgamma(terms + 2) - torch.lgamma((n - terms).clamp(min=1))).exp(), 0.0
    )
    denominator = (binomials * signs * powers).sum(1)
    return new_opacity.to(opacities.dtype), (scales.double() * (opacity / denominator)[:, None]).to(scales.dtype)


def position_noise(params: Params, scaler: float) -> Tensor:
    """(N, 3) noise of each Gaussian's own shape, large for transparent ones, nearly none for opaque ones.

    Source: Kheradmand et al. 2024, equation 8.
    """
    opacities = torch.sigmoid(params["opacities"].detach()).reshape(-1, 1)
    gate = torch.sigmoid(100 * ((1 - opacities) - 0.995))
    axes = rotations(params["quats"].detach()) * params["scales"].detach().exp()[:, None]  # R S
    noise = torch.randn_like(params["means"]) * gate * scaler
    return (axes @ (axes.transpose(1, 2) @ noise[..., None])).squeeze(-1)
