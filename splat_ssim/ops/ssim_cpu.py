"""The SSIM operators on the CPU, except the losses, by the compiled kernels of csrc/cpu."""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .._maps import as_float, channels_first, compute_dtype
from ..options import Sigma, SSIMOptions, WindowSize, of_each
from ..reference import PADDINGS, gaussian_taps
from . import compiled
from .layout import is_interleaved, map_shape, new_gradients, new_like, wanted

# The library's constants. They are read at import, because torch.compile cannot trace the loader. Empty without it.
_NUMBERS = compiled.constants()
_DTYPE_CODES = {
    dtype: _NUMBERS[f"dtype_{name}"]
    for name, dtype in (
        ("float32", torch.float32),
        ("float16", torch.float16),
        ("bfloat16", torch.bfloat16),
        ("uint8", torch.uint8),
    )
    if _NUMBERS
}
#: The type of RGBA images, four bytes a pixel, which are composited over a background.
_RGBA = _NUMBERS.get("dtype_rgba", 0)
_PADDING_CODES = {padding: _NUMBERS[f"padding_{padding}"] for padding in PADDINGS if _NUMBERS}
_LONGEST_WINDOW = _NUMBERS.get("max_window", 0)

#: Smallest and largest data range. Outside, pixels may be denormal, which kernels treat as 0, or sums may overflow.
_DATA_RANGES = (1e-30, 1e30)

#: `Arguments` of csrc/cpu/layout.h: six views of six words, thirteen sizes, four pointers, a stride, four doubles.
_ARGUMENTS = struct.Struct("=54q4d")
#: What follows them in `PyramidArguments` of csrc/cpu/ms_ssim.cpp.
_PYRAMID = struct.Struct("=6q")
_NO_VIEW = (0, 0, 0, 0, 0, 0)


@functools.lru_cache(maxsize=64)
def _window(window_size: WindowSize, sigma: Sigma) -> ctypes.Array[ctypes.c_double]:
    """The taps of the windows along three axes, one after the other."""
    sizes, sigmas = of_each(window_size, 3), of_each(sigma, 3)
    taps = [tap for axis in zip(sizes, sigmas, strict=True) for tap in gaussian_taps(*axis)]
    return (ctypes.c_double * len(taps))(*taps)


def supports(img1: Tensor, img2: Tensor, options: SSIMOptions) -> bool:
    """Whether the kernels take these images."""
    return (
        img1.dtype in _DTYPE_CODES
        and img2.dtype in _DTYPE_CODES
        and all(size % 2 == 1 and size <= _LONGEST_WINDOW for size in options.windows(3))
        and _DATA_RANGES[0] <= options.data_range <= _DATA_RANGES[1]
        and img1.numel() > 0
    )


def _readable_rgba(images: Tensor) -> Tensor:
    """RGBA bytes (B, 4, H, W), a pixel's channels and a row's pixels adjacent in memory: `images` itself or a copy."""
    batch, channel, row, pixel = images.stride()
    whole = all(stride % 4 == 0 or size == 1 for stride, size in ((batch, images.shape[0]), (row, images.shape[2])))
    if whole and channel == 1 and (pixel == 4 or images.shape[3] == 1):
        return images
    return images.contiguous(memory_format=torch.channels_last)


def _readable(images: Tensor, interleaved: bool) -> Tensor:
    """Images (B, C, spatial…) that a kernel can read: `images` itself if its innermost axes are dense, else a copy."""
    if interleaved:
        if images.stride(1) == 1 and images.stride(-1) == images.shape[1]:
            return images
        return images.movedim(1, -1).contiguous().movedim(-1, 1)
    return images if images.stride(-1) == 1 or images.shape[-1] == 1 else images.contiguous()


class KernelCall:
    """One kernel call: `run` fills the outputs that it is given and returns the totals, three for each plane.

    Totals are a ctypes array, and coefficients may be one, since an operation on a tiny tensor can cost more than the
    kernel.

    A weight with `weight_insets` starts that far inside the images and applies to 1 - S only. A weight without insets
    is as large as the images and applies to |x - y| too. With a background, float32 (1 or B, 3), the second image is
    RGBA in bytes.
    """

    def __init__(
        self,
        img1: Tensor,
        img2: Tensor,
        options: SSIMOptions,
        planar: bool = False,
        background: Tensor | None = None,
    ):
        first, second = (channels_first(img, options.channels_last) for img in (img1, img2))
        self.interleaved = not planar and is_interleaved(first)
        self.first = _readable(first, self.interleaved)
        self.second = _readable(second, self.interleaved) if background is None else _readable_rgba(second)
        self.background = background
        self.options = options
        self.batch, self.channels = first.shape[0], first.shape[1]
        self.planes = self.batch if self.interleaved else self.batch * self.channels

    def spread(self, weight: Tensor) -> Tensor:
        """Expands a weight to every channel, float32 (B, C, spatial…), as the kernel reads it."""
        weight = channels_first(weight, self.options.channels_last).float()
        return _readable(weight.expand(self.batch, self.channels, *weight.shape[2:]), self.interleaved)

    def _view(self, tensor: Tensor | None, insets: Sequence[int] | None = None) -> tuple[int, ...]:
        """`View` of csrc/cpu/layout.h for a (B, C, spatial…) tensor whose first element is at image position `insets`.

        Along a row the kernel steps by 1, or by the number of channels. The tensor's own stride is not used, since it
        can be anything for a row of one element.
        """
        if tensor is None:
            return _NO_VIEW
        strides = tensor.stride()
        slices = strides[2] if len(strides) == 5 else 0
        address = tensor.data_ptr()
        if insets is not None:
            steps = (slices, strides[-2], self.channels if self.interleaved else 1)
            before = sum(inset * step for inset, step in zip(insets, steps[-len(insets) :], strict=True))
            address -= before * tensor.element_size()
        return address, _DTYPE_CODES[tensor.dtype], strides[0], strides[1], slices, strides[-2]

    def _rgba_view(self) -> tuple[int, ...]:
        """`View` of the second image, whose elements are pixels of four bytes."""
        batch, _, row, _ = self.second.stride()
        return self.second.data_ptr(), _RGBA, batch // 4, 0, 0, row // 4

    def pack(
        self,
        coefficients: int,
        totals: int,
        weight: Tensor | None = None,
        weight_insets: Sequence[int] | None = None,
        map_: Tensor | None = None,
        grad1: Tensor | None = None,
        grad2: Tensor | None = None,
        similarities: bool = False,
    ) -> bytes:
        """Packs `Arguments` of csrc/cpu/layout.h. Coefficients and totals are given by their addresses."""
        options, first, background = self.options, self.first, self.background
        outputs = [
            None if output is None else channels_first(output, options.channels_last) for output in (map_, grad1, grad2)
        ]
        # Keep a reference: other threads may evict it from the cache while this call's kernel reads it.
        self.window = _window(options.window_size, options.sigma)
        sides = first.shape[2:] if first.ndim == 5 else (1, *first.shape[2:])
        return _ARGUMENTS.pack(
            *self._view(first),
            *(self._view(self.second) if background is None else self._rgba_view()),
            *self._view(weight, weight_insets),
            *self._view(outputs[0], options.insets(first.ndim - 2)),
            *self._view(outputs[1]),
            *self._view(outputs[2]),
            self.batch,
            self.channels,
            *sides,
            self.interleaved,
            *options.windows(3),
            _PADDING_CODES[options.padding],
            torch.get_num_threads(),
            weight_insets is None,
            similarities,
            ctypes.addressof(self.window),
            coefficients,
            totals,
            0 if background is None else background.data_ptr(),
            0 if background is None or background.shape[0] == 1 else 3,
            (options.k1 * options.data_range) ** 2,
            (options.k2 * options.data_range) ** 2,
            options.data_range,
            options.eps,
        )

    def run(
        self,
        coefficients: Tensor | ctypes.Array[ctypes.c_double],
        weight: Tensor | None = None,
        weight_insets: Sequence[int] | None = None,
        map_: Tensor | None = None,
        grad1: Tensor | None = None,
        grad2: Tensor | None = None,
        similarities: bool = False,
    ) -> ctypes.Array[ctypes.c_double]:
        """Runs the kernel; returns the totals."""
        for output in (map_, grad1, grad2):
            if output is not None:
                compiled.prefer_huge_pages(output)
        totals = (ctypes.c_double * (3 * self.planes))()
        address = coefficients.data_ptr() if isinstance(coefficients, Tensor) else ctypes.addressof(coefficients)
        outputs = (map_, grad1, grad2, similarities)
        self.call(
            f"ssim{self.first.ndim - 2}d",
            self.pack(address, ctypes.addressof(totals), weight, weight_insets, *outputs),
        )
        return totals

    def call(self, name: str, packed: bytes) -> None:
        """Calls a kernel that takes one packed structure."""
        status = compiled.kernel(name, (ctypes.c_char_p,))(packed)
        compiled.check(status, name, (self.first.shape, self.second.shape))


def rows(totals: ctypes.Array[ctypes.c_double]) -> Tensor:
    """The totals of `KernelCall.run` as a tensor, (planes, 3)."""
    return torch.frombuffer(totals, dtype=torch.float64).view(-1, 3)


def zeros(*shape: int) -> Tensor:
    """float64 zeros on the CPU, whatever torch's default device is."""
    return torch.zeros(shape, dtype=torch.float64, device="cpu")


def positions(options: SSIMOptions, shape: torch.Size) -> int:
    """Number of values of S in each plane of images of this (B, C, spatial…) shape."""
    count = 1
    for side, inset in zip(shape[2:], options.insets(len(shape) - 2), strict=True):
        count *= side - 2 * inset
    return count


def _ssim_map(img1: Tensor, img2: Tensor, *arguments: Any) -> Tensor:
    options = SSIMOptions.of(*arguments)
    result = new_like(img1, map_shape(img1, options), compute_dtype(img1, img2), options.channels_last)
    call = KernelCall(img1, img2, options)
    call.run(zeros(call.planes, 3), map_=result)
    return result


def _ssim_map_backward(grad_map: Tensor, img1: Tensor, img2: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    *values, need1, need2 = arguments
    options = SSIMOptions.of(*values)
    grads = new_gradients(img1, img2, options, need1, need2)
    call = KernelCall(img1, img2, options)
    coefficients = zeros(call.planes, 3)
    coefficients[:, 0] = -1.0
    call.run(coefficients, call.spread(grad_map), options.insets(img1.ndim - 2), None, *wanted(grads, need1, need2))
    return grads


def _ssim_channel_means(img1: Tensor, img2: Tensor, *arguments: Any) -> Tensor:
    options = SSIMOptions.of(*arguments)._replace(eps=0.0)
    call = KernelCall(img1, img2, options, planar=True)
    totals = rows(call.run(zeros(call.planes, 3), similarities=True))
    means = totals[:, :2] / positions(options, call.first.shape)
    return means.float().view(call.batch, call.channels, 2)


def _ssim_channel_means_backward(
    grad_means: Tensor, img1: Tensor, img2: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor]:
    *values, need1, need2 = arguments
    options = SSIMOptions.of(*values)._replace(eps=0.0)
    grads = new_gradients(img1, img2, options, need1, need2, planar=True)
    call = KernelCall(img1, img2, options, planar=True)
    coefficients = zeros(call.planes, 3)
    coefficients[:, :2] = grad_means.reshape(-1, 2) * (-1.0 / positions(options, call.first.shape))
    call.run(coefficients, None, None, None, *wanted(grads, need1, need2))
    return grads


def _pyramid_call(img1: Tensor, img2: Tensor, options: SSIMOptions) -> KernelCall:
    """A call on both images as float32, from which the kernel makes the pyramid."""
    img1, img2 = (as_float(image, torch.float32, options.data_range) for image in (img1, img2))
    return KernelCall(img1, img2, options._replace(padding="valid", eps=0.0), planar=True)


def _run_pyramid(
    call: KernelCall,
    weights: Sequence[float],
    terms: Tensor,
    values: Tensor | None = None,
    upstream: Tensor | None = None,
    grads: tuple[Tensor | None, Tensor | None] = (None, None),
) -> None:
    """Forward: fills `terms` and `values`. Backward: fills `grads` from `terms` and `upstream`."""
    for grad in grads:
        if grad is not None:
            compiled.prefer_huge_pages(grad)
    exponents = (ctypes.c_double * len(weights))(*weights)
    packed = call.pack(0, 0, None, None, None, *grads) + _PYRAMID.pack(
        call.first.ndim == 5,
        len(weights),
        ctypes.addressof(exponents),
        terms.data_ptr(),
        0 if values is None else values.data_ptr(),
        0 if upstream is None else upstream.data_ptr(),
    )
    call.call("ms_ssim", packed)


def _ms_ssim(img1: Tensor, img2: Tensor, weights: Sequence[float], *arguments: Any) -> tuple[Tensor, Tensor]:
    call = _pyramid_call(img1, img2, SSIMOptions.of(*arguments))
    terms, values = zeros(call.batch, call.channels, len(weights)), zeros(call.batch, call.channels)
    _run_pyramid(call, weights, terms, values)
    return values.float(), terms


def _ms_ssim_backward(
    grad_values: Tensor, img1: Tensor, img2: Tensor, terms: Tensor, weights: Sequence[float], *arguments: Any
) -> tuple[Tensor, Tensor]:
    *values, need1, need2 = arguments
    options = SSIMOptions.of(*values)
    grads = new_gradients(img1, img2, options, need1, need2, planar=True)
    call = _pyramid_call(img1, img2, options)
    upstream = grad_values.double().contiguous()
    _run_pyramid(call, weights, terms.contiguous(), None, upstream, wanted(grads, need1, need2))
    return grads


IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {
    "ssim_map": _ssim_map,
    "ssim_map_backward": _ssim_map_backward,
    "ssim_channel_means": _ssim_channel_means,
    "ssim_channel_means_backward": _ssim_channel_means_backward,
    "ms_ssim": _ms_ssim,
    "ms_ssim_backward": _ms_ssim_backward,
}
