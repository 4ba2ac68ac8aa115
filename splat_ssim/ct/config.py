"""Options of reconstructing a volume from projections."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tyro

from ..trainer.config import OutputConfig, RunConfig, YamlMapping, check_ranges, without_meaning
from ..volume.config import VolumeFormat, fit_ranges


@dataclass
class CTDataConfig:
    """What is known besides the projections."""

    #: A volume file of the truth, on the voxels of geometry.json: the metrics compare with it.
    truth: Path | None = None
    #: Options of splat_ssim.volume.load_volume for the truth.
    read: YamlMapping = field(default_factory=dict)


@dataclass
class CTModelConfig:
    """The Gaussians and where they start."""

    #: fdk: where the filtered backprojection has edges and mass; random: anywhere in the volume, faint.
    start_from: Literal["fdk", "random"] = "fdk"
    #: Gaussians at the start: this share of the strategy's budget.
    start: float = 0.5
    #: Their standard deviation over their distance at the start.
    spread: float = 0.3
    #: No standard deviation falls below this many voxels.
    min_sigma: float = 0.45
    #: Densities are kept at 0 or more, and so is the volume: nothing emits X-rays.
    nonnegative: bool = True


@dataclass
class CTOptimizerConfig:
    """Adam's rates at the first step, which decay exponentially to `final` of it at the last."""

    #: In voxels.
    means: float = 0.2
    log_scales: float = 0.04
    quats: float = 0.04
    #: In units of the brightest voxels.
    densities: float = 0.02
    final: float = 0.05
    warmup: int = 10
    beta2: float = 0.99


@dataclass
class CTStrategyConfig:
    """Growth of the number of Gaussians."""

    #: residual: from model.start to the budget in rounds, where the backprojected residual is; none: the budget from
    #: the start.
    name: Literal["residual", "none"] = "residual"
    #: Largest number of Gaussians.
    budget: int = 50_000
    rounds: int = 5
    #: The last round is after this share of the steps.
    stop: float = 0.5
    #: Share of the Gaussians, those of least mass, that a round puts elsewhere (residual).
    recycle: float = 0.05
    #: Standard deviation of new Gaussians in voxels (residual).
    sigma: float = 1.2


@dataclass
class CTOutputConfig(OutputConfig):
    """What a run writes besides metrics.json, config.yaml and the last checkpoint."""

    #: The volume in the projections' unit, float32, as volume.<format>; "" for none.
    format: VolumeFormat = "nii.gz"
    ply: bool = True
    #: Slices of the volume (with truth and error if it is known) as pictures/slices.png, and of the projections.
    slices: bool = True


@dataclass
class CTConfig(RunConfig):
    """Reconstructs a volume from X-ray projections with Gaussians."""

    #: Folder with geometry.json and projections, as scripts/project.py writes it.
    data_dir: Path = Path("projections")
    #: Length of the run.
    steps: int = 4000
    task: tyro.conf.Suppress[str] = "ct"
    #: Views of a step, drawn in turn.
    views: int = 4
    #: Weight of the total variation of the volume, whose values are in units of the brightest voxels.
    tv: float = 0.015
    #: Total variation is of a random block of so many voxels a side; 0: of the whole volume.
    tv_block: int = 40
    data: CTDataConfig = field(default_factory=CTDataConfig)
    model: CTModelConfig = field(default_factory=CTModelConfig)
    optimizer: CTOptimizerConfig = field(default_factory=CTOptimizerConfig)
    strategy: CTStrategyConfig = field(default_factory=CTStrategyConfig)
    output: CTOutputConfig = field(default_factory=CTOutputConfig)

    def check(self) -> None:
        """Raises ConfigError for the first value that is out of its range."""
        super().check()
        optimizer = vars(self.optimizer)
        check_ranges(
            ("views", self.views, 1, None),
            ("tv", self.tv, 0, None),
            ("tv_block", self.tv_block, 0, None),
            *fit_ranges(self.model, self.optimizer, self.strategy),
            *(
                (f"optimizer.{name}", rate, 0, None)
                for name, rate in optimizer.items()
                if name not in ("final", "beta2")
            ),
        )

    def unused(self) -> dict[str, str]:
        """Options of growth where there is none, and of a truth that is not given."""
        unused: dict[str, str] = {}
        if self.data.truth is None:
            unused["data.read"] = "it says how data.truth is read, and there is none"
        if self.strategy.name == "none":
            unused |= without_meaning("strategy", self.strategy, ("budget",), "strategy none")
        return unused

    def settled(self) -> dict[str, str]:
        """Options that a resumed run keeps: dotted name -> what has been done with them already."""
        start = "it says where a fit starts"
        options: dict[str, Any] = dict.fromkeys(("model.start_from", "model.start", "model.spread"), start)
        return {**super().settled(), **options}

    def growth_end(self) -> int | None:
        """The step after which no Gaussians are added."""
        return round(self.steps * self.strategy.stop)
