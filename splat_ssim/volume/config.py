"""Options of fitting a volume, and which of them each strategy has."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tyro

from ..trainer.config import OutputConfig, RunConfig, YamlMapping, check_ranges, without_meaning

#: How a run may write its volume, "" for not at all.
VolumeFormat = Literal["", "npy", "npz", "raw", "nii.gz", "tif", "nrrd", "mha", "h5", "zarr"]


@dataclass
class VolumeDataConfig:
    """How the volume is read and scaled."""

    #: What becomes 0 and 1. auto: 0 and the maximum, or minimum and maximum if there are negative values, or low and
    #: high if given; minmax: minimum and maximum; max: 0 and the maximum, negative values are cut off; window,
    #: percentile: low and high; none: the values are fitted as they are.
    normalize: Literal["auto", "minmax", "max", "window", "percentile", "none"] = "auto"
    #: Intensities (auto, window) or percent (percentile, 0.5 and 99.5 by default) that become 0 and 1; values outside
    #: are cut off.
    low: float | None = None
    high: float | None = None
    #: Options of splat_ssim.volume.load_volume, such as shape, dtype, spacing, key, nonfinite.
    read: YamlMapping = field(default_factory=dict)
    #: A volume file of weights: the loss counts voxels by them.
    mask: Path | None = None


@dataclass
class VolumeModelConfig:
    """What is fitted."""

    #: gaussians, or grid: a dense voxel grid read trilinearly.
    name: Literal["gaussians", "grid"] = "gaussians"
    #: Gaussians at the start: this share of the strategy's budget.
    start: float = 0.5
    #: Their standard deviation over their distance at the start.
    spread: float = 0.3
    #: No standard deviation falls below this many voxels, counted along its own direction.
    min_sigma: float = 0.45
    #: Numbers in the grid; by default as many as the budget of Gaussians would have.
    grid_parameters: int | None = None
    #: The grid starts with nodes 2^levels times sparser and doubles them on the way.
    grid_levels: int = 1


@dataclass
class VolumeOptimizerConfig:
    """Adam's rates at the first step, which decay exponentially to `final` of it at the last."""

    #: In voxels.
    means: float = 0.5
    log_scales: float = 0.1
    quats: float = 0.1
    densities: float = 0.05
    features: float = 0.05
    #: Of the grid's values.
    nodes: float = 0.02
    final: float = 0.05
    warmup: int = 10
    beta2: float = 0.95


#: Options of `VolumeOptimizerConfig` that are learning rates; 0 keeps a parameter as it starts.
LEARNING_RATES = ("means", "log_scales", "quats", "densities", "features", "nodes")


@dataclass
class VolumeStrategyConfig:
    """Growth of the number of Gaussians."""

    #: residual: from model.start to the budget in rounds, where the residual is; none: the budget from the start;
    #: capped, default (gsplat's), mcmc: the trainer's strategies by volumetric gradients.
    name: str = "residual"
    #: Largest number of Gaussians.
    budget: int = 50_000
    rounds: int = 8
    #: The last round is after this share of the steps.
    stop: float = 0.4
    #: Share of the Gaussians, those of least mass, that a round puts elsewhere (residual).
    recycle: float = 0.05
    #: Standard deviation of new Gaussians in voxels (residual); up to it they are cloned, above it split (default).
    sigma: float = 1.2
    #: Gaussians of a smaller |density| are removed or put to use elsewhere (capped, default, mcmc).
    prune_density: float = 0.005
    #: Gradient of the loss, summed over the voxels, by a mean in voxels, below which no Gaussian grows (default).
    grow_gradient: float = 0.0
    #: Positional noise of Gaussians of next to no density, in their own variance times their learning rate (mcmc).
    noise: float = 1.0


#: Options of `VolumeStrategyConfig` that each strategy has. A grid takes its size from the budget.
STRATEGY_OPTIONS = {
    "residual": ("budget", "rounds", "stop", "recycle", "sigma"),
    "none": ("budget",),
    "capped": ("budget", "rounds", "stop", "prune_density"),
    "default": ("budget", "rounds", "stop", "sigma", "prune_density", "grow_gradient"),
    "mcmc": ("budget", "rounds", "stop", "prune_density", "noise"),
}


def fit_ranges(model: Any, optimizer: Any, strategy: Any) -> list[tuple[str, float, float, float | None]]:
    """Rows of `check_ranges` for the options that every fit of Gaussians to a volume has."""
    return [
        ("model.start", model.start, 1e-6, 1),
        ("model.spread", model.spread, 1e-6, None),
        ("model.min_sigma", model.min_sigma, 0.05, None),
        ("optimizer.final", optimizer.final, 1e-6, 1),
        ("optimizer.beta2", optimizer.beta2, 0, 1 - 1e-9),
        ("strategy.budget", strategy.budget, 1, None),
        ("strategy.rounds", strategy.rounds, 1, None),
        ("strategy.stop", strategy.stop, 0, 1),
        ("strategy.recycle", strategy.recycle, 0, 0.9),
        ("strategy.sigma", strategy.sigma, 0.05, None),
    ]


@dataclass
class VolumeOutputConfig(OutputConfig):
    """What a run writes besides metrics.json, config.yaml and the last checkpoint."""

    #: The fitted field in the source's intensities, float32, as volume.<format> whatever the source's format; "" for
    #: none.
    format: VolumeFormat = "nii.gz"
    ply: bool = True
    #: The Gaussians in some 15 bytes each, and what that costs in PSNR and SSIM.
    quantized: bool = True
    #: Slices of field, volume and error as pictures/slices.png.
    slices: bool = True
    #: A turning maximum-intensity projection as pictures/mip.mp4.
    video: bool = True
    #: A page about the run at the end, report.html, with slices across each axis.
    report: bool = True


@dataclass
class VolumeConfig(RunConfig):
    """Fits Gaussians or a grid to a volume. Without arguments: the brain MRI in assets/."""

    #: Volume file: NIfTI, NRRD, MetaImage, TIFF, MRC, HDF5, zarr, npy, npz or raw, or a folder of DICOM or TIFF slices.
    data_dir: Path = Path("assets/brain_mri/T1.nii.gz")
    #: Length of the run.
    steps: int = 4000
    task: tyro.conf.Suppress[str] = "volume"
    #: Ends the run once psnr3d (psnr3d_masked with a mask) is this high, looked at every 50 steps.
    target_psnr: float | None = None
    #: The loss is taken on every so many steps, plain L1 on the others.
    loss_every: int = 1
    #: Weight of the total variation of the field.
    tv: float = 0.0
    #: Steps see a random crop of so many voxels a side, with the halo SSIM needs; 0: the whole volume.
    crop: int = 0
    data: VolumeDataConfig = field(default_factory=VolumeDataConfig)
    model: VolumeModelConfig = field(default_factory=VolumeModelConfig)
    optimizer: VolumeOptimizerConfig = field(default_factory=VolumeOptimizerConfig)
    strategy: VolumeStrategyConfig = field(default_factory=VolumeStrategyConfig)
    output: VolumeOutputConfig = field(default_factory=VolumeOutputConfig)

    def check(self) -> None:
        """Raises ConfigError for the first value that is out of its range."""
        super().check()
        check_ranges(
            ("loss_every", self.loss_every, 1, None),
            ("crop", self.crop, 0, None),
            *((("target_psnr", self.target_psnr, 0, None),) if self.target_psnr is not None else ()),
            ("tv", self.tv, 0, None),
            *fit_ranges(self.model, self.optimizer, self.strategy),
            ("model.grid_levels", self.model.grid_levels, 0, 8),
            *((f"optimizer.{name}", getattr(self.optimizer, name), 0, None) for name in LEARNING_RATES),
            ("strategy.prune_density", self.strategy.prune_density, 0, 1),
            ("strategy.grow_gradient", self.strategy.grow_gradient, 0, None),
            ("strategy.noise", self.strategy.noise, 0, None),
        )

    def unused(self) -> dict[str, str]:
        """Options of other strategies than the chosen one, of all strategies for a grid, and bounds of no window."""
        unused = {}
        if self.data.normalize in ("max", "minmax", "none"):
            why = f"normalize {self.data.normalize} takes no bounds, only auto, window and percentile do"
            unused = {f"data.{name}": why for name in ("low", "high") if getattr(self.data, name) is not None}
        if self.model.name == "grid":
            return unused | without_meaning("strategy", self.strategy, ("budget",), "a grid", always=())
        options = STRATEGY_OPTIONS.get(self.strategy.name)
        if options is None:
            return unused
        return unused | without_meaning("strategy", self.strategy, options, f"strategy {self.strategy.name}")

    def settled(self) -> dict[str, str]:
        """Options that a resumed run keeps: dotted name -> what has been done with them already."""
        start, values = "it says where a fit starts", "the model has the volume's values as they were scaled by it"
        settled = {
            **super().settled(),
            "model.name": "the model is of that kind",
            **dict.fromkeys(("model.start", "model.spread"), start),
            **dict.fromkeys(("data.normalize", "data.low", "data.high", "data.read"), values),
            "strategy.name": "a strategy goes on from its own state",
        }
        if self.model.name == "grid":
            size = "the grid was made by it"
            settled |= dict.fromkeys(("strategy.budget", "model.grid_parameters", "model.grid_levels"), size)
        return settled

    def growth_end(self) -> int | None:
        """The step after which no Gaussians are added."""
        return None if self.model.name == "grid" else round(self.steps * self.strategy.stop)
