"""The interface of kornia's SSIM and image losses (kornia 0.9): `kornia.losses` and `kornia.metrics` in one module.

kornia 0.8 and earlier compute SSIM of volumes and `MS_SSIMLoss` differently: see `splat_ssim.compat.kornia_0_8`.

As in the original, "same" is reflect padding, and `ssim` and `ssim3d` return the map. `eps` is added to the
denominator, so that equal black images give 0.99999. `total_variation` averages each axis over its own number of
differences. `psnr_loss` of equal images is -inf. Whatever torch.jit.script can script in kornia, it can script here.

It differs from the original in these ways. Even windows work and are shifted by half a pixel; kornia 0.9 refuses them.
Half precision is computed in float32 and rounded once. The robust losses refuse uint8, int8 and int16, on which kornia
wraps around; they take a bool image with a float one. Options may be numpy scalars and tensors of one element. Where
kornia raises its BaseError, we raise a ValueError or a TypeError. The error for an unknown reduction is a
NotImplementedError too, and `reduction=None` is "none". "valid" padding needs sides of at least `window_size`. The
sigmas of `MS_SSIMLoss` must not be negative.

SSIM and `MS_SSIMLoss` use the kernels for float32, half precision and integer images and odd windows up to 33 taps.
Plain torch, which gives the same numbers, computes the rest: float64 images, even windows, options that carry a
gradient, torch.jit.trace and forward-mode differentiation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from splat_ssim.compat._kornia_checks import check_broadcast, check_reduction, dtype_or, reduce, setting
from splat_ssim.compat._kornia_losses import (
    cauchy_loss,
    charbonnier_loss,
    geman_mcclure_loss,
    inverse_depth_smoothness_loss,
    psnr,
    psnr_loss,
    total_variation,
    welsch_loss,
)
from splat_ssim.compat._kornia_ms_ssim import Maps, masks_of, sigmas_of, smooth_or_weigh, taps_of, terms
from splat_ssim.compat._kornia_ssim import ssim, ssim3d, ssim3d_loss, ssim_loss
from splat_ssim.compat._options import pair

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

for _function in (
    *(ssim, ssim3d, ssim3d_loss, ssim_loss, psnr, psnr_loss, total_variation, inverse_depth_smoothness_loss),
    *(cauchy_loss, charbonnier_loss, geman_mcclure_loss, welsch_loss),
):
    # Pickles and error messages name the module that people import.
    _function.__module__ = __name__


class MS_SSIMLoss(nn.Module):  # noqa: N801 - the original's name
    """Combines L1 with SSIM for several sigmas at full resolution: `forward(img1, img2)` takes (B, C, H, W).

    For each channel, l is the luminance term at the last sigma, cs the product of the contrast-structure terms at all
    sigmas, and G the Gaussian of the last sigma. Windows see zeros outside the images. The loss is a map (B, H, W):

        loss = compensation · [alpha · (1 - mean_c(l · cs)) + (1 - alpha) · mean_c(G * |img1 - img2|) / data_range]

    `reduction` reduces it. If one batch has a single image, it is compared with every image of the other batch. In
    kornia 0.8 and earlier, channels see different sigmas: see `splat_ssim.compat.kornia_0_8.MS_SSIMLoss`.

    The loss adds nothing to a state dict. It loads one of kornia 0.8, whose loss stored its windows.

    Args:
        sigmas: Standard deviations of the windows in pixels. Every window has 2 · int(2 · last sigma) + 1 taps.
        data_range: Difference between the largest and the smallest possible value.
        K: (k1, k2), as for `splat_ssim.ssim`.
        alpha: Weight of the SSIM term. L1 has the weight 1 - alpha.
        compensation: Factor of the whole loss.
        reduction: "mean", "sum" or "none".

    Raises:
        ValueError: `sigmas` is empty or has a value that is negative or not finite, or `K` is not a pair.
        TypeError: An option is not a number. `forward` raises it for complex images.

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
        self.DR = setting("data_range", data_range)
        self.C1 = (setting("K[0]", k1) * self.DR) ** 2
        self.C2 = (setting("K[1]", k2) * self.DR) ** 2
        self.pad = int(2 * values[-1])
        self.alpha = setting("alpha", alpha)
        self.compensation = setting("compensation", compensation)
        self.reduction = reduction
        self.num_scales = len(values)
        #: The windows, (windows, 1, taps, taps), and their sigmas; None where they are no Gaussians.
        self._g_masks: Tensor
        self._mask_sigmas: tuple[float, ...] | None
        self._register_masks(values)

    def _register_masks(self, sigmas: list[float]) -> None:
        """The buffer is not part of the state dict, as in the original."""
        masks = masks_of(sigmas, 2 * self.pad + 1).to(torch.get_default_dtype())
        self.register_buffer("_g_masks", masks, persistent=False)
        self._mask_sigmas = tuple(sigmas)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *further: Any) -> None:
        """Takes a state dict of kornia 0.8 too, which holds windows that this loss does not use."""
        state_dict.pop(prefix + "_g_masks", None)
        super()._load_from_state_dict(state_dict, prefix, *further)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Takes the state of the original's module too, which does not tell its sigmas."""
        restore: Callable[[dict[str, Any]], None] = super().__setstate__
        restore(state)
        if "_mask_sigmas" not in state:
            self._mask_sigmas = sigmas_of(self._g_masks)

    def forward(self, img1: Tensor, img2: Tensor) -> Tensor:
        """Returns the loss, of shape () or (B, H, W), in the dtype of the images. Integers have that of the module."""
        if not torch.jit.is_scripting():
            check_broadcast(img1, img2)
            check_reduction(self.reduction)
        dtype = torch.promote_types(dtype_or(img1, self._g_masks.dtype), dtype_or(img2, self._g_masks.dtype))
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        images = torch.broadcast_tensors(img1.to(wide), img2.to(wide))
        # Autocast would convolve in half precision. torch.jit.script wants the device's name written out.
        if images[0].is_cuda:
            with torch.autocast("cuda", enabled=False):
                loss = self._loss(images[0], images[1])
        else:
            with torch.autocast("cpu", enabled=False):
                loss = self._loss(images[0], images[1])
        return reduce(loss, self.reduction).to(dtype)

    def _loss(self, img1: Tensor, img2: Tensor) -> Tensor:
        """(B, H, W), before the reduction."""
        distance = (1 - self.alpha) * self._distance(img1, img2) / self.DR
        return self.compensation * (self.alpha * (1 - self._similarity(img1, img2)) + distance)

    def _similarity(self, img1: Tensor, img2: Tensor) -> Tensor:
        """(B, H, W): the mean over channels of luminance times contrast-structure terms."""
        if not torch.jit.is_scripting():
            maps = self._maps(img1, img2)
            if maps is not None:
                assert self._mask_sigmas is not None
                *others, last = self._mask_sigmas
                similarity = maps.ssim(last)
                for sigma in others:
                    similarity = similarity * maps.contrast_structure(sigma)
                return similarity.mean(1)
        sides = [-1, 1, img1.shape[2], img1.shape[3]]
        luminances, contrast_structures = terms(
            img1.reshape(sides), img2.reshape(sides), taps_of(self._g_masks, img1), 1, self.pad, self.C1, self.C2
        )
        similarity = luminances[:, -1] * contrast_structures.prod(1)  # [B C, H, W]
        return similarity.reshape([img1.shape[0], img1.shape[1], img1.shape[2], img1.shape[3]]).mean(1)

    def _maps(self, img1: Tensor, img2: Tensor) -> Maps | None:
        """The maps by the operators, or None where the options need plain torch."""
        return Maps.of(img1, img2, self._g_masks.shape[-1], self._mask_sigmas, self.DR, self.C1, self.C2)

    def _distance(self, img1: Tensor, img2: Tensor) -> Tensor:
        """(B, H, W): the absolute difference, averaged over channels and smoothed by the last sigma.

        For a mean or a sum it is weighed instead, which gives the same mean and sum.
        """
        difference = (img1 - img2).abs().mean(1, keepdim=True)
        taps = taps_of(self._g_masks, img1)[-1:]
        return smooth_or_weigh(difference, taps, 1, self.pad, self.reduction)[:, 0]


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
        """Returns the map. Shapes are as for the function."""
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
        """Returns the loss. Shapes are as for the function."""
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
    """`psnr_loss` as a module, for values up to `max_val`.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.kornia import PSNRLoss
        >>> loss = PSNRLoss(2.0)(torch.ones(1), 1.2 * torch.ones(1))
    """

    def __init__(self, max_val: float):
        super().__init__()
        self.max_val = setting("max_val", max_val)

    def forward(self, image: Tensor, target: Tensor) -> Tensor:
        """Returns the loss. Shapes are as for the function."""
        return psnr_loss(image, target, self.max_val)


class TotalVariation(nn.Module):
    """`total_variation` as a module, with the reduction "sum".

    Example:
        >>> import torch
        >>> from splat_ssim.compat.kornia import TotalVariation
        >>> values = TotalVariation()(torch.ones(2, 3, 4, 4))
    """

    def forward(self, img: Tensor) -> Tensor:
        """Returns the total variation. Shapes are as for the function."""
        return total_variation(img)


class InverseDepthSmoothnessLoss(nn.Module):
    """`inverse_depth_smoothness_loss` as a module.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.kornia import InverseDepthSmoothnessLoss
        >>> loss = InverseDepthSmoothnessLoss()(torch.rand(1, 1, 8, 8), torch.rand(1, 3, 8, 8))
    """

    def forward(self, idepth: Tensor, image: Tensor) -> Tensor:
        """Returns the loss. Shapes are as for the function."""
        return inverse_depth_smoothness_loss(idepth, image)


class _RobustLoss(nn.Module):
    """Base class of the four robust losses."""

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
        """Returns the loss. Shapes are as for the function."""
        return charbonnier_loss(img1, img2, self.reduction)


class WelschLoss(_RobustLoss):
    """`welsch_loss` as a module.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.kornia import WelschLoss
        >>> loss = WelschLoss(reduction="mean")(torch.rand(2, 3), torch.rand(2, 3))
    """

    def forward(self, img1: Tensor, img2: Tensor) -> Tensor:
        """Returns the loss. Shapes are as for the function."""
        return welsch_loss(img1, img2, self.reduction)


class CauchyLoss(_RobustLoss):
    """`cauchy_loss` as a module.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.kornia import CauchyLoss
        >>> loss = CauchyLoss(reduction="mean")(torch.rand(2, 3), torch.rand(2, 3))
    """

    def forward(self, img1: Tensor, img2: Tensor) -> Tensor:
        """Returns the loss. Shapes are as for the function."""
        return cauchy_loss(img1, img2, self.reduction)


class GemanMcclureLoss(_RobustLoss):
    """`geman_mcclure_loss` as a module.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.kornia import GemanMcclureLoss
        >>> loss = GemanMcclureLoss(reduction="mean")(torch.rand(2, 3), torch.rand(2, 3))
    """

    def forward(self, img1: Tensor, img2: Tensor) -> Tensor:
        """Returns the loss. Shapes are as for the function."""
        return geman_mcclure_loss(img1, img2, self.reduction)
