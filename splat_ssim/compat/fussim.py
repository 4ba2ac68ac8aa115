"""The interface of the `fussim` package (0.3): fused_ssim with three window sizes, and pytorch-msssim's `ssim`, `SSIM`.

As in the original, windows have 7, 9 or 11 taps and sigma 1.5. Inputs are images, not volumes. `ssim` uses "valid"
padding. `nonnegative_ssim` clamps each pixel, where pytorch-msssim clamps the mean of each channel.

It differs from the original in these ways. It also runs on a CPU. The second image gets its gradient if it requires
one. Images may have any dtype that `splat_ssim.ssim` reads, and float64 is computed in float64. Under autocast
everything is computed in float32, where the original rounds the images to float16. With padding "valid", images smaller
than the window raise a ValueError.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from splat_ssim import functional
from splat_ssim._checks import check_images, check_padding
from splat_ssim.compat._errors import RefusedRuntimeError
from splat_ssim.compat._options import integer, number, pair
from splat_ssim.compat.fused_ssim import map_of, mean_ssim
from splat_ssim.ops.ssim import ssim_map
from splat_ssim.options import SSIMOptions

__all__ = [
    "SSIM",
    "SUPPORTED_WINDOW_SIZES",
    "FusedSSIMMap",
    "FusedSSIMMapFP16",
    "__version__",
    "check_compatibility",
    "fused_ssim",
    "get_build_info",
    "ssim",
]

#: The version of fussim whose interface this is.
__version__ = "0.3.15"
SUPPORTED_WINDOW_SIZES = (7, 9, 11)
ALLOWED_PADDING = ("same", "valid")


def fused_ssim(img1: Tensor, img2: Tensor, padding: str = "same", train: bool = True, window_size: int = 11) -> Tensor:
    """Mean SSIM of two batches of images, as a differentiable scalar.

    Args:
        img1: (B, C, H, W), values in [0, 1]. The dtypes and strides of `splat_ssim.ssim` are accepted.
        img2: Same shape and device as `img1`.
        padding: "same" pads the images with zeros. "valid" uses only windows that lie inside them.
        train: Whether a gradient is needed. If not, only the value is computed.
        window_size: Number of taps of the Gaussian window: 7, 9 or 11.

    Returns:
        A scalar: float64 if either image is float64, otherwise float32.

    Raises:
        ValueError: In the same cases as `splat_ssim.ssim`; or the padding or window size is not one of those above. If
            the images are on different devices, the error is a RuntimeError too.
        TypeError: In the same cases as `splat_ssim.ssim`.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.fussim import fused_ssim
        >>> pred, target = torch.rand(1, 3, 32, 32, requires_grad=True), torch.rand(1, 3, 32, 32)
        >>> loss = 1 - fused_ssim(pred, target, window_size=7)
        >>> loss.backward()
    """
    _check_devices(img1, img2)
    return mean_ssim(functional.ssim, img1, img2, padding, train, _window("window_size", window_size))


class FusedSSIMMap:
    """The SSIM map: `FusedSSIMMap.apply(C1, C2, img1, img2)`, as in `splat_ssim.compat.fused_ssim`."""

    @staticmethod
    def apply(
        C1: float,
        C2: float,
        img1: Tensor,
        img2: Tensor,
        padding: str = "same",
        train: bool = True,
        window_size: int = 11,
    ) -> Tensor:
        """Computes the SSIM of every pixel.

        Args:
            C1: Constant of the luminance term, 0.01² for images in [0, 1].
            C2: Constant of the contrast-structure term, 0.03² for images in [0, 1].
            img1: (B, C, H, W). The dtypes and strides of `splat_ssim.ssim` are accepted.
            img2: Same shape and device as `img1`.
            padding: As for `fused_ssim`.
            train: As for `fused_ssim`.
            window_size: As for `fused_ssim`.

        Returns:
            The map, in the shape of the images; "valid" makes each spatial axis window_size - 1 shorter. It is float64
            if either image is float64, otherwise float32.

        Raises:
            ValueError: In the same cases as `fused_ssim`; or a constant is negative or not finite.
            TypeError: In the same cases as `fused_ssim`; or a constant is not a number.

        Example:
            >>> import torch
            >>> from splat_ssim.compat.fussim import FusedSSIMMap
            >>> images = torch.rand(1, 3, 32, 32)
            >>> FusedSSIMMap.apply(0.01**2, 0.03**2, images, images, "valid", True, 7).shape
            torch.Size([1, 3, 26, 26])
        """
        return map_of(C1, C2, img1, img2, padding, train, window_size=_window("window_size", window_size))


class FusedSSIMMapFP16:
    """`FusedSSIMMap` for images rounded to half precision. It computes in float32."""

    @staticmethod
    def apply(C1: float, C2: float, img1: Tensor, img2: Tensor, padding: str = "same", window_size: int = 11) -> Tensor:
        """Computes the SSIM of every pixel of the images, which are first rounded to float16.

        The arguments are those of `FusedSSIMMap.apply`, without `train`. The map is float32.

        Example:
            >>> import torch
            >>> from splat_ssim.compat.fussim import FusedSSIMMapFP16
            >>> images = torch.rand(1, 3, 32, 32)
            >>> FusedSSIMMapFP16.apply(0.01**2, 0.03**2, images, images).dtype
            torch.float32
        """
        return FusedSSIMMap.apply(C1, C2, img1.half(), img2.half(), padding, True, window_size)


def ssim(
    X: Tensor,
    Y: Tensor,
    data_range: float = 255,
    size_average: bool = True,
    win_size: int = 11,
    win_sigma: float = 1.5,
    win: None = None,
    K: tuple[float, float] = (0.01, 0.03),
    nonnegative_ssim: bool = False,
) -> Tensor:
    """SSIM averaged over the windows that lie inside the images ("valid").

    Args:
        X: (B, C, H, W), values in [0, data_range]. The dtypes of `splat_ssim.ssim` are accepted.
        Y: Same shape and device as `X`.
        data_range: Difference between the largest and the smallest possible value.
        size_average: Whether to average over the batch. If not, the result has one value for each image.
        win_size: Number of taps of the Gaussian window: 7, 9 or 11.
        win_sigma: Standard deviation of the window. It must be 1.5.
        win: Unused. It must be None.
        K: (k1, k2), both between 0 and 1, exclusively.
        nonnegative_ssim: Whether pixels with a negative SSIM count as 0.

    Returns:
        A tensor of shape () or (B,): float64 if either image is float64, otherwise float32.

    Raises:
        ValueError: In the same cases as `splat_ssim.ssim`; or an option has a value not listed above.
        TypeError: In the same cases as `splat_ssim.ssim`.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.fussim import ssim
        >>> images = torch.rand(2, 3, 32, 32)
        >>> ssim(images, images, data_range=1.0, size_average=False)
        tensor([1., 1.])
    """
    size, k1, k2 = _read(win_size, win_sigma, K)
    if win is not None:
        raise ValueError(f"win must be None, the window is that of win_size, got {type(win).__name__}")
    _check_devices(X, Y)
    top = float(number("data_range", data_range))
    if not nonnegative_ssim:
        reduction = "mean" if size_average else "image"
        options: dict[str, Any] = {"window_size": size, "data_range": top, "k1": k1, "k2": k2, "padding": "valid"}
        return functional.ssim(X, Y, reduction=reduction, **options)
    check_images(X, Y, (2,))
    map_options = SSIMOptions(size, 1.5, top, k1, k2, "valid")
    check_padding(map_options, X)
    found = ssim_map(X, Y, map_options).clamp(min=0)
    return found.mean() if size_average else found.flatten(1).mean(1)


class SSIM(nn.Module):
    """`ssim` as a module. `channel` is ignored: images may have any number of channels.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.fussim import SSIM
        >>> loss = 1 - SSIM(data_range=1.0)(torch.rand(1, 3, 32, 32, requires_grad=True), torch.rand(1, 3, 32, 32))
        >>> loss.backward()
    """

    def __init__(
        self,
        data_range: float = 255,
        size_average: bool = True,
        win_size: int = 11,
        win_sigma: float = 1.5,
        channel: int = 3,
        spatial_dims: int = 2,
        K: tuple[float, float] = (0.01, 0.03),
        nonnegative_ssim: bool = False,
    ):
        super().__init__()
        _read(win_size, win_sigma, K)
        if spatial_dims != 2:
            raise ValueError(f"spatial_dims must be 2, got {spatial_dims}")
        self.data_range = data_range
        self.size_average = size_average
        self.win_size = win_size
        self.K = K
        self.nonnegative_ssim = nonnegative_ssim

    def forward(self, X: Tensor, Y: Tensor) -> Tensor:
        """Returns the SSIM. Shapes are as for `ssim`."""
        return ssim(
            X,
            Y,
            data_range=self.data_range,
            size_average=self.size_average,
            win_size=self.win_size,
            K=self.K,
            nonnegative_ssim=self.nonnegative_ssim,
        )


def get_build_info() -> dict[str, Any]:
    """Build information in the original's format. This package is not built for a certain version of torch or CUDA.

    Example:
        >>> from splat_ssim.compat.fussim import get_build_info
        >>> get_build_info()["is_prebuilt"]
        False
    """
    return {
        "version": __version__,
        "base_version": __version__,
        "build_torch_version": None,
        "build_cuda_version": None,
        "runtime_torch_version": torch.__version__.split("+")[0],
        "runtime_cuda_version": torch.version.cuda if torch.cuda.is_available() else None,
        "is_prebuilt": False,
    }


def check_compatibility(warn: bool = True) -> tuple[bool, list[str]]:
    """Always returns (True, []). The original checks whether its wheel fits the installed torch and CUDA.

    Example:
        >>> from splat_ssim.compat.fussim import check_compatibility
        >>> check_compatibility()
        (True, [])
    """
    return True, []


def _window(name: str, value: int) -> int:
    size = integer(name, value)
    if size not in SUPPORTED_WINDOW_SIZES:
        raise ValueError(f"{name} must be one of {SUPPORTED_WINDOW_SIZES}, got {size}")
    return size


def _read(win_size: int, win_sigma: float, K: tuple[float, float]) -> tuple[int, float, float]:
    """The window and the constants, checked."""
    size = _window("win_size", win_size)
    if win_sigma != 1.5:
        raise ValueError(f"win_sigma must be 1.5, got {win_sigma}")
    if not isinstance(K, (tuple, list)):
        raise ValueError(f"K must be two numbers, got {type(K).__name__}")
    k1, k2 = (float(value) for value in pair("K", K))
    if not (0 < k1 < 1 and 0 < k2 < 1):
        raise ValueError(f"K must be two numbers between 0 and 1, got {K}")
    return size, k1, k2


def _check_devices(img1: Tensor, img2: Tensor) -> None:
    if isinstance(img1, Tensor) and isinstance(img2, Tensor) and img1.device != img2.device:
        raise RefusedRuntimeError(f"img1 and img2 must be on the same device, got {img1.device} and {img2.device}")
