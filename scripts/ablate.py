"""Measures what each ingredient of a recipe gains: trains the recipe, the recipe without each one, and without all.

    python scripts/ablate.py --recipe taming                       # configs/taming_chair.yaml on the chair
    python scripts/ablate.py --recipe fast --seeds 0 1 2
    python scripts/ablate.py --data-dir SCENE --config OWN.yaml --steps 30000

Finished runs are skipped, interrupted ones are resumed, and a failed run does not stop the others. After each run the
tables are rewritten: results.csv (one row for each run), results.md (one row for each variant) and results.png.
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
from splat_ssim.scene.options import STRATEGY_OPTIONS, OptimizerConfig

FULL = "full"

#: Recipe -> its config. The config of photos names no scene.
CONFIGS = {"taming": "taming_chair.yaml", "fast": "fast.yaml", "photos": "photos.yaml"}

#: Options for a step of shN at every training step. The config's rate is for few steps on summed gradients and would be
#: too high, so the trainer's default is used.
EVERY_STEP = ("--optimizer.sh-every", "1", "--optimizer.shN", str(OptimizerConfig.shN))

#: Learning rates of a config without a preset.
RATES = tuple(
    text
    for name in ("scales", "quats", "opacities", "sh0")
    for text in (f"--optimizer.{name}", str(getattr(OptimizerConfig, name)))
)
POSITIONS = (
    "--optimizer.means",
    str(OptimizerConfig.means),
    "--optimizer.means-final",
    str(OptimizerConfig.means_final),
)

#: Recipe -> ingredient -> the options that take it out.
INGREDIENTS: dict[str, dict[str, tuple[str, ...]]] = {
    "taming": {
        "fused loss": ("--loss", "ssim"),
        "sparse Adam": ("--optimizer.name", "adam"),
        "lazy SH": EVERY_STEP,
        "score": ("--strategy.score-views", "0"),
        "budget": ("--strategy.name", "default"),
    },
    "fast": {
        "fused loss": ("--loss", "ssim"),
        "fused optimiser": ("--optimizer.name", "torch_adam"),
        "sparse Adam": ("--optimizer.name", "adam"),
        "lazy SH": EVERY_STEP,
        "progressive resolution": ("--data.coarse-factor", "1"),
        "high rates": RATES,
        "low rate of positions": POSITIONS,
        "faster growth": ("--strategy.growth", "0.05"),
        "final pruning": ("--strategy.final-prune", "0"),
    },
    "photos": {
        "dense Adam": ("--optimizer.name", "sparse_adam"),
        "lazy SH": EVERY_STEP,
        "progressive resolution": ("--data.coarse-factor", "1"),
        "growth to the budget": ("--strategy.growth", "0.05"),
        "high rate of scales": ("--optimizer.scales", str(OptimizerConfig.scales)),
        "rate of positions": ("--optimizer.means", "1.6e-4", "--optimizer.means-final", "1.6e-6"),
    },
}

NOTES = {
    "taming": (
        "Without the score, growth and pruning are drawn evenly; without the budget, gsplat's DefaultStrategy grows by "
        "its threshold (and has no score either). Without all of them, it is 3DGS."
    ),
    "photos": (
        "Without dense Adam, the run uses sparse Adam, which steps only the Gaussians in view. Without the rate of "
        "scales or positions, it uses that of gsplat's trainer."
    ),
    "fast": (
        "Without the fused optimiser, torch.optim.Adam steps every Gaussian. Without the high rates, and the low one "
        "of positions, they are those of a config without a preset."
    ),
}

COLUMNS = ("variant", "seed", "psnr", "ssim", "num_gaussians", "train_seconds")
SUMMARY = ("variant", "PSNR", "ΔPSNR", "SSIM", "Gaussians", "train seconds", "Δ seconds", "seeds")


@dataclass
class Options:
    """Trains a recipe with and without each of its ingredients and writes one table."""

    #: Recipe whose ingredients are taken out.
    recipe: Literal["taming", "fast", "photos"] = "taming"
    #: Config that every run starts from. By default the recipe's, on the chair.
    config: Path | None = None
    #: Scene folder. By default the config's.
    data_dir: Path | None = None
    #: Number of steps of a run; the config's schedules are scaled with it. By default the config's.
    steps: int | None = None
    #: Seeds; every variant is trained with each of them.
    seeds: tuple[int, ...] = (0,)
    #: Variants to train: full, no-<ingredient> or none. By default all.
    variants: tuple[str, ...] = ()
    #: Largest number of Gaussians. By default the config's.
    budget: int | None = None
    #: Folder of runs and tables. By default results/ablation_<recipe>.
    result_dir: Path | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    #: Only print the commands.
    dry_run: bool = False


def variants(recipe: str) -> dict[str, tuple[str, ...]]:
    """Name of a variant -> the options that turn the recipe into it."""
    ingredients = INGREDIENTS[recipe]
    without = {"no-" + name.lower().replace(" ", "-"): options for name, options in ingredients.items()}
    # If two ingredients set the same option, the first one's value removes both.
    everything: dict[str, str] = {}
    for options in ingredients.values():
        for option, value in zip(options[::2], options[1::2], strict=True):
            everything.setdefault(option, value)
    return {FULL: (), **without, "none": tuple(word for pair in everything.items() for word in pair)}


def job(name: str, seed: int, options: Options, folder: Path) -> Job:
    """The run of a variant with a seed."""
    config = options.config or ROOT / "configs" / CONFIGS[options.recipe]
    without = variants(options.recipe)[name]
    strategy = dict(zip(without[::2], without[1::2], strict=True)).get("--strategy.name", options.recipe)
    # The variant without a budget uses DefaultStrategy, which has no such option.
    budget = options.budget if "budget" in STRATEGY_OPTIONS.get(strategy, ("budget",)) else None
    given = {"--data-dir": options.data_dir, "--strategy.budget": budget}
    arguments = [
        *("--config", str(config)),
        *(word for option, value in given.items() if value is not None for word in (option, str(value))),
        *scaled(config, options.steps),
        *("--seed", str(seed)),
        *("--device", options.device),
        *("--output.images", "0"),
        *without,
    ]
    return Job(folder / f"{name}_{seed}", tuple(arguments))


def summary(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> list[dict[str, str]]:
    """A line for each variant that has a run. Differences are to the full recipe, over the seeds that both have."""
    full = {row["seed"]: row for row in rows if row["variant"] == FULL}
    lines = []
    for name in names:
        members = [row for row in rows if row["variant"] == name]
        if not members:
            continue
        pairs = [(row, full[row["seed"]]) for row in members if row["seed"] in full and name != FULL]

        def difference(key: str, digits: int, pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]] = pairs) -> str:
            return spread([row[key] - base[key] for row, base in pairs], digits, signed=True) if pairs else ""

        lines.append(
            {
                "variant": name,
                "PSNR": spread([row["psnr"] for row in members], 2),
                "ΔPSNR": difference("psnr", 2),
                "SSIM": spread([row["ssim"] for row in members], 4),
                "Gaussians": spread([row["num_gaussians"] for row in members], 0),
                "train seconds": spread([row["train_seconds"] for row in members], 1),
                "Δ seconds": difference("train_seconds", 1),
                "seeds": str(len(members)),
            }
        )
    return lines


def write_tables(folder: Path, options: Options, names: Sequence[str], notes: dict[str, str]) -> list[dict[str, str]]:
    """Writes results.csv, results.md and results.png from the run folders; returns the summary."""
    rows = []
    for seed in options.seeds:
        for name in names:
            metrics = read_metrics(folder / f"{name}_{seed}")
            if metrics is not None:
                rows.append({"variant": name, "seed": seed, **{key: metrics[key] for key in COLUMNS[2:]}})
    lines = summary(rows, names)
    write_csv(folder / "results.csv", COLUMNS, rows)
    text = [
        f"# Ablation of the recipe {options.recipe}",
        "",
        f"{NOTES[options.recipe]} Differences are to the full recipe with the same seed.",
        "",
        *markdown_table(SUMMARY, lines),
        "",
        *(f"* {name}: {note}" for name, note in notes.items()),
    ]
    (folder / "results.md").write_text("\n".join(text) + "\n")
    if lines:
        bars(
            folder / "results.png",
            [line["variant"] for line in lines],
            {"train": [float(line["train seconds"].split()[0]) for line in lines]},
            "training seconds",
            from_zero=True,
            labels=[f"{line['PSNR'].split()[0]} dB" for line in lines],
        )
    return lines


def main(options: Options) -> int:
    """Runs the variants in turn. Returns 1 if one failed."""
    known = variants(options.recipe)
    unknown = sorted(set(options.variants) - set(known))
    if unknown:
        sys.exit(f"error: --variants must be among {', '.join(known)}, got {', '.join(unknown)}")
    names = options.variants or tuple(known)
    folder = options.result_dir or Path("results") / f"ablation_{options.recipe}"
    folder.mkdir(parents=True, exist_ok=True)
    notes: dict[str, str] = {}
    for seed in options.seeds:
        for name in names:
            one = job(name, seed, options, folder)
            notes[one.folder.name] = run(one, dry_run=options.dry_run)
            print(f"{one.folder.name}: {notes[one.folder.name]}", flush=True)
            if not options.dry_run:
                write_tables(folder, options, names, notes)
    if not options.dry_run:
        print((folder / "results.md").read_text())
    return int(any(note.startswith("failed") for note in notes.values()))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
