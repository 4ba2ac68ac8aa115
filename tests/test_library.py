"""The choice of the compiled library for a source folder that has none."""

import shutil
import subprocess
import sys

import pytest

import splat_ssim
from splat_ssim.ops import compiled

pytestmark = pytest.mark.skipif(compiled.library() is None, reason="built without a compiler")

NAME = compiled.library_name()

PROGRAM = """
import sys, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import splat_ssim
    from splat_ssim.ops import compiled
print(splat_ssim.__file__)
print(compiled.LIBRARY_PATH if compiled.library() is not None else None)
print(*(str(warning.message) for warning in caught if "splat_ssim" in str(warning.message)))
"""


@pytest.fixture
def folders(tmp_path):
    """A source folder that was not built, and a folder of packages with the files of `pip install .`."""
    source, site = tmp_path / "source", tmp_path / "site"
    shutil.copytree(
        compiled._PACKAGE,
        source / "splat_ssim",
        ignore=shutil.ignore_patterns(NAME, "__pycache__", "scene", "volume"),
    )
    (source / "setup.py").touch()
    (site / "splat_ssim").mkdir(parents=True)
    shutil.copy(compiled.LIBRARY_PATH, site / "splat_ssim" / NAME)
    record = site / f"splat_ssim-{splat_ssim.__version__}.dist-info" / "RECORD"
    record.parent.mkdir()
    record.write_text(f"splat_ssim/__init__.py,,\nsplat_ssim/{NAME},,\n")
    metadata = f"Metadata-Version: 2.1\nName: splat_ssim\nVersion: {splat_ssim.__version__}\n"
    (record.parent / "METADATA").write_text(metadata)
    # The build leaves this in the source folder, which is searched first.
    leftover = source / "splat_ssim.egg-info"
    leftover.mkdir()
    (leftover / "PKG-INFO").write_text(metadata)
    (leftover / "SOURCES.txt").write_text("setup.py\nsplat_ssim/__init__.py\n")
    return source, site


def run(source, site):
    """Runs the program in the source folder and returns its output."""
    path = "import sys; sys.path.append(sys.argv[1])\n"
    command = [sys.executable, "-c", path + PROGRAM, str(site)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    imported, library, warned = done.stdout.split("\n")[:3]
    assert imported == str(source / "splat_ssim" / "__init__.py")
    return library, warned


def replace(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_the_library_of_the_installed_package_is_found(folders):
    source, site = folders
    assert run(source, site) == (str(site / "splat_ssim" / NAME), "")


def test_the_library_in_the_source_folder_comes_first(folders):
    source, site = folders
    built = source / "splat_ssim" / NAME
    shutil.copy(compiled.LIBRARY_PATH, built)
    assert run(source, site) == (str(built), "")


def test_the_library_of_another_version_is_not_taken(folders):
    source, site = folders
    replace(source / "splat_ssim" / "_version.py", f'"{splat_ssim.__version__}"', '"0.0.1"')
    library, warned = run(source, site)
    assert library == "None"
    assert f"no compiled library in {source / 'splat_ssim'}" in warned
    assert f"install a C++ compiler and run `pip install -e .` in {source}." in warned
    # An installed package is not a source folder.
    (source / "setup.py").unlink()
    assert "install a C++ compiler and reinstall the package." in run(source, site)[1]


def test_the_library_of_another_abi_is_refused(folders):
    source, site = folders
    replace(source / "splat_ssim" / "ops" / "compiled.py", "ABI_VERSION = ", "ABI_VERSION = 1000 + ")
    with pytest.raises(AssertionError, match=rf"{NAME} must have ABI version 1\d+, got \d+: reinstall"):
        run(source, site)
