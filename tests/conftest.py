"""Fixtures of several modules."""

import pytest
import torch

from tests import devices


@pytest.fixture(params=devices.DEVICES)
def device(request):
    """The test runs on each device: see devices.py."""
    with devices.use(request.param):
        yield request.param


@pytest.fixture
def threads():
    """One thread where a test does not ask for more: small images gain nothing by two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch.set_num_threads
    torch.set_num_threads(before)
