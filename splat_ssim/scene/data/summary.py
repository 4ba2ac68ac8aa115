"""Describes a scene that was read, in three lines."""

from __future__ import annotations

from collections.abc import Sequence

from splat_ssim.scene.data.scene import Scene, View


def summary(scene: Scene, start: str) -> list[str]:
    """Describes a scene in three lines: views and split; masks, transparency and start; memory and unit of length.

    Args:
        scene: Scene read by `load_scene`.
        start: Description of the points or Gaussians that the run starts from.
    """
    views = [*scene.train, *scene.test]
    masks, transparent = sum(v.mask is not None for v in views), sum(v.is_transparent for v in views)
    over = f", over {_color(scene.background)}" if transparent else ""
    size, late = sum(view.nbytes for view in views), sum(view.is_late for view in views)
    unkept = f", without {late} that every evaluation decodes anew" if late else ""
    return [
        f"{scene.name} ({scene.format}): {len(scene.train)} training and {len(scene.test)} test views of "
        f"{_sizes(views)} pixels, {scene.split}",
        f"masks: {_count(masks, len(views))}; transparent images: {_count(transparent, len(views))}{over}; "
        f"start: {start}",
        f"memory of the images: {size / 1e6:.1f} MB{unkept}; extent: {scene.extent:.4g}; near plane: {scene.near:.2g}",
    ]


def _count(count: int, total: int) -> str:
    return f"{count} of {total}" if count else "none"


def _color(background: tuple[float, float, float]) -> str:
    names = {(1.0, 1.0, 1.0): "white", (0.0, 0.0, 0.0): "black"}
    return names.get(background, " ".join(f"{value:g}" for value in background))


def _sizes(views: Sequence[View]) -> str:
    sizes = sorted({(view.width, view.height) for view in views}, key=lambda size: size[0] * size[1])
    ends = [f"{width}x{height}" for width, height in dict.fromkeys((sizes[0], sizes[-1]))]
    return " to ".join(ends)
