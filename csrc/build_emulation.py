"""Compiles the CUDA kernels as C++ into a second library that runs them on the CPU, for tests. Standard library only.

python csrc/build_emulation.py              # build build/emulation/libsplat_ssim_emulation.so
python csrc/build_emulation.py --sanitize   # a program under the address and undefined-behaviour sanitizers
python csrc/build_emulation.py --count      # counting operations and shared-memory wavefronts
"""

from __future__ import annotations

import argparse
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import build as native

SOURCES = (
    "emulation/launch_emulation.cpp",
    "emulation/fibers.cpp",
    "cuda/launch.cpp",
    "cuda/launch_voxelize.cpp",
    "cuda/launch_xray.cpp",
    "cuda/replay.cpp",
)
# No contraction, because the kernels say explicitly where they fuse a multiplication and an addition.
FLAGS = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-ffp-contract=off"]
VARIANTS = {
    "plain": ["-O2"],
    "sanitize": ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "count": ["-O2", "-DSPLAT_COUNT"],
}


def build(variant: str = "plain") -> Path:
    """Compiles what is out of date. Returns the library, or for "sanitize" the program emulation/sanitize.cpp."""
    folder = native.ROOT / "build" / "emulation"
    program = variant == "sanitize"
    library = folder / ("sanitize" if program else f"libsplat_ssim_emulation_{variant}.so")
    sources = [*SOURCES, "emulation/sanitize.cpp"] if program else SOURCES
    folder.mkdir(parents=True, exist_ok=True)
    inputs = [*native.CSRC.glob("*.h"), *(p for name in ("cuda", "emulation") for p in (native.CSRC / name).iterdir())]
    newest = max(p.stat().st_mtime for p in [*inputs, Path(__file__)])
    if library.exists() and library.stat().st_mtime > newest:
        return library
    flags = [*FLAGS, *VARIANTS[variant], "-DSPLAT_EMULATION"]
    objects = [folder / f"{Path(source).stem}.{variant}.{os.getpid()}.o" for source in sources]
    commands = [
        [*native.compiler(), *flags, "-c", str(native.CSRC / source), "-o", str(target)]
        for source, target in zip(sources, objects, strict=True)
    ]
    with ThreadPoolExecutor(max(1, os.cpu_count() or 1)) as pool:
        list(pool.map(lambda command: subprocess.run(command, check=True), commands))
    temporary = library.with_suffix(f".{os.getpid()}.tmp")
    link = [*native.compiler(), *([] if program else ["-shared"]), *flags, *map(str, objects), "-o", str(temporary)]
    subprocess.run(link, check=True)
    for target in objects:
        target.unlink()
    os.replace(temporary, library)
    return library


def main() -> None:
    """Command line: build in place."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sanitize", action="store_true", help="address and undefined-behaviour sanitizers")
    parser.add_argument("--count", action="store_true", help="count operations")
    arguments = parser.parse_args()
    print(build("sanitize" if arguments.sanitize else "count" if arguments.count else "plain"))


if __name__ == "__main__":
    main()
