"""The fused_ssim and fused_ssim3d drop-ins, and the installation of drop-ins under other packages' names."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import splat_ssim.compat
from splat_ssim import reference
from splat_ssim.compat import fused_ssim, fused_ssim3d
from tests.compare import assert_same, random_pair

pytestmark = pytest.mark.usefixtures("device")

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
    # float32 moments about the mean against the float32 definition.
    assert_same(lambda a, b: function(a, b, padding), lambda a, b: reference.ssim(a, b, padding=padding), images, 5e-6)
    # The second image's gradient is asked for alone.
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


def run(program):
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_install_replaces_whole_packages():
    run(
        """
import splat_ssim.compat
splat_ssim.compat.install("fused_ssim", "fused_ssim3d", "pytorch_msssim")
import torch, fused_ssim, pytorch_msssim
from fused_ssim import fused_ssim as function
from fused_ssim3d import fused_ssim2d
assert function.__module__ == "splat_ssim.compat.fused_ssim"
assert pytorch_msssim.ssim.__module__ == "splat_ssim.compat.pytorch_msssim"
image = torch.rand(1, 3, 16, 16)
assert function(image, image) == fused_ssim2d(image, image) == 1
"""
    )


def test_install_replaces_names_in_kornia():
    run(
        """
import kornia, kornia.losses
dice = kornia.losses.DiceLoss
import splat_ssim.compat
splat_ssim.compat.install("kornia")
import torch
assert kornia.losses.DiceLoss is dice
for name in ("ssim_loss", "SSIM3DLoss", "MS_SSIMLoss", "PSNRLoss", "cauchy_loss", "total_variation"):
    assert getattr(kornia.losses, name).__module__.startswith("splat_ssim.compat.kornia"), name
for name in ("ssim", "ssim3d", "SSIM", "SSIM3D"):
    assert getattr(kornia.metrics, name).__module__.startswith("splat_ssim.compat.kornia"), name
kornia.losses.SSIMLoss(5)(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8))
"""
    )


def test_install_refuses_unknown_names():
    with pytest.raises(ValueError, match="out of fused_ssim, fused_ssim3d, pytorch_msssim, kornia, got lpips"):
        splat_ssim.compat.install("fused_ssim", "lpips")
    with pytest.raises(ValueError, match="got none"):
        splat_ssim.compat.install()
