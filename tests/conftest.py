"""Fixtures of several modules."""

import pytest

from tests import devices


@pytest.fixture(params=devices.DEVICES)
def device(request):
    """The test runs on each device: see devices.py."""
    with devices.use(request.param):
        yield request.param
