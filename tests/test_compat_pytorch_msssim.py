"""The pytorch_msssim drop-in, compared with the package over random shapes, options and dtypes."""

import copy
import pickle
import random
import sys
import warnings

import numpy as np
import pytest
import pytorch_msssim as original
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from splat_ssim.compat import pytorch_msssim as ours
from tests import devices
from tests.compare import assert_same, random_pair

#: The attribute pytorch_msssim.ssim is the function. The module of that name has other names that public code imports.
private = sys.modules["pytorch_msssim.ssim"]

pytestmark = pytest.mark.usefixtures("device", "threads")

# Over the largest entry. float64: both sides round, with the same float32 window; float32: cancellation in the
# original's E[x²] - E[x]², whose window does not sum to exactly 1.
TOLERANCES = {torch.float64: 1e-11, torch.float32: 5e-4}

# The fuzzer (tests/fuzz.py) repeats such draws for any time.
DRAWS = devices.draws(40, emulated=16)


def quietly(function):
    """Ignores the warnings about axes that are not smoothed."""

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


@pytest.mark.parametrize(("device", "seed"), DRAWS, indirect=["device"])
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


@pytest.mark.parametrize(("device", "seed"), DRAWS, indirect=["device"])
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
    large = random_pair(generator, (2, 2, *[33] * spatial_dims), torch.float32)  # what `ms_ssim` needs
    small = [img[..., :12].narrow(2, 0, 12) for img in large]
    options = {"data_range": 1.0, "win_size": 3, "channel": 2, "spatial_dims": spatial_dims, "K": (0.02, 0.05)}
    for name, more in (("SSIM", {"nonnegative_ssim": True}), ("MS_SSIM", {"weights": [0.4, 0.6]})):
        for size_average in (True, False):
            arguments = {**options, **more, "size_average": size_average}
            found, expected = (getattr(package, name)(**arguments) for package in (ours, original))
            assert_same(found, expected, small if name == "SSIM" else large, TOLERANCES[torch.float32])
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "weights", [[0.0, 1.0], [0.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.0, 0.0], [0.0], [1.0, -0.5], [-0.5, 1.0]]
)
def test_weights_that_are_not_positive(weights, dtype):
    """The finest contrast-structure term is negative, so that a weight of 0 must leave it out: 0 to the power of 0."""
    coarse, _ = random_pair(torch.Generator().manual_seed(0), (2, 2, 24, 24), dtype)
    coarse = torch.nn.functional.interpolate(coarse, size=(48, 48), mode="bilinear")
    rows = torch.arange(48, device=coarse.device)
    checks = 0.4 * ((rows[:, None] + rows) % 2 * 2 - 1).to(dtype)
    images = [(coarse + checks).clamp(0, 1), (coarse - checks).clamp(0, 1)]

    def call(package):
        return lambda a, b: package.ms_ssim(a, b, 1.0, win_size=3, weights=weights, size_average=False)

    if weights[0] >= 0:
        assert_same(call(ours), call(original), images, TOLERANCES[dtype])
    else:
        assert call(ours)(*images).isinf().all() and call(original)(*images).isinf().all()


# --------------------------------------------------------------------------------------------------------------------
# Options
# --------------------------------------------------------------------------------------------------------------------

NUMBERS = [np.float32, np.float64, np.array, lambda value: np.array([value]), torch.tensor, float]


@pytest.mark.parametrize("device", devices.NATIVE, indirect=True)
@pytest.mark.parametrize("kind", [*NUMBERS, lambda value: torch.tensor([value])])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_options_of_any_kind(kind, dtype):
    images = random_pair(torch.Generator().manual_seed(0), (1, 1, 33, 33), dtype, 2.0)
    options = {"data_range": 2.0, "win_sigma": 1.25}
    of_kind = {name: kind(value) for name, value in options.items()}
    sizes = [3, np.int64(3), torch.tensor(3), 3.0, np.float32(3)]
    pairs = [(0.02, 0.05), np.array([0.02, 0.05]), torch.tensor([0.02, 0.05]), [kind(0.02), kind(0.05)]]
    expected = ours.ssim(*images, **options, win_size=3, K=(0.02, 0.05))
    for win_size, K in [(size, pairs[0]) for size in sizes] + [(sizes[0], pair) for pair in pairs]:
        found = ours.ssim(*images, **of_kind, win_size=win_size, K=K)
        assert found.dtype == dtype
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    theirs = original.ssim(*images, **{name: torch.tensor(value) for name, value in options.items()}, win_size=3)
    torch.testing.assert_close(ours.ssim(*images, **of_kind, win_size=3), theirs, rtol=0, atol=1e-5)
    theirs = original.ms_ssim(*images, **options, win_size=3, weights=[0.4, 0.6])
    for weights in ([0.4, 0.6], (0.4, 0.6), np.array([0.4, 0.6]), torch.tensor([0.4, 0.6]), [torch.tensor(0.4), 0.6]):
        found = ours.ms_ssim(*images, **of_kind, win_size=3, weights=weights)
        torch.testing.assert_close(found, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("flag", [np.bool_(False), torch.tensor(False), 0, None])
def test_flags_of_any_kind(flag):
    images = random_pair(torch.Generator().manual_seed(0), (3, 2, 12, 12), torch.float32)
    assert ours.ssim(*images, 1.0, size_average=flag).shape == (3,)
    assert ours.ssim(*images, 1.0, size_average=False, nonnegative_ssim=flag).shape == (3,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["ssim", "ms_ssim"])
def test_a_range_taken_from_the_data(name, dtype):
    """VainF/pytorch-msssim#14. The images get the gradient of the range too."""
    images = random_pair(torch.Generator().manual_seed(0), (1, 2, 50, 52), dtype)

    def call(package):
        function = getattr(package, name)
        return lambda a, b: function(a, b, data_range=torch.maximum(a.max(), b.max()) - a.min(), win_size=3)

    assert_same(call(ours), call(original), images, TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_reach_options(dtype):
    images = random_pair(torch.Generator().manual_seed(0), (1, 2, 16, 16), dtype)
    gradients = []
    for package in (ours, original):
        data_range, K = torch.tensor(2.0, requires_grad=True), torch.tensor([0.1, 0.2], requires_grad=True)
        win = torch.tensor([0.2, 0.5, 0.3]).repeat(2, 1, 1, 1).requires_grad_()
        package.ssim(*images, data_range=data_range, K=K, win=win).backward()
        gradients.append([data_range.grad, K.grad, win.grad])
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


def test_a_range_for_each_image():
    images = random_pair(torch.Generator().manual_seed(0), (2, 3, 16, 16), torch.float64)
    data_range = torch.tensor([1.0, 2.0], dtype=torch.float64).view(2, 1, 1, 1)
    found, expected = (package.ssim(*images, data_range=data_range) for package in (ours, original))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "options",
    [
        {"data_range": -1.0},
        {"data_range": 0.0},
        {"win_sigma": -1.5},
        {"win_sigma": 1e3},
        {"win_sigma": torch.inf},
        {"K": (-0.01, 0.03)},
        {"K": (0.0, 0.03)},
        {"K": (0.0, 0.0)},
        {"win_size": 1},
        {"win_size": True},
        {"win_size": 35},
    ],
)
def test_numbers_that_the_original_takes(options):
    images = random_pair(torch.Generator().manual_seed(0), (1, 2, 40, 40), torch.float64)
    options = {"data_range": 1.0, **options}
    found, expected = (package.ssim(*images, **options) for package in (ours, original))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    single = ours.ssim(*(img.float() for img in images), **options)
    torch.testing.assert_close(single.double(), expected, rtol=0, atol=1e-5)


# --------------------------------------------------------------------------------------------------------------------
# Names that are private in the original, and the window of the modules
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "sigma"), [(11, 1.5), (5, 0.3), (7, 100.0), (1, 1.5), (4, 1.5)])
def test_fspecial_gauss_1d(size, sigma):
    found, expected = ours._fspecial_gauss_1d(size, sigma), private._fspecial_gauss_1d(size, sigma)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    if size % 2 == 1:
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize(("device", "seed"), DRAWS, indirect=["device"])
def test_private_functions(seed):
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    dtype, spatial_dims, size = rng.choice([torch.float32, torch.float64]), rng.choice([2, 3]), rng.choice([3, 5, 11])
    # The last axis is smoothed. Without a variance, gradients would be nothing but rounding.
    channels, sides = rng.randint(1, 3), [*(rng.randint(2, 14) for _ in range(spatial_dims - 1)), rng.randint(size, 14)]
    images = random_pair(generator, (rng.randint(1, 2), channels, *sides), dtype)
    win = private._fspecial_gauss_1d(size, rng.choice([1.5, 0.8])).repeat(channels, *[1] * (spatial_dims + 1))
    if rng.random() < 0.3:
        win = win * 0.9 + 0.1 * torch.rand(win.shape, generator=generator, device="cpu").to(win.device)
    tolerance = TOLERANCES[dtype]
    assert_same(
        quietly(lambda a: ours.gaussian_filter(a, win)),
        quietly(lambda a: private.gaussian_filter(a, win.to(a.dtype))),
        images[:1],
        min(tolerance, 1e-5),
    )
    options = {"data_range": rng.choice([1.0, 255]), "K": rng.choice([(0.01, 0.03), [0.05, 0.02]])}
    images = [img * options["data_range"] for img in images]
    for index in (0, 1):
        assert_same(
            quietly(lambda a, b, index=index: ours._ssim(a, b, win=win, **options)[index]),
            quietly(lambda a, b, index=index: private._ssim(a, b, win=win, **options)[index]),
            images,
            tolerance,
        )
    # The original ignores it.
    values, _ = quietly(lambda a, b: ours._ssim(a, b, win=win, size_average=False, **options))(*images)
    assert values.shape == images[0].shape[:2]


@pytest.mark.parametrize("name", ["SSIM", "MS_SSIM"])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_modules_have_a_window(name, spatial_dims):
    options = {"data_range": 1.0, "win_size": 3, "win_sigma": 0.8, "channel": 2, "spatial_dims": spatial_dims}
    module, theirs = (getattr(package, name)(**options) for package in (ours, original))
    assert module.win.shape == theirs.win.shape and module.win.dtype == theirs.win.dtype
    torch.testing.assert_close(module.win, theirs.win.to(module.win.device), rtol=0, atol=1e-7)
    assert module.win_size == theirs.win_size and not module.state_dict()
    # `ms_ssim` needs 33 pixels.
    sides = [33, 36, 34] if name == "MS_SSIM" else [12, 14, 13]
    images = random_pair(torch.Generator().manual_seed(0), (1, 2, *sides[:spatial_dims]), torch.float32)

    def check():
        torch.testing.assert_close(module(*images), theirs(*images), rtol=0, atol=1e-5)

    check()
    # The window can be replaced by a Gaussian or another window, and changed in place.
    wide = ours._fspecial_gauss_1d(3, 2.0).repeat(2, *[1] * (spatial_dims + 1))
    uneven = torch.tensor([0.5, 0.3, 0.2]).expand_as(wide).contiguous()
    for win in (wide, uneven, wide.double(), wide.half()):
        before = module(*images)
        module.win, theirs.win = win.clone(), win.clone()
        check()
        assert before != module(*images)
    for changed in (module, theirs):
        changed.win[1] = changed.win[1].flip(-1) * 0.5
    check()
    for again in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        torch.testing.assert_close(again(*images), module(*images), rtol=0, atol=0)
        torch.testing.assert_close(again.win, module.win, rtol=0, atol=0)
    # It can be learnt.
    for changed in (module, theirs):
        changed.win = torch.nn.Parameter(wide.clone())
        changed(*images).backward()
    check()
    torch.testing.assert_close(module.win.grad, theirs.win.grad, rtol=1e-3, atol=1e-5)
    assert [name for name, _ in module.named_parameters()] == ["win"]


class Operators(TorchDispatchMode):
    """Records the names of the operators that run."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


def test_gaussian_windows_reach_the_kernels():
    if devices.current() != "cpu":
        pytest.skip("counts the CPU's operators")
    image = torch.rand(1, 3, 40, 40)
    win = ours._fspecial_gauss_1d(3, 0.8).repeat(3, 1, 1, 1)
    calls = {
        "SSIM": (ours.SSIM(1.0), "photometric"),
        "MS_SSIM": (ours.MS_SSIM(1.0, win_size=3, weights=[0.5, 0.5]), "ms_ssim"),
        "win": (lambda a, b: ours.ssim(a, b, 1.0, win=win), "photometric"),
        "ms_ssim": (lambda a, b: ours.ms_ssim(a, b, 1.0, win=win, weights=[0.5, 0.5]), "ms_ssim"),
        "_ssim": (lambda a, b: ours._ssim(a, b, 1.0, win), "ssim_channel_means"),
        "half": (lambda a, b: ours.ssim(a.half(), b.half(), 1.0), "photometric"),
        "numpy": (
            lambda a, b: ours.ssim(a, b, np.float32(1), win_size=np.int64(5), K=np.array([0.1, 0.2])),
            "photometric",
        ),
        "tensors": (lambda a, b: ours.ssim(a, b, a.max(), win_sigma=torch.tensor(1.2)), "photometric"),
    }
    for name, (function, operator) in calls.items():
        with Operators() as operators:
            function(image, 1 - image)
        assert f"splat_ssim::{operator}" in operators.names, name


@pytest.mark.parametrize(("device", "seed"), DRAWS, indirect=["device"])
def test_ssim_is_as_exact_as_the_original_in_float64(seed):
    rng, generator, _, options = draw(seed, [3, 5, 7, 11])
    shape = (
        rng.randint(1, 2),
        rng.randint(1, 2),
        *[rng.randint(options["win_size"], 16) for _ in range(rng.choice([2, 3]))],
    )
    images = random_pair(generator, shape, torch.float32, options["data_range"])

    def exact(*images):
        return original.ssim(*(img.double() for img in images), **options).to(images[0].dtype)

    assert_same(lambda a, b: ours.ssim(a, b, **options), exact, images, 2e-5)


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
        (lambda: ours.ssim(IMAGE, IMAGE, win=torch.ones(3, 5).numpy()), TypeError, "win must be a torch.Tensor"),
        (lambda: ours.ssim(IMAGE, IMAGE, win=torch.ones(3, 1, 1, 4)), ValueError, "window size must be odd, got 4"),
        (
            lambda: ours.ssim(IMAGE, IMAGE, win=ours._fspecial_gauss_1d(5, 1.5)[None]),
            ValueError,
            "one window for each of the 3 channels",
        ),
        (lambda: ours.ssim(IMAGE, IMAGE, win_size=5.5), ValueError, "win_size must be a whole number, got 5.5"),
        (lambda: ours.ssim(IMAGE, IMAGE, win_size="5"), TypeError, "win_size must be a number, got str"),
        (lambda: ours.ssim(IMAGE, IMAGE, data_range="1"), TypeError, "data_range must be a number, got str"),
        (lambda: ours.ssim(IMAGE, IMAGE, data_range=None), TypeError, "data_range must be a number, got NoneType"),
        (lambda: ours.ssim(IMAGE, IMAGE, K=(0.01,)), ValueError, r"K must be two numbers, got \(0.01,\)"),
        (lambda: ours.ssim(IMAGE, IMAGE, K=0.01), TypeError, "K must be two numbers, got float"),
        (lambda: ours.ms_ssim(IMAGE, IMAGE, win_size=1, weights=[]), ValueError, "at least one exponent, got none"),
        (lambda: ours.gaussian_filter(IMAGE[0], torch.ones(3, 1, 5)), NotImplementedError, "input must have the shape"),
        (lambda: ours.gaussian_filter(IMAGE, torch.ones(3, 1, 5, 5)), AssertionError, "win must have the shape"),
        (lambda: ours._ssim(IMAGE, IMAGE, 1.0, torch.ones(2, 1, 1, 5)), ValueError, "one window for each of the 3"),
        (lambda: ours.SSIM(channel=1)(IMAGE, IMAGE), ValueError, "must have channel=1 channels"),
        (lambda: ours.SSIM(spatial_dims=3)(IMAGE, IMAGE), ValueError, "must have spatial_dims=3"),
        # The original's are RuntimeErrors of torch.
        (lambda: ours.MS_SSIM(channel=1)(IMAGE, IMAGE), RuntimeError, "must have channel=1 channels"),
        (lambda: ours.SSIM(spatial_dims=3)(IMAGE, IMAGE), RuntimeError, "must have spatial_dims=3"),
        (lambda: ours.ssim(IMAGE, IMAGE, win=torch.ones(2, 1, 1, 5)), RuntimeError, "one window for each of the 3"),
    ],
)
def test_refusals(call, error, text):
    with pytest.raises(error, match=text):
        call()
