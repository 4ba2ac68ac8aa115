"""Rendering by several processes, each with a part of the Gaussians and with cameras of its own.

Every process projects its Gaussians for the cameras of all processes, and sends what it has projected to the process
whose camera sees it. Gradients return the same way. It is gsplat's distributed mode on the CPU.

Source: H. Zhao et al., "On Scaling Up 3D Gaussian Splatting Training", 2024.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ._problem import Scene
from .reference import Projection


class _AllRows(torch.autograd.Function):
    """The rows of all processes, which have the same number of them. The gradient of a process is that of all uses."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


class _Exchange(torch.autograd.Function):
    """Sends `sent[r]` rows to process r, in order, and returns the `received[r]` rows that came from each r."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sent: list[int], received: list[int]) -> Tensor:
        ctx.splits = sent, received
        return _exchanged(rows, sent, received)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        sent, received = ctx.splits
        return _exchanged(gradient, received, sent), None, None


def _exchanged(rows: Tensor, sent: list[int], received: list[int]) -> Tensor:
    result = rows.new_empty(sum(received), *rows.shape[1:])
    dist.all_to_all_single(result, rows.contiguous(), received, sent)
    return result


def with_all_cameras(scene: Scene) -> tuple[Scene, list[int]]:
    """Returns the process's Gaussians with the cameras of all processes, and the number of Gaussians of each process.

    Raises:
        RuntimeError: There is no process group.
        ValueError: The processes differ in their number of cameras, in the size of their images, or in what requires a
            gradient.
    """
    if not dist.is_initialized():
        raise RuntimeError("distributed rendering needs torch.distributed.init_process_group first")
    parts = (*scene[:4], *(scene.colors if isinstance(scene.colors, tuple) else (scene.colors,)))
    # A backward pass of one process waits for that of all others.
    gradients = [torch.is_grad_enabled() and any(part.requires_grad for part in few) for few in (parts, scene[5:7])]
    own = torch.tensor([len(scene.means), len(scene.viewmats), scene.width, scene.height, *gradients])
    sizes = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, own)
    found = [size.tolist() for size in sizes]
    if any(size[1:4] != found[0][1:4] for size in found):
        got = ", ".join(f"{cameras} of {width}x{height}" for _, cameras, width, height, _, _ in found)
        raise ValueError(f"all processes must have as many cameras of the same width and height, got {got}")
    if any(size[4:] != found[0][4:] for size in found):
        got = ", ".join(f"{bool(first)} and {bool(second)}" for *_, first, second in found)
        raise ValueError(f"all processes must have Gaussians, and cameras, that require a gradient, or none, got {got}")
    every: Callable[[Tensor], Tensor] = _AllRows.apply
    return scene._replace(viewmats=every(scene.viewmats), Ks=every(scene.Ks)), [size[0] for size in found]


def to_cameras(projected: Projection, values: Tensor, counts: Sequence[int]) -> tuple[Projection, Tensor]:
    """Returns the projections and colours of all Gaussians for the cameras of this process.

    Args:
        projected: Projections [C of all processes, N of this process, …].
        values: Colours [C of all processes, N of this process, D].
        counts: Number of Gaussians of each process.
    """
    total, own = projected.radii.shape[:2]
    cameras = total // len(counts)
    sent, received = [cameras * own] * len(counts), [cameras * count for count in counts]
    exchange: Callable[..., Tensor] = _Exchange.apply
    columns = [projected.means2d, projected.depths[..., None], projected.conics, projected.opacities[..., None], values]

    def of_own_cameras(table: Tensor) -> Tensor:
        parts = exchange(table.flatten(0, 1), sent, received).split(received)
        return torch.cat([part.view(cameras, count, -1) for part, count in zip(parts, counts, strict=True)], 1)

    table = of_own_cameras(torch.cat(columns, -1))
    means2d, depths, conics, opacities, colors = table.split([column.shape[-1] for column in columns], -1)
    geometry = (means2d.contiguous(), depths[..., 0].contiguous(), conics.contiguous(), opacities[..., 0].contiguous())
    return Projection(of_own_cameras(projected.radii), *geometry, None), colors.contiguous()
