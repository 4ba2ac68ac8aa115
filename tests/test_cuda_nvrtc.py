"""The kernels' source as NVRTC sees it, and the cache of what it compiles. Runs without a GPU."""

import pytest
import torch

from splat_ssim.ops import _cuda_module, _library, _nvrtc
from splat_ssim.ops._cuda_launch import kernel_names

needs_nvrtc = pytest.mark.skipif(_nvrtc.library() is None, reason="NVRTC is not installed (pip: nvidia-cuda-nvrtc)")


@needs_nvrtc
@pytest.mark.parametrize("architecture", ["sm_75", "sm_90"])
def test_nvrtc_compiles_every_kernel(architecture):
    cubin = _nvrtc.compile_kernels(_cuda_module.source(), architecture)
    assert cubin[:4] == b"\x7fELF"
    for name in kernel_names(_library.library()):
        assert b".text." + name.encode() + b"\0" in cubin


@needs_nvrtc
def test_a_compile_error_shows_the_log():
    with pytest.raises(RuntimeError, match="undefined_name"):
        _nvrtc.compile_kernels(b"__global__ void f() { undefined_name(); }", "sm_90")


def test_compiled_kernels_are_kept_on_disk(tmp_path, monkeypatch):
    calls = []

    def compile_kernels(source, architecture):
        calls.append(architecture)
        return b"cubin of " + source

    monkeypatch.setenv(_nvrtc.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(_nvrtc, "compile_kernels", compile_kernels)
    assert _nvrtc.cached_kernels(b"a", "sm_90") == b"cubin of a"
    assert _nvrtc.cached_kernels(b"a", "sm_90") == b"cubin of a"
    assert calls == ["sm_90"]
    assert _nvrtc.cached_kernels(b"b", "sm_90") == b"cubin of b"
    assert _nvrtc.cached_kernels(b"a", "sm_80") == b"cubin of a"
    assert calls == ["sm_90", "sm_90", "sm_80"]
    for file in (tmp_path / "cache").iterdir():
        file.write_bytes(file.read_bytes()[:-1])  # damaged: compiled again
    assert _nvrtc.cached_kernels(b"a", "sm_90") == b"cubin of a"
    assert len(calls) == 4


def test_an_unwritable_cache_only_costs_time(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv(_nvrtc.CACHE_VARIABLE, str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(_nvrtc, "compile_kernels", lambda source, architecture: source)
    assert _nvrtc.cached_kernels(b"a", "sm_90") == b"a"


def test_source_includes_everything():
    source = _cuda_module.source().decode()
    assert '#include "' not in source.replace('#include "../emulation/emulation.h"', "")
    assert all(source.count(f"SPLAT_ENTRY({name},") == 1 for name in kernel_names(_library.library()))


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests what happens without a driver")
def test_without_a_driver_the_library_loads_and_cuda_is_out_of_reach():
    assert _library.library() is not None
    with pytest.raises((OSError, RuntimeError, AssertionError)):
        _cuda_module.load(0)
