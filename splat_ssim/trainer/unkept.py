"""Runs that write nothing: in memory only, or beside the first process of several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tqdm import tqdm

from splat_ssim.trainer.loop import Run
from splat_ssim.trainer.profiling import StageClock
from splat_ssim.trainer.signals import Interrupted
from splat_ssim.trainer.task import Report, Task


class Unkept(Run):
    """A run in memory only, without a folder. Nothing is written, and there is nothing to resume.

    `train` is that of any run. A signal ends it after a step as `Interrupted`, and what was trained is the task's.
    """

    def __init__(self, task: Task) -> None:
        self._begin(task)
        self.folder = Path(task.name)

    def save(self) -> None:
        """Checks the state that a checkpoint would hold. Writes nothing.

        Raises:
            NotFiniteError: A loss so far, or the state, is NaN or infinite.
        """
        self._state()

    def keep(self, folder: Path) -> None:
        """Does nothing: such a run writes no files."""

    def evaluate(self, pictures: Path | None = None) -> dict[str, Any]:
        """Evaluates the task in its current state."""
        return self.task.evaluate(pictures)

    def _stop(self, number: int) -> None:
        raise Interrupted(number)


class Follower(Unkept):
    """The run of a process other than the first: it trains its share of each step, and the first writes all files."""

    def __init__(self, task: Task) -> None:
        task.config.output.progress = task.config.output.tensorboard = task.config.profile = False
        super().__init__(task)
        if self.config.resume is not None:
            self.folder = self.config.resume
            self.go_on()
        else:
            self._collect()

    def _look(self, report: Report, bar: tqdm, writer: Any, stages: StageClock | None) -> None:
        self._refuse(self._losses.check())
        if self._writes():
            self._collect()

    def _stop(self, number: int) -> None:
        self._collect()
        super()._stop(number)

    def finish(self) -> dict[str, Any]:
        """Hands its part of the model to the first process, which finishes."""
        self._collect()
        return {}
