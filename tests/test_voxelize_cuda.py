"""The voxeliser's CUDA kernels by the host emulation, compared with the definition in float64 and the CPU kernels."""

import re

import pytest
import torch

from splat_ssim.ops import _cuda_kernels, _cuda_module, voxelize_cuda
from splat_ssim.ops import voxelize as ops
from splat_ssim.volume import VoxelGrid
from tests.test_cuda_emulation import ROOT, kernels, library  # noqa: F401
from tests.test_cuda_host import driver  # noqa: F401
from tests.test_voxelize import compare, rotated, sample

pytestmark = pytest.mark.emulation


def arguments(grid):
    return [v for row in grid.affine for v in row], [*grid.start, *grid.shape]


def values_of(tensors):
    densities = tensors[3][:, None]
    return torch.cat([densities, densities * tensors[4]], 1) if len(tensors) > 4 else densities


@pytest.fixture
def run(kernels):  # noqa: F811
    """Runs `voxelize` by the emulated kernels, under autograd."""

    class Voxelize(torch.autograd.Function):
        @staticmethod
        def forward(ctx, means, quats, scales, values, grid):
            ctx.save_for_backward(means, quats, scales, values)
            ctx.grid = grid
            return voxelize_cuda.forward(kernels, 0, (means, quats, scales, values), *arguments(grid))

        @staticmethod
        def backward(ctx, gradient):
            grads = voxelize_cuda.backward(kernels, 0, gradient, ctx.saved_tensors, *arguments(ctx.grid))
            return (*grads, None)

    return lambda tensors, grid: Voxelize.apply(*tensors[:3], values_of(tensors), grid)


@pytest.mark.parametrize("features", [0, 1, 3, 6])
@pytest.mark.parametrize("grid", [VoxelGrid.regular((9, 17, 12), spacing=(1.0, 2.0, 0.7)), rotated((10, 11, 13))])
def test_values_and_gradients(run, grid, features):
    # float32 sums of some hundred terms
    errors = compare(sample(grid, 30, features=features), grid, run)
    assert max(errors.values()) < 1e-5, errors


@pytest.mark.parametrize("smallest,largest", [(0.3, 0.5), (0.4, 6.0), (0.4, 25.0)])
def test_sizes(run, smallest, largest):
    # The same sizes as for the CPU: between voxels, thin across many bricks, and larger than the grid.
    grid = VoxelGrid.regular((14, 19, 17))
    errors = compare(sample(grid, 20, smallest=smallest, largest=largest, seed=3), grid, run)
    assert max(errors.values()) < 2e-5, errors


def test_a_brick_with_more_gaussians_than_a_block_holds(run):
    grid = VoxelGrid.regular((8, 9, 8))
    errors = compare(sample(grid, 150, features=1, seed=4), grid, run)
    assert max(errors.values()) < 1e-5, errors


def test_a_crop_has_the_bits_of_the_whole(run):
    grid = VoxelGrid.regular((21, 19, 18), spacing=(1.0, 2.0, 0.7), origin=(3, 4, 5))
    tensors = [t.detach() for t in sample(grid, 60, smallest=0.4, largest=6.0, features=1, seed=2)]
    whole = run(tensors, grid)
    for start, size in [((3, 7, 11), (10, 12, 7)), ((0, 0, 0), (1, 1, 1)), ((13, 2, 9), (8, 13, 9))]:
        window = tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))
        assert torch.equal(whole[(slice(None), *window)], run(tensors, grid.crop(start, size)))


def test_thread_orders_give_the_same_bits(library, run):  # noqa: F811
    grid = VoxelGrid.regular((12, 13, 10))
    tensors = sample(grid, 40, features=1, seed=4)
    results = []
    for order, seed in ((0, 0), (1, 0), (2, 2), (2, 3)):
        library.splat_emulation_configure(order, seed, -1, 0)
        volume = run(tensors, grid)
        results.append([volume.detach(), *torch.autograd.grad((volume * volume).sum(), tensors)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_far_huge_and_empty(run):
    grid = VoxelGrid.regular((8, 8, 9))
    quats, ones = torch.tensor([[1.0, 0, 0, 0]]), torch.ones(1)
    for mean, scale in ((1e12, 1.0), (float("nan"), 1.0), (4.0, float("nan")), (4.0, float("inf"))):
        tensors = [torch.full((1, 3), mean), quats, torch.full((1, 3), scale), ones]
        tensors = [t.requires_grad_() for t in tensors]
        volume = run(tensors, grid)
        assert not volume.any()
        assert not any(g.any() for g in torch.autograd.grad(volume.sum(), tensors))
    huge = run([torch.full((1, 3), 4.0), quats, torch.full((1, 3), 1e12), ones], grid)
    assert torch.equal(huge, torch.ones(1, 8, 8, 9))
    none = [torch.zeros(0, 3), torch.zeros(0, 4), torch.zeros(0, 3), torch.zeros(0)]
    none = [t.requires_grad_() for t in none]
    volume = run(none, grid)
    assert volume.shape == (1, 8, 8, 9) and not volume.any()
    assert [g.shape for g in torch.autograd.grad(volume.sum(), none)] == [t.shape for t in none]


def test_infinite_gradients_outside_do_not_reach_a_gaussian(run):
    grid = VoxelGrid.regular((16, 16, 16))
    mean = torch.tensor([[6.0, 8.0, 8.0]], requires_grad=True)
    volume = run([mean, torch.tensor([[1.0, 0, 0, 0]]), torch.ones(1, 3), torch.ones(1)], grid)
    upstream = torch.full_like(volume, float("inf"))
    distance = (grid.points() - mean.detach()).square().sum(-1)
    upstream[0][distance <= 9.1] = 0.0
    volume.backward(upstream)
    assert torch.equal(mean.grad, torch.zeros(1, 3))


@pytest.mark.parametrize("features", [0, 2])
def test_operators_give_what_the_cpu_operators_give(kernels, monkeypatch, features):  # noqa: F811
    monkeypatch.setattr(_cuda_module, "target", lambda tensor, unit: (kernels, 0))
    grid = VoxelGrid.regular((11, 9, 20), spacing=0.5).crop((2, 1, 3), (8, 8, 17))
    tensors = [t.detach() for t in sample(grid, 30, features=features)]
    inputs = (*tensors[:3], values_of(tensors), *arguments(grid))
    found, expected = voxelize_cuda._voxelize(*inputs), ops.voxelize(*inputs)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    gradient = torch.randn_like(expected)
    for a, b in zip(
        voxelize_cuda._voxelize_backward(gradient, *inputs), ops.voxelize_backward(gradient, *inputs), strict=True
    ):
        assert a.shape == b.shape
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


def test_nothing_outside_the_volume_is_written(kernels):  # noqa: F811
    grid = VoxelGrid.regular((9, 7, 10))
    tensors = [t.detach() for t in sample(grid, 10)]
    call = voxelize_cuda._Call(kernels, 0, (*tensors[:3], values_of(tensors)), *arguments(grid))
    call.run(voxelize_cuda._PREPARE)
    call.sort_into_bricks()
    fenced = torch.full((9 * 7 * 10 + 400,), 7.0)
    call.point("volume", fenced[200:-200])
    call.run(voxelize_cuda._RENDER)
    assert (fenced[:200] == 7).all() and (fenced[-200:] == 7).all() and not (fenced[200:-200] == 7).any()


BARRIERS = [
    number
    for number, line in enumerate((ROOT / "csrc" / "cuda" / "voxelize.h").read_text().splitlines(), start=1)
    if re.search(r"\bbarrier\(\);", line)
]


@pytest.mark.parametrize("line", BARRIERS)
def test_a_missing_barrier_is_caught(library, run, line):  # noqa: F811
    grid = VoxelGrid.regular((8, 8, 8))
    tensors = [t.detach() for t in sample(grid, 300, smallest=1.0)]
    expected = run(tensors, grid)
    library.splat_emulation_configure(2, 1, line, 0)
    try:
        assert not torch.equal(run(tensors, grid), expected)
    except RuntimeError as error:
        assert "could not be started" in str(error)


def test_an_overrun_of_shared_memory_is_caught(library, run):  # noqa: F811
    grid = VoxelGrid.regular((8, 8, 8))
    tensors = [t.detach() for t in sample(grid, 300, smallest=1.0)]
    library.splat_emulation_configure(2, 1, -1, 4)
    with pytest.raises(RuntimeError, match="could not be started"):
        run(tensors, grid)
    assert b"overrun" in library.splat_emulation_fault()


def test_what_the_launcher_refuses(kernels):  # noqa: F811
    grid = VoxelGrid.regular((4, 4, 4))
    tensors = [t.detach() for t in sample(grid, 3)]
    for name, value in (("stage", 5), ("stage", -1), ("channels", 0), ("count", 0)):
        call = voxelize_cuda._Call(kernels, 0, (*tensors[:3], values_of(tensors)), *arguments(grid))
        setattr(call.problem, name, value)
        with pytest.raises(RuntimeError, match=r"'voxelize' rejected its arguments"):
            kernels.launch("voxelize", call.problem, 0)


def test_another_layout_is_an_import_error(kernels, monkeypatch):  # noqa: F811
    monkeypatch.setattr(voxelize_cuda, "_RECORD_BYTES", 76)
    grid = VoxelGrid.regular((4, 4, 4))
    tensors = [t.detach() for t in sample(grid, 3)]
    with pytest.raises(ImportError, match="voxeliser must fit this package"):
        voxelize_cuda.forward(kernels, 0, (*tensors[:3], values_of(tensors)), *arguments(grid))


def test_kernels_start_through_the_driver(driver):  # noqa: F811
    from splat_ssim.ops import compiled

    found = _cuda_module.load(0, _cuda_kernels.VOXELS)
    grid = VoxelGrid.regular((20, 17, 9))
    tensors = [t.detach() for t in sample(grid, 300)]
    volume = torch.ones(1, *grid.shape)
    voxelize_cuda.backward(found, 99, volume, (*tensors[:3], values_of(tensors)), *arguments(grid))
    names = _cuda_kernels.kernel_names(compiled.library())
    stages = ("splat_voxel_prepare", "splat_voxel_gather", "splat_voxel_chain")
    # Blocks have 128 threads, one for each Gaussian. In the gathering kernel, each Gaussian has a warp.
    for (function, blocks, *rest), name, wanted in zip(driver.launches, stages, (3, 75, 3), strict=True):
        assert function == 1001 + names.index(name)
        assert (blocks, rest) == (wanted, [1, 1, 128, 1, 1, 0, 99])
