"""MS-SSIM as one operator: value and gradients against the definition in float64, also where a term is nearly 0."""

import functools

import pytest
import torch

import splat_ssim
from splat_ssim import _maps, reference
from splat_ssim.ops import compiled
from tests import devices
from tests.ssim_checks import assert_close, differentiate, pair

pytestmark = pytest.mark.usefixtures("device", "threads")

WEIGHTS = (0.2, 0.5, 0.3)
# Odd and even sides in every order. The coarsest scale is just large enough for the window.
SHAPES = [(2, 3, 41, 54), (1, 1, 17, 64), (1, 2, 18, 23, 37), (2, 1, 33, 17, 20)]


def check(img1, img2, tolerance=5e-6, **options):
    function = functools.partial(splat_ssim.ms_ssim, **options)
    result = differentiate(lambda x, y: function(x, y).sum(), img1, img2)
    expected = differentiate(lambda x, y: function(x, y).sum(), img1.double(), img2.double())
    assert_close(result[0], expected[0], 5e-7)
    assert_close(result[1], expected[1], tolerance)
    assert_close(result[2], expected[2], tolerance)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_the_definition(shape, reduction):
    check(*pair(shape), window_size=5, weights=WEIGHTS, reduction=reduction)


def test_channels_last_and_other_strides():
    img1, img2 = pair((2, 45, 30, 3))
    check(img1, img2, window_size=5, weights=WEIGHTS, channels_last=True)
    large1, large2 = pair((2, 6, 60, 90))
    check(large1[:, ::2, 3:50, ::2], large2[:, 1::2, 3:50, 45:].flip(3), window_size=5, weights=WEIGHTS)


def test_integers_and_half_precision():
    img1, img2 = pair((1, 2, 40, 41))
    small = (255 * img2).round().to(torch.uint8)
    function = functools.partial(splat_ssim.ms_ssim, window_size=5, weights=WEIGHTS)
    assert_close(function(img1, small), function(img1.double(), small.double() / 255), 5e-7)
    assert_close(function(img1.half(), img2.half()), function(img1.half().double(), img2.half().double()), 5e-7)
    gradient = differentiate(lambda x: function(x, small), img1.bfloat16())[1]
    assert gradient.dtype == torch.bfloat16


@pytest.mark.parametrize("seed", [53, 172, 132, 98, 144])
def test_gradients_where_a_term_is_nearly_zero(seed):
    """The gradient divides by each term. In these pairs of unrelated images, the smallest term is below 1e-3."""
    img1, img2 = (pair((1, 1, 96, 96), 2 * seed + i)[0] for i in range(2))
    pyramid = _maps.pyramid(img1.double(), img2.double(), 5, 1.0, channels_last=False)
    terms = _maps.scale_terms(
        [reference.ssim_channel_means(*scale, window_size=5, padding="valid") for scale in pyramid]
    )
    assert 0 < terms.min() < 1e-3
    function = functools.partial(splat_ssim.ms_ssim, window_size=5)
    for gradient, expected in zip(
        differentiate(function, img1, img2)[1:], differentiate(function, img1.double(), img2.double())[1:], strict=True
    ):
        assert_close(gradient, expected, 5e-5)


def test_a_term_that_is_not_positive_makes_value_and_gradient_zero():
    image = pair((1, 1, 64, 64))[0]
    value, gradient, _ = differentiate(
        lambda x, y: splat_ssim.ms_ssim(x, y, window_size=5, weights=WEIGHTS), image, 1 - image
    )
    assert value == 0
    assert (gradient == 0).all()


def test_a_pixel_that_is_not_a_number_is_not_hidden():
    img1, img2 = pair((2, 1, 64, 64))
    img1[0, 0, 30, 30] = float("nan")
    for images in ((img1, img2), (img1.double(), img2.double())):
        values = splat_ssim.ms_ssim(*images, window_size=5, weights=WEIGHTS, reduction="image")
        assert values[0].isnan()
        assert values[1] > 0


@pytest.mark.skipif(compiled.library() is None, reason="built without a compiler")
def test_same_bits_for_any_number_of_threads_and_close_on_every_instruction_set(threads, monkeypatch):
    if devices.current() != "cpu":
        pytest.skip("of the CPU's kernels")
    img1, img2 = pair((2, 3, 90, 101))
    function = functools.partial(splat_ssim.ms_ssim, window_size=7, weights=WEIGHTS)
    one = differentiate(function, img1, img2)
    for number in (2, 3, 5):
        threads(number)
        for a, b in zip(one, differentiate(function, img1, img2), strict=True):
            assert torch.equal(a, b)
    for isa in compiled.available_isas():
        monkeypatch.setattr(compiled, "kernel", functools.partial(compiled.kernel, isa_name=isa))
        for a, b in zip(one, differentiate(function, img1, img2), strict=True):
            assert_close(a, b, 5e-6)
        monkeypatch.undo()


def test_products_of_terms():
    terms = torch.tensor([[[0.5, 0.25]], [[0.5, -0.1]], [[float("nan"), -0.1]]])
    values = _maps.combine_terms(terms, (1.0, 2.0))
    assert values[0] == 0.5 * 0.25**2
    assert values[1] == 0
    assert values[2].isnan()
