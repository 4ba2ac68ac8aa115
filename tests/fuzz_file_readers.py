"""The kinds of files to damage, and the code with which a user's command reads each of them."""

from __future__ import annotations

import dataclasses
import io
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image

import splat_ssim.image
import splat_ssim.volume  # noqa: F401  workers are forked and find the tasks imported
from splat_ssim.errors import UserError, user_errors
from splat_ssim.ply import load_ply, save_ply
from splat_ssim.registry import get_loss
from splat_ssim.scene.config import SceneConfig
from splat_ssim.scene.data import load_scene
from splat_ssim.scene.training import SceneTask
from splat_ssim.trainer.cli import main as train
from splat_ssim.trainer.cli import parse
from splat_ssim.trainer.folder import read_config
from splat_ssim.trainer.loop import Run, reopen
from splat_ssim.volume import load_volume
from splat_ssim.volume.codec import compress_volume
from splat_ssim.volume.codec.commands import decompress
from splat_ssim.volume.rebuild import rebuild
from tests import fuzz_file_changes as changes
from tests.scenes import write_blender, write_colmap, write_nerfstudio
from tests.volumes import save

ROOT = Path(__file__).resolve().parent.parent

Change = Callable[[random.Random, bytes], bytes]


@dataclasses.dataclass(frozen=True)
class Target:
    """A kind of file, and how it is damaged and read.

    Attributes:
        name: Name of the kind.
        weight: Relative frequency of the kind.
        files: Valid files, each in a folder of its own, as paths below the seeds' folder.
        change: Function that makes a damaged file from a valid one.
        read: Function that reads the file at a path, within its folder.
    """

    name: str
    weight: int
    files: tuple[str, ...]
    change: Change
    read: Callable[[Path, random.Random], object]


# --- PLY


def _text_head(content: bytes) -> int:
    """Index of the first byte after the header of a PLY."""
    return content.find(b"end_header") + 11


def _change_ply(source: random.Random, content: bytes) -> bytes:
    head = _text_head(content)
    kind = source.randrange(5)
    if kind < 2:
        return changes.change_words(source, content, head)
    if kind == 2:
        return changes.change_lines(source, content, head)
    return changes.change_bytes(source, content if kind == 3 else content[:head]) + (
        b"" if kind == 3 else content[head:]
    )


def _write_clouds(folder: Path) -> None:
    shapes = {"means": (3,), "scales": (3,), "quats": (4,), "opacities": (), "sh0": (1, 3), "shN": (3, 3)}
    splats = {name: torch.rand(7, *shape) for name, shape in shapes.items()}
    (folder / "splats").mkdir(parents=True)
    save_ply(folder / "splats" / "scene.ply", splats, comments=["offset 1 2 3"])
    names = [*"xyz", "red", "green", "blue"]
    head = "ply\nformat {}\nelement vertex 5\n" + "".join(
        f"property {'float' if name in 'xyz' else 'uchar'} {name}\n" for name in names
    )
    faces = "element face 1\nproperty list uchar int vertex_indices\nend_header\n"
    rows = np.random.default_rng(0).random((5, 3)).astype("<f4")
    colors = np.arange(15, dtype=np.uint8).reshape(5, 3)
    binary = b"".join(row.tobytes() + color.tobytes() for row, color in zip(rows, colors, strict=True))
    text = "".join(" ".join(map(str, [*row, *color])) + "\n" for row, color in zip(rows, colors, strict=True))
    contents = {
        "binary": (head.format("binary_little_endian 1.0") + faces).encode() + binary + b"\3\0\0\0\0\1\0\0\0\2\0\0\0",
        "ascii": (head.format("ascii 1.0") + faces + text + "3 0 1 2\n").encode(),
    }
    for name, content in contents.items():
        write_nerfstudio(folder / f"cloud_{name}", count=3, size=8, ply_file_path="cloud.ply")
        (folder / f"cloud_{name}" / "cloud.ply").write_bytes(content)
    chunks = "element chunk 1\nproperty float min_x\nelement vertex 2\nproperty uint packed_position\n"
    packed = f"ply\nformat binary_little_endian 1.0\n{chunks}property uint packed_color\nend_header\n"
    (folder / "packed").mkdir()
    (folder / "packed" / "scene.ply").write_bytes(packed.encode() + bytes(20))
    (folder / "zipped").mkdir()
    (folder / "zipped" / "scene.ply").write_bytes(b"\x1f\x8b" + bytes(30))


# --- scenes


def _change_json(source: random.Random, content: bytes) -> bytes:
    kind = source.randrange(10)
    if kind < 7:
        return changes.to_json(source, changes.change_tree(source, json.loads(content)))
    return (changes.change_words, changes.change_bytes, changes.change_lines)[kind - 7](source, content)


def _write_scenes(folder: Path) -> None:
    write_blender(folder / "blender", train=3, test=1, size=8)
    write_nerfstudio(folder / "nerfstudio", count=4, size=8, w=8, h=8, cx=4.0, cy=4.0, fl_x=9.0, fl_y=9.0)
    write_nerfstudio(folder / "lens", count=3, size=8, w=8, h=8, camera_model="OPENCV", k1=0.01, p1=0.001)
    path = folder / "lens" / "transforms.json"
    content = json.loads(path.read_text())
    content |= {"train_filenames": ["images/00.png", "images/01.png"], "test_filenames": ["images/02.png"]}
    content["frames"][0] |= {"mask_path": "mask.png", "fl_x": 8.0, "w": 8, "h": 8}
    path.write_text(json.dumps(content))
    Image.fromarray(np.full((8, 8), 255, np.uint8)).save(folder / "lens" / "mask.png")
    write_colmap(folder / "colmap_text", camera="SIMPLE_RADIAL 64 48 40 32 24 0.05", points=4)
    images = folder / "colmap_text" / "sparse" / "0" / "images.txt"
    images.write_text(
        "# IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME\n1 1 0 0 0 0.1 0.2 0.3 1 0.png\n3 4 1 5 6 2\n"
        "2 1 0 0 0 1 0 0 1 1.png\n3 4 1\n"
    )
    points = folder / "colmap_text" / "sparse" / "0" / "points3D.txt"
    points.write_text("1 0 0 5 255 128 0 0.5 1 0 2 0\n2 1 1 5 255 128 0 0.5 1 1\n3 2 2 5 9 9 9 0.1\n")
    write_colmap(folder / "colmap_binary", points=4)
    import pycolmap

    model = folder / "colmap_binary" / "sparse" / "0"
    for path in model.iterdir():
        path.unlink()
    pycolmap.Reconstruction(str(folder / "colmap_text" / "sparse" / "0")).write_binary(str(model))


def _read_scene(path: Path, source: random.Random) -> None:
    folder = path.parents[2] if path.parent.parent.name == "sparse" else path.parent
    load_scene(folder, factor=source.choice([1, 1, 1, 2]))


def _train_scene(path: Path, source: random.Random) -> None:
    """Reads the scene, creates Gaussians and makes a training step."""
    folder = path.parents[2] if path.parent.parent.name == "sparse" else path.parent
    config = SceneConfig(data_dir=folder, steps=3)
    config.model.init_count, config.output.video = 40, False
    SceneTask(config).step(0)


def _change_colmap(source: random.Random, content: bytes) -> bytes:
    """Changes bytes of a binary file, or words and lines of a text."""
    if b"\0" in content:
        return changes.change_bytes(source, content)
    return source.choice([changes.change_words, changes.change_lines, changes.change_bytes])(source, content)


# --- configs


def _change_yaml(source: random.Random, content: bytes) -> bytes:
    kind = source.randrange(10)
    if kind < 6:
        tree = changes.change_tree(source, yaml.safe_load(content))
        try:
            return changes.to_json(source, tree) if kind < 3 else yaml.safe_dump(tree).encode("utf-8", "surrogatepass")
        except (yaml.YAMLError, UnicodeError):
            return changes.to_json(source, tree)
    if kind == 6:
        depth = source.choice([5, 9, 25])
        bomb = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, depth))
        return source.choice(
            [
                f"{bomb}steps: *a{depth - 1}\n".encode(),
                f"loss_kwargs: {{{bomb.replace(chr(10), ', ')} b: *a{depth - 1}}}\n".encode(),
                b"steps: &a [*a]\n",
                b"loss_kwargs: &a {x: *a}\n",
                b"<<: &a {<<: *a}\n",
                b"? [a, b]\n: 1\n",
                b"? {a: b}\n: 1\n",
                b"steps: !!python/object/apply:os.system [true]\n",
                b"steps: 2020-13-45\n",
                b"steps: 2020-99-01 00:00:00\n",
                b"steps: !!int x\n",
                b"steps: !!timestamp x\n",
                b"steps: !!binary x\n",
                b"steps: 1:99:99\n",
                b"steps: 0b_\n",
                b"steps: 0x_\n",
                b"steps: ._\n",
                b"'='\n",
                b"=: 1\n",
            ]
        )
    return (changes.change_words, changes.change_bytes, changes.change_lines)[kind - 7](source, content)


def _write_configs(folder: Path) -> None:
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        (folder / path.stem).mkdir(parents=True)
        shutil.copy(path, folder / path.stem / "config.yaml")


def _read_config(path: Path, source: random.Random) -> None:
    """Reads a config by the command line, which is slow, or by the function that it calls, as drawn."""
    if source.random() < 0.01:
        _, config = parse(["--config", str(path)])
    else:
        _, config = read_config(path.parent)
    try:
        config = config.resolved()
        with user_errors():
            get_loss(config.loss, **config.loss_kwargs)
    except UserError as refused:
        # A value out of range may also come from the command line, so the message names the option, not the file.
        raise UserError(f"{path}: {refused}") from None


# --- checkpoints


def _change_checkpoint(source: random.Random, content: bytes) -> bytes:
    if source.random() < 0.35:
        return changes.change_bytes(source, content)
    state = torch.load(io.BytesIO(content), weights_only=True)
    state = changes.change_state(source, state)
    file = io.BytesIO()
    torch.save(state, file, _use_new_zipfile_serialization=source.random() > 0.02)
    return file.getvalue()


def _write_runs(folder: Path) -> None:
    write_blender(folder / "data" / "ball", train=3, test=1, size=12)
    save(folder / "data" / "scan.npz", np.random.default_rng(0).random((14, 12, 16)).astype(np.float32))
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (10, 12, 3), np.uint8)).save(folder / "data" / "a.png")
    plain = ["--steps", "30", "--output.no-progress"]
    scene = ["--data-dir", str(folder / "data" / "ball"), "--model.init-count", "20", "--output.no-video"]
    scene += ["--strategy.budget", "40", "--strategy.refine-start", "3", "--output.images", "0", "--output.no-ply"]
    volume = ["--config", "configs/voxel_mri.yaml", "--data-dir", str(folder / "data" / "scan.npz")]
    volume += ["--output.no-video"]
    taming = ["--strategy.refine-every", "9"]
    image = ["--config", "configs/image.yaml", "--data-dir", str(folder / "data" / "a.png"), "--model.budget", "12"]
    for name, line in {
        "scene": [*scene, "--strategy.refine-every", "5"],
        "taming": [*scene, "--strategy.name", "taming", "--optimizer.name", "sparse_adam", *taming],
        "volume": [*volume, "--strategy.budget", "20"],
        "volume_capped": [*volume, "--strategy.budget", "20", "--strategy.name", "capped"],
        "grid": [*volume, "--model.name", "grid", "--strategy.budget", "20"],
        "image": image,
    }.items():
        train([*line, *plain, "--result-dir", str(folder / name)])
    packed = compress_volume(load_volume(folder / "data" / "scan.npz"), bytes=700, steps=20, device="cpu")
    (folder / "volume" / "scan.gsv").write_bytes(packed.content)


_RUNS: dict[Path, Run] = {}


def _read_checkpoint(path: Path, source: random.Random) -> None:
    """Reads a checkpoint as --resume does, with a task that already exists, and makes a step."""
    folder = path.parent
    if folder not in _RUNS:
        damaged = path.read_bytes()
        path.write_bytes((folder / "whole.pt").read_bytes())
        _RUNS[folder] = reopen(folder)
        path.write_bytes(damaged)
    if source.random() < 0.01:  # the whole command except for the training, which is slow
        task, config = parse(["--resume", str(folder)])
        Run(task(config))
    one = _RUNS[folder]
    one.go_on()
    if one.step <= one.config.steps:
        one.task.step(one.step)


# --- fitted Gaussians


def _change_fitted(source: random.Random, content: bytes) -> bytes:
    """Damages a PLY, or a quantised field, whose header is JSON."""
    if content.startswith(b"ply"):
        return _change_ply(source, content)
    if source.random() < 0.4:
        return changes.change_bytes(source, content)
    size = int.from_bytes(content[9:13], "little")
    head = changes.to_json(source, changes.change_tree(source, json.loads(content[13 : 13 + size])))
    return content[:9] + len(head).to_bytes(4, "little") + head + content[13 + size :]


def _read_fitted(path: Path, source: random.Random) -> None:
    rebuild(path, path.parent / "out.npy")


TARGETS = [
    Target(
        "PLY",
        3,
        tuple(f"clouds/{name}/scene.ply" for name in ("splats", "splats", "packed", "zipped")),
        _change_ply,
        lambda path, source: load_ply(path),
    ),
    Target("cloud", 3, ("clouds/cloud_binary/cloud.ply", "clouds/cloud_ascii/cloud.ply"), _change_ply, _read_scene),
    Target(
        "JSON",
        6,
        (
            "scenes/blender/transforms_train.json",
            "scenes/blender/transforms_test.json",
            "scenes/nerfstudio/transforms.json",
            "scenes/lens/transforms.json",
        ),
        _change_json,
        _read_scene,
    ),
    Target(
        "COLMAP",
        6,
        tuple(
            f"scenes/colmap_binary/sparse/0/{name}.bin" for name in ("cameras", "images", "points3D", "rigs", "frames")
        )
        + tuple(f"scenes/colmap_text/sparse/0/{name}.txt" for name in ("cameras", "images", "points3D")),
        _change_colmap,
        _read_scene,
    ),
    Target(
        "YAML",
        4,
        tuple(f"configs/{path.stem}/config.yaml" for path in sorted((ROOT / "configs").glob("*.yaml"))),
        _change_yaml,
        _read_config,
    ),
    Target(
        "checkpoint",
        5,
        tuple(f"runs/{name}/checkpoint.pt" for name in ("scene", "taming", "volume", "volume_capped", "grid", "image")),
        _change_checkpoint,
        _read_checkpoint,
    ),
    Target(
        "fitted",
        2,
        ("runs/volume/gaussians.quantized", "runs/volume/gaussians.ply", "runs/image/gaussians.quantized"),
        _change_fitted,
        _read_fitted,
    ),
    Target(
        "packed",
        2,
        ("runs/volume/scan.gsv",),
        changes.change_packed,
        lambda path, source: decompress(path, path.parent / "out.npy"),
    ),
    Target(
        "scene step",
        1,
        ("scenes/blender/transforms_train.json", "scenes/nerfstudio/transforms.json", "scenes/lens/transforms.json"),
        _change_json,
        _train_scene,
    ),
    Target(
        "COLMAP step",
        1,
        (
            "scenes/colmap_binary/sparse/0/images.bin",
            "scenes/colmap_text/sparse/0/cameras.txt",
            "scenes/colmap_text/sparse/0/images.txt",
        ),
        _change_colmap,
        _train_scene,
    ),
]


def write_seeds(folder: Path) -> None:
    """Writes the valid files of all targets."""
    torch.manual_seed(0)
    _write_clouds(folder / "clouds")
    _write_scenes(folder / "scenes")
    _write_configs(folder / "configs")
    _write_runs(folder / "runs")
    for path in sorted((folder / "runs").glob("*/checkpoint.pt")):
        shutil.copy(path, path.parent / "whole.pt")
