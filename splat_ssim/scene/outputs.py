"""The files that a finished run of a scene leaves, besides those of the loop."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from splat_ssim._files import write_json
from splat_ssim.formats.cloud import comments_of
from splat_ssim.ply import save_ply
from splat_ssim.scene.cameras import camera_rows
from splat_ssim.scene.model import standard_splats
from splat_ssim.trainer.pictures import said_without_video

if TYPE_CHECKING:
    from splat_ssim.scene.training import SceneTask


def write_outputs(task: SceneTask, folder: Path) -> dict[str, Any]:
    """Writes scene.ply, cameras.json and orbit.mp4, if asked for.

    Args:
        task: The trained scene.
        folder: Run folder.

    Returns:
        The number of Gaussians and its growth to a budget.
    """
    scene, config, state = task.scene, task.config, task.strategy_state
    metrics: dict[str, Any] = {"num_gaussians": len(task.splats["means"])}
    if any(scene.offset):
        # Coordinates of the files = those of scene.ply + offset.
        metrics["offset"] = list(scene.offset)
    if state.get("budget_curve") is not None:
        metrics["budget"] = config.strategy.budget
        metrics["budget_curve"] = state["budget_curve"]
        metrics["budget_counts"] = state["num_gaussians"]
    if not config.output.ply and (folder / "scene.ply").exists():
        print(f"{folder}: scene.ply is that of an earlier step (--output.ply writes it anew)")
    if config.output.ply:
        comments = comments_of(scene.offset, config.model.antialiased)
        splats = standard_splats(task.splats, task.opacity_activation)
        save_ply(folder / "scene.ply", splats, comments=comments)
    if task.exposures is not None or task.poses is not None:
        write_json(folder / "cameras.json", camera_rows(scene, task.poses, task.exposures, task.device))
    if config.output.video:
        with said_without_video():
            task.render("orbit", folder / task.VIEWS["orbit"], config.output.video_frames)
    return metrics
