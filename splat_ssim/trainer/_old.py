"""The former classes Trainer and Fitting: a run and its task in one object. They go with `splat_ssim._moved`."""

from __future__ import annotations

from typing import Any

from splat_ssim.trainer.config import RunConfig
from splat_ssim.trainer.loop import Run, run
from splat_ssim.trainer.task import Report, find_task


class _Whole(Run):
    """A run that also has the attributes of its task."""

    kind = ""

    def __init__(self, config: RunConfig) -> None:
        super().__init__(find_task(self.kind, "")(config))  # type: ignore[call-arg]

    def __getattr__(self, name: str) -> Any:
        if name == "task":
            raise AttributeError(name)
        return getattr(self.task, name)

    def run(self) -> None:
        """Trains from the current step to the last."""
        self.train()


class Trainer(_Whole):
    """A run of a scene."""

    kind = "scene"

    def train_step(self, step: int) -> Report:
        """One step."""
        return self.task.step(step)

    def render(self, *arguments: Any, **options: Any) -> Any:
        """One view, see `SceneTask.render_view`."""
        return self.task.render_view(*arguments, **options)  # type: ignore[attr-defined]


class Fitting(_Whole):
    """A run of a volume."""

    kind = "volume"

    def fit_step(self, step: int) -> Any:
        """The optimiser's part of a step."""
        loss = self.task.fit_step(step)  # type: ignore[attr-defined]
        self.task.last_loss = loss  # type: ignore[attr-defined]
        return loss

    def change_model(self) -> None:
        """Changes the model between steps, such as its growth."""
        self.task.change_model(self.step)  # type: ignore[attr-defined]


def train(config: RunConfig) -> dict[str, Any]:
    """Runs a config of a scene."""
    return run(find_task("scene", "")(config))  # type: ignore[call-arg]


def fit(config: RunConfig) -> dict[str, Any]:
    """Runs a config of a volume."""
    return run(find_task("volume", "")(config))  # type: ignore[call-arg]
