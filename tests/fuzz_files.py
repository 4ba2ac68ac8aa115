"""Reads damaged files as a user's commands do. Each must be read, or refused by one sentence that names it.

    python -m tests.fuzz_files --count 100000 --seed 0      # as `make fuzz-files COUNT=100000 SEED=0`
    python -m tests.fuzz_files --case 123456789             # one case again, its traceback too
    python -m tests.fuzz_files --only COLMAP,YAML           # some kinds of files

A case depends only on its number, which is seed · 10⁹ + a count. Findings are: an exception other than UserError, a
message of several lines or one that does not name the file, a worker that died, one that computed for more than five
seconds, and one that asked for more than two gigabytes. The exit code is then 1, and the damaged files are kept.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import ctypes
import faulthandler
import multiprocessing
import multiprocessing.sharedctypes
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch

from splat_ssim.errors import UserError
from tests.fuzz_file_readers import TARGETS, Target, write_seeds

_SEED = 10**9
#: Largest processor time for a file in seconds, and largest time by the clock, which means less on a busy machine.
COMPUTING, WAITING = 5.0, 60.0
#: Largest number of bytes that a worker may take beyond those it has before its first file.
MEMORY = 2 << 30
#: Largest length of a message. It is a sentence and does not quote the whole file.
LONGEST = 1500
#: Number of files after which a worker is replaced.
FILES_A_WORKER = 4000


def draw(number: int, targets: list[Target], seeds: Path) -> tuple[random.Random, Target, str, bytes]:
    """Draws the case of a number: the source of further draws, the kind, the file and its damaged content."""
    source = random.Random(number)
    target = source.choices(targets, [target.weight for target in targets])[0]
    files = [name for name in target.files if (seeds / name).is_file()]
    name = source.choice(files)
    whole = seeds / name
    content = (whole.with_name("whole.pt") if whole.name == "checkpoint.pt" else whole).read_bytes()
    return source, target, name, target.change(source, content)


def problem_of(error: BaseException, path: Path) -> str | None:
    """Says what is wrong with the answer to a damaged file, or returns None."""
    if not isinstance(error, UserError):
        frame = traceback.extract_tb(error.__traceback__)[-1]
        own = [f for f in traceback.extract_tb(error.__traceback__) if "splat_ssim" in f.filename]
        place = own[-1] if own else frame
        return f"{type(error).__name__} in {Path(place.filename).name}:{place.name}"
    message = str(error)
    if len(message.splitlines()) != 1 or not message.replace("\n", " ").isprintable():
        return "a message of several lines or with control characters"
    if len(message) > LONGEST:
        return "a message that is too long"
    # A scene's message may name its folder, or another file of the folder.
    scene = path.parents[2] if path.parent.parent.name == "sparse" else path.parent
    places = [path.name, str(scene), f"{scene.name}: "]
    if not any(place in message for place in places):
        return "a message that does not name the file"
    return None


def try_file(number: int, targets: list[Target], seeds: Path, place: Path) -> tuple[Target, str, str | None, str]:
    """Reads the file of a case. Returns its kind, its name, the problem or None, and the details or the answer."""
    source, target, name, content = draw(number, targets, seeds)
    path = place / name
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        target.read(path, source)
        return target, name, None, "read"
    except Exception as error:
        problem = problem_of(error, path)
        told = str(error) if isinstance(error, UserError) else "".join(traceback.format_exception(error)[-12:])
        return target, name, problem, f"{type(error).__name__}: {told}"
    finally:
        path.write_bytes(before)


# --------------------------------------------------------------------------------------------------------------------
# Workers
# --------------------------------------------------------------------------------------------------------------------


def _limit_memory(size: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGESIZE") + size
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _computed(process: int) -> float:
    """Processor time of a process in seconds."""
    with contextlib.suppress(OSError, IndexError):
        words = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _work(first: int, end: int, targets: list[Target], seeds: Path, place: Path, shared: Any, results: Any) -> None:
    """Reads file after file. `shared` holds the number of the current one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        # Warnings of readers and of their libraries are not judged.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
    faulthandler.disable()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(seeds, place)
    _limit_memory(MEMORY)
    for number in range(first, end):
        shared.value = number
        start = time.monotonic()
        target, name, problem, told = try_file(number, targets, seeds, place)
        results.send((number, target.name, name, problem, told[-4000:], time.monotonic() - start))
    shared.value = -1
    results.close()


class Fuzzing:
    """Reads the files of a range of cases in workers, one at a time, and collects the findings.

    Args:
        place: Folder for the valid files, the workers' files and the findings.
        only: Names of the targets to use. By default all.
    """

    def __init__(self, place: Path, only: list[str] | None = None) -> None:
        self.place, self.seeds = place, place / "seeds"
        self.targets = [target for target in TARGETS if only is None or target.name in only]
        if not self.targets:
            raise SystemExit(f"--only must name some of {', '.join(target.name for target in TARGETS)}, got {only}")
        self.counts: collections.Counter[str] = collections.Counter()
        self.read: collections.Counter[str] = collections.Counter()
        self.findings: collections.Counter[tuple[str, str]] = collections.Counter()
        self.examples: dict[tuple[str, str], tuple[int, str]] = {}
        self.seconds: collections.defaultdict[str, float] = collections.defaultdict(float)
        self.slowest: tuple[float, int] = (0.0, -1)
        # The parent must not compute with torch before the first fork.
        if not self.seeds.exists():
            process = multiprocessing.get_context("fork").Process(target=self._write_seeds)
            process.start()
            process.join()
            if process.exitcode:
                raise RuntimeError("the valid files could not be written")

    def _write_seeds(self) -> None:
        torch.set_num_threads(1)
        with open(os.devnull, "w") as null, contextlib.redirect_stdout(null), contextlib.redirect_stderr(null):
            write_seeds(self.seeds)

    def run(self, first: int, end: int) -> None:
        """Reads the files of the cases from `first` up to, but not including, `end`."""
        number = first
        while number < end:
            number = self._worker(number, min(end, number + FILES_A_WORKER))

    def _worker(self, first: int, end: int) -> int:
        """Lets a worker read files. Returns the number of the case to go on with."""
        context = multiprocessing.get_context("fork")
        receiver, sender = context.Pipe(duplex=False)
        current = multiprocessing.sharedctypes.RawValue(ctypes.c_longlong, first)
        arguments = (first, end, self.targets, self.seeds, self.place / "work", current, sender)
        process = context.Process(target=_work, args=arguments)
        process.start()
        sender.close()
        last, since, computed, reason = -1, time.monotonic(), 0.0, None
        while True:
            try:
                while receiver.poll(0.25):
                    self._note(*receiver.recv())
            except EOFError:
                break
            if current.value != last:
                last, since, computed = current.value, time.monotonic(), _computed(process.pid or 0)
            elif time.monotonic() - since > WAITING or _computed(process.pid or 0) - computed > COMPUTING:
                reason = f"a hang of {_computed(process.pid or 0) - computed:.1f} s"
                process.kill()
                break
        process.join()
        number = current.value
        if number < 0:
            return end
        self._note(number, *self._named(number), reason or f"the worker ended by exit code {process.exitcode}", "", 0.0)
        return number + 1

    def _named(self, number: int) -> tuple[str, str]:
        _, target, name, _ = draw(number, self.targets, self.seeds)
        return target.name, name

    def _note(self, number: int, target: str, name: str, problem: str | None, told: str, seconds: float) -> None:
        self.counts[target] += 1
        self.read[target] += told == "read"
        self.slowest = max(self.slowest, (seconds, number))
        self.seconds[target] += seconds
        if problem is None:
            return
        key = (target, problem)
        self.findings[key] += 1
        if key in self.examples:
            return
        self.examples[key] = number, told
        kept = self.place / "findings" / str(number)
        kept.mkdir(parents=True, exist_ok=True)
        (kept / Path(name).name).write_bytes(draw(number, self.targets, self.seeds)[3])
        print(f"FINDING {target}, {name}: {problem}\n  replay: python -m tests.fuzz_files --case {number}", end="")
        if len(self.targets) < len(TARGETS):
            print(" --only " + ",".join(target.name.replace(" ", "\\ ") for target in self.targets), end="")
        print(f"\n  kept: {kept}\n  " + told.strip()[-1500:].replace("\n", "\n  "), flush=True)

    def replay(self, number: int) -> int:
        """Runs one case in this process. Returns the exit code."""
        torch.set_num_threads(1)
        place = self.place / "work"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(self.seeds, place)
        _limit_memory(MEMORY)
        faulthandler.enable()
        target, name, problem, told = try_file(number, self.targets, self.seeds, place)
        print(f"{target.name}, {name}: {problem or 'nothing found'}\n{told}")
        return 1 if problem else 0


def main() -> int:
    """Parses the command line and reads the files. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz_files", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=1000, help="How many files are read.")
    parser.add_argument("--seed", type=int, default=0, help="Cases are numbered from it.")
    parser.add_argument("--case", type=int, help="This case alone.")
    parser.add_argument("--only", type=lambda text: text.split(","), help="Kinds of files, separated by commas.")
    options = parser.parse_args()
    memory = Path("/dev/shm")
    place = Path(tempfile.mkdtemp(prefix="fuzz-files-", dir=memory if os.access(memory, os.W_OK) else None))
    fuzzing = Fuzzing(place, options.only)
    if options.case is not None:
        code = fuzzing.replay(options.case)
        shutil.rmtree(place)
        return code
    start = time.monotonic()
    first = options.seed * _SEED
    for part in range(first, first + options.count, 10_000):
        fuzzing.run(part, min(part + 10_000, first + options.count))
        seconds = time.monotonic() - start
        print(
            f"{sum(fuzzing.counts.values())} files in {seconds:.0f} s, {sum(fuzzing.findings.values())} findings",
            flush=True,
        )
    for name, count in fuzzing.counts.most_common():
        print(f"  {name}: {count} files, {fuzzing.read[name]} of them read, {fuzzing.seconds[name]:.0f} s")
    for (target, problem), count in fuzzing.findings.most_common():
        print(f"  {count} × {target}: {problem} (case {fuzzing.examples[target, problem][0]})")
    print(f"  slowest: {fuzzing.slowest[0]:.2f} s, case {fuzzing.slowest[1]}")
    if not fuzzing.findings:
        shutil.rmtree(place)
    return 1 if fuzzing.findings else 0


if __name__ == "__main__":
    sys.exit(main())
