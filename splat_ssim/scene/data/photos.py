"""Makes views of image files: decodes them in parallel, undistorts them, and keeps them in memory or on disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from splat_ssim._files import is_file, replacing
from splat_ssim.scene.data.images import image_size, make_view, mask_of_size, read_image
from splat_ssim.scene.data.lens import proportions
from splat_ssim.scene.data.scene import LateImage, SceneError, View
from splat_ssim.trainer.device import available_memory

#: Images that take more than this fraction of the free memory are kept on disk.
MEMORY_SHARE = 0.5
#: Version of the cache. It changes whenever the same files would give other bytes.
_VERSION = 1


@dataclass(frozen=True)
class Photo:
    """A file that becomes a view, not decoded yet.

    Attributes:
        name: For reports and for the order of views.
        file: The image.
        viewmat: (4, 4) float64 world to camera.
        camera: Pinhole or pycolmap.Camera, at any resolution.
        where: What the camera is from, for messages.
        factor: The image is read at 1/factor of its size.
        mask: The mask's file, or None.
        read: Decodes (file, factor) to (H, W, 3 or 4) uint8.
    """

    name: str
    file: Path
    viewmat: np.ndarray
    camera: Any
    where: str
    factor: int = 1
    mask: Path | None = None
    read: Callable[[Path, int], np.ndarray] = read_image

    def view(self, background: tuple[float, float, float]) -> View:
        """Decodes it.

        Raises:
            SceneError: The image, its mask, camera or pose is not as required.
        """
        image = self.read(self.file, self.factor)
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
    """The views of photographs, decoded in parallel; the first error in their order is raised.

    They stay in memory where they take less than `MEMORY_SHARE` of what is free. Otherwise each is written to `cache`
    once, as it is after its lens distortion is undone, and the system reads what a step needs. Views that are asked for
    seldom need no memory: all are decoded once to find errors, and then anew each time.

    Args:
        photos: What to read.
        background: RGB under transparent images.
        cache: Folder of the images on disk, made where it is needed; None: all stay in memory.
        notes: A line is added where images are kept on disk.
        late: Images that would stay in memory stay in their files instead.
    """
    total = sum(photo.nbytes for photo in photos)
    free = available_memory()
    store = cache if free is not None and total > MEMORY_SHARE * free else None

    def read(photo: Photo) -> View:
        if store is not None:
            return _stored(photo, background, store)
        return _late(photo, background) if late else photo.view(background)

    views = _in_parallel(read, photos)
    if store is not None:
        notes.append(
            f"images of {total / 1e9:.1f} GB are more than {MEMORY_SHARE:.0%} of the free memory: they are read from "
            f"{store} as they are needed, where they are kept decoded"
        )
    return views


def _in_parallel(read: Callable[[Photo], View], photos: Sequence[Photo]) -> list[View]:
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
        mask=None if photo.mask is None else _mapped(folder / "mask.npy"),
        background=background,
        proportions=proportions(photo.camera),
    )


def _save(path: Path, tensor: Tensor) -> None:
    with replacing(path, durable=False) as file:
        np.save(file, tensor.numpy())


def _mapped(path: Path) -> Tensor:
    """A memory-mapped tensor: the system reads its pages when they are used and drops them when memory is short."""
    return torch.from_numpy(np.load(path, mmap_mode="c"))
