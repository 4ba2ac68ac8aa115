"""Measures what one call of SSIM needs beyond its inputs at its peak, in images: ours and every peer's.

    python -m benchmarks.memory

Each in a fresh process, whose malloc gives everything back. Rows go to memory.csv.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch

from benchmarks.calls import SIZES, begin, chosen, make_calls, parse_size, parser_of
from benchmarks.candidate import FLOAT32, Candidate
from benchmarks.measure import Machine, in_fresh_process, peak_beyond, run, show, update
from benchmarks.peers import candidates


def memory(arguments: argparse.Namespace, machine: Machine, provenance: dict[str, Any]) -> None:
    """The peak of one call of each candidate that takes tensors, at every size and in every mode."""
    for size in arguments.sizes:
        rows = []
        for mode in arguments.modes:
            for candidate in (c for c in chosen(arguments, size, mode) if c.images == FLOAT32):
                show(f"memory: {size} {mode} {candidate.name}")
                line = ["--one", candidate.name, "--sizes", size, "--modes", mode]
                line += ["--device", machine.device, "--threads", str(machine.threads)]
                try:
                    extra = in_fresh_process("benchmarks.memory", line)
                except RuntimeError as error:  # A peer's failure is a result, not ours to hide.
                    print(f"\n{candidate.name} failed on {size} {mode}: {error}", file=sys.stderr)
                    continue
                images = extra / (4 * torch.Size(parse_size(size)).numel())
                row = {**candidate.about, "size": size, "mode": mode, "window": 11}
                rows.append({**row, "extra_mib": extra / 2**20, "extra_images": images, **provenance})
        show("")
        for row in rows:
            print(f"{size:>12} {row['mode']:17} {row['name']:30} {row['extra_images']:8.2f} images")
        update(arguments.output / "memory.csv", rows)


def extra_memory(candidate: Candidate, size: str, mode: str, device: str) -> int:
    """Bytes at the peak of one call beyond what there is before it."""
    # Libraries, threads and their scratch are there before; a compiled form needs its code for this size.
    small = "x".join("32" for _ in size.split("x"))
    make_calls(candidate, size if candidate.compiled else small, mode, device)[0]()
    call = make_calls(candidate, size, mode, device)[0]
    if candidate.compiled:
        call()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    return peak_beyond(call)


def main() -> None:
    """Command line."""
    parser = parser_of(__doc__)
    parser.add_argument("--one", help=argparse.SUPPRESS)  # The candidate that a fresh process measures.
    arguments = parser.parse_args()
    if arguments.one is not None:
        Machine(arguments.device, arguments.threads)  # Sets the threads.
        candidate = next(c for c in candidates(arguments.device) if c.name == arguments.one)
        print(extra_memory(candidate, arguments.sizes[0], arguments.modes[0], arguments.device))
        return
    machine, provenance = begin(arguments, SIZES, ("256x256",))
    memory(arguments, machine, provenance)


if __name__ == "__main__":
    run(main)
