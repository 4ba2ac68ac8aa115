"""kornia's losses without a window, compared with the installed kornia in every dtype, and with float64."""

import random

import kornia
import numpy as np
import pytest
import torch

from splat_ssim.compat import kornia as ours
from tests import devices
from tests.compare import assert_same

pytestmark = [
    pytest.mark.usefixtures("device", "threads"),
    pytest.mark.parametrize("device", devices.NATIVE, indirect=True),
    # The results of kornia 0.8 for integers and half precision are not reproduced.
    pytest.mark.skipif(
        tuple(map(int, kornia.__version__.split(".")[:2])) < (0, 9), reason="the numbers are those of kornia 0.9"
    ),
]

ROBUST = ("charbonnier_loss", "welsch_loss", "cauchy_loss", "geman_mcclure_loss")
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def random_tensor(seed, shape, dtype, scale=1.0):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64, device="cpu")
    if dtype in INTEGERS:
        values = (values * 30).round().clamp(0, 100)
    elif dtype == torch.bool:
        values = values > 0
    else:
        values = values * scale
    return values.to(devices.torch_device(), dtype)


def random_shape(rng, least_ndim=0):
    return [rng.randint(1, 6) for _ in range(rng.randint(least_ndim, 5))]


def assert_rounded(found, exact, dtype, roundings=4, of_scale=0.0):
    """`found` equals the float64 `exact` up to a few roundings of its dtype, relative to each entry or to a scale."""
    assert found.dtype == dtype
    limits = torch.finfo(dtype)
    atol = limits.tiny * limits.eps + roundings * limits.eps * of_scale
    torch.testing.assert_close(
        found.double(), exact.to(dtype).double(), rtol=roundings * limits.eps, atol=atol, equal_nan=True
    )


# --------------------------------------------------------------------------------------------------------------------
# The robust losses
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("name", ROBUST)
def test_robust_losses_are_exact_in_every_float_dtype(name, seed):
    rng = random.Random(seed)
    dtype, reduction = rng.choice(FLOATS), rng.choice(["none", "mean", "sum", None])
    scale = 10.0 ** rng.randint(-6, 4)
    shape = random_shape(rng)
    images = [random_tensor(2 * seed + i, shape, dtype, scale).requires_grad_() for i in range(2)]
    wide = [img.detach().double().requires_grad_() for img in images]
    found = getattr(ours, name)(*images, reduction)
    theirs = getattr(kornia.losses, name)
    exact = theirs(*wide, reduction or "none")
    assert found.dtype == theirs(*(img.detach() for img in images), reduction or "none").dtype
    assert found.shape == exact.shape
    assert_rounded(found.detach(), exact.detach(), dtype, roundings=6)
    found.sum().backward()
    exact.sum().backward()
    for img, img64 in zip(images, wide, strict=True):
        # kornia's own float64 gradient of geman_mcclure cancels where differences are large. The exponent of welsch is
        # rounded before exp.
        roundings = 1e12 if dtype == torch.float64 and scale >= 10 else 8
        assert_rounded(img.grad, img64.grad, dtype, roundings, of_scale=1.0 if name == "welsch_loss" else 0.0)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", ROBUST)
def test_robust_losses_equal_kornia_of_the_same_dtype(name, dtype):
    """Both round in different places, so they may differ by a few roundings of the dtype."""
    images = [random_tensor(i, (3, 40), dtype) for i in range(2)]
    for reduction in ("none", "mean", "sum"):
        found, expected = (getattr(package, name)(*images, reduction) for package in (ours, kornia.losses))
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, rtol=4 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("name", ROBUST)
@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (torch.float16, 200.0),
        (torch.float16, 6e4),
        (torch.bfloat16, 1e19),
        (torch.bfloat16, 1e30),
        (torch.float32, 1e19),
        (torch.float32, 1e30),
        (torch.float64, 1e100),
    ],
)
def test_robust_losses_are_finite_for_large_differences(name, dtype, value):
    image = torch.tensor([value, -value], dtype=dtype, requires_grad=True)
    found = getattr(ours, name)(image, torch.zeros_like(image))
    found.sum().backward()
    d = image.detach().double().abs()
    exact = {
        "charbonnier_loss": d - 1,
        "welsch_loss": torch.ones_like(d),
        "cauchy_loss": 2 * d.log() - np.log(2) + 2 / d / d,
        "geman_mcclure_loss": 2 / (1 + 4 / d / d),
    }[name]
    gradient = {
        "charbonnier_loss": 1 - 1 / d / d / 2,
        "welsch_loss": torch.zeros_like(d),
        "cauchy_loss": 2 / d / (1 + 2 / d / d),
        "geman_mcclure_loss": 16 / d / d / d,
    }[name]
    assert_rounded(found.detach(), exact if dtype == torch.float64 else exact.float().double(), dtype)
    # The gradient of geman_mcclure at 1e100 is 1e-299.
    assert_rounded(image.grad, gradient * image.detach().sign(), dtype, of_scale=1e-10)


def test_robust_losses_of_the_page():
    """Case 7 of cases/loss.md: these values were once 0, infinite or far off."""
    small = (random_tensor(0, (1, 3, 32, 32), torch.float64).abs() * 0.01).clamp(0, 0.03)
    for name in ("charbonnier_loss", "cauchy_loss", "welsch_loss"):
        for dtype in (torch.bfloat16, torch.float16):
            image = small.to(dtype)
            exact = getattr(kornia.losses, name)(image.double(), torch.zeros_like(image, dtype=torch.float64), "mean")
            assert_rounded(getattr(ours, name)(image, torch.zeros_like(image), "mean"), exact, dtype, roundings=1)
        for scale in (5e-4, 1.5e-4):
            image = (small / 0.03 * scale).float()
            exact = getattr(kornia.losses, name)(image.double(), torch.zeros_like(image, dtype=torch.float64), "mean")
            assert_rounded(getattr(ours, name)(image, torch.zeros_like(image), "mean"), exact, torch.float32)
    two = ours.geman_mcclure_loss(torch.tensor([200.0], dtype=torch.float16), torch.zeros(1, dtype=torch.float16))
    assert two.item() == 2.0


@pytest.mark.parametrize("name", ROBUST)
def test_robust_losses_of_integers(name):
    for dtype in (torch.int32, torch.int64):
        images = [random_tensor(i, (4, 9), dtype) for i in range(2)]
        for reduction in ("none", "mean", "sum"):
            found, expected = (getattr(package, name)(*images, reduction) for package in (ours, kornia.losses))
            assert found.dtype == expected.dtype == torch.float32
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    # If one image has a shorter dtype, the difference is computed in the wider one, by kornia too.
    images = random_tensor(0, (4, 9), torch.uint8), random_tensor(1, (4, 9), torch.float32)
    found, expected = (getattr(package, name)(*images) for package in (ours, kornia.losses))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    for dtype in (torch.uint8, torch.int8, torch.int16):
        image = torch.tensor([3], dtype=dtype)
        with pytest.raises(TypeError, match=f"kornia wraps round on shorter integers.*got {dtype} and {dtype}"):
            getattr(ours, name)(image, image)
    image = torch.tensor([True])
    with pytest.raises(TypeError, match=r"must be int32 or int64.*got torch.bool"):
        getattr(ours, name)(image, image)
    with pytest.raises(TypeError, match=r"must be real, got torch.complex64 and torch.complex64"):
        getattr(ours, name)(torch.ones(1, dtype=torch.complex64), torch.ones(1, dtype=torch.complex64))


def test_robust_losses_of_integers_do_not_wrap_round():
    """In kornia they do for differences beyond 46340."""
    large = torch.tensor([100_000], dtype=torch.int32)
    assert ours.charbonnier_loss(large, torch.zeros_like(large)).item() == 99_999.0
    assert ours.geman_mcclure_loss(large, torch.zeros_like(large)).item() == 2.0


def test_integers_take_the_default_dtype():
    images = torch.tensor([3, 5]), torch.tensor([1, 9])
    torch.set_default_dtype(torch.float64)
    try:
        for name in ROBUST:
            found, expected = (getattr(package, name)(*images) for package in (ours, kornia.losses))
            assert found.dtype == expected.dtype == torch.float64
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
        assert ours.psnr(*images, 9.0).dtype == kornia.metrics.psnr(*images, 9.0).dtype
        assert ours.total_variation(images[0][None], "mean").dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


# --------------------------------------------------------------------------------------------------------------------
# PSNR, total variation, smoothness of inverse depth
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_psnr_in_every_dtype(seed):
    rng = random.Random(seed)
    dtypes = rng.choice(FLOATS + INTEGERS + (torch.bool,)), rng.choice(FLOATS + INTEGERS + (torch.bool,))
    if rng.random() < 0.7:
        dtypes = dtypes[0], dtypes[0]
    shape, top = random_shape(rng), rng.choice([1.0, 255, 2.5, torch.tensor(255.0), np.float64(255)])
    images = [random_tensor(2 * seed + i, shape, dtype) for i, dtype in enumerate(dtypes)]
    for function in ("psnr_loss", "psnr"):
        theirs = getattr(kornia.losses if function == "psnr_loss" else kornia.metrics, function)
        found = getattr(ours, function)(*images, top)
        assert found.dtype == theirs(*images, top).dtype
        # The logarithm of a number with a few roundings, times 10.
        exact = theirs(*(img.double() for img in images), float(top))
        assert_rounded(found, exact, found.dtype, of_scale=10.0)


def test_psnr_of_the_page():
    """Case 7 of cases/loss.md."""
    img1, img2 = torch.tensor([[10, 20], [30, 5]]), torch.tensor([[11, 23], [30, 10]])
    for dtype in (torch.int64, torch.uint8, torch.bool):
        found = ours.psnr_loss(img1.to(dtype), img2.to(dtype), 255.0)
        torch.testing.assert_close(found, kornia.losses.psnr_loss(img1.to(dtype), img2.to(dtype), 255.0))
    assert ours.psnr_loss(img1, img1, 255.0) == -torch.inf
    assert ours.psnr(img1.byte(), img1.byte(), 255.0) == torch.inf


def test_psnr_of_equal_images_has_kornias_gradient():
    gradients = []
    for function in (ours.psnr_loss, kornia.losses.psnr_loss):
        image = torch.ones(2, 3, requires_grad=True)
        function(image, torch.ones(2, 3), 1.0).backward()
        gradients.append(image.grad)
    torch.testing.assert_close(*gradients, equal_nan=True)


@pytest.mark.parametrize("seed", range(40))
def test_total_variation_in_every_dtype(seed):
    rng = random.Random(seed)
    dtype = rng.choice(FLOATS + INTEGERS + (torch.complex64,))
    reduction = rng.choice(["sum", "mean"])
    image = random_tensor(seed, random_shape(rng, 2), dtype)
    found, expected = (package.total_variation(image, reduction) for package in (ours, kornia.losses))
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    eps = torch.finfo(found.dtype).eps if found.is_floating_point() else 0
    torch.testing.assert_close(found, expected, rtol=8 * eps, atol=0)


def test_total_variation_of_the_page():
    """Case 7 of cases/loss.md: uint8 once wrapped around."""
    found = ours.total_variation(torch.tensor([[10, 20], [30, 5]], dtype=torch.uint8))
    assert (found.item(), found.dtype) == (70, torch.int64)
    assert ours.total_variation(torch.tensor([[True, False], [True, True]])).item() == 2


@pytest.mark.parametrize("seed", range(40))
def test_inverse_depth_smoothness_in_every_dtype(seed):
    rng = random.Random(seed)
    dtype = rng.choice(FLOATS)
    batch, channels, height, width = (rng.randint(1, 5) for _ in range(4))
    depth = random_tensor(2 * seed, (batch, rng.choice([1, channels]), height, width), dtype)
    image = random_tensor(2 * seed + 1, (batch, channels, height, width), dtype)
    theirs = kornia.losses.inverse_depth_smoothness_loss
    found = ours.inverse_depth_smoothness_loss(depth, image)
    assert found.dtype == theirs(depth, image).dtype
    assert_rounded(found, theirs(depth.double(), image.double()), dtype)
    if dtype in (torch.float32, torch.float64):
        assert_same(ours.inverse_depth_smoothness_loss, theirs, (depth, image), 1e-5)


def test_inverse_depth_smoothness_needs_floats():
    image = torch.ones(1, 1, 4, 4, dtype=torch.int32)
    with pytest.raises(TypeError, match=r"idepth and image must be floating point, got torch.int32"):
        ours.inverse_depth_smoothness_loss(image, image)


# --------------------------------------------------------------------------------------------------------------------
# Options
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64, np.array, torch.tensor, int])
def test_options_of_any_kind(kind):
    images = [random_tensor(i, (2, 3, 5), torch.float32) for i in range(2)]
    expected = ours.psnr(*images, 2.0)
    torch.testing.assert_close(ours.psnr(*images, kind(2)), expected)
    torch.testing.assert_close(ours.PSNRLoss(kind(2))(*images), -expected)


def test_a_gradient_reaches_max_val():
    images = [random_tensor(i, (2, 3, 5), torch.float32) for i in range(2)]
    gradients = []
    for function in (ours.psnr, kornia.metrics.psnr):
        top = torch.tensor(2.0, requires_grad=True)
        function(*images, top).backward()
        gradients.append(top.grad)
    torch.testing.assert_close(*gradients)
