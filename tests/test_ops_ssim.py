"""The SSIM operators on the CPU against the definition in float64: values, gradients, layouts, threads, ISAs."""

import functools
import os
import subprocess
import sys

import pytest
import torch
from skimage.metrics import structural_similarity

from splat_ssim import reference
from splat_ssim.ops import _library
from splat_ssim.ops import ssim as ops

needs_library = pytest.mark.skipif(_library.library() is None, reason="built without a compiler")
PADDINGS = ["same", "valid", "reflect", "replicate"]
# Sizes of (B, C, spatial…): odd, larger than a tile in each axis, smaller than the window where the padding allows it.
IMAGES = [(2, 3, 40, 53), (1, 1, 130, 530), (1, 5, 21, 33)]
VOLUMES = [(2, 1, 20, 21, 25), (1, 1, 70, 12, 15), (1, 1, 12, 14, 290)]


def processors():
    """How many this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


@pytest.fixture(autouse=True)
def threads():
    """One thread where a test does not ask for more: these sizes gain nothing by two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch.set_num_threads
    torch.set_num_threads(before)


def pair(shape, seed=0, data_range=1.0):
    generator = torch.Generator().manual_seed(seed)
    img1 = torch.rand(shape, generator=generator)
    img2 = (img1 + 0.1 * torch.randn(shape, generator=generator)).clamp(0, 1)
    return img1 * data_range, img2 * data_range


def options_for(shape, **changes):
    return ops.Options(spatial_dims=len(shape) - 2, **changes)


def keywords(options):
    return {name: value for name, value in options._asdict().items() if name != "spatial_dims"}


def differentiate(function, *images):
    """A scalar function's value and its gradients by the images."""
    images = [image.detach().clone(memory_format=torch.preserve_format).requires_grad_() for image in images]
    value = function(*images)
    return value.detach(), *torch.autograd.grad(value, images)


def assert_close(found, expected, tolerance):
    """Within `tolerance` of the expected maximum."""
    assert found.shape == expected.shape
    scale = expected.abs().max().clamp(min=1e-30) if expected.numel() else 1.0
    error = ((found.double() - expected.double()).abs() / scale).max().item() if expected.numel() else 0.0
    assert error <= tolerance


def check_all(img1, img2, options, value=1e-7, gradient=2e-6):
    """The three operators and their gradients by both images against the definition in float64."""
    generator = torch.Generator().manual_seed(1)
    wide = [image.double() for image in (img1, img2)]

    def loss(x, y):
        return ops.photometric(x, y, options, l1_weight=0.8, dssim_weight=0.2)[0]

    found, expected = differentiate(loss, img1, img2), differentiate(loss, *wide)
    assert_close(found[0], expected[0], value)
    assert_close(found[1], expected[1], gradient)
    assert_close(found[2], expected[2], gradient)

    for function in (ops.ssim_map, ops.ssim_channel_means):
        assert_close(function(img1, img2, options), function(*wide, options), 2e-6)
        upstream = torch.randn(function(*wide, options).shape, generator=generator, dtype=torch.float64)

        def weighted(x, y, function=function, upstream=upstream):
            return (function(x, y, options) * upstream.to(x.dtype)).sum()

        found, expected = differentiate(weighted, img1, img2), differentiate(weighted, *wide)
        assert_close(found[1], expected[1], gradient)
        assert_close(found[2], expected[2], gradient)


@needs_library
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("shape", IMAGES + VOLUMES, ids=str)
def test_agrees_with_the_definition(shape, padding):
    options = options_for(shape, padding=padding)
    img1, img2 = pair(shape)
    assert ops.has_kernel(img1, img2, options)
    check_all(img1, img2, options)


@needs_library
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize(("window_size", "sigma"), [(3, 0.8), (5, 1.0), (17, 2.5), (33, 5.0)])
def test_other_windows(window_size, sigma, padding):
    for shape in ((1, 2, 70, 45), (1, 1, 18, 19, 20)):
        # A corner of a replicated volume gathers the gradients of radius³ voxels one by one.
        options = options_for(shape, window_size=window_size, sigma=sigma, padding=padding)
        if padding == "same" or window_size < min(shape[2:]):
            check_all(*pair(shape), options, gradient=5e-6)


@needs_library
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("shape", [(1, 40, 53, 3), (2, 30, 170, 4), (1, 12, 14, 30, 3), (1, 11, 16, 19, 1)], ids=str)
def test_channels_last(shape, padding):
    """Images with the channels as their last axis; one channel is planar and interleaved at once."""
    check_all(*pair(shape), options_for(shape, padding=padding, channels_last=True))


@needs_library
@pytest.mark.parametrize("shape", [(2, 3, 40, 53), (1, 2, 12, 14, 30)], ids=str)
def test_channels_last_memory_format_is_read_in_place(shape):
    memory_format = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    img1, img2 = (image.to(memory_format=memory_format) for image in pair(shape))
    options = options_for(shape)
    call = ops._Call(img1, img2, options)
    assert (call.first.data_ptr(), call.second.data_ptr()) == (img1.data_ptr(), img2.data_ptr())
    check_all(img1, img2, options)
    assert ops.ssim_map(img1, img2, options).is_contiguous(memory_format=memory_format)


@needs_library
def test_strides_are_read_in_place():
    """Rows, channels and batch may be any distance apart; a step along the row makes a copy."""
    large1, large2 = pair((4, 6, 60, 80))
    options = ops.Options()
    cut = (slice(None, None, 2), slice(1, 4), slice(5, 45), slice(7, 60))
    img1, img2 = large1[cut], large2[cut]
    assert ops._Call(img1, img2, options).first.data_ptr() == img1.data_ptr()
    check_all(img1, img2, options)
    check_all(large1[..., ::2], large2.transpose(2, 3)[:, :, :60, :40], options)
    check_all(large1[:1, :1].expand(2, 3, -1, -1), large2[:2, :3].flip(3), options)


@needs_library
@pytest.mark.parametrize("shape", [(2, 3, 16, 37), (1, 2, 12, 13, 19)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_only_read(dtype, shape):
    """Everything is computed in float32; the gradient is then rounded to the dtype of its image."""
    img1, img2 = (image.to(dtype) for image in pair(shape))
    check_all(img1, img2, options_for(shape), gradient=8e-3 if dtype == torch.bfloat16 else 1e-3)
    assert ops.ssim_map(img1, img2, options_for(shape)).dtype == torch.float32


@needs_library
def test_half_precision_special_values():
    """Subnormal halves, and infinities and NaN, are read as what they are."""
    img1 = torch.full((1, 1, 4, 16), 6e-8, dtype=torch.float16)
    zero = torch.zeros_like(img1)
    photometric = functools.partial(ops.photometric, options=ops.Options(), l1_weight=1.0, dssim_weight=0.0)
    assert photometric(img1, zero)[1] == img1.float().mean()
    assert photometric(torch.full_like(img1, float("-inf")), zero)[1] == float("inf")
    assert photometric(torch.full_like(img1, float("nan")), zero)[1].isnan()


@needs_library
@pytest.mark.parametrize("data_range", [1.0, 255.0, 3.7])
def test_uint8_target(data_range):
    """uint8 means value / 255 · data_range; an image made by that division is equal to it to the last bit."""
    img1, _ = pair((2, 3, 20, 37), data_range=data_range)
    img2 = torch.randint(0, 256, img1.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    options = ops.Options(data_range=data_range)

    def loss(x, y):
        return ops.photometric(x, y, options, l1_weight=0.5, dssim_weight=0.5)[0]

    found, gradient = differentiate(lambda x: loss(x, img2), img1)
    expected = differentiate(lambda x: loss(x, img2.double() * (data_range / 255)), img1.double())
    assert_close(found, expected[0], 2e-7)
    assert_close(gradient, expected[1], 2e-6)
    same = img2.float() * data_range / 255
    assert [x.item() for x in ops.photometric(same, img2, options, l1_weight=0.5, dssim_weight=0.5)] == [0, 0, 0]


@needs_library
@pytest.mark.parametrize("data_range", [1e-18, 1e-3, 255.0, 1e12])
def test_any_data_range(data_range):
    """Images are scaled by a power of two, so that squares of squares neither over- nor underflow."""
    check_all(*pair((1, 2, 20, 37), data_range=data_range), ops.Options(data_range=data_range))


@needs_library
@pytest.mark.parametrize("shape", [(2, 3, 90, 70), (1, 1, 30, 40, 20)], ids=str)
def test_accuracy_where_peers_lose_it(shape):
    noise1, noise2 = (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    options = options_for(shape)
    check_all(0.9 + 1e-3 * noise1, 0.9 + 1e-3 * noise2, options)
    img1, img2 = pair(shape)
    check_all(1000 + img1, 1000 + img2, options, value=1e-5, gradient=1e-5)
    check_all(0.9 + 1e-3 * noise1, 0.5 + 1e-3 * noise2, options)


def saturated(shape):
    """A flat and almost white half within dark texture, as in a photograph; with a little noise, and with more."""
    generator = torch.Generator().manual_seed(0)
    image = 0.2 * torch.rand(shape, generator=generator)
    image[..., shape[-2] // 4 : 3 * shape[-2] // 4, :] = 0.99
    return (image + scale * torch.randn(shape, generator=generator) for scale in (0.005, 0.01))


# B = V_s + V_d + 2 C2 is only some 10⁻³ where an image is flat, and the gradient is as exact as B. The variances are
# taken about each window's own centre where they must be: about one constant of the tile they would lose float32's 6e-8
# of squares of up to 1, and the gradient 1e-5.
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
        return ops.photometric(x, y, options, l1_weight=0.0, dssim_weight=1.0)[0]

    loss, *found = differentiate(dssim, img1, img2)
    truth, *expected = differentiate(dssim, img1.double(), img2.double())
    assert abs(loss.item() - truth.item()) <= 1e-7
    for image in range(2):
        assert_close(found[image], expected[image], 2e-6)


@needs_library
@pytest.mark.parametrize("shape", [(2, 3, 90, 70), (1, 1, 30, 40, 20)], ids=str)
def test_equal_images(shape):
    image = pair(shape)[0]
    options = options_for(shape)
    loss, gradient, _ = differentiate(
        lambda x, y: ops.photometric(x, y, options, l1_weight=0.8, dssim_weight=0.2)[0], image, image
    )
    assert loss == 0
    assert gradient.abs().max() < 1e-6 / image.numel()
    assert (ops.ssim_map(image, image, options) == 1).all()


@needs_library
def test_l1_gradient_is_zero_where_images_are_equal():
    """Also where the rest of the tile is far apart, so that differences are kept shifted."""
    img1 = torch.full((1, 1, 32, 48), 0.9)
    img2 = torch.full((1, 1, 32, 48), 0.3)
    img2[..., 5:9, 7:30] = 0.9
    _, gradient, _ = differentiate(
        lambda x, y: ops.photometric(x, y, ops.Options(), l1_weight=1.0, dssim_weight=0.0)[0], img1, img2
    )
    assert torch.equal(gradient * img1.numel(), (img1 != img2).float())


@pytest.mark.parametrize("shape", [(70, 61), (30, 25, 28)], ids=str)
def test_agrees_with_scikit_image(shape):
    """Its map is the "valid" one inside a border."""
    img1, img2 = pair((1, 1, *shape))
    _, expected = structural_similarity(
        img1[0, 0].double().numpy(),
        img2[0, 0].double().numpy(),
        data_range=1.0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    inner = (slice(5, -5),) * len(shape)
    found = ops.ssim_map(img1, img2, options_for(img1.shape, padding="valid"))
    assert_close(found[0, 0], torch.from_numpy(expected[inner]), 1e-6)


@needs_library
@pytest.mark.parametrize("isa", _library.available_isas())
@pytest.mark.parametrize("shape", [(1, 3, 45, 130), (1, 1, 20, 21, 40)], ids=str)
def test_every_instruction_set(monkeypatch, shape, isa):
    monkeypatch.setattr(_library, "kernel", functools.partial(_library.kernel, isa_name=isa))
    check_all(*pair(shape), options_for(shape))
    check_all(*pair(shape), options_for(shape, padding="reflect", window_size=7))
    last = [image.to(memory_format=torch.channels_last) for image in pair((2, 3, 20, 37))]
    check_all(*last, ops.Options())
    for dtype in (torch.float16, torch.bfloat16):
        check_all(*(image.to(dtype) for image in pair((1, 1, 15, 19))), ops.Options(), gradient=8e-3)
    target = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    same = target.float() / 255
    assert ops.photometric(same, target, ops.Options(), l1_weight=1.0, dssim_weight=1.0)[0] == 0


@needs_library
@pytest.mark.parametrize("padding", ["same", "valid", "reflect"])
@pytest.mark.parametrize(
    "shape", [(1, 3, 256, 256), (1, 3, 100, 1100), (1, 1, 64, 64, 64), (2, 3, 29, 75, 20)], ids=str
)
def test_same_result_for_any_number_of_threads(threads, shape, padding):
    """Bit for bit: threads wait for one another's blocks of slices, and a volume's rows are cut for many of them."""
    img1, img2 = pair(shape)
    options = options_for(shape)._replace(padding=padding)

    def run():
        loss = differentiate(
            lambda x, y: ops.photometric(x, y, options, l1_weight=0.8, dssim_weight=0.2)[0], img1, img2
        )
        return *loss, ops.ssim_map(img1, img2, options), ops.ssim_channel_means(img1, img2, options)

    threads(1)
    one = run()
    for number in (2, 3, 12):
        threads(number)
        assert all(torch.equal(x, y) for x, y in zip(one, run(), strict=True))


@needs_library
@pytest.mark.skipif(processors() < 2, reason="one processor: torch's OpenMP may give one thread")
@pytest.mark.parametrize("shape", [(1, 3, 256, 256), (1, 1, 64, 64, 64)], ids=str)
def test_number_of_threads_is_obeyed(threads, shape):
    img1, img2 = pair(shape)
    options = options_for(shape)

    def used():
        ops.photometric(img1, img2, options, l1_weight=0.8, dssim_weight=0.2)
        return _library.library().splat_ssim_last_thread_count()

    threads(1)
    assert {used() for _ in range(5)} == {1}
    threads(2)
    assert any(used() == 2 for _ in range(500))


@needs_library
def test_threads_after_a_fork():
    """OpenMP's workers do not survive a fork, and it would wait for them."""
    script = """
import os, signal, torch
from splat_ssim.loss import photometric_loss
torch.set_num_threads(2)
images = torch.rand(2, 1, 3, 256, 256)
loss = photometric_loss(*images)
child = os.fork()
if child == 0:
    signal.alarm(30)
    os._exit(0 if torch.equal(photometric_loss(*images), loss) else 1)
raise SystemExit(os.waitpid(child, 0)[1])
"""
    assert subprocess.run([sys.executable, "-c", script], timeout=120).returncode == 0


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("weight_channels", [1, 3])
def test_weight(padding, channels_last, per_image, weight_channels):
    img1, img2 = pair((2, 3, 24, 31))
    weight = torch.rand((2, weight_channels, 24, 31), generator=torch.Generator().manual_seed(3))
    weight[weight < 0.5] = 0
    if channels_last:
        img1, img2, weight = (image.permute(0, 2, 3, 1).contiguous() for image in (img1, img2, weight))
    options = ops.Options(padding=padding, channels_last=channels_last)
    upstream = torch.tensor([0.5, 2.0]) if per_image else torch.tensor(1.5)

    def loss(x, y):
        found = ops.photometric(x, y, options, l1_weight=0.8, dssim_weight=0.2, weight=weight, per_image=per_image)
        return (found[0] * upstream).sum()

    def definition(x, y):
        dssim = 1 - reference.ssim_map(x, y, **keywords(options))
        reduction = "image" if per_image else "mean"
        dssim = reference.weighted_mean(dssim, weight, reduction, channels_last)
        l1 = reference.weighted_mean((x - y).abs(), weight, reduction, channels_last)
        return ((0.8 * l1 + 0.2 * dssim) * upstream).sum()

    found = differentiate(loss, img1, img2)
    expected = differentiate(definition, img1.double(), img2.double())
    for value, wanted in zip(found, expected, strict=True):
        assert_close(value, wanted, 2e-6)


def test_weight_of_nothing():
    """Where nothing has weight, the means and their gradients are 0."""
    img1, img2 = pair((2, 3, 24, 31))
    weight = torch.zeros(2, 1, 24, 31)
    found = differentiate(
        lambda x, y: ops.photometric(x, y, ops.Options(), l1_weight=0.8, dssim_weight=0.2, weight=weight)[0], img1, img2
    )
    assert all((value == 0).all() for value in found)


@pytest.mark.parametrize(
    "shape", [(1, 3, 1, 1), (2, 1, 3, 40), (1, 2, 40, 2), (1, 1, 1, 1, 1), (1, 2, 3, 4, 30)], ids=str
)
@pytest.mark.parametrize("padding", ["same", "replicate"])
def test_images_smaller_than_the_window(shape, padding):
    # So much of the window is padding that the moments themselves cancel: the tolerance of the gradient is wider.
    check_all(*pair(shape), options_for(shape, padding=padding), value=1e-6, gradient=1e-4)


def test_empty_batch():
    img1, img2 = pair((0, 3, 16, 16))
    options = ops.Options()
    assert ops.ssim_map(img1, img2, options).shape == (0, 3, 16, 16)
    assert ops.ssim_channel_means(img1, img2, options).shape == (0, 3, 2)
    loss = ops.photometric(img1.requires_grad_(), img2, options, l1_weight=0.8, dssim_weight=0.2, per_image=True)[0]
    loss.sum().backward()
    assert img1.grad.shape == img1.shape


@needs_library
def test_nan_stays_where_it_is_seen():
    img1, img2 = pair((1, 1, 40, 60))
    expected = ops.ssim_map(img1, img2, ops.Options())
    img1[0, 0, 20, 30] = float("nan")
    found = ops.ssim_map(img1, img2, ops.Options())
    seen = torch.zeros(40, 60, dtype=torch.bool)
    seen[15:26, 25:36] = True
    assert torch.equal(found[0, 0].isnan(), seen)
    assert_close(found[0, 0][~seen], expected[0, 0][~seen], 1e-6)


@needs_library
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("window_size", [3, 5, 7, 11])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_what_a_call_before_left_in_scratch_is_not_read(spatial_dims, window_size, padding):
    large = torch.full((1, 1, *[40] * spatial_dims), float("nan"))
    for side in range(window_size, window_size + 9):
        shape = (1, 1, side + 1, side) if spatial_dims == 2 else (1, 1, side + 2, side, side + 1)
        options = options_for(shape, window_size=window_size, padding=padding)
        img1, img2 = pair(shape)

        def loss(x, y, options=options):
            return ops.photometric(x, y, options, l1_weight=0.8, dssim_weight=0.2)[0]

        truth, *expected = differentiate(loss, img1.double(), img2.double())
        loss(large, large)
        assert_close(loss(img1, img2), truth, 3e-7)
        loss(large.clone().requires_grad_(), large)
        found = differentiate(loss, img1, img2)
        assert_close(found[0], truth, 3e-7)
        for gradient, wanted in zip(found[1:], expected, strict=True):
            assert_close(gradient, wanted, 1e-5)


def photometric_arguments(img1, img2, weight=None, per_image=False, **changes):
    options = options_for(img1.shape, **changes)
    return img1, img2, weight, 0.8, 0.2, per_image, *options, img1.requires_grad, img2.requires_grad


def sample_inputs():
    """(operator, arguments) of every operator, layout and combination of gradients worth checking."""
    calls = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        img1, img2 = (image.to(memory_format=memory_format).requires_grad_() for image in pair((2, 3, 12, 13)))
        calls += [
            ("ssim_map", (img1, img2, *ops.Options())),
            ("ssim_map", (img1, img2.detach(), *ops.Options(padding="valid"))),
            ("ssim_channel_means", (img1, img2, *ops.Options(padding="valid"))),
            ("photometric", photometric_arguments(img1, img2)),
            ("photometric", photometric_arguments(img1, img2.detach(), torch.rand(2, 1, 12, 13), True)),
        ]
    img1, img2 = (image.requires_grad_() for image in pair((1, 11, 12, 13, 2)))
    calls.append(("photometric", photometric_arguments(img1.detach(), img2, channels_last=True)))
    calls.append(("ssim_map", (img1, img2, *options_for(img1.shape, channels_last=True))))
    return calls


@needs_library
@pytest.mark.parametrize("index", range(len(sample_inputs())))
def test_opcheck(index):
    name, arguments = sample_inputs()[index]
    torch.library.opcheck(getattr(torch.ops.splat_ssim, name).default, arguments)


@pytest.mark.parametrize("shape", [(1, 2, 6, 7), (1, 1, 4, 5, 3)], ids=str)
def test_gradcheck(shape):
    img1, img2 = (image.double().requires_grad_() for image in pair(shape))
    options = options_for(shape, window_size=5)
    for function in (
        lambda x, y: ops.photometric(x, y, options, l1_weight=0.8, dssim_weight=0.2)[0],
        lambda x, y: ops.ssim_map(x, y, options),
        lambda x, y: ops.ssim_channel_means(x, y, options),
    ):
        assert torch.autograd.gradcheck(function, (img1, img2))


@needs_library
def test_compiles_to_one_graph():
    img1, img2 = pair((2, 3, 24, 33))

    def loss(x, y):
        total = ops.photometric(x * 1, y, ops.Options(), l1_weight=0.8, dssim_weight=0.2)[0]
        return total + ops.ssim_map(x, y, ops.Options()).mean() + ops.ssim_channel_means(x, y, ops.Options()).sum()

    compiled = torch.compile(loss, fullgraph=True)
    for found, expected in zip(differentiate(compiled, img1, img2), differentiate(loss, img1, img2), strict=True):
        assert_close(found, expected, 1e-6)


@needs_library
def test_backward_again():
    img1, img2 = pair((1, 3, 20, 21))
    img1.requires_grad_()
    loss = ops.photometric(img1, img2, ops.Options(), l1_weight=0.8, dssim_weight=0.2)[0]
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
        ops.photometric(img1, img2, ops.Options(), l1_weight=0.8, dssim_weight=0.2)[0].backward()
    twice = img1.grad.clone()
    img1.grad = None
    ops.photometric(img1, img2, ops.Options(), l1_weight=0.8, dssim_weight=0.2)[0].backward()
    assert torch.equal(twice, 2 * img1.grad)


@needs_library
def test_second_derivative_is_refused():
    img1, img2 = pair((1, 3, 20, 21))
    img1.requires_grad_()
    for value in (
        ops.photometric(img1, img2, ops.Options(), l1_weight=0.8, dssim_weight=0.2)[0],
        ops.ssim_map(img1, img2, ops.Options()).mean(),
        ops.ssim_channel_means(img1, img2, ops.Options()).mean(),
    ):
        (gradient,) = torch.autograd.grad(value, img1, create_graph=True)
        with pytest.raises(NotImplementedError, match="differentiable once"):
            gradient.sum().backward()


@needs_library
def test_nothing_is_kept_without_gradients():
    img1, img2 = pair((1, 3, 20, 21))
    img1.requires_grad_()
    with torch.no_grad():
        found = ops.photometric(img1, img2, ops.Options(), l1_weight=0.8, dssim_weight=0.2)
    assert not any(value.requires_grad for value in found)
    _, _, _, grad1, grad2 = torch.ops.splat_ssim.photometric(*photometric_arguments(img1.detach(), img2))
    assert grad1.numel() == grad2.numel() == 0


def test_what_has_no_kernel_takes_the_definition(monkeypatch):
    """Without the compiled library, and for float64, the same numbers come from plain torch."""
    img1, img2 = pair((1, 3, 20, 21))
    options = ops.Options()

    def run():
        loss = differentiate(
            lambda x, y: ops.photometric(x, y, options, l1_weight=0.8, dssim_weight=0.2)[0], img1, img2
        )
        return *loss, ops.ssim_map(img1, img2, options), ops.ssim_channel_means(img1, img2, options)

    found = run()
    monkeypatch.setitem(ops.KERNELS, "cpu", lambda *_: False)
    for value, expected in zip(found, run(), strict=True):
        assert value.dtype == expected.dtype
        assert_close(value, expected, 2e-6)
