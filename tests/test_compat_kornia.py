"""The kornia drop-in, compared with the installed kornia over random shapes, options and dtypes."""

import copy
import random

import kornia
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from splat_ssim.compat import kornia as newest
from splat_ssim.compat import kornia_0_8
from tests import devices
from tests.compare import assert_same, plain, random_pair

pytestmark = pytest.mark.usefixtures("device", "threads")

ours = newest if tuple(map(int, kornia.__version__.split(".")[:2])) >= (0, 9) else kornia_0_8

# Over the largest entry. float64: both sides round; kornia's windows of MS_SSIMLoss, and of volumes in kornia 0.8, are
# outer products that are rounded to float32. float32: kornia's E[x²] - E[x]². Half precision: kornia rounds more often.
EXACT = {torch.float64: 1e-11, torch.float32: 5e-4, torch.float16: 2e-2, torch.bfloat16: 2e-2}
ROUNDED_WINDOW = {**EXACT, torch.float64: 1e-6}
VOLUMES = EXACT if ours is newest else ROUNDED_WINDOW
#: kornia 0.8 treats any text but "valid" as "same", even "VALID".
PADDINGS = ["same", "valid", "Same", "VALID"] if ours is newest else ["same", "valid", "Same"]


def accuracy(window):
    """Tolerances over the largest entry, from kornia in float64 on the same float32 images.

    A window of one pixel has no variance, so its gradients cancel completely. kornia in float32 is off by 2e-4.
    """
    return 1e-5 if window > 1 else 5e-5


# The fuzzer (tests/fuzz.py) repeats such draws for any time.
DRAWS = devices.draws(40, emulated=16)


def draw(seed, dtypes=(torch.float64, torch.float32)):
    rng = random.Random(seed)
    return rng, torch.Generator().manual_seed(seed), rng.choice(dtypes)


def shape_for(rng, window, spatial_dims, padding):
    """Draws a shape, down to the smallest that the window and the padding permit."""
    least = window if padding.lower() == "valid" else window // 2 + 1
    sides = [rng.randint(least, window + 5) for _ in range(spatial_dims)]
    return (rng.randint(1, 2), rng.randint(1, 3), *sides)


def in_float64(function):
    """Wraps a function so that it computes in float64 and returns the dtype of the images."""
    return lambda *images: function(*(img.double() for img in images)).to(images[0].dtype)


@pytest.mark.parametrize(("device", "seed"), DRAWS, indirect=["device"])
def test_ssim_of_images(seed):
    rng, generator, dtype = draw(seed, (torch.float64, torch.float32, torch.float16, torch.bfloat16))
    half = dtype in (torch.float16, torch.bfloat16)
    # In kornia 0.8, half precision cannot represent SSIM's constants at large or small ranges.
    window, top = rng.choice([1, 3, 5, 7, 11]), 1.0 if half else rng.choice([1.0, 2.0, 255.0])
    eps, padding = rng.choice([0.0, 1e-12, 1e-3]), rng.choice(PADDINGS)
    reduction = rng.choice(["mean", "sum", "none"])
    images = random_pair(generator, shape_for(rng, window, 2, padding), dtype, top)
    options = {"max_val": top, "eps": eps, "padding": padding}
    calls = [
        (lambda package: lambda a, b: package.ssim(a, b, window, **options), kornia.metrics),
        (lambda package: package.SSIMLoss(window, reduction=reduction, **options), kornia.losses),
    ]
    for call, package in calls:
        if half:
            found, expected = call(ours)(*images), call(package)(*images)
            assert found.dtype == expected.dtype
            exact = call(package)(*(img.double() for img in images))
            torch.testing.assert_close(found.double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=1e-5)
            continue
        assert_same(call(ours), call(package), images, EXACT[dtype])
        if dtype == torch.float32:
            assert_same(call(ours), in_float64(call(package)), images, accuracy(window))


@pytest.mark.parametrize(("device", "seed"), DRAWS, indirect=["device"])
def test_ssim_of_volumes(seed):
    rng, generator, dtype = draw(seed)
    window, top, padding = rng.choice([1, 3, 5]), rng.choice([1.0, 2.0, 255.0]), rng.choice(PADDINGS)
    options = {"max_val": top, "eps": rng.choice([0.0, 1e-12, 1e-3]), "padding": padding}
    reduction = rng.choice(["mean", "sum", "none"])
    images = random_pair(generator, shape_for(rng, window, 3, padding), dtype, top)
    calls = [
        (lambda package: lambda a, b: package.ssim3d(a, b, window, **options), kornia.metrics),
        (lambda package: package.SSIM3DLoss(window, reduction=reduction, **options), kornia.losses),
    ]
    for call, package in calls:
        assert_same(call(ours), call(package), images, VOLUMES[dtype])
        if dtype == torch.float32:
            assert_same(call(ours), in_float64(call(package)), images, accuracy(window))


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("top", [1.0, 255.0])
def test_ssim_at_its_extremes(spatial_dims, top):
    """Equal images, opposite ones (S near -1), flat and black ones: values and both gradients."""
    image, _ = random_pair(torch.Generator().manual_seed(0), (1, 2, *[12] * spatial_dims), torch.float32, top)
    flat = torch.full_like(image, 0.9 * top)
    loss = "ssim_loss" if spatial_dims == 2 else "ssim3d_loss"
    # The rounded weights of kornia 0.8 sum to 1 - 1.2e-7. A flat volume of 0.9 then has a variance of 1e-7, which is
    # 1.1e-4 of the C2 that it is added to.
    tolerance = 1e-5 if ours is newest or spatial_dims == 2 else 2e-4
    pairs = [(image, image), (image, top - image), (flat, flat), (flat, 0 * flat), (0 * flat, 0 * flat), (image, flat)]
    for pair in pairs:
        for reduction in ("mean", "none"):
            results = []
            for package, dtype in ((ours, torch.float32), (kornia.losses, torch.float64)):
                inputs = [img.to(dtype).clone().requires_grad_() for img in pair]
                value = getattr(package, loss)(*inputs, 5, max_val=top, reduction=reduction)
                value.sum().backward()
                results.append([value.detach().double(), *(img.grad.double() for img in inputs)])
            (value, *gradients), (exact, *exact_gradients) = results
            torch.testing.assert_close(value, exact, rtol=0, atol=3e-6)
            for found, expected in zip(gradients, exact_gradients, strict=True):
                # Where S is nearly 0, as for a bright image and a black one, its gradient is nearly 0 too. Its error is
                # then relative to the size that gradients have elsewhere.
                scale = max(expected.abs().max().item(), 0.05 / top)
                torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * scale)


class Operators(TorchDispatchMode):
    """Records the names of the operators that run."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("package", [newest, kornia_0_8])
def test_the_defaults_reach_the_kernels(package):
    """With kornia's default eps of 1e-12 and max_val of 1, plain torch once computed every call."""
    if devices.current() != "cpu":
        pytest.skip("counts the CPU's operators")
    image, volume = torch.rand(1, 3, 16, 16), torch.rand(1, 1, 12, 12, 12)
    calls = {
        "ssim_loss": (lambda a, b: package.ssim_loss(a, b, 11), image, "photometric"),
        "SSIMLoss": (package.SSIMLoss(11, reduction="sum", padding="valid"), image, "photometric"),
        "half": (lambda a, b: package.ssim_loss(a.half(), b.bfloat16(), 5), image, "photometric"),
        "integers": (lambda a, b: package.ssim_loss((a * 255).byte(), (b * 255).int(), 5, 255.0), image, "photometric"),
        "ssim": (lambda a, b: package.ssim(a, b, 11), image, "ssim_map"),
        "ssim3d_loss": (lambda a, b: package.ssim3d_loss(a, b, 11), volume, "photometric"),
        "ssim3d": (lambda a, b: package.ssim3d(a, b, 11), volume, "ssim_map"),
        "MS_SSIMLoss": (package.MS_SSIMLoss(), image, "ssim_map"),
    }
    for name, (function, images, operator) in calls.items():
        with Operators() as operators:
            function(images, 1 - images)
        assert f"splat_ssim::{operator}" in operators.names, name
        assert "aten::convolution" not in operators.names or name == "MS_SSIMLoss", name
        assert not any(other.startswith("splat_ssim::reference") for other in operators.names)
    with Operators() as operators:
        package.ssim_loss(image.double(), image.double(), 11)
    assert not any(name.startswith("splat_ssim") for name in operators.names)


@pytest.mark.parametrize(
    "dtypes", [(torch.float16, torch.float32), (torch.float32, torch.float64), (torch.uint8, torch.float32)]
)
def test_images_of_two_dtypes(dtypes):
    """kornia's window has the dtype of the first image."""
    images = random_pair(torch.Generator().manual_seed(0), (1, 2, 9, 9), torch.float32, 255.0)
    images = [img.to(dtype) for img, dtype in zip(images, dtypes, strict=True)]
    for function in (lambda p: p.ssim, lambda p: p.SSIM(5, 255.0)):
        found = function(newest)(*images, *((5, 255.0) if function(newest) is newest.ssim else ()))
        exact = kornia.metrics.ssim(*(img.double() for img in images), 5, 255.0)
        torch.testing.assert_close(found.double(), exact, rtol=0, atol=3e-6)
        assert found.dtype == torch.promote_types(*dtypes)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("integer", [torch.uint8, torch.int64, torch.bool])
def test_an_integer_image_counts_as_float32(half, integer):
    """Else the loss of a half-precision render and a uint8 target would be rounded to three digits."""
    images = random_pair(torch.Generator().manual_seed(0), (1, 2, 9, 9), torch.float32, 255.0)
    images = [images[0].to(half), images[1].to(integer)]
    calls = [
        lambda p: lambda a, b: p.ssim_loss(a, b, 5, 255.0),
        lambda p: lambda a, b: p.ssim3d_loss(a[:, :, None].tile(4, 1, 1), b[:, :, None].tile(4, 1, 1), 3, 255.0),
        lambda p: p.MS_SSIMLoss(sigmas=[0.5], data_range=255.0),
    ]
    for call in calls:
        for pair in (images, images[::-1]):
            found, exact = call(newest)(*pair), call(newest)(*(image.double() for image in pair))
            assert found.dtype == torch.float32
            torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)
            if ours is newest:
                theirs = call(kornia.losses)(*pair)
                assert theirs.dtype == torch.float32
                torch.testing.assert_close(found, theirs, rtol=1e-4, atol=1e-4)


def test_integers_have_the_dtype_of_ms_ssim_loss():
    if ours is not newest:
        pytest.skip("kornia 0.8 takes float32 alone")
    images = [img.byte() for img in random_pair(torch.Generator().manual_seed(0), (1, 3, 9, 8), torch.float32, 255.0)]
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        with plain():
            losses = [
                package.MS_SSIMLoss(data_range=255.0).to(images[0].device, dtype) for package in (ours, kornia.losses)
            ]
        found, expected = (loss(*images) for loss in losses)
        assert found.dtype == expected.dtype == dtype
        # kornia rounds its windows to float32.
        tolerance = 4 * torch.finfo(dtype).eps + 1e-7
        torch.testing.assert_close(found.double(), losses[1].double()(*images), rtol=tolerance, atol=0)
    torch.set_default_dtype(torch.float64)
    try:
        values = [package.MS_SSIMLoss()(*images).dtype for package in (ours, kornia.losses)]
    finally:
        torch.set_default_dtype(torch.float32)
    assert values == [torch.float64] * 2


NUMBERS = [np.float32, np.float64, np.array, torch.tensor, lambda value: torch.tensor([value]), float]


@pytest.mark.parametrize("device", devices.NATIVE, indirect=True)
@pytest.mark.parametrize("kind", NUMBERS)
@pytest.mark.parametrize("package", [newest, kornia_0_8])
def test_options_of_any_kind(package, kind):
    """numpy scalars, arrays and tensors without axes, as numbers."""
    image, volume = (
        random_pair(torch.Generator().manual_seed(0), shape, torch.float32) for shape in ((1, 3, 9, 9), (1, 1, 6, 6, 6))
    )
    losses = [(package.ssim_loss, image), (package.ssim3d_loss, volume)]
    losses = [(loss, images, loss(*images, 5, max_val=2.0, eps=1e-3)) for loss, images in losses]
    similarity = package.ssim(*image, 5, 2.0, 1e-3)
    for window in (5, np.int64(5), torch.tensor(5), np.array(5)):
        for function, images, expected in losses:
            found = function(*images, window, max_val=kind(2.0), eps=kind(1e-3))
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
        found = package.SSIM(window, kind(2.0), kind(1e-3))(*image)
        torch.testing.assert_close(found, similarity, rtol=0, atol=1e-6)
    plain = {"sigmas": (1.0, 2.0), "data_range": 2.0, "K": (0.02, 0.05), "alpha": 0.1, "compensation": 3.0}
    of_kind = {name: kind(value) if isinstance(value, float) else value for name, value in plain.items()}
    of_kind["K"] = [kind(value) for value in plain["K"]]
    found, expected = package.MS_SSIMLoss(**of_kind)(*image), package.MS_SSIMLoss(**plain)(*image)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor])
def test_sequences_of_any_kind(kind):
    images = random_pair(torch.Generator().manual_seed(0), (1, 3, 9, 9), torch.float32)
    found = ours.MS_SSIMLoss(sigmas=kind([0.5, 1.0, 2.0]), K=kind([0.02, 0.05]))(*images)
    expected = kornia.losses.MS_SSIMLoss(sigmas=[0.5, 1.0, 2.0], K=(0.02, 0.05))(*images)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def test_a_gradient_reaches_options():
    """Plain torch computes such calls, because an option converted to a float would lose its gradient."""
    images = random_pair(torch.Generator().manual_seed(0), (1, 2, 9, 9), torch.float32)
    top = torch.tensor(2.0, requires_grad=True)
    newest.ssim_loss(*images, 5, max_val=top).backward()
    step = 1e-3
    above, below = (newest.ssim_loss(*(img.double() for img in images), 5, 2.0 + sign * step) for sign in (1, -1))
    torch.testing.assert_close(top.grad.double(), (above - below) / (2 * step), rtol=1e-4, atol=0)
    gradients = []
    for package in (ours, kornia.losses):
        options = {name: torch.tensor(0.3, requires_grad=True) for name in ("data_range", "alpha", "compensation")}
        package.MS_SSIMLoss(sigmas=(1.0, 2.0), **options)(*images).backward()
        gradients.append([option.grad for option in options.values()])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("max_val", [0.0, -2.0])
@pytest.mark.parametrize("eps", [1e-12, 1.0, -1.0, torch.nan])
def test_numbers_that_make_little_sense(max_val, eps):
    images = random_pair(torch.Generator().manual_seed(0), (1, 2, 9, 9), torch.float64)
    found, expected = (package.ssim(*images, 5, max_val, eps) for package in (newest, kornia.metrics))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9, equal_nan=True)
    single = newest.ssim(*(img.float() for img in images), 5, max_val, eps)
    torch.testing.assert_close(single.double(), expected, rtol=1e-3, atol=1e-3, equal_nan=True)


@pytest.mark.parametrize(("device", "seed"), DRAWS, indirect=["device"])
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
    images = random_pair(generator, (2, channels, rng.randint(1, 9), rng.randint(1, 9)), dtype, top)
    with plain():
        loss, theirs = (package.MS_SSIMLoss(**options).to(images[0].device) for package in (ours, kornia.losses))
    assert_same(loss, theirs, images, ROUNDED_WINDOW[dtype])
    if dtype == torch.float32 and ours is newest:
        assert_same(loss, in_float64(theirs), images, 2e-5)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.uint8, torch.int16, torch.int64, torch.bool, torch.float64]
)
def test_ms_ssim_loss_in_every_dtype(dtype):
    if ours is not newest:
        pytest.skip("kornia 0.8 takes float32 alone")
    images = [
        (img * 255).to(dtype) for img in random_pair(torch.Generator().manual_seed(0), (2, 3, 9, 8), torch.float32)
    ]
    for reduction in ("mean", "sum", "none"):
        options = {"data_range": 255.0, "reduction": reduction}
        with plain():
            losses = [package.MS_SSIMLoss(**options).to(images[0].device) for package in (ours, kornia.losses)]
        found, expected = (loss(*images) for loss in losses)
        assert found.dtype == expected.dtype
        exact = losses[1](*(img.double() for img in images))
        torch.testing.assert_close(found.double(), exact, rtol=2 * torch.finfo(found.dtype).eps + 1e-6, atol=1e-5)


@pytest.mark.parametrize("package", [newest, kornia_0_8])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_autocast_does_not_change_ms_ssim_loss(package, reduction):
    pair = random_pair(torch.Generator().manual_seed(0), (1, 3, 24, 25), torch.float32)
    loss = package.MS_SSIMLoss((0.5, 1.0, 2.0), reduction=reduction).to(pair[0].device)
    with torch.autocast(pair[0].device.type, torch.bfloat16):
        found = loss(*pair)
    torch.testing.assert_close(found, loss(*pair), rtol=0, atol=0)


def test_ms_ssim_loss_with_windows_that_are_no_gaussians():
    """The windows are a buffer, which a user may fill with any outer products."""
    images = random_pair(torch.Generator().manual_seed(0), (2, 3, 9, 8), torch.float32)
    taps = torch.rand(2, 9)
    taps /= taps.sum(1, keepdim=True)
    for reduction in ("mean", "none"):
        losses = [package.MS_SSIMLoss(sigmas=(1.0, 2.0), reduction=reduction) for package in (newest, kornia.losses)]
        for loss in losses:
            state = loss.__getstate__() if hasattr(loss, "__getstate__") else dict(vars(loss))
            state = {key: value for key, value in state.items() if key != "_mask_sigmas"}
            state["_buffers"] = {"_g_masks": (taps[:, :, None] * taps[:, None])[:, None]}
            loss.__setstate__(state)
        if ours is newest:
            assert_same(*losses, images, EXACT[torch.float32])


def test_ms_ssim_loss_compares_one_image_with_many():
    many, _ = random_pair(torch.Generator().manual_seed(0), (3, 2, 8, 8), torch.float32)
    one = many[:1].flip(-1)
    loss = newest.MS_SSIMLoss(reduction="none")
    torch.testing.assert_close(loss(one, many), loss(one.expand(3, -1, -1, -1), many))


@pytest.mark.parametrize("device", devices.NATIVE, indirect=True)
@pytest.mark.parametrize("seed", range(40))
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
    # The mean of no differences is NaN in kornia 0.8.
    mean = rng.choice(["mean", "sum"]) if ours is newest or min(shape[2:]) > 1 else "sum"
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
        # kornia 0.8 truncates its window to integers.
        theirs = (img1, img2) if ours is newest else (img1.float(), img2.float())
        expected = kornia.metrics.ssim(*theirs, 5, max_val=255.0)
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


# kornia 0.8 and 0.9 cannot be installed together, so the older definitions are also held to themselves by hand, and to
# numbers that kornia 0.8.1 gave.


def waves(*shape):
    index = torch.arange(torch.Size(shape).numel(), dtype=torch.float64).reshape(shape)
    return [(torch.sin(index * frequency) + 1) / 2 for frequency in (0.7, 0.71)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("sigmas", "channels", "shape", "expected"),
    [
        ((0.5, 1.0, 2.0, 4.0, 8.0), 3, (9, 8), 14.862839407768908),
        ((0.5, 1.0, 2.0, 4.0, 8.0), 5, (9, 8), 22.7535866872868),
        # Windows of 6, 6, 2 and 12 taps.
        ((0.5, 1.3), 3, (8, 7), 57.964671841418564),
        ((1.25,), 1, (8, 7), 21.434925071412174),
        ((0.4,), 3, (8, 7), 68.29717395052299),
        ((1.7, 2.9), 1, (8, 7), 15.268403493144302),
    ],
)
def test_older_ms_ssim_loss_gives_the_numbers_of_0_8_1(sigmas, channels, shape, expected, dtype):
    images = [img.to(dtype) for img in waves(1, channels, 9, 8)]
    tolerance = 1e-7 if dtype == torch.float64 else 1e-5
    assert kornia_0_8.MS_SSIMLoss(sigmas)(*images).item() == pytest.approx(expected, rel=tolerance)
    by_pixel = kornia_0_8.MS_SSIMLoss(sigmas, reduction="none")(*images)
    assert by_pixel.shape == (1, *shape)
    assert by_pixel.mean().item() == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("window", "padding", "shape", "expected"),
    [
        # Borders that are wider than a side is long.
        (5, "same", (1, 2, 1, 3, 4), 0.989417789609356),
        (7, "same", (1, 1, 4, 5, 2), 0.9747955945775282),
        (5, "valid", (1, 1, 6, 5, 7), 0.44936098822955134),
    ],
)
def test_older_volumes_give_the_numbers_of_0_8_1(window, padding, shape, expected, dtype):
    images = [img.to(dtype) for img in waves(*shape)]
    tolerance = 1e-8 if dtype == torch.float64 else 2e-6
    found = kornia_0_8.ssim3d(*images, window, padding=padding)
    assert found.mean().item() == pytest.approx(expected, abs=tolerance)
    loss = kornia_0_8.ssim3d_loss(*images, window, padding=padding)
    assert loss.item() == pytest.approx(1 - expected, abs=tolerance)


def test_ms_ssim_loss_loads_the_state_of_an_older_one():
    """kornia 0.9 drops the windows that 0.8 stored, so that checkpoints of a model that holds the loss still load."""
    packages = [newest, kornia.losses] if ours is newest else [newest]
    for package in packages:
        model = torch.nn.Sequential(torch.nn.Linear(2, 2), package.MS_SSIMLoss())
        windows = model[1]._g_masks.clone()
        older = {**model[0].state_dict(prefix="0."), **kornia_0_8.MS_SSIMLoss().state_dict(prefix="1.")}
        assert "1._g_masks" in older
        assert str(model.load_state_dict(older)) == "<All keys matched successfully>"
        torch.testing.assert_close(model[1]._g_masks, windows, rtol=0, atol=0)
    # The older one needs them.
    with pytest.raises(RuntimeError, match=r'Missing key.*"_g_masks"'):
        kornia_0_8.MS_SSIMLoss().load_state_dict({})


def test_older_ms_ssim_loss_keeps_its_windows_in_the_state_dict():
    images = random_pair(torch.Generator().manual_seed(0), (2, 3, 9, 8), torch.float32)
    saved, loaded = kornia_0_8.MS_SSIMLoss((0.5, 1.0, 2.0)), kornia_0_8.MS_SSIMLoss((0.7, 1.5, 2.0))
    assert saved.state_dict()["_g_masks"].shape == (9, 1, 9, 9)
    assert not torch.allclose(loaded(*images), saved(*images))
    loaded.load_state_dict(saved.state_dict())
    torch.testing.assert_close(loaded(*images), saved(*images), rtol=1e-6, atol=0)
    # Windows that are not Gaussian, here the mean of two Gaussians.
    mixed = (saved.state_dict()["_g_masks"] + saved.state_dict()["_g_masks"].roll(3, 0)) / 2
    separable = mixed.sum(3, keepdim=True) * mixed.sum(2, keepdim=True)
    loaded.load_state_dict({"_g_masks": separable})
    again = copy.deepcopy(loaded)
    torch.testing.assert_close(again(*images), loaded(*images), rtol=0, atol=0)
    assert not torch.allclose(loaded(*images), saved(*images))


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
COMPLEX = IMAGE.to(torch.complex64)
BYTES = IMAGE.byte()
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
        (lambda: newest.ssim_loss(IMAGE, IMAGE, 17), RuntimeError, "larger than 8, got"),
        (lambda: newest.ssim3d(VOLUME, VOLUME, 9, padding="valid"), RuntimeError, "at least window_size=9"),
        (lambda: newest.ssim(IMAGE, IMAGE, 5, max_val=IMAGE), TypeError, "max_val must be a number"),
        (lambda: newest.ssim(IMAGE, IMAGE, 5, max_val="1"), TypeError, "max_val must be a number, got str"),
        (lambda: newest.ssim(IMAGE, IMAGE, 5, max_val=True), TypeError, "max_val must be a number, got bool"),
        (lambda: newest.ssim(IMAGE, IMAGE, 5, max_val=torch.inf), ValueError, "max_val must be finite, got inf"),
        (lambda: newest.ssim(IMAGE, IMAGE, True), TypeError, "window_size must be an int, got bool"),
        (lambda: newest.ssim(IMAGE, IMAGE, np.array([5, 5])), TypeError, "window_size must be an int, got ndarray"),
        (lambda: newest.ssim(COMPLEX, IMAGE, 5), TypeError, "img1 must be real, got torch.complex64"),
        (lambda: newest.MS_SSIMLoss()(COMPLEX, COMPLEX), TypeError, "img1 must be real, got torch.complex64"),
        (lambda: newest.MS_SSIMLoss()(IMAGE, COMPLEX), RuntimeError, "img2 must be real, got torch.complex64"),
        (lambda: kornia_0_8.MS_SSIMLoss()(COMPLEX, IMAGE), TypeError, "img1 must be real, got torch.complex64"),
        (lambda: newest.ssim(IMAGE, IMAGE.to("meta"), 5), ValueError, "must be on the same device"),
        (lambda: newest.MS_SSIMLoss(sigmas=(1.0, -1.0)), ValueError, "sigmas must be finite numbers of 0 or more"),
        (lambda: newest.MS_SSIMLoss(K=(0.01,)), ValueError, r"K must be two numbers, got \(0.01,\)"),
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
        (lambda: newest.inverse_depth_smoothness_loss(BYTES, BYTES), TypeError, "must be floating point, got"),
        (lambda: newest.inverse_depth_smoothness_loss(BYTES, BYTES), RuntimeError, "must be floating point, got"),
        (lambda: newest.inverse_depth_smoothness_loss(BYTES, BYTES.int()), ValueError, "the same dtype"),
        (lambda: newest.inverse_depth_smoothness_loss(BYTES, IMAGE), ValueError, "the same dtype"),
        (
            lambda: newest.welsch_loss(BYTES.bool(), BYTES.bool()),
            RuntimeError,
            "must be int32 or int64, got torch.bool",
        ),
        (lambda: newest.cauchy_loss(BYTES, BYTES.bool()), TypeError, "int32 or int64, got torch.uint8 and torch.b"),
        (lambda: newest.welsch_loss(IMAGE, IMAGE[:0]), ValueError, "must have the same shape"),
        (lambda: newest.cauchy_loss(IMAGE, IMAGE.to("meta")), ValueError, "the same device"),
        (lambda: newest.charbonnier_loss(IMAGE, IMAGE, "max"), NotImplementedError, "got 'max'"),
    ],
)
def test_refusals(call, error, text):
    with pytest.raises(error, match=text):
        call()
