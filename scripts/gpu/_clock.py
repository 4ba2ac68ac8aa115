"""Times on a GPU."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable

import torch

Call = Callable[[], object]


class WaitingCallError(RuntimeError):
    """A call that waits for the GPU cannot be queued behind a sleeping kernel."""


#: More than the caches of any GPU hold.
_FLUSHED_BYTES = 256 << 20
#: Cycles of a sleeping kernel for a millisecond, at 2 GHz: what is behind it in the queue is queued meanwhile.
_CYCLES = 2_000_000
_LONGEST_SLEEP = 300 * _CYCLES


class Clock:
    """Measures calls on the current CUDA device.

    Args:
        brief: As few calls as show that it runs.
    """

    def __init__(self, brief: bool = False) -> None:
        self._brief = brief
        self._flushed = torch.empty(_FLUSHED_BYTES, dtype=torch.uint8, device="cuda")
        self.name = torch.cuda.get_device_name()

    def eager_and_host(self, call: Call, count: int = 30) -> tuple[float, float]:
        """Milliseconds of a call in a loop as users write it, and those of them that Python takes to queue it."""
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
        """Milliseconds that the GPU takes, median: the queue fills behind a sleeping kernel, so that it never ends.

        Args:
            call: What is measured.
            host_ms: How long the host takes to queue it.
            cold: Whether the caches are flushed before each call.
            repeats: Samples, each of several calls.

        Raises:
            WaitingCallError: The queue ran dry, however long the kernel slept.
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
            ran_dry = awake.query()  # before all calls were queued: the GPU has waited for the host
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
        """Memory that a call takes beyond what is held before it."""
        call()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - held

    def copy_bandwidth(self) -> float:
        """Terabytes a second that a copy reads and writes."""
        source = torch.empty(1 << (20 if self._brief else 30), dtype=torch.uint8, device="cuda")
        target = torch.empty_like(source)
        return 2 * source.numel() / self.gpu(lambda: target.copy_(source), 0.01) / 1e9

    def state(self) -> str:
        """Clocks, temperature and power now."""
        fields = "clocks.sm,clocks.mem,temperature.gpu,power.draw"
        try:
            command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
            return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"unknown: {error}"
