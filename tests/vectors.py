"""Float64 values to test every build of the CPU library: `python -m tests.vectors` writes data/vectors.bin.

tests/native/vectors.cpp reads the file and calls the kernels of a library on the same made-up numbers. It needs no
Python, so it also runs under qemu and wine (scripts/run_vectors.py). The values come from tests/oracle.py and from the
definitions in plain torch, the bounds from the tests in Python.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from splat_ssim.ct.reference import project_reference
from splat_ssim.render import reference as renderer
from splat_ssim.render._problem import Options, Scene
from splat_ssim.volume.reference import mahalanobis_squared
from tests import oracle
from tests.test_xray import least_q

PATH = Path(__file__).parent / "data" / "vectors.bin"
#: Measures of error: norm of the errors over that of the values, largest error over largest value, largest error.
NORM, OF_LARGEST, ABSOLUTE = range(3)
PADDINGS = ("same", "valid", "reflect", "replicate")
#: Bounds from tests/bounds.py and from the tests of the renderer, the voxeliser, the projector and Adam.
VALUE, GRADIENT, IMAGE = 3e-6, 5e-6, 1e-6


def numbers(count: int, seed: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    """The numbers of tests/native/calls.h as float64, equal to the last bit."""
    state, states = (seed * 2654435761 + 12345) % 2**32, []
    for _ in range(count):
        state = (state * 1664525 + 1013904223) % 2**32
        states.append(state >> 8)
    span = np.float32(high) - np.float32(low)
    return torch.from_numpy((np.float32(low) + span * np.array(states, np.float32) / np.float32(2**24)).astype(float))


@dataclass
class Case:
    """A call of tests/native/calls.h, and the checks of its results, which follow one another."""

    kind: int
    parameters: tuple[int, ...]
    checks: list[tuple[int, float, int, int, Tensor]] = field(default_factory=list)
    position: int = 0

    def check(self, expected: Tensor, rule: int, bound: float, stride: int = 1) -> None:
        """Checks the next results. Every `stride`-th of them is kept."""
        flat = expected.detach().flatten()
        self.checks.append((rule, bound, self.position, stride, flat[::stride]))
        self.position += len(flat)

    def skip(self, count: int) -> None:
        """Skips the next results without a check."""
        self.position += count

    def packed(self) -> bytes:
        """The case as it is stored in the file."""
        parameters = [*self.parameters, *[0] * (12 - len(self.parameters))]
        parts = [struct.pack("<14q", self.kind, *parameters, len(self.checks))]
        for rule, bound, first, stride, values in self.checks:
            parts.append(struct.pack("<qdqqq", rule, bound, first, stride, len(values)))
            parts.append(values.numpy().astype("<f4").tobytes() + bytes(4 * (len(values) % 2)))
        return b"".join(parts)


def images(count: int, alike: bool) -> tuple[Tensor, Tensor]:
    """The two images, in one row."""
    first, second = numbers(count, 1), numbers(count, 2)
    return first, ((first.float() + second.float()) * 0.5).double() if alike else second


def ssim(shape: tuple[int, ...], padding: str, *, interleaved=False, weighted=False, taps=11, alike=True) -> Case:
    """Map, sums and both gradients of SSIM and L1. `shape` is (B, C, D, H, W), with D = 1 for images."""
    x, y = images(int(np.prod(shape)), alike)
    case = Case(0, (*shape, PADDINGS.index(padding), 3, interleaved, weighted, 0, taps, alike))
    batch, channels, depth, height, width = shape
    stored = (batch, *([depth] if depth > 1 else []), height, width, channels) if interleaved else (batch, channels)
    stored = stored if interleaved else (*stored, *([depth] if depth > 1 else []), height, width)
    leaves = [flat.clone().requires_grad_() for flat in (x, y)]
    first, second = (leaf.reshape(stored).movedim(-1, 1) if interleaved else leaf.reshape(stored) for leaf in leaves)
    share = numbers(len(x), 3).reshape(stored) if weighted else torch.ones(())
    index = oracle.ssim_map(first, second, padding=padding, window_size=taps)
    distance = (first - second).abs()
    planes = (lambda t: t.sum(tuple(range(1, t.ndim)))[:, None]) if interleaved else (lambda t: t.flatten(2).sum(-1))
    sums = [planes((1 - index) * share), planes(distance * share)]
    (0.2 * sums[0].sum() + 0.1 * sums[1].sum()).backward()
    for leaf in leaves:
        case.check(leaf.grad, OF_LARGEST, GRADIENT, 3 if depth == 1 else 11)
    case.check(index.movedim(1, -1) if interleaved else index, ABSOLUTE, VALUE, 3 if depth == 1 else 11)
    case.check(torch.stack([sums[0], torch.zeros_like(sums[0]), sums[1]], -1), OF_LARGEST, VALUE)
    return case


def ms_ssim(shape: tuple[int, ...]) -> Case:
    """Values and gradients of three scales."""
    batch, channels, depth, height, width = shape
    case = Case(1, (*shape, 1, 3, 0, 0, 0, 3, True))
    leaves = [flat.clone().requires_grad_() for flat in images(int(np.prod(shape)), True)]
    sides = (batch, channels, *([depth] if depth > 1 else []), height, width)
    x, y = (leaf.reshape(sides) for leaf in leaves)
    weights, means = oracle.outer([[0.2, 0.6, 0.2]] * (len(sides) - 2)), []
    for scale in range(3):
        terms = oracle.terms(oracle.moments(x, y, weights, "valid"), 1e-4, 9e-4)
        means.append((terms.ssim if scale == 2 else terms.contrast_structure).flatten(2).mean(-1))
        x, y = oracle.halved(x), oracle.halved(y)
    values = oracle.ms_ssim_product(torch.stack(means, -1), [0.3, 0.2, 0.5])
    (0.7 * values).sum().backward()
    for leaf in leaves:
        case.check(leaf.grad, OF_LARGEST, GRADIENT, 13)
    case.check(values, ABSOLUTE, VALUE)
    return case


def rasterizer(count: int, cameras: int, width: int, height: int, tile: int, *, raw=False, antialiased=False) -> Case:
    """Image, alphas and the gradients of the Gaussians' parameters."""
    case, side = Case(2, (count, cameras, width, height, tile, raw, antialiased)), float(width)
    size = (-4.0, -2.0) if raw else (0.02, 0.15)
    means, quats = numbers(3 * count, 10, -0.5, 0.5).reshape(-1, 3), numbers(4 * count, 11, -1, 1).reshape(-1, 4)
    scales, sh = numbers(3 * count, 12, *size).reshape(-1, 3), numbers(48 * count, 14, -0.3, 0.3).reshape(-1, 16, 3)
    opacities = numbers(count, 13, *((-2.0, 2.0) if raw else (0.0, 1.0)))
    viewmats = torch.eye(4, dtype=torch.float64).repeat(cameras, 1, 1)
    viewmats[:, 2, 3] = 2
    viewmats[:, 0, 3] = (torch.tensor(0.1) * torch.arange(cameras)).double()
    Ks = torch.tensor([[side, 0, side / 2], [0, side, side / 2], [0, 0, 1]], dtype=torch.float64).repeat(cameras, 1, 1)
    leaves = [t.requires_grad_() for t in (means, quats, scales, opacities, sh)]
    options = Options(sh_degree=3, max_alpha=0.99, raw=raw, antialiased=antialiased)
    scene = Scene(means, quats, scales, opacities, sh, viewmats, Ks, width, height)
    seen = renderer.project(scene, sh, None, options)
    background = numbers(3 * cameras, 20).reshape(cameras, 3)
    image, alphas = renderer.composite(seen, seen.colors, background, width, height, max_alpha=0.99, absgrad=False)
    v_image, v_alphas = numbers(image.numel(), 15, -1, 1), numbers(alphas.numel(), 16)
    v_depths = numbers(cameras * count, 17)
    loss = (image.flatten() * v_image).sum() + (alphas.flatten() * v_alphas).sum()
    (loss + (seen.depths.flatten() * v_depths).sum()).backward()
    case.check(image, NORM, IMAGE, 5)
    case.check(alphas, NORM, IMAGE, 5)
    case.skip(2 * cameras * count + 4 * cameras * count)
    for leaf in leaves:
        case.check(leaf.grad, NORM, GRADIENT, 11 if leaf is sh else 3)
    return case


def voxelizer(count: int, channels: int) -> Case:
    """The volume and the gradients of the Gaussians' parameters."""
    case = Case(3, (count, channels))
    means, quats = numbers(3 * count, 30, -2, 30).reshape(-1, 3), numbers(4 * count, 31, -1, 1).reshape(-1, 4)
    scales, values = numbers(3 * count, 32, 0.3, 6).reshape(-1, 3), numbers(channels * count, 33, -1, 1)
    axes = [torch.arange(start, start + size, dtype=torch.float64) for start, size in ((0, 21), (2, 13), (-1, 35))]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flip(-1).reshape(-1, 3)
    leaves = [t.requires_grad_() for t in (means, quats, scales, values.reshape(count, channels))]
    q = mahalanobis_squared(*leaves[:3], points)
    # No voxel lies so near the cut-off that rounding would decide.
    assert ((q - 9).abs() > 1e-6).all()
    volume = leaves[3].T @ torch.where(q <= 9, torch.exp(-q / 2), 0.0)
    (volume.flatten() * numbers(volume.numel(), 34, -1, 1)).sum().backward()
    case.check(volume, OF_LARGEST, IMAGE, 17)
    for leaf in leaves:
        case.check(leaf.grad, OF_LARGEST, GRADIENT, 3)
    return case


def projector(count: int, channels: int, rows: int, columns: int, *, cone: bool) -> Case:
    """The pictures and the gradients of the Gaussians' parameters."""
    case = Case(5, (count, channels, rows, columns, cone))
    means, quats = numbers(3 * count, 60, -3, 3).reshape(-1, 3), numbers(4 * count, 61, -1, 1).reshape(-1, 4)
    scales, values = numbers(3 * count, 62, 0.3, 1.2).reshape(-1, 3), numbers(channels * count, 63, -1, 1)
    if cone:
        views = [[[0, 0, -20], [1, 0, 0], [0, 1, 0], [-5, -4, 35]], [[-20, 1, 0], [0, 1, 0], [0, 0, 1], [35, -5, -4]]]
    else:
        views = [[[-5, -4, -20], [1, 0, 0], [0, 1, 0], [0, 0, 1]], [[-20, -5, -4], [0, 1, 0], [0, 0, 1], [1, 0, 0]]]
    frames = torch.tensor(views, dtype=torch.float64)
    leaves = [t.requires_grad_() for t in (means, quats, scales, values.reshape(count, channels))]
    for frame in frames:
        q = least_q(*(leaf.detach() for leaf in leaves[:3]), frame, (rows, columns), cone)
        # The gradient has a pole at the rim of a Gaussian, near which float32 has few digits left.
        assert ((q - 9).abs() > 5e-3).all()
    pictures = project_reference(*leaves, frames, (rows, columns), cone=cone)
    (pictures.flatten() * numbers(pictures.numel(), 64, -1, 1)).sum().backward()
    case.check(pictures, OF_LARGEST, IMAGE, 3)
    for leaf in leaves:
        case.check(leaf.grad, OF_LARGEST, 2 * GRADIENT, 2)
    return case


def adam() -> Case:
    """A step of the visible rows, and a step of four parameters at once, of which only the parameters are checked."""

    def step(p: Tensor, g: Tensor, m: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        return p - 0.1 * m / (v.sqrt() + 1e-8), m, v

    case, (rows, width) = Case(4, ()), (3000, 7)
    p, g = numbers(rows * width, 50), numbers(rows * width, 51)
    visible = (torch.arange(rows) % 5 != 0).repeat_interleave(width)
    after = [torch.where(visible, new, old) for new, old in zip(step(p, g, g, g), (p, g, g), strict=True)]
    case.check(after[0], OF_LARGEST, IMAGE, 61)
    for count in (1, 40000, 17, 16384):
        arrays = [numbers(count, 40 + k) for k in range(4)]
        new = step(*arrays)
        for array in (new[0], arrays[1], new[1], new[2]):
            case.check(array, OF_LARGEST, IMAGE, 997)
    case.check(after[1], OF_LARGEST, IMAGE, 61)
    case.check(after[2], OF_LARGEST, IMAGE, 61)
    return case


def cases() -> list[Case]:
    """All cases."""
    found = [ssim((1, 2, 1, 24, 29), padding) for padding in PADDINGS]
    found += [ssim((2, 1, 14, 17, 19), padding) for padding in PADDINGS]
    found += [
        ssim((1, 3, 1, 23, 18), "same", interleaved=True),
        ssim((1, 1, 1, 31, 70), "reflect", weighted=True, alike=False),
        ssim((1, 3, 12, 15, 16), "replicate", interleaved=True),
        ssim((1, 2, 1, 20, 22), "same", taps=7),
        ssim((1, 1, 13, 20, 15), "valid", taps=5),
        ms_ssim((2, 2, 1, 45, 52)),
        ms_ssim((1, 2, 21, 24, 22)),
        rasterizer(120, 2, 40, 33, 16),
        rasterizer(90, 1, 33, 47, 32, raw=True, antialiased=True),
        voxelizer(40, 1),
        voxelizer(24, 5),
        projector(17, 1, 9, 11, cone=True),
        projector(14, 5, 9, 11, cone=False),
        adam(),
    ]
    return found


def packed(found: list[Case]) -> bytes:
    """The content of the file."""
    return b"SPLATVEC" + struct.pack("<q", len(found)) + b"".join(case.packed() for case in found)


if __name__ == "__main__":
    PATH.write_bytes(packed(cases()))
    print(f"{PATH}: {PATH.stat().st_size} bytes")
