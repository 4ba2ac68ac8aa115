"""The interface of torchmetrics' SSIM and MS-SSIM (1.9): two functions and two metrics.

As in the original, images are padded by reflection, and SSIM is the mean over the full map. A Gaussian window has
int(3.5 · sigma + 0.5) · 2 + 1 taps. `kernel_size` is the size of uniform windows. For Gaussian ones it only sets the
padding of the last axis of volumes and the smallest sides for MS-SSIM. `data_range=None` is the larger of the two
batches' ranges and carries a gradient (torchmetrics after 1.9 cuts it off). A contrast-structure mean over no window is
NaN. MS-SSIM averages over channels before it multiplies scales, and rounds `betas` to float32. With `normalize=None` it
is NaN where a term is negative.

It differs from the original in these ways. With `normalize="relu"`, the gradient is 0 instead of NaN where a term is 0
or less. Half precision is computed in float32 and rounded once. Integer images raise a TypeError, unless SSIM clamps
them to floats. Where the original raises a RuntimeError, the error is a ValueError too. An empty batch gives NaN or
nothing, and MS-SSIM of float32 images is float32 under any default dtype.

The functions need only torch. The metrics subclass torchmetrics' own and compute our numbers, so they need
torchmetrics.

Windows up to 33 taps use the kernels for float32 and half precision, uniform ones too. float64 uses plain torch.
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
    """SSIM of images that are padded by reflection.

    Args:
        preds: (B, C, H, W) or (B, C, D, H, W), any float dtype.
        target: Same shape and device as `preds`. It is converted to the dtype of `preds`.
        gaussian_kernel: Whether the window is a Gaussian instead of uniform.
        sigma: Standard deviation of the Gaussian: one number, or one for each spatial axis.
        kernel_size: Number of taps of the uniform window, odd: one number, or one for each spatial axis.
        reduction: "elementwise_mean" or "sum" over the images; "none" or None for the value of each image.
        data_range: Difference between the largest and the smallest possible value; or (low, high), to which the images
            are clamped; or None for the larger of the two batches' ranges.
        k1: Constant of the luminance term.
        k2: Constant of the contrast-structure term.
        return_full_image: Whether to return the SSIM map, (B, C, spatial…), too.
        return_contrast_sensitivity: Whether to return the mean contrast-structure factor of each image, (B,), too.

    Returns:
        A tensor of shape () or (B,), in the dtype of `preds`, differentiable with respect to both images. If the map or
        the contrast-structure factors are requested, a pair of this tensor and them.

    Raises:
        ValueError: An option or the number of axes is not as above.
        RuntimeError: The shapes or devices differ, or the images are no larger than the padding. The error is a
            ValueError too.
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
    """MS-SSIM of images that are padded by reflection.

    It is a product over scales: of the mean contrast-structure term, or on the coarsest scale the mean SSIM, each
    raised to its exponent. A scale averages blocks of 2 pixels along each axis of the one before; an odd row or column
    at the end is left out.

    Args:
        preds: (B, C, H, W) or (B, C, D, H, W), any float dtype.
        target: Same shape and device as `preds`. It is converted to the dtype of `preds`.
        gaussian_kernel: Whether the window is a Gaussian instead of uniform.
        sigma: Standard deviation of the Gaussian: one number, or one for each spatial axis.
        kernel_size: Number of taps of the uniform window, odd: one number, or one for each spatial axis.
        reduction: "elementwise_mean" or "sum" over the images; "none" or None for the value of each image.
        data_range: As for `structural_similarity_index_measure`. (low, high) and None are applied at each scale.
        k1: Constant of the luminance term.
        k2: Constant of the contrast-structure term.
        betas: A tuple of floats, one exponent for each scale, from fine to coarse.
        normalize: "relu": negative terms count as 0. "simple": a term t becomes (1 + t) / 2. None: terms are unchanged.

    Returns:
        A tensor of shape () or (B,), in the dtype of `preds` but at least float32, differentiable with respect to both
        images.

    Raises:
        ValueError: In the same cases as `structural_similarity_index_measure`; or `betas` or `normalize` is not as
            above; or the last two axes are too small for the scales.
        RuntimeError: In the same cases as `structural_similarity_index_measure`.
        TypeError: In the same cases as `structural_similarity_index_measure`.

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
    """Imports the metrics on first use, because they need torchmetrics."""
    return import_on_demand(name, __all__, "_torchmetrics_modules", "torchmetrics")
