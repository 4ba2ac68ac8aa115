"""Builds the compiled library through csrc/build.py, packs the configs; everything else is in pyproject.toml."""

import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "csrc"))
import build as native
import toolchain


class BuildPython(build_py):
    """Copies configs/ into the package too, so that `--config fast.yaml` works without the source folder."""

    def _configs(self) -> dict[Path, Path]:
        target = Path(self.build_lib) / "splat_ssim" / "configs"
        return {path: target / path.name for path in sorted((ROOT / "configs").glob("*.yaml"))}

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for source, target in self._configs().items():
                self.mkpath(str(target.parent))
                self.copy_file(str(source), str(target))

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return [*super().get_outputs(include_bytecode), *map(str, self._configs().values())]


class BuildLibrary(build_ext):
    """Compiles csrc/ to one shared library beside the Python files, or warns and goes on where there is no compiler."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split(".")).with_name(toolchain.LIBRARY_NAME))

    def build_extension(self, ext: Extension) -> None:
        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        try:
            native.build(output, Path(self.build_temp).resolve() / "csrc")
        except toolchain.NoCompilerError as missing:
            self.warn(f"{missing}. Installing without the compiled library: same numbers, slower.")

    def get_outputs(self) -> list[str]:
        return [path for path in super().get_outputs() if Path(path).exists()]


class PlatformWheel(bdist_wheel):
    """One wheel for every Python: the library has a plain C ABI and knows nothing of CPython."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    # Optional: an editable installation copies the library only where one was built.
    ext_modules=[Extension("splat_ssim.libsplat_ssim", sources=[], optional=True)],
    cmdclass={"build_py": BuildPython, "build_ext": BuildLibrary, "bdist_wheel": PlatformWheel},
)
