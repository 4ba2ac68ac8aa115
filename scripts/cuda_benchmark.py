"""Times the losses on a GPU beside every peer that can be imported, and the voxeliser; appends to a CSV file.

    python scripts/cuda_benchmark.py --csv benchmarks/cuda.csv

One row for each peer and case: the median of the time of one call (CUDA events around several), the relative errors of
value and gradient against float64 on a crop, and what the run was made with. All contestants of a case run in the same
process, by turns, after a warm-up of their own.
"""

from __future__ import annotations

import argparse
import csv
import functools
import importlib.util
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from _commit import commit
from torch import Tensor

import splat_ssim
from splat_ssim import reference
from splat_ssim.loss import photometric_loss
from splat_ssim.volume import VoxelGrid, morton_order, voxelize
from splat_ssim.volume.reference import voxelize_reference

ROOT = Path(__file__).resolve().parent.parent
LAMBDA = 0.2
IMAGES = ((1, 3, 1080, 1920), (1, 3, 2160, 3840), (25, 3, 256, 256))
VOLUMES = ((1, 1, 128, 128, 128), (1, 1, 256, 256, 256), (1, 1, 512, 512, 512))
#: Images the errors are measured on.
KINDS = ("noise", "flat", "natural")
#: Gaussians of 1 to 2 voxels, and the edge of the grid.
VOXELIZER = ((50_000, 128), (10_000, 256), (500_000, 256))


Loss = Callable[[Tensor, Tensor], Tensor]
#: Name, loss, and the padding its SSIM has: errors are against the definition with the same.
Contestant = tuple[str, Loss, str]


def with_l1(ssim: Loss) -> Loss:
    """The photometric loss around a peer's SSIM."""
    return lambda x, y: (1 - LAMBDA) * (x - y).abs().mean() + LAMBDA * (1 - ssim(x, y))


def _importable(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


@functools.cache
def _mask(shape: torch.Size) -> Tensor:
    return torch.ones(shape[0], 1, *shape[2:], device="cuda")


def image_losses() -> Iterator[Contestant]:
    """Every contestant for images."""
    yield "splat_ssim", lambda x, y: photometric_loss(x, y, lambda_dssim=LAMBDA), "same"
    yield "splat_ssim, masked", lambda x, y: photometric_loss(x, y, lambda_dssim=LAMBDA, mask=_mask(x.shape)), "same"
    if _importable("fused_ssim"):
        from fused_ssim import fused_ssim

        yield "fused-ssim", with_l1(lambda x, y: fused_ssim(x, y)), "same"
    if _importable("pytorch_msssim"):
        from pytorch_msssim import ssim

        yield "pytorch-msssim", with_l1(lambda x, y: ssim(x, y, data_range=1.0)), "valid"
    if _importable("kornia"):
        from kornia.metrics import ssim as kornia_ssim

        yield "kornia", with_l1(lambda x, y: kornia_ssim(x, y, 11).mean()), "reflect"
    compiled = torch.compile(lambda x, y: reference.photometric_loss(x, y, lambda_dssim=LAMBDA)[0], dynamic=False)
    yield "torch.compile of the definition", compiled, "same"


def volume_losses() -> Iterator[Contestant]:
    """Every contestant for volumes."""
    yield "splat_ssim", lambda x, y: photometric_loss(x, y, lambda_dssim=LAMBDA), "same"
    for module in ("fused_ssim3d", "fused_ssim"):
        if _importable(module):
            found = getattr(importlib.import_module(module), "fused_ssim3d", None)
            if found is not None:
                yield "fused-ssim3D", with_l1(found), "same"
                break
    if _importable("pytorch_msssim"):
        from pytorch_msssim import ssim

        yield "pytorch-msssim", with_l1(lambda x, y: ssim(x, y, data_range=1.0)), "valid"


def milliseconds(call: Callable[[], object], repeats: int = 20, inner: int = 5) -> float:
    """Median time of one call."""
    for _ in range(3):
        call()
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(inner):
            call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / inner)
    return statistics.median(times)


def errors(loss: Loss, padding: str, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Relative errors of value and gradient (L2) against the definition in float64."""
    x = x.detach().requires_grad_()
    exact = x.detach().double().requires_grad_()
    value = loss(x, y)
    truth = reference.photometric_loss(exact, y.double(), lambda_dssim=LAMBDA, padding=padding)[0]
    value.backward()
    truth.backward()
    gradient = (x.grad - exact.grad).norm() / exact.grad.norm()
    return abs(value.item() - truth.item()) / truth.item(), gradient.item()


def natural_image() -> Tensor | None:
    """A photograph-like image of the repository, (1, 3, 200, 200), or None without Pillow."""
    if not _importable("PIL"):
        return None
    import numpy as np
    from PIL import Image

    with Image.open(ROOT / "assets" / "chair_200" / "train" / "r_0.png") as file:
        pixels = np.asarray(file.convert("RGB"), dtype=np.float32) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous().cuda()


def kinds(shape: tuple[int, ...]) -> dict[str, tuple[Tensor, Tensor]]:
    """Pairs of images for the errors: noise, nearly flat, and natural (images alone)."""
    noise = torch.rand(shape, device="cuda")
    flat = 0.9 + 1e-3 * torch.randn(shape, device="cuda")
    pairs = {"noise": (noise, torch.rand_like(noise)), "flat": (flat, flat + 1e-3 * torch.randn_like(flat))}
    natural = natural_image() if len(shape) == 4 else None
    if natural is not None:
        pairs["natural"] = (natural, (natural + 0.05 * torch.randn_like(natural)).clamp(0, 1))
    return pairs


def voxelizer_case(count: int, edge: int) -> tuple[list[Tensor], VoxelGrid]:
    """Means, quaternions, scales and densities in a cube, along a Morton curve."""
    grid = VoxelGrid.regular((edge, edge, edge))
    means = torch.rand(count, 3, device="cuda") * (edge - 1)
    means = means[morton_order(means, grid)]
    scales = torch.empty(count, 3, device="cuda").uniform_(1.0, 2.0)
    tensors = [means, torch.randn(count, 4, device="cuda"), scales, torch.rand(count, device="cuda")]
    return [tensor.requires_grad_() for tensor in tensors], grid


def voxelizer_errors() -> dict[str, str]:
    """Relative errors of volume and gradient by the means (L2) against the definition in float64, 300 Gaussians."""
    tensors, grid = voxelizer_case(300, 24)
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    volume = voxelize(*tensors, grid)
    truth = voxelize_reference(*exact[:3], exact[3][:, None], grid)
    weight = torch.rand_like(volume)
    gradient = torch.autograd.grad((volume * weight).sum(), tensors[0])[0]
    wanted = torch.autograd.grad((truth * weight.double()).sum(), exact[0])[0]
    errors = {"value": (volume - truth).norm() / truth.norm(), "gradient": (gradient - wanted).norm() / wanted.norm()}
    return {f"{name}_error_noise": f"{error.item():.2e}" for name, error in errors.items()}


def voxelizer_rows(common: dict[str, object]) -> Iterator[dict[str, object]]:
    """The voxeliser, forward and backward."""
    accuracy = voxelizer_errors()
    for count, edge in VOXELIZER:
        tensors, grid = voxelizer_case(count, edge)
        upstream = torch.rand(1, *grid.shape, device="cuda")

        def both(tensors: list[Tensor] = tensors, grid: VoxelGrid = grid, upstream: Tensor = upstream) -> None:
            torch.autograd.grad(voxelize(*tensors, grid), tensors, upstream)

        def value(tensors: list[Tensor] = tensors, grid: VoxelGrid = grid) -> None:
            with torch.no_grad():
                voxelize(*tensors, grid)

        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        times = {"forward_backward_ms": milliseconds(both), "forward_ms": milliseconds(value)}
        peak = (torch.cuda.max_memory_allocated() - held) / (4 * upstream.numel())
        case = {"peer": "splat_ssim voxelize", "shape": f"{count} Gaussians, {edge}x{edge}x{edge}", **common}
        yield case | {k: f"{v:.4f}" for k, v in times.items()} | {"peak_images": f"{peak:.1f}", **accuracy}


def rows() -> Iterator[dict[str, object]]:
    """One row for each case and contestant."""
    common = {
        "device": torch.cuda.get_device_name(),
        "commit": commit(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "splat_ssim": splat_ssim.__version__,
    }
    for shapes, losses in ((IMAGES, image_losses), (VOLUMES, volume_losses)):
        small = (1, 3, 512, 512) if shapes is IMAGES else (1, 1, 64, 64, 64)
        for name, loss, padding in losses():
            accuracy = {}
            for kind, pair in kinds(small).items():
                accuracy[f"value_error_{kind}"], accuracy[f"gradient_error_{kind}"] = errors(loss, padding, *pair)
            for shape in shapes:
                x, y = torch.rand(shape, device="cuda", requires_grad=True), torch.rand(shape, device="cuda")

                def both(x: Tensor = x, y: Tensor = y, loss: Loss = loss) -> None:
                    x.grad = None
                    loss(x, y).backward()

                def value(x: Tensor = x, y: Tensor = y, loss: Loss = loss) -> None:
                    with torch.no_grad():
                        loss(x, y)

                case = {"peer": name, "shape": "x".join(map(str, shape)), **common}
                try:
                    value()  # makes the mask, which is an input
                    torch.cuda.reset_peak_memory_stats()
                    held = torch.cuda.memory_allocated()
                    times = {"forward_backward_ms": milliseconds(both), "forward_ms": milliseconds(value)}
                    peak = (torch.cuda.max_memory_allocated() - held) / (4 * x.numel())
                    yield (
                        case
                        | {k: f"{v:.4f}" for k, v in times.items()}
                        | {
                            "peak_images": f"{peak:.1f}",
                            **{k: f"{v:.2e}" for k, v in accuracy.items()},
                        }
                    )
                except torch.cuda.OutOfMemoryError:
                    yield case | {"forward_backward_ms": "out of memory"}
    yield from voxelizer_rows(common)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, default=Path("benchmarks/cuda.csv"), help="file to append to")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(1, "PyTorch reaches no CUDA device\n")
    columns = ["device", "commit", "torch", "cuda", "splat_ssim", "shape", "peer", "forward_backward_ms", "forward_ms"]
    columns += [
        "peak_images",
        *(f"{what}_error_{kind}" for kind in KINDS for what in ("value", "gradient")),
    ]
    arguments.csv.parent.mkdir(parents=True, exist_ok=True)
    fresh = not arguments.csv.exists()
    with arguments.csv.open("a", newline="") as file:
        writer = csv.DictWriter(file, columns)
        if fresh:
            writer.writeheader()
        for row in rows():
            writer.writerow(row)
            file.flush()
            print(*(f"{row.get(c, '')}" for c in ("peer", "shape", "forward_backward_ms", "forward_ms")), sep="\t")


if __name__ == "__main__":
    main()
