"""The SSIM operators on CUDA: the kernels of csrc/cuda on the current stream and device of the images.

Which kernels run: for one gradient of images, of a loss or a map, with a window of up to 11, a fused one, which moves
12 bytes an element, 20 with a mask; for volumes, wider windows, channel means, eps or both gradients, the pair of a
forward and a backward kernel.
Nothing synchronises or reads device memory on the host; sums have a fixed order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _cuda_launch as launch
from . import _cuda_module
from .ssim import KERNELS, SCALES, Options, _map_shape, _new_gradients, _new_like, _wanted

_DTYPES = frozenset((torch.float32, torch.float16, torch.bfloat16, torch.uint8))
#: Axes are 32-bit inside the kernels; strides and sizes as a whole are 64-bit.
_LONGEST_AXIS = 2**31 - 8192
#: Further out squares of squares leave float32.
_DATA_RANGES = (1e-12, 1e12)
#: Where eps is not 0. Further out it leaves float32 itself.
_EPS = (1e-30, 1e30)


def _has_device_kernels(index: int, window_size: int) -> bool:
    return _cuda_module.kernels(index, window_size) is not None


# What torch.compiler.assume_constant_result sets; the decorator itself would import Dynamo, seconds of every start.
_has_device_kernels._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _supports(img1: Tensor, img2: Tensor, options: Options) -> bool:
    """Whether the kernels take these images."""
    return (
        img1.dtype in _DTYPES
        and img2.dtype in _DTYPES
        and options.window_size in launch.WINDOW_SIZES
        and (options.eps == 0.0 or _EPS[0] <= options.eps <= _EPS[1])
        and _DATA_RANGES[0] <= options.data_range <= _DATA_RANGES[1]
        and img1.numel() > 0
        and max(img1.shape) < _LONGEST_AXIS
        and _has_device_kernels(img1.device.index, options.window_size)
    )


def _target(image: Tensor, unit: int) -> tuple[launch.Kernels, int]:
    """The kernels for the image's device and a window (or `launch.SHARED`), and its current stream.

    Raises:
        RuntimeError: There are none; the public functions do not come here then.
    """
    kernels = _cuda_module.kernels(image.device.index, unit)
    if kernels is None:
        raise RuntimeError(f"there are no CUDA kernels for {image.device}")
    return kernels, torch.cuda.current_stream(image.device).cuda_stream


def _ssim_map(img1, img2, *arguments):
    options = Options(*arguments)
    found = _new_like(img1, _map_shape(img1, options), torch.float32, options.channels_last)
    launch.fill_map(*_target(img1, options.window_size), img1, img2, options, found)
    return found


def _ssim_map_backward(grad_map, img1, img2, *arguments):
    *values, need1, need2 = arguments
    options = Options(*values)
    grads = _new_gradients(img1, img2, options, need1, need2)
    launch.fill_map_gradients(
        *_target(img1, options.window_size), grad_map, img1, img2, options, _wanted(grads, need1, need2)
    )
    return grads


def _photometric(img1, img2, weight, l1_weight, dssim_weight, per_image, *arguments):
    *values, need1, need2 = arguments
    options = Options(*values)
    grads = _new_gradients(img1, img2, options, need1, need2)
    wanted = _wanted(grads, need1, need2)
    weights = (weight, l1_weight, dssim_weight, per_image)
    return *launch.photometric(*_target(img1, options.window_size), img1, img2, *weights, options, wanted), *grads


def _ssim_channel_means(img1, img2, *arguments):
    options = Options(*arguments)
    return launch.channel_means(*_target(img1, options.window_size), img1, img2, options)


def _ssim_channel_means_backward(grad_means, img1, img2, *arguments):
    *values, need1, need2 = arguments
    options = Options(*values)
    grads = _new_gradients(img1, img2, options, need1, need2, planar=True)
    wanted = _wanted(grads, need1, need2)
    launch.fill_channel_mean_gradients(*_target(img1, options.window_size), grad_means, img1, img2, options, wanted)
    return grads


def _scale(gradient: Tensor, upstream: Tensor) -> bool:
    return launch.scale(*_target(gradient, launch.SHARED), gradient, upstream)


_implementations = torch.library.Library("splat_ssim", "IMPL", "CUDA")
for _name, _function in {
    "ssim_map": _ssim_map,
    "ssim_map_backward": _ssim_map_backward,
    "photometric": _photometric,
    "ssim_channel_means": _ssim_channel_means,
    "ssim_channel_means_backward": _ssim_channel_means_backward,
}.items():
    _implementations.impl(_name, _function)

KERNELS["cuda"] = _supports
SCALES["cuda"] = _scale
