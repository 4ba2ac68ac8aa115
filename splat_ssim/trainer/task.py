"""The interface of a kind of training, and how a config names one."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from splat_ssim._importing import imported
from splat_ssim.trainer.config import ConfigError, RunConfig

#: The task that is trained if neither a config file nor a command names one.
DEFAULT_TASK = "scene"


class Report(Mapping[str, float]):
    """The scalars of one step, each computed when it is read.

    Reading waits for the device, so the loop reads only the steps that it shows. Values are numbers, tensors of one
    element, or functions that return either.

    Example:
        >>> import torch
        >>> from splat_ssim.trainer.task import Report
        >>> dict(Report({"loss": torch.tensor(0.5), "gaussians": lambda: 300}))
        {'loss': 0.5, 'gaussians': 300}
    """

    def __init__(self, values: Mapping[str, float | Tensor | Callable[[], float | Tensor]]) -> None:
        self._values = values

    def __getitem__(self, key: str) -> float:
        value = self._values[key]
        value = value() if callable(value) else value
        return value.item() if isinstance(value, Tensor) else value

    def known(self) -> dict[str, float | Tensor]:
        """The values that are numbers or tensors, unchanged. Nothing is computed, and the device is not waited for."""
        return {key: value for key, value in self._values.items() if not callable(value)}

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


class Observer(Protocol):
    """Looks at a run between its steps, in the thread that trains. This time does not count as training."""

    def due(self) -> bool:
        """Whether the observer wants to look now. It is asked after every step and must answer at once."""

    def look(self, step: int, report: Report, stopped: Callable[[], bool]) -> None:
        """Looks at the model after `step` steps. It may take its time, but must return once `stopped()` is true."""


class Viewer(Observer, Protocol):
    """An observer that shows the model in a browser."""

    #: Address to open in the browser.
    url: str

    def serve(self, stopped: Callable[[], bool], step: int) -> None:
        """Shows the model as it is after `step` steps, until `stopped()` is true."""

    def close(self) -> None:
        """Frees its port."""


class Task(Protocol):
    """One kind of training. The loop owns the clock, the folder and the checkpoints; a task owns its model.

    A task is made from its config: `Task(config)` reads the data, puts the model where it starts and seeds torch. The
    length of a run is `config.steps`. A task may have a `fingerprint`, a text that says what its data are and differs
    for other data: a run is resumed and looked at only with data of the same one. One that tells more than those of
    older runs begins as theirs. It may have `finished`, which ends the run before its last step once it is true. It may
    have `notes`, lines that say what was read, left out or assumed, which train.py prints before the run. It may have
    three methods that show it: `previews()` returns pictures for TensorBoard, name -> (3, H, W) in [0, 1];
    `report(folder, evaluation, views=…, viewer_package=…)` writes a page about a run to its folder, and `viewer(port)`
    returns an open viewer, see `Viewer`. `prepare_evaluation()` is called before the first step and refuses what an
    evaluation would lack. With MODES, names of ways to draw, `render` takes a `mode`;
    `render_path(path, output, mode=…, transform=…)` draws what cameras of a file see. A task that several processes
    train has `ranks`, a `splat_ssim.trainer.ranks.Ranks`, and, if each holds a part of the model, `collect()`, which
    all call before the first one evaluates or saves.
    """

    #: The config dataclass: a subclass of RunConfig.
    Config: ClassVar[type[RunConfig]]
    #: What `scripts/render.py --views` may name -> the file or folder it writes by default; the first is the default.
    VIEWS: ClassVar[Mapping[str, str]]

    #: Resolved: every schedule is a number of steps.
    config: Any
    #: Of the data; names the default run folder.
    name: str
    device: torch.device

    def step(self, index: int) -> Report:
        """Trains one step, counted from 0, and reports on it.

        The report's loss is a number or a tensor of one element. A step does not wait for the device.
        """

    def evaluate(self, pictures: Path | None) -> dict[str, Any]:
        """Returns metrics of the current model. If a folder is given, pictures are written to it.

        Single values enter metrics.json and TensorBoard; lists, such as a row for each view, only eval/<step>.json.
        """

    def state_dict(self) -> dict[str, Any]:
        """Returns all that a checkpoint needs: tensors, numbers, strings and containers of them.

        The keys step, train_seconds, data and generators are the loop's. Every tensor of floats must be finite.
        """

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Makes the model what it was when `state_dict` returned `state`."""

    def export(self, folder: Path) -> dict[str, Any]:
        """Writes the files that a finished run leaves, and returns further metrics."""

    def render(self, views: str, output: Path, frames: int) -> None:
        """Draws `views`, a key of VIEWS, to a file or folder. `frames` is the number of frames of a video."""


#: What a class must have to be a task.
_INTERFACE = ("Config", "VIEWS", "step", "evaluate", "state_dict", "load_state_dict", "export", "render")


def import_path(name: str) -> str:
    """The import path of a task. "module:Class" is unchanged, and a short name is expanded.

    Example:
        >>> from splat_ssim.trainer.task import import_path
        >>> import_path("volume"), import_path("package.module:Class")
        ('splat_ssim.volume:Task', 'package.module:Class')
    """
    return name if ":" in name else f"splat_ssim.{name}:Task"


def find_task(name: str, where: str) -> type[Task]:
    """Imports the class of a task by its name in a config.

    Args:
        name: A short name such as "scene", which stands for `splat_ssim.scene:Task`, or "package.module:Class". The
            module is imported, which runs its code.
        where: Source of the name, such as a file, for messages.

    Raises:
        ConfigError: There is no such class, or it is not a task.
    """
    try:
        found: Any = imported(import_path(name)) if isinstance(name, str) else name
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{where}: task: required one of {', '.join(_shipped())} or package.module:Class, got {name!r}: {error}"
        ) from None
    missing = [member for member in _INTERFACE if not hasattr(found, member)]
    config = getattr(found, "Config", None)
    if not isinstance(found, type) or missing or not isinstance(config, type) or not issubclass(config, RunConfig):
        lacks = f" without {', '.join(missing)}" if isinstance(found, type) and missing else ""
        raise ConfigError(f"{where}: task: required a class with the interface of a task, got {name!r}{lacks}")
    return found


def _shipped() -> list[str]:
    """The short names: every public module of this package with a Task, the default first."""
    package = find_spec("splat_ssim")
    names = [] if package is None else [m.name for m in pkgutil.iter_modules(package.submodule_search_locations)]
    found = []
    for name in names:
        try:
            if not name.startswith("_") and hasattr(imported(f"splat_ssim.{name}:Task"), "Config"):
                found.append(name)
        except (ImportError, AttributeError):
            continue
    return sorted(found, key=lambda name: (name != DEFAULT_TASK, name))
