"""Times forward + backward of ours and of the fastest form of each peer over numbers of threads.

    python -m benchmarks.scaling [--thread-counts 1 2 4]

By default 1, 2, 4, … and all the cores that this process may use. At each size and number of threads a few calls choose
the fastest form of each peer, which then runs by turns with ours. Rows go to scaling.csv.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

import torch

from benchmarks.calls import begin, chosen, make_calls, parser_of
from benchmarks.candidate import Candidate
from benchmarks.measure import Call, Machine, describe, interleaved, medians, run, show, update

SIZES = ("1080x1920", "256x256", "128x128x128")
MODE = "forward+backward"


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def counts_to(most: int) -> list[int]:
    """1, 2, 4, … and `most` itself.

    Example:
        >>> from benchmarks.scaling import counts_to
        >>> counts_to(6)
        [1, 2, 4, 6]
    """
    return [*(1 << i for i in range(most.bit_length()) if 1 << i < most), most]


def fastest_forms(
    machine: Machine, size: str, peers: list[Candidate]
) -> dict[str, tuple[Candidate, tuple[Call, Call]]]:
    """The form of each peer that is fastest in the second of two calls, by name."""
    best: dict[str, tuple[float, Candidate, tuple[Call, Call]]] = {}
    for peer in peers:
        show(f"{size}, {machine.threads} threads: {peer.name}")
        try:
            calls = make_calls(peer, size, MODE, machine.device)
            calls[0]()
            seconds = machine.time(calls[0])
        except Exception as error:  # A peer's failure is a result, not ours to hide.
            print(f"\n{peer.name} failed on {size}: {type(error).__name__}: {error}", file=sys.stderr)
            continue
        if peer.family not in best or seconds < best[peer.family][0]:
            best[peer.family] = seconds, peer, calls
    return {peer.name: (peer, calls) for _, peer, calls in best.values()}


def scaling(arguments: argparse.Namespace, machine: Machine) -> None:
    """All sizes at each number of threads."""
    for threads in arguments.thread_counts:
        machine = Machine(machine.device, threads)
        provenance: dict[str, Any] = {**describe(machine), "cores": cores()}
        for size in arguments.sizes:
            torch.compiler.reset()
            peers = [c for c in chosen(arguments, size, MODE) if c.same and c.name != "splat_ssim NHWC"]
            found = fastest_forms(machine, size, peers)
            pairs = {name: calls for name, (_, calls) in found.items()}
            times = interleaved(machine, pairs, arguments.seconds, arguments.min_rounds)
            rows = [
                {**found[name][0].about, "size": size, "mode": MODE, **medians(times[name]), **provenance}
                for name in times
            ]
            for row in rows:
                timed = f"{row['name']:30} {row['milliseconds']:10.3f} ms {row['ratio']:8.1f} x ours"
                print(f"{threads:>3} threads {size:>12} {timed}", flush=True)
            update(arguments.output / "scaling.csv", rows)


def main() -> None:
    """Command line."""
    parser = parser_of(__doc__)
    parser.add_argument("--thread-counts", type=int, nargs="+", default=counts_to(cores()), help="numbers of threads")
    arguments = parser.parse_args()
    machine, _ = begin(arguments, SIZES, ("64x64", "16x16x16"))
    scaling(arguments, machine)


if __name__ == "__main__":
    run(main)
