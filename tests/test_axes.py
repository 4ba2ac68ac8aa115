"""Volumes with a window and a sigma for each axis, compared with the oracle over all other options of a call."""

import itertools
import random

import pytest
import torch

import splat_ssim
from splat_ssim import reference
from splat_ssim.loss import PhotometricLoss, ms_ssim_l1_loss, photometric_loss
from splat_ssim.ops import dispatch
from splat_ssim.options import SSIMOptions
from splat_ssim.registry import get_loss
from tests import devices, oracle
from tests.compare import random_pair
from tests.ssim_checks import check_all

pytestmark = pytest.mark.usefixtures("device")

PADDINGS = ("same", "valid", "reflect", "replicate")
WINDOWS = (1, 3, 5, 7, 9, 11, 13, 15)
#: (dtype, tolerance of the value, of gradients over their maximum). The oracle sees the rounded images.
DTYPES = (
    (torch.float64, 1e-12, 1e-10),
    (torch.float32, 1e-6, 2e-5),
    (torch.float16, 1e-6, 1e-3),
    (torch.bfloat16, 1e-6, 1e-2),
)


def pair(*shape, seed=0, dtype=torch.float32):
    return random_pair(torch.Generator().manual_seed(seed), shape, dtype)


def differentiated(function, images, upstream):
    leaves = [image.detach().clone(memory_format=torch.preserve_format).requires_grad_() for image in images]
    value = function(*leaves)
    return value.detach(), *torch.autograd.grad(value, leaves, upstream.to(value))


def assert_near(found, expected, value, gradient):
    """Compares (value, two gradients), relative to 1 or the largest entry, and to the largest entry."""
    assert found[0].shape == expected[0].shape
    for place, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        largest = theirs.abs().max().item() if theirs.numel() else 0.0
        limit = gradient * largest if place else value * max(1.0, largest)
        torch.testing.assert_close(ours.double(), theirs.double(), rtol=0, atol=limit)


def compare(function, truth, images, value, gradient):
    """Compares a function of two images and both gradients with the oracle's in float64."""
    leaves = [image.detach().double().requires_grad_() for image in images]
    expected = truth(*leaves)
    upstream = torch.rand(expected.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64, device="cpu")
    upstream = upstream.to(devices.torch_device())
    gradients = torch.autograd.grad(expected, leaves, upstream)
    assert_near(differentiated(function, images, upstream), (expected.detach(), *gradients), value, gradient)


def drawn_case(draw):
    """Draws a shape (D, H, W) and options that fit each other."""
    sizes = [draw.choice(WINDOWS) for _ in range(3)]
    sizes[draw.randrange(3)] = draw.choice(WINDOWS[1:])
    padding = draw.choice(PADDINGS)
    least = {"same": lambda size: 1, "valid": lambda size: size}.get(padding, lambda size: size // 2 + 1)
    sides = [least(size) + draw.randrange(6) for size in sizes]
    sigma = draw.choice((1.5, [draw.uniform(0.6, 3.0) for _ in range(3)]))
    return sides, {"window_size": tuple(sizes), "sigma": sigma, "padding": padding}


@pytest.mark.parametrize(("device", "seed"), devices.draws(30, emulated=10), indirect=["device"])
def test_against_the_oracle(device, seed):
    """Value and both gradients, for random shapes, windows, paddings, layouts, dtypes, reductions and masks."""
    draw = random.Random(seed)
    sides, options = drawn_case(draw)
    batch, channels = draw.choice(((1, 1), (2, 1), (1, 3), (2, 2)))
    dtype, value, gradient = draw.choice(DTYPES)
    options["channels_last"] = channels_last = draw.random() < 0.4
    shape = (batch, *sides, channels) if channels_last else (batch, channels, *sides)
    images = pair(*shape, seed=seed, dtype=dtype)
    if draw.random() < 0.5:
        across = list(shape)
        across[-1 if channels_last else 1] = draw.choice((1, channels))
        mask = pair(*across, seed=seed + 1)[0]
        options["mask"] = torch.where(mask > 0.3, mask, 0)
        options["mask_mode"] = draw.choice(("weight", "zero", "normalize"))
    if draw.random() < 0.5:
        options["reduction"] = draw.choice(("mean", "sum", "none", "image"))
        compare(
            lambda x, y: splat_ssim.ssim3d(x, y, **options),
            lambda x, y: oracle.ssim(x, y, **options),
            images,
            value,
            gradient,
        )
        return
    options |= {"reduction": draw.choice(("mean", "image")), "lambda_dssim": draw.uniform(0.0, 1.0)}
    compare(
        lambda x, y: photometric_loss(x, y, **options),
        lambda x, y: oracle_loss(x, y, **options),
        images,
        value,
        gradient,
    )


def oracle_loss(img1, img2, *, channels_last=False, mask=None, **options):
    if channels_last:
        img1, img2 = img1.movedim(-1, 1), img2.movedim(-1, 1)
        mask = None if mask is None else mask.movedim(-1, 1)
    return oracle.photometric_loss(img1, img2, mask=mask, **options)[0]


@pytest.mark.parametrize("padding", PADDINGS)
def test_one_slice_along_an_axis_is_the_index_of_images(padding):
    """A window of 1 along z compares slices as images, whichever axis is called z."""
    img1, img2 = pair(1, 2, 5, 14, 13)
    images = [image.movedim(2, 1).flatten(0, 1) for image in (img1, img2)]
    options = {"padding": padding, "reduction": "none"}
    expected = splat_ssim.ssim(*images, **options).unflatten(0, (1, 5)).movedim(1, 2)
    for axis in range(3):
        sizes = [11, 11]
        sizes.insert(axis, 1)
        turned = [image.movedim(2, 2 + axis) for image in (img1, img2)]
        found = splat_ssim.ssim3d(*turned, window_size=tuple(sizes), **options)
        torch.testing.assert_close(found.movedim(2 + axis, 2), expected, rtol=0, atol=2e-6)


def test_three_equal_numbers_are_one():
    img1, img2 = pair(1, 1, 12, 13, 14)
    for sizes, sigmas in (((7, 7, 7), 1.0), (7, [1.0, 1.0, 1.0]), ([7, 7, 7], (1.0, 1.0, 1.0))):
        expected = differentiated(
            lambda x, y: photometric_loss(x, y, window_size=7, sigma=1.0), (img1, img2), torch.tensor(1.0)
        )
        found = differentiated(
            lambda x, y, n=sizes, s=sigmas: photometric_loss(x, y, window_size=n, sigma=s),
            (img1, img2),
            torch.tensor(1.0),
        )
        assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("sizes", [(3, 11, 5), (1, 5, 5), (5, 1, 3), (13, 3, 1), (3, 15, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_voxel_that_is_not_finite_spoils_the_windows_that_hold_it(value, sizes, dtype):
    """It spoils no other windows: the taps that a narrow axis lacks are not taps of weight 0."""
    img1, img2 = pair(1, 1, 17, 18, 19, dtype=dtype)
    img1[0, 0, 8, 8, 8] = value
    options = {"window_size": sizes, "reduction": "none"}
    leaves = [image.clone().requires_grad_() for image in (img1, img2)]
    found = splat_ssim.ssim3d(*leaves, **options)
    spoilt = ~found[0, 0].isfinite()
    first, last = ([8 + sign * (size // 2) for size in sizes] for sign in (-1, 1))
    expected = torch.zeros(17, 18, 19, dtype=torch.bool)
    expected[tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))] = True
    assert torch.equal(spoilt, expected.to(spoilt.device))
    gradients = torch.autograd.grad(found.sum(), leaves)
    reached = torch.zeros(17, 18, 19, dtype=torch.bool)
    reached[tuple(slice(max(0, 8 - 2 * (size // 2)), 8 + 2 * (size // 2) + 1) for size in sizes)] = True
    for gradient in gradients:
        assert gradient[0, 0][~reached.to(gradient.device)].isfinite().all()


SHAPES = ((1, 2, 3, 40, 130), (1, 1, 30, 21, 70), (2, 1, 1, 1, 1))
SIZES = ((1, 3, 11), (11, 3, 1), (3, 11, 11), (5, 15, 3))


# Emulated, every window meets a volume of several tiles and a single voxel.
@pytest.mark.parametrize(
    ("device", "shape", "sizes"),
    devices.cases(
        list(itertools.product(SHAPES, SIZES)),
        emulated=[*((SHAPES[turn % 2], sizes) for turn, sizes in enumerate(SIZES)), *((SHAPES[2], s) for s in SIZES)],
    ),
    indirect=["device"],
)
def test_operators_against_the_definition(device, shape, sizes):
    """Volumes of several tiles, with the operators that do not reduce."""
    check_all(*pair(*shape), SSIMOptions(sizes, (1.0, 1.5, 2.0)), value=1e-6, gradient=2e-5)


@pytest.mark.parametrize("sizes", [(1, 3, 3), (3, 1, 5), (5, 3, 3)])
def test_ms_ssim(sizes):
    images = pair(1, 2, 9, 11, 12)
    options = {"window_size": sizes, "sigma": (1.0, 1.5, 0.9), "weights": (0.4, 0.6), "reduction": "none"}
    compare(
        lambda x, y: splat_ssim.ms_ssim(x, y, **options),
        lambda x, y: oracle.ms_ssim(x, y, **options),
        images,
        2e-6,
        5e-5,
    )
    with pytest.raises(ValueError, match=r"needs every side to be larger than \(0, 4, 4\), got \(9, 11, 4\)"):
        splat_ssim.ms_ssim(*pair(1, 1, 9, 11, 4), window_size=(1, 3, 3), weights=(0.4, 0.6))
    loss = ms_ssim_l1_loss(*images, window_size=sizes, weights=(0.4, 0.6))
    assert loss.isfinite()


def test_transforms():
    """vmap, forward mode, torch.compile, and a second call, which is prepared."""
    images = pair(2, 1, 7, 8, 9)
    options = {"window_size": (1, 5, 3), "sigma": (1.0, 1.5, 0.8)}

    def value(x, y):
        return splat_ssim.ssim3d(x, y, **options)

    each = torch.func.vmap(lambda x, y: value(x[None], y[None]))(*images)
    torch.testing.assert_close(each, splat_ssim.ssim3d(*images, reduction="image", **options), rtol=0, atol=1e-6)
    tangents = pair(2, 1, 7, 8, 9, seed=3)
    _, slope = torch.func.jvp(value, tuple(images), tuple(tangents))
    truth = oracle.tangent(lambda x, y: oracle.ssim(x, y, **options), *images, *tangents)
    torch.testing.assert_close(slope.double(), truth, rtol=1e-4, atol=1e-6)
    runs = [differentiated(value, images, torch.tensor(1.0)) for _ in range(3)]
    for run in runs[1:]:
        assert all(map(torch.equal, runs[0], run))
    with pytest.raises(TypeError, match="window_size must be ints"):
        splat_ssim.ssim3d(*images, window_size=(1.0, 5.0, 3.0), sigma=options["sigma"])


def test_compiled():
    images = pair(1, 2, 7, 8, 9)
    for padding in ("same", "valid"):

        def loss(x, y, padding=padding):
            return photometric_loss(x, y, window_size=(1, 5, 3), sigma=(1.0, 1.5, 0.8), padding=padding)

        compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
        found, expected = (differentiated(function, images, torch.tensor(1.0)) for function in (compiled, loss))
        assert_near(found, expected, 1e-6, 1e-6)


def test_modules_and_the_plain_definition():
    images = pair(1, 2, 7, 8, 9)
    options = {"window_size": [1, 5, 3], "sigma": (1.0, 1.5, 0.8)}
    metric, criterion = splat_ssim.SSIM3D(**options), PhotometricLoss(**options)
    assert metric.options["window_size"] == criterion.options["window_size"] == (1, 5, 3)
    assert metric(*images) == splat_ssim.ssim3d(*images, **options)
    assert criterion(*images) == photometric_loss(*images, **options)
    plain = get_loss("ssim", **options)(*images)[0]
    fused = get_loss("fused_ssim", **options)(*images)[0]
    torch.testing.assert_close(fused, plain, rtol=0, atol=1e-6)
    torch.testing.assert_close(reference.ssim(*images, **options), metric(*images), rtol=0, atol=1e-6)
    assert splat_ssim.MSSSIM(window_size=(1, 5, 3)).options["window_size"] == (1, 5, 3)


IMAGES = r"must be one number for images; only volumes take three, got \(3, 5\)"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda v, i: splat_ssim.ssim(*i, window_size=(3, 5)), TypeError, "window_size " + IMAGES),
        (lambda v, i: splat_ssim.ssim(*i, sigma=(3, 5)), TypeError, "sigma " + IMAGES),
        (lambda v, i: photometric_loss(*i, window_size=(3, 5)), TypeError, "window_size " + IMAGES),
        (lambda v, i: splat_ssim.ms_ssim(*i, window_size=(3, 5)), TypeError, "window_size " + IMAGES),
        (lambda v, i: splat_ssim.SSIM(window_size=(3, 5)), TypeError, "window_size " + IMAGES),
        (lambda v, i: PhotometricLoss(window_size=(3, 5, 5))(*i), TypeError, "one number for images"),
        (lambda v, i: splat_ssim.ssim3d(*v, window_size=(3, 5)), ValueError, r"three for the axes \(D, H, W\)"),
        (lambda v, i: splat_ssim.ssim3d(*v, window_size=(3, 4, 5)), ValueError, "along one axis from 1 to 33, got 4"),
        (lambda v, i: splat_ssim.ssim3d(*v, window_size=(3, -1, 5)), ValueError, "along one axis from 1 to 33, got -1"),
        (lambda v, i: splat_ssim.ssim3d(*v, window_size=(1, 1, 1)), ValueError, "odd, from 3 to 33, got 1"),
        (lambda v, i: splat_ssim.ssim3d(*v, window_size=(3, "5", 5)), TypeError, "must be a number, got str"),
        (
            lambda v, i: splat_ssim.ssim3d(*v, sigma=(1.0, 0.0, 1.0)),
            ValueError,
            "sigma must be in",
        ),
        (
            lambda v, i: splat_ssim.ssim3d(*v, window_size=(3, 5, 11), padding="valid"),
            ValueError,
            r"at least window_size=\(3, 5, 11\), got \(6, 7, 8\)",
        ),
        (
            lambda v, i: splat_ssim.ssim3d(*v, window_size=(13, 5, 3), padding="reflect"),
            ValueError,
            r"larger than window_size // 2 = \(6, 2, 1\), got \(6, 7, 8\)",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call(pair(1, 1, 6, 7, 8), pair(1, 1, 7, 8))


def test_operators_refuse_what_they_cannot_read():
    images, volumes = pair(1, 1, 7, 8), pair(1, 1, 7, 8, 9)
    rest = (1.0, 0.01, 0.03, "same", False, 0.0)
    for pictures, sizes in ((images, [3, 5, 7]), (volumes, [1, 1, 1]), (volumes, [2, 3, 3]), (volumes, [35, 3, 3])):
        if devices.current() == "emulation":  # its operators are registered without their checks
            break
        with pytest.raises(ValueError, match="window_size must be"):
            torch.ops.splat_ssim.ssim_map(*pictures, sizes, 1.5, *rest)
    found = torch.ops.splat_ssim.ssim_map(*volumes, [3, 5, 7], [1.5, 1.0, 0.9], *rest)
    expected = splat_ssim.ssim3d(*volumes, window_size=(3, 5, 7), sigma=(1.5, 1.0, 0.9), reduction="none")
    torch.testing.assert_close(found, expected)


def test_every_pair_of_axes_may_differ():
    """Each axis has its own taps and border. All windows and sides differ, with padding "valid" and a mask."""
    images = pair(1, 1, 10, 12, 14)
    mask = torch.rand(1, 1, 10, 12, 14, generator=torch.Generator().manual_seed(2), device="cpu")
    mask = mask.to(devices.torch_device())
    for sizes in itertools.permutations((3, 5, 9)):
        options = {"window_size": sizes, "sigma": (0.8, 1.2, 2.0), "padding": "valid", "mask": mask}
        compare(
            lambda x, y, o=options: photometric_loss(x, y, **o),
            lambda x, y, o=options: oracle.photometric_loss(x, y, **o)[0],
            images,
            1e-6,
            1e-5,
        )


def test_kernels_take_them():
    """Kernels take windows of up to 15 taps, and on the CPU of up to 33."""
    images = pair(1, 1, 4, 4, 4)
    device = devices.torch_device()
    assert dispatch.has_kernel(*images, SSIMOptions((1, 15, 11), 1.5))
    if device.type == "cpu" and devices.current() == "cpu":
        assert dispatch.has_kernel(*images, SSIMOptions((1, 33, 11), 1.5))


@pytest.mark.parametrize("device", devices.NATIVE, indirect=True)
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("sizes", [(1, 5, 3), (15, 3, 1), (3, 11, 11), (5, 1, 9)])
def test_the_same_bits_for_every_number_of_threads(threads, padding, sizes):
    """Tasks of a volume wait for the blocks that the window along the slices needs, and handle its padding."""
    images = pair(1, 1, 33, 34, 19)

    def loss(x, y):
        return photometric_loss(x, y, window_size=sizes, sigma=(1.0, 1.5, 0.8), padding=padding)

    runs = []
    for count in (1, 2, 5, 11):
        threads(count)
        runs.append(differentiated(loss, images, torch.tensor(1.0)))
    for run in runs[1:]:
        assert all(map(torch.equal, runs[0], run))
