"""Measures the CUDA losses as far as possible without a GPU: the time of Python, and how blocks cover images.

    python scripts/cuda_host.py     # writes benchmarks/results/cuda_host.csv and benchmarks/results/cuda_lanes.csv

Host time: the losses run on CPU tensors, with the CUDA operators in place of the CPU's and a driver whose launches
return at once. They take turns with an autograd function that only allocates the same outputs. A real driver adds some
microseconds a launch.

Lanes: the number of blocks that the launcher chooses for a device of 132 multiprocessors, the number of steps until the
last block finishes, and the fraction of the lanes' steps that output a pixel of the gradient.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import ctypes
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "csrc"), str(ROOT)]

import build  # noqa: E402
from benchmarks.measure import add_output, commit, output_folder, run  # noqa: E402
from splat_ssim import ssim  # noqa: E402
from splat_ssim.loss import photometric_loss  # noqa: E402
from splat_ssim.ops import _cuda_kernels, _cuda_launch, _cuda_module, compiled, dispatch, prepared, ssim_cuda  # noqa: E402
from splat_ssim.options import SSIMOptions  # noqa: E402

#: Number of multiprocessors of an H100 or H200.
MULTIPROCESSORS = 132
SHAPES = ((1, 3, 1080, 1920), (1, 3, 2160, 3840), (25, 3, 256, 256), (1, 3, 800, 800), (1, 3, 512, 512))
#: Columns that a block of a fused kernel filters, resident blocks of a multiprocessor, rows before the first output.
LANES, RESIDENT, WARM_UP = 256, 2, 21

_DRIVER = """
extern "C" {
int launch(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**, void**) {
  return 0;
}
int get_current(void** context) { *context = (void*)1; return 0; }
int set_current(void*) { return 0; }
}
"""


def stub_kernels(folder: Path) -> _cuda_kernels.Kernels:
    """The package's launchers, on a driver that does nothing."""
    source, library = folder / "driver.cpp", folder / "driver.so"
    source.write_text(_DRIVER)
    subprocess.run([*build.compiler(), "-O2", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    driver, own = ctypes.CDLL(str(library)), compiled.library()
    if own is None:
        raise SystemExit("the compiled library is missing: pip install -e .")
    words = [ctypes.cast(driver[name], ctypes.c_void_p).value for name in ("launch", "get_current", "set_current")]
    words += [1] * (1 + len(_cuda_kernels.kernel_names(own)))
    table = (ctypes.c_void_p * len(words))(*words)
    kernels = _cuda_kernels.Kernels(own, ctypes.addressof(table), MULTIPROCESSORS)
    kernels.kept = (driver, table)  # type: ignore[attr-defined]
    return kernels


@contextlib.contextmanager
def cuda_on_the_cpu(kernels: _cuda_kernels.Kernels) -> Iterator[None]:
    """Makes CPU tensors use the CUDA operators."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(_cuda_module, "target", lambda tensor, unit: (kernels, 0)))
        stack.enter_context(mock.patch.object(ssim_cuda, "_has_device_kernels", lambda index, window: True))
        stack.enter_context(mock.patch.dict(dispatch.DEVICES, cpu=dispatch.DEVICES["cuda"]))
        prepared.forget()
        yield
        prepared.forget()


class Bare(torch.autograd.Function):
    """An autograd function that only allocates a gradient and a loss."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        """Allocates the outputs."""
        ctx.gradient = torch.empty_like(x)
        return torch.empty(())

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        """Returns the allocated gradient unchanged."""
        return ctx.gradient, None


def microseconds(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The shortest time of each call in microseconds. The calls take turns."""
    shortest = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds):
        for name, call in calls.items():
            begin = time.perf_counter()
            for _ in range(10):
                call()
            shortest[name] = min(shortest[name], (time.perf_counter() - begin) / 10 * 1e6)
    return shortest


def calls_of(x: Tensor, y: Tensor) -> dict[str, Callable[[], object]]:
    """The calls of every measured function: forward with backward, and the value alone."""
    mask = torch.rand(x.shape[0], 1, *x.shape[2:])
    rgba = torch.randint(256, (x.shape[0], 4, *x.shape[2:]), dtype=torch.uint8)
    rgba = rgba.contiguous(memory_format=torch.channels_last)
    bare: Callable[[Tensor, Tensor], Tensor] = Bare.apply
    functions: dict[str, Callable[[], Tensor]] = {
        "bare": lambda: bare(x, y),
        "photometric_loss": lambda: photometric_loss(x, y),
        "photometric_loss, RGBA": lambda: photometric_loss(x, rgba, background=1.0),
        "photometric_loss, mask": lambda: photometric_loss(x, y, mask=mask),
        "ssim": lambda: ssim(x, y),
    }

    def both(function: Callable[[], Tensor]) -> Callable[[], None]:
        def call() -> None:
            x.grad = None
            function().backward()

        return call

    def value(function: Callable[[], Tensor]) -> Callable[[], None]:
        def call() -> None:
            with torch.no_grad():
                function()

        return call

    calls: dict[str, Callable[[], object]] = {}
    for name, function in functions.items():
        calls[f"{name}: forward+backward"] = both(function)
        calls[f"{name}: value"] = value(function)
    return calls


def kernel_microseconds(x: Tensor, y: Tensor, rounds: int) -> float:
    """Microseconds of the CPU kernel alone: a prepared loss, called with outputs that exist already."""
    photometric_loss(x, y)
    loss = next(iter(prepared._prepared.values())).run
    grad, means = torch.empty_like(x), (ctypes.c_float * 3)()
    addresses = (x.data_ptr(), y.data_ptr(), grad.data_ptr(), None, None)
    call = lambda: loss._function(loss._packed, *addresses, torch.get_num_threads(), means)  # type: ignore[attr-defined] # noqa: E731
    return microseconds({"kernel": call}, rounds)["kernel"]


def host_rows(kernels: _cuda_kernels.Kernels, rounds: int) -> Iterator[dict[str, object]]:
    """One row for each function, device and direction."""
    torch.set_num_threads(1)
    x, y = torch.rand(1, 3, 64, 64, requires_grad=True), torch.rand(1, 3, 64, 64)
    with cuda_on_the_cpu(kernels):
        yield from _rows("CUDA, stub driver", microseconds(calls_of(x, y), rounds), 0.0)
    prepared.forget()
    calls = {name: call for name, call in calls_of(x, y).items() if "forward+backward" in name}
    calls = {name: call for name, call in calls.items() if name.startswith(("bare", "photometric_loss: "))}
    yield from _rows("CPU, one thread", microseconds(calls, rounds), kernel_microseconds(x, y, rounds))


def _rows(device: str, times: dict[str, float], kernel: float) -> Iterator[dict[str, object]]:
    for name, found in times.items():
        function, direction = name.rsplit(": ", 1)
        if function != "bare":
            above = found - times[f"bare: {direction}"] - kernel
            figures = {"microseconds": found, "bare": times[f"bare: {direction}"], "kernel": kernel, "above": above}
            yield {
                "device": device,
                "function": function,
                "direction": direction,
                **{key: f"{value:.1f}" for key, value in figures.items()},
            }


def lane_rows(kernels: _cuda_kernels.Kernels) -> Iterator[dict[str, object]]:
    """One row for each shape."""
    for shape in SHAPES:
        image, options = torch.empty(shape), SSIMOptions()
        call = _cuda_launch._Call(kernels, 0, image, image, options, (image, None))
        problem = call.problem()
        problem.grad[0] = _cuda_launch._describe(call.originals[0], options)
        blocks = call.prepare(problem, _cuda_kernels.FUSED, True)
        steps = -(-blocks // (MULTIPROCESSORS * RESIDENT)) * (problem.segment + WARM_UP)
        useful = image.numel() / (blocks * (problem.segment + WARM_UP) * LANES)
        yield {
            "shape": "x".join(map(str, shape)),
            "kernel": kernels.names[problem.kernel],
            "strips": problem.strips,
            "segments": problem.segments,
            "blocks": blocks,
            "steps": steps,
            "useful_lanes": f"{useful:.2f}",
        }


def write(path: Path, rows: Iterator[dict[str, object]]) -> None:
    """Adds the rows to a CSV file, replacing earlier rows of the same commit."""
    kept = []
    if path.exists():
        with path.open(newline="") as file:
            kept = [row for row in csv.DictReader(file) if row["commit"] != commit()]
    found = [{**row, "commit": commit()} for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(found[0]))
        writer.writeheader()
        writer.writerows([*kept, *found])
    for row in found:
        print(*row.values(), sep="\t")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_output(parser)
    parser.add_argument("--rounds", type=int, default=400, help="rounds of ten calls each")
    arguments = parser.parse_args()
    output = output_folder(arguments.output, arguments.dirty_ok)
    with tempfile.TemporaryDirectory() as folder:
        kernels = stub_kernels(Path(folder))
        write(output / "cuda_lanes.csv", lane_rows(kernels))
        write(output / "cuda_host.csv", host_rows(kernels, arguments.rounds))


if __name__ == "__main__":
    run(main)
