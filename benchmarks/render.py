"""Times the CPU renderer on three random scenes, whole and by operator.

    python -m benchmarks.render

The whole is one call of `rasterization` and its backward pass, as a trainer makes them: operators, autograd and
allocation included. Times are the smallest of several repetitions, in milliseconds. Rows are
added to render_cpu.csv, in place of this commit's on this machine.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from datetime import date

import torch

from benchmarks.measure import Machine, add_output, commit, output_folder, run, update
from splat_ssim.render import _pipeline, rasterization

#: What identifies a row.
KEYS = ("commit", "device", "threads", "gaussians", "size", "sh_degree")

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
        return rasterization(*scene, size, size, sh_degree=degree)[0]  # type: ignore[call-arg, arg-type]

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


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads")
    add_output(parser)
    arguments = parser.parse_args()
    output = output_folder(arguments.output, arguments.dirty_ok)
    rows = []
    for threads in arguments.threads:
        machine = Machine("cpu", threads)
        about = {"date": date.today().isoformat(), "commit": commit(), "torch": torch.__version__}
        about |= {"device": machine.name, "threads": threads}
        for n, size, degree in SCENES:
            times = measure(n, size, degree, repeat=8 if size > 500 else 40)
            found = {f"{name}_ms": f"{value:.3f}" for name, value in times.items()}
            rows.append({**about, "gaussians": n, "size": size, "sh_degree": degree, **found})
            print(
                f"{threads} threads, {n} at {size}², degree {degree}: "
                + str({k: round(v, 2) for k, v in times.items()})
            )
    update(output / "render_cpu.csv", rows, KEYS)


if __name__ == "__main__":
    run(main)
