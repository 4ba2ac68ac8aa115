"""The report on the photographs: report.json, and the table that is printed."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from splat_ssim.trainer.places import program

#: Training views of about this many pixels along the longer side are proposed.
TRAINING_SIZE = 1000
#: The most names that a line of the table lists.
MAX_NAMES = 12


def make_report(
    scene: Path, options: dict[str, Any], infos: dict[str, dict[str, Any]], seconds: dict[str, float]
) -> dict[str, Any]:
    """Returns the contents of report.json.

    Args:
        scene: Scene folder.
        options: Options of prepare.py, by name.
        infos: Results of each stage, by its name.
        seconds: Seconds that each stage took.
    """
    photos, mapping, model = infos["photos"], infos["mapping"], infos["undistortion"]
    registered = set(model["registered"])
    return {
        "found": photos["found"],
        "read": len(photos["sizes"]),
        "registered": len(registered),
        "not_registered": sorted(name for name in photos["sizes"] if name not in registered),
        "masks": photos["masks"],
        "points": model["points"],
        "mean_reprojection_error": model["reprojection_error"],
        "mean_track_length": model["track_length"],
        "cameras": model["cameras"],
        "exif_focal": sum(camera["photos"] for camera in infos["features"]["cameras"] if camera["from_exif"]),
        "other_models": mapping["models"][1:],
        "pairs": infos["matching"],
        "notes": photos["notes"],
        "seconds": seconds,
        "options": options,
        "next": next_command(scene, model["cameras"]),
    }


def next_command(scene: Path, cameras: list[dict[str, Any]]) -> str:
    """The command that trains the scene, on images of a size that a CPU copes with."""
    longest = max(max(camera["undistorted"]) for camera in cameras)
    factor = next((factor for factor in (1, 2, 4) if longest / factor <= TRAINING_SIZE), 8)
    reduced = f" --data.factor {factor}" if factor > 1 else ""
    return f"{program('train')} --data-dir {shlex.quote(str(scene))}{reduced}"


def table(report: dict[str, Any]) -> list[str]:
    """The lines of a report to print."""
    missing, others = report["not_registered"], report["other_models"]
    told = ", ".join(missing[:MAX_NAMES]) + (f" and {len(missing) - MAX_NAMES} more" if missing[MAX_NAMES:] else "")
    rows = [
        ("found", str(report["found"])),
        ("read", f"{report['read']}, masks for {report['masks']}, EXIF focal length for {report['exif_focal']}"),
        ("registered", str(report["registered"])),
        ("not registered", told or "none"),
        ("points", f"{report['points']}, seen by {report['mean_track_length']:.2f} photographs each"),
        ("reprojection error", f"{report['mean_reprojection_error']:.3f} pixels"),
        *((f"camera {number}", _camera(camera)) for number, camera in enumerate(report["cameras"][:4], 1)),
    ]
    if report["cameras"][4:]:
        rows.append(("more cameras", str(len(report["cameras"]) - 4)))
    if others:
        sizes = ", ".join(str(model["photos"]) for model in others)
        rows.append(("other models", f"{len(others)}, of {sizes} photographs, left out"))
    rows.append(("seconds", ", ".join(f"{stage} {value:.1f}" for stage, value in report["seconds"].items())))
    width = max(len(name) for name, _ in rows)
    return [f"{name.ljust(width)}  {value}" for name, value in rows]


def _camera(camera: dict[str, Any]) -> str:
    x, y = camera["focal"]
    focal = f"{x:.1f}" if abs(x - y) < 0.05 else f"{x:.1f} and {y:.1f}"
    return (
        f"{camera['model']}, {camera['width']}x{camera['height']}, focal length {focal} pixels; undistorted "
        f"{camera['undistorted'][0]}x{camera['undistorted'][1]}"
    )
