"""Checks the CPU library against the float64 values of tests/data/vectors.bin, natively, under qemu or under wine.

    python scripts/run_vectors.py                         # this machine's library
    python scripts/run_vectors.py --target linux-aarch64  # the NEON kernels, by Debian's cross compiler and qemu-user
    python scripts/run_vectors.py --target windows-x86_64 # by Debian's MinGW and wine

Neither torch nor numpy is needed. Debian's packages: g++-aarch64-linux-gnu and qemu-user; g++-mingw-w64-x86-64 and
wine.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cross_build
from cross_build import ROOT

# Modules of csrc/, which cross_build puts on the path.
import build as native
import toolchain

VECTORS = ROOT / "tests" / "data" / "vectors.bin"
#: Target -> what runs its programs here.
RUNNERS = {"linux-aarch64": ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu"], "windows-x86_64": ["wine"]}


def build_driver(chain: toolchain.Toolchain, folder: Path) -> Path:
    """Compiles tests/native/vectors.cpp. Returns the program."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / ("vectors.exe" if chain.system == "windows" else "vectors")
    own = ["-static"] if chain.system == "windows" else ["-ldl"] if chain.system == "linux" else []
    flags = [*native.BASE_FLAGS, *native.FLOAT_FLAGS, "-O1", "-DSPLAT_ISA=baseline"]
    source = ROOT / "tests" / "native" / "vectors.cpp"
    subprocess.run([*chain.command, *flags, str(source), "-o", str(program), *own], check=True)
    return program


def run(target: str | None, library: Path | None = None) -> int:
    """Builds the driver and, if needed, the library; runs the driver and returns its exit status.

    Args:
        target: One of RUNNERS, or None for this machine.
        library: Path of the library. By default it is built.
    """
    if target is None:
        chain = toolchain.found()
        library = library or native.build(ROOT / "splat_ssim" / chain.library_name, ROOT / "build" / "csrc")
        return subprocess.run([build_driver(chain, ROOT / "build" / "vectors"), library, VECTORS]).returncode
    runner = RUNNERS[target]
    program, found = next(iter(cross_build.compilers(target)))
    if isinstance(found, str):
        sys.exit(f"error: {target}: {found}")
    chain = found
    if shutil.which(runner[0]) is None:
        sys.exit(f"error: {target}: required {runner[0]} to run its programs, got none")
    library = library or cross_build.build(target, program, chain)
    driver = build_driver(chain, ROOT / "build" / "vectors" / target)
    # Wine shows the files of the system as drive Z and keeps its own in a separate folder.
    files = [f"Z:{path}" if runner[0] == "wine" else str(path) for path in (library, VECTORS)]
    quiet = {"WINEDEBUG": "-all", "WINEPREFIX": str(ROOT / "build" / "wine")}
    print(f"{target} by {' '.join(runner)}: {library.relative_to(ROOT)}", flush=True)
    return subprocess.run([*runner, driver, *files], env={**quiet, **os.environ}).returncode


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=list(RUNNERS), help="system to check; this machine by default")
    parser.add_argument("--library", type=Path, help="library to check; built first by default")
    arguments = parser.parse_args()
    os.environ.setdefault("SPLAT_SSIM_CUDA", "0")
    sys.exit(run(arguments.target, arguments.library and arguments.library.resolve()))


if __name__ == "__main__":
    main()
