"""Compares the SSIM operators with the definition in float64."""

import torch

from splat_ssim.ops import ssim as ops
from splat_ssim.ops.photometric import photometric
from splat_ssim.options import SSIMOptions
from tests import devices

PADDINGS = ("same", "valid", "reflect", "replicate")
#: Factor of a device's bounds over the CPU's. CUDA kernels sum blocks in float32; a GPU approximates reciprocals.
LOOSENED = {"cpu": 1, "emulation": 1.5, "cuda": 3}


def noise(shape, seed=0, scale=1.0):
    """Normal noise on the device of the test."""
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed), device="cpu")
    return (scale * drawn).to(devices.torch_device())


def pair(shape, seed=0, data_range=1.0):
    """Two similar images in [0, data_range]."""
    generator = torch.Generator().manual_seed(seed)
    img1 = torch.rand(shape, generator=generator, device="cpu")
    img2 = (img1 + 0.1 * torch.randn(shape, generator=generator, device="cpu")).clamp(0, 1)
    return tuple((img * data_range).to(devices.torch_device()) for img in (img1, img2))


def options_for(shape, **changes):
    return SSIMOptions(**changes)


def keywords(options):
    return options._asdict()


def differentiate(function, *images):
    """The value of a scalar function and its gradients with respect to the images."""
    images = [image.detach().clone(memory_format=torch.preserve_format).requires_grad_() for image in images]
    value = function(*images)
    return value.detach(), *torch.autograd.grad(value, images)


def assert_close(found, expected, tolerance):
    """The difference must be at most `tolerance` times the expected maximum; on other devices a factor more."""
    assert found.shape == expected.shape
    scale = expected.abs().max().clamp(min=1e-30) if expected.numel() else 1.0
    error = ((found.double() - expected.double()).abs() / scale).max().item() if expected.numel() else 0.0
    limit = tolerance * LOOSENED[devices.current()]
    assert error <= limit, (error, limit)


def check_all(img1, img2, options, value=1e-7, gradient=2e-6):
    """Compares the three operators and their gradients for both images with the definition in float64."""
    wide = [image.double() for image in (img1, img2)]

    def loss(x, y):
        return photometric(x, y, options, l1_weight=0.8, dssim_weight=0.2)[0]

    found, expected = differentiate(loss, img1, img2), differentiate(loss, *wide)
    assert_close(found[0], expected[0], value)
    assert_close(found[1], expected[1], gradient)
    assert_close(found[2], expected[2], gradient)

    for function in (ops.ssim_map, ops.ssim_channel_means):
        assert_close(function(img1, img2, options), function(*wide, options), 2e-6)
        upstream = noise(function(*wide, options).shape, 1).double()

        def weighted(x, y, function=function, upstream=upstream):
            return (function(x, y, options) * upstream.to(x.dtype)).sum()

        found, expected = differentiate(weighted, img1, img2), differentiate(weighted, *wide)
        assert_close(found[1], expected[1], gradient)
        assert_close(found[2], expected[2], gradient)
