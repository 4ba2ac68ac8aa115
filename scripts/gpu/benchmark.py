"""Times the losses on a GPU beside every peer, the voxeliser and the projector; adds rows to a CSV file as they come.

    python scripts/gpu/benchmark.py --csv results/gpu/benchmark.csv --losses --voxelizer --projector --compiled

There is a row for each shape, contestant and turn. All contestants of a shape run in one process and take turns, twice.
The columns are milliseconds of the GPU behind a filled queue, with caches as the previous call left them and with
flushed caches; of a loop as users write it; of the host in that loop; and of a replayed CUDA graph. Errors are relative
to float64. A peer that is missing or raises has a row that says so. With --small everything is tiny, for tests.
"""

from __future__ import annotations

import argparse
import csv
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT)]

from _clock import Clock, WaitingCallError  # noqa: E402
from _contestants import Contestant, Loss, compiled, contestants  # noqa: E402

from benchmarks.measure import commit  # noqa: E402
from splat_ssim import reference  # noqa: E402
from splat_ssim.ct import XrayGeometry, circle, project  # noqa: E402
from splat_ssim.volume import VoxelGrid, morton_order, voxelize  # noqa: E402
from splat_ssim.volume.reference import voxelize_reference  # noqa: E402

IMAGES = (
    (1, 3, 1080, 1920),
    (1, 3, 2160, 3840),
    (25, 3, 256, 256),
    (1, 3, 800, 800),
    (1, 3, 512, 512),
    (5, 5, 1080, 1920),
)
VOLUMES = ((1, 1, 128, 128, 128), (1, 1, 256, 256, 256))
#: Peers that would take seconds at other shapes -> the shapes at which they run.
SLOW = {"kornia + L1": IMAGES[:1], "pytorch-msssim + L1": (*IMAGES[:1], *VOLUMES[:1])}
#: Dimensions -> the shape at which errors are measured.
ERRORS = {2: (1, 3, 256, 256), 3: (1, 1, 64, 64, 64)}
#: Cases of the voxeliser: the number of Gaussians, of 1 to 2 voxels each, and the edge of the grid.
VOXELIZER = ((50_000, 128), (10_000, 256), (500_000, 256))
#: Cases of the projector: the number of Gaussians, of 1 to 2 pixels each, the views of a call and the detector's edge.
PROJECTOR = ((50_000, 4, 256), (50_000, 32, 256), (500_000, 4, 1024))
TINY_PROJECTOR = ((60, 3, 20),)
TINY_IMAGES, TINY_VOLUMES, TINY_VOXELS = ((1, 3, 20, 30),), ((1, 1, 12, 11, 14),), ((60, 12),)
TINY_ERRORS = {2: (1, 1, 20, 30), 3: (1, 1, 12, 11, 14)}

DEVICE = "cuda"

COLUMNS = (
    "device commit torch cuda shape contestant turn result gpu_both_ms gpu_both_cold_ms gpu_value_ms eager_both_ms "
    "host_both_ms graph_both_ms value_error gradient_error peak_images state"
).split()
Row = dict[str, object]


class Table:
    """The CSV file. Each row is written to disk and printed before the next one is measured."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._common = {
            "device": clock.name,
            "commit": commit(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            with path.open("w", newline="") as file:
                csv.writer(file).writerow(COLUMNS)

    def add(self, row: Row) -> None:
        """Writes a row."""
        row = {name: f"{value:.5g}" if isinstance(value, float) else value for name, value in row.items()}
        with self._path.open("a", newline="") as file:
            csv.DictWriter(file, COLUMNS).writerow({**self._common, **row})
        print(*row.values(), sep="\t", flush=True)


def measured(shape: str, name: str, turn: int, measure: Callable[[], Row]) -> Row:
    """The row of a measurement. An exception becomes the row's result."""
    row: Row = {"shape": shape, "contestant": name, "turn": turn}
    try:
        return {**row, "result": "measured", **measure()}
    except ImportError as error:
        return {**row, "result": f"missing: {error}"}
    except Exception as error:  # one peer must not end the run
        return {**row, "result": f"failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}


def both_and_value(loss: Loss, x: Tensor, y: Tensor) -> tuple[Callable[[], None], Callable[[], None]]:
    """Two calls: forward with backward, and the value alone."""

    def both() -> None:
        x.grad = None
        loss(x, y).backward()

    def value() -> None:
        with torch.no_grad():
            loss(x, y)

    return both, value


@functools.cache
def errors(contestant: Contestant, shape: tuple[int, ...], device: str) -> Row:
    """Errors against float64: of the value, relative, and of the gradient, relative to its largest entry."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(shape, generator=generator)
    y = (x + 0.05 * torch.randn(shape, generator=generator)).clamp(0, 1)
    exact = x.double().requires_grad_()
    options = {"lambda_dssim": contestant.lambda_dssim, "padding": contestant.padding}
    truth = reference.photometric_loss(exact, y.double(), **options)[0]
    truth.backward()
    x, y = x.to(device, copy=True).requires_grad_(), y.to(device)
    value = contestant.make()(x, y)
    value.backward()
    assert x.grad is not None and exact.grad is not None
    gradient = (x.grad.double().cpu() - exact.grad).abs().max() / exact.grad.abs().max()
    return {"value_error": abs(value.item() - truth.item()) / truth.item(), "gradient_error": gradient.item()}


def of_loss(clock: Clock, contestant: Contestant, shape: tuple[int, ...], small: tuple[int, ...]) -> Row:
    """All measurements of one loss."""
    loss = contestant.make()
    x, y = torch.rand(shape, device=DEVICE, requires_grad=True), torch.rand(shape, device=DEVICE)
    both, value = both_and_value(loss, x, y)
    both()
    eager, host = clock.eager_and_host(both)
    try:
        row: Row = {
            "gpu_both_ms": clock.gpu(both, host),
            "gpu_both_cold_ms": clock.gpu(both, host, cold=True),
            "gpu_value_ms": clock.gpu(value, host),
        }
    except WaitingCallError as error:
        row = {"result": f"measured as users write it: {error}"}
    row |= {
        "eager_both_ms": eager,
        "host_both_ms": host,
        "peak_images": clock.peak_bytes(both) / (4 * x.numel()),
        "state": clock.state(),
    }
    if contestant.ours:  # fused-ssim launches on the legacy stream, which a capture refuses
        row["graph_both_ms"] = clock.graph(both)
    return row | errors(contestant, small, DEVICE)


def losses(clock: Clock, table: Table, tiny: bool, only: str) -> None:
    """Measures all contestants whose name contains `only`, at all shapes, in turns."""
    measured_at = TINY_ERRORS if tiny else ERRORS
    for shape in (*TINY_IMAGES, *TINY_VOLUMES) if tiny else (*IMAGES, *VOLUMES):
        dims = len(shape) - 2
        for turn in range(2):
            for one in contestants(dims):
                if only in one.name and (tiny or shape in SLOW.get(one.name, (shape,))):
                    run = lambda one=one, shape=shape, dims=dims: of_loss(clock, one, shape, measured_at[dims])  # noqa: E731
                    table.add(measured("x".join(map(str, shape)), one.name, turn, run))


def compiled_definition(clock: Clock, table: Table, tiny: bool) -> None:
    """Measures the definition under torch.compile, at one shape of images and one of volumes."""
    measured_at = TINY_ERRORS if tiny else ERRORS
    one = compiled("aot_eager" if tiny else "inductor")  # a compiler takes minutes on a CPU
    for shape in (TINY_IMAGES[0], TINY_VOLUMES[0]) if tiny else (IMAGES[0], VOLUMES[0]):
        run = lambda shape=shape: of_loss(clock, one, shape, measured_at[len(shape) - 2])  # noqa: E731
        table.add(measured("x".join(map(str, shape)), one.name, 0, run))


def voxelizer_case(count: int, edge: int, device: str) -> tuple[list[Tensor], VoxelGrid]:
    """Means, quaternions, scales and densities in a cube, along a Morton curve."""
    grid, generator = VoxelGrid.regular((edge, edge, edge)), torch.Generator().manual_seed(0)
    means = torch.rand(count, 3, generator=generator) * (edge - 1)
    means = means[morton_order(means, grid)]
    rest = (
        torch.randn(count, 4, generator=generator),
        1 + torch.rand(count, 3, generator=generator),
        torch.rand(count, generator=generator),
    )
    return [tensor.to(device).requires_grad_() for tensor in (means, *rest)], grid


def of_voxelizer(clock: Clock, count: int, edge: int) -> Row:
    """All measurements of the voxeliser."""
    tensors, grid = voxelizer_case(count, edge, DEVICE)
    upstream = torch.rand(1, *grid.shape, device=DEVICE)

    def volume_of(tensors: Sequence[Tensor], grid: VoxelGrid) -> Tensor:
        means, quats, scales, densities = tensors
        return voxelize(means, quats, scales, densities, grid)

    def both() -> None:
        torch.autograd.grad(volume_of(tensors, grid), tensors, upstream)

    def value() -> None:
        with torch.no_grad():
            volume_of(tensors, grid)

    both()
    eager, host = clock.eager_and_host(both, 5)
    # The voxeliser waits for the length of its list of pairs, so the queue cannot be filled.
    row: Row = {"eager_both_ms": eager, "host_both_ms": host, "gpu_value_ms": clock.eager_and_host(value, 5)[0]}
    row |= {"peak_images": clock.peak_bytes(both) / (4 * upstream.numel()), "state": clock.state()}
    tensors, grid = voxelizer_case(min(count, 300), min(edge, 24), DEVICE)
    exact = [tensor.detach().double().cpu().requires_grad_() for tensor in tensors]
    volume = volume_of(tensors, grid)
    means, quats, scales, densities = exact
    truth = voxelize_reference(means, quats, scales, densities[:, None], grid)
    weight = torch.rand(volume.shape, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad((volume * weight.to(volume.device)).sum(), tensors[:1])
    (wanted,) = torch.autograd.grad((truth * weight.double()).sum(), exact[:1])
    found = {"value_error": (volume.detach().cpu(), truth), "gradient_error": (gradient.cpu(), wanted)}
    return row | {name: ((a - b).abs().max() / b.abs().max()).item() for name, (a, b) in found.items()}


def voxelizer(clock: Clock, table: Table, tiny: bool) -> None:
    """Measures the voxeliser, forward and backward."""
    for count, edge in TINY_VOXELS if tiny else VOXELIZER:
        run = lambda count=count, edge=edge: of_voxelizer(clock, count, edge)  # noqa: E731
        table.add(measured(f"{count} Gaussians, {edge}x{edge}x{edge}", "splat_ssim voxelize", 0, run))


def projector_case(count: int, views: int, edge: int, device: str) -> tuple[list[Tensor], XrayGeometry]:
    """Means, quaternions, scales and densities in a cube that a cone beam sees, along a Morton curve."""
    tensors, _ = voxelizer_case(count, edge, "cpu")
    far = 4.0 * edge
    middle = ((edge - 1) / 2,) * 3
    geometry = XrayGeometry(
        "cone",
        (edge, edge),
        (1.5, 1.5),
        circle(views, "cone"),
        source_object=far,
        source_detector=1.5 * far,
        center=middle,
    )
    # They lie in the ball that every view sees.
    means = tensors[0].detach() - middle[0]
    means *= (0.35 * edge / means.norm(dim=1, keepdim=True).clamp(min=1)).clamp(max=1)
    moved = [means + middle[0], *(tensor.detach() for tensor in tensors[1:])]
    return [tensor.to(device).requires_grad_() for tensor in moved], geometry


def of_projector(clock: Clock, count: int, views: int, edge: int) -> Row:
    """All measurements of the projector."""
    tensors, geometry = projector_case(count, views, edge, DEVICE)
    upstream = torch.rand(views, 1, edge, edge, device=DEVICE)

    def pictures_of(tensors: Sequence[Tensor], geometry: XrayGeometry) -> Tensor:
        means, quats, scales, densities = tensors
        return project(means, quats, scales, densities, geometry)

    def both() -> None:
        torch.autograd.grad(pictures_of(tensors, geometry), tensors, upstream)

    def value() -> None:
        with torch.no_grad():
            pictures_of(tensors, geometry)

    both()
    eager, host = clock.eager_and_host(both, 5)
    # The projector waits for the length of its list of pairs, so the queue cannot be filled.
    row: Row = {"eager_both_ms": eager, "host_both_ms": host, "gpu_value_ms": clock.eager_and_host(value, 5)[0]}
    row |= {"peak_images": clock.peak_bytes(both) / (4 * upstream.numel()), "state": clock.state()}
    tensors, geometry = projector_case(min(count, 300), min(views, 2), min(edge, 48), DEVICE)
    exact = [tensor.detach().double().cpu().requires_grad_() for tensor in tensors]
    pictures, truth = pictures_of(tensors, geometry), pictures_of(exact, geometry)
    # A smooth weight, since gradients have a pole at the rims of the shadows, which a norm averages.
    weight = torch.linspace(0, 1, pictures.numel()).reshape(pictures.shape)
    (gradient,) = torch.autograd.grad((pictures * weight.to(pictures.device)).sum(), tensors[:1])
    (wanted,) = torch.autograd.grad((truth * weight.double()).sum(), exact[:1])
    error = (pictures.detach().cpu() - truth).abs().max() / truth.abs().max()
    return row | {
        "value_error": error.item(),
        "gradient_error": ((gradient.cpu() - wanted).norm() / wanted.norm()).item(),
    }


def projector(clock: Clock, table: Table, tiny: bool) -> None:
    """Measures the projector, forward and backward."""
    for count, views, edge in TINY_PROJECTOR if tiny else PROJECTOR:
        run = lambda count=count, views=views, edge=edge: of_projector(clock, count, views, edge)  # noqa: E731
        table.add(measured(f"{count} Gaussians, {views} views of {edge}x{edge}", "splat_ssim project", 0, run))


def kernel_table(tiny: bool) -> None:
    """Prints which kernels a forward and backward at 1080p starts, and how long each takes."""
    from torch.profiler import ProfilerActivity, profile

    x = torch.rand((TINY_IMAGES if tiny else IMAGES)[0], device=DEVICE, requires_grad=True)
    y = torch.rand_like(x)
    for one in contestants(2):
        if one.name in SLOW:
            continue
        try:
            both, _ = both_and_value(one.make(), x, y)
            both()
            with profile(activities=[ProfilerActivity.CUDA]) as found:
                for _ in range(1 if tiny else 10):
                    both()
                torch.cuda.synchronize()
            print(f"{one.name}, forward and backward")
            print(found.key_averages().table(sort_by="cuda_time_total", row_limit=12, max_name_column_width=60))
        except Exception as error:  # one peer must not end the run
            print(f"{one.name}: no table of kernels: {type(error).__name__}: {error}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, default=Path("results/gpu/benchmark.csv"), help="file to add rows to")
    parser.add_argument("--losses", action="store_true", help="measure the losses and every peer")
    parser.add_argument("--only", default="", help="measure only the losses whose names contain this")
    parser.add_argument("--voxelizer", action="store_true", help="measure the voxeliser")
    parser.add_argument("--projector", action="store_true", help="measure the projector of X-rays")
    parser.add_argument(
        "--compiled", action="store_true", help="measure torch.compile of the definition, at two shapes"
    )
    parser.add_argument("--one", action="store_true", help="run one image and one volume once, for a profiler")
    parser.add_argument("--small", action="store_true", help="use tiny sizes, to test that it runs")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(1, "a CUDA device is required, and PyTorch reaches none\n")
    clock = Clock(brief=arguments.small)
    if arguments.one:
        for shape in (TINY_IMAGES[0], TINY_VOLUMES[0]) if arguments.small else (IMAGES[0], VOLUMES[1]):
            x = torch.rand(shape, device=DEVICE, requires_grad=True)
            both_and_value(contestants(len(shape) - 2)[0].make(), x, torch.rand_like(x))[0]()
        return
    table = Table(arguments.csv, clock)
    if arguments.losses:
        print(f"{clock.name}: a copy moves {clock.copy_bandwidth():.2f} TB/s; {clock.state()}", flush=True)
        losses(clock, table, arguments.small, arguments.only)
        if not arguments.only:
            kernel_table(arguments.small)
    if arguments.voxelizer:
        voxelizer(clock, table, arguments.small)
    if arguments.projector:
        projector(clock, table, arguments.small)
    if arguments.compiled:
        compiled_definition(clock, table, arguments.small)


if __name__ == "__main__":
    main()
