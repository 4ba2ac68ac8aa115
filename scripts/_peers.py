"""The mean SSIM of two images or volumes by this package and by everything else that is importable.

Shared by benchmark.py and accuracy.py. A candidate is a function (img1, img2) -> scalar of (B, C, spatial…) tensors
with values in [0, data_range]; the padding is whatever the peer does by default. Peers that are not installed are left
out.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import splat_ssim
from splat_ssim.loss import photometric_loss

WINDOW, SIGMA = 11, 1.5


@dataclass(frozen=True)
class Candidate:
    """One way to compute mean SSIM."""

    name: str
    package: str  # As on the package index; its version goes into the CSV.
    function: Callable[..., Tensor]
    padding: str = "same"  # What its mean is over, in the words of splat_ssim.ssim.
    dims: tuple[int, ...] = (2, 3)
    channels_last: bool = False  # Whether the tensors get torch's channels_last memory format.
    differentiable: bool = True
    compiled: bool = False
    cuda_only: bool = False

    @property
    def version(self) -> str:
        """The installed version of the package."""
        return importlib.metadata.version(self.package) if self.package != "splat_ssim" else splat_ssim.__version__

    def callable(self, data_range: float = 1.0) -> Callable[[Tensor, Tensor], Tensor]:
        """The function of two tensors, compiled where that is the form."""
        function = functools.partial(self.function, data_range=data_range)
        return torch.compile(function, dynamic=False) if self.compiled else function

    def prepare(self, images: Tensor) -> Tensor:
        """The images in the memory format of this form."""
        if not self.channels_last:
            return images.contiguous()
        return images.contiguous(memory_format=torch.channels_last if images.ndim == 4 else torch.channels_last_3d)


def _ours(x: Tensor, y: Tensor, data_range: float) -> Tensor:
    function = splat_ssim.ssim if x.ndim == 4 else splat_ssim.ssim3d
    return function(x, y, data_range=data_range)


def _ours_loss(x: Tensor, y: Tensor, data_range: float) -> Tensor:
    return photometric_loss(x, y, data_range=data_range)


def _window(dims: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """The window of each axis, shaped to be the weight of a convolution over that axis."""
    offsets = torch.arange(WINDOW, dtype=dtype, device=device) - WINDOW // 2
    taps = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    taps = taps / taps.sum()
    return [taps.reshape(1, 1, *(WINDOW if axis == dim else 1 for axis in range(dims))) for dim in range(dims)]


def _grouped_convolution(x: Tensor, y: Tensor, data_range: float, separable: bool) -> Tensor:
    """The form that 3D Gaussian splatting made common: five grouped convolutions with the window, zero-padded."""
    dims, channels = x.ndim - 2, x.shape[1]
    convolve = F.conv2d if dims == 2 else F.conv3d
    windows = _window(dims, x.dtype, x.device)
    if not separable:
        windows = [functools.reduce(torch.mul, windows)]
    windows = [window.repeat(channels, *[1] * (dims + 1)) for window in windows]

    def smooth(images: Tensor) -> Tensor:
        for window in windows:
            images = convolve(images, window, padding=[side // 2 for side in window.shape[2:]], groups=channels)
        return images

    mu1, mu2 = smooth(x), smooth(y)
    var1, var2, cov = smooth(x * x) - mu1 * mu1, smooth(y * y) - mu2 * mu2, smooth(x * y) - mu1 * mu2
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    top = (2 * mu1 * mu2 + c1) * (2 * cov + c2)
    return (top / ((mu1 * mu1 + mu2 * mu2 + c1) * (var1 + var2 + c2))).mean()


def _pytorch_msssim(x: Tensor, y: Tensor, data_range: float) -> Tensor:
    import pytorch_msssim

    return pytorch_msssim.ssim(x, y, data_range=data_range)


def _kornia(x: Tensor, y: Tensor, data_range: float) -> Tensor:
    import kornia.metrics

    function = kornia.metrics.ssim if x.ndim == 4 else kornia.metrics.ssim3d
    return function(x, y, WINDOW, max_val=data_range).mean()


def _torchmetrics(x: Tensor, y: Tensor, data_range: float) -> Tensor:
    from torchmetrics.functional.image import structural_similarity_index_measure

    return structural_similarity_index_measure(x, y, data_range=data_range)


def _scikit_image(x: Tensor, y: Tensor, data_range: float) -> Tensor:
    from skimage.metrics import structural_similarity

    options = {"gaussian_weights": True, "sigma": SIGMA, "use_sample_covariance": False, "data_range": data_range}
    values = [structural_similarity(a.numpy(), b.numpy(), channel_axis=0, **options) for a, b in zip(x, y, strict=True)]
    return torch.tensor(sum(values) / len(values))


def _fused_ssim(x: Tensor, y: Tensor, data_range: float) -> Tensor:
    import fused_ssim

    return fused_ssim.fused_ssim(x, y)


def _fused_ssim3d(x: Tensor, y: Tensor, data_range: float) -> Tensor:
    import fused_ssim3d

    return fused_ssim3d.fused_ssim3d(x, y)


_CONVOLUTION = functools.partial(_grouped_convolution, separable=False)
_SEPARABLE = functools.partial(_grouped_convolution, separable=True)

_ALL = [
    Candidate("splat_ssim", "splat_ssim", _ours),
    Candidate("splat_ssim NHWC", "splat_ssim", _ours, dims=(2,), channels_last=True),
    Candidate("splat_ssim L1+DSSIM", "splat_ssim", _ours_loss),
    Candidate("pytorch-msssim", "pytorch-msssim", _pytorch_msssim, "valid"),
    Candidate("pytorch-msssim NHWC", "pytorch-msssim", _pytorch_msssim, "valid", dims=(2,), channels_last=True),
    Candidate("kornia", "kornia", _kornia, "reflect"),
    Candidate("kornia NHWC", "kornia", _kornia, "reflect", dims=(2,), channels_last=True),
    Candidate("torchmetrics", "torchmetrics", _torchmetrics, "reflect"),
    Candidate("torchmetrics NHWC", "torchmetrics", _torchmetrics, "reflect", dims=(2,), channels_last=True),
    Candidate("scikit-image", "scikit-image", _scikit_image, "valid", differentiable=False),
    Candidate("3DGS form", "torch", _CONVOLUTION),
    Candidate("3DGS form NHWC", "torch", _CONVOLUTION, dims=(2,), channels_last=True),
    Candidate("3DGS form, compiled", "torch", _CONVOLUTION, dims=(2,), compiled=True),
    Candidate("3DGS form, compiled NHWC", "torch", _CONVOLUTION, dims=(2,), compiled=True, channels_last=True),
    Candidate("separable form", "torch", _SEPARABLE),
    Candidate("separable form NHWC", "torch", _SEPARABLE, dims=(2,), channels_last=True),
    Candidate("separable form, compiled", "torch", _SEPARABLE, compiled=True),
    Candidate("separable form, compiled NHWC", "torch", _SEPARABLE, dims=(2,), compiled=True, channels_last=True),
    Candidate("fused-ssim", "fused-ssim", _fused_ssim, dims=(2,), cuda_only=True),
    Candidate("fused-ssim3d", "fused-ssim3d", _fused_ssim3d, dims=(3,), cuda_only=True),
]

_MODULES = {"scikit-image": "skimage", "pytorch-msssim": "pytorch_msssim"}


def candidates(device: str = "cpu") -> list[Candidate]:
    """The candidates that are installed and run on this kind of device; ours is the first."""

    def present(candidate: Candidate) -> bool:
        module = _MODULES.get(candidate.package, candidate.package.replace("-", "_"))
        runs = device == "cuda" or not candidate.cuda_only
        return runs and importlib.util.find_spec(module) is not None and (device == "cpu" or candidate.differentiable)

    return [candidate for candidate in _ALL if present(candidate)]
