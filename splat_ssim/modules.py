"""`ssim`, `ssim3d` and `ms_ssim` as modules that keep their options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from torch import Tensor, nn

from splat_ssim import functional
from splat_ssim._checks import MASK_MODES, PADDINGS, check_choice, check_constants
from splat_ssim.options import Constants, Sigma, SSIMKeywords, WindowSize
from splat_ssim.reference import MS_SSIM_WEIGHTS


class MSSSIMOptions(Constants, total=False):
    """The options of `MSSSIM`."""

    weights: Sequence[float]
    reduction: str
    channels_last: bool


class _WithOptions(nn.Module):
    """Keeps keyword options, whose constants are checked on construction, and shows them in the module's text."""

    #: Of the images that the module takes; 3 also where it takes both.
    _spatial_dims = 3

    def __init__(self, options: Constants):
        super().__init__()
        names = ("window_size", "sigma", "data_range", "k1", "k2")
        given = (options[name] for name in names)  # type: ignore[literal-required]
        constants = check_constants(given, self._spatial_dims)
        self.options = options
        self.options.update(zip(names, constants, strict=True))  # type: ignore[typeddict-item]

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


class SSIM(_WithOptions):
    """`splat_ssim.ssim` as a module: the constructor takes the options, `forward` the images and a mask.

    Example:
        >>> import torch
        >>> import splat_ssim
        >>> metric = splat_ssim.SSIM(padding="valid", data_range=255)
        >>> value = metric(torch.rand(1, 3, 64, 64) * 255, torch.rand(1, 3, 64, 64) * 255)
    """

    _function: ClassVar[Callable[..., Tensor]] = staticmethod(functional.ssim)
    _spatial_dims = 2
    options: SSIMKeywords

    def __init__(
        self,
        *,
        window_size: WindowSize = 11,
        sigma: Sigma = 1.5,
        data_range: float = 1.0,
        k1: float = 0.01,
        k2: float = 0.03,
        padding: str = "same",
        reduction: str = "mean",
        mask_mode: str = "weight",
        channels_last: bool = False,
    ):
        check_choice("padding", padding, PADDINGS)
        check_choice("reduction", reduction, functional.REDUCTIONS)
        check_choice("mask_mode", mask_mode, MASK_MODES)
        super().__init__(
            SSIMKeywords(
                window_size=window_size,
                sigma=sigma,
                data_range=data_range,
                k1=k1,
                k2=k2,
                padding=padding,
                reduction=reduction,
                mask_mode=mask_mode,
                channels_last=channels_last,
            )
        )

    def forward(self, img1: Tensor, img2: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """SSIM of the images; shapes as for the function."""
        return self._function(img1, img2, mask=mask, **self.options)


class SSIM3D(SSIM):
    """`splat_ssim.ssim3d` as a module. It has the options of `SSIM`; window_size and sigma may be three numbers.

    Example:
        >>> import torch
        >>> import splat_ssim
        >>> value = splat_ssim.SSIM3D()(torch.rand(1, 1, 16, 16, 16), torch.rand(1, 1, 16, 16, 16))
        >>> splat_ssim.SSIM3D(window_size=(1, 11, 11)).options["window_size"]
        (1, 11, 11)
    """

    _function = staticmethod(functional.ssim3d)
    _spatial_dims = 3


class MSSSIM(_WithOptions):
    """`splat_ssim.ms_ssim` as a module, for images and volumes.

    Example:
        >>> import torch
        >>> import splat_ssim
        >>> value = splat_ssim.MSSSIM()(torch.rand(1, 3, 192, 192), torch.rand(1, 3, 192, 192))
    """

    options: MSSSIMOptions

    def __init__(
        self,
        *,
        window_size: WindowSize = 11,
        sigma: Sigma = 1.5,
        data_range: float = 1.0,
        k1: float = 0.01,
        k2: float = 0.03,
        weights: Sequence[float] = MS_SSIM_WEIGHTS,
        reduction: str = "mean",
        channels_last: bool = False,
    ):
        check_choice("reduction", reduction, functional.REDUCTIONS)
        super().__init__(
            MSSSIMOptions(
                window_size=window_size,
                sigma=sigma,
                data_range=data_range,
                k1=k1,
                k2=k2,
                weights=tuple(weights),
                reduction=reduction,
                channels_last=channels_last,
            )
        )

    def forward(self, img1: Tensor, img2: Tensor) -> Tensor:
        """MS-SSIM of the images; shapes as for the function."""
        return functional.ms_ssim(img1, img2, **self.options)
