"""The operator of the losses on the CPU.

Without weights and over the whole batch, it is one call of the library, prepared for the shapes and layouts of its
images (csrc/cpu/loss.cpp). With weights, or for each image, the SSIM kernel sums and torch divides the sums.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..options import SSIMOptions
from . import compiled, ssim_cpu
from .dispatch import Device, register_device
from .layout import new_gradients, wanted
from .prepared import Results, Run
from .ssim_cpu import KernelCall, positions, rows, zeros

#: What follows `Arguments` in `LossArguments` of csrc/cpu/layout.h: the kernel and five doubles.
_LOSS = struct.Struct("=q5d")

_Means = ctypes.c_float * 3
#: Takes the place of a gradient that is not needed.
_EMPTY = torch.empty(0, dtype=torch.float32, device="cpu")


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
) -> tuple[Tensor | None, ...]:
    *values, need1, need2 = arguments
    options = SSIMOptions.of(*values)
    call = KernelCall(img1, img2, options, background=background)
    if weight is None and not per_image:
        run = _Loss(call, img1, img2, options, (l1_weight, dssim_weight, offset), (need1, need2), terms=True)
        loss, l1, dssim, grad1, grad2 = run(call.first, call.second, background)
        # Outputs of an operator must not share memory.
        return loss, l1, dssim, grad1 if need1 else grad1.clone(), grad2 if need2 else grad2.clone()
    grads = new_gradients(img1, img2, options, need1, need2)
    counts, weight = _counts(call, weight, per_image)  # [B or 1, 2]: of 1 - S, of |x - y|
    coefficients = zeros(call.batch, 3)
    coefficients[:, 0] = dssim_weight / counts[:, 0]
    coefficients[:, 2] = l1_weight / counts[:, 1]
    per_plane = coefficients.repeat_interleave(call.planes // call.batch, 0)
    totals = rows(call.run(per_plane, weight, None, None, *wanted(grads, need1, need2)))
    totals = totals.view(call.batch, -1, 3).sum(1)
    if not per_image:
        totals = totals.sum(0, keepdim=True)
    dssim, l1 = totals[:, 0] / counts[:, 0], totals[:, 2] / counts[:, 1]
    means = torch.stack((offset + l1_weight * l1 + dssim_weight * dssim, l1, dssim)).float()
    loss, l1, dssim = (means if per_image else means[:, 0]).unbind(0)
    return loss.clone(), l1.clone(), dssim.clone(), *grads


def _counts(call: KernelCall, weight: Tensor | None, per_image: bool) -> tuple[Tensor, Tensor | None]:
    """The divisors of the sums of 1 - S and of |x - y|, (B or 1, 2), and the weight as the kernel reads it."""
    options, shape = call.options, call.first.shape
    images = 1 if per_image else call.batch
    if weight is None:
        plain = (images * call.channels * positions(options, shape), images * call.first.numel() // call.batch)
        return torch.tensor([plain], dtype=torch.float64, device="cpu"), None
    spread = call.spread(weight)
    inner = spread
    for dim, inset in enumerate(options.insets(spread.ndim - 2), start=2):
        inner = inner.narrow(dim, inset, spread.shape[dim] - 2 * inset)
    counts = torch.stack([w.flatten(1).sum(1, dtype=torch.float64) for w in (inner, spread)], dim=1)
    counts = counts if per_image else counts.sum(0, keepdim=True)
    return torch.where(counts > 0, counts, 1.0), spread


class _Loss:
    """The loss of images without weights, over the batch, prepared for their shapes, layouts and options."""

    def __init__(
        self,
        call: KernelCall,
        img1: Tensor,
        img2: Tensor,
        options: SSIMOptions,
        weights: tuple[float, float, float],
        needs: tuple[bool, bool],
        terms: bool,
    ) -> None:
        self._terms = terms
        # Meta tensors have no memory. Freeing memory of this size would change how glibc allocates large tensors.
        grads = new_gradients(_without_memory(img1), _without_memory(img2), options, *needs)
        name = f"ssim{call.first.ndim - 2}d"
        kernel = ctypes.cast(compiled.kernel(name, (ctypes.c_char_p,)), ctypes.c_void_p).value
        count = call.batch * call.channels * positions(options, call.first.shape)
        packed = call.pack(0, 0, None, None, None, *wanted(grads, *needs))
        self._packed = packed + _LOSS.pack(kernel, *weights, count, call.first.numel())
        self._window = call.window  # keeps the packed address valid
        self._layouts = [(grad.shape, grad.stride()) if need else None for grad, need in zip(grads, needs, strict=True)]
        self._large = 4 * img1.numel() >= compiled.FRESH_BYTES  # computed once, to keep calls of small images fast
        self._function = _function()

    def __call__(self, img1: Tensor, img2: Tensor, background: Tensor | None = None) -> Results:
        grad1, grad2 = (_EMPTY if layout is None else _allocate(*layout) for layout in self._layouts)
        if self._large:
            compiled.prefer_huge_pages(grad1)
            compiled.prefer_huge_pages(grad2)
        means = _Means()
        addresses = (img1.data_ptr(), img2.data_ptr(), grad1.data_ptr(), grad2.data_ptr())
        behind = None if background is None else background.data_ptr()
        status = self._function(self._packed, *addresses, behind, torch.get_num_threads(), means)
        if status:
            compiled.check(status, "loss", (img1.shape, img2.shape))
        if not self._terms:
            return _scalar(means[0]), None, None, grad1, grad2
        return _scalar(means[0]), _scalar(means[1]), _scalar(means[2]), grad1, grad2


def _without_memory(image: Tensor) -> Tensor:
    return torch.empty_strided(image.shape, image.stride(), dtype=image.dtype, device="meta")


def _allocate(shape: torch.Size, stride: tuple[int, ...]) -> Tensor:
    return torch.empty_strided(shape, stride, dtype=torch.float32, device="cpu")


def _scalar(value: float) -> Tensor:
    return torch.scalar_tensor(value, dtype=torch.float32, device="cpu")


def _function() -> Callable[..., int]:
    library = compiled.library()
    assert library is not None
    pointer = ctypes.c_void_p
    library.splat_ssim_loss.argtypes = [ctypes.c_char_p, *[pointer] * 5, ctypes.c_int64, pointer]
    return library.splat_ssim_loss


def _prepare(
    img1: Tensor,
    img2: Tensor,
    background: Tensor | None,
    weights: tuple[float, float, float],
    per_image: bool,
    options: SSIMOptions,
    needs: tuple[bool, bool],
    terms: bool,
) -> Run | None:
    """Prepares the loss. Returns None for a loss of each image, or if the kernel would have to copy the images."""
    if per_image:
        return None
    call = KernelCall(img1, img2, options, background=background)
    if call.first.data_ptr() != img1.data_ptr() or call.second.data_ptr() != img2.data_ptr():
        return None
    return _Loss(call, img1, img2, options, weights, needs, terms)


IMPLEMENTATIONS = {**ssim_cpu.IMPLEMENTATIONS, "photometric": _photometric}
register_device("cpu", Device(IMPLEMENTATIONS, ssim_cpu.supports, prepare=_prepare, composites=lambda *arguments: True))
