"""The projector's CUDA kernels by the host emulation, compared with the definition, quadrature and the CPU kernels."""

import re

import numpy as np
import pytest
import torch

from splat_ssim.ct import XrayGeometry, circle, project
from splat_ssim.ops import _cuda_kernels, _cuda_module, xray_cuda
from splat_ssim.ops import xray as ops
from splat_ssim.volume.sampling import sample_gaussians
from tests.test_cuda_emulation import ROOT, kernels, library  # noqa: F401
from tests.test_cuda_host import driver  # noqa: F401
from tests.test_xray import CONE, GEOMETRIES, clear_of_rims, compare, sample

pytestmark = pytest.mark.emulation


def values_of(tensors):
    densities = tensors[3][:, None]
    return torch.cat([densities, densities * tensors[4]], 1) if len(tensors) > 4 else densities


def arguments(geometry, views=None):
    return geometry.frames(views), list(geometry.detector), geometry.kind == "cone"


@pytest.fixture
def run(kernels):  # noqa: F811
    """Runs `project` by the emulated kernels, under autograd. float64 tensors get the definition."""

    class Project(torch.autograd.Function):
        @staticmethod
        def forward(ctx, means, quats, scales, values, geometry, views):
            ctx.save_for_backward(means, quats, scales, values)
            ctx.beam = arguments(geometry, views)
            return xray_cuda.forward(kernels, 0, (means, quats, scales, values), *ctx.beam)

        @staticmethod
        def backward(ctx, gradient):
            return (*xray_cuda.backward(kernels, 0, gradient, ctx.saved_tensors, *ctx.beam), None, None)

    def run(tensors, geometry, views=None):
        if tensors[0].dtype == torch.float64:
            return project(*tensors[:4], geometry, views=views, features=tensors[4] if len(tensors) > 4 else None)
        return Project.apply(*tensors[:3], values_of(tensors), geometry, views)

    return run


def results(run, tensors, geometry):
    """The pictures, and the gradients of their weighted sum."""
    pictures = run(tensors, geometry)
    weight = torch.linspace(-1, 1, pictures.numel()).reshape(pictures.shape)
    return [pictures.detach(), *torch.autograd.grad(pictures, tensors, weight)]


def same_bits(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# --- compared with the definition


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("features", [0, 2, 6])
def test_values_and_gradients(run, name, features):
    errors = compare(sample(40, features=features), GEOMETRIES[name], run)
    # float32 sums of some dozen terms, as on the CPU. Near a rim, a gradient has few digits left.
    assert errors.pop("value") < 1e-6
    assert max(errors.values()) < 1e-5, errors


@pytest.mark.parametrize("smallest,largest", [(0.05, 0.2), (0.3, 0.5), (0.2, 6.0), (5.0, 9.0)])
@pytest.mark.parametrize("name", ["cone", "parallel"])
def test_sizes(run, smallest, largest, name):
    # The same sizes and bounds as for the CPU: between pixels, thin across tiles, and larger than the detector.
    errors = compare(sample(60, smallest=smallest, largest=largest), GEOMETRIES[name], run)
    assert errors.pop("value") < 2e-6
    assert max(errors.values()) < 3e-5, errors


def test_thin_and_flat_gaussians(run):
    tensors = sample(50)
    with torch.no_grad():
        tensors[2].copy_(torch.tensor([0.05, 1.0, 4.0]).expand(50, 3))
    errors = compare(tensors, GEOMETRIES["cone"], run)
    assert errors.pop("value") < 1e-5
    assert max(errors.values()) < 3e-4, errors


def test_far_source_and_large_coordinates(run):
    geometry = XrayGeometry(
        "cone", (30, 30), (0.4, 0.4), (5, 130), source_object=2000, source_detector=2600, center=(300, -200, 100)
    )
    tensors = sample(40, smallest=0.3, largest=0.6, spread=4.0)
    with torch.no_grad():
        tensors[0] += torch.tensor(geometry.center)
    errors = compare(tensors, geometry, run)
    assert errors.pop("value") < 2e-6
    assert max(errors.values()) < 3e-5, errors


def random_case(seed):
    """A geometry and Gaussians of random kind, sizes and places; some lie beside or behind the source."""
    draw = np.random.default_rng(seed)
    kind = ("cone", "parallel")[seed % 2]
    detector = tuple(int(n) for n in draw.integers(1, 45, 2))
    distances = {"source_object": draw.uniform(9, 60)} if kind == "cone" else {}
    if distances:
        distances["source_detector"] = distances["source_object"] * draw.uniform(1.1, 2.5)
    geometry = XrayGeometry(
        kind,
        detector,
        tuple(draw.uniform(0.3, 2.5, 2)),
        tuple(draw.uniform(0, 360, int(draw.integers(1, 12)))),
        offset=tuple(draw.normal(0, 3, 2)),
        center=tuple(draw.normal(0, 2, 3)),
        **distances,
    )
    count, features = int(draw.integers(1, 40)), int(draw.integers(0, 7))
    low = float(draw.uniform(0.1, 1.5))
    options = {"smallest": low, "largest": low * draw.uniform(1.1, 4), "spread": draw.uniform(2, 15)}
    return geometry, sample(count, features=features, seed=seed, **options)


@pytest.mark.parametrize("seed", range(24))
def test_random_cases(run, seed):
    geometry, tensors = random_case(seed)
    errors = compare(tensors, geometry, run)
    # Few Gaussians and rays: the largest gradient may be that of a ray close to a rim.
    assert errors.pop("value") < 1e-6
    assert max(errors.values()) < 5e-5, errors


# --- compared with quadrature


def ray(geometry, view, row, column):
    """A point on a ray, and its unit direction."""
    frame = geometry.frames()[view]
    across = column * frame[1] + row * frame[2]
    cone = geometry.kind == "cone"
    origin, direction = (frame[0], frame[3] + across) if cone else (frame[0] + across, frame[3])
    return origin, direction / direction.norm()


def quadrature(tensors, origin, direction, half=20.0, count=60_001):
    """The integral of the field along a ray by the midpoint rule, which shares neither formula nor code."""
    edges = -(origin @ direction) + torch.linspace(-half, half, count, dtype=torch.float64)
    points = origin + (edges[1:] + edges[:-1])[:, None] / 2 * direction
    return sample_gaussians(*tensors, points).sum(1) * 2 * half / (count - 1)


RAYS = ((10, 14), (8, 12), (12, 17), (3, 2))


@pytest.mark.parametrize("name", ["cone", "parallel", "shifted cone"])
def test_kernels_give_the_integral_of_the_field(run, name):
    geometry, draw = GEOMETRIES[name], np.random.default_rng(3)
    tensors = [torch.from_numpy(draw.normal(size=s)).float() for s in ((6, 3), (6, 4), (6, 3), (6,), (6, 1))]
    tensors[0] *= 2
    tensors[2] = 0.4 + tensors[2].abs()
    pictures = run(tensors, geometry)
    exact = [t.double() for t in (*tensors[:3], values_of(tensors))]
    for row, column in RAYS:
        expected = quadrature(exact, *ray(geometry, 1, row, column))
        # The field jumps by exp(-4.5) at the cut-off, which leaves the rule an error of 1e-5.
        torch.testing.assert_close(pictures[1, :, row, column].double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["cone", "parallel"])
def test_gradients_are_the_differences_of_the_integral(run, name):
    """Central differences of the quadrature by each number of the Gaussians, the moving cut-off included."""
    geometry, draw = GEOMETRIES[name], np.random.default_rng(5)
    tensors = [torch.from_numpy(draw.normal(size=s)).float() for s in ((2, 3), (2, 4), (2, 3), (2,))]
    tensors[2] = 1.0 + tensors[2].abs()
    tensors[3] = 1.0 + tensors[3].abs()
    tensors = [t.requires_grad_() for t in tensors]
    pictures = run(tensors, geometry)
    found = torch.autograd.grad(sum((1 + k) * pictures[1, 0, i, j] for k, (i, j) in enumerate(RAYS[:3])), tensors)
    step = 4e-3

    def integral(changed):
        changed = [*changed[:3], changed[3][:, None]]
        return sum((1 + k) * float(quadrature(changed, *ray(geometry, 1, *at))) for k, at in enumerate(RAYS[:3]))

    exact = [t.detach().double() for t in tensors]
    for place, gradient in enumerate(found):
        differences = torch.zeros(gradient.shape, dtype=torch.float64)
        for number in range(gradient.numel()):
            ends = []
            for sign in (1, -1):
                changed = [t.clone() for t in exact]
                changed[place].view(-1)[number] += sign * step
                ends.append(integral(changed))
            differences.view(-1)[number] = (ends[0] - ends[1]) / (2 * step)
        # The rule's error of 1e-6 at each end of a Gaussian, over the step, and the differences' own of step².
        assert (gradient - differences).abs().max() < 4e-3 * differences.abs().max(), (place, gradient, differences)


# --- views, tiles and parts of the list


MANY = XrayGeometry("cone", (19, 35), (1.5, 1.5), circle(19, "cone"), **CONE)


def test_more_views_than_a_call_takes(run):
    tensors = sample(25, features=1, seed=6)
    errors = compare(tensors, MANY, run)
    assert errors.pop("value") < 1e-6 and max(errors.values()) < 1e-5, errors
    pictures = run(tensors, MANY)
    for views in ([0], [7, 8], [18, 3]):
        assert torch.equal(run(tensors, MANY, views), pictures[views])


@pytest.mark.parametrize("shadows,pairs", [(1, 1), (80, 7), (1 << 20, 100)])
def test_parts_of_views_and_of_pairs_give_the_same_bits(run, monkeypatch, shadows, pairs):
    tensors = sample(25, features=1, largest=6.0, seed=6)
    expected = results(run, tensors, MANY)
    parts = []
    render = xray_cuda._Call._render_part
    monkeypatch.setattr(xray_cuda._Call, "_render_part", lambda self, *a: (parts.append(a), render(self, *a)))
    monkeypatch.setattr(xray_cuda, "_SHADOWS", shadows)
    monkeypatch.setattr(xray_cuda, "_PAIRS_AT_ONCE", pairs)
    assert same_bits(results(run, tensors, MANY), expected)
    assert len(parts) > 6
    # A part has at most the limit, and the tiles of the shadow that the limit falls into: here 3 x 2.
    assert max(part[2] for part in parts) <= pairs + 6


def test_a_tile_with_more_shadows_than_a_block_holds(run):
    geometry = XrayGeometry("parallel", (16, 17), (1, 1), (0, 90))
    errors = compare(sample(200, features=1, seed=4), geometry, run)
    assert errors.pop("value") < 1e-6 and max(errors.values()) < 2e-5, errors


@pytest.mark.parametrize("name", ["cone", "parallel"])
def test_thread_orders_give_the_same_bits(library, run, name):  # noqa: F811
    tensors = sample(70, features=1, seed=4)
    every = []
    for order, seed in ((0, 0), (1, 0), (2, 2), (3, 3)):
        library.splat_emulation_configure(order, seed, -1, 0)
        every.append(results(run, tensors, GEOMETRIES[name]))
    assert all(same_bits(other, every[0]) for other in every[1:])


# --- Gaussians that count nothing, and none


def test_gaussians_that_count_nothing(run):
    """Gaussians behind or around the source, beside the detector, or not finite change neither values nor gradients."""
    geometry, nan, inf = XrayGeometry("cone", (16, 20), (1, 1), (0, 20), **CONE), float("nan"), float("inf")
    places = [[60.0, 0, 0], [41.0, 0, 0], [39.0, 0, 0], [0, 500.0, 0], [nan, 0, 0], [0, 1e30, 0], *[[0.0, 0, 0]] * 3]
    tensors = [
        torch.tensor([*places, [1.0, 2, 0]]),
        torch.eye(4)[:1].repeat(10, 1),
        torch.ones(10, 3),
        torch.ones(10),
    ]
    tensors[1][6] = 0
    tensors[2][7], tensors[2][8] = nan, inf
    alone = [t[9:].clone().requires_grad_() for t in tensors]
    tensors = [t.requires_grad_() for t in tensors]
    found, expected = results(run, tensors, geometry), results(run, alone, geometry)
    assert torch.equal(found[0], expected[0]) and found[0].any()
    for a, b in zip(found[1:], expected[1:], strict=True):
        assert torch.equal(a[9:], b) and b.any()
        assert torch.equal(a[:9], torch.zeros_like(a[:9]))


def test_one_gaussian_before_the_source_is_seen(run):
    geometry = XrayGeometry("cone", (9, 9), (1, 1), (0,), **CONE)
    for place, seen in ((36.0, True), (36.9, True), (37.1, False)):
        one = torch.tensor([[place, 0, 0]]), torch.eye(4)[:1], torch.ones(1, 3), torch.ones(1)
        assert bool(run(one, geometry)[0, 0, 4, 4] > 2.49) == seen  # sqrt(2 pi) erf(3 / sqrt 2) = 2.4999


def test_a_gaussian_seen_in_one_of_two_calls(run, monkeypatch):
    """The views that do not see it are in another call, before or after the one that does."""
    geometry = XrayGeometry("cone", (5, 5), (1, 1), (0, 180), **CONE)
    monkeypatch.setattr(xray_cuda, "_SHADOWS", 1)
    for place in (45.0, -45.0):
        one = [torch.tensor([[place, 0.3, 0]]), torch.ones(1, 4), torch.tensor([[1.0, 1.5, 0.7]]), torch.ones(1)]
        one[1][0, 0] = 2
        errors = compare([t.requires_grad_() for t in one], geometry, run)
    assert errors.pop("value") < 1e-6 and max(errors.values()) < 1e-5, errors


@pytest.mark.parametrize("count,views,features", [(0, 4, 1), (3, 0, 1), (0, 0, 0)])
def test_nothing_to_project(run, count, views, features):
    tensors = [t.detach()[:count].requires_grad_() for t in sample(3, features=features)]
    pictures = run(tensors, GEOMETRIES["cone"], list(range(views)))
    assert pictures.shape == (views, 1 + features, 24, 28) and not pictures.any()
    gradients = torch.autograd.grad(pictures.sum(), tensors)
    assert all(g.shape == t.shape and not g.any() for g, t in zip(gradients, tensors, strict=True))


def test_no_channels(kernels):  # noqa: F811
    tensors = [t.detach() for t in sample(3)]
    inputs = (*tensors[:3], torch.zeros(3, 0))
    pictures = xray_cuda.forward(kernels, 0, inputs, *arguments(GEOMETRIES["cone"]))
    assert pictures.shape == (4, 0, 24, 28)
    gradients = xray_cuda.backward(kernels, 0, pictures, inputs, *arguments(GEOMETRIES["cone"]))
    assert all(g.shape == t.shape and not g.any() for g, t in zip(gradients, inputs, strict=True))


def test_infinite_gradients_outside_do_not_reach_a_gaussian(run):
    geometry = XrayGeometry("parallel", (16, 16), (1, 1), (0,))
    mean = torch.tensor([[0.0, 1.2, -2.3]], requires_grad=True)
    pictures = run([mean, torch.eye(4)[:1], torch.ones(1, 3), torch.ones(1)], geometry)
    upstream = torch.full_like(pictures, float("inf"))
    upstream[pictures > 0] = 0.0
    pictures.backward(upstream)
    assert torch.equal(mean.grad, torch.zeros(1, 3))


# --- the operators, the launcher, and faults that must show


@pytest.mark.parametrize("name", ["cone", "parallel", "near"])
@pytest.mark.parametrize("features", [0, 5])
def test_operators_give_what_the_cpu_operators_give(kernels, monkeypatch, name, features):  # noqa: F811
    monkeypatch.setattr(_cuda_module, "target", lambda tensor, unit: (kernels, 0))
    tensors = [t.detach() for t in sample(50, features=features, seed=8)]
    inputs = (*tensors[:3], values_of(tensors), *arguments(GEOMETRIES[name]))
    found, expected = xray_cuda._xray(*inputs), ops.xray(*inputs)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()
    clear = clear_of_rims([t.double() for t in tensors], GEOMETRIES[name]).float()
    gradient = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)) * clear
    for a, b in zip(xray_cuda._xray_backward(gradient, *inputs), ops.xray_backward(gradient, *inputs), strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


def test_strided_inputs(kernels):  # noqa: F811
    tensors = [t.detach() for t in sample(20)]
    inputs, beam = (*tensors[:3], values_of(tensors)), arguments(GEOMETRIES["cone"])
    strided = tuple(torch.stack([t, t + 1], -1)[..., 0] for t in inputs)
    pictures = xray_cuda.forward(kernels, 0, inputs, *beam)
    assert torch.equal(xray_cuda.forward(kernels, 0, strided, *beam), pictures)
    upstream = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(0))
    turned = upstream.mT.contiguous().mT
    assert same_bits(
        xray_cuda.backward(kernels, 0, turned, strided, *beam), xray_cuda.backward(kernels, 0, upstream, inputs, *beam)
    )


def test_what_the_operators_refuse(kernels, monkeypatch):  # noqa: F811
    tensors = [t.detach() for t in sample(5)]
    inputs, beam = (*tensors[:3], values_of(tensors)), arguments(GEOMETRIES["cone"])
    monkeypatch.setattr(_cuda_module, "target", lambda tensor, unit: (kernels, 0))
    elsewhere = (inputs[0], inputs[1].to("meta"), *inputs[2:])
    with pytest.raises(ValueError, match="quats must be on cpu, where means is, got meta"):
        xray_cuda._xray(*elsewhere, *beam)
    with pytest.raises(ValueError, match=r"scales must be \(5, 3\) float32, got \(4, 3\)"):
        xray_cuda._xray(*inputs[:2], inputs[2][:4], inputs[3], *beam)
    with pytest.raises(ValueError, match=r"frames must be \(V, 4, 3\) float64"):
        xray_cuda._xray(*inputs, beam[0].float(), *beam[1:])
    with pytest.raises(ValueError, match="frames must be on the CPU, got meta"):
        xray_cuda._xray(*inputs, beam[0].to("meta"), *beam[1:])
    gradient = torch.zeros(4, 1, 24, 28)
    for wrong, message in (
        (gradient[:3], r"gradient must be \(4, 1, 24, 28\) float32"),
        (gradient.double(), r"gradient must be \(4, 1, 24, 28\) float32, got .* torch.float64"),
        (gradient.to("meta"), "gradient must be on cpu, where means is, got meta"),
    ):
        with pytest.raises(ValueError, match=message):
            xray_cuda._xray_backward(wrong, *inputs, *beam)


def make_call(kernels, count=3, name="cone"):  # noqa: F811
    tensors = [t.detach() for t in sample(count)]
    call = xray_cuda._Call(kernels, 0, (*tensors[:3], values_of(tensors)), *arguments(GEOMETRIES[name]))
    call.problem.view_count = len(call._frames)
    for view, frame in zip(call.problem.views, call._frames, strict=False):
        view.frame[:] = frame
    return call


def test_nothing_outside_the_pictures_is_written(kernels):  # noqa: F811
    call, size = make_call(kernels, 10), 4 * 24 * 28
    fenced = torch.full((size + 400,), 7.0)
    call.point("pictures", fenced[200:-200].zero_())
    call.run(xray_cuda._PREPARE)
    call.render()
    assert (fenced[:200] == 7).all() and (fenced[-200:] == 7).all() and not (fenced[200:-200] == 7).any()
    assert fenced[200:-200].any()


BARRIERS = [
    number
    for number, line in enumerate((ROOT / "csrc" / "cuda" / "xray.h").read_text().splitlines(), start=1)
    if re.search(r"\bbarrier\(\);", line)
]


@pytest.mark.parametrize("line", BARRIERS)
def test_a_missing_barrier_is_caught(library, run, line):  # noqa: F811
    geometry = XrayGeometry("cone", (16, 16), (1, 1), (0,), **CONE)
    tensors = [t.detach() for t in sample(300, smallest=1.0)]
    expected = run(tensors, geometry)
    library.splat_emulation_configure(2, 1, line, 0)
    try:
        assert not torch.equal(run(tensors, geometry), expected)
    except RuntimeError as error:
        assert "could not be started" in str(error)


def test_an_overrun_of_shared_memory_is_caught(library, run):  # noqa: F811
    tensors = [t.detach() for t in sample(300, smallest=1.0)]
    library.splat_emulation_configure(2, 1, -1, 4)
    with pytest.raises(RuntimeError, match="could not be started"):
        run(tensors, XrayGeometry("cone", (16, 16), (1, 1), (0,), **CONE))
    assert b"overrun" in library.splat_emulation_fault()


@pytest.mark.parametrize(
    "name,value",
    [
        *(("stage", v) for v in (5, -1)),
        *(("view_count", v) for v in (0, 9)),
        *((name, 0) for name in ("count", "channels", "width", "height")),
        ("count", 1 << 30),
        ("width", 33),
        ("height", (1 << 15) + 1),
    ],
)
def test_what_the_launcher_refuses(kernels, name, value):  # noqa: F811
    call = make_call(kernels)
    setattr(call.problem, name, value)
    with pytest.raises(RuntimeError, match=r"'xray' rejected its arguments"):
        kernels.launch("xray", call.problem, 0)


def test_the_launcher_refuses_flat_views_and_shadows_that_are_not_there(kernels):  # noqa: F811
    call = make_call(kernels)
    call.problem.stage = xray_cuda._PAIRS
    for begin, end in ((-1, 3), (3, 3), (0, 13)):
        call.problem.begin, call.problem.end = begin, end
        with pytest.raises(RuntimeError, match=r"'xray' rejected its arguments"):
            kernels.launch("xray", call.problem, 0)
    call = make_call(kernels)
    call.problem.views[1].frame[3:6] = call.problem.views[1].frame[6:9]
    with pytest.raises(RuntimeError, match=r"'xray' rejected its arguments"):
        call.run(xray_cuda._PREPARE)


def test_another_layout_is_an_import_error(kernels, monkeypatch):  # noqa: F811
    monkeypatch.setattr(xray_cuda, "_SHADOW_BYTES", 92)
    with pytest.raises(ImportError, match="projector must fit this package"):
        make_call(kernels)


def test_kernels_start_through_the_driver(driver):  # noqa: F811
    from splat_ssim.ops import compiled

    found = _cuda_module.load(0, _cuda_kernels.XRAYS)
    tensors = [t.detach() for t in sample(300)]
    upstream = torch.ones(19, 1, *MANY.detector)
    xray_cuda.backward(found, 99, upstream, (*tensors[:3], values_of(tensors)), *arguments(MANY))
    names = _cuda_kernels.kernel_names(compiled.library())
    # Blocks have 128 threads, one for each Gaussian (and view). In the gathering kernel, each Gaussian has a warp.
    stages = [
        (f"splat_xray_{stage}", n) for views in (8, 8, 3) for stage, n in (("prepare", 3 * views), ("gather", 75))
    ]
    stages = [pair for k in (0, 2, 4) for pair in (*stages[k : k + 2], ("splat_xray_chain", 3))]
    assert len(driver.launches) == len(stages)
    for (function, blocks, *rest), (name, wanted) in zip(driver.launches, stages, strict=True):
        assert function == 1001 + names.index(name)
        assert (blocks, rest) == (wanted, [1, 1, 128, 1, 1, 0, 99])
