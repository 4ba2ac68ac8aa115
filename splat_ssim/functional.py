"""SSIM of images and volumes, and MS-SSIM. Arguments are checked here; the operators only compute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from splat_ssim import _maps, reference
from splat_ssim._checks import (
    check_constants,
    check_images,
    check_mask,
    check_padding,
    check_reduction,
    check_weights,
    spatial_shape,
)
from splat_ssim.ops import prepared
from splat_ssim.ops import ssim as operators
from splat_ssim.ops.photometric import call_prepared, photometric
from splat_ssim.ops.ssim import ssim_map
from splat_ssim.options import Sigma, SSIMOptions, WindowSize, one_or_each
from splat_ssim.reference import MS_SSIM_WEIGHTS

REDUCTIONS = ("mean", "sum", "none", "image")


def ssim(
    img1: Tensor,
    img2: Tensor,
    *,
    window_size: int = 11,
    sigma: float = 1.5,
    data_range: float = 1.0,
    k1: float = 0.01,
    k2: float = 0.03,
    padding: str = "same",
    reduction: str = "mean",
    mask: Tensor | None = None,
    mask_mode: str = "weight",
    channels_last: bool = False,
) -> Tensor:
    """Structural similarity of two batches of images: 1 for equal images, smaller for others.

    The result is differentiable once, with respect to every image that requires a gradient. A second derivative raises
    NotImplementedError, except for float64 images and under `torch.func`. Half precision is computed in float32, and so
    is everything under autocast.

    Args:
        img1: (B, C, H, W), or (B, H, W, C) with `channels_last`; float32, float64, float16, bfloat16 or uint8; any
            strides. Values lie in [0, data_range]; a uint8 value v stands for v / 255 · data_range.
        img2: Same shape and device as `img1`. Its dtype may differ from that of `img1`.
        window_size: Width of the Gaussian window in pixels, along each axis: odd, from 3 to 33; 11 by default.
        sigma: Standard deviation of the window in pixels, from 1e-9 to 1e9; 1.5 by default.
        data_range: Difference between the largest and the smallest possible value, from 1e-36 to 1e36; 1 by default.
        k1: Constant of the luminance term, C1 = (k1 · data_range)², from 1e-9 to 1e9; 0.01 by default.
        k2: Constant of the contrast-structure term, C2 = (k2 · data_range)², from 1e-9 to 1e9; 0.03 by default.
        padding: What the windows contain outside the images. "same", the default: zeros, which enter the means and the
            variances. "reflect": the mirrored image. "replicate": its border pixels, repeated. "valid": only windows
            that lie inside the images count.
        reduction: "mean", the default, over the whole batch; "sum" over it; "image", the mean of each image, (B,);
            "none", the map itself, in the layout of the images. The map is smaller than the images for "valid".
        mask: Weights of the pixels, (B, 1, H, W) or (B, C, H, W), with `channels_last` (B, H, W, 1) or (B, H, W, C):
            bool, or float of 0 or more. "valid" reads it at the centres of the windows. None, the default: all count.
            Its values are not checked, since that would cost a pass: negative ones give a meaningless result.
        mask_mode: "weight", the default: the map is multiplied by the mask, and a mean is weighted by it. If all
            weights are 0, the mean is 1. Masked pixels must be finite: a NaN there gives NaN. "zero": both images are
            multiplied by the mask, and the mean is over all pixels. "normalize": each window is averaged with the mask
            as weights (normalised convolution), and the map is then weighted as for "weight". Padding "same" then adds
            no zeros, since pixels outside the images have weight 0. In the last two, masked pixels may be NaN.
        channels_last: Whether the channels are the last axis; False by default. Either layout is read in place.

    Returns:
        A tensor of shape () for "mean" and "sum", (B,) for "image", or the map. Its dtype is float64 if either image
        is float64, otherwise float32.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: Shapes or devices differ, an option is unknown or out of range, or the images are too small for the
            window and the padding.

    Source: Z. Wang, A. C. Bovik, H. R. Sheikh, E. P. Simoncelli, "Image quality assessment: from error visibility to
    structural similarity", IEEE TIP 13(4), 2004, eq. 13.

    Example:
        >>> import torch
        >>> import splat_ssim
        >>> pred = torch.rand(1, 3, 64, 64, requires_grad=True)
        >>> loss = 1 - splat_ssim.ssim(pred, torch.rand(1, 3, 64, 64))
        >>> loss.backward()
    """
    given = (window_size, sigma, data_range, k1, k2, padding, channels_last)
    return _ssim(2, img1, img2, given, reduction, mask, mask_mode)


def ssim3d(
    img1: Tensor,
    img2: Tensor,
    *,
    window_size: WindowSize = 11,
    sigma: Sigma = 1.5,
    data_range: float = 1.0,
    k1: float = 0.01,
    k2: float = 0.03,
    padding: str = "same",
    reduction: str = "mean",
    mask: Tensor | None = None,
    mask_mode: str = "weight",
    channels_last: bool = False,
) -> Tensor:
    """SSIM of two batches of volumes, with a window that extends along all three axes. All else is as for `ssim`.

    Args:
        img1: (B, C, D, H, W), or (B, D, H, W, C) with `channels_last`.
        img2: Same shape and device as `img1`.
        window_size: Width of the window in voxels: one odd number from 3 to 33 for all axes, 11 by default; or three
            odd numbers from 1 to 33 in the order (D, H, W). An axis of width 1 is not filtered; not all three may be 1.
        sigma: Standard deviation of the window in voxels, 1.5 by default; or three, in the order (D, H, W).
        data_range: As for `ssim`.
        k1: As for `ssim`.
        k2: As for `ssim`.
        padding: As for `ssim`. Each axis is padded, or cropped by "valid", by half the width of its own window.
        reduction: As for `ssim`.
        mask: (B, 1, D, H, W) or (B, C, D, H, W), or the same with the channels last.
        mask_mode: As for `ssim`.
        channels_last: As for `ssim`.

    Returns:
        As for `ssim`.

    Raises:
        TypeError: As for `ssim`.
        ValueError: As for `ssim`.

    Example:
        >>> import torch
        >>> import splat_ssim
        >>> volume = torch.rand(1, 1, 32, 32, 32)
        >>> splat_ssim.ssim3d(volume, volume)
        tensor(1.)

        For slices 5 mm apart with pixels of 1 mm, this window is about equally wide in mm along all axes:

        >>> stack = torch.rand(1, 1, 12, 64, 64)
        >>> splat_ssim.ssim3d(stack, stack, window_size=(3, 11, 11), sigma=(0.3, 1.5, 1.5))
        tensor(1.)
    """
    given = (window_size, sigma, data_range, k1, k2, padding, channels_last)
    return _ssim(3, img1, img2, given, reduction, mask, mask_mode)


def ms_ssim(
    img1: Tensor,
    img2: Tensor,
    *,
    window_size: WindowSize = 11,
    sigma: Sigma = 1.5,
    data_range: float = 1.0,
    k1: float = 0.01,
    k2: float = 0.03,
    weights: Sequence[float] = MS_SSIM_WEIGHTS,
    reduction: str = "mean",
    channels_last: bool = False,
) -> Tensor:
    """Multi-scale structural similarity of images (4 axes) or volumes (5 axes).

    For each image and channel it is a product over the scales. The factor of a scale is its mean contrast-structure
    term, or its mean SSIM for the coarsest scale, raised to the scale's weight. Each scale halves the previous one by
    averaging blocks of 2 pixels along each axis. An odd side is first padded with a zero. Windows lie inside the
    images ("valid"). Where a term is 0 or less, the product and its gradient are 0. The result is differentiable once.

    Args:
        img1: (B, C, H, W) or (B, C, D, H, W), or with the channels last; dtypes and values as for `ssim`.
        img2: Same shape and device as `img1`.
        window_size: As for `ssim`; for volumes as for `ssim3d`.
        sigma: As for `ssim`; for volumes as for `ssim3d`.
        data_range: As for `ssim`.
        k1: As for `ssim`.
        k2: As for `ssim`.
        weights: One exponent for each scale, from fine to coarse; by default the five of Wang et al.
        reduction: "mean", the default; "sum"; "image", the mean over channels, (B,); or "none", (B, C).
        channels_last: As for `ssim`.

    Returns:
        A tensor of the shape that `reduction` names: float64 if either image is float64, otherwise float32.

    Raises:
        TypeError: As for `ssim`.
        ValueError: As for `ssim`; or a side is too small. Along each axis it must be larger than
            (window_size - 1) · 2^(scales - 1), which is 160 pixels by default.

    Source: Z. Wang, E. P. Simoncelli, A. C. Bovik, "Multiscale structural similarity for image quality assessment",
    Asilomar 2003, eq. 7.

    Example:
        >>> import torch
        >>> import splat_ssim
        >>> pred = torch.rand(1, 3, 192, 192, requires_grad=True)
        >>> loss = 1 - splat_ssim.ms_ssim(pred, torch.rand(1, 3, 192, 192))
        >>> loss.backward()
    """
    check_images(img1, img2, (2, 3), channels_last)
    constants = check_constants((window_size, sigma, data_range, k1, k2), img1.ndim - 2)
    exponents = check_weights(weights)
    options = SSIMOptions(*constants, "valid", channels_last)
    sides = spatial_shape(img1, channels_last)
    smallest = [(size - 1) * 2 ** (len(exponents) - 1) for size in options.windows(len(sides))]
    if any(side <= least for side, least in zip(sides, smallest, strict=True)):
        raise ValueError(
            f"ms_ssim with window_size={options.window_size} and {len(exponents)} scales needs every side to be larger "
            f"than {one_or_each(smallest)}, got {sides}"
        )
    check_reduction(reduction, REDUCTIONS, img1)
    found = operators.ms_ssim(img1, img2, options, exponents)
    if reduction == "none":
        return found
    if reduction == "image":
        return found.mean(1)
    return found.mean() if reduction == "mean" else found.sum()


def _ssim(
    spatial_dims: int,
    img1: Tensor,
    img2: Tensor,
    given: tuple[Any, ...],
    reduction: str,
    mask: Tensor | None,
    mask_mode: str,
) -> Tensor:
    """`ssim` of two spatial axes and `ssim3d` of three; `given` are the fields of `SSIMOptions`, not yet checked."""
    key = prepared.key("ssim", img1, img2, mask, (spatial_dims, reduction, mask_mode, *given))
    known = prepared.find(key)
    if known is not None:
        return call_prepared(known, img1, img2)[0]
    *constants, padding, channels_last = given
    check_images(img1, img2, (spatial_dims,), channels_last)
    options = SSIMOptions(*check_constants(constants, spatial_dims), padding, channels_last)
    check_padding(options, img1)
    check_reduction(reduction, REDUCTIONS, img1)
    check_mask(mask, mask_mode, img1, channels_last)
    if mask is not None and mask_mode == "normalize":
        return reference.ssim(img1, img2, reduction=reduction, mask=mask, mask_mode=mask_mode, **options.keywords())
    img1, img2, weight, _ = _maps.apply_mask(img1, img2, mask, mask_mode, options.data_range)
    if reduction in ("mean", "image"):
        # One pass gives the value and the gradient, with its sign: backward need not turn it round.
        per_image = reduction == "image"
        found, _, _ = photometric(
            img1,
            img2,
            options,
            l1_weight=0.0,
            dssim_weight=-1.0,
            weight=weight,
            per_image=per_image,
            offset=1.0,
            terms=False,
            key=key,
        )
        return found
    found = ssim_map(img1, img2, options)
    return _maps.weighted_mean(found, weight, reduction, channels_last)
