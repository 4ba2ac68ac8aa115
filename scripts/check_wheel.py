"""Checks a built wheel with the Python and torch that run this script, away from the source tree.

    python -m build --wheel                                      # or make wheel
    /some/venv/bin/python scripts/check_wheel.py dist/splat_ssim-*.whl

The wheel is installed into a temporary folder, so the environment does not change. It needs torch, numpy and pip. With
pytest and scikit-image, a part of the test suite runs too. --here checks the package that is installed in this
environment instead.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = ("tests/test_ops_ssim.py", "tests/test_ops_ssim_cpu.py", "tests/test_loss.py")


def check(installed: str) -> str:
    """Checks value, gradient, operators and torch.compile of the loss. Returns a sentence about this environment."""
    import torch

    import splat_ssim
    from splat_ssim import reference
    from splat_ssim.loss import photometric_loss
    from splat_ssim.ops import compiled
    from splat_ssim.options import SSIMOptions

    if not Path(splat_ssim.__file__).is_relative_to(installed):
        raise SystemExit(f"splat_ssim must come from {installed}, got {splat_ssim.__file__}")
    if compiled.library() is None:
        raise SystemExit("the wheel's compiled library does not load")
    if not (Path(splat_ssim.__file__).parent / "configs" / "fast.yaml").is_file():
        raise SystemExit("the wheel must hold the configs, got none")
    # The default backend of torch.compile needs a C++ compiler at run time, which few machines with Windows have.
    backend = "aot_eager" if os.name == "nt" else "inductor"
    for shape in ((2, 3, 45, 67), (1, 2, 19, 23, 31)):
        x, y = torch.rand(shape, requires_grad=True), torch.rand(shape)
        exact = x.detach().double().requires_grad_()
        truth = reference.photometric_loss(exact, y.double())[0]
        (gradient,) = torch.autograd.grad(truth, exact)
        functions = [photometric_loss, torch.compile(photometric_loss, fullgraph=True, backend=backend)]
        for function in functions:
            value = function(x, y)
            (found,) = torch.autograd.grad(value, x)
            value_error = abs(value.item() - truth.item()) / truth.item()
            gradient_error = ((found - gradient).abs().max() / gradient.abs().max()).item()
            if value_error > 1e-6 or gradient_error > 1e-5:
                raise SystemExit(f"relative errors of {value_error:.1e} (value), {gradient_error:.1e} (gradient)")
        options = SSIMOptions()
        arguments = (x, y, None, None, 0.8, 0.2, 0.0, False, *options, True, False)
        torch.library.opcheck(torch.ops.splat_ssim.photometric, arguments)
        torch.library.opcheck(torch.ops.splat_ssim.ssim_map, (x, y, *options))
    return f"Python {sys.version.split()[0]}, torch {torch.__version__}: value, gradient, opcheck, torch.compile agree"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path, nargs="?", help="the wheel")
    parser.add_argument("--here", action="store_true", help="check what is installed in this environment")
    parser.add_argument("--installed", type=Path, help=argparse.SUPPRESS)  # folder that the wheel was installed into
    arguments = parser.parse_args()
    if arguments.here or arguments.installed:
        print(check(str(arguments.installed or sysconfig.get_paths()["platlib"])))
        return
    if arguments.wheel is None:
        parser.error("required a wheel or --here, got neither")
    with tempfile.TemporaryDirectory() as folder:
        installed = Path(folder) / "installed"
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index"]
        subprocess.run([*pip, "--target", installed, arguments.wheel.resolve()], check=True)
        environment = {**os.environ, "PYTHONPATH": str(installed)}

        def run(*command: object) -> None:
            subprocess.run([sys.executable, *map(str, command)], check=True, cwd=folder, env=environment)

        shutil.copy(__file__, folder)
        run("-m", "splat_ssim")
        run(Path(folder) / Path(__file__).name, "--installed", installed)
        if all(importlib.util.find_spec(name) for name in ("pytest", "pytest_timeout", "skimage")):
            shutil.copytree(ROOT / "tests", Path(folder) / "tests")
            shutil.copy(ROOT / "pyproject.toml", folder)
            run("-m", "pytest", "-p", "no:cacheprovider", "-m", "not emulation", *TESTS)


if __name__ == "__main__":
    main()
