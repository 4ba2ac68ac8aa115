"""The command line of a run: reads the config file, then the options, and runs the task that they name."""

from __future__ import annotations

import argparse
import inspect
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tyro

from splat_ssim._files import check_apart
from splat_ssim._importing import imported
from splat_ssim.errors import UserError
from splat_ssim.trainer.config import ConfigError, RunConfig, from_mapping, overlaid, read_values
from splat_ssim.trainer.folder import CONFIG, check_folder, default_folder
from splat_ssim.trainer.loop import reopen, run
from splat_ssim.trainer.metrics import in_words
from splat_ssim.trainer.places import check_example, find_config, find_example, program
from splat_ssim.trainer.ranks import launched
from splat_ssim.trainer.signals import Interrupted, Signals
from splat_ssim.trainer.task import DEFAULT_TASK, Task, Viewer, find_task
from splat_ssim.trainer.viewer_package import install_viewer as fetch_viewer

_PATHS = tyro.constructors.ConstructorRegistry()


@_PATHS.primitive_rule
def _path(kind: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec[Path] | None:
    """How a path is read. An empty one, as from an unset variable of the shell, would pass for the working folder."""

    def made(words: list[str]) -> Path:
        if not words[0]:
            raise ValueError("required a path, got an empty one")
        return Path(words[0])

    if kind.type is not Path:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=made,
        is_instance=lambda value: isinstance(value, Path),
        str_from_instance=lambda value: [str(value)],
    )


def parse(arguments: Sequence[str] | None = None) -> tuple[type[Task], Any]:
    """Parses a command line. Returns the task and its config.

    A value comes from the last of these that states it: the defaults, the values that suit the data
    (`RunConfig.beneath`), the file of --config or the run folder of --resume, and the rest of the command line.

    Args:
        arguments: The command line without the program. By default sys.argv's.

    Raises:
        ConfigError: A file is missing, has an unknown key, or sets an option that does not apply.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # The base must be known before tyro, which shows it as the defaults in --help.
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", type=Path)
    first.add_argument("--resume", type=Path)
    named, _ = first.parse_known_args(arguments)
    if named.config is not None and named.resume is not None:
        raise ConfigError("--resume uses the config of its run folder and excludes --config, got both")
    path = named.resume / CONFIG if named.resume is not None else named.config and find_config(named.config)
    values = read_values(path) if path is not None else {}
    if named.config is not None and values.get("config") is not None:
        print(f"{path}: config is left out: a config file does not read another", file=sys.stderr)
    if named.resume is not None:
        values["result_dir"] = str(named.resume)
    task = find_task(values.get("task", DEFAULT_TASK), str(path))
    beneath = {} if named.resume is not None else _beneath(task, values, arguments)
    base = from_mapping(task.Config, overlaid(beneath, values), str(path))
    with _PATHS:
        config = tyro.cli(type(base), default=base, args=arguments, prog=program("train"))
    _check_meaning(base, config, {} if named.resume is not None else values, _options(arguments), str(path))
    if named.resume is None:
        check_example(config.data_dir)
    return task, config


def _beneath(task: type[Task], values: Mapping[str, Any], arguments: Sequence[str]) -> dict[str, Any]:
    """Values of a new run that its config file and command line may override: the default data, and what suits it."""
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
    """Refuses options that the user has set and that do not apply.

    Options of the command line must apply to the run. Options of a file must apply to the run or to the choices of the
    file itself, such as its strategy. If the command line replaces such a choice, they are left out with a note.

    Raises:
        ConfigError: An option does not apply. The message names it and says why.
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
        late = [step for step in config.output.save_steps if step > made.config.steps]
        if late and launched().is_first:
            print(f"output.save_steps: the run ends at step {made.config.steps}, before {', '.join(map(str, late))}")
        if config.dry_run:
            for line in getattr(made, "plan", tuple)() if launched().is_first else ():
                print(line)
            return {}
        with _observed(made, config) as observers:
            return run(made, observers)


@contextmanager
def _observed(task: Task, config: RunConfig) -> Iterator[list[Viewer]]:
    """Opens the viewer that --viewer asks for, and closes it in the end. The list is empty without --viewer."""
    if not config.viewer:
        yield []
        return
    if launched().count > 1:
        # If training paused, the other processes would wait until they time out.
        raise UserError(f"--viewer requires one process, got {launched().count} (torchrun)")
    viewer = _viewer(task, config.viewer_port)
    try:
        yield [viewer]
    finally:
        viewer.close()


def _viewer(task: Task, port: int) -> Viewer:
    """Opens a task's viewer and prints its address.

    Raises:
        UserError: The task has no viewer, or its packages are missing.
    """
    opened = getattr(task, "viewer", None)
    if opened is None:
        raise UserError(f"a viewer requires a task that has one, got {task.config.task or task.name}")
    viewer: Viewer = opened(port)
    print(f"viewer: {viewer.url}", flush=True)
    return viewer


def call(path: str, arguments: Sequence[str] | None = None) -> Any:
    """Calls the function at "module:function". Its parameters are the options of the command line."""
    with _as_a_program(), _PATHS:
        return tyro.cli(imported(path), args=arguments)


@contextmanager
def _as_a_program() -> Iterator[None]:
    """Exits with one sentence for an error that the user can fix, and with the usual exit status for a signal."""
    try:
        yield
    except UserError as wrong:
        sys.exit(f"error: {wrong}")
    except Interrupted as stopped:
        sys.exit(stopped.status)
    except KeyboardInterrupt:
        print("stopped by SIGINT", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


# --- the commands splat-eval, splat-render, splat-report and splat-viewer


def evaluate_run(
    folder: tyro.conf.Positional[Path], *, device: str = "auto", data_dir: Path | None = None
) -> dict[str, Any]:
    """Evaluates a run folder's last checkpoint.

    Args:
        folder: Run folder of any kind of training.
        device: auto, cpu or cuda.
        data_dir: Where the data are now. By default where the run read them.

    Returns:
        The metrics, as eval/<step>.json holds them.
    """
    one = reopen(folder, device=device, data_dir=data_dir, with_loss=False)
    result = one.evaluate()
    print(f"step {one.step}: {in_words(result)}")
    return result


def render_run(
    folder: tyro.conf.Positional[Path],
    *,
    views: str | None = None,
    frames: int | None = None,
    mode: str = "rgb",
    path: Path | None = None,
    transform: Path | None = None,
    output: Path | None = None,
    device: str = "auto",
    data_dir: Path | None = None,
) -> Path:
    """Draws a run folder's last checkpoint.

    Args:
        folder: Run folder of any kind of training.
        views: What to draw. For a scene: orbit (an MP4), train or test (a folder of PNG files). For a volume: orbit (a
            turning projection, an MP4) or slices. For an image: picture. By default the first of these.
        frames: Number of frames of an orbit, 120 by default.
        mode: How to draw a scene: rgb, depth (prints its scale), normal (from the depths, in world axes) or alpha.
        path: Camera path to draw instead of views, for a scene: nerfstudio's camera_path.json or a transforms.json, in
            the coordinates of the scene's files. The file gives the size and the frame rate. The output is an MP4, or
            a folder of PNG files where its name has no suffix.
        transform: nerfstudio's dataparser_transforms.json, for a path in nerfstudio's own coordinates.
        output: File or folder to write. By default it lies in the run folder.
        device: auto, cpu or cuda.
        data_dir: Where the data are now. By default where the run read them.

    Returns:
        The file or folder written.
    """
    if frames is not None and frames < 1:
        raise UserError(f"--frames must be at least 1, got {frames}")
    task = reopen(folder, device=device, data_dir=data_dir, with_loss=False).task
    if output is not None:
        check_apart(output, [each for each in (task.config.data_dir, path, transform) if each is not None])
    modes = getattr(task, "MODES", ("rgb",))
    if mode not in modes:
        raise UserError(f"--mode must be one of {', '.join(modes)} for this run, got {mode!r}")
    drawn = {} if mode == "rgb" else {"mode": mode}
    if path is not None:
        if views is not None:
            raise UserError(f"--path replaces --views and excludes it, got --views {views}")
        if frames is not None:
            raise UserError(f"--frames is that of an orbit: {path} says its own, got --frames {frames}")
        if not hasattr(task, "render_path"):
            raise UserError(f"--path requires a run with cameras, got {folder}")
        output = output or folder / f"{path.stem}.mp4"
        task.render_path(path, output, transform=transform, **drawn)
        print(output)
        return output
    if transform is not None:
        raise UserError("--transform applies to --path and requires it, got no --path")
    views = views or next(iter(task.VIEWS))
    if views not in task.VIEWS:
        raise UserError(f"--views must be one of {', '.join(task.VIEWS)} for this run, got {views!r}")
    default = Path(task.VIEWS[views])
    if frames is not None and default.suffix != ".mp4":
        raise UserError(f"--frames applies to a video, such as an orbit, got --views {views} and --frames {frames}")
    output = output or folder / (default if mode == "rgb" else default.with_stem(f"{default.stem}_{mode}"))
    task.render(views, output, 120 if frames is None else frames, **drawn)
    print(output)
    return output


def report_run(
    folder: tyro.conf.Positional[Path | None] = None,
    *,
    views: int = 12,
    install_viewer: bool = False,
    viewer_package: Path | None = None,
    device: str = "auto",
    data_dir: Path | None = None,
) -> Path:
    """Writes the page about a run, report.html in its folder, from its last checkpoint, which it evaluates.

    Args:
        folder: Run folder.
        views: Largest number of views to show. A photograph of 800x800 pixels adds up to 0.6 MB to the page.
        install_viewer: First download the viewer that shows the scene in the page, 3 MB, from the npm registry. Without
            a run folder, nothing else is done.
        viewer_package: The viewer's tarball, or its folder in node_modules. By default the installed one.
        device: auto, cpu or cuda.
        data_dir: Where the data are now. By default where the run read them.

    Returns:
        The files written.
    """
    if install_viewer:
        kept = fetch_viewer(viewer_package)
        print(kept)
        if folder is None:
            return kept
    if folder is None:
        raise UserError("required a run folder to report on, got none")
    one = reopen(folder, device=device, data_dir=data_dir, with_loss=False)
    report = getattr(one.task, "report", None)
    if report is None:
        raise UserError(f"{folder}: a report requires a task that has one, got {one.config.task}")
    if viewer_package is not None and "viewer_package" not in inspect.signature(report).parameters:
        raise UserError(f"--viewer-package is the viewer of a scene, and {folder} is a run of another kind")
    written: Path = report(folder, one.dated(one.evaluate()), views=views, viewer_package=viewer_package)
    print(written)
    return written


def view_run(
    folder: tyro.conf.Positional[Path], *, port: int = 8080, device: str = "auto", data_dir: Path | None = None
) -> None:
    """Shows a run folder's last checkpoint in a browser until Ctrl-C.

    Args:
        folder: Run folder.
        port: Port of http://localhost:<port>. 0 takes any free port.
        device: auto, cpu or cuda.
        data_dir: Where the data are now. By default where the run read them.
    """
    one = reopen(folder, device=device, data_dir=data_dir, with_loss=False)
    viewer = _viewer(one.task, port)
    try:
        with Signals() as signals:
            viewer.serve(lambda: bool(signals.caught), one.step)
    finally:
        viewer.close()
