"""The fused_ssim and fused_ssim3d drop-ins, compared with the definition because the originals need a GPU."""

import math
import random

import numpy as np
import pytest
import torch

from splat_ssim import reference
from splat_ssim.compat import fused_ssim, fused_ssim3d
from tests import devices
from tests.compare import assert_same, random_pair

pytestmark = pytest.mark.usefixtures("device", "threads")

FUNCTIONS = [
    (fused_ssim.fused_ssim, 2),
    (fused_ssim.fused_ssim3d, 3),
    (fused_ssim3d.fused_ssim2d, 2),
    (fused_ssim3d.fused_ssim3d, 3),
]


@pytest.mark.parametrize(("function", "spatial_dims"), FUNCTIONS)
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_mean_ssim(function, spatial_dims, padding):
    images = random_pair(torch.Generator().manual_seed(0), (2, 3, *[14, 13, 12][:spatial_dims]), torch.float32)
    # The kernels' float32 moments about the mean are compared with the definition in float32.
    assert_same(lambda a, b: function(a, b, padding), lambda a, b: reference.ssim(a, b, padding=padding), images, 5e-6)
    # Only the second image's gradient is requested.
    target = images[1].clone().requires_grad_()
    function(images[0], target, padding=padding).backward()
    assert target.grad.abs().max() > 0


@pytest.mark.parametrize(("function", "spatial_dims"), FUNCTIONS)
def test_without_training_there_is_no_gradient(function, spatial_dims):
    img1, img2 = random_pair(torch.Generator().manual_seed(0), (1, 1, *[12] * spatial_dims), torch.float32)
    value = function(img1.requires_grad_(), img2, train=False)
    assert not value.requires_grad
    torch.testing.assert_close(value, function(img1, img2).detach(), rtol=0, atol=1e-7)


@pytest.mark.parametrize(("function", "spatial_dims"), FUNCTIONS)
def test_refusals(function, spatial_dims):
    image = torch.zeros(1, 1, *[10] * spatial_dims)
    for error in (AssertionError, ValueError):
        with pytest.raises(error, match="padding must be 'same' or 'valid', got 'full'"):
            function(image, image, "full")
    with pytest.raises(ValueError, match="at least window_size=11, got"):
        function(image, image, "valid")
    with pytest.raises(ValueError, match="must have the shape"):
        function(image[0], image[0])


@pytest.mark.parametrize(("device", "seed"), devices.draws(24, emulated=12), indirect=["device"])
@pytest.mark.parametrize("package", [fused_ssim, fused_ssim3d])
def test_map(package, seed):
    rng = random.Random(seed)
    spatial_dims, padding = rng.choice([2, 3]), rng.choice(["same", "valid"])
    least = 11 if padding == "valid" else 1
    shape = (rng.randint(1, 2), rng.randint(1, 3), *[rng.randint(least, least + 6) for _ in range(spatial_dims)])
    k1, k2 = rng.choice([(0.01, 0.03), (0.1, 0.2)])
    images = random_pair(torch.Generator().manual_seed(seed), shape, rng.choice([torch.float32, torch.float64]))
    options = () if (padding, spatial_dims) == ("same", 2) else (padding, True, spatial_dims)

    def expected(img1, img2):
        exact = reference.ssim(img1.double(), img2.double(), padding=padding, k1=k1, k2=k2, reduction="none")
        return exact.to(img1.dtype)

    # S is within 3e-6. The gradient of a map of few pixels is within 1e-5 of its largest entry.
    assert_same(lambda a, b: package.FusedSSIMMap.apply(k1**2, k2**2, a, b, *options), expected, images, 1e-5)


def test_map_without_training_has_no_gradient():
    img1, img2 = random_pair(torch.Generator().manual_seed(0), (1, 1, 12, 12), torch.float32)
    ssim_map = fused_ssim.FusedSSIMMap.apply(C1=1e-4, C2=9e-4, img1=img1.requires_grad_(), img2=img2, train=False)
    assert not ssim_map.requires_grad
    assert ssim_map.mean().item() == pytest.approx(fused_ssim.fused_ssim(img1, img2).item(), abs=1e-6)


def test_map_takes_constants_of_any_kind():
    images = random_pair(torch.Generator().manual_seed(0), (1, 1, 12, 12), torch.float32)
    expected = fused_ssim.FusedSSIMMap.apply(1e-4, 9e-4, *images)
    for number in (np.float64, np.float32, np.array, torch.tensor):
        found = fused_ssim.FusedSSIMMap.apply(number(1e-4), number(9e-4), *images)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    # The original accepts 0 too.
    assert fused_ssim.FusedSSIMMap.apply(0, 0.0, *images).isfinite().all()


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ((-1e-4, 9e-4), ValueError, "C1 must be a finite number of 0 or more, got -0.0001"),
        ((1e-4, math.inf), ValueError, "C2 must be a finite number of 0 or more, got inf"),
        (("1e-4", 9e-4), TypeError, "C1 must be a number, got str"),
        ((torch.ones(3), 9e-4), TypeError, r"C1 must be a number: it is not differentiated, got a tensor of \(3,\)"),
        ((1e-4, 9e-4, "full"), AssertionError, "padding must be 'same' or 'valid', got 'full'"),
        ((1e-4, 9e-4, "valid"), ValueError, "at least window_size=11, got"),
        ((1e-4, 9e-4, "same", True, 3), ValueError, r"must have the shape \(B, C, D, H, W\)"),
        ((1e-4, 9e-4, "same", True, 4), ValueError, "spatial_dims must be 2 or 3, got 4"),
    ],
)
def test_map_refusals(options, error, text):
    image = torch.zeros(1, 1, 10, 10)
    with pytest.raises(error, match=text):
        fused_ssim.FusedSSIMMap.apply(*options[:2], image, image, *options[2:])
