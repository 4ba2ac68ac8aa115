"""The kornia drop-in, held to the installed kornia over random shapes, options and dtypes."""

import random

import kornia
import pytest
import torch

from splat_ssim.compat import kornia as newest
from splat_ssim.compat import kornia_0_8
from tests import devices
from tests.compare import assert_same, random_pair

pytestmark = pytest.mark.usefixtures("device")

ours = newest if tuple(map(int, kornia.__version__.split(".")[:2])) >= (0, 9) else kornia_0_8

# Of the largest entry. float64: both sides round; kornia's windows of volumes and of MS_SSIMLoss are outer products
# that are rounded to float32. float32: E[x²] - E[x]² in float32 on both sides. Half precision: kornia rounds every step
# and we the result, so a few roundings are allowed.
EXACT = {torch.float64: 1e-12, torch.float32: 5e-4, torch.float16: 2e-2}
ROUNDED_WINDOW = {**EXACT, torch.float64: 1e-6}

SEEDS = range(200)


def draw(seed, dtypes=(torch.float64, torch.float32)):
    rng = random.Random(seed)
    return rng, torch.Generator().manual_seed(seed), rng.choice(dtypes)


def shape_for(rng, window, spatial_dims):
    sides = [rng.randint(max(2, window), window + 5) for _ in range(spatial_dims)]
    return (rng.randint(1, 2), rng.randint(1, 3), *sides)


@pytest.mark.parametrize("seed", SEEDS)
def test_ssim_of_images(seed):
    rng, generator, dtype = draw(seed, (torch.float64, torch.float32, torch.float16))
    # Half precision in kornia has no room for the constants of SSIM at large or small ranges.
    window, top = rng.choice([1, 3, 5, 7, 11]), 1.0 if dtype == torch.float16 else rng.choice([1.0, 2.0, 255.0])
    eps, padding = rng.choice([0.0, 1e-12, 1e-3]), rng.choice(["same", "valid"])
    reduction = rng.choice(["mean", "sum", "none"])
    images = random_pair(generator, shape_for(rng, window, 2), dtype, top)
    options = {"max_val": top, "eps": eps, "padding": padding}
    tolerance = EXACT[dtype]
    if dtype == torch.float16:
        images = [img.requires_grad_(False) for img in images]
        found, expected = (m.ssim(*images, window, **options) for m in (ours, kornia.metrics))
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
        return
    assert_same(
        lambda a, b: ours.ssim(a, b, window, **options),
        lambda a, b: kornia.metrics.ssim(a, b, window, **options),
        images,
        tolerance,
    )
    assert_same(
        ours.SSIMLoss(window, reduction=reduction, **options),
        kornia.losses.SSIMLoss(window, reduction=reduction, **options),
        images,
        tolerance,
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_ssim_of_volumes(seed):
    rng, generator, dtype = draw(seed)
    window, top = rng.choice([1, 3, 5]), rng.choice([1.0, 2.0, 255.0])
    options = {"max_val": top, "eps": rng.choice([0.0, 1e-12, 1e-3]), "padding": rng.choice(["same", "valid"])}
    reduction = rng.choice(["mean", "sum", "none"])
    images = random_pair(generator, shape_for(rng, window, 3), dtype, top)
    assert_same(
        lambda a, b: ours.ssim3d(a, b, window, **options),
        lambda a, b: kornia.metrics.ssim3d(a, b, window, **options),
        images,
        ROUNDED_WINDOW[dtype],
    )
    assert_same(
        ours.SSIM3DLoss(window, reduction=reduction, **options),
        kornia.losses.SSIM3DLoss(window, reduction=reduction, **options),
        images,
        ROUNDED_WINDOW[dtype],
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_ms_ssim_loss(seed):
    rng, generator, dtype = draw(seed, (torch.float64, torch.float32) if ours is newest else (torch.float32,))
    channels = rng.choice([1, 2, 3, 5] if ours is newest else [1, 3])
    top = rng.choice([1.0, 2.0, 255.0])
    options = {
        "sigmas": rng.choice([(1.0, 2.0, 3.0), (0.5, 1.0, 2.0, 4.0, 8.0), (1.5,), (0.5, 1.0)]),
        "data_range": top,
        "K": rng.choice([(0.01, 0.03), (0.05, 0.1)]),
        "alpha": rng.choice([0.025, 0.8]),
        "compensation": rng.choice([200.0, 1.0]),
        "reduction": rng.choice(["mean", "sum", "none"]),
    }
    images = random_pair(generator, (2, channels, rng.randint(5, 9), rng.randint(5, 9)), dtype, top)
    assert_same(ours.MS_SSIMLoss(**options), kornia.losses.MS_SSIMLoss(**options), images, ROUNDED_WINDOW[dtype])


def test_ms_ssim_loss_compares_one_image_with_many():
    many, _ = random_pair(torch.Generator().manual_seed(0), (3, 2, 8, 8), torch.float32)
    one = many[:1].flip(-1)
    loss = newest.MS_SSIMLoss(reduction="none")
    torch.testing.assert_close(loss(one, many), loss(one.expand(3, -1, -1, -1), many))


@pytest.mark.parametrize("seed", SEEDS)
def test_losses_without_a_window(seed):
    rng, generator, dtype = draw(seed)
    shape = [rng.randint(1, 5) for _ in range(4)]
    img1, img2 = random_pair(generator, shape, dtype)
    reduction = rng.choice(["mean", "sum", "none"])
    for name in ("CharbonnierLoss", "WelschLoss", "CauchyLoss", "GemanMcclureLoss"):
        theirs = getattr(kornia.losses, name)(reduction)
        assert_same(getattr(ours, name)(reduction), theirs, (img1, img2), 1e-5)
    top = rng.choice([1.0, 255.0])
    assert_same(ours.PSNRLoss(top), kornia.losses.PSNRLoss(top), (img1, img2), 1e-5)
    assert_same(ours.TotalVariation(), kornia.losses.TotalVariation(), (img1,), 1e-5)
    mean = rng.choice(["mean", "sum"])
    volume = img1[0] if rng.random() < 0.5 else img1[None]
    assert_same(
        lambda a: ours.total_variation(a, mean), lambda a: kornia.losses.total_variation(a, mean), (volume,), 1e-5
    )
    depth = img1[:, : rng.choice([1, shape[1]])]
    theirs = kornia.losses.InverseDepthSmoothnessLoss()
    assert_same(ours.InverseDepthSmoothnessLoss(), theirs, (depth, img2), 1e-5)


def test_integers_are_taken_as_they_are():
    generators, shape = [torch.Generator().manual_seed(seed) for seed in (0, 1)], (1, 2, 8, 9)
    images = [torch.randint(0, 256, shape, generator=g, device="cpu").to(devices.torch_device()) for g in generators]
    for dtype in (torch.uint8, torch.int32):
        img1, img2 = (img.to(dtype) for img in images)
        expected = kornia.metrics.ssim(img1, img2, 5, max_val=255.0)
        torch.testing.assert_close(ours.ssim(img1, img2, 5, max_val=255.0), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(ours.total_variation(img1.int()), kornia.losses.total_variation(img1.int()))
    mixed = images[0].float(), images[1].double()
    # kornia's window follows the dtype of the first image.
    torch.testing.assert_close(ours.ssim(*mixed, 5, 255.0), kornia.metrics.ssim(*mixed, 5, 255.0), rtol=0, atol=1e-5)


def test_eps_shows_on_black_images():
    black = torch.zeros(1, 1, 8, 8)
    torch.testing.assert_close(ours.ssim(black, black, 5), kornia.metrics.ssim(black, black, 5), rtol=0, atol=1e-7)
    assert ours.ssim(black, black, 5).max() < 0.999991


@pytest.mark.parametrize("window", [2, 4, 6])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_even_windows_shift_by_half_a_pixel(window, padding):
    images = random_pair(torch.Generator().manual_seed(window), (1, 1, 9, 8), torch.float64)
    found = ours.ssim(*images, window, eps=0.0, padding=padding)
    before, after = (window - 1) // 2, window // 2
    if padding == "same":
        images = [torch.nn.functional.pad(img, (before, after) * 2, mode="reflect") for img in images]
    offsets = torch.arange(window, dtype=torch.float64) - (window - 1) / 2
    taps = torch.exp(-(offsets**2) / 4.5)
    weights = torch.outer(taps, taps) / taps.sum() ** 2
    for i, j in ((0, 0), (3, 2), (found.shape[2] - 1, found.shape[3] - 1)):
        x, y = (img[0, 0, i : i + window, j : j + window] for img in images)
        mu1, mu2 = (weights * x).sum(), (weights * y).sum()
        var1, var2 = (weights * x * x).sum() - mu1**2, (weights * y * y).sum() - mu2**2
        cov = (weights * x * y).sum() - mu1 * mu2
        expected = (2 * mu1 * mu2 + 1e-4) * (2 * cov + 9e-4) / ((mu1**2 + mu2**2 + 1e-4) * (var1 + var2 + 9e-4))
        torch.testing.assert_close(found[0, 0, i, j], expected, rtol=1e-10, atol=0)


# kornia 0.8 and 0.9 cannot be installed together, so the older definitions are also held to themselves by hand.


def test_older_volumes():
    images = random_pair(torch.Generator().manual_seed(0), (1, 2, 6, 7, 5), torch.float64)
    padded = [torch.nn.functional.pad(img, (2,) * 6, mode="replicate") for img in images]
    expected = newest.ssim3d(*padded, 5, padding="valid")
    # The older window is rounded to float32.
    torch.testing.assert_close(kornia_0_8.ssim3d(*images, 5), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(kornia_0_8.SSIM3D(5)(*images), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(kornia_0_8.SSIM3DLoss(5)(*images), 1 - expected.mean(), rtol=0, atol=1e-6)
    by_voxel = kornia_0_8.ssim3d_loss(*images, 5, reduction="none")
    torch.testing.assert_close(by_voxel, 1 - expected, rtol=0, atol=1e-6)


def test_older_ms_ssim_loss_deals_its_windows_out_to_the_channels():
    img1, img2 = random_pair(torch.Generator().manual_seed(0), (2, 3, 12, 10), torch.float64)
    sigmas = [[0.5, 0.5, 0.5, 1, 1], [1, 2, 2, 2, 4], [4, 4, 8, 8, 8]]

    def window(sigma):
        offsets = torch.arange(33, dtype=torch.float64) - 16
        taps = torch.exp(-(offsets**2) / (2 * sigma**2))
        return (torch.outer(taps, taps) / taps.sum() ** 2)[None, None]

    def smooth(image, sigma):
        return torch.nn.functional.conv2d(image[:, None], window(sigma), padding=16)[:, 0]

    luminances, product = [], 1
    for channel, own in enumerate(sigmas):
        x, y = img1[:, channel], img2[:, channel]
        for sigma in own:
            mu1, mu2 = smooth(x, sigma), smooth(y, sigma)
            var1, var2 = smooth(x * x, sigma) - mu1**2, smooth(y * y, sigma) - mu2**2
            cov = smooth(x * y, sigma) - mu1 * mu2
            luminances.append((2 * mu1 * mu2 + 1e-4) / (mu1**2 + mu2**2 + 1e-4))
            product = product * (2 * cov + 9e-4) / (var1 + var2 + 9e-4)
    similarity = luminances[-1] * luminances[-2] * luminances[-3] * product
    distance = torch.stack([smooth((img1 - img2)[:, c].abs(), 8) for c in range(3)]).mean(0)
    expected = 200 * (0.025 * (1 - similarity) + 0.975 * distance)
    found = kornia_0_8.MS_SSIMLoss(reduction="none")(img1, img2)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    with pytest.raises(ValueError, match="must divide the 15 windows, three for each sigma, got 2"):
        kornia_0_8.MS_SSIMLoss()(img1[:, :2], img2[:, :2])


IMAGE = torch.zeros(1, 3, 8, 8)
VOLUME = torch.zeros(1, 1, 8, 8, 8)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: newest.ssim(IMAGE.numpy(), IMAGE, 5), TypeError, "img1 must be a torch.Tensor, got ndarray"),
        (
            lambda: newest.ssim(IMAGE[0], IMAGE[0], 5),
            ValueError,
            r"must have the shape \(B, C, H, W\), got \(3, 8, 8\)",
        ),
        (lambda: newest.ssim3d(IMAGE, IMAGE, 5), ValueError, r"must have the shape \(B, C, D, H, W\)"),
        (lambda: newest.ssim(IMAGE, IMAGE[:, :1], 5), ValueError, "must have the same shape"),
        (lambda: newest.ssim(IMAGE, IMAGE, 5.0), TypeError, "window_size must be an int, got float"),
        (lambda: newest.ssim(IMAGE, IMAGE, 0), ValueError, "window_size must be 1 or more, got 0"),
        (lambda: newest.ssim(IMAGE, IMAGE, 17), ValueError, "larger than 8, got"),
        (lambda: newest.ssim(IMAGE, IMAGE, 9, padding="valid"), ValueError, "at least window_size=9"),
        (lambda: newest.ssim(IMAGE, IMAGE, 5, max_val=IMAGE), TypeError, "max_val must be a number"),
        (lambda: newest.ssim(IMAGE, IMAGE, 5, padding="zeros"), ValueError, "padding must be one of 'same', 'valid'"),
        (lambda: newest.ssim_loss(IMAGE, IMAGE, 5, reduction="max"), NotImplementedError, "got 'max'"),
        (lambda: newest.ssim_loss(IMAGE, IMAGE, 5, reduction="max"), ValueError, "reduction must be"),
        (lambda: kornia_0_8.ssim3d_loss(VOLUME, VOLUME, 5, reduction="max"), ValueError, "reduction must be"),
        (lambda: newest.MS_SSIMLoss()(IMAGE[0], IMAGE[0]), ValueError, r"img1 must have the shape \(B, C, H, W\)"),
        (lambda: newest.MS_SSIMLoss()(IMAGE, IMAGE[..., 1:]), ValueError, "must have the same shape, but for a batch"),
        (lambda: newest.MS_SSIMLoss(sigmas=()), ValueError, "sigmas must have at least one"),
        (lambda: newest.psnr_loss(IMAGE, IMAGE[0], 1.0), TypeError, "image and target must have the same shape"),
        (lambda: newest.total_variation(IMAGE, "none"), ValueError, "reduction must be one of"),
        (lambda: newest.total_variation(IMAGE[0, 0, 0]), ValueError, "img must have the shape"),
        (lambda: newest.inverse_depth_smoothness_loss(IMAGE[0], IMAGE), ValueError, "idepth must have the shape"),
        (lambda: newest.inverse_depth_smoothness_loss(IMAGE[..., 1:], IMAGE), ValueError, "the same H and W"),
        (lambda: newest.inverse_depth_smoothness_loss(IMAGE.double(), IMAGE), ValueError, "the same dtype"),
        (lambda: newest.inverse_depth_smoothness_loss(IMAGE.to("meta"), IMAGE), ValueError, "the same device"),
        (lambda: newest.welsch_loss(IMAGE, IMAGE[:0]), ValueError, "must have the same shape"),
        (lambda: newest.cauchy_loss(IMAGE, IMAGE.to("meta")), ValueError, "the same device"),
        (lambda: newest.charbonnier_loss(IMAGE, IMAGE, "max"), NotImplementedError, "got 'max'"),
    ],
)
def test_refusals(call, error, text):
    with pytest.raises(error, match=text):
        call()
