"""Compiles csrc/ into one shared library with a plain C ABI. Standard library only: setup.py runs this without torch.

    python csrc/build.py                      # build splat_ssim/libsplat_ssim.so (or .dylib, .dll) in place
    python csrc/build.py --debug --isa avx2   # build build/csrc-address-avx2/libsplat_ssim.so with sanitizers

A kernel source (KERNELS) is compiled once for each instruction set, everything else once. Objects are kept in
build/csrc and rebuilt when a source or a header they could include is newer. The CUDA part is in build_cuda.py: an
installation compiles it where it finds nvcc; this command does so only with SPLAT_SSIM_CUDA=1, to be quick.

The build with sanitizers (AddressSanitizer and UndefinedBehaviorSanitizer) is loaded where $SPLAT_SSIM_LIBRARY names it
and libasan is preloaded; scripts/sanitize.py does both.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import build_cuda
import toolchain
from toolchain import LIBRARY_NAME, NoCompilerError, Toolchain

CSRC = Path(__file__).resolve().parent
ROOT = CSRC.parent

COMMON = ["library.cpp", "loss.cpp", "parallel.cpp", "processors.cpp"]
# Compiled once for each instruction set; see cpu/isa.h.
KERNELS = sorted(p.name for p in (CSRC / "cpu").glob("*.cpp") if p.name not in COMMON)

BASE_FLAGS = ["-std=c++17", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-psabi"]
# Contraction to FMA is wanted. Neither errno nor floating-point traps are read. There is no -ffast-math, so that
# infinities, NaN and the order of additions keep their meaning.
FLOAT_FLAGS = ["-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]
KERNEL_FLAGS = ["-fno-exceptions", "-fno-rtti"]
# The kernels are vectorised by hand, and -O3 takes twice as long to compile. It is used only where loops must be
# unrolled.
OPTIMISE = ["-O2"]
UNROLLED = {"ms_ssim.cpp", "raster_composite.cpp", "raster_project.cpp", "raster_records.cpp", "peak.cpp"}
# -O1 compiles fastest. -fexpensive-optimizations contracts to FMA, as in the ordinary build.
DEBUG = ["-O1", "-fexpensive-optimizations", "-g1", "-fno-omit-frame-pointer"]
SANITIZERS = {
    "address": [*DEBUG, "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "thread": [*DEBUG, "-fsanitize=thread"],
}


def instruction_sets() -> dict[str, list[str]]:
    """Instruction set name -> compiler flags, for what the compiler compiles for."""
    return toolchain.found().instruction_sets


def default_isa() -> str:
    """The one instruction set of a build with sanitizers: what most machines run."""
    return "avx2" if "avx2" in instruction_sets() else "baseline"


def compiler() -> list[str]:
    """The C++ compiler with its own options: $CXX, else the first of toolchain.COMPILERS."""
    return list(toolchain.found().command)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.stderr:
        sys.stderr.write(done.stderr)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\nfailed with exit status {done.returncode}\n{done.stderr}")


def _run_all(commands: list[list[str]]) -> None:
    with ThreadPoolExecutor(max(1, os.cpu_count() or 1)) as pool:
        list(pool.map(_run, commands))


def _flags(chain: Toolchain, sanitizer: str | None) -> list[str]:
    optimise = SANITIZERS[sanitizer] if sanitizer else OPTIMISE
    return [BASE_FLAGS[0], *chain.code_flags, *BASE_FLAGS[1:], *FLOAT_FLAGS, *optimise]


def _newest_header() -> float:
    scripts = [Path(__file__), Path(toolchain.__file__)]
    return max(p.stat().st_mtime for p in [*CSRC.glob("*.h"), *(CSRC / "cpu").glob("*.h"), *scripts])


def compile_cpu(
    objects: Path,
    *,
    sanitizer: str | None = None,
    isas: Sequence[str] | None = None,
    chain: Toolchain | None = None,
) -> list[Path]:
    """Compiles the sources of csrc/cpu that are out of date. Returns all their objects.

    Args:
        objects: Folder for the object files.
        sanitizer: A key of SANITIZERS, or None for the optimised build.
        isas: Instruction sets to compile the kernels for. By default all of the target's architecture.
        chain: Compiler to use, such as one for another system. By default this machine's.
    """
    chain, newest_header = chain or toolchain.found(), _newest_header()
    objects.mkdir(parents=True, exist_ok=True)
    chosen = {name: flags for name, flags in chain.instruction_sets.items() if isas is None or name in isas}
    names = ",".join(f'"{name}"' for name in reversed(chosen))  # best first
    units = [(name, "common", ["-DSPLAT_ISA=common", f"-DSPLAT_ISAS={names}"]) for name in COMMON]
    for isa, isa_flags in chosen.items():
        units += [(name, isa, [*KERNEL_FLAGS, *isa_flags, f"-DSPLAT_ISA={isa}"]) for name in KERNELS]

    commands: list[list[str]] = []
    found: list[Path] = []
    for name, isa, extra in units:
        source, target = CSRC / "cpu" / name, objects / f"{Path(name).stem}.{isa}.o"
        found.append(target)
        if not target.exists() or target.stat().st_mtime < max(source.stat().st_mtime, newest_header):
            optional = ["-O3"] if name in UNROLLED and not sanitizer else []
            command = [*chain.command, *_flags(chain, sanitizer), *extra, *optional]
            commands.append([*command, "-c", str(source), "-o", str(target)])
    _run_all(commands)
    return found


def _compile_cuda_host(objects: Path, sanitizer: str | None) -> list[Path]:
    """The same for the host side of the CUDA part."""
    commands: list[list[str]] = []
    found: list[Path] = []
    for source, extra in build_cuda.host_units(objects):
        target = objects / f"{source.stem}.o"
        found.append(target)
        inputs = [p.stat().st_mtime for p in [source, *build_cuda.inputs(objects)]]
        if not target.exists() or target.stat().st_mtime < max(*inputs, _newest_header()):
            command = [*compiler(), *_flags(toolchain.found(), sanitizer), *KERNEL_FLAGS, *extra]
            commands.append([*command, "-c", str(source), "-o", str(target)])
    _run_all(commands)
    return found


def build(
    output: Path,
    objects: Path,
    *,
    sanitizer: str | None = None,
    isas: Sequence[str] | None = None,
    chain: Toolchain | None = None,
) -> Path:
    """Compiles what is out of date under `objects` and links `output`. Returns `output`.

    Args:
        output: Library to write.
        objects: Folder for the object files.
        sanitizer: As for `compile_cpu`.
        isas: As for `compile_cpu`.
        chain: As for `compile_cpu`. A library for another system has no CUDA part.
    """
    linked = compile_cpu(objects, sanitizer=sanitizer, isas=isas, chain=chain)
    if chain is None:
        linked += _compile_cuda_host(objects / "cuda", sanitizer)
    chain = chain or toolchain.found()
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_suffix(".tmp")
    link = [*chain.command, "-shared", "-pthread", *(SANITIZERS[sanitizer] if sanitizer else [])]
    _run([*link, *map(str, linked), "-o", str(temporary), *chain.link_flags])
    os.replace(temporary, output)
    return output


def build_debug(isa: str | None = None) -> Path:
    """Builds the library with the address and undefined-behaviour sanitizers.

    Args:
        isa: Instruction set to build for. By default AVX2 where the architecture has it.
    """
    isa = isa or default_isa()
    folder = ROOT / "build" / f"csrc-address-{isa}"
    return build(folder / LIBRARY_NAME, folder, sanitizer="address", isas=[isa])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--debug", action="store_true", help="build with the address and undefined-behaviour sanitizers"
    )
    parser.add_argument(
        "--isa", choices=["baseline", "avx2", "avx512"], help="instruction set of the build with sanitizers"
    )
    arguments = parser.parse_args()
    os.environ.setdefault("SPLAT_SSIM_CUDA", "0")
    try:
        if arguments.debug:
            print(build_debug(arguments.isa))
        else:
            print(build(ROOT / "splat_ssim" / LIBRARY_NAME, ROOT / "build" / "csrc"))
    except NoCompilerError as missing:
        sys.exit(f"error: {missing}")


if __name__ == "__main__":
    main()
