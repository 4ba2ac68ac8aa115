"""A call of the kernels for Gaussians: the voxeliser's and the projector's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._cuda_kernels import Kernels


class GaussianCall:
    """One call: the kernels' argument, and every tensor that it points to.

    Args:
        kernels: The kernels of a device.
        stream: Stream to start them on.
        launcher: Name of their launcher, as for `Kernels.launch`.
        problem: Their argument, with fields for `count`, `channels`, `stage` and a pointer for each tensor.
        inputs: means (N, 3), quats (N, 4), scales (N, 3) and values (N, C), float32 on the kernels' device.
    """

    def __init__(self, kernels: Kernels, stream: int, launcher: str, problem: Any, inputs: tuple[Tensor, ...]) -> None:
        self.kernels, self.stream, self.launcher, self.problem = kernels, stream, launcher, problem
        self.device = inputs[0].device
        self.count, self.channels = problem.count, problem.channels = inputs[3].shape
        self._tensors: dict[str, Tensor] = {}
        for name, tensor in zip(("means", "quats", "scales", "values"), inputs, strict=True):
            self.point(name, tensor.detach().contiguous())

    def point(self, name: str, tensor: Tensor) -> Tensor:
        """Points the problem to a contiguous tensor and keeps the tensor alive as long as the call."""
        self._tensors[name] = tensor
        setattr(self.problem, name, tensor.data_ptr())
        return tensor

    def new(self, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Points the problem to a new, uninitialised tensor."""
        return self.point(name, torch.empty(shape, dtype=dtype, device=self.device))

    def run(self, stage: int) -> None:
        """Starts a stage's kernel."""
        self.problem.stage = stage
        self.kernels.launch(self.launcher, self.problem, self.stream)
