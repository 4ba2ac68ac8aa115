"""Makes views of image files: decodes them in parallel, undistorts them, and keeps them in memory or on disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from splat_ssim._files import is_file, replacing
from splat_ssim.scene.data.images import file_remarks, image_size, make_view, mask_of_size, read_image
from splat_ssim.scene.data.lens import proportions, rescaled
from splat_ssim.scene.data.scene import LateImage, SceneError, View, grouped
from splat_ssim.scene.data.undistortion import is_distorted, lens_remarks
from splat_ssim.trainer.device import available_memory

T = TypeVar("T")
#: Images that take more than this fraction of the free memory are kept on disk.
MEMORY_SHARE = 0.5
#: Version of the cache. It changes whenever the same files would give other bytes.
_VERSION = 2


@dataclass(frozen=True)
class Photo:
    """An image file that becomes a view and has not been decoded yet.

    Attributes:
        name: Name for reports and for the order of views.
        file: The image file.
        viewmat: (4, 4) float64 world to camera.
        camera: Pinhole or pycolmap.Camera, at any resolution.
        where: Source of the camera, for messages.
        factor: The image is read at 1/factor of its size.
        mask: The mask file, or None.
    """

    name: str
    file: Path
    viewmat: np.ndarray
    camera: Any
    where: str
    factor: int = 1
    mask: Path | None = None

    def view(self, background: tuple[float, float, float]) -> View:
        """Decodes the file and makes the view.

        Raises:
            SceneError: The image, its mask, its camera or its pose is not as required.
        """
        image = read_image(self.file, self.factor)
        mask = None if self.mask is None else mask_of_size(self.mask, image.shape[:2])
        return make_view(
            self.name,
            image,
            self.viewmat,
            self.camera,
            mask=mask,
            background=background,
            where=self.where,
            file=self.file,
        )

    @property
    def nbytes(self) -> int:
        """Largest number of bytes that it takes when decoded."""
        width, height = image_size(self.file)
        return width * height * (4 + (self.mask is not None)) // self.factor**2

    def key(self) -> str:
        """Key of the decoded view in the cache. It changes if a file, the camera or the way of reading changes."""
        camera = self.camera
        parts: list[Any] = [_VERSION, self.factor, camera.model_name, camera.width, camera.height, list(camera.params)]
        for file in (self.file, self.mask):
            if file is not None:
                stat = file.stat()
                parts += [str(file.resolve()), stat.st_size, stat.st_mtime_ns]
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


def read_views(
    photos: Sequence[Photo],
    background: tuple[float, float, float],
    cache: Path | None,
    notes: list[str],
    *,
    late: bool = False,
) -> list[View]:
    """Reads the views of photographs in parallel. If several fail, the error of the first in their order is raised.

    Images stay in memory if they take less than `MEMORY_SHARE` of the free memory. Otherwise each image is written to
    `cache` once, after its lens distortion is undone, and the system reads what a step needs. With `late`, images that
    would stay in memory are decoded once to find errors, and then again each time they are used.

    Args:
        photos: Photographs to read.
        background: RGB behind transparent images.
        cache: Folder for images on disk. It is created when needed. None: all images stay in memory.
        notes: List that gets a line for what is not read as one might expect, and if images are kept on disk.
        late: Whether images that would stay in memory are decoded from their files each time instead.
    """
    total = sum(photo.nbytes for photo in photos)
    free = available_memory()
    store = cache if free is not None and total > MEMORY_SHARE * free else None

    def read(photo: Photo) -> View:
        if store is not None:
            return _stored(photo, background, store)
        return _late(photo, background) if late else photo.view(background)

    views = _in_parallel(read, photos)
    notes += grouped(zip([photo.name for photo in photos], _in_parallel(_remarks, photos), strict=True))
    if store is not None:
        notes.append(
            f"images of {total / 1e9:.1f} GB are more than {MEMORY_SHARE:.0%} of the free memory: they are read from "
            f"{store} as they are needed, where they are kept decoded"
        )
    return views


def _remarks(photo: Photo) -> list[str]:
    """What a reader should know of a photograph that was read: about its file and about its lens."""
    remarks = file_remarks(photo.file)
    if is_distorted(photo.camera):
        width, height = (side // photo.factor for side in image_size(photo.file))
        remarks += lens_remarks(rescaled(photo.camera, width, height))
    return remarks


def _in_parallel(read: Callable[[Photo], T], photos: Sequence[Photo]) -> list[T]:
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(read, photos))


def _late(photo: Photo, background: tuple[float, float, float]) -> View:
    """The view with an image that is decoded from its file whenever it is needed."""
    view, key = photo.view(background), photo.key()

    def decode() -> Tensor:
        files = [file for file in (photo.file, photo.mask) if file is not None]
        if not all(map(is_file, files)) or photo.key() != key:
            raise SceneError(f"{photo.file}: required image and mask as they were when the scene was read, got others")
        return photo.view(background).image

    height, width, channels = view.shape
    view.image = LateImage((height, width, channels), decode)
    return view


def _stored(photo: Photo, background: tuple[float, float, float], cache: Path) -> View:
    """The view with image and mask on disk. They are written first if they are not there."""
    folder = cache / photo.key()
    if not (folder / "K.npy").is_file():
        view = photo.view(background)
        _save(folder / "image.npy", view.image)
        if view.mask is not None:
            _save(folder / "mask.npy", view.mask)
        _save(folder / "K.npy", view.K)  # written last, as a sign that the other files are complete
    return View(
        name=photo.name,
        viewmat=torch.tensor(photo.viewmat, dtype=torch.float64),
        K=torch.from_numpy(np.load(folder / "K.npy")),
        image=_mapped(folder / "image.npy"),
        mask=_mapped(folder / "mask.npy") if (folder / "mask.npy").is_file() else None,
        background=background,
        proportions=proportions(photo.camera),
    )


def _save(path: Path, tensor: Tensor) -> None:
    with replacing(path, durable=False) as file:
        np.save(file, tensor.numpy())


def _mapped(path: Path) -> Tensor:
    """A memory-mapped tensor: the system reads its pages when they are used and drops them when memory is short."""
    return torch.from_numpy(np.load(path, mmap_mode="c"))
