"""Run folders read back: evaluate or render what a run has trained."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import Tensor

from splat_ssim.trainer.checkpoint import load_checkpoint
from splat_ssim.trainer.config import Config, from_mapping, read_yaml
from splat_ssim.trainer.data import Scene, View
from splat_ssim.trainer.evaluation import evaluate, save_image, write_json
from splat_ssim.trainer.model import Splats, render
from splat_ssim.trainer.training import pick_device, read_scene
from splat_ssim.trainer.video import orbit, write_video


@dataclass
class Run:
    """A trained scene and where it came from."""

    folder: Path
    config: Config
    scene: Scene
    splats: Splats
    step: int
    device: torch.device
    #: How the opacities are stored: see `activated_opacities`.
    opacity_activation: str = "sigmoid"

    def render(self, view: View) -> Tensor:
        """(1, H, W, 3) colours of a view."""
        model = self.config.model
        background = torch.tensor(self.scene.background, device=self.device)
        with torch.no_grad():
            return render(
                self.splats,
                view.to(self.device),
                sh_degree=model.sh_degree,
                background=background,
                antialiased=model.antialiased,
                opacity_activation=self.opacity_activation,
            )[0]


def load_run(folder: Path, *, device: str = "auto", data_dir: Path | None = None) -> Run:
    """The last checkpoint of a run folder, with its config and scene.

    Args:
        folder: Run folder, as `scripts/train.py` writes.
        device: auto, cpu or cuda.
        data_dir: The scene folder, if it is no longer where the run found it.

    Raises:
        ValueError: The folder is no run folder, or the scene does not read.
    """
    config = from_mapping(Config, read_yaml(folder / "config.yaml"), str(folder / "config.yaml"))
    if data_dir is not None:
        config = replace(config, data_dir=data_dir)
    where = pick_device(device)
    state = load_checkpoint(folder, where, restore_generators=False)
    activation = state["strategy"].get("opacity_activation", "sigmoid")
    return Run(folder, config, read_scene(config), Splats(state["splats"]), state["step"], where, activation)


def evaluate_run(
    folder: tyro.conf.Positional[Path], *, device: str = "auto", data_dir: Path | None = None
) -> dict[str, Any]:
    """Evaluates a run folder's last checkpoint on its test views.

    Args:
        folder: Run folder.
        device: auto, cpu or cuda.
        data_dir: The scene folder, if it has moved.

    Returns:
        What eval/<step>.json holds.
    """
    run = load_run(folder, device=device, data_dir=data_dir)
    views = [view.to(run.device) for view in run.scene.test or run.scene.train]
    result = evaluate(run.render, views, ssim_padding=run.config.output.ssim_padding)
    (folder / "eval").mkdir(exist_ok=True)
    write_json(folder / "eval" / f"{run.step:07d}.json", {"step": run.step, **result})
    print(
        f"step {run.step}: {result['psnr']:.2f} dB, SSIM {result['ssim']:.4f} (padding {result['ssim_padding']}) "
        f"on {len(views)} views"
    )
    return result


def render_run(
    folder: tyro.conf.Positional[Path],
    *,
    views: Literal["orbit", "train", "test"] = "orbit",
    frames: int = 120,
    output: Path | None = None,
    device: str = "auto",
    data_dir: Path | None = None,
) -> Path:
    """Renders a run folder's last checkpoint: an orbit as MP4, or its training or test views as PNG.

    Args:
        folder: Run folder.
        views: The path of the camera.
        frames: Number of frames of the orbit.
        output: MP4 file or folder of PNGs; by default orbit.mp4, train/ or test/ in the run folder.
        device: auto, cpu or cuda.
        data_dir: The scene folder, if it has moved.

    Returns:
        What was written.
    """
    run = load_run(folder, device=device, data_dir=data_dir)
    if views == "orbit":
        output = output or folder / "orbit.mp4"
        write_video(output, run.render, orbit(run.scene.train, frames))
    else:
        output = output or folder / views
        output.mkdir(parents=True, exist_ok=True)
        for index, view in enumerate(getattr(run.scene, views)):
            save_image(output / f"{index:04d}.png", run.render(view).permute(0, 3, 1, 2))
    print(output)
    return output
