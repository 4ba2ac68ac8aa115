"""PLY files in the layout of 3D Gaussian splatting, which splat viewers open; numpy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from splat_ssim._files import replacing
from splat_ssim.errors import UserError

#: Value of the constant spherical harmonic: colour = 0.5 + SH0 · sh0.
SH0 = 0.28209479177387814

#: Scalar types of the PLY format and their older names.
_TYPES = {
    **{"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4"},
    **{"int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4"},
    **{"float": "f4", "double": "f8", "float32": "f4", "float64": "f8"},
}
_BYTE_ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": "="}


class PlyError(UserError):
    """A file is not the PLY that was asked for; the message names it and what was expected."""


def save_ply(path: str | Path, splats: Mapping[str, Tensor], *, comments: Sequence[str] = ()) -> None:
    """Writes Gaussians atomically as a binary little-endian PLY.

    Properties in order: x y z nx ny nz f_dc_0…2 f_rest_0…(3(K-1)-1) opacity scale_0…2 rot_0…3. f_rest counts
    coefficients fastest, channels slowest; scales are logarithms, opacities logits, rotations unit quaternions wxyz.

    Args:
        path: File to write.
        splats: Tensors: means (N, 3), scales (N, 3) logarithms, quats (N, 4) wxyz of any length, opacities (N,) logits,
            sh0 (N, 1, 3) and shN (N, K-1, 3), any float dtype, on any device.
        comments: Comment lines of the header, such as the offset of georeferenced coordinates.

    Raises:
        ValueError: A tensor is missing or has another shape.

    Source: Kerbl et al., 3D Gaussian Splatting, 2023: the layout of its point_cloud.ply.

    Example:
        >>> import tempfile, torch
        >>> import splat_ssim
        >>> shapes = {"means": (3,), "scales": (3,), "quats": (4,), "opacities": (), "sh0": (1, 3), "shN": (8, 3)}
        >>> splats = {name: torch.ones(5, *shape) for name, shape in shapes.items()}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     splat_ssim.save_ply(f"{folder}/scene.ply", splats)
        ...     splat_ssim.load_ply(f"{folder}/scene.ply")["shN"].shape
        torch.Size([5, 8, 3])
    """
    columns = _columns(splats)
    layout = np.dtype([(name, "<f4") for name in columns])
    vertices = np.empty(len(columns["x"]), layout)
    for name, values in columns.items():
        vertices[name] = values
    header = ["ply", "format binary_little_endian 1.0", *(f"comment {line}" for line in comments)]
    header += [f"element vertex {len(vertices)}"]
    header += [f"property float {name}" for name in columns]
    with replacing(path) as file:
        file.write("\n".join([*header, "end_header", ""]).encode())
        # Not by tofile, which keeps to itself why the system refused.
        file.write(vertices.view(np.uint8).data)


def _columns(splats: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Property name -> (N,) values, in the order of the file."""
    names = ("means", "scales", "quats", "opacities", "sh0", "shN")
    missing = [name for name in names if name not in splats]
    if missing:
        raise ValueError(f"splats must have {', '.join(names)}, got none of {', '.join(missing)}")
    values = {name: splats[name].detach().cpu().double().numpy() for name in names}
    count = len(values["means"])
    rest = values["shN"].shape[1] if values["shN"].ndim == 3 else -1
    shapes = {"means": (3,), "scales": (3,), "quats": (4,), "opacities": (), "sh0": (1, 3), "shN": (rest, 3)}
    for name, shape in shapes.items():
        if values[name].shape != (count, *shape):
            raise ValueError(f"{name} must have shape {(count, *shape)}, got {values[name].shape}")
    quats = values["quats"] / np.maximum(np.linalg.norm(values["quats"], axis=1, keepdims=True), 1e-12)
    groups = {
        ("x", "y", "z"): values["means"],
        ("nx", "ny", "nz"): np.zeros((count, 3)),
        tuple(f"f_dc_{i}" for i in range(3)): values["sh0"][:, 0],
        tuple(f"f_rest_{i}" for i in range(3 * rest)): values["shN"].transpose(0, 2, 1).reshape(count, 3 * rest),
        ("opacity",): values["opacities"][:, None],
        tuple(f"scale_{i}" for i in range(3)): values["scales"],
        tuple(f"rot_{i}" for i in range(4)): quats,
    }
    return {name: block[:, i] for group, block in groups.items() for i, name in enumerate(group)}


def load_ply(path: str | Path) -> dict[str, Tensor]:
    """Reads Gaussians from a PLY of the standard layout. Other properties, such as normals, are ignored.

    Positions in double precision are rounded to float32; `splat_ssim.formats.read_splats` keeps them.

    Args:
        path: File to read, binary or text.

    Returns:
        float32 tensors on the CPU: means (N, 3), scales (N, 3) logarithms, quats (N, 4) wxyz, opacities (N,) logits,
        sh0 (N, 1, 3), shN (N, K-1, 3). The file decides whether K is 1, 4, 9 or 16.

    Raises:
        PlyError: The file is missing, is not a PLY, is truncated, or lacks a property of a Gaussian.

    Example: see `save_ply`.
    """
    splats = read_gaussians(Path(path))
    return {**splats, "means": splats["means"].float()}


def read_gaussians(path: Path) -> dict[str, Tensor]:
    """As `load_ply`, but with means in float64 where the file has doubles."""
    vertices = read_ply(path)
    rest = sum(name.startswith("f_rest_") for name in vertices)
    if rest not in (0, 9, 24, 45):
        raise PlyError(f"{path}: required 0, 9, 24 or 45 properties f_rest_*, got {rest}")

    def block(*names: str) -> np.ndarray:
        missing = [name for name in names if name not in vertices]
        if missing:
            raise PlyError(
                f"{path}: required the vertex property {missing[0]} of a Gaussian, got {', '.join(vertices)}"
            )
        if not names:
            return np.zeros((len(next(iter(vertices.values()))), 0), np.float32)
        return np.stack([vertices[name] for name in names], axis=1)

    shN = block(*(f"f_rest_{i}" for i in range(rest)))
    arrays = {
        "means": block("x", "y", "z"),
        "scales": block("scale_0", "scale_1", "scale_2"),
        "quats": block("rot_0", "rot_1", "rot_2", "rot_3"),
        "opacities": block("opacity")[:, 0],
        "sh0": block("f_dc_0", "f_dc_1", "f_dc_2")[:, None],
        "shN": shN.reshape(len(shN), 3, rest // 3).transpose(0, 2, 1),
    }
    # Only positions may need more.
    kinds = {"means": np.float64 if arrays["means"].dtype == np.float64 else np.float32}
    return {
        name: torch.from_numpy(np.ascontiguousarray(values, kinds.get(name, np.float32)))
        for name, values in arrays.items()
    }


def read_ply(path: str | Path) -> dict[str, np.ndarray]:
    """Reads the scalar vertex properties of a PLY file: name -> (N,) array. Other elements are ignored.

    Raises:
        PlyError: The file is missing, is not a PLY, is truncated, holds more than its header counts, or has another
            format for Gaussians, which the message names.
    """
    path = Path(path)
    header, body = _opened(path)
    form, elements = _read_header(path, header)
    if any(name == "packed_position" for element in elements for name, _ in element.properties):
        raise PlyError(
            f"{path}: required an uncompressed PLY, got SuperSplat's compressed PLY: convert it (scripts/export.py)"
        )
    if form == "ascii":
        rows = [row.split() for row in body.decode("ascii", "replace").split("\n") if row.strip()]
        start = sum(element.count for element in elements if element.before)
        vertices = next(element for element in elements if element.name == "vertex")
        counted = sum(element.count for element in elements)
        if len(rows) > counted:
            raise PlyError(f"{path}: required {counted} rows, as its header counts them, got {len(rows)}")
        properties = vertices.properties
        try:
            table = np.array(rows[start : start + vertices.count], dtype=np.float64)
        except ValueError:
            table = np.empty((0, 0))
        if vertices.count == 0:
            table = np.empty((0, len(properties)))
        if table.shape != (vertices.count, len(properties)):
            raise PlyError(f"{path}: required {vertices.count} rows of {len(properties)} numbers, got others")
        return {name: table[:, i].astype(kind) for i, (name, kind) in enumerate(properties)}
    offset = 0
    for element in elements:
        layout = np.dtype([(name, _BYTE_ORDERS[form] + kind) for name, kind in element.properties])
        if not element.before:
            break
        if element.has_list:
            raise PlyError(f"{path}: required the vertices before elements with lists, got {element.name} first")
        offset += element.count * layout.itemsize
    count, present = element.count, max(0, len(body) - offset)
    if present < count * layout.itemsize:
        raise PlyError(
            f"{path}: required {count * layout.itemsize} bytes of vertices, got {present}: the file is cut off"
        )
    _check_end(path, elements, body)
    vertices_read = np.frombuffer(body, layout, count, offset)
    return {name: vertices_read[name].astype(kind) for name, kind in element.properties}


def ply_elements(path: str | Path) -> dict[str, dict[str, np.ndarray]]:
    """Reads every element of a binary PLY file without lists, such as SuperSplat's compressed one.

    Returns:
        Element -> property -> (count,) array, in the order of the file.

    Raises:
        PlyError: The file is missing, is not a PLY, is truncated, is text, or has lists.
    """
    path = Path(path)
    header, body = _opened(path)
    form, elements = _read_header(path, header)
    if form == "ascii" or any(element.has_list for element in elements):
        raise PlyError(f"{path}: required a binary PLY without lists, got {'text' if form == 'ascii' else 'lists'}")
    found, offset = {}, 0
    for element in elements:
        layout = np.dtype([(name, _BYTE_ORDERS[form] + kind) for name, kind in element.properties])
        if len(body) < offset + element.count * layout.itemsize:
            raise PlyError(f"{path}: required {element.count} rows of {element.name}, got fewer: the file is cut off")
        rows = np.frombuffer(body, layout, element.count, offset)
        found[element.name] = {name: rows[name].astype(kind) for name, kind in element.properties}
        offset += element.count * layout.itemsize
    _check_end(path, elements, body)
    return found


def _check_end(path: Path, elements: Sequence[_Element], body: bytes) -> None:
    """Raises PlyError where more follows than the header counts. The length of elements with lists is not known."""
    if any(element.has_list for element in elements):
        return
    counted = sum(each.count * sum(np.dtype(kind).itemsize for _, kind in each.properties) for each in elements)
    # Some writers end the file with a line break.
    if body[counted:].strip():
        raise PlyError(f"{path}: required {counted} bytes after its header, as that counts them, got {len(body)}")


def ply_comments(path: str | Path) -> list[str]:
    """Reads the comments in a PLY file's header. A scene with large coordinates has one of the form `offset x y z`.

    Raises:
        PlyError: The file is missing or is not a PLY.
    """
    lines = [line.strip() for line in _opened(Path(path))[0]]
    return [line.removeprefix("comment").strip() for line in lines if line.startswith("comment")]


def ply_count(path: str | Path) -> int:
    """Returns the number of vertices that the header of a PLY file states. Nothing after the header is read.

    Raises:
        PlyError: The file is missing or is not a PLY.
    """
    path = Path(path)
    _, elements = _read_header(path, _opened(path)[0])
    return next(element.count for element in elements if element.name == "vertex")


def _opened(path: Path) -> tuple[list[str], bytes]:
    """Returns the lines of a file's header and the rest of the file.

    Raises:
        PlyError: The file is missing or is not a PLY.
    """
    try:
        data = path.read_bytes()
    except OSError as missing:
        raise PlyError(f"{path}: required a PLY file, got {missing.strerror}") from None
    return _cut(path, data)


#: How gzip begins, which SPZ files are.
_GZIP = b"\x1f\x8b"


def _cut(path: Path, data: bytes) -> tuple[list[str], bytes]:
    """The lines of the header and what follows it."""
    for end in (b"end_header\n", b"end_header\r\n"):
        place = data.find(end)
        if data.startswith(b"ply") and place >= 0:
            return data[:place].decode("ascii", "replace").splitlines(), data[place + len(end) :]
    kinds = {".spz": "SPZ", ".splat": "a .splat file", ".ksplat": "a .ksplat file", ".sog": "SOG"}
    kind = kinds.get(path.suffix.lower())
    if kind is None and data.startswith((_GZIP, b"NGSP")):
        kind = "SPZ or another compressed file"
    if kind is not None:
        raise PlyError(
            f"{path}: required a PLY file, got {kind}: convert it to an uncompressed PLY (scripts/export.py)"
        )
    raise PlyError(f"{path}: required a PLY file, got one without its header")


@dataclass
class _Element:
    """An element of a PLY header: its scalar properties (name, numpy type), and whether it precedes the vertices."""

    name: str
    count: int
    before: bool
    properties: list[tuple[str, str]] = field(default_factory=list)
    has_list: bool = False


def _read_header(path: Path, header: list[str]) -> tuple[str, list[_Element]]:
    """Format and elements, of which one is the vertices."""
    form = ""
    elements: list[_Element] = []
    for line in (line.split() for line in header):
        if not line:
            continue
        if line[0] == "format" and len(line) > 1:
            form = line[1]
        elif line[0] == "element" and len(line) == 3:
            before = line[1] != "vertex" and all(element.before for element in elements)
            elements.append(_Element(line[1], int(line[2]) if line[2].isdigit() and len(line[2]) < 19 else -1, before))
        elif line[0] == "property" and elements:
            element = elements[-1]
            if len(line) == 5 and line[1] == "list" and element.name != "vertex":
                element.has_list = True
            elif len(line) != 3 or line[1] not in _TYPES:
                raise PlyError(f"{path}: required scalar vertex properties, got {' '.join(line)!r}")
            else:
                element.properties.append((line[2], _TYPES[line[1]]))
    vertices = next((element for element in elements if element.name == "vertex"), None)
    if form not in _BYTE_ORDERS or vertices is None or not vertices.properties or min(e.count for e in elements) < 0:
        raise PlyError(f"{path}: required a format, a number of vertices and their properties, got a header without")
    names = [name for name, _ in vertices.properties]
    if len(set(names)) < len(names):
        raise PlyError(f"{path}: required vertex properties of different names, got {', '.join(names)}")
    return form, elements
