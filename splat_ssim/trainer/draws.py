"""Random draws that depend only on the seed of a run, so that a resumed run repeats them."""

from __future__ import annotations

import torch


def seed_of(seed: int, index: int) -> int:
    """The seed for draw number `index` of a run."""
    return (seed * 1_000_003 + index) % 2**63  # torch takes seeds below 2^63


def seeded(seed: int, index: int) -> torch.Generator:
    """A generator on the CPU for draw number `index` of a run."""
    return torch.Generator().manual_seed(seed_of(seed, index))


def drawn_in_turn(position: int, count: int, seed: int) -> int:
    """The index of the item, of `count`, that is drawn at `position`. Each pass draws every item once, in a new order.

    Example:
        >>> from splat_ssim.trainer.draws import drawn_in_turn
        >>> sorted(drawn_in_turn(position, 5, seed=3) for position in range(5, 10))
        [0, 1, 2, 3, 4]
    """
    turn, place = divmod(position, count)
    return int(torch.randperm(count, generator=seeded(seed, turn))[place])
