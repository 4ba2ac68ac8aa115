"""Tiny scenes on disk for the tests of readers and of the trainer."""

import json
import math
from pathlib import Path

import numpy as np
from PIL import Image


def camera_to_world(angle: float, elevation: float = 0.4, distance: float = 4.0) -> np.ndarray:
    """(4, 4) OpenGL camera to world that looks at the origin."""
    flat = math.cos(elevation)
    center = distance * np.array([math.cos(angle) * flat, math.sin(angle) * flat, math.sin(elevation)])
    back = center / np.linalg.norm(center)
    right = np.cross([0, 0, 1], back)
    right /= np.linalg.norm(right)
    matrix = np.eye(4)
    matrix[:3] = np.stack([right, np.cross(back, right), back, center], 1)
    return matrix


def disc(size: int, color: tuple[int, int, int] = (200, 80, 40)) -> np.ndarray:
    """(size, size, 4) uint8: an opaque disc in transparent surroundings."""
    image = np.zeros((size, size, 4), np.uint8)
    rows, columns = np.mgrid[:size, :size] + 0.5
    image[(rows - size / 2) ** 2 + (columns - size / 2) ** 2 < (size / 4) ** 2] = (*color, 255)
    return image


def write_blender(folder: Path, *, train: int = 6, test: int = 2, size: int = 32) -> Path:
    """Writes a ball without a background as a Blender scene."""
    for split, count in (("train", train), ("test", test)):
        (folder / split).mkdir(parents=True, exist_ok=True)
        frames = []
        for index in range(count):
            Image.fromarray(disc(size)).save(folder / split / f"r_{index}.png")
            matrix = camera_to_world(2 * math.pi * (index + 0.5 * (split == "test")) / count)
            frames.append({"file_path": f"./{split}/r_{index}", "transform_matrix": matrix.tolist()})
        content = {"camera_angle_x": 0.69, "frames": frames}
        (folder / f"transforms_{split}.json").write_text(json.dumps(content))
    return folder


def write_nerfstudio(folder: Path, *, count: int = 9, size: int = 32, **extra: object) -> Path:
    """Writes the ball as a nerfstudio scene. `extra` is added to transforms.json."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    frames = []
    for index in range(count):
        Image.fromarray(disc(size)[..., :3]).save(folder / "images" / f"{index:02d}.png")
        matrix = camera_to_world(2 * math.pi * index / count)
        frames.append({"file_path": f"images/{index:02d}.png", "transform_matrix": matrix.tolist()})
    content = {"fl_x": 45.0, "fl_y": 44.0, "cx": 16.0, "cy": 15.0, "w": size, "h": size, "frames": frames, **extra}
    (folder / "transforms.json").write_text(json.dumps(content))
    return folder


def write_colmap(folder: Path, *, camera: str = "PINHOLE 64 48 40 41 32 24", points: int = 3) -> Path:
    """Writes a COLMAP text model with one camera and two 64×48 images, which images_2 has at half the size."""
    model = folder / "sparse" / "0"
    model.mkdir(parents=True)
    for name, scale in (("images", 1), ("images_2", 2)):
        (folder / name).mkdir()
        for index in range(2):
            pixels = np.full((48 // scale, 64 // scale, 3), 60 * (index + 1), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    (model / "cameras.txt").write_text(f"1 {camera}\n")
    (model / "images.txt").write_text("1 1 0 0 0 0.1 0.2 0.3 1 0.png\n\n2 1 0 0 0 1 0 0 1 1.png\n\n")
    rows = [f"{index + 1} {index} {index} 5 255 128 0 0.5" for index in range(points)]
    (model / "points3D.txt").write_text("\n".join(rows) + "\n")
    return folder
