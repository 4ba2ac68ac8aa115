"""Installs the package into fresh environments in every supported way, and checks what it computes there.

    python scripts/install_rounds.py [--pythons 3.10=torch==2.4.1 3.13=torch]      # or make install-rounds

A round is a Python and torch, a way to install (the sdist, a folder, an editable folder) and a PATH with or without a
C++ compiler. It is checked from the source folder and from another one. Loss and gradient must agree with float64: by
the kernels if there was a compiler, otherwise in plain torch with one warning. A command that needs more packages must
say so in one line. torch, which takes gigabytes, is downloaded once for each Python. Needs only the standard library.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent

#: Program that runs in each environment and prints JSON.
PROGRAM = """
import json, sys, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torch, splat_ssim
    import splat_ssim.ops.voxelize, splat_ssim.ops.xray  # operators that the oldest torch has to register too
    from splat_ssim import reference
    from splat_ssim.loss import photometric_loss
    from splat_ssim.ops import compiled
    results = []
    for shape in ((2, 3, 45, 67), (1, 2, 19, 23, 31)):
        generator = torch.Generator().manual_seed(0)
        x, y = (torch.rand(shape, generator=generator) for _ in range(2))
        exact = x.double().requires_grad_()
        truth = reference.photometric_loss(exact, y.double())[0]
        (gradient,) = torch.autograd.grad(truth, exact)
        x.requires_grad_()
        value = photometric_loss(x, y)
        (found,) = torch.autograd.grad(value, x)
        error = ((found - gradient).abs().max() / gradient.abs().max()).item()
        results.append((value.item(), abs(value.item() - truth.item()) / truth.item(), error))
    told = [str(w.message) for w in caught if "splat_ssim" in str(w.message)]
print(json.dumps({"torch": torch.__version__, "file": splat_ssim.__file__, "kernels": compiled.isa(),
                  "results": results, "warnings": told}))
"""
#: Bounds on the relative error of the value and of the gradient's maximum, as in scripts/check_wheel.py.
BOUNDS = (1e-6, 1e-5)
WAYS = ("sdist", "folder", "editable")


class Round(NamedTuple):
    """One way to install: see the module's docstring."""

    python: str
    way: str
    compiler: bool

    def __str__(self) -> str:
        return f"Python {self.python}, {self.way}, {'with' if self.compiler else 'without'} a compiler"


def say(*command: object, cwd: Path, environment: dict[str, str]) -> str:
    """Runs a command that must succeed; returns its output."""
    line = list(map(str, command))
    done = subprocess.run(line, cwd=cwd, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(line)} failed with exit status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def find_python(name: str) -> str:
    """Finds a Python by its path or its version. For 3.13 that is python3.13, or the newest 3.13 of pyenv.

    Raises:
        RuntimeError: That Python is not installed.
    """
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for candidate in [name, f"python{name}", *sorted(map(str, versions.glob(f"{name}.*/bin/python")), reverse=True)]:
        path = shutil.which(candidate)
        if path and subprocess.run([path, "--version"], capture_output=True).returncode == 0:
            return path
    raise RuntimeError(f"Python {name} is not installed: give its path")


def environment(venv: Path, compiler: bool) -> dict[str, str]:
    """Environment variables of a round. Without a compiler, PATH holds only the virtual environment's programs."""
    left_out = ("CXX", "CUDA_HOME", "CUDA_PATH", "PYTHONPATH", "PYTHONHOME", "SPLAT_SSIM_LIBRARY", "SPLAT_SSIM_CPU")
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    path = os.pathsep.join([str(venv / "bin"), *([os.environ["PATH"]] if compiler else [])])
    return {**kept, "PATH": path, "SPLAT_SSIM_CUDA": "0", "VIRTUAL_ENV": str(venv)}


def copy_source(target: Path) -> Path:
    """Copies the files that git tracks, as a clean checkout has them."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if not name.startswith(("tests/", "benchmarks/", "assets/lund", "assets/brain")) and (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)
    return target


class Rounds:
    """Makes environments and copies of the source, and installs the package in them.

    Args:
        work: Folder for the environments and copies.
        bases: Folder of the environments with torch (torch-3.13 and so on). Each is made once and used again.
        torches: Python -> the torch requirement to install, such as torch==2.4.1.
    """

    def __init__(self, work: Path, bases: Path, torches: dict[str, str]) -> None:
        self.work, self.bases, self.torches, self.count = work, bases, torches, 0
        shutil.rmtree(work / "rounds", ignore_errors=True)
        (work / "elsewhere").mkdir(parents=True, exist_ok=True)
        self.sdist: Path | None = None

    def base(self, python: str) -> Path:
        """The environment with torch for a Python, made at first use."""
        venv = self.bases / f"torch-{python}"
        if not (venv / "torch.done").exists():
            subprocess.run([find_python(python), "-m", "venv", "--clear", venv], check=True)
            pip: list[str | Path] = [venv / "bin" / "pip", "install", "-q", self.torches[python], "numpy"]
            subprocess.run(pip, check=True)
            (venv / "torch.done").touch()
        return venv

    def fresh(self, python: str, name: str) -> Path:
        """A new environment that contains only torch and its dependencies."""
        base, venv = self.base(python), self.work / "rounds" / name
        subprocess.run([base / "bin" / "python", "-m", "venv", "--clear", venv], check=True)
        (packages,) = base.glob("lib/python*/site-packages")
        (own,) = venv.glob("lib/python*/site-packages")
        (own / "torch.pth").write_text(f"{packages}\n")
        return venv

    def make_sdist(self) -> Path:
        """The sdist, built once by one of the Pythons."""
        if self.sdist is None:
            venv = self.fresh(next(iter(self.torches)), "sdist")
            source, around = copy_source(self.work / "rounds" / "sdist-source"), environment(venv, False)
            say(venv / "bin" / "pip", "install", "-q", "build", cwd=self.work, environment=around)
            output = self.work / "rounds" / "dist"
            say(venv / "bin" / "python", "-m", "build", "-q", "--sdist", "-o", output, cwd=source, environment=around)
            (self.sdist,) = output.glob("*.tar.gz")
            print(f"{self.sdist.name}: {self.sdist.stat().st_size / 1e6:.2f} MB", flush=True)
        return self.sdist

    def run(self, one: Round) -> Iterator[str]:
        """Installs the package and checks it. Yields a line for each folder that it was checked from.

        Raises:
            RuntimeError: A step failed, or a result is wrong.
        """
        self.count += 1
        sdist = self.make_sdist() if one.way == "sdist" else None
        venv, begin = self.fresh(one.python, str(self.count)), time.monotonic()
        around, source = environment(venv, one.compiler), copy_source(self.work / "rounds" / f"{self.count}-source")
        what = [sdist] if sdist else [*(["-e"] if one.way == "editable" else []), source]
        python = venv / "bin" / "python"
        say(python, "-m", "pip", "install", "-q", *what, cwd=self.work, environment=around)
        yield f"{one}: installed in {time.monotonic() - begin:.0f} s"
        for folder in (self.work / "elsewhere", source):
            found = json.loads(say(python, "-c", PROGRAM, cwd=folder, environment=around))
            place = "in the source folder" if folder == source else "elsewhere"
            yield f"  {place}: {self.judge(one, found, source, folder == source)}"
        yield f"  {self.command(venv, around)}"

    @staticmethod
    def judge(one: Round, found: dict[str, Any], source: Path, inside: bool) -> str:
        """Checks what was computed and describes it in a line."""
        wrong = []
        if inside or one.way == "editable":
            wrong += [] if Path(found["file"]).is_relative_to(source) else [f"imported {found['file']}"]
        elif Path(found["file"]).is_relative_to(source):
            wrong.append(f"imported {found['file']}")
        if bool(found["kernels"]) != one.compiler:
            wrong.append(f"kernels: {found['kernels']}")
        missing = [text for text in found["warnings"] if "has no compiled library" in text]
        if len(found["warnings"]) != len(missing) or len(missing) != (0 if one.compiler else 1):
            wrong.append(f"warnings: {found['warnings']}")
        for _, *errors in found["results"]:
            if any(error > bound for error, bound in zip(errors, BOUNDS, strict=True)):
                wrong.append(f"relative errors {errors}")
        if wrong:
            raise RuntimeError(f"{one}, {'inside' if inside else 'elsewhere'}: {'; '.join(wrong)}")
        numbers = ", ".join(f"{value:.8f} ({first:.0e}, {second:.0e})" for value, first, second in found["results"])
        path = f"kernels {found['kernels']}" if found["kernels"] else "plain torch, one warning"
        return f"torch {found['torch']}, {path}: {numbers}"

    def command(self, venv: Path, around: dict[str, str]) -> str:
        """The message of splat-train, which needs packages that the loss alone does not."""
        line: list[str | Path] = [venv / "bin" / "splat-train", "--help"]
        done = subprocess.run(line, cwd=self.work / "elsewhere", env=around, capture_output=True, text=True)
        # Warnings of torch may come first.
        said = [text for text in done.stderr.splitlines() if text.startswith("error: ")]
        if done.returncode != 1 or len(said) != 1 or "Traceback" in done.stderr:
            raise RuntimeError(f"splat-train must end with one sentence, got {done.returncode}: {done.stderr}")
        return f"splat-train: {said[0]}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--pythons",
        nargs="+",
        default=["3.10=torch==2.4.1", "3.13=torch"],
        help="Pythons to test, each with its torch requirement, such as 3.13=torch",
    )
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "install-rounds", help="folder to work in")
    parser.add_argument("--bases", type=Path, help="folder of the environments with torch; by default that of --work")
    arguments = parser.parse_args()
    torches = {name: torch for name, _, torch in (text.partition("=") for text in arguments.pythons)}
    work = arguments.work.resolve()
    rounds = Rounds(work, (arguments.bases or work).resolve(), torches)
    good = bad = 0
    for one in (Round(p, way, with_one) for p in torches for way in arguments.ways for with_one in (False, True)):
        try:
            for line in rounds.run(one):
                print(line, flush=True)
            good += 1
        except RuntimeError as problem:
            print(f"FAILED: {one}: {problem}", flush=True)
            bad += 1
    print(f"{good} passed, {bad} failed")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
