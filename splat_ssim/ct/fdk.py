"""Filtered backprojection: the first guess of a reconstruction, and where its residual lies in space."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..volume.grid import VoxelGrid
from .geometry import XrayGeometry


def filtered(pictures: Tensor, geometry: XrayGeometry) -> Tensor:
    """Projections (V, rows, columns) under the cone's cosine weights and the ramp filter with Hann's window."""
    (rows, columns), (row_step, column_step) = geometry.detector, geometry.spacing
    step = column_step / geometry.magnification
    if geometry.kind == "cone":
        u = (torch.arange(columns) - (columns - 1) / 2) * column_step + geometry.offset[1]
        v = (torch.arange(rows) - (rows - 1) / 2) * row_step + geometry.offset[0]
        far = float(geometry.source_detector)  # type: ignore[arg-type]
        pictures = pictures * (far / (far**2 + u**2 + v[:, None] ** 2).sqrt()).to(pictures)
    # The ramp's band-limited kernel: 1/4 in the middle, -1/(pi n)^2 at odd n, 0 at even ones (Kak and Slaney, 3.3.3).
    length = 1 << (2 * columns - 1).bit_length()
    n = torch.fft.fftfreq(length, 1 / length, dtype=torch.float64).round()
    kernel = torch.where(n.long() % 2 == 1, -1 / (math.pi * n) ** 2, torch.zeros_like(n))
    kernel[0] = 0.25
    response = torch.fft.rfft(kernel).real
    response = response * (0.5 + 0.5 * torch.cos(math.pi * torch.linspace(0, 1, len(response), dtype=torch.float64)))
    spectrum = torch.fft.rfft(pictures, length) * response.to(pictures)
    weighted: Tensor = torch.fft.irfft(spectrum, length)[..., :columns] / step
    return weighted


@torch.no_grad()
def fdk(pictures: Tensor, geometry: XrayGeometry, grid: VoxelGrid) -> Tensor:
    """Reconstructs a volume (n0, n1, n2) by Feldkamp, Davis and Kress. A parallel beam is treated by the same steps.

    Views are taken to be spread evenly over a full or, of a parallel beam, a half circle.

    Args:
        pictures: (V, rows, columns) float32 line integrals, on the device to compute on.
        geometry: Source, detector and angle of each view.
        grid: Voxels to reconstruct.

    Returns:
        (n0, n1, n2) float32, on the device of the pictures.

    Source:
        Feldkamp, Davis and Kress, J. Opt. Soc. Am. A 1 (1984) 612.

    Example:
        >>> import torch
        >>> from splat_ssim.ct import XrayGeometry, circle
        >>> from splat_ssim.ct.fdk import fdk
        >>> from splat_ssim.ct.simulate import ray_sums
        >>> from splat_ssim.volume import VoxelGrid
        >>> grid = VoxelGrid.regular((17, 17, 17), origin=-8)
        >>> ball = (grid.points().norm(dim=-1) < 6).float()
        >>> geometry = XrayGeometry("parallel", (24, 24), (1, 1), circle(60, "parallel"))
        >>> volume = fdk(ray_sums(ball, grid, geometry).float(), geometry, grid)
        >>> bool((volume[8, 8, 6:11] - 1).abs().max() < 0.05)
        True
    """
    rows, columns = geometry.detector
    sharp = filtered(pictures, geometry)
    device = pictures.device
    result = torch.zeros(grid.shape, device=device)
    size = torch.tensor([columns, rows], device=device)
    indices = [torch.arange(n, dtype=torch.float64) for n in grid.shape]
    matrix = torch.from_numpy(grid.rebased().matrix)
    for picture, frame in zip(sharp, geometry.frames(), strict=True):
        # From voxel indices to column, row and depth, each a sum over the axes.
        inverse = torch.linalg.inv(frame[1:].T)
        steps, start = inverse @ matrix[:3, :3], inverse @ (matrix[:3, 3] - frame[0])
        along = [(steps[:, k, None] * indices[k]).float().to(device) for k in range(3)]
        start = start.float().to(device)
        x, y, depth = (along[0][k, :, None, None] + along[1][k, :, None] + (along[2][k] + start[k]) for k in range(3))
        weight = torch.ones((), device=device)
        if geometry.kind == "cone":
            depth = depth.reciprocal_()
            weight = (depth / geometry.magnification).square_()
            x, y = x.mul_(depth), y.mul_(depth)
        places = torch.stack([x, y], -1).mul_(2).add_(1).div_(size).sub_(1).reshape(1, 1, -1, 2)
        values = F.grid_sample(picture[None, None], places, align_corners=False).reshape(grid.shape)
        result += values.mul_(weight)
    return result * (math.pi / geometry.views)
