"""Rate and distortion of this package's volume codec beside those of others, in one run.

    python -m benchmarks.codecs assets/brain_mri/T1.nii.gz
    python -m benchmarks.codecs scan.nii.gz stack.tif --bytes 8000 40000 --steps 2000 --kept results/codecs

Every codec makes the largest file that is not larger than each size, searched for by its own setting of quality. Codecs
of images see the slices across the world's z as one mosaic, video codecs as frames: of 8 bits where the voxels have 8,
of 10 else; the scientific codecs see float32. What a codec cannot do, or is not installed, is said in a line.

Seconds are of the processor, all threads, encoding and decoding once; a search's other encodings do not count.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import measure
from benchmarks.codec_peers import Codec, codecs, lossless, unmosaic
from benchmarks.measure import add_output, commit, output_folder, read, update
from splat_ssim.functional import ssim3d
from splat_ssim.volume import Volume, load_volume

#: Sizes of a volume of 2,777,600 voxels, the MRI of the repository; those of others have as many bytes a voxel.
SIZES, VOXELS = (23_000, 46_000, 109_000, 230_000, 552_000), 2_777_600
OURS = "splat_ssim"
#: What identifies a row; measuring again replaces it.
KEYS = ("volume", "size", "codec")


# --- measuring


def quality(decoded: np.ndarray, source: np.ndarray) -> dict[str, float]:
    """PSNR whole and of the voxels above the least, over the range of the source; SSIM3D and largest error."""
    low, high = float(source.min()), float(source.max())
    exact = source.astype(np.float64)
    error = np.clip(decoded.astype(np.float64), low, high) - exact
    inside = exact > low

    def psnr(squares: np.ndarray) -> float:
        return math.inf if not squares.any() else 10 * math.log10((high - low) ** 2 / squares.mean())

    pair = [
        torch.from_numpy(((each - low) / (high - low)).astype(np.float32))[None, None]
        for each in (exact + error, exact)
    ]
    return {
        "psnr": psnr(np.square(error)),
        "psnr_foreground": psnr(np.square(error[inside])),
        "ssim3d": float(ssim3d(*pair)),
        "max_error": float(np.abs(error).max()),
    }


def fitted_setting(codec: Codec, values: np.ndarray, size: int) -> float | None:
    """The setting of the largest file that is not larger than `size`; None where all are larger."""
    low, high = codec.low, codec.high
    if len(codec.encode(values, low)) <= size:
        return low
    if len(codec.encode(values, high)) > size:
        return None
    for _ in range(9 if codec.whole else 12):
        middle = round((low + high) / 2) if codec.whole else math.sqrt(low * high)
        if middle in (low, high):
            break
        low, high = (middle, high) if len(codec.encode(values, middle)) > size else (low, middle)
    return high


def row_of(codec: Codec, values: np.ndarray, size: int) -> dict[str, object] | None:
    """Rate and distortion of a codec at a size."""
    setting = fitted_setting(codec, values, size)
    if setting is None:
        return None
    start = time.process_time()
    content = codec.encode(values, setting)
    decoded = codec.decode(content, values)
    seconds = time.process_time() - start
    return {
        "codec": codec.name,
        "setting": setting,
        "bytes": len(content),
        **quality(decoded, values),
        "seconds": seconds,
    }


def row_of_ours(volume: Volume, name: str, size: int, steps: int, kept: Path | None) -> dict[str, object]:
    """Rate and distortion of this package's codec; its files are kept, and taken up again, where a folder is given."""
    from splat_ssim.volume.codec import Packed, compress_volume

    path = None if kept is None else kept / f"{name}-{size}-{steps}.gsv"
    if path is not None and path.exists():
        content, seconds = path.read_bytes(), json.loads(path.with_suffix(".json").read_text())["seconds"]
    else:
        start = time.process_time()
        content = compress_volume(volume, bytes=size, steps=steps, device="cpu").content
        seconds = time.process_time() - start
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            path.with_suffix(".json").write_text(json.dumps({"seconds": seconds}))
    start = time.process_time()
    packed = Packed.of_bytes(content)
    decoded = packed.volume().data[0]
    seconds += time.process_time() - start
    found = {"codec": OURS, "setting": f"{len(packed.codes)} Gaussians, {steps} steps", "bytes": len(content)}
    return {**found, **quality(decoded, volume.data[0]), "seconds": seconds}


def rows_of(
    path: Path, sizes: list[int] | None, steps: int, kept: Path | None, only: list[str]
) -> Iterator[dict[str, Any]]:
    """All rows of a volume, of the codecs whose names begin with one of `only`."""
    volume = load_volume(path)
    if len(volume.data) != 1:
        sys.exit(f"error: {path}: required one channel, got {len(volume.data)}")
    # Slices across the world's z come first, as video frames do.
    axis, _ = volume.grid.upright
    values = np.ascontiguousarray(np.moveaxis(volume.data[0], axis, 0))
    name = path.name.split(".")[0]
    for label, encode, decode in lossless(values):
        if not label.startswith(tuple(only)):
            continue
        start = time.process_time()
        content = encode()
        decoded = unmosaic(decode(content), values.shape)
        seconds = time.process_time() - start
        row = {"codec": label, "setting": "", "bytes": len(content), **quality(decoded, values), "seconds": seconds}
        yield {"volume": name, "size": "", **row}
    installed = [codec for codec in codecs() if codec.name.startswith(tuple(only))]
    for size in sizes or [round(each * values.size / VOXELS) for each in SIZES]:
        if OURS.startswith(tuple(only)):
            yield {"volume": name, "size": size, **row_of_ours(volume, name, size, steps, kept)}
        for codec in installed:
            made = row_of(codec, values, size)
            if made is None:
                print(f"{name}: {codec.name} makes no file of {size} bytes or less")
            else:
                yield {"volume": name, "size": size, **made}


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as tables, one for each volume and size, best PSNR first."""
    lines = ["Made by `python -m benchmarks.codecs`. Seconds are of the processor, encoding and decoding.", ""]
    for made in sorted({f"Commit {row['commit']}: {row['with']}." for row in rows}):
        lines += [made, ""]
    for volume, size in sorted(
        {(row["volume"], str(row["size"])) for row in rows}, key=lambda k: (k[0], int(k[1] or 0))
    ):
        lines += [f"## {volume}, {f'at most {int(size):,} bytes' if size else 'lossless'}", ""]
        lines += ["| codec | bytes | PSNR | foreground | SSIM3D | max. error | s |", "|---|---|---|---|---|---|---|"]
        part = [row for row in rows if (row["volume"], str(row["size"])) == (volume, size)]
        for row in sorted(part, key=lambda row: (-float(row["psnr"]), int(row["bytes"]))):
            told = [f"{float(row[key]):.2f}" for key in ("psnr", "psnr_foreground")]
            told += [f"{float(row['ssim3d']):.4f}", f"{float(row['max_error']):.4g}", f"{float(row['seconds']):.2f}"]
            lines.append(f"| {row['codec']} | {int(row['bytes']):,} | {' | '.join(told)} |")
        lines.append("")
    return "\n".join(lines)


def versions() -> str:
    """Names the measured codecs and their versions, on one line."""
    names = [f"{name} {importlib.metadata.version(name)}" for name in ("imagecodecs", "av") if _has(name)]
    return ", ".join([f"torch {torch.__version__}", *names])


def _has(name: str) -> bool:
    try:
        return bool(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return False


def main() -> None:
    """Reads the command line, measures, and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("volumes", nargs="+", type=Path)
    parser.add_argument(
        "--bytes", nargs="+", type=int, help="sizes of the files; by default 23 to 552 kB for the MRI's 2.8M voxels"
    )
    parser.add_argument("--steps", type=int, default=4000, help="number of steps of our fits")
    parser.add_argument("--kept", type=Path, help="folder of our files; those that exist are not made again")
    parser.add_argument(
        "--only", nargs="+", default=[""], help="measure only codecs whose names start with one of these"
    )
    add_output(parser)
    arguments = parser.parse_args()
    folder = output_folder(arguments.output, arguments.dirty_ok)
    made_with = {"commit": commit(), "with": versions()}
    for path in arguments.volumes:
        for row in rows_of(path, arguments.bytes, arguments.steps, arguments.kept, arguments.only):
            print({key: round(v, 4) if isinstance(v, float) else v for key, v in row.items()}, flush=True)
            update(folder / "codecs.csv", [{**row, **made_with}], KEYS)
    (folder / "codecs.md").write_text(markdown(read(folder / "codecs.csv")))


if __name__ == "__main__":
    measure.run(main)
