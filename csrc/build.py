"""Compiles csrc/ into one shared library with a plain C ABI. Standard library only: setup.py runs this without torch.

    python csrc/build.py            # build splat_ssim/libsplat_ssim.so in place
    python csrc/build.py --debug    # with -O1 -g and the address and undefined-behaviour sanitizers

A kernel source (KERNELS) is compiled once for each instruction set, everything else once. Objects are kept in
build/csrc and rebuilt when a source or a header they could include is newer. The CUDA part is in build_cuda.py: an
installation compiles it where it finds nvcc; this command does so only with SPLAT_SSIM_CUDA=1, to be quick.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import build_cuda

CSRC = Path(__file__).resolve().parent
ROOT = CSRC.parent
LIBRARY_NAME = "libsplat_ssim.so"

# Compiled once for each instruction set; see cpu/isa.h.
KERNELS = sorted(p.name for p in (CSRC / "cpu").glob("*.cpp") if p.name not in ("parallel.cpp", "library.cpp"))
COMMON = ["parallel.cpp", "library.cpp"]

BASE_FLAGS = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-psabi"]
# Contraction to FMA is wanted; neither errno nor floating-point traps are read. No -ffast-math: infinities, NaN and the
# order of additions keep their meaning.
FLOAT_FLAGS = ["-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]
KERNEL_FLAGS = ["-fno-exceptions", "-fno-rtti"]
# The kernels are vectorised by hand: -O3 takes twice the time to compile, and serves where loops are to be unrolled.
OPTIMISE = ["-O2"]
UNROLLED = {"ms_ssim.cpp", "raster_composite.cpp", "raster_project.cpp", "raster_records.cpp", "peak.cpp"}
SANITIZE = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-omit-frame-pointer"]

AVX2_FLAGS = ["-mavx2", "-mfma", "-mf16c", "-mbmi", "-mbmi2", "-mlzcnt"]
AVX512_FLAGS = [*AVX2_FLAGS, "-mavx512f", "-mavx512cd", "-mavx512bw", "-mavx512dq", "-mavx512vl"]


class NoCompilerError(RuntimeError):
    """Raised when no C++ compiler is found."""


def instruction_sets() -> dict[str, list[str]]:
    """Instruction set name -> compiler flags, for the machine that compiles."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        wide = ["-mprefer-vector-width=512"]
        return {"baseline": [], "avx2": AVX2_FLAGS, "avx512": [*AVX512_FLAGS, *wide]}
    return {"baseline": []}


def compiler() -> str:
    """The C++ compiler: $CXX, else g++, else clang++, else c++."""
    named = os.environ.get("CXX")
    if named:
        return named
    for name in ("g++", "clang++", "c++"):
        found = shutil.which(name)
        if found:
            return found
    raise NoCompilerError("no C++ compiler found: install g++ or clang++, or set CXX")


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.stderr:
        sys.stderr.write(done.stderr)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\nfailed with exit status {done.returncode}\n{done.stderr}")


def build(output: Path, objects: Path, *, debug: bool = False) -> Path:
    """Compiles what is out of date under `objects` and links `output`. Returns `output`."""
    cxx = compiler()
    objects.mkdir(parents=True, exist_ok=True)
    headers = max((p.stat().st_mtime for p in [*(CSRC / "cpu").glob("*.h"), Path(__file__)]), default=0.0)
    flags = [*BASE_FLAGS, *FLOAT_FLAGS, *(SANITIZE if debug else OPTIMISE)]
    unrolled = [] if debug else ["-O3"]
    units = [(name, "common", ["-DSPLAT_ISA=common"]) for name in COMMON]
    for isa, isa_flags in instruction_sets().items():
        units += [(name, isa, [*KERNEL_FLAGS, *isa_flags, f"-DSPLAT_ISA={isa}"]) for name in KERNELS]

    jobs: list[list[str]] = []
    linked: list[str] = []
    for name, isa, extra in units:
        source, target = CSRC / "cpu" / name, objects / f"{Path(name).stem}.{isa}.o"
        linked.append(str(target))
        if not target.exists() or target.stat().st_mtime < max(source.stat().st_mtime, headers):
            optional = unrolled if name in UNROLLED else []
            jobs.append([cxx, *flags, *extra, *optional, "-c", str(source), "-o", str(target)])
    for source, extra in build_cuda.host_units(objects / "cuda"):
        target = objects / "cuda" / f"{source.stem}.o"
        linked.append(str(target))
        inputs = [p.stat().st_mtime for p in [source, *build_cuda.inputs(objects / "cuda")]]
        if not target.exists() or target.stat().st_mtime < max(*inputs, headers):
            jobs.append([cxx, *flags, *KERNEL_FLAGS, *extra, "-c", str(source), "-o", str(target)])
    with ThreadPoolExecutor(max(1, os.cpu_count() or 1)) as pool:
        list(pool.map(_run, jobs))

    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_suffix(".tmp")
    link = [cxx, "-shared", "-pthread", *(SANITIZE if debug else []), *linked, "-o", str(temporary)]
    if sys.platform.startswith("linux"):
        # The C++ runtime goes inside, so that the wheel needs nothing but libc, and stays inside: torch brings its own.
        link += ["-static-libstdc++", "-static-libgcc", "-Wl,--exclude-libs,ALL", "-ldl"]
    _run(link)
    os.replace(temporary, output)
    return output


def main() -> None:
    """Command line: build in place."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--debug", action="store_true", help="address and undefined-behaviour sanitizers")
    arguments = parser.parse_args()
    os.environ.setdefault("SPLAT_SSIM_CUDA", "0")
    folder = ROOT / "build" / ("csrc-debug" if arguments.debug else "csrc")
    print(build(ROOT / "splat_ssim" / LIBRARY_NAME, folder, debug=arguments.debug))


if __name__ == "__main__":
    main()
