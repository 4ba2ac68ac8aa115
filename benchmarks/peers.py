"""The candidates: this package, and everything that computes mean SSIM with a gradient by PyTorch.

Those by value alone are in by_value.py. A peer's form is named: its convolutions, memory format, torch.compile.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import by_value
from benchmarks.candidate import SIGMA, WINDOW, Candidate, ours
from splat_ssim.loss import photometric_loss


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

    value: Tensor = pytorch_msssim.ssim(x, y, data_range=data_range)
    return value


def _kornia(x: Tensor, y: Tensor, data_range: float) -> Tensor:
    import kornia.metrics

    function = kornia.metrics.ssim if x.ndim == 4 else kornia.metrics.ssim3d
    return function(x, y, WINDOW, max_val=data_range).mean()


def _torchmetrics(x: Tensor, y: Tensor, data_range: float) -> Tensor:
    from torchmetrics.functional.image import structural_similarity_index_measure

    return structural_similarity_index_measure(x, y, data_range=data_range)  # type: ignore[return-value]


def _monai(x: Tensor, y: Tensor, data_range: float) -> Tensor:
    """The mean SSIM of MONAI, whose `SSIMLoss` is 1 minus it."""
    from monai.metrics.regression import compute_ssim_and_cs

    dims = x.ndim - 2
    return compute_ssim_and_cs(y, x, dims, (WINDOW,) * dims, (SIGMA,) * dims, data_range)[0].mean()


def _piq(x: Tensor, y: Tensor, data_range: float) -> Tensor:
    from piq.ssim import ssim

    value: Tensor = ssim(x, y, data_range=data_range, downsample=False)
    return value


@functools.cache
def _piq_version() -> str:
    """Its version. The package needs the torchvision of this torch; its module of SSIM does not, and is found alone."""
    spec = importlib.util.find_spec("piq")
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError("the package piq is not installed")
    try:
        importlib.import_module("piq.ssim")
    except (ImportError, RuntimeError):
        package = ModuleType("piq")
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules["piq"] = package
        importlib.import_module("piq.ssim")
        del sys.modules["piq"]  # Nobody else is to take it for the package.
    return importlib.metadata.version("piq")


def _fused_ssim(x: Tensor, y: Tensor, data_range: float) -> Tensor:
    import fused_ssim

    value: Tensor = fused_ssim.fused_ssim(x, y)
    return value


def _fused_ssim3d(x: Tensor, y: Tensor, data_range: float) -> Tensor:
    import fused_ssim3d

    value: Tensor = fused_ssim3d.fused_ssim3d(x, y)
    return value


def _forms(
    name: str,
    package: str,
    function: Callable[..., Tensor],
    padding: str,
    convolutions: str,
    dims: tuple[int, ...] = (2, 3),
    compiled_dims: tuple[int, ...] = (2,),
    find: Callable[[], str] | None = None,
) -> list[Candidate]:
    """The four forms of a function of tensors: NCHW or channels last, eager or compiled.

    Full convolutions of volumes are not compiled: their time is in the convolutions, which stay what they are.
    """
    found = []
    for compiled in (False, True):
        for channels_last in (False, True):
            words = [convolutions, "channels last" if channels_last else "", "torch.compile" if compiled else ""]
            found.append(
                Candidate(
                    f"{name}{', compiled' if compiled else ''}{' NHWC' if channels_last else ''}",
                    package,
                    function,
                    padding,
                    ", ".join(filter(None, words)),
                    dims=(2,) if channels_last else compiled_dims if compiled else dims,
                    channels_last=channels_last,
                    compiled=compiled,
                    find=find,
                )
            )
    return found


_CONVOLUTION = functools.partial(_grouped_convolution, separable=False)
_SEPARABLE = functools.partial(_grouped_convolution, separable=True)
_LOSS = "0.8·L1 + 0.2·(1 - SSIM), 11-tap Gaussian"

_ALL = [
    Candidate("splat_ssim", "splat_ssim", ours),
    Candidate("splat_ssim NHWC", "splat_ssim", ours, form="channels last", dims=(2,), channels_last=True),
    Candidate("splat_ssim L1+DSSIM", "splat_ssim", _ours_loss, definition=_LOSS, same=False),
    *_forms("pytorch-msssim", "pytorch-msssim", _pytorch_msssim, "valid", "separable", compiled_dims=(2, 3)),
    *_forms("kornia", "kornia", _kornia, "reflect", "separable in 2D, full in 3D"),
    *_forms("torchmetrics", "torchmetrics", _torchmetrics, "reflect", "full, five images in one convolution"),
    *_forms("MONAI", "monai", _monai, "valid", "full"),
    *_forms("piq", "piq", _piq, "valid", "full, downsample=False", dims=(2,), find=_piq_version),
    *_forms("3DGS form", "torch", _CONVOLUTION, "same", "full"),
    *_forms("separable form", "torch", _SEPARABLE, "same", "separable", compiled_dims=(2, 3)),
    Candidate("fused-ssim", "fused-ssim", _fused_ssim, dims=(2,), cuda_only=True),
    Candidate("fused-ssim3d", "fused-ssim3d", _fused_ssim3d, dims=(3,), cuda_only=True),
    *by_value.CANDIDATES,
]


def candidates(device: str = "cpu") -> list[Candidate]:
    """The candidates that are there and run on this kind of device; ours is the first."""

    def runs(candidate: Candidate) -> bool:
        if (candidate.cuda_only and device == "cpu") or (device == "cuda" and not candidate.differentiable):
            return False
        try:
            return bool(candidate.version)
        except ImportError:
            return False

    return [candidate for candidate in _ALL if runs(candidate)]


def missing(device: str = "cpu") -> list[str]:
    """A line for each peer of this kind of device that is not measured: what it lacks."""
    lines: dict[str, str] = {}
    for candidate in _ALL:
        if device == "cuda" or not candidate.cuda_only:
            try:
                candidate.version  # noqa: B018
            except ImportError as error:
                lines.setdefault(candidate.package, f"not measured: {candidate.name}: {error}")
    return list(lines.values())
