"""Code that differs between systems, tested on any of them: file names, locks, replaced files, compilers."""

import errno
import importlib.util
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from splat_ssim import _files, _locks
from splat_ssim.errors import WriteError
from splat_ssim.ops import compiled

ROOT = Path(__file__).resolve().parent.parent


def imported(folder, name):
    """Imports a file of csrc or scripts as the programs in these folders import each other."""
    sys.path.insert(0, str(ROOT / folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(ROOT / folder))


toolchain = imported("csrc", "toolchain")


@pytest.mark.parametrize("platform,system", [("linux", "linux"), ("darwin", "macos"), ("win32", "windows")])
def test_builder_and_loader_name_the_library_alike(platform, system):
    assert compiled.library_name(platform) == toolchain.LIBRARY_NAMES[system]


def test_the_wheel_packs_the_library_of_every_system():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for name in toolchain.LIBRARY_NAMES.values():
        assert f'"*{Path(name).suffix}"' in text


def test_a_library_of_another_machine_is_refused_in_one_sentence(tmp_path, monkeypatch):
    broken = tmp_path / compiled.library_name()
    broken.write_bytes(b"no library")
    monkeypatch.setattr(compiled, "LIBRARY_PATH", broken)
    with pytest.raises(ImportError, match=r"must be a library for this machine, got: .*; reinstall the package$"):
        compiled.library.__wrapped__()


# --- compilers

GCC = {"__GNUC__": "12", "__x86_64__": "1"}
CLANG = {"__GNUC__": "4", "__clang__": "1", "__clang_major__": "17"}


@pytest.mark.parametrize(
    "macros,expected",
    [
        (GCC, ("g++", 12, "linux", "x86_64")),
        (CLANG | {"__aarch64__": "1", "__APPLE__": "1"}, ("clang++", 17, "macos", "aarch64")),
        (GCC | {"_WIN32": "1"}, ("g++", 12, "windows", "x86_64")),
        ({"__GNUC__": "13", "__riscv": "1"}, ("g++", 13, "linux", "other")),
    ],
)
def test_a_compiler_tells_its_target(macros, expected, monkeypatch):
    monkeypatch.setattr(toolchain, "_macros", lambda command: macros)
    chain = toolchain.described.__wrapped__(("compiler",))
    assert (chain.kind, chain.version, chain.system, chain.machine) == expected
    assert list(chain.instruction_sets) == (["baseline", "avx2", "avx512"] if expected[3] == "x86_64" else ["baseline"])
    # g++ spills wide vectors to a stack that Windows aligns to 16 bytes.
    unaligned = "-Wa,-muse-unaligned-vector-move" in chain.instruction_sets.get("avx512", [])
    assert unaligned == (expected[:3] == ("g++", 12, "windows"))
    assert ("-fPIC" in chain.code_flags) == (expected[2] != "windows")


@pytest.mark.parametrize(
    "macros,text",
    [
        ({}, r"^x must be a g\+\+ or clang\+\+ that runs, got one that does not tell its macros$"),
        (GCC | {"__GNUC__": "11"}, r"^x must be g\+\+ 12 or newer, got version 11$"),
        (CLANG | {"__clang_major__": "13"}, r"^x must be clang\+\+ 14 or newer, got version 13$"),
    ],
)
def test_compilers_that_cannot_compile_it(macros, text, monkeypatch):
    monkeypatch.setattr(toolchain, "_macros", lambda command: macros)
    with pytest.raises(toolchain.NoCompilerError, match=text):
        toolchain.described.__wrapped__(("x",))


def test_an_old_compiler_is_passed_over_and_named_where_it_is_the_only_one(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: None if name == "c++" else f"/bin/{name}")
    versions = {"/bin/g++": GCC | {"__GNUC__": "11"}, "/bin/clang++": CLANG}
    monkeypatch.setattr(toolchain, "_macros", lambda command: versions[command[0]])
    toolchain.described.cache_clear()
    try:
        assert toolchain.found.__wrapped__().command[0] == "/bin/clang++"
        versions["/bin/clang++"] = {}
        toolchain.described.cache_clear()
        with pytest.raises(toolchain.NoCompilerError, match=r"no C\+\+ compiler found \(/bin/g\+\+ must be g\+\+ 12"):
            toolchain.found.__wrapped__()
    finally:
        toolchain.described.cache_clear()


@pytest.mark.skipif(os.name == "nt", reason="paths of POSIX")
def test_cxx_may_have_options(monkeypatch):
    monkeypatch.setenv("CXX", "python -m ziglang c++ -target aarch64-macos")
    monkeypatch.setattr(toolchain, "_macros", lambda command: CLANG | {"__APPLE__": "1"})
    try:
        chain = toolchain.found.__wrapped__()
    finally:
        toolchain.described.cache_clear()
    assert chain.command == ("python", "-m", "ziglang", "c++", "-target", "aarch64-macos")
    assert chain.is_zig and chain.library_name == "libsplat_ssim.dylib"


# --- what libraries export

SOURCE = """
#include "export.h"
extern "C" SPLAT_EXPORT int splat_ssim_one(void) { return 1; }
extern "C" SPLAT_EXPORT int splat_ssim_two(void) { return 2; }
extern "C" int splat_ssim_hidden(void) { return 3; }
"""
CROSS = {"linux": "g++", "linux, Arm": "aarch64-linux-gnu-g++", "windows": "x86_64-w64-mingw32-g++-posix"}


@pytest.mark.parametrize("name", CROSS.values(), ids=CROSS.keys())
def test_a_library_shows_what_is_marked_alone(name, tmp_path):
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    native, symbols = imported("csrc", "build"), imported("scripts", "_symbols")
    chain = toolchain.described((name, "-Werror"))
    (tmp_path / "one.cpp").write_text(SOURCE)
    library = tmp_path / chain.library_name
    flags = [*chain.code_flags, *native.BASE_FLAGS, f"-I{ROOT / 'csrc' / 'cpu'}"]
    native._run([*chain.command, *flags, "-shared", str(tmp_path / "one.cpp"), "-o", str(library), *chain.link_flags])
    assert symbols.exported(library) == ["splat_ssim_one", "splat_ssim_two"]


@pytest.mark.skipif(compiled.library() is None, reason="built without a compiler")
def test_the_library_exports_what_the_sources_mark():
    cross, symbols = imported("scripts", "cross_build"), imported("scripts", "_symbols")
    names = set(symbols.exported(compiled.LIBRARY_PATH))
    expected = {
        name.replace("_baseline", f"_{isa}")
        for isa in compiled.available_isas()
        for name in cross.expected_exports(SimpleNamespace(instruction_sets={"baseline": []}))
    }
    assert len(expected) > 20 and expected <= names


def test_what_is_no_library_is_refused(tmp_path):
    (tmp_path / "a.so").write_bytes(b"text")
    with pytest.raises(ValueError, match="must be a 64-bit ELF, PE or Mach-O library, got b'text'"):
        imported("scripts", "_symbols").exported(tmp_path / "a.so")


# --- locks and files


class Windows:
    """A fake msvcrt with one lock."""

    LK_NBLCK = 2

    def __init__(self, number=None):
        self.number, self.taken = number, []

    def locking(self, descriptor, mode, count):
        if self.number is not None:
            raise OSError(self.number, "refused")
        self.taken.append((descriptor, mode, count))


def test_locks_of_windows(tmp_path, monkeypatch):
    monkeypatch.setattr(_locks, "fcntl", None)
    with (tmp_path / "lock").open("a") as file:
        monkeypatch.setattr(_locks, "msvcrt", Windows())
        assert _locks.take_lock(file)
        assert _locks.msvcrt.taken == [(file.fileno(), Windows.LK_NBLCK, 1)]
        monkeypatch.setattr(_locks, "msvcrt", Windows(errno.EACCES))
        assert not _locks.take_lock(file)
        # A file system without locks.
        monkeypatch.setattr(_locks, "msvcrt", Windows(errno.ENOSYS))
        assert _locks.take_lock(file)
        assert _locks.inherited(file.fileno()) == {}


@pytest.mark.skipif(_locks.fcntl is None, reason="no fcntl on this system")
def test_locks_of_posix(tmp_path):
    with (tmp_path / "lock").open("a") as first, (tmp_path / "lock").open("a") as second:
        assert _locks.take_lock(first)
        assert not _locks.take_lock(second)
        assert _locks.inherited(first.fileno()) == {"pass_fds": [first.fileno()]}
        first.close()
        assert _locks.take_lock(second)


def test_a_file_that_somebody_reads_is_replaced_once_it_is_let_go(tmp_path, monkeypatch):
    path, calls, replace = tmp_path / "a.txt", [], os.replace

    def refusing(source, target):
        calls.append(target)
        if len(calls) < 3:
            raise PermissionError(errno.EACCES, "in use")
        replace(source, target)

    monkeypatch.setattr(_files.os, "replace", refusing)
    monkeypatch.setattr(_files, "_PATIENCE", 5.0)
    _files.write_text(path, "new")
    assert path.read_text() == "new" and len(calls) == 3
    # On other systems, and after a while, the refusal is final.
    monkeypatch.setattr(_files, "_PATIENCE", 0.0)
    calls.clear()
    with pytest.raises(WriteError, match="in use"):
        _files.write_text(path, "newer")
    assert path.read_text() == "new" and len(calls) == 1


@pytest.mark.skipif(compiled.library() is None, reason="built without a compiler")
@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="no /proc/cpuinfo to compare with")
def test_the_instruction_sets_are_those_that_the_system_lists():
    line = next((text for text in Path("/proc/cpuinfo").read_text().splitlines() if text.startswith("flags")), "")
    flags, expected = set(line.split()), ["baseline"]
    if {"fma", "f16c", "avx2", "bmi1", "bmi2", "abm"} <= flags:
        expected.insert(0, "avx2")
        if {"avx512f", "avx512dq", "avx512cd", "avx512bw", "avx512vl"} <= flags:
            expected.insert(0, "avx512")
    assert compiled.available_isas() == expected
