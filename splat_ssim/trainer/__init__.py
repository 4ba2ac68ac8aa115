"""Shared by all kinds of training: config, loop, checkpoints, run folder, device, metrics and command line.

`run(task)` trains or resumes a task and leaves its run folder; `load(folder)` gives the task of any run folder back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from splat_ssim import _moved

if TYPE_CHECKING:
    from splat_ssim.trainer.loop import load, run
    from splat_ssim.trainer.task import Report, Task

__all__ = ["Report", "Task", "load", "run"]

_moved.install()


def __getattr__(name: str) -> object:
    """Imports the loop at first use, since metrics and files need none of its packages."""
    if name in __all__:
        from splat_ssim.trainer import loop

        return getattr(loop, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
