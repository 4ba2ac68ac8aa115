"""Presets: defaults that suit a kind of data. Config files and the command line override them.

`object` is one object in front of nothing, such as a Blender scene or photographs with silhouettes. `photos` are
photographs of a whole scene. Each has three qualities. docs/presets.md says what every value gains.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from splat_ssim.errors import UserError
from splat_ssim.scene.data import detect_format
from splat_ssim.trainer.pictures import PictureError, decoded, has_alpha, opened

KINDS, QUALITIES = ("object", "photos"), ("fast", "default", "quality")

#: Higher harmonics are updated only at every 16th step, by the sum of their gradients.
_LAZY = {"sh_every": 16, "shN": 4e-3}
#: An object is seen from all sides, so two to three times gsplat's rates are stable and a short run gets farther. In
#: sparse Adam, which has no bias correction, the first hundreds of steps of a Gaussian are larger still. The cameras'
#: extent is many times the distance between neighbouring Gaussians.
_AROUND = {
    **_LAZY,
    "name": "sparse_adam",
    "scales": 1e-2,
    "quats": 3e-3,
    "opacities": 0.05,
    "sh0": 5e-3,
    "means": 2e-4,
    "means_final": 2.5e-6,
}
#: Each part of a place is seen by few cameras, and sparse Adam's rates would overfit these. Cameras stand inside the
#: scene, so their extent is small compared with what they see.
_INSIDE = {**_LAZY, "name": "adam", "scales": 1e-2, "opacities": 0.05, "means": 3e-4, "means_final": 3e-6}
#: In a long run, harmonics at a high rate learn what single photographs show and others do not.
_INSIDE_LONG = {**_INSIDE, "shN": 1e-3}

PRESETS: dict[tuple[str, str], dict[str, Any]] = {
    ("object", "fast"): {
        "steps": 2_500,
        "data": {"coarse_factor": 4, "coarse_stop": 500},
        "optimizer": _AROUND,
        "strategy": {"refine_start": 50, "refine_every": 50, "growth": 0.08, "final_prune": 0.2},
    },
    ("object", "default"): {"optimizer": _AROUND},
    ("object", "quality"): {
        "steps": 12_000,
        "data": {"coarse_factor": 2},
        "optimizer": _AROUND,
        "strategy": {"budget": 100_000},
    },
    ("photos", "fast"): {
        "steps": 2_000,
        "data": {"coarse_factor": 4},
        "optimizer": _INSIDE,
        "strategy": {"budget": 40_000, "refine_start": 50, "refine_every": 50},
    },
    ("photos", "default"): {
        "steps": 7_000,
        "data": {"coarse_factor": 4},
        "optimizer": _INSIDE_LONG,
        "strategy": {"budget": 100_000},
    },
    ("photos", "quality"): {
        "steps": 15_000,
        "data": {"coarse_factor": 2},
        "optimizer": _INSIDE_LONG,
        "strategy": {"budget": 250_000},
    },
}


def kind_of(folder: Path, format: str = "auto") -> str:
    """Determines the kind of data in a scene folder from its format and the first of its images.

    Raises:
        SceneError: The folder does not hold a scene.
    """
    format = detect_format(folder) if format == "auto" else format
    if format == "blender":
        return "object"
    return "object" if _is_transparent(folder / "images") else "photos"


def _is_transparent(images: Path) -> bool:
    """Whether a pixel of the first of a folder's images is transparent."""
    for path in sorted(images.iterdir()) if images.is_dir() else ():
        try:
            with opened(path) as file:
                return has_alpha(file) and decoded(path, file).mode == "RGBA"
        except PictureError:
            continue
    return False


def preset_values(kind: str, quality: str, folder: Path, format: str = "auto") -> dict[str, Any]:
    """Returns the options of a preset, as a config file would hold them. "auto" is replaced by the kind of the data.

    Args:
        kind: "auto", "none", or one of KINDS.
        quality: One of QUALITIES.
        folder: Scene folder.
        format: Format of the scene, as for `load_scene`.

    Raises:
        UserError: A name is unknown.
        SceneError: The folder does not hold a scene.
    """
    if kind == "none":
        return {"preset": "none"}
    kind = kind_of(folder, format) if kind == "auto" else kind
    if (kind, quality) not in PRESETS:
        raise UserError(
            f"required a preset among auto, none, {', '.join(KINDS)} and a quality among {', '.join(QUALITIES)}, got "
            f"{kind!r} and {quality!r}"
        )
    return {"preset": kind, "quality": quality, **copy.deepcopy(PRESETS[kind, quality])}
