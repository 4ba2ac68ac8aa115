"""The interface of the `pytorch_msssim` package (1.0): `ssim`, `ms_ssim`, `SSIM`, `MS_SSIM` on 4-D and 5-D tensors.

Options may be numbers, numpy scalars or tensors, such as a `data_range` taken from the data. If `data_range`, `K`,
`win_sigma` or `win` requires a gradient, it gets one. A Gaussian window uses the kernels even if it is given as `win`.

As in the original, spatial axes of size 1 are squeezed. An axis shorter than the window is not smoothed, with a
warning. Windows are rounded to float32 even for float64 images. `data_range` is 255 by default. `ms_ssim` requires the
last two axes to be larger than (win_size - 1) · 16, however many scales it has, and does not check the depth of a
volume.

It differs from the original in these ways. Where a term of `ms_ssim` is 0 or less, its gradient is 0 instead of NaN.
Half precision is computed in float32 and rounded once, even if `data_range` is a float32 tensor. Integer images, for
which the original always gives 1, and images of different dtypes raise a TypeError.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from splat_ssim import _maps, reference
from splat_ssim.compat import _textbook, _windowed
from splat_ssim.compat._errors import RefusedRuntimeError, RefusedValueError, UnsupportedOptionError
from splat_ssim.compat._options import number, whole
from splat_ssim.compat._pytorch_msssim_means import (
    axes_of,
    channel_means,
    check_images,
    options_of,
    read_window,
    sigma_of,
    taps_by_channel,
)
from splat_ssim.ops.photometric import photometric
from splat_ssim.ops.ssim import ms_ssim as ms_ssim_of_planes

__all__ = ["MS_SSIM", "SSIM", "ms_ssim", "ssim"]
#: Private names that public code imports from the original nevertheless. `splat_ssim.compat.install` offers them too.
_PRIVATE_NAMES = ("_fspecial_gauss_1d", "_ssim", "gaussian_filter")


def ssim(
    X: Tensor,
    Y: Tensor,
    data_range: float = 255,
    size_average: bool = True,
    win_size: int = 11,
    win_sigma: float = 1.5,
    win: Tensor | None = None,
    K: Sequence[float] = (0.01, 0.03),
    nonnegative_ssim: bool = False,
) -> Tensor:
    """SSIM averaged over the windows that lie inside the images ("valid").

    Args:
        X: (B, C, H, W) or (B, C, D, H, W), any float dtype, values in [0, data_range].
        Y: Same shape, dtype and device as `X`.
        data_range: Difference between the largest and the smallest possible value.
        size_average: Whether to average over the batch. If not, the result has one value for each image.
        win_size: Number of taps of the Gaussian window, odd.
        win_sigma: Standard deviation of the window in pixels.
        win: (C, 1, …, 1, taps) windows, one for each channel, that replace the Gaussian.
        K: (k1, k2): a sequence, an array or a tensor.
        nonnegative_ssim: Whether the mean of a channel counts as 0 if it is negative.

    Returns:
        A tensor of shape () or (B,), in the dtype of `X`.

    Raises:
        ValueError: The shapes differ or are not 4-D or 5-D, the window is even, or `win` has another shape. In the last
            case the error is an AssertionError too, as in the original.
        TypeError: An image is not a float tensor, or the dtypes differ.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.pytorch_msssim import ssim
        >>> value = ssim(torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32), data_range=1.0)
    """
    X, Y = check_images(X, Y)
    window = read_window(win_size, win_sigma, win, data_range, K)
    options = options_of(X, window)
    size_average = bool(size_average)
    if options is not None and not nonnegative_ssim:
        # One pass gives the value and the gradient.
        per_image = not size_average
        value, _, _ = photometric(X, Y, options, l1_weight=0.0, dssim_weight=-1.0, per_image=per_image, offset=1.0)
        return value.to(X.dtype)
    means = channel_means(X, Y, window)[..., 0]
    if nonnegative_ssim:
        means = torch.relu(means)
    return (means.mean() if size_average else means.mean(1)).to(X.dtype)


def ms_ssim(
    X: Tensor,
    Y: Tensor,
    data_range: float = 255,
    size_average: bool = True,
    win_size: int = 11,
    win_sigma: float = 1.5,
    win: Tensor | None = None,
    weights: Sequence[float] | None = None,
    K: Sequence[float] = (0.01, 0.03),
) -> Tensor:
    """Multi-scale SSIM over the windows that lie inside the images.

    Args:
        X: As for `ssim`.
        Y: As for `ssim`.
        data_range: As for `ssim`.
        size_average: As for `ssim`.
        win_size: As for `ssim`.
        win_sigma: As for `ssim`.
        win: As for `ssim`.
        weights: One exponent for each scale, from fine to coarse; by default the five of Wang et al.
        K: As for `ssim`.

    Returns:
        A tensor of shape () or (B,), in the dtype of `X`.

    Raises:
        ValueError: In the same cases as `ssim`; or the smaller side is (win_size - 1) · 16 or less, where the error is
            an AssertionError too, as in the original.
        TypeError: In the same cases as `ssim`.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.pytorch_msssim import ms_ssim
        >>> value = ms_ssim(torch.rand(1, 3, 192, 192), torch.rand(1, 3, 192, 192), data_range=1.0)
    """
    X, Y = check_images(X, Y)
    window = read_window(win_size, win_sigma, win, data_range, K)
    smallest = (window.size - 1) * 16
    if min(X.shape[-2:]) <= smallest:
        raise RefusedValueError(
            f"the smaller side must be larger than (win_size - 1) * 16 = {smallest}, got {tuple(X.shape)}"
        )
    exponents = reference.MS_SSIM_WEIGHTS if weights is None else [float(weight) for weight in weights]
    if not exponents:
        raise ValueError("weights must have at least one exponent, got none")
    dtype, X, Y = X.dtype, _textbook.wide(X), _textbook.wide(Y)
    options = options_of(X, window)
    is_large = min(X.shape[2:]) > (window.size - 1) * 2 ** (len(exponents) - 1)
    if options is not None and is_large and all(exponent > 0 for exponent in exponents):
        values = ms_ssim_of_planes(X, Y, options, exponents)
    else:
        scales = [channel_means(X, Y, window)]
        for _ in exponents[1:]:
            X, Y = _maps.halve(X), _maps.halve(Y)
            scales.append(channel_means(X, Y, window))
        values = _windowed.power_product(_maps.scale_terms(scales), exponents)
    return (values.mean() if size_average else values.mean(1)).to(dtype)


# --------------------------------------------------------------------------------------------------------------------
# Private functions of pytorch_msssim.ssim that public code imports
# --------------------------------------------------------------------------------------------------------------------


def _fspecial_gauss_1d(size: int, sigma: float) -> Tensor:
    """Returns the Gaussian window, (1, 1, size) float32 on torch's default device.

    Example:
        >>> from splat_ssim.compat.pytorch_msssim import _fspecial_gauss_1d
        >>> _fspecial_gauss_1d(3, 1.5)
        tensor([[[0.3078, 0.3844, 0.3078]]])
    """
    return _textbook.float32_gaussian(whole("size", size), number("sigma", sigma), device=None)[None, None]


def gaussian_filter(input: Tensor, win: Tensor) -> Tensor:
    """Filters each channel with its window, without padding. Axes shorter than the window are not filtered.

    Args:
        input: (B, C, H, W) or (B, C, D, H, W), any float dtype.
        win: (C, 1, …, 1, taps) windows, one for each channel, of any float dtype and on any device.

    Returns:
        The filtered images in the dtype of `input`. Each filtered axis is taps - 1 shorter.

    Raises:
        ValueError: `win` has another shape. The error is an AssertionError too, as in the original.
        NotImplementedError: `input` has another number of axes. The error is a ValueError too.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.pytorch_msssim import _fspecial_gauss_1d, gaussian_filter
        >>> gaussian_filter(torch.ones(1, 3, 16, 16), _fspecial_gauss_1d(11, 1.5).repeat(3, 1, 1, 1)).shape
        torch.Size([1, 3, 6, 6])
    """
    window = read_window(11, 1.5, win, 1.0, (0.01, 0.03))
    if input.ndim not in (4, 5):
        raise UnsupportedOptionError(
            f"input must have the shape (B, C, H, W) or (B, C, D, H, W), got {tuple(input.shape)}"
        )
    axes = axes_of(input, window.size, taps_by_channel(win, input))
    return _textbook.smooth(_textbook.wide(input), axes).to(input.dtype)


def _ssim(
    X: Tensor,
    Y: Tensor,
    data_range: float,
    win: Tensor,
    size_average: bool = True,
    K: Sequence[float] = (0.01, 0.03),
) -> tuple[Tensor, Tensor]:
    """The mean SSIM and the mean contrast-structure factor of each image and channel, (B, C) each.

    `size_average` is ignored, as in the original.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.pytorch_msssim import _fspecial_gauss_1d, _ssim
        >>> win = _fspecial_gauss_1d(11, 1.5).repeat(3, 1, 1, 1)
        >>> ssim_per_channel, cs = _ssim(torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16), 1.0, win)
    """
    X, Y = check_images(X, Y, squeeze=False)
    means = channel_means(X, Y, read_window(11, 1.5, win, data_range, K)).to(X.dtype)
    return means[..., 0], means[..., 1]


# --------------------------------------------------------------------------------------------------------------------
# Modules
# --------------------------------------------------------------------------------------------------------------------


class _WithWindow(nn.Module):
    """The attributes of both modules. As in the original, `win` may be replaced."""

    #: (channel, 1, …, 1, taps): the window.
    win: Tensor
    #: The sigma of `win` where it is a Gaussian, and the version of `win` that it belongs to.
    _sigma: float | None
    _version: int

    def __init__(
        self,
        data_range: float,
        size_average: bool,
        win_size: int,
        win_sigma: float,
        channel: int,
        spatial_dims: int,
        K: Sequence[float],
    ):
        super().__init__()
        self.data_range = data_range
        self.size_average = size_average
        self.win_size = win_size
        self.win_sigma = win_sigma
        self.channel = whole("channel", channel)
        self.spatial_dims = whole("spatial_dims", spatial_dims)
        self.K = K
        taps = _textbook.float32_gaussian(whole("win_size", win_size), number("win_sigma", win_sigma))
        self.win = taps.repeat(self.channel, *[1] * (self.spatial_dims + 1))

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "win":
            self._sigma, self._version = sigma_of(value), value._version

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Takes the state of the original's module too, which has neither the sigma nor the number of channels."""
        restore: Callable[[dict[str, Any]], None] = super().__setstate__
        restore(state)
        if "_sigma" not in state:
            self.channel, self.spatial_dims, self.win = self.win.shape[0], self.win.ndim - 2, self.win

    def _window(self, X: Tensor) -> dict[str, Any]:
        """The window as options of the functions, once the images are known to be those the module was made for."""
        if isinstance(X, Tensor) and X.ndim > 1 and X.shape[1] != self.channel:
            raise RefusedRuntimeError(f"X must have channel={self.channel} channels, got the shape {tuple(X.shape)}")
        axes = sum(side != 1 for side in X.shape[2:]) if isinstance(X, Tensor) else self.spatial_dims
        if axes != self.spatial_dims:
            raise RefusedRuntimeError(
                f"X must have spatial_dims={self.spatial_dims} spatial axes, got {tuple(X.shape)}"
            )
        if not torch.compiler.is_compiling() and self.win._version != self._version:
            self.win = self.win  # changed in place
        # For float64 images only the taps themselves are exact enough.
        by_sigma = self._sigma is not None and isinstance(X, Tensor) and X.dtype != torch.float64
        return {"win_size": self.win.shape[-1], "win_sigma": self._sigma} if by_sigma else {"win": self.win}


class SSIM(_WithWindow):
    """`ssim` as a module, for images with `channel` channels and `spatial_dims` spatial axes.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.pytorch_msssim import SSIM
        >>> value = SSIM(data_range=1.0)(torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32))
    """

    def __init__(
        self,
        data_range: float = 255,
        size_average: bool = True,
        win_size: int = 11,
        win_sigma: float = 1.5,
        channel: int = 3,
        spatial_dims: int = 2,
        K: Sequence[float] = (0.01, 0.03),
        nonnegative_ssim: bool = False,
    ):
        super().__init__(data_range, size_average, win_size, win_sigma, channel, spatial_dims, K)
        self.nonnegative_ssim = nonnegative_ssim

    def forward(self, X: Tensor, Y: Tensor) -> Tensor:
        """Returns the SSIM. Shapes are as for `ssim`."""
        return ssim(
            X,
            Y,
            data_range=self.data_range,
            size_average=self.size_average,
            K=self.K,
            nonnegative_ssim=self.nonnegative_ssim,
            **self._window(X),
        )


class MS_SSIM(_WithWindow):  # noqa: N801 - the original's name
    """`ms_ssim` as a module, for images with `channel` channels and `spatial_dims` spatial axes.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.pytorch_msssim import MS_SSIM
        >>> value = MS_SSIM(data_range=1.0)(torch.rand(1, 3, 192, 192), torch.rand(1, 3, 192, 192))
    """

    def __init__(
        self,
        data_range: float = 255,
        size_average: bool = True,
        win_size: int = 11,
        win_sigma: float = 1.5,
        channel: int = 3,
        spatial_dims: int = 2,
        weights: Sequence[float] | None = None,
        K: Sequence[float] = (0.01, 0.03),
    ):
        super().__init__(data_range, size_average, win_size, win_sigma, channel, spatial_dims, K)
        self.weights = weights

    def forward(self, X: Tensor, Y: Tensor) -> Tensor:
        """Returns the MS-SSIM. Shapes are as for `ms_ssim`."""
        return ms_ssim(
            X,
            Y,
            data_range=self.data_range,
            size_average=self.size_average,
            weights=self.weights,
            K=self.K,
            **self._window(X),
        )
