"""What SSIM3D supervision brings when a volume is fitted, beside L1 alone and beside a trilinear grid of equal size.

    python -m benchmarks.volume --sizes 10000 50000 --seeds 3

For each number of Gaussians: L1 alone and L1 + SSIM3D for as many steps and seeds; and the grid with as many numbers,
trained under L1 + SSIM3D, and as the exact least-squares fit, which has the best PSNR any such grid can have (neither
draws anything, so one seed). Runs that are done are passed over, interrupted ones go on. After each run the tables are
written anew: volume.csv (a row a run) and volume.md (means over the seeds) in --output.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from benchmarks import measure
from benchmarks.measure import commit, output_folder, write_csv
from benchmarks.runs import Job, markdown_table, read_metrics, run, spread

#: Steps by number of Gaussians, for 2 and 10 minutes on two cores; others take the last.
STEPS = {10_000: 1600, 50_000: 4000, 100_000: 4000}

#: Kind of run -> options beside the number of steps, and whether seeds matter.
KINDS = {
    "L1": (("--config", "configs/voxel_mri.yaml", "--loss", "l1"), True),
    "L1 + SSIM3D": (("--config", "configs/voxel_mri.yaml"), True),
    "grid, L1 + SSIM3D": (("--config", "configs/voxel_grid.yaml"), False),
    "grid, least squares": (
        ("--config", "configs/voxel_grid.yaml", "--model.grid-levels", "0", "--optimizer.nodes", "0", "--steps", "1"),
        False,
    ),
}

METRICS = (
    "psnr3d", "ssim3d", "train_seconds", "step", "parameters", "bytes", "bytes_quantized", "psnr3d_quantized",
    "ssim3d_quantized", "source_bytes",
)  # fmt: skip
COLUMNS = ("size", "kind", "seed", *METRICS, "commit", "torch", "threads", "machine")
SUMMARY = ("size", "kind", "PSNR3D", "SSIM3D", "seconds", "parameters", "bytes", "quantised bytes", "PSNR3D of these")


@dataclass
class Options:
    """Fits the volume in every way and writes one table."""

    #: Numbers of Gaussians.
    sizes: tuple[int, ...] = (10_000, 50_000)
    #: Seeds 0, 1, … of the runs that draw.
    seeds: int = 3
    #: Steps of every fit of Gaussians and of the trained grid, for a quick look; by default as each needs.
    steps: int | None = None
    #: Volume file; by default the configs' MRI.
    data_dir: Path | None = None
    #: Where the runs are kept.
    result_dir: Path = Path("results/benchmark_volume")
    #: Folder of volume.csv and volume.md; benchmarks/results by default.
    output: Path | None = None
    #: A trial: uncommitted changes are measured too, into results/benchmarks.
    dirty_ok: bool = False


def jobs(options: Options) -> Iterator[tuple[int, str, int, Job]]:
    """(size, kind, seed, job) of every run, one seed of all before the next."""
    for seed in range(options.seeds):
        for size in options.sizes:
            for kind, (arguments, draws) in KINDS.items():
                if seed > 0 and not draws:
                    continue
                steps = options.steps or (STEPS.get(size, max(STEPS.values())) if draws else None)
                line = [
                    *arguments,
                    *("--strategy.budget", str(size), "--seed", str(seed)),
                    *("--output.no-video", "--output.no-progress", "--output.format", "", "--checkpoint-every", "500"),
                    *(("--data-dir", str(options.data_dir)) if options.data_dir else ()),
                    *(("--steps", str(steps)) if steps and "--steps" not in arguments else ()),
                ]
                name = f"{size}_{kind.replace(' + ', '_').replace(', ', '_').replace(' ', '_')}_{seed}"
                yield size, kind, seed, Job(options.result_dir / name, tuple(line))


def rows_of(options: Options) -> list[dict[str, Any]]:
    """A row for each finished run."""
    made_with = {
        "commit": commit(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    rows = []
    for size, kind, seed, job in jobs(options):
        metrics = read_metrics(job.folder)
        if metrics is not None:
            found = {key: metrics.get(key) for key in METRICS}
            rows.append({"size": size, "kind": kind, "seed": seed, **found, **made_with})
    return rows


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """Mean and deviation over the seeds of each kind of run."""
    lines = []
    for size, kind in dict.fromkeys((row["size"], row["kind"]) for row in rows):
        members = [row for row in rows if (row["size"], row["kind"]) == (size, kind)]

        def over(key: str, digits: int, members: Sequence[dict[str, Any]] = members) -> str:
            values = [row[key] for row in members if row[key] is not None]
            return spread(values, digits) if values else ""

        lines.append(
            {
                "size": str(size),
                "kind": kind,
                "PSNR3D": over("psnr3d", 2),
                "SSIM3D": over("ssim3d", 4),
                "seconds": over("train_seconds", 0),
                "parameters": over("parameters", 0),
                "bytes": over("bytes", 0),
                "quantised bytes": over("bytes_quantized", 0),
                "PSNR3D of these": over("psnr3d_quantized", 2),
            }
        )
    return lines


def differences(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What SSIM3D changes at equal steps, seed by seed, and the distance to the better of the grids, in sentences."""
    lines = []
    for size in dict.fromkeys(row["size"] for row in rows):
        found = {(row["kind"], row["seed"]): row for row in rows if row["size"] == size}
        pairs = [
            (found["L1", s], row) for (kind, s), row in found.items() if kind == "L1 + SSIM3D" and ("L1", s) in found
        ]
        if pairs:
            psnr = spread([b["psnr3d"] - a["psnr3d"] for a, b in pairs], 2)
            ssim = spread([b["ssim3d"] - a["ssim3d"] for a, b in pairs], 4)
            lines.append(f"* {size}: SSIM3D beside L1 changes PSNR3D by {psnr} dB and SSIM3D by {ssim}.")
        grids = [row["psnr3d"] for (kind, _), row in found.items() if kind.startswith("grid")]
        fits = [row["psnr3d"] for (kind, _), row in found.items() if kind == "L1 + SSIM3D"]
        if grids and fits:
            ahead = spread([fit - max(grids) for fit in fits], 2)
            lines.append(f"* {size}: {ahead} dB above the better grid of as many numbers.")
    source = next((row["source_bytes"] for row in rows if row["source_bytes"]), None)
    if source is not None:
        lines.append(f"* The compressed file of the volume has {source} bytes, and is lossless.")
        for size in dict.fromkeys(row["size"] for row in rows):
            fitted = [r for r in rows if (r["size"], r["kind"]) == (size, "L1 + SSIM3D") and r["bytes_quantized"]]
            if fitted:
                share = [
                    statistics.mean(float(r[key]) for r in fitted) / float(source)
                    for key in ("bytes", "bytes_quantized")
                ]
                decibels = statistics.mean(float(r["psnr3d_quantized"]) for r in fitted)
                lines.append(
                    f"* {size}: the Gaussians are {share[0]:.0%} of that in float32, {share[1]:.0%} quantised, and "
                    f"then give the volume to {decibels:.2f} dB."
                )
    return lines


def write_tables(options: Options, notes: dict[str, str], output: Path) -> None:
    """Writes volume.csv and volume.md from the run folders."""
    rows = rows_of(options)
    write_csv(output / "volume.csv", COLUMNS, rows)
    failures = [f"* {name}: {note}" for name, note in notes.items() if note.startswith("failed")]
    text = [
        "# Fitting a volume",
        "",
        f"By `python -m benchmarks.volume`, {options.seeds} seeds: mean ± standard deviation. PSNR3D and SSIM3D (zero",
        "padding) of the whole volume; bytes are float32 parameters.",
        "",
        *markdown_table(SUMMARY, summary(rows)),
        "",
        *differences(rows),
        *failures,
    ]
    (output / "volume.md").write_text("\n".join(text) + "\n")


def main(options: Options) -> int:
    """Runs everything in turn; returns 1 where a run failed."""
    output = output_folder(options.output, options.dirty_ok)
    notes: dict[str, str] = {}
    for _, _, _, job in jobs(options):
        notes[job.folder.name] = run(job)
        print(f"{job.folder.name}: {notes[job.folder.name]}", flush=True)
        write_tables(options, notes, output)
    print((output / "volume.md").read_text())
    return int(any(note.startswith("failed") for note in notes.values()))


def command() -> None:
    """Command line."""
    measure.run(lambda: sys.exit(main(tyro.cli(Options))))


if __name__ == "__main__":
    command()
