"""Losses by name: ours as `--loss NAME`, any function of yours as `--loss package.module:function`.

The signature of a loss, the same for images and volumes:

    def loss(pred, target, *, mask=None):
        # pred, target: (B, C, H, W) or (B, C, D, H, W), float; mask: None or the same with one channel, bool or float
        return scalar                      # smaller is better, differentiable by pred
        return scalar, {"name": scalar}    # the same with terms to be logged

A function without a `mask` argument works as long as there is no mask. Options (`--loss-kwargs`) are passed to the
function by keyword. A class, such as an nn.Module, is constructed with them.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from splat_ssim import _maps, loss, reference
from splat_ssim._checks import check_images, check_mask, check_reduction
from splat_ssim._importing import imported
from splat_ssim.options import Sigma, SSIMOptions, WindowSize

if TYPE_CHECKING:
    pass

#: Sides of the probe pair: as large as five-scale MS-SSIM needs, and a small volume.
_PROBE_SHAPES = ((1, 3, 176, 176), (1, 1, 24, 24, 24))


class Loss(Protocol):
    """The type of the losses that `get_loss` returns."""

    def __call__(self, pred: Tensor, target: Tensor, *, mask: Tensor | None = None) -> loss.LossResult:
        """The loss, or the loss and its terms."""


def l1_loss(pred: Tensor, target: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Mean of |pred - target|, weighted by the mask.

    Example:
        >>> import torch
        >>> from splat_ssim.registry import l1_loss
        >>> l1_loss(torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8))
        tensor(1.)
    """
    _check(pred, target, mask)
    return _maps.weighted_mean(_maps.absolute_difference(pred, target), mask, "mean")


def l2_loss(pred: Tensor, target: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Mean of (pred - target)², weighted by the mask.

    Example:
        >>> import torch
        >>> from splat_ssim.registry import l2_loss
        >>> l2_loss(torch.zeros(1, 3, 8, 8), torch.full((1, 3, 8, 8), 2.0))
        tensor(4.)
    """
    _check(pred, target, mask)
    return _maps.weighted_mean(_maps.absolute_difference(pred, target).square(), mask, "mean")


def ssim_loss(
    pred: Tensor,
    target: Tensor,
    *,
    lambda_dssim: float = 0.2,
    window_size: WindowSize = 11,
    sigma: Sigma = 1.5,
    data_range: float = 1.0,
    k1: float = 0.01,
    k2: float = 0.03,
    padding: str = "same",
    reduction: str = "mean",
    mask: Tensor | None = None,
    mask_mode: str = "weight",
    channels_last: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The value of `splat_ssim.loss.photometric_loss`, computed in plain torch for comparison.

    Example:
        >>> import torch
        >>> from splat_ssim.registry import ssim_loss
        >>> value, terms = ssim_loss(torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32))
    """
    given = SSIMOptions(window_size, sigma, data_range, k1, k2, padding, channels_last)
    lambda_dssim, options = loss.check_photometric(pred, target, lambda_dssim, given, reduction, mask, mask_mode)
    value, l1, ssim = reference.photometric_loss(
        pred,
        target,
        lambda_dssim=lambda_dssim,
        reduction=reduction,
        mask=mask,
        mask_mode=mask_mode,
        **options.keywords(),
    )
    return value, {"l1": l1.detach(), "ssim": ssim.detach()}


def _check(pred: Tensor, target: Tensor, mask: Tensor | None) -> None:
    check_images(pred, target, (2, 3), names=("pred", "target"))
    check_reduction("mean", ("mean",), pred)
    check_mask(mask, "weight", pred, channels_last=False)


#: The losses that are asked for by a bare name.
LOSSES: dict[str, Callable[..., loss.LossResult]] = {
    "l1": l1_loss,
    "l2": l2_loss,
    "ssim": ssim_loss,
    "fused_ssim": functools.partial(loss.photometric_loss, return_terms=True),
    "ms_ssim": functools.partial(loss.ms_ssim_l1_loss, return_terms=True),
}


def get_loss(name: str, **kwargs: object) -> Loss:
    """Returns the loss of this name.

    Args:
        name: "l1"; "l2"; "fused_ssim" for L1 + DSSIM in one pass; "ssim" for the same formula in plain torch; "ms_ssim"
            for L1 + MS-SSIM; or "package.module:function", which is imported.
        **kwargs: Options of that loss.

    Returns:
        A callable `(pred, target, *, mask=None)` -> scalar or (scalar, terms).

    Raises:
        ValueError: The name is unknown or cannot be imported, or the loss does not take these options. The loss is also
            tried on two small images: it must return a scalar, and a worse copy must cost more than a better one.

    Example:
        >>> import torch
        >>> from splat_ssim.registry import get_loss
        >>> criterion = get_loss("fused_ssim", lambda_dssim=0.3)
        >>> value, terms = criterion(torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32))
        >>> criterion = get_loss("torch.nn.functional:mse_loss")
    """
    if name in LOSSES:
        found: Loss = functools.partial(LOSSES[name], **kwargs)
    elif ":" in name:
        found = _with_mask(name, _imported(name, kwargs))
    else:
        known = ", ".join(LOSSES)
        raise ValueError(f"a loss must be one of {known}, or 'package.module:function', got {name!r}")
    _probe(name, found)
    return found


def _imported(name: str, kwargs: dict[str, object]) -> Callable[..., loss.LossResult]:
    """The callable that "package.module:function" names, with its options."""
    try:
        found: Any = imported(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"the loss {name!r} must be importable as package.module:function, got: {error}") from error
    if not callable(found):
        raise ValueError(f"the loss {name!r} must be callable, got {type(found).__name__}")
    if not isinstance(found, type):
        return functools.partial(found, **kwargs)
    try:
        made: Callable[..., loss.LossResult] = found(**kwargs)
    except TypeError as error:
        raise ValueError(f"the loss {name!r} must take the options {kwargs}, got: {error}") from error
    return made


def _with_mask(name: str, function: Callable[..., loss.LossResult]) -> Loss:
    """Calls `function` with the mask where it takes one, and otherwise refuses a mask."""
    # Modules are asked through forward: Module.__call__ takes anything.
    asked = function.forward if isinstance(function, torch.nn.Module) else function
    try:
        parameters = inspect.signature(asked).parameters.values()
        takes_mask = any(p.name == "mask" or p.kind is p.VAR_KEYWORD for p in parameters)
    except ValueError:  # A builtin without a signature.
        takes_mask = False

    def call(pred: Tensor, target: Tensor, *, mask: Tensor | None = None) -> loss.LossResult:
        if takes_mask:
            return function(pred, target, mask=mask)
        if mask is not None:
            raise ValueError(f"the loss {name!r} must have a keyword argument `mask` to be given one, got {asked}")
        return function(pred, target)

    return call


def _scalar(name: str, result: object) -> float:
    """The value of a loss's result, checked to be a scalar, or a scalar and a dictionary."""
    value = result[0] if isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict) else result
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"the loss {name!r} must return a scalar tensor, or (scalar, dict of scalars), got {got}")
    return float(value)


def _probe(name: str, function: Loss) -> None:
    """Tries the loss on a target, a good and a bad copy of it: the bad one must cost more.

    Volumes are tried where images fail, and a CUDA device where the CPU does.
    """
    failures: list[Exception] = []
    with_cuda = torch.cuda.is_available()
    devices = ["cpu", "cuda"] if with_cuda else ["cpu"]
    for device, shape in ((device, shape) for device in devices for shape in _PROBE_SHAPES):
        generator = torch.Generator().manual_seed(0)
        target = torch.rand(shape, generator=generator)
        noise = torch.rand(shape, generator=generator)
        near, far = (torch.lerp(target, noise, amount).to(device) for amount in (0.05, 0.9))
        # A loss that draws random numbers must not change those of the training.
        with torch.no_grad(), torch.random.fork_rng([torch.cuda.current_device()] if with_cuda else []):
            try:
                results = [function(pred, target.to(device)) for pred in (near, far)]
            except Exception as error:  # Whatever a plug-in raises is reported, see below.
                failures.append(error)
                continue
        good, bad = (_scalar(name, result) for result in results)
        if good > bad:
            raise ValueError(
                f"the loss {name!r} must fall as the images become alike, got {good:g} for a near copy and {bad:g} for "
                "a far one: it is a similarity. Wrap it in a function that returns 1 minus its value"
            )
        return
    reasons = dict.fromkeys(f"{type(failure).__name__}: {failure}" for failure in failures)  # of images, of volumes
    raise ValueError(
        f"the loss {name!r} must work as loss(pred, target, *, mask=None) on float images in [0, 1], got "
        f"{'; on volumes '.join(list(reasons)[:2])}"
    ) from failures[0]
