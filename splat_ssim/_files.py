"""Files that are written whole or not at all."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from splat_ssim.errors import UserError, WriteError

#: Names the folder of `cache_folder`; without it $XDG_CACHE_HOME/splat_ssim or ~/.cache/splat_ssim.
CACHE_VARIABLE = "SPLAT_SSIM_CACHE"


@contextmanager
def replacing(path: str | Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """Opens a temporary file, which replaces `path` when the block ends without an error.

    The bytes go to a temporary file beside it, which is flushed to the disk and renamed: whenever the process dies,
    `path` is the old file or the new one. Folders are made. Processes that write the same path do not meet.

    Args:
        path: File to write.
        durable: Whether to wait for the disk. It is off for pictures and other files that a run can draw again.

    Yields:
        The temporary file, opened for writing in binary mode.

    Raises:
        WriteError: The system refused to write, as on a full disk. `path` is unchanged.
    """
    path = Path(path)
    temporary = _beside(path)
    try:
        with _written(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            _replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def replacing_path(path: str | Path) -> Iterator[Path]:
    """`replacing` for libraries that open files themselves or write a folder. Yields a temporary path of the same name.

    Raises:
        WriteError: The system refused to write, as on a full disk. `path` is unchanged.
    """
    path = Path(path)
    folder = _beside(path)
    try:
        with _written(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir(exist_ok=True)
            yield folder / path.name
            if path.is_dir():
                # A folder cannot be replaced in one piece: the old one goes once the new one is whole.
                shutil.rmtree(path)
            _replace(folder / path.name, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


#: Windows refuses to replace a file that another process reads: how many seconds it is asked again.
_PATIENCE = 2.0 if os.name == "nt" else 0.0


def _replace(source: Path, target: Path) -> None:
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            os.replace(source, target)
            return
        except PermissionError:
            if time.monotonic() >= until:
                raise
        time.sleep(0.02)


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.{os.getpid()}.tmp")


@contextmanager
def _written(path: Path) -> Iterator[None]:
    """Turns what the system says of a write into a WriteError that names the file."""
    try:
        yield
    except Exception as error:
        refused = _system_error(error)
        if refused is None or isinstance(error, UserError):
            raise
        what = refused.strerror or str(refused).partition("\n")[0]
        raise WriteError(f"{path}: required room and permission to write it, got {what}") from error


def _system_error(error: BaseException | None) -> OSError | None:
    """The error of the system behind an error: torch.save, for one, ends in a RuntimeError of its own."""
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error


#: How `_beside` names what is not whole yet; early checkpoints were written as checkpoint.pt.tmp.
_LEFTOVER = re.compile(r".+\.(\d+|pt)\.tmp")


def remove_leftovers(folder: Path, names: Sequence[str] = ("*",)) -> None:
    """Deletes the temporary files and folders that killed processes left behind, in a folder and in its subfolders.

    Args:
        folder: Folder to search.
        names: Patterns of the names of the files that were being written. By default all.
    """
    found = [path for name in names for path in folder.rglob(f"{name}.tmp") if _LEFTOVER.fullmatch(path.name)]
    for leftover in found:
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def exists(path: Path) -> bool:
    """Whether there is something at a path; not where the system refuses its name, as one that is too long."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def is_file(path: Path) -> bool:
    """Whether there is a file at a path; not where the system refuses its name, as one that is too long."""
    return exists(path) and path.is_file()


def cache_folder() -> Path | None:
    """Folder of what can be made or fetched again, such as compiled kernels.

    None where the user has no home, as in a container with a foreign user.
    """
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "splat_ssim"
    except RuntimeError:
        return None


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
