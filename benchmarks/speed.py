"""Times SSIM of this package beside every peer that is there, each in several forms (docs/benchmarks.md).

    python -m benchmarks.speed                           # everything, about an hour; --quick shows that it runs
    python -m benchmarks.speed --sizes 256x256 --peers splat_ssim pytorch-msssim

Forward alone and forward + backward, interleaved in one process: each run of a peer is preceded by runs of ours that
compute the same of the same images, and the ratio is the median over the rounds of peer / ours. Rows go to speed.csv, a
row measured again in place of the older one. Each says the commit, the device, the versions, and the peaks of the
machine in the same run. `fastest` marks the fastest form of each peer.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch

from benchmarks.calls import SIZES, begin, chosen, make_calls, parser_of, shares_of
from benchmarks.candidate import Candidate
from benchmarks.measure import Call, Machine, interleaved, medians, run, show, update

#: Candidates that compute the same as ours may differ by so much: the value, and the gradient by its largest entry.
AGREEMENT = {"value_difference": 1e-4, "gradient_difference": 1e-3}


def differences_of(calls: tuple[Call, Call], mode: str) -> dict[str, Any]:
    """By how much the results of a candidate and of ours differ."""
    theirs: Any
    own: Any
    theirs, own = (call() for call in calls)
    if mode == "forward":
        return {"value_difference": abs(float(theirs) - float(own)), "gradient_difference": ""}
    gradient = (theirs[1] - own[1]).abs().max() / own[1].abs().max()
    return {"value_difference": abs(float(theirs[0] - own[0])), "gradient_difference": float(gradient)}


def rows_of(
    machine: Machine, size: str, mode: str, peers: list[Candidate], arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """A row for each candidate that runs and, where it computes the same as ours, agrees."""
    # Code compiled for another size or mode would count against the limit after which torch runs eagerly.
    torch.compiler.reset()
    pairs: dict[str, tuple[Call, Call]] = {}
    differences: dict[str, dict[str, Any]] = {}
    for peer in peers:
        show(f"{size} {mode}: first call of {peer.name}")
        try:
            calls = make_calls(peer, size, mode, machine.device)
            found = differences_of(calls, mode)
        except Exception as error:  # A peer's failure is a result, not ours to hide.
            print(f"\n{peer.name} failed on {size} {mode}: {type(error).__name__}: {error}", file=sys.stderr)
            continue
        if peer.same and any(found[name] != "" and found[name] > limit for name, limit in AGREEMENT.items()):
            print(f"\n{peer.name} left out: it differs from ours on {size} {mode}: {found}", file=sys.stderr)
            continue
        pairs[peer.name], differences[peer.name] = calls, found
    times = interleaved(machine, pairs, arguments.seconds, arguments.min_rounds)
    return [
        {**peer.about, **differences[peer.name], **medians(times[peer.name])} for peer in peers if peer.name in times
    ]


def mark_fastest(rows: list[dict[str, Any]], peers: list[Candidate]) -> None:
    """Sets `fastest` to "yes" in the row of the fastest form of each peer, and to "" in the others and in ours."""
    kinds = {peer.name: (peer.family, peer.definition) for peer in peers}
    for row in rows:
        rivals = [other["milliseconds"] for other in rows if kinds[other["name"]] == kinds[row["name"]]]
        fastest = row["milliseconds"] == min(rivals) and not row["name"].startswith("splat_ssim")
        row["fastest"] = "yes" if fastest else ""


def speed(arguments: argparse.Namespace, machine: Machine, provenance: dict[str, Any]) -> None:
    """Ours beside every peer, at every size and in every mode."""
    for size in arguments.sizes:
        for mode in arguments.modes:
            peers = chosen(arguments, size, mode)
            rows = rows_of(machine, size, mode, peers, arguments)
            mark_fastest(rows, peers)
            for row in rows:
                peer = next(peer for peer in peers if peer.name == row["name"])
                row.update(size=size, mode=mode)
                row.update(shares_of(peer, row["milliseconds"], size, mode, provenance))
                row.update(provenance)
                timed = f"{row['name']:32} {row['milliseconds']:10.3f} ms {row['ratio']:8.1f} x ours"
                print(f"{size:>12} {mode:17} {timed} {'*' if row['fastest'] else ' '} {row['value_difference']:.0e}")
            update(arguments.output / "speed.csv", rows)


def main() -> None:
    """Command line."""
    arguments = parser_of(__doc__).parse_args()
    machine, provenance = begin(arguments, SIZES, ("64x64", "16x16x16"))
    speed(arguments, machine, provenance)


if __name__ == "__main__":
    run(main)
