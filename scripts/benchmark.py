"""Measures SSIM of this package against every peer that is importable, and against what the machine can do.

    python scripts/benchmark.py                          # everything, a few minutes to an hour; see --quick
    python scripts/benchmark.py speed --sizes 256x256 --peers splat_ssim pytorch-msssim
    python scripts/benchmark.py plot                     # draws what the CSV files hold

speed:  ours and every peer, forward alone and forward + backward, interleaved in one process. Each peer's run is
        preceded by runs of ours; the ratio is the median over the rounds of peer / ours.
memory: what one call needs beyond its inputs at its peak, in images, each in a fresh process.
sweep:  ours alone over window sizes and image sizes: nanoseconds an element, of one image, and of a batch of small ones
        that has a million elements: a call costs some 70 microseconds, however small the image.
plot:   figures from the CSV files.

Rows are appended to CSV files in benchmarks/, a row measured again in place of the older one. Each says the commit, the
device, the versions, and the peaks of the machine in the same run.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from _measure import ROOT, Machine, describe, peak_beyond, read, repeats_for, show, update
from _peers import Candidate, candidates

import splat_ssim

MODES = ("forward", "forward+backward")
SIZES = ("256x256", "1080x1920", "64x64x64", "128x128x128")
SWEEP_SIZES = (
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
SWEEP_WINDOWS = (5, 7, 9, 11, 13, 15, 17, 19, 21)

#: Environment in which malloc gives back whatever is freed.
GIVING_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}

#: Elements of a batch of the sweep.
FILLED = 1 << 20


def issue_slots(spatial_dims: int, window: int, mode: str) -> int:
    """Multiply-adds an element that the four-map form needs, 50 of them pointwise (docs: the cost of SSIM)."""
    forward, adjoint = 4 * spatial_dims * window, 3 * spatial_dims * window
    return forward + 25 if mode == "forward" else forward + adjoint + 50


def bytes_moved(mode: str) -> int:
    """Bytes an element that must move: read two images, write one gradient."""
    return 8 if mode == "forward" else 12


# --------------------------------------------------------------------------------------------------------------------
# Measuring
# --------------------------------------------------------------------------------------------------------------------


def parse_size(size: str, batch: int = 1) -> tuple[int, ...]:
    """Turns "256x256" into (batch, 3, 256, 256) and "64x64x64" into (batch, 1, 64, 64, 64)."""
    sides = tuple(int(side) for side in size.split("x"))
    if len(sides) not in (2, 3):
        raise ValueError(f"a size must be HxW or DxHxW, got {size!r}")
    return (batch, 3 if len(sides) == 2 else 1, *sides)


def make_call(
    candidate: Candidate, size: str, mode: str, device: str, batch: int = 1, **options: object
) -> Callable[[], object]:
    """A call of the candidate on images of this size, the inputs made beforehand."""
    generator = torch.Generator().manual_seed(0)
    shape = parse_size(size, batch)
    img1 = torch.rand(shape, generator=generator)
    img2 = (img1 + 0.1 * torch.randn(shape, generator=generator)).clamp(0, 1)
    img1, img2 = (candidate.prepare(img.to(device)) for img in (img1, img2))
    function = candidate.callable() if not options else lambda x, y: splat_ssim_with(x, y, **options)
    if mode == "forward":

        def call() -> object:
            with torch.no_grad():
                return function(img1, img2)
    else:
        img1.requires_grad_()

        def call() -> object:
            return torch.autograd.grad(function(img1, img2), img1)

    return call


def splat_ssim_with(x: torch.Tensor, y: torch.Tensor, **options: object) -> torch.Tensor:
    """Ours with other options than the defaults."""
    return (splat_ssim.ssim if x.ndim == 4 else splat_ssim.ssim3d)(x, y, **options)


def measure_speed(
    machine: Machine, size: str, mode: str, peers: list[Candidate], seconds: float, min_rounds: int
) -> Iterable[dict]:
    """Times of ours and of each peer; one row for each."""
    # Code compiled for another size or mode would count against the limit after which torch runs eagerly.
    torch.compiler.reset()
    ours = make_call(candidates(machine.device)[0], size, mode, machine.device)
    repeats = repeats_for(machine, ours)
    times: dict[str, list[tuple[float, float]]] = {}
    spent: dict[str, float] = {}
    calls: dict[str, tuple[Callable[[], object], int]] = {}
    for peer in peers:
        show(f"{size} {mode}: warming up {peer.name}")
        call = make_call(peer, size, mode, machine.device)
        try:
            calls[peer.name] = call, repeats_for(machine, call)
        except Exception as error:  # A peer's failure is a result, not ours to hide.
            print(f"\n{peer.name} failed on {size} {mode}: {type(error).__name__}: {error}", file=sys.stderr)
            continue
        times[peer.name], spent[peer.name] = [], 0.0
    round_number = 0

    def active(name: str) -> bool:
        """Some rounds at least, then until the peer's time is used up or 50 rounds."""
        return len(times[name]) < min_rounds or (spent[name] < seconds and len(times[name]) < 50)

    while any(active(name) for name in times):
        round_number += 1
        show(f"{size} {mode}: round {round_number}")
        for name in times:
            if active(name):
                ours()
                own = machine.time(ours, repeats)
                theirs = machine.time(*calls[name])
                times[name].append((own, theirs))
                spent[name] += theirs * calls[name][1]
    for name, pairs in times.items():
        own, theirs = (statistics.median(values) for values in zip(*pairs, strict=True))
        ratio = statistics.median(their / our for our, their in pairs)
        yield {"name": name, "milliseconds": theirs * 1000, "ours": own * 1000, "ratio": ratio, "rounds": len(pairs)}


def speed(arguments: argparse.Namespace, machine: Machine, provenance: dict[str, object]) -> None:
    """Ours against every peer."""
    for size in arguments.sizes:
        dims = len(size.split("x"))
        for mode in arguments.modes:
            chosen = [c for c in candidates(machine.device) if dims in c.dims and selected(c, arguments.peers)]
            chosen = [c for c in chosen if mode == "forward" or c.differentiable]
            rows = []
            for row in measure_speed(machine, size, mode, chosen, arguments.seconds, arguments.min_rounds):
                candidate = next(c for c in chosen if c.name == row["name"])
                share = shares(row["milliseconds"], size, mode, 11, provenance)
                rows.append({**row, "version": candidate.version, "size": size, "mode": mode, **share, **provenance})
            show("")
            for row in rows:
                print(
                    f"{size:>12} {mode:17} {row['name']:30} {row['milliseconds']:10.3f} ms {row['ratio']:8.1f} x ours"
                )
            update(arguments.output / "speed.csv", rows)


def shares(
    milliseconds: float, size: str, mode: str, window: int, provenance: dict[str, object], batch: int = 1
) -> dict[str, float]:
    """Nanoseconds an element, and the shares of the machine's peaks that the four-map form's work would be."""
    shape = parse_size(size, batch)
    elements = torch.Size(shape).numel()
    seconds = milliseconds / 1000
    slots = elements * issue_slots(len(shape) - 2, window, mode)
    return {
        "window": window,
        "ns_per_element": seconds * 1e9 / elements,
        "fma_share": 2 * slots / seconds / (float(provenance["fma_gflops"]) * 1e9),
        "copy_share": elements * bytes_moved(mode) / seconds / (float(provenance["copy_gb_s"]) * 1e9),
    }


def sweep(arguments: argparse.Namespace, machine: Machine, provenance: dict[str, object]) -> None:
    """Ours over windows and sizes, one image and a batch of small ones."""
    ours = candidates(machine.device)[0]
    for size in arguments.sizes:
        rows = []
        filling = -(-FILLED // torch.Size(parse_size(size)).numel())
        for mode, batch in ((mode, batch) for mode in arguments.modes for batch in dict.fromkeys((1, filling))):
            calls = {}
            for window in arguments.windows:
                call = make_call(ours, size, mode, machine.device, batch, window_size=window, sigma=window * 1.5 / 11)
                calls[window] = call, repeats_for(machine, call)
            times: dict[int, list[float]] = {window: [] for window in calls}
            begin = time.perf_counter()
            while len(times[arguments.windows[0]]) < 3 or time.perf_counter() - begin < arguments.seconds:
                show(f"sweep {size} {mode}: round {len(times[arguments.windows[0]]) + 1}")
                for window, (call, repeats) in calls.items():
                    call()
                    times[window].append(machine.time(call, repeats))
            for window, values in times.items():
                milliseconds = statistics.median(values) * 1000
                share = shares(milliseconds, size, mode, window, provenance, batch)
                row = {"name": ours.name, "version": ours.version, "size": size, "batch": batch, "mode": mode}
                rows.append({**row, "rounds": len(values), "milliseconds": milliseconds, **share, **provenance})
        show("")
        for row in rows:
            what = f"{row['batch']:>3} x {size:<12} {row['mode']:17} {row['window']:3} taps"
            print(f"{what} {row['ns_per_element']:8.3f} ns an element")
        update(arguments.output / "sweep.csv", rows)


# --------------------------------------------------------------------------------------------------------------------
# Memory
# --------------------------------------------------------------------------------------------------------------------


def memory(arguments: argparse.Namespace, machine: Machine, provenance: dict[str, object]) -> None:
    """The peak of one call beyond its inputs; each in a process of its own, whose malloc gives everything back."""
    environment = {**os.environ, **GIVING_MALLOC}
    for size in arguments.sizes:
        dims = len(size.split("x"))
        rows = []
        for mode in arguments.modes:
            for candidate in candidates(machine.device):
                unwanted = dims not in candidate.dims or not selected(candidate, arguments.peers)
                if unwanted or (mode != "forward" and not candidate.differentiable):
                    continue
                show(f"memory: {size} {mode} {candidate.name}")
                command = [
                    sys.executable,
                    __file__,
                    "memory",
                    "--sizes",
                    size,
                    "--modes",
                    mode,
                    "--one",
                    candidate.name,
                ]
                command += ["--device", machine.device, "--threads", str(machine.threads)]
                done = subprocess.run(command, env=environment, capture_output=True, text=True)
                if done.returncode != 0:
                    print(f"\n{candidate.name} failed on {size} {mode}: {done.stderr[-500:]}", file=sys.stderr)
                    continue
                extra = int(done.stdout.split()[-1])
                row = {"name": candidate.name, "version": candidate.version, "size": size, "mode": mode, "window": 11}
                images = extra / (4 * torch.Size(parse_size(size)).numel())
                rows.append({**row, "extra_mib": extra / 2**20, "extra_images": images, **provenance})
        show("")
        for row in rows:
            print(f"{size:>12} {row['mode']:17} {row['name']:30} {row['extra_images']:8.2f} images")
        update(arguments.output / "memory.csv", rows)


def extra_memory(candidate: Candidate, size: str, mode: str, device: str) -> int:
    """Bytes at the peak of one call beyond what there is before it."""
    # Libraries, threads and their scratch are there before; a compiled form needs its code for this size.
    small = "x".join("32" for _ in size.split("x"))
    make_call(candidate, size if candidate.compiled else small, mode, device)()
    call = make_call(candidate, size, mode, device)
    if candidate.compiled:
        call()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    return peak_beyond(call)


# --------------------------------------------------------------------------------------------------------------------
# CSV and figures
# --------------------------------------------------------------------------------------------------------------------


def plot(arguments: argparse.Namespace) -> None:
    """Draws speed.csv and sweep.csv of the output folder."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    speed_rows = [r for r in read(arguments.output / "speed.csv") if r["mode"] == "forward+backward"]
    sizes = list(dict.fromkeys(row["size"] for row in speed_rows))
    if sizes:
        figure, axes = plt.subplots(1, len(sizes), figsize=(4 * len(sizes), 5), squeeze=False)
        for axis, size in zip(axes[0], sizes, strict=True):
            rows = sorted((r for r in speed_rows if r["size"] == size), key=lambda r: float(r["ratio"]))
            names, ratios = [row["name"] for row in rows], [float(row["ratio"]) for row in rows]
            axis.barh(names, ratios, color=["C2" if name.startswith("splat_ssim") else "C0" for name in names])
            axis.set(xscale="log", title=size, xlabel="time of forward + backward, ours = 1")
            for i, ratio in enumerate(ratios):
                axis.text(ratio, i, f" {ratio:.3g}", va="center", fontsize=8)
            axis.tick_params(labelsize=8)
            axis.margins(x=0.25)
        figure.tight_layout()
        figure.savefig(arguments.output / "speed.png", dpi=120)

    sweep_rows = [r for r in read(arguments.output / "sweep.csv") if r["mode"] == "forward+backward"]
    if sweep_rows:
        figure, axes = plt.subplots(1, 2, figsize=(11, 4.5))
        for axis, dims in zip(axes, (2, 3), strict=True):
            for i, window in enumerate(sorted({int(row["window"]) for row in sweep_rows})):
                rows = [r for r in sweep_rows if int(r["window"]) == window and len(r["size"].split("x")) == dims]
                for single, style in ((False, "o-"), (True, ":")):
                    best: dict[int, float] = {}
                    for r in sorted(rows, key=lambda r: int(r["batch"]), reverse=single):
                        best[torch.Size(parse_size(r["size"])).numel()] = float(r["ns_per_element"])
                    label = None if single else f"{window} taps"
                    axis.plot(*zip(*sorted(best.items()), strict=True), style, color=f"C{i}", label=label)
            axis.set(xscale="log", xlabel="elements of an image", ylabel="ns an element")
            axis.set(title=f"{dims}D, forward + backward; dotted: a call for each image")
            axis.set_ylim(0, 3 * max(axis.lines[0].get_ydata()) if axis.lines else None)
            axis.legend(fontsize=8)
        figure.tight_layout()
        figure.savefig(arguments.output / "sweep.png", dpi=120)


# --------------------------------------------------------------------------------------------------------------------
# Command line
# --------------------------------------------------------------------------------------------------------------------


def selected(candidate: Candidate, names: list[str] | None) -> bool:
    """Whether a candidate is asked for: by the start of its name."""
    return names is None or any(candidate.name.startswith(name) for name in names)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    whats = ("speed", "memory", "sweep", "plot")
    parser.add_argument("what", nargs="*", choices=[*whats, []], help="what to do; all by default")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--sizes", nargs="+", help=f"HxW (3 channels) or DxHxW (1 channel); {' '.join(SIZES)}")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--windows", nargs="+", type=int, default=SWEEP_WINDOWS, help="window sizes of the sweep")
    parser.add_argument("--peers", nargs="+", help="starts of candidates' names; all by default")
    parser.add_argument("--seconds", type=float, default=5.0, help="time for each candidate")
    parser.add_argument("--min-rounds", type=int, default=3, help="rounds for each candidate, however slow it is")
    parser.add_argument("--quick", action="store_true", help="small sizes, half a second for each candidate")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks", help="folder of the CSV files and figures")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # The candidate a process of `memory` measures.
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a CUDA device that torch can reach, found none")
    machine = Machine(arguments.device, arguments.threads)
    if arguments.one is not None:
        candidate = next(c for c in candidates(arguments.device) if c.name == arguments.one)
        print(extra_memory(candidate, arguments.sizes[0], arguments.modes[0], arguments.device))
        return
    if arguments.quick:
        arguments.seconds = min(arguments.seconds, 0.5)
    given, whats = arguments.sizes, arguments.what or whats
    provenance: dict[str, object] = {}
    if whats != ["plot"]:
        provenance = describe(machine)
        print(f"{machine.name}, {machine.threads} threads: ", end="")
        print(f"{provenance['fma_gflops']:.0f} GFLOP/s, copy {provenance['copy_gb_s']:.1f} GB/s")
    for name, function, sizes, quick_sizes in (
        ("speed", speed, SIZES, ("64x64", "16x16x16")),
        ("memory", memory, SIZES, ("256x256",)),
        ("sweep", sweep, SWEEP_SIZES, ("64x64", "128x128", "32x32x32")),
    ):
        if name in whats:
            arguments.sizes = given or (quick_sizes if arguments.quick else sizes)
            function(arguments, machine, provenance)
    if "plot" in whats:
        plot(arguments)


if __name__ == "__main__":
    main()
