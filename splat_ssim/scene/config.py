"""Options of training a scene, and which of them each strategy has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import tyro

from splat_ssim.trainer.config import ConfigError, OutputConfig, RunConfig, check_ranges, given, without_meaning


@dataclass
class DataConfig:
    """How the scene is read."""

    #: auto, blender, colmap or nerfstudio.
    format: str = "auto"
    #: Images at 1/factor of their size, from images_{factor} where there is one.
    factor: int = 1
    #: Without a split in the files, every such view by file name is a test view; 0: all views train.
    test_every: int = 8
    #: Behind images with an alpha channel.
    background: Literal["white", "black"] = "white"
    #: Folder of decoded images, where they take more than half of the free memory; by default .cache in the scene's.
    cache: Path | None = None
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
    #: Half the edge of the cube, about what the cameras look at, of a random start; by default the format's box.
    init_box: float | None = None
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
    #: Initial learning rate of positions, in units of the scene's extent; 0: they stay where they start.
    means: float = 5e-4
    #: Final learning rate of positions, in the same units.
    means_final: float = 5e-6
    scales: float = 5e-3
    quats: float = 1e-3
    opacities: float = 2.5e-2
    sh0: float = 2.5e-3
    shN: float = 1.25e-4
    #: From this step on the rates other than the positions' decay log-linearly; by default at 0.7 of the run.
    decay_start: int | None = None
    #: Final learning rate of these as a fraction of the initial one.
    final_factor: float = 0.1


#: Options of `OptimizerConfig` that are learning rates; 0 keeps a parameter as it starts.
LEARNING_RATES = ("means", "means_final", "scales", "quats", "opacities", "sh0", "shN")


@dataclass
class StrategyConfig:
    """Densification. An option that the chosen strategy lacks is refused, see STRATEGY_OPTIONS."""

    #: capped, default (gsplat's), mcmc or taming.
    name: str = "capped"
    #: Largest number of Gaussians (capped, mcmc, taming).
    budget: int = 30_000
    #: Where given, the budget is this multiple of the Gaussians at the start.
    budget_multiplier: float | None = None
    #: Densification happens after refine_start, every refine_every steps, before refine_stop (default 0.6 of the run).
    refine_start: int = 100
    refine_every: int = 100
    refine_stop: int | None = None
    #: Opacities are reset every so many steps (default strategy); by default a tenth of the run.
    reset_every: int | None = None
    #: Share of the Gaussians added at most at each event (capped); by default 0.05, or more where only that reaches the
    #: budget before refine_stop, up to 0.5.
    growth: float | None = None
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


#: Options of `StrategyConfig` that each strategy has -> their names in its class, see `scene.strategies`.
_EVENTS = {"refine_start": "refine_start_iter", "refine_stop": "refine_stop_iter", "refine_every": "refine_every"}
_BUDGET = {"budget": "budget", "budget_multiplier": None}
STRATEGY_OPTIONS: dict[str, dict[str, str | None]] = {
    "capped": {
        **_BUDGET,
        **_EVENTS,
        "growth": "growth",
        "final_prune": "final_prune",
        "score_views": "num_views",
        "prune_opacity": "prune_opa",
    },
    "default": {
        **_EVENTS,
        "prune_opacity": "prune_opa",
        "grow_gradient": "grow_grad2d",
        "grow_scale": "grow_scale3d",
        "reset_every": "reset_every",
    },
    "mcmc": {
        **_BUDGET,
        "budget": "cap_max",
        **_EVENTS,
        "noise": "noise_lr",
        "prune_opacity": "min_opacity",
    },
    "taming": {
        **_BUDGET,
        **_EVENTS,
        "grow_gradient": "grow_grad2d",
        "grow_scale": "grow_scale3d",
        "prune_opacity": "prune_opa",
        "reset_every": "reset_every",
        "score_views": "num_views",
        "high_opacity": "high_opacity",
        "high_opacity_start": "high_opacity_start",
    },
}


@dataclass
class SceneOutputConfig(OutputConfig):
    """What a run writes besides metrics.json, config.yaml and the last checkpoint."""

    #: Padding of the SSIM that evaluation reports: same, valid, reflect or replicate.
    ssim_padding: Literal["same", "valid", "reflect", "replicate"] = "same"
    #: Test views written as render | truth | error at the end.
    images: int = 25
    #: The Gaussians as scene.ply, which splat viewers open.
    ply: bool = True
    #: An orbit around the scene as MP4 at the end.
    video: bool = False
    video_frames: int = 120


@dataclass
class SceneConfig(RunConfig):
    """Trains a Gaussian scene. Without arguments: the chair in assets/, written to results/chair_200/<time>."""

    #: Scene folder.
    data_dir: Path = Path("assets/chair_200")
    #: Length of the run.
    steps: int = 6_500
    task: tyro.conf.Suppress[str] = "scene"
    #: What suits the data, below what a config file and the command line say: object is one thing in front of nothing,
    #: photos what a camera saw, whole; auto goes by what is there, but is none where a config file names no preset.
    preset: Literal["auto", "object", "photos", "none"] = "auto"
    #: Of the preset: how long it trains, and with how many Gaussians.
    quality: Literal["fast", "default", "quality"] = "default"
    #: Mean opacity times this is added to the loss.
    opacity_penalty: float = 0.0
    #: Mean scale times this is added to the loss.
    scale_penalty: float = 0.0
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    output: SceneOutputConfig = field(default_factory=SceneOutputConfig)

    #: Options of the command line that choose the preset.
    asks: ClassVar = ("data_dir", "data.format", "preset", "quality")

    @classmethod
    def beneath(cls, values: Mapping[str, Any], asked: Mapping[str, str]) -> dict[str, Any]:
        """The values of the preset that is asked for, or that suits the data."""
        # Not at the top: presets look at data.
        from splat_ssim.scene.data import SceneError
        from splat_ssim.scene.presets import preset_values

        data = values.get("data")
        of_data = {f"data.{name}": value for name, value in data.items()} if isinstance(data, Mapping) else {}
        given = {name: value for name, value in {**values, **of_data, **asked}.items() if name in cls.asks}
        if values and not {"preset", "quality"} & given.keys():
            return {"preset": "none"}
        folder = Path(str(given.get("data_dir", cls.data_dir)))
        kind, quality = str(given.get("preset", "auto")), str(given.get("quality", "default"))
        try:
            return preset_values(kind, quality, folder, str(given.get("data.format", "auto")))
        except SceneError:
            return {}  # what is wrong with the folder is said where it is read

    def fill_in(self) -> None:
        """Makes every schedule a number of steps."""
        model, optimizer, strategy = self.model, self.optimizer, self.strategy
        steps, tenth, scaled = self.steps, max(1, self.steps // 10), self.scaled
        self.data.coarse_stop = scaled(self.data.coarse_stop, steps * 3 // 10)
        model.sh_degree_interval = max(1, scaled(model.sh_degree_interval, tenth))
        optimizer.decay_start = scaled(optimizer.decay_start, steps * 7 // 10)
        strategy.refine_start = scaled(strategy.refine_start)
        strategy.refine_every = max(1, scaled(strategy.refine_every))
        strategy.refine_stop = scaled(strategy.refine_stop, steps * 6 // 10)
        strategy.reset_every = max(1, scaled(strategy.reset_every, tenth))
        strategy.high_opacity_start = scaled(strategy.high_opacity_start, strategy.refine_stop)

    def check(self) -> None:
        """Raises ConfigError for the first value that is out of its range."""
        super().check()
        data, model, strategy = self.data, self.model, self.strategy
        check_ranges(
            ("data.factor", data.factor, 1, None),
            ("data.test_every", data.test_every, 0, None),
            ("data.coarse_factor", data.coarse_factor, 1, None),
            ("model.init_count", model.init_count, 1, None),
            ("strategy.budget", strategy.budget, 1, None),
            ("output.images", self.output.images, 0, None),
            ("optimizer.sh_every", self.optimizer.sh_every, 1, None),
            ("strategy.score_views", strategy.score_views, 0, None),
            ("strategy.refine_start", strategy.refine_start, 0, None),
            ("strategy.growth", strategy.growth or 0, 0, None),
            ("strategy.grow_gradient", strategy.grow_gradient, 0, None),
            ("strategy.grow_scale", strategy.grow_scale, 0, None),
            ("strategy.noise", strategy.noise, 0, None),
            ("output.video_frames", self.output.video_frames, 1, None),
            ("opacity_penalty", self.opacity_penalty, -1e9, 1e9),  # negative ones reward
            ("scale_penalty", self.scale_penalty, -1e9, 1e9),
            ("optimizer.final_factor", self.optimizer.final_factor, 0, None),
            *((f"optimizer.{name}", getattr(self.optimizer, name), 0, None) for name in LEARNING_RATES),
        )
        # gsplat's strategy resets opacities to twice this.
        most = 0.5 if strategy.name == "default" else 1.0
        if not 0 <= strategy.prune_opacity < most:
            raise ConfigError(f"strategy.prune_opacity must be in [0, {most:g}), got {strategy.prune_opacity}")
        if strategy.budget_multiplier is not None and strategy.budget_multiplier <= 0:
            raise ConfigError(f"strategy.budget_multiplier must be positive, got {strategy.budget_multiplier}")
        if data.coarse_factor.bit_count() != 1:
            raise ConfigError(f"data.coarse_factor must be a power of 2, got {data.coarse_factor}")
        if not 0 <= strategy.final_prune < 1:
            raise ConfigError(f"strategy.final_prune must be in [0, 1), got {strategy.final_prune}")
        if not 0 <= model.sh_degree <= 3:
            raise ConfigError(f"model.sh_degree must be 0, 1, 2 or 3, got {model.sh_degree}")
        if model.init_box is not None and model.init_box <= 0:
            raise ConfigError(f"model.init_box must be positive, got {model.init_box}")
        if not 0 < model.init_opacity < 1:
            raise ConfigError(f"model.init_opacity must be in (0, 1), got {model.init_opacity}")

    def unused(self) -> dict[str, str]:
        """Options of other strategies than the chosen one."""
        options = STRATEGY_OPTIONS.get(self.strategy.name)
        if options is None:
            return {}
        return without_meaning("strategy", self.strategy, options, f"strategy {self.strategy.name}")

    def settled(self) -> dict[str, str]:
        """Options that a resumed run keeps: dotted name -> what has been done with them already."""
        start = "it says where a run starts"
        settled = {
            **super().settled(),
            "data.test_every": "the run has been trained on the other views",
            "model.sh_degree": "the Gaussians have the coefficients of that degree",
            **dict.fromkeys(("model.init", "model.init_count", "model.init_box", "model.init_opacity"), start),
            "strategy.name": "a strategy goes on from its own state",
        }
        if self.strategy.name == "taming":
            curve = "the budget curve was made from it at the start"
            options = ("budget", "budget_multiplier", "refine_start", "refine_every", "refine_stop")
            settled |= {f"strategy.{name}": curve for name in options}
        return settled

    def growth_end(self) -> int | None:
        """The step after which no Gaussians are added."""
        return self.strategy.refine_stop


def coarseness(config: DataConfig, step: int) -> int:
    """By what the training images of a step are reduced: coarse_factor at first, 1 from coarse_stop on."""
    stop, halvings = given(config.coarse_stop), config.coarse_factor.bit_length() - 1
    return 1 if step >= stop else config.coarse_factor >> (step * halvings // stop)
