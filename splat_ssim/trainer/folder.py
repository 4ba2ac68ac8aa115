"""Run folders: the files that a run writes, and configs read back from them.

config.yaml is the resolved config with the import path of its task, checkpoint.pt the last checkpoint, history.jsonl
what steps reported, eval/<step>.json the result of each evaluation, and versions.json the software it was trained with.
pictures/ and the task's own exports show the last step. metrics.json is written last and marks the run as finished. A
report page, if the task has one, follows. While a process runs in the folder, it holds the lock of .lock.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from splat_ssim._files import remove_leftovers
from splat_ssim._locks import take_lock
from splat_ssim.errors import UserError
from splat_ssim.trainer import checkpoint
from splat_ssim.trainer.config import RunConfig, differences, from_mapping, read_values, write_yaml
from splat_ssim.trainer.task import DEFAULT_TASK, Task, find_task, import_path

CONFIG, METRICS, LOCK = "config.yaml", "metrics.json", ".lock"


def default_folder(name: str) -> Path:
    """Default folder of a run on these data."""
    return Path("results") / name / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")


def check_folder(folder: Path) -> None:
    """Checks, before anything is read or trained, that a new run may write to a folder. Creates nothing.

    A run that died before its second checkpoint has nothing to lose, so a new run may replace it.

    Raises:
        UserError: The folder holds a run, is not a folder, or cannot be created or written to.
    """
    if (folder / METRICS).exists():
        raise UserError(f"{folder}: required a new folder for a new run, got one with {METRICS} (--result-dir)")
    if (folder / checkpoint.NAME).exists():
        step = checkpoint.saved_step(folder)
        if step != 0:
            run = "an unreadable checkpoint" if step is None else f"a run at step {step}"
            raise UserError(
                f"{folder}: required a new folder for a new run, got one with {run}: "
                "--resume it or choose another --result-dir"
            )
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists() or path.is_symlink())
    if not existing.is_dir():
        raise UserError(f"{folder}: required a folder to write to, got the file {existing} (--result-dir)")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{folder}: required a folder to write to, got no permission for {existing} (--result-dir)")


@contextmanager
def held(config: RunConfig, name: str) -> Iterator[Path]:
    """The folder of a run, in which no other process runs during the block. It is made if there is none.

    A run that is refused before it writes anything leaves no new folder.

    Args:
        config: Resolved config.
        name: Name of the data, used in the default folder.

    Raises:
        UserError: Another process runs in it, it holds a run that is not resumed, or it cannot be written to.
    """
    folder = config.result_dir or default_folder(name)
    if config.resume is None:
        check_folder(folder)
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("a")
    except OSError as error:
        raise UserError(f"{folder}: required a folder to write to, got {error.strerror} (--result-dir)") from None
    try:
        with file:
            if not take_lock(file):
                raise UserError(f"{folder}: required a folder that no other run writes to, got one in use")
            yield folder
    finally:
        if is_new and [path.name for path in folder.iterdir()] == [LOCK]:
            (folder / LOCK).unlink()
            folder.rmdir()


def open_folder(config: RunConfig, name: str, folder: Path | None = None) -> Path:
    """Returns the folder of a run: a new one with the config in it, or the one to resume, left as it is.

    Args:
        config: Resolved config.
        name: Name of the data, used in the default folder.
        folder: The folder that `held` holds, if it does.

    Raises:
        UserError: The folder of a new run holds a run, or cannot be written to.
    """
    folder = folder or config.result_dir or default_folder(name)
    if config.resume is not None:
        remove_leftovers(folder)
        return folder
    check_folder(folder)
    # Another run may have been killed before its first checkpoint. What else is in the folder is not ours.
    remove_leftovers(folder, (f"{CONFIG}.*", f"{checkpoint.NAME}.*"))
    write_config(folder, config)
    return folder


def write_config(folder: Path, config: RunConfig) -> None:
    """Writes config.yaml: the resolved config, with the import path of its task and an absolute path of its data."""
    config = dataclasses.replace(
        config, task=import_path(config.task), resume=None, viewer=False, data_dir=config.data_dir.absolute()
    )
    write_yaml(folder / CONFIG, config)


def record_resume(folder: Path, config: RunConfig, step: int) -> list[str]:
    """Prepares a run folder for a resumed run: writes its options to config.yaml and marks the run as not finished.

    Args:
        folder: Run folder.
        config: Resolved config of the resumed run.
        step: Number of steps done.

    Returns:
        One line for each thing that the resume changes, for the user.

    Raises:
        UserError: The run has already done more steps than the config asks for.
    """
    saved = read_config(folder)[1].resolved()
    if config.steps < step:
        raise UserError(f"--resume: steps must be at least the {step} that {folder} has done, got {config.steps}")
    changes = differences(saved, dataclasses.replace(config, data_dir=config.data_dir.absolute()))
    if saved.data_dir.absolute() == config.data_dir.absolute():
        changes.pop("data_dir", None)
    told = [f"{folder}: goes on with {name} {after} instead of {before}" for name, (before, after) in changes.items()]
    if changes:
        write_config(folder, config)
    if "steps" in changes:
        told.append(f"{folder}: schedules keep their steps; --steps-scaler instead of --steps scales them with the run")
    end = config.growth_end()
    if "steps" in changes and end is not None and end <= step < config.steps:
        told.append(f"{folder}: growth ended at step {end}, so the model keeps its size")
    if step < config.steps:
        (folder / METRICS).unlink(missing_ok=True)
    return told


def read_config(folder: Path) -> tuple[type[Task], RunConfig]:
    """Returns the task and the config of a run folder.

    Raises:
        ConfigError: The folder holds no config, or the config cannot be read.
    """
    path = folder / CONFIG
    values = read_values(path)
    task = find_task(values.get("task", DEFAULT_TASK), str(path))
    return task, from_mapping(task.Config, values, str(path))
