"""The compiled renderer compared with its definition in float64, and the definition with gsplat's torch functions."""

import os
import subprocess
import sys

import pytest
import torch

from splat_ssim.ops import compiled
from splat_ssim.render import rasterization

# float32 against float64: a few roundings over a pixel's contributions. The target for gradients is 5e-6.
IMAGE_TOLERANCE = 1e-6
GRADIENT_TOLERANCE = 5e-6

NAMES = ("means", "quats", "scales", "opacities", "colors", "viewmats")


def make_scene(n=60, cameras=1, *, seed=0, spread=1.0, size=(0.02, 0.12), coefficients=16, width=40, height=36):
    """Gaussians around the origin, seen from two units away. They are float32, so both precisions get equal numbers."""
    g = torch.Generator().manual_seed(seed)
    means = (torch.rand(n, 3, generator=g) - 0.5) * spread
    quats = torch.randn(n, 4, generator=g)
    scales = torch.rand(n, 3, generator=g) * (size[1] - size[0]) + size[0]
    opacities = torch.rand(n, generator=g)
    colors = torch.randn(n, coefficients, 3, generator=g) * 0.3
    viewmats = torch.eye(4).repeat(cameras, 1, 1)
    for c in range(cameras):
        angle = torch.tensor(0.4 * c)
        viewmats[c, 0, 0] = viewmats[c, 2, 2] = angle.cos()
        viewmats[c, 0, 2], viewmats[c, 2, 0] = angle.sin(), -angle.sin()
        viewmats[c, 2, 3] = 2.0
    focal = float(max(width, height))
    Ks = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2 - 1], [0, 0, 1]]).repeat(cameras, 1, 1)
    return [means, quats, scales, opacities, colors, viewmats, Ks]


def render(scene, width, height, dtype, **options):
    """Renders. Returns images, info and gradients for fixed random upstream gradients, detached, by name."""
    inputs = [tensor.to(dtype).clone().requires_grad_(i < 6) for i, tensor in enumerate(scene)]
    for name in ("backgrounds", "pixel_weights"):
        if name in options:
            options[name] = options[name].to(dtype).clone().requires_grad_(name == "backgrounds")
    images, alphas, info = rasterization(*inputs, width, height, **options)
    info["means2d"].retain_grad()
    g = torch.Generator().manual_seed(7)
    upstream = [torch.randn(t.shape, generator=g).to(dtype) for t in (images, alphas)]
    ((images * upstream[0]).sum() + (alphas * upstream[1]).sum()).backward()
    values = {"images": images, "alphas": alphas}
    values |= {name: info[name] for name in ("radii", "depths", "conics", "opacities", "means2d")}
    if "accumulators" in info:
        values |= info["accumulators"]._asdict()
    gradients = dict(zip(NAMES, (t.grad for t in inputs), strict=False)) | {"means2d": info["means2d"].grad}
    if options.get("absgrad"):
        gradients["absgrad"] = info["means2d"].absgrad
    if "backgrounds" in options:
        gradients["backgrounds"] = options["backgrounds"].grad
    return (
        {k: v.detach() for k, v in values.items()},
        {k: v.detach() for k, v in gradients.items() if v is not None},
    )


def relative(found, wanted):
    assert found.shape == wanted.shape
    return float((found.double() - wanted.double()).norm() / wanted.double().norm().clamp(min=1e-12))


def assert_agrees(scene, width, height, *, gradient_tolerance=GRADIENT_TOLERANCE, **options):
    values, gradients = render(scene, width, height, torch.float32, **options)
    wanted_values, wanted_gradients = render(scene, width, height, torch.float64, **options)
    assert torch.equal(values["radii"], wanted_values["radii"])
    errors = {name: relative(values[name], wanted_values[name]) for name in wanted_values}
    assert max(errors.values()) < IMAGE_TOLERANCE, errors
    assert gradients.keys() == wanted_gradients.keys()
    errors = {name: relative(gradients[name], wanted_gradients[name]) for name in wanted_gradients}
    # A camera's gradient is a sum over all Gaussians of terms that nearly cancel.
    errors["viewmats"] /= 4
    assert max(errors.values()) < gradient_tolerance, errors
    return values, gradients


BACKGROUND = torch.tensor([[0.3, 0.6, 0.9], [1.0, 0.0, 0.5]])

CASES = {
    "harmonics": dict(sh_degree=3),
    "low degree, high storage": dict(sh_degree=1),
    "constant": dict(sh_degree=0, tile_size=32),
    "absolute gradients": dict(sh_degree=2, backgrounds=BACKGROUND, absgrad=True),
    "antialiased with depth": dict(sh_degree=3, rasterize_mode="antialiased", render_mode="RGB+D", absgrad=True),
    "depth alone": dict(sh_degree=1, render_mode="D", backgrounds=BACKGROUND),
    "packed": dict(sh_degree=3, packed=True, absgrad=True, backgrounds=BACKGROUND),
    "packed in large_tiles": dict(sh_degree=3, packed=True, tile_size=32, render_mode="RGB+D"),
    "low clamp": dict(sh_degree=3, max_alpha=0.5),
    "clipped": dict(sh_degree=1, radius_clip=4.0, near_plane=1.8, far_plane=2.3),
    "sharp": dict(sh_degree=1, eps2d=0.05),
    "sums": dict(sh_degree=1, pixel_weights=torch.rand(2, 36, 40, generator=torch.Generator().manual_seed(3))),
}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
def test_two_cameras_agree_with_the_definition(options):
    assert_agrees(make_scene(cameras=2), 40, 36, **options)


@pytest.mark.parametrize("mode", ["ED", "RGB+ED"])
def test_expected_depth(mode):
    # The gradient is a sum of (depth - expected depth) / alpha. If a pixel has only one Gaussian, it cancels entirely.
    assert_agrees(make_scene(), 40, 36, sh_degree=1, render_mode=mode, gradient_tolerance=2e-4)


@pytest.mark.parametrize("width, height", [(1, 1), (3, 50), (17, 16), (33, 31), (64, 64), (65, 5)])
@pytest.mark.parametrize("tile_size", [None, 16, 32])
def test_sizes(width, height, tile_size):
    assert_agrees(make_scene(80, width=width, height=height), width, height, sh_degree=1, tile_size=tile_size)


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 9])
def test_any_number_of_channels(channels):
    scene = make_scene(cameras=2)
    scene[4] = torch.rand(60, channels, generator=torch.Generator().manual_seed(1))
    assert_agrees(scene, 40, 36, backgrounds=torch.rand(2, channels))
    scene[4] = torch.rand(2, 60, channels, generator=torch.Generator().manual_seed(2))
    assert_agrees(scene, 40, 36, render_mode="RGB+D")


def test_harmonics_of_each_camera():
    scene = make_scene(cameras=2)
    scene[4] = torch.randn(2, 60, 9, 3, generator=torch.Generator().manual_seed(1)) * 0.3
    assert_agrees(scene, 40, 36, sh_degree=2)


def test_a_pair_of_harmonics_is_the_same_as_one_tensor():
    scene = make_scene()
    whole = scene[4].clone().requires_grad_()
    parts = [part.contiguous().requires_grad_() for part in scene[4].split([1, 15], 1)]
    results = []
    for colors in (whole, tuple(parts)):
        image, _, _ = rasterization(*scene[:4], colors, *scene[5:], 40, 36, sh_degree=2)
        image.square().sum().backward()
        results.append(image)
    assert torch.equal(*results)
    assert torch.equal(whole.grad, torch.cat([part.grad for part in parts], 1))
    assert whole.grad[:, 9:].abs().max() == 0


def test_raw_parameters_are_activated_inside():
    scene = make_scene()
    raw = [t.clone() for t in scene]
    raw[2], raw[3] = raw[2].log(), raw[3].logit()
    assert_agrees(raw, 40, 36, sh_degree=1, raw=True)
    for a, b in zip(
        rasterization(*raw, 40, 36, sh_degree=1, raw=True)[:2],
        rasterization(*scene, 40, 36, sh_degree=1)[:2],
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=2e-6, rtol=0)


def test_difficult_gaussians():
    """Gaussians behind the camera, at its centre, off the image, larger than it, tiny, flat, unrotated, transparent."""
    scene = make_scene(90, spread=3.0)
    means, quats, scales, opacities = scene[:4]
    means[0], means[1], means[2] = torch.tensor([0, 0, -5.0]), torch.tensor([0, 0, -2.0]), torch.tensor([50.0, 0, 0])
    means[3:5] = 0.1
    scales[3], scales[4], scales[5:15, 2] = 30.0, 1e-8, 1e-7
    quats[15] = 0
    opacities[20:25] = 0.0
    opacities[25:30] = 0.002
    opacities[30:40] = 1.0
    values, gradients = assert_agrees(scene, 50, 41, sh_degree=3)
    assert all(torch.isfinite(v).all() for v in (*values.values(), *gradients.values()))
    assert (values["radii"][0, [0, 1, 2, 20, 25]] == 0).all()


def test_opacities_above_one_reach_further():
    scene = make_scene(20)
    scene[3] = scene[3] * 6
    assert_agrees(scene, 40, 36, sh_degree=1)


def test_broken_gaussians_do_not_spread():
    scene = make_scene(30)
    wanted = rasterization(*[t[1:] if i < 5 else t for i, t in enumerate(scene)], 40, 36, sh_degree=1)[0]
    for index, value in ((0, float("nan")), (1, float("nan")), (2, float("inf")), (3, float("nan"))):
        broken = [t.clone() for t in scene]
        broken[index][0] = value
        assert torch.equal(rasterization(*broken, 40, 36, sh_degree=1)[0], wanted)


def test_no_gaussians():
    scene = [t[:0] if i < 5 else t for i, t in enumerate(make_scene())]
    for packed in (False, True):
        values, gradients = render(scene, 20, 10, torch.float32, sh_degree=1, packed=packed, backgrounds=BACKGROUND[:1])
        assert torch.equal(values["images"], BACKGROUND[0].expand(1, 10, 20, 3))
        assert gradients["means"].shape == (0, 3)


def test_same_depth_keeps_the_order_of_gaussians():
    scene = make_scene(3, size=(0.1, 0.3))
    scene[0][:] = 0
    scene[3][:] = 0.7
    assert_agrees(scene, 40, 36, sh_degree=0)


def test_threads_and_tiles_change_nothing(threads):
    scene = make_scene(2000, 2, size=(0.01, 0.05), width=100, height=90)
    results = []
    for number in (1, 2, 3, 9):
        threads(number)
        results.append(render(scene, 100, 90, torch.float32, sh_degree=3, absgrad=True))
    for other in results[1:]:
        for found, wanted in zip(other, results[0], strict=True):
            assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    large = render(scene, 100, 90, torch.float32, sh_degree=3, tile_size=32)[0]
    torch.testing.assert_close(large["images"], results[0][0]["images"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("isa", [name for name in compiled.available_isas() if name != compiled.isa()])
def test_other_instruction_sets(isa):
    """A process chooses its instruction set once, so the same tests run in another process."""
    chosen = "absolute or large_tiles or antialiased or sums or 33-31 or difficult or threads"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__, "-k", chosen]
    done = subprocess.run(command, env=os.environ | {compiled.ISA_VARIABLE: isa}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_definition_gradcheck():
    scene = [t.double() for t in make_scene(4, coefficients=4, width=6, height=5)]
    options = dict(sh_degree=1, rasterize_mode="antialiased", render_mode="RGB+ED", backgrounds=BACKGROUND[:1].double())

    def images(*inputs):
        return rasterization(*inputs, scene[6], 6, 5, **options)[:2]

    assert torch.autograd.gradcheck(images, [t.requires_grad_() for t in scene[:6]])


@pytest.fixture
def filled_memory():
    """Makes torch.empty return the same contents each time, so that the unused ends of buffers compare as equal."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_operators(filled_memory):
    scene = make_scene(20, 2)
    for tensor in scene[:6]:
        tensor.requires_grad_()
    project = (*scene[:4], scene[4], None, *scene[5:], 40, 36, 0.01, 1e10, 0.0, 0.3, 3, True, False)
    torch.library.opcheck(torch.ops.splat_ssim.raster_project, project)
    *fields, radii = (t.detach() for t in torch.ops.splat_ssim.raster_project(*project))
    means2d, depths, conics, opacities, colors = (t.requires_grad_() for t in fields)
    composite = (means2d, conics, opacities, colors, radii, depths.detach(), BACKGROUND, 40, 36, 16, 0.999, False)
    torch.library.opcheck(torch.ops.splat_ssim.raster_composite, composite)
    _, _, records, lists = torch.ops.splat_ssim.raster_composite(*composite)
    accumulate = (opacities.detach(), records, lists, torch.rand(2, 36, 40), 16, 0.999)
    torch.library.opcheck(torch.ops.splat_ssim.raster_accumulate, accumulate)
