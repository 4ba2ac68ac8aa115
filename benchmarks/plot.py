"""Draws speed.csv and sweep.csv as speed.png and sweep.png: `python -m benchmarks.plot [--output FOLDER]`."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.calls import parse_size, parser_of
from benchmarks.measure import DEVELOPMENT, RESULTS, read, run


def plot(folder: Path) -> None:
    """Draws what the CSV files of a folder hold."""
    import matplotlib

    matplotlib.use("Agg")
    plot_speed(folder)
    plot_sweep(folder)


def plot_speed(folder: Path) -> None:
    """Bars by size: the time of each candidate as a multiple of ours."""
    import matplotlib.pyplot as plt

    rows_of_all = [r for r in read(folder / "speed.csv") if r["mode"] == "forward+backward"]
    sizes = list(dict.fromkeys(row["size"] for row in rows_of_all))
    if not sizes:
        return
    figure, axes = plt.subplots(1, len(sizes), figsize=(4 * len(sizes), 5), squeeze=False)
    for axis, size in zip(axes[0], sizes, strict=True):
        rows = sorted((r for r in rows_of_all if r["size"] == size), key=lambda r: float(r["ratio"]))
        fastest = [row for row in rows if row.get("fastest") or row["name"].startswith("splat_ssim")]
        rows = fastest if any(row.get("fastest") for row in fastest) else rows
        names, ratios = [row["name"] for row in rows], [float(row["ratio"]) for row in rows]
        axis.barh(names, ratios, color=["C2" if name.startswith("splat_ssim") else "C0" for name in names])
        axis.set(xscale="log", title=size, xlabel="time of forward + backward, ours = 1")
        for i, ratio in enumerate(ratios):
            axis.text(ratio, i, f" {ratio:.3g}", va="center", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.margins(x=0.25)
    figure.tight_layout()
    figure.savefig(folder / "speed.png", dpi=120)


def plot_sweep(folder: Path) -> None:
    """Nanoseconds an element over the size of the image, a line for each window."""
    import matplotlib.pyplot as plt

    sweep_rows = [r for r in read(folder / "sweep.csv") if r["mode"] == "forward+backward"]
    if not sweep_rows:
        return
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5))
    for axis, dims in zip(axes, (2, 3), strict=True):
        for i, window in enumerate(sorted({int(row["window"]) for row in sweep_rows})):
            rows = [r for r in sweep_rows if int(r["window"]) == window and len(r["size"].split("x")) == dims]
            for single, style in ((False, "o-"), (True, ":")):
                best: dict[int, float] = {}
                for r in sorted(rows, key=lambda r: int(r["batch"]), reverse=single):
                    best[torch.Size(parse_size(r["size"])).numel()] = float(r["ns_per_element"])
                label = None if single else f"{window} taps"
                axis.plot(*zip(*sorted(best.items()), strict=True), style, color=f"C{i}", label=label)
        axis.set(xscale="log", xlabel="elements of an image", ylabel="ns an element")
        axis.set(title=f"{dims}D, forward + backward; dotted: a call for each image")
        axis.set_ylim(0, 3 * max(axis.lines[0].get_ydata()) if axis.lines else None)
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(folder / "sweep.png", dpi=120)


def main() -> None:
    """Command line."""
    arguments = parser_of(__doc__).parse_args()
    trial = arguments.dirty_ok or arguments.quick
    plot(arguments.output or (DEVELOPMENT if trial else RESULTS))


if __name__ == "__main__":
    run(main)
