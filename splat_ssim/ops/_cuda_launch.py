"""Calls the launchers of the CUDA kernels: the device's through the driver, or the host emulation's on CPU tensors."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor

_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.uint8: 3}
_FORWARD, _BACKWARD, _FUSED = 0, 1, 2
_DSSIM, _L1, _DCS = 0, 1, 2  # kinds of block sums

#: Windows the kernels take; others take the torch definition.
WINDOW_SIZES = frozenset(range(3, 16, 2))

# Field for field the structures of csrc/cuda/problem.h; `Kernels` compares their sizes with the library's.


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("stride", ctypes.c_longlong * 5),
        ("type", ctypes.c_int),
        ("scale", ctypes.c_float),
    )


class _Problem(ctypes.Structure):
    _fields_ = (
        ("image", _Tensor * 2),
        ("grad", _Tensor * 2),
        ("map", _Tensor),
        ("weight", _Tensor),
        ("plane_weight", ctypes.c_void_p),
        ("partials", ctypes.c_void_p),
        ("block_sums", ctypes.c_void_p),
        ("size", ctypes.c_int * 5),
        ("map_size", ctypes.c_int * 3),
        ("lead", ctypes.c_int * 3),
        ("strips", ctypes.c_int),
        ("tiles", ctypes.c_int),
        ("segments", ctypes.c_int),
        ("segment", ctypes.c_int),
        ("taps", ctypes.c_float * 8),
        ("c1", ctypes.c_float),
        ("c2", ctypes.c_float),
        ("shift", ctypes.c_float),
        ("dssim_scale", ctypes.c_float),
        ("l1_scale", ctypes.c_float),
        ("kernel", ctypes.c_int),
    )


class _Options(ctypes.Structure):
    _fields_ = (
        ("sigma", ctypes.c_double),
        ("k1", ctypes.c_double),
        ("k2", ctypes.c_double),
        ("data_range", ctypes.c_double),
        ("spatial_dims", ctypes.c_int),
        ("window_size", ctypes.c_int),
        ("valid", ctypes.c_int),
        ("both", ctypes.c_int),
        ("multiprocessors", ctypes.c_int),
    )


class _Padding(ctypes.Structure):
    _fields_ = (
        ("source", _Tensor * 2),
        ("target", _Tensor),
        ("grad", _Tensor),
        ("size", ctypes.c_int * 5),
        ("radius", ctypes.c_int * 3),
        ("reflect", ctypes.c_int),
        ("l1_scale", ctypes.c_float),
        ("block_sums", ctypes.c_void_p),
        ("blocks", ctypes.c_int),
    )


class _Reduction(ctypes.Structure):
    _fields_ = (
        ("values", ctypes.c_void_p),
        ("results", ctypes.c_void_p),
        ("count", ctypes.c_longlong),
        ("groups", ctypes.c_int),
        ("kinds", ctypes.c_int),
        ("kind", ctypes.c_int * 3),
        ("scale", ctypes.c_float * 3),
        ("offset", ctypes.c_float * 3),
    )


#: How a launcher's status other than 0 reads.
_STATUS = {2: "rejected its arguments", 3: "could not be started"}


@dataclass(frozen=True)
class Options:
    """What SSIM to compute: see `splat_ssim.ssim`. `window_size` must be in `WINDOW_SIZES`."""

    window_size: int = 11
    sigma: float = 1.5
    data_range: float = 1.0
    k1: float = 0.01
    k2: float = 0.03
    padding: str = "same"
    spatial_dims: int = 2
    channels_last: bool = False


class Kernels:
    """The launchers of one library for one device.

    Args:
        library: Shared library with the splat_ssim_cuda_* functions: the package's own or the emulation.
        module: Address of the loaded kernels (`_cuda_module`), or None for the emulation.
        multiprocessors: Number of the device's multiprocessors.
    """

    def __init__(self, library: ctypes.CDLL, module: int | None, multiprocessors: int) -> None:
        sizes = (ctypes.c_int * 4)()
        library.splat_ssim_cuda_layout(sizes)
        expected = [ctypes.sizeof(s) for s in (_Problem, _Options, _Padding, _Reduction)]
        if list(sizes) != expected:
            raise ImportError(f"the library's structures must have {expected} bytes, got {list(sizes)}: reinstall")
        self._prepare = library.splat_ssim_cuda_prepare
        self._launchers = {}
        for name in ("ssim", "pad", "fold", "l1", "reduce"):
            function = library[f"splat_ssim_cuda_{name}"]
            function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
            self._launchers[name] = function
        self._module = module
        self.multiprocessors = multiprocessors

    def launch(self, name: str, argument: ctypes.Structure, stream: int) -> None:
        """Starts one kernel on `stream`.

        Raises:
            RuntimeError: The kernel did not start.
        """
        status = self._launchers[name](self._module, ctypes.addressof(argument), stream)
        if status:
            raise RuntimeError(f"CUDA kernel {name!r} {_STATUS.get(status, 'failed')} (status {status})")

    def prepare(self, problem: _Problem, options: _Options, operation: int) -> int:
        """Completes `problem`; returns the number of blocks."""
        blocks = ctypes.c_longlong()
        status = self._prepare(ctypes.byref(problem), ctypes.byref(options), operation, ctypes.byref(blocks))
        if status:
            raise RuntimeError(f"the CUDA kernels do not take images of size {list(problem.size)}")
        return blocks.value


def _volume(image: Tensor, options: Options) -> Tensor:
    """A view (B, C, D, H, W) of an image in the caller's layout."""
    if options.channels_last:
        image = image.movedim(-1, 1)
    return image.unsqueeze(2) if options.spatial_dims == 2 else image


def _describe(tensor: Tensor, options: Options) -> _Tensor:
    scale = options.data_range / 255 if tensor.dtype == torch.uint8 else 1.0
    return _Tensor(tensor.data_ptr(), (ctypes.c_longlong * 5)(*tensor.stride()), _TYPES[tensor.dtype], scale)


def _radii(options: Options) -> list[int]:
    radius = options.window_size // 2
    return [radius if options.spatial_dims == 3 else 0, radius, radius]


class _Call:
    """One call: images as (B, C, D, H, W) views, padded ones where the padding asks for them."""

    def __init__(self, kernels: Kernels, img1: Tensor, img2: Tensor, options: Options, stream: int) -> None:
        self.kernels, self.options, self.stream = kernels, options, stream
        self.originals = [_volume(img1.detach(), options), _volume(img2.detach(), options)]
        self.padded = options.padding in ("reflect", "replicate")
        self.images = [self._pad(image) for image in self.originals] if self.padded else self.originals
        self.size = self.originals[0].shape
        self.valid = options.padding == "valid" or self.padded
        self._requested = _Options(
            options.sigma,
            options.k1,
            options.k2,
            options.data_range,
            options.spatial_dims,
            options.window_size,
            self.valid,
            0,
            kernels.multiprocessors,
        )

    def map_shape(self) -> list[int]:
        """(B, C, D, H, W) of the map."""
        trim = [2 * r if self.valid else 0 for r in _radii(self.options)]
        return [*self.size[:2], *(n - t for n, t in zip(self.images[0].shape[2:], trim, strict=True))]

    def empty(self, *shape: int) -> Tensor:
        """A float32 workspace or result on the images' device."""
        return torch.empty(shape, dtype=torch.float32, device=self.images[0].device)

    def _padding(self, images: list[Tensor], target: Tensor | None) -> _Padding:
        argument = _Padding()
        for place, image in enumerate(images):
            argument.source[place] = _describe(image, self.options)
        if target is not None:
            argument.target = _describe(target, self.options)
        argument.size[:] = images[0].shape
        argument.radius[:] = _radii(self.options)
        argument.reflect = self.options.padding == "reflect"
        return argument

    def _pad(self, image: Tensor) -> Tensor:
        shape = [n + 2 * r for n, r in zip(image.shape[2:], _radii(self.options), strict=True)]
        target = torch.empty(*image.shape[:2], *shape, dtype=torch.float32, device=image.device)
        self.kernels.launch("pad", self._padding([image], target), self.stream)
        return target

    def fold(self, padded_grad: Tensor, grad: Tensor, l1_scale: float, swapped: bool) -> None:
        """Fills `grad` from the gradient of the padded image."""
        argument = self._padding(self.originals[::-1] if swapped else self.originals, padded_grad)
        argument.grad = _describe(grad, self.options)
        argument.l1_scale = l1_scale
        self.kernels.launch("fold", argument, self.stream)

    def problem(self, grads: tuple[Tensor | None, Tensor | None] = (None, None)) -> _Problem:
        """A problem on the (padded) images and the gradients that are to be made."""
        problem = _Problem()
        for place, (image, grad) in enumerate(zip(self.images, grads, strict=True)):
            problem.image[place] = _describe(image, self.options)
            if grad is not None:
                problem.grad[place] = _describe(grad, self.options)
        problem.size[:] = self.images[0].shape
        return problem

    def run(self, problem: _Problem, operation: int, both: bool = False) -> Tensor:
        """Prepares and starts one kernel. Returns its block sums, (3, B, C · blocks of a plane)."""
        self._requested.both = both
        blocks = self.kernels.prepare(problem, self._requested, operation)
        sums = self.empty(3, self.size[0], blocks // self.size[0])
        problem.block_sums = sums.data_ptr()
        self.kernels.launch("ssim", problem, self.stream)
        return sums

    def plain(self, problem: _Problem, operation: int) -> int:
        """Which kernel `operation` would take for `problem`, as a number."""
        self._requested.both = False
        self.kernels.prepare(problem, self._requested, operation)
        return problem.kernel

    def pair(self, problem: _Problem) -> tuple[Tensor, Tensor]:
        """Forward with adjoint maps, then backward. Returns the block sums of both."""
        maps = self.map_shape()
        # Three adjoint maps where both kernels are the plain ones, else four: they must agree.
        problem.partials = 1
        plain = (self.options.spatial_dims == 2, _PLAIN_PAIRS)
        kernels = (self.plain(problem, _FORWARD), self.plain(problem, _BACKWARD))
        both = kernels != plain[1][self.options.spatial_dims]
        partials = self.empty(4 if both else 3, *maps)
        problem.partials = partials.data_ptr()
        forward = self.run(problem, _FORWARD, both)
        return forward, self.run(problem, _BACKWARD, both)
