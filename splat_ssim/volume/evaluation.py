"""PSNR and SSIM of a fitted volume: of all voxels, inside a mask, and against the file's own intensities."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ..functional import ssim3d
from ..trainer.metrics import psnr, psnr_of_mse, reported_psnr

#: PSNR over all voxels: the same function as for images.
psnr3d = psnr


@torch.no_grad()
def evaluate_volume(
    pred: Tensor, target: Tensor, *, data_range: float = 1.0, mask: Tensor | None = None
) -> dict[str, float]:
    """Computes PSNR and SSIM of whole volumes: `psnr3d`, and `ssim3d` with zero padding.

    Args:
        pred: (C, n0, n1, n2).
        target: Same shape as `pred`.
        data_range: Difference between the largest and the smallest possible value.
        mask: (1, 1, n0, n1, n2) weights of 0 or more. If given, the result also has `psnr3d_masked` and
            `ssim3d_masked`, whose means are weighted by them.
    """
    result = {
        "psnr3d": reported_psnr(psnr(pred, target, data_range=data_range)),
        "ssim3d": float(ssim3d(pred[None], target[None], data_range=data_range)),
    }
    if mask is not None:
        result["psnr3d_masked"] = reported_psnr(weighted_psnr(pred, target, mask[0, 0], data_range=data_range))
        result["ssim3d_masked"] = float(ssim3d(pred[None], target[None], data_range=data_range, mask=mask))
    return result


@torch.no_grad()
def weighted_psnr(pred: Tensor, target: Tensor, weights: Tensor | None, *, data_range: float = 1.0) -> float:
    """Computes the PSNR in dB of the weighted mean squared error.

    Args:
        pred: (C, n0, n1, n2).
        target: Same shape as `pred`.
        weights: (n0, n1, n2), 0 or more. None weights all voxels equally.
        data_range: Difference between the largest and the smallest possible value.
    """
    if weights is None:
        return psnr(pred, target, data_range=data_range)
    squares = (pred.double() - target.double()).square().mean(0)
    return psnr_of_mse(float((squares * weights).sum() / weights.double().sum()), data_range)


def source_psnr(intensities: np.ndarray, source: np.ndarray, span: float) -> float:
    """Computes the PSNR of a fit in the file's intensities, over their full span, with nothing cut off.

    Args:
        intensities: (C, n0, n1, n2), the fit, converted to the file's intensities.
        source: Voxels of the file: same shape, any real dtype.
        span: Difference between the largest and the smallest intensity of the file.
    """
    # Channel by channel, because float64 copies of a large volume take much memory.
    sums = [source_squares(a, b, span) for a, b in zip(intensities, source, strict=True)]
    return psnr_of_squares(sum(sums), source.size, span)


def source_squares(intensities: np.ndarray, source: np.ndarray, span: float) -> float:
    """Sum of squared differences, in float64 and in the power of two next to the span, whose square may be none."""
    differences = np.subtract(intensities, source, dtype=np.float64)
    np.ldexp(differences, -math.frexp(span)[1], out=differences)
    return float(np.square(differences, out=differences).sum())


def psnr_of_squares(total: float, size: int, span: float) -> float:
    """The PSNR over a span, as it is reported, of a sum of `source_squares` over `size` voxels."""
    return reported_psnr(psnr_of_mse(total / size, math.frexp(span)[0]))
