"""Times the CPU renderer on three random scenes, whole and by operator, and appends to a CSV.

    python scripts/benchmark_render.py --output benchmarks/render_cpu.csv

The whole is one call of `rasterization` and its backward pass, as a trainer makes them: operators, autograd and
allocation included. Times are the smallest of several repetitions, in milliseconds.
"""

from __future__ import annotations

import argparse
import csv
import platform
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
from _commit import commit

from splat_ssim.ops import compiled
from splat_ssim.render import _pipeline, rasterization

#: Number of Gaussians, side of the square image, degree of the harmonics.
SCENES = [(5_000, 128, 0), (20_000, 256, 0), (100_000, 800, 0), (25_000, 200, 3)]


def make_scene(n: int, size: int, degree: int) -> list[torch.Tensor]:
    """Gaussians of sigma 0.01 to 0.02 in a unit box that fills the image."""
    g = torch.Generator().manual_seed(0)
    means = torch.rand(n, 3, generator=g) - 0.5
    quats = torch.randn(n, 4, generator=g)
    scales = torch.rand(n, 3, generator=g) * 0.01 + 0.01
    opacities = torch.rand(n, generator=g) * 0.8 + 0.1
    colors = torch.rand(n, (degree + 1) ** 2, 3, generator=g) * 3.4 - 1.7
    viewmats = torch.eye(4)[None].clone()
    viewmats[:, 2, 3] = 1.8
    focal = 1.1 * size
    Ks = torch.tensor([[[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]]])
    return [t.requires_grad_(i < 5) for i, t in enumerate((means, quats, scales, opacities, colors, viewmats, Ks))]


def smallest(call: Callable[[], object], repeat: int) -> float:
    """Milliseconds of the fastest of `repeat` calls, after three to warm up."""
    times = []
    for _ in range(repeat + 3):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    return min(times[3:])


def measure(n: int, size: int, degree: int, repeat: int) -> dict[str, float]:
    """Times of one scene by stage."""
    scene = make_scene(n, size, degree)
    upstream = torch.rand(1, size, size, 3, generator=torch.Generator().manual_seed(1))

    def forward() -> torch.Tensor:
        return rasterization(*scene, size, size, sh_degree=degree)[0]

    def both() -> None:
        torch.autograd.grad(forward(), scene[:5], upstream)

    ops = torch.ops.splat_ssim
    plain, tile = [t.detach() for t in scene], _pipeline.default_tile_size(size, size)
    inputs = (*plain[:5], None, *plain[5:], size, size, 0.01, 1e10, 0.0, 0.3, degree, False, False)
    means2d, depths, conics, opacities, colors, radii = ops.raster_project(*inputs)
    packed = (means2d, conics, opacities, colors, radii, depths, None, size, size, tile, 0.999, False)
    images, alphas, records, lists = ops.raster_composite(*packed)
    kept = (conics, opacities, records, lists, images, alphas, upstream, None, tile, 0.999, False)
    v_means2d, v_conics, v_colors, v_opacities, _ = ops.raster_composite_backward(*kept)
    upper = (v_means2d, None, v_conics, v_opacities, v_colors, False)
    stages = {
        "project": lambda: ops.raster_project(*inputs),
        "composite": lambda: ops.raster_composite(*packed),
        "composite_backward": lambda: ops.raster_composite_backward(*kept),
        "project_backward": lambda: ops.raster_project_backward(*inputs, radii, colors, *upper),
    }
    times = {"forward": smallest(forward, repeat), "forward_backward": smallest(both, repeat)}
    return times | {name: smallest(stage, repeat) for name, stage in stages.items()}


def describe() -> dict[str, str]:
    """What the figures belong to."""
    processor = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            processor = line.split(":", 1)[1].strip()
            break
    return {
        "date": date.today().isoformat(),
        "commit": commit(),
        "processor": processor,
        "isa": str(compiled.isa()),
        "torch": torch.__version__,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="CSV to append to; by default only printed")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads")
    arguments = parser.parse_args()
    rows = []
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for n, size, degree in SCENES:
            times = measure(n, size, degree, repeat=8 if size > 500 else 40)
            rows.append(
                describe()
                | {"threads": threads, "gaussians": n, "size": size, "sh_degree": degree}
                | {f"{name}_ms": f"{value:.3f}" for name, value in times.items()}
            )
            print(
                f"{threads} threads, {n} at {size}², degree {degree}: "
                + str({k: round(v, 2) for k, v in times.items()})
            )
    if arguments.output:
        new = not arguments.output.exists()
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        with arguments.output.open("a", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            if new:
                writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
