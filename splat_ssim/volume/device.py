"""The device that volumes are fitted on."""

from __future__ import annotations

import torch

from ..errors import UserError
from ..ops.voxelize_cuda import has_kernels
from ..trainer.device import pick_device
from .config import VolumeConfig


def pick_volume_device(config: VolumeConfig) -> torch.device:
    """Returns the device of --device. auto is CUDA if torch sees such a device and the voxeliser's kernels run on it.

    Raises:
        UserError: cuda is requested but not available, or Gaussians would have to be fitted without the kernels there.
    """
    device = pick_device(config.device)
    if device.type != "cuda" or config.model.name != "gaussians":
        return device
    # The definition in plain torch is too slow on any device, since it computes every Gaussian at every voxel.
    if has_kernels(torch.device("cuda", torch.cuda.current_device())):
        return device
    if config.device == "cuda":
        raise UserError("--device cuda requires this package's CUDA kernels to fit Gaussians, got none (see above)")
    return torch.device("cpu")
