"""The metrics of `splat_ssim.compat.monai`: MONAI's own, whose values are ours."""

from __future__ import annotations

from monai.metrics.regression import MultiScaleSSIMMetric as _MultiScale
from monai.metrics.regression import SSIMMetric as _Single
from torch import Tensor

from splat_ssim.compat.monai import compute_ms_ssim, image_ssim


class SSIMMetric(_Single):
    """Collects the SSIM of images until `aggregate`. The arguments are those of `SSIMLoss`, and MONAI's `reduction`.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.monai import SSIMMetric
        >>> metric = SSIMMetric(spatial_dims=2)
        >>> images = torch.rand(2, 3, 32, 32)
        >>> values = metric(images, images)
        >>> metric.aggregate()
        tensor([1.])
    """

    def _compute_metric(self, y_pred: Tensor, y: Tensor) -> Tensor:
        return image_ssim(y_pred, y, self)


class MultiScaleSSIMMetric(_MultiScale):
    """Collects the MS-SSIM of images until `aggregate`. The arguments are those of `compute_ms_ssim`.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.monai import MultiScaleSSIMMetric
        >>> metric = MultiScaleSSIMMetric(spatial_dims=2)
        >>> images = torch.rand(2, 1, 192, 192)
        >>> values = metric(images, images)
        >>> metric.aggregate()
        tensor([1.])
    """

    def _compute_metric(self, y_pred: Tensor, y: Tensor) -> Tensor:
        return compute_ms_ssim(
            y_pred,
            y,
            spatial_dims=self.spatial_dims,
            data_range=self.data_range,
            kernel_type=self.kernel_type,
            kernel_size=self.kernel_size,
            kernel_sigma=self.kernel_sigma,
            k1=self.k1,
            k2=self.k2,
            weights=self.weights,
        )


for _class in (SSIMMetric, MultiScaleSSIMMetric):
    # Pickles and error messages name the module that people import.
    _class.__module__ = "splat_ssim.compat.monai"
