"""Fitting a model to a volume: from a config to a run folder."""

from __future__ import annotations

import inspect
import math
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..ops.voxelize_cuda import has_kernels
from ..registry import get_loss, l1_loss
from ..trainer.checkpoint import load_checkpoint, save_checkpoint
from ..trainer.config import write_yaml
from ..trainer.evaluation import write_json
from ..trainer.training import pick_device
from .config import VolumeConfig, VolumeDataConfig
from .crops import make_crop, random_crop
from .evaluation import evaluate_volume
from .export import load_quantized, save_gaussians_ply, save_quantized
from .gaussians import GAUSSIAN_FLOATS, CappedGrowth, GaussianField, sort_gaussians, voxel_size
from .grid import VoxelGrid
from .grid_model import GridField, grid_shape
from .io import Volume, load_volume, save_volume
from .losses import tv3d
from .normalization import Normalization, choose_normalization
from .pictures import save_mip_video, save_slice_sheet
from .strategies import StrategyGrowth, make_growth

#: Steps between two Morton sorts, and between two refreshes of the progress bar.
SORT_EVERY, REPORT_EVERY = 200, 25

#: SSIM's window is 11 voxels wide: what a crop has to see around it.
HALO = 5


@dataclass
class Target:
    """What is fitted: normalised values, their grid, how they came from the file, and weights."""

    values: Tensor  # [C, n0, n1, n2] float32
    grid: VoxelGrid
    normalization: Normalization
    mask: Tensor | None  # [1, 1, n0, n1, n2]

    def to(self, device: torch.device) -> Target:
        """The same with its tensors on a device."""
        mask = None if self.mask is None else self.mask.to(device)
        return Target(self.values.to(device), self.grid, self.normalization, mask)


def fit(config: VolumeConfig) -> dict[str, Any]:
    """Runs a config: volume, fit, evaluation, export. Returns what metrics.json holds.

    Raises:
        ValueError: Something in the config or on disk is not as required; nothing has been fitted yet.
    """
    fitting = Fitting(config)
    fitting.run()
    return fitting.finish()


def pick_volume_device(config: VolumeConfig) -> torch.device:
    """The device of --device; auto is CUDA where torch sees one and the voxeliser's kernels run on it.

    Raises:
        ValueError: cuda is asked for and not reached, or Gaussians would have to be fitted without the kernels there.
    """
    device = pick_device(config.device)
    if device.type != "cuda" or config.model.name != "gaussians":
        return device
    # By the definition in plain torch, on whatever device, every Gaussian meets every voxel.
    if has_kernels(torch.device("cuda", torch.cuda.current_device())):
        return device
    if config.device == "cuda":
        raise ValueError("--device cuda requires this package's CUDA kernels to fit Gaussians, got none (see above)")
    return torch.device("cpu")


def read_target(path: Path, config: VolumeDataConfig) -> Target:
    """The volume of a file, normalised, with its mask.

    Raises:
        ValueError: A volume that does not read, spans no range, or has another shape than its mask.
    """
    options = list(inspect.signature(load_volume).parameters)[1:]
    for name in config.read:
        if name not in options:
            raise ValueError(f"data.read must hold {', '.join(options)} only, got {name!r}")
    volume = load_volume(path, **config.read)
    bounds = None if config.low is None or config.high is None else (config.low, config.high)
    normalization = choose_normalization(
        volume.data, config.normalize, window=bounds, **({"percentiles": bounds} if bounds else {})
    )
    mask = None
    if config.mask is not None:
        mask_volume = load_volume(config.mask)
        weights = mask_volume.data
        if weights.shape != (1, *volume.grid.shape) or weights.min() < 0 or not weights.any():
            raise ValueError(
                f"mask must be one channel of weights of 0 or more, not all 0, on {volume.grid.shape}, got "
                f"{weights.shape} from {weights.min()} to {weights.max()}"
            )
        _check_place(mask_volume.grid, volume.grid, given=not {"spacing", "origin", "axes"}.isdisjoint(config.read))
        mask = torch.from_numpy(np.ascontiguousarray(weights, dtype=np.float32))[None]
    # NIfTI files are Fortran-ordered: the kernels would copy such a target in every step.
    values = np.ascontiguousarray(normalization.apply(volume.data))
    return Target(torch.from_numpy(values), volume.grid, normalization, mask)


def _check_place(mask: VoxelGrid, volume: VoxelGrid, *, given: bool) -> None:
    """Refuses a mask whose file says that it lies elsewhere; `given`: the config says where the volume lies."""
    silent = VoxelGrid.regular(volume.shape).affine
    if given or silent in (mask.affine, volume.affine):
        return
    # To a tenth of a voxel over the whole volume: headers keep float32.
    corners = torch.tensor(volume.shape, dtype=torch.float64) * torch.tensor([[0.0] * 3, *torch.eye(3).tolist()])
    apart = float((mask.to_index(volume.to_world(corners)) - corners).abs().max())
    if apart > 0.1:
        raise ValueError(
            f"mask must lie where the volume does, got an affine that puts it up to {apart:.3g} voxels away; "
            f"mask {[list(row) for row in mask.affine[:3]]}, volume {[list(row) for row in volume.affine[:3]]}"
        )


class Fitting:
    """One run: target, model, loss, growth and optimiser, and the loop over them."""

    def __init__(self, config: VolumeConfig) -> None:
        self.config = config = config.resolved()
        self.device = pick_volume_device(config)
        torch.manual_seed(config.seed)
        self.loss = get_loss(config.loss, **config.loss_kwargs)
        self.target = read_target(config.data_dir, config.data).to(self.device)
        # On the CPU for every device: the same seed draws the same, and a run may go on elsewhere.
        self.generator = torch.Generator().manual_seed(config.seed)
        self.growth: CappedGrowth | StrategyGrowth | None = None
        self.levels: dict[int, tuple[int, ...]] = {}  # step -> nodes of the grid from then on
        self.model = self._gaussians() if config.model.name == "gaussians" else self._grid()
        self.optimizer = self._optimizer()
        if isinstance(self.growth, StrategyGrowth) and isinstance(self.model, GaussianField):
            self.growth.check(self.model, self.optimizer)
        self.step = 0
        self.train_seconds = 0.0
        self.last_loss = math.nan
        self.folder = self._open_folder()
        if config.resume is not None:
            self._load()
        else:
            # So that a run killed before its first checkpoint resumes like any other.
            self.save()

    def run(self) -> None:
        """Fits from the current step to the last."""
        config = self.config
        bar = tqdm(
            total=config.steps, initial=self.step, unit="it", disable=not config.output.progress, dynamic_ncols=True
        )
        while self.step < config.steps:
            start = time.perf_counter()
            loss = self.fit_step(self.step)
            self.step += 1
            self.change_model()
            report = self.step % REPORT_EVERY == 0 or self.step == config.steps
            if report:
                # Waits for the device: so the seconds are those of the work, not of handing it over.
                self.last_loss = float(loss)
            self.train_seconds += time.perf_counter() - start
            bar.update()
            if report:
                bar.set_postfix(loss=f"{self.last_loss:.4g}", parameters=self.parameters, refresh=False)
            if config.output.eval_every and self.step % config.output.eval_every == 0 and self.step < config.steps:
                result = self.evaluate()
                bar.write(
                    f"step {self.step}, {self.train_seconds:.0f} s: {result['psnr3d']:.2f} dB, "
                    f"SSIM3D {result['ssim3d']:.4f}, {self.parameters} parameters"
                )
            if config.checkpoint_every and self.step % config.checkpoint_every == 0:
                self.save()
        bar.close()

    def fit_step(self, step: int) -> Tensor:
        """One step: read the field, compare, step the optimiser. Returns the loss."""
        config, target = self.config, self.target
        shape = target.grid.shape
        mask: Tensor | None
        if config.crop:
            crop = random_crop(shape, config.crop, halo=HALO, generator=self.generator)
            mask = crop.mask(self.device) if target.mask is None else crop.mask(self.device) * crop.of(target.mask)
        else:
            crop, mask = make_crop(shape, (0, 0, 0), shape, halo=0), target.mask
        pred, wanted = self.model(crop.grid(target.grid)), crop.of(target.values)
        criterion = self.loss if step % config.loss_every == 0 else l1_loss
        result = criterion(pred[None], wanted[None], mask=mask)
        loss = result[0] if isinstance(result, tuple) else result
        if config.tv:
            loss = loss + config.tv * tv3d(pred)
        # The last step's gradients are there until now: growth reads them.
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._set_learning_rates(step)
        self.optimizer.step()
        if isinstance(self.model, GaussianField):
            floor = math.log(config.model.min_sigma * voxel_size(target.grid))
            self.model.tensors["log_scales"].data.clamp_(min=floor)
        return loss.detach()

    def change_model(self) -> None:
        """What happens between steps: growth, sorting, refinement of the grid."""
        if isinstance(self.model, GridField):
            if self.step in self.levels:
                self.model = self.model.upsampled(self.levels[self.step])
                self.optimizer = self._optimizer()
            return
        model, target = self.model, self.target
        grew = False
        if isinstance(self.growth, CappedGrowth):
            grew = self.growth.step(self.step, model, self.optimizer, target.values, target.grid, self.generator)
        elif self.growth is not None:
            grew = self.growth.step(self.step, model, self.optimizer)
        if grew or self.step % SORT_EVERY == 0:
            order = sort_gaussians(model, self.optimizer, target.grid)
            if isinstance(self.growth, StrategyGrowth):
                self.growth.reorder(order)

    @torch.no_grad()
    def field(self) -> Tensor:
        """The whole volume as it is compared and exported: cut to [0, 1] if the target is."""
        volume = self.model(self.target.grid)
        return volume.clamp(0, 1) if self.target.normalization.clip else volume

    def evaluate(self) -> dict[str, float]:
        """PSNR and SSIM of the whole volume."""
        return evaluate_volume(self.field(), self.target.values, data_range=self.target.normalization.data_range)

    @property
    def parameters(self) -> int:
        """Numbers the model consists of."""
        return self.model.nbytes // 4

    def finish(self) -> dict[str, Any]:
        """Last checkpoint, evaluation, exports, pictures, metrics.json."""
        self.save()
        config, target = self.config, self.target
        volume = self.field()
        metrics: dict[str, Any] = {
            **evaluate_volume(volume, target.values, data_range=target.normalization.data_range),
            "num_gaussians": len(self.model) if isinstance(self.model, GaussianField) else 0,
            "parameters": self.parameters,
            "bytes": self.model.nbytes,
            "train_seconds": round(self.train_seconds, 3),
            "step": self.step,
            "device": self.device.type,
            "loss": config.loss,
            "final_loss": self.last_loss,
        }
        if config.data_dir.is_file():
            metrics["source_bytes"] = config.data_dir.stat().st_size
        if config.output.format:
            data = target.normalization.invert(volume.cpu().numpy())
            save_volume(self.folder / f"volume.{config.output.format}", Volume(data, target.grid))
        if isinstance(self.model, GaussianField):
            metrics.update(self._export_gaussians(self.model))
        if config.output.slices:
            save_slice_sheet(
                self.folder / "pictures" / "slices.png", volume, target.values, spacing=target.grid.spacing
            )
        if config.output.video:
            axis, runs_down = target.grid.upright
            upwards = volume.flip(1 + axis) if runs_down else volume
            save_mip_video(self.folder / "pictures" / "mip.mp4", upwards, axis=axis, spacing=target.grid.spacing)
        write_json(self.folder / "metrics.json", metrics)
        print(
            f"{metrics['psnr3d']:.2f} dB, SSIM3D {metrics['ssim3d']:.4f}, {metrics['parameters']} parameters, "
            f"{metrics['train_seconds']:.0f} s; {self.folder}"
        )
        return metrics

    def _export_gaussians(self, field: GaussianField) -> dict[str, Any]:
        """PLY and the quantised file; what the latter weighs and costs."""
        metrics: dict[str, Any] = {}
        if self.config.output.ply:
            save_gaussians_ply(self.folder / "gaussians.ply", field)
        if self.config.output.quantized:
            path = save_quantized(self.folder / "gaussians.quantized", field, self.target.grid)
            with torch.no_grad():
                volume = load_quantized(path).to(self.device)(self.target.grid)
            volume = volume.clamp(0, 1) if self.target.normalization.clip else volume
            found = evaluate_volume(volume, self.target.values, data_range=self.target.normalization.data_range)
            metrics["bytes_quantized"] = path.stat().st_size
            metrics.update({f"{name}_quantized": value for name, value in found.items()})
        return metrics

    def save(self) -> None:
        """Writes a checkpoint."""
        save_checkpoint(
            self.folder,
            {
                "tensors": dict(self.model.tensors.items()),
                "optimizer": self.optimizer.state_dict(),
                "step": self.step,
                "train_seconds": self.train_seconds,
                "last_loss": self.last_loss,
                "draws": self.generator.get_state(),
                "strategy": self.growth.state if isinstance(self.growth, StrategyGrowth) else {},
            },
        )

    def _load(self) -> None:
        state = load_checkpoint(self.folder, self.device)
        tensors = {name: tensor.detach() for name, tensor in state["tensors"].items()}
        self.model = (
            GaussianField(tensors)
            if isinstance(self.model, GaussianField)
            else GridField(tensors["nodes"], self.target.grid)
        )
        self.optimizer = self._optimizer()
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.train_seconds, self.last_loss = state["step"], state["train_seconds"], state["last_loss"]
        self.generator.set_state(state["draws"].cpu())
        if isinstance(self.growth, StrategyGrowth):
            self.growth.state = state["strategy"]

    def _gaussians(self) -> GaussianField:
        config = self.config
        budget, count = config.strategy.budget, config.strategy.budget
        if config.strategy.name != "none":
            count = max(1, round(budget * config.model.start))
        if config.strategy.name == "residual":
            last = max(1, round(config.steps * config.strategy.stop))
            rounds = config.strategy.rounds
            at_steps = sorted({max(1, round(last * (k + 1) / rounds)) for k in range(rounds)})
            self.growth = CappedGrowth(
                budget, tuple(at_steps), recycle=config.strategy.recycle, sigma=config.strategy.sigma
            )
        elif config.strategy.name != "none":
            self.growth = make_growth(config.strategy, config.steps, count, self.target.grid)
        return GaussianField.from_volume(
            self.target.values, self.target.grid, count, spread=config.model.spread, generator=self.generator
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
        size = voxel_size(self.target.grid)
        return {name: getattr(optimizer, name) * (size if name == "means" else 1.0) for name in self.model.tensors}

    def _optimizer(self) -> torch.optim.Optimizer:
        groups = [
            {"params": [tensor], "name": name, "lr": rate}
            for (name, tensor), rate in zip(self.model.tensors.items(), self._rates().values(), strict=True)
        ]
        # The loss is a mean over voxels: gradients are that much smaller than the usual epsilon expects.
        epsilon = 1e-8 / self.target.values.numel()
        return torch.optim.Adam(groups, betas=(0.9, self.config.optimizer.beta2), eps=epsilon, fused=True)

    def _set_learning_rates(self, step: int) -> None:
        optimizer = self.config.optimizer
        factor = optimizer.final ** (step / self.config.steps) * min(1.0, (step + 1) / max(1, optimizer.warmup))
        rates = self._rates()
        for group in self.optimizer.param_groups:
            group["lr"] = rates[group["name"]] * factor

    def _open_folder(self) -> Path:
        config = self.config
        folder = config.result_dir or Path("results") / config.data_dir.name.split(".")[0] / datetime.now().strftime(
            "%Y%m%d-%H%M%S"
        )
        folder.mkdir(parents=True, exist_ok=True)
        if config.resume is None:
            write_yaml(folder / "config.yaml", config)
        return folder
