"""SSIM by ffmpeg's filters, timed by the share of a run that is the filter's.

A run filters many copies of one pair of frames, which the filter `loop` repeats without copying pixels. Its time less
that of a run with as many frames and a filter that passes them on is the filter's: the start of the program, reading
and pairing cancel. What is left of them is noise, of either sign.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

#: Names the program, where it is neither on the path nor in imageio-ffmpeg.
FFMPEG = "BENCHMARK_FFMPEG"
#: Passes a frame of the first input on for each pair.
_PASS = "streamselect=inputs=2:map=0"
#: Seconds that the filter works in a run, at least: the program's start varies by a hundredth.
_WORK = 1.0


@functools.cache
def _program() -> str:
    if named := os.environ.get(FFMPEG) or shutil.which("ffmpeg"):
        return named
    try:
        import imageio_ffmpeg
    except ImportError:
        raise ImportError(f"no ffmpeg on the path, in {FFMPEG} or in the package imageio-ffmpeg") from None
    path: str = imageio_ffmpeg.get_ffmpeg_exe()
    return path


@functools.cache
def _about() -> tuple[str, str]:
    """The version's text, and the list of filters."""
    try:
        texts = [
            subprocess.run([_program(), "-hide_banner", option], capture_output=True, text=True, check=True).stdout
            for option in ("-version", "-filters")
        ]
    except (OSError, subprocess.CalledProcessError, RuntimeError) as error:
        raise ImportError(f"ffmpeg does not run: {error}") from error
    return texts[0], texts[1]


def ffmpeg_version(name: str = "ssim") -> str:
    """Returns the version of ffmpeg, once it is known to have this filter.

    Raises:
        ImportError: ffmpeg does not run or lacks the filter.
    """
    version, filters = _about()
    if not re.search(rf"^\s*\S+\s+{name}\s", filters, re.MULTILINE):
        raise ImportError(f"{_program()} lacks the filter {name}")
    return version.split()[2]


class FilterCall:
    """A filter on a pair of grey frames: called it gives the value, `seconds` the time of one frame."""

    def __init__(self, filter_text: str, pattern: str, x: NDArray[np.uint8], y: NDArray[np.uint8]) -> None:
        self._filter, self._pattern = filter_text, pattern
        self._folder = tempfile.TemporaryDirectory(prefix="benchmark_")
        self._inputs: list[str] = []
        for name, pixels in (("x", x), ("y", y)):
            path = Path(self._folder.name) / name
            path.write_bytes(pixels.tobytes())
            size = f"{pixels.shape[1]}x{pixels.shape[0]}"
            self._inputs += ["-f", "rawvideo", "-pix_fmt", "gray", "-s", size, "-i", str(path)]
        self._frames = 8
        while self._elapsed(filter_text) - self._elapsed(_PASS) < _WORK and self._frames < 1 << 14:
            self._frames *= 2

    def __call__(self) -> float:
        """The value of the pair."""
        text = self._run(self._filter, 1)
        found = re.search(self._pattern, text)
        if found is None:
            raise RuntimeError(f"the filter {self._filter} printed no value: {text[-300:]}")
        return float(found[1])

    def seconds(self) -> float:
        """Seconds that the filter takes for a frame, by a pair of runs."""
        return (self._elapsed(self._filter) - self._elapsed(_PASS)) / self._frames

    def _elapsed(self, filter_text: str) -> float:
        begin = time.perf_counter()
        self._run(filter_text, self._frames)
        return time.perf_counter() - begin

    def _run(self, filter_text: str, frames: int) -> str:
        threads = str(torch.get_num_threads())
        # `loop` counts the repetitions beyond the first.
        loops = [f"[{i}]loop={frames - 1}:1[{name}]" for i, name in enumerate("xy")]
        graph = ";".join([*loops, f"[x][y]{filter_text.replace('THREADS', threads)}"])
        options = ["-hide_banner", "-nostdin", "-filter_complex_threads", threads]
        command = [_program(), *options, *self._inputs, "-filter_complex", graph, "-f", "null", "-"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"ffmpeg ended with {done.returncode}: {done.stderr[-300:]}")
        return done.stdout + done.stderr


def ssim_filter_call(x: NDArray[np.uint8], y: NDArray[np.uint8], data_range: float) -> FilterCall:
    """The filter ssim."""
    return FilterCall("ssim", r"SSIM Y:([0-9.]+)", x, y)


def libvmaf_call(x: NDArray[np.uint8], y: NDArray[np.uint8], data_range: float) -> FilterCall:
    """The feature float_ssim of libvmaf at full size, and no model of VMAF."""
    feature = r"feature=name=float_ssim\\:scale=1"
    text = f"libvmaf={feature}:n_threads=THREADS:log_fmt=json:log_path=/dev/stdout:model="
    return FilterCall(text, r'"float_ssim": ([0-9.]+)', x, y)
