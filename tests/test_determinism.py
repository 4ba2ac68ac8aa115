"""The promise: the same call gives the same bits in every run, for any number of threads and order of blocks."""

import hashlib
import os
import subprocess
import sys

import pytest
import torch

import splat_ssim
from splat_ssim.loss import ms_ssim_l1_loss, photometric_loss
from splat_ssim.ops import prepared
from tests import devices

ROOT = devices.ROOT


def digest():
    """Digest of the values and gradients of every loss, on the current device with the current number of threads."""
    generator = torch.Generator().manual_seed(0)
    device = devices.torch_device()
    found = []

    def take(function, shape, **options):
        x = torch.rand(shape, generator=generator, device="cpu")
        noise = torch.randn(shape, generator=generator, device="cpu")
        y = (x + 0.1 * noise).clamp(0, 1).to(device)
        x = x.to(device).requires_grad_()
        value = function(x, y, **options)
        found.extend([value, *torch.autograd.grad(value.sum(), x)])

    mask = torch.rand(1, 1, 45, 300, generator=generator, device="cpu").to(device)
    take(photometric_loss, (1, 3, 45, 300))
    take(photometric_loss, (1, 3, 45, 256))
    take(photometric_loss, (1, 3, 45, 300), mask=mask)
    take(photometric_loss, (5, 1, 33, 70), reduction="image", padding="reflect")
    take(photometric_loss, (1, 45, 300, 3), channels_last=True, window_size=7)
    take(splat_ssim.ssim, (1, 2, 40, 90), reduction="none", window_size=13)
    take(splat_ssim.ssim3d, (1, 2, 14, 17, 40))
    take(ms_ssim_l1_loss, (1, 2, 180, 170), window_size=11)
    rgba = torch.randint(256, (1, 4, 45, 300), dtype=torch.uint8, generator=generator, device="cpu").to(device)
    take(lambda x, _: photometric_loss(x, rgba, background=0.5), (1, 3, 45, 300))
    return hashlib.sha256(b"".join(t.detach().cpu().contiguous().numpy().tobytes() for t in found)).hexdigest()


def test_the_number_of_threads_changes_no_bit(threads):
    digests = set()
    for number in (1, 2, 3, 5, 8):
        threads(number)
        digests.add(digest())
    assert len(digests) == 1


def test_another_process_gives_the_same_bits():
    code = "from tests.test_determinism import digest; print(digest())"
    environment = {**os.environ, "OMP_NUM_THREADS": "3", "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == digest(), done.stderr


@pytest.mark.emulation
@pytest.mark.slow
def test_the_order_of_blocks_and_warps_changes_no_bit():
    """At every launch, a GPU decides again which blocks and warps come first, and which block comes last."""
    with devices.use("emulation"):
        kernels = devices.emulated()
        digests = set()
        try:
            for order, seed in ((0, 0), (1, 0), (2, 5), (3, 6)):
                prepared.forget()
                kernels.library.splat_emulation_configure(order, seed, -1, 0)
                digests.add(digest())
        finally:
            kernels.library.splat_emulation_configure(2, 1, -1, 0)
    assert len(digests) == 1


@pytest.mark.cuda
@devices.needs_gpu
def test_a_gpu_gives_the_same_bits_again():
    with devices.use("cuda"):
        assert len({digest() for _ in range(20)}) == 1
