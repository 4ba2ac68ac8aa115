"""Files of Gaussians, `.gsv`: a header that says where voxels lie and what they are, and the coded Gaussians.

| bytes | what |
|---|---|
| 8 | SPLATGSV |
| 1 | version, 1 |
| 4 | n, the length of the header, little-endian |
| 4 | CRC-32 of the rest of the file, little-endian |
| n | the header: JSON compressed by zlib |
| | the Gaussians, as `stream.encode` codes them |
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..export import FieldSource
from ..frames import transformed, world_offset
from ..gaussians import GaussianField
from ..grid import VoxelGrid
from ..io import Volume
from ..voxelize import morton_order
from .quantizer import LEAST_STEP, Codes, Steps, dequantize
from .stream import decode, encode

_MAGIC, _VERSION = b"SPLATGSV", 1
_HEAD = struct.Struct("<BII")
#: Bytes that a header may have once it is unpacked.
_LONGEST = 1 << 20
#: Dtypes that come back.
DTYPES = ("bool", *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)))
DTYPES += ("float16", "float32", "float64")


@dataclass(frozen=True)
class Packed:
    """The contents of a file.

    Args:
        source: Grid of the voxels, and their smallest and largest intensity, which are coded as 0 and 1. They are ints
            unless the dtype is a float.
        dtype: Dtype of the volume, one of `DTYPES`.
        steps: Quantisation steps of the codes.
        codes: The coded Gaussians.
        base: Value of the field where there is no Gaussian, from 0 to 1.
    """

    source: FieldSource
    dtype: str
    steps: Steps
    codes: Codes
    base: float = 0.0

    def to_bytes(self) -> bytes:
        """The content of a file."""
        grid, steps = self.source.grid.rebased(), self.steps
        header = {
            "shape": grid.shape,
            "affine": [v for row in grid.affine[:3] for v in row],
            "unit": self.source.unit,
            "dtype": self.dtype,
            "range": [self.source.low, self.source.high],
            "base": self.base,
            "count": len(self.codes),
            "steps": [steps.weight, steps.shape, steps.place, steps.cell],
        }
        head = zlib.compress(json.dumps(header, separators=(",", ":")).encode(), 9)
        body = encode(self.codes, steps, grid.shape) if len(self.codes) else b""
        return _MAGIC + _HEAD.pack(_VERSION, len(head), zlib.crc32(head + body)) + head + body

    @classmethod
    def of_bytes(cls, content: bytes) -> Packed:
        """Decodes the content of a file.

        Raises:
            ValueError: The content is of another kind or of a later version, or it is damaged.
        """
        if not content.startswith(_MAGIC):
            raise ValueError(f"a file of Gaussians that starts with {_MAGIC!r}, got {content[:8]!r}")
        at = len(_MAGIC) + _HEAD.size
        if len(content) < at:
            raise ValueError(f"at least {at} bytes, got {len(content)}")
        version, length, checksum = _HEAD.unpack(content[len(_MAGIC) : at])
        if version != _VERSION:
            raise ValueError(f"version {_VERSION}, got {version}: a newer splat_ssim may read it")
        if len(content) < at + length or zlib.crc32(content[at:]) != checksum:
            raise ValueError("a complete file, got one that is cut short or damaged (its checksum differs)")
        return _unpacked(cls, content[at : at + length], content[at + length :])

    def gaussians(self) -> dict[str, np.ndarray]:
        """The Gaussians in voxels, float32: the same bits on every machine. See `dequantize`."""
        return dequantize(self.codes, self.steps)

    @torch.no_grad()
    def volume(self) -> Volume:
        """The voxels, in their own dtype: the field cut to the range of the source, rounded where they are whole."""
        grid = self.source.grid
        if len(self.codes):
            field = GaussianField({name: torch.from_numpy(array) for name, array in self.gaussians().items()})
            lattice = VoxelGrid(grid.shape)
            order = morton_order(field.tensors["means"], lattice)
            values = GaussianField({name: tensor[order] for name, tensor in field.tensors.items()})(lattice)
        else:
            values = torch.zeros(1, *grid.shape)
        return Volume(self._intensities(values.numpy()), grid, self.source.unit)

    def _intensities(self, values: np.ndarray) -> np.ndarray:
        """Values of the field as the source has them."""
        low, high, dtype = self.source.low, self.source.high, np.dtype(self.dtype)
        intensities: np.ndarray
        shares = np.clip(values + np.float32(self.base), 0.0, 1.0).astype(np.float64)
        if dtype.kind == "f":
            intensities = np.clip(shares * (high - low) + low, low, high).astype(dtype)
            return intensities
        # float64 does not hold the intensities of 64 bits, but what they are above the lowest is found in whole
        # numbers; their sum wraps around to the right one.
        span = int(high) - int(low)
        counts = np.rint(shares * span)
        below = counts < float(span)
        above = np.where(below, np.where(below, counts, 0).astype(np.uint64), np.uint64(span))
        intensities = (above + np.uint64(int(low) % 2**64)).astype(dtype)
        return intensities

    def field(self) -> GaussianField:
        """The Gaussians in world coordinates, with their source. If there is a base, values are not clamped."""
        grid, source = self.source.grid, self.source
        if self.base:
            raised = self.base * (source.high - source.low)
            source = replace(source, low=source.low + raised, high=source.high + raised, clip=False)
        tensors = {name: torch.from_numpy(array) for name, array in self.gaussians().items()}
        offset = world_offset(grid)
        placed = grid.rebased().moved([-v for v in offset]).matrix
        return GaussianField(transformed(tensors, placed), source, offset)


def _unpacked(cls: type[Packed], head: bytes, body: bytes) -> Packed:
    """Decodes the content of a file whose checksum is right.

    Raises:
        ValueError: The header has a wrong value.
    """
    try:
        unpacker = zlib.decompressobj()
        header: dict[str, Any] = json.loads(unpacker.decompress(head, _LONGEST))
        shape = tuple(header["shape"])
        affine = np.array([*header["affine"], 0, 0, 0, 1], np.float64).reshape(4, 4)
        grid = VoxelGrid(shape, affine.tolist())
        low, high = header["range"]
        weight, shape_step, place, cell = header["steps"]
        steps = Steps(float(weight), float(shape_step), float(place), cell)
        count, dtype, unit, base = header["count"], header["dtype"], header["unit"], float(header["base"])
        whole = all(type(v) is int for v in (*shape, count, cell))
        positive = all(math.isfinite(v) and v > 0 for v in (steps.weight, steps.shape, steps.place))
        fine = min(steps.shape, steps.place) >= LEAST_STEP
        sized = 0 < count <= 8 * len(body) if body else count == 0
        if not whole or not positive or not fine or not 1 <= cell <= 64 or not sized:
            raise ValueError(f"{count} Gaussians in {len(body)} bytes by {steps}")
        if dtype not in DTYPES or not low <= high or not math.isfinite(high - low) or not 0 <= base <= 1:
            raise ValueError(f"voxels of {dtype} from {low} to {high}")
        if not isinstance(unit, str):
            raise ValueError(f"a unit {unit!r}")
        low, high = _in_range(dtype, low, high)
    except (zlib.error, LookupError, TypeError, ValueError, OverflowError, RecursionError, AttributeError) as error:
        raise ValueError(f"a header that says where voxels lie and what they are, got {error}") from error
    codes = decode(body, steps, grid.shape, count) if count else Codes.none()
    return cls(FieldSource(grid, low, high, True, unit), dtype, steps, codes, base)


def _in_range(name: str, low: float, high: float) -> tuple[float, float]:
    """The range of voxels of a dtype, in whole numbers for whole voxels.

    Raises:
        ValueError: The dtype does not hold the range.
    """
    dtype = np.dtype(name)
    whole = dtype.kind != "f"
    limits = (np.iinfo if whole else np.finfo)(np.uint8 if dtype.kind == "b" else dtype)
    least, most = limits.min, 1 if dtype.kind == "b" else limits.max
    if not float(least) <= low <= high <= float(most) or (whole and (low % 1 or high % 1)):
        raise ValueError(f"voxels of {name} from {low} to {high}")
    if not whole:
        return float(low), float(high)
    # Older files have the range in float64, which rounds the largest 64-bit integers up.
    return max(int(least), int(low)), min(int(most), int(high))


def load_packed(path: str | Path) -> Packed:
    """Reads a file.

    Raises:
        FileNotFoundError: There is nothing at the path.
        ValueError: The file is incomplete or of another kind. The message names it.
    """
    content = Path(path).read_bytes()
    try:
        return Packed.of_bytes(content)
    except ValueError as error:
        raise ValueError(f"{path}: required {error}") from error
