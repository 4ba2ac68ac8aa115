"""Times ours alone over window sizes and image sizes: nanoseconds an element.

    python -m benchmarks.sweep

Of one image, and of a batch of small ones that has a million elements: a call costs some 70 microseconds, however small
the image. Rows go to sweep.csv.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from typing import Any

import torch

import splat_ssim
from benchmarks.calls import begin, call_of, image_pair, parse_size, parser_of, shares
from benchmarks.measure import Machine, repeats_for, run, show, update

SIZES = (
    "64x64",
    "256x256",
    "512x512",
    "1080x1920",
    "2160x3840",
    "32x32x32",
    "64x64x64",
    "128x128x128",
    "256x256x256",
)

#: Elements of a batch.
FILLED = 1 << 20


def times_of(
    machine: Machine, size: str, mode: str, batch: int, arguments: argparse.Namespace
) -> dict[int, list[float]]:
    """Seconds of a call by window, by turns."""
    calls = {}
    for window in arguments.windows:
        img1, img2 = image_pair(size, machine.device, batch)
        function = splat_ssim.ssim if img1.ndim == 4 else splat_ssim.ssim3d
        function = functools.partial(function, window_size=window, sigma=window * 1.5 / 11)
        call = call_of(function, img1.detach().requires_grad_(mode != "forward"), img2, mode)
        calls[window] = call, repeats_for(machine, call)
    times: dict[int, list[float]] = {window: [] for window in calls}
    begin = time.perf_counter()
    while len(times[arguments.windows[0]]) < 3 or time.perf_counter() - begin < arguments.seconds:
        show(f"sweep {size} {mode}: round {len(times[arguments.windows[0]]) + 1}")
        for window, (call, repeats) in calls.items():
            call()
            times[window].append(machine.time(call, repeats))
    return times


def sweep(arguments: argparse.Namespace, machine: Machine, provenance: dict[str, Any]) -> None:
    """Ours over windows and sizes, one image and a batch of small ones."""
    for size in arguments.sizes:
        rows = []
        filling = -(-FILLED // torch.Size(parse_size(size)).numel())
        for mode, batch in ((mode, batch) for mode in arguments.modes for batch in dict.fromkeys((1, filling))):
            for window, values in times_of(machine, size, mode, batch, arguments).items():
                milliseconds = statistics.median(values) * 1000
                share = shares(milliseconds, size, mode, window, provenance, batch)
                row = {"name": "splat_ssim", "version": splat_ssim.__version__, "size": size, "batch": batch}
                rows.append(
                    {**row, "mode": mode, "rounds": len(values), "milliseconds": milliseconds, **share, **provenance}
                )
        show("")
        for row in rows:
            what = f"{row['batch']:>3} x {size:<12} {row['mode']:17} {row['window']:3} taps"
            print(f"{what} {row['ns_per_element']:8.3f} ns an element")
        update(arguments.output / "sweep.csv", rows)


def main() -> None:
    """Command line."""
    arguments = parser_of(__doc__).parse_args()
    machine, provenance = begin(arguments, SIZES, ("64x64", "128x128", "32x32x32"))
    sweep(arguments, machine, provenance)


if __name__ == "__main__":
    run(main)
