"""Measures the error of mean SSIM and of its gradient, in float32, against float64: ours and every peer's.

    python scripts/accuracy.py

Each candidate is held to the definition in float64 (splat_ssim.reference) with the candidate's own padding, on the same
float32 images: a photograph and a blurred, noisy copy; two images of noise; 0.9 plus noise of 1e-3, and the same beside
0.5; a flat and bright half within dark texture; the photograph on top of 1000, with the range still 1; and an HDR
image. Writes accuracy.csv and accuracy.png to benchmarks/.

"CUDA, emulated" is the arithmetic of our CUDA kernels, run by the host emulation (csrc/emulation): a GPU's reciprocals
alone differ, by one rounding.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from _commit import commit
from _peers import Candidate, candidates
from torch import Tensor

import splat_ssim
from splat_ssim import reference

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))
from tests import devices  # noqa: E402


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
    """What COLUMNS says; of the value alone where the candidate has no gradient."""
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


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", nargs="+", help="starts of candidates' names; all that are not compiled by default")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks", help="folder of accuracy.csv and .png")
    arguments = parser.parse_args()
    chosen = [c for c in candidates() if 2 in c.dims and not c.compiled and not c.name.endswith("NHWC")]
    chosen = [c for c in chosen if c.name != "splat_ssim L1+DSSIM"]
    chosen.insert(1, Candidate("splat_ssim CUDA, emulated", "splat_ssim", emulated_ssim))
    if arguments.peers is not None:
        chosen = [c for c in chosen if any(c.name.startswith(name) for name in arguments.peers)]
    rows = []
    print(f"{'error of value / gradient / in L2':36}", *(f"{c.name:>28}" for c in chosen))
    for name, (img1, img2, data_range) in image_pairs().items():
        print(f"{name:36}", end="", flush=True)
        for candidate in chosen:
            found = errors(candidate, img1, img2, data_range)
            print(f"{' / '.join(f'{error:.1e}' for error in found):>28}", end="", flush=True)
            row = {"image": name, "name": candidate.name, "version": candidate.version, "padding": candidate.padding}
            rows.append({**row, **{column: f"{error:.3g}" for column, error in zip(COLUMNS, found, strict=False)}})
        print()
    arguments.output.mkdir(parents=True, exist_ok=True)
    with (arguments.output / "accuracy.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "torch", "commit"], restval="")
        writer.writeheader()
        writer.writerows({**row, "torch": torch.__version__, "commit": commit()} for row in rows)
    plot(rows, arguments.output / "accuracy.png")


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
    main()
