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
    """Bars by size: how many times as long as ours the fastest form of each peer takes."""
    import matplotlib.pyplot as plt

    found = [r for r in read(folder / "speed.csv") if r["mode"] == "forward+backward"]
    # Images before volumes, large ones first.
    elements = {r["size"]: torch.Size(parse_size(r["size"])).numel() for r in found}
    sizes = sorted(elements, key=lambda size: (size.count("x"), -elements[size]))
    if not sizes:
        return
    figure, axes = plt.subplots((len(sizes) + 1) // 2, 2, figsize=(11, 2.9 * ((len(sizes) + 1) // 2)), squeeze=False)
    for axis in axes.flat[len(sizes) :]:
        axis.set_visible(False)
    for axis, size in zip(axes.flat, sizes, strict=False):
        rows = [r for r in found if r["size"] == size]
        marked = [r for r in rows if r.get("fastest") or r["name"] == "splat_ssim"]
        rows = sorted(marked if len(marked) > 1 else rows, key=lambda r: -float(r["ratio"]))
        ours = [r["name"].startswith("splat_ssim") for r in rows]
        ratios = [1.0 if r["name"] == "splat_ssim" else float(r["ratio"]) for r in rows]
        axis.barh([r["name"] for r in rows], ratios, color=["C2" if own else "C0" for own in ours])
        for i, (row, ratio) in enumerate(zip(rows, ratios, strict=True)):
            text = f"{ratio:,.0f} x" if ratio >= 100 else f"{ratio:.3g} x"
            if row["name"] == "splat_ssim":
                text = f"{float(row['milliseconds']):.3g} ms"
            axis.text(ratio, i, f" {text}", va="center", fontsize=9)
        shape = "x".join(map(str, parse_size(size)))
        axis.set(xscale="log", title=shape, xlim=(0.7, 5 * max(ratios)))
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.tick_params(labelsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle("SSIM, forward and backward: how many times as long as splat_ssim each peer takes")
    figure.tight_layout()
    figure.savefig(folder / "speed.png", dpi=100)


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
