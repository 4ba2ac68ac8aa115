"""Fixtures that several modules use."""

import os

import pytest
import torch

from splat_ssim.ops import compiled
from tests import devices

if "PYTEST_XDIST_WORKER" in os.environ:
    # Each process has one processor. With more threads, those of several processes would wait for each other.
    torch.set_num_threads(1)
    # So have the programs that it starts, except where a test says a number.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(params=devices.DEVICES)
def device(request):
    """The test runs on each device: see devices.py."""
    with devices.use(request.param):
        yield request.param


@pytest.fixture
def threads():
    """Sets the number of threads, 1 to begin with. Kernels use it even beyond the number of processors."""
    before, library = torch.get_num_threads(), compiled.library()
    torch.set_num_threads(1)
    if library is not None:
        library.splat_ssim_oversubscribe(True)
    yield torch.set_num_threads
    torch.set_num_threads(before)
    if library is not None:
        library.splat_ssim_oversubscribe(False)
