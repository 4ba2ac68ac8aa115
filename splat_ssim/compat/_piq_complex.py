"""piq's SSIM of complex images (B, C, H, W, 2), real and imaginary part last, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from splat_ssim import reference


def channel_means(img1: Tensor, img2: Tensor, size: int, sigma: float, c1: float, c2: float) -> tuple[Tensor, Tensor]:
    """The means of S and of its contrast-structure factor, (B, C, 2) each, for images (B, C, H, W, 2) of range 1.

    The two parts of the covariance are exchanged, as in the original.
    """
    taps = reference.gaussian_taps(size, sigma)

    def mean(images: Tensor) -> Tensor:
        return reference.correlate(images, taps, 2)

    means1, means2 = ([mean(part) for part in image.unbind(-1)] for image in (img1, img2))
    real1, imaginary1 = img1.unbind(-1)
    real2, imaginary2 = img2.unbind(-1)
    power1, power2 = (part[0] ** 2 + part[1] ** 2 for part in (means1, means2))
    mean_product = [means1[0] * means2[0] - means1[1] * means2[1], means1[0] * means2[1] + means1[1] * means2[0]]
    covariance = [
        mean(real1 * real2 - imaginary1 * imaginary2) - mean_product[0],
        mean(real1 * imaginary2 + imaginary1 * real2) - mean_product[1],
    ]
    variance1 = mean(real1**2 + imaginary1**2) - power1
    variance2 = mean(real2**2 + imaginary2**2) - power2
    structure = (2 * torch.stack(covariance[::-1], -1) + c2) / (variance1 + variance2 + c2)[..., None]
    luminance = (2 * torch.stack(mean_product, -1) + c1) / (power1 + power2 + c1)[..., None]
    return (luminance * structure).mean((-3, -2)), structure.mean((-3, -2))


def power_product(terms: Tensor, exponents: Tensor) -> Tensor:
    """(B, C, 2): the product over scales of complex terms (scales, B, C, 2), whose parts count as 0 where negative.

    Where both parts of a term are 0 the gradient is 0, in the original NaN.
    """
    real, imaginary = torch.relu(terms).unbind(-1)
    positive = (real > 0) | (imaginary > 0)
    real = torch.where(positive, real, 1)
    powers = exponents.view(-1, 1, 1)
    length = (torch.hypot(real, imaginary) ** powers).prod(0)
    length = torch.where(positive.all(0), length, 0)
    angle = (torch.where(positive, torch.atan2(imaginary, real), 0) * powers).sum(0)
    return torch.stack((length * torch.cos(angle), length * torch.sin(angle)), -1)
