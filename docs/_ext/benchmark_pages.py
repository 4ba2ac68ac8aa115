"""The benchmark pages, made from the CSV files: machine and commit, what is won and what is lost, every row."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

#: File -> title, and one sentence on what was measured. A file that is not named here gets its name as its title.
SUBJECTS = {
    "speed": ("Speed of SSIM on a CPU", "Time of SSIM alone and with its gradient, beside each peer in turn."),
    "gpu": (
        "Speed of the loss on a GPU",
        "L1 + DSSIM beside the peers; milliseconds of the GPU.",
    ),
    "scaling": ("Numbers of threads", "Time of SSIM over numbers of threads, beside each peer's fastest form."),
    "memory": ("Memory of SSIM", "What a call holds beyond its inputs, in MiB and in images."),
    "accuracy": ("Accuracy", "Errors against float64; the gradient's as a share of its maximum."),
    "sweep": ("Sizes, batches and windows", "Time of SSIM over sizes, batch sizes and windows, ours alone."),
    "drop_ins": ("Drop-ins", "Each drop-in beside the package that it stands in for."),
    "render_cpu": ("Rasteriser on a CPU", "Time of the tile rasteriser, in parts."),
    "voxelize": ("Voxeliser", "The voxeliser and the loss of volumes beside plain torch."),
    "volume": ("Fitting a volume", "The MRI as Gaussians under two losses, and as a grid of as many numbers."),
    "chair_200": ("The chair at 200 pixels", "PSNR and seconds of `make train`."),
    "chair_800": ("The chair at 800 pixels", "PSNR over the seconds of training."),
    "taming_chair": ("TamingStrategy against DefaultStrategy", "Two densification strategies under one schedule."),
    "ablation_fast": ("Ingredients of the fast preset", "The chair without each ingredient in turn."),
    "ablation_taming": ("Ingredients of Taming 3DGS", "The chair without each ingredient in turn."),
    "cuda_static": ("CUDA kernels counted", "Registers, instructions and bytes: counted, not measured."),
    "cuda_lanes": ("CUDA lanes in use", "Share of the lanes that do useful work: counted, not measured."),
    "cuda_host": (
        "Host time of a CUDA call",
        "Microseconds of Python for a call, on a driver that does nothing.",
    ),
}
_MACHINES = ("device", "machine", "processor")
#: Tables of many columns take the whole width.
_WIDE = "<style>.content { width: calc(100vw - 21em); } .toc-drawer { display: none; }</style>"
#: Rows of a table that is shown at once; a longer one opens on request.
_SHOWN = 30


@dataclass
class Results:
    """One CSV file."""

    path: Path
    columns: list[str]
    rows: list[dict[str, str]]
    comments: list[str]

    @property
    def title(self) -> str:
        """Title of the page."""
        return SUBJECTS.get(self.path.stem, (self.path.stem.replace("_", " ").capitalize(), ""))[0]

    @property
    def machines(self) -> str:
        """The machines that the figures are of, in words."""
        return ", ".join(self.values(*_MACHINES)) or "not in the file"

    @property
    def commits(self) -> str:
        """The commits that the figures are of, as Markdown."""
        return ", ".join(f"`{commit}`" for commit in self.values("commit")) or "not in the file"

    def values(self, *columns: str) -> list[str]:
        """The different values of the first of these columns that the file has."""
        column = next((name for name in columns if name in self.columns), None)
        return list(dict.fromkeys(row[column] for row in self.rows if row[column])) if column else []


def read(path: Path) -> Results:
    """Reads a CSV file whose first lines may be comments."""
    lines = path.read_text().splitlines()
    comments = [line[1:].strip() for line in lines if line.startswith("#")]
    reader = csv.DictReader(line for line in lines if line and not line.startswith("#"))
    rows = [{name: value or "" for name, value in row.items() if name} for row in reader]
    return Results(path, list(reader.fieldnames or []), rows, comments)


def found(root: Path) -> list[Results]:
    """Every CSV file of figures, those that are best known first."""
    paths = {
        path.stem: path for folder in ("benchmarks", "benchmarks/results") for path in (root / folder).glob("*.csv")
    }
    order = [*(name for name in SUBJECTS if name in paths), *sorted(set(paths) - set(SUBJECTS))]
    return [read(paths[name]) for name in order]


def _number(text: str) -> str:
    """A figure with four digits that count."""
    try:
        value = float(text)
    except ValueError:
        return text
    return text if text.lstrip("-").isdigit() else f"{value:.4g}"


def _cell(text: str) -> str:
    return _number(text).replace("|", "\\|").replace("<", "&lt;")


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table."""
    lines = ["| " + " | ".join(name.replace("_", " ") for name in columns) + " |", "|---" * len(columns) + "|"]
    return lines + ["| " + " | ".join(_cell(value) for value in row) + " |" for row in rows]


def is_ours(name: str) -> bool:
    """Whether a row's name says that it is this package."""
    return name.startswith("splat_ssim")


def won_and_lost(results: Results) -> list[tuple[str, str, str, float, str, float]]:
    """The fastest and the slowest peer of each size and mode: (size, mode, name, times as long, name, times as long).

    By the column `ratio`, a peer's time over ours in the same run: below 1 the peer is faster.
    """
    if not {"name", "ratio"} <= set(results.columns):
        return []
    groups: dict[tuple[str, str], list[tuple[float, str]]] = {}
    several = len(results.values("threads")) > 1
    for row in results.rows:
        if row["ratio"] and not is_ours(row["name"]):
            size = row.get("size") or row.get("case", "")
            size += f", {row['threads']} thread{'s' * (row['threads'] != '1')}" if several else ""
            groups.setdefault((size, row.get("mode", "")), []).append((float(row["ratio"]), row["name"]))
    return [
        (size, mode, min(peers)[1], min(peers)[0], max(peers)[1], max(peers)[0])
        for (size, mode), peers in groups.items()
    ]


def page(results: Results, folder: Path) -> str:
    """The page of one file as Markdown; its picture is copied into `folder`."""
    about = SUBJECTS.get(results.path.stem, ("", ""))[1]
    lines = [f"# {results.title}", "", _WIDE, "", *([about, ""] if about else [])]
    lines += [*results.comments, ""] if results.comments else []
    dirty = "dirty" in results.commits
    lines += [
        f"* Machine: {results.machines}",
        f"* Commit: {results.commits}" + (". Those marked dirty had changes that were not committed." if dirty else ""),
        f"* File: `{results.path.parent.name}/{results.path.name}`, {len(results.rows)} rows",
        "",
    ]
    picture = results.path.with_suffix(".png")
    if picture.exists():
        shutil.copyfile(picture, folder / picture.name)
        lines += [f"![{results.title}]({picture.name})", ""]
    compared = won_and_lost(results)
    if compared:
        columns = ("size", "mode", "fastest peer", "times as long as ours", "slowest peer", "times as long")
        lines += ["## Won and lost", "", *markdown_table(columns, [tuple(map(str, row)) for row in compared]), ""]
        lost = [row for row in compared if row[3] < 1]
        lines += [
            f"In {len(lost)} of these {len(compared)} a peer is faster than ours: a figure below 1."
            if lost
            else f"In none of these {len(compared)} is a peer faster than ours: every figure is above 1.",
            "",
        ]
    text = results.path.with_suffix(".md")
    if text.exists():
        own = [line for line in text.read_text().splitlines() if not line.startswith("# ")]
        lines += ["## Summary", "", *own, ""]
    table = markdown_table(results.columns, [[row.get(name, "") for name in results.columns] for row in results.rows])
    lines += ["## Every row", ""]
    if len(results.rows) > _SHOWN:
        lines += [f"<details><summary>{len(results.rows)} rows</summary>", "", *table, "", "</details>"]
    else:
        lines += table
    return "\n".join(lines) + "\n"


def write(root: Path, folder: Path) -> list[Results]:
    """Writes the pages into `folder` and returns what they are made from."""
    folder.mkdir(parents=True, exist_ok=True)
    every = found(root)
    for results in every:
        (folder / f"{results.path.stem}.md").write_text(page(results, folder))
    rows = [
        f"| [{one.title}](/generated/benchmarks/{one.path.stem}.md) | {one.machines} | {one.commits} | {_lost(one)} |"
        for one in every
    ]
    head = ["| what | machine | commit | a peer is faster in |", "|---|---|---|---|"]
    (folder / "overview.txt").write_text("\n".join(head + rows) + "\n")
    names = "\n".join(one.path.stem for one in every)
    (folder / "toctree.txt").write_text("```{toctree}\n:hidden:\n\n" + _prefixed(names) + "\n```\n")
    return every


def _prefixed(names: str) -> str:
    return "\n".join(f"/generated/benchmarks/{name}" for name in names.splitlines())


def _lost(results: Results) -> str:
    compared = won_and_lost(results)
    return f"{sum(row[3] < 1 for row in compared)} of {len(compared)} sizes and modes" if compared else "–"
