"""scripts/check_out_of_core.py: both ways agree on a small volume, and failures are recognised."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("zarr")
SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "check_out_of_core.py"


def check(*options):
    done = subprocess.run([sys.executable, str(SCRIPT), *options], capture_output=True, text=True)
    return done.returncode, json.loads(done.stdout)


def test_both_ways_agree():
    status, found = check("--size", "72", "--block", "30", "--workers", "1")
    assert status == 0 and found["size"] == 72
    assert found["difference"] < 1e-7
    assert found["dask"]["peak_mb"] > 100


def test_too_much_memory_is_a_failure():
    status, found = check("--size", "24", "--limit-mb", "10")
    assert status == 1 and found["difference"] < 1e-7
