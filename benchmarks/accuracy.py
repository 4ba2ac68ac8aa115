"""Measures the error of mean SSIM and of its gradient, in float32, against float64: ours and every peer's.

    python -m benchmarks.accuracy

Each candidate is held to the definition in float64 (splat_ssim.reference) with the candidate's own padding, on the same
float32 images: a photograph and a blurred, noisy copy; two images of noise; 0.9 plus noise of 1e-3, and the same beside
0.5; a flat and bright half within dark texture; the photograph on top of 1000, with the range still 1; and an HDR
image. Then small and narrow windows on images near 100 and 1000, of every height from 8 to 24: the largest error of S
anywhere in the map, and of its sum's gradient, beside the definition's in float32. Writes accuracy.csv and .png.

"CUDA, emulated" is the arithmetic of our CUDA kernels, run by the host emulation (csrc/emulation): a GPU's reciprocals
alone differ, by one rounding.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import splat_ssim
from benchmarks.candidate import FLOAT32, Candidate
from benchmarks.measure import add_output, commit, output_folder, run, write_csv
from benchmarks.peers import candidates, missing
from splat_ssim import reference
from tests import devices


def photograph() -> Tensor:
    """(1, 3, 512, 512) float32 in [0, 1]."""
    from skimage.data import astronaut

    return torch.from_numpy(astronaut()).permute(2, 0, 1)[None].float() / 255


def image_pairs() -> dict[str, tuple[Tensor, Tensor, float]]:
    """Name -> (image, distorted image, data range)."""
    generator = torch.Generator().manual_seed(0)
    natural = photograph()

    def noise(scale: float) -> Tensor:
        return scale * torch.randn(natural.shape, generator=generator)

    blurred = F.avg_pool2d(F.pad(natural, (1, 1, 1, 1), mode="reflect"), 3, stride=1)
    distorted = (blurred + noise(0.03)).clamp(0, 1)
    # Linear light over some five decades; SSIM is taken with the range of the image.
    hdr, hdr_distorted = (torch.exp(11 * img - 5) for img in (natural, distorted))
    random1, random2 = (torch.rand(natural.shape, generator=generator) for _ in range(2))
    saturated = 0.2 * torch.rand(natural.shape, generator=generator)
    saturated[..., 128:384, :] = 0.99
    return {
        "natural": (natural, distorted, 1.0),
        "noise": (random1, random2, 1.0),
        "flat 0.9 + 1e-3 noise": (0.9 + noise(1e-3), 0.9 + noise(1e-3), 1.0),
        "flat 0.9, flat 0.5": (0.9 + noise(1e-3), 0.5 + noise(1e-3), 1.0),
        "saturated half": (saturated + noise(0.005), saturated + noise(0.01), 1.0),
        "[1000, 1001]": (1000 + natural, 1000 + distorted, 1.0),
        "HDR": (hdr, hdr_distorted, float(hdr.max())),
    }


def emulated_ssim(img1: Tensor, img2: Tensor, data_range: float) -> Tensor:
    """`splat_ssim.ssim` by the CUDA launchers and kernels on the host."""
    with devices.use("emulation"):
        return splat_ssim.ssim(img1, img2, data_range=data_range)


#: Columns of the CSV: of the value; the gradient's largest error and its L2 norm, as shares of the gradient's.
COLUMNS = ("value_error", "gradient_error", "gradient_error_l2")


def errors(candidate: Candidate, img1: Tensor, img2: Tensor, data_range: float) -> list[float]:
    """Returns the errors that COLUMNS names, or only the value's if the candidate has no gradient."""
    x = img1.double().requires_grad_()
    truth = reference.ssim(x, img2.double(), data_range=data_range, padding=candidate.padding)
    (true_grad,) = torch.autograd.grad(truth, x)
    x, y = candidate.prepare(img1.clone()), candidate.prepare(img2)
    if not candidate.differentiable:
        return [abs(candidate.function(x, y, data_range=data_range).item() - truth.item())]
    value = candidate.callable(data_range)(x.requires_grad_(), y)
    (grad,) = torch.autograd.grad(value, x)
    difference = grad.double() - true_grad
    shares = (difference.abs().max() / true_grad.abs().max(), difference.norm() / true_grad.norm())
    return [abs(value.double().item() - truth.item()), *(share.item() for share in shares)]


#: Taps and sigmas of the windows whose maps are held to float64, and where the images' values begin.
WINDOWS, SIGMAS, OFFSETS = (3, 5, 7, 13), (0.35, 0.5, 0.7, 1.0, 1.5), (100, 1000)


def map_errors(function: Callable[..., Tensor], window_size: int, sigma: float, offset: float, pad: str) -> list[float]:
    """Returns the errors in COLUMNS for the SSIM map: the largest over heights of 8 (or the window) to 24."""
    generator = torch.Generator().manual_seed(0)
    worst = [0.0, 0.0, 0.0]
    for height in range(max(8, window_size), 25):
        img1, img2 = (offset + torch.rand(1, 1, height, 48, generator=generator) for _ in range(2))
        options: dict[str, Any] = {"window_size": window_size, "sigma": sigma, "padding": pad}
        results = []
        for images in ((img1, img2), (img1.double(), img2.double())):
            x = images[0].clone().requires_grad_()
            ssim_map = (function if images[0] is img1 else reference.ssim_map)(x, images[1], **options)
            results.append((ssim_map.detach().double(), torch.autograd.grad(ssim_map.sum(), x)[0].double()))
        (found, grad), (truth, true_grad) = results
        difference = grad - true_grad
        shares = (difference.abs().max() / true_grad.abs().max(), difference.norm() / true_grad.norm())
        here = [(found - truth).abs().max().item(), *(share.item() for share in shares)]
        worst = [max(pair) for pair in zip(worst, here, strict=True)]
    return worst


def window_rows() -> list[dict[str, str]]:
    """Rows of accuracy.csv for small and narrow windows far from 0."""
    rows = []
    ours = functools.partial(splat_ssim.ssim, reduction="none")
    contestants: dict[str, Callable[..., Tensor]] = {"splat_ssim": ours, "splat_ssim CUDA, emulated": ours}
    contestants["definition in float32"] = reference.ssim_map
    for window_size, sigma, offset in itertools.product(WINDOWS, SIGMAS, OFFSETS):
        image = f"[{offset}, {offset + 1}], {window_size} taps of sigma {sigma}, heights 8 to 24"
        print(f"{image:56}", end="", flush=True)
        for name, function in contestants.items():
            with devices.use("emulation") if "emulated" in name else contextlib.nullcontext():
                found = [
                    max(errors)
                    for errors in zip(
                        *(map_errors(function, window_size, sigma, offset, pad) for pad in ("same", "valid")),
                        strict=True,
                    )
                ]
            print(f"{' / '.join(f'{error:.1e}' for error in found):>28}", end="", flush=True)
            row = {"image": image, "name": name, "version": splat_ssim.__version__, "padding": "same, valid"}
            rows.append({**row, **{column: f"{error:.3g}" for column, error in zip(COLUMNS, found, strict=True)}})
        print()
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", nargs="+", help="starts of candidates' names; all that are not compiled by default")
    add_output(parser)
    arguments = parser.parse_args()
    output = output_folder(arguments.output, arguments.dirty_ok)
    for line in missing():
        print(line)
    chosen = [c for c in candidates() if 2 in c.dims and c.images == FLOAT32 and c.same]
    chosen = [c for c in chosen if not c.compiled and not c.channels_last]
    chosen.insert(1, Candidate("splat_ssim CUDA, emulated", "splat_ssim", emulated_ssim))
    if arguments.peers is not None:
        chosen = [c for c in chosen if any(c.name.startswith(name) for name in arguments.peers)]
    rows = []
    print(f"{'error of value / gradient / in L2':36}", *(f"{c.name:>28}" for c in chosen))
    for name, (img1, img2, data_range) in image_pairs().items():
        print(f"{name:36}", end="", flush=True)
        for candidate in chosen:
            try:
                found = errors(candidate, img1, img2, data_range)
            except (AssertionError, ValueError, RuntimeError) as error:  # piq takes no values above the range.
                print(f"\n{candidate.name} refused {name}: {error}", flush=True)
                continue
            print(f"{' / '.join(f'{error:.1e}' for error in found):>28}", end="", flush=True)
            row = {"image": name, "name": candidate.name, "version": candidate.version, "padding": candidate.padding}
            rows.append({**row, **{column: f"{error:.3g}" for column, error in zip(COLUMNS, found, strict=False)}})
        print()
    drawn = list(rows)
    if arguments.peers is None:
        rows += window_rows()
    about = {"torch": torch.__version__, "commit": commit()}
    write_csv(output / "accuracy.csv", [*rows[0], *about], [{**row, **about} for row in rows])
    plot(drawn, output / "accuracy.png")


def plot(rows: list[dict[str, str]], path: Path) -> None:
    """Errors by image, one bar for each candidate; an error of 0 or above 10 is drawn at the edge."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    images, names = (list(dict.fromkeys(row[key] for row in rows)) for key in ("image", "name"))
    figure, axes = plt.subplots(2, 1, figsize=(12, 7), sharex=True)
    for axis, column, title in zip(axes, ("value_error", "gradient_error"), ("value", "gradient"), strict=True):
        for i, name in enumerate(names):
            mine = [row for row in rows if row["name"] == name and row.get(column)]
            places = [images.index(row["image"]) + (i - len(names) / 2) * 0.8 / len(names) for row in mine]
            heights = [min(max(float(row[column]), 1e-10), 10) for row in mine]
            axis.bar(places, heights, 0.8 / len(names), align="edge", label=name)
        axis.set(yscale="log", ylabel=f"error of the {title}", ylim=(1e-10, 10))
        axis.set_xticks(range(len(images)), images)
        axis.grid(axis="y", alpha=0.3)
    axes[0].legend(fontsize=8, ncols=4)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    run(main)
