"""The projector's operators on CUDA: the kernels of csrc/cuda/xray.h on the current stream of the tensors' device.

A call takes a few views at a time, so that its workspaces do not grow with the number of views. Forward makes the
shadows of all Gaussians in these views, lists the tiles of pixels that each shadow touches, sorts the list by tile with
torch (stable, so that a tile's shadows keep their order) and adds the shadows tile by tile. The length of the list is
read on the host, which waits for the device once for these views. A long list is worked through in parts. Backward
gathers Gaussian by Gaussian and does not wait. Results are bitwise reproducible.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from . import _cuda_module
from ._cuda_call import GaussianCall
from ._cuda_kernels import XRAYS, Kernels
from .xray import checked_frames, checked_gaussians, checked_gradient, xray, xray_backward

_PREPARE, _PAIRS, _RENDER, _GATHER, _CHAIN = range(5)

#: Edge of a tile in pixels, views of a call, bytes of a shadow, and sums that backward gathers for each shadow, all as
#: in csrc/cuda/xray_problem.h.
_TILE, _VIEWS, _SHADOW_BYTES, _SUMS = 16, 8, 88, 12

#: Shadows that are made at a time, unless one view has more, and pairs of a tile and a shadow that are sorted at a time
#: (up to the tiles of one more shadow). Their workspaces take about 100 and 50 bytes each: some 100 and 200 MB.
_SHADOWS, _PAIRS_AT_ONCE = 1 << 20, 1 << 22

_POINTERS = (
    "means quats scales values shadows tile_counts pair_ends pair_tiles pair_shadows tile_shadows tile_starts "
    "pictures gradient sums totals value_totals grad_means grad_quats grad_scales"
).split()


class _View(ctypes.Structure):
    """`XrayView` of csrc/xray_math.h. The launcher fills in what follows the frame."""

    _fields_ = (("frame", ctypes.c_double * 12), ("rest", ctypes.c_double * 10))


class _Problem(ctypes.Structure):
    """`XrayProblem` of csrc/cuda/xray_problem.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in _POINTERS),
        ("count", ctypes.c_longlong),
        ("begin", ctypes.c_longlong),
        ("end", ctypes.c_longlong),
        ("views", _View * _VIEWS),
        ("width", ctypes.c_int),
        ("height", ctypes.c_int),
        ("cone", ctypes.c_int),
        ("channels", ctypes.c_int),
        ("view_count", ctypes.c_int),
        ("tiles", ctypes.c_int * 2),
        ("is_last", ctypes.c_int),
        ("stage", ctypes.c_int),
    )


class _Call(GaussianCall):
    """One call of the projector's kernels."""

    def __init__(
        self,
        kernels: Kernels,
        stream: int,
        inputs: tuple[Tensor, ...],
        frames: Tensor,
        detector: list[int],
        cone: bool,
    ) -> None:
        layout = (ctypes.c_int * 5)()
        kernels.library.splat_ssim_cuda_xray_layout(layout)
        if list(layout) != [ctypes.sizeof(_Problem), _SHADOW_BYTES, ctypes.sizeof(_View), _TILE, _VIEWS]:
            raise ImportError(f"the library's projector must fit this package, got layout {list(layout)}: reinstall")
        height, width = detector
        super().__init__(kernels, stream, "xray", _Problem(width=width, height=height, cone=cone), inputs)
        self.problem.tiles[:] = [-(-size // _TILE) for size in (width, height)]
        self._frames: list[list[float]] = frames.reshape(-1, 12).tolist()
        self._together = max(1, min(_VIEWS, len(self._frames), _SHADOWS // self.count))
        self.new("shadows", self._together * self.count * _SHADOW_BYTES, dtype=torch.uint8)
        self.new("tile_counts", self._together * self.count, dtype=torch.int64)

    def zeros(self, name: str, *shape: int) -> Tensor:
        """Points the problem to new float64 zeros."""
        return self.point(name, torch.zeros(shape, dtype=torch.float64, device=self.device))

    def groups(self) -> list[range]:
        """The views, as many at a time as the workspaces hold."""
        views, step = len(self._frames), self._together
        return [range(first, min(first + step, views)) for first in range(0, views, step)]

    def prepare(self, views: range) -> None:
        """Turns to these views and makes their shadows."""
        problem = self.problem
        problem.view_count, problem.is_last = len(views), views.stop == len(self._frames)
        for view, number in zip(problem.views, views, strict=False):
            view.frame[:] = self._frames[number]
        self.run(_PREPARE)

    @property
    def sums_size(self) -> int:
        """Number of sums that backward gathers for the views of one group."""
        return self._together * self.count * _SUMS

    def render(self) -> None:
        """Adds the shadows that `prepare` made, about `_PAIRS_AT_ONCE` pairs of a tile and a shadow at a time."""
        shadows = self.problem.view_count * self.count
        ends = self.point("pair_ends", self._tensors["tile_counts"][:shadows].cumsum(0))
        total = int(ends[-1])
        if total <= _PAIRS_AT_ONCE:
            parts = [(0, shadows, total)]
        else:
            # A part ends with the last shadow whose pairs end within a multiple of the limit.
            limits = torch.arange(1, -(-total // _PAIRS_AT_ONCE), device=self.device) * _PAIRS_AT_ONCE
            cuts = torch.searchsorted(ends, limits, right=True)
            counts = torch.cat([ends.new_zeros(1), ends])[cuts]
            places, before = torch.stack([cuts, counts]).tolist()
            edges, sums = [0, *places, shadows], [0, *before, total]
            parts = [(edges[k], edges[k + 1], sums[k + 1] - sums[k]) for k in range(len(edges) - 1)]
        for begin, end, pairs in parts:
            if pairs:
                self._render_part(begin, end, pairs)

    def _render_part(self, begin: int, end: int, pairs: int) -> None:
        """Adds the shadows from number `begin` to before `end`, which have so many pairs."""
        self.problem.begin, self.problem.end = begin, end
        tiles = self.new("pair_tiles", pairs, dtype=torch.int32)
        shadows = self.new("pair_shadows", pairs, dtype=torch.int32)
        self.run(_PAIRS)
        tiles, order = torch.sort(tiles, stable=True)
        self.point("tile_shadows", shadows[order])
        across, down = self.problem.tiles
        count = self.problem.view_count * across * down
        every = torch.arange(count + 1, dtype=torch.int32, device=self.device)
        self.point("tile_starts", torch.searchsorted(tiles, every))
        self.run(_RENDER)


def forward(
    kernels: Kernels, stream: int, inputs: tuple[Tensor, ...], frames: Tensor, detector: list[int], cone: bool
) -> Tensor:
    """The pictures (V, C, rows, columns) of `splat_ssim::xray` from means, quats, scales and values."""
    count, channels = inputs[3].shape
    pictures = inputs[0].new_zeros((len(frames), channels, *detector))
    if count == 0 or pictures.numel() == 0:
        return pictures
    call = _Call(kernels, stream, inputs, frames, detector, cone)
    for views in call.groups():
        call.point("pictures", pictures[views.start : views.stop])
        call.prepare(views)
        call.render()
    return pictures


def backward(
    kernels: Kernels,
    stream: int,
    gradient: Tensor,
    inputs: tuple[Tensor, ...],
    frames: Tensor,
    detector: list[int],
    cone: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of `splat_ssim::xray_backward`."""
    count, channels = inputs[3].shape
    if count == 0 or gradient.numel() == 0:
        zeros = [torch.zeros_like(tensor, memory_format=torch.contiguous_format) for tensor in inputs]
        return zeros[0], zeros[1], zeros[2], zeros[3]
    call, gradient = _Call(kernels, stream, inputs, frames, detector, cone), gradient.detach().contiguous()
    call.new("sums", call.sums_size)
    call.zeros("totals", count, _SUMS)
    by_value = call.zeros("value_totals", count, channels)
    names = ("grad_means", "grad_quats", "grad_scales")
    grads = [call.new(name, *tensor.shape) for name, tensor in zip(names, inputs[:3], strict=True)]
    for views in call.groups():
        call.point("gradient", gradient[views.start : views.stop])
        call.prepare(views)
        call.run(_GATHER)
        call.run(_CHAIN)
    return grads[0], grads[1], grads[2], by_value.float()


def has_kernels(device: torch.device) -> bool:
    """Whether the kernels run on this CUDA device. If not, a warning has said why."""
    return _cuda_module.kernels(device.index, XRAYS) is not None


@xray.register_kernel("cuda")
def _xray(
    means: Tensor, quats: Tensor, scales: Tensor, values: Tensor, frames: Tensor, detector: list[int], cone: bool
) -> Tensor:
    inputs, frames = checked_gaussians(means, quats, scales, values), checked_frames(frames, detector)
    return forward(*_cuda_module.target(means, XRAYS), tuple(inputs), frames, detector, cone)


@xray_backward.register_kernel("cuda")
def _xray_backward(
    gradient: Tensor,
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    values: Tensor,
    frames: Tensor,
    detector: list[int],
    cone: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    inputs, frames = checked_gaussians(means, quats, scales, values), checked_frames(frames, detector)
    gradient = checked_gradient(gradient, (len(frames), values.shape[1], *detector), means.device)
    return backward(*_cuda_module.target(means, XRAYS), gradient, tuple(inputs), frames, detector, cone)
