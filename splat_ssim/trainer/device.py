"""The device of a run: choosing it, waiting for it, and the memory it has used."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from splat_ssim.errors import UserError


def check_device(name: str) -> None:
    """Raises UserError for the name of another device than auto, cpu and cuda."""
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device must be auto, cpu or cuda, got {name!r}")


def pick_device(name: str) -> torch.device:
    """Returns the device of `--device`: auto is CUDA if torch can use it, otherwise the CPU.

    Raises:
        UserError: The name is none of auto, cpu and cuda, or cuda was requested, but torch cannot use it.
    """
    check_device(name)
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda requires a CUDA device and a CUDA build of torch, got none")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def wait(device: torch.device) -> None:
    """Waits until the device has finished all queued work. The CPU has no queue."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def available_memory() -> int | None:
    """Bytes that this process may still allocate: the least that the machine, its control group and its limit allow.

    None if unknown.
    """
    left = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        left.append(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")))
    except (OSError, StopIteration):
        pass
    try:
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            left.append(int(limit) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        pass
    try:
        import resource

        limit_bytes = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit_bytes != resource.RLIM_INFINITY:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            left.append(limit_bytes - used)
    except (ImportError, OSError):
        pass
    return max(0, min(left)) if left else None


def peak_memory(device: torch.device) -> int | None:
    """Returns the most bytes in use so far: torch's on a CUDA device, the whole process's on the CPU.

    None where the system does not tell (Windows).
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in kilobytes, macOS in bytes.
    return peak if sys.platform == "darwin" else peak * 1024


@contextmanager
def garbage_frozen() -> Iterator[None]:
    """Excludes existing objects from garbage collection, which otherwise often walks all of torch's modules."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
