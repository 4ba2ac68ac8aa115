"""PLY files in the layout of 3D Gaussian splatting, which splat viewers open; numpy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    """Writes Gaussians as a binary little-endian PLY, all at once (a temporary file is renamed).

    Properties in order: x y z nx ny nz f_dc_0…2 f_rest_0…(3(K-1)-1) opacity scale_0…2 rot_0…3. f_rest counts
    coefficients fastest, channels slowest; scales are logarithms, opacities logits, rotations unit quaternions wxyz.

    Args:
        path: File to write.
        splats: means (N, 3), scales (N, 3) logarithms, quats (N, 4) wxyz of any length, opacities (N,) logits,
            sh0 (N, 1, 3) and shN (N, K-1, 3), any float dtype, on any device.
        comments: Lines of the header, such as the offset of georeferenced coordinates.

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
    """Reads Gaussians from a PLY of the standard layout; other properties (normals) are passed over.

    Args:
        path: File to read, binary or text.

    Returns:
        float32 tensors on the CPU: means (N, 3), scales (N, 3) logarithms, quats (N, 4) wxyz, opacities (N,) logits,
        sh0 (N, 1, 3), shN (N, K-1, 3), with K = 1, 4, 9 or 16 by what the file holds.

    Raises:
        PlyError: The file is missing, is no PLY, is cut off, or lacks a property of a Gaussian.

    Example: see `save_ply`.
    """
    path = Path(path)
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
        return np.stack([vertices[name] for name in names], axis=1).astype(np.float32)

    shN = block(*(f"f_rest_{i}" for i in range(rest)))
    arrays = {
        "means": block("x", "y", "z"),
        "scales": block("scale_0", "scale_1", "scale_2"),
        "quats": block("rot_0", "rot_1", "rot_2", "rot_3"),
        "opacities": block("opacity")[:, 0],
        "sh0": block("f_dc_0", "f_dc_1", "f_dc_2")[:, None],
        "shN": shN.reshape(len(shN), 3, rest // 3).transpose(0, 2, 1),
    }
    return {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in arrays.items()}


def read_ply(path: str | Path) -> dict[str, np.ndarray]:
    """The scalar vertex properties of a PLY file, name -> (N,) array. The vertices must be the first element.

    Raises:
        PlyError: The file is missing, is no PLY, or is cut off.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as missing:
        raise PlyError(f"{path}: required a PLY file, got {missing.strerror}") from None
    end = data.find(b"end_header\n")
    if not data.startswith(b"ply") or end < 0:
        raise PlyError(f"{path}: required a PLY file, got one without its header")
    header, body = data[:end].decode("ascii", "replace").split("\n"), data[end + len(b"end_header\n") :]
    form, count, properties = _read_header(path, header)
    layout = np.dtype([(name, _BYTE_ORDERS[form] + kind) for name, kind in properties])
    if form == "ascii":
        rows = body.decode("ascii", "replace").split("\n")[:count]
        try:
            table = np.array([row.split()[: len(properties)] for row in rows], dtype=np.float64)
        except ValueError:
            table = np.empty((0, 0))
        if table.shape != (count, len(properties)):
            raise PlyError(f"{path}: required {count} rows of {len(properties)} numbers, got others")
        return {name: table[:, i].astype(kind) for i, (name, kind) in enumerate(properties)}
    if len(body) < count * layout.itemsize:
        raise PlyError(
            f"{path}: required {count * layout.itemsize} bytes of vertices, got {len(body)}: the file is cut off"
        )
    vertices = np.frombuffer(body, layout, count)
    return {name: vertices[name].astype(kind) for name, kind in properties}


def _read_header(path: Path, header: list[str]) -> tuple[str, int, list[tuple[str, str]]]:
    """Format, number of vertices, and (name, numpy type) of their properties."""
    form, count, element, properties = "", -1, "", []
    for line in (line.split() for line in header):
        if not line:
            continue
        if line[0] == "format" and len(line) > 1:
            form = line[1]
        elif line[0] == "element" and len(line) == 3:
            if element == "" and line[1] != "vertex":
                raise PlyError(f"{path}: required the element vertex first, got {line[1]}")
            element = line[1]
            if element == "vertex":
                count = int(line[2]) if line[2].isdigit() else -1
        elif line[0] == "property" and element == "vertex":
            if len(line) != 3 or line[1] not in _TYPES:
                raise PlyError(f"{path}: required scalar vertex properties, got {' '.join(line)!r}")
            properties.append((line[2], _TYPES[line[1]]))
    if form not in _BYTE_ORDERS or count < 0 or not properties:
        raise PlyError(f"{path}: required a format, a number of vertices and their properties, got a header without")
    return form, count, properties
