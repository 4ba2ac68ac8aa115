"""Starting positions of Gaussians: the points of a scene, or random positions inside its silhouettes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from splat_ssim.formats import count_splats, read_splats
from splat_ssim.scene.data import Scene, SceneError, View
from splat_ssim.scene.data.placement import looked_at, ordinary
from splat_ssim.scene.options import ModelConfig
from splat_ssim.trainer.upload import upload

#: Cells along each axis of the grid that silhouettes carve.
CARVE_CELLS = 48


def starting_points(
    scene: Scene, config: ModelConfig, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns where Gaussians may start: (N, 3) positions, and (N, 3) colours or None.

    Raises:
        SceneError: The config asks for the scene's point cloud, and it has none.
    """
    if config.init == "points" and scene.points is None:
        raise SceneError(f"{scene.name}: model.init points requires a scene with a point cloud, got none")
    if config.init == "random" or scene.points is None:
        return random_points(scene, config.init_count, generator, half_edge=config.init_box), None
    return scene.points, scene.colors


def start_count(scene: Scene, config: ModelConfig) -> int:
    """Number of Gaussians that a scene starts with if nothing limits it."""
    if config.init == "ply" and config.init_ply is not None:
        return count_splats(config.init_ply)
    return config.init_count if config.init == "random" or scene.points is None else len(scene.points)


def start_words(scene: Scene, config: ModelConfig, count: int) -> str:
    """Describes what `count` Gaussians of a scene start from."""
    if config.init == "ply":
        return f"{count} Gaussians of {config.init_ply}"
    available = start_count(scene, config)
    random = config.init == "random" or scene.points is None
    what = f"{available} {'random points' if random else 'points of the scene'}"
    return what if count == available else f"{count} of {what}"


@torch.no_grad()
def keep_inside(means: Tensor, box: tuple[Sequence[float], Sequence[float]] | None) -> None:
    """Moves centres (N, 3) that have left a box back to its surface."""
    if box is not None:
        low, high = (upload(torch.tensor(corner, dtype=means.dtype), means.device) for corner in box)
        means.copy_(means.maximum(low).minimum(high))


def trained_splats(scene: Scene, config: ModelConfig, max_count: int | None) -> dict[str, np.ndarray]:
    """Reads the Gaussians of a file as parameters of a scene, in its coordinates and with its degree of harmonics.

    Harmonics above the model's degree are cut off, and missing ones are 0. Notes of the scene say so, and
    also what the format lost and whether the file was trained with another blur.

    Args:
        scene: Scene whose offset is subtracted and that gets the notes.
        config: Options. init_ply names the file.
        max_count: Largest number of Gaussians.

    Raises:
        PlyError, FormatError: The file does not hold Gaussians, or its suffix names no format.
        SceneError: The file holds no Gaussians or too many, they are not finite, or no camera sees any of them.
    """
    path = config.init_ply
    assert path is not None
    cloud = read_splats(path)
    splats = {name: value.numpy() for name, value in cloud.splats().items()}
    count = len(splats["means"])
    if count == 0 or (max_count is not None and count > max_count):
        most = "at least one Gaussian" if count == 0 else f"at most {max_count} Gaussians, the budget"
        raise SceneError(f"{path}: required {most}, got {count} (--strategy.budget)")
    for name, value in splats.items():
        if not np.isfinite(value).all():
            raise SceneError(f"{path}: required finite {name}, got others")
    scene.notes += [f"{path}: {note}" for note in cloud.notes]
    if cloud.antialiased != config.antialiased:
        named = ("without", "with")
        scene.notes.append(
            f"{path}: trained {named[cloud.antialiased]} the compensation of blur, the model is rendered "
            f"{named[config.antialiased]} it (--model.antialiased)"
        )
    splats["means"] = (splats["means"].astype(np.float64) + cloud.offset - scene.offset).astype(np.float32)
    coefficients, held = (config.sh_degree + 1) ** 2 - 1, splats["shN"].shape[1]
    if held != coefficients:
        degree = int((held + 1) ** 0.5) - 1
        what = "the higher ones are cut off" if held > coefficients else "the higher ones are 0 at first"
        scene.notes.append(f"{path}: harmonics of degree {degree}, the model has degree {config.sh_degree}: {what}")
    kept = np.zeros((count, coefficients, 3), np.float32)
    kept[:, :held] = splats["shN"][:, :coefficients]
    splats["shN"] = kept
    check_visible(splats["means"], scene)
    return splats


def boxed(scene: Scene, corners: Sequence[float]) -> Scene:
    """Limits a scene to a box. Only points inside are kept, and random Gaussians start inside.

    Args:
        scene: The scene as it was read.
        corners: x y z of the low corner, then x y z of the high corner, in the coordinates of the files.

    Raises:
        SceneError: The scene has points, but none inside.
    """
    low, high = (np.asarray(corner) - scene.offset for corner in (corners[:3], corners[3:]))
    box, points, colors = (low.tolist(), high.tolist()), scene.points, scene.colors
    notes = list(scene.notes)
    if points is not None:
        kept = ((points >= low) & (points <= high)).all(1)
        if not kept.any():
            raise SceneError(f"{scene.name}: data.box: required a box around points of the scene, got none in it")
        notes.append(f"outside of data.box and left out: {int((~kept).sum())} of {len(points)} points")
        points, colors = points[kept], None if colors is None else colors[kept]
    return replace(scene, points=points, colors=colors, box=box, box_is_given=True, notes=notes)


def check_visible(points: np.ndarray, scene: Scene) -> None:
    """Raises SceneError if no training view shows any of the points, even with a margin as large as the image."""
    positions = torch.as_tensor(np.asarray(points, np.float32))
    for view in scene.train:
        camera = positions @ view.viewmat[:3, :3].T + view.viewmat[:3, 3]
        pixel = (camera @ view.K.T)[:, :2] / camera[:, 2:].clamp(min=1e-30)
        size = torch.tensor([view.width, view.height])
        if ((camera[:, 2] > scene.near) & ((pixel > -size) & (pixel < 2 * size)).all(1)).any():
            return
    raise SceneError(
        f"{scene.name}: required points in the view of a training camera to start from, got none among {len(points)} "
        "(do poses look along the right axis? --model.init-box)"
    )


def random_points(
    scene: Scene, count: int, generator: np.random.Generator, *, half_edge: float | None = None
) -> np.ndarray:
    """Draws (count, 3) float32 positions, uniform in the scene's box where no silhouette excludes them.

    If the box does not contain what the cameras look at, another one is used, and a note of the scene says so.

    Args:
        scene: The scene.
        count: Number of positions.
        generator: Generator of the random numbers.
        half_edge: Half the edge of a cube around the point that the cameras look at. It replaces the scene's box.
    """
    low, high, kept = _carved(scene, *_box(scene, half_edge))
    if half_edge is None and scene.box is not None and not scene.box_is_given:
        seen = looked_at(scene.train)
        if seen is not None and _misfits(scene, kept, *seen):
            middle, half = seen
            low, high, kept = _carved(scene, middle - half, middle + half)
            place = ", ".join(f"{value:.4g}" for value in middle)
            scene.notes.append(
                f"the box of {scene.box[0][0]:.4g} to {scene.box[1][0]:.4g} does not hold what the cameras look at: "
                f"Gaussians start in a cube of half edge {half:.4g} about ({place}) (--model.init-box)"
            )
    # If little of the box is left, its cells are too coarse, so the remaining part is carved again.
    cells = np.argwhere(kept)
    if len(cells) and (np.ptp(cells, axis=0) + 1).max() <= CARVE_CELLS // 4:
        cell = (high - low) / CARVE_CELLS
        low, high, kept = _carved(scene, low + cells.min(0) * cell, low + (cells.max(0) + 1) * cell)
    if not kept.any():
        scene.notes.append("the silhouettes of the views have nothing in common: Gaussians start all over the box")
        kept[:] = True
    corners = np.stack(np.meshgrid(*[np.arange(CARVE_CELLS)] * 3, indexing="ij"), -1).reshape(-1, 3)
    cell = (high - low) / CARVE_CELLS
    chosen = generator.choice(np.flatnonzero(kept), count)
    points: np.ndarray = (corners[chosen] * cell + low + generator.uniform(size=(count, 3)) * cell).astype(np.float32)
    return points


def _box(scene: Scene, half_edge: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Corners of the first box to carve."""
    # If the format promises no box, take what the cameras may see: a cube of their own extent around their mean.
    middle = scene.centers[ordinary(scene.centers)].float().mean(0).numpy()
    if half_edge is not None:
        seen = looked_at(scene.train)
        middle = middle if seen is None else seen[0]
        return middle - half_edge, middle + half_edge
    if scene.box is None:
        return middle - scene.extent, middle + scene.extent
    low, high = (np.asarray(corner, dtype=np.float64) for corner in scene.box)
    return low, high


def _misfits(scene: Scene, kept: np.ndarray, middle: np.ndarray, half: float) -> bool:
    """Whether the scene's box does not fit what the cameras look at, a cube around `middle`."""
    assert scene.box is not None
    low, high = (np.asarray(corner) for corner in scene.box)
    size = 0.5 * float((high - low).max())
    differs = not 0.5 < half / size < 2 or np.abs(middle - 0.5 * (low + high)).max() > 0.5 * size
    if not kept.any() or not any(view.is_transparent for view in scene.train):
        return not kept.any() or differs
    cells = np.argwhere(kept)
    # Silhouettes that extend beyond the box are cut off by it.
    return differs and bool((cells.min() == 0) | (cells.max() == CARVE_CELLS - 1))


def _carved(scene: Scene, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A box, and (cells, cells, cells) bool: true for its cells that no silhouette excludes."""
    cell = (high - low) / CARVE_CELLS
    corners = np.stack(np.meshgrid(*[np.arange(CARVE_CELLS)] * 3, indexing="ij"), -1).reshape(-1, 3) * cell + low
    centers = torch.as_tensor(corners + 0.5 * cell, dtype=torch.float32)
    kept = torch.ones(len(centers), dtype=torch.bool)
    for view in scene.train:
        if view.is_transparent:
            inside = torch.where(kept)[0]
            kept[inside] = _seen(centers[inside], view, radius=0.5 * float(np.linalg.norm(cell)))
    return low, high, kept.numpy().reshape((CARVE_CELLS,) * 3)


def _seen(points: Tensor, view: View, radius: float) -> Tensor:
    """(N,) bool: false if a ball around the point certainly projects outside the silhouette of a view."""
    camera = points @ view.viewmat[:3, :3].T + view.viewmat[:3, 3]
    depth = camera[:, 2].clamp(min=1e-6)
    pixel = camera @ view.K.T / depth[:, None]
    column, row = pixel[:, 0].floor().long(), pixel[:, 1].floor().long()
    within = (column >= 0) & (column < view.width) & (row >= 0) & (row < view.height) & (camera[:, 2] > radius)
    # Widen the silhouette by the ball's radius in pixels at the nearest point.
    reach = math.ceil(float(view.K[0, 0]) * radius / float(depth[within].min())) if within.any() else 0
    alpha = view.alpha
    if alpha is None:
        alpha = torch.ones(view.height, view.width)
    silhouette = _widened(alpha, reach)
    # A view does not exclude points that it does not show or that are too close.
    return ~within | (silhouette[row.clamp(0, view.height - 1), column.clamp(0, view.width - 1)] > 0)


def _widened(alpha: Tensor, reach: int) -> Tensor:
    """(H, W): the largest value within `reach` rows and columns of each pixel."""
    # Columns, then rows: the same result as with a square window, in a tenth of the time if the window is wide.
    columns = torch.nn.functional.max_pool2d(alpha[None], (2 * reach + 1, 1), stride=1, padding=(reach, 0))
    return torch.nn.functional.max_pool2d(columns, (1, 2 * reach + 1), stride=1, padding=(0, reach))[0]
