"""Run folders: what a run writes where, and configs read back from them.

config.yaml is the resolved config with the import path of its task, checkpoint.pt the last checkpoint,
eval/<step>.json what each evaluation found, pictures/ and the task's own exports what the last step looks like, and
metrics.json, written last, says that the run is over.
"""

from __future__ import annotations

import dataclasses
from datetime import datetime
from pathlib import Path

from splat_ssim._files import remove_leftovers
from splat_ssim.errors import UserError
from splat_ssim.trainer import checkpoint
from splat_ssim.trainer.config import RunConfig, from_mapping, read_yaml, write_yaml
from splat_ssim.trainer.task import DEFAULT_TASK, Task, find_task, import_path

CONFIG, METRICS = "config.yaml", "metrics.json"


def open_folder(config: RunConfig, name: str) -> Path:
    """Returns the folder of a run: a new one with the config in it, or the one to resume.

    Args:
        config: Resolved.
        name: Of the data, for the folder's default name.

    Raises:
        UserError: The folder of a new run holds a finished run.
    """
    folder = config.result_dir
    if folder is None:
        folder = Path("results") / name / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    if config.resume is not None:
        remove_leftovers(folder / checkpoint.NAME)
        return folder
    if (folder / METRICS).exists():
        raise UserError(f"{folder}: required a new folder for a new run, got one with {METRICS} (--result-dir)")
    folder.mkdir(parents=True, exist_ok=True)
    write_yaml(folder / CONFIG, dataclasses.replace(config, task=import_path(config.task)))
    return folder


def read_config(folder: Path) -> tuple[type[Task], RunConfig]:
    """Returns the task and the config of a run folder.

    Raises:
        ConfigError: The folder holds no config, or one that does not read.
    """
    path = folder / CONFIG
    values = read_yaml(path)
    task = find_task(values.get("task", DEFAULT_TASK), str(path))
    return task, from_mapping(task.Config, values, str(path))
