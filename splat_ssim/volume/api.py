"""Fitting Gaussians to a volume from Python."""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import user_errors
from ..trainer.folder import check_folder
from ..trainer.loop import Run, run
from ..trainer.unkept import Unkept
from .config import VolumeConfig
from .device import pick_volume_device
from .gaussians import GaussianField
from .io import Volume, array_volume, load_volume, save_volume
from .memory import check_memory
from .stored import plain_array
from .target import Target, make_target
from .training import VolumeTask

#: Voxels for each Gaussian of the default budget.
_VOXELS_A_GAUSSIAN = 20
#: What a volume in memory is called in messages.
_NAME = "volume"


def fit(
    volume: str | Path | np.ndarray | Tensor | Volume,
    *,
    mask: str | Path | np.ndarray | Tensor | Volume | None = None,
    spacing: float | Sequence[float] | None = None,
    origin: float | Sequence[float] | None = None,
    axes: str | None = None,
    read: Mapping[str, Any] | None = None,
    budget: int | None = None,
    steps: int | None = None,
    target_psnr: float | None = None,
    normalize: Literal["auto", "minmax", "max", "window", "percentile", "none"] | None = None,
    low: float | None = None,
    high: float | None = None,
    seed: int | None = None,
    device: Literal["auto", "cpu", "cuda"] | None = None,
    progress: bool = False,
    folder: str | Path | None = None,
    config: VolumeConfig | None = None,
) -> GaussianField:
    """Fits 3D Gaussians to a volume, as `scripts/train.py` does, and returns them.

    Args:
        volume: A file or folder that `load_volume` reads; an array or tensor (n0, n1, n2), or (C, n0, n1, n2) with few
            channels, of any real dtype and on any device; or a `Volume`.
        mask: Weights of the voxels, 0 or more: a file, a (n0, n1, n2) array on the voxels of `volume`, or a `Volume`.
            They weight the initial positions, the growth, the loss and the metrics.
        spacing: Distance between voxel centres along the world's x, y, z: three numbers, or one for all. By default 1
            for an array, and what the file says for a file.
        origin: World x, y, z of voxel (0, 0, 0). By default 0 for an array, and what the file says for a file.
        axes: The world axis that each axis of the array follows. By default "zyx" for an array, "czyx" with channels.
        read: Further options of `load_volume` for a file, such as {"key": "raw"}.
        budget: Largest number of Gaussians. By default the config's 50,000, but at most one for every 20 voxels.
        steps: Number of steps of the fit. By default the config's 4000.
        target_psnr: Ends the fit once its PSNR in dB (inside the mask, if there is one) reaches this, checked every 50
            steps. If it is not reached, a warning says so. By default the fit has its full length.
        normalize: Which intensities are fitted as 0 and 1, as for `choose_normalization`. By default nothing is cut
            off.
        low: Intensity that is fitted as 0, given together with `high`. With normalize="percentile": the percentile of
            the intensities that is fitted as 0, 0.5 by default. Lower values are cut off.
        high: Intensity that is fitted as 1, given together with `low`. With normalize="percentile": the percentile of
            the intensities that is fitted as 1, 99.5 by default. Higher values are cut off.
        seed: Seed of every random draw. The same seed on the same machine gives the same field.
        device: auto, cpu or cuda.
        progress: Whether to show a progress bar and what was read. With False, assumptions are issued as Python
            warnings.
        folder: Folder that keeps the run, with the same files as scripts/train.py: checkpoints, exports and
            metrics.json. A volume in memory is saved there too. By default nothing is written.
        config: All other options. The arguments above override it.

    Returns:
        The field, on the device of the fit, with `source` (the grid and the intensities), `metrics` (those of
        metrics.json) and `notes` (what was read, cut off and assumed).

    Raises:
        ValueError: The volume, the mask or an option is not as required.
        FileNotFoundError: There is nothing at a path.
        TypeError: The voxels are not real numbers.

    Example:
        >>> import numpy as np
        >>> from splat_ssim.volume import fit
        >>> z, y, x = np.mgrid[-1:1:20j, -1:1:20j, -1:1:20j]
        >>> ball = 1000 * np.exp(-3 * (x**2 + y**2 + z**2))  # (20, 20, 20), z first
        >>> field = fit(ball, spacing=0.5, budget=50, steps=60, device="cpu")
        >>> len(field), field.metrics["psnr3d"] > 30
        (50, True)
        >>> field.render().shape
        torch.Size([1, 20, 20, 20])
    """
    chosen = _config(config, locals())
    options = {"spacing": spacing, "origin": origin, "axes": axes}
    if isinstance(volume, str | Path):
        chosen.data_dir = Path(volume)
        chosen.data.read = {**chosen.data.read, **(read or {}), **{k: v for k, v in options.items() if v is not None}}
        check_memory(chosen.data_dir, chosen.data.read, pick_volume_device(chosen).type)
        loaded = load_volume(chosen.data_dir, **chosen.data.read)
        placed = not {"spacing", "origin", "axes"}.isdisjoint(chosen.data.read)
    elif read:
        raise ValueError(f"read applies to files only, got {dict(read)} for a volume in memory")
    else:
        chosen.data_dir, placed = Path(_NAME), True
        loaded = _in_memory(volume, options)
    weights = _mask(mask, loaded)
    if budget is None:
        voxels = loaded.data[0].size if weights is None else int((weights.data > 0).sum())
        chosen.strategy.budget = min(chosen.strategy.budget, max(1, voxels // _VOXELS_A_GAUSSIAN))
    with user_errors():
        target = make_target(loaded, chosen.data, mask=weights, name=str(chosen.data_dir), placed=placed)
    for line in target.lines:
        if progress:
            print(line, file=sys.stderr)
        elif not line.startswith(f"{chosen.data_dir}: values:"):
            warnings.warn(line, stacklevel=2)
    field = _trained(chosen, target, loaded, weights, folder, kept=isinstance(volume, str | Path))
    if target_psnr is not None and not field.metrics["target_psnr_reached"]:
        reached = field.metrics.get("psnr3d_masked", field.metrics["psnr3d"])
        warnings.warn(
            f"target_psnr {target_psnr:g} was not reached after {chosen.steps} steps with {len(field)} Gaussians: "
            f"{reached:.2f} dB",
            stacklevel=2,
        )
    return field


def _config(config: VolumeConfig | None, given: Mapping[str, Any]) -> VolumeConfig:
    """A copy of the config with the options that are given."""
    chosen = copy.deepcopy(config) if config is not None else VolumeConfig()
    if chosen.resume is not None or chosen.model.name != "gaussians":
        raise ValueError(
            "config must be for a new fit of Gaussians, "
            f"got resume={chosen.resume} and model.name={chosen.model.name!r}"
        )
    for part, names in (
        (chosen, ("steps", "target_psnr", "seed", "device")),
        (chosen.data, ("normalize", "low", "high")),
        (chosen.strategy, ("budget",)),
    ):
        for name in names:
            if given[name] is not None:
                setattr(part, name, given[name])
    chosen.output.progress = given["progress"]
    unused = chosen.unused()
    for name, why in unused.items():
        if given.get(name.rpartition(".")[2]) is not None:
            raise ValueError(f"{name.rpartition('.')[2]} has no meaning: {why}")
    return chosen


def _array(values: np.ndarray | Tensor, name: str) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    return plain_array(values, name)


def _in_memory(volume: np.ndarray | Tensor | Volume, options: dict[str, Any]) -> Volume:
    if not isinstance(volume, Volume):
        return array_volume(_array(volume, _NAME), **options)
    given = {name: value for name, value in options.items() if value is not None}
    if given:
        raise ValueError(f"a Volume has its own grid: {', '.join(given)} must be None, got {given}")
    return volume


def _mask(mask: str | Path | np.ndarray | Tensor | Volume | None, volume: Volume) -> Volume | None:
    if mask is None or isinstance(mask, Volume):
        return mask
    if isinstance(mask, str | Path):
        return load_volume(mask)
    weights = _array(mask, "mask")
    if weights.shape != volume.grid.shape:
        raise ValueError(f"mask must have shape {volume.grid.shape}, that of the volume's voxels, got {weights.shape}")
    return Volume(weights[None], volume.grid)


def _trained(
    config: VolumeConfig, target: Target, volume: Volume, mask: Volume | None, folder: str | Path | None, *, kept: bool
) -> GaussianField:
    """Runs a fit in memory or in a folder, and returns the field. `kept` says that the volume is already a file."""
    # A caller's own draws go on as if nothing had happened.
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        if folder is None:
            config.checkpoint_every = 0
            task = VolumeTask(config, target)
            one: Run = Unkept(task)
            one.train()
            one.save()
            metrics = {**one.evaluate(), **task.reached(), "step": one.step, "train_seconds": one.train_seconds}
        else:
            config.result_dir = Path(folder)
            check_folder(config.result_dir)
            if not kept:
                config.data_dir = save_volume(config.result_dir / "source.npy", volume)
            if mask is not None:
                config.data.mask = save_volume(config.result_dir / "mask.npy", mask)
            task = VolumeTask(config, target)
            metrics = run(task)
    field = task.gaussians()
    field.metrics, field.notes = metrics, target.lines
    return field
