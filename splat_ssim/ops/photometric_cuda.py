"""The operator of the losses on CUDA. Without weights, its launches are recorded once for each kind of call."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from ..options import SSIMOptions
from . import _cuda_launch as launch
from . import _cuda_module, ssim_cuda
from ._cuda_recording import Recorder
from .dispatch import Device, register_device
from .layout import new_gradients, wanted
from .prepared import Results


def _photometric(
    img1: Tensor,
    img2: Tensor,
    weight: Tensor | None,
    background: Tensor | None,
    l1_weight: float,
    dssim_weight: float,
    offset: float,
    per_image: bool,
    *arguments: Any,
) -> tuple[Tensor, ...]:
    *values, need1, need2 = arguments
    options = SSIMOptions.of(*values)
    grads = new_gradients(img1, img2, options, need1, need2)
    kernels, stream = _cuda_module.target(img1, ssim_cuda.unit_of(options))
    targets = wanted(grads, need1, need2)
    weights = (weight, l1_weight, dssim_weight, per_image)
    means = launch.photometric(kernels, stream, img1, img2, *weights, options, targets, offset, background=background)
    return *means, *grads


#: The window size that has more kernels than others, such as the one that composites.
_DEFAULT_WINDOW = 11

#: What the launches read and write: images, gradients, loss, l1, dssim, background, workspace, counter.
_Slots = ctypes.c_void_p * 10


class _Loss:
    """The loss of images without weights, prepared for their shapes, layouts and options."""

    def __init__(
        self,
        img1: Tensor,
        img2: Tensor,
        background: Tensor | None,
        weights: tuple[float, float, float],
        per_image: bool,
        options: SSIMOptions,
        needs: tuple[bool, bool],
        terms: bool,
    ) -> None:
        self._terms, self._unit = terms, ssim_cuda.unit_of(options)
        self._shape, self._device = (img1.shape[0],) if per_image else (), img1.device
        if _overlap(img1, img2):
            img2 = torch.empty_strided(img2.shape, img2.stride(), dtype=img2.dtype, device=img2.device)
        grads = new_gradients(img1, img2, options, *needs)
        targets = wanted(grads, *needs)
        means = [img1.new_empty(self._shape, dtype=torch.float32) for _ in range(3)]
        recorder = Recorder(
            _cuda_module.target(img1, ssim_cuda.unit_of(options))[0],
            (img1, img2, *targets, means[0], *(means[1:] if terms else (None, None)), background),
        )
        if not terms:
            means[1:] = [recorder.empty(self._shape, self._device) for _ in range(2)]
        l1_weight, dssim_weight, offset = weights
        arguments = (None, l1_weight, dssim_weight, per_image, options, targets, offset, means, background)
        launch.photometric(recorder, 0, img1, img2, *arguments)
        self._recording = recorder.finish()
        self._layouts = [None if grad is None else (grad.shape, grad.stride()) for grad in targets]
        self._none = img1.new_empty(0, dtype=torch.float32)

    def __call__(self, img1: Tensor, img2: Tensor, background: Tensor | None = None) -> Results:
        kernels, stream = _cuda_module.target(img1, self._unit)
        grad1, grad2 = (self._none if layout is None else self._empty(*layout) for layout in self._layouts)
        workspace = self._empty((self._recording.workspace,), (1,), torch.uint8)
        loss = self._empty(self._shape)
        addresses = (img1.data_ptr(), img2.data_ptr(), grad1.data_ptr(), grad2.data_ptr(), loss.data_ptr())
        arrivals = kernels.arrivals(stream, self._device)
        behind = None if background is None else background.data_ptr()
        rest = (behind, workspace.data_ptr(), arrivals.data_ptr())
        if self._terms:
            l1, dssim = self._empty(self._shape), self._empty(self._shape)
            slots = _Slots(*addresses, l1.data_ptr(), dssim.data_ptr(), *rest)
            self._recording.replay(kernels, stream, slots)
            return loss, l1, dssim, grad1, grad2
        self._recording.replay(kernels, stream, _Slots(*addresses, None, None, *rest))
        return loss, None, None, grad1, grad2

    def _empty(
        self, shape: tuple[int, ...], stride: tuple[int, ...] | None = None, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        if stride is None:
            return torch.empty(shape, dtype=dtype, device=self._device)
        return torch.empty_strided(shape, stride, dtype=dtype, device=self._device)


def _overlap(img1: Tensor, img2: Tensor) -> bool:
    """Whether the images share a storage. The recorder then could not tell to which of them an address belongs."""
    return img1.untyped_storage().data_ptr() == img2.untyped_storage().data_ptr()


def _composites(img1: Tensor, options: SSIMOptions, need1: bool) -> bool:
    """Whether a kernel composites RGBA: only the gradient of 3 channels with the default window has one."""
    plain = options.window_size == _DEFAULT_WINDOW and options.eps == 0.0
    return need1 and plain and options.padding in ("same", "valid") and img1.shape[_channel(options)] == 3


def _channel(options: SSIMOptions) -> int:
    return -1 if options.channels_last else 1


IMPLEMENTATIONS = {**ssim_cuda.IMPLEMENTATIONS, "photometric": _photometric}
register_device("cuda", Device(IMPLEMENTATIONS, ssim_cuda.supports, ssim_cuda.scale, _Loss, _composites))
