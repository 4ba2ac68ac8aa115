"""The pytorch_msssim drop-in, held to the package over random shapes, options and dtypes."""

import random
import warnings

import pytest
import pytorch_msssim as original
import torch

from splat_ssim.compat import pytorch_msssim as ours
from tests.compare import assert_same, random_pair

pytestmark = pytest.mark.usefixtures("device", "threads")

# Of the largest entry. float64: both sides round, with the same float32 window; float32: cancellation in the
# original's E[x²] - E[x]², whose window does not sum to exactly 1.
TOLERANCES = {torch.float64: 1e-11, torch.float32: 5e-4}

SEEDS = range(200)


def quietly(function):
    """Without the warnings of axes that are not smoothed."""

    def call(*images):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return function(*images)

    return call


def draw(seed, window_sizes):
    rng = random.Random(seed)
    options = {
        "win_size": rng.choice(window_sizes),
        "win_sigma": rng.choice([1.5, 0.8, 2.5]),
        "data_range": rng.choice([1, 1.0, 255]),
        "size_average": rng.random() < 0.5,
        "K": rng.choice([(0.01, 0.03), [0.05, 0.02]]),
    }
    return rng, torch.Generator().manual_seed(seed), rng.choice([torch.float64, torch.float32]), options


@pytest.mark.parametrize("seed", SEEDS)
def test_ssim(seed):
    rng, generator, dtype, options = draw(seed, [3, 5, 7, 11])
    spatial_dims = rng.choice([2, 3])
    # Some axes are shorter than the window.
    sides = [rng.randint(2, 2 * options["win_size"]) for _ in range(spatial_dims)]
    if rng.random() < 0.2:
        sides.insert(rng.randint(0, 2), 1)
    if len(sides) > 3:
        sides = sides[:3]
    if sum(side != 1 for side in sides) < 2:
        sides = [4, 5]
    shape = (rng.randint(1, 3), rng.randint(1, 3), *sides)
    options["nonnegative_ssim"] = rng.random() < 0.3
    images = random_pair(generator, shape, dtype, options["data_range"])
    if rng.random() < 0.2:
        images[1] = options["data_range"] - images[0]
    if rng.random() < 0.2:
        ones = [1] * sum(side != 1 for side in sides)
        taps = torch.rand(shape[1], *ones, options["win_size"], generator=generator, device="cpu").to(images[0].device)
        options["win"] = taps / taps.sum(-1, keepdim=True)
    assert_same(
        quietly(lambda a, b: ours.ssim(a, b, **options)),
        quietly(lambda a, b: original.ssim(a, b, **options)),
        images,
        TOLERANCES[dtype],
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_ms_ssim(seed):
    rng, generator, dtype, options = draw(seed, [3])
    volumes = rng.random() < 0.3
    sides = [rng.randint(33, 40) for _ in range(2)]
    if volumes:
        sides.insert(0, rng.choice([33, 35, 16]) if rng.random() < 0.5 else 1)
        sides[1:] = [33, 34]
    options["weights"] = rng.choice([None, [0.5, 0.5], [0.2, 0.3, 0.5], [0.1] * 5])
    images = random_pair(generator, (rng.randint(1, 2), rng.randint(1, 3), *sides), dtype, options["data_range"])
    assert_same(
        quietly(lambda a, b: ours.ms_ssim(a, b, **options)),
        quietly(lambda a, b: original.ms_ssim(a, b, **options)),
        images,
        TOLERANCES[dtype],
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ms_ssim_with_the_default_window(dtype):
    images = random_pair(torch.Generator().manual_seed(0), (1, 3, 163, 170), dtype, 255)
    assert_same(ours.ms_ssim, original.ms_ssim, images, TOLERANCES[dtype])
    win = torch.tensor([0.25, 0.5, 0.25]).expand(3, 1, 1, 3)
    assert_same(
        lambda a, b: ours.ms_ssim(a, b, win=win),
        lambda a, b: original.ms_ssim(a, b, win=win),
        images,
        TOLERANCES[dtype],
    )


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_modules(spatial_dims):
    generator = torch.Generator().manual_seed(0)
    images = random_pair(generator, (2, 2, *[33] * spatial_dims), torch.float32)
    options = {"data_range": 1.0, "win_size": 3, "channel": 2, "spatial_dims": spatial_dims, "K": (0.02, 0.05)}
    for name, more in (("SSIM", {"nonnegative_ssim": True}), ("MS_SSIM", {"weights": [0.4, 0.6]})):
        for size_average in (True, False):
            arguments = {**options, **more, "size_average": size_average}
            found, expected = (getattr(package, name)(**arguments) for package in (ours, original))
            assert_same(found, expected, images, TOLERANCES[torch.float32])
    assert ours.SSIM().data_range == ours.MS_SSIM().data_range == 255


def test_half_precision_is_rounded_once():
    images = random_pair(torch.Generator().manual_seed(0), (1, 3, 40, 40), torch.float32)
    for dtype in (torch.float16, torch.bfloat16):
        rounded = [img.to(dtype) for img in images]
        expected = original.ssim(*(img.double() for img in rounded), data_range=1.0)
        found = ours.ssim(*rounded, data_range=1.0)
        assert found.dtype == dtype
        assert found == expected.to(dtype)


def test_a_short_axis_warns():
    with pytest.warns(UserWarning, match="shorter than the window of 11 are not smoothed"):
        ours.ssim(torch.rand(1, 1, 8, 20), torch.rand(1, 1, 8, 20))


def test_ms_ssim_has_no_nan():
    image = random_pair(torch.Generator().manual_seed(0), (1, 1, 40, 40), torch.float32)[0].requires_grad_()
    value = ours.ms_ssim(image, 1 - image.detach(), data_range=1.0, win_size=3)
    assert value == original.ms_ssim(image, 1 - image.detach(), data_range=1.0, win_size=3) == 0
    value.backward()
    assert (image.grad == 0).all()


IMAGE = torch.zeros(1, 3, 16, 16)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: ours.ssim(IMAGE.numpy(), IMAGE), TypeError, "X must be a floating-point torch.Tensor, got ndarray"),
        (lambda: ours.ssim(IMAGE.byte(), IMAGE.byte()), TypeError, "got torch.uint8"),
        (lambda: ours.ssim(IMAGE, IMAGE.double()), TypeError, "X and Y must have the same dtype"),
        (lambda: ours.ssim(IMAGE, IMAGE[..., 1:]), ValueError, "X and Y must have the same shape"),
        (lambda: ours.ssim(IMAGE[0], IMAGE[0]), ValueError, r"must have the shape \(B, C, H, W\) or"),
        (lambda: ours.ssim(IMAGE[..., :1], IMAGE[..., :1]), ValueError, "axes of size 1 apart"),
        (lambda: ours.ssim(IMAGE, IMAGE, win_size=10), ValueError, "the window size must be odd, got 10"),
        (lambda: ours.ssim(IMAGE, IMAGE, win=torch.ones(3, 1, 5, 5)), AssertionError, "win must have the shape"),
        (lambda: ours.ssim(IMAGE, IMAGE, win=torch.ones(3, 1, 5, 5)), ValueError, "win must have the shape"),
        (
            lambda: ours.ssim(IMAGE, IMAGE, win=torch.ones(1, 1, 1, 5)),
            ValueError,
            "one window for each of the 3 channels",
        ),
        (lambda: ours.ms_ssim(IMAGE, IMAGE), AssertionError, r"larger than \(win_size - 1\) \* 16 = 160"),
        (lambda: ours.ms_ssim(IMAGE, IMAGE), ValueError, "the smaller side"),
        (lambda: ours.SSIM(channel=1)(IMAGE, IMAGE), ValueError, "must have channel=1 channels"),
        (lambda: ours.SSIM(spatial_dims=3)(IMAGE, IMAGE), ValueError, "must have spatial_dims=3"),
    ],
)
def test_refusals(call, error, text):
    with pytest.raises(error, match=text):
        call()
