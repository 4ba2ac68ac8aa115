"""The X-ray projector: its definition against quadrature of the field, its kernels against the definition."""

import math

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
    """Gaussians around the axis; float32 tensors that require gradients."""
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
    """The least squared Mahalanobis distance of each Gaussian along each ray, by the cross product: (N, rows, columns)."""
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
    """(V, 1, rows, columns): 1 where no ray passes within rounding of a rim, where the slope has a pole; else 0."""
    cone = geometry.kind == "cone"
    q = [least_q(*tensors[:3], frame, geometry.detector, cone) for frame in geometry.frames()]
    return torch.stack([((each - 9).abs() > within).all(0) for each in q])[:, None].double()


def compare(tensors, geometry, run=run):
    """Value and gradients of the kernel and of the float64 definition; returns the largest relative errors."""
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
    """Quadrature of the field at points on each ray, in float64: it shares neither formula nor code."""
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
        # The middle rule: the field jumps by exp(-4.5) where a Gaussian is cut off.
        edges = middle + torch.linspace(-25, 25, 400_001, dtype=torch.float64)
        points = origin + (edges[1:] + edges[:-1])[:, None] / 2 * direction
        integral = sample_gaussians(*tensors, points).sum(1) * 50 / 400_000
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
    # float32 sums of some dozen terms; near a rim a slope has few digits left.
    assert errors.pop("value") < 1e-6
    assert not errors or max(errors.values()) < 1e-5, errors


@pytest.mark.parametrize("smallest,largest", [(0.05, 0.2), (0.3, 0.5), (0.2, 6.0), (5.0, 9.0)])
@pytest.mark.parametrize("name", ["cone", "parallel"])
def test_sizes(smallest, largest, name):
    errors = compare(sample(60, smallest=smallest, largest=largest), GEOMETRIES[name])
    assert errors.pop("value") < 2e-6
    assert max(errors.values()) < 3e-5, errors
