"""SPZ, Niantic's compressed Gaussians (.spz). Writes version 3; reads versions 2, 3 and, with zstandard installed, 4.

Source: the README of nianticlabs/spz (MIT), and the constants of its definition: a header, then one array for each
property; positions as 24-bit fixed point, opacities, colours (a gain of 0.15) and scales (a sixteenth of the logarithm
from -10 on) as bytes, rotations xyzw by their smallest three of 10 bits, harmonics as bytes, of which a writer says
how many bits count. Version 3 is all of it in gzip, version 4 each array in zstd. Who reads version 4 reads 3 too.

Its axes are right, up, back (RUB); those of PLY files count as right, down, front (RDF): y and z change their sign.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from splat_ssim.formats.cloud import Cloud, FormatError, from_smallest_three, logits, require, smallest_three, to_bytes

_MAGIC = 0x5053474E
_HEADER = struct.Struct("<IIIBBBB")
#: Bits behind the point that every writer takes, and the most that are taken for small scenes.
_BITS, _MOST_BITS = 12, 22
_LARGEST = 2**23 - 1
_COLOR_GAIN = 0.15
_ANTIALIASED, _EXTENDED = 1, 2
#: Bits of the harmonics that count, by degree. One less, as Niantic's default is, costs the chair 0.66 dB, not 0.20.
_SH_BITS = (6, 5, 5)


def encode(cloud: Cloud, path: Path) -> bytes:
    """The bytes of an .spz file of version 3."""
    if any(cloud.offset):
        cloud.notes.append("the offset of the coordinates is not kept: .spz has no place for it")
    bits = _fraction_bits(cloud, path)
    fixed = np.rint(cloud.means.astype(np.float64) * 2.0**bits).astype(np.int64)
    flipped = cloud.flipped("yz")
    fixed *= (1, -1, -1)
    scales, colors, shN = (cloud.scales + 10.0) * 16, cloud.sh0 * (_COLOR_GAIN * 255) + 127.5, flipped.shN
    cloud.note_cut((scales < -0.5) | (scales > 255.5), "scales were cut to e^-10 to e^5.94")
    cloud.note_cut((colors < -0.5) | (colors > 255.5), "colour values were cut to -1.27 to 2.27")
    cloud.note_cut(np.abs(shN) > 1, "harmonics were cut to [-1, 1]")
    flags = _ANTIALIASED if cloud.antialiased else 0
    parts = [
        _HEADER.pack(_MAGIC, 3, len(cloud), cloud.degree, bits, flags, 0),
        (fixed[..., None] >> (0, 8, 16) & 255).astype(np.uint8).tobytes(),
        to_bytes(cloud.alphas * 255).tobytes(),
        to_bytes(colors).tobytes(),
        to_bytes(scales).tobytes(),
        _packed_rotations(flipped.quats),
        _packed_harmonics(shN),
    ]
    # Without a time and a name in the header the same Gaussians are the same bytes.
    return gzip.compress(b"".join(parts), 9, mtime=0)


def _fraction_bits(cloud: Cloud, path: Path) -> int:
    """The number of fractional bits of a position: 12, fewer for a large scene, more for a tiny one."""
    largest = float(np.abs(cloud.means).max())
    most = int(np.floor(np.log2(_LARGEST / largest))) if largest > 0 else _MOST_BITS
    require(most >= 0, path, f"positions within ±{_LARGEST}, which 24 bits hold", f"{largest:.6g}")
    # A quarter of the size of an ordinary Gaussian is resolved.
    wanted = int(np.ceil(2 - np.median(cloud.scales) / np.log(2)))
    bits = int(np.clip(max(_BITS, wanted), 0, min(most, _MOST_BITS)))
    if bits < _BITS:
        cloud.notes.append(f"positions reach {largest:.6g}: they are rounded to 1/{2**bits} instead of 1/{2**_BITS}")
    return bits


def _packed_rotations(quats: np.ndarray) -> bytes:
    """Four bytes each: the index of the largest component of xyzw, then sign and 9 bits of the other three."""
    largest, others = smallest_three(quats[:, [1, 2, 3, 0]])
    magnitudes = np.rint(np.abs(others) * (511 * np.sqrt(2))).clip(0, 511).astype(np.uint32)
    packed = largest.astype(np.uint32)
    for i in range(3):
        packed = packed << 10 | (others[:, i] < 0).astype(np.uint32) << 9 | magnitudes[:, i]
    return packed.astype("<u4").tobytes()


def _packed_harmonics(shN: np.ndarray) -> bytes:
    """Packs each coefficient into a byte, in steps that grow with the degree. 128 stands for 0."""
    steps = np.repeat([2.0 ** (8 - bits) for bits in _SH_BITS], (3, 5, 7))[: shN.shape[1], None]
    return to_bytes(np.rint((shN * 128 + 128) / steps) * steps).tobytes()


def decode(data: bytes, path: Path) -> Cloud:
    """The Gaussians of an .spz file of version 2, 3 or 4."""
    require(data[:2] == b"\x1f\x8b" or data[:4] == b"NGSP", path, "an SPZ file", "other bytes")
    content = b""
    if data[:4] != b"NGSP":
        try:
            content = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as broken:
            raise FormatError(f"{path}: required an SPZ file in gzip, got a broken one: {broken}") from None
    header = content if content else data
    require(len(header) >= (16 if content else 32), path, "the header of an SPZ file", f"{len(header)} bytes")
    magic, version, count, degree, bits, flags, streams = _HEADER.unpack_from(header)
    require(magic == _MAGIC, path, "an SPZ file", "another file in gzip")
    require(version in ((2, 3) if content else (4,)), path, "SPZ of version 2, 3 or 4", f"version {version}")
    require(degree <= 3, path, "harmonics of degree 0 to 3", f"degree {degree}")
    require(count > 0, path, "at least one Gaussian", "none")
    rest = 3 * ((degree + 1) ** 2 - 1)
    sizes = [9, 1, 3, 3, 3 if version == 2 else 4, rest]
    body = content[16:] if content else _streams(data, streams, count, sizes, path)
    require(len(body) >= count * sum(sizes), path, f"{count * sum(sizes)} bytes of Gaussians", f"{len(body)}")
    ends = np.cumsum([0, *sizes]) * count
    positions, alphas, colors, scales, rotations, harmonics = (
        np.frombuffer(body[start:end], np.uint8) for start, end in pairwise(ends)
    )
    triples = positions.reshape(count, 3, 3).astype(np.int64)
    fixed = triples[..., 0] | triples[..., 1] << 8 | triples[..., 2] << 16
    fixed = (fixed ^ 0x800000) - 0x800000
    unpack = _first_three if version == 2 else _smallest_three
    cloud = Cloud(
        means=(fixed / 2.0**bits).astype(np.float32),
        scales=(scales.reshape(count, 3) / 16.0 - 10).astype(np.float32),
        quats=unpack(rotations.reshape(count, -1)),
        opacities=logits(alphas / 255.0),
        sh0=((colors.reshape(count, 3) / 255.0 - 0.5) / _COLOR_GAIN).astype(np.float32),
        shN=((harmonics.reshape(count, rest // 3, 3) - 128.0) / 128).astype(np.float32),
        antialiased=bool(flags & _ANTIALIASED),
    ).flipped("yz")
    if flags & _EXTENDED:
        cloud.notes.append("its extensions are ignored: axes are taken as right, up, back")
    return cloud


def _smallest_three(packed: np.ndarray) -> np.ndarray:
    values = np.ascontiguousarray(packed).view("<u4")[:, 0].astype(np.int64)
    parts = values[:, None] >> np.array([20, 10, 0]) & 1023
    others = np.where(parts & 512, -1, 1) * (parts & 511) / (511 * np.sqrt(2))
    return from_smallest_three(values >> 30, others)[:, [3, 0, 1, 2]]


def _first_three(packed: np.ndarray) -> np.ndarray:
    return from_smallest_three(np.full(len(packed), 3), packed / 127.5 - 1)[:, [3, 0, 1, 2]]


def _streams(data: bytes, count: int, gaussians: int, sizes: list[int], path: Path) -> bytes:
    """The decompressed arrays of a file of version 4, one after the other."""
    start = struct.unpack_from("<I", data, 16)[0]
    require(count == 6 or (count == 5 and not sizes[-1]), path, "SPZ with 6 arrays", f"{count}")
    require(32 <= start <= len(data) - 16 * count, path, "an SPZ file with its table", f"{len(data)} bytes")
    table = struct.unpack_from(f"<{2 * count}Q", data, start)
    place, arrays, decompress = start + 16 * count, [], _zstd(path)
    for compressed, size, each in zip(table[::2], table[1::2], sizes, strict=False):
        require(size == gaussians * each, path, f"an array of {gaussians * each} bytes", f"{size}")
        arrays.append(decompress(data[place : place + compressed], size) if size else b"")
        place += compressed
    return b"".join(arrays)


def _zstd(path: Path) -> Any:
    """A function (bytes, largest size) -> bytes."""
    try:
        import zstandard
    except ModuleNotFoundError:
        raise FormatError(
            f"{path}: required the package zstandard to read SPZ of version 4, got none: install splat_ssim with its "
            "extra 'export', or write the file as version 3"
        ) from None

    def decompress(data: bytes, size: int) -> bytes:
        try:
            return zstandard.ZstdDecompressor().decompress(data, max_output_size=size)
        except zstandard.ZstdError as broken:
            raise FormatError(f"{path}: required an SPZ file of whole arrays, got a broken one: {broken}") from None

    return decompress
