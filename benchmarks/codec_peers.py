"""The codecs that `benchmarks.codecs` measures, each with one setting of quality."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Codec:
    """A codec with one numeric setting.

    Args:
        name: Name in the tables.
        encode: Function (volume (n0, n1, n2), setting) -> bytes.
        decode: Function (bytes, volume) -> array of the volume's shape. It uses only the shape, dtype and range of the
            volume.
        low: Setting that gives the largest files.
        high: Setting that gives the smallest files.
        whole: Whether the setting must be a whole number.
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
    scaled_codes: np.ndarray = codes.astype(np.uint8 if bits == 8 else np.uint16)
    return scaled_codes


def unscaled(codes: np.ndarray, like: np.ndarray, bits: int) -> np.ndarray:
    """The reverse of `scaled`."""
    if like.dtype == np.uint8 and bits == 8:
        return codes
    low, high = float(like.min()), float(like.max())
    values: np.ndarray = codes.astype(np.float64) * ((high - low) / (2**bits - 1)) + low
    return values


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
    slices: np.ndarray = tiles.reshape(-1, h, w)[:n]
    return slices


def image_codec(
    name: str, encode: Callable[..., bytes], decode: Callable[..., np.ndarray], low: float, high: float
) -> Codec:
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


def video_codec(name: str, encoder: str, options: dict[str, str], container: str, high: float) -> Codec:
    """A codec of PyAV, on slices as frames of grey; a highest setting that is an int is one of whole numbers."""
    import av

    def encode(values: np.ndarray, setting: float) -> bytes:
        deep = values.dtype != np.uint8
        frames = scaled(values, 10 if deep else 8)
        frames = np.pad(frames, [(0, 0), *((0, -n % 2 if n >= 64 else 64 - n) for n in frames.shape[1:])], "edge")
        file = io.BytesIO()
        with av.open(file, "w", format=container) as output:
            stream = output.add_stream(encoder, rate=25, options={**options, "crf": f"{setting:g}"})
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

    return Codec(name, encode, decode, 1, high, whole=isinstance(high, int))


def _picture(av: Any, luma: np.ndarray, deep: bool) -> Any:
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


def _luma(frame: Any, deep: bool) -> np.ndarray:
    plane = frame.planes[0]
    rows = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
    luma: np.ndarray = rows[:, : plane.width * (2 if deep else 1)].copy().view(np.uint16 if deep else np.uint8)
    return luma


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
            ("AV1 (SVT, preset 4)", "libsvtav1", {"preset": "4"}, "obu", 63),
            ("HEVC (x265, slow)", "libx265", {"preset": "slow", "x265-params": "log-level=none"}, "hevc", 51.0),
        ):
            if encoder in av.codecs_available:
                yield video_codec(name, encoder, options, container, high)
            else:
                print(f"{name}: required a PyAV with {encoder}, got one without")
    print("TTHRESH: not installable by pip, so it is left out")


def _of_imagecodecs(ic: Any) -> Iterator[Codec]:
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
    yield "JPEG-LS, lossless (mosaic)", lambda: bytes(ic.jpegls_encode(mosaic(values))), lambda b: ic.jpegls_decode(b)
    yield (
        "JPEG XL, lossless (mosaic)",
        lambda: bytes(ic.jpegxl_encode(mosaic(values), lossless=True, effort=7)),
        lambda b: ic.jpegxl_decode(b),
    )
