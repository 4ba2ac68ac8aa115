"""Mean milliseconds of each stage of a training step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch


class StageClock:
    """Adds up the time of named stages: `with clock("render"): …`. Switched off it costs nothing.

    On CUDA each stage waits for the device, so that its time is its own; that slows the run down a little.
    """

    def __init__(self, enabled: bool, device: torch.device) -> None:
        self.enabled = enabled
        self._device = device
        self._seconds: dict[str, float] = {}
        self._steps = 0

    def __call__(self, stage: str) -> AbstractContextManager[None]:
        """A context whose time counts as `stage`."""
        return self._measured(stage) if self.enabled else nullcontext()

    def finish_step(self) -> None:
        """Counts a step."""
        self._steps += 1

    @contextmanager
    def _measured(self, stage: str) -> Iterator[None]:
        start = self._now()
        yield
        self._seconds[stage] = self._seconds.get(stage, 0.0) + self._now() - start

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def milliseconds(self) -> dict[str, float]:
        """Mean milliseconds a step of every stage and of their sum, since the last call."""
        steps = max(1, self._steps)
        means = {stage: 1e3 * seconds / steps for stage, seconds in self._seconds.items()}
        self._seconds, self._steps = {}, 0
        return {**means, "step": sum(means.values())}
