"""The stored float64 values equal the oracle's, and the library here is compared with them without Python."""

import subprocess
import sys
from pathlib import Path

import pytest

from splat_ssim.ops import compiled
from tests import vectors

ROOT = Path(__file__).resolve().parent.parent


def test_the_file_is_small():
    assert vectors.PATH.stat().st_size <= 200_000


def test_the_numbers_are_those_of_the_driver():
    # The first of seed 1, by hand: (1 · 2654435761 + 12345) · 1664525 + 1013904223 modulo 2^32, its upper 24 bits.
    state = ((2654435761 + 12345) * 1664525 + 1013904223) % 2**32
    assert vectors.numbers(1, 1).item() == (state >> 8) / 2**24


def test_the_file_holds_what_the_oracle_says():
    chosen = [vectors.ssim((1, 2, 1, 24, 29), "same"), vectors.ms_ssim((2, 2, 1, 45, 52)), vectors.adam()]
    stored = vectors.PATH.read_bytes()
    for case in chosen:
        # Another torch may round the last bit of float32 differently. Parameters must be equal, values nearly equal.
        assert case.packed()[:112] in stored
        for *_, values in case.checks:
            assert values.isfinite().all()
    assert chosen[-1].packed() in stored


@pytest.mark.skipif(compiled.library() is None, reason="built without a compiler")
def test_the_library_here_is_held_to_the_file():
    line = [sys.executable, str(ROOT / "scripts" / "run_vectors.py"), "--library", str(compiled.LIBRARY_PATH)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("checks, 0 failed")
    assert f"{compiled.available_isas()[0]}: 22 cases" in done.stdout
