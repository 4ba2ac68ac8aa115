"""Kills or stops trainings, or fills their disk, at random moments, and checks what is left of them.

    python -m tests.kill_rounds --rounds 50 --seed 0     # as `make kill-rounds ROUNDS=50 SEED=0`
    python -m tests.kill_rounds --seed 0 --round 17      # one round again

A round starts a small training and strikes up to three times: by SIGKILL, SIGINT or SIGTERM, by a limit on the size of
files, or by a full file system. It strikes at a random time, or at one of the writes to the run folder, which
are counted. After each strike every file of the run folder must read, and the program must have ended as it promises:
by the customary exit status and without a traceback. Then the run goes on by --resume, and at its end its checkpoint,
its files and its metrics must be those of a run that nothing has happened to, bit by bit.

A finding is printed with its round, its run folder is kept, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import random
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import splat_ssim.image
import splat_ssim.scene
import splat_ssim.volume  # noqa: F401  children are forked and find it imported
from splat_ssim.ply import load_ply
from splat_ssim.trainer.checkpoint import load_checkpoint
from splat_ssim.trainer.cli import main as train
from splat_ssim.trainer.config import read_yaml
from splat_ssim.trainer.folder import read_config
from splat_ssim.trainer.history import read_rows
from splat_ssim.volume import load_volume
from splat_ssim.volume.export import load_gaussians_ply, load_quantized
from tests.scenes import write_blender
from tests.volumes import ball, save

#: Metrics that hold times and memory, which differ from run to run.
MEASURED = ("train_seconds", "peak_memory_bytes")
#: Largest time of a training in seconds. No training comes close to it.
PATIENCE = 120
#: Kinds of strikes, and their relative frequency.
WAYS = {"SIGKILL": 4, "SIGINT": 2, "SIGTERM": 2, "small files": 2, "full disk": 2}


class FindingError(AssertionError):
    """A strike has left something that is not as promised."""


# --------------------------------------------------------------------------------------------------------------------
# Trainings
# --------------------------------------------------------------------------------------------------------------------


def _scene(data: Path, *more: str) -> list[str]:
    options = ["--data-dir", str(data / "ball"), "--steps", "40", "--checkpoint-every", "3", "--output.eval-every", "9"]
    options += ["--model.init-count", "150", "--strategy.refine-start", "5", "--output.no-video"]
    return [*options, "--output.images", "1", *more]


def _volume(data: Path, *more: str) -> list[str]:
    options = ["--config", "configs/voxel_mri.yaml", "--steps", "30", "--checkpoint-every", "4", "--output.no-video"]
    return [*options, "--strategy.budget", "60", "--output.eval-every", "11", *more]


def trainings(data: Path) -> dict[str, list[str]]:
    """Name -> command line of train.py, without the run folder."""
    nifti, packed = str(data / "scan.nii.gz"), str(data / "scan.npz")
    growing = ["--strategy.budget", "220", "--strategy.refine-every", "10"]
    image = ["--config", "configs/image.yaml", "--data-dir", str(data / "picture.png"), "--model.budget", "90"]
    return {
        "scene": _scene(data, *growing),
        "scene, mcmc": _scene(data, *growing, "--strategy.name", "mcmc"),
        "scene, taming": _scene(data, *growing, "--strategy.name", "taming", "--optimizer.name", "sparse_adam"),
        "chair": [
            *["--data-dir", "assets/chair_200", "--data.factor", "4", "--steps", "12", "--checkpoint-every", "2"],
            *["--model.init-count", "500", "--output.no-video", "--output.images", "1"],
        ],
        "volume": _volume(data, "--data-dir", nifti),
        "volume, crops": _volume(data, "--data-dir", packed, "--crop", "8", "--output.format", "npz"),
        "volume, capped": _volume(data, "--data-dir", packed, "--strategy.name", "capped", "--output.format", "zarr"),
        "grid": _volume(data, "--data-dir", nifti, "--model.name", "grid", "--output.format", "npy"),
        "image": [*image, "--steps", "60", "--checkpoint-every", "5"],
    }


def write_data(folder: Path) -> Path:
    """Writes the scene, the volumes and the picture that `trainings` uses."""
    write_blender(folder / "ball", size=24)
    save(folder / "scan.nii.gz", ball(0, 900, np.int16))
    save(folder / "scan.npz", ball(0, 1, np.float32))
    pixels = np.random.default_rng(0).integers(0, 255, (24, 20, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "picture.png")
    return folder


# --------------------------------------------------------------------------------------------------------------------
# Children
# --------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Strike:
    """An event that ends or disturbs a training, and its time.

    Attributes:
        way: Kind of the event, a key of WAYS.
        seconds: Time of the event in seconds since the start. None if `write` is given.
        write: Write to the run folder at which the event happens, counted from 1.
        delay: Seconds between that write and the event. A signal other than SIGKILL, and a full disk, have no delay.
        size: Number of bytes that a file may have, or that are left on the disk.
    """

    way: str
    seconds: float | None = None
    write: int | None = None
    delay: float = 0.0
    size: int = 0

    def __str__(self) -> str:
        when = f"after {self.seconds:.3f} s" if self.write is None else f"at write {self.write}"
        delay = f" and {1000 * self.delay:.1f} ms" if self.delay else ""
        size = f", {self.size} bytes" if self.way in ("small files", "full disk") else ""
        return f"{self.way} {when}{delay}{size}"


@dataclasses.dataclass
class Ended:
    """How a training ended: its exit status, negative for a signal, its seconds, its writes and what it printed."""

    status: int
    seconds: float
    writes: int
    told: str


#: Python's audit events of writes -> index of the path among their arguments.
_WRITES = {"os.rename": 1, "os.remove": 0, "os.mkdir": 0, "os.rmdir": 0, "shutil.rmtree": 0}


def _watch(folder: Path, act: Callable[[int], None]) -> None:
    """Calls `act` with the write's number before each write to a folder: a file is opened, renamed or removed."""
    count, inside = 0, os.fspath(folder)

    def hook(event: str, arguments: tuple) -> None:
        nonlocal count
        if event == "open":
            path, mode, flags = arguments
            writes = any(letter in mode for letter in "wax+") if mode else flags & (os.O_WRONLY | os.O_RDWR)
        elif event in _WRITES:
            path, writes = arguments[_WRITES[event]], True
        else:
            return
        if writes and isinstance(path, str | os.PathLike) and os.fspath(path).startswith(inside):
            count += 1
            act(count)

    sys.addaudithook(hook)


def _limit_files(process: int, size: int) -> None:
    """Limits the size of a process's files. The system answers as on a full disk, with another error number."""
    resource.prlimit(process, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def fill(disk: Path, left: int) -> None:
    """Fills a file system up to the given number of free bytes."""
    usage = os.statvfs(disk)
    with open(disk / "ballast", "ab") as file, contextlib.suppress(OSError):
        file.write(bytes(max(0, usage.f_bavail * usage.f_frsize - left)))


def _strike(strike: Strike, process: int, disk: Path | None) -> None:
    """Carries out a strike on a process, now."""
    if strike.way == "small files":
        _limit_files(process, strike.size)
    elif strike.way == "full disk" and disk is not None:
        fill(disk, strike.size)
    elif strike.way.startswith("SIG"):
        os.kill(process, signal.Signals[strike.way])


def _child(arguments: list[str], folder: Path, log: Path, strike: Strike | None, disk: Path | None) -> None:
    """Runs a command line in a forked child as train.py would, and ends the process."""
    status = 1
    try:
        with open(log, "wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # of pytest's time limit
        torch.set_num_threads(1)
        counted = 0

        def act(number: int) -> None:
            nonlocal counted
            counted = number
            if strike is None or number != strike.write:
                return
            if strike.way == "SIGKILL" and strike.delay:
                # The alarm's default action ends the process like SIGKILL, wherever it is at that time.
                signal.setitimer(signal.ITIMER_REAL, strike.delay)
            else:
                _strike(strike, os.getpid(), disk)

        _watch(folder, act)
        try:
            train(arguments)
            status = 0
        except SystemExit as ended:
            if isinstance(ended.code, str):
                print(ended.code, file=sys.stderr)
            status = ended.code if isinstance(ended.code, int) else 1
        except KeyboardInterrupt:
            status = 128 + signal.SIGINT  # before or after our program
        except BaseException:
            traceback.print_exc()
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        print(f"writes: {counted}")
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def run_child(
    arguments: list[str], folder: Path, log: Path, strike: Strike | None = None, disk: Path | None = None
) -> Ended:
    """Trains in a forked child, strikes, and waits for its end.

    Raises:
        FindingError: The child process does not end.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    start = time.monotonic()
    process = os.fork()
    if process == 0:
        _child(arguments, folder, log, strike, disk)
    struck = strike is None or strike.seconds is None
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        now = time.monotonic() - start
        if ended:
            break
        if not struck and strike is not None and now >= strike.seconds:
            _strike(strike, process, disk)
            struck = True
        if now > PATIENCE:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            raise FindingError(f"the program has not ended after {PATIENCE} s: {log}")
        time.sleep(0.0005 if not struck else 0.005)
    told = log.read_text(errors="replace")
    writes = [line.removeprefix("writes: ") for line in told.splitlines() if line.startswith("writes: ")]
    return Ended(os.waitstatus_to_exitcode(status), now, int(writes[-1]) if writes else 0, told)


# --------------------------------------------------------------------------------------------------------------------
# Checks
# --------------------------------------------------------------------------------------------------------------------


def check_end(ended: Ended, strike: Strike) -> None:
    """Raises FindingError if a program did not end as it promises after a strike."""
    if "Traceback" in ended.told:
        raise FindingError(f"a traceback after {strike}:\n{ended.told}")
    allowed = {
        "SIGKILL": (0, -signal.SIGKILL, -signal.SIGALRM),
        "SIGINT": (0, 128 + signal.SIGINT),
        # Until the loop handles it, SIGTERM has its default action.
        "SIGTERM": (0, 128 + signal.SIGTERM, -signal.SIGTERM),
        "small files": (0, 1),
        "full disk": (0, 1),
    }[strike.way]
    if ended.status not in allowed:
        raise FindingError(f"exit status {ended.status} after {strike}:\n{ended.told}")
    if ended.status == 1:
        lines = [line for line in ended.told.splitlines() if line.startswith("error: ")]
        if len(lines) != 1 or "required room and permission to write it" not in lines[0]:
            raise FindingError(f"required one sentence after {strike}, got:\n{ended.told}")


def check_folder(folder: Path) -> None:
    """Raises FindingError if a file of a run folder cannot be read."""
    readers: dict[str, Callable[[Path], Any]] = {
        ".json": lambda path: json.loads(path.read_text()),
        ".yaml": lambda path: (read_yaml(path), read_config(path.parent)),
        ".pt": lambda path: load_checkpoint(path.parent, torch.device("cpu"), restore_generators=False),
        ".quantized": load_quantized,
        ".ply": lambda path: load_ply(path) if path.name == "scene.ply" else load_gaussians_ply(path),
        ".png": lambda path: Image.open(path).load(),
        ".mp4": lambda path: path.read_bytes(),
        ".jsonl": lambda path: read_rows(path.parent),
        ".html": lambda path: path.read_text(encoding="utf-8").index("</html>"),
        **dict.fromkeys((".gz", ".npz", ".npy", ".zarr"), load_volume),
    }
    for path in sorted(folder.rglob("*")):
        inner = any(part.endswith((".zarr", ".tmp")) for part in path.relative_to(folder).parts[:-1])
        if inner or path.suffix == ".tmp" or path.name == ".lock" or (path.is_dir() and path.suffix != ".zarr"):
            continue
        try:
            readers[path.suffix](path)
        except Exception as error:
            raise FindingError(f"{path} does not read: {type(error).__name__}: {error}") from error


def _equal(one: Any, other: Any) -> bool:
    """Whether two nested states are equal, tensors bit by bit."""
    if isinstance(one, torch.Tensor):
        same = isinstance(other, torch.Tensor) and (one.dtype, one.shape) == (other.dtype, other.shape)
        return same and one.numpy(force=True).tobytes() == other.numpy(force=True).tobytes()
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(_equal(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(_equal, one, other))
    return type(one) is type(other) and (one == other or (one != one and other != other))


def _content(path: Path) -> Any:
    """The content that a file must have in common with the same file of another run."""
    if path.suffix == ".json":
        return {key: value for key, value in json.loads(path.read_text()).items() if key not in MEASURED}
    if path.suffix == ".yaml":
        return {key: value for key, value in read_yaml(path).items() if key != "result_dir"}
    if path.suffix == ".pt":
        state = torch.load(path, weights_only=True)
        return {key: value for key, value in state.items() if key not in MEASURED}
    if path.suffix == ".jsonl":
        return [{key: value for key, value in row.items() if key != "seconds"} for row in read_rows(path.parent)]
    if path.suffix == ".html":
        return path.name  # it contains times and the folder
    if path.suffix == ".gz":
        import gzip

        return gzip.decompress(path.read_bytes())
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return {name: torch.from_numpy(arrays[name].astype(np.float64)) for name in arrays if arrays[name].ndim}
    return path.read_bytes()


def check_same(folder: Path, reference: Path) -> None:
    """Raises FindingError if a run with strikes differs from one without."""
    names = [
        {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()} for place in (folder, reference)
    ]
    if names[0] != names[1]:
        raise FindingError(f"{folder}: files of one run only: {', '.join(sorted(names[0] ^ names[1]))}")
    for name in sorted(names[0]):
        if not _equal(_content(folder / name), _content(reference / name)):
            raise FindingError(f"{folder / name} differs from that of a run that went through")


# --------------------------------------------------------------------------------------------------------------------
# Rounds
# --------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int = 16) -> Iterator[Path | None]:
    """Mounts a small file system on a folder. Yields None if this machine does not allow it."""
    folder.mkdir(parents=True)
    options = ["-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(["mount", *options], capture_output=True).returncode == 0
    except OSError:
        mounted = False
    try:
        yield folder if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


class Rounds:
    """The rounds of a seed. Undisturbed runs for comparison are made once, when they are first needed.

    Args:
        place: Folder for data and runs.
        seed: Seed of all rounds.
        names: Names of the trainings to choose from. By default all.
    """

    def __init__(self, place: Path, seed: int, names: list[str] | None = None) -> None:
        self.place, self.seed = place, seed
        chosen = trainings(write_data(place / "data"))
        self.trainings = {name: chosen[name] for name in (names or chosen)}
        self.references: dict[str, tuple[Path, Ended]] = {}
        self.strikes = dict.fromkeys(WAYS, 0)
        self.ends: dict[int, int] = {}

    def reference(self, name: str) -> tuple[Path, Ended]:
        """The run folder of an undisturbed training, and how it ended."""
        if name not in self.references:
            folder = self.place / "whole" / name.replace(", ", "_")
            ended = run_child(self.line(name, folder), folder, self.place / "whole.log")
            if ended.status != 0:
                raise RuntimeError(f"{name}: the training must work where nothing happens, got:\n{ended.told}")
            check_folder(folder)
            self.references[name] = folder, ended
        return self.references[name]

    def line(self, name: str, folder: Path) -> list[str]:
        """The command line that begins a training, or resumes it if there is a checkpoint."""
        more = ["--output.no-progress"]
        if (folder / "checkpoint.pt").exists():
            return ["--resume", str(folder), *more]
        return [*self.trainings[name], "--result-dir", str(folder), *more]

    def run(self, number: int) -> str:
        """Runs one round. Returns a description of it.

        Raises:
            FindingError: A promise is broken. The message names the round and what happened.
        """
        source = random.Random(f"{self.seed} {number}")
        name = source.choice(list(self.trainings))
        told = f"round {number} of seed {self.seed}: {name}"
        place = self.place / f"round-{number}"
        with small_disk(place) as disk:
            folder = place / "run"
            try:
                reference, whole = self.reference(name)
                for _ in range(source.randint(1, 3)):
                    strike = draw(source, whole)
                    told += f"; {strike}"
                    line = self.line(name, folder)
                    ended = run_child(line, folder, self.place / f"round-{number}.log", strike, disk)
                    (place / "ballast").unlink(missing_ok=True)
                    self.strikes[strike.way] += 1
                    self.ends[ended.status] = self.ends.get(ended.status, 0) + 1
                    told += f" (exit status {ended.status})"
                    check_end(ended, strike)
                    check_folder(folder)
                line = self.line(name, folder)
                ended = run_child(line, folder, self.place / f"round-{number}.log")
                if ended.status != 0:
                    raise FindingError(f"{shlex.join(line)} does not go on:\n{ended.told}")
                check_folder(folder)
                check_same(folder, reference)
            except FindingError as finding:
                kept = self.place / "findings" / f"round-{number}"
                if folder.exists():
                    shutil.copytree(folder, kept, dirs_exist_ok=True)
                raise FindingError(f"{told}\n  {finding}\n  kept: {kept}") from finding
        shutil.rmtree(place, ignore_errors=True)
        return told


def draw(source: random.Random, whole: Ended) -> Strike:
    """Draws a strike within the time, or among the writes, of an undisturbed training."""
    way = source.choices(list(WAYS), list(WAYS.values()))[0]
    # Sizes between zero and more than the largest file.
    size = int(2 ** source.uniform(0, 18))
    if source.random() < 0.4:
        return Strike(way, seconds=source.uniform(0, 1.05 * whole.seconds), size=size)
    delay = source.choice([0.0, source.uniform(0, 0.02)]) if way == "SIGKILL" else 0.0
    return Strike(way, write=source.randint(1, max(1, whole.writes)), delay=delay, size=size)


def main() -> int:
    """Parses the command line and runs the rounds. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.kill_rounds", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=50, help="How many rounds.")
    parser.add_argument("--seed", type=int, default=0, help="All that happens is drawn from it and the round's number.")
    parser.add_argument("--round", type=int, help="This round alone.")
    parser.add_argument("--folder", type=Path, help="Where runs are made; by default a temporary folder.")
    options = parser.parse_args()
    place = options.folder or Path(tempfile.mkdtemp(prefix="kill-rounds-"))
    rounds, findings, start = Rounds(place, options.seed), 0, time.monotonic()
    for number in range(options.rounds) if options.round is None else [options.round]:
        try:
            print(rounds.run(number), flush=True)
        except FindingError as finding:
            findings += 1
            print(f"FINDING {finding}\n  replay: python -m tests.kill_rounds --seed {options.seed} --round {number}")
    count = options.rounds if options.round is None else 1
    strikes = ", ".join(f"{count} {way}" for way, count in rounds.strikes.items())
    ends = ", ".join(f"{count} × {status}" for status, count in sorted(rounds.ends.items()))
    print(f"{count} rounds in {time.monotonic() - start:.0f} s, {findings} findings; strikes: {strikes}; ends: {ends}")
    if not findings and options.folder is None:
        shutil.rmtree(place)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
