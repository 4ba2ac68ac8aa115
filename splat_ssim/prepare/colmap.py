"""Starts jobs of COLMAP as processes of their own, shows their progress, and turns their ends into sentences."""

from __future__ import annotations

import json
import queue
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from tqdm import tqdm

from splat_ssim._files import write_json
from splat_ssim._locks import inherited
from splat_ssim.errors import UserError

#: The program that runs a job.
WORKER = Path(__file__).with_name("worker.py")
#: Seconds between two looks at a job.
INTERVAL = 0.25


def run_job(
    job: dict[str, Any],
    *,
    log: Path,
    bar: tqdm,
    stall_minutes: float,
    lock: int,
    count: Callable[[], int] | None = None,
) -> dict[str, Any]:
    """Runs a job of `worker.py` in a process of its own and waits for its end.

    Args:
        job: Options of the job; `job["job"]` names it.
        log: File for COLMAP's output. The job itself is written beside it, as .json.
        bar: Progress bar. Its total is the number of things to do.
        stall_minutes: The job is stopped if neither the progress nor the log has changed for this many minutes. 0:
            never.
        lock: Descriptor of a lock. The worker holds it too until it ends, except on Windows.
        count: Function that returns how many things are done, if the worker cannot tell.

    Returns:
        Result of the job.

    Raises:
        UserError: COLMAP failed, aborted or made no progress.
        RuntimeError: The worker has a defect. The message is its traceback.
    """
    name = job["job"]
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    order = log.with_suffix(".json")
    write_json(order, job)
    with log.open("wb") as told:
        process = subprocess.Popen(
            [sys.executable, str(WORKER), str(order)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=told,
            encoding="utf-8",
            errors="replace",
            **inherited(lock),
        )
    assert process.stdout is not None and process.stdin is not None
    reader = threading.Thread(target=_forward, args=(process.stdout, lines), daemon=True)
    reader.start()
    try:
        end = _watch(process, lines, log, bar, stall_minutes, name, count)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        reader.join()
        process.stdin.close()
        process.stdout.close()
    kind, _, text = end.partition(" ")
    if kind == "result":
        answer: dict[str, Any] = json.loads(text)
        return answer
    if kind == "error":
        raise UserError(text)
    if kind == "defect":
        raise RuntimeError(f"{name} failed in {WORKER.name}:\n{json.loads(text)}")
    how = f"signal {signal.Signals(-process.returncode).name}" if process.returncode < 0 else "an error"
    raise UserError(f"{name}: required COLMAP to reach its end, got {how} after {_last_line(log)!r} (all of it: {log})")


def _forward(stream: Any, lines: queue.SimpleQueue[str]) -> None:
    for line in stream:
        lines.put(line.rstrip("\n"))
    lines.put("")


def _watch(
    process: subprocess.Popen[str],
    lines: queue.SimpleQueue[str],
    log: Path,
    bar: tqdm,
    stall_minutes: float,
    name: str,
    count: Callable[[], int] | None,
) -> str:
    """Shows the progress of a job until it ends. Returns the line with its result or error, "" if there is none."""
    end, seen, since = "", (0, 0), time.monotonic()
    while True:
        try:
            line = lines.get(timeout=INTERVAL)
        except queue.Empty:
            line = None
        if line == "":
            process.wait()
            if end.startswith("result "):
                _show(bar, bar.total if count is None else max(bar.n, count()))
            return end
        if line is not None and line.startswith("progress "):
            _show(bar, int(line.split()[1]))
        elif line is not None and line.startswith(("result ", "error ", "defect ")):
            end = line
        elif line is None and count is not None:
            _show(bar, count())
        now = bar.n, log.stat().st_size
        if now != seen:
            seen, since = now, time.monotonic()
        elif stall_minutes and time.monotonic() - since > 60 * stall_minutes:
            raise UserError(
                f"{name}: required progress of COLMAP within {stall_minutes:g} minutes (--stall-minutes), got none "
                f"after {_last_line(log)!r} (all of it: {log})"
            )


def _show(bar: tqdm, done: int) -> None:
    bar.update(min(done, bar.total or done) - bar.n)


def _last_line(log: Path) -> str:
    """The last line of a log that says something, a traceback's included."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    # Below "***" stands a stack trace of C++.
    said = [line for line in lines if line and not line.startswith(("@", "***", "PC:"))]
    return said[-1][-200:] if said else "no output"


# --- databases


def rows(database: Path, table: str) -> int:
    """The number of rows of a table in a database that another process may be writing; 0 if it cannot be read."""
    if not database.is_file():
        return 0
    try:
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=1)) as connection:
            count: int = connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0]
            return count
    except sqlite3.Error:
        return 0


def settle(database: Path) -> None:
    """Moves what SQLite keeps in files beside a database into it, so that the one file is the whole database."""
    with closing(sqlite3.connect(database, timeout=60)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute("PRAGMA journal_mode=DELETE")


def copied(database: Path, target: Path) -> Path:
    """Copies a settled database in one piece. If `target` exists, it is kept, to go on with it."""
    if not target.is_file():
        new = target.with_suffix(".new")
        shutil.copyfile(database, new)
        new.replace(target)
    return target
