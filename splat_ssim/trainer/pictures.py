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
from splat_ssim._files import check_output, is_file, replacing, replacing_path
from splat_ssim.errors import UserError

#: Extensions of the pictures that are looked for, in lower case.
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".avif")
#: The error picture is |pred - target| times this, so that small errors are visible.
ERROR_GAIN = 5.0


class PictureError(UserError):
    """A picture is missing or does not decode. The message names it."""


def read_image(path: Path, factor: int = 1) -> np.ndarray:
    """Reads an image as uint8 (H, W, 3), or (H, W, 4) if it is transparent, at 1/factor of its size.

    Grey pictures of 16 bits are scaled by their whole range. A reduced pixel is the mean of a box, weighted by alpha;
    rows and columns beyond a whole box are left out.

    Raises:
        PictureError: The file is missing, cannot be decoded, has samples of 32 bits, whose range is unknown, or is
            smaller than one box.
    """
    with opened(path) as file:
        image = decoded(path, file)
    if factor > 1:
        width, height = image.width // factor, image.height // factor
        if min(width, height) < 1:
            raise PictureError(
                f"{path}: required at least {factor}x{factor} pixels to reduce by {factor}, got "
                f"{image.width}x{image.height}"
            )
        image = image.reduce(factor, (0, 0, width * factor, height * factor))
    return np.asarray(image)


def decoded(path: Path, file: Image.Image) -> Image.Image:
    """Decodes a file opened by `opened` to RGB, or to RGBA if a pixel is transparent. See `read_image`."""
    clear = file.info.get("transparency")
    if is_wide_grey(file):
        image = Image.fromarray(_bytes_of_wide(path, file)).convert("RGB")
        if clear is not None:
            image.putalpha(Image.fromarray(np.uint8(255) * (np.asarray(file) != clear)))
    else:
        image = file.convert("RGBA" if has_alpha(file) else "RGB")
    # Many tools write an alpha channel that says nothing.
    opaque = image.mode == "RGBA" and image.getchannel("A").getextrema()[0] == 255
    return image.convert("RGB") if opaque else image


def has_alpha(file: Image.Image) -> bool:
    """Whether a picture that is not decoded yet has an alpha channel or a transparent colour."""
    return file.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in file.info


def is_wide_grey(file: Image.Image) -> bool:
    """Whether a picture is grey with samples of more than 8 bits."""
    return file.mode in ("I", "F") or file.mode.startswith("I;16")


def is_wide(file: Image.Image) -> bool:
    """Whether samples of a picture that is not decoded yet have more than 8 bits; of colours Pillow keeps 8."""
    return is_wide_grey(file) or ";16" in str(getattr(file, "tile", ""))


def remarks(path: Path) -> list[str]:
    """What a picture holds that is not read, or is hardly meant as it is read: the same words for the same case.

    Only grey pictures of more than 8 bits are decoded for it.

    Raises:
        PictureError: The file is missing or does not decode.
    """
    found = []
    with opened(path) as file:
        # Pillow turns TIFFs itself, and decodes a PNG to look for EXIF behind its pixels.
        has_exif = file.format not in ("TIFF", "PNG") or (file.format == "PNG" and "exif" in file.info)
        if has_exif and file.getexif().get(274, 1) in range(2, 9):
            found.append("read as stored, not turned as EXIF says")
        # A phone's MPO holds one photograph and what the phone made of it.
        if file.format != "MPO" and getattr(file, "n_frames", 1) > 1:
            found.append("of several pictures in a file the first is read")
        if is_wide_grey(file) and _bytes_of_wide(path, file).max() <= 16:
            found.append("read as nearly black, since the values of 16 bits use at most 12 of them")
    return found


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Opens a picture with Pillow. Errors while it is read become a PictureError that names the file."""
    if not is_file(path):
        raise PictureError(f"{path}: required an image, got nothing there")
    try:
        # Pillow memory-maps a file that it opens by name, and then swaps the sides of a rotated grey TIFF.
        with path.open("rb") as stream, Image.open(stream) as file:
            yield file
    except UserError:
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
    """Writes (H, W, 3) or (H, W) uint8 atomically, in the format of the path's suffix.

    Raises:
        UserError: The suffix is of no format of pictures. A name without one is a PNG file.
    """
    path = Path(path)
    kind = Image.registered_extensions().get(path.suffix.lower() or ".png")
    if kind not in Image.SAVE:
        raise UserError(f"{path}: required a name of a picture, such as .png, got {path.suffix}")
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
    """This machine cannot write videos. The message says what is missing."""


@contextmanager
def said_without_video() -> Iterator[None]:
    """If a video cannot be written in the block, prints why and goes on."""
    try:
        yield
    except NoVideoError as error:
        print(error, file=sys.stderr)


def write_video(path: str | Path, frames: Iterable[np.ndarray], *, fps: float = 30) -> None:
    """Writes an MP4 from (H, W, 3) uint8 frames with even sides, one after the other.

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

    check_output(path)
    count = 0
    with replacing_path(path) as new:
        # What ffmpeg prints of a full disk is said in one sentence, as of other files.
        options: dict[str, Any] = {"fps": fps, "macro_block_size": 2, "ffmpeg_log_level": "fatal"}
        writer: Any = imageio.get_writer(new, format="FFMPEG", **options)
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
            raise OSError(f"{kept} of {count} frames")
