"""Fits Gaussians to a volume larger than memory, brick by brick, each together with the Gaussians already there."""

from __future__ import annotations

import bisect
import copy
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
import tyro
from torch import Tensor

from ..errors import UserError, user_errors
from ..options import of_each
from ..trainer.config import ConfigError, RunConfig, check_ranges
from ..trainer.states import check_rows, number_of
from ..trainer.task import Report
from .blocks import Block, BlockedVolume
from .brick_layout import MARGIN, Stage, counted, passes_of, region_of, shares
from .brick_results import Projections, evaluate_blocks, save_middle_slices, shown_planes, write_npy
from .brick_scale import blocks_along, coarse_factor_for, in_blocks, into, out_of, read_averaged, weight_of
from .config import VolumeConfig, VolumeOutputConfig
from .crops import loss_reach
from .device import pick_volume_device
from .export import FieldSource, save_gaussians_ply, save_quantized
from .frames import in_world
from .gaussians import GAUSSIAN_FLOATS, GaussianField
from .grid import VoxelGrid
from .target import Target
from .training import VolumeTask

#: Rounds of growth in the second pass. It has fewer steps in which new Gaussians can settle.
_SECOND_ROUNDS = 2


@dataclass
class BrickConfig(VolumeConfig):
    """Fits Gaussians to a volume brick by brick, so that neither its voxels nor the fit need fit in memory.

    npy, raw, zarr and HDF5 are read piece by piece. `steps` follows from brick_steps and the number of bricks.
    """

    task: tyro.conf.Suppress[str] = "splat_ssim.volume.bricks:BrickTask"
    #: Voxels along an edge of a brick.
    brick: int = 128
    #: Steps of each brick in the first pass. In the second, over bricks shifted by half an edge, it is half as many.
    brick_steps: int = 150
    #: Factor by which the first two passes reduce the volume along each axis, in bricks that are larger by the same
    #: factor. A third pass at full resolution follows, with a sixth of the steps. 1: no reduction and no third pass. By
    #: default 2 if there are at least 512 voxels per Gaussian and 64 along the shortest axis, otherwise 1.
    coarse_factor: int | None = None
    output: VolumeOutputConfig = field(default_factory=lambda: VolumeOutputConfig(format="", video=False))

    def check(self) -> None:
        """Raises ConfigError for the first value that is out of its range."""
        super().check()
        check_ranges(("brick", self.brick, 16, None), ("brick_steps", self.brick_steps, 2, None))
        if self.coarse_factor is not None:
            check_ranges(("coarse_factor", self.coarse_factor, 1, 8))
        if self.brick % 2:
            raise ConfigError(f"brick must be even, for half of it is a step of the second pass, got {self.brick}")

    def unused(self) -> dict[str, str]:
        """Options that a fit by bricks does not have."""
        why = "a fit by bricks has no such option"
        defaults, names = VolumeConfig(), ("crop", "target_psnr")
        own = {name: why for name in names if getattr(self, name) != getattr(defaults, name)}
        return super().unused() | own

    def settled(self) -> dict[str, str]:
        """Options that a resumed run keeps: dotted name -> what has been done with them already."""
        why = "the bricks were made by it"
        return {**super().settled(), **dict.fromkeys(("brick", "brick_steps", "coarse_factor", "strategy.budget"), why)}


class BrickTask:
    """Fits Gaussians to a volume, brick by brick.

    In the first pass, the Gaussians of earlier bricks stay fixed. What they add to a brick is subtracted from it, and
    its new Gaussians must also keep to what has been fitted beyond its border. The bricks of the second pass are
    shifted by half an edge, so that borders of the first pass lie inside them; all Gaussians of a brick are optimised
    again. If Gaussians are few, both passes work at a reduced resolution, and a third pass at all of it.

    Args:
        config: Options of the run. Its data_dir names the volume.

    Raises:
        UserError: Something in the config or on disk is not as required.
    """

    Config: ClassVar[type[RunConfig]] = BrickConfig
    VIEWS: ClassVar[Mapping[str, str]] = {"slices": "slices.png"}

    def __init__(self, config: BrickConfig) -> None:
        self.config = config = config.resolved()
        if config.model.name != "gaussians" or config.strategy.name != "residual":
            raise UserError(
                "a fit by bricks requires model.name gaussians and strategy.name residual, got "
                f"{config.model.name} and {config.strategy.name}"
            )
        if config.output.format not in ("", "npy"):
            raise UserError(
                "output.format of a fit by bricks must be npy, which is written block by block, or empty, got "
                f"{config.output.format}: scripts/voxelize.py writes other formats"
            )
        self.name = config.data_dir.name.split(".")[0]
        self.device = pick_volume_device(config)
        with user_errors():
            self.volume = BlockedVolume(config.data_dir, config.data, config.brick)
        self.notes = [f"{config.data_dir}: {line}" for line in self.volume.lines]
        if not self.volume.lazy:
            self.notes.append(
                f"{config.data_dir}: its format is read whole; zarr, HDF5, npy and raw are read piece by piece"
            )
        shape = "x".join(map(str, (self.volume.channels, *self.volume.shape)))
        self.fingerprint = f"voxels of shape {shape} (checksum {self.volume.checksum:08x})"
        #: The first pass averages this many voxels along each axis.
        self.coarse = config.coarse_factor or coarse_factor_for(self.volume.shape, config.strategy.budget)
        shortest = min(self.volume.shape)
        if shortest < self.coarse:
            raise UserError(f"coarse_factor must be at most {shortest}, the volume's shortest side, got {self.coarse}")
        self.reach = max(of_each(loss_reach(config.loss_kwargs), 3))
        self.passes = passes_of(self.volume.shape, config.brick, self.coarse, config.brick_steps)
        self.budgets = shares(self._weights(), config.strategy.budget, self.passes[0].cores, self.coarse)
        self.stages = self._stages()
        config.steps = self.stages[-1].first + self.stages[-1].steps
        told = [
            f"{len(each.cores)} of up to {config.brick * each.factor} voxels a side"
            f"{f' at 1/{each.factor} of the resolution' if each.factor > 1 else ''}"
            for each in self.passes
        ]
        self.notes.append(f"bricks: {', then '.join(told)}; {config.steps} steps in all")
        if (most := sum(self.budgets)) < config.strategy.budget:
            self.notes.append(
                f"bricks: at most {most} Gaussians, not the {config.strategy.budget} of strategy.budget: a brick gets "
                "no more than an eighth of what it has voxels"
            )
        #: Gaussians that are fitted, in voxels of the whole volume.
        self.tensors = self._none()
        self.stage: Stage | None = None
        self.fit: VolumeTask | None = None
        #: Number of Gaussians that the current brick of a later pass began with.
        self.begun = 0
        self.last_loss = float("nan")
        #: Projections of the last evaluation.
        self.projections: Projections | None = None

    # --- how the work is divided

    def _weights(self) -> list[float]:
        """Weight of each brick: its slopes and a little of its values, by which Gaussians are also drawn."""
        return [weight_of(self.volume, core) for core in self.passes[0].cores]

    def _stages(self) -> list[Stage]:
        """All stages of the run, in order. An empty brick has none."""
        stages, first = [], 0
        for turn, each in enumerate(self.passes):
            for place, core in enumerate(each.cores):
                if turn or self.budgets[place]:
                    stages.append(Stage(turn, place, core, first, each.steps))
                    first += each.steps
        return stages

    def _none(self) -> dict[str, Tensor]:
        shapes: dict[str, tuple[int, ...]] = {"means": (3,), "log_scales": (3,), "quats": (4,), "densities": ()}
        if self.volume.channels > 1:
            shapes["features"] = (self.volume.channels - 1,)
        return {name: torch.zeros(0, *shape, device=self.device) for name, shape in shapes.items()}

    # --- steps

    def step(self, index: int) -> Report:
        """A step of the current brick."""
        stage = self.stages[bisect.bisect_right(self.stages, index, key=lambda stage: stage.first) - 1]
        if self.stage != stage:
            self._begin(stage)
        if self.fit is not None:
            self.last_loss = float(self.fit.step(index - stage.first)["loss"])
        if index + 1 == stage.first + stage.steps:
            self._end()
        return Report({"loss": self.last_loss, "brick": stage.place, "gaussians": lambda: len(self)})

    def __len__(self) -> int:
        own = 0 if self.fit is None else len(self.fit.model.tensors["means"])
        return len(self.tensors["means"]) + own

    def _begin(self, stage: Stage) -> None:
        """Begins the fit of a brick, and removes the Gaussians that it will change from those that stay fixed."""
        self.stage = stage
        inside = self._inside(stage.core) if stage.turn else torch.zeros(len(self.tensors["means"]), dtype=torch.bool)
        own = {name: tensor[inside] for name, tensor in self.tensors.items()}
        self.tensors = {name: tensor[~inside] for name, tensor in self.tensors.items()}
        self.begun = len(own["means"])
        # In a later pass, the steps of a brick without Gaussians do nothing.
        self.fit = None if stage.turn and not self.begun else self._fit(stage, own)

    def _fit(self, stage: Stage, own: dict[str, Tensor]) -> VolumeTask:
        """The fit of a brick. It starts from the brick's Gaussians, or from its voxels if there are none."""
        region = self._region(stage)
        start, shape = region
        factor = self._factor(stage)
        config = self._brick_config(stage)
        target = Target(
            read_averaged(self.volume, region, factor).to(self.device),
            VoxelGrid(blocks_along(shape, factor)),
            self.volume.normalization,
            self._counted(stage)[None, None].to(self.device),
            "",
            self.volume.intensities,
        )
        base = self._field(self.tensors, region, factor)
        given = into(own, start, factor) if stage.turn else None
        return VolumeTask(config, target, base=base, tensors=given)

    def _brick_config(self, stage: Stage) -> VolumeConfig:
        """Options of the fit of a brick."""
        config, own = self.config, VolumeConfig()
        for name in ("loss", "loss_kwargs", "loss_every", "tv"):
            setattr(own, name, copy.deepcopy(getattr(config, name)))
        own.device = config.device
        own.seed, own.steps = (config.seed + stage.first) % 2**63, stage.steps
        own.model, own.optimizer = copy.copy(config.model), copy.copy(config.optimizer)
        own.strategy = copy.copy(config.strategy)
        own.output = VolumeOutputConfig(format="", ply=False, quantized=False, slices=False, video=False)
        own.output.progress = False
        if stage.turn == 0:
            own.strategy.budget = self.budgets[stage.place]
            return own
        own.strategy.budget, own.strategy.rounds = self.begun, min(_SECOND_ROUNDS, config.strategy.rounds)
        if stage.turn > 1:
            own.strategy.name = "none"
        return own

    def _end(self) -> None:
        """Ends the fit of a brick and adds its Gaussians to the others."""
        self.tensors = self.whole()
        self.fit = self.stage = None

    # --- space

    def _factor(self, stage: Stage) -> int:
        """The number of voxels along each axis that a stage averages."""
        return self.passes[stage.turn].factor

    def _region(self, stage: Stage) -> Block:
        return region_of(stage.core, (self.reach + MARGIN) * self._factor(stage), self.volume.shape)

    def _counted(self, stage: Stage) -> Tensor:
        """Weights of a stage's averaged voxels. Its core counts, and so do voxels around it that are fitted already."""
        factor, whole = self._factor(stage), ((0, 0, 0), self.volume.shape)
        done = [whole] if stage.turn else self.passes[0].cores[: stage.place + 1]
        region, *done = (in_blocks(block, factor) for block in (self._region(stage), *done))
        return counted(region, done, self.reach, blocks_along(self.volume.shape, factor))

    def _inside(self, block: Block) -> Tensor:
        """(N,) bool: the Gaussians whose centres lie in a block; at the volume's border, also those beyond it."""
        means = self.tensors["means"]
        low = [float(first) if first > 0 else -math.inf for first in block[0]]
        high = [
            float(first + count) if first + count < whole else math.inf
            for first, count, whole in zip(*block, self.volume.shape, strict=True)
        ]
        # Minus half a voxel, because a voxel's centre is its index.
        return ((means >= means.new_tensor(low) - 0.5) & (means < means.new_tensor(high) - 0.5)).all(1)

    @torch.no_grad()
    def _field(self, tensors: Mapping[str, Tensor], region: Block, factor: int = 1) -> Tensor:
        """The field of Gaussians in a region, at the centres of blocks of `factor` voxels."""
        start, shape = region
        means, reach = tensors["means"], 3 * tensors["log_scales"].exp().amax(1, keepdim=True)
        low, blocks = means.new_tensor(start), blocks_along(shape, factor)
        near = ((means + reach >= low) & (means - reach <= low + means.new_tensor(shape))).all(1)
        if not near.any():
            return torch.zeros(self.volume.channels, *blocks, device=self.device)
        chosen = {name: tensor[near] for name, tensor in tensors.items()}
        values: Tensor = GaussianField(into(chosen, start, factor))(VoxelGrid(blocks))
        return values

    @torch.no_grad()
    def whole(self) -> dict[str, Tensor]:
        """All Gaussians, including those of the current brick, in voxels of the volume."""
        if self.fit is None or self.stage is None:
            return dict(self.tensors)
        own = {name: tensor.detach() for name, tensor in self.fit.model.tensors.items()}
        own = out_of(own, self._region(self.stage)[0], self._factor(self.stage))
        return {name: torch.cat([tensor, own[name]]) for name, tensor in self.tensors.items()}

    # --- the interface for the loop

    def field(self, region: Block) -> Tensor:
        """The field (C, …) in a region, for comparisons. It is clamped to [0, 1] if the volume is."""
        values = self._field(self.whole(), region)
        return values.clamp(0, 1) if self.volume.normalization.clip else values

    def evaluate(self, pictures: Path | None = None) -> dict[str, Any]:
        """Computes PSNR and SSIM of the whole volume, block by block. Draws slices through its middle."""
        if pictures is not None and self.config.output.slices:
            save_middle_slices(pictures, self.volume, self.field)
        found, self.projections = evaluate_blocks(self.volume, self.field)
        return found

    def export(self, folder: Path) -> dict[str, Any]:
        """Writes the Gaussians as PLY and quantised, and the field as npy if requested. Returns their sizes."""
        output, gaussians = self.config.output, self.gaussians()
        metrics: dict[str, Any] = {
            "num_gaussians": len(gaussians),
            "parameters": len(gaussians) * (GAUSSIAN_FLOATS + self.volume.channels - 1),
            "bytes": gaussians.nbytes,
        }
        if output.format == "npy":
            write_npy(folder / "volume.npy", self.volume, self.field, self.config.brick)
        if output.ply:
            save_gaussians_ply(folder / "gaussians.ply", gaussians, gaussians.source)
        if output.quantized:
            path = folder / "gaussians.quantized"
            save_quantized(path, gaussians, self.volume.grid, source=gaussians.source)
            metrics["bytes_quantized"] = path.stat().st_size
        return metrics

    def gaussians(self) -> GaussianField:
        """The Gaussians as they lie in the world, with their source."""
        scale = self.volume.normalization
        source = FieldSource(self.volume.grid, scale.low, scale.high, scale.clip, self.volume.unit)
        return GaussianField(*in_world(self.whole(), self.volume.grid, source))

    def report(self, folder: Path, evaluation: Mapping[str, Any], *, views: int = 12, **_: Any) -> Path:
        """Writes report.html; see `volume.report.write_volume_report`. Only the slices that it shows are read."""
        from .report import Shown, write_volume_report

        volume = self.volume
        if self.projections is None:
            self.evaluate()
        assert self.projections is not None
        shown = Shown(
            lambda axis, index: shown_planes(volume, self.field, axis, index),
            volume.grid,
            volume.channels,
            projections=self.projections.planes,
        )
        return write_volume_report(self, folder, evaluation, shown, views=views, notes=self.notes)

    def render(self, views: str, output: Path, frames: int) -> None:
        """Slices through the middle of the volume, beside it and with the error."""
        save_middle_slices(output.with_suffix(""), self.volume, self.field)
        print(f"{output.with_suffix('')}: a slice across each axis", file=sys.stderr)

    def state_dict(self) -> dict[str, Any]:
        """The fitted Gaussians, and the fit of the current brick."""
        return {
            "tensors": dict(self.tensors),
            "last_loss": self.last_loss,
            "stage": -1 if self.stage is None else self.stage.first,
            "begun": self.begun,
            "fit": self.fit.state_dict() if self.fit is not None else {},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        tensors, first = state["tensors"], state["stage"]
        if len(tensors["means"]):
            check_rows(tensors, self._none(), "tensors")
        self.tensors = {name: tensor.to(self.device) for name, tensor in tensors.items()}
        self.last_loss = number_of(state["last_loss"], "last_loss")
        self.stage, self.fit = next((stage for stage in self.stages if stage.first == first), None), None
        self.begun = int(state["begun"])
        if self.stage is not None and state["fit"]:
            count = len(state["fit"]["tensors"]["means"])
            own = {name: tensor.new_zeros(count, *tensor.shape[1:]) for name, tensor in self._none().items()}
            self.fit = self._fit(self.stage, own)
            self.fit.load_state_dict(state["fit"])
