"""The voxeliser compared with its definition in plain torch: values, gradients, crops, threads, instruction sets."""

import numpy as np
import pytest
import torch

from splat_ssim.ops import compiled, xray
from splat_ssim.ops import voxelize as ops
from splat_ssim.volume import VoxelGrid, morton_order, voxelize
from splat_ssim.volume.reference import mahalanobis_squared, voxelize_reference

NAMES = ("means", "quats", "scales", "densities", "features")


def sample(grid: VoxelGrid, count: int, *, smallest=0.5, largest=3.0, features=0, seed=0):
    """Gaussians on a grid and a little beyond it, with sizes in voxels: float32 tensors that require gradients."""
    generator = torch.Generator().manual_seed(seed)
    indices = torch.rand(count, 3, generator=generator) * (torch.tensor(grid.shape) + 2.0) - 1.0
    spacing = min(grid.spacing)
    tensors = [
        grid.to_world(indices),
        torch.randn(count, 4, generator=generator),
        spacing * torch.empty(count, 3).uniform_(smallest, largest, generator=generator),
        torch.randn(count, generator=generator),
    ]
    if features:
        tensors.append(torch.rand(count, features, generator=generator))
    return [t.requires_grad_() for t in tensors]


def run(tensors, grid):
    return voxelize(*tensors[:4], grid, features=tensors[4] if len(tensors) > 4 else None)


def compare(tensors, grid, run=run):
    """Compares the kernel with the float64 definition. Returns the largest relative errors of value and gradients."""
    doubles = [t.detach().double().requires_grad_() for t in tensors]
    volume, wanted = run(tensors, grid), voxelize(*doubles[:4], grid, features=doubles[4] if len(doubles) > 4 else None)
    # At the cut-off g jumps from 0.011 to 0. Voxels within rounding of it may fall on either side.
    q = mahalanobis_squared(*doubles[:3], grid.points(dtype=torch.float64).reshape(-1, 3))
    clear = ((q - 9).abs() > 1e-4).all(0).reshape(grid.shape)
    weight = torch.randn(volume.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * clear
    gradients = torch.autograd.grad((volume * weight.float()).sum(), tensors)
    wanted_gradients = torch.autograd.grad((wanted * weight).sum(), doubles)
    value = ((volume - wanted).detach().abs() * clear).max() / wanted.abs().max().clamp_min(1e-12)
    errors = {"value": float(value.detach())}
    for name, a, b in zip(NAMES, gradients, wanted_gradients, strict=False):
        errors[name] = float((a - b).abs().max() / b.abs().max().clamp_min(1e-12))
    return errors


def rotated(shape, seed=0):
    """A grid with an oblique affine and unequal spacing."""
    matrix = np.eye(4)
    matrix[:3, :3] = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0] * [1.0, 0.5, 1.5]
    matrix[:3, 3] = [100.0, -3.0, 4.0]
    return VoxelGrid(shape, matrix.tolist())


GRIDS = {
    "unit": VoxelGrid.regular((24, 20, 28)),
    "narrow": VoxelGrid.regular((9, 11, 7)),
    "one voxel": VoxelGrid.regular((1, 1, 1)),
    "spacing": VoxelGrid.regular((12, 20, 33), spacing=(0.7, 1.0, 2.0), origin=(5, -3, 2), axes="xyz"),
    "flipped": VoxelGrid.regular((12, 20, 33), spacing=(-1.0, 1.0, -0.5), axes="yxz"),
    "oblique": rotated((14, 18, 17)),
    "crop": VoxelGrid.regular((40, 40, 40)).crop((3, 9, 12), (20, 12, 19)),
}


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("features", [0, 3])
def test_matches_the_definition(name, features):
    errors = compare(sample(GRIDS[name], 40, features=features), GRIDS[name])
    # float32 sums of some hundred terms
    assert max(errors.values()) < 1e-5, errors


@pytest.mark.parametrize("smallest,largest", [(0.3, 0.5), (1.0, 2.0), (0.4, 6.0), (5.0, 14.0), (0.4, 25.0)])
def test_sizes(smallest, largest):
    # Gaussians that fill vectors half or fully, thin ones that must not be factorised, and ones larger than the crop.
    grid = VoxelGrid.regular((30, 26, 40))
    errors = compare(sample(grid, 30, smallest=smallest, largest=largest, seed=3), grid)
    assert max(errors.values()) < 2e-5, errors


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 9])
def test_any_number_of_channels(channels):
    grid = VoxelGrid.regular((10, 12, 18))
    errors = compare(sample(grid, 20, features=channels - 1), grid)
    assert max(errors.values()) < 1e-5, errors


def test_reference_gradcheck():
    grid = VoxelGrid.regular((3, 4, 3))
    tensors = [t.detach().double().requires_grad_() for t in sample(grid, 3, smallest=1.1, largest=1.4, seed=5)]
    values = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *t: voxelize_reference(*t, grid), (*tensors[:3], values))


def test_one_gaussian_by_hand():
    # An ellipsoid along y on a (z, y, x) grid with spacing 0.5. Its sigma is 2 along y, and 1 along x and z.
    grid = VoxelGrid.regular((9, 17, 9), spacing=0.5, axes="zyx")
    volume = voxelize(
        torch.tensor([[2.0, 4.0, 2.0]]),
        torch.tensor([[2.0, 0.0, 0.0, 0.0]]),
        torch.tensor([[1.0, 2.0, 1.0]]),
        torch.tensor([3.0]),
        grid,
    )[0]
    z, y, x = np.meshgrid(*(0.5 * np.arange(n) for n in grid.shape), indexing="ij")
    q = (x - 2) ** 2 + ((y - 4) / 2) ** 2 + (z - 2) ** 2
    np.testing.assert_allclose(volume.numpy(), np.where(q <= 9, 3 * np.exp(-q / 2), 0), atol=1e-6)


def test_a_crop_has_the_bits_of_the_whole():
    grid = VoxelGrid.regular((40, 33, 50), spacing=(1.0, 2.0, 0.7), origin=(3, 4, 5))
    tensors = sample(grid, 300, smallest=0.4, largest=6.0, features=1, seed=2)
    whole = run(tensors, grid)
    for start, size in [((3, 7, 11), (20, 21, 9)), ((0, 0, 0), (1, 1, 1)), ((30, 20, 30), (10, 13, 20))]:
        part = run(tensors, grid.crop(start, size))
        window = tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))
        assert torch.equal(whole[(slice(None), *window)], part)


def test_threads_do_not_change_a_bit(threads):
    grid = VoxelGrid.regular((30, 33, 50))
    tensors = sample(grid, 500, features=1, seed=4)
    results = []
    for number in (1, 2, 5):
        threads(number)
        volume = run(tensors, grid)
        results.append([volume, *torch.autograd.grad((volume * volume).sum(), tensors)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("isa", compiled.available_isas())
def test_every_instruction_set(isa, monkeypatch):
    monkeypatch.setattr(compiled, "isa", lambda: isa)
    compiled.kernel.cache_clear()
    try:
        for grid in GRIDS.values():
            errors = compare(sample(grid, 25, smallest=0.4, largest=5.0, features=1, seed=6), grid)
            assert max(errors.values()) < 2e-5, errors
    finally:
        compiled.kernel.cache_clear()


def test_far_huge_and_empty():
    grid = VoxelGrid.regular((8, 8, 8))
    quats, ones = torch.tensor([[1.0, 0, 0, 0]]), torch.ones(1)
    far = voxelize(torch.full((1, 3), 1e12), quats, torch.ones(1, 3), ones, grid)
    assert not far.any()
    huge = voxelize(torch.full((1, 3), 4.0), quats, torch.full((1, 3), 1e12), ones, grid)
    assert torch.equal(huge, torch.ones(1, 8, 8, 8))
    empty = voxelize(torch.zeros(0, 3), torch.zeros(0, 4), torch.zeros(0, 3), torch.zeros(0), grid)
    assert empty.shape == (1, 8, 8, 8) and not empty.any()


def test_infinite_gradients_outside_do_not_reach_a_gaussian():
    grid = VoxelGrid.regular((16, 16, 32))
    mean = torch.tensor([[6.0, 8.0, 8.0]], requires_grad=True)
    volume = voxelize(mean, torch.tensor([[1.0, 0, 0, 0]]), torch.ones(1, 3), torch.ones(1), grid)
    upstream = torch.full_like(volume, float("inf"))
    inside = mahalanobis_squared(mean, torch.tensor([[1.0, 0, 0, 0]]), torch.ones(1, 3), grid.points().reshape(-1, 3))
    upstream[0][inside.reshape(grid.shape) <= 9.1] = 0.0
    volume.backward(upstream)
    assert torch.equal(mean.grad, torch.zeros(1, 3))


def test_non_contiguous_inputs():
    grid = VoxelGrid.regular((10, 10, 20))
    tensors = [t.detach() for t in sample(grid, 10)]
    strided = [torch.stack([t, t], -1)[..., 0] for t in tensors]
    assert not strided[0].is_contiguous()
    assert torch.equal(run(tensors, grid), run(strided, grid))


def test_operators_obey_torch():
    grid = VoxelGrid.regular((6, 7, 18))
    means, quats, scales, densities = sample(grid, 6)
    affine = [v for row in grid.affine for v in row]
    arguments = (means, quats, scales, densities.detach()[:, None].requires_grad_(), affine, [0, 0, 0, *grid.shape])
    torch.library.opcheck(ops.voxelize, arguments)
    torch.library.opcheck(
        ops.voxelize_backward, (torch.randn(1, *grid.shape), *[a.detach() for a in arguments[:4]], *arguments[4:])
    )


def test_second_derivatives_are_refused():
    grid = VoxelGrid.regular((6, 7, 18))
    tensors = sample(grid, 3)
    (gradient,) = torch.autograd.grad(run(tensors, grid).square().sum(), tensors[0], create_graph=True)
    with pytest.raises(NotImplementedError, match="differentiable only once"):
        gradient.sum().backward()


def test_morton_order_keeps_the_field():
    grid = VoxelGrid.regular((20, 20, 20))
    tensors = [t.detach() for t in sample(grid, 200)]
    order = morton_order(tensors[0], grid)
    assert torch.equal(order.sort().values, torch.arange(200))
    torch.testing.assert_close(run([t[order] for t in tensors], grid), run(tensors, grid))
    cells = (grid.to_index(tensors[0][order]) / 4).floor().clamp_min(0)
    # Neighbours on the curve are near each other, far nearer than random pairs.
    assert (cells[1:] - cells[:-1]).abs().sum(1).float().mean() < 3.0


@pytest.mark.parametrize(
    "change,error,text",
    [
        ({0: torch.zeros(5, 2)}, ValueError, r"means must have shape \(5, 3\), got \(5, 2\)"),
        ({1: torch.zeros(4, 4)}, ValueError, r"quats must have shape \(5, 4\), got \(4, 4\)"),
        ({3: torch.zeros(5, 1)}, ValueError, r"densities must have shape \(5,\), got \(5, 1\)"),
        ({2: torch.ones(5, 3).half()}, TypeError, r"scales must be float32 or float64.* got torch.float16"),
        ({2: torch.ones(5, 3).double()}, TypeError, r"got torch.float64 beside torch.float32"),
    ],
)
def test_wrong_tensors(change, error, text):
    tensors = [t.detach() for t in sample(VoxelGrid.regular((4, 4, 4)), 5)]
    for i, tensor in change.items():
        tensors[i] = tensor
    with pytest.raises(error, match=text):
        run(tensors, VoxelGrid.regular((4, 4, 4)))


@pytest.mark.parametrize(
    "make,text",
    [
        (lambda: VoxelGrid((0, 1, 1)), "shape must be three sizes"),
        (lambda: VoxelGrid((2, 2)), "shape must be three sizes"),
        (lambda: VoxelGrid((2, 2, 2), [[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "invertible"),
        (lambda: VoxelGrid((2, 2, 2), [[float("nan")] * 4] * 4), "finite 4x4"),
        (lambda: VoxelGrid.regular((2, 2, 2), spacing=0), "spacing must not be 0"),
        (lambda: VoxelGrid.regular((2, 2, 2), axes="xxy"), "permutation"),
    ],
)
def test_wrong_grids(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def test_grid_maps_there_and_back():
    grid = rotated((5, 6, 7)).crop((1, 2, 3), (3, 3, 3))
    indices = torch.tensor([[0.0, 0.0, 0.0], [2.0, 1.0, 0.5]], dtype=torch.float64)
    torch.testing.assert_close(grid.to_index(grid.to_world(indices)), indices)
    torch.testing.assert_close(grid.points(dtype=torch.float64)[0, 0, 0], grid.to_world(indices)[0])
    assert grid.rebased().start == (0, 0, 0)
    torch.testing.assert_close(grid.rebased().points(), grid.points())
    assert grid.origin == pytest.approx(grid.to_world(indices)[0].tolist())


@pytest.mark.parametrize("operator", [ops.voxelize, ops.voxelize_backward, xray.xray, xray.xray_backward])
@pytest.mark.skipif(not hasattr(torch.library, "infer_schema"), reason="torch before 2.5 does not infer schemas")
def test_written_schemas_are_those_of_the_annotations(operator):
    inferred = torch.library.infer_schema(operator._init_fn, mutates_args=())
    assert str(operator._opoverload._schema) == operator._qualname + inferred
