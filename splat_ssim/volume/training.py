"""Fitting a model to a volume: its steps, its evaluation and its exports."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import UserError, user_errors
from ..registry import get_loss, l1_loss
from ..trainer.config import RunConfig
from ..trainer.pictures import said_without_video
from ..trainer.profiling import stage
from ..trainer.states import check_rows, check_values, load_generator, load_optimizer, number_of
from ..trainer.task import Report
from .config import VolumeConfig
from .crops import loss_reach, make_crop, random_crop
from .device import pick_volume_device
from .evaluation import evaluate_volume, source_psnr, weighted_psnr
from .export import FieldSource, load_quantized, save_gaussians_ply, save_quantized
from .frames import in_world
from .gaussians import GAUSSIAN_FLOATS, GaussianField, voxel_size
from .grid import VoxelGrid
from .grid_model import GridField, grid_shape
from .growth import SORT_EVERY, CappedGrowth, growth_rounds, sort_gaussians
from .io import Volume, save_volume
from .losses import tv3d
from .memory import check_memory
from .optimizers import make_optimizer, set_learning_rates
from .pictures import save_mip_video, save_slice_sheet
from .report import report_fit
from .strategies import StrategyGrowth, make_growth
from .target import Target, read_target

#: Number of steps between two checks whether target_psnr is reached.
LOOK_EVERY = 50


class VolumeTask:
    """Fits Gaussians or a grid to a volume.

    Args:
        config: Options of the run. Its data_dir names the volume.
        target: Volume that is already in memory, to be fitted instead of that in data_dir.
        base: (C, n0, n1, n2), a fixed field of other Gaussians, which is added to the model's.
        tensors: Gaussians to start from, in the lattice of the target's grid. By default they are made from the volume.

    Attributes:
        finished: Whether config.target_psnr has been reached, which ends the run.

    Raises:
        UserError: Something in the config or on disk is not as required.
    """

    Config: ClassVar[type[RunConfig]] = VolumeConfig
    VIEWS: ClassVar[Mapping[str, str]] = {"orbit": "mip.mp4", "slices": "slices.png"}

    def __init__(
        self,
        config: VolumeConfig,
        target: Target | None = None,
        *,
        base: Tensor | None = None,
        tensors: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.config = config = config.resolved()
        self.name = config.data_dir.name.split(".")[0]
        self.device = pick_volume_device(config)
        torch.manual_seed(config.seed)
        with user_errors():
            self.loss = get_loss(config.loss, **config.loss_kwargs)
        self.halo = loss_reach(config.loss_kwargs)
        if target is None:
            with user_errors():
                line = check_memory(config.data_dir, config.data.read, self.device.type)
            if line is not None:
                print(line, file=sys.stderr)
            target = read_target(config.data_dir, config.data)
            for line in target.lines:
                print(line, file=sys.stderr)
        self.target = target.to(self.device)
        self.base = base
        #: The values that the model itself must fit: the target less `base`.
        self.wanted = self.target.values if base is None else self.target.values - base
        self._given = tensors
        self.finished = False
        #: The voxels as the model sees them: Gaussians lie in the volume's own lattice, whatever its spacing and place.
        self.lattice = VoxelGrid(target.grid.shape) if config.model.name == "gaussians" else target.grid
        self.fingerprint = self.target.fingerprint
        # Crops are drawn on the CPU, so the voxels inside the mask are listed there once.
        self._inside = None if self.target.inside is None or not config.crop else self.target.inside.nonzero().cpu()
        # Always on the CPU, so that a seed draws the same on every device and a run can resume on another one.
        self.generator = torch.Generator().manual_seed(config.seed)
        self.growth: CappedGrowth | StrategyGrowth | None = None
        self.levels: dict[int, tuple[int, ...]] = {}  # step -> nodes of the grid from then on
        self.model = self._gaussians() if config.model.name == "gaussians" else self._grid()
        self.optimizer = self._optimizer()
        if isinstance(self.growth, StrategyGrowth) and isinstance(self.model, GaussianField):
            self.growth.check(self.model, self.optimizer)
        self.last_loss: Tensor | float = math.nan

    def step(self, index: int) -> Report:
        """Renders the field, computes the loss, steps the optimiser and, at some steps, changes the model."""
        self.last_loss = self.fit_step(index)
        with stage("growth"):
            self.change_model(index + 1)
        if self.config.target_psnr is not None and (index + 1) % LOOK_EVERY == 0:
            self.finished = self.psnr() >= self.config.target_psnr
        return Report({"loss": self.last_loss, "parameters": lambda: self.parameters})

    def fit_step(self, step: int) -> Tensor:
        """The optimiser's part of a step. Returns the loss."""
        config, target = self.config, self.target
        shape = target.grid.shape
        mask: Tensor | None
        if config.crop:
            crop = random_crop(shape, config.crop, halo=self.halo, generator=self.generator, inside=self._inside)
            mask = crop.mask(self.device) if target.mask is None else crop.mask(self.device) * crop.of(target.mask)
        else:
            crop, mask = make_crop(shape, (0, 0, 0), shape, halo=0), target.mask
        with stage("field"):
            pred, expected = self.model(crop.grid(self.lattice)), crop.of(target.values)
            pred = pred if self.base is None else pred + crop.of(self.base)
        with stage("loss"):
            criterion = self.loss if step % config.loss_every == 0 else l1_loss
            if target.data_range != 1:  # Losses expect a range of 1.
                pred, expected = pred / target.data_range, expected / target.data_range
            result = criterion(pred[None], expected[None], mask=mask)
            loss = result[0] if isinstance(result, tuple) else result
            if config.tv:
                loss = loss + config.tv * tv3d(pred)
        # The previous step's gradients are kept until now, because growth reads them.
        self.optimizer.zero_grad(set_to_none=True)
        with stage("backward"):
            loss.backward()
        with stage("optimiser"):
            rates, decay = self._rates(), config.optimizer
            set_learning_rates(
                self.optimizer, rates, step=step, steps=config.steps, final=decay.final, warmup=decay.warmup
            )
            self.optimizer.step()
            if isinstance(self.model, GaussianField):
                self.model.keep_size(config.model.min_sigma, self.lattice)
        return loss.detach()

    def change_model(self, done: int) -> None:
        """Changes the model after `done` steps, if due: growth, sorting, refinement of the grid."""
        if isinstance(self.model, GridField):
            if done in self.levels:
                self.model = self.model.upsampled(self.levels[done])
                self.optimizer = self._optimizer()
            return
        model, target = self.model, self.target
        grew = False
        if isinstance(self.growth, CappedGrowth):
            grew = self.growth.step(
                done, model, self.optimizer, self.wanted, self.lattice, self.generator, mask=target.inside
            )
        elif self.growth is not None:
            grew = self.growth.step(done, model, self.optimizer)
        if grew or done % SORT_EVERY == 0:
            order = sort_gaussians(model, self.optimizer, self.lattice)
            if isinstance(self.growth, StrategyGrowth):
                self.growth.reorder(order)

    @torch.no_grad()
    def field(self) -> Tensor:
        """The whole volume as it is compared and exported: cut to [0, 1] if the target is."""
        own = self.model(self.lattice)
        return self._cut(own if self.base is None else own + self.base)

    def _cut(self, volume: Tensor) -> Tensor:
        return volume.clamp(0, 1) if self.target.normalization.clip else volume

    def evaluate(self, pictures: Path | None = None) -> dict[str, Any]:
        """PSNR and SSIM of the whole volume; slices of field, volume and error as a picture."""
        volume = self.field()
        if pictures is not None and self.config.output.slices:
            self._save_slices(pictures / "slices.png", volume)
        return {**self._compare(volume), **dataclasses.asdict(self.target.intensities)}

    def psnr(self) -> float:
        """PSNR of the fitted values, inside the mask if there is one."""
        target = self.target
        return weighted_psnr(self.field(), target.values, target.inside, data_range=target.data_range)

    def reached(self) -> dict[str, bool]:
        """The metric that says whether target_psnr is reached. Empty if none is asked for."""
        target = self.config.target_psnr
        return {} if target is None else {"target_psnr_reached": self.psnr() >= target}

    def _compare(self, volume: Tensor) -> dict[str, float]:
        """PSNR and SSIM of what is fitted, over the range that is fitted, and PSNR of the file's own intensities."""
        target = self.target
        result = evaluate_volume(volume, target.values, data_range=target.data_range, mask=target.mask)
        source = (
            target.source if target.source is not None else target.normalization.invert(target.values.cpu().numpy())
        )
        fitted = target.normalization.invert(volume.cpu().numpy())
        return {**result, "psnr3d_source": source_psnr(fitted, source, target.intensities.span)}

    @property
    def parameters(self) -> int:
        """Number of parameters of the model."""
        return self.model.nbytes // 4

    def export(self, folder: Path) -> dict[str, Any]:
        """The field as a volume file, the Gaussians as PLY and quantised, a turning projection; their sizes."""
        config, target = self.config, self.target
        metrics: dict[str, Any] = {
            "num_gaussians": len(self.model) if isinstance(self.model, GaussianField) else 0,
            "parameters": self.parameters,
            "bytes": self.model.nbytes,
            "final_loss": float(self.last_loss),
        }
        if config.data_dir.is_file():
            metrics["source_bytes"] = config.data_dir.stat().st_size
        if config.output.format:
            data = target.normalization.invert(self.field().cpu().numpy())
            save_volume(folder / f"volume.{config.output.format}", Volume(data, target.grid, target.unit))
        if isinstance(self.model, GaussianField):
            gaussians = self.gaussians()
            if config.output.ply:
                save_gaussians_ply(folder / "gaussians.ply", gaussians, gaussians.source)
            if config.output.quantized:
                metrics.update(self._export_quantized(folder / "gaussians.quantized", gaussians))
        metrics.update(self.reached())
        if not metrics.get("target_psnr_reached", True):
            print(f"target_psnr {config.target_psnr:g} was not reached: {self.psnr():.2f} dB", file=sys.stderr)
        if config.output.video:
            with said_without_video():
                self.render("orbit", folder / "pictures" / self.VIEWS["orbit"], 48)
        return metrics

    def gaussians(self) -> GaussianField:
        """Returns the Gaussians in world coordinates, with their source.

        Raises:
            TypeError: The model is a grid.
        """
        if not isinstance(self.model, GaussianField):
            raise TypeError(f"the model must be Gaussians, got {type(self.model).__name__}")
        grid, tensors = self.target.grid, dict(self.model.tensors)
        if self.lattice == grid:
            return GaussianField({name: tensor.detach() for name, tensor in tensors.items()}, self.source())
        return GaussianField(*in_world(tensors, grid, self.source()))

    def source(self) -> FieldSource:
        """The grid and intensities with which the field gives back the volume that it was fitted to."""
        target = self.target
        scale = target.normalization
        return FieldSource(target.grid, scale.low, scale.high, scale.clip, target.unit)

    @torch.no_grad()
    def _export_quantized(self, path: Path, field: GaussianField) -> dict[str, Any]:
        """Writes the quantised file. Returns its size and its cost in PSNR."""
        save_quantized(path, field, self.target.grid, source=self.source())
        volume = self._cut(load_quantized(path).to(self.device)(self.target.grid))
        result = self._compare(volume)
        return {"bytes_quantized": path.stat().st_size, **{f"{name}_quantized": v for name, v in result.items()}}

    def render(self, views: str, output: Path, frames: int) -> None:
        """A turning maximum-intensity projection as MP4, or a sheet of slices."""
        volume, grid = self.field(), self.target.grid
        if views == "slices":
            self._save_slices(output, volume)
            return
        axis, runs_down = grid.upright
        shown = self.target.shown(volume)
        upwards = shown.flip(1 + axis) if runs_down else shown
        save_mip_video(output, upwards, frames=frames, axis=axis, spacing=grid.spacing)

    def report(self, folder: Path, evaluation: Mapping[str, Any], *, views: int = 12, **_: Any) -> Path:
        """Writes report.html; see `volume.report.write_volume_report`."""
        return report_fit(self.field(), self.target, self, folder, evaluation, views)

    def _save_slices(self, path: Path, volume: Tensor) -> None:
        target = self.target
        save_slice_sheet(path, target.shown(volume), target.shown(target.values), spacing=target.grid.spacing)

    def state_dict(self) -> dict[str, Any]:
        """The model, its optimiser, the generator of the draws and the strategy's state."""
        return {
            "tensors": {name: tensor.detach() for name, tensor in self.model.tensors.items()},
            "optimizer": self.optimizer.state_dict(),
            "last_loss": float(self.last_loss),
            "draws": self.generator.get_state(),
            "lattice": isinstance(self.model, GaussianField) and self.lattice != self.target.grid,
            "strategy": self.growth.state if isinstance(self.growth, StrategyGrowth) else {},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        tensors = state["tensors"]
        if isinstance(self.model, GaussianField):
            count = check_rows(tensors, self.model.tensors, "tensors")
            self.model = GaussianField(tensors)
            if isinstance(self.growth, StrategyGrowth):
                check_values(state["strategy"], self.growth.state, "strategy", rows=count)
            if not state.get("lattice", False):
                # An old checkpoint, from when fits did not run in voxels, resumes in world coordinates.
                self._leave_lattice()
        else:
            # The grid is refined during the run: its shape follows from the step.
            done = [shape for step, shape in sorted(self.levels.items()) if step <= state["step"]]
            nodes = self.model.tensors["nodes"]
            like = nodes if not done else torch.empty(len(nodes), *done[-1])
            check_rows(tensors, {"nodes": like}, "tensors", rows=len(nodes))
            self.model = GridField(tensors["nodes"], self.target.grid)
        self.optimizer = load_optimizer(self._optimizer(), state["optimizer"])
        # It is NaN before the first step.
        self.last_loss = number_of(state["last_loss"], "last_loss")
        load_generator(self.generator, state["draws"], "draws")
        if isinstance(self.growth, StrategyGrowth):
            self.growth.state = state["strategy"]

    def _leave_lattice(self) -> None:
        """Makes the model's coordinates those of the world."""
        self.lattice = self.target.grid
        if isinstance(self.growth, StrategyGrowth):
            strategy = self.config.strategy
            start = max(1, round(strategy.budget * self.config.model.start))
            self.growth = make_growth(strategy, self.config.steps, start, self.lattice)

    def _gaussians(self) -> GaussianField:
        config, strategy = self.config, self.config.strategy
        count = strategy.budget
        if strategy.name != "none":
            count = max(1, round(strategy.budget * config.model.start))
        voxels = self.target.values[0].numel()
        if count > voxels:
            raise UserError(
                f"a fit must start with at most as many Gaussians as voxels, {voxels}, got {count} of "
                f"strategy.budget {strategy.budget}"
            )
        if self.target.inside is not None and count > (inside := int((self.target.inside > 0).sum())):
            print(f"mask: {inside} voxels count; the fit starts with as many Gaussians, not {count}", file=sys.stderr)
            count = inside
        if strategy.name == "residual":
            rounds = growth_rounds(config.steps, strategy.stop, strategy.rounds)
            self.growth = CappedGrowth(strategy.budget, rounds, recycle=strategy.recycle, sigma=strategy.sigma)
        elif strategy.name != "none":
            self.growth = make_growth(strategy, config.steps, count, self.lattice)
        if self._given is not None:
            return GaussianField(self._given)
        return GaussianField.from_volume(
            self.wanted,
            self.lattice,
            count,
            spread=config.model.spread,
            mask=self.target.inside,
            generator=self.generator,
        )

    def _grid(self) -> GridField:
        config, target = self.config, self.target
        channels = len(target.values)
        parameters = config.model.grid_parameters or config.strategy.budget * (GAUSSIAN_FLOATS + channels - 1)
        finest = grid_shape(parameters, target.grid, channels)
        shapes = [
            tuple(max(1, min(n, -(-n // 2**level))) for n in finest)
            for level in range(config.model.grid_levels, -1, -1)
        ]
        # Levels share the first half of the run equally.
        for i, shape in enumerate(shapes[1:], start=1):
            self.levels[max(1, round(config.steps * 0.5 * i / len(shapes[1:])))] = shape
        return GridField.from_volume(target.values, target.grid, shapes[0])

    def _rates(self) -> dict[str, float]:
        """Adam's rate of each parameter at the first step, in the parameter's own unit."""
        optimizer = self.config.optimizer
        size = voxel_size(self.lattice)
        units = {"means": size, "densities": self.target.data_range, "nodes": self.target.data_range}
        return {name: getattr(optimizer, name) * units.get(name, 1.0) for name in self.model.tensors}

    def _optimizer(self) -> torch.optim.Optimizer:
        elements, beta2 = self.target.values.numel(), self.config.optimizer.beta2
        return make_optimizer(dict(self.model.tensors), self._rates(), elements=elements, beta2=beta2)
