"""What a training run can be told: nested dataclasses; YAML files state differences; the command line overrides."""

from __future__ import annotations

import dataclasses
import os
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro
import yaml


class ConfigError(ValueError):
    """A configuration names an unknown key or gives a value of the wrong kind."""


def _yaml_mapping(text: str) -> dict[str, Any]:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as broken:
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


@dataclass
class DataConfig:
    """How the scene is read."""

    #: auto, blender, colmap or nerfstudio.
    format: str = "auto"
    #: Images at 1/factor of their size, from images_{factor} where there is one.
    factor: int = 1
    #: Without a split in the files, every such view by file name is a test view.
    test_every: int = 8
    #: Behind images with an alpha channel.
    background: Literal["white", "black"] = "white"
    #: Training starts on images reduced by this power of 2, which halves at equal intervals; 1: full size throughout.
    coarse_factor: int = 1
    #: From this step on images are of full size; by default from 0.3 of the run on.
    coarse_stop: int | None = None


@dataclass
class ModelConfig:
    """The Gaussians and how they are rendered."""

    #: Highest degree of the spherical harmonics.
    sh_degree: int = 3
    #: Steps from one degree to the next; by default a tenth of the run.
    sh_degree_interval: int | None = None
    #: points: from the scene's point cloud; random: inside the silhouettes or the cameras' view; auto: points if any.
    init: Literal["auto", "points", "random"] = "auto"
    #: Number of Gaussians of a random start.
    init_count: int = 10_000
    #: Opacity of a Gaussian at the start.
    init_opacity: float = 0.1
    #: Mip-Splatting's compensation of the screen-space blur.
    antialiased: bool = False


@dataclass
class OptimizerConfig:
    """Adam and its learning rates. Positions decay log-linearly over the run, the others over its last part."""

    #: adam: compiled on the CPU; torch_adam: torch's own; sparse_adam: compiled, changes only the Gaussians in view.
    name: Literal["adam", "torch_adam", "sparse_adam"] = "adam"
    #: shN takes a step each so many steps, on the sum of the gradients (Taming 3DGS: 16); steps_scaler leaves it alone.
    sh_every: int = 1
    #: Of positions, in units of the scene's extent, at the first and at the last step.
    means: float = 5e-4
    means_final: float = 5e-6
    scales: float = 5e-3
    quats: float = 1e-3
    opacities: float = 2.5e-2
    sh0: float = 2.5e-3
    shN: float = 1.25e-4
    #: From this step on the rates other than the positions' decay log-linearly; by default at 0.7 of the run.
    decay_start: int | None = None
    #: What is left of them at the end.
    final_factor: float = 0.1


@dataclass
class StrategyConfig:
    """Densification. Fields a strategy does not have are passed over."""

    #: capped, default (gsplat's), mcmc, or another name in splat_ssim.strategy.STRATEGIES.
    name: str = "capped"
    #: Most Gaussians there may be (capped, mcmc, taming).
    budget: int = 30_000
    #: Where given, the budget is this multiple of the Gaussians at the start.
    budget_multiplier: float | None = None
    #: Densification happens after refine_start, every refine_every steps, before refine_stop (default 0.6 of the run).
    refine_start: int = 100
    refine_every: int = 100
    refine_stop: int | None = None
    #: Opacities are reset every so many steps (default strategy); by default a tenth of the run.
    reset_every: int | None = None
    #: Share of the Gaussians added at most at each event (capped).
    growth: float = 0.05
    #: Share of the Gaussians removed when densification ends: those that training views see least of (capped).
    final_prune: float = 0.0
    #: Gaussians less opaque than this are removed or put to use elsewhere.
    prune_opacity: float = 0.005
    #: Image-plane gradient, in half images, above which a Gaussian is cloned or split (default strategy).
    grow_gradient: float = 2e-4
    #: Up to this share of the scene's extent a Gaussian is cloned, a larger one is split (default, taming).
    grow_scale: float = 0.01
    #: Learning rate of the positional noise (mcmc).
    noise: float = 5e5
    #: Training views scored at each event (taming); 0: no score, growth and pruning are drawn evenly.
    score_views: int = 10
    #: Opacities may pass 1 late in the run (taming): intended: and are optimised; released: frozen, as published.
    high_opacity: Literal["off", "intended", "released"] = "off"
    #: From this step on; by default from refine_stop on.
    high_opacity_start: int | None = None

    @property
    def most_at_start(self) -> int | None:
        """How many Gaussians a run may start with: the budget of the strategies that only grow to theirs."""
        return self.budget if self.name in ("capped", "mcmc") and self.budget_multiplier is None else None


@dataclass
class OutputConfig:
    """What a run writes besides metrics.json, config.yaml and the last checkpoint."""

    #: Evaluate on the test views every so many steps; 0: only at the end.
    eval_every: int = 0
    #: Padding of the SSIM that evaluation reports: same, valid, reflect or replicate.
    ssim_padding: Literal["same", "valid", "reflect", "replicate"] = "same"
    #: Test views written as render | truth | error at the end.
    images: int = 25
    ply: bool = True
    #: An orbit around the scene as MP4 at the end.
    video: bool = False
    video_frames: int = 120
    tensorboard: bool = False
    #: Show the progress bar.
    progress: bool = True


@dataclass
class Config:
    """Trains a Gaussian scene. Without arguments: the chair in assets/, written to results/chair_200/<time>."""

    #: A YAML file that states what differs from the defaults; the command line overrides it.
    config: Path | None = None
    #: Scene folder.
    data_dir: Path = Path("assets/chair_200")
    #: Where the run writes; by default results/<scene>/<time>.
    result_dir: Path | None = None
    #: l1, l2, ssim, fused_ssim or package.module:function.
    loss: str = "fused_ssim"
    #: Options of the loss, a YAML mapping.
    loss_kwargs: YamlMapping = field(default_factory=dict)
    #: Length of the run.
    steps: int = 6_500
    #: Multiplies the length and every schedule that is stated in steps.
    steps_scaler: float = 1.0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = 0
    #: A run folder: goes on from its last checkpoint, with its config.
    resume: Path | None = None
    #: Write a checkpoint every so many steps; 0: only at the end.
    checkpoint_every: int = 1000
    #: Print the mean milliseconds of each stage of a step.
    profile: bool = False
    #: Mean opacity times this is added to the loss.
    opacity_penalty: float = 0.0
    #: Mean scale times this is added to the loss.
    scale_penalty: float = 0.0
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    #: What kind of training this is; a YAML file says so.
    task: tyro.conf.Suppress[str] = "scene"

    def resolved(self) -> Config:
        """The config with every schedule a number of steps: steps_scaler applied, defaults filled in.

        Raises:
            ConfigError: A value is out of its range.
        """
        resolved = dataclasses.replace(
            self,
            **{
                name: dataclasses.replace(getattr(self, name))
                for name in ("data", "model", "optimizer", "strategy", "output")
            },
        )

        def scale(steps: int | None, default: int = 0) -> int:
            return default if steps is None else round(steps * self.steps_scaler)

        resolved.steps = scale(self.steps)
        resolved.steps_scaler = 1.0
        data, model, optimizer, strategy = resolved.data, resolved.model, resolved.optimizer, resolved.strategy
        if self.steps < 1 or resolved.steps < 1:
            raise ConfigError(
                f"steps times steps_scaler must be at least 1, got {self.steps} times {self.steps_scaler}"
            )
        tenth = max(1, resolved.steps // 10)
        data.coarse_stop = scale(data.coarse_stop, resolved.steps * 3 // 10)
        model.sh_degree_interval = max(1, scale(model.sh_degree_interval, tenth))
        optimizer.decay_start = scale(optimizer.decay_start, resolved.steps * 7 // 10)
        strategy.refine_start = scale(strategy.refine_start)
        strategy.refine_every = max(1, scale(strategy.refine_every))
        strategy.refine_stop = scale(strategy.refine_stop, resolved.steps * 6 // 10)
        strategy.reset_every = max(1, scale(strategy.reset_every, tenth))
        strategy.high_opacity_start = scale(strategy.high_opacity_start, strategy.refine_stop)
        for name, value, least in (
            ("data.coarse_factor", data.coarse_factor, 1),
            ("model.init_count", model.init_count, 1),
            ("strategy.budget", strategy.budget, 1),
            ("checkpoint_every", self.checkpoint_every, 0),
            ("output.eval_every", self.output.eval_every, 0),
            ("output.images", self.output.images, 0),
            ("optimizer.sh_every", optimizer.sh_every, 1),
            ("strategy.score_views", strategy.score_views, 0),
        ):
            if value < least:
                raise ConfigError(f"{name} must be at least {least}, got {value}")
        if strategy.budget_multiplier is not None and strategy.budget_multiplier <= 0:
            raise ConfigError(f"strategy.budget_multiplier must be positive, got {strategy.budget_multiplier}")
        if data.coarse_factor.bit_count() != 1:
            raise ConfigError(f"data.coarse_factor must be a power of 2, got {data.coarse_factor}")
        if not 0 <= strategy.final_prune < 1:
            raise ConfigError(f"strategy.final_prune must be in [0, 1), got {strategy.final_prune}")
        if not 0 <= model.sh_degree <= 3:
            raise ConfigError(f"model.sh_degree must be 0, 1, 2 or 3, got {model.sh_degree}")
        if not 0 < model.init_opacity < 1:
            raise ConfigError(f"model.init_opacity must be in (0, 1), got {model.init_opacity}")
        return resolved


def given(steps: int | None) -> int:
    """A schedule of a resolved config, in which none is left out.

    Raises:
        ConfigError: The config has not been resolved.
    """
    if steps is None:
        raise ConfigError("required a config with every schedule given (Config.resolved()), got one without")
    return steps


T = TypeVar("T")


def from_mapping(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """A dataclass from nested mappings that state only what differs from its defaults.

    Args:
        cls: The dataclass.
        values: Field name -> value; nested dataclasses are nested mappings.
        where: What the mapping is from, such as a file name, for messages.

    Raises:
        ConfigError: A key is no field, or a value is not of the field's type; the message names the key.
    """
    hints = typing.get_type_hints(cls)
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: required a mapping of {cls.__name__}, got {values!r}")
    arguments = {}
    for key, value in values.items():
        if key not in hints:
            raise ConfigError(f"{where}: unknown key {key!r}, required one of {', '.join(hints)}")
        arguments[key] = _convert(hints[key], value, f"{where}: {key}")
    return cls(**arguments)


def _convert(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type a field asks for, or a ConfigError."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return from_mapping(hint, value, where)
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in options:
            return None
        return _convert(next(option for option in options if option is not type(None)), value, where)
    if origin is Literal:
        if value not in options:
            raise ConfigError(f"{where}: required one of {', '.join(map(str, options))}, got {value!r}")
        return value
    if origin is dict and isinstance(value, Mapping):
        return dict(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    # YAML reads 5e5 as a string and 1 as an int.
    if hint is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(hint, type) and isinstance(value, hint) and isinstance(value, bool) == (hint is bool):
        return value
    raise ConfigError(f"{where}: required {getattr(hint, '__name__', hint)}, got {value!r}")


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: The file is missing, is no YAML, or holds no mapping.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as missing:
        raise ConfigError(f"{path}: required a YAML file, got {missing.strerror}") from None
    except yaml.YAMLError as broken:
        raise ConfigError(f"{path}: required YAML, got a syntax error: {broken}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: required a mapping, got {type(values).__name__}")
    return values


def write_yaml(path: Path, config: Any) -> None:
    """Writes a config dataclass whole and at once, so that `from_mapping` reads it back equal."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(yaml.safe_dump(_plain(dataclasses.asdict(config)), sort_keys=False))
    os.replace(temporary, path)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return str(value) if isinstance(value, Path) else value
