"""Trained scenes in the formats of viewers, with what each costs in bytes and in dB."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from torch import Tensor

from splat_ssim._files import check_output
from splat_ssim.errors import UserError
from splat_ssim.formats import FORMATS, Cloud, Format, format_of, named_format, read_splats
from splat_ssim.formats.cloud import cloud_of
from splat_ssim.scene.data import View
from splat_ssim.scene.model import FAR, render, standard_splats
from splat_ssim.scene.training import SceneTask
from splat_ssim.trainer.device import check_device
from splat_ssim.trainer.folder import CONFIG, METRICS, read_config
from splat_ssim.trainer.loop import reopen
from splat_ssim.trainer.metrics import psnr, reported_psnr

FormatName = Literal["ply", "compressed-ply", "splat", "spz", "sog", "glb"]


def export(
    source: tyro.conf.Positional[Path],
    output: tyro.conf.Positional[Path | None] = None,
    /,
    *,
    formats: tuple[FormatName, ...] = (),
    all: bool = False,
    views: int = 0,
    device: str = "auto",
    data_dir: Path | None = None,
) -> list[Path]:
    """Writes a trained scene in the formats that viewers open.

    Each file is read back. A line gives its size, and the bytes for each Gaussian; with --views it also gives what the
    format costs in dB. Further lines say what was cut or left out. docs/export.md compares the formats.

    Args:
        source: Run folder of scripts/train.py, or a file of Gaussians in any of the formats, such as a scene.ply.
        output: File to write, whose name says the format; or a folder for the formats named by --formats or --all. By
            default the run folder, or the folder of the file.
        formats: Formats to write into a folder, as scene.ply, scene.spz and so on: one or more of ply, compressed-ply,
            splat, spz, sog and glb. A single format may also go to a file of any name.
        all: Write all formats.
        views: Number of test views of a run to render from each file that was written. They are compared with the
            photographs and with renders of the run's own Gaussians.
        device: Where views are rendered: auto, cpu or cuda.
        data_dir: Where the photographs are now, for --views. By default where the run read them.

    Returns:
        The files written.

    Raises:
        UserError: There are no Gaussians to write, or none that the format can hold.
    """
    targets = _targets(source, output, tuple(FORMATS) if all else formats)
    check_device(device)
    if views < 0:
        raise UserError(f"--views must be 0 or more, got {views}")
    if views and source.is_file():
        raise UserError(f"--views requires a run folder, got the file {source}")
    if source.exists():
        for path, kind in targets:
            _check_original(path, source, replaces=kind.name != "ply" or path == output)
            check_output(path)
    task: SceneTask | None = None
    if source.is_file():
        cloud = read_splats(source)
    elif not source.is_dir():
        raise UserError(f"required a run folder or a file of Gaussians, got nothing at {source}")
    else:
        cloud, task = _of_run(source, views > 0, device, data_dir)
    seen = _Comparison(task, cloud, views) if task is not None and views else None
    for note in cloud.notes:
        print(f"{source}: {note}")
    for path, kind in targets:
        written = replace(cloud, notes=[])
        kind.write(written, path)
        back = read_splats(path, format=kind.name)
        size = path.stat().st_size
        line = f"{path}: {size} bytes, {size / len(cloud):.1f} for each of {len(cloud)} Gaussians"
        print(line if seen is None else f"{line}; {seen.of(back)}")
        for note in [*written.notes, *back.notes]:
            print(f"  {note}")
    return [path for path, _ in targets]


def save_trained(path: str | Path, task: SceneTask) -> list[str]:
    """Writes the Gaussians of a task in the format that the file's name says. Returns what was cut or left out."""
    kind = format_of(path)
    cloud = _of_task(task, path)
    kind.write(cloud, Path(path))
    return cloud.notes


def _targets(source: Path, output: Path | None, formats: Sequence[str]) -> list[tuple[Path, Format]]:
    """Returns the files to write and their formats.

    Raises:
        UserError: No format is named, or several for one file.
    """
    kinds = [named_format(name) for name in dict.fromkeys(formats)]
    is_folder = output is None or output.is_dir() or (not output.suffix and len(kinds) > 0)
    if not is_folder and output is not None:
        if len(kinds) > 1:
            raise UserError(f"several formats require a folder to write to, got the file {output}")
        return [(output, kinds[0] if kinds else format_of(output))]
    if not kinds:
        raise UserError(
            f"required a file to write ({', '.join(each.suffix for each in FORMATS.values())}), --formats or --all, "
            f"got {'none' if output is None else f'the folder {output}'}"
        )
    folder = output or (source if source.is_dir() else source.parent)
    stem = "scene" if source.is_dir() else source.name.removesuffix(format_of(source).suffix)
    return [(folder / f"{stem}{kind.suffix}", kind) for kind in kinds]


def _check_original(path: Path, source: Path, *, replaces: bool) -> None:
    """Raises UserError for an output that would replace the Gaussians which the source may have been rounded from.

    Such is the scene.ply of a run that is not the source, and such may be a file beside the source, unless the output
    `replaces` it on purpose.
    """
    if not path.exists():
        return
    if source.is_file() and path.samefile(source):
        raise UserError(f"{path}: required an output other than the input, got the same file")
    beside = path.parent.samefile(source if source.is_dir() else source.parent)
    if path.name == "scene.ply" and (path.parent / CONFIG).is_file() and not (beside and source.is_dir()):
        raise UserError(f"{path}: required an output other than the scene.ply of a run, got it for {source}")
    if source.is_file() and beside and not replaces:
        raise UserError(
            f"{path}: required an output that is not there, since this PLY may be what {source} was made from: "
            "name the output to replace it"
        )


def _of_run(folder: Path, with_views: bool, device: str, data_dir: Path | None) -> tuple[Cloud, SceneTask | None]:
    """The Gaussians of a run. Also its task, if views are asked for or scene.ply is not of the end of the run."""
    kind, config = read_config(folder)
    if not issubclass(kind, SceneTask):
        raise UserError(f"{folder}: required a run that trained a scene, got one of {kind.__module__} ({CONFIG})")
    ply = folder / "scene.ply"
    written = config.output.ply and ply.is_file()  # type: ignore[attr-defined]
    if not with_views and written and (folder / METRICS).is_file():
        # scene.ply of a finished run is enough; its photographs are not needed.
        return replace(read_splats(ply), antialiased=config.model.antialiased), None  # type: ignore[attr-defined]
    task = reopen(folder, device=device, data_dir=data_dir, with_loss=False).task
    assert isinstance(task, SceneTask)
    return _of_task(task, folder), task


def _of_task(task: SceneTask, source: str | Path) -> Cloud:
    return cloud_of(
        standard_splats(task.splats, task.opacity_activation),
        antialiased=task.config.model.antialiased,
        offset=task.scene.offset,
        source=source,
    )


class _Comparison:
    """Compares views of a run with renders from files that were read back."""

    def __init__(self, task: SceneTask, cloud: Cloud, count: int) -> None:
        self.task = task
        self.views = [view.to(task.device) for view in task.evaluated[:count]]
        self.renders = [self._render(cloud.splats(), cloud.degree, view) for view in self.views]
        self.quality = self._psnr(self.renders)

    def of(self, cloud: Cloud) -> str:
        """Describes how much quality a file loses, in dB."""
        renders = [self._render(cloud.splats(), cloud.degree, view) for view in self.views]
        quality = self._psnr(renders)
        likeness = np.mean([reported_psnr(psnr(a, b)) for a, b in zip(renders, self.renders, strict=True)])
        which = "test" if self.task.scene.test else "training"
        return (
            f"{quality:.2f} dB on {len(self.views)} {which} views ({quality - self.quality:+.2f} dB), "
            f"{likeness:.2f} dB against the run's own renders"
        )

    def _psnr(self, renders: Sequence[Tensor]) -> float:
        """Mean PSNR over the views, as in the evaluation of the run: without exposures."""
        pairs = zip(renders, self.views, strict=True)
        return float(np.mean([reported_psnr(psnr(one, view.pixels(), view.mask)) for one, view in pairs]))

    @torch.no_grad()
    def _render(self, splats: Mapping[str, Tensor], degree: int, view: View) -> Tensor:
        """(1, 3, H, W) colours in [0, 1], by the camera as the files have it."""
        task = self.task
        colors = render(
            {name: value.to(task.device) for name, value in splats.items()},  # type: ignore[arg-type]
            view,
            sh_degree=degree,
            background=task.background,
            near=task.near,
            far=FAR if task.config.data.far is None else task.config.data.far,
            antialiased=task.config.model.antialiased,
        )[0]
        return colors.permute(0, 3, 1, 2).clamp(0, 1)
