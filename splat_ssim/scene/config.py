"""Options of training a scene."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import tyro

from splat_ssim.scene.options import (
    EXPOSURE_OPTIONS,
    LEARNING_RATES,
    STRATEGY_OPTIONS,
    DataConfig,
    DepthConfig,
    ExposureConfig,
    ModelConfig,
    OptimizerConfig,
    PoseConfig,
    SceneOutputConfig,
    StrategyConfig,
)
from splat_ssim.trainer.config import ConfigError, RunConfig, check_ranges, given, without_meaning


@dataclass
class SceneConfig(RunConfig):
    """Trains a Gaussian scene. By default the scene is the chair in assets/, written to results/chair_200/<time>."""

    #: Scene folder.
    data_dir: Path = Path("assets/chair_200")
    #: Number of training steps.
    steps: int = 6_500
    task: tyro.conf.Suppress[str] = "scene"
    #: Defaults that suit a kind of data. object: a single object without a background. photos: photographs of a whole
    #: scene. auto: chosen by the data, or none if a config file names no preset. Config files and the command line
    #: override them.
    preset: Literal["auto", "object", "photos", "none"] = "auto"
    #: Quality of the preset: how long it trains, and with how many Gaussians.
    quality: Literal["fast", "default", "quality"] = "default"
    #: Number of training views in a step; the loss is their mean. Learning rates grow by its square root, as in
    #: gsplat's trainer.
    batch_size: int = 1
    #: With several processes (torchrun): divide the Gaussians among them, as in gsplat's distributed mode. By default
    #: every process holds all Gaussians.
    sharded: bool = False
    #: Weight of the mean opacity in the loss.
    opacity_penalty: float = 0.0
    #: Weight of the mean scale in the loss.
    scale_penalty: float = 0.0
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    exposure: ExposureConfig = field(default_factory=ExposureConfig)
    poses: PoseConfig = field(default_factory=PoseConfig)
    depth: DepthConfig = field(default_factory=DepthConfig)
    output: SceneOutputConfig = field(default_factory=SceneOutputConfig)

    #: Options of the command line that choose the preset.
    asks: ClassVar[Sequence[str]] = ("data_dir", "data.format", "preset", "quality")

    @classmethod
    def beneath(cls, values: Mapping[str, Any], asked: Mapping[str, str]) -> dict[str, Any]:
        """The values of the preset that is asked for, or that suits the data."""
        # Not at the top: presets look at data.
        from splat_ssim.scene.data import SceneError
        from splat_ssim.scene.presets import KINDS, QUALITIES, preset_values

        data = values.get("data")
        of_data = {f"data.{name}": value for name, value in data.items()} if isinstance(data, Mapping) else {}
        given = {name: value for name, value in {**values, **of_data, **asked}.items() if name in cls.asks}
        if values and not {"preset", "quality"} & given.keys():
            return {"preset": "none"}
        folder = Path(str(given.get("data_dir", cls.data_dir)))
        kind, quality = given.get("preset", "auto"), given.get("quality", "default")
        if kind not in ("auto", "none", *KINDS) or quality not in QUALITIES:
            return {}  # the check of these options will report it, and name the file if it is from one
        try:
            return preset_values(kind, quality, folder, str(given.get("data.format", "auto")))
        except SceneError:
            return {}  # reading the folder will report what is wrong with it

    def fill_in(self) -> None:
        """Makes every schedule a number of steps."""
        model, optimizer, strategy = self.model, self.optimizer, self.strategy
        steps, tenth, scaled = self.steps, max(1, self.steps // 10), self.scaled
        self.data.coarse_stop = scaled(self.data.coarse_stop, steps * 3 // 10)
        # Gaussians that have been trained have all their harmonics from the start.
        model.sh_degree_interval = max(1, scaled(model.sh_degree_interval, 1 if model.init == "ply" else tenth))
        optimizer.decay_start = scaled(optimizer.decay_start, steps * 7 // 10)
        self.poses.start = scaled(self.poses.start, steps // 20)
        self.exposure.start = scaled(self.exposure.start, tenth if steps > 1 else 0)
        if strategy.grow_gradient is None:
            strategy.grow_gradient = 8e-4 if strategy.absgrad else 2e-4
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
            ("strategy.grow_gradient", strategy.grow_gradient or 0, 0, None),
            ("batch_size", self.batch_size, 1, None),
            ("exposure.rate", self.exposure.rate or 0, 0, None),
            ("exposure.smoothness", self.exposure.smoothness, 0, None),
            *((f"exposure.grid[{axis}]", cells, 2, 256) for axis, cells in enumerate(self.exposure.grid)),
            ("poses.rate", self.poses.rate or 0, 0, None),
            ("poses.start", given(self.poses.start), 0, None),
            ("exposure.start", given(self.exposure.start), 0, None),
            ("depth.weight", self.depth.weight, 0, None),
            ("data.near", data.near or 0, 0, None),
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
        self._check_space()
        if (model.init == "ply") != (model.init_ply is not None):
            raise ConfigError(
                f"model.init_ply requires model.init ply, and the reverse, got {model.init} and {model.init_ply}"
            )
        if self.depth.unit <= 0:
            raise ConfigError(f"depth.unit must be positive, got {self.depth.unit}")
        if not 0 < model.init_opacity < 1:
            raise ConfigError(f"model.init_opacity must be in (0, 1), got {model.init_opacity}")

    def _check_space(self) -> None:
        """Raises ConfigError where near, far or the box leave no room for Gaussians."""
        near, far, box = self.data.near, self.data.far, self.data.box
        if far is not None and far <= (near or 0):
            raise ConfigError(f"data.far must be greater than data.near {near or 0}, got {far}")
        if box is not None and not all(low < high for low, high in zip(box[:3], box[3:], strict=True)):
            raise ConfigError(
                f"data.box must be the low corner x y z, then the high one, got {' '.join(map(str, box))}"
            )

    def loss_options(self) -> dict[str, Any]:
        """The options of the loss, with the meaning of masks where it is not the loss's own."""
        mode = {} if self.data.mask_mode == "weight" else {"mask_mode": self.data.mask_mode}
        return {**mode, **self.loss_kwargs}

    def unused(self) -> dict[str, str]:
        """Options of other strategies and kinds of exposure than the chosen one."""
        options = STRATEGY_OPTIONS.get(self.strategy.name)
        exposure, poses = self.exposure, self.poses
        unused = without_meaning("exposure", exposure, EXPOSURE_OPTIONS[exposure.name], f"exposure {exposure.name}")
        if options is not None:
            unused |= without_meaning("strategy", self.strategy, options, f"strategy {self.strategy.name}")
        if not poses.refine:
            unused |= {f"poses.{name}": "it says how poses are refined (--poses.refine)" for name in ("rate", "start")}
        if self.depth.weight == 0:
            unused["depth.unit"] = "depths are not read (--depth.weight)"
        return unused

    def settled(self) -> dict[str, str]:
        """Options that a resumed run keeps: dotted name -> what has been done with them already."""
        start = "it says where a run starts"
        settled = {
            **super().settled(),
            "data.test_every": "the run has been trained on the other views",
            "model.sh_degree": "the Gaussians have the coefficients of that degree",
            **dict.fromkeys(
                ("model.init", "model.init_ply", "model.init_count", "model.init_box", "model.init_opacity"), start
            ),
            "exposure.name": "the images have exposures of that kind",
            "exposure.grid": "the images have grids of that size",
            "poses.refine": "the cameras have been trained so",
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
    """The factor by which the training images of a step are reduced: coarse_factor at first, 1 from coarse_stop on."""
    stop, halvings = given(config.coarse_stop), config.coarse_factor.bit_length() - 1
    return 1 if step >= stop else config.coarse_factor >> (step * halvings // stop)
