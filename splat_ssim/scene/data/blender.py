"""Blender / NeRF-synthetic scenes: transforms_{train,test}.json with one field of view, RGBA images."""

from __future__ import annotations

from pathlib import Path

from splat_ssim.scene.data.images import check_found, find_image, image_size
from splat_ssim.scene.data.photos import Photo, read_views
from splat_ssim.scene.data.scene import Scene, shortened, split_views, split_words
from splat_ssim.scene.data.transforms import (
    check_unrepeated,
    frame_mask,
    merged,
    opengl_to_viewmat,
    read_camera,
    read_frames,
)

#: Half the edge of the cube every NeRF-synthetic scene fits in.
HALF_BOX = 1.3


def load_blender(
    folder: Path,
    *,
    factor: int = 1,
    test_every: int = 8,
    background: tuple[float, float, float] = (1.0, 1.0, 1.0),
    cache: Path | None = None,
    depth_unit: float | None = None,
) -> Scene:
    """Reads a Blender scene; see `load_scene`. The test views are those of transforms_test.json where there is one.

    Such a scene has no depths.

    Read beyond camera_angle_x: the camera fields and mask_path of nerfstudio's transforms.json.
    """
    notes: list[str] = []
    photos = _read_split(folder, "train", factor, notes)
    train = read_views(photos, background, cache, notes)
    if (folder / "transforms_test.json").exists():
        held_out = _read_split(folder, "test", factor, notes)
        test = read_views(held_out, background, cache, notes, late=True)
        trained = {photo.file for photo in photos}
        both = [photo.name for photo in held_out if photo.file in trained]
        if both:
            notes.append(f"transforms_test.json names images that are trained on: {shortened(both)}")
        split = "split by transforms_test.json"
    else:
        (train, test), split = split_views(train, test_every), split_words(test_every)
    return Scene(
        name=folder.resolve().name,
        train=train,
        test=test,
        background=background,
        box=((-HALF_BOX,) * 3, (HALF_BOX,) * 3),
        split=split,
        notes=notes,
    )


def _read_split(folder: Path, split: str, factor: int, notes: list[str]) -> list[Photo]:
    path = folder / f"transforms_{split}.json"
    content, frames, corrected = read_frames(path)
    notes += corrected
    # NeRF-synthetic leaves out the extension.
    named = [folder / frame["file_path"] for frame in frames]
    named = [file if file.suffix or not file.name else file.with_suffix(".png") for file in named]
    found = [find_image(file) for file in named]
    if split != "train" and not any(found):
        notes.append(f"{path.name} is skipped: none of its {len(frames)} images is there")
        return []
    check_found(named, found, path.name, notes)
    check_unrepeated(frames, path)
    files = [file for file in found if file is not None]
    numbered = [(index, frame) for index, frame in enumerate(frames) if found[index] is not None]
    photos = []
    for file, (index, frame) in zip(files, numbered, strict=True):
        where = f"{path}: frame {index}"
        camera = read_camera(merged(content, frame), where, image_size(file))
        name = str(file.relative_to(folder)) if file.is_relative_to(folder) else file.name
        viewmat, mask = opengl_to_viewmat(frame["transform_matrix"]), frame_mask(frame, folder, where)
        photos.append(Photo(name, file, viewmat, camera, where, factor, mask))
    return photos
