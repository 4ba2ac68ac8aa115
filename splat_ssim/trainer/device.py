"""Where a run computes, when that is done, and how much memory it has taken."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from splat_ssim.errors import UserError


def pick_device(name: str) -> torch.device:
    """Returns the device of `--device`: auto is CUDA where torch reaches one, else the CPU.

    Raises:
        UserError: cuda was asked for and is not reached.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda requires a CUDA device and a CUDA build of torch, got none")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def wait(device: torch.device) -> None:
    """Waits until the device has done all work handed to it. The CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def available_memory() -> int:
    """Bytes that this process can still take, as the system and the limits of its control group say."""
    page = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        # Systems that do not tell: half of what is installed.
        free = page * os.sysconf("SC_PHYS_PAGES") // 2 if page else 4 << 30
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / f"memory.{name}").read_text() for name in ("max", "current"))
        return min(free, max(0, int(limit) - int(used)))
    except (OSError, ValueError):  # no group, or one without a limit
        return free


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
