"""Parts of pytorch_msssim's `ssim` and `ms_ssim`: checks of options and images, and the means of each channel."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from splat_ssim.compat import _textbook
from splat_ssim.compat._errors import RefusedRuntimeError, RefusedValueError
from splat_ssim.compat._options import Number, is_watched, number, pair, whole
from splat_ssim.ops.ssim import ssim_channel_means
from splat_ssim.options import SSIMOptions


class Window(NamedTuple):
    """The window and the constants."""

    size: int
    #: None where `win` is given and no Gaussian.
    sigma: Number | None
    win: Tensor | None
    data_range: Number
    k1: Number
    k2: Number


def read_window(win_size: int, win_sigma: float, win: Tensor | None, data_range: float, K: Sequence[float]) -> Window:
    """The options as numbers, checked."""
    sigma: Number | None
    if win is None:
        size, sigma = whole("win_size", win_size), number("win_sigma", win_sigma)
    else:
        if not isinstance(win, Tensor):
            raise TypeError(f"win must be a torch.Tensor, got {type(win).__name__}")
        if win.ndim < 2 or any(side != 1 for side in win.shape[1:-1]):
            raise RefusedValueError(f"win must have the shape (C, 1, …, 1, taps), got {tuple(win.shape)}")
        size, sigma = win.shape[-1], None if is_watched(win) else sigma_of(win)
    if size % 2 != 1:
        raise ValueError(f"the window size must be odd, got {size}")
    k1, k2 = pair("K", K)
    return Window(size, sigma, win, number("data_range", data_range), k1, k2)


def sigma_of(win: Tensor) -> float | None:
    """The sigma of a window (C, 1, …, 1, taps) if it is the same Gaussian for each channel, else None."""
    if win.requires_grad or win.device.type != "cpu" or win.numel() == 0:
        return None
    per_channel = win.detach().reshape(win.shape[0], -1)
    return _textbook.gaussian_sigma(per_channel[0]) if bool((per_channel == per_channel[0]).all()) else None


def check_images(X: Tensor, Y: Tensor, squeeze: bool = True) -> tuple[Tensor, Tensor]:
    """Both images checked, without their spatial axes of size 1 where these are squeezed."""
    for name, image in (("X", X), ("Y", Y)):
        if not isinstance(image, Tensor) or not image.is_floating_point():
            got = str(image.dtype) if isinstance(image, Tensor) else type(image).__name__
            raise TypeError(f"{name} must be a floating-point torch.Tensor, got {got}")
    if X.shape != Y.shape:
        raise ValueError(f"X and Y must have the same shape, got {tuple(X.shape)} and {tuple(Y.shape)}")
    if X.dtype != Y.dtype:
        raise TypeError(f"X and Y must have the same dtype, got {X.dtype} and {Y.dtype}")
    kept = [side for side in X.shape[2:] if side != 1 or not squeeze]
    if len(kept) not in (2, 3):
        raise ValueError(
            f"X and Y must have the shape (B, C, H, W) or (B, C, D, H, W), axes of size 1 apart, got {tuple(X.shape)}"
        )
    shape = (*X.shape[:2], *kept)
    return X.reshape(shape), Y.reshape(shape)


def options_of(X: Tensor, window: Window) -> SSIMOptions | None:
    """The options for the operators if these give the original's numbers, else None."""
    sides = X.shape[2:]
    if window.sigma is None or X.dtype == torch.float64 or X.numel() == 0 or window.size > min(sides):
        return None
    if window.win is not None and window.win.shape[0] != X.shape[1]:
        return None
    # The original squares all of these.
    constants = (window.sigma, window.data_range, window.k1, window.k2)
    sigma, data_range, k1, k2 = (math.nan if isinstance(value, Tensor) else abs(value) for value in constants)
    if not _textbook.has_kernel(window.size, sigma, data_range, k1, k2):
        return None
    return SSIMOptions(window.size, sigma, data_range, k1, k2, "valid")


def channel_means(X: Tensor, Y: Tensor, window: Window) -> Tensor:
    """(B, C, 2): for each image and channel the means of S and of its contrast-structure factor."""
    options = options_of(X, window)
    if options is not None:
        return ssim_channel_means(X, Y, options)

    if window.win is None:
        assert window.sigma is not None
        taps = _textbook.float32_gaussian(window.size, window.sigma).to(X.device).unbind()
    else:
        taps = taps_by_channel(window.win, X)
    c1, c2 = (window.k1 * window.data_range) ** 2, (window.k2 * window.data_range) ** 2
    axes = axes_of(X, window.size, taps)
    found = _textbook.moments(_textbook.wide(X), _textbook.wide(Y), axes)
    contrast_structure = found.contrast_structure(c2)
    maps = (found.luminance(c1) * contrast_structure, contrast_structure)
    return torch.stack([values.flatten(2).mean(2) for values in maps], dim=-1)


def axes_of(images: Tensor, size: int, taps: Sequence[Tensor]) -> list[_textbook.Taps]:
    """The taps for each spatial axis, none for those shorter than the window."""
    sides = images.shape[2:]
    if any(side < size for side in sides):
        warnings.warn(
            f"axes shorter than the window of {size} are not smoothed, got the shape {tuple(images.shape)}",
            stacklevel=4,
        )
    return [None if side < size else taps for side in sides]


def taps_by_channel(win: Tensor, images: Tensor) -> tuple[Tensor, ...]:
    """The taps of `win`, each (C, 1, …, 1), to multiply images (B, C, spatial…) by."""
    channels, axes = images.shape[1], images.ndim - 2
    if win.shape[0] != channels:
        raise RefusedRuntimeError(
            f"win must have one window for each of the {channels} channels, got {tuple(win.shape)}"
        )
    win = win.to(images.device, _textbook.wide(images).dtype)
    return win.reshape(channels, *[1] * axes, win.shape[-1]).unbind(-1)
