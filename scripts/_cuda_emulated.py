"""Counts what every CUDA kernel does by running it in the counting emulation, for cuda_counts.py.

The package's own launchers start the kernels. The images and volumes fill whole blocks and are one segment along the
marching axis, so the counts are those in the middle of a large image.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

import build_emulation
from splat_ssim.ct import XrayGeometry, circle
from splat_ssim.ops import _cuda_kernels, _cuda_means, voxelize_cuda, xray_cuda
from splat_ssim.ops import _cuda_launch as launch
from splat_ssim.options import SSIMOptions
from splat_ssim.volume import VoxelGrid

_DEFAULT_WINDOW = 11
_GAUSSIAN_STAGES = ("prepare", "pairs", "render", "gather", "chain")
_STAGES_BY_CHANNELS = ("render", "gather")


@dataclass(frozen=True)
class Emulated:
    """Counts of the emulation for one output of a kernel.

    Attributes:
        use: Purpose of the call that ran the kernel.
        unit: Kind of the outputs, such as "element" or "voxel".
        length: Number of steps along the marching axis that made outputs; 0 if the kernel does not march.
        floating: float32 instructions: additions, multiplications and fused multiply-adds.
        special: Reciprocals and powers of two.
        read_bytes: Bytes that the threads request from global memory.
        written_bytes: Bytes written to global memory.
        wavefronts: Shared-memory wavefronts for 32 outputs, without the march's warm-up.
        words: Words requested from shared memory, without the warm-up: the number of wavefronts if no access had
            conflicts or broadcasts.
    """

    use: str
    unit: str
    length: int
    floating: float
    special: float
    read_bytes: float
    written_bytes: float
    wavefronts: float
    words: float


class _CountingKernels(_cuda_kernels.Kernels):
    """The launchers on the counting emulation, with a single segment. Keeps the counts of each kernel's last run."""

    def __init__(self, library: ctypes.CDLL) -> None:
        super().__init__(library, None, 1)
        self.counts: dict[str, list[float]] = {}
        self.lengths: dict[str, int] = {}

    def prepare(
        self, problem: _cuda_kernels.KernelProblem, options: _cuda_kernels.KernelOptions, operation: int
    ) -> int:
        blocks: int = super().prepare(problem, options, operation)
        if blocks == 0:
            return 0
        blocks //= problem.segments
        outputs = problem.map_size if operation == _cuda_kernels.FORWARD else problem.size[2:]
        problem.segment, problem.segments = outputs[0 if options.spatial_dims == 3 else 1], 1
        self.lengths[self.names[problem.kernel]] = problem.segment
        return blocks

    def _take(self) -> list[float]:
        counts = (ctypes.c_double * 8)()
        self.library.splat_emulation_take_counts(counts)
        return list(counts)

    def launch(self, name: str, argument: ctypes.Structure, stream: int) -> None:
        self._take()
        super().launch(name, argument, stream)
        if name == "ssim":
            kernel = self.names[argument.kernel]
        elif name in ("voxelize", "xray"):
            stage = _GAUSSIAN_STAGES[argument.stage]
            kernel = f"splat_{'voxel' if name == 'voxelize' else name}_{stage}" + (
                "_many" if argument.channels > 1 and stage in _STAGES_BY_CHANNELS else ""
            )
        else:
            kernel = f"splat_{name}"
        self.counts[kernel] = self._take()


@dataclass(frozen=True)
class _Workload:
    """A call that runs kernels, and the number of outputs of each of them."""

    use: str
    unit: str
    run: Callable[[_cuda_kernels.Kernels], object]
    outputs: dict[str, int]


def _photometric(
    img1: Tensor,
    img2: Tensor,
    options: SSIMOptions,
    grads: tuple[Tensor | None, Tensor | None] = (None, None),
    mask: Tensor | None = None,
) -> Callable[[_cuda_kernels.Kernels], object]:
    return lambda kernels: launch.photometric(kernels, 0, img1, img2, mask, 0.8, 0.2, False, options, grads)


def _of_the_map(
    img1: Tensor, img2: Tensor, options: SSIMOptions, grads: tuple[Tensor | None, Tensor | None]
) -> Callable[[_cuda_kernels.Kernels], object]:
    upstream = torch.rand_like(img1)
    return lambda kernels: launch.fill_map_gradients(kernels, 0, upstream, img1, img2, options, grads)


def _suffix(window_size: int) -> str:
    """Suffix of the names of a window's kernels. The default window has none."""
    return "" if window_size == _DEFAULT_WINDOW else f"_{window_size}"


def _of_both(dims: int, window_size: int) -> Iterator[_Workload]:
    """Both gradients of float32 images or volumes."""
    shape = (1, 1, 192, 256) if dims == 2 else (1, 1, 48, 32, 32)
    img1, img2, both = torch.rand(shape), torch.rand(shape), (torch.empty(shape), torch.empty(shape))
    names = [f"splat_{part}{dims}d{_suffix(window_size)}" for part in ("forward", "adjoint")]
    run = _of_the_map(img1, img2, SSIMOptions(window_size), both)
    yield _Workload("both gradients of the map", "element", run, dict.fromkeys(names, img1.numel()))


def _of_axes(window_size: int) -> Iterator[_Workload]:
    """Both gradients of volumes with a sigma for each axis. The window size is the same, so no tap is skipped."""
    shape = (1, 1, 48, 32, 32)
    img1, img2, both = torch.rand(shape), torch.rand(shape), (torch.empty(shape), torch.empty(shape))
    names = [f"splat_{part}3d_axes_{window_size}" for part in ("forward", "adjoint")]
    run = _of_the_map(img1, img2, SSIMOptions(window_size, (1.0, 1.5, 2.0)), both)
    yield _Workload("both gradients, sigma by axis", "element", run, dict.fromkeys(names, img1.numel()))


def _of_volumes(window_size: int) -> Iterator[_Workload]:
    """The value and one gradient of float32 volumes."""
    shape, options = (1, 1, 48, 32, 32), SSIMOptions(window_size)
    img1, img2, grads = torch.rand(shape), torch.rand(shape), (torch.empty(shape), None)
    value, weighted, partials = "splat_value3d", "splat_weighted3d", "splat_partials3d"
    if window_size != _DEFAULT_WINDOW:
        value = weighted = partials = f"splat_plain3d_{window_size}"
    yield _Workload("value", "element", _photometric(img1, img2, options), {value: img1.numel()})
    names = (weighted, f"splat_backward3d{_suffix(window_size)}")
    run = _of_the_map(img1, img2, options, grads)
    yield _Workload("gradient of the map", "element", run, dict.fromkeys(names, img1.numel()))
    run = _photometric(img1, img2, options, grads)
    yield _Workload("loss and gradient", "element", run, {partials: img1.numel()})


def _of_images(window_size: int) -> Iterator[_Workload]:
    """The value of images, and one gradient by the fused kernels, which output fewer columns than they load."""
    img1, img2 = torch.rand(2, 1, 1, 192, 256)
    run = _photometric(img1, img2, SSIMOptions(window_size))
    yield _Workload("value", "element", run, {f"splat_value2d{_suffix(window_size)}": img1.numel()})
    planar = torch.rand(2, 1, 1, 192, 257 - window_size)
    mask = torch.rand(1, 1, 192, 257 - window_size)
    last = planar.expand(2, 1, 3, -1, -1).movedim(2, -1).contiguous()
    for use, suffix, (img1, img2), weight in (
        ("loss and gradient, masked", "_weighted", planar, mask),
        ("loss and gradient, NHWC, masked", "_weighted_strided", last, mask.movedim(1, -1)),
        ("loss and gradient", "", planar, None),
        ("loss and gradient, NHWC", "_strided", last, None),
    ):
        options = SSIMOptions(window_size, channels_last=suffix.endswith("_strided"))
        run = _photometric(img1, img2, options, (torch.empty_like(img1), None), weight)
        if window_size != _DEFAULT_WINDOW:
            suffix = suffix.removeprefix("_weighted")
        yield _Workload(use, "element", run, {f"splat_fused2d{suffix}{_suffix(window_size)}": img1.numel()})


def _of_own_kernels() -> Iterator[_Workload]:
    """Images that only the default window has kernels for: images one strip wide, and RGBA targets."""
    options = SSIMOptions()
    img1, img2 = torch.rand(2, 1, 1, 192, 256)
    run = _photometric(img1, img2, options, (torch.empty_like(img1), None))
    yield _Workload("loss and gradient, 256 columns", "element", run, {"splat_fused2d_lone": img1.numel()})
    pred, pixels = torch.rand(1, 3, 192, 246), torch.randint(256, (1, 192, 246, 4), dtype=torch.uint8)
    rgba, grad, background = pixels.movedim(-1, 1), torch.empty_like(pred), torch.ones(1, 3)

    def of_rgba(kernels: _cuda_kernels.Kernels) -> object:
        arguments = (None, 0.8, 0.2, False, options, (grad, None))
        return launch.photometric(kernels, 0, pred, rgba, *arguments, background=background)

    yield _Workload("loss and gradient, RGBA", "element", of_rgba, {"splat_fused2d_rgba": pred.numel()})


def _elementwise() -> Iterator[_Workload]:
    """Padding, its adjoint, sums and scaling."""
    shape = (1, 1, 246, 246)
    img1, img2, grad = torch.rand(shape), torch.rand(shape), torch.empty(shape)
    options = SSIMOptions(padding="reflect")
    run = _photometric(img1, img2, options, (grad, None))
    yield _Workload("reflect padding", "padded element", run, {"splat_pad": 256 * 256})
    yield _Workload("reflect padding", "element", run, {"splat_fold": img1.numel(), "splat_l1": img1.numel()})
    sums, means = torch.rand(1, 1 << 16), [torch.empty(()) for _ in range(3)]

    def reduce(kernels: _cuda_kernels.Kernels) -> None:
        call = launch._Call(kernels, 0, img1, img2, SSIMOptions())
        call.reduce(_cuda_means.Means(means, (1.0, 1.0), (0.8, 0.2), 0.0).reduction(sums, sums))

    yield _Workload("two kinds of sums", "block sum", reduce, {"splat_reduce": 2 * sums.numel()})
    gradient = torch.rand(1, 3, 256, 256)

    def scale(kernels: _cuda_kernels.Kernels) -> None:
        launch.scale(kernels, 0, gradient, torch.tensor(0.5))

    yield _Workload("upstream other than 1", "element", scale, {"splat_scale": gradient.numel()})


def _voxelizer(channels: int) -> Iterator[_Workload]:
    """The voxeliser on 500 Gaussians with standard deviations of 1 to 2 voxels, in 32 x 32 x 32 voxels."""
    generator = torch.Generator().manual_seed(0)
    count, size = 500, 32
    means = size * torch.rand(count, 3, generator=generator)
    quats = torch.randn(count, 4, generator=generator)
    scales = 1 + torch.rand(count, 3, generator=generator)
    inputs = (means, quats, scales, torch.rand(count, channels, generator=generator))
    affine = [value for row in VoxelGrid.regular((size,) * 3).affine for value in row]
    window = [0, 0, 0, size, size, size]
    gradient = torch.rand(channels, size, size, size)

    def forward(kernels: _cuda_kernels.Kernels) -> None:
        voxelize_cuda.forward(kernels, 0, inputs, affine, window)

    def backward(kernels: _cuda_kernels.Kernels) -> None:
        voxelize_cuda.backward(kernels, 0, gradient, inputs, affine, window)

    suffix = "_many" if channels > 1 else ""
    use = f"{count} Gaussians of 1 to 2 voxels in {size}^3, {channels} channel{'s' if channels > 1 else ''}"
    yield _Workload(use, "voxel", forward, {f"splat_voxel_render{suffix}": size**3})
    yield _Workload(use, "Gaussian", backward, {f"splat_voxel_gather{suffix}": count})
    if channels == 1:
        yield _Workload(use, "Gaussian", forward, {"splat_voxel_prepare": count, "splat_voxel_pairs": count})
        yield _Workload(use, "Gaussian", backward, {"splat_voxel_chain": count})


def _projector(channels: int) -> Iterator[_Workload]:
    """The projector on 500 Gaussians with standard deviations of 1 to 2 pixels, 4 views of 32 x 32 pixels."""
    generator = torch.Generator().manual_seed(0)
    count, size, views = 500, 32, 4
    means = size * (torch.rand(count, 3, generator=generator) - 0.5)
    quats = torch.randn(count, 4, generator=generator)
    scales = 1 + torch.rand(count, 3, generator=generator)
    inputs = (means, quats, scales, torch.rand(count, channels, generator=generator))
    beam = XrayGeometry(
        "cone", (size, size), (1.5, 1.5), circle(views, "cone"), source_object=4.0 * size, source_detector=6.0 * size
    )
    frames, detector = beam.frames(), [size, size]
    gradient = torch.rand(views, channels, size, size)

    def forward(kernels: _cuda_kernels.Kernels) -> None:
        xray_cuda.forward(kernels, 0, inputs, frames, detector, True)

    def backward(kernels: _cuda_kernels.Kernels) -> None:
        xray_cuda.backward(kernels, 0, gradient, inputs, frames, detector, True)

    suffix = "_many" if channels > 1 else ""
    use = f"{count} Gaussians of 1 to 2 pixels in {views} views of {size}^2, {channels} channel{'s' * (channels > 1)}"
    yield _Workload(use, "pixel", forward, {f"splat_xray_render{suffix}": views * size**2})
    yield _Workload(use, "shadow", backward, {f"splat_xray_gather{suffix}": views * count})
    if channels == 1:
        stages = {"splat_xray_prepare": views * count, "splat_xray_pairs": views * count}
        yield _Workload(use, "shadow", forward, stages)
        yield _Workload(use, "Gaussian", backward, {"splat_xray_chain": count})


def window_of(kernel: str) -> int:
    """The window a kernel is for, from its name."""
    last = kernel.rpartition("_")[2]
    return int(last) if last.isdecimal() else _DEFAULT_WINDOW


def run_all() -> dict[str, Emulated]:
    """The counts of every kernel, by name."""
    library = ctypes.CDLL(str(build_emulation.build("count")))
    kernels, found = _CountingKernels(library), {}
    windows = sorted(_cuda_kernels.WINDOW_SIZES)
    narrow = [window for window in windows if window <= _DEFAULT_WINDOW]
    workloads = itertools.chain(
        *(_of_both(dims, window) for window in windows for dims in (2, 3)),
        *(of(window) for window in narrow for of in (_of_images, _of_volumes)),
        *map(_of_axes, (_DEFAULT_WINDOW, max(windows))),
        _of_own_kernels(),
        _elementwise(),
        *map(_voxelizer, (1, 4)),
        *map(_projector, (1, 4)),
    )
    for workload in workloads:
        kernels.counts.clear()
        workload.run(kernels)
        for name, outputs in workload.outputs.items():
            if name not in kernels.counts:
                raise SystemExit(f"{', '.join(kernels.counts)} ran in the place of {name}")
            fused, added, multiplied, special, read, written, words, wavefronts = (
                count / outputs for count in kernels.counts[name]
            )
            length = kernels.lengths.get(name, 0)
            # Each step moves the same amount of shared memory, and warm-up hardly counts in long segments: remove it.
            window = window_of(name)
            warm_up = 2 * window - 1 if "fused" in name else window - 1
            steps = 1 + warm_up / length if length else 1.0
            found[name] = Emulated(
                workload.use,
                workload.unit,
                length,
                fused + added + multiplied,
                special,
                read,
                written,
                32 * wavefronts / steps,
                words / steps,
            )
    return found
