"""Launches the CUDA kernels: on a device through the driver, or on CPU tensors through the host emulation."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from ..options import SSIMOptions
from ._cuda_kernels import (
    BACKWARD,
    CONTRAST,
    DSSIM,
    FORWARD,
    FUSED,
    L1,
    KernelOptions,
    KernelPadding,
    KernelProblem,
    KernelReduction,
    Kernels,
    KernelScaling,
    KernelTensor,
)
from ._cuda_means import FEW_GROUPS, Means, reduction_of
from ._cuda_recording import Recorder

#: Either starts the kernels (`Kernels`) or records their launches (`Recorder`).
Launcher = Kernels | Recorder

_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.uint8: 3}
#: The type of RGBA bytes, which are composited over a background.
_RGBA = 4


def _volume(image: Tensor, options: SSIMOptions) -> Tensor:
    """A view (B, C, D, H, W) of an image in the caller's layout."""
    if options.channels_last:
        image = image.movedim(-1, 1)
    return image.unsqueeze(2) if image.ndim == 4 else image


def _describe(tensor: Tensor, options: SSIMOptions) -> KernelTensor:
    strides = (ctypes.c_longlong * 5)(*tensor.stride())
    return KernelTensor(tensor.data_ptr(), strides, _TYPES[tensor.dtype], options.data_range)


def _radii(options: SSIMOptions, spatial_dims: int) -> list[int]:
    return [0] * (3 - spatial_dims) + [size // 2 for size in options.windows(spatial_dims)]


class _Call:
    """One call. Holds the images as (B, C, D, H, W) views, or as padded copies for padding "reflect" or "replicate".

    If only the second image needs a gradient, the images are swapped, since SSIM and |x - y| are symmetric. So
    `grads[0]` is given whenever a gradient is needed.
    """

    def __init__(
        self,
        kernels: Launcher,
        stream: int,
        img1: Tensor,
        img2: Tensor,
        options: SSIMOptions,
        grads: tuple[Tensor | None, Tensor | None] = (None, None),
    ) -> None:
        self.kernels, self.options, self.stream = kernels, options, stream
        images, wanted = [img1, img2], list(grads)
        if grads[0] is None and grads[1] is not None:
            images.reverse()
            wanted.reverse()
        self.originals = [_volume(image.detach(), options) for image in images]
        self.grads = [None if grad is None else _volume(grad, options) for grad in wanted]
        self.spatial_dims = img1.ndim - 2
        self.radii = _radii(options, self.spatial_dims)
        self.padded = options.padding in ("reflect", "replicate")
        self.valid = self.padded or options.padding == "valid"
        self.images = [self._pad(image) for image in self.originals] if self.padded else self.originals
        self.batch, self.channels = self.originals[0].shape[:2]
        trim = [2 * r if self.valid else 0 for r in self.radii]
        self.map_shape = [n - t for n, t in zip(self.images[0].shape[2:], trim, strict=True)]

    def empty(self, *shape: int) -> Tensor:
        """A float32 workspace or result on the images' device."""
        return self.kernels.empty(shape, self.originals[0].device)

    def _padding(self, images: list[Tensor], l1_weight: Tensor | None = None) -> KernelPadding:
        argument = KernelPadding()
        for place, image in enumerate(images):
            argument.source[place] = _describe(image, self.options)
        if l1_weight is not None:
            argument.l1_weight = _describe(l1_weight, self.options)
        argument.size[:] = images[0].shape
        argument.radius[:] = self.radii
        argument.reflect = self.options.padding == "reflect"
        return argument

    def _pad(self, image: Tensor) -> Tensor:
        target = self.empty(*image.shape[:2], *(n + 2 * r for n, r in zip(image.shape[2:], self.radii, strict=True)))
        argument = self._padding([image])
        argument.target = _describe(target, self.options)
        self.kernels.launch("pad", argument, self.stream)
        return target

    def _fold(self, place: int, padded_grad: Tensor, grad: Tensor, l1_scale: float, l1_weight: Tensor | None) -> None:
        """Fills `grad`, the gradient of image `place`, from the gradient of the padded image."""
        order = self.originals if place == 0 else self.originals[::-1]
        argument = self._padding(order, l1_weight)
        argument.target = _describe(padded_grad, self.options)
        argument.grad = _describe(grad, self.options)
        argument.l1_scale = l1_scale
        self.kernels.launch("fold", argument, self.stream)

    def sum_l1(self, weight: Tensor | None) -> Tensor:
        """Block sums of |x - y|, (B, blocks of an image), from a separate kernel."""
        argument = self._padding(self.originals, weight)
        voxels = self.originals[0][0].numel()
        argument.blocks = max(1, min(4 * self.kernels.multiprocessors, voxels // 2048))
        sums = self.empty(self.batch, argument.blocks)
        argument.block_sums = sums.data_ptr()
        self.kernels.launch("l1", argument, self.stream)
        return sums

    def problem(
        self, dssim_scale: float = 0.0, weight: Tensor | None = None, plane_weight: Tensor | None = None
    ) -> KernelProblem:
        """The SSIM kernels' argument for the (padded) images, with a weight for each voxel of the map or each plane."""
        problem = KernelProblem()
        for place, image in enumerate(self.images):
            problem.image[place] = _describe(image, self.options)
        if weight is not None:
            problem.weight = _describe(weight, self.options)
        if plane_weight is not None:
            problem.plane_weight = plane_weight.data_ptr()
        problem.dssim_scale = dssim_scale
        problem.size[:] = self.images[0].shape
        return problem

    def prepare(
        self,
        problem: KernelProblem,
        operation: int,
        gradient: bool = False,
        both: bool = False,
        similarities: bool = False,
    ) -> int:
        """Completes `problem` and chooses its kernel; returns the number of blocks, 0 if there is no fused kernel."""
        o = self.options
        options = KernelOptions(
            (ctypes.c_double * 3)(*o.sigmas(3)),
            o.k1,
            o.k2,
            o.data_range,
            o.eps,
            self.spatial_dims,
            (ctypes.c_int * 3)(*o.windows(3)),
            self.valid,
            gradient,
            both,
            similarities,
            self.kernels.multiprocessors,
        )
        return self.kernels.prepare(problem, options, operation)

    def start(self, problem: KernelProblem, blocks: int, means: Means | None = None) -> Tensor:
        """Starts the prepared kernel; returns its block sums, (3, B · C, blocks of a plane).

        If `means` is given, the kernel's last block fills it.
        """
        planes = self.batch * self.channels
        sums = self.empty(3, planes, blocks // planes)
        problem.block_sums = sums.data_ptr()
        if means is not None:
            problem.means = means.reduction(sums[L1], sums[DSSIM])
            problem.arrivals = self.kernels.arrivals(self.stream, self.originals[0].device).data_ptr()
        self.kernels.launch("ssim", problem, self.stream)
        return sums

    def differentiate(
        self,
        problem: KernelProblem,
        l1_scale: float = 0.0,
        l1_weight: Tensor | None = None,
        means: Means | None = None,
    ) -> tuple[Tensor, Tensor] | None:
        """Computes the gradients that are needed.

        Returns:
            Block sums that hold the kind DSSIM, and block sums that hold the kind L1 (not for padded images); or None
            if the kernel has filled `means` as well.
        """
        targets = self.grads
        if self.padded:
            targets = [None if grad is None else self.empty(*self.images[0].shape) for grad in self.grads]
        for place, target in enumerate(targets):
            if target is not None:
                problem.grad[place] = _describe(target, self.options)
        if not self.padded:
            problem.l1_scale = l1_scale
            if l1_weight is not None:
                problem.l1_weight = _describe(l1_weight, self.options)
        sums = self._run_gradient(problem, targets[1] is not None, None if self.padded else means)
        if self.padded:
            for place, (target, grad) in enumerate(zip(targets, self.grads, strict=True)):
                if target is not None and grad is not None:
                    self._fold(place, target, grad, l1_scale, l1_weight)
        return sums

    def _run_gradient(self, problem: KernelProblem, both: bool, means: Means | None) -> tuple[Tensor, Tensor] | None:
        """Runs the fused kernel (images, one gradient, windows up to 11, no eps), else a forward and a backward one."""
        blocks = self.prepare(problem, FUSED, True, both)
        if blocks:
            if means is None or means.groups > FEW_GROUPS:
                sums = self.start(problem, blocks)
                return sums, sums
            self.start(problem, blocks, means)
            return None
        blocks = self.prepare(problem, FORWARD, True, both)
        partials = self.empty(problem.partial_maps, self.batch, self.channels, *self.map_shape)
        problem.partials = partials.data_ptr()
        forward = self.start(problem, blocks)
        blocks = self.prepare(problem, BACKWARD, True, both)
        return forward, self.start(problem, blocks)

    def reduce(self, reduction: KernelReduction) -> None:
        """Fills the results of a reduction."""
        self.kernels.launch("reduce", reduction, self.stream)


def fill_map(kernels: Launcher, stream: int, img1: Tensor, img2: Tensor, options: SSIMOptions, out: Tensor) -> None:
    """Fills `out`, in the layout of the images, with S for every position of the window."""
    call = _Call(kernels, stream, img1, img2, options)
    problem = call.problem()
    problem.map = _describe(_volume(out, options), options)
    call.start(problem, call.prepare(problem, FORWARD))


def fill_map_gradients(
    kernels: Launcher,
    stream: int,
    grad_map: Tensor,
    img1: Tensor,
    img2: Tensor,
    options: SSIMOptions,
    grads: tuple[Tensor | None, Tensor | None],
) -> None:
    """Fills the needed gradients of the images from the gradient of the map."""
    call = _Call(kernels, stream, img1, img2, options, grads)
    upstream = _volume(grad_map.detach().float(), options)  # weights are float32
    call.differentiate(call.problem(-1.0, upstream))


def photometric(
    kernels: Launcher,
    stream: int,
    img1: Tensor,
    img2: Tensor,
    weight: Tensor | None,
    l1_weight: float,
    dssim_weight: float,
    per_image: bool,
    options: SSIMOptions,
    grads: tuple[Tensor | None, Tensor | None],
    offset: float = 0.0,
    means: Sequence[Tensor] | None = None,
    background: Tensor | None = None,
) -> Sequence[Tensor]:
    """Returns (loss, l1, dssim), each () or (B,), in `means` if given, and fills the needed gradients of the loss.

    With a background, float32 (1 or B, 3), `img2` is RGBA and only `img1` has a gradient.
    """
    call = _Call(kernels, stream, img1, img2, options, grads)
    if means is None:
        means = [call.empty(*((call.batch,) if per_image else ())) for _ in range(3)]
    shares = None
    scale = (1.0, 1.0)
    if weight is None:
        images = 1 if per_image else call.batch
        map_count = call.channels * call.map_shape[0] * call.map_shape[1] * call.map_shape[2]
        scale = (1 / (images * call.originals[0][0].numel()), 1 / (images * map_count))
        problem = call.problem(dssim_weight * scale[1])
    else:
        shares, map_shares = _shares(call, weight, per_image)
        problem = call.problem(dssim_weight, map_shares)
    if background is not None:
        problem.image[1].type, problem.background = _RGBA, background.data_ptr()
        problem.background_stride = 0 if background.shape[0] == 1 else 3
    wanted = Means(means, scale, (l1_weight, dssim_weight), offset)
    if call.grads[0] is None:
        dssim = call.start(problem, call.prepare(problem, FORWARD))
        l1 = dssim[L1] if problem.counts_l1 and options.padding == "same" else call.sum_l1(shares)
    else:
        found = call.differentiate(problem, l1_weight * scale[0], shares, wanted)
        if found is None:
            return means
        dssim = found[0]
        l1 = call.sum_l1(shares) if call.padded else found[1][L1]
    call.reduce(wanted.reduction(l1, dssim[DSSIM]))
    return means


def _shares(call: _Call, weight: Tensor, per_image: bool) -> tuple[Tensor, Tensor]:
    """The weights of the images' voxels and those of the map's voxels, each divided by their sum.

    Both are float32 (B, C, D, H, W), expanded along the channels.
    """
    weight = _volume(weight.detach(), call.options).float()
    repeats = call.channels // weight.shape[1]

    def share(part: Tensor) -> Tensor:
        total = repeats * (part.sum((1, 2, 3, 4), keepdim=True) if per_image else part.sum())
        return (part / torch.where(total > 0, total, 1.0)).expand(-1, call.channels, -1, -1, -1)

    shares = share(weight)
    if call.options.padding != "valid":
        return shares, shares
    inner = weight
    for axis, radius in enumerate(call.radii, start=2):
        inner = inner.narrow(axis, radius, weight.shape[axis] - 2 * radius)
    return shares, share(inner)


def channel_means(kernels: Launcher, stream: int, img1: Tensor, img2: Tensor, options: SSIMOptions) -> Tensor:
    """(B, C, 2): for each image and channel the means of S and of its contrast-structure factor."""
    call = _Call(kernels, stream, img1, img2, options)
    problem = call.problem()
    sums = call.start(problem, call.prepare(problem, FORWARD, similarities=True))
    voxels = call.map_shape[0] * call.map_shape[1] * call.map_shape[2]
    means = call.empty(call.batch, call.channels, 2)
    results = list(means.view(-1, 2).unbind(-1))
    call.reduce(reduction_of([sums[DSSIM], sums[CONTRAST]], results, [1 / voxels] * 2))
    return means


def fill_channel_mean_gradients(
    kernels: Launcher,
    stream: int,
    grad_means: Tensor,
    img1: Tensor,
    img2: Tensor,
    options: SSIMOptions,
    grads: tuple[Tensor | None, Tensor | None],
) -> None:
    """Fills the needed gradients of the images from the gradient of `channel_means`, (B, C, 2)."""
    call = _Call(kernels, stream, img1, img2, options, grads)
    voxels = call.map_shape[0] * call.map_shape[1] * call.map_shape[2]
    plane_weight = (grad_means.detach().float() * (-1 / voxels)).contiguous()
    call.differentiate(call.problem(plane_weight=plane_weight))


def scale(kernels: Launcher, stream: int, gradient: Tensor, upstream: Tensor) -> bool:
    """Multiplies a float32 `gradient` in place by `upstream`, () or (B,), which the host does not read.

    Returns:
        False if nothing was done because `gradient` is not dense, its images do not follow one another in memory, or
        `upstream` is not float32.
    """
    groups = upstream.numel()
    count = gradient.numel() // groups
    owned = gradient.untyped_storage().nbytes() == 4 * gradient.numel()
    if not owned or upstream.dtype != torch.float32 or (groups > 1 and gradient.stride(0) != count):
        return False
    stride = upstream.stride(0) if upstream.ndim else 0
    argument = KernelScaling(gradient.data_ptr(), upstream.data_ptr(), count, stride, groups)
    # A block walks over runs of 1,024 elements. The blocks fill the device, but are few, so that a kernel that finds an
    # upstream of 1 ends at once.
    argument.blocks = max(1, min(-(-count // 1024), 4 * kernels.multiprocessors // groups))
    kernels.launch("scale", argument, stream)
    return True
