"""The kernels' source as NVRTC gets it, and the cache of compiled kernels. Runs without a GPU."""

import re

import pytest
import torch

from splat_ssim._files import CACHE_VARIABLE
from splat_ssim.ops import _cuda_module, _nvrtc, compiled
from splat_ssim.ops._cuda_kernels import SHARED, VOXELS, WINDOW_SIZES, XRAYS, kernel_names, kernel_units

needs_nvrtc = pytest.mark.skipif(_nvrtc.library() is None, reason="NVRTC is not installed (pip: nvidia-cuda-nvrtc)")


@needs_nvrtc
@pytest.mark.parametrize(
    "architecture, unit", [("sm_75", 11), *(("sm_90", unit) for unit in (SHARED, VOXELS, XRAYS, *sorted(WINDOW_SIZES)))]
)
def test_nvrtc_compiles_every_kernel_of_a_unit(architecture, unit):
    cubin = _nvrtc.compile_kernels(_cuda_module.source(), architecture, unit)
    assert cubin[:4] == b"\x7fELF"
    library = compiled.library()
    for name, of in zip(kernel_names(library), kernel_units(library), strict=True):
        assert (b".text." + name.encode() + b"\0" in cubin) == (of == unit)


@needs_nvrtc
def test_a_compile_error_shows_the_log():
    with pytest.raises(RuntimeError, match="undefined_name"):
        _nvrtc.compile_kernels(b"__global__ void f() { undefined_name(); }", "sm_90", 11)


def test_compiled_kernels_are_kept_on_disk(tmp_path, monkeypatch):
    calls = []

    def compile_kernels(source, architecture, unit):
        calls.append((architecture, unit))
        return b"cubin of " + source

    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(_nvrtc, "compile_kernels", compile_kernels)
    assert _nvrtc.cached_kernels(b"a", "sm_90", 11) == b"cubin of a"
    assert _nvrtc.cached_kernels(b"a", "sm_90", 11) == b"cubin of a"
    assert calls == [("sm_90", 11)]
    assert _nvrtc.cached_kernels(b"b", "sm_90", 11) == b"cubin of b"
    assert _nvrtc.cached_kernels(b"a", "sm_80", 11) == b"cubin of a"
    assert _nvrtc.cached_kernels(b"a", "sm_90", 7) == b"cubin of a"
    assert calls == [("sm_90", 11), ("sm_90", 11), ("sm_80", 11), ("sm_90", 7)]
    for file in (tmp_path / "cache").iterdir():
        file.write_bytes(file.read_bytes()[:-1])  # a damaged file is compiled again
    assert _nvrtc.cached_kernels(b"a", "sm_90", 11) == b"cubin of a"
    assert len(calls) == 5


def test_an_unwritable_cache_only_costs_time(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(_nvrtc, "compile_kernels", lambda source, architecture, unit: source)
    assert _nvrtc.cached_kernels(b"a", "sm_90", 11) == b"a"


def test_source_includes_everything():
    source = _cuda_module.source().decode()
    assert '#include "' not in source.replace('#include "../emulation/emulation.h"', "")
    # The kernels of a window are written once for all windows.
    entries = {re.sub(r"_\d+$", "_##taps", name) for name in kernel_names(compiled.library())}
    assert all(source.count(f"SPLAT_ENTRY({name},") == 1 for name in entries)


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests what happens without a driver")
def test_without_a_driver_the_library_loads_and_cuda_is_out_of_reach():
    assert compiled.library() is not None
    with pytest.raises((OSError, RuntimeError, AssertionError)):
        _cuda_module.load(0, 11)


def test_no_home_only_costs_time(monkeypatch):
    """In a container, a user may have neither a home folder nor a name."""

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    for name in (CACHE_VARIABLE, "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(_nvrtc.Path, "home", no_home)
    monkeypatch.setattr(_nvrtc, "compile_kernels", lambda source, architecture, unit: source)
    assert _nvrtc.cached_kernels(b"a", "sm_90", 11) == b"a"


@needs_nvrtc
def test_a_device_newer_than_nvrtc_gets_ptx():
    ptx = _nvrtc.compile_kernels(_cuda_module.source(), "sm_999", SHARED)
    assert b".visible .entry splat_scale(" in ptx
    assert re.search(rb"\.target sm_\d+", ptx)
    assert ptx.endswith(b"\0")  # what the driver needs
