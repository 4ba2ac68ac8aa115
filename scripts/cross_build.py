"""Compiles the library for every system that this machine has a compiler for, and checks what it exports.

    python scripts/cross_build.py [--targets linux-aarch64 windows-x86_64]

Each target is built with each of its compilers that is installed: Debian's cross compilers, clang++, and zig, which
compiles for all of them (the program `zig` or the package `ziglang`). Warnings are errors. The end of the output lists
what could not be built. The libraries stay in build/cross. Only the compilers are needed, neither torch nor numpy.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from _symbols import exported

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "csrc"))
import build as native  # noqa: E402
import toolchain  # noqa: E402

#: Target -> its compilers. A compiler has one or more possible names; options may follow a name.
TARGETS = {
    "linux-x86_64": (("g++",), ("clang++",), ("zig x86_64-linux-gnu.2.28",)),
    "linux-aarch64": (("aarch64-linux-gnu-g++",), ("zig aarch64-linux-gnu.2.28",)),
    "macos-aarch64": (("zig aarch64-macos.11.0",),),
    # Debian's other MinGW compiler lacks C++ threads.
    "windows-x86_64": (("x86_64-w64-mingw32-g++-posix", "x86_64-w64-mingw32-g++"), ("zig x86_64-windows-gnu",)),
}
#: Compiler -> the name of its package on Debian or PyPI.
PACKAGES = {
    "g++": "g++",
    "clang++": "clang",
    "aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu",
    "x86_64-w64-mingw32-g++-posix": "g++-mingw-w64-x86-64",
    "zig": "ziglang, by pip",
}


def command_of(name: str) -> list[str] | None:
    """The command line of a compiler of TARGETS. None if it is not installed."""
    program, _, target = name.partition(" ")
    if program != "zig":
        path = shutil.which(program)
        return [path] if path else None
    path = shutil.which("zig")
    if path is None and importlib.util.find_spec("ziglang") is None:
        return None
    return [*([path] if path else [sys.executable, "-m", "ziglang"]), "c++", "-target", target]


def compilers(target: str) -> Iterator[tuple[str, toolchain.Toolchain | str]]:
    """The name of each compiler of a target with its toolchain, or with a sentence that says why it is unavailable."""
    for names in TARGETS[target]:
        commands = [command for name in names if (command := command_of(name))]
        program = names[0].partition(" ")[0]
        if not commands:
            yield program, f"required {program} (package {PACKAGES[program]}), got none"
            continue
        try:
            chain = toolchain.described((*commands[0], "-Werror"))
        except toolchain.NoCompilerError as problem:
            yield program, str(problem)
            continue
        made = f"{chain.system}-{chain.machine}"
        yield program, chain if made == target else f"required a compiler for {target}, got one for {made}"


def expected_exports(chain: toolchain.Toolchain) -> list[str]:
    """The names that csrc/cpu marks with SPLAT_EXPORT. A kernel has one for each instruction set."""
    names: set[str] = set()
    for source in sorted((native.CSRC / "cpu").iterdir()):
        for match in re.finditer(
            r"SPLAT_EXPORT [^(;]*?(SPLAT_KERNEL\(\w+\)|splat_ssim_\w+)\(", source.read_text("utf-8")
        ):
            kernel = re.fullmatch(r"SPLAT_KERNEL\((\w+)\)", match[1])
            names |= {f"splat_ssim_{kernel[1]}_{isa}" for isa in chain.instruction_sets} if kernel else {match[1]}
    return sorted(names)


#: How further names start that zig's linker for macOS exports: of its C++ runtime, and of every library.
ZIGS = ("_Zna", "_Znw", "_Zda", "_Zdl", "__dso_handle", "_mh_dylib_header")


def stray(name: str, chain: toolchain.Toolchain) -> bool:
    """Whether an exported name belongs neither to this library nor to what zig's linker adds."""
    of_linker = chain.is_zig and chain.system == "macos" and name.startswith(ZIGS)
    return not name.startswith("splat_ssim_") and not of_linker


def build(target: str, program: str, chain: toolchain.Toolchain) -> Path:
    """Builds one library.

    Raises:
        RuntimeError: The compiler gives a warning or an error, or the library exports other names than it must.
    """
    folder = ROOT / "build" / "cross" / f"{target}-{program}"
    library = native.build(folder / chain.library_name, folder / "objects", chain=chain)
    names, expected = exported(library), expected_exports(chain)
    missing = sorted(set(expected) - set(names))
    more = [name for name in names if name not in expected and stray(name, chain)]
    if missing or more:
        raise RuntimeError(f"{library} must export {len(expected)} names, got none of {missing} and also {more}")
    return library


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--targets",
        nargs="+",
        choices=list(TARGETS),
        default=list(TARGETS),
        help="systems to compile for; all by default",
    )
    arguments = parser.parse_args()
    built, left_out, failed = [], [], []
    for target in arguments.targets:
        for program, chain in compilers(target):
            if isinstance(chain, str):
                left_out.append(f"{target} by {program}: {chain}")
                continue
            begin = time.monotonic()
            try:
                library = build(target, program, chain)
            except RuntimeError as problem:
                failed.append(f"{target} by {program}: {problem}")
                continue
            built.append(library)
            size = library.stat().st_size / 1e6
            print(f"{target} by {chain.kind} {chain.version} ({program}): {library.relative_to(ROOT)}, {size:.1f} MB")
            print(f"  {len(exported(library))} exported names, {time.monotonic() - begin:.0f} s", flush=True)
    if built:
        print(f"exported by {built[-1].relative_to(ROOT)}:", *exported(built[-1]), sep="\n  ")
    print(*(f"NOT BUILT: {line}" for line in left_out), *(f"FAILED: {line}" for line in failed), sep="\n")
    print(f"{len(built)} built without a warning, {len(left_out)} without a compiler, {len(failed)} failed")
    sys.exit(1 if failed or not built else 0)


if __name__ == "__main__":
    main()
