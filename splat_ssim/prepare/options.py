"""Options of scripts/prepare.py."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from splat_ssim.errors import UserError

#: Lens models, by COLMAP's name.
CameraModel = Literal[
    "SIMPLE_PINHOLE",
    "PINHOLE",
    "SIMPLE_RADIAL",
    "RADIAL",
    "OPENCV",
    "FULL_OPENCV",
    "OPENCV_FISHEYE",
    "SIMPLE_RADIAL_FISHEYE",
    "RADIAL_FISHEYE",
]


@dataclass(frozen=True)
class Options:
    """Options of making a scene from photographs."""

    #: Folder of masks. By default `masks` in the folder of photographs or beside it. Black pixels do not count.
    masks: Path | None = None
    #: Use photographs in subfolders too.
    recursive: bool = False
    #: Number of frames to use from a video. The video is cut into as many equal parts, and the sharpest frame of each
    #: is used.
    frames: int = 120
    #: Photographs are reduced until their longer side has at most this many pixels. 0 keeps their size.
    max_size: int = 0
    #: Lens model. Photographs of the same size and EXIF focal length share one camera.
    camera: CameraModel = "OPENCV"
    #: Features are found in photographs reduced to this many pixels along the longer side.
    feature_size: int = 1600
    #: Largest number of features in a photograph.
    features: int = 8192
    #: Which photographs are compared. exhaustive: all pairs. sequential: each with those that follow it by name, and
    #: every fifth also with similar ones elsewhere. retrieval: each with the most similar ones. auto is sequential for
    #: videos, exhaustive for up to --exhaustive-limit photographs, and retrieval for more.
    matching: Literal["auto", "exhaustive", "sequential", "retrieval"] = "auto"
    #: Largest number of photographs for which auto compares all pairs.
    exhaustive_limit: int = 200
    #: Number of following photographs that sequential matching compares each one with, besides those 2, 4, 8, … places
    #: later.
    overlap: int = 10
    #: Number of the most similar photographs that retrieval compares each one with.
    similar: int = 40
    #: Seed of COLMAP's random draws. With --threads 1 the same seed gives the same scene.
    seed: int = 0
    #: Number of threads. 0 uses all processors.
    threads: int = 0
    #: Stop COLMAP after this many minutes without progress. 0 never stops it.
    stall_minutes: float = 60.0
    #: Show progress bars.
    progress: bool = True

    def check(self) -> None:
        """Raises UserError for a value out of range."""
        least = {
            "frames": 3,
            "max_size": 0,
            "feature_size": 64,
            "features": 16,
            "exhaustive_limit": 0,
            "overlap": 1,
            "similar": 1,
            "seed": 0,
            "threads": 0,
            "stall_minutes": 0,
        }
        for name, minimum in least.items():
            value = getattr(self, name)
            # NaN is not at least anything.
            if not value >= minimum:
                raise UserError(f"--{name.replace('_', '-')} must be at least {minimum}, got {value}")
        if self.max_size and self.max_size < 64:
            raise UserError(f"--max-size must be 0 or at least 64 pixels, got {self.max_size}")

    def thread_count(self) -> int:
        """The number of threads to use."""
        if self.threads:
            return self.threads
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
