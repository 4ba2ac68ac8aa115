"""TamingStrategy against DefaultStrategy at equal and at half the number of Gaussians, on any scene, over seeds.

    python scripts/compare_strategies.py --seeds 0 1 2

For each seed, DefaultStrategy is trained first and ends with N Gaussians; then TamingStrategy with a budget of N/2 and
of N, with the same schedule, optimiser (plain Adam) and seed, and again with the config's own optimiser: sparse Adam
and the lazy SH step, the whole recipe of Taming 3DGS ("recipe-half", "recipe-equal"). The number of Gaussians is held
to the budget curve at every event.
Runs that are done are passed over, interrupted ones go on, and one that fails does not stop the others. After each run
the tables are written anew: results.csv (a row a run), results.md (means over the seeds) and results.png.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from _runs import ROOT, Job, bars, markdown_table, read_metrics, run, scaled, spread, write_csv

from splat_ssim.trainer.config import OptimizerConfig

#: Run -> the share of DefaultStrategy's Gaussians that is its budget.
SHARES = {"default": None, "taming-half": 0.5, "taming-equal": 1.0, "recipe-half": 0.5, "recipe-equal": 1.0}

COLUMNS = (
    "run", "seed", "psnr", "psnr_difference", "ssim", "ssim_difference", "num_gaussians", "budget", "count_is_curve",
    "train_seconds",
)  # fmt: skip
SUMMARY = ("run", "PSNR", "to default", "SSIM", "to default, SSIM", "Gaussians", "train seconds", "count is the curve")


@dataclass
class Options:
    """Trains DefaultStrategy and TamingStrategy alike and writes one table."""

    #: The schedule all have in common.
    config: Path = ROOT / "configs" / "taming_chair.yaml"
    #: Scene folder; by default the config's.
    data_dir: Path | None = None
    #: Length of a run; the config's schedules are scaled with it. By default the config's.
    steps: int | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    result_dir: Path = Path("results/compare_strategies")
    device: Literal["auto", "cpu", "cuda"] = "auto"


def job(name: str, seed: int, budget: int | None, options: Options) -> Job:
    """The run of a strategy with a seed: with plain Adam, so that the strategies alone differ, but for the recipe's."""
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
    """Whether the number of Gaussians was the curve's at every event, and the budget at the last and in the end."""
    counts, curve, budget = metrics["budget_counts"], metrics["budget_curve"], metrics["budget"]
    return counts == curve and curve[-1] == budget == metrics["num_gaussians"]


def rows_of(folder: Path, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """A row for each finished run; differences are to DefaultStrategy with the same seed."""
    rows = []
    for seed in seeds:
        default = read_metrics(folder / f"default_{seed}")
        for name in SHARES:
            metrics = read_metrics(folder / f"{name}_{seed}")
            if metrics is None or default is None:
                continue
            tamed = name != "default"
            rows.append(
                {
                    "run": name,
                    "seed": seed,
                    **{key: metrics[key] for key in ("psnr", "ssim", "num_gaussians", "train_seconds")},
                    **{f"{key}_difference": metrics[key] - default[key] if tamed else None for key in ("psnr", "ssim")},
                    "budget": metrics["budget"] if tamed else None,
                    "count_is_curve": count_is_curve(metrics) if tamed else None,
                }
            )
    return rows


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """Mean and deviation over the seeds of each kind of run."""
    lines = []
    for name in SHARES:
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
                "to default": over("psnr_difference", 2),
                "SSIM": over("ssim", 4),
                "to default, SSIM": over("ssim_difference", 4),
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
        "Same schedule and seed, plain Adam but for the recipe's runs, which have the config's optimiser too; mean ±",
        "standard deviation over the seeds. Differences are to DefaultStrategy with the same seed, whose number of",
        "Gaussians is the budget of the equal runs and twice that of the half ones.",
        "",
        *markdown_table(SUMMARY, lines),
        "",
        *(f"* {name}: {note}" for name, note in notes.items()),
    ]
    (folder / "results.md").write_text("\n".join(text) + "\n")
    if rows:
        psnr = {(row["run"], row["seed"]): row["psnr"] for row in rows}
        series = {name: [psnr.get((name, seed)) for seed in options.seeds] for name in SHARES}
        bars(folder / "results.png", [f"seed {seed}" for seed in options.seeds], series, "PSNR (dB)")
    return rows


def main(options: Options) -> int:
    """Runs everything in turn; returns 1 where a run failed or its count left the curve."""
    options.result_dir.mkdir(parents=True, exist_ok=True)
    notes: dict[str, str] = {}
    rows: list[dict[str, Any]] = []
    for seed in options.seeds:
        for name, share in SHARES.items():
            default = read_metrics(options.result_dir / f"default_{seed}")
            if share is not None and default is None:
                notes[f"{name}_{seed}"] = "skipped: DefaultStrategy, which says its budget, has not finished"
            else:
                budget = None if share is None or default is None else max(1, int(share * default["num_gaussians"]))
                notes[f"{name}_{seed}"] = run(job(name, seed, budget, options))
            print(f"{name}_{seed}: {notes[f'{name}_{seed}']}", flush=True)
            rows = write_tables(options, notes)
    print((options.result_dir / "results.md").read_text())
    failed = any(note.startswith(("failed", "skipped")) for note in notes.values())
    return int(failed or any(row["count_is_curve"] is False for row in rows))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
