"""The training losses: L1 + DSSIM in one pass over the images, and L1 + MS-SSIM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, overload

from torch import Tensor

from splat_ssim import _background, _maps, functional, reference
from splat_ssim._background import Background
from splat_ssim._checks import (
    MASK_MODES,
    PADDINGS,
    check_choice,
    check_constants,
    check_data_range,
    check_images,
    check_mask,
    check_number,
    check_padding,
    check_reduction,
)
from splat_ssim.modules import _WithOptions
from splat_ssim.ops import prepared
from splat_ssim.ops.photometric import call_prepared, photometric
from splat_ssim.options import Constants, Sigma, SSIMKeywords, SSIMOptions, WindowSize
from splat_ssim.reference import MS_SSIM_WEIGHTS

if TYPE_CHECKING:
    from typing_extensions import Unpack

REDUCTIONS = ("mean", "image")

#: A loss and its terms by name.
LossAndTerms = tuple[Tensor, dict[str, Tensor]]
#: A loss, or the loss and its terms by name.
LossResult = Tensor | LossAndTerms


class _PhotometricOptions(SSIMKeywords, total=False):
    lambda_dssim: float
    mask: Tensor | Literal["alpha"] | None
    background: Background | None


class _MSSSIMOptions(Constants, total=False):
    lambda_ms_ssim: float
    weights: Sequence[float]
    mask: Tensor | None
    channels_last: bool


@overload
def photometric_loss(
    pred: Tensor, target: Tensor, *, return_terms: Literal[False] = False, **options: Unpack[_PhotometricOptions]
) -> Tensor: ...
@overload
def photometric_loss(
    pred: Tensor, target: Tensor, *, return_terms: Literal[True], **options: Unpack[_PhotometricOptions]
) -> LossAndTerms: ...
@overload
def photometric_loss(
    pred: Tensor, target: Tensor, *, return_terms: bool, **options: Unpack[_PhotometricOptions]
) -> LossResult: ...
def photometric_loss(
    pred: Tensor,
    target: Tensor,
    *,
    lambda_dssim: float = 0.2,
    window_size: WindowSize = 11,
    sigma: Sigma = 1.5,
    data_range: float = 1.0,
    k1: float = 0.01,
    k2: float = 0.03,
    padding: str = "same",
    reduction: str = "mean",
    mask: Tensor | Literal["alpha"] | None = None,
    mask_mode: str = "weight",
    channels_last: bool = False,
    return_terms: bool = False,
    background: Background | None = None,
) -> LossResult:
    """`(1 - lambda_dssim)·L1 + lambda_dssim·(1 - SSIM)` of images (4 axes) or volumes (5 axes).

    One pass over the images computes both the value and the gradient, so backward is a single multiplication. float64
    images and the mask mode "normalize" run in plain torch. The loss is differentiable once, with respect to `pred` and
    `target`.

    Args:
        pred: (B, C, H, W) or (B, C, D, H, W), with `channels_last` (B, H, W, C) or (B, D, H, W, C); dtypes and values
            as for `splat_ssim.ssim`.
        target: Same shape and device as `pred`; commonly uint8 or float32. With a `background`, it is uint8 RGBA
            with straight alpha, (B, 4, H, W), or (B, H, W, 4) with `channels_last`, and `pred` has 3 channels. `pred`
            is then compared with colour · alpha + background · (1 - alpha).
        lambda_dssim: Weight of 1 - SSIM, in [0, 1]; 0.2 by default. L1 has the weight 1 - lambda_dssim.
        window_size: As for `splat_ssim.ssim`; for volumes as for `splat_ssim.ssim3d`.
        sigma: As for `splat_ssim.ssim`; for volumes as for `splat_ssim.ssim3d`.
        data_range: As for `splat_ssim.ssim`. L1 is not divided by it.
        k1: As for `splat_ssim.ssim`.
        k2: As for `splat_ssim.ssim`.
        padding: As for `splat_ssim.ssim`. L1 always covers the whole image.
        reduction: "mean", the default, or "image" for the loss of each image, (B,).
        mask: As for `splat_ssim.ssim`, or "alpha": the alpha of an RGBA target, in [0, 1].
        mask_mode: As for `splat_ssim.ssim`. "weight" and "normalize" also weight L1 by the mask; "zero" multiplies
            both images by it. If no pixel has weight, the loss is 0.
        channels_last: As for `splat_ssim.ssim`.
        return_terms: Whether to return the terms too; False by default. They cost no further pass.
        background: Colour that an RGBA target is composited over, in [0, data_range]: one number, three numbers, or a
            tensor of shape (3,) or (B, 3). It gets no gradient. None, the default: the target has no alpha.

    Returns:
        The loss, () or (B,): float64 if either image is float64, otherwise float32. With `return_terms`, a pair of the
        loss and {"l1": mean |pred - target|, "ssim": SSIM}, which carry no gradient.

    Raises:
        TypeError: As for `splat_ssim.ssim`.
        ValueError: As for `splat_ssim.ssim`; or `lambda_dssim` is outside [0, 1].

    Source: B. Kerbl, G. Kopanas, T. Leimkühler, G. Drettakis, "3D Gaussian Splatting for Real-Time Radiance Field
    Rendering", ACM TOG 42(4), 2023, eq. 7.

    Example:
        >>> import torch
        >>> from splat_ssim.loss import photometric_loss
        >>> pred = torch.rand(1, 3, 64, 64, requires_grad=True)
        >>> loss, terms = photometric_loss(pred, torch.rand(1, 3, 64, 64), return_terms=True)
        >>> loss.backward()

        An RGBA image of a Blender scene, composited over white:

        >>> rgba = torch.randint(256, (1, 4, 64, 64), dtype=torch.uint8)
        >>> loss = photometric_loss(pred, rgba, background=1.0)

        A thin stack, slice by slice:

        >>> stack = torch.rand(1, 1, 4, 32, 32)
        >>> photometric_loss(stack, stack, window_size=(1, 11, 11))
        tensor(0.)
    """
    behind = None if background is None else _background.as_tensor(background, pred)
    if isinstance(mask, str):
        mask = _alpha(mask, target, behind, channels_last)
    numbers = (lambda_dssim, window_size, sigma, data_range, k1, k2)
    names = (padding, reduction, mask_mode, channels_last, return_terms, 0 if behind is None else behind.shape[0])
    key = prepared.key("photometric_loss", pred, target, mask, (*numbers, *names))
    known = prepared.find(key)
    if known is not None:
        return _result(*call_prepared(known, pred, target, behind), return_terms)
    given = SSIMOptions(window_size, sigma, data_range, k1, k2, padding, channels_last)
    lambda_dssim, options = check_photometric(pred, target, lambda_dssim, given, reduction, mask, mask_mode, behind)
    if behind is not None and mask is not None and mask_mode != "weight":  # They change both images.
        target, behind = _maps.composited(target, behind, behind.dtype, options.data_range, channels_last), None
    if mask is not None and mask_mode == "normalize":
        loss, l1, ssim = reference.photometric_loss(
            pred,
            target,
            lambda_dssim=lambda_dssim,
            reduction=reduction,
            mask=mask,
            mask_mode=mask_mode,
            **options.keywords(),
        )
        return (loss, {"l1": l1.detach(), "ssim": ssim.detach()}) if return_terms else loss
    pred, target, weight, _ = _maps.apply_mask(pred, target, mask, mask_mode, options.data_range)
    found = photometric(
        pred,
        target,
        options,
        l1_weight=1 - lambda_dssim,
        dssim_weight=lambda_dssim,
        weight=weight,
        per_image=reduction == "image",
        background=behind,
        terms=return_terms,
        key=key,
    )
    return _result(*found, return_terms)


def _alpha(mask: str, target: Tensor, behind: Tensor | None, channels_last: bool) -> Tensor:
    if mask != "alpha" or behind is None:
        required = "a tensor, or 'alpha' where a background is given"
        raise ValueError(f"mask must be {required}, got {mask!r}{' without one' if mask == 'alpha' else ''}")
    return _background.alpha_of(target, channels_last)


def _result(loss: Tensor, l1: Tensor | None, dssim: Tensor | None, return_terms: bool) -> LossResult:
    if not return_terms:
        return loss
    assert l1 is not None and dssim is not None
    return loss, {"l1": l1, "ssim": 1 - dssim}


def check_photometric(
    pred: Tensor,
    target: Tensor,
    lambda_dssim: float,
    options: SSIMOptions,
    reduction: str,
    mask: Tensor | None,
    mask_mode: str,
    behind: Tensor | None = None,
) -> tuple[float, SSIMOptions]:
    """Checks the arguments of `photometric_loss`; returns lambda_dssim and the options as plain numbers."""
    channels_last, padding = options.channels_last, options.padding
    seen = target
    if behind is not None:
        _background.check_rgba(pred, target, channels_last)
        seen = target.narrow(target.ndim - 1 if channels_last else 1, 0, 3)
    check_images(pred, seen, (2, 3), channels_last, names=("pred", "target"))
    constants = check_constants(options[:5], pred.ndim - 2)
    lambda_dssim = check_number("lambda_dssim", lambda_dssim, high=1.0, closed=True)
    options = SSIMOptions(*constants, padding, channels_last)
    check_padding(options, pred)
    check_reduction(reduction, REDUCTIONS, pred)
    check_mask(mask, mask_mode, pred, channels_last)
    return lambda_dssim, options


class _LossOptions(SSIMKeywords, total=False):
    lambda_dssim: float
    return_terms: bool


class PhotometricLoss(_WithOptions):
    """`photometric_loss` as a module: the constructor takes the options, `forward` the images and a mask.

    Example:
        >>> import torch
        >>> from splat_ssim.loss import PhotometricLoss
        >>> criterion = PhotometricLoss(lambda_dssim=0.2, channels_last=True)
        >>> loss = criterion(torch.rand(1, 64, 64, 3), torch.rand(1, 64, 64, 3))
    """

    options: _LossOptions

    def __init__(
        self,
        *,
        lambda_dssim: float = 0.2,
        window_size: WindowSize = 11,
        sigma: Sigma = 1.5,
        data_range: float = 1.0,
        k1: float = 0.01,
        k2: float = 0.03,
        padding: str = "same",
        reduction: str = "mean",
        mask_mode: str = "weight",
        channels_last: bool = False,
        return_terms: bool = False,
    ):
        lambda_dssim = check_number("lambda_dssim", lambda_dssim, high=1.0, closed=True)
        check_choice("padding", padding, PADDINGS)
        check_choice("reduction", reduction, REDUCTIONS)
        check_choice("mask_mode", mask_mode, MASK_MODES)
        super().__init__(
            _LossOptions(
                lambda_dssim=lambda_dssim,
                window_size=window_size,
                sigma=sigma,
                data_range=data_range,
                k1=k1,
                k2=k2,
                padding=padding,
                reduction=reduction,
                mask_mode=mask_mode,
                channels_last=channels_last,
                return_terms=return_terms,
            )
        )

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        *,
        mask: Tensor | Literal["alpha"] | None = None,
        background: Background | None = None,
    ) -> LossResult:
        """The loss; shapes as for the function."""
        return photometric_loss(pred, target, mask=mask, background=background, **self.options)


@overload
def ms_ssim_l1_loss(
    pred: Tensor, target: Tensor, *, return_terms: Literal[False] = False, **options: Unpack[_MSSSIMOptions]
) -> Tensor: ...
@overload
def ms_ssim_l1_loss(
    pred: Tensor, target: Tensor, *, return_terms: Literal[True], **options: Unpack[_MSSSIMOptions]
) -> LossAndTerms: ...
@overload
def ms_ssim_l1_loss(
    pred: Tensor, target: Tensor, *, return_terms: bool, **options: Unpack[_MSSSIMOptions]
) -> LossResult: ...
def ms_ssim_l1_loss(
    pred: Tensor,
    target: Tensor,
    *,
    lambda_ms_ssim: float = 0.84,
    window_size: WindowSize = 11,
    sigma: Sigma = 1.5,
    data_range: float = 1.0,
    k1: float = 0.01,
    k2: float = 0.03,
    weights: Sequence[float] = MS_SSIM_WEIGHTS,
    mask: Tensor | None = None,
    channels_last: bool = False,
    return_terms: bool = False,
) -> LossResult:
    """`(1 - lambda_ms_ssim)·L1 + lambda_ms_ssim·(1 - MS-SSIM)`, both averaged over the whole batch.

    Args:
        pred: As for `splat_ssim.ms_ssim`.
        target: Same shape and device as `pred`.
        lambda_ms_ssim: Weight of 1 - MS-SSIM, in [0, 1]; 0.84 by default. L1 has the weight 1 - lambda_ms_ssim.
        window_size: As for `splat_ssim.ssim`; for volumes as for `splat_ssim.ssim3d`.
        sigma: As for `splat_ssim.ssim`; for volumes as for `splat_ssim.ssim3d`.
        data_range: As for `splat_ssim.ssim`. L1 is not divided by it.
        k1: As for `splat_ssim.ssim`.
        k2: As for `splat_ssim.ssim`.
        weights: As for `splat_ssim.ms_ssim`.
        mask: As for `splat_ssim.ssim`. Both images are multiplied by it.
        channels_last: As for `splat_ssim.ssim`.
        return_terms: Whether to return {"l1": …, "ms_ssim": …} too, without gradients; False by default.

    Returns:
        The loss, (); with `return_terms` the loss and its terms.

    Raises:
        TypeError: As for `splat_ssim.ms_ssim`.
        ValueError: As for `splat_ssim.ms_ssim`; or `lambda_ms_ssim` is outside [0, 1].

    Source: H. Zhao, O. Gallo, I. Frosio, J. Kautz, "Loss functions for image restoration with neural networks", IEEE
    TCI 3(1), 2017, with a plain mean as the L1 term.

    Example:
        >>> import torch
        >>> from splat_ssim.loss import ms_ssim_l1_loss
        >>> pred = torch.rand(1, 3, 192, 192, requires_grad=True)
        >>> ms_ssim_l1_loss(pred, torch.rand(1, 3, 192, 192)).backward()
    """
    check_images(pred, target, (2, 3), channels_last, names=("pred", "target"))
    lambda_ms_ssim = check_number("lambda_ms_ssim", lambda_ms_ssim, high=1.0, closed=True)
    data_range = check_data_range(data_range)
    check_reduction("mean", ("mean",), pred)
    check_mask(mask, "zero", pred, channels_last)
    pred, target = _maps.in_one_dtype(pred, target, data_range)
    pred, target, _, _ = _maps.apply_mask(pred, target, mask, "zero", data_range)
    l1 = _maps.absolute_difference(pred, target, data_range).mean()
    value = functional.ms_ssim(
        pred,
        target,
        window_size=window_size,
        sigma=sigma,
        data_range=data_range,
        k1=k1,
        k2=k2,
        weights=weights,
        channels_last=channels_last,
    )
    loss = _maps.weighted_sum((l1, 1 - lambda_ms_ssim), (1 - value, lambda_ms_ssim))
    return (loss, {"l1": l1.detach(), "ms_ssim": value.detach()}) if return_terms else loss
