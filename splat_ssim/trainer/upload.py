"""Uploads from the host's memory to the device, for which neither the host nor the device waits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

V = TypeVar("V")


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device, by a copy that neither the host nor the device's other streams wait for.

    A copy to CUDA from ordinary memory makes the host wait until the device has done everything before it. So the
    tensor goes through page-locked memory, which torch keeps and hands out again once the copy is done.
    """
    if device.type == "cpu":
        return tensor
    source = tensor.pin_memory() if device.type == "cuda" else tensor
    return source.to(device, non_blocking=True)


class Ahead(Generic[V]):
    """Uploads the data of each step ahead of time, so that it is on the device when the step needs it.

    `start(step)` begins the upload, on a side stream, while the device works on something else; `take(step)` returns
    the value, for which the current stream waits and the host does not. On the CPU there is nothing to move.

    Args:
        read: Function (step) -> a value made of tensors on the CPU.
        move: Function (value, function) -> the value with the function applied to each of its tensors.
        device: Device that the values are uploaded to.

    Example:
        >>> import torch
        >>> from splat_ssim.trainer.upload import Ahead
        >>> ahead = Ahead(lambda step: torch.tensor(step), lambda t, put: put(t), torch.device("cpu"))
        >>> ahead.start(4)
        >>> ahead.take(4), ahead.take(7)
        (tensor(4), tensor(7))
    """

    def __init__(
        self, read: Callable[[int], V], move: Callable[[V, Callable[[Tensor], Tensor]], V], device: torch.device
    ) -> None:
        self._read, self._move, self._device = read, move, device
        self._stream: Any = None
        self._step: int | None = None
        self._value: V | None = None
        self._tensors: list[Tensor] = []

    def start(self, step: int) -> None:
        """Begins the upload for a step. It is best called once the current step's work has been queued."""
        if self._device.type == "cpu" or self._step == step:
            return
        if self._device.type == "cuda":
            self._stream = self._stream or torch.cuda.Stream(self._device)
            with torch.cuda.stream(self._stream):
                self._put(step)
        else:
            self._put(step)

    def take(self, step: int) -> V:
        """The value of a step. Its upload begins now if it has not begun."""
        if self._device.type == "cpu":
            return self._read(step)
        self.start(step)
        value = self._value
        assert value is not None
        if self._stream is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._stream)
            for tensor in self._tensors:
                # The memory belongs to the side stream: it must not be reused before this stream is done with it.
                tensor.record_stream(current)
        self._step, self._value, self._tensors = None, None, []
        return value

    def _put(self, step: int) -> None:
        self._tensors = []

        def put(tensor: Tensor) -> Tensor:
            moved = upload(tensor, self._device)
            self._tensors.append(moved)
            return moved

        self._value = self._move(self._read(step), put)
        self._step = step
