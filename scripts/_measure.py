"""What benchmarks share: the machine and its peaks, timing, memory at the peak of a call, and the CSV files."""

from __future__ import annotations

import csv
import ctypes
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from _commit import commit

from splat_ssim.ops import compiled

ROOT = Path(__file__).resolve().parent.parent

#: What identifies a row; measuring again replaces it.
KEYS = ("name", "size", "batch", "mode", "window", "threads", "device")


class Machine:
    """The device, its clock and its peaks, measured in this run."""

    def __init__(self, device: str, threads: int):
        self.device = device
        self.threads = threads
        torch.set_num_threads(threads)
        self.name = torch.cuda.get_device_name() if device == "cuda" else f"{_cpu_name()} ({compiled.isa()})"

    def time(self, function: Callable[[], object], repeats: int = 1) -> float:
        """Seconds for one call, the mean of `repeats`."""
        if self.device == "cuda":
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            for _ in range(repeats):
                function()
            end.record()
            end.synchronize()
            return start.elapsed_time(end) / 1000 / repeats
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
        return work / min(self.time(lambda: kernel(1_000_000, self.threads, sums.data_ptr())) for _ in range(30))

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


def describe(machine: Machine) -> dict[str, object]:
    """What a row's figures belong to, the machine's peaks at this time included."""
    return {
        "fma_gflops": machine.fma_peak() / 1e9,
        "copy_gb_s": machine.copy_peak() / 1e9,
        "threads": machine.threads,
        "device": machine.name,
        "torch": torch.__version__,
        "commit": commit(),
    }


def repeats_for(machine: Machine, call: Callable[[], object]) -> int:
    """How many calls in a row take ten milliseconds: shorter ones are not timed one by one. Warms up, too."""
    if machine.time(call) > 1:
        return 1
    return max(1, min(100, int(0.01 / max(machine.time(call), 1e-7))))


def peak_beyond(call: Callable[[], object]) -> int:
    """Bytes that this process holds at the peak of one call beyond what it holds before it; on the CPU."""
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    call()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file, none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def update(path: Path, rows: list[dict], keys: Sequence[str] = KEYS) -> None:
    """Writes the rows to the file, each in place of an older one with the same keys."""
    rows = [{key: f"{value:.6g}" if isinstance(value, float) else str(value) for key, value in r.items()} for r in rows]
    merged = {tuple(row.get(key) for key in keys): row for row in [*read(path), *rows]}
    columns = list(dict.fromkeys(column for row in merged.values() for column in row))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(merged.values())


def show(text: str) -> None:
    """One line of progress, overwritten by the next."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
