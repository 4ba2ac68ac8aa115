"""Writes scalars and pictures of a run for TensorBoard, if the config asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from splat_ssim.errors import user_errors
from splat_ssim.trainer.task import Task

if TYPE_CHECKING:
    from splat_ssim.trainer.loop import Run


def open_writer(run: Run) -> AbstractContextManager[Any]:
    """Opens a writer to tensorboard/ of a run folder; None if it is off. Entries of later steps are discarded.

    Raises:
        UserError: TensorBoard is not installed.
    """
    if not run.config.output.tensorboard:
        return nullcontext()
    with user_errors():
        from torch.utils.tensorboard import SummaryWriter
    return SummaryWriter(str(run.folder / "tensorboard"), purge_step=run.step + 1)


def add_scalars(writer: Any, group: str, values: Mapping[str, Any], step: int) -> None:
    """Writes the numbers among the values. Does nothing without a writer."""
    if writer is not None:
        for key, value in values.items():
            if not isinstance(value, str):
                writer.add_scalar(f"{group}/{key}", value, step)


def add_pictures(writer: Any, task: Task, step: int) -> None:
    """Writes the task's preview pictures. Does nothing without a writer."""
    if writer is not None:
        for name, picture in getattr(task, "previews", dict)().items():
            writer.add_image(f"test/{name}", picture, step)
