"""The interface of the `pytorch_msssim` package (1.0): `ssim`, `ms_ssim`, `SSIM`, `MS_SSIM` on 4-D and 5-D tensors.

Kept from the original, to know about: spatial axes of size 1 are squeezed; an axis shorter than the window is not
smoothed, with a warning; windows are rounded to float32 even for float64 images; `ms_ssim` checks the two last axes
only, not the depth of a volume, and for 160 pixels however many scales it has; `data_range` is 255 by default.

Different from the original: where a term of `ms_ssim` is 0 or less its gradient is 0 rather than NaN; half precision is
computed in float32 and rounded once; integer images, which the original compares to 1 whatever they hold, and two
images of different dtypes are a TypeError.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from splat_ssim import reference
from splat_ssim.compat import _textbook
from splat_ssim.compat._errors import RefusedValueError
from splat_ssim.ops.ssim import Options, photometric, ssim_channel_means
from splat_ssim.ops.ssim import ms_ssim as ms_ssim_of_planes

__all__ = ["MS_SSIM", "SSIM", "ms_ssim", "ssim"]


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
    """SSIM over the windows that lie inside ("valid").

    Args:
        X: (B, C, H, W) or (B, C, D, H, W), float, values in [0, data_range].
        Y: The same shape and dtype.
        data_range: Difference of the largest and the smallest possible value.
        size_average: Whether to average over the batch; otherwise (B,).
        win_size: Taps of the Gaussian window, odd.
        win_sigma: Its standard deviation.
        win: (C, 1, …, 1, taps), a window to use instead, one for each channel.
        K: (k1, k2).
        nonnegative_ssim: Whether a channel's negative mean counts as 0.

    Returns:
        () or (B,), in the dtype of X.

    Raises:
        ValueError: The shapes differ, are not 4-D or 5-D, or the window is even; a window that is not 1-D is an
            AssertionError as well, as in the original.
        TypeError: An image is not a float tensor, or the dtypes differ.

    Example:
        >>> value = ssim(torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32), data_range=1.0)
    """
    X, Y = _images(X, Y)
    win_size = _window_size(win_size, win)
    window = _Window(win_size, win_sigma, win, data_range, K)
    options = _options(X, window)
    if options is not None and not nonnegative_ssim:
        # One pass gives the value and the gradient.
        dssim, _, _ = photometric(X, Y, options, l1_weight=0.0, dssim_weight=1.0, per_image=not size_average)
        return (1 - dssim).to(X.dtype)
    means = _means(X, Y, window)[..., 0]
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
    """Multi-scale SSIM; the arguments are those of `ssim`.

    Args:
        X: As for `ssim`.
        Y: As for `ssim`.
        data_range: As for `ssim`.
        size_average: As for `ssim`.
        win_size: As for `ssim`.
        win_sigma: As for `ssim`.
        win: As for `ssim`.
        weights: One exponent a scale; by default Wang's five.
        K: As for `ssim`.

    Returns:
        () or (B,), in the dtype of X.

    Raises:
        ValueError: As for `ssim`. A smaller side of (win_size - 1) · 16 or less is an AssertionError as well, as in the
            original.
        TypeError: As for `ssim`.

    Example:
        >>> value = ms_ssim(torch.rand(1, 3, 192, 192), torch.rand(1, 3, 192, 192), data_range=1.0)
    """
    X, Y = _images(X, Y)
    win_size = _window_size(win_size, win)
    if min(X.shape[-2:]) <= (win_size - 1) * 16:
        raise RefusedValueError(
            f"the smaller side must be larger than (win_size - 1) * 16 = {(win_size - 1) * 16}, got {tuple(X.shape)}"
        )
    exponents = reference.MS_SSIM_WEIGHTS if weights is None else [float(weight) for weight in weights]
    dtype, X, Y = X.dtype, _textbook.wide(X), _textbook.wide(Y)
    window = _Window(win_size, win_sigma, win, data_range, K)
    options = _options(X, window)
    if options is not None and min(X.shape[2:]) > (win_size - 1) * 2 ** (len(exponents) - 1):
        values = ms_ssim_of_planes(X, Y, options, exponents)
    else:
        scales = [_means(X, Y, window)]
        for _ in exponents[1:]:
            X, Y = reference.halve(X), reference.halve(Y)
            scales.append(_means(X, Y, window))
        values = reference.combine_terms(reference.scale_terms(scales), exponents)
    return (values.mean() if size_average else values.mean(1)).to(dtype)


class _Window(NamedTuple):
    """The window and the constants, `win` in place of the Gaussian where it is given."""

    size: int
    sigma: float
    win: Tensor | None
    data_range: float
    K: Sequence[float]


def _images(X: Tensor, Y: Tensor) -> tuple[Tensor, Tensor]:
    """Both images checked, without their spatial axes of size 1."""
    for name, image in (("X", X), ("Y", Y)):
        if not isinstance(image, Tensor) or not image.is_floating_point():
            got = str(image.dtype) if isinstance(image, Tensor) else type(image).__name__
            raise TypeError(f"{name} must be a floating-point torch.Tensor, got {got}")
    if X.shape != Y.shape:
        raise ValueError(f"X and Y must have the same shape, got {tuple(X.shape)} and {tuple(Y.shape)}")
    if X.dtype != Y.dtype:
        raise TypeError(f"X and Y must have the same dtype, got {X.dtype} and {Y.dtype}")
    kept = [side for side in X.shape[2:] if side != 1]
    if len(kept) not in (2, 3):
        raise ValueError(
            f"X and Y must have the shape (B, C, H, W) or (B, C, D, H, W), axes of size 1 apart, got {tuple(X.shape)}"
        )
    shape = (*X.shape[:2], *kept)
    return X.reshape(shape), Y.reshape(shape)


def _window_size(win_size: int, win: Tensor | None) -> int:
    if win is not None:
        if win.ndim < 2 or any(side != 1 for side in win.shape[1:-1]):
            raise RefusedValueError(f"win must have the shape (C, 1, …, 1, taps), got {tuple(win.shape)}")
        win_size = win.shape[-1]
    if win_size % 2 != 1:
        raise ValueError(f"the window size must be odd, got {win_size}")
    return win_size


def _options(X: Tensor, window: _Window) -> Options | None:
    """The options of the operators where they give the original's number, else None."""
    size, sigma, win, data_range, (k1, k2) = window
    sides = X.shape[2:]
    if win is not None or X.dtype == torch.float64 or X.shape[0] == 0:
        return None
    if not _textbook.has_kernel(size, sides, sigma, data_range, k1, k2):
        return None
    return Options(size, sigma, data_range, k1, k2, "valid", len(sides))


def _means(X: Tensor, Y: Tensor, window: _Window) -> Tensor:
    """(B, C, 2): for each image and channel the means of S and of its contrast-structure factor."""
    options = _options(X, window)
    if options is not None:
        return ssim_channel_means(X, Y, options)

    size, sigma, win, data_range, (k1, k2) = window
    sides = X.shape[2:]
    taps: _textbook.Taps
    if win is None:
        taps = _textbook.float32_gaussian(size, sigma)
    elif win.shape[0] == X.shape[1]:
        per_channel = win.to(X.device, _textbook.wide(X).dtype).reshape(win.shape[0], *[1] * len(sides), size)
        taps = per_channel.unbind(-1)
    else:
        raise ValueError(f"win must have one window for each of the {X.shape[1]} channels, got {tuple(win.shape)}")
    short = [side for side in sides if side < size]
    if short:
        warnings.warn(
            f"axes shorter than the window of {size} are not smoothed, got the shape {tuple(X.shape)}", stacklevel=3
        )
    c1, c2 = (k1 * data_range) ** 2, (k2 * data_range) ** 2
    axes = [None if side < size else taps for side in sides]
    found = _textbook.moments(_textbook.wide(X), _textbook.wide(Y), axes)
    contrast_structure = found.contrast_structure(c2)
    maps = (found.luminance(c1) * contrast_structure, contrast_structure)
    return torch.stack([values.flatten(2).mean(2) for values in maps], dim=-1)


class SSIM(nn.Module):
    """`ssim` as a module for images of `channel` channels and `spatial_dims` axes.

    Example:
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
        super().__init__()
        self.data_range = data_range
        self.size_average = size_average
        self.win_size = win_size
        self.win_sigma = win_sigma
        self.channel = channel
        self.spatial_dims = spatial_dims
        self.K = K
        self.nonnegative_ssim = nonnegative_ssim

    def forward(self, X: Tensor, Y: Tensor) -> Tensor:
        """The value; shapes as for `ssim`."""
        _check_channels(self, X)
        return ssim(
            X,
            Y,
            data_range=self.data_range,
            size_average=self.size_average,
            win_size=self.win_size,
            win_sigma=self.win_sigma,
            K=self.K,
            nonnegative_ssim=self.nonnegative_ssim,
        )


class MS_SSIM(nn.Module):  # noqa: N801 - the original's name
    """`ms_ssim` as a module for images of `channel` channels and `spatial_dims` axes.

    Example:
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
        super().__init__()
        self.data_range = data_range
        self.size_average = size_average
        self.win_size = win_size
        self.win_sigma = win_sigma
        self.channel = channel
        self.spatial_dims = spatial_dims
        self.weights = weights
        self.K = K

    def forward(self, X: Tensor, Y: Tensor) -> Tensor:
        """The value; shapes as for `ms_ssim`."""
        _check_channels(self, X)
        return ms_ssim(
            X,
            Y,
            data_range=self.data_range,
            size_average=self.size_average,
            win_size=self.win_size,
            win_sigma=self.win_sigma,
            weights=self.weights,
            K=self.K,
        )


def _check_channels(module: SSIM | MS_SSIM, X: Tensor) -> None:
    """The images are those the module was made for; the original fails inside the convolution."""
    if isinstance(X, Tensor) and X.ndim > 1 and X.shape[1] != module.channel:
        raise ValueError(f"X must have channel={module.channel} channels, got the shape {tuple(X.shape)}")
    axes = sum(side != 1 for side in X.shape[2:]) if isinstance(X, Tensor) else module.spatial_dims
    if axes != module.spatial_dims:
        raise ValueError(f"X must have spatial_dims={module.spatial_dims} spatial axes, got {tuple(X.shape)}")
