"""The losses that a GPU run compares: L1 + DSSIM of this package, and L1 + DSSIM built on the SSIM of each peer."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from splat_ssim import reference, ssim
from splat_ssim.loss import photometric_loss

LAMBDA = 0.2
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Contestant:
    """A loss with its name. `make` imports the loss and may fail."""

    name: str
    make: Callable[[], Loss]
    padding: str = "same"  # padding of its SSIM, as splat_ssim.ssim names it
    ours: bool = False
    lambda_dssim: float = LAMBDA


def _with_l1(similarity: Loss) -> Loss:
    return lambda x, y: (1 - LAMBDA) * (x - y).abs().mean() + LAMBDA * (1 - similarity(x, y))


def _without_l1(similarity: Loss) -> Loss:
    return lambda x, y: 1 - similarity(x, y)


def _ours() -> Loss:
    return lambda x, y: photometric_loss(x, y, lambda_dssim=LAMBDA)


def _our_ssim() -> Loss:
    return _without_l1(ssim)


def _masked() -> Loss:
    masks: dict[torch.Size, Tensor] = {}

    def loss(x: Tensor, y: Tensor) -> Tensor:
        if x.shape not in masks:
            masks[x.shape] = torch.ones(x.shape[0], 1, *x.shape[2:], device=x.device)
        return photometric_loss(x, y, lambda_dssim=LAMBDA, mask=masks[x.shape])

    return loss


def _peer(name: str) -> Loss:
    """The SSIM of fused-ssim or fussim, which share their interface."""
    peer = importlib.import_module(name).fused_ssim
    return lambda x, y: peer(x, y, train=torch.is_grad_enabled())


def _fused_ssim_3d() -> Loss:
    for name in ("fused_ssim3d", "fused_ssim"):
        try:
            return _with_l1(importlib.import_module(name).fused_ssim3d)
        except (ImportError, AttributeError):
            continue
    raise ImportError("no fused_ssim3d in fused_ssim3d or fused_ssim")


def _pytorch_msssim() -> Loss:
    peer = importlib.import_module("pytorch_msssim").ssim
    return _with_l1(lambda x, y: peer(x, y, data_range=1.0))


def _kornia() -> Loss:
    peer = importlib.import_module("kornia.metrics").ssim
    return _with_l1(lambda x, y: peer(x, y, 11).mean())


@functools.cache
def contestants(dims: int) -> tuple[Contestant, ...]:
    """All contestants for images (2) or volumes (3)."""
    ours = Contestant("splat_ssim", _ours, ours=True)
    pytorch_msssim = Contestant("pytorch-msssim + L1", _pytorch_msssim, "valid")
    if dims == 3:
        return ours, Contestant("fused-ssim 3D + L1", _fused_ssim_3d), pytorch_msssim
    return (
        ours,
        Contestant("splat_ssim, masked", _masked, ours=True),
        Contestant("fused-ssim + L1", lambda: _with_l1(_peer("fused_ssim"))),
        Contestant("fussim + L1", lambda: _with_l1(_peer("fussim"))),
        Contestant("splat_ssim, SSIM alone", _our_ssim, ours=True, lambda_dssim=1.0),
        Contestant("fused-ssim, SSIM alone", lambda: _without_l1(_peer("fused_ssim")), lambda_dssim=1.0),
        Contestant("fussim, SSIM alone", lambda: _without_l1(_peer("fussim")), lambda_dssim=1.0),
        Contestant("kornia + L1", _kornia, "reflect"),
        pytorch_msssim,
    )


def compiled(backend: str = "inductor") -> Contestant:
    """The definition under torch.compile."""

    def make() -> Loss:
        definition = lambda x, y: reference.photometric_loss(x, y, lambda_dssim=LAMBDA)[0]  # noqa: E731
        return torch.compile(definition, dynamic=False, backend=backend)

    return Contestant("torch.compile of the definition", make)
