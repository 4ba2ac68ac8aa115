"""The sharpest frames of a video."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from splat_ssim.errors import UserError
from splat_ssim.prepare.photos import MIN_PHOTOS, save

#: Sharpness is measured on grey pictures with this longer side: there, noise and compression are averaged out.
GREY_SIZE = 480
SUFFIXES = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".mts", ".wmv", ".3gp")


def sharpness(frame: np.ndarray) -> float:
    """Returns the variance of the Laplacian of a small grey copy of a frame. The larger it is, the sharper the frame.

    Args:
        frame: (H, W, 3) uint8.

    Example:
        >>> import numpy as np
        >>> from splat_ssim.prepare.video import sharpness
        >>> edge = np.zeros((32, 32, 3), np.uint8)
        >>> edge[:, 16:] = 255
        >>> slope = np.linspace(0, 255, 32).astype(np.uint8)[None, :, None].repeat(32, 0).repeat(3, 2)
        >>> sharpness(edge) > sharpness(slope)
        True
    """
    image = Image.fromarray(frame).convert("L")
    factor = max(1, round(max(image.size) / GREY_SIZE))
    grey = np.asarray(image.reduce(factor) if factor > 1 else image, dtype=np.float32)
    if min(grey.shape) < 3:
        return 0.0
    center = grey[1:-1, 1:-1]
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * center
    return float(laplacian.var())


@contextmanager
def _video_errors(path: Path) -> Iterator[None]:
    """Converts ffmpeg's errors about a file that it cannot read to a UserError that names the file."""
    try:
        yield
    except UserError:
        raise
    except (OSError, RuntimeError, ValueError, IndexError, StopIteration) as broken:
        last = [line.strip() for line in str(broken).splitlines() if line.strip()][-1:] or [type(broken).__name__]
        raise UserError(f"{path}: required a video that ffmpeg reads, got: {last[0]}") from None


def count_frames(path: Path) -> int:
    """Counts the frames of a video by decoding it.

    Raises:
        UserError: The video cannot be decoded.
    """
    import imageio_ffmpeg

    with _video_errors(path):
        count: int = imageio_ffmpeg.count_frames_and_secs(str(path))[0]
        return count


def write_sharpest(
    path: Path, folder: Path, *, count: int, total: int, max_size: int, threads: int, step: Callable[[], Any]
) -> dict[str, tuple[int, int]]:
    """Writes the sharpest frame of each of `count` equal stretches of a video as images/frame_<number>.jpg.

    Args:
        path: File of the video.
        folder: Folder to write to.
        count: Number of stretches.
        total: Number of frames, from `count_frames`.
        max_size: Longest side in pixels. 0: frames keep their size.
        threads: Number of threads that ffmpeg decodes with.
        step: Function that is called after each frame that is read.

    Returns:
        The sizes (width, height) by name.

    Raises:
        UserError: The video cannot be decoded, or has fewer than three frames.
    """
    import imageio.v2 as imageio

    count = min(count, total)
    # It warns of every video that is stored on its side, which it turns.
    logging.getLogger("imageio_ffmpeg").setLevel(logging.ERROR)
    sizes: dict[str, tuple[int, int]] = {}
    best: tuple[float, int, np.ndarray] | None = None
    stretch = 0
    with _video_errors(path):
        reader: Any = imageio.get_reader(path, format="FFMPEG", input_params=["-threads", str(threads)])
        with reader:
            for index, frame in enumerate(reader.iter_data()):
                now = min(index * count // total, count - 1)
                if now != stretch and best is not None:
                    _write(best, folder, max_size, sizes)
                    best, stretch = None, now
                value = sharpness(frame)
                if best is None or value > best[0]:
                    best = value, index, np.asarray(frame)
                step()
    if best is not None:
        _write(best, folder, max_size, sizes)
    if len(sizes) < MIN_PHOTOS:
        raise UserError(f"{path}: required a video of at least {MIN_PHOTOS} frames, got {len(sizes)}")
    return sizes


def _write(best: tuple[float, int, np.ndarray], folder: Path, max_size: int, sizes: dict[str, tuple[int, int]]) -> None:
    _, index, frame = best
    image = Image.fromarray(frame)
    if max_size and max(image.size) > max_size:
        scale = max_size / max(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    name = f"frame_{index:06d}.jpg"
    save(image, folder / "images" / name)
    sizes[name] = image.size
