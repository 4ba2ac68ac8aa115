"""The interface of kornia's SSIM and image losses (kornia 0.9): `kornia.losses` and `kornia.metrics` in one module.

kornia 0.8 and earlier compute SSIM of volumes and `MS_SSIMLoss` differently: see `splat_ssim.compat.kornia_0_8`.

Kept from the original, to know about: "same" is reflect padding; `ssim` and `ssim3d` give the map; `eps` is added to
the denominator, so that equal black images give 0.99999; `total_variation` averages each axis over its own number of
differences; `psnr_loss` of equal images is -inf.

Different from the original: windows of even size work, shifted by half a pixel (kornia 0.9 refuses them); half
precision is computed in float32 and rounded once; a window larger than the image is a ValueError; `max_val` may be an
int. What kornia raises as its own BaseError is a ValueError or a TypeError, an unknown reduction also a
NotImplementedError.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from splat_ssim import functional, reference
from splat_ssim._checks import check_choice, check_number
from splat_ssim.compat import _textbook
from splat_ssim.compat._errors import UnsupportedOptionError

__all__ = [
    "SSIM",
    "SSIM3D",
    "CauchyLoss",
    "CharbonnierLoss",
    "GemanMcclureLoss",
    "InverseDepthSmoothnessLoss",
    "MS_SSIMLoss",
    "PSNRLoss",
    "SSIM3DLoss",
    "SSIMLoss",
    "TotalVariation",
    "WelschLoss",
    "cauchy_loss",
    "charbonnier_loss",
    "geman_mcclure_loss",
    "inverse_depth_smoothness_loss",
    "psnr_loss",
    "ssim",
    "ssim3d",
    "ssim3d_loss",
    "ssim_loss",
    "total_variation",
    "welsch_loss",
]

_SIGMA = 1.5
#: `eps` changes S by eps / (C1 C2) at most; below this share float32 does not show it.
_INVISIBLE = 1e-8


# --------------------------------------------------------------------------------------------------------------------
# SSIM
# --------------------------------------------------------------------------------------------------------------------


def ssim(
    img1: Tensor, img2: Tensor, window_size: int, max_val: float = 1.0, eps: float = 1e-12, padding: str = "same"
) -> Tensor:
    """The map of SSIM of two batches of images.

    Args:
        img1: (B, C, H, W), values in [0, max_val]; integers are taken as they are.
        img2: The same shape.
        window_size: Taps of the Gaussian window, whose sigma is 1.5; an even window is padded by one more at the end.
        max_val: Largest possible value.
        eps: Added to the denominator.
        padding: "same", reflect, or "valid", only the windows inside.

    Returns:
        (B, C, H, W), smaller for "valid", in the images' dtype.

    Raises:
        TypeError: An image is no tensor, or an option is of a wrong type.
        ValueError: Shapes, window and padding do not fit.

    Example:
        >>> ssim(torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32), window_size=11).shape
        torch.Size([1, 3, 32, 32])
    """
    return _ssim_map(img1, img2, window_size, max_val, eps, padding, spatial_dims=2)


def ssim3d(
    img1: Tensor, img2: Tensor, window_size: int, max_val: float = 1.0, eps: float = 1e-12, padding: str = "same"
) -> Tensor:
    """The map of SSIM of two batches of volumes (B, C, D, H, W); all else is as for `ssim`.

    Example:
        >>> ssim3d(torch.rand(1, 1, 8, 8, 8), torch.rand(1, 1, 8, 8, 8), window_size=5).shape
        torch.Size([1, 1, 8, 8, 8])
    """
    return _ssim_map(img1, img2, window_size, max_val, eps, padding, spatial_dims=3)


def ssim_loss(
    img1: Tensor,
    img2: Tensor,
    window_size: int,
    max_val: float = 1.0,
    eps: float = 1e-12,
    reduction: str = "mean",
    padding: str = "same",
) -> Tensor:
    """`(1 - S) / 2`, clamped to [0, 1], of two batches of images; the arguments are those of `ssim`.

    `reduction` is "mean", "sum" or "none".

    Example:
        >>> loss = ssim_loss(torch.rand(1, 3, 32, 32, requires_grad=True), torch.rand(1, 3, 32, 32), window_size=11)
    """
    return _ssim_loss(ssim, img1, img2, window_size, max_val, eps, reduction, padding)


def ssim3d_loss(
    img1: Tensor,
    img2: Tensor,
    window_size: int,
    max_val: float = 1.0,
    eps: float = 1e-12,
    reduction: str = "mean",
    padding: str = "same",
) -> Tensor:
    """`(1 - S) / 2`, clamped to [0, 1], of two batches of volumes; kornia 0.8 and earlier gave `1 - S`.

    Example:
        >>> loss = ssim3d_loss(torch.rand(1, 1, 8, 8, 8), torch.rand(1, 1, 8, 8, 8), window_size=5)
    """
    return _ssim_loss(ssim3d, img1, img2, window_size, max_val, eps, reduction, padding)


def _ssim_loss(
    function: Callable[..., Tensor],
    img1: Tensor,
    img2: Tensor,
    window_size: int,
    max_val: float,
    eps: float,
    reduction: str,
    padding: str,
) -> Tensor:
    _check_reduction(reduction)
    found = function(img1, img2, window_size, max_val, eps, padding)
    return _reduce(torch.clamp((1 - found) / 2, 0, 1), reduction)


def _ssim_map(
    img1: Tensor,
    img2: Tensor,
    window_size: int,
    max_val: float,
    eps: float,
    padding: str,
    spatial_dims: int,
    same: str = "reflect",
    gaussian: Callable[[int, float], Sequence[float]] = reference.gaussian_taps,
) -> Tensor:
    for name, image in (("img1", img1), ("img2", img2)):
        _check_tensor(name, image)
        if image.ndim != spatial_dims + 2:
            layout = "(B, C, H, W)" if spatial_dims == 2 else "(B, C, D, H, W)"
            raise ValueError(f"{name} must have the shape {layout}, got {tuple(image.shape)}")
    if img1.shape != img2.shape:
        raise ValueError(f"img1 and img2 must have the same shape, got {tuple(img1.shape)} and {tuple(img2.shape)}")
    if isinstance(window_size, bool) or not isinstance(window_size, int):
        raise TypeError(f"window_size must be an int, got {type(window_size).__name__}")
    if window_size < 1:
        raise ValueError(f"window_size must be 1 or more, got {window_size}")
    check_number("max_val", max_val)
    check_choice("padding", padding, ("same", "valid"))
    sides, before = tuple(img1.shape[2:]), (window_size - 1) // 2
    after = window_size - 1 - before
    if padding == "valid" and min(sides) < window_size:
        raise ValueError(f"padding 'valid' needs every side to be at least window_size={window_size}, got {sides}")
    if padding == "same" and min(sides) <= after:
        raise ValueError(f"padding 'same' needs every side to be larger than {after}, got {sides}")

    dtype = torch.promote_types(img1.dtype, img2.dtype)
    dtype = dtype if dtype.is_floating_point else torch.float32
    img1, img2 = _textbook.wide(img1), _textbook.wide(img2)
    mode = same if padding == "same" else "valid"
    c1, c2 = (0.01 * max_val) ** 2, (0.03 * max_val) ** 2
    exact = dtype == torch.float64 or eps > _INVISIBLE * c1 * c2
    if not exact and _textbook.has_kernel(window_size, [window_size], max_val):
        function = functional.ssim if spatial_dims == 2 else functional.ssim3d
        found = function(img1, img2, window_size=window_size, data_range=max_val, padding=mode, reduction="none")
        return found.to(dtype)
    taps = [gaussian(window_size, _SIGMA)] * spatial_dims
    img1, img2 = (reference.pad(img, before, after, mode, spatial_dims) for img in (img1, img2))
    return _textbook.moments(img1, img2, taps).ssim(c1, c2, eps).to(dtype)


# --------------------------------------------------------------------------------------------------------------------
# L1 and SSIM at several sigmas
# --------------------------------------------------------------------------------------------------------------------


class MS_SSIMLoss(nn.Module):  # noqa: N801 - the original's name
    """L1 and SSIM at several sigmas on one scale, zero-padded: `forward(img1, img2)` of (B, C, H, W).

    For each channel, l is the luminance term at the last sigma and cs the product of the contrast-structure terms at
    all sigmas; G is the Gaussian of the last sigma:

        loss = compensation · [alpha · (1 - mean_c(l · cs)) + (1 - alpha) · mean_c(G * |img1 - img2|) / data_range]

    a map (B, H, W) before the reduction "mean", "sum" or "none". A batch of one is compared with every image of the
    other. kornia 0.8 and earlier let each channel see other sigmas: `splat_ssim.compat.kornia_0_8.MS_SSIMLoss`.

    Example:
        >>> loss = MS_SSIMLoss()(torch.rand(1, 3, 32, 32, requires_grad=True), torch.rand(1, 3, 32, 32))
    """

    def __init__(
        self,
        sigmas: Sequence[float] = (0.5, 1.0, 2.0, 4.0, 8.0),
        data_range: float = 1.0,
        K: Sequence[float] = (0.01, 0.03),
        alpha: float = 0.025,
        compensation: float = 200.0,
        reduction: str = "mean",
    ):
        super().__init__()
        if not sigmas:
            raise ValueError(f"sigmas must have at least one value, got {sigmas}")
        self.sigmas = tuple(sigmas)
        self.data_range = data_range
        self.c1, self.c2 = (K[0] * data_range) ** 2, (K[1] * data_range) ** 2
        self.pad = int(2 * sigmas[-1])
        self.alpha = alpha
        self.compensation = compensation
        self.reduction = reduction

    def forward(self, img1: Tensor, img2: Tensor) -> Tensor:
        """The loss, () or (B, H, W), in the images' dtype."""
        for name, image in (("img1", img1), ("img2", img2)):
            _check_tensor(name, image)
            if image.ndim != 4:
                raise ValueError(f"{name} must have the shape (B, C, H, W), got {tuple(image.shape)}")
        if img1.shape[1:] != img2.shape[1:] or (img1.shape[0] != img2.shape[0] and 1 not in (len(img1), len(img2))):
            raise ValueError(
                f"img1 and img2 must have the same shape, but for a batch of one, got {tuple(img1.shape)} and "
                f"{tuple(img2.shape)}"
            )
        _check_reduction(self.reduction)
        dtype = torch.promote_types(img1.dtype, img2.dtype)
        dtype = dtype if dtype.is_floating_point else torch.float32
        img1, img2 = torch.broadcast_tensors(_textbook.wide(img1), _textbook.wide(img2))
        loss = self.compensation * (
            self.alpha * (1 - self._similarity(img1, img2))
            + (1 - self.alpha) * self._distance(img1, img2) / self.data_range
        )
        return _reduce(loss, self.reduction).to(dtype)

    def _taps(self, sigma: float) -> list[list[float]]:
        return [_textbook.float32_gaussian(2 * self.pad + 1, sigma)] * 2

    def _padded(self, images: Tensor) -> Tensor:
        return reference.pad(images, self.pad, self.pad, "same", 2)

    def _similarity(self, img1: Tensor, img2: Tensor) -> Tensor:
        """(B, H, W): the mean over channels of luminance times contrast-structure terms."""
        img1, img2 = self._padded(img1), self._padded(img2)
        contrast_structures = []
        for sigma in self.sigmas:
            found = _textbook.moments(img1, img2, self._taps(sigma))
            contrast_structures.append(found.contrast_structure(self.c2))
        return (found.luminance(self.c1) * math.prod(contrast_structures)).mean(1)

    def _distance(self, img1: Tensor, img2: Tensor) -> Tensor:
        """(B, H, W): the absolute difference, smoothed by the last sigma and averaged over channels."""
        return _textbook.smooth(self._padded((img1 - img2).abs()), self._taps(self.sigmas[-1])).mean(1)


# --------------------------------------------------------------------------------------------------------------------
# Losses without a window
# --------------------------------------------------------------------------------------------------------------------


def psnr_loss(image: Tensor, target: Tensor, max_val: float) -> Tensor:
    """`-10 log10(max_val² / mse)`, the negative PSNR, of two tensors of any shape.

    Example:
        >>> psnr_loss(torch.ones(1), 1.2 * torch.ones(1), 2.0)
        tensor(-20.0000)
    """
    _check_tensor("image", image)
    _check_tensor("target", target)
    if image.shape != target.shape:
        raise TypeError(
            f"image and target must have the same shape, got {tuple(image.shape)} and {tuple(target.shape)}"
        )
    return -10 * torch.log10(max_val**2 / nn.functional.mse_loss(image, target))


def total_variation(img: Tensor, reduction: str = "sum") -> Tensor:
    """Sum of the absolute differences of neighbours along the two last axes, or the sum of the two axes' means.

    Args:
        img: (…, H, W).
        reduction: "sum", or "mean".

    Returns:
        The shape of `img` without its two last axes.

    Example:
        >>> total_variation(torch.ones(4, 4))
        tensor(0.)
    """
    _check_tensor("img", img)
    if img.ndim < 2:
        raise ValueError(f"img must have the shape (…, H, W), got {tuple(img.shape)}")
    check_choice("reduction", reduction, ("mean", "sum"))

    def along(dim: int) -> Tensor:
        differences = img.diff(dim=dim).abs()
        summed = differences.sum((-2, -1))
        return summed / max(1, differences.shape[-2] * differences.shape[-1]) if reduction == "mean" else summed

    return along(-2) + along(-1)


def inverse_depth_smoothness_loss(idepth: Tensor, image: Tensor) -> Tensor:
    """Differences of neighbouring inverse depths, each weighed by exp(-|difference of the image|), averaged by axis.

    Args:
        idepth: (B, 1, H, W), inverse depth.
        image: (B, C, H, W), of the same dtype; its differences are averaged over channels.

    Returns:
        A scalar.

    Example:
        >>> loss = inverse_depth_smoothness_loss(torch.rand(1, 1, 8, 8), torch.rand(1, 3, 8, 8))
    """
    for name, tensor in (("idepth", idepth), ("image", image)):
        _check_tensor(name, tensor)
        if tensor.ndim != 4:
            raise ValueError(f"{name} must have the shape (B, C, H, W), got {tuple(tensor.shape)}")
    if idepth.shape[-2:] != image.shape[-2:]:
        raise ValueError(
            f"idepth and image must have the same H and W, got {tuple(idepth.shape)}, {tuple(image.shape)}"
        )
    if idepth.device != image.device:
        raise ValueError(f"idepth and image must be on the same device, got {idepth.device} and {image.device}")
    if idepth.dtype != image.dtype:
        raise ValueError(f"idepth and image must have the same dtype, got {idepth.dtype} and {image.dtype}")

    def along(dim: int) -> Tensor:
        weights = torch.exp(-image.diff(dim=dim).abs().mean(1, keepdim=True))
        return (idepth.diff(dim=dim) * weights).abs().mean()

    return along(-1) + along(-2)


def charbonnier_loss(img1: Tensor, img2: Tensor, reduction: str | None = "none") -> Tensor:
    """`sqrt((x - y)² + 1) - 1`; `reduction` is "mean", "sum" or "none".

    Example:
        >>> loss = charbonnier_loss(torch.rand(2, 3), torch.rand(2, 3), reduction="sum")
    """
    return _robust_loss(lambda squared: (squared + 1).sqrt() - 1, img1, img2, reduction)


def welsch_loss(img1: Tensor, img2: Tensor, reduction: str | None = "none") -> Tensor:
    """`1 - exp(-(x - y)² / 2)`; `reduction` is "mean", "sum" or "none".

    Example:
        >>> loss = welsch_loss(torch.rand(2, 3), torch.rand(2, 3), reduction="sum")
    """
    return _robust_loss(lambda squared: 1 - (-0.5 * squared).exp(), img1, img2, reduction)


def cauchy_loss(img1: Tensor, img2: Tensor, reduction: str | None = "none") -> Tensor:
    """`log((x - y)² / 2 + 1)`; `reduction` is "mean", "sum" or "none".

    Example:
        >>> loss = cauchy_loss(torch.rand(2, 3), torch.rand(2, 3), reduction="sum")
    """
    return _robust_loss(lambda squared: (0.5 * squared + 1).log(), img1, img2, reduction)


def geman_mcclure_loss(img1: Tensor, img2: Tensor, reduction: str | None = "none") -> Tensor:
    """`2 (x - y)² / ((x - y)² + 4)`; `reduction` is "mean", "sum" or "none".

    Example:
        >>> loss = geman_mcclure_loss(torch.rand(2, 3), torch.rand(2, 3), reduction="sum")
    """
    return _robust_loss(lambda squared: 2 * squared / (squared + 4), img1, img2, reduction)


def _robust_loss(function: Callable[[Tensor], Tensor], img1: Tensor, img2: Tensor, reduction: str | None) -> Tensor:
    _check_tensor("img1", img1)
    _check_tensor("img2", img2)
    if img1.shape != img2.shape:
        raise ValueError(f"img1 and img2 must have the same shape, got {tuple(img1.shape)} and {tuple(img2.shape)}")
    if img1.device != img2.device:
        raise ValueError(f"img1 and img2 must be on the same device, got {img1.device} and {img2.device}")
    reduction = "none" if reduction is None else reduction
    _check_reduction(reduction)
    return _reduce(function((img1 - img2) ** 2), reduction)


def _check_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")


def _check_reduction(reduction: str) -> None:
    if reduction not in ("mean", "sum", "none"):
        raise UnsupportedOptionError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")


def _reduce(values: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return values
    return values.mean() if reduction == "mean" else values.sum()


# --------------------------------------------------------------------------------------------------------------------
# Modules
# --------------------------------------------------------------------------------------------------------------------


class SSIM(nn.Module):
    """`ssim` as a module.

    Example:
        >>> value = SSIM(window_size=5)(torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 16))
    """

    _function = staticmethod(ssim)

    def __init__(self, window_size: int, max_val: float = 1.0, eps: float = 1e-12, padding: str = "same"):
        super().__init__()
        self.window_size = window_size
        self.max_val = max_val
        self.eps = eps
        self.padding = padding

    def forward(self, img1: Tensor, img2: Tensor) -> Tensor:
        """The map; shapes as for the function."""
        return self._function(img1, img2, self.window_size, self.max_val, self.eps, self.padding)


class SSIM3D(SSIM):
    """`ssim3d` as a module.

    Example:
        >>> value = SSIM3D(window_size=5)(torch.rand(1, 1, 8, 8, 8), torch.rand(1, 1, 8, 8, 8))
    """

    _function = staticmethod(ssim3d)


class SSIMLoss(nn.Module):
    """`ssim_loss` as a module.

    Example:
        >>> loss = SSIMLoss(window_size=5)(torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 16))
    """

    _function = staticmethod(ssim_loss)

    def __init__(
        self,
        window_size: int,
        max_val: float = 1.0,
        eps: float = 1e-12,
        reduction: str = "mean",
        padding: str = "same",
    ):
        super().__init__()
        self.window_size = window_size
        self.max_val = max_val
        self.eps = eps
        self.reduction = reduction
        self.padding = padding

    def forward(self, img1: Tensor, img2: Tensor) -> Tensor:
        """The loss; shapes as for the function."""
        options = (self.window_size, self.max_val, self.eps, self.reduction, self.padding)
        return self._function(img1, img2, *options)


class SSIM3DLoss(SSIMLoss):
    """`ssim3d_loss` as a module.

    Example:
        >>> loss = SSIM3DLoss(window_size=5)(torch.rand(1, 1, 8, 8, 8), torch.rand(1, 1, 8, 8, 8))
    """

    _function = staticmethod(ssim3d_loss)


class PSNRLoss(nn.Module):
    """`psnr_loss` as a module.

    Example:
        >>> loss = PSNRLoss(2.0)(torch.ones(1), 1.2 * torch.ones(1))
    """

    def __init__(self, max_val: float):
        super().__init__()
        self.max_val = max_val

    def forward(self, image: Tensor, target: Tensor) -> Tensor:
        """The loss; shapes as for the function."""
        return psnr_loss(image, target, self.max_val)


class TotalVariation(nn.Module):
    """`total_variation` as a module, with the reduction "sum".

    Example:
        >>> values = TotalVariation()(torch.ones(2, 3, 4, 4))
    """

    def forward(self, img: Tensor) -> Tensor:
        """The value; shapes as for the function."""
        return total_variation(img)


class InverseDepthSmoothnessLoss(nn.Module):
    """`inverse_depth_smoothness_loss` as a module.

    Example:
        >>> loss = InverseDepthSmoothnessLoss()(torch.rand(1, 1, 8, 8), torch.rand(1, 3, 8, 8))
    """

    def forward(self, idepth: Tensor, image: Tensor) -> Tensor:
        """The loss; shapes as for the function."""
        return inverse_depth_smoothness_loss(idepth, image)


class CharbonnierLoss(nn.Module):
    """`charbonnier_loss` as a module.

    Example:
        >>> loss = CharbonnierLoss(reduction="mean")(torch.rand(2, 3), torch.rand(2, 3))
    """

    _function = staticmethod(charbonnier_loss)

    def __init__(self, reduction: str | None = "none"):
        super().__init__()
        self.reduction = reduction

    def forward(self, img1: Tensor, img2: Tensor) -> Tensor:
        """The loss; shapes as for the function."""
        return self._function(img1, img2, self.reduction)


class WelschLoss(CharbonnierLoss):
    """`welsch_loss` as a module.

    Example:
        >>> loss = WelschLoss(reduction="mean")(torch.rand(2, 3), torch.rand(2, 3))
    """

    _function = staticmethod(welsch_loss)


class CauchyLoss(CharbonnierLoss):
    """`cauchy_loss` as a module.

    Example:
        >>> loss = CauchyLoss(reduction="mean")(torch.rand(2, 3), torch.rand(2, 3))
    """

    _function = staticmethod(cauchy_loss)


class GemanMcclureLoss(CharbonnierLoss):
    """`geman_mcclure_loss` as a module.

    Example:
        >>> loss = GemanMcclureLoss(reduction="mean")(torch.rand(2, 3), torch.rand(2, 3))
    """

    _function = staticmethod(geman_mcclure_loss)
