"""The interface of piq's SSIM and MS-SSIM (0.8) for images (B, C, H, W) and complex images (B, C, H, W, 2).

As in the original, windows lie inside the images. Images whose smaller side is 384 or more are first reduced by means
over blocks of about side / 256, unless `downsample` is off. Values outside [0, data_range] are an error; the check
waits for the device. MS-SSIM repeats the first row and column where a side is odd, divides the given weights by their
sum, and averages the products of the channels. For complex images, the two parts of the covariance are exchanged.

It differs from the original in these ways. Where a term of MS-SSIM is 0 or less, its gradient is 0 instead of NaN. Half
precision is computed in float32 and rounded once. Complex images must have exactly two parts, where the original
ignores further ones. A `kernel_sigma` of 0, with which the original returns NaN, is a ValueError. The range of the
images is checked even if `data_range` is 0 or negative, so that these are errors for images that are not 0. Where the
original raises an AssertionError, the error is a ValueError too.

Windows up to 33 taps use the kernels for float32 and half precision. MS-SSIM is a single call if the sides are even on
all scales. float64 and complex images use plain torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.loss import _Loss

from splat_ssim import _maps, reference
from splat_ssim.compat import _piq_complex, _windowed
from splat_ssim.compat._errors import RefusedDtypeError, RefusedValueError
from splat_ssim.compat._options import number, whole
from splat_ssim.compat._windowed import Constants, Window

__all__ = ["MultiScaleSSIMLoss", "SSIMLoss", "multi_scale_ssim", "ssim"]


def ssim(
    x: Tensor,
    y: Tensor,
    kernel_size: int = 11,
    kernel_sigma: float = 1.5,
    data_range: float = 1.0,
    reduction: str = "mean",
    full: bool = False,
    downsample: bool = True,
    k1: float = 0.01,
    k2: float = 0.03,
) -> Tensor | list[Tensor]:
    """SSIM averaged over the windows that lie inside the images.

    Args:
        x: (B, C, H, W), or complex images (B, C, H, W, 2), values in [0, data_range]. Integers are converted to torch's
            default dtype.
        y: Same shape and device as `x`.
        kernel_size: Number of taps of the Gaussian window, odd.
        kernel_sigma: Standard deviation of the window in pixels.
        data_range: Largest possible value.
        reduction: "mean" or "sum" over the images, or "none".
        full: Whether to return the mean contrast-structure factor too.
        downsample: Whether to reduce large images first.
        k1: Constant of the luminance term.
        k2: Constant of the contrast-structure term.

    Returns:
        A tensor of shape () or (B,), for complex images (2,) or (B, 2), differentiable with respect to both images.
        With `full`, a list of two such tensors.

    Raises:
        ValueError: The window is even or larger than the images, `kernel_sigma` is 0, the shapes do not fit, values are
            out of range, or the reduction is unknown. Where the original raises an AssertionError, the error is one
            too.
        TypeError: An image has a complex dtype, or an option is not a number.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.piq import ssim
        >>> images = torch.rand(2, 3, 32, 32)
        >>> ssim(images, images, reduction="none")
        tensor([1., 1.])
    """
    size, sigma, constants = _read(kernel_size, kernel_sigma, data_range, k1, k2)
    x, y, dtype = _check(x, y, constants)
    factor = max(1, round(min(int(side) for side in x.shape[-2:]) / 256))
    if factor > 1 and downsample:
        x, y = F.avg_pool2d(x, factor), F.avg_pool2d(y, factor)
    _check_sides(x, size)
    if x.ndim == 5 or full:
        value, structure = (means.mean(1) for means in _channel_means(x, y, size, sigma, constants))
        results = [_reduced(part.to(dtype), reduction) for part in (value, structure)]
        return results if full else results[0]
    window = Window((size, size), (sigma, sigma))
    return _reduced(_windowed.image_means(x, y, constants, window).to(dtype), reduction)


def multi_scale_ssim(
    x: Tensor,
    y: Tensor,
    kernel_size: int = 11,
    kernel_sigma: float = 1.5,
    data_range: float = 1.0,
    reduction: str = "mean",
    scale_weights: Tensor | None = None,
    k1: float = 0.01,
    k2: float = 0.03,
) -> Tensor:
    """MS-SSIM: a product over scales of mean contrast-structure terms, and of the mean SSIM on the coarsest scale.

    Args:
        x: As for `ssim`.
        y: As for `ssim`.
        kernel_size: As for `ssim`.
        kernel_sigma: As for `ssim`.
        data_range: As for `ssim`.
        reduction: As for `ssim`.
        scale_weights: (scales,) exponents, which are divided by their sum; by default the five of Wang et al.
        k1: As for `ssim`.
        k2: As for `ssim`.

    Returns:
        A tensor of shape () or (B,), for complex images (2,) or (B, 2), differentiable with respect to both images.

    Raises:
        ValueError: In the same cases as `ssim`; or a side is smaller than (kernel_size - 1) · 2^(scales - 1) + 1; or
            the weights are not a vector.
        TypeError: In the same cases as `ssim`.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.piq import multi_scale_ssim
        >>> images = torch.rand(1, 3, 192, 192)
        >>> multi_scale_ssim(images, images)
        tensor(1.)
    """
    size, sigma, constants = _read(kernel_size, kernel_sigma, data_range, k1, k2)
    x, y, dtype = _check(x, y, constants)
    weights = _exponents(scale_weights, x)
    least = (size - 1) * 2 ** (len(weights) - 1) + 1
    if min(x.shape[2:4]) < least:
        raise ValueError(f"x must have sides of at least {least} for {len(weights)} scales, got {tuple(x.shape)}")
    if x.ndim == 5:
        found = _piq_complex.power_product(torch.stack(_terms(x, y, size, sigma, constants, len(weights))), weights)
    else:
        found = _products(x, y, size, sigma, constants, weights)
    if scale_weights is not None:
        dtype = torch.promote_types(dtype, weights.dtype)
    return _reduced(found.mean(1).to(dtype), reduction)


class SSIMLoss(_Loss):
    """1 - `ssim` as a module. The arguments are those of `ssim`.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.piq import SSIMLoss
        >>> loss = SSIMLoss(data_range=1.0)(torch.rand(2, 3, 32, 32, requires_grad=True), torch.rand(2, 3, 32, 32))
        >>> loss.backward()
    """

    def __init__(
        self,
        kernel_size: int = 11,
        kernel_sigma: float = 1.5,
        k1: float = 0.01,
        k2: float = 0.03,
        downsample: bool = True,
        reduction: str = "mean",
        data_range: float = 1.0,
    ):
        super().__init__()
        self.reduction = reduction
        self.kernel_size = _check_size(kernel_size)
        self.kernel_sigma = kernel_sigma
        self.k1 = k1
        self.k2 = k2
        self.downsample = downsample
        self.data_range = data_range

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns the loss. Shapes are as for `ssim`."""
        value = ssim(
            x,
            y,
            kernel_size=self.kernel_size,
            kernel_sigma=self.kernel_sigma,
            data_range=self.data_range,
            reduction=self.reduction,
            downsample=self.downsample,
            k1=self.k1,
            k2=self.k2,
        )
        assert isinstance(value, Tensor)
        return 1 - value


class MultiScaleSSIMLoss(_Loss):
    """1 - `multi_scale_ssim` as a module. The arguments are those of `multi_scale_ssim`.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.piq import MultiScaleSSIMLoss
        >>> pred = torch.rand(1, 1, 192, 192, requires_grad=True)
        >>> loss = MultiScaleSSIMLoss()(pred, torch.rand(1, 1, 192, 192))
        >>> loss.backward()
    """

    scale_weights: Tensor

    def __init__(
        self,
        kernel_size: int = 11,
        kernel_sigma: float = 1.5,
        k1: float = 0.01,
        k2: float = 0.03,
        scale_weights: Tensor | None = None,
        reduction: str = "mean",
        data_range: float = 1.0,
    ):
        super().__init__()
        self.reduction = reduction
        weights = torch.tensor(reference.MS_SSIM_WEIGHTS) if scale_weights is None else scale_weights
        self.register_buffer("scale_weights", weights)
        self.kernel_size = _check_size(kernel_size)
        self.kernel_sigma = kernel_sigma
        self.k1 = k1
        self.k2 = k2
        self.data_range = data_range

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns the loss. Shapes are as for `multi_scale_ssim`."""
        return 1 - multi_scale_ssim(
            x,
            y,
            kernel_size=self.kernel_size,
            kernel_sigma=self.kernel_sigma,
            data_range=self.data_range,
            reduction=self.reduction,
            scale_weights=self.scale_weights,
            k1=self.k1,
            k2=self.k2,
        )


# --------------------------------------------------------------------------------------------------------------------
# Parts of both
# --------------------------------------------------------------------------------------------------------------------


def _check_size(kernel_size: int) -> int:
    size = whole("kernel_size", kernel_size)
    if size % 2 != 1 or size < 1:
        raise RefusedValueError(f"kernel_size must be odd and positive, got {size}")
    return size


def _read(
    kernel_size: int, kernel_sigma: float, data_range: float, k1: float, k2: float
) -> tuple[int, float, Constants]:
    """The options as numbers; a data range that is a tensor is read, as in the original."""
    size, sigma = _check_size(kernel_size), float(number("kernel_sigma", kernel_sigma))
    if sigma == 0:
        raise ValueError(f"kernel_sigma must not be 0, got {sigma}")
    return size, sigma, _windowed.read_constants(float(data_range), k1, k2)


def _check(x: Tensor, y: Tensor, constants: Constants) -> tuple[Tensor, Tensor, torch.dtype]:
    """Both images in a dtype that is read, checked, and the dtype of the result; complex ones divided by the range."""
    for name, image in (("x", x), ("y", y)):
        if not isinstance(image, Tensor):
            raise RefusedValueError(f"{name} must be a torch.Tensor, got {type(image).__name__}")
        if image.is_complex():
            raise RefusedDtypeError(f"{name} must be real, complex images have the two parts last, got {image.dtype}")
        if image.ndim not in (4, 5):
            raise RefusedValueError(
                f"{name} must have the shape (B, C, H, W) or (B, C, H, W, 2), got {tuple(image.shape)}"
            )
    if x.shape != y.shape:
        raise RefusedValueError(f"x and y must have the same shape, got {tuple(x.shape)} and {tuple(y.shape)}")
    if x.device != y.device:
        raise RefusedValueError(f"x and y must be on the same device, got {x.device} and {y.device}")
    if x.ndim == 5 and x.shape[-1] != 2:
        raise ValueError(f"x must have its two parts last, (B, C, H, W, 2), got {tuple(x.shape)}")
    top = constants.data_range
    for name, image in (("x", x), ("y", y)):
        least, largest = (float(value) for value in image.detach().aminmax())
        if not (least >= 0 and largest <= top):
            raise RefusedValueError(f"{name} must have values in [0, {top}], got [{least}, {largest}]")
    x, y = (image if image.is_floating_point() else image.to(torch.get_default_dtype()) for image in (x, y))
    dtype = torch.promote_types(x.dtype, y.dtype)
    if x.ndim == 5 or x.dtype != y.dtype:
        x, y = (image.to(_maps.compute_dtype(x, y)) for image in (x, y))
    return (x, y, dtype) if x.ndim == 4 else (x / top, y / top, dtype)


def _check_sides(x: Tensor, size: int) -> None:
    if min(x.shape[2:4]) < size:
        raise ValueError(f"x must have sides of at least kernel_size={size}, once reduced, got {tuple(x.shape)}")


def _reduced(values: Tensor, reduction: str) -> Tensor:
    """The values of images, (B,) or (B, 2), reduced."""
    if reduction == "mean":
        return values.mean(0)
    if reduction == "sum":
        return values.sum(0)
    if reduction == "none":
        return values
    raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")


def _channel_means(x: Tensor, y: Tensor, size: int, sigma: float, constants: Constants) -> tuple[Tensor, Tensor]:
    """For each channel the means of S and of its contrast-structure factor, (B, C) or (B, C, 2) each."""
    if x.ndim == 5:
        unit = constants.of_unit_range()
        return _piq_complex.channel_means(x, y, size, sigma, unit.c1, unit.c2)
    value, structure = _windowed.channel_means(x, y, constants, Window((size, size), (sigma, sigma))).unbind(-1)
    return value, structure


def _terms(x: Tensor, y: Tensor, size: int, sigma: float, constants: Constants, scales: int) -> list[Tensor]:
    """The means that MS-SSIM multiplies, fine to coarse, (B, C) or (B, C, 2) each."""
    terms = []
    for scale in range(scales):
        if scale:
            x, y = _halved(x), _halved(y)
        value, structure = _channel_means(x, y, size, sigma, constants)
        terms.append(value if scale == scales - 1 else structure)
    return terms


def _halved(images: Tensor) -> Tensor:
    """Means of blocks of 2, the first row and column being repeated where one of the sides is odd."""
    if images.ndim == 5:
        return torch.stack([_halved(part) for part in images.unbind(-1)], -1)
    before = max(side % 2 for side in images.shape[2:])
    return F.avg_pool2d(reference.pad(images, before, 0, "replicate", 2), 2)


def _exponents(scale_weights: Tensor | Sequence[float] | None, x: Tensor) -> Tensor:
    """(scales,): the exponents of MS-SSIM."""
    if scale_weights is None:
        return torch.tensor(reference.MS_SSIM_WEIGHTS, dtype=_maps.compute_dtype(x), device=x.device)
    weights = scale_weights if isinstance(scale_weights, Tensor) else torch.tensor(list(scale_weights), device=x.device)
    if weights.ndim != 1 or not len(weights):
        raise ValueError(f"scale_weights must be a vector, got the shape {tuple(weights.shape)}")
    return weights.to(x.device) / weights.sum()


def _products(x: Tensor, y: Tensor, size: int, sigma: float, constants: Constants, weights: Tensor) -> Tensor:
    """(B, C): MS-SSIM of each channel."""
    scales = len(weights)
    if weights.requires_grad:
        return _windowed.power_product(torch.stack(_terms(x, y, size, sigma, constants, scales), -1), weights)
    exponents = weights.tolist()
    # With sides that stay even the definition is that of `splat_ssim.ms_ssim`.
    if all(side % 2 ** (scales - 1) == 0 for side in x.shape[2:]):
        found = _windowed.ms_ssim(x, y, constants, Window((size, size), (sigma, sigma)), exponents)
        if found is not None:
            return found
    x, y = (image.to(_maps.compute_dtype(image)) for image in (x, y))
    return _windowed.power_product(torch.stack(_terms(x, y, size, sigma, constants, scales), -1), exponents)


for _definition in (ssim, multi_scale_ssim, SSIMLoss, MultiScaleSSIMLoss):
    _definition.__module__ = __name__
