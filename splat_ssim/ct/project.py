"""X-ray pictures of the Gaussians that volumes are fitted with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..ops import compiled
from ..ops import xray as _ops
from ..ops import xray_cuda as _cuda
from ..volume.voxelize import check_gaussians
from .geometry import XrayGeometry
from .reference import project_reference

if TYPE_CHECKING:
    from ..volume.gaussians import GaussianField


def _has_kernels(device: torch.device) -> bool:
    if device.type == "cuda":
        return _cuda.has_kernels(device)
    return device.type == "cpu" and compiled.library() is not None


def project(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    densities: Tensor,
    geometry: XrayGeometry,
    *,
    views: Sequence[int] | None = None,
    features: Tensor | None = None,
) -> Tensor:
    """Integrates the field of `voxelize` along the ray of each pixel, in closed form.

    A Gaussian is zero beyond Mahalanobis distance 3, as for `voxelize`. Rays begin in the source and do not end. A
    Gaussian that reaches the plane through the source parallel to the detector contributes nothing. The result is
    differentiable once with respect to every tensor, but not to the geometry. Gradients and values do not depend on the
    number of threads.

    Args:
        means: (N, 3) float32 or float64, world x, y, z in mm.
        quats: (N, 4), rotations as w, x, y, z of any length above 0.
        scales: (N, 3), standard deviations along the rotated axes in mm, above 0.
        densities: (N,) densities, in 1/mm for attenuation. They may be negative.
        geometry: Source, detector and angle of each view.
        views: Indices of the views to compute. By default all.
        features: (N, F): F further channels, weighted by density, as for `voxelize`.

    Returns:
        (V, 1 + F, rows, columns), density first. float64 tensors, and devices other than the CPU and CUDA, use the
        definition in plain torch, which is slow.

    Raises:
        ValueError: The shapes do not fit, or the tensors are on different devices.
        TypeError: A dtype is neither float32 nor float64, or the dtypes differ.

    Source:
        docs/xray.md derives the closed form with the cut-off. Without the cut-off it would be that of R²-Gaussian (Zha
        et al., NeurIPS 2024).

    Example:
        >>> import torch
        >>> from splat_ssim.ct import XrayGeometry, project
        >>> geometry = XrayGeometry("parallel", (9, 9), (1.0, 1.0), (0,))
        >>> pictures = project(torch.zeros(1, 3), torch.eye(4)[:1], torch.ones(1, 3), torch.ones(1), geometry)
        >>> pictures.shape, round(float(pictures[0, 0, 4, 4]), 3)  # the root of 2 pi, times erf(3 / sqrt 2)
        (torch.Size([1, 1, 9, 9]), 2.5)
    """
    check_gaussians(means, quats, scales, densities, features)
    values = densities[:, None]  # [N, 1]
    if features is not None:
        values = torch.cat([values, values * features], dim=1)  # [N, 1 + F]
    frames, cone = geometry.frames(views), geometry.kind == "cone"
    if means.dtype == torch.float32 and _has_kernels(means.device):
        pictures: Tensor = _ops.xray(means, quats, scales, values, frames, list(geometry.detector), cone)
        return pictures
    if means.dtype == torch.float32:
        # Far sources take more digits than float32 has.
        m, q, s, v = (t.double() for t in (means, quats, scales, values))
        return project_reference(m, q, s, v, frames, geometry.detector, cone=cone).float()
    return project_reference(means, quats, scales, values, frames, geometry.detector, cone=cone)


def project_field(field: GaussianField, geometry: XrayGeometry, *, views: Sequence[int] | None = None) -> Tensor:
    """`project` of a field, in the units it was fitted in (not its source's intensities)."""
    tensors = field.tensors
    moved = geometry.moved([-v for v in field.offset]) if any(field.offset) else geometry
    features = tensors["features"] if "features" in tensors else None
    scales = tensors["log_scales"].exp()
    return project(
        tensors["means"], tensors["quats"], scales, tensors["densities"], moved, views=views, features=features
    )
