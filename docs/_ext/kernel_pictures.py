"""The pictures of the kernel page, drawn from the constants in csrc."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

ROOT = Path(__file__).resolve().parent.parent.parent
_BLUE, _ORANGE, _GREY, _INK = "#8fb3e8", "#f0b27a", "#e6e8ee", "#334"
#: Windows of 11 taps.
RADIUS = 5


def constant(path: str, name: str) -> int:
    """The number that a file of csrc gives to a `constexpr` name.

    Raises:
        ValueError: The file has no such constant.
    """
    found = re.search(rf"\b{name} = (\d+)\b", (ROOT / "csrc" / path).read_text())
    if found is None:
        raise ValueError(f"csrc/{path}: required a constant {name}, got none")
    return int(found[1])


def image_cut(planes: int, height: int, width: int) -> tuple[int, int]:
    """Numbers of strips and bands of a plane on the CPU, by the rule at the end of csrc/cpu/ssim2d.cpp."""
    strip = constant("cpu/ssim2d.cpp", "kStripColumns")
    least_rows, wanted_tasks = constant("cpu/ssim2d.cpp", "kLeastBandRows"), constant("cpu/ssim2d.cpp", "kWantedTasks")
    strips = -(-width // strip)
    wanted = wanted_tasks // max(1, min(wanted_tasks, planes * strips))
    return strips, max(1, min(wanted, height // least_rows))


def volume_schedule(depth: int) -> tuple[list[tuple[bool, int]], int]:
    """The steps of a volume's tile, (whether it is a gradient block, its first slice), and the slices of the ring.

    By the rules of csrc/cpu/ssim3d_schedule.h for zero padding.
    """
    rows = constant("cpu/ssim_passes.h", "kRows")
    blocks = -(-depth // rows)

    def forward_before(k: int) -> int:
        return -(-min(min((k + 1) * rows, depth) + RADIUS, depth) // rows)

    def gradient_before(i: int, ring: int) -> int:
        overwritten = min((i + 1) * rows, depth) - 1 - ring
        last = overwritten + RADIUS
        return 0 if overwritten < 0 or last < 0 else min(blocks, last // rows + 1)

    def suffices(ring: int) -> bool:
        handed_out = 0
        for i in range(blocks):
            while handed_out < blocks and forward_before(handed_out) <= i:
                handed_out += 1
            if gradient_before(i, ring) > handed_out:
                return False
        return True

    ring = min(depth, rows)
    while not suffices(ring):
        ring += 1
    order = [(forward_before(k) + k, True, k * rows) for k in range(blocks)]
    taken = {index for index, _, _ in order}
    free = iter(index for index in range(2 * blocks) if index not in taken)
    order += [(index, False, i * rows) for i, index in enumerate(free)]
    return [(gradient, first) for _, gradient, first in sorted(order)], ring


def _clean(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=10, color=_INK)
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(False)


def _box(axes: Axes, x: float, y: float, width: float, height: float, color: str, text: str = "") -> None:
    axes.add_patch(Rectangle((x, y), width, height, facecolor=color, edgecolor=_INK, linewidth=0.8))
    if text:
        axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=8, color=_INK)


def draw_passes(path: Path) -> None:
    """A window of 11 by 11 taps as two passes of 11."""
    taps = 2 * RADIUS + 1
    figure, (whole, down, along) = plt.subplots(1, 3, figsize=(8.4, 3))
    for axes, cells, title in (
        (whole, [(x, y) for x in range(taps) for y in range(taps)], f"one pass: {taps * taps} products a pixel"),
        (down, [(RADIUS, y) for y in range(taps)], f"down the columns: {taps}"),
        (along, [(x, RADIUS) for x in range(taps)], f"then along the rows: {taps}"),
    ):
        for x in range(taps):
            for y in range(taps):
                _box(axes, x, y, 1, 1, _BLUE if (x, y) in cells else _GREY)
        _box(axes, RADIUS, RADIUS, 1, 1, _ORANGE)
        axes.set(xlim=(-0.3, taps + 0.3), ylim=(-0.3, taps + 0.3), aspect="equal")
        _clean(axes, title)
    _save(figure, path)


def draw_tiles(path: Path) -> None:
    """The tiles of an image of 1080 by 1920 pixels with three channels."""
    planes, height, width = 3, 1080, 1920
    strips, bands = image_cut(planes, height, width)
    figure, axes = plt.subplots(figsize=(7.6, 4.4))
    for plane in reversed(range(planes)):
        shift = 90 * plane
        for band in range(bands):
            for strip in range(strips):
                number = (plane * bands + band) * strips + strip
                _box(
                    axes,
                    shift + strip * width / strips,
                    shift + (bands - 1 - band) * height / bands,
                    width / strips,
                    height / bands,
                    _ORANGE if number == 0 else _BLUE,
                    f"task {number}" if plane == 0 else "",
                )
    axes.set(xlim=(-20, width + 220), ylim=(-20, height + 220), aspect="equal")
    _clean(
        axes,
        f"{height}×{width}, {planes} channels: {strips} strips of {-(-width // strips)} columns, {bands} bands of "
        f"{height // bands} rows, {planes * strips * bands} tasks",
    )
    _save(figure, path)


def draw_march(path: Path) -> None:
    """Draws the rows that a tile holds while it marches down an image."""
    rows = constant("cpu/ssim_passes.h", "kRows")
    lag = RADIUS + rows - RADIUS % rows
    figure, axes = plt.subplots(figsize=(8.4, 4.6))
    here = 24
    columns = {
        "rows of s and d": (here - lag, here + rows + RADIUS, _GREY),
        "moments,\n1 - S": (here, here + rows, _BLUE),
        "partial\nderivatives": (here - lag - RADIUS, here + rows, _GREY),
        "gradient": (here - lag, here - lag + rows, _ORANGE),
    }
    for index, (name, (first, last, color)) in enumerate(columns.items()):
        for row in range(44):
            _box(axes, index * 3, row, 2, 1, color if first <= row < last else "#fff")
        axes.text(index * 3 + 1, -1, name, ha="center", va="bottom", fontsize=9, color=_INK)
    axes.annotate("", (12.4, 42), (12.4, 2), arrowprops={"arrowstyle": "->", "color": _INK})
    axes.text(12.6, 22, "the walk", rotation=270, va="center", fontsize=9, color=_INK)
    axes.text(-0.3, here + rows / 2, f"block of\n{rows} rows", ha="right", va="center", fontsize=9, color=_INK)
    axes.text(
        -0.3, here - lag + rows / 2, f"gradient,\n{lag} rows behind", ha="right", va="center", fontsize=9, color=_INK
    )
    axes.set(xlim=(-4, 13.2), ylim=(44.5, -4))
    _clean(axes, "")
    _save(figure, path)


def draw_ring(path: Path) -> None:
    """The order of the blocks of slices of a volume, and the ring that they share."""
    depth, rows = 64, constant("cpu/ssim_passes.h", "kRows")
    steps, ring = volume_schedule(depth)
    figure, axes = plt.subplots(figsize=(8.4, 4.2))
    for step, (gradient, first) in enumerate(steps):
        if not gradient:
            low = max(0, first + rows - ring)
            axes.add_patch(Rectangle((step, low), 1, first + rows - low, facecolor=_GREY, edgecolor="none"))
        _box(axes, step, first, 1, rows, _ORANGE if gradient else _BLUE)
    axes.set(xlim=(0, len(steps)), ylim=(0, depth), xlabel="step, in the order of the schedule", ylabel="slice")
    axes.set_title(
        f"{depth} slices in blocks of {rows}: forward blue, gradient orange; the ring of {ring} slices grey",
        fontsize=10,
        color=_INK,
    )
    _save(figure, path)


def draw_cuda(path: Path) -> None:
    """A block of the fused CUDA kernel: its strip, its ring of rows and its two halves."""
    threads, columns = constant("cuda/fused2d.h", "kFusedThreads"), constant("cuda/fused2d.h", "kFusedColumns")
    taps = 2 * RADIUS + 1
    width = threads // 2 * columns
    outputs, ring = width - (taps - 1), taps + 2
    figure, axes = plt.subplots(figsize=(8.4, 4.2))
    for row in range(ring):
        _box(axes, 0, row, width + taps - 1, 1, _BLUE if row >= ring - 2 else _GREY)
    _box(axes, taps - 1, -4, outputs, 1, _ORANGE)
    axes.text(
        width / 2,
        ring + 0.5,
        f"{width + taps - 1} columns loaded, a ring of {ring} rows of s and d",
        ha="center",
        fontsize=9,
    )
    axes.text(
        width / 2,
        -5.4,
        f"{outputs} columns of gradient, {2 * RADIUS + 1} rows behind the newest",
        ha="center",
        fontsize=9,
    )
    axes.text(
        width / 2,
        -2.2,
        f"threads 0 to {threads // 2 - 1}: moments, 1 - S, adjoint maps of the row {RADIUS} behind the newest\n"
        f"threads {threads // 2} to {threads - 1}: load the next rows, filter the adjoint maps into the gradient",
        ha="center",
        fontsize=9,
    )
    axes.set(xlim=(-6, width + taps + 6), ylim=(-6.5, ring + 2))
    _clean(axes, "")
    _save(figure, path)


def _save(figure: plt.Figure, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


PICTURES = {"passes": draw_passes, "tiles": draw_tiles, "march": draw_march, "ring": draw_ring, "cuda": draw_cuda}


def write(folder: Path) -> None:
    """Draws every picture into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in PICTURES.items():
        draw(folder / f"{name}.png")
