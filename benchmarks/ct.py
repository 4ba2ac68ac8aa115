"""CT of the brain MRI from few cone-beam views: Gaussians beside FDK, SART and total variation of RTK.

    python -m benchmarks.ct [--size 128] [--views 50] [--steps N] [--photons N] [--only fdk sart tv gaussians direct]

The MRI is projected from its own voxels in float64 (scripts/project.py) and reconstructed on size³ voxels of a cube of
160 mm, so that no method knows the voxels that the projections were made of; the truth is the MRI interpolated there.
`direct` is the fit of as many Gaussians to the truth itself. PSNR and SSIM are of the whole volume over its span;
negative values are cut off for every method. Rows of benchmarks/results/ct.csv are replaced by method and setting;
ct.md beside it is drawn from it. RTK comes with `pip install "splat_ssim[ct-benchmark]"`.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import measure
from benchmarks.measure import ROOT, add_output, commit, output_folder, read, update
from benchmarks.runs import markdown_table
from splat_ssim.ct.config import CTConfig
from splat_ssim.ct.data import Projections, load_projections
from splat_ssim.ct.simulate import simulate
from splat_ssim.ct.training import CTTask
from splat_ssim.trainer.cli import parse
from splat_ssim.trainer.unkept import Unkept
from splat_ssim.volume import fit, load_volume
from splat_ssim.volume.evaluation import evaluate_volume

METHODS = ("fdk", "sart", "tv", "gaussians", "direct")
KEYS = ("method", "size", "views", "photons")
FIELDS = (*KEYS, "psnr3d", "ssim3d", "processor_seconds", "seconds", "threads", "gaussians", "steps", "commit")


class Rtk:
    """RTK's reconstructions. Its source turns about y from z towards x: x, y, z there are our y, z, x."""

    def __init__(self, data: Projections) -> None:
        import itk
        from itk import RTK

        self.itk, self.rtk, self.data = itk, RTK, data
        self.kind = itk.Image[itk.F, 3]
        self.geometry = RTK.ThreeDCircularProjectionGeometry.New()
        shape = data.geometry
        for angle in shape.angles:
            self.geometry.AddProjection(shape.source_object, shape.source_detector, angle)
        # Our rows run down, RTK's up.
        self.pictures = itk.image_from_array(np.ascontiguousarray(data.pictures.numpy()[:, ::-1]))
        (rows, columns), (down, across) = shape.detector, shape.spacing
        self.pictures.SetSpacing([across, down, 1.0])
        self.pictures.SetOrigin([-(columns - 1) / 2 * across, -(rows - 1) / 2 * down, 0.0])

    def start(self) -> Any:
        """A volume of zeros."""
        grid = self.data.grid
        image = self.itk.image_from_array(np.zeros([grid.shape[i] for i in (2, 0, 1)], np.float32))
        image.SetSpacing([grid.spacing[0]] * 3)
        # The source turns about the middle of the cube.
        image.SetOrigin([-(grid.shape[0] - 1) / 2 * grid.spacing[0]] * 3)
        return image

    def reconstruct(self, name: str, **options: Any) -> Callable[[], np.ndarray]:
        """The volume (n0, n1, n2) of one of RTK's filters, whose setters are named by the options."""
        kinds = (self.kind, self.kind) if name == "SART" else self.kind
        made = getattr(self.rtk, f"{name}ConeBeamReconstructionFilter")[kinds].New()
        made.SetInput(0, self.start())
        made.SetInput(1, self.pictures)
        made.SetGeometry(self.geometry)
        if name == "FDK":
            made.GetRampFilter().SetHannCutFrequency(options["hann"])
        else:
            made.SetForwardProjectionFilter(made.ForwardProjectionType_FP_JOSEPH)
            made.SetBackProjectionFilter(made.BackProjectionType_BP_VOXELBASED)
            for option, value in options.items():
                getattr(made, f"Set{option}")(value)

        def run() -> np.ndarray:
            made.Update()
            volume: np.ndarray = self.itk.array_from_image(made.GetOutput()).transpose(1, 2, 0)
            return volume

        return run


def peers(data: Projections, only: list[str]) -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
    """Name and reconstruction of each of RTK's methods."""
    if not {"fdk", "sart", "tv"} & set(only):
        return
    try:
        rtk = Rtk(data)
    except ImportError:
        print(
            'itk-rtk is not installed (pip install "splat_ssim[ct-benchmark]"): its rows are left out', file=sys.stderr
        )
        return
    if "fdk" in only:
        for hann in (0.0, 1.0):
            yield f"RTK FDK, {f'Hann {hann:g}' if hann else 'ramp'}", rtk.reconstruct("FDK", hann=hann)
    if "sart" in only:
        for count in (10, 30):
            options = {"NumberOfIterations": count, "Lambda": 0.3, "EnforcePositivity": True}
            yield f"RTK SART, {count} iterations", rtk.reconstruct("SART", **options)
    if "tv" in only:
        bright = float(data.pictures.max())
        for alpha in (1e-2, 1e-1):
            options = {"Alpha": alpha * bright, "Beta": bright, "AL_iterations": 20, "CG_iterations": 4}
            yield f"RTK ADMM-TV, alpha {alpha:g}", rtk.reconstruct("ADMMTotalVariation", **options)


def gaussians(folder: Path, steps: int | None, budget: int | None) -> tuple[np.ndarray, dict[str, Any]]:
    """Our reconstruction by configs/ct.yaml, and what its row says besides."""
    _, config = parse(["--config", str(ROOT / "configs/ct.yaml"), "--data-dir", str(folder)])
    assert isinstance(config, CTConfig)
    config.device, config.checkpoint_every, config.output.progress = "cpu", 0, False
    config.steps = steps or config.steps
    config.strategy.budget = budget or config.strategy.budget
    task = CTTask(config)
    Unkept(task).train()
    return task.volume()[0].numpy(), {"gaussians": len(task.model), "steps": config.steps}


def measured(function: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """Calls a function. Returns its result, and its seconds by the clock and summed over all processors."""
    processor, clock = time.process_time(), time.perf_counter()
    result = function()
    seconds = {"processor_seconds": time.process_time() - processor, "seconds": time.perf_counter() - clock}
    return result, {name: round(value, 1) for name, value in seconds.items()}


def scored(
    name: str, result: np.ndarray, truth: torch.Tensor, options: argparse.Namespace, **more: Any
) -> dict[str, Any]:
    """The row of a reconstruction (n0, n1, n2)."""
    found = torch.from_numpy(np.ascontiguousarray(result, dtype=np.float32)).clamp(min=0)[None]
    span = float(truth.max() - truth.min())
    scores = {name: round(value, 4) for name, value in evaluate_volume(found, truth, data_range=span).items()}
    setting = {"size": options.size, "views": options.views, "photons": options.photons or ""}
    return {"method": name, **setting, **scores, "threads": torch.get_num_threads(), **more}


def rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each method, as it is done."""
    with tempfile.TemporaryDirectory() as place:
        source = ROOT / "assets/brain_mri/T1.nii.gz"
        folder = simulate(source, Path(place), views=options.views, size=options.size, photons=options.photons)
        file = folder / "truth.npz"
        truth = torch.from_numpy(load_volume(file).data)
        for name, run in peers(load_projections(folder), options.only):
            result, seconds = measured(run)
            yield scored(name, result, truth, options, **seconds)
        if "gaussians" in options.only:
            (result, more), seconds = measured(lambda: gaussians(folder, options.steps, options.budget))
            yield scored("Gaussians from projections", result, truth, options, **seconds, **more)
        if "direct" in options.only:
            budget, steps = options.budget or CTConfig().strategy.budget, options.steps or CTConfig().steps
            field, seconds = measured(lambda: fit(file, budget=budget, steps=steps, device="cpu"))
            more = {"gaussians": len(field), "steps": steps}
            rendered = field.render()[0].detach().numpy()
            yield scored("Gaussians fitted to the volume itself", rendered, truth, options, **seconds, **more)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--views", type=int, default=50)
    parser.add_argument("--steps", type=int, help="number of steps of the fits; by default that of configs/ct.yaml")
    parser.add_argument("--budget", type=int, help="number of Gaussians; by default that of configs/ct.yaml")
    parser.add_argument(
        "--photons", type=float, help="expected photons of an unattenuated ray; by default there is no noise"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS))
    add_output(parser)
    options = parser.parse_args()
    folder = output_folder(options.output, options.dirty_ok)
    torch.set_num_threads(options.threads)
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = str(options.threads)
    for row in rows(options):
        print(", ".join(f"{key} {value}" for key, value in row.items() if value != ""), flush=True)
        update(folder / "ct.csv", [{**dict.fromkeys(FIELDS, ""), **row, "commit": commit()}], KEYS)
    (folder / "ct.md").write_text(table(read(folder / "ct.csv")))


def table(found: list[dict[str, str]]) -> str:
    """The rows of the CSV as a page."""
    found = sorted(found, key=lambda row: (int(row["size"]), int(row["views"]), row["photons"]))
    lines = [
        {
            "method": row["method"],
            "size": f"{row['size']}³",
            "views": row["views"],
            "photons": row["photons"] or "no noise",
            "PSNR3D": f"{float(row['psnr3d']):.2f}",
            "SSIM3D": f"{float(row['ssim3d']):.3f}",
            "processor s": row["processor_seconds"],
            "s": row["seconds"],
            "Gaussians": row["gaussians"],
            "steps": row["steps"],
        }
        for row in found
    ]
    head = "# CT from few cone-beam views\n\nBy `python -m benchmarks.ct`; the brain MRI in a cube of 160 mm.\n\n"
    return head + "\n".join([*markdown_table(list(lines[0]), lines), ""])


if __name__ == "__main__":
    measure.run(main)
