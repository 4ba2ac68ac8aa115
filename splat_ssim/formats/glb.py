"""Binary glTF (.glb) with KHR_gaussian_splatting: float32, nothing is lost.

Source: the specification of KHR_gaussian_splatting, ratified by the Khronos Group, in its glTF registry: a primitive of
points whose attributes are positions, rotations xyzw, scales as they are (not their logarithms), opacities in [0, 1]
and a triple for each coefficient of the harmonics; the container is glTF 2.0's.

glTF's axes are left, up, front (y up, a model looks along z); those of PLY files count as right, down, front: x and y
change their sign.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from splat_ssim._version import __version__
from splat_ssim.formats.cloud import Cloud, FormatError, logits, require, to_bytes

_NAME = "KHR_gaussian_splatting"
_MAGIC, _JSON, _BINARY = 0x46546C67, 0x4E4F534A, 0x004E4942
_BYTE, _FLOAT, _ARRAY_BUFFER = 5121, 5126, 34962
_TYPES = {1: "SCALAR", 3: "VEC3", 4: "VEC4"}
#: Component type -> numpy's, and what 1 is where it is normalised.
_COMPONENTS = {5120: ("i1", 127), 5121: ("u1", 255), 5122: ("<i2", 32767), 5123: ("<u2", 65535), 5126: ("<f4", 1)}

#: What a node has where it moves nothing.
_UNMOVED: dict[str, list[float]] = {
    "matrix": np.eye(4).ravel().tolist(),
    "translation": [0, 0, 0],
    "rotation": [0, 0, 0, 1],
    "scale": [1, 1, 1],
}
#: What Gaussians are drawn as, and what their colours are.
_KIND = {"kernel": "ellipse", "colorSpace": "srgb_rec709_display"}


def _coefficient_names(degree: int) -> list[str]:
    return [f"{_NAME}:SH_DEGREE_{each}_COEF_{i}" for each in range(1, degree + 1) for i in range(2 * each + 1)]


def encode(cloud: Cloud, path: Path) -> bytes:
    """The bytes of a .glb file."""
    turned = cloud.flipped("xy")
    sizes = np.exp(np.minimum(turned.scales, 88.0).astype(np.float64))
    cloud.note_cut(turned.scales > 88, "scales were cut to e^88")
    if cloud.antialiased:
        cloud.notes.append(f"that the scene is antialiased is kept as an extra, which viewers ignore: {_NAME}")
    attributes: dict[str, np.ndarray] = {
        "POSITION": turned.means,
        # What viewers without the extension show: a cloud of coloured points.
        "COLOR_0": to_bytes(255 * np.column_stack([turned.colors, turned.alphas])),
        f"{_NAME}:ROTATION": turned.quats[:, [1, 2, 3, 0]],
        f"{_NAME}:SCALE": sizes,
        f"{_NAME}:OPACITY": turned.alphas[:, None],
        f"{_NAME}:SH_DEGREE_0_COEF_0": turned.sh0,
    }
    attributes.update({name: turned.shN[:, i] for i, name in enumerate(_coefficient_names(cloud.degree))})
    views: list[dict[str, Any]] = []
    accessors: list[dict[str, Any]] = []
    parts: list[bytes] = []
    start = 0
    for values in attributes.values():
        is_bytes = values.dtype == np.uint8
        part = np.ascontiguousarray(values, np.uint8 if is_bytes else "<f4").tobytes()
        views.append({"buffer": 0, "byteOffset": start, "byteLength": len(part), "target": _ARRAY_BUFFER})
        accessor = {"bufferView": len(accessors), "count": len(cloud), "type": _TYPES[values.shape[1]]}
        accessors.append({**accessor, "componentType": _BYTE if is_bytes else _FLOAT})
        if is_bytes:
            accessors[-1]["normalized"] = True
        parts.append(part)
        start += len(part)
    accessors[0].update(min=turned.means.min(0).tolist(), max=turned.means.max(0).tolist())
    kind = {**_KIND, "sortingMethod": "cameraDistance", "projection": "perspective"}
    primitive = {
        "attributes": {name: index for index, name in enumerate(attributes)},
        "mode": 0,
        "extensions": {_NAME: kind},
    }
    content: dict[str, Any] = {
        "asset": {"version": "2.0", "generator": f"splat_ssim {__version__}"},
        "extensionsUsed": [_NAME],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [primitive]}],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": start}],
    }
    # In the coordinates of the scene's files, as in scene.ply: not turned.
    extras: dict[str, Any] = {"offset": list(cloud.offset)} if any(cloud.offset) else {}
    if cloud.antialiased:
        extras["antialiased"] = True
    if extras:
        content["nodes"] = [{"mesh": 0, "extras": extras}]
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    body = b"".join(parts)
    head = struct.pack("<III", _MAGIC, 2, 12 + 8 + len(text) + 8 + len(body))
    return b"".join([head, struct.pack("<II", len(text), _JSON), text, struct.pack("<II", len(body), _BINARY), body])


def decode(data: bytes, path: Path) -> Cloud:
    """The Gaussians of the first such primitive of a .glb file."""
    content, body = _chunks(data, path)
    try:
        return _decode(content, body, path)
    except (KeyError, TypeError, IndexError, AttributeError) as missing:
        raise FormatError(f"{path}: required glTF of Gaussians, got one without {missing}") from None


def _chunks(data: bytes, path: Path) -> tuple[dict[str, Any], bytes]:
    """The JSON of a .glb file and its buffer."""
    require(len(data) >= 20, path, "a binary glTF file", f"{len(data)} bytes")
    magic, version, _, length, kind = struct.unpack_from("<5I", data)
    require(magic == _MAGIC and version == 2 and kind == _JSON, path, "a binary glTF 2.0 file", "other bytes")
    try:
        content = json.loads(data[20 : 20 + length])
    except (UnicodeDecodeError, json.JSONDecodeError) as broken:
        raise FormatError(f"{path}: required the JSON of glTF, got {broken}") from None
    place = 20 + length
    require(len(data) >= place + 8, path, "a binary glTF file with its buffer", "one that is cut off")
    size, kind = struct.unpack_from("<II", data, place)
    require(kind == _BINARY and len(data) >= place + 8 + size, path, f"a buffer of {size} bytes", "a file cut off")
    return content, data[place + 8 : place + 8 + size]


def _decode(content: dict[str, Any], body: bytes, path: Path) -> Cloud:
    found = [
        (index, primitive)
        for index, node in enumerate(content["nodes"])
        if "mesh" in node
        for primitive in content["meshes"][node["mesh"]]["primitives"]
        if _NAME in primitive.get("extensions", {})
    ]
    require(bool(found), path, f"a node with a primitive of {_NAME}", "none")
    place, primitive = found[0]
    _check_unmoved(content["nodes"], place, path)
    kind = primitive["extensions"][_NAME]
    packed = kind.get("extensions", {})
    require(not packed, path, "uncompressed attributes", ", ".join(packed))
    for key, known in _KIND.items():
        require(kind.get(key, known) == known, path, f"Gaussians of the {key} {known}", f"{kind.get(key)!r:.40}")

    def read(name: str) -> np.ndarray:
        return _accessor(content, primitive["attributes"][name], body, path)

    names = primitive["attributes"]
    degree = max(each for each in range(4) if all(name in names for name in _coefficient_names(each)))
    means, rotations = read("POSITION"), read(f"{_NAME}:ROTATION").astype(np.float64)
    lengths = np.linalg.norm(rotations, axis=1, keepdims=True)
    require(bool((lengths > 0).all() and np.isfinite(lengths).all()), path, "unit quaternions", "others")
    harmonics = [read(name) for name in _coefficient_names(degree)]
    extras = content["nodes"][place].get("extras") or {}
    offset = extras.get("offset", [0.0, 0.0, 0.0])
    right = isinstance(offset, list) and len(offset) == 3 and all(type(each) in (int, float) for each in offset)
    require(right, path, "an offset of three numbers", str(offset)[:40])
    cloud = Cloud(
        means=means,
        scales=np.log(np.maximum(read(f"{_NAME}:SCALE"), 1e-38)).astype(np.float32),
        quats=(rotations / lengths)[:, [3, 0, 1, 2]].astype(np.float32),
        opacities=logits(read(f"{_NAME}:OPACITY")[:, 0]),
        sh0=read(f"{_NAME}:SH_DEGREE_0_COEF_0"),
        shN=_stacked(harmonics, path) if harmonics else np.zeros((len(means), 0, 3), np.float32),
        antialiased=extras.get("antialiased") is True,
        offset=(float(offset[0]), float(offset[1]), float(offset[2])),
    ).flipped("xy")
    if len(found) > 1:
        cloud.notes.append(f"the first of {len(found)} primitives was read, the others were ignored")
    cloud.notes += [f"it names no {key}: taken as {known}" for key, known in _KIND.items() if key not in kind]
    ignored = sum(name.startswith(f"{_NAME}:SH_") for name in names) - (degree + 1) ** 2
    if ignored > 0:
        cloud.notes.append(f"harmonics above degree {degree} are not whole: {ignored} coefficients were ignored")
    return cloud


def _check_unmoved(nodes: list[dict[str, Any]], index: int, path: Path) -> None:
    """Raises FormatError where a node, or one that it hangs from, has a transformation: ours stand at the origin."""
    parents = {child: parent for parent, node in enumerate(nodes) for child in node.get("children", ())}
    seen: list[int] = []
    while index not in seen:
        for key, unmoved in _UNMOVED.items():
            moves = nodes[index].get(key, unmoved) != unmoved
            require(not moves, path, "nodes without a transformation", f"one with a {key}: node {index}")
        seen.append(index)
        index = parents.get(index, index)


def _stacked(parts: list[np.ndarray], path: Path) -> np.ndarray:
    require(len({part.shape for part in parts}) == 1, path, "harmonics of one length", "others")
    return np.stack(parts, 1)


def _accessor(content: dict[str, Any], index: int, body: bytes, path: Path) -> np.ndarray:
    """(count, components) float32 of an accessor."""
    accessor = content["accessors"][index]
    require("sparse" not in accessor, path, "dense accessors", "a sparse one")
    view = content["bufferViews"][accessor["bufferView"]]
    kind, unit = _COMPONENTS[accessor["componentType"]]
    width = {name: number for number, name in _TYPES.items()}[accessor["type"]]
    item = np.dtype((kind, (width,)))
    start = view.get("byteOffset", 0) + accessor.get("byteOffset", 0)
    stride, count = view.get("byteStride", item.itemsize), accessor["count"]
    require(
        type(count) is int and count > 0 and stride >= item.itemsize and start >= 0, path, "whole accessors", "others"
    )
    end = start + stride * (count - 1) + item.itemsize
    require(end <= len(body), path, f"a buffer of {end} bytes", f"{len(body)}")
    values = np.ndarray((count, width), np.dtype(kind), body, start, (stride, np.dtype(kind).itemsize))
    normalized = accessor.get("normalized", False)
    numbers: np.ndarray = (np.maximum(values / unit, -1) if normalized else values).astype(np.float32)
    return numbers
