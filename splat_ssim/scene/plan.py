"""Describes what a run would do and how much memory it would take, for `--dry-run`."""

from __future__ import annotations

from splat_ssim.scene.config import SceneConfig, coarseness
from splat_ssim.scene.data import Scene
from splat_ssim.strategy import Strategy
from splat_ssim.trainer.device import available_memory

#: Bytes that Python and torch take before anything is read.
_FIXED = 350e6
#: Bytes for each pixel of the largest view: colours, loss, their gradients, and the lists of Gaussians of each tile.
_PIXEL = 120


def plan_lines(scene: Scene, config: SceneConfig, strategy: Strategy, start: int) -> list[str]:
    """Describes a run in three lines: length and resolution; Gaussians; memory.

    Args:
        scene: Scene as it was read.
        config: Resolved config.
        strategy: Strategy of the config.
        start: Number of Gaussians at the start.
    """
    steps, data = config.steps, config.data
    rises = [step for step in range(1, steps) if coarseness(data, step) != coarseness(data, step - 1)]
    resolution = "at full size throughout"
    if coarseness(data, 0) > 1:
        at = ", ".join(f"1/{coarseness(data, step)}" if coarseness(data, step) > 1 else "full" for step in rises)
        resolution = f"at 1/{coarseness(data, 0)} of the size, then {at} from step {', '.join(map(str, rises))} on"
    most = getattr(strategy, "budget", getattr(strategy, "cap_max", None))
    grows = f"{start} Gaussians at the start, at most {most}" if most is not None else f"{start} Gaussians at the start"
    needed = memory_bytes(scene, config, max(start, most or 3 * start))
    free = available_memory()
    there = "" if free is None else f"; {free / 1e9:.1f} GB are free"
    return [
        f"would train {steps} steps, {steps / len(scene.train):.1f} for each view, {resolution}",
        f"{grows}, by {config.strategy.name} until step {config.strategy.refine_stop}; loss {config.loss}",
        f"would take about {needed / 1e9:.1f} GB of memory{there}",
    ]


def memory_bytes(scene: Scene, config: SceneConfig, gaussians: int) -> float:
    """Bytes that a run takes on the CPU, about: images, Gaussians with gradients and moments, a view's buffers."""
    views = [*scene.train, *scene.test]
    images = sum(view.nbytes for view in views)
    numbers = 11 + 3 * (config.model.sh_degree + 1) ** 2
    pixels = max(view.height * view.width for view in views)
    coarse = 3 * sum(v.height * v.width for v in scene.train) / 4 if config.data.coarse_factor > 1 else 0.0
    return _FIXED + images + coarse + gaussians * numbers * 4 * 5 + pixels * _PIXEL
