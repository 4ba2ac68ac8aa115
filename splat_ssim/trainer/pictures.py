"""Pictures and videos from tensors, and pictures read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from splat_ssim._files import replacing, replacing_path
from splat_ssim.errors import UserError

#: The error picture is |pred - target| times this, so that one grey level in ten is seen.
ERROR_GAIN = 5.0


class PictureError(UserError):
    """A picture is missing or does not decode; the message names it."""


def read_image(path: Path, factor: int = 1) -> np.ndarray:
    """(H, W, 3) or, with transparency, (H, W, 4) uint8 of a file, at 1/factor of its size.

    Raises:
        PictureError: The file is missing or does not decode.
    """
    if not path.is_file():
        raise PictureError(f"{path}: required an image, got nothing there")
    try:
        with Image.open(path) as file:
            transparent = file.mode in ("RGBA", "LA", "PA") or "transparency" in file.info
            image = file.convert("RGBA" if transparent else "RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as broken:
        raise PictureError(f"{path}: required an image that decodes, got {type(broken).__name__}: {broken}") from None
    if factor > 1:
        image = image.reduce(factor)
    return np.asarray(image)


def over_background(image: np.ndarray, background: tuple[float, float, float]) -> tuple[Tensor, Tensor | None]:
    """(H, W, 3) pixels and (H, W) alpha of an image as `read_image` returns it.

    Straight alpha is composited over the background, which gives float32 in [0, 1]; an opaque image stays uint8, and
    its alpha is None.
    """
    if image.shape[2] == 3:
        return torch.from_numpy(image.copy()), None
    values = torch.from_numpy(image.astype(np.float32) / 255.0)
    alpha = values[..., 3:]
    return values[..., :3] * alpha + torch.tensor(background) * (1 - alpha), alpha[..., 0].contiguous()


def to_bytes(image: Tensor) -> np.ndarray:
    """(H, W, 3) uint8 of an image (1, 3, H, W) in [0, 1]."""
    return (image[0].permute(1, 2, 0).clamp(0, 1) * 255).round().byte().cpu().numpy()


def save_bytes(path: str | Path, pixels: np.ndarray) -> None:
    """Writes (H, W, 3) or (H, W) uint8 atomically, in the format of the path's suffix."""
    path = Path(path)
    kind = Image.registered_extensions().get(path.suffix.lower(), "PNG")
    with replacing(path, durable=False) as file:
        Image.fromarray(pixels).save(file, format=kind)


def save_image(path: str | Path, image: Tensor) -> None:
    """Writes an image (1, 3, H, W) in [0, 1]."""
    save_bytes(path, to_bytes(image))


def save_comparison(path: str | Path, pred: Tensor, target: Tensor) -> None:
    """Writes render | truth | five times the error of images (1, 3, H, W) in [0, 1] as one PNG."""
    error = (ERROR_GAIN * (pred - target).abs()).clamp(0, 1)
    save_image(path, torch.cat([pred, target, error], 3))


def write_video(path: str | Path, frames: Iterable[np.ndarray], *, fps: int = 30) -> None:
    """Writes an MP4 of (H, W, 3) uint8 frames with even sides, one after the other."""
    import imageio.v2 as imageio

    with replacing_path(path) as new:
        writer: Any = imageio.get_writer(new, fps=fps, macro_block_size=2)
        with writer:
            for frame in frames:
                writer.append_data(frame)
