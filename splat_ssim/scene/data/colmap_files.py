"""Checks the sizes of COLMAP's binary files before pycolmap reads them.

pycolmap trusts the counts in a file. If one is damaged, it reads on beyond the end, for hours or until memory runs out.

Source: the readers in COLMAP's src/colmap/scene/reconstruction_io_binary.cc.
"""

from __future__ import annotations

import struct
from pathlib import Path

from splat_ssim.scene.data.scene import SceneError

#: Identifier of a camera model in cameras.bin -> number of its parameters.
_PARAMETERS = {0: 3, 1: 4, 2: 4, 3: 5, 4: 8, 5: 8, 6: 12, 7: 5, 8: 4, 9: 5, 10: 12, 11: 16, 12: 4, 13: 5}
_PARAMETERS |= {14: 3, 15: 4, 16: 6, 17: 2}
_COUNT, _INT = struct.Struct("<Q"), struct.Struct("<i")


def check_binary(model: Path) -> None:
    """Checks that every binary file of a model is as long as its counts require.

    Raises:
        SceneError: A file has another length. The message names it.
    """
    for stem, end_of in _ENDS.items():
        path = model / f"{stem}.bin"
        if not path.is_file():
            continue
        try:
            content = path.read_bytes()
        except OSError as failed:
            raise SceneError(f"{path}: required a binary file of COLMAP, got {failed.strerror}") from None
        try:
            (count,) = _COUNT.unpack_from(content)
            # Even the smallest entry has 16 bytes, so a larger count is wrong and need not be followed.
            end = end_of(content, count) if count <= len(content) // 16 else -1
        except (struct.error, IndexError, ValueError, OverflowError):
            end = -1
        if end != len(content):
            raise SceneError(
                f"{path}: required a binary file of COLMAP whose counts fit its length, got {len(content)} bytes of "
                "others: the file is cut off or damaged"
            )


def _end_of_cameras(content: bytes, count: int) -> int:
    """Offset of the end of the last camera. An entry has id, model, width, height and parameters."""
    at = 8
    for _ in range(count):
        (model,) = _INT.unpack_from(content, at + 4)
        if model not in _PARAMETERS:
            raise ValueError(f"camera model {model}")
        at += 24 + 8 * _PARAMETERS[model]
    return at


def _end_of_images(content: bytes, count: int) -> int:
    """Offset of the end of the last image: id, pose, camera, name and its zero, points as x, y and id."""
    at = 8
    for _ in range(count):
        at = content.index(0, at + 64) + 1
        at += 8 + 24 * _COUNT.unpack_from(content, at)[0]
    return at


def _end_of_points(content: bytes, count: int) -> int:
    """Offset of the end of the last point: id, position, colour, error, track of pairs."""
    at, unpack = 8, _COUNT.unpack_from
    for _ in range(count):
        at += 51 + 8 * unpack(content, at + 43)[0]
    return at


def _end_of_rigs(content: bytes, count: int) -> int:
    """Offset of the end of the last rig: id, number of sensors, the first one, the others with an optional pose."""
    at = 8
    for _ in range(count):
        (sensors,) = _INT.unpack_from(content, at + 4)
        if not 0 <= sensors < len(content):
            raise ValueError(f"{sensors} sensors")
        at += 8 + (8 if sensors else 0)
        for _ in range(sensors - 1):
            at += 9 + (56 if content[at + 8] else 0)
    return at


def _end_of_frames(content: bytes, count: int) -> int:
    """Offset of the end of the last frame: id, rig, pose, number of images, and sensor and id of each."""
    at = 8
    for _ in range(count):
        (images,) = _INT.unpack_from(content, at + 64)
        if not 0 <= images < len(content):
            raise ValueError(f"{images} images")
        at += 68 + 16 * images
    return at


_ENDS = {
    "cameras": _end_of_cameras,
    "images": _end_of_images,
    "points3D": _end_of_points,
    "rigs": _end_of_rigs,
    "frames": _end_of_frames,
}
