"""The last touch to a scene: transparency, and copies at a half, a quarter and an eighth of the size."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image

from splat_ssim._files import replacing

#: Factors of the reduced copies: images_2, images_4, images_8.
FACTORS = (2, 4, 8)
#: Quality of JPEGs that are trained on.
QUALITY = 95


def finish_images(scene: Path, names: list[str], *, threads: int, step: Callable[[], Any]) -> None:
    """Adds the alpha channels in `alphas` to the images, removes `alphas`, and writes images_2, images_4 and images_8.

    A pixel of a reduced copy is the mean over the area that it covers, weighted by alpha. Sides are rounded to whole
    pixels, and none becomes 0.

    Args:
        scene: Folder with `images`, and with `alphas` if any image is transparent.
        names: Names of the images.
        threads: Number of threads.
        step: Function that is called after each image.
    """

    def one(name: str) -> None:
        path, alpha = scene / "images" / name, scene / "alphas" / f"{name}.png"
        with Image.open(path) as file:
            image = file.convert("RGB")
        if alpha.is_file():
            with Image.open(alpha) as file:
                image.putalpha(file.convert("L"))
            _save(image, path)
        for factor in FACTORS:
            size = max(1, round(image.width / factor)), max(1, round(image.height / factor))
            _save(image.resize(size, Image.Resampling.BOX), scene / f"images_{factor}" / name)

    pool = ThreadPoolExecutor(threads)
    try:
        for _ in pool.map(one, names):
            step()
    finally:
        pool.shutdown(cancel_futures=True)
    shutil.rmtree(scene / "alphas", ignore_errors=True)


def _save(image: Image.Image, path: Path) -> None:
    with replacing(path, durable=False) as file:
        if path.suffix.lower() in (".jpg", ".jpeg"):
            image.save(file, format="JPEG", quality=QUALITY, subsampling=0)
        else:
            image.save(file, format="PNG")
