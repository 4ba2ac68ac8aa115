"""Mean milliseconds of each stage of a training step.

A task marks its stages with `with stage("render"): …`. The marks cost nothing unless a loop measures (`--profile`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from splat_ssim.trainer.device import wait


class StageClock:
    """Adds up the time of named stages.

    On CUDA each stage waits for the device, so that its time includes no other work. This slows the run a little.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds: dict[str, float] = {}
        self._steps = 0

    def finish_step(self) -> None:
        """Counts a step."""
        self._steps += 1

    @contextmanager
    def measured(self, name: str) -> Iterator[None]:
        """A context whose time counts as the stage `name`."""
        start = self._now()
        yield
        self._seconds[name] = self._seconds.get(name, 0.0) + self._now() - start

    def _now(self) -> float:
        wait(self._device)
        return time.perf_counter()

    def milliseconds(self) -> dict[str, float]:
        """Mean milliseconds a step of every stage and of their sum, since the last call."""
        steps = max(1, self._steps)
        means = {name: 1e3 * seconds / steps for name, seconds in self._seconds.items()}
        self._seconds, self._steps = {}, 0
        return {**means, "step": sum(means.values())}


_NOTHING = nullcontext()

#: The clock of the loop that is measuring now, or None.
_active: StageClock | None = None


def stage(name: str) -> AbstractContextManager[None]:
    """Marks a stage of a step. It is only measured if the loop profiles."""
    return _NOTHING if _active is None else _active.measured(name)


@contextmanager
def profiled(enabled: bool, device: torch.device) -> Iterator[StageClock | None]:
    """If enabled, measures the stages marked inside the block. Yields the clock."""
    global _active
    before, _active = _active, StageClock(device) if enabled else None
    try:
        yield _active
    finally:
        _active = before
