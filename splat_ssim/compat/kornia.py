"""The interface of kornia's SSIM and image losses (kornia 0.9): `kornia.losses` and `kornia.metrics` in one module.

kornia 0.8 and earlier compute SSIM of volumes and `MS_SSIMLoss` differently: see `splat_ssim.compat.kornia_0_8`.

Kept from the original, to know about: "same" is reflect padding; `ssim` and `ssim3d` give the map; `eps` is added to
the denominator, so that equal black images give 0.99999; `total_variation` averages each axis over its own number of
differences; `psnr_loss` of equal images is -inf. What kornia scripts by torch.jit.script can be scripted here.

Different from the original: windows of even size work, shifted by half a pixel (kornia 0.9 refuses them); half
precision is computed in float32 and rounded once; the robust losses refuse uint8, int8 and int16, where kornia wraps
round; a window larger than the image is a ValueError; options may be numpy scalars and tensors of one element. What
kornia raises as its own BaseError is a ValueError or a TypeError, an unknown reduction also a NotImplementedError.

SSIM and `MS_SSIMLoss` run on the kernels for images of float32, half precision and integers and odd windows up to 33.
float64 images, even windows, options that carry a gradient, torch.jit.trace and forward-mode differentiation take plain
torch, which gives the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from splat_ssim import reference
from splat_ssim.compat import _textbook
from splat_ssim.compat._errors import UnsupportedOptionError
from splat_ssim.compat._options import integer, number, pair
from splat_ssim.ops.photometric import photometric
from splat_ssim.ops.ssim import ssim_map
from splat_ssim.options import SSIMOptions

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
    "psnr",
    "psnr_loss",
    "ssim",
    "ssim3d",
    "ssim3d_loss",
    "ssim_loss",
    "total_variation",
    "welsch_loss",
]

_SIGMA, _K1, _K2 = 1.5, 0.01, 0.03
#: dtypes that the kernels read; others are converted to float32, uint8 too: kornia does not divide it by 255.
_READ = (torch.float32, torch.float16, torch.bfloat16)


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
        padding: "same", reflect, or "valid", only the windows inside; in capitals too.

    Returns:
        (B, C, H, W), smaller for "valid", in the images' dtype.

    Raises:
        TypeError: An image is no tensor, or an option is of a wrong type.
        ValueError: Shapes, window and padding do not fit.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.kornia import ssim
        >>> ssim(torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32), window_size=11).shape
        torch.Size([1, 3, 32, 32])
    """
    return _similarity(_check_call(img1, img2, window_size, max_val, eps, padding, spatial_dims=2))


def ssim3d(
    img1: Tensor, img2: Tensor, window_size: int, max_val: float = 1.0, eps: float = 1e-12, padding: str = "same"
) -> Tensor:
    """The map of SSIM of two batches of volumes (B, C, D, H, W); all else is as for `ssim`.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.kornia import ssim3d
        >>> ssim3d(torch.rand(1, 1, 8, 8, 8), torch.rand(1, 1, 8, 8, 8), window_size=5).shape
        torch.Size([1, 1, 8, 8, 8])
    """
    return _similarity(_check_call(img1, img2, window_size, max_val, eps, padding, spatial_dims=3))


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

    The value and the gradient of "mean" and "sum" come from one pass over the images.

    `reduction` is "mean", "sum" or "none".

    Example:
        >>> import torch
        >>> from splat_ssim.compat.kornia import ssim_loss
        >>> loss = ssim_loss(torch.rand(1, 3, 32, 32, requires_grad=True), torch.rand(1, 3, 32, 32), window_size=11)
    """
    _check_reduction(reduction)
    return _half_dissimilarity(_check_call(img1, img2, window_size, max_val, eps, padding, spatial_dims=2), reduction)


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
        >>> import torch
        >>> from splat_ssim.compat.kornia import ssim3d_loss
        >>> loss = ssim3d_loss(torch.rand(1, 1, 8, 8, 8), torch.rand(1, 1, 8, 8, 8), window_size=5)
    """
    _check_reduction(reduction)
    return _half_dissimilarity(_check_call(img1, img2, window_size, max_val, eps, padding, spatial_dims=3), reduction)


class _Call(NamedTuple):
    """A checked call of SSIM."""

    img1: Tensor
    img2: Tensor
    window_size: int
    max_val: float
    eps: float
    #: As `splat_ssim.reference.pad` names it.
    padding: str
    #: Of the result.
    dtype: torch.dtype
    #: kornia 0.8 rounds the window of volumes to float32, which shows on float64 volumes.
    is_window_rounded: bool
    #: What the operators take, None where plain torch computes.
    options: SSIMOptions | None


def _check_call(
    img1: Tensor,
    img2: Tensor,
    window_size: int,
    max_val: float,
    eps: float,
    padding: str,
    spatial_dims: int,
    same: str = "reflect",
    is_window_rounded: bool = False,
) -> _Call:
    for name, image in (("img1", img1), ("img2", img2)):
        _check_tensor(name, image)
        if image.ndim != spatial_dims + 2:
            layout = "(B, C, H, W)" if spatial_dims == 2 else "(B, C, D, H, W)"
            raise ValueError(f"{name} must have the shape {layout}, got {tuple(image.shape)}")
        if image.is_complex():
            raise TypeError(f"{name} must be real, got {image.dtype}")
    if img1.shape != img2.shape:
        raise ValueError(f"img1 and img2 must have the same shape, got {tuple(img1.shape)} and {tuple(img2.shape)}")
    if img1.device != img2.device:
        raise ValueError(f"img1 and img2 must be on the same device, got {img1.device} and {img2.device}")
    window_size = integer("window_size", window_size)
    if window_size < 1:
        raise ValueError(f"window_size must be 1 or more, got {window_size}")
    if not isinstance(padding, str) or padding.lower() not in ("same", "valid"):
        raise ValueError(f"padding must be one of 'same', 'valid', got {padding!r}")
    padding = same if padding.lower() == "same" else "valid"
    after, sides = window_size // 2, tuple(img1.shape[2:])
    if padding == "valid" and min(sides) < window_size:
        raise ValueError(f"padding 'valid' needs every side to be at least window_size={window_size}, got {sides}")
    if padding == "reflect" and min(sides) <= after:
        raise ValueError(f"padding 'same' needs every side to be larger than {after}, got {sides}")

    dtype = torch.promote_types(img1.dtype, img2.dtype)
    dtype = dtype if dtype.is_floating_point else torch.float32
    top, added = _scalar("max_val", max_val), _scalar("eps", eps)
    if not isinstance(top, Tensor) and not math.isfinite(top):
        raise ValueError(f"max_val must be finite, got {max_val}")
    options = None
    # The operators do not repeat a border further than an image is wide; kornia 0.8 does.
    if dtype != torch.float64 and not (padding == "replicate" and min(sides) <= after):
        img1, img2 = (img if img.dtype in _READ else img.float() for img in (img1, img2))
        options = _options(window_size, top, added, padding)
    return _Call(img1, img2, window_size, top, added, padding, dtype, is_window_rounded, options)


def _scalar(name: str, value: object) -> float:
    if isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got bool")
    found = _setting(name, value)
    if isinstance(found, Tensor) and found.numel() != 1:
        raise TypeError(f"{name} must be a number, got a tensor of the shape {tuple(found.shape)}")
    return found


def _setting(name: str, value: object) -> float:
    """A number, typed as torch.jit.script takes it, although a tensor may stay one: see `number`."""
    return cast(float, number(name, value))


def _options(window_size: int, max_val: float, eps: float, padding: str) -> SSIMOptions | None:
    """The options of the operators where they give kornia's number, else None."""
    if isinstance(max_val, Tensor) or isinstance(eps, Tensor) or not 0 <= eps < math.inf:
        return None
    if not _textbook.has_kernel(window_size, abs(max_val)):
        return None
    return SSIMOptions(window_size, _SIGMA, abs(max_val), _K1, _K2, padding, eps=eps)


def _similarity(call: _Call) -> Tensor:
    """The map of S."""
    if call.options is not None:
        return ssim_map(call.img1, call.img2, call.options).to(call.dtype)
    return (1 - _dissimilarity(call)).to(call.dtype)


def _half_dissimilarity(call: _Call, reduction: str, share: float = 0.5) -> Tensor:
    """(1 - S) / 2, or another share of 1 - S, reduced."""
    if call.options is not None:
        if reduction == "none" or call.img1.numel() == 0:
            return _reduce(share * (1 - ssim_map(call.img1, call.img2, call.options)), reduction).to(call.dtype)
        # The clamp of the original is not needed: S is in [-1, 1].
        weight = share * (1 if reduction == "mean" else _count(call))
        loss, _, _ = photometric(call.img1, call.img2, call.options, l1_weight=0.0, dssim_weight=weight)
        return loss.to(call.dtype)
    values = share * _dissimilarity(call)
    return _reduce(torch.clamp(values, 0, 1) if share == 0.5 else values, reduction).to(call.dtype)


def _count(call: _Call) -> int:
    """How many values the map has."""
    lost = call.window_size - 1 if call.padding == "valid" else 0
    return math.prod((*call.img1.shape[:2], *(side - lost for side in call.img1.shape[2:])))


def _dissimilarity(call: _Call) -> Tensor:
    """The map of 1 - S by plain torch, in float32 or float64."""
    before, after = (call.window_size - 1) // 2, call.window_size // 2
    spatial_dims = call.img1.ndim - 2
    wide = torch.float64 if call.dtype == torch.float64 else torch.float32
    img1, img2 = (
        reference.pad(img.to(wide), before, after, call.padding, spatial_dims) for img in (call.img1, call.img2)
    )
    c1, c2 = (_K1 * call.max_val) ** 2, (_K2 * call.max_val) ** 2
    if call.is_window_rounded and wide == torch.float64:
        rounded = _textbook.float32_gaussian(call.window_size, _SIGMA)
        cube = (rounded[:, None] * rounded)[:, :, None] * rounded
        # The sum of kornia's weights is that of the products, rounded too; flat volumes show it.
        rounded = rounded.double() / rounded.double().sum() * cube.double().sum() ** (1 / 3)
        return 1 - _textbook.moments(img1, img2, [rounded.tolist()] * spatial_dims).ssim(c1, c2, call.eps)
    taps = reference.gaussian_taps(call.window_size, _SIGMA)
    return reference.moments(img1, img2, taps, c1, c2).dssim(call.eps)


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

    Args:
        sigmas: Standard deviations of the windows, each of 2 · int(2 · last sigma) + 1 taps.
        data_range: Difference of the largest and the smallest possible value.
        K: (k1, k2), as for `splat_ssim.ssim`.
        alpha: Share of the SSIM term.
        compensation: Factor of the whole loss.
        reduction: "mean", "sum" or "none".

    Example:
        >>> import torch
        >>> from splat_ssim.compat.kornia import MS_SSIMLoss
        >>> loss = MS_SSIMLoss()(torch.rand(1, 3, 32, 32, requires_grad=True), torch.rand(1, 3, 32, 32))
        >>> loss.backward()
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
        values = [float(sigma) for sigma in sigmas]
        if not values:
            raise ValueError(f"sigmas must have at least one value, got {sigmas}")
        if not all(0 <= value < math.inf for value in values):
            raise ValueError(f"sigmas must be finite numbers of 0 or more, got {sigmas}")
        k1, k2 = pair("K", K)
        self.DR = _setting("data_range", data_range)
        self.C1 = (_setting("K[0]", k1) * self.DR) ** 2
        self.C2 = (_setting("K[1]", k2) * self.DR) ** 2
        self.pad = int(2 * values[-1])
        self.alpha = _setting("alpha", alpha)
        self.compensation = _setting("compensation", compensation)
        self.reduction = reduction
        self.num_scales = len(values)
        #: The windows, (windows, 1, taps, taps), and their sigmas; None where they are no Gaussians.
        self._g_masks: Tensor
        self._mask_sigmas: tuple[float, ...] | None
        self._register_masks(values)

    def _register_masks(self, sigmas: list[float]) -> None:
        """The buffer is not part of the state dict, as in the original."""
        self.register_buffer("_g_masks", _masks(sigmas, 2 * self.pad + 1), persistent=False)
        self._mask_sigmas = tuple(sigmas)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Takes the state of the original's module too, which does not tell its sigmas."""
        super().__setstate__(state)
        if "_mask_sigmas" not in state:
            self._mask_sigmas = _sigmas_of(self._g_masks)

    def forward(self, img1: Tensor, img2: Tensor) -> Tensor:
        """The loss, () or (B, H, W), in the images' dtype."""
        if not torch.jit.is_scripting():
            _check_broadcast(img1, img2)
            _check_reduction(self.reduction)
        dtype = _float_dtype(img1, img2)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        images = torch.broadcast_tensors(img1.to(wide), img2.to(wide))
        loss = self.compensation * (
            self.alpha * (1 - self._similarity(images[0], images[1]))
            + (1 - self.alpha) * self._distance(images[0], images[1]) / self.DR
        )
        return _reduce(loss, self.reduction).to(dtype)

    def _similarity(self, img1: Tensor, img2: Tensor) -> Tensor:
        """(B, H, W): the mean over channels of luminance times contrast-structure terms."""
        if not torch.jit.is_scripting():
            maps = _Maps.of(self, img1, img2)
            if maps is not None:
                assert self._mask_sigmas is not None
                *others, last = self._mask_sigmas
                similarity = maps.ssim(last)
                for sigma in others:
                    similarity = similarity * maps.contrast_structure(sigma)
                return similarity.mean(1)
        sides = [-1, 1, img1.shape[2], img1.shape[3]]
        luminances, contrast_structures = _terms(
            img1.reshape(sides), img2.reshape(sides), _taps(self._g_masks, img1), 1, self.pad, self.C1, self.C2
        )
        similarity = luminances[:, -1] * contrast_structures.prod(1)  # [B C, H, W]
        return similarity.reshape([img1.shape[0], img1.shape[1], img1.shape[2], img1.shape[3]]).mean(1)

    def _distance(self, img1: Tensor, img2: Tensor) -> Tensor:
        """(B, H, W): the absolute difference, averaged over channels and smoothed by the last sigma.

        For a mean or a sum it is weighed instead, which gives the same mean and sum.
        """
        difference = (img1 - img2).abs().mean(1, keepdim=True)
        taps = _taps(self._g_masks, img1)[-1:]
        return _smooth_or_weigh(difference, taps, 1, self.pad, self.reduction)[:, 0]


def _masks(sigmas: Sequence[float], size: int) -> Tensor:
    """(windows, 1, size, size): the windows of kornia's buffer. One of even size is centred on a pixel too."""
    taps = [_textbook.float32_gaussian(size, sigma, centre=size // 2) for sigma in sigmas]
    return torch.stack([torch.outer(window, window) for window in taps])[:, None]


def _sigmas_of(masks: Tensor) -> tuple[float, ...] | None:
    """The sigmas that `_masks` makes the same windows of, or None."""
    if masks.device.type != "cpu":
        return None
    found = [_textbook.gaussian_sigma(taps, tolerance=1e-6) for taps in _taps(masks, masks)]
    sigmas = tuple(sigma for sigma in found if sigma is not None)
    if len(sigmas) < len(found) or (_masks(sigmas, masks.shape[-1]) - masks).abs().max() > 1e-6:
        return None
    return sigmas


class _Maps:
    """Maps of S and of its factors for two batches of images, zero-padded, by the operators."""

    #: A k1 or k2 so large that the factor it belongs to is 1.
    _HUGE = 1e7

    def __init__(self, img1: Tensor, img2: Tensor, taps: int, data_range: float, c1: float, c2: float):
        self._images = img1, img2
        self._taps = taps
        self._data_range = data_range
        self._k1, self._k2 = math.sqrt(c1) / data_range, math.sqrt(c2) / data_range

    @classmethod
    def of(cls, loss: MS_SSIMLoss, img1: Tensor, img2: Tensor) -> _Maps | None:
        """The maps for a loss, None where its options need plain torch."""
        sigmas, taps = loss._mask_sigmas, loss._g_masks.shape[-1]
        if sigmas is None or img1.dtype == torch.float64 or img1.numel() == 0:
            return None
        if isinstance(loss.DR, Tensor) or isinstance(loss.C1, Tensor) or isinstance(loss.C2, Tensor):
            return None
        if not _textbook.has_kernel(taps, abs(loss.DR), loss.C1, loss.C2, *sigmas):
            return None
        return cls(img1, img2, taps, abs(loss.DR), loss.C1, loss.C2)

    def ssim(self, sigma: float, channel: int | None = None) -> Tensor:
        """S of all channels, or of one: (B, 1, H, W)."""
        return self._map(sigma, self._k1, self._k2, channel)

    def luminance(self, sigma: float, channel: int | None = None) -> Tensor:
        """The luminance factor of S."""
        return self._map(sigma, self._k1, self._HUGE, channel)

    def contrast_structure(self, sigma: float, channel: int | None = None) -> Tensor:
        """The contrast-structure factor of S."""
        return self._map(sigma, self._HUGE, self._k2, channel)

    def _map(self, sigma: float, k1: float, k2: float, channel: int | None) -> Tensor:
        img1, img2 = self._images
        if channel is not None:
            img1, img2 = img1[:, channel : channel + 1], img2[:, channel : channel + 1]
        return ssim_map(img1, img2, SSIMOptions(self._taps, sigma, self._data_range, k1, k2))


def _taps(masks: Tensor, images: Tensor) -> Tensor:
    """(windows, taps): each window along one axis. The windows are outer products, whose sum is not exactly 1."""
    rows = masks[:, 0].to(images.device, torch.float64).sum(2)
    return (rows / rows.sum(1, keepdim=True).sqrt()).to(images.dtype)


def _smooth(images: Tensor, taps: Tensor, groups: int, pad: int) -> Tensor:
    """(B, windows, H, W) of images (B, groups, H, W), zero-padded: each group is smoothed by its share of the windows.

    Args:
        images: (B, groups, H, W).
        taps: (windows, taps).
        groups: The number of channels; it divides the number of windows.
        pad: Zeros at each end of both axes.
    """
    columns = F.conv2d(images, taps[:, None, :, None], padding=[pad, 0], groups=groups)
    return F.conv2d(columns, taps[:, None, None, :], padding=[0, pad], groups=taps.shape[0])


def _smooth_or_weigh(images: Tensor, taps: Tensor, groups: int, pad: int, reduction: str) -> Tensor:
    """`_smooth`, or a map with the same sum: each pixel times the sum of the weights that windows give it."""
    if reduction == "none" or taps.shape[1] % 2 == 0:
        return _smooth(images, taps, groups, pad)
    shares = [
        F.conv1d(torch.ones([1, 1, side], dtype=taps.dtype, device=taps.device), taps.flip(1)[:, None], padding=pad)
        for side in images.shape[-2:]
    ]
    return images * shares[0][0, :, :, None] * shares[1][0, :, None, :]


def _terms(
    img1: Tensor, img2: Tensor, taps: Tensor, groups: int, pad: int, c1: float, c2: float
) -> tuple[Tensor, Tensor]:
    """Luminance and contrast-structure terms (B, windows, H, W); the arguments are those of `_smooth`."""
    mu1, mu2 = _smooth(img1, taps, groups, pad), _smooth(img2, taps, groups, pad)
    var1 = _smooth(img1 * img1, taps, groups, pad) - mu1 * mu1
    var2 = _smooth(img2 * img2, taps, groups, pad) - mu2 * mu2
    cov = _smooth(img1 * img2, taps, groups, pad) - mu1 * mu2
    luminance = (2 * mu1 * mu2 + c1) / (mu1 * mu1 + mu2 * mu2 + c1)
    return luminance, (2 * cov + c2) / (var1 + var2 + c2)


# --------------------------------------------------------------------------------------------------------------------
# Losses without a window
# --------------------------------------------------------------------------------------------------------------------


def psnr(image: Tensor, target: Tensor, max_val: float) -> Tensor:
    """`10 log10(max_val² / mse)` of two tensors of any shape and dtype; inf where they are equal; float32 of integers.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.kornia import psnr
        >>> psnr(torch.ones(1), 1.2 * torch.ones(1), 2.0)
        tensor(20.0000)
    """
    if not torch.jit.is_scripting():
        _check_tensor("image", image)
        _check_tensor("target", target)
        if not isinstance(max_val, Tensor):
            max_val = _setting("max_val", max_val)
    if image.shape != target.shape:
        raise TypeError(f"image and target must have the same shape, got {_shape(image)} and {_shape(target)}")
    dtype = torch.promote_types(_psnr_dtype(image), _psnr_dtype(target))
    if not torch.jit.is_scripting():
        if isinstance(max_val, Tensor) and max_val.is_floating_point():
            dtype = torch.promote_types(dtype, max_val.dtype)
    mse = F.mse_loss(_wide(image), _wide(target))
    # Tensors for the numbers: torch promotes the tangent of a tensor without axes times a number to float64.
    top = max_val * max_val * torch.ones_like(mse)
    return (torch.full_like(mse, 10.0) * torch.log10(top / mse)).to(dtype)


def _psnr_dtype(images: Tensor) -> torch.dtype:
    return images.dtype if images.is_floating_point() else torch.float32


def psnr_loss(image: Tensor, target: Tensor, max_val: float) -> Tensor:
    """`-10 log10(max_val² / mse)`, the negative PSNR, of two tensors of any shape and dtype.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.kornia import psnr_loss
        >>> psnr_loss(torch.ones(1), 1.2 * torch.ones(1), 2.0)
        tensor(-20.0000)
    """
    return -psnr(image, target, max_val)


def total_variation(img: Tensor, reduction: str = "sum") -> Tensor:
    """Sum of the absolute differences of neighbours along the two last axes, or the sum of the two axes' means.

    Args:
        img: (…, H, W), any dtype; the differences of integers are taken as int64.
        reduction: "sum", or "mean".

    Returns:
        The shape of `img` without its two last axes, in its dtype; of integers int64 sums and float32 means.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.kornia import total_variation
        >>> total_variation(torch.ones(4, 4))
        tensor(0.)
    """
    if not torch.jit.is_scripting():
        _check_tensor("img", img)
        if img.ndim < 2:
            raise ValueError(f"img must have the shape (…, H, W), got {tuple(img.shape)}")
    if reduction != "sum" and reduction != "mean":
        raise ValueError(f"reduction must be one of 'mean', 'sum', got '{reduction}'")
    values = img
    if not img.is_floating_point() and not img.is_complex():
        values = img.long()
    elif img.is_floating_point():
        values = _wide(img)
    vertical, horizontal = values.diff(dim=-2).abs(), values.diff(dim=-1).abs()
    along_height, along_width = vertical.sum([-2, -1]), horizontal.sum([-2, -1])
    if reduction == "mean":
        along_height = along_height / max(1, vertical.shape[-2] * vertical.shape[-1])
        along_width = along_width / max(1, horizontal.shape[-2] * horizontal.shape[-1])
    total = along_height + along_width
    if img.is_floating_point():
        return total.to(img.dtype)
    return total.float() if total.is_floating_point() and not img.is_complex() else total


def inverse_depth_smoothness_loss(idepth: Tensor, image: Tensor) -> Tensor:
    """Differences of neighbouring inverse depths, each weighed by exp(-|difference of the image|), averaged by axis.

    Args:
        idepth: (B, 1, H, W), inverse depth, float.
        image: (B, C, H, W), of the same dtype; its differences are averaged over channels.

    Returns:
        A scalar.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.kornia import inverse_depth_smoothness_loss
        >>> loss = inverse_depth_smoothness_loss(torch.rand(1, 1, 8, 8), torch.rand(1, 3, 8, 8))
    """
    if not torch.jit.is_scripting():
        _check_depth(idepth, image)
    total = _edge_aware(_wide(idepth), _wide(image), -1) + _edge_aware(_wide(idepth), _wide(image), -2)
    return total.to(idepth.dtype) if idepth.is_floating_point() else total


def _edge_aware(idepth: Tensor, image: Tensor, dim: int) -> Tensor:
    """The mean over one axis of `inverse_depth_smoothness_loss`."""
    weights = torch.exp(-image.diff(dim=dim).abs().mean(1, keepdim=True))
    return (idepth.diff(dim=dim) * weights).abs().mean()


def _check_depth(idepth: Tensor, image: Tensor) -> None:
    for name, tensor in (("idepth", idepth), ("image", image)):
        _check_tensor(name, tensor)
        if tensor.ndim != 4:
            raise ValueError(f"{name} must have the shape (B, C, H, W), got {tuple(tensor.shape)}")
        if not (tensor.is_floating_point() or tensor.is_complex()):
            raise TypeError(f"{name} must be floating point, got {tensor.dtype}")
    if idepth.shape[-2:] != image.shape[-2:]:
        raise ValueError(
            f"idepth and image must have the same H and W, got {tuple(idepth.shape)}, {tuple(image.shape)}"
        )
    if idepth.device != image.device:
        raise ValueError(f"idepth and image must be on the same device, got {idepth.device} and {image.device}")
    if idepth.dtype != image.dtype:
        raise ValueError(f"idepth and image must have the same dtype, got {idepth.dtype} and {image.dtype}")


def charbonnier_loss(img1: Tensor, img2: Tensor, reduction: str | None = "none") -> Tensor:
    """`sqrt((x - y)² + 1) - 1`, accurate for small differences and finite for large ones.

    Args:
        img1: Any shape; float, int32 or int64.
        img2: The same shape and device.
        reduction: "mean", "sum" or "none".

    Returns:
        () or the shape of the images, in their dtype; of integers in torch's default dtype.

    Raises:
        TypeError: An image is no tensor or has a dtype on which kornia wraps round or gives no answer.
        ValueError: The shapes or devices differ; the reduction is unknown, which is a NotImplementedError as well.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.kornia import charbonnier_loss
        >>> charbonnier_loss(torch.zeros(2), torch.tensor([0.0, 1.0]))
        tensor([0.0000, 0.4142])
    """
    difference = _difference(img1, img2, reduction)
    squared = _moderate(difference) ** 2
    values = torch.where(_is_large(difference), difference.abs() - 1, squared / ((squared + 1).sqrt() + 1))
    return _reduce(values, reduction).to(_float_dtype(img1, img2))


def welsch_loss(img1: Tensor, img2: Tensor, reduction: str | None = "none") -> Tensor:
    """`1 - exp(-(x - y)² / 2)`; all else is as for `charbonnier_loss`.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.kornia import welsch_loss
        >>> welsch_loss(torch.zeros(2), torch.tensor([0.0, 1.0]))
        tensor([0.0000, 0.3935])
    """
    halved = 0.5 * _moderate(_difference(img1, img2, reduction)) ** 2
    # The gradient of expm1 is its value plus 1, which is inexact where the value is close to -1.
    values = torch.where(halved < 0.5, -torch.expm1(-halved), 1 - torch.exp(-halved))
    return _reduce(values, reduction).to(_float_dtype(img1, img2))


def cauchy_loss(img1: Tensor, img2: Tensor, reduction: str | None = "none") -> Tensor:
    """`log((x - y)² / 2 + 1)`; all else is as for `charbonnier_loss`.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.kornia import cauchy_loss
        >>> cauchy_loss(torch.zeros(2), torch.tensor([0.0, 1.0]))
        tensor([0.0000, 0.4055])
    """
    difference = _difference(img1, img2, reduction)
    values = torch.where(
        _is_large(difference),
        2 * difference.abs().clamp(min=1e9).log() - math.log(2),
        torch.log1p(0.5 * _moderate(difference) ** 2),
    )
    return _reduce(values, reduction).to(_float_dtype(img1, img2))


def geman_mcclure_loss(img1: Tensor, img2: Tensor, reduction: str | None = "none") -> Tensor:
    """`2 (x - y)² / ((x - y)² + 4)`; all else is as for `charbonnier_loss`.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.kornia import geman_mcclure_loss
        >>> geman_mcclure_loss(torch.zeros(2), torch.tensor([0.0, 1.0]))
        tensor([0.0000, 0.4000])
    """
    difference = _difference(img1, img2, reduction)
    squared = _moderate(difference) ** 2
    # Two forms of the same, each without cancellation in the gradient where it is taken.
    small = squared.clamp(max=4.0)
    values = torch.where(squared < 4, 2 * small / (small + 4), 2 - 8 / (squared + 4))
    # As the original: of an infinite difference it is infinity by infinity.
    values = torch.where(difference.isinf(), torch.nan, values)
    return _reduce(values, reduction).to(_float_dtype(img1, img2))


def _is_large(difference: Tensor) -> Tensor:
    """Where 1 is lost beside the square of a difference, in float64 too. Below, the square does not overflow."""
    return difference.abs() > 1e9


def _moderate(difference: Tensor) -> Tensor:
    """The differences, those that are large cut off."""
    return difference.clamp(-1e9, 1e9)


def _difference(img1: Tensor, img2: Tensor, reduction: str | None) -> Tensor:
    """`img1 - img2` of checked images, in float32 or, for float64 and integers, in float64."""
    if not torch.jit.is_scripting():
        _check_tensor("img1", img1)
        _check_tensor("img2", img2)
        if img1.device != img2.device:
            raise ValueError(f"img1 and img2 must be on the same device, got {img1.device} and {img2.device}")
        _check_reduction("none" if reduction is None else reduction)
    if img1.shape != img2.shape:
        raise ValueError(f"img1 and img2 must have the same shape, got {_shape(img1)} and {_shape(img2)}")
    dtype = torch.promote_types(img1.dtype, img2.dtype)
    if img1.is_complex() or img2.is_complex():
        raise TypeError(f"img1 and img2 must be real, got {img1.dtype} and {img2.dtype}")
    if img1.is_floating_point() or img2.is_floating_point():
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        return img1.to(wide) - img2.to(wide)
    if dtype != torch.int32 and dtype != torch.int64:
        raise TypeError(
            "integer images must be int32 or int64, because kornia wraps round on shorter integers: convert them to "
            f"float, got {img1.dtype} and {img2.dtype}"
        )
    return img1.double() - img2.double()


# --------------------------------------------------------------------------------------------------------------------
# What the losses share. torch.jit.script compiles what takes tensors.
# --------------------------------------------------------------------------------------------------------------------


def _float_dtype(img1: Tensor, img2: Tensor) -> torch.dtype:
    """The dtype of a loss on two images: torch's default dtype where both hold integers."""
    if img1.is_floating_point() or img2.is_floating_point():
        return torch.promote_types(img1.dtype, img2.dtype)
    # torch.compile knows the one, torch.jit.script the other.
    if torch.jit.is_scripting():
        return torch.result_type(img1, 1.0)
    return torch.get_default_dtype()


def _wide(images: Tensor) -> Tensor:
    """Images in a dtype to compute in: half precision in float32, integers in float64."""
    if images.dtype == torch.float16 or images.dtype == torch.bfloat16:
        return images.float()
    return images if images.is_floating_point() or images.is_complex() else images.double()


def _shape(images: Tensor) -> str:
    """A shape in an error."""
    if torch.jit.is_scripting():
        return str(images.shape)
    return str(tuple(images.shape))


def _reduce(values: Tensor, reduction: str | None) -> Tensor:
    if reduction is None or reduction == "none":
        return values
    if reduction == "mean":
        return values.mean()
    if reduction == "sum":
        return values.sum()
    raise NotImplementedError(f"reduction must be 'mean', 'sum' or 'none', got '{reduction}'")


def _check_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")


def _check_reduction(reduction: str) -> None:
    if reduction not in ("mean", "sum", "none"):
        raise UnsupportedOptionError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")


def _check_broadcast(img1: Tensor, img2: Tensor) -> None:
    """Two batches (B, C, H, W), either of which may have a single image."""
    for name, image in (("img1", img1), ("img2", img2)):
        _check_tensor(name, image)
        if image.ndim != 4:
            raise ValueError(f"{name} must have the shape (B, C, H, W), got {tuple(image.shape)}")
    if img1.shape[1:] != img2.shape[1:] or (img1.shape[0] != img2.shape[0] and 1 not in (len(img1), len(img2))):
        raise ValueError(
            f"img1 and img2 must have the same shape, but for a batch of one, got {tuple(img1.shape)} and "
            f"{tuple(img2.shape)}"
        )


# --------------------------------------------------------------------------------------------------------------------
# Modules
# --------------------------------------------------------------------------------------------------------------------


class SSIM(nn.Module):
    """`ssim` as a module.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.kornia import SSIM
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
        >>> import torch
        >>> from splat_ssim.compat.kornia import SSIM3D
        >>> value = SSIM3D(window_size=5)(torch.rand(1, 1, 8, 8, 8), torch.rand(1, 1, 8, 8, 8))
    """

    _function = staticmethod(ssim3d)


class SSIMLoss(nn.Module):
    """`ssim_loss` as a module.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.kornia import SSIMLoss
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
        >>> import torch
        >>> from splat_ssim.compat.kornia import SSIM3DLoss
        >>> loss = SSIM3DLoss(window_size=5)(torch.rand(1, 1, 8, 8, 8), torch.rand(1, 1, 8, 8, 8))
    """

    _function = staticmethod(ssim3d_loss)


class PSNRLoss(nn.Module):
    """`psnr_loss` as a module.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.kornia import PSNRLoss
        >>> loss = PSNRLoss(2.0)(torch.ones(1), 1.2 * torch.ones(1))
    """

    def __init__(self, max_val: float):
        super().__init__()
        self.max_val = _setting("max_val", max_val)

    def forward(self, image: Tensor, target: Tensor) -> Tensor:
        """The loss; shapes as for the function."""
        return psnr_loss(image, target, self.max_val)


class TotalVariation(nn.Module):
    """`total_variation` as a module, with the reduction "sum".

    Example:
        >>> import torch
        >>> from splat_ssim.compat.kornia import TotalVariation
        >>> values = TotalVariation()(torch.ones(2, 3, 4, 4))
    """

    def forward(self, img: Tensor) -> Tensor:
        """The value; shapes as for the function."""
        return total_variation(img)


class InverseDepthSmoothnessLoss(nn.Module):
    """`inverse_depth_smoothness_loss` as a module.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.kornia import InverseDepthSmoothnessLoss
        >>> loss = InverseDepthSmoothnessLoss()(torch.rand(1, 1, 8, 8), torch.rand(1, 3, 8, 8))
    """

    def forward(self, idepth: Tensor, image: Tensor) -> Tensor:
        """The loss; shapes as for the function."""
        return inverse_depth_smoothness_loss(idepth, image)


class _RobustLoss(nn.Module):
    """What the four robust losses keep."""

    def __init__(self, reduction: str | None = "none"):
        super().__init__()
        self.reduction = reduction


class CharbonnierLoss(_RobustLoss):
    """`charbonnier_loss` as a module.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.kornia import CharbonnierLoss
        >>> loss = CharbonnierLoss(reduction="mean")(torch.rand(2, 3), torch.rand(2, 3))
    """

    def forward(self, img1: Tensor, img2: Tensor) -> Tensor:
        """The loss; shapes as for the function."""
        return charbonnier_loss(img1, img2, self.reduction)


class WelschLoss(_RobustLoss):
    """`welsch_loss` as a module.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.kornia import WelschLoss
        >>> loss = WelschLoss(reduction="mean")(torch.rand(2, 3), torch.rand(2, 3))
    """

    def forward(self, img1: Tensor, img2: Tensor) -> Tensor:
        """The loss; shapes as for the function."""
        return welsch_loss(img1, img2, self.reduction)


class CauchyLoss(_RobustLoss):
    """`cauchy_loss` as a module.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.kornia import CauchyLoss
        >>> loss = CauchyLoss(reduction="mean")(torch.rand(2, 3), torch.rand(2, 3))
    """

    def forward(self, img1: Tensor, img2: Tensor) -> Tensor:
        """The loss; shapes as for the function."""
        return cauchy_loss(img1, img2, self.reduction)


class GemanMcclureLoss(_RobustLoss):
    """`geman_mcclure_loss` as a module.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.kornia import GemanMcclureLoss
        >>> loss = GemanMcclureLoss(reduction="mean")(torch.rand(2, 3), torch.rand(2, 3))
    """

    def forward(self, img1: Tensor, img2: Tensor) -> Tensor:
        """The loss; shapes as for the function."""
        return geman_mcclure_loss(img1, img2, self.reduction)
