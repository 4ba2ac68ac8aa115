"""The X-ray projector: its definition is compared with quadrature of the field, its kernels with the definition."""

import numpy as np
import pytest
import torch

from splat_ssim.ct import XrayGeometry, circle, project
from splat_ssim.ct.reference import project_reference
from splat_ssim.ops import compiled
from splat_ssim.ops import xray as ops
from splat_ssim.volume.sampling import sample_gaussians

NAMES = ("means", "quats", "scales", "densities", "features")
CONE = {"source_object": 40.0, "source_detector": 70.0}
GEOMETRIES = {
    "cone": XrayGeometry("cone", (24, 28), (1.7, 1.3), (0, 37, 120, 275), **CONE),
    "parallel": XrayGeometry("parallel", (20, 33), (0.9, 0.7), (0, 37, 95)),
    "shifted cone": XrayGeometry("cone", (21, 40), (2, 1), (10, 200), **CONE, offset=(3, -5), center=(1, 2, -1)),
    "shifted beam": XrayGeometry("parallel", (17, 18), (1, 1), (0, 90), offset=(1, 2.5), center=(-1, 0.5, 2)),
    "narrow": XrayGeometry("cone", (9, 3), (1.5, 1.5), (45,), **CONE),
    "one pixel": XrayGeometry("cone", (1, 1), (1, 1), (0,), **CONE),
    "near": XrayGeometry("cone", (30, 30), (3, 3), (0, 60), source_object=14, source_detector=40),
}


def sample(count, *, smallest=0.5, largest=3.0, features=0, spread=7.0, seed=0):
    """Gaussians around the axis: float32 tensors that require gradients."""
    generator = torch.Generator().manual_seed(seed)
    tensors = [
        spread * (2 * torch.rand(count, 3, generator=generator) - 1),
        torch.randn(count, 4, generator=generator),
        torch.empty(count, 3).uniform_(smallest, largest, generator=generator),
        torch.randn(count, generator=generator),
    ]
    if features:
        tensors.append(torch.rand(count, features, generator=generator))
    return [t.requires_grad_() for t in tensors]


def run(tensors, geometry, **options):
    return project(*tensors[:4], geometry, features=tensors[4] if len(tensors) > 4 else None, **options)


def least_q(means, quats, scales, frame, detector, cone):
    """(N, rows, columns): smallest squared Mahalanobis distance of each Gaussian on each ray, by the cross product."""
    w, x, y, z = (quats / quats.norm(dim=1, keepdim=True)).unbind(1)
    columns = [
        [1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)],
        [2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x)],
        [2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)],
    ]
    W = torch.stack([torch.stack(row, -1) for row in columns], 1) / scales[:, :, None]
    i, j = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in detector), indexing="ij")
    across = i[..., None] * frame[2] + j[..., None] * frame[1]
    origin, direction = (
        (frame[0] + 0 * across, frame[3] + across) if cone else (frame[0] + across, frame[3] + 0 * across)
    )
    a = torch.einsum("nck,nrsk->nrsc", W, origin - means[:, None, None])
    b = torch.einsum("nck,rsk->nrsc", W, direction)
    return torch.linalg.cross(a, b).square().sum(-1) / b.square().sum(-1)


def clear_of_rims(tensors, geometry, within=1e-2):
    """(V, 1, rows, columns): 0 for rays within rounding of a rim, where the gradient has a pole; otherwise 1."""
    cone = geometry.kind == "cone"
    q = [least_q(*tensors[:3], frame, geometry.detector, cone) for frame in geometry.frames()]
    return torch.stack([((each - 9).abs() > within).all(0) for each in q])[:, None].double()


def compare(tensors, geometry, run=run):
    """Compares the kernel with the float64 definition. Returns the largest relative errors of value and gradients."""
    doubles = [t.detach().double().requires_grad_() for t in tensors]
    pictures, expected = run(tensors, geometry), run(doubles, geometry)
    assert pictures.dtype == torch.float32 and expected.dtype == torch.float64
    weight = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weight *= clear_of_rims([t.detach() for t in doubles], geometry)
    gradients = torch.autograd.grad((pictures * weight.float()).sum(), tensors)
    expected_gradients = torch.autograd.grad((expected * weight).sum(), doubles)
    errors = {"value": float(((pictures - expected).abs().max() / expected.abs().max().clamp_min(1e-12)).detach())}
    for name, a, b in zip(NAMES, gradients, expected_gradients, strict=False):
        errors[name] = float((a - b).abs().max() / b.abs().max().clamp_min(1e-12))
    return errors


@pytest.mark.parametrize("name", ["cone", "parallel", "shifted cone"])
def test_definition_is_the_integral_of_the_field(name):
    """Compares with float64 quadrature of the field at points on each ray, which shares neither formula nor code."""
    geometry = GEOMETRIES[name]
    generator = np.random.default_rng(3)
    tensors = [torch.from_numpy(generator.normal(size=s)) for s in ((6, 3), (6, 4), (6, 3), (6, 2))]
    tensors[0] *= 2
    tensors[2] = 0.4 + tensors[2].abs()
    pictures = project_reference(*tensors, geometry.frames(), geometry.detector, cone=geometry.kind == "cone")
    frame = geometry.frames()[1]
    for row, column in ((10, 14), (8, 12), (12, 17), (3, 2)):
        across = column * frame[1] + row * frame[2]
        origin, direction = (frame[0], frame[3] + across) if geometry.kind == "cone" else (frame[0] + across, frame[3])
        direction = direction / direction.norm()
        middle = -(origin @ direction)
        # The midpoint rule is used, because the field jumps by exp(-4.5) where a Gaussian is cut off.
        edges = middle + torch.linspace(-25, 25, 80_001, dtype=torch.float64)
        points = origin + (edges[1:] + edges[:-1])[:, None] / 2 * direction
        integral = sample_gaussians(*tensors, points).sum(1) * 50 / 80_000
        torch.testing.assert_close(pictures[1, :, row, column], integral, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", ["cone", "parallel"])
def test_gradcheck_of_the_definition(name):
    few = {"cone": XrayGeometry("cone", (4, 5), (3, 2), (20, 150), **CONE)}
    few["parallel"] = XrayGeometry("parallel", (4, 5), (2, 1.5), (20, 150))
    tensors = [t.detach().double().requires_grad_() for t in sample(4, spread=3.0, smallest=1.0, features=2)]
    assert torch.autograd.gradcheck(lambda *t: run(t, few[name]), tensors, atol=1e-7)


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("features", [0, 4])
def test_kernel_matches_the_definition(name, features):
    errors = compare(sample(40, features=features), GEOMETRIES[name])
    # float32 sums of some dozen terms. Near a rim, a gradient has few digits left.
    assert errors.pop("value") < 1e-6
    assert not errors or max(errors.values()) < 1e-5, errors


@pytest.mark.parametrize("smallest,largest", [(0.05, 0.2), (0.3, 0.5), (0.2, 6.0), (5.0, 9.0)])
@pytest.mark.parametrize("name", ["cone", "parallel"])
def test_sizes(smallest, largest, name):
    errors = compare(sample(60, smallest=smallest, largest=largest), GEOMETRIES[name])
    assert errors.pop("value") < 2e-6
    assert max(errors.values()) < 3e-5, errors


@pytest.mark.parametrize("name", ["cone", "parallel"])
def test_gradients_with_rims(name):
    """Rays near rims are included. The gradient has a pole there, so the tolerance is on the Euclidean norm."""
    tensors = sample(200)
    doubles = [t.detach().double().requires_grad_() for t in tensors]
    pictures, expected = run(tensors, GEOMETRIES[name]), run(doubles, GEOMETRIES[name])
    weight = torch.rand(pictures.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    gradients = torch.autograd.grad(pictures, tensors, weight.float())
    for found, exact in zip(gradients, torch.autograd.grad(expected, doubles, weight), strict=True):
        assert (found - exact).norm() < 1e-3 * exact.norm()


def test_thin_and_flat_gaussians():
    tensors = sample(50)
    with torch.no_grad():
        tensors[2].copy_(torch.tensor([0.05, 1.0, 4.0]).expand(50, 3))
    errors = compare(tensors, GEOMETRIES["cone"])
    assert errors.pop("value") < 1e-5
    assert max(errors.values()) < 3e-4, errors


def test_far_source_and_large_coordinates():
    """The source is 5000 standard deviations away, and the object 300 mm from the origin, as in real scans."""
    geometry = XrayGeometry(
        "cone", (30, 30), (0.4, 0.4), (5, 130), source_object=2000, source_detector=2600, center=(300, -200, 100)
    )
    tensors = sample(40, smallest=0.3, largest=0.6, spread=4.0)
    with torch.no_grad():
        tensors[0] += torch.tensor(geometry.center)
    errors = compare(tensors, geometry)
    assert errors.pop("value") < 2e-6
    assert max(errors.values()) < 3e-5, errors


def test_gaussians_that_count_nothing():
    """Gaussians behind or around the source, beside the detector, or not finite have no value and no gradient."""
    geometry = XrayGeometry("cone", (16, 16), (1, 1), (0,), **CONE)
    places = [[60.0, 0, 0], [41.0, 0, 0], [39.0, 0, 0], [0, 500.0, 0], [float("nan"), 0, 0]]
    means = torch.tensor(places, requires_grad=True)
    quats, scales = torch.eye(4)[:1].repeat(5, 1).requires_grad_(), torch.ones(5, 3, requires_grad=True)
    densities = torch.ones(5, requires_grad=True)
    pictures = project(means, quats, scales, densities, geometry)
    assert not pictures.any()
    for gradient in torch.autograd.grad(pictures.sum(), [means, quats, scales, densities]):
        assert not gradient.any()
    assert not project(*(t[:4].double() for t in (means, quats, scales, densities)), geometry).any()


def test_one_gaussian_before_the_source_is_seen():
    geometry = XrayGeometry("cone", (9, 9), (1, 1), (0,), **CONE)
    one = torch.tensor([[36.0, 0, 0]]), torch.eye(4)[:1], torch.ones(1, 3), torch.ones(1)
    assert project(*one, geometry)[0, 0, 4, 4] > 2.49  # sqrt(2 pi) erf(3 / sqrt 2) = 2.4999


@pytest.mark.parametrize("count", [0, 1])
def test_few_gaussians_and_views(count):
    tensors = [t[:count] for t in sample(1)]
    geometry = GEOMETRIES["cone"]
    assert project(*tensors, geometry).shape == (4, 1, 24, 28)
    assert project(*tensors, geometry, views=[]).shape == (0, 1, 24, 28)
    torch.testing.assert_close(project(*tensors, geometry, views=[2]), project(*tensors, geometry)[2:3], rtol=0, atol=0)
    assert project(*tensors, geometry, features=torch.ones(count, 0)).shape == (4, 1, 24, 28)


@pytest.mark.parametrize("name", ["cone", "parallel"])
def test_same_bits_for_any_number_of_threads(name):
    results = []
    before, allowed = torch.get_num_threads(), compiled.library().splat_ssim_oversubscribe(1)
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            tensors = sample(300, features=2)
            pictures = run(tensors, GEOMETRIES[name])
            weight = torch.linspace(-1, 1, pictures.numel()).reshape(pictures.shape)
            results.append([pictures.detach(), *torch.autograd.grad(pictures, tensors, weight)])
    finally:
        torch.set_num_threads(before)
        compiled.library().splat_ssim_oversubscribe(allowed)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("isa", compiled.available_isas())
def test_every_instruction_set(isa, monkeypatch):
    expected = project(*(t.detach().double() for t in sample(40)), GEOMETRIES["cone"]).float()
    monkeypatch.setattr(ops.compiled, "isa", lambda: isa)
    ops.compiled.kernel.cache_clear()
    try:
        errors = compare(sample(40, features=1), GEOMETRIES["cone"])
        pictures = project(*sample(40), GEOMETRIES["cone"])
    finally:
        ops.compiled.kernel.cache_clear()
    assert (pictures - expected).abs().max() < 1e-6 * expected.abs().max()
    assert errors.pop("value") < 1e-6 and max(errors.values()) < 1e-5


def test_same_numbers_without_the_library(monkeypatch):
    expected = run(sample(30, features=2), GEOMETRIES["near"])
    monkeypatch.setattr(compiled, "library", lambda: None)
    pictures = run(sample(30, features=2), GEOMETRIES["near"])
    assert pictures.dtype == torch.float32 and pictures.requires_grad
    assert (pictures - expected).abs().max() < 2e-6 * expected.abs().max()


def test_operators():
    frames = GEOMETRIES["cone"].frames()
    tensors = [t.detach().requires_grad_() for t in sample(5, features=0)]
    values = tensors[3].detach()[:, None].requires_grad_()
    arguments = (*tensors[:3], values, frames, [24, 28], True)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(ops.xray, arguments, test_utils=checks)
    with pytest.raises(NotImplementedError, match="only once"):
        first = torch.autograd.grad(ops.xray(*arguments).sum(), values, create_graph=True)[0]
        torch.autograd.grad(first.sum(), tensors[0])
    with pytest.raises(ValueError, match=r"scales must be \(5, 3\) float32"):
        ops.xray(*tensors[:2], tensors[2][:4], values, frames, [24, 28], True)
    with pytest.raises(ValueError, match=r"frames must be \(V, 4, 3\) float64"):
        ops.xray(*tensors[:3], values, frames.float(), [24, 28], True)


def test_strided_inputs():
    tensors = sample(20)
    strided = [torch.stack([t.detach(), t.detach()], -1)[..., 0] for t in tensors]
    torch.testing.assert_close(project(*strided, GEOMETRIES["cone"]), project(*tensors, GEOMETRIES["cone"]).detach())


@pytest.mark.parametrize(
    "options,message",
    [
        ({"kind": "fan"}, "geometry must be one of cone, parallel"),
        ({"detector": (0, 4)}, "from 1 to 32768 rows"),
        ({"spacing": (1, -1)}, "spacing must be above 0"),
        ({"angles": ()}, "angles must be one finite number or more"),
        ({"angles": (float("nan"),)}, "angles must be one finite"),
        ({"source_object": 80}, "0 < source_object < source_detector"),
        ({"kind": "parallel"}, "a parallel beam has no source"),
        ({"center": (0, 0)}, "center must be 3 finite numbers"),
        ({"center": (0, True, 0)}, "center must be 3 finite numbers"),
        ({"spacing": "1.5"}, "detector spacing must be 2 finite numbers, got '1.5'"),
        ({"spacing": True}, "detector spacing must be 2 finite numbers, got True"),
        ({"detector": ("4", 4)}, "detector rows and columns must be 2 finite numbers"),
        ({"angles": "0123"}, "angles must be one finite number or more, got 0123"),
        ({"angles": {"0": 1, "90": 2}}, "angles must be one finite number or more"),
        ({"angles": [0, True]}, "angles must be one finite number or more"),
        ({"source_object": True}, "got source_object True"),
    ],
)
def test_geometries_that_are_refused(options, message):
    whole = {"kind": "cone", "detector": (4, 4), "spacing": (1, 1), "angles": (0,), **CONE}
    with pytest.raises(ValueError, match=message):
        XrayGeometry(**{**whole, **options})


@pytest.mark.parametrize("views", [[3], [-4], [1.5], [True], ["0"], torch.tensor([0.0]), torch.tensor([True]), [None]])
def test_views_that_there_are_not(views):
    with pytest.raises(ValueError, match=r"^views must be whole numbers from 0 to 2, got "):
        XrayGeometry("cone", (4, 4), (1, 1), (0, 5, 9), **CONE).frames(views)


def test_views_by_their_index():
    geometry = XrayGeometry("cone", (4, 4), (1, 1), (0, 5, 9), **CONE)
    for views in ([2, 0], np.array([2, 0]), torch.tensor([-1, 0])):
        assert torch.equal(geometry.frames(views), geometry.frames()[[2, 0]])
    assert geometry.frames([]).shape == (0, 4, 3) and geometry.chosen([1]).angles == geometry.angles[1:2]


def test_a_geometry_comes_back_from_its_header():
    for geometry in GEOMETRIES.values():
        assert XrayGeometry.of_header(geometry.header()) == geometry


def test_angles_of_a_circle():
    assert circle(4, "cone") == (0, 90, 180, 270) and circle(3, "parallel") == (0, 60, 120)
