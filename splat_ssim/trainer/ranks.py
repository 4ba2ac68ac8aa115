"""Several processes that train one model: `torchrun --nproc-per-node N scripts/train.py …`."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from splat_ssim.errors import UserError


class Ranks:
    """The processes of a run. Each does a share of every step.

    Exchanges go in the order of the ranks, so that all processes continue with the same numbers. A single process
    exchanges with itself.

    Args:
        rank: Rank of this process, from 0.
        count: Number of processes.
    """

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank, self.count = rank, count

    @property
    def is_first(self) -> bool:
        """Whether this process writes the run folder and prints messages."""
        return self.rank == 0

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replaces each tensor by its sum over the ranks.

        On the CPU the order of addition is that of the ranks, as a single process adds the gradients of its views. Adam
        can turn the smallest difference in rounding into a full step.
        """
        if self.count == 1:
            return
        for tensor in tensors:
            if tensor.is_cuda:
                dist.all_reduce(tensor)
                continue
            parts = [torch.empty_like(tensor) for _ in range(self.count)]
            dist.all_gather(parts, tensor.contiguous())
            tensor.copy_(parts[0])
            for part in parts[1:]:
                tensor.add_(part)

    def gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all ranks, of the same shape, concatenated along the first axis."""
        if self.count == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.count)]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    def counts(self, own: int) -> list[int]:
        """The number that each rank passes."""
        return [own] if self.count == 1 else self.gather(torch.tensor([own])).tolist()

    def rows(self, tensor: Tensor, counts: Sequence[int]) -> Tensor:
        """The rows of all ranks, `counts` of each, concatenated in every process."""
        if self.count == 1:
            return tensor
        padded = tensor.new_zeros(max(counts), *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    def rows_to_first(self, tensor: Tensor, counts: Sequence[int]) -> Tensor | None:
        """The rows of all ranks, `counts` of each, concatenated on the CPU of the first. Others get None.

        No other process, and no GPU, needs memory for more than its own rows.
        """
        own = tensor.detach().cpu().contiguous()
        if not self.is_first:
            dist.send(own, 0)
            return None
        parts = [own]
        for rank in range(1, self.count):
            parts.append(own.new_empty(counts[rank], *own.shape[1:]))
            dist.recv(parts[-1], rank)
        return torch.cat(parts)

    def largest(self, value: int) -> int:
        """The largest number among those of all ranks."""
        if self.count == 1:
            return value
        values = torch.tensor([value])
        dist.all_reduce(values, dist.ReduceOp.MAX)
        return int(values)


#: The ranks of a process that trains alone.
ALONE = Ranks()


def launched() -> Ranks:
    """Returns the ranks of a process that torchrun has started, or `ALONE` without torchrun.

    The group of processes is made at the first call: gloo for tensors on the CPU, NCCL for those on CUDA, of which each
    process takes the device of its local rank.

    Raises:
        UserError: The environment variables of torchrun are incomplete.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return ALONE
    if not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        try:
            dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        except ValueError as error:
            raise UserError(
                f"WORLD_SIZE is {count}: required the environment that torchrun makes, got {error}"
            ) from None
    return Ranks(dist.get_rank(), dist.get_world_size())
