"""The page about a scene's run: views beside their photographs, and the scene itself, which can be rotated."""

from __future__ import annotations

import base64
import gzip
import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from splat_ssim.errors import UserError
from splat_ssim.formats import FormatError, save_splats
from splat_ssim.scene.cameras import orbit
from splat_ssim.scene.data import View
from splat_ssim.scene.data.placement import nearest_point
from splat_ssim.scene.model import standard_splats
from splat_ssim.trainer.colormap import colored
from splat_ssim.trainer.pictures import to_bytes
from splat_ssim.trainer.report import Section, embedded, page_part, picture, read_metrics, table, title_of, turntable
from splat_ssim.trainer.report import write_report as write_page
from splat_ssim.trainer.viewer_package import ViewerPackage, find_viewer, how_to_install

if TYPE_CHECKING:
    from splat_ssim.scene.training import SceneTask

#: Number of pictures of the rotating scene, and their longest side in pixels.
FRAMES, FRAME_SIDE = 24, 400
#: Mean absolute error of a pixel that is white in an error map.
ERROR_WHITE = 0.2
#: The form of the scene in a page, and its largest size, of about a million Gaussians; as text it takes a third more.
SCENE_FILE = "scene.compressed.ply"
LARGEST_SCENE = 64 * 2**20


def write_report(
    task: SceneTask, folder: Path, evaluation: Mapping[str, Any], *, views: int = 12, viewer_package: Path | None = None
) -> Path:
    """Writes report.html of a run.

    A page holds two pictures and an error map of each of `views` views (0.6 MB at most a view of 800x800), 24 of an
    orbit, and, where the viewer's package is installed, the package (1.2 MB) and the scene (80 bytes a Gaussian).

    Args:
        task: Task with the model of the run.
        folder: Run folder.
        evaluation: Contents of the model's eval/<step>.json: step, train_seconds, psnr, ssim, and a row for each view.
        views: Largest number of views to show. They are spread evenly from the worst PSNR to the best.
        viewer_package: Package of the viewer, see `find_viewer`.

    Raises:
        UserError: A file of the folder cannot be read, or views is negative.
        WriteError: The page cannot be written.
    """
    if views < 0:
        raise UserError(f"--views must be at least 0, got {views}")
    rows = sorted(evaluation["views"], key=lambda row: row["psnr"])
    metrics = read_metrics(folder) or {
        **{key: value for key, value in evaluation.items() if not isinstance(value, list)},
        "num_gaussians": len(task.splats["means"]),
        "device": task.device.type,
    }
    own = [
        _scene_section(task, folder, viewer_package),
        Section("Views", _views(task, rows, views, "evaluated_on" in evaluation)),
        Section("All views, worst first", _table(rows)),
    ]
    return write_page(folder, task.config, title=title_of(task, evaluation["step"]), metrics=metrics, own=own)


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    keys = [key for key in rows[0] if key != "name"]
    return table(["view", *keys], [[row["name"], *(row.get(key) for key in keys)] for row in rows])


# --- views


def _views(task: SceneTask, rows: Sequence[Mapping[str, Any]], count: int, training: bool) -> str:
    """The HTML of some views, from the worst to the best."""
    by_name = {view.name: view for view in task.evaluated}
    known = [row for row in rows if row["name"] in by_name]
    chosen = [known[round(i)] for i in np.linspace(0, len(known) - 1, min(count, len(known)))]
    cards = "".join(_card(task, by_name[row["name"]], row) for row in chosen)
    kind = "training" if training else "test"
    scale = colored(torch.linspace(0, 1, 256)[None], 0, 1).mul(255).byte().numpy().repeat(8, 0)
    return (
        f"<p>{len(chosen)} of {len(rows)} {kind} views, from the worst to the best PSNR. Drag over a picture: the "
        "render is left, the photograph right. Beside it the mean absolute error of each pixel:</p>"
        f'<p class=note>0 <img class=bar alt="from black to white" src="{picture(scale)}"> {ERROR_WHITE} and more</p>'
        f"<div class=views>{cards}</div>"
    )


def _card(task: SceneTask, view: View, row: Mapping[str, Any]) -> str:
    render = task.picture(view).permute(0, 3, 1, 2).clamp(0, 1).cpu()
    truth = view.pixels().cpu()
    error = (render - truth).abs().mean(1)[0]
    if view.mask is not None:
        error = error * view.mask.cpu()
    pictures = [to_bytes(render), to_bytes(truth), to_bytes(colored(error, 0, ERROR_WHITE).permute(2, 0, 1)[None])]
    left, right, wrong = map(picture, pictures)
    name, quality = escape(str(row["name"])), f"{row['psnr']:.2f} dB, SSIM {row['ssim']:.4f}"
    return (
        f'<figure class=view><div class=pair><div class=slider><img alt="render of {name}" src="{left}">'
        f'<img class=truth alt="photograph {name}" src="{right}">'
        f'<input type=range min=0 max=100 value=50 step=0.1 aria-label="render or photograph of {name}"></div>'
        f'<img alt="error of {name}" src="{wrong}"></div><figcaption>{name}: {quality}</figcaption></figure>'
    )


# --- the scene


def _scene_section(task: SceneTask, folder: Path, viewer_package: Path | None) -> Section:
    """The scene in the viewer, if it is installed and the scene is not too large, else as pictures."""
    package = find_viewer(viewer_package)
    file, told = (None, how_to_install()) if package is None else scene_file(task)
    frames = [picture(pixels, longest=FRAME_SIDE) for pixels in _turntable(task)]
    pictures = turntable("orbit around the scene", frames, wide=False)
    if package is None or file is None:
        print(f"{folder / 'report.html'}: the scene is shown in pictures; {told}", file=sys.stderr)
        return Section("Scene", f"<p class=note>{escape(told)}</p>{pictures}")
    with_file = _viewer(task, file, package)
    html = (
        f"<p class=note id=scene-note>{escape(told)} Drag to turn, wheel to zoom, right button to move. Shown by "
        f"{escape(package.source)} (MIT).</p>"
        f"<div class=scene id=scene-viewer></div><div id=scene-orbit hidden>{pictures}</div>{with_file}"
    )
    return Section("Scene", html)


def scene_file(task: SceneTask) -> tuple[bytes | None, str]:
    """The Gaussians as the file that a page embeds, and a note about it.

    The file is a compressed PLY, a quarter of scene.ply. It is fast to write for any number of Gaussians.
    """
    splats = standard_splats(task.splats, task.opacity_activation)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / SCENE_FILE
        try:
            notes = save_splats(path, splats, antialiased=task.config.model.antialiased)
        except FormatError as error:
            return None, f"the scene cannot be embedded: {error}"
        content = path.read_bytes()
    size = f"{len(content) / 2**20:.1f} MiB"
    if len(content) > LARGEST_SCENE:
        return None, f"a compressed PLY of the scene has {size}, a page embeds up to {LARGEST_SCENE / 2**20:.0f} MiB"
    return content, " ".join(f"{line}." for line in [f"The scene as a compressed PLY, {size}", *notes])


def _viewer(task: SceneTask, file: bytes, package: ViewerPackage) -> str:
    """Everything that the page's script needs to show a file of the scene."""
    up, frames = _up_and_orbit(task)
    rotation = _upright(up)
    data = {
        "filename": SCENE_FILE,
        "settings": _settings(task, frames, rotation),
        "rotation": _quaternion(rotation),
        "field": _field(task.scene.train[0]),
        "antialiased": task.config.model.antialiased,
    }
    files = {"viewer-script": package.script, "scene-file": file}
    packed = "".join(
        f'<script type="text/plain" id="{name}">{_packed(content)}</script>' for name, content in files.items()
    )
    style, license = package.style.decode(), package.license.decode()
    return (
        f"<style>{style}</style><!--\n{license.replace('--', '- -')}\n-->{embedded('scene-data', data)}{packed}"
        f"<script type=module>{page_part('scene.js')}</script>"
    )


def _packed(content: bytes) -> str:
    """Bytes encoded as text, which the page's script decodes."""
    return base64.b64encode(gzip.compress(content, 6, mtime=0)).decode()


def _turntable(task: SceneTask) -> list[np.ndarray]:
    """(H, W, 3) uint8 pictures of an orbit, smaller than the photographs."""
    first = task.scene.train[0]
    factor = max(1, -(-max(first.height, first.width) // (2 * FRAME_SIDE)))
    if factor > 1:
        first = first.reduced(factor)
    views = [replace(view, image=first.image, K=first.K) for view in orbit(task.scene.train, FRAMES)]
    return [to_bytes(task.picture(view).permute(0, 3, 1, 2)) for view in views]


def _up_and_orbit(task: SceneTask) -> tuple[Tensor, list[View]]:
    up = -torch.stack([view.viewmat[1, :3] for view in task.scene.train]).double().mean(0)
    return torch.nn.functional.normalize(up, dim=0), orbit(task.scene.train, FRAMES)


def _upright(up: Tensor) -> Tensor:
    """(3, 3) rotation that turns the direction `up` to the y axis, which points upwards in the viewer."""
    aside = torch.eye(3, dtype=torch.float64)[int(up.abs().argmin())]
    right = torch.nn.functional.normalize(torch.linalg.cross(up, aside), dim=0)
    return torch.stack([right, up, torch.linalg.cross(right, up)])


def _field(view: View) -> float:
    """Field of view in radians along the longer side of a photograph."""
    return 2 * math.atan(0.5 * max(view.height / float(view.K[1, 1]), view.width / float(view.K[0, 0])))


def _quaternion(rotation: Tensor) -> list[float]:
    """The quaternion x, y, z, w of a rotation matrix."""
    from scipy.spatial.transform import Rotation

    quaternion: list[float] = Rotation.from_matrix(rotation.numpy()).as_quat().tolist()
    return quaternion


def _settings(task: SceneTask, frames: Sequence[View], rotation: Tensor) -> dict[str, Any]:
    """The viewer's settings: its background, and a camera that circles the scene until the user takes it.

    Its angle of view depends on the page and is set there.
    """
    views = task.scene.train
    centers = torch.stack([view.center for view in views]).double()
    target = nearest_point(centers, torch.stack([view.viewmat[2, :3] for view in views]).double())
    at = (rotation @ target).tolist()
    positions = [(rotation @ view.center.double()).tolist() for view in frames]
    count = len(positions)
    off = {"enabled": False}
    return {
        "version": 2,
        "tonemapping": "none",
        "highPrecisionRendering": False,
        "background": {"color": list(task.scene.background)},
        "postEffectSettings": {
            "sharpness": {**off, "amount": 0},
            "bloom": {**off, "intensity": 0, "blurLevel": 2},
            "grading": {**off, "brightness": 1, "contrast": 1, "saturation": 1, "tint": [1, 1, 1]},
            "vignette": {**off, "intensity": 0, "inner": 0.5, "outer": 1},
            "fringing": {**off, "intensity": 0},
        },
        "animTracks": [
            {
                "name": "orbit",
                "duration": 24,
                "frameRate": 1,
                "loopMode": "repeat",
                "interpolation": "spline",
                "smoothness": 1,
                "keyframes": {
                    "times": [24 * index / count for index in range(count)],
                    "values": {
                        "position": [value for position in positions for value in position],
                        "target": at * count,
                        "fov": [50] * count,
                    },
                },
            }
        ],
        "cameras": [{"initial": {"position": positions[0], "target": at, "fov": 50}}],
        "annotations": [],
        "startMode": "animTrack",
    }
