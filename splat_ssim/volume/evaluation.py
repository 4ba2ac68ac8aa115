from __future__ import annotations

import torch
from torch import Tensor

from ..functional import ssim3d
from ..trainer.metrics import psnr, reported_psnr

#: PSNR over all voxels: the same function as for images.
psnr3d = psnr


@torch.no_grad()
def evaluate_volume(pred: Tensor, target: Tensor) -> dict[str, float]:
    """PSNR and SSIM of whole volumes (C, n0, n1, n2) in [0, 1]: `psnr3d`, and `ssim3d` with zero padding."""
    return {
        "psnr3d": reported_psnr(psnr(pred, target)),
        "ssim3d": float(ssim3d(pred[None], target[None])),
    }
