"""SOG, PlayCanvas's "spatially ordered Gaussians" (.sog): a zip of lossless WebP pictures and a meta.json.

Source: "The SOG Format", version 2, https://developer.playcanvas.com/user-manual/gaussian-splatting/formats/sog.
A pixel is a Gaussian, in the order of the rows. Positions are 16 bits of sign(x)·log(1 + |x|) between the smallest and
the largest, in two pictures; scales and colours are an index into a codebook of 256 values; rotations wxyz their
smallest three; harmonics a row of a palette, whose values are indices into a codebook themselves.
"""

from __future__ import annotations

import io
import json
import math
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from splat_ssim._version import __version__
from splat_ssim.formats.cloud import (
    Cloud,
    FormatError,
    from_smallest_three,
    logits,
    morton_order,
    require,
    smallest_three,
    to_bytes,
)
from splat_ssim.formats.palette import codebook, palette

#: Palette rows beside each other in their picture.
_ACROSS = 64
#: Rows of the palette at most, which two bytes can name.
_MOST_ROWS = 65536
#: Pixels along a side that WebP has at most.
_MOST_PIXELS = 16383
#: Pixels of all pictures of a file that is read.
_READ_PIXELS = 2**28


def encode(cloud: Cloud, path: Path) -> bytes:
    """The bytes of an .sog file."""
    pillow = _pillow(path)
    cloud = cloud.ordered(morton_order(cloud.means))
    width = 4 * math.ceil(math.sqrt(len(cloud)) / 4)
    height = 4 * math.ceil(len(cloud) / width / 4)
    require(width <= _MOST_PIXELS, path, f"at most {_MOST_PIXELS**2} Gaussians", f"{len(cloud)}")
    pictures: dict[str, bytes] = {}

    def draw(name: str, values: np.ndarray, width: int = width, height: int = height) -> list[str]:
        pixels = np.zeros((width * height, values.shape[1]), np.uint8)
        pixels[: len(values)] = values
        if values.shape[1] == 3:
            pixels = np.column_stack([pixels, np.full(len(pixels), 255, np.uint8)])
        buffer = io.BytesIO()
        picture = pillow.fromarray(pixels.reshape(height, width, 4))
        # "exact" keeps colours under an alpha of 0.
        picture.save(buffer, "webp", lossless=True, exact=True, quality=100, method=4)
        pictures[f"{name}.webp"] = buffer.getvalue()
        return [f"{name}.webp"]

    logs = np.sign(cloud.means) * np.log1p(np.abs(cloud.means.astype(np.float64)))
    low, high = logs.min(0), logs.max(0)
    steps = np.rint((logs - low) / np.where(high > low, high - low, 1) * 65535).astype(np.int64)
    cloud.note_moved(_places(steps, low, high))
    largest, others = smallest_three(cloud.quats)
    rotations = to_bytes((others * math.sqrt(0.5) + 0.5) * 255)
    scale_values, scales = codebook(cloud.scales)
    color_values, colors = codebook(cloud.sh0)
    meta: dict[str, Any] = {
        "version": 2,
        "asset": {"generator": f"splat_ssim {__version__}"},
        "count": len(cloud),
        "antialias": cloud.antialiased,
        "means": {
            "mins": low.tolist(),
            "maxs": high.tolist(),
            "files": draw("means_l", (steps & 255).astype(np.uint8)) + draw("means_u", (steps >> 8).astype(np.uint8)),
        },
        "scales": {"codebook": scale_values.tolist(), "files": draw("scales", scales)},
        "quats": {"files": draw("quats", np.column_stack([rotations, (252 + largest).astype(np.uint8)]))},
        "sh0": {
            "codebook": color_values.tolist(),
            "files": draw("sh0", np.column_stack([colors, to_bytes(cloud.alphas * 255)])),
        },
    }
    if any(cloud.offset):
        meta["asset"]["offset"] = list(cloud.offset)
    if cloud.degree:
        rows, labels = palette(cloud.shN.reshape(len(cloud), -1), _MOST_ROWS)
        values, entries = codebook(rows)
        coefficients = cloud.shN.shape[1]
        # The values of a row are red, green and blue of a pixel for each coefficient.
        entries = entries.reshape(len(rows), coefficients, 3)
        picture_rows = math.ceil(len(rows) / _ACROSS)
        names = np.column_stack([labels & 255, labels >> 8, np.zeros_like(labels)]).astype(np.uint8)
        meta["shN"] = {
            "count": len(rows),
            "bands": cloud.degree,
            "codebook": values.tolist(),
            "files": draw("shN_centroids", entries.reshape(-1, 3), _ACROSS * coefficients, picture_rows)
            + draw("shN_labels", names),
        }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in {"meta.json": json.dumps(meta).encode(), **pictures}.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


def decode(data: bytes, path: Path) -> Cloud:
    """The Gaussians of an .sog file of version 2."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            meta = json.loads(archive.read("meta.json"))
            return _decode(meta, _Pictures(archive, path), path)
    except (zipfile.BadZipFile, RuntimeError, EOFError, zlib.error, UnicodeDecodeError, json.JSONDecodeError) as broken:
        raise FormatError(f"{path}: required a zip of WebP pictures and meta.json, got {broken}") from None
    except (KeyError, TypeError, IndexError) as missing:
        raise FormatError(f"{path}: required SOG of version 2, got one without {missing}") from None


class _Pictures:
    """The pictures of a file as (pixels, 4) bytes."""

    def __init__(self, archive: zipfile.ZipFile, path: Path) -> None:
        self.archive, self.path, self.pillow = archive, path, _pillow(path)

    def pixels(self, name: str, count: int, width: int | None = None) -> np.ndarray:
        """The first pixels of a picture, row after row."""
        try:
            with self.pillow.open(io.BytesIO(self.archive.read(name))) as picture:
                across, down = picture.size
                require(across * down <= _READ_PIXELS, self.path, f"{name} of at most 2^28 pixels", f"{across}x{down}")
                require(width in (None, across), self.path, f"{name} of {width} pixels a row", f"{across}")
                require(across * down >= count, self.path, f"{name} of {count} pixels", f"{across}x{down}")
                return np.asarray(picture.convert("RGBA")).reshape(-1, 4)[:count]
        except (OSError, SyntaxError, EOFError, struct.error, self.pillow.DecompressionBombError) as broken:
            raise FormatError(f"{self.path}: required {name} as a picture, got {broken}") from None


def _decode(meta: dict[str, Any], pictures: _Pictures, path: Path) -> Cloud:
    version, count = meta["version"], meta["count"]
    require(version == 2, path, "SOG of version 2", f"version {version}")
    require(type(count) is int and 0 < count <= _READ_PIXELS, path, "at least one Gaussian", f"{count}")
    low, high = (_numbers(meta["means"][key], 3, path) for key in ("mins", "maxs"))
    steps = [pictures.pixels(name, count)[:, :3].astype(np.int64) for name in meta["means"]["files"]]
    rotations = pictures.pixels(meta["quats"]["files"][0], count)
    require(bool((rotations[:, 3] >= 252).all()), path, "rotations with an alpha of 252 to 255", "others")
    others = (rotations[:, :3] / 255.0 - 0.5) * math.sqrt(2)
    scales = pictures.pixels(meta["scales"]["files"][0], count)
    colors = pictures.pixels(meta["sh0"]["files"][0], count)
    asset = meta.get("asset") or {}
    offset = _numbers(asset["offset"], 3, path) if "offset" in asset else np.zeros(3)
    return Cloud(
        means=_places(steps[0] | steps[1] << 8, low, high),
        scales=_numbers(meta["scales"]["codebook"], 256, path)[scales[:, :3]].astype(np.float32),
        quats=from_smallest_three(rotations[:, 3].astype(np.int64) - 252, others),
        opacities=logits(colors[:, 3] / 255.0),
        sh0=_numbers(meta["sh0"]["codebook"], 256, path)[colors[:, :3]].astype(np.float32),
        shN=_harmonics(meta["shN"], pictures, count, path) if "shN" in meta else np.zeros((count, 0, 3), np.float32),
        antialiased=bool(meta.get("antialias", False)),
        offset=(float(offset[0]), float(offset[1]), float(offset[2])),
    )


def _places(steps: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """(N, 3) float32 positions of their logarithms' 65536 steps."""
    logs = low + steps / 65535 * (high - low)
    places: np.ndarray = (np.sign(logs) * np.expm1(np.abs(logs))).astype(np.float32)
    return places


def _harmonics(meta: dict[str, Any], pictures: _Pictures, count: int, path: Path) -> np.ndarray:
    bands, rows = meta["bands"], meta["count"]
    require(bands in (1, 2, 3), path, "harmonics of 1 to 3 bands", f"{bands}")
    require(type(rows) is int and 0 < rows <= _MOST_ROWS, path, "a palette of 1 to 65536 rows", f"{rows}")
    coefficients = (bands + 1) ** 2 - 1
    labels = pictures.pixels(meta["files"][1], count).astype(np.int64)
    labels = labels[:, 0] | labels[:, 1] << 8
    require(int(labels.max()) < rows, path, f"indices into a palette of {rows} rows", f"{labels.max()}")
    entries = pictures.pixels(meta["files"][0], coefficients * rows, _ACROSS * coefficients)[:, :3]
    values = _numbers(meta["codebook"], 256, path)[entries].reshape(rows, coefficients, 3)
    harmonics: np.ndarray = values[labels].astype(np.float32)
    return harmonics


def _numbers(values: Any, count: int, path: Path) -> np.ndarray:
    """A list of finite numbers in meta.json."""
    right = isinstance(values, list) and all(type(value) in (int, float) and abs(value) < 1e30 for value in values)
    require(right and len(values) == count, path, f"lists of {count} finite numbers in meta.json", str(values)[:40])
    return np.array(values, np.float64)


def _pillow(path: Path) -> Any:
    """Pillow's module of images."""
    try:
        from PIL import Image, features
    except ModuleNotFoundError:
        raise FormatError(f"{path}: required the package pillow for SOG, got none: pip install pillow") from None
    require(bool(features.check("webp")), path, "a Pillow with WebP for SOG", "one without")
    return Image
