"""Position and size of a scene: outlying cameras, the origin of its coordinates, and what cameras look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from splat_ssim.scene.data.scene import View

#: A camera is an outlier beyond this multiple of the third quartile of the cameras' distances.
_OUTLIER = 5.0
#: Coordinates are centred if they are this many extents from 0, where float32 loses 1/100,000 of an extent.
_FAR = 100.0


def ordinary(centers: Tensor) -> Tensor:
    """Returns (N,) bool: false for cameras far from all the others, such as those that COLMAP misplaced.

    Args:
        centers: (N, 3) float64 positions.

    Example:
        >>> import torch
        >>> from splat_ssim.scene.data.placement import ordinary
        >>> centers = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0], [900, 0, 0]], dtype=torch.float64)
        >>> ordinary(centers).tolist()
        [True, True, True, True, False]
    """
    distances = (centers - torch.quantile(centers, 0.5, dim=0)).norm(dim=1)
    reach = float(torch.quantile(distances, 0.75, interpolation="lower"))
    near: Tensor = (distances <= _OUTLIER * reach) | (len(centers) < 4) | (reach == 0)
    return near


def extent_of(centers: Tensor) -> float:
    """1.1 times the largest distance of an ordinary camera from their mean, or 1 if all are at one place."""
    centers = centers[ordinary(centers)]
    extent = 1.1 * float((centers - centers.mean(0)).norm(dim=1).max())
    # A single camera, or several at one place, define no length.
    return extent if extent > 0 else 1.0


def choose_offset(centers: Tensor) -> tuple[float, float, float]:
    """Chooses the offset to subtract from all coordinates so that float32 is precise: 0 unless they are large.

    Args:
        centers: (N, 3) float64 positions of all cameras.
    """
    middle = torch.quantile(centers, 0.5, dim=0)
    if float(middle.norm()) <= _FAR * extent_of(centers):
        return 0.0, 0.0, 0.0
    x, y, z = middle.tolist()
    return x, y, z


def moved_viewmat(viewmat: Tensor, offset: Sequence[float]) -> Tensor:
    """A float64 world to camera matrix for coordinates from which `offset` was subtracted."""
    moved = viewmat.clone()
    moved[:3, 3] += viewmat[:3, :3] @ torch.tensor(offset, dtype=torch.float64)
    return moved


def nearest_point(centers: Tensor, directions: Tensor) -> Tensor:
    """(3,) point nearest to all rays from `centers` (N, 3) along unit `directions` (N, 3), in least squares."""
    # Σ (I - d dᵀ) x = Σ (I - d dᵀ) c. For parallel rays, the small multiple of I selects a point near the cameras.
    projections = torch.eye(3, dtype=centers.dtype) - directions[:, :, None] * directions[:, None]
    system = projections.sum(0) + 1e-6 * len(centers) * torch.eye(3, dtype=centers.dtype)
    right = (projections @ centers[..., None]).sum(0) + 1e-6 * centers.sum(0)[:, None]
    point: Tensor = torch.linalg.solve(system, right).squeeze(-1)
    return point


def looked_at(views: Sequence[View]) -> tuple[np.ndarray, float] | None:
    """Returns the point that cameras look at and half the edge of a visible cube there, or None if rays do not meet.

    Args:
        views: Cameras with float32 viewmats.
    """
    centers = torch.stack([view.center for view in views]).double()
    chosen = ordinary(centers)
    forward = torch.stack([view.viewmat[2, :3] for view in views]).double()[chosen]
    centers = centers[chosen]
    if len(centers) < 2:
        return None
    point = nearest_point(centers, forward)
    offsets = point - centers
    depths = (offsets * forward).sum(1)
    aside = (offsets - depths[:, None] * forward).norm(dim=1)
    # Cameras side by side, or cameras that look outwards, have no such point.
    spread = float((centers - centers.mean(0)).norm(dim=1).max())
    if depths.median() <= 0 or aside.median() > 0.5 * depths.median() or spread < 0.05 * float(depths.median()):
        return None
    frustums = torch.tensor([0.5 * min(view.width / view.K[0, 0], view.height / view.K[1, 1]) for view in views])
    return point.numpy(), float((depths * frustums[chosen]).median())
