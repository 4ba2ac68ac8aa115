"""Errors that the person at the command line can put right."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

#: Characters of a message; of a longer one the middle is left out.
_LONGEST = 1000


class UserError(ValueError):
    r"""Something in a command, config or file is wrong. The message says what was required and what was found.

    The scripts print the message as one sentence. Every other exception is a defect of ours and keeps its traceback.

    Messages quote files, which may contain anything, so the text of an error is reduced to one line of printable
    characters and cut to a readable length.

    Example:
        >>> from splat_ssim.errors import UserError
        >>> str(UserError("a.yaml: required YAML, got:\n  two lines"))
        'a.yaml: required YAML, got: two lines'
    """

    def __str__(self) -> str:
        text = super().__str__()
        if len(text) > _LONGEST:
            text = f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 2 :]}"
        if text.isprintable():
            return text
        words = "".join(letter if letter.isprintable() else " " for letter in text).split(" ")
        return " ".join(word for word in words if word)


class WriteError(UserError, OSError):
    """A file could not be written, such as on a full disk. The message names the file, whose old content is kept."""


@contextmanager
def user_errors() -> Iterator[None]:
    """Turns the errors of reading a user's files and options into `UserError`.

    Use it around such calls only: a ValueError from anywhere else is a defect and must keep its traceback.

    Example:
        >>> from splat_ssim.errors import UserError, user_errors
        >>> try:
        ...     with user_errors():
        ...         raise FileNotFoundError("no volume at scan.nrrd")
        ... except UserError as error:
        ...     print(error)
        no volume at scan.nrrd
    """
    try:
        yield
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(f"the data require more memory than there is, got {error or 'none left'}") from error
    except (ValueError, TypeError, OSError, ImportError) as error:
        raise UserError(str(error)) from error
