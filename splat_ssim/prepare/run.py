"""The stages of scripts/prepare.py, one after the other, each where the last run left it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import tyro
from tqdm import tqdm

from splat_ssim._files import write_json
from splat_ssim.errors import UserError
from splat_ssim.prepare import video
from splat_ssim.prepare.colmap import copied, rows, run_job, settle
from splat_ssim.prepare.options import Options
from splat_ssim.prepare.photos import Found, find_photos, write_all
from splat_ssim.prepare.reduced import finish_images
from splat_ssim.prepare.report import make_report, table
from splat_ssim.prepare.workspace import OUTPUTS, REPORT, STAGES, Workspace, fingerprint
from splat_ssim.trainer.signals import Signals

#: Raised whenever a stage comes to do something else, so that scenes begun before do it again.
VERSION = 2


def prepare(
    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="PHOTOS_OR_VIDEO")],
    scene: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SCENE")],
    options: tyro.conf.OmitArgPrefixes[Options] = Options(),  # noqa: B008
) -> dict[str, Any]:
    """Makes a COLMAP scene from photographs or a video, for scripts/train.py.

    If a run is stopped, the same command continues it. If an option changes, only the stages that depend on it, and
    those after them, run again.

    Args:
        source: Folder of photographs (JPEG, PNG, TIFF, WebP, AVIF, BMP, HEIC), or a video file.
        scene: Scene folder to write: images, images_2, images_4, images_8, masks, sparse/0, report.json. Its folder
            `prepare` is kept between runs. It may be deleted when the scene is finished.
        options: Options of the command.

    Returns:
        The contents of report.json.

    Raises:
        UserError: Something in the command or in a file is not as required.
        Interrupted: SIGINT or SIGTERM came. The same command goes on from there.
    """
    options.check()
    if not source.exists():
        raise UserError(f"{source}: required a folder of photographs or a video, got nothing there")
    if importlib.util.find_spec("pycolmap") is None:
        raise UserError("prepare.py needs the package pycolmap, got none: pip install pycolmap")
    inside, outside = scene.resolve(), source.resolve()
    if inside == outside or (outside.is_dir() and outside in inside.parents and options.recursive):
        raise UserError(f"{scene}: required a scene folder outside the photographs, got one inside {source}")
    if any(outside == inside / name or inside / name in outside.parents for name in (*OUTPUTS, "prepare")):
        raise UserError(f"{source}: required photographs outside the folders written in {scene}, got some inside")
    work = Workspace(scene, source)
    try:
        with Signals(at_once=True), _resumable(work):
            return _Run(source, scene, options, work).run()
    finally:
        work.close()


@contextmanager
def _resumable(work: Workspace) -> Iterator[None]:
    """Says how a run that a signal stops goes on."""
    try:
        yield
    except KeyboardInterrupt:
        stage = work.state.get("started", ["report"])[0]
        print(f"\nstopped in {stage}; the same command goes on there", file=sys.stderr)
        raise


class _Run:
    """One call of prepare."""

    def __init__(self, source: Path, scene: Path, options: Options, work: Workspace) -> None:
        self.source, self.scene, self.options, self.work = source, scene, options, work
        self.threads = options.thread_count()
        self.folder = work.folder.resolve()
        self.parts = work.parts.resolve()
        self.found: Found | None = None

    def run(self) -> dict[str, Any]:
        """All stages, and the report."""
        key, options = fingerprint(VERSION), self._stage_options()
        for stage in STAGES:
            key = fingerprint(key, stage, options[stage])
            if self.work.is_done(stage, key):
                print(f"{stage}: done before")
                continue
            if self.work.start(stage, key):
                print(f"{stage}: its inputs or options have changed, so it is done again")
            start = time.perf_counter()
            info = getattr(self, stage)()
            self.work.finish(stage, key, time.perf_counter() - start, info)
            for line in info.get("notes", ()):
                print(line)
        shutil.rmtree(self.parts, ignore_errors=True)
        infos = {stage: self.work.info(stage) for stage in STAGES}
        told = {name: str(value) if isinstance(value, Path) else value for name, value in vars(self.options).items()}
        report = make_report(self.scene, told, infos, self.work.seconds())
        write_json(self.scene / REPORT, report)
        for line in (*table(report), f"next: {report['next']}"):
            print(line)
        return report

    def _stage_options(self) -> dict[str, Any]:
        """Stage -> the options and files that it depends on, besides the stages before it."""
        options, version = self.options, importlib.metadata.version("pycolmap")
        photos: dict[str, Any] = {"max_size": options.max_size}
        if self.source.is_dir():
            self.found = find_photos(self.source, recursive=options.recursive, masks=options.masks, scene=self.scene)
            photos["files"] = [
                [photo.name, *_stamp(photo.path), *(_stamp(photo.mask) if photo.mask else [])]
                for photo in self.found.photos
            ]
        else:
            photos["video"], photos["frames"] = _stamp(self.source), options.frames
        return {
            "photos": photos,
            "features": [version, options.camera, options.feature_size, options.features],
            "matching": [*(options.matching, options.overlap, options.similar, options.exhaustive_limit, options.seed)],
            "mapping": [options.seed],
            "undistortion": [],
        }

    # --- the stages, each named as in STAGES

    def photos(self) -> dict[str, Any]:
        """Reads photographs or frames."""
        part = self.parts / "photos"
        shutil.rmtree(part, ignore_errors=True)
        common = {"max_size": self.options.max_size, "threads": self.threads}
        if self.found is None:
            total = video.count_frames(self.source)
            with self._bar("photos", total, "frame") as bar:
                sizes = video.write_sharpest(
                    self.source, part, count=self.options.frames, total=total, step=bar.update, **common
                )
            notes, found = [f"{self.source}: the sharpest {len(sizes)} of {total} frames"], total
        else:
            photos = self.found.photos
            with self._bar("photos", len(photos), "photo") as bar:
                sizes, broken = write_all(photos, part, step=bar.update, **common)
            notes, found = self.found.notes + broken, len(photos)
        masks = len(list((part / "masks").rglob("*.png"))) if (part / "masks").is_dir() else 0
        alphas = (part / "alphas").is_dir()
        if not masks and not alphas:
            shutil.rmtree(part / "counted", ignore_errors=True)
        self.work.place("photos")
        return {"found": found, "sizes": sizes, "masks": masks, "notes": notes}

    def features(self) -> dict[str, Any]:
        """Finds features."""
        names, database = sorted(self.work.info("photos")["sizes"]), self.parts / "features.db"
        counted = self.folder / "photos" / "counted"
        options = self.options
        info = self._colmap(
            {
                "job": "features",
                "database": str(database),
                "images": str(self.folder / "photos" / "images"),
                "masks": str(counted) if counted.is_dir() else None,
                "names": names,
                "camera": options.camera,
                "feature_size": options.feature_size,
                "features": options.features,
            },
            len(names),
            "photo",
            lambda: rows(database, "keypoints"),
        )
        settle(database)
        self.work.place("features.db")
        poor = [name for name, count in info["features"].items() if count < 100]
        return {**info, "notes": [f"fewer than 100 features: {', '.join(sorted(poor))}"] if poor else []}

    def matching(self) -> dict[str, Any]:
        """Compares photographs."""
        count, options = len(self.work.info("photos")["sizes"]), self.options
        kind = options.matching
        if kind == "auto" and self.found is None:
            kind = "sequential"
        elif kind == "auto":
            kind = "exhaustive" if count <= options.exhaustive_limit else "retrieval"
        database = copied(self.folder / "features.db", self.parts / "matching.db")
        job = {
            "job": "matching",
            "database": str(database),
            "kind": kind,
            "overlap": options.overlap,
            "similar": options.similar,
            "index": str(self.parts / "index.bin"),
        }
        total = {
            "exhaustive": count * (count - 1) // 2,
            "sequential": _sequential_pairs(count, options.overlap),
            # Two that are similar to each other are compared once.
            "retrieval": min(count * (count - 1) // 2, count * options.similar),
        }[kind]
        info = self._colmap(job, total, "pair", lambda: rows(database, "two_view_geometries"))
        settle(database)
        if not info["verified"]:
            raise UserError(
                f"{self.source}: required photographs that show the same things, got none among {info['pairs']} pairs"
            )
        self.work.place("matching.db")
        return {**info, "kind": kind}

    def mapping(self) -> dict[str, Any]:
        """Reconstructs poses and points."""
        count, part = len(self.work.info("photos")["sizes"]), self.parts / "models"
        shutil.rmtree(part, ignore_errors=True)
        job = {
            "job": "mapping",
            "database": str(copied(self.folder / "matching.db", self.parts / "mapping.db")),
            "images": str(self.folder / "photos" / "images"),
            "output": str(part),
            "photos": count,
        }
        info = self._colmap(job, count, "photo")
        models = info["models"]
        if not models:
            raise UserError(
                f"{self.source}: required photographs that overlap and are taken from different places, got "
                f"{count} of which COLMAP places none ({self.work.info('matching')['verified']} pairs match)"
            )
        self.work.place("models")
        notes = []
        if info["relaxed"]:
            notes.append(
                "mapping: points seen at angles as small as half a degree are accepted: few were seen at larger ones"
            )
        if models[1:]:
            sizes = ", ".join(str(model["photos"]) for model in models)
            notes.append(f"mapping: {len(models)} models, of {sizes} photographs; the largest is taken")
        return {**info, "notes": notes}

    def undistortion(self) -> dict[str, Any]:
        """Writes the scene as pinhole cameras see it."""
        model = self.work.info("mapping")["models"][0]
        photos, part = self.folder / "photos", self.parts / "scene"
        shutil.rmtree(part, ignore_errors=True)
        job = {
            "job": "undistortion",
            "model": str(self.folder / "models" / model["folder"]),
            "images": str(photos / "images"),
            "masks": str(photos / "masks"),
            "alphas": str(photos / "alphas"),
            "output": str(part),
        }
        info = self._colmap(job, model["photos"], "photo", lambda: _count_files(part / "images"))
        with self._bar("reduced copies", model["photos"], "photo") as bar:
            finish_images(part, info["registered"], threads=self.threads, step=bar.update)
        self.work.publish(part)
        return info

    # --- what they share

    def _bar(self, name: str, total: int, unit: str) -> tqdm:
        return tqdm(
            total=total, desc=name, unit=unit, disable=not self.options.progress, dynamic_ncols=True, leave=True
        )

    def _colmap(
        self, job: dict[str, Any], total: int, unit: str, count: Callable[[], int] | None = None
    ) -> dict[str, Any]:
        """Runs a job of COLMAP behind a progress bar."""
        job = {**job, "threads": self.threads, "seed": self.options.seed}
        name = job["job"]
        with self._bar(name, total, unit) as bar:
            return run_job(
                job,
                log=self.work.logs / f"{name}.txt",
                bar=bar,
                stall_minutes=self.options.stall_minutes,
                lock=self.work.lock_descriptor(),
                count=count,
            )


def _stamp(path: Path) -> list[Any]:
    """By what a changed file is told: name, size and time."""
    state = path.stat()
    return [path.name, state.st_size, state.st_mtime_ns]


def _sequential_pairs(count: int, overlap: int) -> int:
    """The number of pairs of COLMAP's sequential matching, each photograph with those 1 to `overlap` and 2^k later."""
    steps = {*range(1, overlap + 1), *(2**power for power in range(overlap))}
    return sum(max(0, count - step) for step in steps)


def _count_files(folder: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(folder))
