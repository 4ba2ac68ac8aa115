"""Writes a page about a run as one file that needs no network: its curves, times, options and the task's own part."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from splat_ssim._files import without_infinities, write_text
from splat_ssim.errors import UserError
from splat_ssim.trainer.config import RunConfig, differences
from splat_ssim.trainer.folder import CONFIG, METRICS
from splat_ssim.trainer.history import read_rows
from splat_ssim.trainer.task import Task
from splat_ssim.trainer.versions import NAME as VERSIONS

NAME = "report.html"
_PAGE = Path(__file__).parent / "page"
#: Points of a curve. If there are more, they are thinned evenly.
_POINTS = 600
#: The first charts; the others follow as they were reported.
_CHARTS = ("loss", "psnr", "psnr3d", "ssim", "ssim3d")
#: Names of metrics as a page shows them.
_NAMES = {"psnr": "PSNR", "psnr3d": "PSNR3D", "ssim": "SSIM", "ssim3d": "SSIM3D", "lpips": "LPIPS"}
#: Longest side of a picture in a page, and its quality as JPEG.
LONGEST, QUALITY = 800, 90


@dataclasses.dataclass
class Section:
    """A heading and the HTML below it."""

    title: str
    html: str


def write_report(
    folder: Path, config: RunConfig, *, title: str, metrics: Mapping[str, Any], own: Sequence[Section]
) -> Path:
    """Writes report.html to a run folder.

    Args:
        folder: Run folder, with its history and evaluations.
        config: Resolved config of the run.
        title: Title of the page.
        metrics: Contents of metrics.json; for an unfinished run, those that there are.
        own: Sections of the task, between the curves and the options.

    Returns:
        The file written.

    Raises:
        WriteError: The system refused to write.
    """
    sections = [Section("Curves", _curves(folder)), *own, Section("Time", _times(folder, metrics))]
    sections += [Section("Options", _options(folder, config)), Section("Made with", _made_with(folder))]
    body = "".join(f"<section><h2>{escape(part.title)}</h2>{part.html}</section>" for part in sections)
    cards = "".join(
        f"<div class=card><b>{escape(value)}</b><span>{escape(key)}</span></div>" for key, value in _cards(metrics)
    )
    text = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{page_part('page.css')}</style></head><body>"
        f"<h1>{escape(title)}</h1><p class=note>{escape(str(folder.absolute()))}</p><div class=cards>{cards}</div>"
        f"{body}<script>{page_part('page.js')}</script></body></html>\n"
    )
    write_text(folder / NAME, text)
    return folder / NAME


def title_of(task: Task, step: int) -> str:
    """The title of a page: the data's name, and how far a run is that is not over."""
    steps = task.config.steps
    return task.name if step >= steps else f"{task.name}, step {step:,} of {steps:,}"


def read_metrics(folder: Path) -> dict[str, Any]:
    """Reads metrics.json of a run folder. The result is empty if the run is not finished."""
    path = folder / METRICS
    if not path.exists():
        return {}
    return _json(path)


def read_evaluations(folder: Path) -> list[dict[str, Any]]:
    """Reads all eval/<step>.json of a run folder, in the order of their steps."""
    return sorted((_json(path) for path in (folder / "eval").glob("*.json")), key=lambda found: found.get("step", 0))


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as broken:
        raise UserError(f"{path}: required JSON, got {broken}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: required a JSON object, got {type(content).__name__}")
    return content


# --- pieces that tasks use too


def page_part(name: str) -> str:
    """A file of the page's own style or scripts."""
    return (_PAGE / name).read_text(encoding="utf-8")


def embedded(identifier: str, value: Any) -> str:
    """A value as JSON that a script of the page reads by its identifier."""
    text = json.dumps(without_infinities(value), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json" id="{escape(identifier)}">{text}</script>'


def picture(pixels: np.ndarray, *, longest: int = LONGEST) -> str:
    """A data URI of (H, W, 3) uint8: a JPEG, larger pictures at `longest` pixels."""
    image = Image.fromarray(pixels)
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    # No chroma subsampling, since it would blur the colours of small pictures.
    image.save(buffer, "JPEG", quality=QUALITY, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def turntable(
    name: str, frames: Sequence[str], *, labels: Sequence[str] = (), start: int = 0, told: str = "", wide: bool = True
) -> str:
    """Makes a figure of several pictures, one of which is selected by a slider.

    Args:
        name: Name of the figure, unique on its page.
        frames: Pictures as data URIs, see `picture`.
        labels: A label for each picture. By default there are none.
        start: Index of the picture that is shown first.
        told: Description of the pictures, for the caption and for screen readers.
        wide: Whether the figure may take the whole width of the page.
    """
    identifier = "frames-" + "".join(letter if letter.isalnum() else "-" for letter in name)
    caption = f"<figcaption>{escape(told)}. <output></output></figcaption>" if told or labels else ""
    return (
        f'<figure class="turntable{" wide" if wide else ""}" data-frames="{identifier}">'
        f'<img alt="{escape(told or name)}"><input type=range min=0 max={len(frames) - 1} value={start} '
        f'aria-label="{escape(told or name)}">{caption}</figure>'
        f"{embedded(identifier, {'frames': list(frames), 'labels': list(labels)})}"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """An HTML table. Columns of numbers are right-aligned."""
    rows = [list(row) for row in rows]
    numeric = [all(isinstance(row[i], int | float) for row in rows) for i in range(len(head))]
    kinds = [" class=number" if number else "" for number in numeric]
    top = "".join(f"<th{kind}>{escape(name)}</th>" for kind, name in zip(kinds, head, strict=True))
    lines = ["".join(f"<td{k}>{escape(in_text(v))}</td>" for k, v in zip(kinds, row, strict=True)) for row in rows]
    return f"<table><tr>{top}</tr>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def in_text(value: Any) -> str:
    """A value as text for a table.

    Example:
        >>> from splat_ssim.trainer.report import in_text
        >>> in_text(38.0765), in_text(24000), in_text(None)
        ('38.08', '24,000', '—')
    """
    if value is None:
        return "—"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


# --- parts of every run's page


def _cards(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The figures at the top: name, value."""
    cards = []
    for key, name in _NAMES.items():
        unit = " dB" if key.startswith("psnr") else ""
        if isinstance(metrics.get(key), int | float):
            cards.append((name, f"{metrics[key]:.2f}{unit}" if unit else f"{metrics[key]:.4f}"))
    cards += [
        (key.removeprefix("num_").replace("_", " "), in_text(value))
        for key, value in metrics.items()
        if key.startswith("num_")
    ]
    if "step" in metrics:
        cards.append(("steps", in_text(metrics["step"])))
    if "train_seconds" in metrics:
        cards.append(("of training", f"{metrics['train_seconds']:.1f} s"))
    if metrics.get("peak_memory_bytes"):
        where = "peak memory of the device" if metrics.get("device") == "cuda" else "peak memory of the process"
        cards.append((where, f"{metrics['peak_memory_bytes'] / 2**20:,.0f} MiB"))
    return cards


def _curves(folder: Path) -> str:
    try:
        history = [row for row in read_rows(folder) if "milliseconds" not in row]
    except UserError as broken:
        return f"<p>{escape(str(broken))}</p>"
    tests = [row for row in read_evaluations(folder) if "train_seconds" in row and "step" in row]
    keys = dict.fromkeys(key for row in history for key in row if key not in ("step", "seconds"))
    keys.update(dict.fromkeys(key for key in _CHARTS if any(_number(row.get(key)) for row in tests)))
    charts = []
    for key in sorted(keys, key=lambda key: _CHARTS.index(key) if key in _CHARTS else len(_CHARTS)):
        train = [[row["step"], row["seconds"], row[key]] for row in history if _number(row.get(key))]
        test = [[row["step"], row["train_seconds"], row[key]] for row in tests if _number(row.get(key))]
        counts = all(isinstance(point[2], int) for point in train)
        name = _NAMES.get(key, key) + (", dB" if key in ("psnr", "psnr3d") else "")
        charts.append({"name": name, "train": _thinned(train), "test": _thinned(test), "noisy": not counts})
    if not any(chart["train"] or chart["test"] for chart in charts):
        return "<p>The folder has no history of this run: it is of an older version, or of a few steps.</p>"
    legend = '<span class=legend><i style="background:var(--accent)"></i>training, and its moving mean'
    legend += '<i style="background:var(--second)"></i>evaluation</span>'
    switch = "<span class=switch><button data-axis=0>steps</button><button data-axis=1>seconds</button></span>"
    charts = [chart for chart in charts if chart["train"] or chart["test"]]
    return f"<p>{switch}{legend}</p><div class=charts id=curves></div>{embedded('curve-data', charts)}"


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _thinned(points: list[list[Any]]) -> list[list[Any]]:
    """About `_POINTS` of the points at most, including the last one."""
    every = -(-len(points) // _POINTS)
    return points if every <= 1 else [*points[:-1:every], points[-1]]


def _times(folder: Path, metrics: Mapping[str, Any]) -> str:
    try:
        profiles = [row for row in read_rows(folder) if isinstance(row.get("milliseconds"), dict)]
    except UserError:
        profiles = []
    seconds = metrics.get("train_seconds")
    told = "" if seconds is None else f"<p>{seconds:.1f} s of training, evaluations left out.</p>"
    if not profiles:
        return f"{told}<p class=note>The run has not been profiled (--profile): no times of its stages.</p>"
    stages = list(dict.fromkeys(stage for row in profiles for stage in row["milliseconds"]))
    rows = [[row["step"], *(row["milliseconds"].get(stage) for stage in stages)] for row in profiles]
    return f"{told}<p>Mean milliseconds of a step until:</p>{table(['step', *stages], rows)}"


def _options(folder: Path, config: RunConfig) -> str:
    """The options that differ from the defaults, and the whole config."""
    kind = type(config)
    defaults = dataclasses.replace(kind(), steps=config.steps).resolved()
    found = differences(defaults, config)
    found.pop("data_dir", None)
    if config.steps != kind().steps:
        found = {"steps": (kind().steps, config.steps), **found}
    rows = [[name, str(after), str(before)] for name, (before, after) in found.items()]
    changed = table(["option", "this run", "default"], rows) if rows else "<p>All options are the defaults.</p>"
    whole = (folder / CONFIG).read_text(encoding="utf-8")
    return (
        f"<p>Data: <code>{escape(str(config.data_dir))}</code></p>{changed}"
        f"<details><summary>{CONFIG}</summary><pre>{escape(whole)}</pre></details>"
    )


def _made_with(folder: Path) -> str:
    if not (folder / VERSIONS).exists():
        return f"<p>There is no {VERSIONS}: the run is not over, or of an older version.</p>"
    versions = _json(folder / VERSIONS)
    return table(["", "version"], [[name, str(value)] for name, value in versions.items()])
