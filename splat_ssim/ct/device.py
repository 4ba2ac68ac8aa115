"""The device that a volume is reconstructed on."""

from __future__ import annotations

import torch

from ..errors import UserError
from ..ops import voxelize_cuda, xray_cuda
from ..trainer.device import pick_device


def pick_ct_device(name: str) -> torch.device:
    """Returns the device of --device. auto is CUDA if the projector's and the voxeliser's kernels run on it.

    Raises:
        UserError: cuda is requested but not available, or the kernels do not run there.
    """
    device = pick_device(name)
    if device.type != "cuda":
        return device
    # The definitions in plain torch are too slow on any device, since they compute every Gaussian at every pixel.
    current = torch.device("cuda", torch.cuda.current_device())
    if xray_cuda.has_kernels(current) and voxelize_cuda.has_kernels(current):
        return device
    if name == "cuda":
        raise UserError("--device cuda requires this package's CUDA kernels to fit Gaussians, got none (see above)")
    return torch.device("cpu")
