"""Inputs that once gave a wrong number, a crash or an internal error. The oracle gives the right results.

Each was found at commit 7589e32, by random calls or in public reports. The numbers are those of the list of faults.
"""

import functools
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.autograd.forward_ad as fwad
from torch.fx.experimental.proxy_tensor import make_fx

import splat_ssim
from splat_ssim import reference, registry
from splat_ssim.loss import ms_ssim_l1_loss, photometric_loss
from splat_ssim.ops import compiled
from tests import bounds, oracle

pytestmark = pytest.mark.usefixtures("threads")

needs_library = pytest.mark.skipif(compiled.library() is None, reason="built without a compiler")
needs_isa = pytest.mark.parametrize("isa", compiled.available_isas() or [None])
ROOT = Path(__file__).resolve().parent.parent

#: Promised errors of float32: of S, and of a gradient relative to its largest entry.
VALUE, GRADIENT = bounds.PROMISED[torch.float32]


def pair(*shape, seed=0, offset=0.0):
    generator = torch.Generator().manual_seed(seed)
    img1 = torch.rand(shape, generator=generator)
    img2 = (img1 + 0.1 * torch.randn(shape, generator=generator)).clamp(0, 1)
    return img1 + offset, img2 + offset


def largest_error(found, expected):
    """The largest error of a map of S."""
    return (found.detach() - expected).abs().max().item()


def of_rank(shape):
    return splat_ssim.ssim if len(shape) == 4 else splat_ssim.ssim3d


def use_isa(monkeypatch, isa):
    monkeypatch.setattr(compiled, "kernel", functools.partial(compiled.kernel, isa_name=isa))


def assert_near(found, expected, tolerance):
    """The result is within `tolerance` of the largest expected entry, and finite at the same places."""
    found, expected = found.detach().double(), expected.detach().double()
    assert found.shape == expected.shape
    assert torch.equal(found.isfinite(), expected.isfinite())
    scale = expected.nan_to_num(0, 0, 0).abs().max().item()
    error = (found - expected).nan_to_num(0, 0, 0).abs().max().item()
    assert error <= tolerance * scale, (error, scale)


# --------------------------------------------------------------------------------------------------------------------
# 1. A read beyond a map gradient of width 1
# --------------------------------------------------------------------------------------------------------------------


@needs_library
@needs_isa
@pytest.mark.parametrize("shape", [(1, 3, 64, 11), (2, 3, 11, 11), (1, 1, 12, 13, 11), (1, 2, 11, 11, 11)], ids=str)
def test_1_width_of_the_window(monkeypatch, shape, isa):
    """ "valid" gives a map of width 1, whose last stride is arbitrary. Its gradient was once read out of bounds."""
    use_isa(monkeypatch, isa)
    img1, img2 = pair(*shape)
    function = of_rank(shape)
    expected = oracle.differentiate(lambda a, b: oracle.ssim(a, b, padding="valid", reduction="none"), img1, img2)
    sides = expected[0].shape

    def gradients(upstream):
        leaves = [image.clone().requires_grad_() for image in (img1, img2)]
        value = function(*leaves, padding="valid", reduction="none")
        return torch.autograd.grad(value, leaves, upstream)

    leaf = img1.clone().requires_grad_()
    function(leaf, img2, padding="valid", reduction="sum").backward()
    assert_near(leaf.grad, expected[1], GRADIENT)
    # Ones of a buffer whose other elements are 7: as one expanded element, and with strides of every kind.
    buffer = torch.full((4 * expected[0].numel() + 1,), 7.0)
    buffer[0] = 1.0
    upstreams = [buffer[0].expand(sides)]
    buffer = torch.full((4 * expected[0].numel() + 1,), 7.0)
    spaced = buffer[1:].view(*sides, 4)[..., 0]
    upstreams.append(spaced.copy_(torch.ones(sides)))
    upstreams.append(torch.ones(sides).as_strided(sides, (*torch.ones(sides).stride()[:-1], 2**33)))
    for upstream in upstreams:
        for found, truth in zip(gradients(upstream), expected[1:], strict=True):
            assert_near(found, truth, GRADIENT)


@needs_library
@pytest.mark.parametrize("single", [0, 2, 5, 2**33])
def test_1_any_stride_of_an_axis_of_length_1(single):
    """No element of images, masks or map gradients depends on the stride of an axis of length 1."""
    for shape in ((1, 1, 9, 1), (1, 3, 1, 7), (1, 1, 1, 6, 1)):
        img1, img2 = pair(*shape)
        mask = pair(shape[0], 1, *shape[2:], seed=5)[0]
        buffer = [torch.full((64,), 7.0) for _ in range(3)]

        def strided(values, storage):
            view = storage[: values.numel()].view(values.shape)
            view.copy_(values)
            strides = [single if side == 1 else s for side, s in zip(values.shape, view.stride(), strict=True)]
            return storage.as_strided(values.shape, strides)

        x, y, m = (strided(values, storage) for values, storage in zip((img1, img2, mask), buffer, strict=True))
        for options in ({}, {"reduction": "none"}, {"mask_mode": "weight"}, {"mask_mode": "zero"}):
            keywords = {"mask": m} if "mask_mode" in options else {}
            truth = {"mask": mask} if "mask_mode" in options else {}
            expected = oracle.differentiate(
                lambda a, b, o=options, t=truth: oracle.ssim(a, b, window_size=5, **o, **t), img1, img2
            )
            leaves = [image.detach().requires_grad_() for image in (x, y)]
            value = of_rank(shape)(*leaves, window_size=5, **options, **keywords)
            assert_near(value, expected[0], VALUE)
            upstream = strided(torch.ones(value.shape), torch.full((64,), 7.0)) if value.ndim else None
            for found, gradient in zip(torch.autograd.grad(value, leaves, upstream), expected[1:], strict=True):
                assert_near(found, gradient, 1e-5)


# --------------------------------------------------------------------------------------------------------------------
# 2. torch.set_default_device
# --------------------------------------------------------------------------------------------------------------------

_DEFAULT_DEVICE = """
import torch, splat_ssim
from splat_ssim import registry
from splat_ssim.loss import ms_ssim_l1_loss, photometric_loss
from tests import oracle

torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
x, y = (torch.rand(2, 3, 24, 24, generator=generator) for _ in range(2))
v, w = (torch.rand(1, 2, 8, 9, 7, generator=generator) for _ in range(2))
mask = torch.rand(2, 1, 24, 24, generator=generator)
small = {"window_size": 3, "weights": (0.4, 0.6)}
calls = [
    (splat_ssim.ssim, oracle.ssim, (x, y), {"reduction": reduction, **masked})
    for reduction in ("mean", "sum", "none", "image")
    for masked in ({}, *({"mask": mask, "mask_mode": mode} for mode in ("weight", "zero", "normalize")))
]
calls += [(splat_ssim.ssim3d, oracle.ssim, (v, w), {"reduction": reduction}) for reduction in ("mean", "none", "image")]
calls += [(splat_ssim.ms_ssim, oracle.ms_ssim, (x, y), {**small, "reduction": r}) for r in ("mean", "none", "image")]
calls += [(photometric_loss, oracle.photometric_loss, (x, y), {"reduction": r, **m})
          for r in ("mean", "image") for m in ({}, {"mask": mask})]
calls += [(ms_ssim_l1_loss, oracle.ms_ssim_l1_loss, (x, y), {**small, "mask": mask})]
calls += [(registry.LOSSES[name], None, (x, y), {"mask": mask}) for name in ("l1", "l2", "ssim", "fused_ssim")]
for dtype in (torch.float32, torch.float64, torch.float16):
    for function, definition, images, options in calls:
        images = [image.to(dtype).requires_grad_() for image in images]
        with torch.device("meta"):
            value = function(*images, **options)
            value = value[0] if isinstance(value, tuple) else value
            grads = torch.autograd.grad(value, images, torch.ones_like(value))
        assert value.device.type == "cpu" and all(grad.device.type == "cpu" for grad in grads), (function, options)
        if definition is not None:
            expected = definition(*images, **options)
            expected = expected[0] if isinstance(expected, tuple) else expected
            error = ((value - expected).abs() / expected.abs().clamp(min=1)).max()
            assert error <= 1e-5, (function, options, error)
print("all on the CPU")
"""


def test_2_default_device():
    """Results stay on the images' device. It once ended in a segmentation fault, so it runs in its own process."""
    done = subprocess.run(
        [sys.executable, "-c", _DEFAULT_DEVICE],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    assert done.stdout == "all on the CPU\n"


# --------------------------------------------------------------------------------------------------------------------
# 3. Small windows in the last rows, far from 0
# --------------------------------------------------------------------------------------------------------------------


def plain_error(img1, img2, **options):
    """The largest error of S by the plain float32 definition about the images' mean."""
    with bounds.recording() as evaluations:
        oracle.ssim_map(img1.double(), img2.double(), **options)
    return bounds.plain_error(evaluations[0], "definition")


@needs_library
@needs_isa
@pytest.mark.parametrize("offset", [0.0, 100.0, 1000.0])
@pytest.mark.parametrize(("window_size", "sigma"), [(3, 1.5), (5, 1.5), (7, 1.5), (13, 0.36), (11, 0.35), (5, 0.7)])
@pytest.mark.parametrize("padding", ["same", "valid", "reflect"])
def test_3_every_height(monkeypatch, window_size, sigma, offset, padding, isa):
    use_isa(monkeypatch, isa)
    options = {"window_size": window_size, "sigma": sigma, "padding": padding}
    for height in range(8 if window_size < 8 else window_size, 25):
        img1, img2 = (torch.rand(1, 1, height, 20, generator=torch.Generator().manual_seed(s)) + offset for s in (1, 2))
        expected = oracle.ssim_map(img1, img2, **options)
        error = largest_error(splat_ssim.ssim(img1, img2, reduction="none", **options), expected)
        limit = VALUE if sigma >= 0.7 else max(VALUE, 2 * plain_error(img1, img2, **options))
        assert error <= limit, (height, error, limit)


@needs_library
@needs_isa
@pytest.mark.parametrize("window_size", [3, 5])
def test_3_volumes(monkeypatch, window_size, isa):
    use_isa(monkeypatch, isa)
    for height in range(5, 14):
        img1, img2 = (torch.rand(1, 1, 5, height, 9, generator=torch.Generator().manual_seed(s)) + 1000 for s in (1, 2))
        expected = oracle.ssim_map(img1, img2, window_size=window_size)
        found = splat_ssim.ssim3d(img1, img2, window_size=window_size, reduction="none")
        error = largest_error(found, expected)
        assert error <= VALUE, (height, error)


@needs_library
@needs_isa
@pytest.mark.parametrize("window_size", [3, 5, 7, 11])
@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("white", [1.0, 255.0])
def test_3_flat_beside_bright(monkeypatch, window_size, spatial_dims, white, isa):
    """A bright line among black rows. Windows without the line must not take their moments about its value.

    Values of 255 in a range of 1 come from a forgotten `data_range`. S was 17 there.
    """
    use_isa(monkeypatch, isa)
    shape = (1, 1, 24, 20) if spatial_dims == 2 else (1, 1, 6, 24, 7)
    for row in range(8):
        img1, img2 = torch.zeros(shape), 1e-3 * pair(*shape)[1]
        img1[..., row, :] = white
        expected = oracle.ssim_map(img1, img2, window_size=window_size)
        found = of_rank(shape)(img1, img2, window_size=window_size, reduction="none")
        error = largest_error(found, expected)
        assert error <= VALUE, (row, error)


@needs_library
def test_3_a_temperature_map_in_kelvin():
    latitude = torch.linspace(-1.5, 1.5, 180, dtype=torch.float64).cos()[:, None]
    noise = [torch.randn(180, 360, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in (0, 1)]
    img1, img2 = ((260 + 40 * latitude + n)[None, None].float() for n in noise)
    for window_size in (3, 7):
        options = {"window_size": window_size, "data_range": 30.0}
        expected = oracle.differentiate(lambda a, b, o=options: oracle.ssim(a, b, reduction="none", **o), img1, img2)
        leaf = img1.clone().requires_grad_()
        value = splat_ssim.ssim(leaf, img2, reduction="none", **options)
        error = largest_error(value, expected[0])
        assert error <= VALUE, (window_size, error)
        assert_near(torch.autograd.grad(value.sum(), leaf)[0], expected[1], GRADIENT)


# --------------------------------------------------------------------------------------------------------------------
# 8, 9, 12. Forward mode, tracers, batched gradients
# --------------------------------------------------------------------------------------------------------------------

SMALL = {"window_size": 3, "weights": (0.4, 0.6)}
MASK = torch.from_numpy(np.random.default_rng(3).random((2, 1, 11, 12)) > 0.4)
#: (function, the oracle's function, options): every public path, with and without a mask, maps, means, pyramids.
FUNCTIONS = {
    "mean": (splat_ssim.ssim, oracle.ssim, {}),
    "map": (splat_ssim.ssim, oracle.ssim, {"reduction": "none"}),
    "image": (splat_ssim.ssim, oracle.ssim, {"reduction": "image", "padding": "reflect"}),
    "mask": (splat_ssim.ssim, oracle.ssim, {"mask": MASK}),
    "zero": (splat_ssim.ssim, oracle.ssim, {"mask": MASK, "mask_mode": "zero"}),
    "normalize": (splat_ssim.ssim, oracle.ssim, {"mask": MASK, "mask_mode": "normalize"}),
    "ms_ssim": (splat_ssim.ms_ssim, oracle.ms_ssim, SMALL),
    "photometric": (photometric_loss, lambda *a, **k: oracle.photometric_loss(*a, **k)[0], {}),
    "ms_ssim_l1": (ms_ssim_l1_loss, lambda *a, **k: oracle.ms_ssim_l1_loss(*a, **k)[0], SMALL),
}
every_function = pytest.mark.parametrize("name", FUNCTIONS)
#: Where torch.func runs the plain float32 definition: E[s²] - E[s]² about the image's mean.
DEFINITION = 2e-5


def bound(name):
    """The function and the oracle's, as functions of two images alone."""
    function, definition, options = FUNCTIONS[name]
    return lambda a, b: function(a, b, **options), lambda a, b: definition(a, b, **options)


@every_function
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_8_forward_mode(name, dtype):
    """The tangent is the definition's and has the value's dtype. It was once None, which stands for 0."""
    function, definition = bound(name)
    images = tuple(image.to(dtype) for image in pair(2, 3, 11, 12))
    tangents = tuple(torch.randn(2, 3, 11, 12, generator=torch.Generator().manual_seed(s)).to(dtype) for s in (1, 2))
    expected = oracle.tangent(definition, *images, *tangents)
    tolerance = DEFINITION if dtype == torch.float32 else 1e-9
    with fwad.dual_level():
        value, tangent = fwad.unpack_dual(function(*map(fwad.make_dual, images, tangents)))
        assert tangent is not None
        assert tangent.dtype == value.dtype == dtype
        assert_near(tangent, expected, tolerance)
        one = fwad.unpack_dual(function(fwad.make_dual(images[0], tangents[0]), images[1])).tangent
    assert_near(one, oracle.tangent(definition, *images, tangents[0], torch.zeros_like(tangents[1])), tolerance)
    value, tangent = torch.func.jvp(function, images, tangents)
    assert tangent.dtype == value.dtype == dtype
    assert_near(tangent, expected, tolerance)


@every_function
def test_9_a_trace_computes_what_it_is_given(name):
    function, definition = bound(name)
    first, second = pair(2, 3, 11, 12), pair(2, 3, 11, 12, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(function, first, check_trace=False)
    assert_near(traced(*second), definition(*second), DEFINITION)


def test_9_a_traced_module():
    first, second = pair(2, 3, 11, 12), pair(2, 3, 11, 12, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(splat_ssim.SSIM(), first, check_trace=False)
    assert_near(traced(*second), oracle.ssim(*second), DEFINITION)


@every_function
def test_12_a_vectorized_jacobian(name):
    function, definition = bound(name)
    img1, img2 = pair(2, 3, 11, 12)

    def rows(f, other):
        return lambda a: f(a, other).flatten()[:7]

    jacobian = torch.autograd.functional.jacobian
    expected = jacobian(rows(definition, img2.double()), img1.double())
    assert_near(jacobian(rows(function, img2), img1, vectorize=True), expected, DEFINITION)


@every_function
def test_12_batched_gradients(name):
    function, definition = bound(name)
    img1, img2 = pair(2, 3, 11, 12)
    leaf, wide = img1.clone().requires_grad_(), img1.double().requires_grad_()
    value, truth = function(leaf, img2), definition(wide, img2)
    upstreams = torch.randn(3, *value.shape, generator=torch.Generator().manual_seed(4))
    (found,) = torch.autograd.grad(value, leaf, upstreams, is_grads_batched=True)
    expected = [torch.autograd.grad(truth, wide, u.double(), retain_graph=True)[0] for u in upstreams]
    assert_near(found, torch.stack(expected), DEFINITION)


@every_function
def test_12_a_traced_gradient(name):
    function, definition = bound(name)
    first, second = pair(2, 3, 11, 12), pair(2, 3, 11, 12, seed=1)

    def gradient(f):
        def of(a, b):
            a = a.detach().requires_grad_()
            return torch.autograd.grad(f(a, b).sum(), a)[0]

        return of

    traced = make_fx(gradient(function))(*first)
    assert_near(traced(*second), gradient(definition)(*(image.double() for image in second)), DEFINITION)


@pytest.mark.parametrize("mask_mode", ["weight", "zero", "normalize"])
@pytest.mark.parametrize("reduction", ["mean", "none", "image", "sum"])
@pytest.mark.parametrize("with_images", [False, True])
def test_12_vmap_over_the_mask(mask_mode, reduction, with_images):
    img1, img2 = pair(4, 2, 3, 11, 12)
    masks = torch.stack([MASK, MASK.roll(1, -1), ~MASK, MASK.roll(2, -2)])
    options = {"mask_mode": mask_mode, "reduction": reduction}

    def function(a, b, mask, of=splat_ssim.ssim):
        return of(a, b, mask=mask, **options)

    if with_images:
        found = torch.func.vmap(function)(img1, img2, masks)
        expected = [function(*arguments, oracle.ssim) for arguments in zip(img1, img2, masks, strict=True)]
    else:
        found = torch.func.vmap(function, in_dims=(None, None, 0))(img1[0], img2[0], masks)
        expected = [function(img1[0], img2[0], mask, oracle.ssim) for mask in masks]
    assert_near(found, torch.stack(expected), DEFINITION)


# --------------------------------------------------------------------------------------------------------------------
# 10. Pixels that are not finite
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["kernel", "float64", "definition", "normalize"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("shape", [(1, 2, 20, 21), (1, 1, 7, 8, 9)], ids=str)
@pytest.mark.parametrize(("window_size", "sigma"), [(5, 1.5), (5, 0.3)])
def test_10_one_pixel_spoils_the_windows_that_hold_it(path, value, shape, window_size, sigma):
    img1, img2 = pair(*shape)
    images = [img1.clone(), img2.clone()]
    images[0][(0, 0, *[3] * (len(shape) - 2))] = value
    options = {"window_size": window_size, "sigma": sigma, "reduction": "none"}
    if path == "normalize":
        options |= {"mask": torch.ones(1, 1, *shape[2:]), "mask_mode": "normalize"}
    if path == "float64":
        images = [image.double() for image in images]
    function = reference.ssim if path == "definition" else of_rank(shape)
    expected = oracle.ssim(*images, **options)
    assert (~expected.isfinite()).sum() == window_size ** (len(shape) - 2)
    limit = max(VALUE, 2 * plain_error(img1, img2, window_size=window_size, sigma=sigma))
    assert_near(function(*images, **options), expected, limit)
    leaf = images[1].clone().requires_grad_()
    wide = images[1].double().requires_grad_()
    (found,) = torch.autograd.grad(function(images[0], leaf, **options).sum(), leaf)
    (truth,) = torch.autograd.grad(oracle.ssim(images[0], wide, **options).sum(), wide)
    usable = truth.isfinite()
    assert found[usable].isfinite().all()
    error = (found[usable] - truth[usable]).abs().max() / truth[usable].abs().max()
    assert error <= (2e-4 if sigma < 0.7 else DEFINITION), error


# --------------------------------------------------------------------------------------------------------------------
# 11. float16 below 6.1e-5
# --------------------------------------------------------------------------------------------------------------------


@needs_library
@needs_isa
def test_11_subnormal_float16(monkeypatch, isa):
    use_isa(monkeypatch, isa)
    subnormal = torch.arange(1024, dtype=torch.int16).view(torch.float16)
    img1 = torch.cat([subnormal, -subnormal]).view(1, 1, 32, 64)
    for img2 in (torch.zeros_like(img1), img1.flip(3), torch.zeros_like(img1, dtype=torch.float32)):
        leaf = img1.clone().requires_grad_()
        loss = photometric_loss(leaf, img2, lambda_dssim=0.0)
        expected = (img1.double() - img2.double()).abs().mean()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
        loss.backward()
        assert torch.equal(leaf.grad.sign(), (img1.double() - img2.double()).sign())
    noise = torch.rand(1, 1, 32, 64, generator=torch.Generator().manual_seed(0))
    dark = (noise * 6e-5).half()
    options = {"data_range": 1e-4, "reduction": "none"}
    expected = oracle.ssim(dark, dark.flip(2), **options)
    error = largest_error(splat_ssim.ssim(dark, dark.flip(2), **options), expected)
    assert error <= VALUE, error


# --------------------------------------------------------------------------------------------------------------------
# Found later by the fuzzer
# --------------------------------------------------------------------------------------------------------------------


@needs_library
@needs_isa
@pytest.mark.parametrize("shape", [(1, 3, 24, 24), (1, 3, 9, 9, 9)], ids=str)
@pytest.mark.parametrize("levels", [(0.0, 1.0, 0.0), (1000.0, 0.0, -500.0)], ids=str)
def test_channels_at_levels_of_their_own(monkeypatch, shape, levels, isa):
    """Interleaved channels are as exact as planar ones, even if their levels differ, as for colour with depth."""
    use_isa(monkeypatch, isa)
    offsets = torch.tensor(levels).view(1, 3, *[1] * (len(shape) - 2))
    img1, img2 = (image + offsets for image in pair(*shape))
    options = {"window_size": 7, "padding": "reflect", "reduction": "none"}
    expected = oracle.differentiate(lambda a, b: oracle.ssim(a, b, **options), img1, img2)
    memory_format = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    for layout in (torch.contiguous_format, memory_format):
        leaf = img1.clone(memory_format=layout).requires_grad_()
        value = of_rank(shape)(leaf, img2.clone(memory_format=layout), **options)
        error = largest_error(value, expected[0])
        assert error <= VALUE, (layout, error)
        assert_near(torch.autograd.grad(value.sum(), leaf)[0], expected[1], GRADIENT)


@pytest.mark.parametrize(
    ("narrow", "wide"),
    [
        (torch.float16, torch.float16),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float64),
        (torch.bfloat16, torch.float64),
        (torch.float32, torch.float64),
    ],
)
@pytest.mark.parametrize("name", ["photometric", "ms_ssim_l1", "plain"])
def test_a_gradient_is_rounded_once(name, narrow, wide):
    """A loss of two terms adds their gradients before it rounds them to the dtype of the image."""
    options = SMALL if name == "ms_ssim_l1" else {}
    function = {"photometric": photometric_loss, "ms_ssim_l1": ms_ssim_l1_loss, "plain": registry.LOSSES["ssim"]}[name]
    img1, img2 = (image.to(dtype) for image, dtype in zip(pair(1, 2, 11, 12), (narrow, wide), strict=True))
    images = [image.double() for image in (img1, img2)]
    definition = oracle.ms_ssim_l1_loss if name == "ms_ssim_l1" else oracle.photometric_loss
    _, expected, _ = oracle.differentiate(lambda a, b: definition(a, b, **options)[0], *images)
    leaf = img1.clone().requires_grad_()
    value = function(leaf, img2, **options)
    (value[0] if isinstance(value, tuple) else value).backward()
    assert leaf.grad.dtype == narrow
    promised = bounds.PROMISED[torch.float64 if wide == torch.float64 else torch.float32][1]
    error = (leaf.grad.double() - expected).abs() - bounds.of_rounding(expected, narrow)
    assert error.max() <= promised * expected.abs().max()


@pytest.mark.parametrize(
    ("shape", "options", "text"),
    [
        ((1, 1, 4, 20), {"padding": "valid"}, "at least window_size"),
        ((1, 1, 4, 20), {"padding": "reflect"}, "larger than window_size"),
        ((1, 1, 4, 20), {"padding": "replicate"}, "larger than window_size"),
    ],
)
def test_the_plain_loss_refuses_what_the_fused_one_does(shape, options, text):
    for name in ("fused_ssim", "ssim"):
        with pytest.raises(ValueError, match=text):
            registry.LOSSES[name](*pair(*shape), **options)


def test_the_plain_loss_of_no_images():
    """With an empty batch, a loss for each image does not take a mean over the batch."""
    empty = torch.zeros(0, 1, 12, 12)
    for name in ("fused_ssim", "ssim"):
        value, _ = registry.LOSSES[name](empty, empty, reduction="image")
        assert value.shape == (0,)
