"""Steps of the losses around the SSIM map, in plain torch: dtypes, layouts, masks, means, and MS-SSIM's pyramid.

Every path uses these, with kernels and without. `tests/oracle.py`, which imports nothing of splat_ssim, judges them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# --------------------------------------------------------------------------------------------------------------------
# Dtypes and layouts
# --------------------------------------------------------------------------------------------------------------------


def compute_dtype(*images: Tensor) -> torch.dtype:
    """float64 where an image is float64, else float32."""
    return torch.float64 if any(img.dtype == torch.float64 for img in images) else torch.float32


def as_float(img: Tensor, dtype: torch.dtype, data_range: float = 1.0) -> Tensor:
    """The image in `dtype`; uint8 means value / 255 · data_range."""
    return img.to(dtype) * data_range / 255 if img.dtype == torch.uint8 else img.to(dtype)


@functools.lru_cache(maxsize=32)
def constant(numbers: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """(1, N) tensor that is kept: on a GPU, making one waits for it."""
    with torch.inference_mode(False):
        return torch.tensor([numbers], dtype=dtype, device=device)


def composited(rgba: Tensor, background: Tensor, dtype: torch.dtype, data_range: float, channels_last: bool) -> Tensor:
    """RGBA in bytes, straight alpha, over a background (1 or B, 3): colour · alpha + background · (1 - alpha)."""
    colours, alpha = channels_first(rgba, channels_last).split((3, 1), 1)
    alpha = as_float(alpha, dtype)
    behind = background.to(dtype)[..., None, None]
    found = as_float(colours, dtype, data_range) * alpha + behind * (1 - alpha)
    return to_channels_last(found).contiguous() if channels_last else found


def in_one_dtype(img1: Tensor, img2: Tensor, data_range: float) -> tuple[Tensor, Tensor]:
    """Both images in the dtype they are computed in.

    A function of several terms converts before the first, so that their gradients are summed before they are rounded.
    """
    dtype = compute_dtype(img1, img2)
    return as_float(img1, dtype, data_range), as_float(img2, dtype, data_range)


def channels_first(images: Tensor, channels_last: bool) -> Tensor:
    """A view (B, C, spatial…) of images in either logical layout."""
    return images.movedim(-1, 1) if channels_last else images


def to_channels_last(images: Tensor) -> Tensor:
    """(B, C, spatial…) -> (B, spatial…, C), a view."""
    return images.movedim(1, -1)


# --------------------------------------------------------------------------------------------------------------------
# Masks and means
# --------------------------------------------------------------------------------------------------------------------


def apply_mask(
    img1: Tensor, img2: Tensor, mask: Tensor | None, mask_mode: str, data_range: float
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """(img1, img2, weights of the map, weights inside the windows) for a mask of one of the three meanings."""
    if mask is None:
        return img1, img2, None, None
    mask = mask.to(compute_dtype(img1, img2))
    if mask_mode == "weight":
        return img1, img2, mask, None
    # Selected rather than multiplied by 0: what is masked out may be NaN.
    img1, img2 = in_one_dtype(img1, img2, data_range)
    img1, img2 = torch.where(mask > 0, img1, 0), torch.where(mask > 0, img2, 0)
    if mask_mode == "zero":
        return img1 * mask, img2 * mask, None, None
    return img1, img2, mask, mask


def absolute_difference(img1: Tensor, img2: Tensor, data_range: float = 1.0) -> Tensor:
    """|img1 - img2| in the images' own layout, in float32 or wider. The gradient where they are equal is 0."""
    img1, img2 = in_one_dtype(img1, img2, data_range)
    return (img1 - img2).abs()


def _mask_like(values: Tensor, mask: Tensor, channels_last: bool) -> Tensor:
    """The mask as float weights, cropped at the borders to the positions `values` has, expanded to its shape."""
    first_axis = 1 if channels_last else 2
    for dim in range(first_axis, first_axis + values.ndim - 2):
        crop = mask.shape[dim] - values.shape[dim]
        mask = mask.narrow(dim, crop // 2, values.shape[dim])
    return mask.to(values.dtype).expand(values.shape)


def weighted_mean(values: Tensor, mask: Tensor | None, reduction: str, channels_last: bool = False) -> Tensor:
    """Reduces a map whose best value is 0, such as 1 - S or |x - y|.

    Args:
        values: The map, (B, C, spatial…) or, with `channels_last`, (B, spatial…, C).
        mask: Weights (B, 1 or C, spatial…) in the layout of the map, as large as the images. None: all weights are
            equal.
        reduction: "mean" divides by the sum of all weights of the batch. "image" gives such a mean for each image,
            (B,). "sum" adds value times weight. "none" returns value times weight. A mean without any weight is 0.
        channels_last: Whether the channels of map and mask are last.
    """
    if mask is not None:
        mask = _mask_like(values, mask, channels_last)
        values = values * mask
    if reduction == "none":
        return values
    if reduction == "sum":
        return values.sum()
    if mask is None:
        return values.mean() if reduction == "mean" else values.flatten(1).mean(1)
    if reduction == "mean":
        total, weight = values.sum(), mask.sum()
    else:
        total, weight = values.flatten(1).sum(1), mask.flatten(1).sum(1)
    # Selected: what has no weight may be NaN.
    return torch.where(weight > 0, total / torch.where(weight > 0, weight, 1), 0)


def similarity(dssim: Tensor, mask: Tensor | None, reduction: str, channels_last: bool = False) -> Tensor:
    """Reduces S, given the map of 1 - S, as `weighted_mean` would: a mean where nothing has weight is 1."""
    if reduction in ("mean", "image"):
        return 1 - weighted_mean(dssim, mask, reduction, channels_last)
    return weighted_mean(1 - dssim, mask, reduction, channels_last)


def weighted_sum(*terms: tuple[Tensor, float], offset: float = 0.0) -> Tensor:
    """`offset + Σ weight · value` of tensors of one shape."""
    # A tensor for each number: torch promotes the tangent of a tensor without axes times a number to float64.
    total = terms[0][0].new_full((), offset)
    for value, weight in terms:
        # What a term without weight overflows to is not read. A NaN comes from the images, as it does in the kernels.
        total = total + (value if weight else value.nan_to_num(torch.nan, 0, 0)) * value.new_full((), weight)
    return total


# --------------------------------------------------------------------------------------------------------------------
# The pyramid of MS-SSIM
# --------------------------------------------------------------------------------------------------------------------


def halve(images: Tensor) -> Tensor:
    """The next coarser scale of (B, C, spatial…): means of blocks of 2, an odd side padded by a zero that counts."""
    pool = F.avg_pool2d if images.ndim == 4 else F.avg_pool3d
    return pool(images, kernel_size=2, padding=[side % 2 for side in images.shape[2:]])


def spread(grad: Tensor, shape: Sequence[int]) -> Tensor:
    """The gradient of images of this shape from that of `halve`."""
    for dim in range(2, grad.ndim):
        side = shape[dim]
        # An odd side has a zero before its first place.
        grad = (grad / 2).repeat_interleave(2, dim).narrow(dim, side % 2, side)
    return grad


def pyramid(
    img1: Tensor, img2: Tensor, scales: int, data_range: float, channels_last: bool
) -> list[tuple[Tensor, Tensor]]:
    """The images (B, C, spatial…) of each scale, fine to coarse, in float32 or wider."""
    img1, img2 = in_one_dtype(img1, img2, data_range)
    img1, img2 = channels_first(img1, channels_last), channels_first(img2, channels_last)
    pairs = [(img1, img2)]
    while len(pairs) < scales:
        img1, img2 = halve(img1), halve(img2)
        pairs.append((img1, img2))
    return pairs


def scale_terms(means: Sequence[Tensor]) -> Tensor:
    """(B, C, scales): MS-SSIM's terms from `ssim_channel_means` of each scale: contrast-structure, of the last S."""
    return torch.stack([*(scale[..., 1] for scale in means[:-1]), means[-1][..., 0]], dim=-1)


def combine_terms(terms: Tensor, weights: Sequence[float]) -> Tensor:
    """(B, C): the product over scales of MS-SSIM's terms (B, C, scales) to the power of `weights`, one a scale.

    Where a term is not positive the product is 0 and so is its gradient: a power of a clamped 0 would give NaN. Where a
    term is NaN, the product is.
    """
    positive = terms > 0
    powers = [term**weight for term, weight in zip(torch.where(positive, terms, 1).unbind(-1), weights, strict=True)]
    product = torch.where(positive.all(-1), math.prod(powers[1:], start=powers[0]), 0)
    return torch.where(terms.isnan().any(-1), torch.nan, product)


def term_gradients(grad_values: Tensor, terms: Tensor, weights: Sequence[float]) -> Tensor:
    """(B, C, scales): the gradient of `combine_terms` by the terms."""
    exponents = torch.tensor(weights, dtype=terms.dtype, device=terms.device)
    by_term = combine_terms(terms, weights)[..., None] * exponents / terms
    return torch.where((terms <= 0).any(-1, keepdim=True), 0, by_term) * grad_values[..., None]
