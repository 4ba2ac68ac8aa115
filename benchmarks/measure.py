"""Shared parts of the benchmarks: the machine and its peaks, timing, peak memory of a call, commit, CSV files."""

from __future__ import annotations

import argparse
import csv
import ctypes
import io
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from splat_ssim._files import replacing
from splat_ssim.errors import UserError
from splat_ssim.ops import compiled

ROOT = Path(__file__).resolve().parent.parent
#: Figures of clean commits.
RESULTS = ROOT / "benchmarks" / "results"
#: Figures of anything else, ignored by git.
DEVELOPMENT = ROOT / "results" / "benchmarks"

#: Environment in which malloc gives back whatever is freed.
GIVING_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}

#: Parameters of glibc's mallopt, and values with which malloc keeps whatever is freed.
_KEEPING = {-4: 0, -1: -1}  # M_MMAP_MAX, M_TRIM_THRESHOLD

Call = Callable[[], object]

#: What identifies a row; measuring again replaces it.
KEYS = ("name", "size", "batch", "mode", "window", "threads", "device")


class Machine:
    """The device, its clock and its peaks, measured in this run."""

    def __init__(self, device: str, threads: int):
        self.device = device
        self.threads = threads
        torch.set_num_threads(threads)
        self.name = torch.cuda.get_device_name() if device == "cuda" else f"{_cpu_name()} ({compiled.isa()})"

    def time(self, function: Call, repeats: int = 1) -> float:
        """Seconds for one call, the mean of `repeats`; of a call with a clock of its own, `seconds`, what that says."""
        if (seconds := getattr(function, "seconds", None)) is not None:
            mean: float = statistics.mean(seconds() for _ in range(repeats))
            return mean
        if self.device == "cuda":
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            for _ in range(repeats):
                function()
            end.record()
            end.synchronize()
            milliseconds: float = start.elapsed_time(end)
            return milliseconds / 1000 / repeats
        begin = time.perf_counter()
        for _ in range(repeats):
            function()
        return (time.perf_counter() - begin) / repeats

    def fma_peak(self) -> float:
        """Floating-point operations a second, an FMA counting as two, on all threads."""
        if self.device == "cuda":
            side = 8192
            a, b = (torch.rand(side, side, device="cuda") for _ in range(2))
            return 2 * side**3 / min(self.time(lambda: a @ b) for _ in range(5))
        kernel = compiled.kernel("peak_fma", (ctypes.c_int64, ctypes.c_int, ctypes.c_void_p), ctypes.c_int64)
        sums = torch.zeros(self.threads)
        work = self.threads * kernel(1_000_000, self.threads, sums.data_ptr())
        rate: float = work / min(self.time(lambda: kernel(1_000_000, self.threads, sums.data_ptr())) for _ in range(30))
        return rate

    def copy_peak(self) -> float:
        """Bytes a second read and written by a copy much larger than the caches."""
        source = torch.rand(64 << 20, device=self.device)
        target = torch.zeros_like(source)
        if self.device == "cuda":
            return 8 * source.numel() / min(self.time(lambda: target.copy_(source)) for _ in range(10))
        types = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int)
        kernel = compiled.kernel("peak_copy", types)
        arguments = (source.data_ptr(), target.data_ptr(), source.numel(), self.threads)
        return 8 * source.numel() / min(self.time(lambda: kernel(*arguments)) for _ in range(10))


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def keep_freed_memory() -> None:
    """Lets malloc keep freed memory for this process, so that no call waits for new pages.

    By default glibc hands large blocks back to the system, and each call gets new pages, with a fault for each:
    128x128x128 then takes pytorch-msssim 1,280 ms instead of 390. Other C libraries than glibc stay as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for parameter, value in _KEEPING.items():
            mallopt(parameter, value)


def describe(machine: Machine) -> dict[str, object]:
    """Returns the columns that describe a row's figures: the machine, its peaks at this time, torch and the commit."""
    return {
        "fma_gflops": machine.fma_peak() / 1e9,
        "copy_gb_s": machine.copy_peak() / 1e9,
        "threads": machine.threads,
        "device": machine.name,
        "torch": torch.__version__,
        "commit": commit(),
    }


def repeats_for(machine: Machine, call: Call) -> int:
    """Returns how many calls take about ten milliseconds, so that short calls are timed together. Also warms up."""
    if machine.time(call) > 1 or hasattr(call, "seconds"):
        return 1
    return max(1, min(100, int(0.01 / max(machine.time(call), 1e-7))))


def interleaved(
    machine: Machine,
    pairs: Mapping[str, tuple[Call, Call]],
    seconds: float,
    min_rounds: int,
    max_rounds: int = 50,
) -> dict[str, list[tuple[float, float]]]:
    """Times each peer and our counterpart in turns, all in one process.

    Args:
        machine: Machine that the calls run on.
        pairs: Name -> (call of the peer, our call that computes the same).
        seconds: Time for the calls of each peer. Our calls take additional time.
        min_rounds: Smallest number of rounds for each peer, however slow it is.
        max_rounds: Largest number of rounds for each peer, however fast it is.

    Returns:
        Name -> (seconds of the peer, seconds of ours) for each round. A peer that fails is reported and left out.
    """
    prepared: dict[str, tuple[int, int]] = {}
    for name, (theirs, ours) in pairs.items():
        show(f"warming up {name}")
        try:
            prepared[name] = repeats_for(machine, theirs), repeats_for(machine, ours)
        except Exception as error:  # A peer's failure is a result, not ours to hide.
            print(f"\n{name} failed: {type(error).__name__}: {error}", file=sys.stderr)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in prepared}
    spent = dict.fromkeys(prepared, 0.0)

    def active(name: str) -> bool:
        return len(times[name]) < min_rounds or (spent[name] < seconds and len(times[name]) < max_rounds)

    while any(map(active, times)):
        for name in filter(active, times):
            show(f"{name}: round {len(times[name]) + 1}")
            (theirs, ours), (their_repeats, our_repeats) = pairs[name], prepared[name]
            ours()  # The caches and the threads are as ours leave them, whatever ran before.
            own = machine.time(ours, our_repeats)
            begin = time.perf_counter()
            times[name].append((machine.time(theirs, their_repeats), own))
            spent[name] += time.perf_counter() - begin
    show("")
    return times


def medians(pairs: Sequence[tuple[float, float]]) -> dict[str, object]:
    """Milliseconds of a peer and of ours, and the median of the rounds' ratios."""
    theirs, own = (statistics.median(values) * 1000 for values in zip(*pairs, strict=True))
    ratio = statistics.median(their / our for their, our in pairs)
    return {"milliseconds": theirs, "ours": own, "ratio": ratio, "rounds": len(pairs)}


def peak_beyond(call: Call) -> int:
    """Bytes that this process holds at the peak of one call beyond what it holds before it; on the CPU."""
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    call()
    return _status("VmHWM") - before


def in_fresh_process(module: str, arguments: Sequence[str]) -> int:
    """Runs `python -m MODULE ARGUMENTS` with a malloc that returns all freed memory. Gives the last number it prints.

    Raises:
        RuntimeError: The process failed.
    """
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, **GIVING_MALLOC, "PYTHONPATH": path}
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-500:]}")
    return int(done.stdout.split()[-1])


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file, none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def update(path: Path, rows: Sequence[Mapping[str, object]], keys: Sequence[str] = KEYS) -> None:
    """Writes the rows to the file, each in place of an older one with the same keys."""
    texts = [{k: f"{value:.6g}" if isinstance(value, float) else str(value) for k, value in r.items()} for r in rows]
    merged = {tuple(row.get(key) for key in keys): row for row in [*read(path), *texts]}
    columns = list(dict.fromkeys(column for row in merged.values() for column in row))
    write_csv(path, columns, list(merged.values()))


def write_csv(path: Path, columns: Sequence[str], lines: Sequence[Mapping[str, Any]]) -> None:
    """Writes a table atomically; a line may lack columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        text = io.TextIOWrapper(file, newline="", write_through=True)
        writer = csv.DictWriter(text, columns, restval="")
        writer.writeheader()
        writer.writerows(lines)
        text.detach()


def commit() -> str:
    """The commit of the working tree, "-dirty" after it where anything but results has changed; else $COMMIT."""
    if (named := os.environ.get("COMMIT", "")) or not shutil.which("git"):
        return named or "unknown"

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True).stdout.strip()

    # A benchmark writes its results while others still run.
    changed = git(
        "status", "--porcelain", "--untracked-files=no", "--", ".", f":!{RESULTS.relative_to(ROOT).as_posix()}"
    )
    named = git("rev-parse", "--short=9", "HEAD")
    return f"{named}{'-dirty' if changed else ''}" if named else "unknown"


def output_folder(output: Path | None, dirty_ok: bool) -> Path:
    """Returns the folder for results: benchmarks/results by default, or results/benchmarks for a trial (`dirty_ok`).

    Raises:
        UserError: The tree has uncommitted changes or is not a repository, and `dirty_ok` is not given. Or `dirty_ok`
            is given with the folder of committed figures.
    """
    if not dirty_ok:
        found = commit()
        if found == "unknown" or found.endswith("-dirty"):
            raise UserError(f"figures required a clean commit, got {found}: commit, or add --dirty-ok for a trial")
        return output or RESULTS
    if output is not None and output.resolve().is_relative_to(RESULTS):
        raise UserError(f"a trial (--dirty-ok) required a folder outside {RESULTS}, got {output}")
    return output or DEVELOPMENT


def add_output(parser: argparse.ArgumentParser) -> None:
    """Adds the options that `output_folder` takes."""
    parser.add_argument("--output", type=Path, help="folder of the files; benchmarks/results by default")
    parser.add_argument(
        "--dirty-ok", action="store_true", help="a trial: uncommitted changes are measured too, into results/benchmarks"
    )


def run(main: Callable[[], object]) -> None:
    """Runs a command; what the user can put right ends it with one sentence."""
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")


def show(text: str) -> None:
    """One line of progress, overwritten by the next."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
