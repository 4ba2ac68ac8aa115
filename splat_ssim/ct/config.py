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
    """Data besides the projections."""

    #: Volume file with the true volume, on the voxels of geometry.json, that the metrics compare with. By default it is
    #: unknown.
    truth: Path | None = None
    #: Options of splat_ssim.volume.load_volume for the truth.
    read: YamlMapping = field(default_factory=dict)


@dataclass
class CTModelConfig:
    """The Gaussians and where they start."""

    #: Where the Gaussians start. fdk: where the filtered backprojection has edges and mass. random: anywhere in the
    #: volume, with small densities.
    start_from: Literal["fdk", "random"] = "fdk"
    #: Number of Gaussians at the start, as a fraction of the strategy's budget.
    start: float = 0.5
    #: Initial standard deviation of a Gaussian, as a fraction of the distance between Gaussians.
    spread: float = 0.3
    #: Smallest standard deviation of a Gaussian, in voxels.
    min_sigma: float = 0.45
    #: Keep densities, and the volume, at 0 or more: matter absorbs X-rays and emits none.
    nonnegative: bool = True


@dataclass
class CTOptimizerConfig:
    """Adam and its learning rates, which decay exponentially over the run."""

    #: Initial learning rate of positions, in voxels.
    means: float = 0.2
    #: Initial learning rate of the logarithms of the scales.
    log_scales: float = 0.04
    #: Initial learning rate of the quaternions.
    quats: float = 0.04
    #: Initial learning rate of the densities, relative to the largest values of the filtered backprojection.
    densities: float = 0.02
    #: Learning rates at the last step, as a fraction of those at the first.
    final: float = 0.05
    #: Number of steps over which the learning rates rise from 0 to their initial values.
    warmup: int = 10
    #: Decay of Adam's second moment.
    beta2: float = 0.99


@dataclass
class CTStrategyConfig:
    """Growth of the number of Gaussians."""

    #: How the number of Gaussians grows. residual: in rounds, from model.start to the budget, where the backprojected
    #: residual is largest. none: the whole budget is there from the start.
    name: Literal["residual", "none"] = "residual"
    #: Largest number of Gaussians.
    budget: int = 50_000
    #: Number of rounds of growth.
    rounds: int = 5
    #: The last round comes after this fraction of the steps.
    stop: float = 0.5
    #: Fraction of the Gaussians, those of least mass, that a round moves elsewhere (residual).
    recycle: float = 0.05
    #: Standard deviation of new Gaussians, in voxels (residual).
    sigma: float = 1.2


@dataclass
class CTOutputConfig(OutputConfig):
    """Files that a run writes besides metrics.json, config.yaml and the last checkpoint."""

    #: Format of the volume, written as volume.<format> in float32 and in the projections' unit. "" writes none.
    format: VolumeFormat = "nii.gz"
    #: Write the Gaussians as PLY.
    ply: bool = True
    #: Write slices of the volume (with truth and error, if the truth is known) as pictures/slices.png, and the
    #: projections.
    slices: bool = True


@dataclass
class CTConfig(RunConfig):
    """Reconstructs a volume from X-ray projections with Gaussians."""

    #: Folder with geometry.json and the projections, as scripts/project.py writes it.
    data_dir: Path = Path("projections")
    #: Number of training steps.
    steps: int = 4000
    task: tyro.conf.Suppress[str] = "ct"
    #: Number of projections in a step. All are used in turn, in random order.
    views: int = 4
    #: Weight of the total variation of the volume in the loss, with values relative to the largest ones of the filtered
    #: backprojection.
    tv: float = 0.015
    #: Edge in voxels of the random block whose total variation enters the loss of a step. With 0, the whole volume
    #: does.
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
