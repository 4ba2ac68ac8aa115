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
    """Options of reading and scaling the volume."""

    #: Which intensities are fitted as 0 and 1. minmax: minimum and maximum. max: 0 and the maximum; negative values are
    #: cut off. window: low and high. percentile: the percentiles low and high. none: intensities are fitted as they
    #: are. auto: low and high if given, otherwise 0 and the maximum, or minimum and maximum if there are negative
    #: values.
    normalize: Literal["auto", "minmax", "max", "window", "percentile", "none"] = "auto"
    #: With normalize auto or window: the intensity that is fitted as 0. With percentile: the percentile of the
    #: intensities that is fitted as 0, 0.5 by default. Lower values are cut off.
    low: float | None = None
    #: With normalize auto or window: the intensity that is fitted as 1. With percentile: the percentile of the
    #: intensities that is fitted as 1, 99.5 by default. Higher values are cut off.
    high: float | None = None
    #: Options of splat_ssim.volume.load_volume, such as shape, dtype, spacing, key or nonfinite.
    read: YamlMapping = field(default_factory=dict)
    #: Volume file with the weight of each voxel in the loss, 0 or more.
    mask: Path | None = None


@dataclass
class VolumeModelConfig:
    """Options of the model that is fitted."""

    #: What is fitted: gaussians, or grid, a dense grid that is read by trilinear interpolation.
    name: Literal["gaussians", "grid"] = "gaussians"
    #: Number of Gaussians at the start, as a fraction of the strategy's budget.
    start: float = 0.5
    #: Initial standard deviation of a Gaussian, as a fraction of the distance between Gaussians.
    spread: float = 0.3
    #: Smallest standard deviation of a Gaussian along any of its axes, in voxels.
    min_sigma: float = 0.45
    #: Number of values in the grid. By default as many as a full budget of Gaussians has.
    grid_parameters: int | None = None
    #: The grid starts 2^grid_levels times coarser along each axis and is refined by 2 until it has its full size.
    grid_levels: int = 1


@dataclass
class VolumeOptimizerConfig:
    """Adam and its learning rates, which decay exponentially over the run."""

    #: Initial learning rate of positions, in voxels.
    means: float = 0.5
    #: Initial learning rate of the logarithms of the scales.
    log_scales: float = 0.1
    #: Initial learning rate of the quaternions.
    quats: float = 0.1
    #: Initial learning rate of the densities.
    densities: float = 0.05
    #: Initial learning rate of the features, the channels of a Gaussian beyond the first.
    features: float = 0.05
    #: Initial learning rate of the grid's values.
    nodes: float = 0.02
    #: Learning rates at the last step, as a fraction of those at the first.
    final: float = 0.05
    #: Number of steps over which the learning rates rise from 0 to their initial values.
    warmup: int = 10
    #: Decay of Adam's second moment.
    beta2: float = 0.95


#: Options of `VolumeOptimizerConfig` that are learning rates; 0 keeps a parameter as it starts.
LEARNING_RATES = ("means", "log_scales", "quats", "densities", "features", "nodes")


@dataclass
class VolumeStrategyConfig:
    """Growth of the number of Gaussians."""

    #: How the number of Gaussians grows. residual: in rounds, from model.start to the budget, where the residual is
    #: largest. none: the whole budget is there from the start. capped, default (gsplat's), mcmc: as in training a
    #: scene, by volumetric gradients.
    name: str = "residual"
    #: Largest number of Gaussians.
    budget: int = 50_000
    #: Number of rounds of growth.
    rounds: int = 8
    #: The last round comes after this fraction of the steps.
    stop: float = 0.4
    #: Fraction of the Gaussians, those of least mass, that a round moves elsewhere (residual).
    recycle: float = 0.05
    #: Standard deviation of new Gaussians, in voxels (residual). Gaussians up to this size are cloned, larger ones are
    #: split (default).
    sigma: float = 1.2
    #: Gaussians with a smaller absolute density are removed or recycled (capped, default, mcmc).
    prune_density: float = 0.005
    #: A Gaussian is cloned or split only if the gradient of the loss with respect to its position is larger than this
    #: (default). The loss is summed over voxels, and positions are in voxels.
    grow_gradient: float = 0.0
    #: Strength of the positional noise of Gaussians of almost no density (mcmc). The noise of a Gaussian is a normal
    #: random vector times its covariance, the learning rate of positions and this number.
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
    """Files that a run writes besides metrics.json, config.yaml and the last checkpoint."""

    #: Format of the fitted volume, written as volume.<format> in the source's intensities and in float32, or in float64
    #: if float32 has too few digits for them (such as 10,000.0 to 10,000.1). "" writes none.
    format: VolumeFormat = "nii.gz"
    #: Write the Gaussians as PLY.
    ply: bool = True
    #: Write the Gaussians in about 11 bytes each (for one channel), and report what that costs in PSNR and SSIM.
    quantized: bool = True
    #: Write slices of fit, volume and error as pictures/slices.png.
    slices: bool = True
    #: Write a turning maximum-intensity projection as pictures/mip.mp4.
    video: bool = True
    #: Write a page about the run, report.html, at the end, with slices across each axis.
    report: bool = True


@dataclass
class VolumeConfig(RunConfig):
    """Fits Gaussians or a grid to a volume. By default the volume is the brain MRI in assets/."""

    #: Volume file: NIfTI, NRRD, MetaImage, TIFF, MRC, HDF5, zarr, npy, npz or raw; or a folder of DICOM or TIFF slices.
    data_dir: Path = Path("assets/brain_mri/T1.nii.gz")
    #: Number of training steps.
    steps: int = 4000
    task: tyro.conf.Suppress[str] = "volume"
    #: End the run once psnr3d in dB (with a mask psnr3d_masked) reaches this, checked every 50 steps. By default the
    #: run has its full length.
    target_psnr: float | None = None
    #: Every n-th step uses the full loss, where n is this number; the others use plain L1. 1 always uses the full loss.
    loss_every: int = 1
    #: Weight of the total variation of the fit in the loss.
    tv: float = 0.0
    #: Edge in voxels of the random crop that a step fits, without the border that the SSIM window needs. 0 fits the
    #: whole volume in every step.
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
