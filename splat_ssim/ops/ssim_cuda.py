"""The SSIM operators on CUDA: the kernels of csrc/cuda on the current stream and device of the images.

A fused kernel computes one gradient of images, of a loss or a map, for windows of up to 11. It moves 12 bytes an
element, 20 with a mask. Volumes, wider windows, channel means, eps and both gradients take a forward and a backward
kernel. Nothing synchronises or reads device memory on the host. Sums have a fixed order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _maps
from .._maps import channels_first
from ..options import SSIMOptions
from . import _cuda_launch as launch
from . import _cuda_module
from ._cuda_kernels import AXES, LONGEST_AXIS_WINDOW, SHARED, WINDOW_SIZES
from .layout import map_shape, new_gradients, new_like, wanted

_DTYPES = frozenset((torch.float32, torch.float16, torch.bfloat16, torch.uint8))
#: Longest axis of images. Kernels use 32-bit indices along an axis, and 64 bits for strides and total sizes.
_LONGEST_AXIS = 2**31 - 8192
#: Smallest and largest data range. Outside, squares of squares leave the range of float32.
_DATA_RANGES = (1e-12, 1e12)
#: Smallest and largest eps other than 0. Outside, eps itself leaves the range of float32.
_EPS = (1e-30, 1e30)


def unit_of(options: SSIMOptions) -> int:
    """The unit of compilation that holds the kernels of a window, see csrc/cuda/problem.h."""
    if options.is_cubic():
        for size in WINDOW_SIZES:
            if size == options.window_size:
                return size  # our own number, since torch.compile may have made a symbol of the option
    return AXES


def _takes_window(options: SSIMOptions) -> bool:
    if options.is_cubic():
        return options.window_size in WINDOW_SIZES
    return max(options.windows(3)) <= LONGEST_AXIS_WINDOW


def _takes_shape(image: Tensor) -> bool:
    for size in image.shape:  # not `max`, which the Dynamo of torch 2.4 can't trace for symbols
        if size >= _LONGEST_AXIS:
            return False
    return True


def _has_device_kernels(index: int, unit: int) -> bool:
    return _cuda_module.kernels(index, unit) is not None


# This is what torch.compiler.assume_constant_result sets. The decorator would import Dynamo, which takes seconds.
_has_device_kernels._dynamo_marked_constant = True  # type: ignore[attr-defined]


def supports(img1: Tensor, img2: Tensor, options: SSIMOptions) -> bool:
    """Whether the kernels take these images."""
    return (
        img1.dtype in _DTYPES
        and img2.dtype in _DTYPES
        and _takes_window(options)
        and (options.eps == 0.0 or _EPS[0] <= options.eps <= _EPS[1])
        and _DATA_RANGES[0] <= options.data_range <= _DATA_RANGES[1]
        and img1.numel() > 0
        and _takes_shape(img1)
        and _has_device_kernels(img1.device.index, unit_of(options))
    )


def _ssim_map(img1: Tensor, img2: Tensor, *arguments: Any) -> Tensor:
    options = SSIMOptions.of(*arguments)
    found = new_like(img1, map_shape(img1, options), torch.float32, options.channels_last)
    launch.fill_map(*_cuda_module.target(img1, unit_of(options)), img1, img2, options, found)
    return found


def _ssim_map_backward(grad_map: Tensor, img1: Tensor, img2: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    *values, need1, need2 = arguments
    options = SSIMOptions.of(*values)
    grads = new_gradients(img1, img2, options, need1, need2)
    targets = wanted(grads, need1, need2)
    launch.fill_map_gradients(*_cuda_module.target(img1, unit_of(options)), grad_map, img1, img2, options, targets)
    return grads


def _ssim_channel_means(img1: Tensor, img2: Tensor, *arguments: Any) -> Tensor:
    options = SSIMOptions.of(*arguments)._replace(eps=0.0)
    return launch.channel_means(*_cuda_module.target(img1, unit_of(options)), img1, img2, options)


def _ssim_channel_means_backward(
    grad_means: Tensor, img1: Tensor, img2: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor]:
    *values, need1, need2 = arguments
    options = SSIMOptions.of(*values)._replace(eps=0.0)
    grads = new_gradients(img1, img2, options, need1, need2, planar=True)
    targets = wanted(grads, need1, need2)
    launch.fill_channel_mean_gradients(
        *_cuda_module.target(img1, unit_of(options)), grad_means, img1, img2, options, targets
    )
    return grads


def _ms_ssim(img1: Tensor, img2: Tensor, weights: Sequence[float], *arguments: Any) -> tuple[Tensor, Tensor]:
    options = SSIMOptions.of(*arguments)
    first_options = options._replace(padding="valid", channels_last=False, eps=0.0)
    pairs = _maps.pyramid(img1, img2, len(weights), options.data_range, options.channels_last)
    means = [launch.channel_means(*_cuda_module.target(img1, unit_of(options)), *pair, first_options) for pair in pairs]
    terms = _maps.scale_terms(means).double()
    return _maps.combine_terms(terms, weights).float(), terms


def _ms_ssim_backward(
    grad_values: Tensor, img1: Tensor, img2: Tensor, terms: Tensor, weights: Sequence[float], *arguments: Any
) -> tuple[Tensor, Tensor]:
    *values, need1, need2 = arguments
    options = SSIMOptions.of(*values)
    first_options = options._replace(padding="valid", channels_last=False, eps=0.0)
    grad_terms = _maps.term_gradients(grad_values.double(), terms, weights)
    fine1, fine2 = (
        channels_first(_maps.as_float(image, torch.float32, options.data_range), options.channels_last)
        for image in (img1, img2)
    )
    pairs = _maps.pyramid(fine1, fine2, len(weights), options.data_range, channels_last=False)
    coarser: tuple[Tensor, Tensor] | None = None
    for scale, pair in reversed(list(enumerate(pairs))):
        grad_means = torch.zeros(*terms.shape[:2], 2, dtype=torch.float32, device=terms.device)
        grad_means[..., 0 if scale + 1 == len(pairs) else 1] = grad_terms[..., scale]
        grads = new_gradients(*pair, first_options, need1, need2, planar=True)
        targets = wanted(grads, need1, need2)
        launch.fill_channel_mean_gradients(
            *_cuda_module.target(img1, unit_of(options)), grad_means, *pair, first_options, targets
        )
        for i, grad in enumerate(targets):
            if grad is not None and coarser is not None:
                grad += _maps.spread(coarser[i], grad.shape)
        coarser = grads
    first, second = (grad.movedim(1, -1) if options.channels_last and grad.ndim > 1 else grad for grad in grads)
    return first, second


def scale(gradient: Tensor, upstream: Tensor) -> bool:
    """`dispatch.Device.scale` of CUDA."""
    return launch.scale(*_cuda_module.target(gradient, SHARED), gradient, upstream)


IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {
    "ssim_map": _ssim_map,
    "ssim_map_backward": _ssim_map_backward,
    "ssim_channel_means": _ssim_channel_means,
    "ssim_channel_means_backward": _ssim_channel_means_backward,
    "ms_ssim": _ms_ssim,
    "ms_ssim_backward": _ms_ssim_backward,
}
