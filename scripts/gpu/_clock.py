"""Times on a GPU."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable

import torch

Call = Callable[[], object]


class WaitingCallError(RuntimeError):
    """The call waits for the GPU, so it cannot be queued behind a sleeping kernel."""


#: Bytes to write to flush the caches: more than the caches of any GPU hold.
_FLUSHED_BYTES = 256 << 20
#: Cycles for which a kernel sleeps a millisecond, at 2 GHz. Meanwhile the calls behind it are queued.
_CYCLES = 2_000_000
_LONGEST_SLEEP = 300 * _CYCLES


class Clock:
    """Measures calls on the current CUDA device.

    Args:
        brief: Whether to make as few calls as possible, only to show that everything runs.
    """

    def __init__(self, brief: bool = False) -> None:
        self._brief = brief
        self._flushed = torch.empty(_FLUSHED_BYTES, dtype=torch.uint8, device="cuda")
        self.name = torch.cuda.get_device_name()

    def eager_and_host(self, call: Call, count: int = 30) -> tuple[float, float]:
        """Milliseconds of a call in a loop as users write it, and the part of them that Python needs to queue it."""
        count = 1 if self._brief else count
        for _ in range(1 if self._brief else 5):
            call()
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(count):
            call()
        host = time.perf_counter() - begin
        torch.cuda.synchronize()
        return (time.perf_counter() - begin) / count * 1e3, host / count * 1e3

    def gpu(self, call: Call, host_ms: float = 0.2, cold: bool = False, repeats: int = 6) -> float:
        """Returns the median GPU time of a call in milliseconds.

        Calls are queued behind a sleeping kernel, so that the GPU never waits for the host.

        Args:
            call: The call to measure.
            host_ms: Milliseconds that the host takes to queue the call.
            cold: Whether to flush the caches before each call.
            repeats: Number of samples, each of several calls.

        Raises:
            WaitingCallError: The queue ran empty, however long the kernel slept. The call waits for the GPU.
        """
        call()
        torch.cuda.synchronize()
        inner, repeats = (2, 1) if self._brief else (3 if cold else 8, repeats)
        sleep = int(_CYCLES * min(200.0, 2 + 2 * inner * host_ms))
        times: list[float] = []
        while len(times) < repeats * (inner if cold else 1):
            awake = torch.cuda.Event()
            torch.cuda._sleep(sleep)
            awake.record()
            marks = [torch.cuda.Event(enable_timing=True) for _ in range(2 * inner)]
            for i in range(inner):
                if cold:
                    self._flushed.zero_()
                if cold or i == 0:
                    marks[2 * i].record()
                call()
                if cold or i == inner - 1:
                    marks[2 * i + 1].record()
            ran_dry = awake.query()  # the kernel woke before all calls were queued, so the GPU waited for the host
            torch.cuda.synchronize()
            if ran_dry:
                if sleep > _LONGEST_SLEEP:
                    raise WaitingCallError("it waits for the GPU, or takes too long to queue")
                sleep *= 2
                continue
            if cold:
                times += [marks[2 * i].elapsed_time(marks[2 * i + 1]) for i in range(inner)]
            else:
                times.append(marks[0].elapsed_time(marks[-1]) / inner)
        return statistics.median(times)

    def graph(self, call: Call) -> float:
        """Milliseconds of a replay of the call, captured as a CUDA graph."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(1 if self._brief else 3):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return self.gpu(graph.replay, 0.01)

    def peak_bytes(self, call: Call) -> int:
        """Bytes of memory that a call takes in addition to what was allocated before."""
        call()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - held

    def copy_bandwidth(self) -> float:
        """Bandwidth of a copy, reads and writes together, in terabytes a second."""
        source = torch.empty(1 << (20 if self._brief else 30), dtype=torch.uint8, device="cuda")
        target = torch.empty_like(source)
        return 2 * source.numel() / self.gpu(lambda: target.copy_(source), 0.01) / 1e9

    def state(self) -> str:
        """Current clocks, temperature and power."""
        fields = "clocks.sm,clocks.mem,temperature.gpu,power.draw"
        try:
            command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
            return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"unknown: {error}"
