"""The SSIM operators compared with the definition in float64 on every device: values, gradients, layouts, dtypes."""

import functools

import pytest
import torch
from torch._subclasses import FakeTensorMode

from splat_ssim import _maps, reference
from splat_ssim.ops import compiled, dispatch
from splat_ssim.ops import ssim as ops
from splat_ssim.ops.photometric import photometric
from splat_ssim.options import SSIMOptions
from tests import devices
from tests.ssim_checks import (
    PADDINGS,
    assert_close,
    check_all,
    differentiate,
    keywords,
    noise,
    options_for,
    pair,
)

pytestmark = pytest.mark.usefixtures("device", "threads")
needs_library = pytest.mark.skipif(compiled.library() is None, reason="built without a compiler")
# Sizes of (B, C, spatial…): odd, larger than a tile in each axis, smaller than the window where the padding allows it.
IMAGES = [(2, 3, 40, 53), (1, 1, 130, 530), (1, 5, 21, 33)]
VOLUMES = [(2, 1, 20, 21, 25), (1, 1, 70, 12, 15), (1, 1, 12, 14, 290)]


@needs_library
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("shape", IMAGES + VOLUMES, ids=str)
def test_agrees_with_the_definition(shape, padding):
    options = options_for(shape, padding=padding)
    img1, img2 = pair(shape)
    assert dispatch.has_kernel(img1, img2, options)
    check_all(img1, img2, options)


@needs_library
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize(("window_size", "sigma"), [(3, 0.8), (5, 1.0), (17, 2.5), (33, 5.0)])
def test_other_windows(window_size, sigma, padding):
    # On other devices, windows above 15 use the definition, whose mean is summed in float32.
    value = 1e-7 if devices.current() == "cpu" else 5e-7
    for shape in ((1, 2, 70, 45), (1, 1, 18, 19, 20)):
        # A corner voxel of a replicated volume adds the gradients of radius³ padded voxels one by one.
        options = options_for(shape, window_size=window_size, sigma=sigma, padding=padding)
        if padding == "same" or window_size < min(shape[2:]):
            check_all(*pair(shape), options, value=value, gradient=5e-6)


@needs_library
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("shape", [(1, 40, 53, 3), (2, 30, 170, 4), (1, 12, 14, 30, 3), (1, 11, 16, 19, 1)], ids=str)
def test_channels_last(shape, padding):
    """Images with the channels as their last axis. One channel is both planar and interleaved."""
    check_all(*pair(shape), options_for(shape, padding=padding, channels_last=True))


@needs_library
@pytest.mark.parametrize("shape", [(2, 3, 16, 37), (1, 2, 12, 13, 19)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_only_read(dtype, shape):
    """Everything is computed in float32. The gradient is then rounded to the dtype of its image."""
    img1, img2 = (image.to(dtype) for image in pair(shape))
    check_all(img1, img2, options_for(shape), gradient=8e-3 if dtype == torch.bfloat16 else 1e-3)
    assert ops.ssim_map(img1, img2, options_for(shape)).dtype == torch.float32


@needs_library
def test_half_precision_special_values():
    """Subnormal half-precision numbers, infinities and NaN are read correctly."""
    img1 = torch.full((1, 1, 4, 16), 6e-8, dtype=torch.float16)
    zero = torch.zeros_like(img1)
    loss = functools.partial(photometric, options=SSIMOptions(), l1_weight=1.0, dssim_weight=0.0)
    assert loss(img1, zero)[1] == img1.float().mean()
    assert loss(torch.full_like(img1, float("-inf")), zero)[1] == float("inf")
    assert loss(torch.full_like(img1, float("nan")), zero)[1].isnan()


@needs_library
@pytest.mark.parametrize("data_range", [1.0, 255.0, 3.7])
def test_uint8_target(data_range):
    """uint8 means value / 255 · data_range. An image made by that division gives the same result to the last bit."""
    img1, _ = pair((2, 3, 20, 37), data_range=data_range)
    img2 = (255 * pair(img1.shape, seed=2)[0]).round().to(torch.uint8)
    options = SSIMOptions(data_range=data_range)

    def loss(x, y):
        return photometric(x, y, options, l1_weight=0.5, dssim_weight=0.5)[0]

    found, gradient = differentiate(lambda x: loss(x, img2), img1)
    expected = differentiate(lambda x: loss(x, img2.double() * (data_range / 255)), img1.double())
    assert_close(found, expected[0], 2e-7)
    assert_close(gradient, expected[1], 2e-6)
    # Divided on the CPU: on CUDA torch multiplies by the reciprocal, which may round otherwise.
    same = (img2.cpu().float() * data_range / 255).to(img2.device)
    assert [x.item() for x in photometric(same, img2, options, l1_weight=0.5, dssim_weight=0.5)] == [0, 0, 0]


@needs_library
@pytest.mark.parametrize("data_range", [1e-18, 1e-3, 255.0, 1e12])
def test_any_data_range(data_range):
    """Images are scaled by a power of two, so that squares of squares neither overflow nor underflow."""
    check_all(*pair((1, 2, 20, 37), data_range=data_range), SSIMOptions(data_range=data_range))


@needs_library
@pytest.mark.parametrize("shape", [(2, 3, 90, 70), (1, 1, 30, 40, 20)], ids=str)
def test_accuracy_where_peers_lose_it(shape):
    noise1, noise2 = (noise(shape, seed, 1e-3) for seed in (0, 1))
    options = options_for(shape)
    check_all(0.9 + noise1, 0.9 + noise2, options)
    img1, img2 = pair(shape)
    check_all(1000 + img1, 1000 + img2, options)
    check_all(0.9 + noise1, 0.5 + noise2, options)


def saturated(shape):
    """Two images of a flat, almost white half within dark texture, one with little noise and one with more."""
    image = 0.2 * pair(shape)[0]
    image[..., shape[-2] // 4 : 3 * shape[-2] // 4, :] = 0.99
    return (image + noise(shape, seed, scale) for seed, scale in ((1, 0.005), (2, 0.01)))


# B = V_s + V_d + 2 C2 is only some 10⁻³ where an image is flat, and the gradient is as exact as B. The CPU takes the
# variances about each window's own centre where they must be; about one constant of the plane, as CUDA does, they lose
# float32's 6e-8 of squares of up to 1, and the gradient 1e-5.
@needs_library
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize(
    ("shape", "offset"),
    [((1, 2, 150, 200), 0), ((1, 1, 40, 67), 1000), ((1, 40, 53, 3), 0), ((1, 1, 24, 26, 40), 0)],
    ids=str,
)
def test_flat_parts_far_from_the_mean(shape, offset, padding):
    img1, img2 = (offset + image for image in saturated(shape))
    options = options_for(shape, padding=padding, channels_last=shape[-1] == 3)

    def dssim(x, y):
        return photometric(x, y, options, l1_weight=0.0, dssim_weight=1.0)[0]

    loss, *found = differentiate(dssim, img1, img2)
    truth, *expected = differentiate(dssim, img1.double(), img2.double())
    value, gradient = (1e-7, 2e-6) if devices.current() == "cpu" else (1e-6, 1e-4)
    assert abs(loss.item() - truth.item()) <= value
    for image in range(2):
        assert_close(found[image], expected[image], gradient)


@needs_library
@pytest.mark.parametrize("shape", [(2, 3, 90, 70), (1, 1, 30, 40, 20)], ids=str)
def test_equal_images(shape):
    image = pair(shape)[0]
    options = options_for(shape)
    loss, gradient, _ = differentiate(
        lambda x, y: photometric(x, y, options, l1_weight=0.8, dssim_weight=0.2)[0], image, image
    )
    assert loss == 0
    assert gradient.abs().max() < 1e-6 / image.numel()
    assert (ops.ssim_map(image, image, options) == 1).all()


@needs_library
def test_l1_gradient_is_zero_where_images_are_equal():
    """This also holds if the images differ much elsewhere in the tile, so that a constant is subtracted from d."""
    img1 = torch.full((1, 1, 32, 48), 0.9)
    img2 = torch.full((1, 1, 32, 48), 0.3)
    img2[..., 5:9, 7:30] = 0.9
    _, gradient, _ = differentiate(
        lambda x, y: photometric(x, y, SSIMOptions(), l1_weight=1.0, dssim_weight=0.0)[0], img1, img2
    )
    assert torch.equal(gradient * img1.numel(), (img1 != img2).float())


@pytest.mark.parametrize("shape", [(70, 61), (30, 25, 28)], ids=str)
def test_agrees_with_scikit_image(shape):
    """Inside a border, its map equals ours with padding "valid"."""
    if devices.current() == "cuda":
        pytest.importorskip("skimage", reason="the GPU machine may lack it")
    from skimage.metrics import structural_similarity

    img1, img2 = pair((1, 1, *shape))
    _, expected = structural_similarity(
        img1[0, 0].double().cpu().numpy(),
        img2[0, 0].double().cpu().numpy(),
        data_range=1.0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    inner = (slice(5, -5),) * len(shape)
    found = ops.ssim_map(img1, img2, options_for(img1.shape, padding="valid"))
    assert_close(found[0, 0].cpu(), torch.from_numpy(expected[inner]), 1e-6)


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("weight_channels", [1, 3])
def test_weight(padding, channels_last, per_image, weight_channels):
    img1, img2 = pair((2, 3, 24, 31))
    weight = pair((2, weight_channels, 24, 31), seed=3)[0]
    weight[weight < 0.5] = 0
    if channels_last:
        img1, img2, weight = (image.permute(0, 2, 3, 1).contiguous() for image in (img1, img2, weight))
    options = SSIMOptions(padding=padding, channels_last=channels_last)
    upstream = torch.tensor([0.5, 2.0]) if per_image else torch.tensor(1.5)

    def loss(x, y):
        found = photometric(x, y, options, l1_weight=0.8, dssim_weight=0.2, weight=weight, per_image=per_image)
        return (found[0] * upstream).sum()

    def definition(x, y):
        dssim = 1 - reference.ssim_map(x, y, **keywords(options))
        reduction = "image" if per_image else "mean"
        dssim = _maps.weighted_mean(dssim, weight, reduction, channels_last)
        l1 = _maps.weighted_mean((x - y).abs(), weight, reduction, channels_last)
        return ((0.8 * l1 + 0.2 * dssim) * upstream).sum()

    found = differentiate(loss, img1, img2)
    expected = differentiate(definition, img1.double(), img2.double())
    for value, wanted in zip(found, expected, strict=True):
        assert_close(value, wanted, 2e-6)


@pytest.mark.parametrize(("l1_weight", "dssim_weight"), [(1.0, 0.0), (0.0, 1.0)])
@pytest.mark.parametrize("masked", [False, True])
def test_a_term_without_weight_is_told_all_the_same(l1_weight, dssim_weight, masked):
    img1, img2 = pair((2, 3, 24, 31))
    weight = pair((2, 1, 24, 31), seed=3)[0] if masked else None
    terms = {"options": SSIMOptions(), "l1_weight": l1_weight, "dssim_weight": dssim_weight}
    found = photometric(img1.requires_grad_(), img2, weight=weight, **terms)
    wide = None if weight is None else weight.double()
    expected = photometric(img1.double(), img2.double(), weight=wide, **terms)
    for value, truth in zip(found, expected, strict=True):
        assert_close(value, truth, 1e-6)


def test_weight_of_nothing():
    """If all weights are 0, the means and their gradients are 0."""
    img1, img2 = pair((2, 3, 24, 31))
    weight = torch.zeros(2, 1, 24, 31)
    found = differentiate(
        lambda x, y: photometric(x, y, SSIMOptions(), l1_weight=0.8, dssim_weight=0.2, weight=weight)[0], img1, img2
    )
    assert all((value == 0).all() for value in found)


@pytest.mark.parametrize(
    "shape", [(1, 3, 1, 1), (2, 1, 3, 40), (1, 2, 40, 2), (1, 1, 1, 1, 1), (1, 2, 3, 4, 30)], ids=str
)
@pytest.mark.parametrize("padding", ["same", "replicate"])
def test_images_smaller_than_the_window(shape, padding):
    # Most of the window is padding, so that the moments themselves cancel. The tolerance of the gradient is wider.
    check_all(*pair(shape), options_for(shape, padding=padding), value=1e-6, gradient=1e-4)


def test_empty_batch():
    img1, img2 = pair((0, 3, 16, 16))
    options = SSIMOptions()
    assert ops.ssim_map(img1, img2, options).shape == (0, 3, 16, 16)
    assert ops.ssim_channel_means(img1, img2, options).shape == (0, 3, 2)
    loss = photometric(img1.requires_grad_(), img2, options, l1_weight=0.8, dssim_weight=0.2, per_image=True)[0]
    loss.sum().backward()
    assert img1.grad.shape == img1.shape


@needs_library
def test_nan_stays_where_it_is_seen():
    img1, img2 = pair((1, 1, 40, 60))
    expected = ops.ssim_map(img1, img2, SSIMOptions())
    img1[0, 0, 20, 30] = float("nan")
    found = ops.ssim_map(img1, img2, SSIMOptions())
    seen = torch.zeros(40, 60, dtype=torch.bool)
    seen[15:26, 25:36] = True
    assert torch.equal(found[0, 0].isnan(), seen)
    assert_close(found[0, 0][~seen], expected[0, 0][~seen], 1e-6)


@pytest.mark.parametrize("shape", [(1, 2, 6, 7), (1, 1, 4, 5, 3)], ids=str)
def test_gradcheck(shape):
    img1, img2 = (image.double().requires_grad_() for image in pair(shape))
    options = options_for(shape, window_size=5)
    for function in (
        lambda x, y: photometric(x, y, options, l1_weight=0.8, dssim_weight=0.2)[0],
        lambda x, y: ops.ssim_map(x, y, options),
        lambda x, y: ops.ssim_channel_means(x, y, options),
    ):
        assert torch.autograd.gradcheck(function, (img1, img2))


@needs_library
def test_compiles_to_one_graph():
    img1, img2 = pair((2, 3, 24, 33))

    def loss(x, y):
        total = photometric(x * 1, y, SSIMOptions(), l1_weight=0.8, dssim_weight=0.2)[0]
        return total + ops.ssim_map(x, y, SSIMOptions()).mean() + ops.ssim_channel_means(x, y, SSIMOptions()).sum()

    compiled = torch.compile(loss, fullgraph=True)
    for found, expected in zip(differentiate(compiled, img1, img2), differentiate(loss, img1, img2), strict=True):
        assert_close(found, expected, 1e-6)


@needs_library
def test_backward_again():
    img1, img2 = pair((1, 3, 20, 21))
    img1.requires_grad_()
    loss = photometric(img1, img2, SSIMOptions(), l1_weight=0.8, dssim_weight=0.2)[0]
    (first,) = torch.autograd.grad(loss, img1, retain_graph=True)
    kept = first.clone()
    first.mul_(3.0)
    (second,) = torch.autograd.grad(2 * loss, img1, retain_graph=True)
    assert torch.equal(second, 2 * kept)
    loss.backward()
    assert torch.equal(img1.grad, kept)


@needs_library
def test_gradients_accumulate():
    img1, img2 = pair((1, 3, 20, 21))
    img1.requires_grad_()
    for _ in range(2):
        photometric(img1, img2, SSIMOptions(), l1_weight=0.8, dssim_weight=0.2)[0].backward()
    twice = img1.grad.clone()
    img1.grad = None
    photometric(img1, img2, SSIMOptions(), l1_weight=0.8, dssim_weight=0.2)[0].backward()
    assert torch.equal(twice, 2 * img1.grad)


@needs_library
def test_second_derivative_is_refused():
    img1, img2 = pair((1, 3, 20, 21))
    img1.requires_grad_()
    for value in (
        photometric(img1, img2, SSIMOptions(), l1_weight=0.8, dssim_weight=0.2)[0],
        ops.ssim_map(img1, img2, SSIMOptions()).mean(),
        ops.ssim_channel_means(img1, img2, SSIMOptions()).mean(),
    ):
        (gradient,) = torch.autograd.grad(value, img1, create_graph=True)
        with pytest.raises(NotImplementedError, match="differentiable once"):
            gradient.sum().backward()


@needs_library
def test_nothing_is_kept_without_gradients():
    img1, img2 = pair((1, 3, 20, 21))
    img1.requires_grad_()
    with torch.no_grad():
        found = photometric(img1, img2, SSIMOptions(), l1_weight=0.8, dssim_weight=0.2)
    assert not any(value.requires_grad for value in found)
    arguments = (img1.detach(), img2, None, None, 0.8, 0.2, 0.0, False, *SSIMOptions(), False, False)
    _, _, _, grad1, grad2 = torch.ops.splat_ssim.photometric(*arguments)
    assert grad1.numel() == grad2.numel() == 0


@needs_library
def test_operators_refuse_what_does_not_fit():
    """Operators called directly, also with fake tensors, refuse these. A kernel would read past the tensor's end."""
    if devices.current() == "emulation":
        pytest.skip("the emulation takes the place of the implementations, without their checks")
    images, other = torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 17)
    options, flags = SSIMOptions(), (True, False)
    operators = torch.ops.splat_ssim
    small = options._replace(window_size=17, padding="valid")
    calls = [
        lambda x, y: operators.ssim_map(x, y, *options),
        lambda x, y: operators.ssim_map(x[0], x[0], *options),
        lambda x, y: operators.ssim_map(x, x, *options._replace(window_size=4)),
        lambda x, y: operators.ssim_map(x, x, *small),
        lambda x, y: operators.ssim_map(x, x, *options._replace(window_size=33, padding="reflect")),
        lambda x, y: operators.ssim_map(x, x, *options._replace(padding="circular")),
        lambda x, y: operators.ssim_map_backward(y, x, x, *options, *flags),
        lambda x, y: operators.photometric(x, y, None, None, 0.8, 0.2, 0.0, False, *options, *flags),
        lambda x, y: operators.photometric(x, x, y, None, 0.8, 0.2, 0.0, False, *options, *flags),
        lambda x, y: operators.photometric(x, x.byte(), None, x[0, 0, :1, :3], 0.8, 0.2, 0.0, False, *options, *flags),
        lambda x, y: operators.photometric(x, y[:, :1], None, x[0, 0, :1, :3], 0.8, 0.2, 0.0, False, *options, *flags),
        lambda x, y: operators.photometric(
            x, x[:, [0, 1, 2, 0]].byte(), None, x[0, 0, :2, :3].contiguous(), 0.8, 0.2, 0.0, False, *options, *flags
        ),
        lambda x, y: operators.photometric(
            x, x[:, [0, 1, 2, 0]].byte(), None, x[0, 0, :1, :3].double(), 0.8, 0.2, 0.0, False, *options, *flags
        ),
        lambda x, y: operators.ssim_channel_means(x, y, *options),
        lambda x, y: operators.ssim_channel_means_backward(y, x, x, *options, *flags),
        lambda x, y: operators.ms_ssim(x, x, [0.5, 0.5], *options._replace(padding="valid")),
        lambda x, y: operators.ms_ssim_backward(y, x, x, y, [0.5], *options._replace(padding="valid"), *flags),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"(must|needs?) .*, got "):
            call(images, other)
        with pytest.raises(ValueError, match=r"(must|needs?) .*, got "), FakeTensorMode() as mode:
            call(mode.from_tensor(images), mode.from_tensor(other))


@needs_library
@pytest.mark.parametrize("data_range", [1e-37, 1e-18, 1e18, 1e37])
def test_ranges_beyond_the_usual(data_range):
    """Pixels smaller than float32's normal numbers, and squares beyond its range."""
    img1, img2 = pair((1, 2, 20, 24), data_range=data_range)
    options = SSIMOptions(data_range=data_range)
    assert_close(ops.ssim_map(img1, img2, options), ops.ssim_map(img1.double(), img2.double(), options), 3e-6)


@needs_library
@pytest.mark.parametrize("shape", [(1, 2, 30, 41), (1, 1, 13, 14, 15)], ids=str)
@pytest.mark.parametrize("data_range", [1.0, 255.0])
def test_eps_in_the_denominator(shape, data_range):
    """kornia's eps makes up most of the denominator for dark images."""
    for eps in (1e-12, 1e-6 * data_range**4):
        options = options_for(shape, data_range=data_range, eps=eps)
        check_all(*pair(shape, data_range=data_range), options)
        dark = [0.01 * image for image in pair(shape, data_range=data_range)]
        check_all(*dark, options)
