"""Fits a volume that is larger than the memory allowed, brick by brick, and a piece of it in memory for comparison.

    python scripts/check_bricks.py --size 1024 --budget 500000

Writes size³ uint8 voxels of seeded ellipsoids and band-limited noise as zarr, block by block. Fits them with
configs/bricks.yaml in a fresh process. Then fits the piece of --piece³ voxels in the middle in memory, with as many
Gaussians as the first fit has there and as many steps. Prints a line of JSON: PSNR and SSIM3D of both fits over the
piece and of the first over the whole volume, its seconds and its peak memory. Fails if the peak exceeds --limit-mb, or
if the first fit is more than 0.3 dB below the second.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro

# Uses the repository's own package if none is installed.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from splat_ssim.trainer.loop import load
from splat_ssim.trainer.unkept import Unkept
from splat_ssim.volume.bricks import BrickConfig, BrickTask
from splat_ssim.volume.config import VolumeConfig
from splat_ssim.volume.evaluation import evaluate_volume
from splat_ssim.volume.training import VolumeTask

ROOT = Path(__file__).resolve().parent.parent
#: Edge of a block that is written at once, and period of the noise, in voxels.
BLOCK, TILE = 128, 128


@dataclass
class Options:
    """Fits a volume of size³ voxels by bricks, and a piece of it in memory."""

    size: int = 512
    budget: int = 62_500
    brick: int = BrickConfig.brick
    brick_steps: int = BrickConfig.brick_steps
    #: Edge of the piece that is also fitted in memory.
    piece: int = 256
    seed: int = 0
    limit_mb: float = 2000.0
    #: Folder that the volume and the run are written to. By default a temporary one. What it already holds is used
    #: again.
    folder: Path | None = None


def noise(seed: int) -> np.ndarray:
    """Periodic noise, (TILE, TILE, TILE) float32, mean 0, deviation 1, no frequency above 1/8 cycle a voxel."""
    spectrum = np.fft.rfftn(np.random.default_rng(seed).standard_normal((TILE,) * 3))
    frequencies = np.meshgrid(np.fft.fftfreq(TILE), np.fft.fftfreq(TILE), np.fft.rfftfreq(TILE), indexing="ij")
    spectrum[sum(f**2 for f in frequencies) > (1 / 8) ** 2] = 0
    values = np.fft.irfftn(spectrum, (TILE,) * 3, axes=(0, 1, 2))
    unit: np.ndarray = (values / values.std()).astype(np.float32)
    return unit


def write(path: Path, options: Options) -> None:
    """Writes the volume as a zarr array: noise, and about six overlapping ellipsoids in each block of 128³ voxels."""
    import zarr

    size, generator, tile = options.size, np.random.default_rng(options.seed), noise(options.seed)
    count = max(8, 6 * (size // BLOCK) ** 3)
    centers, radii = generator.uniform(0, size, (count, 3)), generator.uniform(5, 40, (count, 3))
    brightness = generator.uniform(20, 90, count)
    array = zarr.open_array(str(path), mode="w", shape=(size,) * 3, chunks=(64,) * 3, dtype="u1")
    for start in np.ndindex(*(-(-size // BLOCK),) * 3):
        first = np.array(start) * BLOCK
        last = np.minimum(first + BLOCK, size)
        axes = [np.arange(a, b, dtype=np.float32) for a, b in zip(first, last, strict=True)]
        values = np.full(last - first, 30, np.float32)
        near = ((centers + radii > first) & (centers - radii < last)).all(1)
        for center, radius, bright in zip(centers[near], radii[near], brightness[near], strict=True):
            z, y, x = ((axis - c) ** 2 / r**2 for axis, c, r in zip(axes, center, radius, strict=True))
            values += bright * (z[:, None, None] + y[None, :, None] + x[None, None, :] < 1)
        values += 8 * tile[tuple(slice(0, b - a) for a, b in zip(first, last, strict=True))]
        where = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
        array[where] = values.clip(0, 255).round().astype(np.uint8)


def fit(volume: Path, folder: Path, options: Options) -> float:
    """Fits the volume in a separate process. Returns the seconds that it took."""
    start = time.perf_counter()
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), "--config", str(ROOT / "configs" / "bricks.yaml")]
    command += ["--data-dir", str(volume), "--result-dir", str(folder), "--strategy.budget", str(options.budget)]
    command += ["--brick", str(options.brick), "--brick-steps", str(options.brick_steps), "--device", "cpu"]
    subprocess.run([*command, "--output.no-progress", "--checkpoint-every", "5000"], check=True)
    return time.perf_counter() - start


def main(options: Options) -> int:
    """Prints the JSON line. Returns 1 if a limit is exceeded."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        volume, run = folder / f"volume_{options.size}.zarr", folder / f"run_{options.size}"
        if not volume.exists():
            write(volume, options)
        seconds = None if (run / "metrics.json").exists() else fit(volume, run, options)
        metrics = json.loads((run / "metrics.json").read_text())
        task = load(run)
        assert isinstance(task, BrickTask)
        piece = min(options.piece, options.size)
        region = (((options.size - piece) // 2,) * 3, (piece,) * 3)
        truth, low = task.volume.read(region), torch.tensor(region[0])
        inside = ((task.tensors["means"] >= low) & (task.tensors["means"] < low + piece)).all(1)
        bricks = evaluate_volume(task.field(region), truth)

        np.save(folder / "piece.npy", task.volume.raw(region)[0])
        config = VolumeConfig(data_dir=folder / "piece.npy", steps=options.brick_steps * 3 // 2, device="cpu")
        config.strategy.budget, config.output.progress = int(inside.sum()), False
        # The range of the whole volume, not of the piece.
        scale = task.volume.normalization
        config.data.normalize, config.data.low, config.data.high = "window", scale.low, scale.high
        whole = VolumeTask(config)
        Unkept(whole).train()
        memory = whole.evaluate()
    line = {
        "size": options.size,
        "gaussians": metrics["num_gaussians"],
        "psnr3d": round(metrics["psnr3d"], 3),
        "ssim3d": round(metrics["ssim3d"], 5),
        "seconds": None if seconds is None else round(seconds, 1),
        "training_seconds": metrics["train_seconds"],
        "peak_mb": round(metrics["peak_memory_bytes"] / 1e6),
        "piece_gaussians": int(inside.sum()),
        "piece_bricks": [round(bricks["psnr3d"], 3), round(bricks["ssim3d"], 5)],
        "piece_memory": [round(memory["psnr3d"], 3), round(memory["ssim3d"], 5)],
    }
    print(json.dumps(line))
    return int(line["peak_mb"] > options.limit_mb or bricks["psnr3d"] < memory["psnr3d"] - 0.3)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
