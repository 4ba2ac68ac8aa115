from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MODES = ("max", "window", "percentile", "none")


@dataclass(frozen=True)
class Normalization:
    """The linear map between a file's intensities and the unit range that is fitted, whose data range is 1.

    Args:
        low: Intensity that becomes 0.
        high: Intensity that becomes 1.
        clip: Whether values outside are cut off.
    """

    low: float
    high: float
    clip: bool = True

    def apply(self, data: np.ndarray) -> np.ndarray:
        """Intensities to float32 values, in [0, 1] when clipping."""
        values = (data.astype(np.float64) - self.low) / (self.high - self.low)
        return (np.clip(values, 0.0, 1.0) if self.clip else values).astype(np.float32)

    def invert(self, values: np.ndarray) -> np.ndarray:
        """Values in [0, 1] back to the file's intensities, float32."""
        return (values.astype(np.float64) * (self.high - self.low) + self.low).astype(np.float32)


def choose_normalization(
    data: np.ndarray,
    mode: str = "max",
    *,
    window: Sequence[float] | None = None,
    percentiles: Sequence[float] = (0.5, 99.5),
) -> Normalization:
    """Which intensities become 0 and 1.

    Args:
        data: Intensities, any shape, finite.
        mode: "max": 0 and the maximum. "window": the two numbers of `window`. "percentile": those percentiles of the
            data. "none": 0 and 1, and nothing is cut off.
        window: (low, high) intensities, for mode "window", such as a CT window.
        percentiles: (low, high) in percent, for mode "percentile".

    Raises:
        ValueError: An unknown mode, a missing or empty window, or data that span no range: a constant volume has to be
            given a window.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    if mode == "none":
        return Normalization(0.0, 1.0, clip=False)
    if mode == "window":
        if window is None or len(window) != 2 or not window[0] < window[1]:
            raise ValueError(f"window must be (low, high) with low < high, got {window}")
        return Normalization(float(window[0]), float(window[1]))
    if mode == "max":
        low, high = 0.0, float(data.max())
    else:
        first, last = percentiles
        if not 0 <= first < last <= 100:
            raise ValueError(f"percentiles must be 0 <= low < high <= 100, got {tuple(percentiles)}")
        low, high = (float(v) for v in np.percentile(data, [first, last]))
    if not low < high:
        raise ValueError(
            f"the volume must span a range for mode {mode!r}, got {low} to {high} "
            f"(values from {float(data.min())} to {float(data.max())}); give a window"
        )
    return Normalization(low, high)
