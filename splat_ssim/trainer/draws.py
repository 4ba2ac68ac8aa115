"""Draws that are known from the seed of a run alone, so that a run that goes on draws them again."""

from __future__ import annotations

import torch


def seeded(seed: int, index: int) -> torch.Generator:
    """A generator on the CPU for the `index`-th of a row of draws."""
    # Torch takes seeds below 2^63.
    return torch.Generator().manual_seed((seed * 1_000_003 + index) % 2**63)


def drawn_in_turn(position: int, count: int, seed: int) -> int:
    """Which of `count` things has its turn: all of them in each pass, in an order of the pass's own.

    Example:
        >>> from splat_ssim.trainer.draws import drawn_in_turn
        >>> sorted(drawn_in_turn(position, 5, seed=3) for position in range(5, 10))
        [0, 1, 2, 3, 4]
    """
    turn, place = divmod(position, count)
    return int(torch.randperm(count, generator=seeded(seed, turn))[place])
