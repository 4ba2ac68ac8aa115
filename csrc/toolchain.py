"""A C++ compiler, and what it makes libraries for as its own macros say. Standard library only.

$CXX names the compiler, with options if need be: CXX="python -m ziglang c++ -target aarch64-macos". Without it the
first of COMPILERS is taken that is installed and new enough.
"""

from __future__ import annotations

import functools
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

COMPILERS = ("g++", "clang++", "c++")
#: The oldest versions with the vector extensions that csrc/cpu/simd.h uses.
OLDEST = {"g++": 12, "clang++": 14}

#: The name of the library on each system.
LIBRARY_NAMES = {"linux": "libsplat_ssim.so", "macos": "libsplat_ssim.dylib", "windows": "libsplat_ssim.dll"}
#: The library of the system that runs this.
LIBRARY_NAME = LIBRARY_NAMES[{"darwin": "macos", "win32": "windows"}.get(sys.platform, "linux")]

_EXPORTS = Path(__file__).resolve().parent / "exports.map"

AVX2_FLAGS = ["-mavx2", "-mfma", "-mf16c", "-mbmi", "-mbmi2", "-mlzcnt"]
AVX512_FLAGS = [*AVX2_FLAGS, "-mavx512f", "-mavx512cd", "-mavx512bw", "-mavx512dq", "-mavx512vl"]


class NoCompilerError(RuntimeError):
    """Raised when no C++ compiler is found that compiles this."""


@dataclass(frozen=True)
class Toolchain:
    """A compiler and its target.

    Attributes:
        command: Command that runs the compiler, with its own options.
        kind: "g++" or "clang++".
        version: Major version of the compiler.
        system: linux, macos or windows. Other systems count as linux.
        machine: x86_64, aarch64 or other.
    """

    command: tuple[str, ...]
    kind: str
    version: int
    system: str
    machine: str

    @property
    def library_name(self) -> str:
        """The file name of the library on the target."""
        return LIBRARY_NAMES[self.system]

    @property
    def instruction_sets(self) -> dict[str, list[str]]:
        """Instruction set name -> compiler flags, from the narrowest."""
        if self.machine != "x86_64":
            return {"baseline": []}
        wide = ["-mprefer-vector-width=512"]
        sets = {"baseline": [], "avx2": AVX2_FLAGS, "avx512": [*AVX512_FLAGS, *wide]}
        if (self.system, self.kind) == ("windows", "g++"):
            # On Windows the stack is aligned to 16 bytes. g++ may spill wider vectors to it by aligned moves, which
            # would crash. The assembler turns these into unaligned moves, which are as fast.
            unaligned = ["-Wa,-muse-unaligned-vector-move"]
            return {name: [*flags, *unaligned] if flags else flags for name, flags in sets.items()}
        return sets

    @property
    def code_flags(self) -> list[str]:
        """Code that may lie anywhere in memory; on Windows all code is."""
        return [] if self.system == "windows" else ["-fPIC"]

    @property
    def is_zig(self) -> bool:
        """Whether this is zig's clang++, which has a linker and a C++ runtime of its own."""
        return any("zig" in Path(word).stem for word in self.command[:3])

    @property
    def link_flags(self) -> list[str]:
        """Linker flags of the library, which contains the C++ runtime and does not export it: torch has its own."""
        if self.system == "linux":
            runtime = ["-static-libstdc++", "-static-libgcc", "-Wl,--exclude-libs,ALL"]
            return [*([] if self.is_zig else runtime), f"-Wl,--version-script={_EXPORTS}", "-ldl"]
        if self.system == "macos":
            shown = [] if self.is_zig else ["-Wl,-exported_symbol,_splat_ssim_*"]
            return [f"-Wl,-install_name,@rpath/{self.library_name}", *shown]
        # Given -shared -static, zig makes an archive.
        return ["-s"] if self.is_zig else ["-static", "-s"]


def _macros(command: tuple[str, ...]) -> dict[str, str]:
    """The macros that a compiler defines by itself; empty where it cannot be run."""
    try:
        line = [*command, "-E", "-dM", "-x", "c++", "-"]
        done = subprocess.run(line, input="", capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    words = [text.split(maxsplit=2) for text in done.stdout.splitlines() if text.startswith("#define ")]
    return {word[1]: word[2] if len(word) > 2 else "" for word in words}


@functools.cache
def described(command: tuple[str, ...]) -> Toolchain:
    """Runs a compiler to find out its kind, its version and its target.

    Raises:
        NoCompilerError: The compiler cannot be run, is neither g++ nor clang++, or is too old.
    """
    macros, name = _macros(command), shlex.join(command)
    if "__GNUC__" not in macros:
        raise NoCompilerError(f"{name} must be a g++ or clang++ that runs, got one that does not tell its macros")
    kind = "clang++" if "__clang__" in macros else "g++"
    version = int(macros["__clang_major__" if kind == "clang++" else "__GNUC__"])
    if version < OLDEST[kind]:
        raise NoCompilerError(f"{name} must be {kind} {OLDEST[kind]} or newer, got version {version}")
    system = "macos" if "__APPLE__" in macros else "windows" if "_WIN32" in macros else "linux"
    machine = "x86_64" if "__x86_64__" in macros else "aarch64" if "__aarch64__" in macros else "other"
    return Toolchain(command, kind, version, system, machine)


@functools.cache
def found() -> Toolchain:
    """Returns the compiler that $CXX names, or the first one that is installed and new enough.

    Raises:
        NoCompilerError: There is no such compiler. The message says what was found instead.
    """
    # cibuildwheel sets ARCHFLAGS to the architecture of a macOS wheel.
    options = tuple(shlex.split(os.environ.get("ARCHFLAGS", ""))) if sys.platform == "darwin" else ()
    named = os.environ.get("CXX")
    if named:
        return described((*shlex.split(named, posix=os.name != "nt"), *options))
    problems = []
    for name in COMPILERS:
        path = shutil.which(name)
        if path:
            try:
                return described((path, *options))
            except NoCompilerError as problem:
                problems.append(str(problem))
    instead = f" ({'; '.join(problems)})" if problems else ""
    raise NoCompilerError(
        f"no C++ compiler found{instead}: install g++ {OLDEST['g++']} or clang++ {OLDEST['clang++']}, or set CXX"
    )
