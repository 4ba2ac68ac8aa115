"""SSIM of volumes larger than memory (dask), and the training loss of a volume split over ranks (torch.distributed).

Both are exact: each block includes the halo that its windows reach into, so values and gradients are those of the
whole volume.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from splat_ssim import functional
from splat_ssim._checks import check_constants, check_window_size
from splat_ssim.loss import photometric_loss as _local_loss

#: Edge of a block in voxels, unless told otherwise: some 100 MB of work a thread.
BLOCK = 128


def _even_chunks(length: int, block: int) -> tuple[int, ...]:
    """Chunks of at most `block` and about equal lengths: no sliver at the end that is thinner than a halo."""
    count = max(1, math.ceil(length / block))
    return tuple(length // count + (i < length % count) for i in range(count))


def _chunks(shape: tuple[int, ...], block: int) -> tuple[tuple[int, ...], ...]:
    """Chunks of (C, n0, n1, n2): one channel and an even block."""
    return ((1,) * shape[0], *[_even_chunks(n, block) for n in shape[1:]])


def _four_axes(volume: Any) -> tuple[int, ...]:
    """The shape (C, n0, n1, n2) of a volume that may lack its first axis."""
    shape = tuple(volume.shape)
    if len(shape) not in (3, 4) or 0 in shape:
        raise ValueError(f"volumes must have shape (n0, n1, n2) or (C, n0, n1, n2), got {shape}")
    return shape if len(shape) == 4 else (1, *shape)


def float_dtype(dtype: Any) -> np.dtype:
    """float32 if it holds every number of a dtype, otherwise float64.

    Example:
        >>> import numpy as np
        >>> from splat_ssim.distributed import float_dtype
        >>> float_dtype(np.uint16), float_dtype(np.int32)
        (dtype('float32'), dtype('float64'))
    """
    return np.dtype(np.float32 if np.promote_types(dtype, np.float32) == np.float32 else np.float64)


def _block_map(first: np.ndarray, second: np.ndarray, options: dict[str, Any]) -> np.ndarray:
    """S of one block with its halo: float64 if one of the two needs it."""
    tensors = []
    for array in (first, second):
        # What torch's SSIM does not take, such as int16, becomes floats. A copy: memory maps are not writable.
        dtype = np.dtype(np.uint8) if array.dtype == np.uint8 else float_dtype(array.dtype)
        tensors.append(torch.from_numpy(np.array(array, dtype, order="C"))[None])
    return functional.ssim3d(*tensors, padding="same", reduction="none", **options)[0].numpy()


def _read_and_map(
    volume1: Any, volume2: Any, radius: int, options: dict[str, Any], block_info: Any = None
) -> np.ndarray:
    """S of one block of volumes that are read by slices: the block and its halo are all that is held."""
    location = block_info[None]["array-location"]
    outer, inner = [slice(*location[0])], [slice(None)]
    for (start, stop), length in zip(location[1:], volume1.shape[-3:], strict=True):
        low = max(0, start - radius)
        outer.append(slice(low, min(length, stop + radius)))
        inner.append(slice(start - low, stop - low))
    window = tuple(outer) if len(volume1.shape) == 4 else tuple(outer[1:])
    parts = [
        np.asarray(volume[window]).reshape(-1, *[o.stop - o.start for o in outer[1:]]) for volume in (volume1, volume2)
    ]
    return _block_map(parts[0], parts[1], options)[tuple(inner)]


def ssim3d(
    volume1: Any,
    volume2: Any,
    *,
    window_size: int = 11,
    sigma: float = 1.5,
    data_range: float = 1.0,
    k1: float = 0.01,
    k2: float = 0.03,
    padding: str = "same",
    reduction: str = "mean",
    block: int = BLOCK,
) -> Any:
    """`splat_ssim.ssim3d` of volumes that may be larger than memory, block by block, on one machine or a dask cluster.

    Each block is read with a halo of window_size // 2 voxels, so the result is that of the whole volumes. Only rounding
    differs: the map is float32, or float64 if a volume has float64 or integers of 32 or 64 bits, and its mean is taken
    in float64.

    Args:
        volume1: (n0, n1, n2) or (C, n0, n1, n2): a dask, zarr, numpy or memory-mapped array. uint8 means
            value / 255 · data_range, as in `splat_ssim.ssim3d`; other integers are taken as they are.
        volume2: Same shape as `volume1`.
        window_size: Width of the window in voxels, odd, the same along all axes.
        sigma: Standard deviation of the window in voxels.
        data_range: Difference between the largest and the smallest possible value.
        k1: Constant of the luminance term, as for `splat_ssim.ssim3d`.
        k2: Constant of the contrast-structure term, as for `splat_ssim.ssim3d`.
        padding: "same" or "valid", as for `splat_ssim.ssim3d`.
        reduction: "mean" computes the mean with dask's current scheduler. "none" returns the map as a dask array that
            has not been computed yet.
        block: Edge of a block in voxels, at least window_size.

    Returns:
        For "mean" a float, which is NaN if any voxel is NaN. For "none" a dask array (C, n0, n1, n2); "valid" makes it
        smaller by window_size - 1 along each spatial axis.

    Raises:
        TypeError: The voxels are not real numbers.
        ValueError: The shapes differ, the padding or reduction is unknown, the window is even, a constant is out of
            range, or a block is smaller than the window.
        ImportError: dask is not installed.

    Example:
        >>> import numpy as np
        >>> from splat_ssim.distributed import ssim3d
        >>> a = np.random.default_rng(0).random((40, 30, 20), dtype=np.float32)
        >>> round(ssim3d(a, a, block=16), 6)
        1.0
    """
    try:
        import dask.array as da
    except ImportError as error:
        raise ImportError(f"splat_ssim.distributed.ssim3d needs pip install 'splat_ssim[volume]': {error}") from error
    if padding not in ("same", "valid") or reduction not in ("mean", "none"):
        raise ValueError(
            f'padding must be "same" or "valid" and reduction "mean" or "none", got {padding!r} and {reduction!r}'
        )
    check_window_size(window_size)
    check_constants((window_size, sigma, data_range, k1, k2))
    for volume in (volume1, volume2):
        if np.dtype(volume.dtype).kind not in "biuf":
            raise TypeError(f"the volumes must hold real numbers, got {volume.dtype}")
    if block < window_size:
        raise ValueError(f"block must be at least the window's {window_size} voxels, got {block}")
    shape = _four_axes(volume1)
    if shape != _four_axes(volume2):
        raise ValueError(f"the volumes must have the same shape, got {shape} and {_four_axes(volume2)}")
    radius = window_size // 2
    if padding == "valid" and min(shape[1:]) < window_size:
        raise ValueError(f'padding "valid" needs axes of at least {window_size} voxels, got {shape[1:]}')
    options = {"window_size": window_size, "sigma": sigma, "data_range": data_range, "k1": k1, "k2": k2}
    dtype = np.promote_types(float_dtype(volume1.dtype), float_dtype(volume2.dtype))
    described = {"dtype": dtype, "meta": np.empty((0, 0, 0, 0), dtype), "options": options}
    # In both ways blocks at the volume's borders end there, and the zero padding of the block is the volume's.
    if isinstance(volume1, da.Array) or isinstance(volume2, da.Array):
        pair = [da.asarray(volume).reshape(shape).rechunk(_chunks(shape, block)) for volume in (volume1, volume2)]
        depth = {0: 0, 1: radius, 2: radius, 3: radius}
        ssim_map = da.map_overlap(_block_map, *pair, depth=depth, boundary="none", **described)
    else:
        # map_overlap would keep every block until all its neighbours have had their share; reading halos does not.
        ssim_map = da.map_blocks(
            _read_and_map, volume1=volume1, volume2=volume2, radius=radius, chunks=_chunks(shape, block), **described
        )
    if padding == "valid":
        inside = [slice(radius, n - radius) for n in shape[1:]]
        ssim_map = ssim_map[:, inside[0], inside[1], inside[2]]
    return ssim_map if reduction == "none" else float(ssim_map.mean(dtype=np.float64).compute())


# --- a volume cut over ranks


def _neighbours(group: Any) -> tuple[int | None, int | None]:
    """Global ranks that hold the planes below and above ours."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)

    def of_group(index: int) -> int:
        return index if group is None else dist.get_global_rank(group, index)

    return (of_group(rank - 1) if rank > 0 else None), (of_group(rank + 1) if rank + 1 < size else None)


def _exchange(to_below: Tensor, to_above: Tensor, group: Any) -> tuple[Tensor | None, Tensor | None]:
    """Sends planes to both neighbours and returns what they sent: (from below, from above)."""
    below, above = _neighbours(group)
    from_below, from_above = torch.empty_like(to_above), torch.empty_like(to_below)
    operations = []
    if below is not None:
        operations.append(dist.P2POp(dist.isend, to_below.contiguous(), below, group))
        operations.append(dist.P2POp(dist.irecv, from_below, below, group))
    if above is not None:
        operations.append(dist.P2POp(dist.isend, to_above.contiguous(), above, group))
        operations.append(dist.P2POp(dist.irecv, from_above, above, group))
    for work in dist.batch_isend_irecv(operations) if operations else []:
        work.wait()
    return (None if below is None else from_below), (None if above is None else from_above)


class _WithHalo(torch.autograd.Function):
    """Our planes between `radius` planes of each neighbour; backward sends their gradients home."""

    @staticmethod
    def forward(ctx: Any, planes: Tensor, radius: int, group: Any) -> Tensor:
        ctx.radius, ctx.group, ctx.depth = radius, group, planes.shape[2]
        below, above = _exchange(planes[:, :, :radius].contiguous(), planes[:, :, -radius:].contiguous(), group)
        ctx.start = 0 if below is None else radius
        return torch.cat([part for part in (below, planes, above) if part is not None], dim=2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        radius, start, stop = ctx.radius, ctx.start, ctx.start + ctx.depth
        own = gradient[:, :, start:stop].clone()
        # At the ends of the volume there is nobody to send to; the shapes stay those of a halo.
        blank = torch.zeros_like(gradient[:, :, :radius])
        to_below = gradient[:, :, :radius].contiguous() if start else blank
        to_above = gradient[:, :, stop:].contiguous() if gradient.shape[2] > stop else blank
        from_below, from_above = _exchange(to_below, to_above, ctx.group)
        if from_below is not None:
            own[:, :, :radius] += from_below
        if from_above is not None:
            own[:, :, -radius:] += from_above
        return own, None, None


class _SumOverRanks(torch.autograd.Function):
    """The sum of every rank's number. Each rank differentiates the same total, so a part has the gradient 1."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, group: Any) -> Tensor:
        total = part.detach().clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def photometric_loss(
    pred: Tensor,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    group: Any = None,
    lambda_dssim: float = 0.2,
    window_size: int = 11,
    sigma: float = 1.5,
    data_range: float = 1.0,
    k1: float = 0.01,
    k2: float = 0.03,
) -> Tensor:
    """`splat_ssim.loss.photometric_loss` of a volume whose planes are split over the ranks of a process group.

    Every rank calls it with its own planes, in the order of ranks, and gets the loss of the whole volume. Every rank
    must call `backward` too. It gives each rank the gradient with respect to its own planes, including what reaches
    them through windows on neighbouring ranks. Padding is "same".

    Args:
        pred: (B, C, d, H, W) float: this rank's d planes. d may differ between ranks.
        target: Same shape as `pred`. It gets a gradient only if it requires one.
        mask: (B, 1 or C, d, H, W) weights of 0 or more, given on all ranks or on none.
        group: The process group; by default all ranks.
        lambda_dssim: Weight of 1 - SSIM, in [0, 1]. L1 has the weight 1 - lambda_dssim.
        window_size: Width of the window in voxels, odd, the same along all axes.
        sigma: Standard deviation of the window in voxels.
        data_range: Difference between the largest and the smallest possible value.
        k1: Constant of the luminance term, as for `splat_ssim.ssim3d`.
        k2: Constant of the contrast-structure term, as for `splat_ssim.ssim3d`.

    Returns:
        The scalar loss, the same on every rank.

    Raises:
        ValueError: The tensors are not volumes or differ in shape, the window is even, or a rank has fewer planes than
            window_size // 2.
        RuntimeError: torch.distributed has not been initialised.
    """
    if not dist.is_initialized():
        raise RuntimeError("the loss over ranks needs torch.distributed.init_process_group first")
    if pred.ndim != 5 or pred.shape != target.shape:
        raise ValueError(
            f"pred and target must have the same shape (B, C, d, H, W), got {tuple(pred.shape)} and "
            f"{tuple(target.shape)}"
        )
    radius = check_window_size(window_size) // 2
    # On the device of the planes: some backends, such as NCCL, know no other.
    planes = torch.tensor([pred.shape[2]], device=pred.device)
    dist.all_reduce(planes, op=dist.ReduceOp.MIN, group=group)
    # Found out together, so that no rank waits for one that has raised.
    if dist.get_world_size(group) > 1 and int(planes) < radius:
        raise ValueError(f"every rank must have at least {radius} planes for window {window_size}, got {int(planes)}")
    below, above = _neighbours(group)
    weights = torch.ones_like(pred[:, :1]) if mask is None else mask.to(pred.dtype)
    # Halos belong to their own ranks: no weight here.
    weights = torch.nn.functional.pad(weights, (0, 0, 0, 0, radius * (below is not None), radius * (above is not None)))
    total = weights.sum(dtype=torch.float64)
    part = total.clone()
    dist.all_reduce(total, group=group)
    with_halo: Callable[..., Tensor] = _WithHalo.apply
    sum_over_ranks: Callable[..., Tensor] = _SumOverRanks.apply
    loss: Any = _local_loss(
        with_halo(pred, radius, group),
        with_halo(target, radius, group),
        mask=weights,
        lambda_dssim=lambda_dssim,
        window_size=window_size,
        sigma=sigma,
        data_range=data_range,
        k1=k1,
        k2=k2,
    )
    return sum_over_ranks(loss * float(part / total) if total > 0 else loss * 0.0, group)
