from __future__ import annotations

import torch
from torch import Tensor


def tv3d(volume: Tensor) -> Tensor:
    """Total variation: the mean absolute difference of neighbouring voxels, averaged over the axes.

    Args:
        volume: (C, n0, n1, n2), any float dtype.

    Returns:
        A scalar, differentiable with respect to the volume. An axis of one voxel adds nothing.

    Example:
        >>> import torch
        >>> from splat_ssim.volume.losses import tv3d
        >>> tv3d(torch.tensor([0.0, 1.0, 3.0]).reshape(1, 3, 1, 1))
        tensor(0.5000)
    """
    total = volume.new_zeros(())
    for axis in (1, 2, 3):
        if volume.shape[axis] > 1:
            total = total + torch.diff(volume, dim=axis).abs().mean()
    return total / 3
