"""Masks of photographs: found by name, and turned as their photographs are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from splat_ssim.scene.data.images import find_image, mask_of_size
from splat_ssim.scene.data.lens import fits
from splat_ssim.scene.data.scene import SceneError, shortened
from splat_ssim.trainer.pictures import opened

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def upright(image: Image.Image, turn: int) -> Image.Image:
    """Turns a stored picture upright, given its EXIF orientation, 1 to 8."""
    return image if turn == 1 else image.transpose(_TURNS[turn])


def find_masks(folder: Path | None, photos: Sequence[Path]) -> tuple[list[Path | None], list[str]]:
    """Finds the masks of photographs: <name>.png, such as 1.jpg.png, or <stem> with the suffix of any image format.

    Args:
        folder: Folder of masks, or None.
        photos: Paths of the photographs, relative to their folder.

    Returns:
        The masks in the order of the photographs, None for a photograph without one, and a line about those without.
    """
    if folder is None:
        return [None] * len(photos), []
    files: list[Path | None] = []
    for photo in photos:
        own = folder / f"{photo.as_posix()}.png"
        files.append(own if own.is_file() else find_image(folder / photo))
    found = sum(file is not None for file in files)
    notes = []
    if found < len(photos):
        without = [photo.as_posix() for photo, file in zip(photos, files, strict=True) if file is None]
        notes.append(f"{folder}: masks for {found} of {len(photos)} photographs, none for {shortened(without)}")
    return files, notes


def read_mask(path: Path, *, stored: tuple[int, int], shown: tuple[int, int], turn: int) -> np.ndarray:
    """Reads a mask, turned like its photograph.

    A mask with an EXIF orientation is turned by it. A mask without one that has the shape of the photograph as stored
    is turned like the photograph. If turning does not change the shape, such a mask is taken to be upright already.

    Args:
        path: File of the mask.
        stored: (width, height) of the photograph in its file.
        shown: (width, height) of the photograph once it is turned.
        turn: EXIF orientation of the photograph, 1 to 8.

    Returns:
        (H, W) bool of the size `shown`. It is true where a pixel counts.

    Raises:
        PictureError, SceneError: The mask cannot be decoded, or has another shape than its photograph.
    """
    with opened(path) as file:
        file.load()
        own = file.getexif().get(274, 1)
        size = file.size
    counts = mask_of_size(path, (size[1], size[0]))
    own = own if own in _TURNS else 1
    if own == 1 and not fits(size, shown) and fits(size, stored):
        own = turn
    counts = np.asarray(upright(Image.fromarray(counts.astype(np.uint8)), own)) > 0
    width, height = counts.shape[1], counts.shape[0]
    if not fits((width, height), shown):
        raise SceneError(
            f"{path}: required a mask of its photograph's shape, got a mask of {width}x{height} and a photograph "
            f"of {shown[0]}x{shown[1]}"
        )
    rows, columns = np.arange(shown[1]) * height // shown[1], np.arange(shown[0]) * width // shown[0]
    resized: np.ndarray = counts[rows[:, None], columns]
    return resized
