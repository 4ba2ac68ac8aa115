"""Runs the CPU kernels under sanitizers.

    python scripts/sanitize.py [--isa avx512]

ThreadSanitizer looks for data races in tests/native/threads.cpp, a C++ program that calls every kernel with several
threads: the library's own, and those of an OpenMP interface. Tests in Python cannot do this, because torch's OpenMP is
not instrumented. AddressSanitizer and UndefinedBehaviorSanitizer watch the same program, tests/kernel_calls.py and the
kernels' tests. Each must also report a deliberate mistake. Needs g++ and the package's extra "test".
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "csrc"))
import build as native  # noqa: E402

TESTS = ("test_ops_ssim_cpu", "test_rasterize", "test_voxelize", "test_xray", "test_optim")
#: Slow tests that are left out, because other tests call the same kernels.
LEFT_OUT = ("opcheck", "operators", "gradcheck", "after_a_fork", "is_obeyed")
#: Message of g++ 12's ThreadSanitizer if the system randomises addresses more than it can handle.
NO_PLACE = "unexpected memory mapping"


class Job(NamedTuple):
    """A command to run. If it has a `problem`, it must fail and report that problem."""

    name: str
    command: list[str]
    environment: dict[str, str]
    problem: str = ""


def build_program(isa: str, sanitizer: str, *, openmp: bool = False) -> Path:
    """Compiles and links tests/native/threads.cpp with the kernels. Returns the program."""
    folder = ROOT / "build" / f"csrc-{sanitizer}-{isa}"
    objects = native.compile_cpu(folder, sanitizer=sanitizer, isas=[isa])
    sources = ["threads.cpp", *(["openmp.cpp"] if openmp else [])]
    program = folder / ("threads_openmp" if openmp else "threads")
    flags = ["-fPIC", *native.BASE_FLAGS, *native.FLOAT_FLAGS, *native.instruction_sets()[isa], f"-DSPLAT_ISA={isa}"]
    command = [*native.compiler(), *flags, *native.SANITIZERS[sanitizer], "-rdynamic", "-pthread", "-o", str(program)]
    command += [str(ROOT / "tests" / "native" / source) for source in sources]
    subprocess.run([*command, *map(str, objects), "-ldl"], check=True)
    return program


def preloaded() -> str:
    """The sanitizers' libraries for LD_PRELOAD, which is needed because Python is not built with them."""
    names = ("libasan.so", "libubsan.so")
    found = (subprocess.check_output([*native.compiler(), f"-print-file-name={name}"], text=True) for name in names)
    return ":".join(path.strip() for path in found)


def jobs(isa: str) -> list[Job]:
    """Builds the library and the programs in parallel. Returns the jobs, the longest first."""
    with ThreadPoolExecutor() as pool:
        racing = pool.submit(lambda: [build_program(isa, "thread", openmp=openmp) for openmp in (False, True)])
        library, checked = native.build_debug(isa), build_program(isa, "address")
        own, openmp = racing.result()
    memory = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
    # PYTHONMALLOC makes ctypes take its arrays from malloc, so that the sanitizer knows where they end. OMP_NUM_THREADS
    # is 1 because two jobs run at once; tests of threads set their own number.
    python = memory | {"LD_PRELOAD": preloaded(), "PYTHONMALLOC": "malloc", "OMP_NUM_THREADS": "1"}
    python |= {"PYTHONPATH": str(ROOT)}
    python |= {"SPLAT_SSIM_LIBRARY": str(library), "SPLAT_SSIM_CPU": isa}
    threads = {"TSAN_OPTIONS": "halt_on_error=1 die_after_fork=0"}
    tests = [str(ROOT / "tests" / f"{name}.py") for name in TESTS]
    without = " and ".join(f"not {name}" for name in LEFT_OUT)
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore", *tests, "-k", without]
    overrun = "from tests import kernel_calls; kernel_calls.overrun()"
    return [
        Job("tests, address and undefined behaviour", pytest, python),
        Job("threads, own pool, data races", [str(own)], threads),
        Job("threads, OpenMP, data races", [str(openmp)], threads),
        Job("calls, address and undefined behaviour", [sys.executable, "-m", "tests.kernel_calls"], python),
        Job("threads, address and undefined behaviour", [str(checked)], memory),
        Job("a data race", [str(own), "--mistake"], threads, problem="data race"),
        Job("an overrun in C++", [str(checked), "--mistake"], memory, problem="heap-buffer-overflow"),
        Job("an overrun in Python", [sys.executable, "-c", overrun], python, problem="heap-buffer-overflow"),
    ]


def run(job: Job) -> bool:
    """Runs a job and prints its result. Returns whether the result is as expected."""
    begin = time.monotonic()
    command, environment = job.command, {**os.environ, **job.environment}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if NO_PLACE in done.stderr:
        command = ["setarch", os.uname().machine, "--addr-no-randomize", *command]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    output = done.stdout + done.stderr
    expected = done.returncode != 0 and job.problem in output if job.problem else done.returncode == 0
    state = ("reported" if job.problem else "passed") if expected else "FAILED"
    print(f"{state:>8} in {time.monotonic() - begin:5.1f} s: {job.name}", flush=True)
    if not expected:
        print(" ".join(command), output[-20000:], sep="\n", flush=True)
    return expected


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    choices = list(native.instruction_sets())
    parser.add_argument("--isa", choices=choices, default=native.default_isa(), help="instruction set of the kernels")
    isa = parser.parse_args().isa
    os.environ.setdefault("SPLAT_SSIM_CUDA", "0")
    begin = time.monotonic()
    todo = jobs(isa)
    print(f"   built in {time.monotonic() - begin:5.1f} s: kernels for {isa}", flush=True)
    with ThreadPoolExecutor(max(1, os.cpu_count() or 1)) as pool:
        results = list(pool.map(run, todo))
    print(f"{sum(results)} of {len(results)} as expected, in {time.monotonic() - begin:.0f} s")
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
