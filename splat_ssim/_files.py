"""Files that are written whole or not at all."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def replacing(path: str | Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """Opens a file that takes the place of `path` when the block ends without an error.

    The bytes go to a temporary file beside it, which is flushed to the disk and renamed: whenever the process dies,
    `path` is the old file or the new one. Folders are made. Processes that write the same path do not meet.

    Args:
        path: File to write.
        durable: Whether to wait for the disk. Off for pictures and other files that a run can draw again.

    Yields:
        The binary file to write to.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_leftovers(path: Path) -> None:
    """Deletes the temporary files of `path` that a killed process left behind."""
    for leftover in path.parent.glob(f"{path.name}*.tmp"):
        leftover.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Writes a text file (UTF-8) atomically."""
    with replacing(path) as file:
        file.write(text.encode())


def write_json(path: str | Path, content: Any) -> None:
    """Writes JSON atomically. Numbers that JSON lacks, NaN and the infinities, become null."""
    write_text(path, to_json(content) + "\n")


def to_json(content: Any) -> str:
    """The JSON text of nested mappings and sequences; see `without_infinities`.

    Example:
        >>> from splat_ssim._files import to_json
        >>> print(to_json({"psnr": float("inf")}))
        {
          "psnr": null
        }
    """
    return json.dumps(without_infinities(content), indent=2, allow_nan=False)


def without_infinities(content: Any) -> Any:
    """The same nested mappings and sequences with None for NaN and the infinities, which JSON cannot express."""
    if isinstance(content, dict):
        return {key: without_infinities(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [without_infinities(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
