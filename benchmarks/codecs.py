"""Rate and distortion of this package's volume codec beside those of others, in one run.

    python -m benchmarks.codecs assets/brain_mri/T1.nii.gz
    python -m benchmarks.codecs scan.nii.gz stack.tif --bytes 8000 40000 --steps 2000 --kept results/codecs

Every codec makes the largest file that is not larger than each size, searched for by its own setting of quality. Codecs
of images see the slices across the world's z as one mosaic, video codecs as frames: of 8 bits where the voxels have 8, of
10 else; the scientific codecs see float32. What a codec cannot do, or is not installed, is said in a line.

Seconds are of the processor, all threads, encoding and decoding once; a search's other encodings do not count.
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import io
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
# The repository's own package where none is installed.
sys.path.append(str(ROOT))

from splat_ssim.functional import ssim3d  # noqa: E402
from splat_ssim.volume import Volume, load_volume  # noqa: E402

#: Sizes of a volume of 2,777,600 voxels, the MRI of the repository; those of others have as many bytes a voxel.
SIZES, VOXELS = (23_000, 46_000, 109_000, 230_000, 552_000), 2_777_600
FIELDS = ("volume", "size", "codec", "setting", "bytes", "psnr", "psnr_foreground", "ssim3d", "max_error", "seconds")


@dataclass(frozen=True)
class Codec:
    """A codec with one setting.

    Args:
        name: As the table has it.
        encode: Volume (n0, n1, n2) and setting to bytes.
        decode: Bytes and the volume, for its shape and dtype, to an array of its shape.
        low: The setting of the largest files.
        high: That of the smallest.
        whole: The setting is a whole number.
    """

    name: str
    encode: Callable[[np.ndarray, float], bytes]
    decode: Callable[[bytes, np.ndarray], np.ndarray]
    low: float
    high: float
    whole: bool = False


# --- images and frames of a volume


def scaled(values: np.ndarray, bits: int) -> np.ndarray:
    """Whole numbers of so many bits for the values, their range spread over all; 8-bit values as they are for 8."""
    if values.dtype == np.uint8 and bits == 8:
        return values
    low, high = float(values.min()), float(values.max())
    codes = np.rint((values.astype(np.float64) - low) * ((2**bits - 1) / (high - low)))
    return codes.astype(np.uint8 if bits == 8 else np.uint16)


def unscaled(codes: np.ndarray, like: np.ndarray, bits: int) -> np.ndarray:
    """The reverse of `scaled`."""
    if like.dtype == np.uint8 and bits == 8:
        return codes
    low, high = float(like.min()), float(like.max())
    return codes.astype(np.float64) * ((high - low) / (2**bits - 1)) + low


def mosaic(frames: np.ndarray) -> np.ndarray:
    """Frames (n, h, w) in one picture, in rows."""
    n, h, w = frames.shape
    columns = max(1, round(math.sqrt(n * h / w)))
    rows = -(-n // columns)
    padded = np.zeros((rows * columns, h, w), frames.dtype)
    padded[:n] = frames
    return np.ascontiguousarray(padded.reshape(rows, columns, h, w).transpose(0, 2, 1, 3).reshape(rows * h, -1))


def unmosaic(picture: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The reverse of `mosaic`."""
    n, h, w = shape
    tiles = picture.reshape(picture.shape[0] // h, h, picture.shape[1] // w, w).transpose(0, 2, 1, 3)
    return tiles.reshape(-1, h, w)[:n]


def image_codec(name: str, encode: Callable, decode: Callable, low: float, high: float) -> Codec:
    """A codec of pictures, on a mosaic."""

    def bits(values: np.ndarray) -> int:
        return 8 if values.dtype == np.uint8 else 16

    return Codec(
        name,
        lambda values, setting: encode(mosaic(scaled(values, bits(values))), setting),
        lambda content, like: unscaled(unmosaic(decode(content), like.shape), like, bits(like)),
        low,
        high,
    )


def video_codec(name: str, encoder: str, options: dict[str, str], container: str, high: int) -> Codec:
    """A codec of PyAV, on slices as frames of grey."""
    import av

    def encode(values: np.ndarray, setting: float) -> bytes:
        deep = values.dtype != np.uint8
        frames = scaled(values, 10 if deep else 8)
        frames = np.pad(frames, [(0, 0), *((0, -n % 8 if n >= 64 else 64 - n) for n in frames.shape[1:])], "edge")
        file = io.BytesIO()
        with av.open(file, "w", format=container) as output:
            stream = output.add_stream(encoder, rate=25, options={**options, "crf": f"{setting:.2f}"})
            stream.height, stream.width = frames.shape[1:]
            stream.pix_fmt = "yuv420p10le" if deep else "yuv420p"
            stream.codec_context.color_range = 2
            for frame in frames:
                output.mux(stream.encode(_picture(av, frame, deep)))
            output.mux(stream.encode())
        return file.getvalue()

    def decode(content: bytes, like: np.ndarray) -> np.ndarray:
        deep = like.dtype != np.uint8
        with av.open(io.BytesIO(content)) as source:
            planes = [_luma(frame, deep) for frame in source.decode(video=0)]
        codes = np.stack(planes)[:, : like.shape[1], : like.shape[2]]
        return unscaled(codes, like, 10 if deep else 8)

    return Codec(name, encode, decode, 1, high, whole=True)


def _picture(av, luma: np.ndarray, deep: bool):
    """A frame whose luma is the slice and whose colour is grey, full range."""
    height, width = luma.shape
    grey = np.full((height // 2, width), 512 if deep else 128, luma.dtype)
    frame = av.VideoFrame(width, height, "yuv420p10le" if deep else "yuv420p")
    for plane, values in zip(frame.planes, (luma, grey[:, : width // 2], grey[:, : width // 2]), strict=True):
        rows = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size).copy()
        data = np.ascontiguousarray(values).view(np.uint8).reshape(plane.height, -1)
        rows[:, : data.shape[1]] = data
        plane.update(rows.tobytes())
    frame.color_range = 2
    return frame


def _luma(frame, deep: bool) -> np.ndarray:
    plane = frame.planes[0]
    rows = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
    return rows[:, : plane.width * (2 if deep else 1)].copy().view(np.uint16 if deep else np.uint8)


# --- the codecs


def codecs() -> Iterator[Codec]:
    """The codecs that are installed; the others are said."""
    try:
        import imagecodecs as ic
    except ImportError:
        print("SZ3, zfp, SPERR, JPEG 2000, JPEG XL, JPEG-LS: required imagecodecs, got none (extra 'codecs')")
    else:
        yield from _of_imagecodecs(ic)
    try:
        import av
    except ImportError:
        print("AV1, HEVC: required PyAV, got none (extra 'codecs')")
    else:
        for name, encoder, options, container, high in (
            ("AV1 (SVT, preset 4)", "libsvtav1", {"preset": "4"}, "ivf", 63),
            ("HEVC (x265, slow)", "libx265", {"preset": "slow", "x265-params": "log-level=none"}, "hevc", 51),
        ):
            if encoder in av.codecs_available:
                yield video_codec(name, encoder, options, container, high)
            else:
                print(f"{name}: required a PyAV with {encoder}, got one without")
    print("TTHRESH: not installable by pip, so it is left out")


def _of_imagecodecs(ic) -> Iterator[Codec]:
    def floats(values: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(values, np.float32)

    def span(values: np.ndarray) -> float:
        return float(values.max()) - float(values.min())

    if ic.SZ3.available:
        yield Codec(
            "SZ3",
            lambda v, s: ic.sz3_encode(floats(v), mode="abs", abs=s * span(v)),
            lambda b, like: ic.sz3_decode(b, like.shape, np.float32),
            1e-4,
            0.5,
        )
    if ic.ZFP.available:
        yield Codec(
            "zfp",
            lambda v, s: ic.zfp_encode(floats(v), s * span(v), mode=ic.ZFP.MODE.FIXED_ACCURACY),
            lambda b, like: ic.zfp_decode(b),
            1e-4,
            8.0,
        )
    if ic.SPERR.available:
        yield Codec(
            "SPERR",
            lambda v, s: ic.sperr_encode(floats(v), 100.0 - s, mode=ic.SPERR.MODE.PSNR),
            lambda b, like: ic.sperr_decode(b),
            20.0,
            90.0,
        )
    if ic.JPEG2K.available:
        yield image_codec(
            "JPEG 2000 (mosaic)",
            lambda p, s: ic.jpeg2k_encode(p, 100.0 - s, reversible=False),
            ic.jpeg2k_decode,
            20.0,
            90.0,
        )
    if ic.JPEGXL.available:
        yield image_codec(
            "JPEG XL (mosaic)",
            lambda p, s: ic.jpegxl_encode(p, distance=s, effort=7),
            ic.jpegxl_decode,
            0.05,
            25.0,
        )


def lossless(values: np.ndarray) -> Iterator[tuple[str, Callable[[], bytes], Callable[[bytes], np.ndarray]]]:
    """Codecs that keep every voxel, for whole numbers of 8 or 16 bits."""
    try:
        import imagecodecs as ic
    except ImportError:
        return
    if values.dtype not in (np.uint8, np.uint16):
        print(f"JPEG-LS, JPEG XL lossless: required voxels of uint8 or uint16, got {values.dtype}")
        return
    yield "JPEG-LS, lossless (mosaic)", lambda: ic.jpegls_encode(mosaic(values)), ic.jpegls_decode
    yield (
        "JPEG XL, lossless (mosaic)",
        lambda: ic.jpegxl_encode(mosaic(values), lossless=True, effort=7),
        ic.jpegxl_decode,
    )


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
    found = {"codec": "splat_ssim", "setting": f"{len(packed.codes)} Gaussians, {steps} steps", "bytes": len(content)}
    return {**found, **quality(decoded, volume.data[0]), "seconds": seconds}


def rows_of(path: Path, sizes: list[int] | None, steps: int, kept: Path | None, *, ours: bool) -> Iterator[dict]:
    """All rows of a volume."""
    volume = load_volume(path)
    if len(volume.data) != 1:
        sys.exit(f"error: {path}: required one channel, got {len(volume.data)}")
    # Slices across the world's z come first, as video frames do.
    axis, _ = volume.grid.upright
    values = np.ascontiguousarray(np.moveaxis(volume.data[0], axis, 0))
    name = path.name.split(".")[0]
    for label, encode, decode in lossless(values):
        start = time.process_time()
        content = encode()
        decoded = unmosaic(decode(content), values.shape)
        seconds = time.process_time() - start
        row = {"codec": label, "setting": "", "bytes": len(content), **quality(decoded, values), "seconds": seconds}
        yield {"volume": name, "size": "", **row}
    installed = list(codecs())
    for size in sizes or [round(each * values.size / VOXELS) for each in SIZES]:
        if ours:
            yield {"volume": name, "size": size, **row_of_ours(volume, name, size, steps, kept)}
        for codec in installed:
            row = row_of(codec, values, size)
            if row is None:
                print(f"{name}: {codec.name} makes no file of {size} bytes or less")
            else:
                yield {"volume": name, "size": size, **row}


def markdown(rows: list[dict]) -> str:
    """The rows as tables, one for each volume and size, best PSNR first."""
    lines = ["Made by `python -m benchmarks.codecs`. Seconds are of the processor, encoding and decoding.", ""]
    for volume, size in dict.fromkeys((row["volume"], row["size"]) for row in rows):
        lines += [f"## {volume}, {f'at most {int(size):,} bytes' if size else 'lossless'}", ""]
        lines += ["| codec | bytes | PSNR | foreground | SSIM3D | max. error | s |", "|---|---|---|---|---|---|---|"]
        part = [row for row in rows if (row["volume"], row["size"]) == (volume, size)]
        for row in sorted(part, key=lambda row: (-float(row["psnr"]), int(row["bytes"]))):
            told = [f"{float(row[key]):.2f}" for key in ("psnr", "psnr_foreground")]
            told += [f"{float(row['ssim3d']):.4f}", f"{float(row['max_error']):.4g}", f"{float(row['seconds']):.2f}"]
            lines.append(f"| {row['codec']} | {int(row['bytes']):,} | {' | '.join(told)} |")
        lines.append("")
    return "\n".join(lines)


def versions() -> str:
    """What was measured, on a line."""
    names = [f"{name} {importlib.metadata.version(name)}" for name in ("imagecodecs", "av") if _has(name)]
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return ", ".join([f"commit {done.stdout.strip() or 'unknown'}", f"torch {torch.__version__}", *names])


def _has(name: str) -> bool:
    try:
        return bool(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return False


def main() -> None:
    """Reads the command line, measures, and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("volumes", nargs="+", type=Path)
    parser.add_argument("--bytes", nargs="+", type=int, help="sizes; by default 23 to 552 kB for the MRI's 2.8M voxels")
    parser.add_argument("--steps", type=int, default=4000, help="length of our fits")
    parser.add_argument(
        "--kept", type=Path, help="folder of our files, which are made only where they are not there yet"
    )
    parser.add_argument("--no-ours", action="store_true", help="measure the others alone")
    parser.add_argument("--csv", type=Path, default=ROOT / "benchmarks" / "codecs.csv")
    arguments = parser.parse_args()
    rows = []
    for path in arguments.volumes:
        for row in rows_of(path, arguments.bytes, arguments.steps, arguments.kept, ours=not arguments.no_ours):
            rows.append(row)
            print({key: round(v, 4) if isinstance(v, float) else v for key, v in row.items()}, flush=True)
    with arguments.csv.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: row[key] for key in FIELDS} for row in rows)
    arguments.csv.with_suffix(".md").write_text(f"{versions()}\n\n{markdown(rows)}")


if __name__ == "__main__":
    main()
