"""PSNR, and how metrics are reported."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

#: Reported PSNR ends here: equal images have no finite one, JSON has no infinity, and a mean over views must stay a
#: number. So 100 dB in a metrics.json means "100 dB or more".
MAX_PSNR = 100.0


@torch.no_grad()
def psnr(pred: Tensor, target: Tensor, mask: Tensor | None = None, *, data_range: float = 1.0) -> float:
    """Computes the peak signal-to-noise ratio in dB, 10·log10(data_range² / MSE), in float64.

    The mean squared error is taken over batch, channels and positions together. For a mean over views, call it for each
    view, as the evaluation of scenes does. Figures that are written to files pass through `reported_psnr`.

    Args:
        pred: Any shape, such as (1, 3, H, W) or (C, D, H, W).
        target: Same shape as `pred`.
        mask: bool, over the last axes, such as (H, W). Only positions where it is true count.
        data_range: Difference between the largest and the smallest possible value.

    Returns:
        The ratio in dB: infinite for equal tensors, NaN if the mask is false everywhere.

    Example:
        >>> import torch
        >>> from splat_ssim.trainer.metrics import psnr
        >>> round(psnr(torch.full((1, 3, 4, 4), 0.6), torch.full((1, 3, 4, 4), 0.5)), 3)
        20.0
    """
    squares = (pred.double() - target.double()).square()
    if mask is not None:
        squares = squares[..., mask]
    return psnr_of_mse(float(squares.mean()), data_range)


def psnr_of_mse(mse: float, data_range: float = 1.0) -> float:
    """PSNR in dB of a mean squared error, as `psnr` gives it."""
    if mse == 0:
        return math.inf
    # Mantissas and exponents apart, because the square of an extreme range leaves the numbers of float64.
    (root, twice), (square, once) = math.frexp(data_range), math.frexp(mse)
    ratio = root**2 / square
    return -math.inf if ratio == 0 else 10 * math.log10(math.ldexp(ratio, min(max(2 * twice - once, -1000), 1000)))


def reported_psnr(decibels: float) -> float:
    """A PSNR as it is reported: at most `MAX_PSNR`, the value for equal images."""
    return min(decibels, MAX_PSNR)


def scalars(values: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a result that are single values, for metrics.json, TensorBoard or one line of text."""
    return {key: value for key, value in values.items() if isinstance(value, int | float | str)}


def in_words(values: Mapping[str, Any]) -> str:
    """Metrics on one line, such as "psnr 37.27 dB, ssim 0.9919, num_gaussians 30000".

    Example:
        >>> from splat_ssim.trainer.metrics import in_words
        >>> in_words({"psnr": 37.268, "ssim": 0.99189, "ssim_padding": "same", "views": []})
        'psnr 37.27 dB, ssim 0.9919, ssim_padding same'
    """
    words = []
    for key, value in scalars(values).items():
        if key.startswith("psnr"):
            words.append(f"{key} {value:.2f} dB")
        else:
            words.append(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}")
    return ", ".join(words)
