"""The piq drop-in, compared with the installed piq over random shapes, options and dtypes.

piq needs a torchvision that fits the build of torch. The test extra has neither.
"""

import pickle
import random

import pytest
import torch

from splat_ssim.compat import piq as ours
from tests import devices
from tests.compare import assert_same, assert_same_error, in_float64, joined, random_pair

piq = pytest.importorskip("piq", reason="piq or its torchvision is not installed", exc_type=ImportError)

pytestmark = pytest.mark.usefixtures("device", "threads")

#: Tolerances over the largest entry. The original computes E[x²] - E[x]².
TOLERANCE = {torch.float64: 1e-7, torch.float32: 2e-3}
#: Tolerances over the largest entry, from the original in float64 on the same float32 images.
ACCURACY = 1e-5


def assert_held(make, images, accuracy=ACCURACY):
    dtype = images[0].dtype
    assert_same(joined(make(ours)), joined(make(piq)), images, TOLERANCE[dtype])
    if dtype == torch.float32:
        assert_same(joined(make(ours)), in_float64(make(piq)), images, accuracy)


def draw(seed):
    rng = random.Random(seed)
    options = {"kernel_size": rng.choice([1, 3, 5, 7, 11]), "kernel_sigma": rng.choice([0.5, 1.0, 1.5])}
    options |= {"data_range": rng.choice([1.0, 255]), "reduction": rng.choice(["mean", "sum", "none"])}
    return rng, options | rng.choice([{}, {}, {"k1": 0.05, "k2": 0.1}])


def draw_images(rng, seed, options, least):
    """Draws plain images, or complex ones with a probability of 1/4."""
    is_complex = rng.random() < 0.25
    sides = [rng.randint(least, least + 6) for _ in range(2)]
    shape = (rng.randint(1, 3), rng.randint(1, 3), *sides, *([2] if is_complex else []))
    dtype = rng.choice([torch.float32, torch.float32, torch.float64])
    pair = random_pair(torch.Generator().manual_seed(seed), shape, dtype, float(options["data_range"]))
    # Complex images are computed by plain torch in float32, and a window of one pixel has no variance.
    return pair, 2e-3 if is_complex or options["kernel_size"] == 1 else ACCURACY


@pytest.mark.parametrize(("device", "seed"), devices.draws(60, emulated=12), indirect=["device"])
def test_ssim(seed):
    rng, options = draw(seed)
    pair, accuracy = draw_images(rng, seed, options, options["kernel_size"])
    if rng.random() < 0.5:
        assert_held(lambda package: package.SSIMLoss(**options), pair, accuracy)
    else:
        options["full"] = rng.random() < 0.5
        assert_held(lambda package: lambda a, b: package.ssim(a, b, **options), pair, accuracy)


@pytest.mark.parametrize(("device", "seed"), devices.draws(40, emulated=8), indirect=["device"])
def test_multi_scale_ssim(seed):
    rng, options = draw(seed)
    options["kernel_size"] = rng.choice([3, 5, 7])
    scales = rng.choice([1, 2, 3])
    options["scale_weights"] = torch.rand(scales, generator=torch.Generator().manual_seed(seed), device="cpu") + 0.1
    least = (options["kernel_size"] - 1) * 2 ** (scales - 1) + 1
    least = least + -least % 2 ** (scales - 1) if rng.random() < 0.5 else least
    pair, accuracy = draw_images(rng, seed, options, least)
    options["scale_weights"] = options["scale_weights"].to(pair[0].device)
    if rng.random() < 0.5:
        assert_held(lambda package: package.MultiScaleSSIMLoss(**options), pair, accuracy)
    else:
        assert_held(lambda package: lambda a, b: package.multi_scale_ssim(a, b, **options), pair, accuracy)


@pytest.mark.parametrize("device", devices.NATIVE, indirect=True)
@pytest.mark.parametrize("shape", [(1, 1, 176, 192), (1, 1, 161, 170)])
def test_defaults_of_multi_scale_ssim(shape):
    pair = random_pair(torch.Generator().manual_seed(0), shape, torch.float32)
    assert_held(lambda package: package.MultiScaleSSIMLoss(), pair)
    assert_held(lambda package: package.multi_scale_ssim, pair)


@pytest.mark.parametrize("device", devices.NATIVE, indirect=True)
def test_large_images_are_reduced():
    pair = random_pair(torch.Generator().manual_seed(0), (1, 1, 390, 400), torch.float32)
    for downsample in (True, False):
        assert_held(lambda package, on=downsample: package.SSIMLoss(downsample=on), pair)


@pytest.mark.parametrize("device", devices.NATIVE, indirect=True)
def test_other_dtypes():
    pair = random_pair(torch.Generator().manual_seed(0), (2, 1, 20, 20), torch.float32, 255.0)
    for change in (lambda image: image.byte(), lambda image: image.long()):
        changed = [change(image) for image in pair]
        found, expected = (package.ssim(*changed, data_range=255) for package in (ours, piq))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    for dtype in (torch.float16, torch.bfloat16):
        changed = [image.to(dtype) for image in pair]
        found = ours.ssim(*changed, data_range=255.0)
        assert found.dtype == dtype
        exact = piq.ssim(*(image.double() for image in changed), data_range=255.0)
        torch.testing.assert_close(found.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-6)
        for weights in (None, torch.ones(2), torch.ones(2, dtype=torch.float64)):
            options = {"kernel_size": 3, "scale_weights": weights, "data_range": 255.0}
            if weights is not None:
                options["scale_weights"] = weights.to(pair[0].device)
            scales = [
                package.multi_scale_ssim(*(image.repeat(1, 1, 2, 2) for image in changed), **options).dtype
                for package in (ours, piq)
            ]
            assert scales[0] == scales[1]


@pytest.mark.parametrize("device", devices.NATIVE, indirect=True)
def test_weights_may_be_learnt():
    pair = random_pair(torch.Generator().manual_seed(0), (1, 2, 40, 44), torch.float32)
    gradients = []
    for package in (ours, piq):
        weights = torch.tensor([0.3, 0.7], requires_grad=True)
        package.multi_scale_ssim(*pair, kernel_size=5, scale_weights=weights).backward()
        gradients.append(weights.grad)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("device", devices.NATIVE, indirect=True)
@pytest.mark.parametrize("weights", [(0.0, 1.0), (0.0, 0.5, 0.5), (0.5, 0.5), (0.0, 0.0)])
@pytest.mark.parametrize("learnt", [False, True])
def test_weights_of_zero(weights, learnt):
    """The finest contrast-structure term is negative. Weights that sum to 0 give NaN."""
    image, _ = random_pair(torch.Generator().manual_seed(0), (1, 2, 40, 40), torch.float32)
    values = []
    for package in (ours, piq):
        scale_weights = torch.tensor(weights, requires_grad=learnt)
        pred = (1 - image).requires_grad_()
        values.append(package.multi_scale_ssim(pred, image, kernel_size=3, scale_weights=scale_weights))
        if package is ours and sum(weights):
            assert torch.autograd.grad(values[0], pred)[0].isfinite().all()
    torch.testing.assert_close(*values, rtol=0, atol=1e-5, equal_nan=True)


def test_extremes():
    image, _ = random_pair(torch.Generator().manual_seed(0), (1, 2, 20, 20), torch.float32)
    flat = torch.full_like(image, 0.5)
    for pair in ((image, image), (image, 1 - image), (flat, flat), (flat, 0 * flat), (0 * flat, 0 * flat)):
        exact = [img.double() for img in pair]
        assert ours.ssim(*pair).item() == pytest.approx(piq.ssim(*exact).item(), abs=1e-6)
        options = {"kernel_size": 5, "scale_weights": torch.tensor([0.4, 0.6])}
        found, expected = ours.multi_scale_ssim(*pair, **options), piq.multi_scale_ssim(*exact, **options)
        assert found.item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("device", devices.NATIVE, indirect=True)
@pytest.mark.parametrize("side", [40, 41])
@pytest.mark.parametrize("parts", [(), (2,)])
def test_gradient_where_a_term_is_not_positive(side, parts):
    """The original's gradient is NaN there."""
    image, _ = random_pair(torch.Generator().manual_seed(0), (1, 1, side, side, *parts), torch.float32)
    pred = (1 - image).requires_grad_()
    options = {"kernel_size": 5, "scale_weights": torch.tensor([0.4, 0.6]), "reduction": "sum"}
    found, expected = ours.multi_scale_ssim(pred, image, **options), piq.multi_scale_ssim(pred, image, **options)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    (gradient,) = torch.autograd.grad(found.sum(), pred)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("device", devices.NATIVE, indirect=True)
def test_pickles():
    pair = random_pair(torch.Generator().manual_seed(0), (1, 1, 40, 40), torch.float32)
    for loss in (ours.SSIMLoss(7), ours.MultiScaleSSIMLoss(3, scale_weights=torch.ones(2))):
        assert pickle.loads(pickle.dumps(loss))(*pair) == loss(*pair)
    original = piq.MultiScaleSSIMLoss(3)
    ours.MultiScaleSSIMLoss(3).load_state_dict(original.state_dict())


@pytest.mark.parametrize("device", devices.NATIVE, indirect=True)
def test_errors():
    image = torch.rand(1, 1, 20, 20)
    calls = [
        (image, image, {"kernel_size": 4}, "kernel_size must be odd and positive, got 4"),
        (image, image[..., :9], {}, r"same shape, got \(1, 1, 20, 20\) and \(1, 1, 20, 9\)"),
        (image, 1.0, {}, "y must be a torch.Tensor, got float"),
        (image + 0j, image + 0j, {}, "x must be real, complex images have the two parts last, got torch.complex64"),
        (image[0], image[0], {}, r"must have the shape \(B, C, H, W\) or \(B, C, H, W, 2\)"),
        (image + 1, image, {}, r"x must have values in \[0, 1.0\], got \[1."),
        (image, -image, {}, r"y must have values in \[0, 1.0\], got \[-"),
        (image * torch.nan, image, {}, r"got \[nan, nan\]"),
        (image, image, {"reduction": "max"}, "reduction must be 'mean', 'sum' or 'none', got 'max'"),
        (image, image, {"kernel_size": 21}, "sides of at least"),
    ]
    for first, second, options, text in calls:
        for name in ("ssim", "multi_scale_ssim"):
            if name == "multi_scale_ssim" and options.get("kernel_size") != 21:
                options = {"kernel_size": 5, "scale_weights": torch.tensor([0.5, 0.5]), **options}
            assert_same_error(
                lambda a, b, name=name, options=options: getattr(ours, name)(a, b, **options),
                lambda a, b, name=name, options=options: getattr(piq, name)(a, b, **options),
                first,
                second,
                text=text,
            )
    # The original returns NaN.
    for name in ("ssim", "multi_scale_ssim"):
        with pytest.raises(ValueError, match=r"kernel_sigma must not be 0, got 0\.0"):
            getattr(ours, name)(image, image, kernel_sigma=0, reduction="max")
    for loss in (ours.SSIMLoss(kernel_sigma=0.0), ours.MultiScaleSSIMLoss(kernel_sigma=torch.tensor(0.0))):
        with pytest.raises(ValueError, match=r"kernel_sigma must not be 0, got 0\.0"):
            loss(image, image)
    weights = {"scale_weights": torch.ones(2, 2)}
    multiscale = [lambda p=p: p.multi_scale_ssim(image, image, **weights) for p in (ours, piq)]
    assert_same_error(*multiscale, text=r"scale_weights must be a vector, got the shape \(2, 2\)")
    for name in ("SSIMLoss", "MultiScaleSSIMLoss"):
        assert_same_error(*(lambda p=p, name=name: getattr(p, name)(4) for p in (ours, piq)), text="odd")
