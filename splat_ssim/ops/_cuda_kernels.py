"""The launchers of the CUDA kernels and the structures that they take, field for field those of csrc/cuda/problem.h."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

#: Operations that `Kernels.prepare` chooses a kernel for.
FORWARD, BACKWARD, FUSED = 0, 1, 2
#: Kinds of block sums.
DSSIM, L1, CONTRAST = 0, 1, 2

#: Window sizes that have kernels. Other sizes run the definition in plain torch.
WINDOW_SIZES = frozenset(range(3, 16, 2))

#: Units of compilation, see csrc/cuda/problem.h: the kernels that every window needs, the voxeliser's and the
#: projector's. Kernels of one window size have that size as their unit.
SHARED, VOXELS, XRAYS = 1, 2, 6
#: The unit of windows that differ between axes, and the largest number of taps of such a window along an axis.
AXES, LONGEST_AXIS_WINDOW = 4, 15

# Field for field the structures of csrc/cuda/problem.h; `Kernels` compares their sizes with the library's.


class KernelTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("stride", ctypes.c_longlong * 5),
        ("type", ctypes.c_int),
        ("top", ctypes.c_float),
    )


class KernelReduction(ctypes.Structure):
    _fields_ = (
        ("values", ctypes.c_void_p * 3),
        ("count", ctypes.c_longlong * 3),
        ("results", ctypes.c_void_p * 3),
        ("combined", ctypes.c_void_p),
        ("result_stride", ctypes.c_longlong),
        ("groups", ctypes.c_int),
        ("kinds", ctypes.c_int),
        ("scale", ctypes.c_float * 3),
        ("combine", ctypes.c_float * 3),
        ("offset", ctypes.c_float),
    )


class KernelProblem(ctypes.Structure):
    _fields_ = (
        ("image", KernelTensor * 2),
        ("grad", KernelTensor * 2),
        ("map", KernelTensor),
        ("weight", KernelTensor),
        ("l1_weight", KernelTensor),
        ("plane_weight", ctypes.c_void_p),
        ("partials", ctypes.c_void_p),
        ("block_sums", ctypes.c_void_p),
        ("map_slice", ctypes.c_longlong),
        ("partial_stride", ctypes.c_longlong),
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
        ("eps", ctypes.c_float),
        ("apart", ctypes.c_float),
        ("dssim_scale", ctypes.c_float),
        ("l1_scale", ctypes.c_float),
        ("similarities", ctypes.c_int),
        ("kernel", ctypes.c_int),
        ("partial_maps", ctypes.c_int),
        ("counts_l1", ctypes.c_int),
        ("arrivals", ctypes.c_void_p),
        ("means", KernelReduction),
        ("background", ctypes.c_void_p),
        ("background_stride", ctypes.c_longlong),
        ("radius", ctypes.c_int * 3),
        ("slice_taps", ctypes.c_float * 15),
        ("plane_taps", ctypes.c_float * 8 * 2),
    )


class KernelOptions(ctypes.Structure):
    _fields_ = (
        ("sigma", ctypes.c_double * 3),
        ("k1", ctypes.c_double),
        ("k2", ctypes.c_double),
        ("data_range", ctypes.c_double),
        ("eps", ctypes.c_double),
        ("spatial_dims", ctypes.c_int),
        ("window_size", ctypes.c_int * 3),
        ("valid", ctypes.c_int),
        ("gradient", ctypes.c_int),
        ("both", ctypes.c_int),
        ("similarities", ctypes.c_int),
        ("multiprocessors", ctypes.c_int),
    )


class KernelPadding(ctypes.Structure):
    _fields_ = (
        ("source", KernelTensor * 2),
        ("target", KernelTensor),
        ("grad", KernelTensor),
        ("l1_weight", KernelTensor),
        ("size", ctypes.c_int * 5),
        ("radius", ctypes.c_int * 3),
        ("reflect", ctypes.c_int),
        ("l1_scale", ctypes.c_float),
        ("block_sums", ctypes.c_void_p),
        ("blocks", ctypes.c_int),
        ("lane_bits", ctypes.c_int),
        ("strips", ctypes.c_int),
        ("tiles", ctypes.c_int),
    )


class KernelScaling(ctypes.Structure):
    _fields_ = (
        ("gradient", ctypes.c_void_p),
        ("upstream", ctypes.c_void_p),
        ("count", ctypes.c_longlong),
        ("upstream_stride", ctypes.c_longlong),
        ("groups", ctypes.c_int),
        ("blocks", ctypes.c_int),
    )


#: Meanings of a launcher's status other than 0.
_STATUS = {2: "rejected its arguments", 3: "could not be started"}


def kernel_names(library: ctypes.CDLL) -> list[str]:
    """The names of all kernels in the order of a module's table."""
    library.splat_ssim_cuda_kernel_name.restype = ctypes.c_char_p
    names: list[str] = []
    while (name := library.splat_ssim_cuda_kernel_name(len(names))) is not None:
        names.append(name.decode())
    return names


def kernel_units(library: ctypes.CDLL) -> list[int]:
    """The unit of each kernel, in the same order."""
    return [library.splat_ssim_cuda_kernel_unit(place) for place in range(len(kernel_names(library)))]


def kernel_starts(library: ctypes.CDLL) -> dict[str, int]:
    """Kernel name -> number of times that it was started in this process."""
    library.splat_ssim_cuda_starts.restype = ctypes.c_longlong
    return {name: library.splat_ssim_cuda_starts(place) for place, name in enumerate(kernel_names(library))}


class Kernels:
    """The launchers of one library for one device.

    Args:
        library: Shared library with the splat_ssim_cuda_* functions: the package's own or the emulation.
        module: Address of the loaded kernels (`_cuda_module`), or None for the emulation.
        multiprocessors: Number of the device's multiprocessors.
    """

    def __init__(self, library: ctypes.CDLL, module: int | None, multiprocessors: int) -> None:
        sizes = (ctypes.c_int * 5)()
        library.splat_ssim_cuda_layout(sizes)
        expected = [
            ctypes.sizeof(s) for s in (KernelProblem, KernelOptions, KernelPadding, KernelReduction, KernelScaling)
        ]
        if list(sizes) != expected:
            raise ImportError(f"the library's structures must have {expected} bytes, got {list(sizes)}: reinstall")
        self.library = library
        self._prepare = library.splat_ssim_cuda_prepare
        #: Names of all kernels in the order of a module's table. A prepared problem runs `names[problem.kernel]`.
        self.names = kernel_names(library)
        self._launchers = {}
        for name in ("ssim", "pad", "fold", "l1", "reduce", "scale", "voxelize", "xray"):
            function = library[f"splat_ssim_cuda_{name}"]
            function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
            self._launchers[name] = function
        self.module = module
        self.multiprocessors = multiprocessors
        self._arrivals: dict[int, Tensor] = {}

    def launch(self, name: str, argument: ctypes.Structure, stream: int) -> None:
        """Starts one kernel on `stream`.

        Raises:
            RuntimeError: The kernel did not start.
        """
        status = self._launchers[name](self.module, ctypes.addressof(argument), stream)
        if status:
            self.check(status, name)

    def check(self, status: int, name: str) -> None:
        """Raises RuntimeError if a launcher's status is not 0."""
        if status:
            cause = f"CUDA error {status >> 8}" if status >> 8 else f"status {status}"
            raise RuntimeError(f"CUDA kernel {name!r} {_STATUS.get(status & 255, 'failed')} ({cause})")

    def empty(self, shape: Sequence[int], device: torch.device) -> Tensor:
        """A workspace or result, float32."""
        return torch.empty(shape, dtype=torch.float32, device=device)

    def arrivals(self, stream: int, device: torch.device) -> Tensor:
        """A counter of finished blocks, 0 between kernels, for all kernels of a stream: they run one after the other.

        During the capture of a CUDA graph it is a new counter, because the graph's kernels may run at the same time as
        the stream's.
        """
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return torch.zeros(1, dtype=torch.int32, device=device)
        found = self._arrivals.get(stream)
        if found is None:
            found = self._arrivals[stream] = torch.zeros(1, dtype=torch.int32, device=device)
        return found

    def prepare(self, problem: KernelProblem, options: KernelOptions, operation: int) -> int:
        """Completes `problem` and chooses its kernel. Returns the number of blocks, 0 if there is no fused kernel."""
        blocks = ctypes.c_longlong()
        status = self._prepare(ctypes.byref(problem), ctypes.byref(options), operation, ctypes.byref(blocks))
        if status:
            raise RuntimeError(f"the CUDA kernels do not take images of size {list(problem.size)}")
        return blocks.value
