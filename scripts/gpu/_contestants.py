"""The losses that a GPU run sets beside each other: L1 + DSSIM of this package and around the SSIM of each peer."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from splat_ssim import reference
from splat_ssim.loss import photometric_loss

LAMBDA = 0.2
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Contestant:
    """A loss by name; `make` imports it, and may fail."""

    name: str
    make: Callable[[], Loss]
    padding: str = "same"  # of its SSIM, in the words of splat_ssim.ssim
    ours: bool = False


def _with_l1(ssim: Loss) -> Loss:
    return lambda x, y: (1 - LAMBDA) * (x - y).abs().mean() + LAMBDA * (1 - ssim(x, y))


def _ours() -> Loss:
    return lambda x, y: photometric_loss(x, y, lambda_dssim=LAMBDA)


def _masked() -> Loss:
    masks: dict[torch.Size, Tensor] = {}

    def loss(x: Tensor, y: Tensor) -> Tensor:
        if x.shape not in masks:
            masks[x.shape] = torch.ones(x.shape[0], 1, *x.shape[2:], device=x.device)
        return photometric_loss(x, y, lambda_dssim=LAMBDA, mask=masks[x.shape])

    return loss


def _fused_ssim() -> Loss:
    fused_ssim = importlib.import_module("fused_ssim").fused_ssim
    return _with_l1(lambda x, y: fused_ssim(x, y, train=torch.is_grad_enabled()))


def _fused_ssim_3d() -> Loss:
    for name in ("fused_ssim3d", "fused_ssim"):
        try:
            return _with_l1(importlib.import_module(name).fused_ssim3d)
        except (ImportError, AttributeError):
            continue
    raise ImportError("no fused_ssim3d in fused_ssim3d or fused_ssim")


def _pytorch_msssim() -> Loss:
    ssim = importlib.import_module("pytorch_msssim").ssim
    return _with_l1(lambda x, y: ssim(x, y, data_range=1.0))


def _kornia() -> Loss:
    ssim = importlib.import_module("kornia.metrics").ssim
    return _with_l1(lambda x, y: ssim(x, y, 11).mean())


def contestants(dims: int) -> Iterator[Contestant]:
    """Everyone for images or volumes."""
    yield Contestant("splat_ssim", _ours, ours=True)
    if dims == 2:
        yield Contestant("splat_ssim, masked", _masked, ours=True)
        yield Contestant("fused-ssim + L1", _fused_ssim)
        yield Contestant("kornia + L1", _kornia, "reflect")
    else:
        yield Contestant("fused-ssim 3D + L1", _fused_ssim_3d)
    yield Contestant("pytorch-msssim + L1", _pytorch_msssim, "valid")


def compiled(backend: str = "inductor") -> Contestant:
    """The definition under torch.compile."""

    def make() -> Loss:
        definition = lambda x, y: reference.photometric_loss(x, y, lambda_dssim=LAMBDA)[0]  # noqa: E731
        return torch.compile(definition, dynamic=False, backend=backend)

    return Contestant("torch.compile of the definition", make)
