"""Holds one function to another: value, gradients, dtype and shape, on the same images."""

import functools

import pytest
import torch

from tests import devices

#: Packages create their windows on the CPU, as in a user's program, whatever the tests' default device.
plain = functools.partial(torch.device, "cpu")


def random_pair(generator, shape, dtype, top=1.0):
    """Two images that are alike, in [0, top]."""
    img1 = torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu")
    noise = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
    img2 = (img1 + 0.2 * noise).clamp(0, 1)
    return [(img * top).to(devices.torch_device(), dtype) for img in (img1, img2)]


def joined(function):
    """Wraps a function so that it returns one tensor. A package's function may return several."""

    def flat(*images):
        found = function(*images)
        return torch.cat([value.reshape(-1) for value in found]) if isinstance(found, (tuple, list)) else found

    return flat


def in_float64(function):
    """Wraps a function so that it computes in float64 and returns the dtype of the images."""
    return lambda *images: joined(function)(*(img.double() for img in images)).to(images[0].dtype)


def assert_same_error(ours, theirs, *arguments, text=None):
    """Both refuse the arguments. Our error is a ValueError or TypeError, and also of the original's type."""
    with pytest.raises(Exception) as original:
        theirs(*arguments)
    with pytest.raises((ValueError, TypeError), match=text) as found:
        ours(*arguments)
    assert isinstance(found.value, type(original.value)), (found.value, original.value)
    return found.value


def assert_same(ours, theirs, images, tolerance):
    """Value within `tolerance` of its largest entry, every gradient within `tolerance` of its own."""
    results = []
    for function in (ours, theirs):
        inputs = [img.detach().clone().requires_grad_() for img in images]
        with plain():
            value = function(*inputs)
        upstream = torch.cos(torch.arange(value.numel(), dtype=value.dtype)).reshape(value.shape)
        results.append((value.detach(), *torch.autograd.grad(value, inputs, upstream)))
    for found, expected in zip(*results, strict=True):
        assert found.dtype == expected.dtype
        if found.is_cuda and found.dtype == torch.float32:
            tolerance = max(tolerance, 3e-6)  # the error of cuDNN's float32 convolutions
        scale = expected.nan_to_num(0, 0, 0).abs().max().item() if expected.numel() else 0.0
        torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * scale, equal_nan=True)
