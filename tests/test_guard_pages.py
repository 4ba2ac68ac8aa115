"""Kernels only read and write inside their tensors: guard.py runs them next to protected pages, in child processes."""

import os
import subprocess
import sys

import pytest

from splat_ssim.ops import compiled
from tests import guard

pytestmark = pytest.mark.skipif(compiled.library() is None, reason="built without a compiler")

#: Number of crashes after which the test stops, because one fault can crash many calls.
MOST_CRASHES = 10


@pytest.fixture(scope="module", autouse=True)
def _allocator():
    guard.build()


def crashes(group, isa):
    """Runs a group. Returns the calls that crashed or whose outputs differed, each with the errors of its process."""
    found, first = [], 0
    # The two threads of every eighth call must not spin where other tests want their processors.
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", **({compiled.ISA_VARIABLE: isa} if isa else {})}
    while len(found) < MOST_CRASHES:
        command = [sys.executable, "-m", "tests.guard", group, str(first)]
        done = subprocess.run(command, cwd=guard.ROOT, env=environment, capture_output=True, text=True, timeout=280)
        assert done.stdout, done.stderr
        last = done.stdout.splitlines()[-1]
        if last == "done":
            assert done.returncode == 0, done.stderr
            return found
        found.append(f"{last}\n{done.stderr[:3000]}")
        first = int(last.split()[0]) + 1
    return found


@pytest.mark.parametrize("isa", compiled.available_isas())
def test_kernels_stay_inside_their_tensors(isa):
    found = crashes("cpu", isa)
    assert not found, "\n".join(found)


@pytest.mark.emulation
def test_emulated_cuda_kernels_stay_inside_their_tensors():
    found = crashes("emulation", None)
    assert not found, "\n".join(found)


#: Faults of a kernel that copies floats: the bytes by which its source and its target are shifted,
#: how they are guarded, and the expected message.
MISTAKES = {
    "read past the end": (4, 0, "at the end", "a read 0 bytes past the end of a tensor"),
    "write past the end": (0, 4, "at the end", "a write 0 bytes past the end of a tensor"),
    "read before the beginning": (-4, 0, "at the beginning", "a read 4 bytes before a tensor"),
    "write before the beginning": (0, -4, "at the beginning", "a write 4 bytes before a tensor"),
}


def test_a_kernel_that_leaves_a_tensor_is_caught():
    script = f"""
import ctypes, os, signal, torch
from splat_ssim.ops import compiled
from tests.guard import guarded
types = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int)
copy = compiled.kernel("peak_copy", types)
for source_shift, target_shift, mode, _ in {list(MISTAKES.values())}:
    with guarded(mode):
        source, target = torch.zeros(16), torch.zeros(16)
    assert copy(source.data_ptr(), target.data_ptr(), 16, 1) == 0
    child = os.fork()
    if child == 0:
        copy(source.data_ptr() + source_shift, target.data_ptr() + target_shift, 16, 1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGSEGV
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=guard.ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("guard:")]
    assert said == [f"guard: {problem} of 64 bytes" for *_, problem in MISTAKES.values()]
