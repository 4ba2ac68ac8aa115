"""The metrics of `splat_ssim.compat.torchmetrics`: torchmetrics' own, whose updates compute our numbers."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torchmetrics.image import MultiScaleStructuralSimilarityIndexMeasure as _MultiScale
from torchmetrics.image import StructuralSimilarityIndexMeasure as _Single

from splat_ssim.compat._torchmetrics_ssim import Options, check_images, multiscale, similarity

_PUBLIC = "splat_ssim.compat.torchmetrics"


def _options(metric: Any, *further: bool) -> Options:
    """The options that a metric was made with, and what else it returns."""
    return Options(
        metric.gaussian_kernel, metric.sigma, metric.kernel_size, metric.data_range, metric.k1, metric.k2, *further
    )


def _add(metric: Any, values: Tensor, further: Tensor | None = None) -> None:
    """Adds the values of images, (B,), and what else is asked for to the metric's states."""
    if further is not None:
        metric.image_return.append(further)
    if metric.reduction in ("elementwise_mean", "sum"):
        # In place: the states keep their dtype.
        metric.similarity += values.sum()
        metric.total += len(values)
    else:
        metric.similarity.append(values)


class StructuralSimilarityIndexMeasure(_Single):
    """SSIM of all images passed to `update`. The arguments are the options of `structural_similarity_index_measure`.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.torchmetrics import StructuralSimilarityIndexMeasure
        >>> metric = StructuralSimilarityIndexMeasure(data_range=1.0)
        >>> images = torch.rand(2, 3, 32, 32)
        >>> metric.update(images, images)
        >>> metric.compute()
        tensor(1.)
    """

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Adds a batch of images. Shapes are as for `structural_similarity_index_measure`."""
        options = _options(self, self.return_full_image, self.return_contrast_sensitivity)
        _add(self, *similarity(preds, target, options))


class MultiScaleStructuralSimilarityIndexMeasure(_MultiScale):
    """MS-SSIM of all images passed to `update`.

    The arguments are the options of `multiscale_structural_similarity_index_measure`.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.torchmetrics import MultiScaleStructuralSimilarityIndexMeasure
        >>> metric = MultiScaleStructuralSimilarityIndexMeasure(data_range=1.0)
        >>> images = torch.rand(2, 1, 192, 192)
        >>> metric.update(images, images)
        >>> metric.compute()
        tensor(1.)
    """

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Adds a batch of images. Shapes are as for `multiscale_structural_similarity_index_measure`."""
        preds, target = check_images(preds, target)
        _add(self, multiscale(preds, target, _options(self), self.betas, self.normalize))


for _class in (StructuralSimilarityIndexMeasure, MultiScaleStructuralSimilarityIndexMeasure):
    # Pickles and error messages name the module that people import.
    _class.__module__ = _PUBLIC
