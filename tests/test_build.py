"""The compiled files: no symbol can be linked to another instruction set's copy, and nothing else is exported."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from splat_ssim.__main__ import cuda_architectures
from splat_ssim.ops import _cuda_module, compiled

OBJECTS = Path(__file__).resolve().parent.parent / "build" / "csrc"

pytestmark = [
    pytest.mark.skipif(shutil.which("nm") is None, reason="nm is not installed"),
    pytest.mark.skipif(compiled.library() is None, reason="built without a compiler"),
]


def symbols(path, *flags):
    """(type letter, name) of every symbol; see nm(1)."""
    listing = subprocess.run(["nm", *flags, str(path)], check=True, capture_output=True, text=True).stdout
    return [(line.split()[-2], line.split()[-1]) for line in listing.splitlines() if len(line.split()) >= 2]


def kernel_objects():
    return sorted(path for isa in compiled.available_isas() for path in OBJECTS.glob(f"*.{isa}.o"))


@pytest.mark.skipif(not kernel_objects(), reason="the library was not built in place")
@pytest.mark.parametrize("path", kernel_objects(), ids=lambda path: path.name)
def test_kernel_objects_have_no_weak_symbols(path):
    """The linker keeps one copy of a weak symbol. It could be the AVX-512 copy, on a machine without AVX-512."""
    found = symbols(path)
    assert found
    weak = [name for letter, name in found if letter in "WwVvu" and not name.startswith("DW.ref")]
    assert weak == []


@pytest.mark.skipif(not kernel_objects(), reason="the library was not built in place")
@pytest.mark.parametrize("path", kernel_objects(), ids=lambda path: path.name)
def test_kernel_objects_define_kernels_of_their_instruction_set(path):
    isa = path.name.split(".")[1]
    defined = [name for letter, name in symbols(path) if letter == "T"]
    assert defined
    assert all(re.fullmatch(rf"splat_ssim_\w+_{isa}", name) for name in defined)


def test_library_exports_only_its_own_names():
    """It must not export the C++ runtime inside it, because torch may bring another version."""
    exported = [name for letter, name in symbols(compiled.LIBRARY_PATH, "-D") if letter in "TDB"]
    assert exported
    assert [name for name in exported if not name.startswith("splat_ssim_")] == []


def test_the_architectures_of_the_cuda_image_are_known():
    assert bool(cuda_architectures()) == (_cuda_module.embedded_image() is not None)


def test_every_kernel_exists_for_every_instruction_set():
    exported = {name for letter, name in symbols(compiled.LIBRARY_PATH, "-D") if letter == "T"}
    for isa in compiled.available_isas():
        for name in ("ssim2d", "ssim3d"):
            assert f"splat_ssim_{name}_{isa}" in exported


def test_a_library_with_structures_of_other_sizes_is_refused(monkeypatch):
    monkeypatch.setitem(compiled.SIZES, "sizeof_record", 65)
    with pytest.raises(ImportError, match=r"must have sizeof_record 65, got 64: reinstall the package"):
        compiled.library.__wrapped__()


def test_the_library_names_its_constants():
    constants = compiled.constants()
    assert constants["status_out_of_memory"] == 1
    assert constants["sizeof_arguments"] == compiled.SIZES["sizeof_arguments"]
    assert compiled.library().splat_ssim_constant_name(-1) is None
    assert compiled.library().splat_ssim_constant(len(constants)) == 0
