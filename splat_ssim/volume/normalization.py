from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .._checks import DATA_RANGES

MODES = ("auto", "minmax", "max", "window", "percentile", "none")

#: Percentiles between which most voxels lie, and the ratio of the range to their span from which a note is made.
_BULK, _HOT = (0.1, 99.9), 10.0
#: float32 has 24 bits: 16 of them are left for a range that lies so many times its width from 0.
_FINE = 1 << 8
#: Percentiles of larger volumes are estimated from so many voxels, evenly spread.
_SAMPLE = 1 << 22


@dataclass(frozen=True)
class Normalization:
    """The linear map from a file's intensities to the range [0, 1] that is fitted.

    Args:
        low: Intensity that becomes 0.
        high: Intensity that becomes 1.
        clip: Whether values outside the range are cut off.
    """

    low: float
    high: float
    clip: bool = True

    def apply(self, data: np.ndarray) -> np.ndarray:
        """Intensities to float32 values, in [0, 1] when clipping."""
        values = data.astype(np.float64)
        values -= self.low  # In place: these are eight bytes a voxel.
        values /= self.high - self.low
        if self.clip:
            np.clip(values, 0.0, 1.0, out=values)
        return values.astype(np.float32)

    @property
    def dtype(self) -> np.dtype:
        """The dtype of intensities: float32, or float64 where float32 has too few steps from low to high."""
        largest, span, known = max(abs(self.low), abs(self.high)), self.high - self.low, np.finfo(np.float32)
        fine = largest <= min(_FINE * span, float(known.max)) and span >= float(known.tiny)
        return np.dtype(np.float32 if fine else np.float64)

    def invert(self, values: np.ndarray) -> np.ndarray:
        """Values in [0, 1] back to the file's intensities, of `dtype`."""
        return (values.astype(np.float64) * (self.high - self.low) + self.low).astype(self.dtype)


def spoken(*values: float) -> list[str]:
    """Numbers as text, with as many digits as their differences need.

    Example:
        >>> from splat_ssim.volume.normalization import spoken
        >>> spoken(1 / 3, 1000), spoken(1e8, 1e8 + 113)
        (['0.333333', '1000'], ['100000000', '100000113'])
    """
    largest, span = max(map(abs, values)), max(values) - min(values)
    digits = 3 + math.ceil(math.log10(largest / span)) if 0 < span < largest else 6
    return [f"{value:.{min(max(digits, 6), 17)}g}" for value in values]


def choose_normalization(
    data: np.ndarray,
    mode: str = "auto",
    *,
    window: Sequence[float] | None = None,
    percentiles: Sequence[float] = (0.5, 99.5),
) -> Normalization:
    """Chooses the intensities that become 0 and 1.

    Args:
        data: Intensities, of any shape, finite.
        mode: "auto": 0 and the maximum, or the minimum and the maximum if there are negative values; nothing is cut
            off. "minmax": the minimum and the maximum. "max": 0 and the maximum; negative values are cut off. "window":
            the two numbers of `window`. "percentile": the two `percentiles` of the data. "none": 0 and 1; nothing is
            cut off.
        window: (low, high) intensities for mode "window", such as a CT window.
        percentiles: (low, high) in percent for mode "percentile".

    Raises:
        ValueError: The mode is unknown, the window is missing or empty or cuts every voxel off, or the data are
            constant, in which case a window must be given.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    if mode == "none":
        return _as_is(data)
    if mode == "window":
        if window is None or len(window) != 2:
            raise ValueError(f"window must be (low, high) with low < high, got {window}")
        check_window(window[0], window[1], "window (low, high)")
        return _window(data, float(window[0]), float(window[1]))
    if mode in ("auto", "minmax", "max"):
        least, high = float(data.min()), float(data.max())
        low = {"auto": min(0.0, least), "minmax": least, "max": 0.0}[mode]
    else:
        first, last = percentiles
        if not 0 <= first < last <= 100:
            raise ValueError(f"percentiles must be 0 <= low < high <= 100, got {tuple(percentiles)}")
        low, high = (float(v) for v in np.percentile(data, [first, last]))
    if not low < high:
        raise ValueError(
            f"the volume must span a range for mode {mode!r}, got {low} to {high} "
            f"(values from {float(data.min())} to {float(data.max())}); give a window "
            "(--data.normalize window --data.low LOW --data.high HIGH)"
        )
    if not math.isfinite(high - low):
        raise ValueError(f"the volume must span a range that float64 holds, got {low} to {high}")
    return Normalization(low, high)


def check_window(low: float, high: float, name: str) -> None:
    """Checks the two intensities that become 0 and 1.

    Raises:
        ValueError: They are not finite, the first is not below the second, or they lie too far apart. The message
            begins with `name`.
    """
    if not low < high or not math.isfinite(high - low):
        raise ValueError(f"{name} must be finite with LOW < HIGH, got {low:g} and {high:g}")


def check_span(name: str, span: float) -> None:
    """Checks the difference between the largest and the least of some values, over which PSNR and SSIM are taken.

    Raises:
        ValueError: It is 0, or too small or too large for SSIM. The message begins with `name`.
    """
    low, high = DATA_RANGES
    if not low <= span <= high:
        raise ValueError(f"{name} must span a range from {low:g} to {high:g}, got {span:g}")


def _as_is(data: np.ndarray) -> Normalization:
    """No map. The values must be such that float32 and SSIM can take them."""
    least, most = float(data.min()), float(data.max())
    if max(-least, most) > float(np.finfo(np.float32).max):
        raise ValueError(f"the volume must hold numbers of float32 for mode 'none', got {least:g} to {most:g}")
    if least < most:
        check_span("the volume, for mode 'none',", most - least)
    return Normalization(0.0, 1.0, clip=False)


def _window(data: np.ndarray, low: float, high: float) -> Normalization:
    """The map of a window, which must leave some voxels apart from its ends."""
    least, most = float(data.min()), float(data.max())
    if (most <= low and least < low) or (least >= high and most > high):
        raise ValueError(
            f"the window (data.low and data.high) must hold some of the volume's values, which go from {least:g} to "
            f"{most:g}, got {low:g} to {high:g}"
        )
    return Normalization(low, high)


@dataclass(frozen=True)
class ValueRange:
    """The intensities of a source, and the part of them that is fitted.

    Args:
        source_low: Smallest intensity of the file.
        source_high: Largest intensity of the file.
        low: Intensity that is fitted as 0. Lower values are cut off if the normalization clips.
        high: Intensity that is fitted as 1. Higher values are cut off if the normalization clips.
        cut_below: Fraction of the voxels below `low`, which are cut off.
        cut_above: Fraction of the voxels above `high`, which are cut off.
        bulk_low: Low end of the range that holds all but a thousandth of the voxels at each end.
        bulk_high: High end of that range.
    """

    source_low: float
    source_high: float
    low: float
    high: float
    cut_below: float
    cut_above: float
    bulk_low: float
    bulk_high: float

    @property
    def span(self) -> float:
        """Difference between the largest and the smallest intensity of the file; 1 for a constant volume."""
        return self.source_high - self.source_low or 1.0

    def lines(self) -> list[str]:
        """Notes on the values for the user, one sentence in each line."""
        (source_low, source_high), (low, high) = spoken(self.source_low, self.source_high), spoken(self.low, self.high)
        lines = [
            f"values: {source_low} to {source_high} in the file; fitted from {low} to {high}; cut off: "
            f"{100 * self.cut_below:.3g}% of the voxels below, {100 * self.cut_above:.3g}% above"
        ]
        bulk = self.bulk_high - self.bulk_low
        if self.high - self.low > _HOT * bulk and self.source_high > self.source_low:
            bulk_low, bulk_high = spoken(self.bulk_low, self.bulk_high)
            lines.append(
                f"warning: 99.8% of the voxels lie between {bulk_low} and {bulk_high}, a small part "
                f"of the range that is fitted: a few outlying voxels rule PSNR and SSIM; --data.normalize percentile, "
                f"or --data.low and --data.high, cut them off"
            )
        return lines


def describe_values(data: np.ndarray, normalization: Normalization) -> ValueRange:
    """Describes which of a volume's intensities a normalization keeps.

    Example:
        >>> import numpy as np
        >>> from splat_ssim.volume.normalization import Normalization, describe_values
        >>> values = describe_values(np.array([-1000.0, 0.0, 40.0, 3000.0]), Normalization(0.0, 80.0))
        >>> values.cut_below, values.cut_above
        (0.25, 0.25)
    """
    low, high, size = normalization.low, normalization.high, data.size
    below = above = 0
    if normalization.clip:
        below, above = int((data < low).sum()), int((data > high).sum())
    sample = data.ravel(order="K")[:: max(1, size // _SAMPLE)].astype(np.float64)
    bulk_low, bulk_high = (float(v) for v in np.percentile(sample, _BULK))
    source_low, source_high = float(data.min()), float(data.max())
    if not normalization.clip:  # The scale is that of the file, and the range is what the values span.
        low, high = source_low, source_high
    return ValueRange(source_low, source_high, low, high, below / size, above / size, bulk_low, bulk_high)
