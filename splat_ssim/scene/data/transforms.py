"""Transforms files, as of Blender, nerfstudio and instant-ngp: JSON with a pose and a camera for each frame."""

from __future__ import annotations

import math
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from splat_ssim._json import parsed
from splat_ssim.scene.data.lens import Pinhole, check_pose
from splat_ssim.scene.data.scene import SceneError, shortened

#: Allowed values of camera_model.
MODELS = ("PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "OPENCV_FISHEYE", "FULL_OPENCV")
#: Names of the distortion of the models that a file may ask for, in COLMAP's order.
_DISTORTION = {
    "OPENCV": ("k1", "k2", "p1", "p2"),
    "FULL_OPENCV": ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6"),
    "OPENCV_FISHEYE": ("k1", "k2", "k3", "k4"),
}
#: Keys that give a focal length. If a frame has one of them, the file's are ignored.
_FOCAL = ("fl_x", "fl_y", "camera_angle_x", "camera_angle_y")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, or a SceneError that names the file and where it breaks."""
    try:
        content = parsed(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise SceneError(f"{path}: required a JSON file, got nothing there") from None
    except OSError as failed:
        raise SceneError(f"{path}: required a JSON file, got {failed.strerror}") from None
    except UnicodeDecodeError as broken:
        raise SceneError(f"{path}: required JSON in UTF-8, got another encoding: {broken}") from None
    # ValueError: a number with more digits than Python reads.
    except (ValueError, RecursionError) as broken:
        raise SceneError(f"{path}: required JSON, got a syntax error: {broken}") from None
    if not isinstance(content, dict):
        raise SceneError(f"{path}: required a JSON object, got {type(content).__name__}")
    return content


def read_frames(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]], list[str]]:
    """The JSON object of a transforms file, its frames, and notes on what was corrected.

    Each frame has a file_path with slashes and as its transform_matrix a checked (4, 4) float64 array.
    """
    content = read_json(path)
    _model(content, str(path))
    frames = content.get("frames")
    if not isinstance(frames, list) or not frames:
        raise SceneError(f"{path}: required a non-empty list 'frames', got {type(frames).__name__}")
    read, scaled = [], []
    for index, frame in enumerate(frames):
        if not isinstance(frame, dict) or not isinstance(frame.get("file_path"), str) or not frame["file_path"]:
            raise SceneError(f"{path}: frame {index}: required 'file_path', got {frame!r:.80}")
        try:
            matrix = np.asarray(frame.get("transform_matrix"), dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            matrix = np.empty(0)
        if matrix.shape != (4, 4):
            shape = None if matrix.shape == (0,) else matrix.shape
            raise SceneError(f"{path}: frame {index}: required a 4x4 'transform_matrix' of numbers, got shape {shape}")
        pose = check_pose(matrix, f"{path}: frame {index}: 'transform_matrix'")
        if pose is not matrix:
            scaled.append(frame["file_path"])
        read.append({**frame, "file_path": with_slashes(frame["file_path"]), "transform_matrix": pose})
    notes = [f"{path.name}: poses with a scale, which was removed: {shortened(scaled)}"] if scaled else []
    return content, read, notes


def check_unrepeated(frames: list[dict[str, Any]], path: Path) -> None:
    """Raises SceneError where two frames of `read_frames` have one image, which would count twice or train and test."""
    first: dict[str, int] = {}
    for index, frame in enumerate(frames):
        name = plain(frame["file_path"])
        if first.setdefault(name, index) != index:
            raise SceneError(f"{path}: frame {index}: required an image of its own, got {name} of frame {first[name]}")


def plain(name: str) -> str:
    """A path without ./ and backslashes, to compare."""
    return str(PurePosixPath(with_slashes(name)))


def with_slashes(path: str) -> str:
    """A path from a file that may have been written on Windows, with slashes."""
    return path.replace("\\", "/")


def read_path(content: dict[str, Any], key: str, where: str) -> str | None:
    """A path in a JSON object, None where the key is absent, null or empty."""
    value = content.get(key)
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise SceneError(f"{where}: required a path {key!r}, got {value!r:.80}")
    return with_slashes(value)


def read_number(content: dict[str, Any], key: str, path: Path | str, default: float | None = None) -> float:
    """A finite number of a JSON object, or a SceneError that names file and key."""
    value = content.get(key, default)
    try:
        finite = not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:
        finite = False
    if value is None or not finite:
        raise SceneError(f"{path}: required a number {key!r}, got {value!r:.80}")
    return float(value)


def opengl_to_viewmat(camtoworld: Any) -> np.ndarray:
    """(4, 4) float64 world to OpenCV camera from an OpenGL camera to world matrix: the Y and Z columns are negated."""
    matrix = np.asarray(camtoworld, dtype=np.float64).copy()
    matrix[:3, 1:3] *= -1
    return np.linalg.inv(matrix)


def frame_mask(frame: dict[str, Any], folder: Path, where: str) -> Path | None:
    """The mask that a frame of `read_frames` names, or None."""
    named = read_path(frame, "mask_path", where)
    return folder / named if named else None


def merged(content: dict[str, Any], frame: dict[str, Any]) -> dict[str, Any]:
    """The camera fields of the file, overridden by those of the frame."""
    if any(key in frame for key in _FOCAL):
        content = {key: value for key, value in content.items() if key not in _FOCAL}
    return {**content, **frame}


def read_camera(fields: dict[str, Any], where: str, size: tuple[int, int]) -> Any:
    """Returns the camera of a frame: a Pinhole, or a pycolmap camera if the lens distorts.

    Args:
        fields: Camera fields of the file, overridden by those of the frame.
        where: File and frame, for messages.
        size: (width, height) of the full image. The camera has it if the fields have no w and h.

    Raises:
        SceneError: A field has a wrong value, or states something that would be ignored.
    """
    width, height = (
        read_number(fields, key, where) if key in fields else float(pixels)
        for key, pixels in zip("wh", size, strict=True)
    )
    for key, value in (("w", width), ("h", height)):
        if not 1 <= value < 2**31 or value != int(value):
            raise SceneError(f"{where}: required a positive whole number {key!r}, got {value:g}")
    focal_x, focal_y = _focal_lengths(fields, where, width, height)
    center = [read_number(fields, "cx", where, 0.5 * width), read_number(fields, "cy", where, 0.5 * height)]
    model, distortion = _distortion(fields, where)
    if model == "PINHOLE":
        return Pinhole(int(width), int(height), focal_x, focal_y, *center)
    try:
        import pycolmap
    except ImportError:
        raise SceneError(f"{where}: undoing lens distortion needs the package pycolmap: pip install pycolmap") from None
    params = [focal_x, focal_y, *center, *distortion]
    return pycolmap.Camera(model=model, width=int(width), height=int(height), params=params)


def _focal_lengths(fields: dict[str, Any], where: str, width: float, height: float) -> tuple[float, float]:
    """Focal lengths along x and y in pixels, each from the length or the angle. If one is unknown, both are equal."""
    found: list[float | None] = []
    for axis, pixels in (("x", width), ("y", height)):
        if f"fl_{axis}" in fields:
            value = read_number(fields, f"fl_{axis}", where)
            if value <= 0:
                raise SceneError(f"{where}: required a positive focal length 'fl_{axis}', got {value:g}")
            found.append(value)
        elif f"camera_angle_{axis}" in fields:
            angle = read_number(fields, f"camera_angle_{axis}", where)
            if not 0 < angle < math.pi:
                raise SceneError(f"{where}: required camera_angle_{axis} in (0, pi) radians, got {angle:g}")
            found.append(0.5 * pixels / math.tan(0.5 * angle))
        else:
            found.append(None)
    focal_x, focal_y = found
    # The file may give a length in y and an angle in x. Pixels are square unless both axes are given.
    if focal_x is None and focal_y is None:
        raise SceneError(f"{where}: required a number 'camera_angle_x' or 'fl_x', got None")
    return (focal_x or focal_y or 0.0), (focal_y or focal_x or 0.0)


def _model(fields: dict[str, Any], where: str) -> str:
    model = fields.get("camera_model", "OPENCV")
    if model not in MODELS:
        raise SceneError(f"{where}: required a camera_model among {', '.join(MODELS)}, got {model!r}")
    return str(model)


def _distortion(fields: dict[str, Any], where: str) -> tuple[str, list[float]]:
    """COLMAP's model and its parameters beyond focal lengths and centre."""
    fisheye = fields.get("is_fisheye") is True and "camera_model" not in fields
    model = "OPENCV_FISHEYE" if fisheye else _model(fields, where)
    names = ("k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2")
    values = {name: read_number(fields, name, where, 0.0) for name in names}
    if model not in ("OPENCV_FISHEYE", "FULL_OPENCV"):
        # The simpler models are OPENCV with some terms 0. Only FULL_OPENCV has k3.
        model = "FULL_OPENCV" if values["k3"] else "OPENCV"
        for name in ("k4", "k5", "k6"):
            if values[name]:
                raise SceneError(f"{where}: required {name} = 0 for camera_model {model}, got {values[name]:g}")
    for name, value in values.items():
        if value and name not in _DISTORTION[model]:
            raise SceneError(f"{where}: required {name} = 0 for camera_model {model}, got {value:g}")
    distortion = [values[name] for name in _DISTORTION[model]]
    if model != "OPENCV_FISHEYE" and not any(distortion):
        return "PINHOLE", []
    return model, distortion
