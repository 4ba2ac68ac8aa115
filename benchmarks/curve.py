"""PSNR over the seconds of training, of runs with `--output.eval-every`: one table and one plot.

    python scripts/train.py --config configs/chair_800.yaml --data-dir CHAIR --output.eval-every 1000 --result-dir RUN
    python -m benchmarks.curve RUN --output benchmarks/results/chair_800 --lines "3DGS, 30,000 steps on a GPU=35.83"

Seconds are those of training alone, without the evaluations. Each row also has the threads, the processor, torch and
the commit of this machine and checkout, so gather the runs where and with what they were trained.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from benchmarks.measure import Machine, commit, write_csv

#: What an evaluation says of itself, and what is added to it.
EVALUATED, ADDED = ("step", "train_seconds", "psnr", "ssim"), ("threads", "device", "torch", "commit")
COLUMNS = ("run", *EVALUATED, *ADDED)


@dataclass
class Options:
    """Gathers the evaluations of runs into OUTPUT.csv and OUTPUT.png."""

    #: Run folders.
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    #: The files' path without their suffix.
    output: Path = Path("results/curve")
    #: Levels to draw beside the curves, each as NAME=DECIBELS.
    lines: tuple[str, ...] = ()


def rows_of(run: Path) -> list[dict[str, Any]]:
    """A row for each evaluation of a run, by its step; those of before they told their seconds are left out."""
    rows, threads = [], torch.get_num_threads()
    machine = Machine("cpu", threads).name
    added = dict(zip(ADDED, (threads, machine, torch.__version__, commit()), strict=True))
    for path in sorted((run / "eval").glob("*.json")):
        found = json.loads(path.read_text())
        if "train_seconds" in found:
            rows.append({"run": run.name, **{key: found[key] for key in EVALUATED}, **added})
    return rows


def plot(rows: Sequence[dict[str, Any]], levels: Sequence[tuple[str, float]], path: Path) -> None:
    """PSNR of each run over its seconds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    for name in dict.fromkeys(row["run"] for row in rows):
        points = [(row["train_seconds"], row["psnr"]) for row in rows if row["run"] == name]
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name)
    for number, (name, level) in enumerate(levels):
        axes.axhline(level, color="grey", linestyle=("--", ":", "-.")[number % 3], linewidth=1, label=name)
    axes.set(xlabel="seconds of training", ylabel="PSNR of the test views, dB")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main(options: Options) -> int:
    """Writes the files; returns the exit status."""
    rows = [row for run in options.runs for row in rows_of(run)]
    if not rows:
        print(f"error: required evaluations in {options.runs[0] / 'eval'}, got none", file=sys.stderr)
        return 2
    levels = []
    for line in options.lines:
        name, _, level = line.rpartition("=")
        try:
            levels.append((name, float(level)))
        except ValueError:
            print(f"error: --lines required NAME=DECIBELS, got {line!r}", file=sys.stderr)
            return 2
    write_csv(options.output.with_suffix(".csv"), COLUMNS, rows)
    plot(rows, levels, options.output.with_suffix(".png"))
    for row in rows:
        print(f"{row['run']}: step {row['step']}, {row['train_seconds']:.0f} s, {row['psnr']:.2f} dB")
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
