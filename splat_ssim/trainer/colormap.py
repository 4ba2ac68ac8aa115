"""Numbers as colours, such as depths and errors."""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: (RGB) what red, green and blue add to the grey of cubehelix, for the cosine and the sine of its angle.
_HELIX = torch.tensor([[-0.14861, 1.78277], [-0.29227, -0.90649], [1.97294, 0.0]], dtype=torch.float64)
_START, _ROTATIONS = 0.5, -1.5


def colored(values: Tensor, low: float, high: float) -> Tensor:
    """Colours numbers by the scheme cubehelix: from black at `low` to white at `high`, with linear lightness.

    So the order of values is seen in grey print and by the colour-blind too.

    Args:
        values: Any shape (...), any float dtype. Values below `low` and NaN are black, values above `high` white.
        low: Value that becomes black.
        high: Value that becomes white. If it is not above `low`, all values become black.

    Returns:
        (..., 3) float32 colours in [0, 1].

    Source: D. A. Green, A colour scheme for the display of astronomical intensity images, Bull. Astr. Soc. India 39,
    289 (2011), with its usual start 0.5, rotations -1.5, hue 1 and gamma 1.

    Example:
        >>> import torch
        >>> from splat_ssim.trainer.colormap import colored
        >>> [round(value, 3) for value in colored(torch.tensor(1.0), 0.0, 2.0).tolist()]
        [0.628, 0.475, 0.286]
    """
    span = high - low
    unit = (values.double() - low) / span if span > 0 else torch.zeros_like(values, dtype=torch.float64)
    grey = unit.nan_to_num(0.0).clamp(0, 1)
    angle = 2 * math.pi * (_START / 3 + 1 + _ROTATIONS * grey)
    amplitude = grey * (1 - grey) / 2
    turned = torch.stack([angle.cos(), angle.sin()], -1) @ _HELIX.to(values.device).T
    return (grey[..., None] + amplitude[..., None] * turned).clamp(0, 1).float()
