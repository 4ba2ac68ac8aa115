"""Reconstructing a volume from projections: what one step does, how the fit is evaluated and what it leaves."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import UserError, user_errors
from ..functional import ssim
from ..registry import get_loss
from ..trainer.checkpoint import fingerprint
from ..trainer.config import RunConfig
from ..trainer.draws import drawn_in_turn
from ..trainer.metrics import psnr, reported_psnr
from ..trainer.pictures import ERROR_GAIN, save_image
from ..trainer.profiling import stage
from ..trainer.states import check_rows, load_generator, load_optimizer, number_of
from ..trainer.task import Report
from ..volume.crops import random_crop
from ..volume.evaluation import evaluate_volume
from ..volume.export import FieldSource, save_gaussians_ply
from ..volume.gaussians import GaussianField, new_gaussians, voxel_size
from ..volume.grid import VoxelGrid
from ..volume.growth import SORT_EVERY, CappedGrowth, growth_rounds, sort_gaussians
from ..volume.io import Volume, load_volume, save_volume
from ..volume.losses import tv3d
from ..volume.normalization import check_span
from ..volume.optimizers import make_optimizer, set_learning_rates
from ..volume.pictures import save_mip_video, save_slice_sheet
from ..volume.target import check_read
from .config import CTConfig
from .data import Projections, in_float32, in_mm, load_projections
from .device import pick_ct_device
from .fdk import fdk
from .project import project_field

#: The brightness that counts as 1 is this quantile of the filtered backprojection's voxels above half its maximum.
_BRIGHT, _FAINT = 0.5, 0.02


class CTTask:
    """Fits Gaussians so that their X-ray projections become the measured ones.

    The field is fitted in units of `scale`, an estimate of the brightest voxels from the filtered backprojection.

    Args:
        config: Options of the run. Its data_dir names the folder of projections.
        projections: Projections that are already in memory, to be used instead of those in data_dir.

    Raises:
        UserError: Something in the config or on disk is not as required.
    """

    Config: ClassVar[type[RunConfig]] = CTConfig
    VIEWS: ClassVar[Mapping[str, str]] = {"slices": "slices.png", "orbit": "mip.mp4", "projections": "projections.png"}

    def __init__(self, config: CTConfig, projections: Projections | None = None) -> None:
        self.config = config = config.resolved()
        self.name = config.data_dir.name
        self.device = pick_ct_device(config.device)
        #: What was assumed of the data, a line each.
        self.notes: list[str] = []
        torch.manual_seed(config.seed)
        with user_errors():
            self.loss = get_loss(config.loss, **config.loss_kwargs)
            self.data = load_projections(config.data_dir) if projections is None else projections
            self.notes += [f"{config.data_dir}: {line}" for line in self.data.lines()]
            self.truth = self._truth()
        pictures = self.data.pictures
        self.bright = float(pictures.max())
        if not self.bright > 0:
            raise UserError(f"{config.data_dir}: projections must have values above 0, got at most {self.bright:g}")
        own = "projections of shape " + "x".join(map(str, pictures.shape))
        place = json.dumps([self.data.geometry.header(), self.data.grid.shape, self.data.grid.affine])
        # Runs of before are known by their projections alone, with which this begins.
        self.fingerprint = fingerprint(f"{fingerprint(own, pictures.numpy())}, their geometry", place)
        # Always on the CPU, so that a seed draws the same on every device and a run can resume on another one.
        self.generator = torch.Generator().manual_seed(config.seed)
        self.grid = self.data.grid
        #: The measured pictures on the device, (V, rows, columns).
        self.pictures = pictures.to(self.device)
        first = fdk(self.pictures, self.data.geometry, self.grid)
        if not first.max() > 0:
            raise UserError(
                f"{config.data_dir}: projections must show something inside the volume of geometry.json, got a "
                f"filtered backprojection of at most {float(first.max()):g}"
            )
        self.scale = float(first[first > _BRIGHT * first.max()].median())
        self.model = self._start(first / self.scale)
        rounds: tuple[int, ...] = ()
        if config.strategy.name == "residual":
            rounds = growth_rounds(config.steps, config.strategy.stop, config.strategy.rounds)
        strategy = config.strategy
        self.growth = CappedGrowth(strategy.budget, rounds, recycle=strategy.recycle, sigma=strategy.sigma)
        self.optimizer = self._optimizer()
        self.last_loss: Tensor | float = math.nan

    def _truth(self) -> Tensor | None:
        """(1, n0, n1, n2) float32 of data.truth, on the device."""
        path, grid = self.config.data.truth, self.data.grid
        if path is None:
            return None
        check_read(self.config.data.read, "data.read")
        volume = load_volume(path, **self.config.data.read)
        check_span(str(path), float(volume.data.max()) - float(volume.data.min()))
        if volume.data.shape != (1, *grid.shape):
            raise ValueError(
                f"{path} must have shape {(1, *grid.shape)}, that of geometry.json, got {volume.data.shape}"
            )
        place, lines = in_mm(volume)
        apart = place.apart(grid)
        if apart > 0.1:
            raise ValueError(f"{path} must lie where geometry.json puts the volume, got one {apart:.3g} voxels away")
        self.notes += [f"{path}: {line}" for line in (*volume.notes, *lines)]
        return torch.from_numpy(in_float32(volume.data, f"the voxels of {path}")).to(self.device)

    def _start(self, first: Tensor) -> GaussianField:
        """The Gaussians of step 0, from the filtered backprojection in units of `scale`."""
        config = self.config
        share = config.model.start if config.strategy.name == "residual" else 1.0
        count = max(1, round(config.strategy.budget * share))
        if count > first.numel():
            raise UserError(
                f"a fit must start with at most as many Gaussians as voxels, {first.numel()}, got {count} of "
                f"strategy.budget {config.strategy.budget}"
            )
        if config.model.start_from == "random":
            chosen = torch.randperm(first.numel(), generator=self.generator)[:count].sort().values.to(self.device)
            sigma = config.model.spread * (first.numel() / count) ** (1 / 3)
            faint = torch.full((1, *first.shape), _FAINT, device=self.device)
            return GaussianField(new_gaussians(chosen, sigma, faint, self.grid, self.generator))
        # Streaks of few views are faint next to what is there.
        cleared = torch.where(first > _FAINT, first, torch.zeros_like(first))
        field = GaussianField.from_volume(
            cleared[None], self.grid, count, spread=config.model.spread, generator=self.generator
        )
        return field

    def step(self, index: int) -> Report:
        """Projects the field to some views, compares, steps the optimiser, and grows the field where that is due."""
        config = self.config
        views = self.views_of(index)
        with stage("field"):
            pred = self.project(views)
        with stage("loss"):
            # A list of indices would have to be uploaded, so views are taken one by one.
            measured = torch.stack([self.pictures[view] for view in views])[:, None]
            result = self.loss(pred, measured / self.bright, mask=None)
            loss, terms = result if isinstance(result, tuple) else (result, {})
        if config.tv:
            with stage("tv"):
                loss = loss + config.tv * tv3d(self.model(self._block()))
        self.optimizer.zero_grad(set_to_none=True)
        with stage("backward"):
            loss.backward()
        with stage("optimiser"):
            rates = config.optimizer
            set_learning_rates(
                self.optimizer, self._rates(), step=index, steps=config.steps, final=rates.final, warmup=rates.warmup
            )
            self.optimizer.step()
            self._keep_bounds()
        self.last_loss = loss.detach()
        with stage("growth"):
            self._grow(index + 1)
        return Report({"loss": self.last_loss, **terms, "gaussians": lambda: len(self.model)})

    @torch.no_grad()
    def _keep_bounds(self) -> None:
        """Keeps sizes above min_sigma and, if asked for, densities at 0 or more."""
        self.model.keep_size(self.config.model.min_sigma, self.grid)
        if self.config.model.nonnegative:
            self.model.tensors["densities"].data.clamp_(min=0)

    def views_of(self, index: int) -> list[int]:
        """The views of a step: all of them in turn, in an order that is drawn for each round from the seed."""
        count = self.data.geometry.views
        size = min(self.config.views, count)
        return [drawn_in_turn(index * size + place, count, self.config.seed) for place in range(size)]

    def project(self, views: Sequence[int]) -> Tensor:
        """(V, 1, rows, columns): the field's pictures, over the brightest of the measured ones."""
        return project_field(self.model, self.data.geometry, views=views) * (self.scale / self.bright)

    def _block(self) -> VoxelGrid:
        size, shape = self.config.tv_block, self.grid.shape
        if not size or size >= max(shape):
            return self.grid
        return random_crop(shape, size, halo=0, generator=self.generator).grid(self.grid)

    def _grow(self, done: int) -> None:
        grew = False
        if done in self.growth.at_steps:
            with torch.no_grad():
                # What is missing in space: the residual of all views, filtered and projected back.
                views = range(self.data.geometry.views)
                missing = self.pictures / self.bright - self.project(views)[:, 0]
                residual = fdk(missing, self.data.geometry, self.grid) * (self.bright / self.scale)
                wanted = self.model(self.grid) + residual
            grew = self.growth.step(done, self.model, self.optimizer, wanted, self.grid, self.generator)
        if grew or done % SORT_EVERY == 0:
            sort_gaussians(self.model, self.optimizer, self.grid)

    @torch.no_grad()
    def volume(self) -> Tensor:
        """(1, n0, n1, n2): the reconstruction in the projections' unit, such as 1/mm."""
        values = self.model(self.grid) * self.scale
        densities: Tensor = values.clamp(min=0) if self.config.model.nonnegative else values
        return densities

    def evaluate(self, pictures: Path | None = None) -> dict[str, Any]:
        """Computes PSNR and SSIM of the projections, and of the volume if the truth is known. Draws slices."""
        with torch.no_grad():
            drawn = self.project(range(self.data.geometry.views))
        measured = self.pictures[:, None] / self.bright
        result: dict[str, Any] = {
            "psnr_projections": reported_psnr(psnr(drawn, measured)),
            "ssim_projections": float(ssim(drawn, measured)),
        }
        if self.truth is not None:
            span = float(self.truth.max() - self.truth.min())
            result |= evaluate_volume(self.volume(), self.truth, data_range=span)
        if pictures is not None and self.config.output.slices:
            self.render("slices", pictures / self.VIEWS["slices"], 1)
            self.render("projections", pictures / self.VIEWS["projections"], 1)
        return result

    def state_dict(self) -> dict[str, Any]:
        """The Gaussians, their optimiser and the generator of the draws."""
        return {
            "tensors": {name: tensor.detach() for name, tensor in self.model.tensors.items()},
            "optimizer": self.optimizer.state_dict(),
            "last_loss": float(self.last_loss),
            "draws": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from `state_dict`."""
        check_rows(state["tensors"], self.model.tensors, "tensors")
        self.model = GaussianField(state["tensors"])
        self.optimizer = load_optimizer(self._optimizer(), state["optimizer"])
        self.last_loss = number_of(state["last_loss"], "last_loss")
        load_generator(self.generator, state["draws"], "draws")

    def export(self, folder: Path) -> dict[str, Any]:
        """Writes the reconstruction as a volume file and the Gaussians as PLY. Returns their sizes."""
        output = self.config.output
        if output.format:
            save_volume(folder / f"volume.{output.format}", Volume(self.volume().cpu().numpy(), self.grid, "mm"))
        if output.ply:
            source = FieldSource(self.grid, 0.0, self.scale, clip=False, unit="mm")
            save_gaussians_ply(folder / "gaussians.ply", self.model, source)
        return {
            "num_gaussians": len(self.model),
            "bytes": self.model.nbytes,
            "final_loss": float(self.last_loss),
            "scale": self.scale,
        }

    def render(self, views: str, output: Path, frames: int) -> None:
        """Slices of the volume, its turning projection, or some of the views beside the measured ones."""
        if views == "projections":
            count = self.data.geometry.views
            chosen = [count * i // min(5, count) for i in range(min(5, count))]
            with torch.no_grad():
                drawn = self.project(chosen)[:, 0]
            measured = self.pictures[chosen] / self.bright
            rows = [drawn, measured, (drawn - measured).abs() * ERROR_GAIN]
            sheet = torch.cat([torch.cat(list(row), 1) for row in rows])
            save_image(output, sheet.clamp(0, 1).expand(1, 3, *sheet.shape))
            return
        volume, truth, spacing = self.volume(), self.truth, self.grid.spacing
        top = float((volume if truth is None else truth).max())
        if views == "orbit":
            axis, runs_down = self.grid.upright
            shown = (volume / top).flip(1 + axis) if runs_down else volume / top
            save_mip_video(output, shown, frames=frames, axis=axis, spacing=spacing)
            return
        save_slice_sheet(output, volume / top, None if truth is None else truth / top, spacing=spacing)

    def _rates(self) -> dict[str, float]:
        """Adam's rate of each parameter at the first step, in the parameter's own unit."""
        units = {"means": voxel_size(self.grid)}
        return {name: getattr(self.config.optimizer, name) * units.get(name, 1.0) for name in self.model.tensors}

    def _optimizer(self) -> torch.optim.Optimizer:
        elements, beta2 = self.data.pictures[0].numel() * self.config.views, self.config.optimizer.beta2
        return make_optimizer(dict(self.model.tensors), self._rates(), elements=elements, beta2=beta2)
