"""Records the kernel launches of one kind of call and replays them for other tensors.

A `Recorder` takes the place of `Kernels` while `_cuda_launch` prepares a call. It keeps the arguments and, for each
pointer in them, which tensor it points into and at what offset. `Recording.replay` is one call of csrc/cuda/replay.cpp.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ._cuda_kernels import KernelOptions, KernelProblem, Kernels

#: The launchers that can be recorded, in the order of `RecordedLauncher` of csrc/cuda/recording.h.
LAUNCHERS = ("ssim", "pad", "fold", "l1", "reduce", "scale")
#: Alignment of workspaces, in bytes.
_ALIGNMENT = 256


class _Pointer(ctypes.Structure):
    _fields_ = (("place", ctypes.c_int), ("slot", ctypes.c_int), ("offset", ctypes.c_longlong))


class _Launch(ctypes.Structure):
    _fields_ = (
        ("launcher", ctypes.c_int),
        ("bytes", ctypes.c_int),
        ("argument", ctypes.c_void_p),
        ("pointer", ctypes.c_void_p),
        ("pointers", ctypes.c_longlong),
    )


def _pointer_places(kind: Any, start: int = 0) -> Iterator[int]:
    """Offsets in bytes of all pointers in a structure."""
    if kind is ctypes.c_void_p:
        yield start
    elif issubclass(kind, ctypes.Array):
        for i in range(kind._length_):
            yield from _pointer_places(kind._type_, start + i * ctypes.sizeof(kind._type_))
    elif issubclass(kind, ctypes.Structure):
        for name, field, *_ in kind._fields_:
            yield from _pointer_places(field, start + getattr(kind, name).offset)


def _extent(tensor: Tensor) -> tuple[int, int]:
    """The address of a tensor's first element, and the address behind its last one."""
    first = tensor.data_ptr()
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return first, first + (last + 1) * tensor.element_size() if tensor.numel() else first


class Recorder:
    """Replaces `Kernels` and records launches instead of starting kernels.

    Args:
        kernels: The kernels, which prepare the problems.
        tensors: The tensors that the launches read and write, one for each slot. An unused slot holds None. Two more
            slots follow: the workspace, and the counter of `Kernels.arrivals`.
    """

    def __init__(self, kernels: Kernels, tensors: Sequence[Tensor | None]) -> None:
        self._kernels = kernels
        self.multiprocessors = kernels.multiprocessors
        self._workspace_slot = len(tensors)
        self._size = 0
        #: Of each known tensor: its first address, the address behind its last byte, its slot and its offset there.
        self._ranges = [(*_extent(t), slot, 0) for slot, t in enumerate(tensors) if t is not None]
        self._kept: list[Tensor] = []
        self._launches: list[tuple[int, bytes, list[tuple[int, int, int]]]] = []

    def prepare(self, problem: KernelProblem, options: KernelOptions, operation: int) -> int:
        """Does the same as `Kernels.prepare`."""
        return self._kernels.prepare(problem, options, operation)

    def empty(self, shape: Sequence[int], device: torch.device) -> Tensor:
        """A part of the workspace, float32."""
        made = torch.empty(shape, dtype=torch.float32, device=device)
        self._ranges.append((*_extent(made), self._workspace_slot, self._size))
        self._size += -(-4 * made.numel() // _ALIGNMENT) * _ALIGNMENT
        self._kept.append(made)
        return made

    def arrivals(self, stream: int, device: torch.device) -> Tensor:
        """`Kernels.arrivals` for the slot after that of the workspace."""
        made = torch.empty(1, dtype=torch.int32, device=device)
        self._ranges.append((*_extent(made), self._workspace_slot + 1, 0))
        self._kept.append(made)
        return made

    def launch(self, name: str, argument: ctypes.Structure, stream: int) -> None:
        """Records a launch."""
        pointers = []
        for place in _pointer_places(type(argument)):
            address = ctypes.c_void_p.from_buffer(argument, place).value
            if address is not None:
                slot, offset = self._find(address)
                pointers.append((place, slot, offset))
        self._launches.append((LAUNCHERS.index(name), bytes(argument), pointers))

    def _find(self, address: int) -> tuple[int, int]:
        for first, end, slot, start in self._ranges:
            if first <= address < end:
                return slot, start + address - first
        raise AssertionError("a kernel was given an address of none of the tensors")

    def finish(self) -> Recording:
        """The recorded launches."""
        return Recording(self._kernels, self._launches, self._size)


class Recording:
    """Launches that can be repeated.

    Attributes:
        workspace: Size of the workspace in bytes.
    """

    def __init__(
        self, kernels: Kernels, launches: list[tuple[int, bytes, list[tuple[int, int, int]]]], workspace: int
    ) -> None:
        sizes = (ctypes.c_int * 2)()
        kernels.library.splat_ssim_cuda_recording_layout(sizes)
        if list(sizes) != [ctypes.sizeof(_Launch), ctypes.sizeof(_Pointer)]:
            raise ImportError(f"the library's recordings must have other sizes, got {list(sizes)}: reinstall")
        self.workspace = workspace
        self._names = [LAUNCHERS[launcher] for launcher, _, _ in launches]
        self._kept: list[object] = []
        self._launches = (_Launch * len(launches))()
        for made, (launcher, argument, pointers) in zip(self._launches, launches, strict=True):
            buffer, table = (
                ctypes.create_string_buffer(argument),
                (_Pointer * len(pointers))(*(_Pointer(*p) for p in pointers)),
            )
            self._kept += [buffer, table]
            made.launcher, made.bytes, made.pointers = launcher, len(argument), len(pointers)
            made.argument, made.pointer = ctypes.addressof(buffer), ctypes.addressof(table)
        self._address, self._count = ctypes.addressof(self._launches), len(launches)
        self._function = kernels.library.splat_ssim_cuda_replay
        pointer = ctypes.c_void_p
        self._function.argtypes = [pointer, pointer, pointer, ctypes.c_int, pointer]

    def replay(self, kernels: Kernels, stream: int, slots: ctypes.Array[Any]) -> None:
        """Starts the kernels again, with the tensors at the addresses in `slots`.

        Raises:
            RuntimeError: A kernel did not start.
        """
        status = self._function(kernels.module, stream, self._address, self._count, slots)
        if status:
            kernels.check(status & 0xFFFFFF, self._names[status >> 24])
