"""Fitted Gaussians as files: PLY, and a quantised form of about 11 bytes for each Gaussian of one channel."""

from __future__ import annotations

import json
import lzma
import math
import struct
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .._files import replacing
from .frames import transformed, world_offset
from .gaussians import GaussianField
from .grid import VoxelGrid
from .normalization import Normalization
from .voxelize import morton_order

_MAGIC = b"SPLATVOL1"
#: Starts of the comments in a PLY that hold a `FieldSource`, and the offset of the means.
_COMMENT, _OFFSET = "comment source ", "comment offset "
#: Value in the header of a quantised field if its Gaussians are in the source's voxels, not in world coordinates.
_LATTICE = "lattice"


@dataclass(frozen=True)
class FieldSource:
    """The grid and the intensities of the volume that Gaussians were fitted to. They suffice to rebuild it.

    Args:
        grid: The voxels.
        low: Intensity that is fitted as 0.
        high: Intensity that is fitted as 1.
        clip: Whether the field is clamped to [0, 1] first.
        unit: Unit of the grid's world coordinates.
    """

    grid: VoxelGrid
    low: float
    high: float
    clip: bool = True
    unit: str = ""

    @property
    def normalization(self) -> Normalization:
        """The map between intensities and fitted values."""
        return Normalization(self.low, self.high, self.clip)

    def cropped(self, box: np.ndarray) -> FieldSource:
        """Returns the source with the voxels whose centres may lie in a box (2, 3) of smallest and largest x, y, z.

        Raises:
            ValueError: The box holds no voxel.
        """
        corners = np.stack(np.meshgrid(*box.T, indexing="ij"), -1).reshape(-1, 3)
        indices = self.grid.to_index(torch.from_numpy(corners)).numpy()
        # A tolerance of a millionth of a voxel, so that a box that ends on a voxel's centre includes it.
        start = np.ceil(indices.min(0) - 1e-6).clip(0).astype(int)
        stop = (np.floor(indices.max(0) + 1e-6).astype(int) + 1).clip(max=self.grid.shape)
        if not (start < stop).all():
            raise ValueError(f"box must hold voxels of the source's grid, got {box.tolist()}")
        return replace(self, grid=self.grid.crop(start.tolist(), (stop - start).tolist()))

    def header(self) -> dict[str, Any]:
        """The source as it is stored in files, as JSON."""
        grid = self.grid.rebased()
        place = {"shape": grid.shape, "affine": grid.affine, "unit": self.unit}
        return {**place, "low": self.low, "high": self.high, "clip": self.clip}

    @classmethod
    def of_header(cls, header: dict[str, Any]) -> FieldSource:
        """The reverse of `header`."""
        shape = tuple(header["shape"])
        if not all(type(side) is int for side in shape):
            raise ValueError(f"a shape of {shape}")
        grid = VoxelGrid(shape, header["affine"])
        low, high = float(header["low"]), float(header["high"])
        if not math.isfinite(low) or not math.isfinite(high):
            raise ValueError(f"intensities from {low} to {high}")
        return cls(grid, low, high, bool(header["clip"]), str(header["unit"]))


def read_source(path: str | Path) -> FieldSource | None:
    """Reads the source in a file of `save_gaussians_ply` or `save_quantized`. None if the file has none.

    Raises:
        ValueError: The source cannot be read.
    """
    path = Path(path)
    content = path.read_bytes()
    try:
        if content.startswith(_MAGIC):
            header = _quantized_header(path, content)[0].get("source")
        else:
            lines = content.partition(b"end_header\n")[0].decode(errors="replace").split("\n")
            text = next((line.removeprefix(_COMMENT) for line in lines if line.startswith(_COMMENT)), None)
            header = None if text is None else json.loads(text)
        return None if header is None else FieldSource.of_header(header)
    except (LookupError, TypeError, ValueError, OverflowError, RecursionError, AttributeError) as error:
        raise ValueError(f"{path} must hold the grid and intensities of its volume, got {error}") from error


def save_gaussians_ply(path: str | Path, field: GaussianField, source: FieldSource | None = None) -> Path:
    """Writes the Gaussians as binary PLY, every property float32. Returns the path.

    x y z, scale_0..2 (natural logarithms) and rot_0..3 (w, x, y, z) are those of 3D Gaussian splatting.
    `signed_density` is the weight of the Gaussian, which may be negative: no opacity, and additive. `feature_0`, … are
    the further channels over the density. A comment holds the source, so that the volume can be rebuilt; another
    what is to be added to x y z, where that is not 0.
    """
    tensors = {name: tensor.detach().cpu().float() for name, tensor in field.tensors.items()}
    columns = [("x", "y", "z"), ("scale_0", "scale_1", "scale_2"), ("rot_0", "rot_1", "rot_2", "rot_3")]
    arrays = [tensors["means"], tensors["log_scales"], torch.nn.functional.normalize(tensors["quats"], dim=1)]
    columns.append(("signed_density",))
    arrays.append(tensors["densities"][:, None])
    if "features" in tensors:
        columns.append(tuple(f"feature_{i}" for i in range(tensors["features"].shape[1])))
        arrays.append(tensors["features"])
    names = [name for group in columns for name in group]
    header = ["ply", "format binary_little_endian 1.0"]
    header.append("comment additive Gaussian field: V(x) = sum of signed_density exp(-q/2), zero where q > 9")
    if source is not None:
        header.append(_COMMENT + json.dumps(source.header()))
    if any(field.offset):
        header.append(_OFFSET + json.dumps(field.offset))
    header.append(f"element vertex {len(field)}")
    header += [f"property float {name}" for name in names]
    header.append("end_header\n")
    path = Path(path)
    with replacing(path) as file:
        file.write("\n".join(header).encode() + torch.cat(arrays, 1).numpy().astype("<f4").tobytes())
    return path


def load_gaussians_ply(path: str | Path) -> GaussianField:
    """Reads what `save_gaussians_ply` wrote, to the CPU.

    Raises:
        ValueError: The file is not such a PLY.
    """
    content = Path(path).read_bytes()
    head, found, body = content.partition(b"end_header\n")
    lines = head.decode(errors="replace").split("\n")
    words = [line.split() for line in lines]
    names = [line[2] for line in words if line[:2] == ["property", "float"] and len(line) == 3]
    counts = [line[2] for line in words if line[:2] == ["element", "vertex"] and len(line) == 3]
    features = [name for name in names if name.startswith("feature_")]
    required = {"x", "y", "z", "signed_density", *(f"scale_{i}" for i in range(3)), *(f"rot_{i}" for i in range(4))}
    known = required <= set(names) and len(set(names)) == len(names) and len(counts) == 1
    if not found or not known or not counts[0].isdecimal() or not 0 < len(counts[0]) < 16 or int(counts[0]) < 1:
        raise ValueError(f"{path} must be a PLY of Gaussians with signed_density, got properties {names}")
    count = int(counts[0])
    if len(body) != count * len(names) * 4:
        raise ValueError(f"{path} must have {count * len(names) * 4} bytes after its header, got {len(body)}")
    table = torch.from_numpy(np.frombuffer(body, "<f4").reshape(count, len(names)).astype(np.float32))
    if not torch.isfinite(table).all():
        raise ValueError(f"{path} must hold finite numbers, got others")

    def columns(*properties: str) -> torch.Tensor:
        return table[:, [names.index(name) for name in properties]].contiguous()

    tensors = {
        "means": columns("x", "y", "z"),
        "log_scales": columns("scale_0", "scale_1", "scale_2"),
        "quats": columns("rot_0", "rot_1", "rot_2", "rot_3"),
        "densities": columns("signed_density")[:, 0].contiguous(),
    }
    if features:
        tensors["features"] = columns(*features)
    offset = next((json.loads(line.removeprefix(_OFFSET)) for line in lines if line.startswith(_OFFSET)), (0.0,) * 3)
    return GaussianField(tensors, offset=offset)


def save_field(path: str | Path, field: GaussianField) -> Path:
    """See `GaussianField.save`."""
    path = Path(path)
    if path.suffix.lower() == ".ply":
        return save_gaussians_ply(path, field, field.source)
    if path.suffix.lower() != ".quantized":
        raise ValueError(f"a field must be saved as .ply or .quantized, got {path.name!r}")
    if field.source is None:
        raise ValueError(f"a quantised field must have a source, whose grid orders it, got none for {path.name!r}")
    return save_quantized(path, field, field.source.grid, source=field.source)


def load_field(path: str | Path) -> GaussianField:
    """Reads Gaussians and their source, to the CPU.

    Args:
        path: A file of `GaussianField.save` or of splat-compress (.gsv), or the folder of a run, whose gaussians.ply is
            read.

    Raises:
        FileNotFoundError: There is nothing at the path.
        ValueError: The file cannot be read.
    """
    path = Path(path)
    path = path / "gaussians.ply" if path.is_dir() else path
    if not path.exists():
        raise FileNotFoundError(f"no field at {path}")
    if path.suffix.lower() == ".gsv":
        from .codec.container import load_packed

        return load_packed(path).field()
    field = load_gaussians_ply(path) if path.suffix.lower() == ".ply" else load_quantized(path)
    field.source = read_source(path)
    return field


def _quantize(values: np.ndarray, levels: int, low: float, high: float) -> np.ndarray:
    step = (high - low) / levels if high > low else 1.0
    return np.clip(np.rint((values - low) / step), 0, levels).astype(np.uint16)


def _dequantize(codes: np.ndarray, levels: int, low: float, high: float) -> np.ndarray:
    return (low + codes.astype(np.float64) * ((high - low) / levels if high > low else 1.0)).astype(np.float32)


def _bytes(codes: np.ndarray) -> bytes:
    """uint16 codes (N, K) as planes of low and then high bytes, which compress better apart."""
    columns = np.ascontiguousarray(codes.T)
    return (columns & 255).astype(np.uint8).tobytes() + (columns >> 8).astype(np.uint8).tobytes()


def _codes(data: bytes, count: int, columns: int) -> np.ndarray:
    planes = np.frombuffer(data, np.uint8).reshape(2, columns, count).astype(np.uint16)
    codes: np.ndarray = (planes[0] | planes[1] << 8).T
    return codes


def save_quantized(
    path: str | Path,
    field: GaussianField,
    grid: VoxelGrid,
    *,
    bits: dict[str, int] | None = None,
    source: FieldSource | None = None,
) -> Path:
    """Writes the Gaussians with few bits each, along a Morton curve, compressed by LZMA. Returns the path.

    Codes are uniform: of means over their bounding box; of log scales, densities and features over their ranges; of a
    quaternion the three smaller numbers, and which one is the largest. Means are stored as differences along the curve.
    With a source, lengths are in its voxels, so that few bits serve any spacing and position. The file holds everything
    that `load_quantized` needs, so its size is the true cost of the field.

    Args:
        path: File to write.
        field: The Gaussians.
        grid: Voxels that determine the order of the Gaussians.
        bits: Bits of means (14 by default), log_scales (8), quats (8), densities (10) and features (8), each 2 to 16.
        source: Source to write to the header. With it, `rebuild` needs nothing else.

    Raises:
        ValueError: A number of bits is not between 2 and 16.
    """
    bits = {"means": 14, "log_scales": 8, "quats": 8, "densities": 10, "features": 8, **(bits or {})}
    if any(not 2 <= b <= 16 for b in bits.values()):
        raise ValueError(f"bits must be from 2 to 16, got {bits}")
    order = morton_order(field.tensors["means"], field.local(grid), cell=1.0)
    header: dict[str, Any] = {"count": len(field), "fields": {}}
    stored = {name: tensor.detach() for name, tensor in field.tensors.items()}
    if source is not None:
        header.update({"source": source.header(), "coordinates": _LATTICE})
        stored = transformed(stored, np.linalg.inv(field.local(source.grid).rebased().matrix))
    elif any(field.offset):
        header["offset"] = field.offset
    tensors = {name: tensor[order].cpu().numpy().astype(np.float64) for name, tensor in stored.items()}
    streams = []
    for name, values in tensors.items():
        values = values.reshape(len(field), -1)
        if name == "quats":
            largest, values = _smallest_three(values)
            streams.append(largest.tobytes())
            low, high = np.full(3, -np.sqrt(0.5)), np.full(3, np.sqrt(0.5))
        else:
            low, high = values.min(0), values.max(0)
        levels = 2 ** bits[name] - 1
        codes = np.stack([_quantize(values[:, k], levels, low[k], high[k]) for k in range(values.shape[1])], 1)
        if name == "means":
            codes = np.diff(codes, axis=0, prepend=np.zeros((1, 3), np.uint16))  # Wraps around, and back.
        header["fields"][name] = {"bits": bits[name], "low": low.tolist(), "high": high.tolist()}
        streams.append(_bytes(codes))
    head = json.dumps({**header, "checksum": zlib.crc32(json.dumps(header).encode())}).encode()
    body = lzma.compress(b"".join(streams), preset=9)  # with a checksum of its own
    path = Path(path)
    with replacing(path) as file:
        file.write(_MAGIC + struct.pack("<I", len(head)) + head + body)
    return path


def load_quantized(path: str | Path) -> GaussianField:
    """Reads what `save_quantized` wrote, to the CPU.

    Raises:
        ValueError: The file is of another kind, or truncated.
    """
    header, body = _quantized_header(path, Path(path).read_bytes())
    try:
        return _decoded(header, body)
    except (ValueError, TypeError, LookupError, OverflowError, lzma.LZMAError) as error:
        raise ValueError(f"{path} must be a complete quantised field, got {error}") from error


#: Tensor of a `GaussianField` -> its numbers for each Gaussian; there may be any number of features.
_COLUMNS = {"means": 3, "log_scales": 3, "quats": 3, "densities": 1, "features": None}


def _decoded(header: dict[str, Any], body: bytes) -> GaussianField:
    """Decodes the field from a header and its compressed streams.

    Raises:
        ValueError: They do not fit each other. Values of a wrong type raise errors of other types.
    """
    count, fields = header["count"], header["fields"]
    if set(fields) - {"features"} != set(_COLUMNS) - {"features"} or type(count) is not int or count < 1:
        raise ValueError(f"{count} Gaussians of {', '.join(fields)}")
    for name, described in fields.items():
        with np.errstate(over="ignore"):  # a number beyond float32 becomes infinite, and is refused below
            low, high = (np.asarray(described[end], np.float64).astype(np.float32) for end in ("low", "high"))
        fits = low.ndim == 1 and low.shape == high.shape and len(low) == (_COLUMNS[name] or len(low)) > 0
        if not fits or not np.isfinite([low, high]).all() or described["bits"] not in range(2, 17):
            raise ValueError(f"{name} from {described['low']} to {described['high']} in {described['bits']} bits")
    size = count * (1 + 2 * sum(len(described["low"]) for described in fields.values()))
    # Decompress no more than what is needed, because a few bytes can stand for gigabytes.
    decompressor = lzma.LZMADecompressor()
    data = decompressor.decompress(body, max_length=size + 1)
    # Its checksum comes at the end.
    if len(data) != size or not decompressor.eof:
        what = f"{len(data)} bytes of codes, where {count} Gaussians have {size}"
        raise ValueError(what if len(data) != size else "codes that are cut short or damaged")
    tensors, at = {}, 0
    for name, described in fields.items():
        largest = None
        if name == "quats":
            largest = np.frombuffer(data[at : at + count], np.uint8)
            if largest.max() > 3:
                raise ValueError("quaternions without a largest number")
            at += count
        columns = len(described["low"])
        codes = _codes(data[at : at + 2 * columns * count], count, columns)
        at += 2 * columns * count
        if name == "means":
            codes = np.cumsum(codes, axis=0, dtype=np.uint16)
        levels = 2 ** described["bits"] - 1
        values = np.stack(
            [_dequantize(codes[:, k], levels, described["low"][k], described["high"][k]) for k in range(columns)], 1
        )
        values = values if largest is None else _from_smallest_three(largest, values)
        tensors[name] = torch.from_numpy(np.ascontiguousarray(values[:, 0] if name == "densities" else values))
    if header.get("coordinates") != _LATTICE:
        return GaussianField(tensors, offset=header.get("offset", (0.0,) * 3))
    grid = FieldSource.of_header(header["source"]).grid
    offset = world_offset(grid)
    return GaussianField(transformed(tensors, grid.moved([-v for v in offset]).matrix), offset=offset)


def _quantized_header(path: str | Path, content: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a quantised field, and the compressed rest."""
    if not content.startswith(_MAGIC):
        raise ValueError(f"{path} must be a quantised field, got a file that starts with {content[:9]!r}")
    try:
        at = len(_MAGIC) + 4
        (length,) = struct.unpack("<I", content[len(_MAGIC) : at])
        header = json.loads(content[at : at + length])
        if not isinstance(header, dict):
            raise ValueError(f"a header that is {type(header).__name__}")
        if header.pop("checksum", None) not in (None, zlib.crc32(json.dumps(header).encode())):  # older files have none
            raise ValueError("a header that is damaged (its checksum differs)")
        return header, content[at + length :]
    except (struct.error, ValueError, RecursionError) as error:
        raise ValueError(f"{path} must be a complete quantised field, got {error}") from error


def _smallest_three(quats: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index of the largest of |w|, |x|, |y|, |z|, (N,) uint8, and the other three, (N, 3), if that is made positive."""
    quats = quats / np.linalg.norm(quats, axis=1, keepdims=True)
    largest = np.abs(quats).argmax(1)
    rows = np.arange(len(quats))
    quats = quats * np.where(quats[rows, largest] < 0, -1.0, 1.0)[:, None]
    others = np.ones_like(quats, bool)
    others[rows, largest] = False
    return largest.astype(np.uint8), quats[others].reshape(-1, 3)


def _from_smallest_three(largest: np.ndarray, three: np.ndarray) -> np.ndarray:
    quats = np.empty((len(three), 4), np.float32)
    others = np.ones((len(three), 4), bool)
    rows = np.arange(len(three))
    others[rows, largest] = False
    quats[others] = three.reshape(-1)
    quats[rows, largest] = np.sqrt(np.clip(1.0 - (three.astype(np.float64) ** 2).sum(1), 0.0, None))
    return quats
