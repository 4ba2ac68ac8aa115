"""The limits of scripts/cuda_counts.py for one architecture, if nvcc 13.0 and NVIDIA's binary tools are there."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "scripts"))

import cuda_counts  # noqa: E402


def missing():
    compiler = cuda_counts.build_cuda.nvcc()
    if compiler is None or cuda_counts.binary_tools() is None:
        return "needs nvcc, cuobjdump and nvdisasm"
    said = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
    return None if "release 13.0" in said else "the bars are for nvcc 13.0"


@pytest.mark.emulation
@pytest.mark.long
@pytest.mark.skipif(missing() is not None, reason=str(missing()))
def test_kernels_are_within_their_bars(tmp_path):
    """Registers, stack, spills, instructions, wavefronts and bytes; the two floating-point counts agree within 2%."""
    rows, faults = cuda_counts.check("sm_90", tmp_path, cuda_counts._cuda_emulated.run_all())
    assert faults == []
    assert {row["kernel"] for row in rows} == set(cuda_counts.BARS)
