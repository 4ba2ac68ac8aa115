"""Locks of files, which end with the process that holds them: by fcntl, or on Windows by msvcrt."""

from __future__ import annotations

import errno
import importlib
from typing import IO, Any

fcntl: Any = None
msvcrt: Any = None
try:
    fcntl = importlib.import_module("fcntl")
except ImportError:
    msvcrt = importlib.import_module("msvcrt")

#: What the system says of a lock that another process has.
_TAKEN = (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK)


def take_lock(file: IO[Any]) -> bool:
    """Takes the lock of an open file, held until the file is closed, if nobody else has it.

    A file system without locks gives it to everybody.

    Example:
        >>> import tempfile
        >>> from splat_ssim._locks import take_lock
        >>> with tempfile.TemporaryFile() as file:
        ...     take_lock(file)
        True
    """
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except OSError as error:
        return error.errno not in _TAKEN
    return True


def inherited(descriptor: int) -> dict[str, Any]:
    """Returns options for subprocess.Popen with which the child holds the lock too.

    On Windows no child can: there a lock ends with the process that took it.

    Args:
        descriptor: Descriptor of the locked file.
    """
    return {"pass_fds": [descriptor]} if fcntl is not None else {}
