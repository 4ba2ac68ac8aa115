"""The voxeliser's operators on CUDA: the kernels of csrc/cuda/voxelize.h on the current stream of the tensors' device.

Forward lists the bricks of voxels that each Gaussian touches, sorts that list by brick with torch (stable, so that a
brick's Gaussians keep their order) and renders brick by brick; the length of the list is read on the host, which waits
for the device once. Backward gathers Gaussian by Gaussian and does not wait. Results are bitwise reproducible.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from . import _cuda_module
from ._cuda_call import GaussianCall
from ._cuda_kernels import VOXELS, Kernels
from .voxelize import lattice_numbers, voxelize, voxelize_backward

_PREPARE, _PAIRS, _RENDER, _GATHER, _CHAIN = range(5)

#: Edge of a brick in voxels, bytes of a record, and sums that backward gathers for each Gaussian, all as in
#: csrc/cuda/voxel_problem.h.
_BRICK, _RECORD_BYTES, _SUMS = 8, 72, 9

_POINTERS = (
    "means quats scales values records brick_counts pair_ends pair_bricks pair_gaussians brick_gaussians brick_starts "
    "volume gradient sums grad_means grad_quats grad_scales grad_values"
).split()


class _Problem(ctypes.Structure):
    """`VoxelProblem` of csrc/cuda/voxel_problem.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in _POINTERS),
        ("to_world", ctypes.c_double * 9),
        ("to_index", ctypes.c_double * 9),
        ("origin", ctypes.c_double * 3),
        ("count", ctypes.c_longlong),
        ("channels", ctypes.c_int),
        ("start", ctypes.c_int * 3),
        ("size", ctypes.c_int * 3),
        ("bricks", ctypes.c_int * 3),
        ("stage", ctypes.c_int),
    )


class _Call(GaussianCall):
    """One call of the voxeliser's kernels."""

    def __init__(
        self, kernels: Kernels, stream: int, inputs: tuple[Tensor, ...], affine: list[float], window: list[int]
    ) -> None:
        layout = (ctypes.c_int * 3)()
        kernels.library.splat_ssim_cuda_voxel_layout(layout)
        if list(layout) != [ctypes.sizeof(_Problem), _RECORD_BYTES, _BRICK]:
            raise ImportError(f"the library's voxeliser must fit this package, got layout {list(layout)}: reinstall")
        super().__init__(kernels, stream, "voxelize", _Problem(), inputs)
        numbers = lattice_numbers(affine)
        self.problem.to_world[:], self.problem.to_index[:] = numbers[:9], numbers[9:18]
        self.problem.origin[:] = numbers[18:]
        self.problem.start[:], self.problem.size[:] = window[2::-1], window[:2:-1]
        self.problem.bricks[:] = [-(-size // _BRICK) for size in self.problem.size]
        self.new("records", self.count * _RECORD_BYTES, dtype=torch.uint8)
        self.new("brick_counts", self.count, dtype=torch.int64)

    def sort_into_bricks(self) -> None:
        """Lists the Gaussians of each brick, from the counts that `_PREPARE` made."""
        ends = self.point("pair_ends", self._tensors["brick_counts"].cumsum(0))
        pairs = int(ends[-1])
        bricks = self.new("pair_bricks", pairs, dtype=torch.int32)
        gaussians = self.new("pair_gaussians", pairs, dtype=torch.int32)
        self.run(_PAIRS)
        bricks, order = torch.sort(bricks, stable=True)
        self.point("brick_gaussians", gaussians[order])
        a, b, c = self.problem.bricks
        every = torch.arange(a * b * c + 1, dtype=torch.int32, device=self.device)
        self.point("brick_starts", torch.searchsorted(bricks, every))


def forward(
    kernels: Kernels, stream: int, inputs: tuple[Tensor, ...], affine: list[float], window: list[int]
) -> Tensor:
    """The volume (C, size0, size1, size2) of `splat_ssim::voxelize` from means, quats, scales and values."""
    count, channels = inputs[3].shape
    if count == 0 or channels == 0:
        return inputs[0].new_zeros((channels, *window[3:]))
    call = _Call(kernels, stream, inputs, affine, window)
    call.run(_PREPARE)
    call.sort_into_bricks()
    volume = call.new("volume", channels, *window[3:])
    call.run(_RENDER)
    return volume


def backward(
    kernels: Kernels,
    stream: int,
    gradient: Tensor,
    inputs: tuple[Tensor, ...],
    affine: list[float],
    window: list[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of `splat_ssim::voxelize_backward`."""
    if inputs[3].numel() == 0:
        zeros = [torch.zeros_like(tensor, memory_format=torch.contiguous_format) for tensor in inputs]
        return zeros[0], zeros[1], zeros[2], zeros[3]
    call = _Call(kernels, stream, inputs, affine, window)
    call.point("gradient", gradient.detach().contiguous())
    call.new("sums", call.count, _SUMS)
    names = ("grad_means", "grad_quats", "grad_scales", "grad_values")
    grads = [call.new(name, *tensor.shape) for name, tensor in zip(names, inputs, strict=True)]
    for stage in (_PREPARE, _GATHER, _CHAIN):
        call.run(stage)
    return grads[0], grads[1], grads[2], grads[3]


def has_kernels(device: torch.device) -> bool:
    """Whether the kernels run on this CUDA device. If not, a warning has said why."""
    return _cuda_module.kernels(device.index, VOXELS) is not None


@voxelize.register_kernel("cuda")
def _voxelize(
    means: Tensor, quats: Tensor, scales: Tensor, values: Tensor, affine: list[float], window: list[int]
) -> Tensor:
    return forward(*_cuda_module.target(means, VOXELS), (means, quats, scales, values), affine, window)


@voxelize_backward.register_kernel("cuda")
def _voxelize_backward(
    gradient: Tensor,
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    values: Tensor,
    affine: list[float],
    window: list[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return backward(*_cuda_module.target(means, VOXELS), gradient, (means, quats, scales, values), affine, window)
