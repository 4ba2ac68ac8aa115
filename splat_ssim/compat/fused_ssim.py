"""The interface of the `fused_ssim` package: mean SSIM and its map, window 11, sigma 1.5, data range 1.

It differs from the original in four ways. It also runs on a CPU, in 2D and 3D. The second image gets its gradient if it
requires one; the original silently gives it none. The value never exceeds 1. With padding "valid", images smaller than
the window raise a ValueError, as does an empty batch; the original returns NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from splat_ssim import functional
from splat_ssim._checks import check_images, check_padding
from splat_ssim.compat._errors import RefusedValueError
from splat_ssim.compat._options import integer, number
from splat_ssim.ops.ssim import ssim_map
from splat_ssim.options import SSIMOptions

__all__ = ["FusedSSIMMap", "allowed_padding", "fused_ssim", "fused_ssim3d", "is_3D_supported"]

allowed_padding = ["same", "valid"]
is_3D_supported = True  # noqa: N816 - the original's name


def fused_ssim(img1: Tensor, img2: Tensor, padding: str = "same", train: bool = True) -> Tensor:
    """Mean SSIM of two batches of images, as a differentiable scalar.

    Args:
        img1: (B, C, H, W), values in [0, 1]. The dtypes and strides of `splat_ssim.ssim` are accepted.
        img2: Same shape and device as `img1`.
        padding: "same" pads the images with zeros. "valid" uses only windows that lie inside them.
        train: Whether a gradient is needed. If not, only the value is computed.

    Returns:
        A scalar: float64 if either image is float64, otherwise float32.

    Raises:
        ValueError: In the same cases as `splat_ssim.ssim`. The error for an unknown padding is an AssertionError too,
            as in the original.
        TypeError: In the same cases as `splat_ssim.ssim`.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.fused_ssim import fused_ssim
        >>> loss = 1 - fused_ssim(torch.rand(1, 3, 32, 32, requires_grad=True), torch.rand(1, 3, 32, 32))
        >>> loss.backward()
    """
    return mean_ssim(functional.ssim, img1, img2, padding, train)


def fused_ssim3d(img1: Tensor, img2: Tensor, padding: str = "same", train: bool = True) -> Tensor:
    """Mean SSIM of two batches of volumes (B, C, D, H, W). Everything else is as for `fused_ssim`.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.fused_ssim import fused_ssim3d
        >>> volume = torch.rand(1, 1, 16, 16, 16)
        >>> fused_ssim3d(volume, volume, train=False)
        tensor(1.)
    """
    return mean_ssim(functional.ssim3d, img1, img2, padding, train)


class FusedSSIMMap:
    """The SSIM map: `FusedSSIMMap.apply(C1, C2, img1, img2)`.

    The original is a `torch.autograd.Function`, of which callers use only `apply`. Here, `apply` takes keywords too.
    """

    @staticmethod
    def apply(
        C1: float,
        C2: float,
        img1: Tensor,
        img2: Tensor,
        padding: str = "same",
        train: bool = True,
        spatial_dims: int = 2,
    ) -> Tensor:
        """Computes the SSIM of every pixel.

        Args:
            C1: Constant of the luminance term, 0.01² for images in [0, 1].
            C2: Constant of the contrast-structure term, 0.03² for images in [0, 1].
            img1: (B, C, H, W), or (B, C, D, H, W) with `spatial_dims=3`. The dtypes and strides of `splat_ssim.ssim`
                are accepted.
            img2: Same shape and device as `img1`.
            padding: As for `fused_ssim`.
            train: As for `fused_ssim`.
            spatial_dims: 2 for images, 3 for volumes.

        Returns:
            The map, in the shape of the images; "valid" makes each spatial axis 10 shorter. It is float64 if either
            image is float64, otherwise float32.

        Raises:
            ValueError: In the same cases as `fused_ssim`; or a constant is negative or not finite; or `spatial_dims` is
                neither 2 nor 3.
            TypeError: In the same cases as `fused_ssim`; or a constant is not a number.

        Example:
            >>> import torch
            >>> from splat_ssim.compat.fused_ssim import FusedSSIMMap
            >>> img1, img2 = torch.rand(1, 3, 32, 32, requires_grad=True), torch.rand(1, 3, 32, 32)
            >>> ssim_map = FusedSSIMMap.apply(0.01**2, 0.03**2, img1, img2)
            >>> loss = (1 - ssim_map).abs().sum()
            >>> loss.backward()
        """
        spatial_dims = integer("spatial_dims", spatial_dims)
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}")
        return map_of(C1, C2, img1, img2, padding, train, spatial_dims)


def map_of(
    C1: float,
    C2: float,
    img1: Tensor,
    img2: Tensor,
    padding: str,
    train: bool,
    spatial_dims: int = 2,
    window_size: int = 11,
) -> Tensor:
    """The SSIM map, as `FusedSSIMMap.apply` returns it, for any window size."""
    _check_padding(padding)
    check_images(img1, img2, (spatial_dims,))
    check_padding(SSIMOptions(window_size, padding=padding), img1)
    k1, k2 = _root("C1", C1), _root("C2", C2)
    options = SSIMOptions(window_size, 1.5, 1.0, k1, k2, padding)
    with torch.set_grad_enabled(torch.is_grad_enabled() and bool(train)):
        return ssim_map(img1, img2, options)


def mean_ssim(
    function: Callable[..., Tensor], img1: Tensor, img2: Tensor, padding: str, train: bool, window_size: int = 11
) -> Tensor:
    """Mean SSIM for the functions of fused_ssim, fused_ssim3d and fussim."""
    _check_padding(padding)
    with torch.set_grad_enabled(torch.is_grad_enabled() and bool(train)):
        return function(img1, img2, padding=padding, window_size=window_size)


def _check_padding(padding: str) -> None:
    if padding not in allowed_padding:
        raise RefusedValueError(f"padding must be 'same' or 'valid', got {padding!r}")


def _root(name: str, constant: float) -> float:
    """K of C = K², for a data range of 1."""
    value = number(name, constant)
    if isinstance(value, Tensor):
        raise TypeError(f"{name} must be a number: it is not differentiated, got a tensor of {tuple(value.shape)}")
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must be a finite number of 0 or more, got {constant}")
    return math.sqrt(value)
