"""SSIM and its losses in float64, written from the papers for the tests only.

Nothing of splat_ssim is imported here, and no arrangement of its formulas is shared. Every window is gathered into an
axis of its own, its weights are a dense Gaussian in all spatial axes at once, and the five moments are sums about the
window's own mean:

    mu1 = Σ w x,  var1 = Σ w (x - mu1)²,  cov = Σ w (x - mu1)(y - mu2)
    S   = (2 mu1 mu2 + C1)(2 cov + C2) / ((mu1² + mu2² + C1)(var1 + var2 + C2) + eps)

That is slow and takes memory for every tap, but nothing cancels, even for images far from 0. Gradients are those
that torch's autograd finds for this file in float64. tests/test_oracle.py compares the file with scikit-image, with
pytorch_msssim and with finite differences.

Images are (B, C, spatial…) unless `channels_last` is given, of any dtype. Everything is computed in float64.

Source: Z. Wang, A. C. Bovik, H. R. Sheikh, E. P. Simoncelli, "Image quality assessment: from error visibility to
structural similarity", IEEE TIP 13(4), 2004, eq. 13; Z. Wang, E. P. Simoncelli, A. C. Bovik, "Multiscale structural
similarity for image quality assessment", Asilomar 2003, eq. 7; H. Knutsson, C.-F. Westin, "Normalized and differential
convolution", CVPR 1993.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

#: Exponents of the five scales, Wang 2003, section 3.2.
WANG_2003 = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


# --------------------------------------------------------------------------------------------------------------------
# Pixels and windows
# --------------------------------------------------------------------------------------------------------------------


def pixels(image: Tensor, data_range: float = 1.0) -> Tensor:
    """The values of an image in float64. A byte stands for value / 255 · data_range."""
    return image.double() / 255 * data_range if image.dtype == torch.uint8 else image.double()


def gaussian(sizes: Sequence[int], sigma: float | Sequence[float]) -> Tensor:
    """Dense weights of a window of these sides, with the sum 1. An even side is centred between two pixels.

    `sigma` is one number for all axes, or one for each.
    """
    sigmas = each(sigma, len(sizes))
    squares = [((np.arange(n) - (n - 1) / 2) / own) ** 2 for n, own in zip(sizes, sigmas, strict=True)]
    distances = sum(np.ix_(*squares))
    weights = np.exp((distances.min() - distances) / 2)
    return torch.from_numpy(weights / weights.sum())


def each(value: float | Sequence[float], axes: int) -> Sequence[float]:
    """One value for each axis, from a single value or a sequence."""
    return list(value) if isinstance(value, Sequence) else [value] * axes


def outer(taps: Sequence[Sequence[float]]) -> Tensor:
    """Dense weights of a separable window, from the taps of each axis."""
    return torch.from_numpy(np.asarray(math.prod(np.ix_(*(np.asarray(axis, dtype=np.float64) for axis in taps)))))


def extended(images: Tensor, axis: int, before: int, after: int, padding: str) -> Tensor:
    """Pads images along one axis by `before` and `after` pixels."""
    if padding == "valid":
        return images
    side = images.shape[axis]
    positions = range(-before, side + after)
    if padding == "same":
        black = [torch.zeros_like(images.narrow(axis, 0, 1))]
        return torch.cat(black * before + [images] + black * after, axis)
    if padding == "replicate":
        sources = [min(max(position, 0), side - 1) for position in positions]
    elif padding == "reflect":
        sources = [abs(position) if position < side else 2 * (side - 1) - position for position in positions]
    else:
        raise ValueError(padding)
    return images.index_select(axis, torch.tensor(sources, device=images.device))


def windows(images: Tensor, sizes: Sequence[int], padding: str) -> Tensor:
    """(B, C, positions…, taps): the pixels that each window sees, in the order of its flattened weights."""
    for axis, size in enumerate(sizes, start=2):
        images = extended(images, axis, (size - 1) // 2, size // 2, padding)
    for axis, size in enumerate(sizes, start=2):
        images = images.unfold(axis, size, 1)
    return images.flatten(-len(sizes))


class Moments(NamedTuple):
    """The five moments, (B, C, positions…) each."""

    mu1: Tensor
    mu2: Tensor
    var1: Tensor
    var2: Tensor
    cov: Tensor


def moments(img1: Tensor, img2: Tensor, weights: Tensor, padding: str, valid: Tensor | None = None) -> Moments:
    """Windowed moments of two batches of images in float64.

    With `valid`, (B, 1 or C, spatial…), a window's weights are multiplied by `valid` at its pixels and divided by
    their sum (normalised convolution). If a window has no valid pixel, all moments are 0.

    Weights that do not sum to 1 (taps rounded to float32) leave (1 - Σ w) mu² in E[x²] - E[x]², which packages compute.
    """
    sizes, flat = weights.shape, weights.to(img1.device).flatten()
    x, y = windows(img1, sizes, padding), windows(img2, sizes, padding)
    if valid is None:

        def mean(values: Tensor) -> Tensor:
            return values @ flat
    else:
        seen = flat * windows(valid, sizes, padding)
        total = seen.sum(-1, keepdim=True)
        shares = torch.where(total > 0, seen / torch.where(total > 0, total, 1.0), 0.0)

        def mean(values: Tensor) -> Tensor:
            return (shares * values).sum(-1)

    mu1, mu2 = mean(x), mean(y)
    x, y = x - mu1[..., None], y - mu2[..., None]
    var1, var2, cov = mean(x * x), mean(y * y), mean(x * y)
    lacking = 1 - weights.sum().item()
    if abs(lacking) > 1e-12:
        var1, var2, cov = var1 + lacking * mu1**2, var2 + lacking * mu2**2, cov + lacking * mu1 * mu2
    return Moments(mu1, mu2, var1, var2, cov)


class Terms(NamedTuple):
    """Luminance, contrast-structure and their product, S."""

    luminance: Tensor
    contrast_structure: Tensor
    ssim: Tensor


def terms(found: Moments, c1: float, c2: float, eps: float = 0.0) -> Terms:
    """The terms of the index. `eps` is added to the denominator of S, as in kornia."""
    mu1, mu2, var1, var2, cov = found
    luminance = (2 * mu1 * mu2 + c1) / (mu1**2 + mu2**2 + c1)
    contrast_structure = (2 * cov + c2) / (var1 + var2 + c2)
    denominator = (mu1**2 + mu2**2 + c1) * (var1 + var2 + c2) + eps
    return Terms(luminance, contrast_structure, (2 * mu1 * mu2 + c1) * (2 * cov + c2) / denominator)


# --------------------------------------------------------------------------------------------------------------------
# SSIM
# --------------------------------------------------------------------------------------------------------------------


def _first(images: Tensor, channels_last: bool) -> Tensor:
    return images.permute(0, -1, *range(1, images.ndim - 1)) if channels_last else images


def _back(images: Tensor, channels_last: bool) -> Tensor:
    return images.permute(0, *range(2, images.ndim), 1) if channels_last else images


def ssim_terms(
    img1: Tensor,
    img2: Tensor,
    *,
    window_size: int | Sequence[int] = 11,
    sigma: float | Sequence[float] = 1.5,
    data_range: float = 1.0,
    k1: float = 0.01,
    k2: float = 0.03,
    padding: str = "same",
    eps: float = 0.0,
    valid: Tensor | None = None,
    weights: Tensor | None = None,
) -> Terms:
    """The terms for every position of the window. `weights` replaces the Gaussian. Channels are the second axis."""
    x, y = pixels(img1, data_range), pixels(img2, data_range)
    window = gaussian(each(window_size, x.ndim - 2), sigma) if weights is None else weights
    found = moments(x, y, window, padding, None if valid is None else valid.double())
    return terms(found, (k1 * data_range) ** 2, (k2 * data_range) ** 2, eps)


def ssim_map(img1: Tensor, img2: Tensor, *, channels_last: bool = False, **options) -> Tensor:
    """S for every position of the window, in the layout of the images."""
    found = ssim_terms(_first(img1, channels_last), _first(img2, channels_last), **options).ssim
    return _back(found, channels_last)


def masked(img1: Tensor, img2: Tensor, mask: Tensor, mask_mode: str, data_range: float) -> tuple[Tensor, Tensor]:
    """Applies a mask: "weight" changes nothing, "zero" multiplies, other modes set pixels to 0 where the mask is 0."""
    if mask_mode == "weight":
        return img1, img2
    share = mask.double()
    kept = [torch.where(share > 0, pixels(image, data_range), 0.0) for image in (img1, img2)]
    return tuple(image * share for image in kept) if mask_mode == "zero" else tuple(kept)


def at_centres(mask: Tensor, sides: Sequence[int]) -> Tensor:
    """Crops (B, 1 or C, spatial…) to the windows' centres, of which there are `sides` along the axes."""
    for axis, side in enumerate(sides, start=2):
        mask = mask.narrow(axis, (mask.shape[axis] - side) // 2, side)
    return mask


def reduce(values: Tensor, weights: Tensor | None, reduction: str, empty: float) -> Tensor:
    """Reduces a map (B, C, …): "none", "sum", "mean", or "image" for a mean of each image.

    Means are weighted. They are `empty` if the sum of the weights is 0.
    """
    shares = torch.ones_like(values) if weights is None else weights.double().expand(values.shape)
    weighted = values if weights is None else values * shares
    if reduction == "none":
        return weighted
    if reduction == "sum":
        return weighted.sum()
    axes = tuple(range(1 if reduction == "image" else 0, values.ndim))
    total = shares.sum(axes)
    return torch.where(total > 0, weighted.sum(axes) / torch.where(total > 0, total, 1.0), empty)


def ssim(
    img1: Tensor,
    img2: Tensor,
    *,
    reduction: str = "mean",
    mask: Tensor | None = None,
    mask_mode: str = "weight",
    channels_last: bool = False,
    data_range: float = 1.0,
    **options,
) -> Tensor:
    """SSIM of images or volumes with a mask and a reduction, as the package documents them."""
    x, y = _first(img1, channels_last), _first(img2, channels_last)
    share, valid = None, None
    if mask is not None:
        share = _first(mask, channels_last)
        x, y = masked(x, y, share, mask_mode, data_range)
        valid = share if mask_mode == "normalize" else None
    found = ssim_terms(x, y, data_range=data_range, valid=valid, **options).ssim
    weights = None if mask is None or mask_mode == "zero" else at_centres(share, found.shape[2:])
    value = reduce(found, weights, reduction, empty=1.0)
    return _back(value, channels_last) if reduction == "none" else value


# --------------------------------------------------------------------------------------------------------------------
# MS-SSIM
# --------------------------------------------------------------------------------------------------------------------


def halved(images: Tensor) -> Tensor:
    """Means of blocks of 2 along each spatial axis. An odd side is first padded by a zero in front, which counts."""
    for axis in range(2, images.ndim):
        if images.shape[axis] % 2:
            images = torch.cat([torch.zeros_like(images.narrow(axis, 0, 1)), images], axis)
        even = torch.arange(0, images.shape[axis], 2, device=images.device)
        images = (images.index_select(axis, even) + images.index_select(axis, even + 1)) / 2
    return images


def ms_ssim_terms(img1: Tensor, img2: Tensor, scales: int, *, data_range: float = 1.0, **options) -> Tensor:
    """(B, C, scales): the mean contrast-structure of each scale, and the mean S of the coarsest one."""
    x, y = pixels(img1, data_range), pixels(img2, data_range)
    means = []
    for scale in range(scales):
        found = ssim_terms(x, y, data_range=data_range, padding="valid", **options)
        means.append((found.ssim if scale == scales - 1 else found.contrast_structure).flatten(2).mean(-1))
        if scale < scales - 1:
            x, y = halved(x), halved(y)
    return torch.stack(means, -1)


def ms_ssim_product(means: Tensor, weights: Sequence[float]) -> Tensor:
    """(B, C): the product of powers. Where a term is 0 or less, the product and its gradient are 0."""
    alive = ~(means <= 0).any(-1)
    logarithms = torch.where(alive[..., None], means, 1.0).log()
    exponents = torch.tensor(list(weights), dtype=torch.float64, device=means.device)
    return torch.where(alive, (logarithms * exponents).sum(-1).exp(), 0.0)


def ms_ssim(
    img1: Tensor,
    img2: Tensor,
    *,
    weights: Sequence[float] = WANG_2003,
    reduction: str = "mean",
    channels_last: bool = False,
    **options,
) -> Tensor:
    """MS-SSIM of images or volumes. "none" gives (B, C), "image" (B,)."""
    x, y = _first(img1, channels_last), _first(img2, channels_last)
    values = ms_ssim_product(ms_ssim_terms(x, y, len(weights), **options), weights)
    return values if reduction == "none" else reduce(values, None, reduction, empty=1.0)


# --------------------------------------------------------------------------------------------------------------------
# Losses
# --------------------------------------------------------------------------------------------------------------------


def photometric_loss(
    pred: Tensor,
    target: Tensor,
    *,
    lambda_dssim: float = 0.2,
    reduction: str = "mean",
    mask: Tensor | None = None,
    mask_mode: str = "weight",
    channels_last: bool = False,
    data_range: float = 1.0,
    **options,
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, l1, ssim). L1 covers the whole image whatever the padding. If all weights are 0, l1 is 0 and ssim is 1."""
    keywords = {"reduction": reduction, "mask": mask, "mask_mode": mask_mode, "channels_last": channels_last}
    similarity = ssim(pred, target, data_range=data_range, **keywords, **options)
    x, y, share = pred, target, None
    if mask is not None:
        x, y = masked(x, y, mask, mask_mode, data_range)
        share = None if mask_mode == "zero" else mask
    distance = (pixels(x, data_range) - pixels(y, data_range)).abs()
    l1 = reduce(distance, share, reduction, empty=0.0)
    read = l1 if lambda_dssim < 1 else l1.nan_to_num(torch.nan, 0.0, 0.0)  # an infinite term of weight 0 is unused
    return (1 - lambda_dssim) * read + lambda_dssim * (1 - similarity), l1, similarity


def ms_ssim_l1_loss(
    pred: Tensor,
    target: Tensor,
    *,
    lambda_ms_ssim: float = 0.84,
    mask: Tensor | None = None,
    data_range: float = 1.0,
    **options,
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, l1, ms_ssim). Both terms are means over everything. A mask multiplies both images."""
    if mask is not None:
        pred, target = masked(pred, target, mask, "zero", data_range)
    l1 = (pixels(pred, data_range) - pixels(target, data_range)).abs().mean()
    similarity = ms_ssim(pred, target, data_range=data_range, **options)
    return (1 - lambda_ms_ssim) * l1 + lambda_ms_ssim * (1 - similarity), l1, similarity


# --------------------------------------------------------------------------------------------------------------------
# The forms of other packages
# --------------------------------------------------------------------------------------------------------------------


def half_dissimilarity(similarity: Tensor, reduction: str) -> Tensor:
    """kornia's `ssim_loss` of a map of S: (1 - S) / 2, clamped to [0, 1]."""
    return reduce(((1 - similarity) / 2).clamp(0, 1), None, reduction, empty=0.0)


def kornia_ms_ssim_loss(
    img1: Tensor,
    img2: Tensor,
    sigmas: Sequence[float],
    data_range: float,
    K: Sequence[float],
    alpha: float,
    compensation: float,
    reduction: str,
    taps: Callable[[int, float], Sequence[float]] | None = None,
) -> Tensor:
    """kornia 0.9's `MS_SSIMLoss`: several sigmas at full resolution, 2 int(2 · last sigma) + 1 taps, zero-padded.

    `taps` makes the window of one axis from its size and sigma. It may round.
    """
    x, y = img1.double(), img2.double()
    size = 2 * int(2 * sigmas[-1]) + 1
    gaussians = [gaussian([size] * 2, sigma) if taps is None else outer([taps(size, sigma)] * 2) for sigma in sigmas]
    c1, c2 = ((k * data_range) ** 2 for k in K)
    found = [terms(moments(x, y, weights, "same"), c1, c2) for weights in gaussians]
    similarity = found[-1].luminance * math.prod(scale.contrast_structure for scale in found)
    smoothed = windows((x - y).abs(), [size] * 2, "same") @ gaussians[-1].flatten()
    loss = alpha * (1 - similarity.mean(1)) + (1 - alpha) * smoothed.mean(1) / data_range
    return reduce(compensation * loss, None, reduction, empty=0.0)


def robust(distance: Tensor, name: str) -> Tensor:
    """kornia's losses of a difference, in forms that do not cancel for small differences."""
    square = distance**2
    return {
        "charbonnier": lambda: square / ((square + 1).sqrt() + 1),
        "welsch": lambda: -torch.expm1(-square / 2),
        "cauchy": lambda: torch.log1p(square / 2),
        "geman_mcclure": lambda: 2 * square / (square + 4),
    }[name]()


# --------------------------------------------------------------------------------------------------------------------
# Derivatives
# --------------------------------------------------------------------------------------------------------------------


def differentiate(
    function: Callable[[Tensor, Tensor], Tensor], img1: Tensor, img2: Tensor, upstream: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The value of `function` in float64, and the gradients of value times `upstream` (or ones) for both images."""
    leaves = [image.detach().double().requires_grad_() for image in (img1, img2)]
    value = function(*leaves)
    upstream = torch.ones_like(value) if upstream is None else upstream.double()
    return value.detach(), *torch.autograd.grad(value, leaves, upstream)


def tangent(
    function: Callable[[Tensor, Tensor], Tensor], img1: Tensor, img2: Tensor, tangent1: Tensor, tangent2: Tensor
) -> Tensor:
    """The derivative of `function` along (tangent1, tangent2)."""
    primals = (img1.detach().double(), img2.detach().double())
    return torch.func.jvp(function, primals, (tangent1.double(), tangent2.double()))[1]
