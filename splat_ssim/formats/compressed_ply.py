"""The compressed PLY of PlayCanvas and SuperSplat (.compressed.ply): 16 bytes a Gaussian, and one a harmonic.

Source: PlayCanvas's description of the format, https://blog.playcanvas.com/compressing-gaussian-splats and the PLY
headers that splat-transform (MIT) writes. Gaussians in chunks of 256 are packed between the chunk's smallest and
largest position, logarithm of scale and colour: 11, 10 and 11 bits, and a byte for each of the colours and opacity. The
rotation wxyz is its smallest three of 10 bits, each harmonic a byte between -4 and 4.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

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
from splat_ssim.ply import SH0, ply_comments, ply_elements

_CHUNK = 256
#: Logarithms of scales that SuperSplat's packing keeps.
_MAX_SCALE = 20.0
#: Harmonics reach from minus this to this.
_MAX_HARMONIC = 4.0
_BITS = ((21, 11), (11, 10), (0, 11))
_ROTATION_BITS = (20, 10, 0)
_PACKED = ("position", "rotation", "scale", "color")
_BOUNDS = [
    f"{end}_{name}"
    for names in ("xyz", ("scale_x", "scale_y", "scale_z"), "rgb")
    for end in ("min", "max")
    for name in names
]


def encode(cloud: Cloud, path: Path) -> bytes:
    """The bytes of a .compressed.ply file."""
    cloud.note_cut(np.abs(cloud.scales) > _MAX_SCALE, "scales were cut to e^-20 to e^20")
    cloud.note_cut(np.abs(cloud.shN) > _MAX_HARMONIC, "harmonics were cut to [-4, 4]")
    if cloud.antialiased:
        cloud.notes.append("that the scene is antialiased is kept as a comment, which viewers ignore")
    cloud = cloud.ordered(morton_order(cloud.means))
    position, position_bounds = _packed(cloud.means)
    scale, scale_bounds = _packed(cloud.scales.clip(-_MAX_SCALE, _MAX_SCALE))
    parts, color_bounds = _fractions(cloud.colors)
    rgba = np.column_stack([to_bytes(parts * 255), to_bytes(cloud.alphas * 255)]).astype(np.uint32)
    color = rgba[:, 0] << 24 | rgba[:, 1] << 16 | rgba[:, 2] << 8 | rgba[:, 3]
    largest, others = smallest_three(cloud.quats)
    tenths = np.clip(np.rint((others * math.sqrt(0.5) + 0.5) * 1023), 0, 1023).astype(np.uint32)
    rotation = largest.astype(np.uint32) << 30 | (tenths << np.array(_ROTATION_BITS, np.uint32)).sum(1, dtype=np.uint32)
    chunks = np.column_stack([position_bounds, scale_bounds, color_bounds]).astype("<f4")
    # Channels slowest, as in the PLY of the training.
    harmonics = cloud.shN.transpose(0, 2, 1).reshape(len(cloud), -1)
    steps = np.clip(np.floor((harmonics / (2 * _MAX_HARMONIC) + 0.5) * 256), 0, 255).astype(np.uint8)

    header = ["ply", "format binary_little_endian 1.0"]
    header += [f"comment offset {' '.join(map(repr, cloud.offset))}"] if any(cloud.offset) else []
    header += ["comment antialiased"] if cloud.antialiased else []
    header += [f"element chunk {len(chunks)}", *(f"property float {name}" for name in _BOUNDS)]
    header += [f"element vertex {len(cloud)}", *(f"property uint packed_{name}" for name in _PACKED)]
    if cloud.degree:
        header += [f"element sh {len(cloud)}", *(f"property uchar f_rest_{i}" for i in range(steps.shape[1]))]
    vertices = np.column_stack([position, rotation, scale, color]).astype("<u4")
    return b"".join(
        ["\n".join([*header, "end_header", ""]).encode(), chunks.tobytes(), vertices.tobytes(), steps.tobytes()]
    )


def _fractions(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, 3) values as fractions of the range of their chunk, and the chunks' (C, 6) smallest and largest."""
    starts = np.arange(0, len(values), _CHUNK)
    # As the file has them: a value between float32 bounds is between the real ones.
    low = np.minimum.reduceat(values, starts).astype(np.float32).astype(np.float64)
    high = np.maximum.reduceat(values, starts).astype(np.float32).astype(np.float64)
    chunk = np.arange(len(values)) // _CHUNK
    fractions = (values - low[chunk]) / np.where(high > low, high - low, 1)[chunk]
    return fractions.clip(0, 1), np.column_stack([low, high])


def _packed(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) uint32 of 11, 10 and 11 bits, and the bounds of the chunks."""
    fractions, bounds = _fractions(values.astype(np.float64))
    packed = np.zeros(len(values), np.uint32)
    for axis, (shift, bits) in enumerate(_BITS):
        packed |= np.rint(fractions[:, axis] * (2**bits - 1)).astype(np.uint32) << shift
    return packed, bounds


def decode(path: Path) -> Cloud:
    """The Gaussians of a .compressed.ply file."""
    elements = ply_elements(path)
    vertices, chunks = elements.get("vertex", {}), elements.get("chunk", {})
    needed = [f"packed_{name}" for name in _PACKED]
    missing = [name for name in needed if name not in vertices] + [name for name in _BOUNDS[:12] if name not in chunks]
    require(not missing, path, "a compressed PLY", f"one without {', '.join(missing[:3])}")
    count = len(vertices["packed_position"])
    require(count > 0, path, "at least one Gaussian", "none")
    require(all(vertices[name].dtype == np.uint32 for name in needed), path, "packed values of 32 bits", "others")
    rows = len(chunks["min_x"])
    require(rows >= math.ceil(count / _CHUNK), path, f"chunks for {count} Gaussians", f"{rows}")
    chunk = np.arange(count) // _CHUNK
    # Early files have no bounds of colours: they lie between 0 and 1.
    columns = [chunks.get(name, np.full(rows, float(name.startswith("max")))) for name in _BOUNDS]
    bounds = np.stack(columns, 1).astype(np.float64)[chunk]
    require(bool(np.isfinite(bounds).all()), path, "finite bounds of its chunks", "others")
    means, scales = (
        _unpacked(vertices[f"packed_{name}"], bounds[:, start : start + 6])
        for name, start in (("position", 0), ("scale", 6))
    )
    rotation = vertices["packed_rotation"].astype(np.int64)
    others = ((rotation[:, None] >> np.array(_ROTATION_BITS) & 1023) / 1023 - 0.5) * math.sqrt(2)
    rgba = (vertices["packed_color"].astype(np.int64)[:, None] >> np.array([24, 16, 8, 0]) & 255) / 255
    colors = bounds[:, 12:15] + rgba[:, :3] * (bounds[:, 15:] - bounds[:, 12:15])
    comments = [line.split() for line in ply_comments(path)]
    return Cloud(
        means=means,
        scales=scales,
        quats=from_smallest_three(rotation >> 30, others),
        opacities=logits(rgba[:, 3]),
        sh0=((colors - 0.5) / SH0).astype(np.float32),
        shN=_harmonics(elements.get("sh", {}), count, path),
        antialiased=["antialiased"] in comments,
        offset=offset_of(comments, path),
    )


def _unpacked(packed: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    fractions = [(packed >> shift & (2**bits - 1)) / (2**bits - 1) for shift, bits in _BITS]
    unpacked: np.ndarray = (bounds[:, :3] + np.stack(fractions, 1) * (bounds[:, 3:] - bounds[:, :3])).astype(np.float32)
    return unpacked


def _harmonics(columns: dict[str, np.ndarray], count: int, path: Path) -> np.ndarray:
    width = len(columns)
    require(width in (0, 9, 24, 45), path, "0, 9, 24 or 45 properties f_rest_*", f"{width}")
    if not width:
        return np.zeros((count, 0, 3), np.float32)
    names = [f"f_rest_{i}" for i in range(width)]
    right = all(name in columns and columns[name].dtype == np.uint8 and len(columns[name]) == count for name in names)
    require(right, path, f"a byte f_rest_0 to f_rest_{width - 1} for each Gaussian", "others")
    steps = np.stack([columns[name] for name in names], 1).astype(np.float64)
    # The ends of the range are kept, between them a byte stands for the middle of its step.
    fractions = np.where(steps == 0, 0, np.where(steps == 255, 1, (steps + 0.5) / 256))
    values = (fractions - 0.5) * 2 * _MAX_HARMONIC
    harmonics: np.ndarray = values.reshape(count, 3, width // 3).transpose(0, 2, 1).astype(np.float32)
    return harmonics


def offset_of(comments: list[list[str]], path: Path) -> tuple[float, float, float]:
    """The offset that was subtracted from a PLY's coordinates, according to its comments."""
    for words in comments:
        if words[:1] == ["offset"] and len(words) == 4:
            try:
                x, y, z = map(float, words[1:])
            except ValueError:
                raise FormatError(f"{path}: required three numbers after comment offset, got {words[1:]}") from None
            require(all(abs(each) < 1e30 for each in (x, y, z)), path, "a finite offset", " ".join(words[1:]))
            return x, y, z
    return 0.0, 0.0, 0.0
