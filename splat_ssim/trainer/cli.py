"""From a command line to a run: config file, then command line, then the task the config names."""

from __future__ import annotations

import argparse
import importlib
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from splat_ssim.trainer.config import ConfigError, from_mapping, read_yaml


@dataclass(frozen=True)
class Task:
    """A kind of training, by import path so that none is loaded for another: its config and what runs it."""

    #: "module:class" of the config dataclass; its fields config, resume and task are the command line's own.
    config: str
    #: "module:function" that takes the config and returns the metrics.
    run: str


#: The value of `task` in a config file -> the task.
TASKS = {
    "scene": Task("splat_ssim.trainer.config:Config", "splat_ssim.trainer.training:train"),
    "volume": Task("splat_ssim.volume.config:VolumeConfig", "splat_ssim.volume.fitting:fit"),
}


def _imported(path: str) -> Any:
    module, name = path.split(":")
    return getattr(importlib.import_module(module), name)


def parse(arguments: Sequence[str] | None = None) -> tuple[Task, Any]:
    """The task and its config: defaults, under the run folder of --resume or the file of --config, under the rest.

    Args:
        arguments: The command line without the program; by default sys.argv's.

    Raises:
        ConfigError: A file is missing or has an unknown key.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # The base must be known before tyro, which shows it as the defaults in --help.
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", type=Path)
    first.add_argument("--resume", type=Path)
    named, _ = first.parse_known_args(arguments)
    if named.config is not None and named.resume is not None:
        raise ConfigError("--resume takes the config of its run folder, got --config besides")
    path = named.resume / "config.yaml" if named.resume is not None else named.config
    values = read_yaml(path) if path is not None else {}
    if named.resume is not None:
        values["result_dir"] = str(named.resume)
    name = values.get("task", "scene")
    if name not in TASKS:
        raise ConfigError(f"{path}: task: required one of {', '.join(TASKS)}, got {name!r}")
    base = from_mapping(_imported(TASKS[name].config), values, str(path))
    return TASKS[name], tyro.cli(type(base), default=base, args=arguments, prog="train.py")


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs a command line of train.py and returns the metrics."""
    with _one_sentence_errors():
        task, config = parse(arguments)
        return _imported(task.run)(config)


def call(path: str, arguments: Sequence[str] | None = None) -> Any:
    """Calls the function at "module:function" with its parameters as the command line."""
    with _one_sentence_errors():
        return tyro.cli(_imported(path), args=arguments)


@contextmanager
def _one_sentence_errors() -> Iterator[None]:
    """Ends the program with one sentence for what the user can put right: our own errors say what was required."""
    try:
        yield
    except (ValueError, FileNotFoundError, ImportError) as wrong:
        frames = traceback.extract_tb(wrong.__traceback__)
        if Path(frames[-1].filename).is_relative_to(Path(__file__).parent.parent):
            sys.exit(f"error: {wrong}")
        raise
