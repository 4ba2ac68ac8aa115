"""Training a scene from Python."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from splat_ssim.scene.config import SceneConfig
from splat_ssim.scene.data import Scene, View
from splat_ssim.scene.export import save_trained
from splat_ssim.scene.presets import preset_values
from splat_ssim.scene.training import SceneTask
from splat_ssim.trainer.config import from_mapping, overlaid
from splat_ssim.trainer.folder import check_folder
from splat_ssim.trainer.loop import Run, run
from splat_ssim.trainer.unkept import Unkept


@dataclass
class TrainedScene:
    """A trained scene.

    Attributes:
        task: The task that was trained. It has the Gaussians and the scene.
        metrics: Contents of metrics.json: psnr, ssim, num_gaussians, train_seconds and others.
        notes: One line for each thing that was read, left out or assumed.
    """

    task: SceneTask
    metrics: dict[str, Any]
    notes: list[str]

    @property
    def splats(self) -> dict[str, Tensor]:
        """Means (N, 3), quats (N, 4), logarithms of scales (N, 3), logits of opacities (N,), sh0 and shN."""
        return {name: value.detach() for name, value in self.task.splats.items()}

    def render(self, view: View) -> Tensor:
        """Renders a view. Returns (H, W, 3) colours in [0, 1], on the device of the training."""
        return self.task.picture(view)[0].clamp(0, 1)

    def save(self, path: str | Path) -> list[str]:
        """Writes the Gaussians in the format that the suffix names.

        Args:
            path: File to write: .ply, .compressed.ply, .splat, .spz, .sog or .glb.

        Returns:
            One line for each thing that was clipped or left out. docs/export.md says what each format keeps.

        Raises:
            UserError: The suffix names no format, or the format cannot hold these Gaussians.
        """
        return save_trained(path, self.task)


def train(
    scene: str | Path | Scene,
    *,
    preset: Literal["auto", "object", "photos", "none"] = "auto",
    quality: Literal["fast", "default", "quality"] = "default",
    steps: int | None = None,
    budget: int | None = None,
    seed: int | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    progress: bool = False,
    folder: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
) -> TrainedScene:
    """Trains Gaussians on the images of a scene, as `scripts/train.py` does, and returns them.

    Args:
        scene: A scene folder (Blender, COLMAP, nerfstudio), or the result of `splat_ssim.scene.data.load_scene`.
        preset: Defaults that suit a kind of data: "object", "photos", "auto" (chosen by the data) or "none".
        quality: Quality of the preset: how long it trains, and with how many Gaussians.
        steps: Number of training steps. By default the preset's.
        budget: Largest number of Gaussians. By default the preset's.
        seed: Seed of every random draw. The same seed on the same machine gives the same Gaussians.
        device: auto, cpu or cuda.
        progress: Whether to show a progress bar and what was read.
        folder: Folder that keeps the run, with the same files as scripts/train.py: checkpoints, pictures, scene.ply and
            metrics.json. By default nothing is written.
        options: All other options, as in a config file: {"data": {"factor": 2}, "loss": "l1"}.

    Returns:
        The trained scene.

    Raises:
        ValueError: An option or a file is not as required. The message names it.

    Example:
        >>> from splat_ssim.scene import train
        >>> trained = train("assets/chair_200", steps=30, budget=300, device="cpu", options={"data": {"factor": 4}})
        >>> len(trained.splats["means"]), trained.metrics["psnr"] > 10
        (300, True)
        >>> trained.render(trained.task.scene.test[0]).shape
        torch.Size([50, 50, 3])
    """
    data = dict((options or {}).get("data", {}))
    if isinstance(scene, Scene):
        place, format = Path(scene.name), scene.format
        kind = preset if preset != "auto" else _kind_of(scene)
    else:
        place, format, kind = Path(scene), data.get("format", "auto"), preset
    values = overlaid(preset_values(kind, quality, place, format), options or {})
    config = from_mapping(SceneConfig, values, "options")
    config.data_dir, config.device, config.output.progress = place, device, progress
    for part, name, value in ((config, "steps", steps), (config, "seed", seed), (config.strategy, "budget", budget)):
        if value is not None:
            setattr(part, name, value)
    if folder is not None:
        config.result_dir = Path(folder)
        check_folder(config.result_dir)
    else:
        config.checkpoint_every = 0
    read = scene if isinstance(scene, Scene) else None
    # A caller's own draws go on as if nothing had happened.
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        task = SceneTask(config, read)
        if progress:
            print(*task.notes, sep="\n")
        metrics = run(task) if folder is not None else _in_memory(task)
    return TrainedScene(task, metrics, task.notes)


def _kind_of(scene: Scene) -> str:
    """The preset's kind for a scene that was read."""
    return "object" if any(view.is_transparent for view in scene.train) else "photos"


def _in_memory(task: SceneTask) -> dict[str, Any]:
    """Trains without a folder. Returns what metrics.json would hold."""
    one: Run = Unkept(task)
    one.train()
    one.save()
    return {
        **{name: value for name, value in one.evaluate().items() if name != "views"},
        "num_gaussians": len(task.splats["means"]),
        "step": one.step,
        "train_seconds": round(one.train_seconds, 3),
    }
