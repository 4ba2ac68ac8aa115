"""Options that every kind of training has. `trainer.mappings` reads and writes them as files."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import tyro
import yaml

from splat_ssim import _moved

# Reading and writing of configs is imported from here, whichever module does it.
from splat_ssim.trainer.mappings import ConfigError as ConfigError
from splat_ssim.trainer.mappings import from_mapping as from_mapping
from splat_ssim.trainer.mappings import load_yaml
from splat_ssim.trainer.mappings import overlaid as overlaid
from splat_ssim.trainer.mappings import read_values as read_values
from splat_ssim.trainer.mappings import read_yaml as read_yaml
from splat_ssim.trainer.mappings import write_yaml as write_yaml


def _yaml_mapping(text: str) -> dict[str, Any]:
    try:
        value = load_yaml(text)
    except ValueError as broken:
        raise ValueError(f"required a YAML mapping such as '{{lambda_dssim: 0.1}}', got {text!r}: {broken}") from None
    if not isinstance(value, dict):
        raise ValueError(f"required a YAML mapping such as '{{lambda_dssim: 0.1}}', got {text!r}")
    return value


#: A mapping that is one YAML argument on the command line: --loss-kwargs '{lambda_dssim: 0.1}'.
YamlMapping = Annotated[
    dict[str, Any],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="{YAML}",
        instance_from_str=lambda args: _yaml_mapping(args[0]),
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [yaml.safe_dump(value, default_flow_style=True).strip()],
    ),
]

R = TypeVar("R", bound="RunConfig")


@dataclass
class OutputConfig:
    """Files that a run writes besides metrics.json, config.yaml and the last checkpoint."""

    #: Number of steps between evaluations. 0 evaluates only at the end.
    eval_every: int = 0
    #: After each of these steps a copy of the run, with checkpoint and exports, is kept in steps/<step> of its folder.
    #: The copy is a run folder of its own.
    save_steps: tuple[int, ...] = ()
    #: Write scalars and pictures for TensorBoard.
    tensorboard: bool = False
    #: Show the progress bar.
    progress: bool = True


@dataclass
class RunConfig:
    """Options of any training run. Each kind of training adds its own in a subclass."""

    #: YAML file with the options that differ from the defaults. The command line overrides it.
    config: Path | None = None
    #: Data to train on.
    data_dir: Path = Path()
    #: Folder that the run writes. By default results/<data>/<time>.
    result_dir: Path | None = None
    #: Loss: fused_ssim (L1 + DSSIM in one pass), ssim (the same in plain torch), ms_ssim (L1 + MS-SSIM), l1, l2, or
    #: package.module:function.
    loss: str = "fused_ssim"
    #: Options of the loss as a YAML mapping. For volumes, window_size and sigma may be three numbers in the order of
    #: the array's axes.
    loss_kwargs: YamlMapping = field(default_factory=dict)
    #: Number of training steps.
    steps: int = 1000
    #: Multiplies steps and every option that is a number of steps.
    steps_scaler: float = 1.0
    #: Where to compute: cpu, cuda, or auto (cuda if there is a GPU, otherwise cpu).
    device: Literal["auto", "cpu", "cuda"] = "auto"
    #: Seed of every random draw.
    seed: int = 0
    #: Run folder to resume, from its last checkpoint and with its config.
    resume: Path | None = None
    #: Number of steps between checkpoints. 0 writes one only at the end.
    checkpoint_every: int = 1000
    #: Print the mean time of each stage of a step, in milliseconds.
    profile: bool = False
    #: Read the data, print what the run would do and how much memory it would take, and exit.
    dry_run: bool = False
    #: Show the training in a browser (extra [viewer]). Nothing is drawn while no browser is connected.
    viewer: bool = False
    #: Port of the viewer, http://localhost:<port>. 0 takes any free port.
    viewer_port: int = 8080
    #: Kind of training: a short name such as scene, or package.module:Class, which is imported.
    task: tyro.conf.Suppress[str] = ""
    output: OutputConfig = field(default_factory=OutputConfig)

    def resolved(self: R) -> R:
        """Returns the config with every schedule as a number of steps: steps_scaler is applied, defaults are filled in.

        A config that only names a run to resume is completed from that run's folder first, see `of_resumed_run`.

        Raises:
            ConfigError: A value is out of its range, or differs from that of the run to resume although it must not.
        """
        whole, saved = (self, None) if self.resume is None else of_resumed_run(self)
        values: dict[str, Any] = {f.name: getattr(whole, f.name) for f in dataclasses.fields(whole)}
        # The parts are copied, so that the config that was asked for stays as it is.
        parts: dict[str, Any] = {
            name: copy.copy(part) for name, part in values.items() if dataclasses.is_dataclass(part)
        }
        resolved = dataclasses.replace(whole, **parts)
        check_finite(resolved)
        resolved.steps = whole.scaled(whole.steps)
        if whole.steps < 1 or resolved.steps < 1:
            raise ConfigError(
                f"steps times steps_scaler must be at least 1, got {whole.steps} times {whole.steps_scaler}"
            )
        resolved.fill_in()
        resolved.steps_scaler = 1.0
        resolved.check()
        if saved is not None:
            _check_resumed(saved.resolved(), resolved)
        return resolved

    @classmethod
    def beneath(cls, values: Mapping[str, Any], asked: Mapping[str, str]) -> dict[str, Any]:
        """Returns defaults that suit the data, as a config file would state them. File and command line override them.

        Args:
            values: Values of the config file.
            asked: data_dir and the other options in `asks` that the command line sets, by dotted name.
        """
        return {}

    #: Options of the command line that `beneath` looks at.
    asks: ClassVar[Sequence[str]] = ()

    def fill_in(self) -> None:
        """Scales and fills in the schedules of a subclass. `steps` is already scaled, steps_scaler not yet reset."""

    def check(self) -> None:
        """Raises ConfigError for the first value that is out of its range."""
        check_ranges(
            ("seed", self.seed, 0, 2**63 - 1),
            ("viewer_port", self.viewer_port, 0, 65535),
            ("checkpoint_every", self.checkpoint_every, 0, None),
            ("output.eval_every", self.output.eval_every, 0, None),
            *(("output.save_steps", step, 1, None) for step in self.output.save_steps),
        )

    def scaled(self, steps: int | None, default: int = 0) -> int:
        """Scales a schedule in steps. Returns `default`, not scaled, if it is None."""
        if steps is None:
            return default
        if max(abs(steps), abs(self.steps_scaler)) >= 2**63:
            raise ConfigError(f"steps times steps_scaler must be below 2^63, got {steps} times {self.steps_scaler}")
        return round(steps * self.steps_scaler)

    def unused(self) -> dict[str, str]:
        """Options that mean nothing in this config: dotted name -> why. Nobody may ask for them."""
        return {}

    def settled(self) -> dict[str, str]:
        """Options that a resumed run keeps: dotted name -> what has been done with them already."""
        return {"seed": "the draws of the run are made from it"}

    def growth_end(self) -> int | None:
        """The step after which the model of a resolved config does not grow. None if there is no such step."""
        return None


def of_resumed_run(config: R) -> tuple[R, R]:
    """Returns two configs of the run that `config.resume` names: the one to go on with, and that of its config.yaml.

    A config with result_dir, such as the command line makes, is complete. A config without one takes every option from
    the run's own config.yaml, except the options that differ from their defaults.

    Raises:
        ConfigError: The folder holds no config, or result_dir is another folder.
    """
    folder = config.resume
    assert folder is not None
    if config.result_dir is not None and config.result_dir.resolve() != folder.resolve():
        raise ConfigError(f"a resumed run must write to its own folder {folder}, got result_dir {config.result_dir}")
    values = read_values(folder / "config.yaml")
    values.pop("task", None)
    saved = from_mapping(type(config), values, str(folder / "config.yaml"))
    saved = dataclasses.replace(saved, resume=None, result_dir=folder)
    if config.result_dir is not None:
        return config, saved
    completed = _overlaid(saved, config, type(config)())
    return dataclasses.replace(completed, resume=folder, result_dir=folder), saved


def _check_resumed(saved: RunConfig, config: RunConfig) -> None:
    """Raises ConfigError for an option that a resumed run must keep and that was given another value."""
    settled = {**saved.settled(), **config.settled()}
    for name, (before, after) in differences(saved, config).items():
        if name in settled:
            raise ConfigError(
                f"--resume: {name} must stay {before} as in {config.resume}, got {after}: {settled[name]}"
            )


#: Where a run is written and read, which says nothing of what it does.
_PLACES = ("config", "result_dir", "resume", "task", "dry_run", "viewer", "viewer_port")


def differences(before: Any, after: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """The options that differ between two configs of a kind: dotted name -> both values.

    Example:
        >>> from splat_ssim.trainer.config import OutputConfig, RunConfig, differences
        >>> differences(RunConfig(), RunConfig(steps=5, output=OutputConfig(eval_every=2)))
        {'steps': (1000, 5), 'output.eval_every': (0, 2)}
    """
    found: dict[str, tuple[Any, Any]] = {}
    for name in (f.name for f in dataclasses.fields(before) if prefix or f.name not in _PLACES):
        old, new = getattr(before, name), getattr(after, name)
        if dataclasses.is_dataclass(old):
            found.update(differences(old, new, f"{prefix}{name}."))
        elif old != new:
            found[prefix + name] = old, new
    return found


def _overlaid(base: Any, changed: Any, default: Any) -> Any:
    """`base` with the fields of `changed` that differ from `default`, at any depth."""
    values = {}
    for name in (f.name for f in dataclasses.fields(base)):
        below, above, plain = getattr(base, name), getattr(changed, name), getattr(default, name)
        if dataclasses.is_dataclass(below):
            values[name] = _overlaid(below, above, plain)
        else:
            values[name] = below if above == plain else above
    return dataclasses.replace(base, **values)


def check_finite(config: Any, prefix: str = "") -> None:
    """Raises ConfigError for the first number of a config, at any depth, that is NaN or infinite."""
    for name in (f.name for f in dataclasses.fields(config)):
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            check_finite(value, f"{prefix}{name}.")
        elif isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{prefix}{name} must be finite, got {value}")


def check_ranges(*rows: tuple[str, float, float, float | None]) -> None:
    """Raises ConfigError for the first of (name, value, low, high) that is out of its range. `high` may be None."""
    for name, value, low, high in rows:
        if not low <= value or (high is not None and value > high):
            limit = f"at least {low}" if high is None else f"from {low} to {high}"
            raise ConfigError(f"{name} must be {limit}, got {value}")


def without_meaning(
    section: str, config: Any, options: Iterable[str], owner: str, *, always: Iterable[str] = ("name",)
) -> dict[str, str]:
    """Returns the entries of `RunConfig.unused` for a part of a config of which only some options apply.

    Args:
        section: Name of the part, such as "strategy".
        config: The part, a dataclass.
        options: Names of the fields that apply.
        owner: Owner of these options, for messages, such as "strategy mcmc".
        always: Names of fields that apply in any case.
    """
    known = [f.name for f in dataclasses.fields(config) if f.name in {*options, *always}]
    why = f"{owner} has no such option, only {', '.join(name for name in known if name not in always) or 'none'}"
    return {f"{section}.{f.name}": why for f in dataclasses.fields(config) if f.name not in known}


def given(steps: int | None) -> int:
    """Returns a schedule of a resolved config, in which every schedule is a number.

    Raises:
        ConfigError: The config has not been resolved.
    """
    if steps is None:
        raise ConfigError("required a config with every schedule given (RunConfig.resolved()), got one without")
    return steps


__getattr__ = _moved.names(__name__)
