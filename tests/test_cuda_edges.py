"""The CUDA kernels with awkward numbers and tensors, by the host emulation, against one definition for all windows.

Pixels that are not finite, images far from 0 under narrow windows, eps in the denominator, means of nearly nothing,
strides that say nothing, the ends of the types.
"""

import ctypes
import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from splat_ssim import reference
from splat_ssim.ops import _cuda_kernels
from splat_ssim.ops import _cuda_launch as launch
from splat_ssim.options import SSIMOptions
from tests.test_cuda_emulation import (  # noqa: F401
    MAP,
    check_photometric,
    definition,
    exact,
    images,
    kernels,
    lazy,
    library,
    wanted,
)

pytestmark = pytest.mark.emulation

WINDOWS = sorted(_cuda_kernels.WINDOW_SIZES)


def fill_map(kernels, img1, img2, options):  # noqa: F811
    out = torch.empty(reference.ssim_map(img1.double(), img2.double(), **definition(options)).shape)
    launch.fill_map(kernels, 0, img1, img2, options, out)
    return out


# ---- pixels that are not finite


def reach(marked, window_size, padding):
    """Masks (B, C, spatial…) of the windows that hold a marked pixel, and of the pixels that such windows reach."""
    dims, radius = marked.ndim - 2, window_size // 2
    pool = F.max_pool2d if dims == 2 else F.max_pool3d
    padded = {"same": "constant", "valid": "constant"}.get(padding, padding)
    at = marked.double()
    if padding != "valid":
        at = F.pad(at, (radius,) * 2 * dims, mode=padded)
    windows = pool(at, window_size, stride=1)
    reached = pool(F.pad(windows, (window_size - 1,) * 2 * dims), window_size, stride=1)
    if padding == "valid":
        return windows > 0, reached > 0
    # A pixel gathers the gradients of all its copies in the padded image.
    with torch.enable_grad():
        pixels = torch.zeros_like(marked, dtype=torch.float64, requires_grad=True)
        copies = F.pad(pixels, (radius,) * 2 * dims, mode=padded)
        (gathered,) = torch.autograd.grad(copies, pixels, reached)
    return windows > 0, gathered > 0


# A kernel's window is its own, while all windows have the code of the paddings in common: for volumes, which take long,
# the default window meets every padding and the others one each.
@pytest.mark.parametrize(
    "window_size, spatial_dims, padding",
    [
        *((size, 2, padding) for padding in ("same", "valid", "reflect") for size in WINDOWS),
        *((11, 3, padding) for padding in ("same", "valid", "reflect")),
        *zip((3, 5, 7, 9, 13, 15), (3,) * 6, ("same", "valid", "reflect", "same", "reflect", "valid"), strict=True),
    ],
)
def test_what_is_not_finite_spoils_the_windows_that_hold_it(kernels, window_size, spatial_dims, padding):  # noqa: F811
    """It spoils no other windows, in the map, in the sums of other images, and in the gradients of either kernel."""
    shape = (2, 1, 33, 41) if spatial_dims == 2 else (2, 1, 16, 17, 18)
    options = SSIMOptions(window_size, padding=padding)
    img1, img2 = images(*shape)
    img1[(0, 0, *(0,) * spatial_dims)] = math.inf
    img2[(0, 0, *(side - 6 for side in shape[2:]))] = math.nan
    spoilt, reached = reach(~(img1.isfinite() & img2.isfinite()), window_size, padding)
    map_ = fill_map(kernels, img1, img2, options)
    assert torch.equal(~map_.isfinite(), spoilt)
    means = launch.channel_means(kernels, 0, img1, img2, options)
    assert not means[0].isfinite().any() and means[1].isfinite().all()
    upstream = torch.rand(map_.shape)
    for needs in ((True, False), (True, True)):
        for fill in (
            lambda grads: launch.fill_map_gradients(kernels, 0, upstream, img1, img2, options, grads),
            lambda grads: launch.photometric(kernels, 0, img1, img2, None, 0.7, 0.4, True, options, grads),
        ):
            grads = wanted(img1, img2, needs)
            terms = fill(grads)
            assert terms is None or all(not term[0].isfinite() and term[1].isfinite() for term in terms)
            for grad in grads:
                assert grad is None or torch.equal(~grad.isfinite(), reached)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_is_not_finite_in_half_precision(kernels, dtype):  # noqa: F811
    img1, img2 = images(1, 2, 20, 30, dtype=dtype)
    img1[0, 0, 9, 12] = math.nan
    for window_size in (5, 11):
        options = SSIMOptions(window_size)
        spoilt, reached = reach(~img1.isfinite(), window_size, "same")
        assert torch.equal(~fill_map(kernels, img1, img2, options).isfinite(), spoilt)
        grads = wanted(img1, img2, (True, False))
        launch.photometric(kernels, 0, img1, img2, None, 0.7, 0.4, False, options, grads)
        assert torch.equal(~grads[0].isfinite(), reached)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("value", [math.nan, 1e30])
def test_the_mean_is_that_of_usable_samples(kernels, spatial_dims, value):  # noqa: F811
    """A quarter of the plane is missing, the rest is near 1000. The mean subtracted from s must be near 2000."""
    img1, img2 = images(*((1, 1, 32, 64) if spatial_dims == 2 else (1, 1, 16, 16, 32)))
    img1, img2 = img1 + 1000, img2 + 1000
    side = img1.shape[-2]
    options, missing = SSIMOptions(7), side // 4
    rest = (img.double()[..., missing:, :] for img in (img1, img2))
    expected = reference.ssim_map(*rest, **definition(options))[..., 3:, :]
    img1[..., :missing, :] = value
    assert (fill_map(kernels, img1, img2, options)[..., missing + 3 :, :] - expected).abs().max() < MAP


def test_planes_without_a_usable_sample(kernels):  # noqa: F811
    img1, img2 = images(1, 2, 20, 30)
    img1[:, 0] = math.nan
    options = SSIMOptions(5)
    map_ = fill_map(kernels, img1, img2, options)
    expected = reference.ssim_map(img1.double(), img2.double(), **definition(options))
    assert map_[:, 0].isnan().all()
    assert (map_ - expected)[:, 1].abs().max() < MAP


# ---- accuracy far from 0


def errors(kernels, shape, options, offset):  # noqa: F811
    """The largest error of S by the kernels, and by the definition in float32."""
    generator = torch.Generator().manual_seed(1)
    img1, img2 = (torch.rand(shape, generator=generator) + offset for _ in range(2))
    truth = reference.ssim_map(img1.double(), img2.double(), **definition(options))
    single = reference.ssim_map(img1, img2, **definition(options))
    return [(found - truth).abs().max().item() for found in (fill_map(kernels, img1, img2, options), single)]


@pytest.mark.parametrize("window_size", [3, 5, 7, 13])
@pytest.mark.parametrize("sigma, offset", [(0.35, 1000), (0.7, 100), (0.7, 1000), (1.5, 1000)])
def test_narrow_windows_far_from_0(kernels, window_size, sigma, offset):  # noqa: F811
    """Tests every height, because a kernel might treat the last rows differently.

    The largest error of all counts. That of a single image depends on chance, because V is nearly 0.
    """
    found = []
    for padding in ("same", "valid", "reflect"):
        for height in range(max(8, window_size + 1), 25, 1 if padding == "same" else 3):
            found.append(errors(kernels, (1, 1, height, 48), SSIMOptions(window_size, sigma, padding=padding), offset))
    shape = (1, 1, window_size + 1, 19, 20)
    found.append(errors(kernels, shape, SSIMOptions(window_size, sigma), offset))
    ours, single = (max(column) for column in zip(*found, strict=True))
    assert ours <= (3e-6 if sigma >= 0.7 else 2 * single), (ours, single)


# ---- eps


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("window_size", [3, 11, 13])
@pytest.mark.parametrize("eps", [1e-12, 1e-4, 0.3])
def test_eps_in_the_denominator(kernels, spatial_dims, window_size, eps):  # noqa: F811
    """eps is added as in kornia, in S and its gradient, without and with weights."""
    shape = (2, 2, 15, 33) if spatial_dims == 2 else (2, 1, 13, 14, 15)
    img1, img2 = images(*shape)
    weight = torch.rand(shape[0], 1, *shape[2:])
    # Over the three windows every eps meets every padding.
    turn = (3, 11, 13).index(window_size) + (1e-12, 1e-4, 0.3).index(eps)
    options = SSIMOptions(window_size, padding=("same", "valid", "reflect")[turn % 3], eps=eps)
    for needs in ((False, False), (True, False), (True, True)):
        check_photometric(kernels, img1, img2, options, needs)
    check_photometric(kernels, img1, img2, options, (True, False), weight, True)


@pytest.mark.parametrize("data_range", [1e-9, 1e9])
def test_eps_beside_any_range(kernels, data_range):  # noqa: F811
    """Where the denominator leaves float32's range, eps multiplies S by a factor of 0 or 1."""
    img1, img2 = images(1, 1, 15, 33)
    img1, img2 = img1 * data_range, img2 * data_range
    options = SSIMOptions(7, data_range=data_range, eps=1e-12)
    expected = reference.ssim_map(img1.double(), img2.double(), **definition(options))
    assert (fill_map(kernels, img1, img2, options) - expected).abs().max() < MAP


# ---- means of S and CS that are nearly 0


def test_means_of_nearly_nothing_are_exact(kernels):  # noqa: F811
    """MS-SSIM divides by these means, so their error relative to themselves matters, not relative to 1."""
    generator = torch.Generator().manual_seed(0)
    pair = torch.rand(2, 1, 6, 48, 48, generator=generator)
    # The second image is changed until the mean of CS is 1e-4.
    options = SSIMOptions(5, padding="valid")
    img1, img2 = pair
    for _ in range(8):
        _, contrast = reference.ssim_channel_means(img1.double(), img2.double(), **definition(options)).unbind(-1)
        img2 = (img2 - (contrast - 1e-4)[..., None, None] * (img1 - 0.5)).float()
    truth = reference.ssim_channel_means(img1.double(), img2.double(), **definition(options))
    assert truth[..., 1].abs().max() < 1e-3
    found = launch.channel_means(kernels, 0, img1, img2, options)
    assert (found - truth).abs().max() < 1.5e-8  # computed as 1 - mean(1 - S), the error would be 1e-7


# ---- strides that say nothing


def with_strides(image, strides, offset=5):
    """Copies an image to other strides, behind `offset` elements that do not belong to it."""
    needed = sum((side - 1) * stride for side, stride in zip(image.shape, strides, strict=True)) + 1
    memory = torch.full((needed + 2 * offset,), 7.0, dtype=image.dtype)
    view = memory.as_strided(image.shape, strides, offset)
    return view.copy_(image)


def garbage(image, axes):
    """Gives axes of length 1 arbitrary strides, like those that `as_strided` and `expand` leave."""
    strides = list(image.stride())
    for axis, stride in zip(axes, itertools.cycle((0, 2**40 + 3, 7, 2**61))):
        assert image.shape[axis] == 1
        strides[axis] = stride
    return image.as_strided(image.shape, strides, image.storage_offset())


KERNELS = [(3, "same"), (11, "same"), (11, "valid"), (5, "replicate")]
#: Shapes, and their axes of length 1.
FLAT = [
    ((1, 1, 24, 11), ()),
    ((1, 1, 11, 24), ()),
    ((1, 3, 12, 11), (0,)),
    ((1, 1, 1, 20), (0, 1, 2)),
    ((2, 1, 20, 1), (1, 3)),
    ((1, 1, 1, 1), (0, 1, 2, 3)),
]
THICK = [
    ((1, 1, 11, 12, 11), (0, 1)),
    ((1, 1, 1, 12, 13), (0, 1, 2)),
    ((1, 2, 12, 1, 13), (0, 3)),
    ((1, 2, 12, 13, 1), (0, 4)),
]


# Every kernel reads its strides by the same code. Volumes take long, so the default has all of theirs, the others one.
@pytest.mark.parametrize(
    "window_size, padding, shape, ones",
    [
        *((*kernel, *case) for kernel in KERNELS for case in FLAT),
        *((*KERNELS[1], *case) for case in THICK),
        *((*kernel, *THICK[case]) for kernel, case in ((KERNELS[0], 2), (KERNELS[2], 0), (KERNELS[3], 3))),
    ],
)
def test_the_stride_of_an_axis_of_length_1_says_nothing(kernels, window_size, padding, shape, ones):  # noqa: F811
    """No result depends on such a stride, or on memory beside the tensor."""
    if padding == "valid" and min(shape[2:]) < window_size:
        return
    options = SSIMOptions(window_size, padding=padding)
    img1, img2 = images(*shape)
    map_ = fill_map(kernels, img1, img2, options)
    upstream, expanded = torch.rand(map_.shape), torch.tensor([7.0, 0.3, 7.0])[1].expand(map_.shape)
    weight = torch.rand(shape)
    # With arbitrary strides alone, the kernels for plain tensors run. If elements are apart too, the others run.
    for strange in (lambda t: garbage(t, ones), lambda t: garbage(with_strides(t, [3 * s for s in t.stride()]), ones)):
        pair, weights = (strange(img1), strange(img2)), strange(weight)
        map_ones = [axis for axis, side in enumerate(map_.shape) if side == 1]
        spoilt = garbage(torch.empty(map_.shape), map_ones)
        launch.fill_map(kernels, 0, *pair, options, spoilt)
        assert torch.equal(spoilt, map_)
        for needs in ((True, False), (True, True)):
            for gradient, strange_gradient in ((upstream, garbage(upstream.clone(), map_ones)), (expanded, expanded)):
                plain, found = wanted(img1, img2, needs), wanted(img1, img2, needs)
                launch.fill_map_gradients(kernels, 0, gradient.contiguous(), img1, img2, options, plain)
                outputs = tuple(None if grad is None else garbage(grad, ones) for grad in found)
                launch.fill_map_gradients(kernels, 0, strange_gradient, *pair, options, outputs)
                close(plain, found)
            plain, found = wanted(img1, img2, needs), wanted(img1, img2, needs)
            launch.photometric(kernels, 0, img1, img2, weight, 0.7, 0.4, False, options, plain)
            outputs = tuple(None if grad is None else garbage(grad, ones) for grad in found)
            launch.photometric(kernels, 0, *pair, weights, 0.7, 0.4, False, options, outputs)
            close(plain, found)


def close(expected, found):
    """Compares the results of kernels that may add in another order."""
    for a, b in zip(expected, found, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert (a - b).abs().max() <= 2e-6 * a.abs().max()


def test_interiors_of_larger_tensors(kernels):  # noqa: F811
    """Every tensor is part of a larger one, which must not be changed."""
    for shape, options in (((2, 2, 13, 25), SSIMOptions(7)), ((1, 1, 12, 13, 14), SSIMOptions())):
        inside = (..., *(slice(2, -3),) * (len(shape) - 2))
        larger = [torch.full((*shape[:2], *(side + 5 for side in shape[2:])), 7.0) for _ in range(5)]
        for whole, part in zip(larger, (*images(*shape), torch.rand(shape)), strict=False):
            whole[inside] = part
        img1, img2, weight, *grads = (whole[inside] for whole in larger)
        for needs in ((True, False), (True, True)):
            expected = wanted(img1, img2, needs)
            arguments = (weight, 0.7, 0.4, False, options)
            contiguous = (img1.contiguous(), img2.contiguous())
            launch.photometric(kernels, 0, *contiguous, *arguments, expected)
            found = tuple(grad if need else None for grad, need in zip(grads, needs, strict=True))
            launch.photometric(kernels, 0, img1, img2, *arguments, found)
            close(expected, found)
        for whole in larger:
            whole[inside] = 7
            assert (whole == 7).all()


def test_slices_of_more_than_2_31_voxels(library, kernels, monkeypatch):  # noqa: F811
    """The adjoint for volumes also reads its maps at offsets beyond 32 bits inside a slice."""
    shape, tail = (1, 1, 2, 50_000, 44_000), 12
    assert math.prod(shape[3:]) > 2**31
    part = images(*shape[:3], tail, tail)
    whole = [lazy(shape) for _ in range(2)]
    for image, values in zip(whole, part, strict=True):
        image[..., -tail:, -tail:] = values
    options, found, alone = SSIMOptions(3), (lazy(shape), None), wanted(*part, (True, False))
    kernels.multiprocessors = 1
    allocate = launch._Call.empty
    monkeypatch.setattr(launch._Call, "empty", lambda call, *size: lazy(size) if size else allocate(call))
    library.splat_emulation_only_last(ctypes.c_longlong(1))
    launch.photometric(kernels, 0, *whole, None, 0.0, float(math.prod(shape)), False, options, found)
    library.splat_emulation_only_last(ctypes.c_longlong(-1))
    launch.photometric(kernels, 0, *part, None, 0.0, float(part[0].numel()), False, options, alone)
    a, b = found[0][..., -6:, -6:], alone[0][..., -6:, -6:]
    # The planes have different means and so different rounding errors.
    assert (a - b).abs().max() <= 1e-4 * b.abs().max()


# ---- launches


def test_weights_of_a_map_as_large_as_the_images_are_made_once(kernels):  # noqa: F811
    img1, img2 = images(1, 2, 13, 20)
    call = launch._Call(kernels, 0, img1, img2, SSIMOptions())
    shares, map_shares = launch._shares(call, torch.rand(1, 1, 13, 20), False)
    assert map_shares is shares
    valid = launch._Call(kernels, 0, img1, img2, SSIMOptions(padding="valid"))
    shares, map_shares = launch._shares(valid, torch.rand(1, 1, 13, 20), False)
    assert map_shares.shape == (1, 2, 1, 3, 10)
    assert shares.sum().item() == pytest.approx(1) and map_shares.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_the_kernel_of_the_window_runs(kernels, spatial_dims):  # noqa: F811
    """No window runs in the kernel of a larger one with zeros as the further taps."""
    img1, img2 = images(*((1, 1, 15, 20) if spatial_dims == 2 else (1, 1, 15, 16, 17)))
    ran, start = [], kernels.launch

    def record(name, argument, stream):
        if name == "ssim":
            ran.append(kernels.names[argument.kernel])
        start(name, argument, stream)

    kernels.launch = record
    for window_size in WINDOWS:
        for needs in ((False, False), (True, False), (True, True)):
            ran.clear()
            options = SSIMOptions(window_size)
            launch.photometric(kernels, 0, img1, img2, None, 0.7, 0.4, False, options, wanted(img1, img2, needs))
            suffix = "d" if window_size == 11 else f"d_{window_size}"
            assert all(name.endswith(suffix) for name in ran)
            assert len(ran) == (2 if any(needs) and (spatial_dims == 3 or all(needs) or window_size > 11) else 1)


# ---- the ends of the types


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_value_is_read_exactly(kernels, dtype):  # noqa: F811
    """No value is flushed to 0, not even subnormal ones of float32."""
    bits = torch.arange(2**16, dtype=torch.int32)
    values = bits.to(torch.int16).view(dtype) if dtype != torch.float32 else (bits << 7).view(dtype)
    image = values.view(1, 1, 256, 256)
    call = launch._Call(kernels, 0, image, image, SSIMOptions(3, padding="replicate"))
    read = call.images[0][0, 0, 0, 1:-1, 1:-1].flatten()
    expected = values.float()
    finite = expected.isfinite()
    assert torch.equal(read[finite], expected[finite])
    assert torch.equal(read.isnan(), expected.isnan()) and torch.equal(read.isinf(), expected.isinf())


def test_differences_of_subnormals_have_a_sign(kernels):  # noqa: F811
    tiny = 1e-40
    img1, img2 = torch.full((1, 1, 12, 12), tiny), torch.full((1, 1, 12, 12), 2 * tiny)
    for window_size, needs in itertools.product((7, 11), ((True, False), (True, True))):
        grads = wanted(img1, img2, needs)
        _, l1, _ = launch.photometric(kernels, 0, img1, img2, None, 144.0, 0.0, False, SSIMOptions(window_size), grads)
        assert l1.item() == pytest.approx(tiny, rel=1e-4)
        assert (grads[0] == -1).all() and (grads[1] is None or (grads[1] == 1).all())
