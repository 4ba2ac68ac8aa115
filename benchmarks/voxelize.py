"""Times the voxeliser and the SSIM3D loss on the CPU, beside plain torch and what the machine can do.

    python -m benchmarks.voxelize                             # writes voxelize.csv; some ten minutes
    python -m benchmarks.voxelize --cases 50000@128 --threads 1 --no-plain

voxelize: random Gaussians of sigma 1 to 2 voxels, along a Morton curve as a fit keeps them; one call of
          `splat_ssim.volume.voxelize`, and one with the gradients of every tensor. Plain torch is `boxed` below, the
          same field in the same run; `splat_ssim.volume.reference`, by which every Gaussian meets every voxel, would
          take hours. Plain torch runs --plain-repeat times.
loss:     0.8·L1 + 0.2·(1 - SSIM3D) of a volume of the MRI's size by its target, and the gradient, as a step of a fit
          takes them: the MRI itself and a smoothed MRI for the field. Plain torch is `splat_ssim.reference`.

Times are medians in milliseconds; memory is the peak of one call beyond its inputs, in a fresh process.
Shares of the peaks: an FMA is two operations, a contribution (a voxel within a Gaussian's cut-off) needs at least two
multiplications or FMAs forward (its value, its sum) and five backward (its value, its gradient, three moments); a
forward pass moves at least 4 bytes a voxel, and a backward pass as many. A row measured again takes the older one's
place.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import splat_ssim.reference
from benchmarks.calls import MODES, bytes_moved, issue_slots
from benchmarks.measure import (
    ROOT,
    Machine,
    add_output,
    describe,
    in_fresh_process,
    output_folder,
    peak_beyond,
    run,
    update,
)
from splat_ssim.loss import photometric_loss
from splat_ssim.volume import VoxelGrid, load_volume, morton_order, voxelize
from splat_ssim.volume.reference import CUTOFF, rotation_matrices

#: Gaussians @ edge of the grid.
CASES = ("10000@128", "50000@128", "10000@256", "50000@256")
LOSS = "loss@MRI"
MRI = ROOT / "assets" / "brain_mri" / "T1.nii.gz"

#: What identifies a row; measuring again replaces it.
KEYS = ("name", "case", "mode", "threads", "device")

#: Voxels that plain torch has in hand at once: on one thread the fastest of 2^14 to 2^22.
CHUNK = 1 << 18


# --- scenes


def make_scene(count: int, side: int) -> tuple[list[Tensor], VoxelGrid]:
    """means, quats, scales and densities, which require gradients, and their grid."""
    generator = torch.Generator().manual_seed(0)
    grid = VoxelGrid.regular((side,) * 3)
    means = torch.rand(count, 3, generator=generator) * (side - 1)
    tensors = [
        means,
        torch.randn(count, 4, generator=generator),
        torch.rand(count, 3, generator=generator) + 1.0,
        torch.rand(count, generator=generator),
    ]
    order = morton_order(means, grid)
    return [t[order].requires_grad_() for t in tensors], grid


def parse_case(case: str) -> tuple[int, int]:
    """Turns "50000@128" into (50000, 128)."""
    count, found, side = case.partition("@")
    if not found or not count.isdigit() or not side.isdigit():
        raise ValueError(f"a case must be COUNT@SIDE or {LOSS}, got {case!r}")
    return int(count), int(side)


# --- the voxeliser in plain torch


def boxed(means: Tensor, quats: Tensor, scales: Tensor, densities: Tensor, grid: VoxelGrid) -> Tensor:
    """The field as plain torch is fastest with on a CPU: boxes of voxels around the Gaussians, scattered by index_add_.

    Gaussians whose bounding boxes have the same half edge go together, so many at a time that temporaries stay in hand.
    Backward computes each chunk again (checkpoint) rather than keep every voxel's temporaries. For a regular grid of
    spacing 1 whose array axes are z, y, x, and a single channel: (1, *grid.shape).
    """
    volume = means.new_zeros(grid.shape[0] * grid.shape[1] * grid.shape[2])
    for rows, half in boxes(quats, scales):
        index, value = checkpoint(
            _box, means[rows], quats[rows], scales[rows], densities[rows], grid, half, use_reentrant=False
        )
        volume.index_add_(0, index, value)
    return volume.reshape(1, *grid.shape)


@torch.no_grad()
def boxes(quats: Tensor, scales: Tensor) -> list[tuple[Tensor, int]]:
    """Rows of Gaussians that are handled together, and the half edge of their boxes."""
    spreads = (rotation_matrices(quats).square() @ scales.square()[..., None])[..., 0]  # [N, 3]: diagonal of Sigma
    halves = (spreads.amax(1).sqrt() * CUTOFF**0.5 + 0.5).floor().long()
    groups = []
    for half in halves.unique().tolist():
        rows = (halves == half).nonzero()[:, 0]
        groups += [(part, half) for part in rows.split(max(1, CHUNK // (2 * half + 1) ** 3))]
    return groups


def _box(
    means: Tensor, quats: Tensor, scales: Tensor, densities: Tensor, grid: VoxelGrid, half: int
) -> tuple[Tensor, Tensor]:
    """Flat voxel indices and contributions of Gaussians on boxes of (2·half + 1)³ voxels; 0 where they do not count."""
    ticks = torch.arange(-half, half + 1)
    offsets = torch.cartesian_prod(ticks, ticks, ticks)  # [M, 3], z y x
    at = means.detach().flip(1).round().long()[:, None] + offsets  # [N, M, 3]
    shape = torch.tensor(grid.shape)
    inside = ((at >= 0) & (at < shape)).all(-1)
    # Sigma^-1 = W' W, so q = |W d|^2.
    whitening = rotation_matrices(quats).transpose(1, 2) / scales[:, :, None]  # [N, 3, 3]
    d = at.flip(2).float() - means[:, None]
    q = (d @ whitening.transpose(1, 2)).square().sum(-1)
    value = torch.where(inside & (q <= CUTOFF), densities[:, None] * torch.exp(-0.5 * q), 0.0)
    index = torch.where(inside, (at[..., 0] * grid.shape[1] + at[..., 1]) * grid.shape[2] + at[..., 2], 0)
    return index.flatten(), value.flatten()


@torch.no_grad()
def contributions(tensors: list[Tensor], grid: VoxelGrid) -> int:
    """Pairs of a Gaussian and a voxel within its cut-off."""
    ones, total = torch.ones_like(tensors[3]), 0
    for rows, half in boxes(tensors[1], tensors[2]):
        total += int(_box(*[t[rows] for t in (*tensors[:3], ones)], grid, half)[1].count_nonzero())  # type: ignore[call-arg, arg-type]
    return total


# --- calls


def make_call(name: str, case: str, mode: str) -> Callable[[], object]:
    """A call of "splat_ssim" or "plain torch", the inputs made beforehand."""
    inputs: list[Tensor]
    if case == LOSS:
        target = torch.from_numpy(load_volume(MRI).data.astype("float32", order="C"))[None]
        target /= target.max()
        inputs = [torch.nn.functional.avg_pool3d(target, 3, 1, 1).requires_grad_()]

        def forward() -> Tensor:
            if name == "splat_ssim":
                return photometric_loss(inputs[0], target)
            return splat_ssim.reference.photometric_loss(inputs[0], target)[0]

        upstream = torch.tensor(1.0)
    else:
        inputs, grid = make_scene(*parse_case(case))

        def forward() -> Tensor:
            return (voxelize if name == "splat_ssim" else boxed)(*inputs, grid)  # type: ignore[call-arg, arg-type]

        upstream = torch.rand(1, *grid.shape, generator=torch.Generator().manual_seed(1))
    if mode == "forward":
        return torch.no_grad()(forward)
    return lambda: torch.autograd.grad(forward(), inputs, upstream)


def median_ms(machine: Machine, call: Callable[[], object], repeat: int) -> float:
    """Milliseconds of the median call, after one to warm up."""
    call()
    return 1000 * statistics.median(machine.time(call) for _ in range(repeat))


def least_work(case: str, mode: str) -> tuple[int, int, int]:
    """Contributions, multiplications or FMAs, and bytes that a call needs at least."""
    if case == LOSS:
        voxels = load_volume(MRI).data.size
        return 0, voxels * issue_slots(3, 11, mode), voxels * bytes_moved(mode)
    tensors, grid = make_scene(*parse_case(case))
    count, voxels = contributions(tensors, grid), grid.shape[0] * grid.shape[1] * grid.shape[2]
    return (count, 2 * count, 4 * voxels) if mode == "forward" else (count, 7 * count, 8 * voxels)


def peak(name: str, case: str, mode: str, threads: int) -> int:
    """Bytes at the peak of one call beyond its inputs, in a process of its own, whose malloc gives everything back."""
    line = ["--one", name, "--cases", case, "--modes", mode, "--threads", str(threads)]
    return in_fresh_process("benchmarks.voxelize", line)


def peak_here(name: str, case: str, mode: str) -> int:
    """`peak` in this process, which must be fresh."""
    call = make_call(name, case, mode)
    # Libraries, threads and their scratch are there before.
    make_call(name, "10@32" if case != LOSS else case, mode)()
    return peak_beyond(call)


def measure(
    case: str, mode: str, arguments: argparse.Namespace, machine: Machine, about: dict[str, Any]
) -> list[dict[str, Any]]:
    """A row for ours and one for plain torch."""
    count, slots, moved = least_work(case, mode)
    rows: list[dict[str, Any]] = []
    for name in ("splat_ssim", *(("plain torch",) if arguments.plain else ())):
        repeat = arguments.repeat if name == "splat_ssim" else arguments.plain_repeat
        ms = median_ms(machine, make_call(name, case, mode), repeat)
        rows.append(
            {
                **{"name": name, "case": case, "mode": mode, "milliseconds": ms, "rounds": repeat},
                "ratio": ms / rows[0]["milliseconds"] if rows else 1.0,
                "extra_mib": peak(name, case, mode, machine.threads) / 2**20,
                "million_contributions_s": count / ms / 1000 if count else "",
                "fma_share": 2 * slots / (ms / 1000) / (about["fma_gflops"] * 1e9),
                "copy_share": moved / (ms / 1000) / (about["copy_gb_s"] * 1e9),
                **about,
            }
        )
        print(
            f"{machine.threads} threads {case:>10} {mode:17}{name:12} {ms:10.2f} ms {rows[-1]['ratio']:7.1f} x ours, "
            f"{rows[-1]['extra_mib']:6.0f} MiB, {rows[-1]['fma_share']:.1%} FMA, {rows[-1]['copy_share']:.1%} copy",
            flush=True,
        )
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=[*CASES, LOSS], help=f"COUNT@SIDE or {LOSS}")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads")
    parser.add_argument("--repeat", type=int, default=21, help="calls of ours")
    parser.add_argument("--plain-repeat", type=int, default=3, help="calls of plain torch")
    parser.add_argument("--no-plain", dest="plain", action="store_false", help="leave plain torch out")
    add_output(parser)
    parser.add_argument("--one", help=argparse.SUPPRESS)  # What a process of `peak` measures.
    arguments = parser.parse_args()
    if arguments.one is not None:
        torch.set_num_threads(arguments.threads[0])
        print(peak_here(arguments.one, arguments.cases[0], arguments.modes[0]))
        return
    output = output_folder(arguments.output, arguments.dirty_ok)
    for threads in arguments.threads:
        machine = Machine("cpu", threads)
        about = describe(machine)
        print(
            f"{machine.name}, {threads} threads: {about['fma_gflops']:.0f} GFLOP/s, copy {about['copy_gb_s']:.1f} GB/s"
        )
        for case in arguments.cases:
            for mode in arguments.modes:
                update(output / "voxelize.csv", measure(case, mode, arguments, machine, about), KEYS)


if __name__ == "__main__":
    run(main)
