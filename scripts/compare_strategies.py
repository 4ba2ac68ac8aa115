"""Compares TamingStrategy with DefaultStrategy at the same and at half the number of Gaussians, over several seeds.

    python scripts/compare_strategies.py --seeds 0 1 2

For each seed, DefaultStrategy is trained first and ends with N Gaussians. TamingStrategy follows with a budget of N/2
and of N, with the same schedule, optimiser (plain Adam) and seed. All three are then trained again with the config's
own optimiser ("recipe-default", "recipe-half", "recipe-equal"), sparse Adam and the lazy SH step, with which
TamingStrategy is the whole recipe of Taming 3DGS. Each run is compared with DefaultStrategy of the same optimiser and
seed, so that only the strategy differs. The number of Gaussians must follow the budget curve at every event.
Finished runs are skipped, interrupted ones are resumed, and a failed run does not stop the others. After each run the
tables are rewritten: results.csv (one row for each run), results.md (means over the seeds) and results.png.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

# The scripts run from a checkout too, without the package installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measure import ROOT, write_csv
from benchmarks.runs import Job, bars, markdown_table, read_metrics, run, scaled, spread
from splat_ssim.scene.options import OptimizerConfig


@dataclass(frozen=True)
class Contender:
    """One kind of run.

    Attributes:
        baseline: Name of the run of DefaultStrategy with the same optimiser, which this run is compared with.
        share: Budget as a fraction of the baseline's Gaussians. None for DefaultStrategy itself.
    """

    baseline: str
    share: float | None = None


#: Name -> contender, in the order of training: a baseline comes before the runs that need its number of Gaussians.
CONTENDERS = {
    "default": Contender("default"),
    "taming-half": Contender("default", 0.5),
    "taming-equal": Contender("default", 1.0),
    "recipe-default": Contender("recipe-default"),
    "recipe-half": Contender("recipe-default", 0.5),
    "recipe-equal": Contender("recipe-default", 1.0),
}

COLUMNS = (
    "run", "seed", "baseline", "psnr", "psnr_difference", "ssim", "ssim_difference", "num_gaussians", "budget",
    "count_is_curve", "train_seconds",
)  # fmt: skip
SUMMARY = (
    "run", "PSNR", "ΔPSNR", "to", "SSIM", "ΔSSIM", "Gaussians", "train seconds", "count is the curve",
)  # fmt: skip


@dataclass
class Options:
    """Trains DefaultStrategy and TamingStrategy alike and writes one table."""

    #: Config with the schedule that all runs share.
    config: Path = ROOT / "configs" / "taming_chair.yaml"
    #: Scene folder. By default the config's.
    data_dir: Path | None = None
    #: Number of steps of a run; the config's schedules are scaled with it. By default the config's.
    steps: int | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    result_dir: Path = Path("results/compare_strategies")
    device: Literal["auto", "cpu", "cuda"] = "auto"


def job(name: str, seed: int, budget: int | None, options: Options) -> Job:
    """The run of a strategy with a seed. Runs named recipe-… have the config's own optimiser, the others plain Adam."""
    plain = ("--optimizer.name", "adam", "--optimizer.sh-every", "1", "--optimizer.shN", str(OptimizerConfig.shN))
    strategy = (
        ("--strategy.name", "default")
        if budget is None
        else ("--strategy.name", "taming", "--strategy.budget", str(budget))
    )
    arguments = [
        *("--config", str(options.config)),
        *(("--data-dir", str(options.data_dir)) if options.data_dir else ()),
        *scaled(options.config, options.steps),
        *("--seed", str(seed)),
        *("--device", options.device),
        *("--output.images", "0"),
        *(() if name.startswith("recipe") else plain),
        *strategy,
    ]
    return Job(options.result_dir / f"{name}_{seed}", tuple(arguments))


def count_is_curve(metrics: dict[str, Any]) -> bool:
    """Whether the number of Gaussians followed the curve at every event, and ended at the budget."""
    counts, curve, budget = metrics["budget_counts"], metrics["budget_curve"], metrics["budget"]
    is_curve: bool = counts == curve and curve[-1] == budget == metrics["num_gaussians"]
    return is_curve


def rows_of(folder: Path, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """A row for each finished run. Differences are to the baseline with the same seed."""
    rows = []
    for seed in seeds:
        for name, contender in CONTENDERS.items():
            metrics = read_metrics(folder / f"{name}_{seed}")
            baseline = read_metrics(folder / f"{contender.baseline}_{seed}")
            if metrics is None or baseline is None:
                continue
            tamed = contender.share is not None
            rows.append(
                {
                    "run": name,
                    "seed": seed,
                    "baseline": contender.baseline if tamed else None,
                    **{key: metrics[key] for key in ("psnr", "ssim", "num_gaussians", "train_seconds")},
                    **{
                        f"{key}_difference": metrics[key] - baseline[key] if tamed else None for key in ("psnr", "ssim")
                    },
                    "budget": metrics["budget"] if tamed else None,
                    "count_is_curve": count_is_curve(metrics) if tamed else None,
                }
            )
    return rows


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """Mean and deviation over the seeds of each kind of run."""
    lines = []
    for name in CONTENDERS:
        members = [row for row in rows if row["run"] == name]
        if not members:
            continue

        def over(key: str, digits: int, members: Sequence[dict[str, Any]] = members) -> str:
            values = [row[key] for row in members if row[key] is not None]
            return spread(values, digits, signed=key.endswith("difference")) if values else ""

        holds = [row["count_is_curve"] for row in members]
        lines.append(
            {
                "run": name,
                "PSNR": over("psnr", 2),
                "ΔPSNR": over("psnr_difference", 2),
                "to": members[0]["baseline"] or "",
                "SSIM": over("ssim", 4),
                "ΔSSIM": over("ssim_difference", 4),
                "Gaussians": over("num_gaussians", 0),
                "train seconds": over("train_seconds", 1),
                "count is the curve": "" if None in holds else f"{sum(holds)} of {len(holds)} runs",
            }
        )
    return lines


def write_tables(options: Options, notes: dict[str, str]) -> list[dict[str, Any]]:
    """Writes results.csv, results.md and results.png from the run folders; returns the rows."""
    folder = options.result_dir
    rows = rows_of(folder, options.seeds)
    lines = summary(rows)
    write_csv(folder / "results.csv", COLUMNS, rows)
    text = [
        "# TamingStrategy against DefaultStrategy",
        "",
        "Same schedule and seed; plain Adam, or for recipe-* the config's own optimiser; mean ± standard deviation",
        "over the seeds. Differences are to DefaultStrategy with the same optimiser and seed, whose number of",
        "Gaussians is the budget of the equal runs and twice that of the half ones.",
        "",
        *markdown_table(SUMMARY, lines),
        "",
        *(f"* {name}: {note}" for name, note in notes.items()),
    ]
    (folder / "results.md").write_text("\n".join(text) + "\n")
    if rows:
        psnr = {(row["run"], row["seed"]): row["psnr"] for row in rows}
        names = list(CONTENDERS)
        series = {f"seed {seed}": [psnr.get((name, seed)) for name in names] for seed in options.seeds}
        bars(folder / "results.png", names, series, "PSNR (dB)")
    return rows


def main(options: Options) -> int:
    """Runs everything in turn. Returns 1 if a run failed or its number of Gaussians left the curve."""
    options.result_dir.mkdir(parents=True, exist_ok=True)
    notes: dict[str, str] = {}
    rows: list[dict[str, Any]] = []
    for seed in options.seeds:
        for name, contender in CONTENDERS.items():
            baseline = read_metrics(options.result_dir / f"{contender.baseline}_{seed}")
            if contender.share is None:
                notes[f"{name}_{seed}"] = run(job(name, seed, None, options))
            elif baseline is None:
                notes[f"{name}_{seed}"] = f"skipped: {contender.baseline}, which says its budget, has not finished"
            else:
                budget = max(1, int(contender.share * baseline["num_gaussians"]))
                notes[f"{name}_{seed}"] = run(job(name, seed, budget, options))
            print(f"{name}_{seed}: {notes[f'{name}_{seed}']}", flush=True)
            rows = write_tables(options, notes)
    print((options.result_dir / "results.md").read_text())
    failed = any(note.startswith(("failed", "skipped")) for note in notes.values())
    return int(failed or any(row["count_is_curve"] is False for row in rows))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
