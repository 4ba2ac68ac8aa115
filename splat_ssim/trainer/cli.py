"""From a command line to a run: config file, then command line, then the task the config names."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tyro

from splat_ssim._importing import imported
from splat_ssim.errors import UserError
from splat_ssim.trainer.config import ConfigError, RunConfig, from_mapping, overlaid, read_values
from splat_ssim.trainer.folder import CONFIG, check_folder, default_folder
from splat_ssim.trainer.loop import Interrupted, reopen, run
from splat_ssim.trainer.metrics import in_words
from splat_ssim.trainer.places import check_example, find_config, find_example, program
from splat_ssim.trainer.ranks import launched
from splat_ssim.trainer.task import DEFAULT_TASK, Task, find_task


def parse(arguments: Sequence[str] | None = None) -> tuple[type[Task], Any]:
    """Returns the task and its config.

    Its values are the defaults, over them what suits the data (`RunConfig.beneath`), over them those of the file of
    --config or of the run folder of --resume, over them the rest of the command line.

    Args:
        arguments: The command line without the program; by default sys.argv's.

    Raises:
        ConfigError: A file is missing, has an unknown key, or states an option that does not apply.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # The base must be known before tyro, which shows it as the defaults in --help.
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", type=Path)
    first.add_argument("--resume", type=Path)
    named, _ = first.parse_known_args(arguments)
    if named.config is not None and named.resume is not None:
        raise ConfigError("--resume takes the config of its run folder, got --config besides")
    path = named.resume / CONFIG if named.resume is not None else named.config and find_config(named.config)
    values = read_values(path) if path is not None else {}
    if named.resume is not None:
        values["result_dir"] = str(named.resume)
    task = find_task(values.get("task", DEFAULT_TASK), str(path))
    beneath = {} if named.resume is not None else _beneath(task, values, arguments)
    base = from_mapping(task.Config, overlaid(beneath, values), str(path))
    config = tyro.cli(type(base), default=base, args=arguments, prog=program("train"))
    _check_meaning(base, config, {} if named.resume is not None else values, _options(arguments), str(path))
    if named.resume is None:
        check_example(config.data_dir)
    return task, config


def _beneath(task: type[Task], values: Mapping[str, Any], arguments: Sequence[str]) -> dict[str, Any]:
    """What lies beneath a new run's config file and command line: the default data, and what suits the data."""
    asked = _asked(arguments, task.Config.asks)
    if "data_dir" in values or _asked(arguments, ["data_dir"]):
        return task.Config.beneath(values, asked)
    data = {"data_dir": str(find_example(task.Config.data_dir))}
    return {**data, **task.Config.beneath(values, {**asked, **data})}


def _asked(arguments: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """The values that a command line gives to some of the options, by dotted name."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for name in names:
        parser.add_argument(*dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}")), dest=name)
    return vars(parser.parse_known_args(list(arguments))[0])


def _options(arguments: Sequence[str]) -> list[str]:
    """The dotted names of the options on a command line."""
    words = [word[2:].partition("=")[0].replace("-", "_") for word in arguments if word.startswith("--")]
    return [".".join(part.removeprefix("no_") for part in word.split(".")) for word in words]


def _check_meaning(
    base: RunConfig, config: RunConfig, values: Mapping[str, Any], options: Sequence[str], path: str
) -> None:
    """Refuses options that were asked for and do not apply.

    Those of a command must apply to what is trained. Those of a file must apply either to that or to what the file
    itself chooses, such as its strategy, which a command may replace; then they are left out, with a note.

    Raises:
        ConfigError: The message names the option and why.
    """
    own, final = base.unused(), config.unused()
    for name in options:
        if name in final:
            raise ConfigError(f"command line: {name}: {final[name]}")
    for name in (f"{key}.{name}" for key, value in values.items() if isinstance(value, Mapping) for name in value):
        if name in own and name in final:
            raise ConfigError(f"{path}: {name}: {final[name]}")
        if name in final:
            print(f"{path}: {name} is left out: {final[name]}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs a command line of train.py and returns the metrics."""
    with _as_a_program():
        task, config = parse(arguments)
        if config.resume is None and launched().is_first:
            # Reading the data may take minutes.
            check_folder(config.result_dir or default_folder(config.data_dir.name))
        made = task(config)  # type: ignore[call-arg]
        for line in getattr(made, "notes", ()) if launched().is_first else ():
            print(line)
        if config.dry_run:
            for line in getattr(made, "plan", tuple)() if launched().is_first else ():
                print(line)
            return {}
        return run(made)


def call(path: str, arguments: Sequence[str] | None = None) -> Any:
    """Calls the function at "module:function" with its parameters as the command line."""
    with _as_a_program():
        return tyro.cli(imported(path), args=arguments)


@contextmanager
def _as_a_program() -> Iterator[None]:
    """Ends the program with one sentence for what the user can put right, and with a signal's own exit status."""
    try:
        yield
    except UserError as wrong:
        sys.exit(f"error: {wrong}")
    except Interrupted as stopped:
        sys.exit(stopped.status)
    except KeyboardInterrupt:
        print("stopped by SIGINT", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


# --- what splat-eval and splat-render do


def evaluate_run(
    folder: tyro.conf.Positional[Path], *, device: str = "auto", data_dir: Path | None = None
) -> dict[str, Any]:
    """Evaluates a run folder's last checkpoint.

    Args:
        folder: Run folder, of whatever kind of training.
        device: auto, cpu or cuda.
        data_dir: The data, if they have moved.

    Returns:
        What eval/<step>.json holds.
    """
    one = reopen(folder, device=device, data_dir=data_dir, with_loss=False)
    result = one.evaluate()
    print(f"step {one.step}: {in_words(result)}")
    return result


def render_run(
    folder: tyro.conf.Positional[Path],
    *,
    views: str | None = None,
    frames: int = 120,
    output: Path | None = None,
    device: str = "auto",
    data_dir: Path | None = None,
) -> Path:
    """Draws a run folder's last checkpoint.

    Args:
        folder: Run folder, of whatever kind of training.
        views: What to draw. Of a scene: orbit (an MP4), train or test (a folder of PNG). Of a volume: orbit (a turning
            projection) or slices. Of an image: picture. By default the first.
        frames: Number of frames of a video.
        output: File or folder to write; by default in the run folder.
        device: auto, cpu or cuda.
        data_dir: The data, if they have moved.

    Returns:
        What was written.
    """
    task = reopen(folder, device=device, data_dir=data_dir, with_loss=False).task
    views = views or next(iter(task.VIEWS))
    if views not in task.VIEWS:
        raise UserError(f"--views must be one of {', '.join(task.VIEWS)} for this run, got {views!r}")
    output = output or folder / task.VIEWS[views]
    task.render(views, output, frames)
    print(output)
    return output
