"""The scalars that the steps of a run reported, kept in its folder: one JSON object for each line."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from splat_ssim._files import without_infinities, write_text
from splat_ssim.errors import UserError

NAME = "history.jsonl"


class History:
    """The scalars that were shown during a run, a row for each time: step, seconds of training and the values.

    `history.jsonl` is written with every checkpoint. A run that goes on from one goes on with the rows up to it.

    Example:
        >>> from splat_ssim.trainer.history import History
        >>> history = History()
        >>> history.note(25, 1.5, {"loss": 0.25})
        >>> history.rows
        [{'step': 25, 'seconds': 1.5, 'loss': 0.25}]
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def note(self, step: int, seconds: float, values: Mapping[str, Any]) -> None:
        """Adds the values that were reported after `step` steps and this many seconds of training."""
        self.rows.append({"step": step, "seconds": round(seconds, 3), **values})

    def save(self, folder: Path) -> None:
        """Writes the rows to a run folder. Without rows, no file is written and an old one is deleted.

        Raises:
            WriteError: The system refused to write.
        """
        if not self.rows:
            (folder / NAME).unlink(missing_ok=True)
            return
        lines = [json.dumps(without_infinities(row), allow_nan=False) for row in self.rows]
        write_text(folder / NAME, "\n".join(lines) + "\n")

    @classmethod
    def read(cls, folder: Path, step: int) -> History:
        """The rows of a run folder up to a step. An unreadable history is left out, and a line on stderr says so."""
        history = cls()
        try:
            history.rows = [row for row in read_rows(folder) if row["step"] <= step]
        except UserError as broken:
            print(f"{broken}; the curves begin anew", file=sys.stderr)
        return history


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Reads the rows of a run folder's history. There are none if it has no history.

    Raises:
        UserError: The history is damaged.
    """
    path = folder / NAME
    if not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: required lines of JSON, got {error}") from None
    return [_row(line, f"{path}: line {number}") for number, line in enumerate(lines, 1)]


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as broken:
        raise UserError(f"{where}: required JSON, got {broken}") from None
    if not isinstance(row, dict) or not _is_number(row.get("step")) or not _is_number(row.get("seconds")):
        raise UserError(f"{where}: required an object with step and seconds, got {line:.80}")
    for key, value in row.items():
        values = value.values() if isinstance(value, dict) else [value]
        if not all(item is None or _is_number(item) for item in values):
            raise UserError(f"{where}: {key}: required a number, got {value!r:.80}")
    return row


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False
