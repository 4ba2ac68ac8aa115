"""Photographs of a folder: found, read and written upright, as COLMAP is to see them."""

from __future__ import annotations

import importlib.util
import math
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from splat_ssim._files import replacing
from splat_ssim.errors import UserError, WriteError
from splat_ssim.prepare.masks import find_masks, read_mask, upright
from splat_ssim.scene.data.scene import shortened
from splat_ssim.trainer.pictures import decoded, opened

#: Suffixes of photographs; what is lossless stays so.
LOSSLESS, LOSSY, HEIF = (".png", ".tif", ".tiff", ".webp"), (".jpg", ".jpeg"), (".heic", ".heif")
#: Quality of photographs that are written anew before they are undistorted.
QUALITY = 97
#: Fewer photographs than these make no scene.
MIN_PHOTOS = 3
#: Tags of EXIF: orientation, make and model, and the folder of those of the exposure, of which the focal length and
#: what it is measured by are kept.
ORIENTATION, CAMERA_TAGS, EXPOSURE = 274, (271, 272), 0x8769
FOCAL_TAGS = (37386, 40962, 40963, 41486, 41487, 41488, 41989)
#: The folder of EXIF that says where a photograph was taken.
GPS = 0x8825


@dataclass(frozen=True)
class Photo:
    """One photograph: its file, its name in the scene, such as "a/1.jpg", and its mask's file, if it has one."""

    path: Path
    name: str
    mask: Path | None = None


@dataclass(frozen=True)
class Found:
    """The photographs in a folder by name, and lines on what is left out or noteworthy."""

    photos: list[Photo]
    notes: list[str]


def find_photos(folder: Path, *, recursive: bool, masks: Path | None, scene: Path | None = None) -> Found:
    """Lists the photographs of a folder.

    Args:
        folder: Folder of photographs.
        recursive: Whether to search subfolders too.
        masks: Folder of masks. By default `masks` in the folder or beside it.
        scene: Scene folder. Its contents, such as its masks, are ignored unless it holds the photographs.

    Raises:
        UserError: There are fewer than three photographs, or photographs in HEIC and no package to read them with.
    """
    if masks is not None and not masks.is_dir():
        raise UserError(f"{masks}: required a folder of masks, got {'a file' if masks.exists() else 'nothing there'}")
    own = None if scene is None else scene.resolve()
    candidates = [masks] if masks is not None else [folder / "masks", folder.parent / "masks"]
    if own is not None:
        candidates = [path for path in candidates if path.resolve() != own / "masks"]
    masks_folder = next((path for path in candidates if path.is_dir() and path.resolve() != folder.resolve()), None)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    outside = [masks_folder, scene if own is not None and folder.resolve() in own.parents else None]
    inside = [path for path in files if not any(other in path.parents for other in outside if other is not None)]
    known = [path for path in inside if path.suffix.lower() in LOSSLESS + LOSSY + HEIF]
    taken = [path for path in known if recursive or path.parent == folder]
    notes = _left_out(folder, inside, known, taken)
    if len(taken) < MIN_PHOTOS:
        more = f" ({'; '.join(notes)})" if notes else ""
        raise UserError(f"{folder}: required at least {MIN_PHOTOS} photographs, got {len(taken)}{more}")
    _check_heif(taken)
    names = _scene_names([path.relative_to(folder).as_posix() for path in taken])
    found, mask_notes = find_masks(masks_folder, [path.relative_to(folder) for path in taken])
    return Found(
        [Photo(path, name, mask) for path, name, mask in zip(taken, names, found, strict=True)], notes + mask_notes
    )


def _left_out(folder: Path, inside: Sequence[Path], known: Sequence[Path], taken: Sequence[Path]) -> list[str]:
    notes = []
    other = [path.relative_to(folder).as_posix() for path in inside if path not in known and path.parent == folder]
    if other:
        notes.append(f"left out, since they are no photographs: {shortened(other)}")
    deeper = [path.relative_to(folder).as_posix() for path in known if path not in taken]
    if deeper:
        notes.append(f"left out, since they are in subfolders (--recursive): {shortened(deeper)}")
    return notes


def _check_heif(paths: Iterable[Path]) -> None:
    """Lets Pillow read HEIC, if there is any."""
    first = next((path for path in paths if path.suffix.lower() in HEIF), None)
    if first is None:
        return
    if importlib.util.find_spec("pillow_heif") is None:
        raise UserError(f"{first}: reading HEIC needs the package pillow-heif: pip install 'splat_ssim[heic]'")
    import pillow_heif

    pillow_heif.register_heif_opener()


def _scene_names(names: Sequence[str]) -> list[str]:
    """The names of photographs in the scene, each once: of the suffix they are written with.

    a.heic becomes a.jpg, or a_heic.jpg where there is an a.jpg.
    """
    wanted = [_name_in_scene(name) for name in names]
    # Files that keep their names come first.
    taken = {name for name, new in zip(names, wanted, strict=True) if name == new}
    result = []
    for name, new in zip(names, wanted, strict=True):
        if name != new and new in taken:
            path = Path(name)
            new = _name_in_scene(path.with_name(f"{path.stem}_{path.suffix[1:]}{path.suffix}").as_posix())
            while new in taken:
                new = f"{Path(new).with_suffix('').as_posix()}_{Path(new).suffix}"
        taken.add(new)
        result.append(new)
    return result


def _name_in_scene(name: str) -> str:
    path = Path(name)
    if path.suffix in (".jpg", ".jpeg", ".JPG", ".JPEG", ".png", ".PNG"):
        return name
    return path.with_suffix(".png" if path.suffix.lower() in LOSSLESS else ".jpg").as_posix()


# --- one photograph


def write_upright(photo: Photo, folder: Path, max_size: int) -> tuple[int, int]:
    """Writes a photograph, turned upright as its EXIF data say, and its mask and alpha channel.

    Below `folder` are made images/<name> (RGB), masks/<name>.png (the mask of its own), alphas/<name>.png (the alpha
    channel, where something is transparent) and counted/<name>.png (white where both say that a pixel counts).

    Args:
        photo: Photograph to write.
        folder: Folder to write to.
        max_size: Longest side in pixels. 0: the photograph keeps its size.

    Returns:
        (width, height) of the written image.

    Raises:
        PictureError, SceneError: The photograph or its mask cannot be decoded, or they do not fit each other.
    """
    with opened(photo.path) as file:
        image = decoded(photo.path, file)
        # After decoding: Pillow turns TIFFs itself, and then says so.
        turn, exif = _orientation(file), _kept_exif(file)
        plain = file.format == "JPEG" and file.mode in ("RGB", "L")
    stored = image.size
    image = upright(image, turn)
    size = _limited(image.size, max_size)
    target = folder / "images" / photo.name
    mask = None if photo.mask is None else read_mask(photo.mask, stored=stored, shown=image.size, turn=turn)
    if plain and turn == 1 and size == image.size and target.suffix.lower() in LOSSY:
        with replacing(target, durable=False) as copy, photo.path.open("rb") as original:
            shutil.copyfileobj(original, copy)
    else:
        if size != image.size:
            image = image.resize(size, Image.Resampling.LANCZOS)
        save(image.convert("RGB"), target, exif)
    alpha = np.asarray(image)[..., 3] if image.mode == "RGBA" else None
    _write_counted(folder, photo.name, size, mask, alpha)
    return size


def _write_counted(
    folder: Path, name: str, size: tuple[int, int], mask: np.ndarray | None, alpha: np.ndarray | None
) -> None:
    counted = np.full((size[1], size[0]), 255, np.uint8)
    if mask is not None:
        grey = Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.NEAREST)
        save(grey, folder / "masks" / f"{name}.png")
        counted = np.minimum(counted, np.asarray(grey))
    if alpha is not None and alpha.min() < 255:
        save(Image.fromarray(np.ascontiguousarray(alpha)), folder / "alphas" / f"{name}.png")
        counted = np.where(alpha > 0, counted, np.uint8(0))
    save(Image.fromarray(counted), folder / "counted" / f"{name}.png")


def save(image: Image.Image, path: Path, exif: bytes = b"") -> None:
    """Writes a picture atomically, as JPEG or PNG by its suffix, with the bytes of its EXIF."""
    with replacing(path, durable=False) as file:
        if path.suffix.lower() in LOSSY:
            image.save(file, format="JPEG", quality=QUALITY, subsampling=0, exif=exif)
        else:
            image.save(file, format="PNG", compress_level=1, exif=exif)


def _limited(size: tuple[int, int], max_size: int) -> tuple[int, int]:
    scale = min(1.0, max_size / max(size)) if max_size else 1.0
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _orientation(file: Image.Image) -> int:
    turn = file.getexif().get(ORIENTATION, 1)
    return turn if isinstance(turn, int) and 1 <= turn <= 8 else 1


def _kept_exif(file: Image.Image) -> bytes:
    """EXIF data with only the tags that identify the camera and its position."""
    before, after = file.getexif(), Image.Exif()
    for tag in CAMERA_TAGS:
        if tag in before:
            after[tag] = before[tag]
    exposure = before.get_ifd(EXPOSURE)
    kept = {tag: exposure[tag] for tag in FOCAL_TAGS if _is_positive(exposure.get(tag))}
    if kept:
        after.get_ifd(EXPOSURE).update(kept)
    place = before.get_ifd(GPS)
    if place:
        after.get_ifd(GPS).update(place)
    return after.tobytes() if len(after) or kept or place else b""


def _is_positive(value: Any) -> bool:
    """Whether a number of EXIF means something: a fraction may be 0/0."""
    try:
        return math.isfinite(float(value)) and float(value) > 0
    except (TypeError, ValueError, ZeroDivisionError):
        return False


def write_all(
    photos: Sequence[Photo], folder: Path, *, max_size: int, threads: int, step: Callable[[], Any]
) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """Writes photographs by `write_upright`, several at a time.

    Args:
        photos: Photographs to write.
        folder: Folder to write to.
        max_size: Longest side in pixels. 0: photographs keep their size.
        threads: Number of threads.
        step: Function that is called after each photograph.

    Returns:
        The sizes (width, height) by name, and a line with the reason for each photograph that was left out.

    Raises:
        UserError: Fewer than three photographs are left.
    """

    def one(photo: Photo) -> tuple[int, int] | str:
        try:
            return write_upright(photo, folder, max_size)
        except WriteError:
            raise
        except UserError as broken:
            for place in ("images", "masks", "alphas", "counted"):
                name = photo.name if place == "images" else f"{photo.name}.png"
                (folder / place / name).unlink(missing_ok=True)
            return str(broken)

    sizes, broken = {}, []
    pool = ThreadPoolExecutor(threads)
    try:
        for photo, result in zip(photos, pool.map(one, photos), strict=True):
            step()
            if isinstance(result, str):
                broken.append(f"left out: {result}")
            else:
                sizes[photo.name] = result
    finally:
        pool.shutdown(cancel_futures=True)
    if len(sizes) < MIN_PHOTOS:
        raise UserError(
            f"{photos[0].path.parent}: required at least {MIN_PHOTOS} photographs that can be read, got {len(sizes)} "
            f"({'; '.join(broken[:3])})"
        )
    return sizes, broken
