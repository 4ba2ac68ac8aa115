"""gsplat's kernels on a GPU compared with the definition in float64: both renderers of the function agree."""

import pytest
import torch

from splat_ssim.render import rasterization
from tests.devices import needs_gpu
from tests.test_rasterize import BACKGROUND, NAMES, make_scene, relative

pytestmark = [pytest.mark.cuda, needs_gpu]

#: gsplat compiles with fast math, and its rounding decides whether alpha near 1/255 skips a pixel.
IMAGE, GRADIENT = 2e-5, 2e-3


@pytest.fixture(autouse=True)
def gsplat():
    pytest.importorskip("gsplat.csrc", reason="gsplat is not compiled")


def render(scene, device, dtype, **options):
    """Renders. Returns images, alphas and gradients on the CPU, for fixed random upstream gradients."""
    inputs = [tensor.to(device, dtype, copy=True).requires_grad_(i < 5) for i, tensor in enumerate(scene)]
    options = {k: v.to(device, dtype) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    images, alphas, info = rasterization(*inputs, 120, 90, **options)
    generator = torch.Generator().manual_seed(7)
    upstream = [torch.randn(t.shape, generator=generator).to(device, dtype) for t in (images, alphas)]
    ((images * upstream[0]).sum() + (alphas * upstream[1]).sum()).backward()
    values = {"images": images, "alphas": alphas, **dict(zip(NAMES, (t.grad for t in inputs[:5]), strict=False))}
    accumulators = info.get("accumulators")
    if accumulators is not None:
        values |= accumulators._asdict()
    return {name: value.detach().cpu() for name, value in values.items()}


OPTIONS = {
    "plain": {},
    "packed": {"packed": True},
    "antialiased": {"rasterize_mode": "antialiased"},
    "backgrounds": {"backgrounds": BACKGROUND},
    "depth": {"render_mode": "RGB+ED"},
    "weights": {"pixel_weights": torch.rand(2, 90, 120, generator=torch.Generator().manual_seed(3))},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("seed", range(3))
def test_gsplat_is_the_definition(name, seed):
    scene = make_scene(400, 2, seed=seed, coefficients=16, width=120, height=90)
    options = {"sh_degree": 3, **OPTIONS[name]}
    found, wanted = render(scene, "cuda", torch.float32, **options), render(scene, "cpu", torch.float64, **options)
    assert found.keys() == wanted.keys()
    off = {key: relative(found[key], wanted[key]) for key in wanted}
    print(name, seed, {key: f"{value:.1e}" for key, value in off.items()})
    assert all(value < (IMAGE if key in ("images", "alphas") else GRADIENT) for key, value in off.items()), off


def test_our_kernels_are_as_near():
    """The error of the CPU's own kernels on the same scene is no larger than gsplat's."""
    scene = make_scene(400, 2, seed=5, coefficients=16, width=120, height=90)
    wanted = render(scene, "cpu", torch.float64, sh_degree=3)
    ours, theirs = (render(scene, device, torch.float32, sh_degree=3) for device in ("cpu", "cuda"))
    for name, value in wanted.items():
        assert relative(ours[name], value) <= relative(theirs[name], value) + 1e-6, name
