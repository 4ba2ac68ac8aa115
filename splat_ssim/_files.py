"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, BinaryIO

from splat_ssim.errors import UserError, WriteError

#: Names the folder of `cache_folder`; without it $XDG_CACHE_HOME/splat_ssim or ~/.cache/splat_ssim.
CACHE_VARIABLE = "SPLAT_SSIM_CACHE"
#: Says of a folder what keeps it from being replaced, such as "a folder with thesis.txt"; None if nothing does.
Store = Callable[[Path], str | None]
#: Bytes that are written to find out whether anything can be written.
_BLOCK = 1 << 12
#: Bytes without which a disk counts as full where a library does not say what is wrong.
_ROOM = 1 << 20
#: The only key of a description while it is replaced together with the file that it describes.
UNFINISHED = "being replaced"


@contextmanager
def replacing(
    path: str | Path, *, durable: bool = True, commit: AbstractContextManager[None] | None = None
) -> Iterator[BinaryIO]:
    """Opens a temporary file, which replaces `path` when the block ends without an error.

    The bytes go to a temporary file beside it, which is flushed to the disk and renamed: whenever the process dies,
    `path` is the old file or the new one. Folders are made. Processes that write the same path do not meet. Folders,
    links and devices are never replaced.

    Args:
        path: File to write.
        durable: Whether to wait for the disk. It is off for pictures and other files that a run can draw again.
        commit: Entered when the temporary file is whole, and left when it has replaced `path`: see `described`.

    Yields:
        The temporary file, opened for writing in binary mode.

    Raises:
        WriteError: There is something at the path that is no file, or the system refused to write, as on a full disk.
            `path` is unchanged.
    """
    path = Path(path)
    _check_place(path)
    temporary = _beside(path)
    try:
        with _written(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            with commit or nullcontext():
                _replace(temporary, path)
    except BaseException:
        # What went wrong may be that nothing can be at this place.
        with suppress(OSError):
            temporary.unlink()
        raise


@contextmanager
def replacing_path(
    path: str | Path, *, commit: AbstractContextManager[None] | None = None, store: Store | None = None
) -> Iterator[Path]:
    """`replacing` for libraries that open files themselves or write a folder. Yields a temporary path of the same name.

    Args:
        path: File to write, or folder with `store`.
        commit: As for `replacing`.
        store: For what is written as a folder: says what keeps a folder from being replaced; see `Store`.

    Raises:
        WriteError: There is something at the path that is not replaced, or the system refused to write, as on a full
            disk. `path` is unchanged.
    """
    path = Path(path)
    _check_place(path, store)
    folder = _beside(path)
    try:
        with _written(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir(exist_ok=True)
            yield folder / path.name
            with commit or nullcontext():
                if store is not None and path.is_dir():
                    _replace_folder(folder / path.name, path)
                else:
                    _replace(folder / path.name, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _replace_folder(source: Path, target: Path) -> None:
    """A folder cannot be replaced in one piece: the old one is renamed, and deleted once the new one is there.

    A process that dies in between leaves the old one under a name that `remove_leftovers` does not know.
    """
    aside = target.with_name(f"{target.name}.{os.getpid()}.old")
    os.rename(target, aside)
    try:
        os.rename(source, target)
    except BaseException:
        os.rename(aside, target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def check_output(
    path: str | Path, *, inputs: Sequence[Path] = (), outside: bool = False, store: Store | None = None
) -> None:
    """Checks, before anything is computed, that `replacing` could write a file. Leaves nothing behind.

    Args:
        path: File to write, or folder with `store`.
        inputs: Files and folders that are read, none of which the output may replace.
        outside: Whether the output may not lie in a folder among the inputs either.
        store: As for `replacing_path`.

    Raises:
        WriteError: There is something at the path that is not replaced, it is an input, or the system refuses to write.
    """
    path = Path(path)
    _check_place(path, store)
    target = Path(os.path.realpath(path))
    check_apart(path, inputs)
    for each in inputs:
        source = Path(os.path.realpath(each))
        if target in source.parents or (outside and source in target.parents):
            wrong = "a folder around it" if target in source.parents else "a place inside it"
            raise WriteError(f"{path}: required an output apart from the input {each}, got {wrong}")
    _try(path.absolute().parent, path)


def check_output_folder(path: str | Path, *, inputs: Sequence[Path] = ()) -> None:
    """`check_output` for a folder that files are written to, and whose other files are kept.

    Raises:
        WriteError: There is a file or a device at the path, it is an input, or the system refuses to write there.
    """
    path = Path(path)
    if os.path.lexists(path) and not path.is_dir():
        raise WriteError(f"{path}: required a folder to write to, got a file")
    check_apart(path, inputs)
    if not path.is_dir():
        _check_place(path)
    _try(path.absolute(), path)


def check_apart(path: Path, inputs: Sequence[Path]) -> None:
    """Raises WriteError if an output is one of the inputs, by whatever name."""
    target = Path(os.path.realpath(path))
    for each in inputs:
        source = Path(os.path.realpath(each))
        if source == target or (exists(source) and exists(target) and source.samefile(target)):
            raise WriteError(f"{path}: required an output apart from the input {each}, got the same")


@contextmanager
def described(description: Path, content: Any) -> Iterator[None]:
    """Replaces the JSON file that describes another file, which is replaced in the block.

    Two files cannot be replaced in one piece. So that no reader takes the new file with the old description, it holds
    during the block nothing but `UNFINISHED`, with both descriptions below; a process that dies there leaves it so.

    Raises:
        WriteError: The system refused to write, as on a full disk. Both files are unchanged.
    """
    _check_place(description)
    new, mark = _beside(description), _beside(description.with_name(f"{description.name}.mark"))
    before = description.read_bytes() if os.path.isfile(description) else None
    both = {"before": None if before is None else before.decode(errors="surrogateescape"), "after": content}
    try:
        with _written(description):
            for file, text in ((new, to_json(content)), (mark, to_json({UNFINISHED: both}))):
                _put(file, f"{text}\n".encode())
            _replace(mark, description)
        try:
            yield
        except BaseException:
            if before is None:
                description.unlink()
            else:
                _put(mark, before)
                _replace(mark, description)
            raise
        _replace(new, description)
    finally:
        for file in (new, mark):
            with suppress(OSError):
                file.unlink()


def _put(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _check_place(path: Path, store: Store | None = None) -> None:
    """Raises WriteError where what is at a path is not to be replaced, or nothing can be there."""
    got = None
    if os.path.islink(path):
        # Neither is right for everyone: to put a file in its place, or to write to what may be another's.
        got = f"a link to {os.readlink(path)}, which is to be named itself"
    elif os.path.isdir(path):
        got = "a folder" if store is None else store(path)
    elif os.path.lexists(path) and (store is not None or not os.path.isfile(path)):
        got = "a file" if os.path.isfile(path) else "a device or a pipe"
    if got is not None:
        raise WriteError(f"{path}: required {'a file' if store is None else 'a zarr folder'} to write, got {got}")
    above = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if not above.is_dir():
        raise WriteError(f"{path}: required a folder to write it to, got the file {above}")


def _try(folder: Path, path: Path) -> None:
    """Writes to a folder, or to the one above it that there is, and deletes what was written."""
    above = next(each for each in (folder, *folder.parents) if os.path.isdir(each))
    with _written(path), tempfile.NamedTemporaryFile(dir=above, prefix=f"{path.name}.", suffix=".tmp") as file:
        file.write(bytes(_BLOCK))
        file.flush()


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
        raise WriteError(f"{path}: required room and permission to write it, got {_reason(refused, path)}") from error


def _reason(refused: OSError, path: Path) -> str:
    """What the system says of a write. A library's error may not tell, as that of a pipe to a program that has ended.

    The incomplete file is still there, so that a full disk is still full.
    """
    if refused.strerror and refused.errno != errno.EPIPE:
        return refused.strerror
    try:
        with tempfile.TemporaryFile(dir=path.parent) as file:
            file.write(bytes(_ROOM))
            file.flush()
    except OSError as why:
        return why.strerror or str(why)
    return str(refused).partition("\n")[0]


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
