"""Fitting 2D Gaussians to one image: another kind of training, in one file.

The picture is a sum of coloured Gaussians, R, G, B(x) = Σ_i c_i exp(-½ (x - mu_i)ᵀ Sigma_i⁻¹ (x - mu_i)), drawn by
the voxeliser on a grid of one slice. A colour c_i is an amplitude and may be negative. The voxeliser multiplies
features by density. Here every density is fixed at 1, so the features are the colours, and their gradients do not
vanish where a density is small. Gaussians start at edges, and new ones appear where the residual is large.

    python scripts/train.py --config configs/image.yaml --data-dir photo.png
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from splat_ssim.errors import UserError, user_errors
from splat_ssim.functional import ssim
from splat_ssim.registry import get_loss
from splat_ssim.trainer.checkpoint import fingerprint
from splat_ssim.trainer.config import OutputConfig, RunConfig, check_ranges
from splat_ssim.trainer.device import pick_device
from splat_ssim.trainer.metrics import psnr, reported_psnr
from splat_ssim.trainer.pictures import over_background, read_image, save_comparison, save_image
from splat_ssim.trainer.profiling import stage
from splat_ssim.trainer.states import check_rows, load_generator, load_optimizer
from splat_ssim.trainer.task import Report
from splat_ssim.trainer.upload import upload
from splat_ssim.volume.export import load_quantized, save_gaussians_ply, save_quantized
from splat_ssim.volume.gaussians import GaussianField, blur, sample_voxels
from splat_ssim.volume.grid import VoxelGrid
from splat_ssim.volume.growth import SORT_EVERY, CappedGrowth, growth_rounds, sort_gaussians
from splat_ssim.volume.optimizers import make_optimizer, set_learning_rates
from splat_ssim.volume.voxelize import voxelize


@dataclass
class ImageDataConfig:
    """Options of reading the image."""

    #: Images are reduced until their longer side has at most this many pixels. 0 keeps their size.
    max_side: int = 0
    #: Colour behind images with an alpha channel.
    background: Literal["white", "black"] = "white"


@dataclass
class ImageModelConfig:
    """The Gaussians: how many, where they start and where they are added."""

    #: Largest number of Gaussians.
    budget: int = 10_000
    #: Number of Gaussians at the start, as a fraction of the budget.
    start: float = 0.5
    #: Initial standard deviation of a Gaussian, as a fraction of the distance between Gaussians.
    spread: float = 0.5
    #: Smallest standard deviation of a Gaussian, in pixels.
    min_sigma: float = 0.4
    #: Number of rounds of growth, spread evenly from the start of the run to `stop`.
    rounds: int = 8
    #: The last round comes after this fraction of the steps.
    stop: float = 0.4
    #: Fraction of the Gaussians, those of least mass, that a round moves elsewhere.
    recycle: float = 0.05
    #: Standard deviation of new Gaussians, in pixels.
    sigma: float = 1.5


@dataclass
class ImageOptimizerConfig:
    """Adam and its learning rates. They decay exponentially over the run."""

    #: Initial learning rate of positions, in pixels.
    means: float = 0.3
    #: Initial learning rate of the logarithms of the standard deviations.
    log_scales: float = 0.03
    #: Initial learning rate of the cosine and sine of half a Gaussian's rotation angle.
    turns: float = 0.03
    #: Initial learning rate of the colours, in units of the range from black, 0, to white, 1.
    colors: float = 0.02
    #: Learning rates at the last step, as a fraction of those at the first.
    final: float = 0.05
    #: Number of steps over which the learning rates rise from 0 to their initial values.
    warmup: int = 10
    #: Decay of Adam's second moment.
    beta2: float = 0.99


@dataclass
class ImageOutputConfig(OutputConfig):
    """Files that a run writes besides metrics.json, config.yaml and the last checkpoint."""

    #: Write the fit as render.png, and render | truth | error as pictures/comparison.png.
    picture: bool = True
    #: Write the Gaussians as gaussians.ply.
    ply: bool = True
    #: Write the Gaussians in about ten bytes each, and report what that costs in PSNR.
    quantized: bool = True


@dataclass
class ImageConfig(RunConfig):
    """Fits 2D Gaussians to one image. --data-dir names the file."""

    #: Image file.
    data_dir: Path = Path("assets/lund/images/01.jpg")
    #: Number of training steps.
    steps: int = 1000
    task: tyro.conf.Suppress[str] = "image"
    data: ImageDataConfig = field(default_factory=ImageDataConfig)
    model: ImageModelConfig = field(default_factory=ImageModelConfig)
    optimizer: ImageOptimizerConfig = field(default_factory=ImageOptimizerConfig)
    output: ImageOutputConfig = field(default_factory=ImageOutputConfig)

    def check(self) -> None:
        """Raises ConfigError for the first value that is out of its range."""
        super().check()
        check_ranges(
            ("data.max_side", self.data.max_side, 0, None),
            ("model.budget", self.model.budget, 1, None),
            ("model.start", self.model.start, 1e-6, 1),
            ("model.spread", self.model.spread, 1e-6, None),
            ("model.min_sigma", self.model.min_sigma, 0.05, None),
            ("model.rounds", self.model.rounds, 1, None),
            ("model.stop", self.model.stop, 0, 1),
            ("model.recycle", self.model.recycle, 0, 0.9),
            ("model.sigma", self.model.sigma, 0.05, None),
            ("optimizer.final", self.optimizer.final, 1e-6, 1),
            ("optimizer.beta2", self.optimizer.beta2, 0, 1 - 1e-9),
            *((f"optimizer.{name}", rate, 0, None) for name, rate in vars(self.optimizer).items() if name != "beta2"),
        )

    def settled(self) -> dict[str, str]:
        """Options that a resumed run keeps: dotted name -> what has been done with them already."""
        start, pixels = "it says where a fit starts", "the image was made by it"
        options = {"model.start": start, "model.spread": start, "data.max_side": pixels, "data.background": pixels}
        return {**super().settled(), **options}


class ImageField(GaussianField):
    """2D Gaussians as parameters: `field(grid)` is their image (3, H, 1, W).

    Tensors: means (N, 2) x, y in pixels, the centre of the first pixel at 0; log_scales (N, 2); turns (N, 2), cosine
    and sine of half the angle, of any length; colors (N, 3), amplitudes of either sign.
    """

    def forward(self, grid: VoxelGrid) -> Tensor:
        """The image on a grid of one slice. Its values are not clamped to [0, 1]."""
        solid = self.solid()
        return voxelize(
            solid["means"],
            solid["quats"],
            solid["log_scales"].exp(),
            solid["densities"],
            grid,
            features=solid["features"],
        )[1:]

    def solid(self) -> dict[str, Tensor]:
        """The same Gaussians in space: in the plane z = 0, one pixel thick, of density 1, turned about the z axis."""
        means, log_scales, turns = (self.tensors[name] for name in ("means", "log_scales", "turns"))
        return {
            "means": F.pad(means, (0, 1)),
            "log_scales": F.pad(log_scales, (0, 1)),
            "quats": _about_z(turns),
            "densities": torch.ones_like(means[:, 0]),
            "features": self.tensors["colors"],
        }

    def positions(self) -> Tensor:
        """(N, 3) positions x, y, 0 of the Gaussians."""
        return F.pad(self.tensors["means"], (0, 1))

    @torch.no_grad()
    def mass(self) -> Tensor:
        """(N,) largest |colour| times area: how much each Gaussian contributes."""
        mass: Tensor = self.tensors["colors"].abs().amax(1) * self.tensors["log_scales"].sum(1).exp()
        return mass

    @torch.no_grad()
    def spawn(
        self,
        chosen: Tensor,
        sigma: Tensor | float,
        residual: Tensor,
        target: Tensor,
        grid: VoxelGrid,
        generator: torch.Generator | None,
    ) -> dict[str, Tensor]:
        """New Gaussians in the chosen pixels, with the residual as colour, divided among those that overlap."""
        new = new_gaussians(chosen, sigma, residual, generator)
        new["colors"] /= _coverage(new, grid)[chosen].clamp(min=1.0)[:, None]
        return new

    @classmethod
    def from_image(
        cls, target: Tensor, grid: VoxelGrid, count: int, *, spread: float, generator: torch.Generator
    ) -> ImageField:
        """Makes Gaussians at an image's edges, with the image's colours. They are small where they are dense.

        Args:
            target: (3, H, 1, W) colours in [0, 1].
            grid: Grid of the image's pixels.
            count: Number of Gaussians.
            spread: Standard deviation as a fraction of the local distance between Gaussians.
            generator: Generator of the random positions, on the CPU.
        """
        grey = target.mean(0)
        weight = torch.full_like(grey, 0.02)  # above 0, so that flat areas get a few large Gaussians
        for axis in (0, 2):
            if grey.shape[axis] > 1:
                weight += torch.gradient(grey, dim=axis)[0].abs()
        chosen = sample_voxels(weight, count, generator)
        crowd = blur(weight / weight.sum() * count).flatten()[chosen]
        sigma = (spread * crowd.clamp(min=1e-4) ** -0.5).clamp(0.6, 20.0)
        new = new_gaussians(chosen, sigma, target, generator)
        new["colors"] /= _coverage(new, grid)[chosen].clamp(min=0.3)[:, None]  # else overlaps are too bright
        return cls(new)


def _about_z(turns: Tensor) -> Tensor:
    """(N, 4) quaternions w, x, y, z of rotations about the z axis."""
    zeros = torch.zeros_like(turns)
    return torch.cat([turns[:, :1], zeros, turns[:, 1:]], 1)


def _coverage(tensors: dict[str, Tensor], grid: VoxelGrid) -> Tensor:
    """(H·W,) sum of the Gaussians in each pixel, if all of them had the amplitude 1."""
    field = ImageField({**tensors, "colors": torch.ones_like(tensors["colors"])})
    volume: Tensor = field(grid)
    return volume[0].flatten()


def new_gaussians(
    chosen: Tensor, sigma: Tensor | float, values: Tensor, generator: torch.Generator | None
) -> dict[str, Tensor]:
    """Makes round Gaussians at random positions inside the chosen pixels, with the values there as colours.

    Args:
        chosen: (N,) flat indices of pixels.
        sigma: Standard deviation in pixels: one number, or (N,).
        values: (3, H, 1, W) colours.
        generator: Generator of the positions inside the pixels and of the orientations, on the CPU.
    """
    count, device, width = len(chosen), chosen.device, values.shape[-1]
    places = torch.stack([chosen % width, chosen // width], 1).float()
    jitter = upload(torch.rand(count, 2, generator=generator), device) - 0.5
    turns = torch.tensor([1.0, 0.0]) + 0.1 * torch.randn(count, 2, generator=generator)
    sigmas = sigma.expand(count) if isinstance(sigma, Tensor) else torch.full((count,), sigma, device=device)
    return {
        "means": places + jitter,
        "log_scales": sigmas.log()[:, None].repeat(1, 2),
        "turns": upload(turns, device),
        "colors": values.flatten(1)[:, chosen].T.contiguous(),
    }


class Task:
    """Fits 2D Gaussians to an image: target, model, loss, growth and optimiser.

    Raises:
        UserError: Something in the config or on disk is not as required.
    """

    Config: ClassVar[type[RunConfig]] = ImageConfig
    VIEWS: ClassVar[dict[str, str]] = {"picture": "render.png"}

    def __init__(self, config: ImageConfig) -> None:
        self.config = config = config.resolved()
        self.name = config.data_dir.stem
        self.device = pick_device(config.device)
        torch.manual_seed(config.seed)
        with user_errors():
            self.loss = get_loss(config.loss, **config.loss_kwargs)
        self.target = read_target(config).to(self.device)  # [1, 3, H, W]
        self.fingerprint = fingerprint("x".join(map(str, self.target.shape[:1:-1])) + " pixels", self.target.cpu())
        self.slice = self.target[0, :, :, None]  # [3, H, 1, W]
        height, width = self.target.shape[2:]
        # The voxeliser's threads share the planes of the first axis. These are the rows, so all threads have work.
        self.grid = VoxelGrid.regular((height, 1, width), axes="yzx")
        self.generator = torch.Generator().manual_seed(config.seed)  # on the CPU: the same draws on every device
        model = config.model
        count = max(1, round(model.budget * model.start))
        if model.budget > height * width:
            raise UserError(f"model.budget must be at most {height * width}, the number of pixels, got {model.budget}")
        self.model = ImageField.from_image(self.slice, self.grid, count, spread=model.spread, generator=self.generator)
        rounds = growth_rounds(config.steps, model.stop, model.rounds)
        self.growth = CappedGrowth(model.budget, rounds, recycle=model.recycle, sigma=model.sigma)
        self.optimizer = self._optimizer()
        sort_gaussians(self.model, self.optimizer, self.grid)

    def step(self, index: int) -> Report:
        """Renders the image, computes the loss, steps the optimiser and, at some steps, adds Gaussians."""
        with stage("field"):
            pred = self.model(self.grid)[:, :, 0][None]
        with stage("loss"):
            result = self.loss(pred, self.target)
            loss, terms = result if isinstance(result, tuple) else (result, {})
        with stage("backward"):
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
        with stage("optimiser"):
            rates = self.config.optimizer
            set_learning_rates(
                self.optimizer, vars(rates), step=index, steps=self.config.steps, final=rates.final, warmup=rates.warmup
            )
            self.optimizer.step()
            self.model.tensors["log_scales"].data.clamp_(min=math.log(self.config.model.min_sigma))
        with stage("growth"):
            grew = self.growth.step(index + 1, self.model, self.optimizer, self.slice, self.grid, self.generator)
            if grew or (index + 1) % SORT_EVERY == 0:
                sort_gaussians(self.model, self.optimizer, self.grid)
        return Report(
            {
                "loss": loss,
                **terms,
                "psnr": lambda: psnr(pred.detach().clamp(0, 1), self.target),
                "gaussians": lambda: len(self.model),
            }
        )

    @torch.no_grad()
    def image(self, field: GaussianField | None = None) -> Tensor:
        """(1, 3, H, W) in [0, 1]: the fit, or another field's image."""
        drawn: Tensor = self.model(self.grid) if field is None else field(self.grid)[1:]
        return drawn[:, :, 0][None].clamp(0, 1)

    def evaluate(self, pictures: Path | None = None) -> dict[str, Any]:
        """PSNR and SSIM (zero padding) of the whole image; render | truth | error as a picture."""
        image = self.image()
        if pictures is not None and self.config.output.picture:
            save_comparison(pictures / "comparison.png", image, self.target)
        return {"psnr": reported_psnr(psnr(image, self.target)), "ssim": float(ssim(image, self.target))}

    def state_dict(self) -> dict[str, Any]:
        """The Gaussians, their optimiser and the state of the random generator."""
        return {
            "tensors": {name: tensor.detach() for name, tensor in self.model.tensors.items()},
            "optimizer": self.optimizer.state_dict(),
            "draws": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        check_rows(state["tensors"], self.model.tensors, "tensors")
        self.model = ImageField(state["tensors"])
        self.optimizer = load_optimizer(self._optimizer(), state["optimizer"])
        load_generator(self.generator, state["draws"], "draws")

    def export(self, folder: Path) -> dict[str, Any]:
        """Writes render.png and the Gaussians, as PLY and quantised. Returns their number and sizes."""
        output = self.config.output
        metrics: dict[str, Any] = {
            "num_gaussians": len(self.model),
            "bytes": self.model.nbytes,
            "source_bytes": self.config.data_dir.stat().st_size,
        }
        if output.picture:
            self.render("picture", folder / self.VIEWS["picture"], 1)
        solid = GaussianField({name: tensor.detach() for name, tensor in self.model.solid().items()})
        if output.ply:
            save_gaussians_ply(folder / "gaussians.ply", solid)
        if output.quantized:
            path = save_quantized(folder / "gaussians.quantized", solid, self.grid)
            image = self.image(load_quantized(path).to(self.device))
            metrics["bytes_quantized"] = path.stat().st_size
            metrics["psnr_quantized"] = reported_psnr(psnr(image, self.target))
        return metrics

    def render(self, views: str, output: Path, frames: int) -> None:
        """Writes the fit as a picture file."""
        save_image(output, self.image())

    def _optimizer(self) -> torch.optim.Optimizer:
        elements, beta2 = self.target.numel(), self.config.optimizer.beta2
        return make_optimizer(dict(self.model.tensors), vars(self.config.optimizer), elements=elements, beta2=beta2)


def read_target(config: ImageConfig) -> Tensor:
    """Reads the image that a config names, reduced to max_side, as (1, 3, H, W) float32 in [0, 1].

    Raises:
        PictureError: The file is missing or cannot be decoded.
    """
    background = (1.0, 1.0, 1.0) if config.data.background == "white" else (0.0, 0.0, 0.0)
    image = over_background(torch.from_numpy(read_image(config.data_dir).copy()), background).contiguous()
    longest = max(image.shape[2:])
    if 0 < config.data.max_side < longest:
        scale = config.data.max_side / longest
        size = [max(1, round(side * scale)) for side in image.shape[2:]]
        image = F.interpolate(image, size, mode="bicubic", antialias=True).clamp(0, 1)
    return image
