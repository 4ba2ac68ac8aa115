"""Adam for splatting: compiled on the CPU, and a variant that does not change Gaussians out of view."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from .ops import adam as _ops
from .ops.dispatch import is_lazy

# What `hold_gradient` keeps beside the moments of a parameter.
_HELD, _HELD_VISIBILITY = "held_gradient", "held_visibility"

# Options of torch.optim.Adam that the compiled step does not have, with the value it assumes.
_PLAIN = {
    "weight_decay": 0,
    "amsgrad": False,
    "maximize": False,
    "capturable": False,
    "differentiable": False,
    "decoupled_weight_decay": False,
}


def _start_state(state: dict[str, Any], parameter: Tensor) -> None:
    """The state torch.optim.Adam begins with."""
    state["step"] = torch.tensor(0.0, dtype=torch.float32)
    state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
    state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)


def hold_gradient(optimizer: torch.optim.Optimizer, visibility: Tensor | None = None) -> None:
    """Adds the gradient to a sum in the optimiser's state and clears it, for a later step with `release_gradient`.

    The sum is stored beside the moments, so checkpoints include it. Densification treats it like a moment when it
    appends, splits or removes Gaussians: the sum of a new Gaussian is zero, that of an old one is kept.

    Args:
        optimizer: Adam or SelectiveAdam with one parameter, as gsplat's strategies require.
        visibility: [N] bool, the Gaussians in view. It is kept for `release_gradient`.

    Source: S. S. Mallick et al., "Taming 3DGS", 2024: the harmonics' step every 16 iterations.
    """
    parameter = optimizer.param_groups[0]["params"][0]
    if parameter.grad is None:
        return
    state = optimizer.state[parameter]
    if not state:
        _start_state(state, parameter)
    state[_HELD] = parameter.grad if _HELD not in state else state[_HELD].add_(parameter.grad)
    parameter.grad = None
    if visibility is not None:
        # In the parameter's dtype, for so torch.optim's load_state_dict would have it anyway.
        seen = visibility.to(parameter.dtype)
        state[_HELD_VISIBILITY] = torch.maximum(state[_HELD_VISIBILITY], seen) if _HELD_VISIBILITY in state else seen


def release_gradient(optimizer: torch.optim.Optimizer) -> Tensor | None:
    """Sets the parameter's gradient to the sum that `hold_gradient` has made, and clears the sum.

    Args:
        optimizer: Optimiser that was passed to `hold_gradient`.

    Returns:
        [N] bool, the Gaussians that were in view at any of the calls of `hold_gradient`; None if no call had a
        `visibility`.

    Example:
        >>> import torch
        >>> from splat_ssim.optim import Adam, hold_gradient, release_gradient
        >>> weights = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = Adam([weights], lr=0.1)
        >>> for _ in range(16):
        ...     weights.sum().backward()
        ...     hold_gradient(optimizer)
        >>> release_gradient(optimizer)
        >>> weights.grad
        tensor([16., 16.])
    """
    parameter = optimizer.param_groups[0]["params"][0]
    state = optimizer.state[parameter]
    if _HELD in state:
        parameter.grad = state.pop(_HELD)
    seen = state.pop(_HELD_VISIBILITY, None)
    return None if seen is None else seen > 0


class Adam(torch.optim.Adam):
    """torch.optim.Adam with a compiled, multi-threaded step for float32 parameters on the CPU.

    Arguments, parameter groups, `state` and `state_dict` are those of torch.optim.Adam, so strategies and checkpoints
    work with either. For a parameter on another device or of another dtype, and with options such as weight decay,
    torch's own step runs. The results agree up to rounding.

    Source: D. P. Kingma, J. Ba, "Adam: A Method for Stochastic Optimization", 2015, algorithm 1.

    Example:
        >>> import torch
        >>> from splat_ssim.optim import Adam
        >>> weights = torch.nn.Parameter(torch.ones(3))
        >>> optimizer = Adam([weights], lr=0.1)
        >>> weights.square().sum().backward()
        >>> optimizer.step()
        >>> [round(w, 3) for w in weights.tolist()]
        [0.9, 0.9, 0.9]
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; `closure`, where given, recomputes the loss first and its value is returned."""
        if not self._compiled():
            return super().step(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        _ops.step(self._updates())
        return loss

    def _updates(self) -> list[_ops.Update]:
        """Returns the updates for a compiled step, and increments the step counts."""
        updates = []
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    _start_state(state, parameter)
                state["step"] += 1
                step = state["step"].item()
                updates.append(
                    _ops.Update(
                        parameter,
                        parameter.grad.contiguous(),
                        state["exp_avg"],
                        state["exp_avg_sq"],
                        rate=float(group["lr"]) / (1 - beta1**step),
                        betas=(beta1, beta2),
                        eps=group["eps"],
                        second_correction=1 - beta2**step,
                    )
                )
        return updates

    def _compiled(self) -> bool:
        """Whether the compiled step does what the groups ask for."""
        for group in self.param_groups:
            for name, plain in _PLAIN.items():
                if group.get(name, plain) != plain:
                    return False
            for parameter in group["params"]:
                state = self.state.get(parameter, {})
                moments = [state[name] for name in ("exp_avg", "exp_avg_sq") if name in state]
                if not _ops.supported(parameter, *moments):
                    return False
                gradient = parameter.grad
                if gradient is None:
                    continue
                if gradient.is_sparse or gradient.dtype != torch.float32 or is_lazy(gradient):
                    return False
        return True


@torch.no_grad()
def step_together(optimizers: Iterable[torch.optim.Optimizer]) -> None:
    """Steps several optimisers. The steps of those that are `Adam` on the CPU run as one multi-threaded call.

    Six small parameters then take as long as one of their total size. The result is that of each optimiser's own
    `step()`. An optimiser with step hooks is stepped by its own `step()`.
    """
    updates: list[_ops.Update] = []
    for optimizer in optimizers:
        hooked = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
        if type(optimizer) is Adam and not hooked and optimizer._compiled():
            updates += optimizer._updates()
        else:
            optimizer.step()
    _ops.step(updates)


class SelectiveAdam(torch.optim.Optimizer):
    """Adam without bias correction that changes only the rows (Gaussians) that were visible.

    m = β1 m + (1 - β1) g, v = β2 v + (1 - β2) g², p -= lr·m / (sqrt(v) + eps), on visible rows; the others keep
    parameter and moments. It is compiled for float32 on the CPU, and runs in torch otherwise. `state` has the layout of
    torch.optim.Adam.

    Args:
        params: Parameters or groups of them. The first dimension of each is that of `visibility`.
        lr: Learning rate.
        betas: Decay rates of the two moments.
        eps: Number added to the denominator.

    Raises:
        ValueError: The learning rate or eps is negative, or betas are outside [0, 1).

    Source: S. S. Mallick et al., "Taming 3DGS", 2024, "Sparse Adam".

    Example:
        >>> import torch
        >>> from splat_ssim.optim import SelectiveAdam
        >>> means = torch.nn.Parameter(torch.zeros(2, 3))
        >>> optimizer = SelectiveAdam([means], lr=0.1)
        >>> means.sum().backward()
        >>> optimizer.step(torch.tensor([True, False]))
        >>> bool(means[0].abs().min() > 0), bool(means[1].abs().max() == 0)
        (True, True)
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-15,
    ):
        if lr < 0 or eps < 0 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"lr >= 0, eps >= 0 and betas in [0, 1) are required, got {lr}, {eps} and {betas}")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, visibility: Tensor) -> None:  # type: ignore[override]
        """Performs one step for the rows where `visibility`, [N] bool, is true.

        Raises:
            TypeError: `visibility` is not bool.
            ValueError: Its length is not that of a parameter's first dimension.
        """
        if visibility.dtype != torch.bool:
            raise TypeError(f"visibility must be a bool tensor, got {visibility.dtype}")
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if visibility.shape != parameter.shape[:1]:
                    raise ValueError(
                        f"visibility must have shape {tuple(parameter.shape[:1])}, got {tuple(visibility.shape)}"
                    )
                state = self.state[parameter]
                if not state:
                    _start_state(state, parameter)
                state["step"] += 1
                self._update(parameter, state, visibility, group)

    @staticmethod
    def _update(parameter: Tensor, state: dict[str, Any], visibility: Tensor, group: dict[str, Any]) -> None:
        m, v, gradient, (beta1, beta2) = state["exp_avg"], state["exp_avg_sq"], parameter.grad, group["betas"]
        assert gradient is not None
        readable = visibility.device.type == "cpu" and not is_lazy(visibility) and not is_lazy(gradient)
        if readable and _ops.supported(parameter, m, v) and gradient.dtype == parameter.dtype:
            rate, eps = float(group["lr"]), group["eps"]
            update = _ops.Update(parameter, gradient.contiguous(), m, v, rate, group["betas"], eps, 1.0)
            _ops.step_rows(update, visibility.contiguous())
            return
        # All rows, of which the visible ones are taken: to list those, the host would have to wait for the device.
        seen = visibility.reshape(-1, *[1] * (parameter.dim() - 1))
        m.copy_(torch.where(seen, m.lerp(gradient, 1 - beta1), m))
        v.copy_(torch.where(seen, v * beta2 + (1 - beta2) * gradient * gradient, v))
        step = m / (v.sqrt() + group["eps"])
        parameter.copy_(torch.where(seen, parameter - float(group["lr"]) * step, parameter))
