"""The X-ray projector in plain torch: the definition, and the path where no kernel runs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..volume.reference import CUTOFF, rotation_matrices

#: Gaussians times pixels evaluated at once.
_CHUNK = 1 << 20


def rays(frame: Tensor, detector: tuple[int, int], *, cone: bool) -> tuple[Tensor, Tensor]:
    """Returns a point on the ray of each pixel and the ray's direction, each (rows · columns, 3) or (1, 3).

    Args:
        frame: (4, 3), see `XrayGeometry.frames`.
        detector: Number of rows and of columns.
        cone: Whether all rays start at one point. Otherwise they are parallel.
    """
    origin, column, row, last = frame
    down = torch.arange(detector[0], dtype=frame.dtype, device=frame.device)[:, None, None]
    right = torch.arange(detector[1], dtype=frame.dtype, device=frame.device)[None, :, None]
    across = (right * column + down * row).reshape(-1, 3)
    return (origin[None], last + across) if cone else (origin + across, last[None])


def project_reference(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    values: Tensor,
    frames: Tensor,
    detector: tuple[int, int],
    *,
    cone: bool,
) -> Tensor:
    """P_c(ray) = sum over i of values_ic ∫ exp(-q_i/2) dl over the part of the ray where q_i ≤ 9, in the inputs' dtype.

    Along a ray x = o + t d, with a = W (o - mean) and b = W d, W = diag(1/s) Rᵀ, q = |a + t b|² is least at
    t = -a·b / b·b. With q0 its value there the integral is √(2π) |d|/|b| exp(-q0/2) erf(√((9 - q0)/2)) where q0 ≤ 9,
    else 0; see docs/xray.md.

    Args:
        means: (N, 3), world x, y, z.
        quats: (N, 4), w, x, y, z.
        scales: (N, 3), standard deviations in world units.
        values: (N, C).
        frames: (V, 4, 3), see `XrayGeometry.frames`.
        detector: Number of rows and of columns.
        cone: Whether all rays start at one point, the source. Otherwise they are parallel. With a cone, a Gaussian
            counts only if all of it lies on the detector's side of the plane through the source that is parallel to the
            detector.

    Returns:
        (V, C, rows, columns), differentiable. It is slow, because every Gaussian is evaluated on every pixel.
    """
    W = rotation_matrices(quats).transpose(1, 2) / scales[:, :, None]  # [N, 3, 3]
    pictures = []
    for frame in frames.to(means):
        origin, direction = rays(frame, detector, cone=cone)
        picture = values.new_zeros(values.shape[1], detector[0] * detector[1])
        step = max(1, _CHUNK // picture.shape[1])
        for i in range(0, len(means), step):
            integral = _integrals(means[i : i + step], W[i : i + step], origin, direction)
            if cone:
                before = _before_source(means[i : i + step], W[i : i + step], frame)
                integral = torch.where(before[:, None], integral, integral.new_zeros(()))
            picture = picture + values[i : i + step].T @ integral
        pictures.append(picture.reshape(-1, *detector))
    return torch.stack(pictures) if pictures else values.new_zeros(0, values.shape[1], *detector)


def _integrals(means: Tensor, W: Tensor, origin: Tensor, direction: Tensor) -> Tensor:
    """∫ exp(-q/2) dl over q ≤ 9, for every Gaussian and ray: (N, M)."""
    a = (origin[None] - means[:, None]) @ W.transpose(1, 2)  # [N, M or 1, 3]
    b = direction[None] @ W.transpose(1, 2)
    bb = b.square().sum(-1)
    nearest = a - ((a * b).sum(-1) / bb)[..., None] * b
    rest = (CUTOFF - nearest.square().sum(-1)) / 2  # [N, M]
    inside = rest > 0
    rest = torch.where(inside, rest, torch.ones_like(rest))
    through = torch.exp(rest - CUTOFF / 2) * torch.erf(rest.sqrt())
    length = direction.norm(dim=-1) / bb.sqrt()
    integrals: Tensor = math.sqrt(2 * math.pi) * length * torch.where(inside, through, torch.zeros_like(through))
    return integrals


@torch.no_grad()
def _before_source(means: Tensor, W: Tensor, frame: Tensor) -> Tensor:
    """(N,) whether a Gaussian, up to its cut-off, lies on the detector's side of the source."""
    origin, column, row, last = frame
    normal = torch.linalg.cross(column, row)
    normal = normal * (normal @ last).sign()
    # Its half extent along the normal is 3 |diag(s) Rᵀ n| = 3 |W⁻ᵀ n|.
    extent = CUTOFF**0.5 * torch.linalg.solve(W.transpose(1, 2), normal[:, None].expand(len(W), 3, 1))[..., 0].norm(
        dim=1
    )
    before: Tensor = (means - origin) @ normal > extent
    return before
