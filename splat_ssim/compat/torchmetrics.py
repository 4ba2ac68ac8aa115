"""The interface of torchmetrics' SSIM and MS-SSIM (1.9): two functions and two metrics.

As in the original: images are continued by reflection, and SSIM is the mean over the full map; a
Gaussian window has int(3.5 · sigma + 0.5) · 2 + 1 taps, `kernel_size` is that of uniform windows alone, but also what
the last axis of volumes is padded by and what MS-SSIM demands of the sides; `data_range=None` is the larger of the two
images' ranges and carries a gradient (torchmetrics after 1.9 cuts it off); a contrast-structure mean over no window is
NaN; MS-SSIM averages over channels before it multiplies scales, rounds `betas` to float32, and with `normalize=None` is
NaN where a term is negative.

Different from the original: with `normalize="relu"`, the gradient is 0 rather than NaN where a term is 0 or less; half
precision is computed in float32 and rounded once; integer images raise a TypeError, unless SSIM clamps them to floats.
Where the original raises a RuntimeError, the error is a ValueError as well.

The functions need only torch. The metrics are torchmetrics' own classes with our numbers, so they need torchmetrics.

Windows up to 33 taps run on the kernels, uniform ones too, for float32 and half precision; float64 takes plain torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from splat_ssim import reference
from splat_ssim.compat._on_demand import import_on_demand
from splat_ssim.compat._torchmetrics_ssim import (
    DataRange,
    Options,
    check_multiscale,
    multiscale,
    reduced,
    similarity,
)

if TYPE_CHECKING:
    from splat_ssim.compat._torchmetrics_modules import (
        MultiScaleStructuralSimilarityIndexMeasure,
        StructuralSimilarityIndexMeasure,
    )

__all__ = [
    "MultiScaleStructuralSimilarityIndexMeasure",
    "StructuralSimilarityIndexMeasure",
    "multiscale_structural_similarity_index_measure",
    "structural_similarity_index_measure",
]


def structural_similarity_index_measure(
    preds: Tensor,
    target: Tensor,
    gaussian_kernel: bool = True,
    sigma: float | Sequence[float] = 1.5,
    kernel_size: int | Sequence[int] = 11,
    reduction: str | None = "elementwise_mean",
    data_range: DataRange = None,
    k1: float = 0.01,
    k2: float = 0.03,
    return_full_image: bool = False,
    return_contrast_sensitivity: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """SSIM over windows that see the images continued by reflection.

    Args:
        preds: (B, C, H, W) or (B, C, D, H, W), float.
        target: The same shape; taken in the dtype of `preds`.
        gaussian_kernel: Whether the window is a Gaussian; else it is uniform.
        sigma: Standard deviation of the Gaussian, or one for each spatial axis.
        kernel_size: Taps of the uniform window, odd, or one number for each spatial axis.
        reduction: "elementwise_mean" or "sum" over the images; "none" or None, (B,).
        data_range: Difference between the largest and the smallest possible value; (low, high), which clamps images;
            None, the larger range of the two batches.
        k1: Constant of the luminance term.
        k2: Constant of the contrast-structure term.
        return_full_image: Whether to return the map of S, (B, C, spatial…), too.
        return_contrast_sensitivity: Whether to return the contrast-structure means of the images, (B,), too.

    Returns:
        () or (B,), in the dtype of `preds`, differentiable in both images; or a pair of it and what else is asked for.

    Raises:
        ValueError: An option or a rank is not as above.
        RuntimeError: The shapes differ, or the images are no larger than the padding; a ValueError as well.
        TypeError: An image is not a float tensor.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.torchmetrics import structural_similarity_index_measure
        >>> preds = torch.rand(2, 3, 32, 32)
        >>> structural_similarity_index_measure(preds, preds, data_range=1.0)
        tensor(1.)
    """
    options = Options(
        gaussian_kernel, sigma, kernel_size, data_range, k1, k2, return_full_image, return_contrast_sensitivity
    )
    values, further = similarity(preds, target, options)
    value = reduced(values, reduction)
    return value if further is None else (value, further)


def multiscale_structural_similarity_index_measure(
    preds: Tensor,
    target: Tensor,
    gaussian_kernel: bool = True,
    sigma: float | Sequence[float] = 1.5,
    kernel_size: int | Sequence[int] = 11,
    reduction: str | None = "elementwise_mean",
    data_range: DataRange = None,
    k1: float = 0.01,
    k2: float = 0.03,
    betas: tuple[float, ...] = reference.MS_SSIM_WEIGHTS,
    normalize: str | None = "relu",
) -> Tensor:
    """MS-SSIM: the contrast-structure means of all scales but the last, whose SSIM it is, to the powers of `betas`.

    Args:
        preds: As for `structural_similarity_index_measure`; scales are means of blocks of 2, an odd rest is left out.
        target: Likewise.
        gaussian_kernel: Likewise.
        sigma: Likewise.
        kernel_size: Likewise.
        reduction: Likewise.
        data_range: Likewise; (low, high) and None are applied at each scale.
        k1: Likewise.
        k2: Likewise.
        betas: One exponent for each scale, from fine to coarse, floats in a tuple.
        normalize: "relu", negative terms count as 0; "simple", terms are (1 + term) / 2; or None.

    Returns:
        () or (B,), in the dtype of `preds` but at least float32, differentiable in both images.

    Raises:
        ValueError: As for `structural_similarity_index_measure`; `betas` or `normalize` is not as above; the two last
            axes are too small for the scales.
        RuntimeError: As for `structural_similarity_index_measure`.
        TypeError: Likewise.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.torchmetrics import multiscale_structural_similarity_index_measure
        >>> preds = torch.rand(1, 1, 192, 192, requires_grad=True)
        >>> value = multiscale_structural_similarity_index_measure(preds, torch.rand(1, 1, 192, 192), data_range=1.0)
        >>> value.backward()
    """
    check_multiscale(betas, normalize)
    options = Options(gaussian_kernel, sigma, kernel_size, data_range, k1, k2)
    return reduced(multiscale(preds, target, options, betas, normalize), reduction)


for _function in (structural_similarity_index_measure, multiscale_structural_similarity_index_measure):
    _function.__module__ = __name__


def __getattr__(name: str) -> Any:
    """The metrics, which need torchmetrics: it is imported when they are asked for."""
    return import_on_demand(name, __all__, "_torchmetrics_modules", "torchmetrics")
