"""The console commands: splat-train, -eval, -render, -export, -report, -viewer, -compare, -prepare and others.

This file lies outside the package because importing the package loads torch, and `train` sets the environment first.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

#: Packages that the commands import -> the extra of the installation that brings them.
EXTRAS = {
    **dict.fromkeys(("numpy", "gsplat", "packaging", "tyro", "yaml", "tqdm", "imageio", "PIL", "scipy"), "train"),
    **dict.fromkeys(("pycolmap", "tensorboard"), "train"),
    "viser": "viewer",
    **dict.fromkeys(("nibabel", "SimpleITK", "tifffile", "zarr", "h5py", "mrcfile", "dask"), "volume"),
    "constriction": "codec",
}
#: A shell's exit status of a program that a signal has ended, less the number of the signal: SIGPIPE is 13, SIGINT 2.
_STOPPED = 128


@contextmanager
def _with_its_packages(name: str) -> Iterator[None]:
    """Ends the program with one sentence where a package of an extra is missing.

    It ends quietly where nobody reads its output any more, and at Ctrl-C while the packages are imported.
    """
    if hasattr(sys.stdout, "reconfigure"):
        # Names of files may hold letters that the encoding of a pipe lacks, on Windows for one.
        sys.stdout.reconfigure(errors="replace")
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # What is left to print at the exit goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(_STOPPED + 13)
    except KeyboardInterrupt:
        sys.exit(_STOPPED + 2)
    except ModuleNotFoundError as missing:
        package = (missing.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        sys.exit(
            f"error: {name} requires the package {package}, got none: install splat_ssim with its extra "
            f"{EXTRAS[package]!r}"
        )


def _call(name: str, path: str) -> None:
    with _with_its_packages(name):
        from splat_ssim.trainer.cli import call

        call(path)


def train() -> None:
    """Trains a scene, a volume or an image."""
    # OpenMP's workers, which torch's own operations use, would spin between them on the cores our kernels need.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with _with_its_packages("splat-train"):
        from splat_ssim.trainer.cli import main

        main()


def evaluate() -> None:
    """Evaluates a run of any kind."""
    _call("splat-eval", "splat_ssim.trainer.cli:evaluate_run")


def render() -> None:
    """Draws what a run has trained."""
    _call("splat-render", "splat_ssim.trainer.cli:render_run")


def export() -> None:
    """Writes a trained scene in the formats of viewers."""
    _call("splat-export", "splat_ssim.scene.export:export")


def report() -> None:
    """Writes the page about a run."""
    _call("splat-report", "splat_ssim.trainer.cli:report_run")


def viewer() -> None:
    """Shows a run in a browser."""
    _call("splat-viewer", "splat_ssim.trainer.cli:view_run")


def compare() -> None:
    """Compares images, folders or volumes."""
    _call("splat-compare", "splat_ssim.comparison:compare")


def prepare() -> None:
    """Makes a COLMAP scene from photographs or a video."""
    _call("splat-prepare", "splat_ssim.prepare:prepare")


def voxelize() -> None:
    """Rebuilds a volume from fitted Gaussians."""
    _call("splat-voxelize", "splat_ssim.volume.rebuild:rebuild")


def compress() -> None:
    """Writes a volume as a file of Gaussians."""
    _call("splat-compress", "splat_ssim.volume.codec.commands:compress")


def decompress() -> None:
    """Writes the volume of a file of Gaussians."""
    _call("splat-decompress", "splat_ssim.volume.codec.commands:decompress")


def project() -> None:
    """Writes X-ray projections of a volume."""
    _call("splat-project", "splat_ssim.ct.simulate:simulate")
