"""Trains every scene of Taming 3DGS's tables and lists the results beside the published ones.

    python scripts/reproduce_taming.py --dataset-root DATA --mode budget

DATA holds one folder for each scene in COLMAP layout, as Mip-NeRF 360, Tanks & Temples and Deep Blending have them:
DATA/bicycle/{sparse,images_4}, DATA/room/{sparse,images_2}, DATA/truck/{sparse,images}, … A missing scene is
skipped with a message, a finished one is not trained again, an interrupted one resumes from its checkpoint, and one
that fails does not stop the others. The table is rewritten after each scene: results.csv, results.md and results.png
in the result folder.

Source of the scenes, budgets and published figures: S. S. Mallick et al., "Taming 3DGS: High-Quality Radiance Fields
with Limited Resources", SIGGRAPH Asia 2024, tables 1 to 3 and the supplement.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tyro

# The scripts run from a checkout too, without the package installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measure import ROOT, write_csv
from benchmarks.runs import Job, bars, markdown_table, read_metrics, run


@dataclass(frozen=True)
class Benchmark:
    """One row of the published tables: a scene, how it is read, its budgets, and its published PSNR if there is one.

    Attributes:
        dataset: Mip-NeRF 360, Tanks & Temples or Deep Blending.
        factor: Images are read from images_{factor}, or from images for 1.
        multiplier: Final number of Gaussians as a multiple of the structure-from-motion points, in mode "budget".
        big: Final number of Gaussians in mode "big".
        psnr_budget: Published PSNR of mode "budget", or None if none was published for this scene.
    """

    dataset: str
    factor: int
    multiplier: float
    big: int
    psnr_budget: float | None = None


M360, TNT, DB = "Mip-NeRF 360", "Tanks & Temples", "Deep Blending"
SCENES = {
    "bicycle": Benchmark(M360, 4, 15, 5987095, 24.97),
    "flowers": Benchmark(M360, 4, 15, 3618411, 21.18),
    "garden": Benchmark(M360, 4, 15, 5728191, 27.45),
    "stump": Benchmark(M360, 4, 15, 4867429, 26.04),
    "treehill": Benchmark(M360, 4, 15, 3770257, 23.04),
    "room": Benchmark(M360, 2, 2, 1548960, 31.39),
    "counter": Benchmark(M360, 2, 2, 1190919, 28.59),
    "kitchen": Benchmark(M360, 2, 2, 1803735, 31.14),
    "bonsai": Benchmark(M360, 2, 2, 1252367, 31.80),
    "truck": Benchmark(TNT, 1, 2, 2584171),
    "train": Benchmark(TNT, 1, 2, 1085480),
    "playroom": Benchmark(DB, 1, 5, 2326100),
    "drjohnson": Benchmark(DB, 1, 5, 3273600),
}

#: Published means of a dataset: (mode, dataset) -> PSNR, SSIM, LPIPS, Gaussians. Deep Blending "budget": no
#: trustworthy figure was published.
PUBLISHED = {
    ("budget", M360): (27.29, 0.799, 0.253, 630_000),
    ("big", M360): (27.79, 0.822, 0.205, 3_310_000),
    ("budget", TNT): (23.89, 0.835, 0.207, 290_000),
    ("big", TNT): (24.04, 0.851, 0.170, 1_840_000),
    ("big", DB): (30.14, 0.907, 0.235, 2_810_000),
}

COLUMNS = (
    "dataset", "scene", "psnr", "psnr_published", "psnr_difference", "ssim", "ssim_published", "ssim_difference",
    "lpips", "lpips_published", "num_gaussians", "num_gaussians_published", "num_gaussians_difference",
    "train_seconds", "peak_memory_bytes",
)  # fmt: skip


@dataclass
class Options:
    """Trains the scenes of Taming 3DGS's tables and writes them beside the published figures."""

    #: Folder that holds the folders of the scenes.
    dataset_root: Path
    #: budget: ends with a multiple of the initial points, after 28 densification events. big: ends with the published
    #: number of Gaussians, after 144 events.
    mode: Literal["budget", "big"] = "budget"
    #: Scenes to train. By default all.
    scenes: tuple[str, ...] = field(default_factory=lambda: tuple(SCENES))
    #: Folder of runs and tables. By default results/taming_<mode>.
    result_dir: Path | None = None
    #: Multiplies the length of the runs and every schedule, for machines that are too slow for 30,000 steps.
    steps_scaler: float = 1.0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    #: Only print the commands.
    dry_run: bool = False


def job(name: str, options: Options, folder: Path) -> Job:
    """The training run of a scene."""
    scene = SCENES[name]
    budget = (
        ("--strategy.budget-multiplier", str(scene.multiplier))
        if options.mode == "budget"
        else ("--strategy.budget", str(scene.big))
    )
    return Job(
        folder,
        (
            *("--config", str(ROOT / "configs" / f"taming_{options.mode}.yaml")),
            *("--data-dir", str(options.dataset_root / name)),
            *("--data.factor", str(scene.factor)),
            *("--steps-scaler", str(options.steps_scaler)),
            *("--device", options.device),
            *budget,
        ),
    )


def run_scene(name: str, options: Options, folder: Path) -> str:
    """Trains a scene unless it is finished or missing. Returns a note on the outcome."""
    if read_metrics(folder) is None and not (options.dataset_root / name).is_dir():
        return f"skipped: {options.dataset_root / name} is missing"
    return run(job(name, options, folder), dry_run=options.dry_run)


def row(name: str, mode: str, metrics: dict[str, Any]) -> dict[str, Any]:
    """One line of the table, with the scene's own published PSNR where there is one."""
    scene = SCENES[name]
    published = scene.psnr_budget if mode == "budget" else None
    return {
        "dataset": scene.dataset,
        "scene": name,
        "psnr": metrics["psnr"],
        "psnr_published": published,
        "psnr_difference": None if published is None else metrics["psnr"] - published,
        "ssim": metrics["ssim"],
        "lpips": metrics.get("lpips"),
        "num_gaussians": metrics["num_gaussians"],
        "num_gaussians_published": scene.big if mode == "big" else None,
        "num_gaussians_difference": metrics["num_gaussians"] - scene.big if mode == "big" else None,
        "train_seconds": metrics["train_seconds"],
        "peak_memory_bytes": metrics.get("peak_memory_bytes"),
    }


def mean_row(dataset: str, mode: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The mean of a dataset beside its published mean. None unless all of its scenes have results."""
    members = [line for line in rows if line["dataset"] == dataset]
    if len(members) != sum(scene.dataset == dataset for scene in SCENES.values()):
        return None
    means: dict[str, Any] = {
        key: None if any(line[key] is None for line in members) else sum(line[key] for line in members) / len(members)
        for key in ("psnr", "ssim", "lpips", "num_gaussians", "train_seconds", "peak_memory_bytes")
    }
    psnr, ssim, lpips, count = PUBLISHED.get((mode, dataset), (None, None, None, None))
    return {
        "dataset": dataset,
        "scene": "mean",
        **means,
        "psnr_published": psnr,
        "psnr_difference": None if psnr is None else means["psnr"] - psnr,
        "ssim_published": ssim,
        "ssim_difference": None if ssim is None else means["ssim"] - ssim,
        "lpips_published": lpips,
        "num_gaussians_published": count,
        "num_gaussians_difference": None if count is None else means["num_gaussians"] - count,
    }


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "n/a" if key == "lpips" else ""
    if isinstance(value, str):
        return value
    sign = "+" if key.endswith("difference") else ""
    return f"{value:{sign}.3f}" if key.split("_")[0] in ("psnr", "ssim", "lpips") else f"{value:{sign}.0f}"


def write_table(folder: Path, mode: str, notes: dict[str, str]) -> list[dict[str, Any]]:
    """Writes results.csv, results.md and results.png from the run folders; returns the rows."""
    rows = [row(name, mode, metrics) for name in SCENES if (metrics := read_metrics(folder / name)) is not None]
    means = [found for dataset in (M360, TNT, DB) if (found := mean_row(dataset, mode, rows))]
    lines = [{key: _cell(key, line.get(key)) for key in COLUMNS} for line in [*rows, *means]]
    write_csv(folder / "results.csv", COLUMNS, lines)
    text = [
        f"# Taming 3DGS, {mode}",
        "",
        "Published figures: Mallick et al., SIGGRAPH Asia 2024; their GPUs and image resizing differ from these runs'.",
        "LPIPS is n/a: the weights of its network are not to be had from a package index.",
        "",
        *markdown_table(COLUMNS, lines),
        "",
        *(f"* {name}: {note}" for name, note in notes.items()),
    ]
    (folder / "results.md").write_text("\n".join(text) + "\n")
    if rows:
        bars(
            folder / "results.png",
            [line["scene"] for line in rows],
            {
                label: [line[key] for line in rows]
                for label, key in (("splat_ssim", "psnr"), ("published", "psnr_published"))
            },
            "PSNR (dB)",
        )
    return rows


def main(options: Options) -> int:
    """Runs the scenes in turn. Returns 1 if one failed."""
    unknown = sorted(set(options.scenes) - set(SCENES))
    if unknown:
        sys.exit(f"error: --scenes must be among {', '.join(SCENES)}, got {', '.join(unknown)}")
    folder = options.result_dir or Path("results") / f"taming_{options.mode}"
    folder.mkdir(parents=True, exist_ok=True)
    notes: dict[str, str] = {}
    for name in options.scenes:
        notes[name] = run_scene(name, options, folder / name)
        print(f"{name}: {notes[name]}", flush=True)
        if not options.dry_run:
            write_table(folder, options.mode, notes)
    if not options.dry_run:
        print((folder / "results.md").read_text())
    return int(any(note.startswith("failed") for note in notes.values()))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
