"""Training runs in a row, and tables of what they came to: what the scripts that compare runs have in common.

A run that is done is not trained again, one that was interrupted goes on from its checkpoint, and one that fails does
not stop the others.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import ROOT
from splat_ssim.scene.config import SceneConfig
from splat_ssim.trainer.config import read_yaml


@dataclass(frozen=True)
class Job:
    """One run of scripts/train.py: where it writes, and its other arguments."""

    folder: Path
    arguments: tuple[str, ...]


def read_metrics(folder: Path) -> dict[str, Any] | None:
    """Reads metrics.json of a finished run. Returns None if there is none."""
    path = folder / "metrics.json"
    return json.loads(path.read_text()) if path.exists() else None


def run(job: Job, *, dry_run: bool = False) -> str:
    """Trains unless that is done; returns what became of it, which begins with "failed" where something went wrong."""
    record = job.folder / "command.json"
    # A run of before, with other options, must not pass for this one.
    if record.exists() and json.loads(record.read_text()) != list(job.arguments):
        return f"failed: {job.folder} holds a run with other options; choose another --result-dir"
    if read_metrics(job.folder) is not None:
        return "done before"
    train = [sys.executable, str(ROOT / "scripts" / "train.py")]
    if (job.folder / "checkpoint.pt").exists():
        line = [*train, "--resume", str(job.folder)]
    else:
        line = [*train, "--result-dir", str(job.folder), *job.arguments]
    print(" ".join(line), flush=True)
    if dry_run:
        return "dry run"
    job.folder.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(list(job.arguments)) + "\n")
    status = subprocess.run(line).returncode
    return "done" if status == 0 else f"failed with exit status {status}; run again to resume it"


def scaled(config: Path, steps: int | None) -> tuple[str, ...]:
    """The options that give a config another length, its schedules in proportion."""
    if steps is None:
        return ()
    length = read_yaml(config).get("steps", SceneConfig.steps)
    return ("--steps-scaler", str(steps / length))


def spread(values: Sequence[float], digits: int, *, signed: bool = False) -> str:
    """Mean ± standard deviation (of the sample), or the value alone where there is one; `signed`: with + or -."""
    mean = f"{statistics.mean(values):{'+' if signed else ''}.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def markdown_table(columns: Sequence[str], lines: Sequence[Mapping[str, str]]) -> list[str]:
    """The lines of a Markdown table."""
    return [
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
        *("| " + " | ".join(line[column] for column in columns) + " |" for line in lines),
    ]


def bars(
    path: Path,
    groups: Sequence[str],
    series: Mapping[str, Sequence[float | None]],
    axis: str,
    *,
    labels: Sequence[str] | None = None,
    from_zero: bool = False,
) -> None:
    """Draws a bar chart with one colour for each series. A value that is None has no bar.

    Args:
        path: PNG to write.
        groups: Names of the groups of bars.
        series: Name -> one value for each group.
        axis: Label of the value axis.
        labels: Texts above the groups.
        from_zero: Whether the value axis begins at zero, as it should for amounts. Otherwise it shows differences.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(max(4, 1.5 + 0.7 * len(groups)), 4), layout="constrained")
    width = 0.8 / len(series)
    known: list[float] = []
    for index, (name, values) in enumerate(series.items()):
        heights = {p + width * (index - (len(series) - 1) / 2): v for p, v in enumerate(values) if v is not None}
        if heights:
            axes.bar(list(heights), list(heights.values()), width=width, label=name)
            known += heights.values()
    axes.set_xticks(range(len(groups)), groups, rotation=45, ha="right")
    axes.set_ylabel(axis)
    margin = max(0.2 * (max(known) - min(known)), 0.02 * abs(min(known)), 1e-3)
    axes.set_ylim(0 if from_zero else min(known) - margin, max(known) + 0.5 * margin)
    for position, label in enumerate(labels or ()):
        top = max(value for values in series.values() if (value := values[position]) is not None)
        axes.annotate(label, (position, top), ha="center", va="bottom", fontsize=8)
    if len(series) > 1:
        # More in a row would not fit a narrow figure.
        figure.legend(loc="outside upper center", ncols=min(len(series), 3))
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
