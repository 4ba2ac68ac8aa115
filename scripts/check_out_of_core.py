"""Checks that SSIM3D of two zarr volumes by dask equals the value in memory, and measures its memory and time.

    python scripts/check_out_of_core.py --size 512

Writes two volumes of size³ float32 voxels plane by plane. Computes their SSIM3D with `splat_ssim.distributed.ssim3d`
in a fresh process, and in another one with both volumes in memory. Prints a line of JSON: both values, the difference
and the peak resident memory of each process, interpreter and libraries included. Fails if the values differ by more
than 1e-7, or if the peak of the first process exceeds --limit-mb.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

# Uses the repository's own package if none is installed.
sys.path.append(str(Path(__file__).resolve().parent.parent))

SLAB = 32


@dataclass
class Options:
    """Compares the two ways on volumes of size³ voxels."""

    size: int = 512
    #: Edge of dask's blocks in voxels. By default the package chooses it.
    block: int | None = None
    #: Number of dask's threads.
    workers: int = 2
    limit_mb: float = 1000.0
    #: Folder that the volumes are written to. By default a temporary one.
    folder: Path | None = None
    #: Compute in this way only, from volumes that are already in the folder. The script starts its processes with it.
    only: Literal["", "dask", "in-memory"] = ""


def slabs(size: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Slabs of both volumes, 8 bits deep, as (first plane, voxels, voxels): a smooth field with noise, more in b."""
    generator = np.random.default_rng(0)
    wave = np.sin(np.arange(size) * 0.1)
    for start in range(0, size, SLAB):
        z = wave[start : start + SLAB, None, None]
        smooth = 0.5 + 0.2 * (z * wave[None, :, None] + wave[None, None, :])
        first = smooth + 0.05 * generator.standard_normal(smooth.shape, np.float32)
        second = first + 0.05 * generator.standard_normal(smooth.shape, np.float32)
        yield start, *(np.round(255 * np.clip(v, 0, 1)).astype(np.float32) / 255 for v in (first, second))


def write(folder: Path, size: int) -> None:
    """Writes a.zarr and b.zarr."""
    import zarr

    arrays = [
        zarr.open_array(str(folder / name), mode="w", shape=(size,) * 3, dtype="f4", chunks=(min(64, size),) * 3)
        for name in ("a.zarr", "b.zarr")
    ]
    for start, *values in slabs(size):
        for array, voxels in zip(arrays, values, strict=True):
            array[start : start + SLAB] = voxels


def measure(options: Options, folder: Path) -> dict[str, float]:
    """SSIM3D, seconds and peak memory of this process."""
    import dask

    from splat_ssim import distributed, ssim3d
    from splat_ssim.volume.opened import open_volume

    volumes = [open_volume(folder / name).array for name in ("a.zarr", "b.zarr")]
    start = time.perf_counter()
    if options.only == "dask":
        with dask.config.set(scheduler="threads", num_workers=options.workers):
            value = distributed.ssim3d(*volumes, block=options.block or distributed.BLOCK)
    else:
        import torch

        # Take the map's mean in float64: summing so many voxels in float32 would be less exact than dask's result.
        whole = [torch.from_numpy(volume[...])[None, None] for volume in volumes]
        value = float(ssim3d(*whole, reduction="none").mean(dtype=torch.float64))
    seconds = time.perf_counter() - start
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024
    return {"value": value, "seconds": round(seconds, 2), "peak_mb": round(peak, 1)}


def main(options: Options) -> int:
    """Runs both ways. Returns 1 if the values differ or dask's process took too much memory."""
    if options.only:
        if options.folder is None:
            raise ValueError("--only needs the --folder that holds a.zarr and b.zarr")
        print(json.dumps(measure(options, options.folder)))
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        write(folder, options.size)
        found = {}
        for only in ("dask", "in-memory"):
            line = [sys.executable, __file__, "--only", only, "--folder", str(folder)]
            line += ["--workers", str(options.workers), *(("--block", str(options.block)) if options.block else ())]
            done = subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True)
            found[only] = json.loads(done.stdout.splitlines()[-1])
    difference = abs(found["dask"]["value"] - found["in-memory"]["value"])
    print(json.dumps({"size": options.size, "workers": options.workers, "difference": difference, **found}))
    return int(difference > 1e-7 or found["dask"]["peak_mb"] > options.limit_mb)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
