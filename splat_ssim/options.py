"""The options of SSIM: one tuple that everything below the public functions hands on, and their types as keywords.

Only the signatures of public functions spell the options out.
"""

from __future__ import annotations

from typing import NamedTuple, TypedDict


class Constants(TypedDict, total=False):
    """The window and the constants of SSIM, by keyword."""

    window_size: int
    sigma: float
    data_range: float
    k1: float
    k2: float


class MapKeywords(Constants, total=False):
    """What the map of S depends on besides the images, by keyword."""

    padding: str
    channels_last: bool
    eps: float


class SSIMKeywords(Constants, total=False):
    """The options of `splat_ssim.ssim`, but for the mask itself, by keyword."""

    padding: str
    reduction: str
    mask_mode: str
    channels_last: bool


class SSIMOptions(NamedTuple):
    """What every operator and the definition take after the images; public functions document and check the values.

    Images and volumes are told apart by their number of axes.
    """

    window_size: int = 11
    sigma: float = 1.5
    data_range: float = 1.0
    k1: float = 0.01
    k2: float = 0.03
    padding: str = "same"
    channels_last: bool = False
    #: Added to the denominator of S in maps and losses, as kornia does. The package's own functions leave it at 0.
    eps: float = 0.0

    @property
    def inset(self) -> int:
        """How far into the images the map starts."""
        return self.window_size // 2 if self.padding == "valid" else 0

    def keywords(self) -> MapKeywords:
        """The options as keyword arguments of `splat_ssim.reference`."""
        return MapKeywords(**self._asdict())  # type: ignore[typeddict-item]
