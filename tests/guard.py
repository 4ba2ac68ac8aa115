"""Allocates torch's CPU tensors next to protected pages, and runs kernels on them.

`python -m tests.guard GROUP [FIRST]` runs a group of tests/kernel_calls.py from call number FIRST on.
Each call runs twice: with every tensor ending at a protected page, and with every tensor beginning
after one. The outputs must be the same. The number and the name of a call are printed before it
starts, so that tests/test_guard_pages.py knows which call crashed.
"""

import contextlib
import ctypes
import faulthandler
import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "tests" / "native" / "guard.cpp"

#: The arguments of guard_mode in guard.cpp.
MODES = {"plain": 0, "at the end": 1, "at the beginning": 2}


def build() -> Path:
    """Compiles the allocator for the installed torch if it is out of date. Returns the library."""
    sys.path.insert(0, str(ROOT / "csrc"))
    import build as native

    library = ROOT / "build" / "guard" / f"guard-{torch.__version__}.so"
    if library.exists() and library.stat().st_mtime > SOURCE.stat().st_mtime:
        return library
    library.parent.mkdir(parents=True, exist_ok=True)
    temporary = library.with_suffix(f".{os.getpid()}.tmp")
    home = Path(torch.__file__).parent
    command = [*native.compiler(), "-std=c++20", "-O1", "-fPIC", "-shared", "-fvisibility=hidden", "-Wall", "-Wextra"]
    command += [
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
        f"-I{home / 'include'}",
        str(SOURCE),
    ]
    subprocess.run([*command, f"-L{home / 'lib'}", "-lc10", "-o", str(temporary)], check=True)
    os.replace(temporary, library)
    return library


@functools.cache
def _installed() -> ctypes.CDLL:
    faulthandler.enable()  # enabled first, because the allocator's handler calls the previous one
    library = ctypes.CDLL(str(build()))
    library.guard_install()
    return library


@contextlib.contextmanager
def guarded(mode: str) -> Iterator[None]:
    """Guards the tensors made inside. A fault ends the process, so use it in a child process."""
    library = _installed()
    library.guard_mode(MODES[mode])
    try:
        yield
    finally:
        library.guard_mode(MODES["plain"])


def _bytes(tensor: Tensor) -> bytes:
    """A tensor's values as bytes, so that NaN equals NaN."""
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes()


def check(run: Callable[[], Sequence[Tensor]]) -> None:
    """Runs a call with its tensors guarded at the end, then at the beginning.

    Raises:
        AssertionError: The outputs differ: they depend on memory that no one wrote.
    """
    with guarded("at the end"):
        expected = run()
    with guarded("at the beginning"):
        found = run()
    for index, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert a.shape == b.shape and _bytes(a) == _bytes(b), f"output {index} depends on memory that no one wrote"


def main() -> None:
    """Command line."""
    from tests import devices, kernel_calls

    group, first = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0
    with devices.use("emulation") if group == "emulation" else contextlib.nullcontext():
        for number, call in enumerate(kernel_calls.GROUPS[group]()):
            if number >= first:
                print(number, call.name, flush=True)
                torch.set_num_threads(2 if number % 8 == 0 else 1)  # two threads do not make small calls faster
                check(call.run)
    print("done", flush=True)


if __name__ == "__main__":
    main()
