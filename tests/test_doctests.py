"""Every example in a docstring runs as written."""

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import splat_ssim

#: Modules -> number of their docstrings with an example that fails as written, without its imports. A module leaves the
#: list when its examples are fixed.
KNOWN = {
    "splat_ssim.compat": 1,
    "splat_ssim.compat.fused_ssim": 2,
    "splat_ssim.compat.fused_ssim3d": 1,
    "splat_ssim.compat.kornia": 23,
    "splat_ssim.compat.kornia_0_8": 5,
    "splat_ssim.compat.pytorch_msssim": 4,
}

#: Modules whose classes extend another package's -> that package.
EXTENDING = {
    "splat_ssim.compat._monai_metrics": "monai",
    "splat_ssim.compat._torchmetrics_modules": "torchmetrics",
    "splat_ssim.compat.gsplat_rendering": "gsplat",
}


def modules():
    """The modules of the package, by name."""
    for found in pkgutil.walk_packages(splat_ssim.__path__, "splat_ssim."):
        if not found.name.endswith(("__main__", "._old", "libsplat_ssim")):
            yield found.name


def examples(name):
    """The docstrings of a module with examples, as doctests."""
    module = importlib.import_module(name)
    # Only the builtins are defined: an example must import what it uses.
    tests = doctest.DocTestFinder(exclude_empty=True).find(module, globs={"__name__": "__main__"})
    return [test for test in tests if test.examples]


@pytest.mark.parametrize("name", list(modules()))
def test_examples_stand_alone(name, monkeypatch):
    monkeypatch.chdir(Path(__file__).resolve().parent.parent)
    if name in EXTENDING:
        pytest.importorskip(EXTENDING[name], reason=f"{EXTENDING[name]} is not installed")
    failed = []
    for test in examples(name):
        told = []
        flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        result = doctest.DocTestRunner(optionflags=flags).run(test, out=told.append)
        if result.failed:
            failed.append("".join(told))
    if name in KNOWN:
        assert len(failed) <= KNOWN[name], "\n".join(failed)
        if failed:
            pytest.xfail(f"{len(failed)} known examples of {name} fail as written")
    assert not failed, "\n".join(failed)


def test_the_page_on_volumes_runs():
    pytest.importorskip("SimpleITK")
    page = Path(__file__).resolve().parent.parent / "docs" / "volumes.md"
    failed, tried = doctest.testfile(str(page), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert failed == 0 and tried > 15
