from __future__ import annotations

import math

import torch
from torch import Tensor

from ..functional import ssim3d


def psnr3d(pred: Tensor, target: Tensor, *, data_range: float = 1.0) -> float:
    """Peak signal-to-noise ratio over all voxels, in dB; infinite for equal volumes."""
    error = float((pred.double() - target.double()).square().mean())
    return math.inf if error == 0 else 10 * math.log10(data_range**2 / error)


@torch.no_grad()
def evaluate_volume(pred: Tensor, target: Tensor, *, data_range: float = 1.0) -> dict[str, float]:
    """PSNR and SSIM of whole volumes (C, n0, n1, n2): `psnr3d`, and `ssim3d` with zero padding."""
    return {
        "psnr3d": psnr3d(pred, target, data_range=data_range),
        "ssim3d": float(ssim3d(pred[None], target[None], data_range=data_range)),
    }
