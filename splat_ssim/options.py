"""The options of SSIM as one tuple, which all code below the public functions passes on, and as keyword types.

Only the signatures of public functions spell the options out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypedDict, cast

#: Taps of the window, and its standard deviation: one number for all axes or, for volumes, three in the order (D, H,
#: W).
WindowSize = int | Sequence[int]
Sigma = float | Sequence[float]


class Constants(TypedDict, total=False):
    """The window and the constants of SSIM, by keyword."""

    window_size: WindowSize
    sigma: Sigma
    data_range: float
    k1: float
    k2: float


class MapKeywords(Constants, total=False):
    """The keyword arguments that determine the SSIM map."""

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
    """The options of every operator and of the definition. Public functions document and check the values.

    The number of axes distinguishes images and volumes. Window and sigma are numbers, or tuples of three if the axes of
    a volume differ. Three equal numbers are stored as one number, so that there is only one way to write a cube.
    """

    window_size: WindowSize = 11
    sigma: Sigma = 1.5
    data_range: float = 1.0
    k1: float = 0.01
    k2: float = 0.03
    padding: str = "same"
    channels_last: bool = False
    #: Added to the denominator of S in maps and losses, as kornia does. The package's own functions leave it at 0.
    eps: float = 0.0

    @classmethod
    def of(cls, window_size: Any, sigma: Any, *rest: Any) -> SSIMOptions:
        """The options from the arguments of an operator, which torch's dispatcher hands on with lists of three."""
        return cls(one_or_each(window_size), one_or_each(sigma), *rest)

    def arguments(self) -> tuple[Any, ...]:
        """The options as the operators take them, with a list of three for window and sigma.

        torch makes the list from a plain number, but not from one that torch.compile traces as a symbol.
        """
        return [*of_each(self.window_size, 3)], [*of_each(self.sigma, 3)], *self[2:]

    def is_cubic(self) -> bool:
        """Whether all axes have the same window. Not a property, which the Dynamo of torch 2.4 can't trace."""
        return not isinstance(self.window_size, (tuple, list)) and not isinstance(self.sigma, (tuple, list))

    def windows(self, spatial_dims: int) -> tuple[int, ...]:
        """Taps of each spatial axis."""
        return of_each(self.window_size, spatial_dims)

    def sigmas(self, spatial_dims: int) -> tuple[float, ...]:
        """Standard deviation of the window of each spatial axis."""
        return of_each(self.sigma, spatial_dims)

    def insets(self, spatial_dims: int) -> tuple[int, ...]:
        """Distance from the border at which the map starts, along each spatial axis."""
        if self.padding != "valid":
            return (0,) * spatial_dims
        return tuple(size // 2 for size in self.windows(spatial_dims))

    def keywords(self) -> MapKeywords:
        """The options as keyword arguments of `splat_ssim.reference`."""
        return cast(MapKeywords, self._asdict())


def one_or_each(value: Any) -> Any:
    """A number where all axes have the same, else a tuple with one for each."""
    if not isinstance(value, (tuple, list)):
        return value
    return value[0] if all(other == value[0] for other in value[1:]) else tuple(value)


def of_each(value: Any, spatial_dims: int) -> tuple[Any, ...]:
    """One value for each spatial axis."""
    return tuple(value) if isinstance(value, (tuple, list)) else (value,) * spatial_dims
