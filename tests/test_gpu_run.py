"""`make gpu` from end to end without a GPU: a stub driver runs the host emulation, and programs are stubs too."""

import csv
import os
import re
import subprocess
import sys

import pytest

from splat_ssim.ops import _cuda_kernels, compiled
from tests.devices import ROOT

pytestmark = [
    pytest.mark.emulation,
    pytest.mark.skipif(compiled.library() is None, reason="built without a compiler"),
]

STAGES = (
    "machine build smoke time ncu trainer voxelizer projector tests functions racecheck memcheck synccheck compiled"
).split()

#: Programs of the machine -> scripts with their output and effect.
NVIDIA_SMI = 'echo "Stand-in, 580.00, 1980, 2619, 31, 70"'
COMPUTE_SANITIZER = """
while [[ $1 == --* ]]; do [[ $1 == --report-api-errors || $1 == --tool || $1 == --print-limit || $1 == --padding \\
  || $1 == --error-exitcode || $1 == --kernel-name ]] && shift; shift; done
echo "========= COMPUTE-SANITIZER"
exec "$@" --only "2D same"
"""
NCU = """
[[ $1 == --import ]] && { echo "issue active 81%"; exit 0; }
while [[ $1 != *python* ]]; do [[ $1 == -o ]] && touch "$2.ncu-rep"; shift; done
exec "$@"
"""
#: Nothing is compiled, because the emulation's kernels run.
PYTHON = """
[[ $1 == csrc/build.py ]] && exec "$REAL_PYTHON" "$1" --help
exec "$REAL_PYTHON" -m tests.stub_gpu "$@"
"""
#: A peer that is installed but raises.
BROKEN_PEER = "def fused_ssim(x, y, train):\n    raise ValueError('built for another torch')\n"


@pytest.fixture
def machine(tmp_path):
    """A folder of programs for PATH, and the environment of a run."""
    programs, peers = tmp_path / "programs", tmp_path / "peers"
    programs.mkdir()
    peers.mkdir()
    stubs = {"nvidia-smi": NVIDIA_SMI, "compute-sanitizer": COMPUTE_SANITIZER, "ncu": NCU, "python": PYTHON}
    for name, text in stubs.items():
        (programs / name).write_text("#!/usr/bin/env bash\n" + text)
        (programs / name).chmod(0o755)
    (peers / "fused_ssim.py").write_text(BROKEN_PEER)
    environment = {
        **os.environ,
        "WORKERS": "0",  # the stub only covers one process
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(peers),
        "PYTHON": str(programs / "python"),
        "REAL_PYTHON": sys.executable,
        "OUT": str(tmp_path / "out"),
        "SMALL": "1",
        "COMMIT": "abc1234",
        "OMP_NUM_THREADS": "2",
    }
    environment.pop("STAGES", None)
    return programs, environment


def run(environment, **changes):
    """Runs the script. Returns the finished process, its stages by name, and the folder of results."""
    environment = {**environment, **changes}
    command = ["bash", str(ROOT / "scripts" / "gpu" / "run.sh")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    out = environment["OUT"]
    with open(f"{out}/stages.csv", newline="") as file:
        return done, {row["stage"]: row["result"] for row in csv.DictReader(file)}, out


@pytest.mark.long
def test_every_stage_runs_and_leaves_its_report(machine):
    done, stages, out = run(machine[1])
    # The sanitizers run only a part of the smoke program, so it reports kernels that were not started.
    expected = {name: "failed with 1" if name.endswith("check") else "passed" for name in STAGES}
    expected["trainer"] = "not available"  # gsplat is not compiled here
    assert stages == expected, done.stdout[-3000:]
    log = open(f"{out}/log").read()
    names = len(_cuda_kernels.kernel_names(compiled.library()))
    assert f"kernels started: {names} of {names} - cases that are wrong: 0" in log
    assert "========= COMPUTE-SANITIZER" in log
    assert "Stand-in, 580.00" in log
    assert "issue active 81%" in log
    with open(f"{out}/benchmark.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["commit"] for row in rows} == {"abc1234"}
    ours = [row for row in rows if row["contestant"] == "splat_ssim"]
    assert len(ours) == 4  # two shapes, two turns
    for row in ours:
        assert row["result"] == "measured"
        assert float(row["value_error"]) < 1e-5
        assert float(row["gradient_error"]) < 1e-4
        assert all(float(row[name]) > 0 for name in row if name.endswith("_ms"))
    peer = [row["result"] for row in rows if row["contestant"] == "fused-ssim + L1"]
    assert peer == ["failed: ValueError: built for another torch"] * 2
    volumes = [row["result"] for row in rows if row["contestant"] == "fused-ssim 3D + L1"]
    assert all(result.startswith("missing: ") for result in volumes) and volumes
    assert {row["contestant"] for row in rows} >= {
        "splat_ssim voxelize",
        "splat_ssim project",
        "torch.compile of the definition",
    }
    assert "gsplat is not there compiled" in log


#: Programs for the stub GPU, one after the other in one process, since torch and the emulation take long to begin.
PROGRAMS = """
import sys
sys.path.insert(0, "scripts/gpu")
import torch
import smoke
from _clock import Clock


def run_smoke(only):
    sys.argv = ["smoke", "--small", "--only", only]
    try:
        smoke.main()
    except SystemExit as ended:
        print("status", int(ended.code))


print("PROGRAM not started")
run_smoke("one pixel")
print("PROGRAM off")
smoke.TOLERANCE = dict.fromkeys(smoke.TOLERANCE, 1e-12)
run_smoke("one strip")
print("PROGRAM dry")
dry = [True, True, False]
torch.cuda.Event.query = lambda event: dry.pop(0)
sleeps = []
torch.cuda._sleep = sleeps.append
print("milliseconds", Clock(brief=True).gpu(lambda: None), sleeps[2] / sleeps[0])
torch.cuda.Event.query = lambda event: True
try:
    Clock(brief=True).gpu(lambda: None)
except RuntimeError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def printed():
    """Name of a program -> what it printed."""
    command = [sys.executable, "-m", "tests.stub_gpu", "-c", PROGRAMS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(part.split("\n", 1) for part in done.stdout.split("PROGRAM ")[1:])


def test_a_kernel_that_is_not_started_fails(printed):
    assert "status 1\n" in printed["not started"] and "cases that are wrong: 0" in printed["not started"]
    assert re.search(r"not started: .*splat_fused2d_weighted", printed["not started"])


def test_a_number_that_is_off_fails(printed):
    assert "status 1\n" in printed["off"]
    assert "WRONG one strip of 256 columns" in printed["off"]
    assert "cases that are wrong: 1" in printed["off"]


def test_a_queue_that_runs_dry_is_no_measurement(printed):
    """If the host is slower than the kernels, the time between two events would be the host's."""
    assert "milliseconds 0.5 4.0" in printed["dry"]
    assert "it waits for the GPU" in printed["dry"]


def test_a_stage_that_hangs_ends_at_its_limit_and_the_next_runs(machine):
    programs, environment = machine
    (programs / "compute-sanitizer").write_text("#!/usr/bin/env bash\necho started\nsleep 100\n")
    script = (ROOT / "scripts" / "gpu" / "run.sh").read_text().replace("run memcheck 140", "run memcheck 2")
    short = ROOT / "scripts" / "gpu" / "run.short.tmp"  # in a folder that git ignores
    try:
        short.write_text(script)
        environment = {**environment, "STAGES": "memcheck ncu"}
        done = subprocess.run(["bash", str(short)], env=environment, capture_output=True, text=True, timeout=120)
    finally:
        short.unlink()
    with open(f"{environment['OUT']}/stages.csv", newline="") as file:
        stages = {row["stage"]: row["result"] for row in csv.DictReader(file)}
    assert stages == {"memcheck": "ended at its limit of 2 s", "ncu": "passed"}
    assert done.returncode == 1
    assert "not passed: memcheck" in done.stdout


def test_what_is_not_available_is_said_and_is_no_failure(machine):
    programs, environment = machine
    (programs / "compute-sanitizer").write_text("#!/usr/bin/env bash\necho 'Error: no device'\nexit 1\n")
    (programs / "ncu").write_text("#!/usr/bin/env bash\nexit 1\n")
    done, stages, _ = run(environment, STAGES="racecheck ncu")
    assert stages == {"racecheck": "not available", "ncu": "not available"}
    assert done.returncode == 0
    assert "racecheck: compute-sanitizer does not run here" in done.stdout


def test_without_a_gpu_it_ends_with_one_sentence(machine):
    done, stages, _ = run(machine[1], PYTHON=sys.executable, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 1
    assert list(stages) == ["machine"]
    assert "a CUDA device is required, and PyTorch reaches none" in done.stdout


def test_the_limits_fit_one_call():
    """A call may take ten minutes, including starting and copying."""
    script = (ROOT / "scripts" / "gpu" / "run.sh").read_text()
    limits = {name: int(limit) for name, limit in re.findall(r"^run (\w+) (\d+) ", script, re.MULTILINE)}
    assert list(limits) == STAGES
    at_once = {name: int(limit) for name, limit in re.findall(r"^run (\w+) (\d+) .*&$", script, re.MULTILINE)}
    assert sum(limits.values()) - sum(at_once.values()) + max(at_once.values()) <= 560
