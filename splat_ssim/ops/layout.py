"""Shapes and memory layouts of images, and tensors made to match them.

A tensor is "interleaved" where its channels are the innermost axis in memory (channels-last data, or torch's
channels_last memory format), else "planar". Kernels read both in place. Outputs have the layout of the first image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._maps import channels_first, compute_dtype
from ..options import SSIMOptions


def is_interleaved(images: Tensor) -> bool:
    """Whether a (B, C, spatial…) tensor has the channels innermost in memory."""
    return images.shape[1] > 1 and images.stride(1) == 1 and images.stride(-1) == images.shape[1]


def new_like(
    images: Tensor, shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool, planar: bool = False
) -> Tensor:
    """An uninitialised tensor whose (B, C, spatial…) shape is `shape`, in the logical and memory layout of `images`."""
    if not planar and is_interleaved(channels_first(images, channels_last)):
        made = images.new_empty((shape[0], *shape[2:], shape[1]), dtype=dtype)
        return made if channels_last else made.movedim(-1, 1)
    made = images.new_empty(shape, dtype=dtype)
    return made.movedim(1, -1) if channels_last else made


def map_shape(images: Tensor, options: SSIMOptions) -> tuple[int, ...]:
    """The shape (B, C, spatial…) of the map of S."""
    first = channels_first(images, options.channels_last)
    insets = options.insets(first.ndim - 2)
    return (*first.shape[:2], *(side - 2 * inset for side, inset in zip(first.shape[2:], insets, strict=True)))


def new_gradients(
    img1: Tensor, img2: Tensor, options: SSIMOptions, need1: bool, need2: bool, planar: bool = False
) -> tuple[Tensor, Tensor]:
    """Both gradients, float32 or wider, in the layout of the first image, so that one kernel writes both.

    One that is not needed is empty.
    """
    dtype, channels_last = compute_dtype(img1, img2), options.channels_last
    shape = tuple(channels_first(img1, channels_last).shape)
    grads = [
        new_like(img1, shape, dtype, channels_last, planar) if needed else img1.new_empty(0, dtype=dtype)
        for needed in (need1, need2)
    ]
    return grads[0], grads[1]


def wanted(grads: tuple[Tensor, Tensor], need1: bool, need2: bool) -> tuple[Tensor | None, Tensor | None]:
    """The gradients that a kernel has to fill."""
    return grads[0] if need1 else None, grads[1] if need2 else None
