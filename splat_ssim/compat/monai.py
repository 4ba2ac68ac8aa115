"""The interface of MONAI's SSIM and MS-SSIM (1.6) for images and volumes.

As in the original, windows lie inside the images. The window has `win_size` taps whatever its sigma, and may be even.
Everything is computed and returned in float32, whatever the dtype of the images. MS-SSIM averages over channels before
it multiplies scales. Each side must have at least taps · (scales - 1)² pixels for it.

It differs from the original in these ways. Where a term of MS-SSIM is 0 or less, its gradient is 0 instead of NaN.
Empty weights, a sigma of 0 and an unknown kernel raise a ValueError. Where the original raises a RuntimeError of torch,
we raise one too, but for an empty batch, which gives NaN or nothing, and for integers and bool in `compute_ms_ssim`:
they are converted to float32 before scales are averaged, where the original averages int64 in integers.

The functions and `SSIMLoss` need only torch. The metrics subclass MONAI's own and compute our numbers, so they need
MONAI.

Odd windows up to 33 taps use the kernels, uniform ones too. Even and longer windows, and `compute_ssim_and_cs`, which
returns two maps, use plain torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.loss import _Loss

from splat_ssim import reference
from splat_ssim.compat import _windowed
from splat_ssim.compat._errors import RefusedDtypeError, RefusedRuntimeError
from splat_ssim.compat._on_demand import import_on_demand
from splat_ssim.compat._options import number, whole
from splat_ssim.compat._windowed import Window, each_axis

if TYPE_CHECKING:
    from splat_ssim.compat._monai_metrics import MultiScaleSSIMMetric, SSIMMetric

__all__ = ["MultiScaleSSIMMetric", "SSIMLoss", "SSIMMetric", "compute_ms_ssim", "compute_ssim_and_cs"]


def compute_ssim_and_cs(
    y_pred: Tensor,
    y: Tensor,
    spatial_dims: int,
    kernel_size: Sequence[int],
    kernel_sigma: Sequence[float],
    data_range: float = 1.0,
    kernel_type: str = "gaussian",
    k1: float = 0.01,
    k2: float = 0.03,
) -> tuple[Tensor, Tensor]:
    """The maps of SSIM and of its contrast-structure factor.

    Args:
        y_pred: (B, C, H, W) or (B, C, D, H, W): a tensor or an array of any real dtype.
        y: Same shape as `y_pred`.
        spatial_dims: 2 for images, 3 for volumes. With a uniform window it may be 1, for (B, C, W).
        kernel_size: Number of taps of the window along each spatial axis.
        kernel_sigma: Standard deviation of the Gaussian along each spatial axis.
        data_range: Difference between the largest and the smallest possible value.
        kernel_type: "gaussian" or "uniform".
        k1: Constant of the luminance term.
        k2: Constant of the contrast-structure term.

    Returns:
        Two float32 maps (B, C, spatial…). Only windows that lie inside the images count, so they are smaller.

    Raises:
        ValueError: The shapes differ, an option is not as above, or the window is larger than the images. For too large
            a window, the error is a RuntimeError too, as in the original.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.monai import compute_ssim_and_cs
        >>> ssim, cs = compute_ssim_and_cs(torch.rand(1, 1, 32, 32), torch.rand(1, 1, 32, 32), 2, (11, 11), (1.5, 1.5))
        >>> ssim.shape
        torch.Size([1, 1, 22, 22])
    """
    img1, img2 = _images(y_pred, y, spatial_dims)
    check_rank(img1, spatial_dims)
    window = _window(img1, spatial_dims, kernel_type, kernel_size, kernel_sigma)
    return _windowed.maps(*_windowed.normalised(img1, img2, _windowed.read_constants(data_range, k1, k2)), window)


def compute_ms_ssim(
    y_pred: Tensor,
    y: Tensor,
    spatial_dims: int,
    data_range: float = 1.0,
    kernel_type: str = "gaussian",
    kernel_size: int | Sequence[int] = 11,
    kernel_sigma: float | Sequence[float] = 1.5,
    k1: float = 0.01,
    k2: float = 0.03,
    weights: Sequence[float] = reference.MS_SSIM_WEIGHTS,
) -> Tensor:
    """MS-SSIM of each image.

    It is a product over scales: of the mean contrast-structure term, or on the coarsest scale the mean SSIM, each
    raised to its weight. A scale averages blocks of 2 pixels along each axis of the one before; an odd row or column at
    the end is left out.

    Args:
        y_pred: As for `compute_ssim_and_cs`, with 2 or 3 spatial axes.
        y: Same shape as `y_pred`.
        spatial_dims: 2 for images, 3 for volumes.
        data_range: As for `compute_ssim_and_cs`.
        kernel_type: As for `compute_ssim_and_cs`.
        kernel_size: Number of taps along each spatial axis, or one number for all axes.
        kernel_sigma: Standard deviation along each spatial axis, or one number for all axes.
        k1: As for `compute_ssim_and_cs`.
        k2: As for `compute_ssim_and_cs`.
        weights: One exponent for each scale, from fine to coarse.

    Returns:
        (B, 1) float32, differentiable with respect to both images.

    Raises:
        ValueError: In the same cases as `compute_ssim_and_cs`; or a side is too small for the scales; or there are no
            weights.
        TypeError: An image is complex. The error is a RuntimeError too, as in the original.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.monai import compute_ms_ssim
        >>> images = torch.rand(2, 1, 192, 192)
        >>> compute_ms_ssim(images, images, 2)
        tensor([[1.],
                [1.]])
    """
    check_rank(y_pred, spatial_dims)
    sizes, sigmas = each_axis(kernel_size, spatial_dims), each_axis(kernel_sigma, spatial_dims)
    for name, image in (("y_pred", y_pred), ("y", y)):
        if _plain(image).is_complex():
            raise RefusedDtypeError(f"{name} must be real, got {image.dtype}")
    exponents = _windowed.rounded(float(weight) for weight in weights)
    if not exponents:
        raise ValueError("weights must have at least one exponent, got none")
    share = max(1, len(exponents) - 1) ** 2
    for side, size in zip(y_pred.shape[2:], sizes, strict=False):
        if side // share <= size - 1:
            raise ValueError(
                f"y_pred must have sides larger than {(size - 1) * share} for {len(exponents)} weights and "
                f"kernel_size {size}, got {tuple(y_pred.shape)}"
            )
    pool = F.avg_pool2d if spatial_dims == 2 else F.avg_pool3d
    constants = _windowed.read_constants(data_range, k1, k2)
    img1, img2 = _images(y_pred, y, spatial_dims)
    terms = []
    for scale in range(len(exponents)):
        if scale:
            img1, img2 = pool(img1, 2), pool(img2, 2)
        window = _window(img1, spatial_dims, kernel_type, sizes, sigmas)
        given = (*_windowed.normalised(img1, img2, constants), window)
        if scale < len(exponents) - 1:
            terms.append(_windowed.channel_means(*given)[..., 1].mean(1))
        else:
            terms.append(_windowed.image_means(*given))
    return _windowed.power_product(torch.stack(terms, -1), exponents)[:, None]


class SSIMLoss(_Loss):
    """1 - SSIM, averaged over the windows that lie inside the images: `forward(input, target)`.

    Args:
        spatial_dims: 2 for images (B, C, H, W), 3 for volumes (B, C, D, H, W), of any real dtype.
        data_range: Difference between the largest and the smallest possible value.
        kernel_type: "gaussian" or "uniform".
        win_size: Number of taps of the window: one number, or one for each spatial axis.
        kernel_sigma: Standard deviation of the Gaussian: one number, or one for each spatial axis.
        k1: Constant of the luminance term.
        k2: Constant of the contrast-structure term.
        reduction: "mean" or "sum" over the images, or "none" for the loss of each image, (B, 1).

    Raises:
        ValueError: An option is unknown, or the images do not fit. If the window is larger than the images, the error
            is a RuntimeError too.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.monai import SSIMLoss
        >>> pred, target = torch.rand(1, 1, 16, 16, 16, requires_grad=True), torch.rand(1, 1, 16, 16, 16)
        >>> loss = SSIMLoss(spatial_dims=3)(pred, target)
        >>> loss.backward()
    """

    def __init__(
        self,
        spatial_dims: int,
        data_range: float = 1.0,
        kernel_type: str = "gaussian",
        win_size: int | Sequence[int] = 11,
        kernel_sigma: float | Sequence[float] = 1.5,
        k1: float = 0.01,
        k2: float = 0.03,
        reduction: str = "mean",
    ):
        reduction = getattr(reduction, "value", reduction)
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
        super().__init__(reduction=reduction)
        self.spatial_dims = spatial_dims
        self.data_range = data_range
        self.kernel_type = kernel_type
        self.kernel_size = each_axis(win_size, spatial_dims)
        self.kernel_sigma = each_axis(kernel_sigma, spatial_dims)
        self.k1 = k1
        self.k2 = k2
        self._metric: SSIMMetric | None = None

    @property
    def ssim_metric(self) -> SSIMMetric:
        """A metric with the options of the loss, which needs MONAI. The loss does not use it."""
        if self._metric is None:
            options = self.kernel_type, self.kernel_size, self.kernel_sigma, self.k1, self.k2
            make = import_on_demand("SSIMMetric", __all__, "_monai_metrics", "monai")
            self._metric = make(self.spatial_dims, self.data_range, *options)
        metric: SSIMMetric = self._metric
        metric.data_range = self.data_range
        return metric

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Takes the state of the original's module too, which names the data range otherwise and holds a metric."""
        state = {"_metric": None, **state}
        if "_data_range" in state:
            state["data_range"] = state.pop("_data_range")
        state.pop("ssim_metric", None)
        restore: Callable[[dict[str, Any]], None] = super().__setstate__
        restore(state)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Returns the loss, of shape () or (B, 1), float32, differentiable with respect to both images."""
        loss = 1 - image_ssim(input, target, self)
        if self.reduction == "mean":
            return loss.mean()
        return loss.sum() if self.reduction == "sum" else loss


for _definition in (compute_ssim_and_cs, compute_ms_ssim, SSIMLoss):
    _definition.__module__ = __name__


def image_ssim(y_pred: Tensor, y: Tensor, options: Any) -> Tensor:
    """(B, 1): the mean of S of each image; `options` has the attributes of the loss, as MONAI's metric does too."""
    for name, image in (("y_pred", y_pred), ("y", y)):
        if not isinstance(image, Tensor):
            raise ValueError(f"{name} must be a torch.Tensor, got {type(image).__name__}")
    dims = options.spatial_dims
    check_rank(y_pred, dims)
    img1, img2 = _images(y_pred, y, dims)
    window = _window(img1, dims, options.kernel_type, options.kernel_size, options.kernel_sigma)
    constants = _windowed.read_constants(options.data_range, options.k1, options.k2)
    return _windowed.image_means(*_windowed.normalised(img1, img2, constants), window)[:, None]


def check_rank(y_pred: Tensor, spatial_dims: int) -> None:
    """The images have the axes that `spatial_dims` says."""
    layouts = {2: "(B, C, H, W)", 3: "(B, C, D, H, W)"}
    if y_pred.ndim != layouts.get(spatial_dims, "(B, C, W)").count(",") + 1:
        layout = layouts.get(spatial_dims, "(B, C, W)")
        raise RefusedRuntimeError(
            f"y_pred must have the shape {layout} for spatial_dims={spatial_dims}, got {tuple(y_pred.shape)}"
        )


def _images(y_pred: Tensor, y: Tensor, spatial_dims: int) -> tuple[Tensor, Tensor]:
    """Both images in float32, as plain tensors."""
    if spatial_dims not in (1, 2, 3):
        raise ValueError(f"spatial_dims must be 1, 2 or 3, got {spatial_dims}")
    if y_pred.shape != y.shape:
        raise ValueError(f"y_pred and y must have the same shape, got {tuple(y_pred.shape)} and {tuple(y.shape)}")
    return _plain(y_pred).float(), _plain(y).float()


def _plain(image: Any) -> Tensor:
    """A tensor without the metadata that MONAI's own subclass carries through every operation."""
    if type(image) in (Tensor, torch.nn.Parameter):
        plain: Tensor = image
        return plain
    if not isinstance(image, Tensor):
        return torch.as_tensor(image)
    # A subclass that dispatches, such as a tracer's, must see every operation.
    return image.as_subclass(Tensor) if type(image).__torch_dispatch__ is Tensor.__torch_dispatch__ else image


def _window(
    images: Tensor, spatial_dims: int, kernel_type: str, sizes: Sequence[int], sigmas: Sequence[float]
) -> Window:
    """The window, which is not larger than the images."""
    kernel_type = getattr(kernel_type, "value", kernel_type)
    if kernel_type not in ("gaussian", "uniform"):
        raise ValueError(f"kernel_type must be 'gaussian' or 'uniform', got {kernel_type!r}")
    is_gaussian = kernel_type == "gaussian"
    for name, values in (("kernel_size", sizes), ("kernel_sigma", sigmas)):
        if len(values) < spatial_dims and (is_gaussian or name == "kernel_size"):
            raise ValueError(f"{name} must have one value for each of the {spatial_dims} spatial axes, got {values}")
    if is_gaussian and spatial_dims == 1:
        raise ValueError("spatial_dims must be 2 or 3 for a Gaussian window, got 1")
    taps = tuple(whole("kernel_size", size) for size in sizes[:spatial_dims])
    if min(taps) < 1:
        raise RefusedRuntimeError(f"kernel_size must be positive, got {taps}")
    if any(side < size for side, size in zip(images.shape[2:], taps, strict=True)):
        raise RefusedRuntimeError(f"the images must be as large as the window of {taps}, got {tuple(images.shape)}")
    if not is_gaussian:
        return Window(taps, None)
    widths = tuple(abs(float(number("kernel_sigma", sigma))) for sigma in sigmas[:spatial_dims])
    if 0 in widths:
        raise ValueError(f"kernel_sigma must not be 0, got {widths}")
    return Window(taps, widths)


def __getattr__(name: str) -> Any:
    """Imports the metrics on first use, because they need MONAI."""
    return import_on_demand(name, __all__, "_monai_metrics", "monai")
