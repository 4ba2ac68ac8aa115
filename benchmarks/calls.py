"""Calls of SSIM on images and volumes of a size, and the work that one needs at least."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.candidate import FLOAT32, GREY_BYTES, Candidate
from benchmarks.measure import Call, Machine, add_output, describe, keep_freed_memory, output_folder
from benchmarks.peers import candidates, missing
from splat_ssim.errors import UserError

MODES = ("forward", "forward+backward")
SIZES = ("256x256", "1080x1920", "64x64x64", "128x128x128")
SWEEP_WINDOWS = (5, 7, 9, 11, 13, 15, 17, 19, 21)


def parse_size(size: str, batch: int = 1) -> tuple[int, ...]:
    """Turns "256x256" into (batch, 3, 256, 256) and "64x64x64" into (batch, 1, 64, 64, 64)."""
    sides = size.split("x")
    if len(sides) not in (2, 3) or not all(side.isdigit() and int(side) > 0 for side in sides):
        raise UserError(f"a size required HxW or DxHxW, got {size!r}")
    return (batch, 3 if len(sides) == 2 else 1, *map(int, sides))


@functools.lru_cache(maxsize=1)
def image_pair(size: str, device: str, batch: int = 1) -> tuple[Tensor, Tensor]:
    """Noise in [0, 1] and a noisier copy; the tensors are shared by all calls of this size."""
    generator = torch.Generator().manual_seed(0)
    shape = parse_size(size, batch)
    img1 = torch.rand(shape, generator=generator)
    img2 = (img1 + 0.1 * torch.randn(shape, generator=generator)).clamp(0, 1)
    return img1.to(device), img2.to(device)


def call_of(function: Callable[..., Any], img1: Any, img2: Any, mode: str) -> Call:
    """A call of the function on images made beforehand: its value, or (value, gradient)."""
    if mode == "forward":
        return torch.no_grad()(lambda: function(img1, img2))

    def both() -> tuple[Tensor, Tensor]:
        value = function(img1, img2)
        return value.detach(), torch.autograd.grad(value, img1)[0]

    return both


def make_calls(candidate: Candidate, size: str, mode: str, device: str, batch: int = 1) -> tuple[Call, Call]:
    """The candidate's call on images of this size, and ours that computes the same of the same images."""
    img1, img2 = (candidate.prepare(images.detach()) for images in image_pair(size, device, batch))
    if mode != "forward":
        img1.requires_grad_()
    ours = call_of(candidate.ours(), img1, img2, mode)
    if candidate.clocked:
        return candidate.function(img1, img2, data_range=candidate.data_range), ours
    return call_of(candidate.callable(), img1, img2, mode), ours


def chosen(arguments: argparse.Namespace, size: str, mode: str) -> list[Candidate]:
    """The candidates that are there, asked for (by the start of the name) and able."""
    found = [c for c in candidates(arguments.device) if len(size.split("x")) in c.dims]
    if arguments.peers is not None:
        found = [c for c in found if c.name.startswith(tuple(arguments.peers))]
    return [c for c in found if mode == "forward" or c.differentiable]


def issue_slots(spatial_dims: int, window: int, mode: str) -> int:
    """Multiply-adds an element that the four-map form needs, 50 of them pointwise (docs: the cost of SSIM)."""
    forward, adjoint = 4 * spatial_dims * window, 3 * spatial_dims * window
    return forward + 25 if mode == "forward" else forward + adjoint + 50


def bytes_moved(mode: str) -> int:
    """Bytes an element that must move: read two images, write one gradient."""
    return 8 if mode == "forward" else 12


def shares(
    milliseconds: float, size: str, mode: str, window: int, provenance: dict[str, Any], batch: int = 1
) -> dict[str, float]:
    """Nanoseconds an element, and the shares of the machine's peaks that the four-map form's work would be."""
    shape = parse_size(size, batch)
    elements = torch.Size(shape).numel()
    seconds = milliseconds / 1000
    slots = elements * issue_slots(len(shape) - 2, window, mode)
    return {
        "window": window,
        "ns_per_element": seconds * 1e9 / elements,
        "fma_share": 2 * slots / seconds / (provenance["fma_gflops"] * 1e9),
        "copy_share": elements * bytes_moved(mode) / seconds / (provenance["copy_gb_s"] * 1e9),
    }


def shares_of(
    candidate: Candidate, milliseconds: float, size: str, mode: str, provenance: dict[str, Any]
) -> dict[str, Any]:
    """`shares` of float32 images; of bytes the nanoseconds alone."""
    found: dict[str, Any] = shares(milliseconds, size, mode, 11, provenance)
    if candidate.images == FLOAT32:
        return found
    channels = 3 if candidate.images == GREY_BYTES else 1
    return {"window": 11, "ns_per_element": found["ns_per_element"] * channels}


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """A command line with the options of the benchmarks of SSIM, which scripts/benchmark.py runs in a row."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--sizes", nargs="+", help="HxW (3 channels) or DxHxW (1 channel)")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--peers", nargs="+", help="first letters of the candidates to measure; all by default")
    parser.add_argument("--seconds", type=float, default=5.0, help="time for each candidate")
    parser.add_argument("--min-rounds", type=int, default=3, help="rounds for each candidate, however slow it is")
    parser.add_argument("--windows", nargs="+", type=int, default=SWEEP_WINDOWS, help="window sizes of the sweep")
    parser.add_argument("--quick", action="store_true", help="a trial: small sizes, half a second for each; --dirty-ok")
    add_output(parser)
    return parser


def begin(
    arguments: argparse.Namespace, sizes: tuple[str, ...], quick_sizes: tuple[str, ...]
) -> tuple[Machine, dict[str, Any]]:
    """Fills in the sizes and the output folder. Returns the machine and the columns that describe it in the results.

    Raises:
        UserError: There is no such device, a size cannot be parsed, or the output folder is refused (see
            `output_folder`).
    """
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda required a CUDA device that torch can reach, got none")
    arguments.sizes = arguments.sizes or (quick_sizes if arguments.quick else sizes)
    for size in arguments.sizes:
        parse_size(size)
    if arguments.quick:
        arguments.seconds = min(arguments.seconds, 0.5)
    arguments.output = output_folder(arguments.output, arguments.dirty_ok or arguments.quick)
    keep_freed_memory()
    machine = Machine(arguments.device, arguments.threads)
    provenance = describe(machine)
    print(f"{machine.name}, {machine.threads} threads: ", end="")
    print(f"{provenance['fma_gflops']:.0f} GFLOP/s, copy {provenance['copy_gb_s']:.1f} GB/s")
    for line in missing(arguments.device):
        print(line)
    return machine, provenance
