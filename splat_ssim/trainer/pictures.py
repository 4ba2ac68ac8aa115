"""Writes pictures and videos of tensors, and reads pictures."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from splat_ssim import _maps
from splat_ssim._files import is_file, replacing, replacing_path
from splat_ssim.errors import UserError, WriteError

#: The error picture is |pred - target| times this, so that small errors are visible.
ERROR_GAIN = 5.0


class PictureError(UserError):
    """A picture is missing or does not decode. The message names it."""


def read_image(path: Path, factor: int = 1) -> np.ndarray:
    """(H, W, 3) or, with transparency, (H, W, 4) uint8 of a file, at 1/factor of its size.

    Grey pictures of 16 bits are scaled by their whole range.

    Raises:
        PictureError: The file is missing, does not decode, or has samples of 32 bits, whose range is unknown.
    """
    with opened(path) as file:
        image = decoded(path, file)
    if factor > 1:
        image = image.reduce(factor)
    return np.asarray(image)


def decoded(path: Path, file: Image.Image) -> Image.Image:
    """Decodes a file that `opened` has opened, to RGB or, with transparency, RGBA; see `read_image`."""
    if file.mode in ("I", "F") or file.mode.startswith("I;16"):
        return Image.fromarray(_bytes_of_wide(path, file)).convert("RGB")
    transparent = file.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in file.info
    return file.convert("RGBA" if transparent else "RGB")


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Opens a picture with Pillow; what fails while it is read is a PictureError that names the file."""
    if not is_file(path):
        raise PictureError(f"{path}: required an image, got nothing there")
    try:
        # Pillow memory-maps a file that it opens by name, and then swaps the sides of a rotated grey TIFF.
        with path.open("rb") as stream, Image.open(stream) as file:
            yield file
    except PictureError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as broken:
        raise PictureError(f"{path}: required an image that decodes, got {type(broken).__name__}: {broken}") from None


#: Tags of TIFF: bits of a sample, and the meaning of its values (0: zero is white).
_BITS, _PHOTOMETRIC = 258, 262


def _bytes_of_wide(path: Path, file: Image.Image) -> np.ndarray:
    """(H, W) uint8 of a grey picture of more than 8 bits, whose whole range becomes [0, 255]."""
    tags = getattr(file, "tag_v2", {})
    # Of 32-bit integers only those that Pillow itself makes of 16-bit files have a known range.
    if file.mode == "F" or (file.mode == "I" and file.format not in ("PNG", "PPM")):
        kind = "floating-point" if file.mode == "F" else "integer"
        raise PictureError(f"{path}: required samples of 8 or 16 bits, whose range is known, got 32-bit {kind} ones")
    bits = int(np.max(tags.get(_BITS, 16)))
    values = np.asarray(file).astype(np.float64) * (255.0 / (2**bits - 1))
    if tags.get(_PHOTOMETRIC) == 0:
        values = 255.0 - values
    rounded: np.ndarray = values.round().clip(0, 255).astype(np.uint8)
    return rounded


def over_background(image: Tensor, background: tuple[float, float, float]) -> Tensor:
    """(1, 3, H, W) float32 in [0, 1], channels last in memory, of (H, W, 3 or 4) uint8 or (H, W, 3) float32.

    Straight alpha is composited over the background.
    """
    if image.shape[2] == 4:
        behind = _maps.constant(background, torch.float32, image.device)
        pixels = _maps.composited(image[None], behind, torch.float32, 1.0, channels_last=True)
    else:
        pixels = _maps.as_float(image[None], torch.float32)
    return pixels.permute(0, 3, 1, 2)


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


def comparison(pred: Tensor, target: Tensor) -> Tensor:
    """(1, 3, H, 3 W) of images (1, 3, H, W) in [0, 1]: render | truth | five times the error."""
    error = (ERROR_GAIN * (pred - target).abs()).clamp(0, 1)
    return torch.cat([pred, target, error], 3)


def save_comparison(path: str | Path, pred: Tensor, target: Tensor) -> None:
    """Writes render | truth | five times the error of images (1, 3, H, W) in [0, 1] as one PNG."""
    save_image(path, comparison(pred, target))


class NoVideoError(UserError):
    """This machine cannot write videos; the message says what is missing."""


@contextmanager
def said_without_video() -> Iterator[None]:
    """If a video cannot be written in the block, prints why and goes on."""
    try:
        yield
    except NoVideoError as error:
        print(error, file=sys.stderr)


def write_video(path: str | Path, frames: Iterable[np.ndarray], *, fps: float = 30) -> None:
    """Writes an MP4 of (H, W, 3) uint8 frames with even sides, one after the other.

    Raises:
        UserError: The path does not end in .mp4.
        NoVideoError: The packages that write videos are not installed.
        WriteError: ffmpeg could not write all frames, as on a full disk; `path` is what it was.
    """
    path = Path(path)
    if path.suffix.lower() != ".mp4":
        raise UserError(f"{path}: required a name with .mp4 for a video, got {path.suffix or 'none'}")
    try:
        import imageio.v2 as imageio
        import imageio_ffmpeg
    except ImportError as error:
        raise NoVideoError(
            f"{path} is not written: a video needs pip install imageio imageio-ffmpeg: {error}"
        ) from error

    count = 0
    with replacing_path(path) as new:
        writer: Any = imageio.get_writer(new, format="FFMPEG", fps=fps, macro_block_size=2)
        with writer:
            for frame in frames:
                writer.append_data(frame)
                count += 1
        # imageio hides that ffmpeg failed, so the frames are read back.
        try:
            kept: int = imageio_ffmpeg.count_frames_and_secs(new)[0]
        except RuntimeError:
            kept = 0
        if kept != count:
            raise WriteError(f"{path}: required room and permission to write it, got {kept} of {count} frames")
