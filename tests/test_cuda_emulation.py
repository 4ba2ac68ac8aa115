"""The CUDA kernels and their launchers on the CPU, by the host emulation, compared with the definition in float64.

The emulation runs threads in shuffled orders, hands out shared memory full of NaN and checks its fences; torch fills
every workspace and output with NaN (deterministic mode), so what a kernel forgets to write shows.
"""

import ctypes
import itertools
import math
import mmap
import os
import re
import subprocess

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from splat_ssim import _maps, reference
from splat_ssim.ops import _cuda_kernels
from splat_ssim.ops import _cuda_launch as launch
from splat_ssim.options import SSIMOptions
from tests.devices import ROOT, build_emulation

pytestmark = pytest.mark.emulation

PADDINGS = ("same", "valid", "reflect", "replicate")
#: Which image gets a gradient: each has kernels of its own.
NEEDS = ((False, False), (True, False), (True, True))
#: Orders of the threads, see csrc/emulation/fibers.h.
SHUFFLED, WARPS = 2, 3
#: float32 accumulation over windows of up to 15 x 15 x 15 taps, images in [0, 1]: observed below 1e-6 and 2e-6.
VALUE, GRADIENT = 2e-6, 5e-6
#: A single voxel has nothing to average rounding over: E[s²] is rounded to 3e-8 and divided by B, here 0.01 at times.
MAP = 1e-5


@pytest.fixture(scope="session")
def library():
    loaded = ctypes.CDLL(str(build_emulation(os.environ.get("SPLAT_SSIM_EMULATION", "plain"))))
    loaded.splat_emulation_fault.restype = ctypes.c_char_p
    return loaded


@pytest.fixture
def kernels(library):
    """The kernels for a device of few multiprocessors, so that small images are split into several segments."""
    library.splat_emulation_configure(2, 1, -1, 0)
    library.splat_emulation_only_last(ctypes.c_longlong(-1))
    torch.use_deterministic_algorithms(True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the images are tiny
    yield _cuda_kernels.Kernels(library, None, 2)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
    library.splat_emulation_configure(2, 1, -1, 0)


def images(*shape, dtype=torch.float32, seed=0, channels_last=False):
    """Smooth images in [0, 1] with noise, different enough that every term matters."""
    generator = torch.Generator().manual_seed(seed)
    ramp = torch.linspace(0, 9, shape[-1]).sin() * 0.3 + 0.5
    img1 = (ramp + 0.2 * torch.rand(shape, generator=generator)).clamp(0, 1)
    img2 = (img1 + 0.1 * torch.randn(shape, generator=generator)).clamp(0, 1)
    if channels_last:
        img1, img2 = img1.movedim(1, -1).contiguous(), img2.movedim(1, -1).contiguous()
    return img1.to(dtype), img2.to(dtype)


def wanted(img1, img2, needs):
    grads = [torch.empty(img.shape) if img.dtype == torch.uint8 else torch.empty_like(img) for img in (img1, img2)]
    return tuple(grad if need else None for grad, need in zip(grads, needs, strict=True))


def definition(options):
    """Options as keyword arguments of `reference` functions."""
    return options._asdict()


def exact(img, data_range=1.0):
    return _maps.as_float(img, torch.float64, data_range).requires_grad_()


def check_photometric(kernels, img1, img2, options, needs, weight=None, per_image=False, tolerance=1.0):
    grads = wanted(img1, img2, needs)
    found = launch.photometric(kernels, 0, img1, img2, weight, 0.7, 0.4, per_image, options, grads)
    x, y = exact(img1, options.data_range), exact(img2, options.data_range)
    dssim = 1 - reference.ssim_map(x, y, **definition(options))
    reduction = "image" if per_image else "mean"
    mask = None if weight is None else weight.double()
    l1 = _maps.weighted_mean((x - y).abs(), mask, reduction, options.channels_last)
    dssim = _maps.weighted_mean(dssim, mask, reduction, options.channels_last)
    loss = 0.7 * l1 + 0.4 * dssim
    for mean, truth in zip(found, (loss, l1, dssim), strict=True):
        assert mean.shape == truth.shape
        assert (mean - truth).abs().max() < VALUE * tolerance, (mean, truth)
    for image, grad in zip((x, y), grads, strict=True):
        if grad is not None:
            (truth,) = torch.autograd.grad(loss.sum(), image, retain_graph=True)
            error = (grad.double() - truth).abs().max() / truth.abs().max()
            assert error < GRADIENT * tolerance, error


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 2, 3, 7), (2, 1, 23, 301), (1, 3, 40, 246), (1, 1, 70, 64)])
@pytest.mark.parametrize("needs", [(False, False), (True, False), (False, True), (True, True)])
def test_photometric_of_images(kernels, shape, needs):
    check_photometric(kernels, *images(*shape), SSIMOptions(), needs, per_image=shape[0] > 1)


@pytest.mark.parametrize("width", [246, 247, 251, 254, 255, 256, 257])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_one_strip_up_to_256_columns(kernels, width, padding):
    """247 to 256 columns have a kernel of their own. A pixel that is not finite must spread as far as in the others."""
    img1, img2 = images(1, 2, 23, width)
    before = _cuda_kernels.kernel_starts(kernels.library)["splat_fused2d_lone"]
    check_photometric(kernels, img1, img2, SSIMOptions(padding=padding), (True, False))
    after = _cuda_kernels.kernel_starts(kernels.library)["splat_fused2d_lone"]
    assert after - before == (247 <= width <= 256)
    img1[0, 0, 9, -1] = math.nan
    grad = torch.empty_like(img1)
    launch.photometric(kernels, 0, img1, img2, None, 0.7, 0.4, False, SSIMOptions(padding=padding), (grad, None))
    truth = img1.double().requires_grad_()
    reference.dssim_map(truth, img2.double(), **definition(SSIMOptions(padding=padding))).sum().backward()
    assert torch.equal(grad.isfinite(), truth.grad.isfinite())


@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1), (1, 2, 3, 5, 7), (2, 1, 21, 18, 35)])
@pytest.mark.parametrize("needs", [(False, False), (True, False), (False, True), (True, True)])
def test_photometric_of_volumes(kernels, shape, needs):
    check_photometric(kernels, *images(*shape), SSIMOptions(), needs, per_image=shape[0] > 1)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("window_size", [3, 11, 15])
@pytest.mark.parametrize("needs", [(False, False), (True, False), (True, True)])
def test_windows_and_paddings_of_images(kernels, padding, window_size, needs):
    options = SSIMOptions(window_size, 0.4 * window_size**0.5, 2.0, 0.02, 0.05, padding)
    img1, img2 = images(1, 2, 19, 150)
    check_photometric(kernels, img1 * 2, img2 * 2, options, needs)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("window_size", [5, 11, 15])
@pytest.mark.parametrize("needs", [(False, False), (True, False), (True, True)])
def test_windows_and_paddings_of_volumes(kernels, padding, window_size, needs):
    options = SSIMOptions(window_size, padding=padding)
    check_photometric(kernels, *images(1, 1, 16, 15, 17), options, needs)


# float32 keeps 24 bits of s = x + y. Unless the image's own mean is subtracted first, values near 1000 have no variance
# left, and the variance of values near 0.9 is only exact to 2e-5.
@pytest.mark.parametrize(
    "shape, window_size, padding, needs",
    [
        *(((2, 2, 45, 60), *rest) for rest in itertools.product((11, 13), ("same", "valid", "reflect"), NEEDS)),
        # Volumes take long: each kind of kernel has one padding, and each window all three.
        *(((2, 1, 21, 18, 35), 11, *rest) for rest in zip(("same", "valid", "reflect"), NEEDS, strict=True)),
        *(((2, 1, 21, 18, 35), 13, *rest) for rest in zip(("reflect", "same", "valid"), NEEDS, strict=True)),
    ],
)
def test_images_far_from_0(kernels, shape, window_size, padding, needs):
    options = SSIMOptions(window_size, padding=padding)
    img1, img2 = images(*shape)
    check_photometric(kernels, 0.9 + img1 / 1000, 0.9 + img2 / 1000, options, needs)
    # Each plane has a mean of its own.
    far = torch.tensor([1000.0, -500.0]).view(2, *[1] * (len(shape) - 1))
    check_photometric(kernels, far + img1, far + img2, options, needs)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_stays_where_it_is(kernels, spatial_dims, value):
    """Windows elsewhere are unaffected, although samples for the mean lie among the spoilt pixels."""
    img1, img2 = images(*((1, 1, 64, 64) if spatial_dims == 2 else (1, 1, 32, 32, 32)))
    options = SSIMOptions()
    clean, spoilt = torch.empty_like(img1), torch.empty_like(img1)
    launch.fill_map(kernels, 0, img1, img2, options, clean)
    img1[..., 17, :] = value
    launch.fill_map(kernels, 0, img1, img2, options, spoilt)
    row = slice(12, 23)
    assert spoilt[..., row, :].isnan().any()
    spoilt[..., row, :] = clean[..., row, :]
    assert (spoilt - clean).abs().max() < MAP


@pytest.mark.slow
@pytest.mark.parametrize("window_size", range(3, 16, 2))
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_every_window_on_larger_images(kernels, window_size, spatial_dims):
    img1, img2 = images(*((1, 1, 70, 300) if spatial_dims == 2 else (1, 1, 24, 40, 50)))
    for turn, needs in enumerate(NEEDS):
        # Two paddings for each kernel; every window meets all four, and over the windows so does every kind of kernel.
        for padding in PADDINGS[(window_size // 2 + turn) % 2 :: 2]:
            options = SSIMOptions(window_size, padding=padding)
            # Three taps average rounding over 9 pixels only. The largest of 21,000 errors counts: 5.7e-6 was observed.
            check_photometric(kernels, img1, img2, options, needs, tolerance=2.0)


# Half precision only stores: the definition gets the same rounded images, and gradients are rounded to it.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("target", [None, torch.uint8])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("needs", [(True, False), (True, True)])
def test_dtypes_and_layouts(kernels, dtype, target, channels_last, spatial_dims, needs):
    shape = (2, 3, 14, 40) if spatial_dims == 2 else (2, 3, 6, 9, 12)
    img1, img2 = images(*shape, channels_last=channels_last)
    img1, img2 = img1.to(dtype), (img2 * 255).to(torch.uint8) if target else img2.to(dtype)
    options = SSIMOptions(channels_last=channels_last)
    rounding = {torch.float32: 1.0, torch.float16: 2**-10 / GRADIENT, torch.bfloat16: 2**-7 / GRADIENT}[dtype]
    check_photometric(kernels, img1, img2, options, needs, per_image=True, tolerance=rounding)


# Padding, window and layout differ between the rows, so that every pair of values occurs.
@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize(
    "dtype, target, padding, window_size, channels_last, masked",
    [
        (torch.float16, torch.uint8, "valid", 5, True, True),
        (torch.float16, None, "reflect", 13, False, False),
        (torch.bfloat16, torch.uint8, "replicate", 11, False, True),
        (torch.bfloat16, None, "same", 15, True, True),
        (torch.float32, torch.uint8, "reflect", 7, True, False),
        (torch.float32, None, "valid", 13, False, True),
        (torch.float32, torch.uint8, "same", 15, False, True),
        (torch.float16, torch.float32, "replicate", 9, True, False),
    ],
)
def test_types_with_paddings_windows_and_weights(
    kernels, spatial_dims, dtype, target, padding, window_size, channels_last, masked
):
    shape = (2, 2, 17, 35) if spatial_dims == 2 else (2, 2, 15, 16, 17)
    img1, img2 = images(*shape, channels_last=channels_last)
    img1 = img1.to(dtype)
    img2 = (img2 * 255).to(torch.uint8) if target is torch.uint8 else img2.to(target or dtype)
    options = SSIMOptions(window_size, padding=padding, channels_last=channels_last)
    weight = torch.rand(img1[..., :1].shape if channels_last else img1[:, :1].shape) if masked else None
    rounding = {torch.float32: 1.0, torch.float16: 2**-10 / GRADIENT, torch.bfloat16: 2**-7 / GRADIENT}[dtype]
    for needs in ((False, False), (True, False), (True, True)):
        check_photometric(kernels, img1, img2, options, needs, weight, True, tolerance=rounding)


def test_strides_of_every_kind(kernels):
    img1, img2 = images(2, 3, 20, 60)
    img1 = img1[:, :, ::2, ::3]
    img2 = img2[:, :1, 5:15, 40:60].expand(-1, 3, -1, -1)
    check_photometric(kernels, img1, img2, SSIMOptions(), (True, True))
    odd = torch.empty(2 * 3 * 10 * 20 + 1)[1:].view(2, 3, 10, 20).copy_(img1)  # not aligned to pairs
    check_photometric(kernels, odd, img2.contiguous(), SSIMOptions(), (True, False))


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("per_image, channels", [(False, 1), (True, 2)])
def test_weights(kernels, spatial_dims, padding, per_image, channels):
    shape = (2, 2, 13, 30) if spatial_dims == 2 else (2, 2, 12, 13, 14)
    img1, img2 = images(*shape)
    weight = torch.rand(shape[0], channels, *shape[2:])
    weight[1] = 0
    options = SSIMOptions(padding=padding)
    for needs in ((False, False), (False, True), (True, True)):
        check_photometric(kernels, img1, img2, options, needs, weight, per_image)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_map(kernels, spatial_dims, padding, channels_last):
    shape = (1, 2, 15, 33) if spatial_dims == 2 else (1, 2, 11, 12, 13)
    img1, img2 = images(*shape, channels_last=channels_last)
    options = SSIMOptions(padding=padding, channels_last=channels_last)
    x, y = exact(img1), exact(img2)
    expected = reference.ssim_map(x, y, **definition(options))
    found = torch.empty(expected.shape)
    launch.fill_map(kernels, 0, img1, img2, options, found)
    assert (found - expected).abs().max() < MAP
    noise, flat = torch.randn(expected.shape), torch.tensor(0.3).expand(expected.shape)
    for upstream, needs in (
        (noise, (True, False)),
        (noise, (False, True)),
        (flat, (True, False)),
        (flat, (True, True)),
    ):
        grads = wanted(img1, img2, needs)
        launch.fill_map_gradients(kernels, 0, upstream, img1, img2, options, grads)
        for image, grad in zip((x, y), grads, strict=True):
            if grad is not None:
                (truth,) = torch.autograd.grad(expected, image, upstream.double(), retain_graph=True)
                assert (grad - truth).abs().max() / truth.abs().max() < 2 * GRADIENT


def test_rows_of_an_upstream_map_any_distance_apart(kernels):
    """The fused kernel steps by 32-bit integers. A map with longer steps uses the pair of kernels."""
    img1, img2 = images(1, 1, 1, 70)
    upstream = torch.linspace(-1, 1, 70).view(1, 1, 1, 70)
    found = []
    for step in (70, 2**40):
        grads = wanted(img1, img2, (True, False))
        map_grad = upstream.as_strided(upstream.shape, (70, 70, step, 1))
        launch.fill_map_gradients(kernels, 0, map_grad, img1, img2, SSIMOptions(), grads)
        found.append(grads[0])
    assert (found[0] - found[1]).abs().max() <= GRADIENT * found[0].abs().max()


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("padding", ["same", "valid", "reflect"])
@pytest.mark.parametrize("window_size", [11, 13])
def test_channel_means(kernels, spatial_dims, padding, window_size):
    shape = (2, 2, 17, 40) if spatial_dims == 2 else (1, 2, 13, 14, 15)
    img1, img2 = images(*shape)
    options = SSIMOptions(window_size, padding=padding)
    x, y = exact(img1), exact(img2)
    expected = reference.ssim_channel_means(x, y, **definition(options))
    assert (launch.channel_means(kernels, 0, img1, img2, options) - expected).abs().max() < VALUE
    upstream = torch.randn(expected.shape)
    for needs in ((True, False), (False, True), (True, True)):
        grads = wanted(img1, img2, needs)
        launch.fill_channel_mean_gradients(kernels, 0, upstream, img1, img2, options, grads)
        for image, grad in zip((x, y), grads, strict=True):
            if grad is not None:
                (truth,) = torch.autograd.grad(expected, image, upstream.double(), retain_graph=True)
                assert (grad - truth).abs().max() / truth.abs().max() < GRADIENT


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("needs", [(False, False), (True, False), (True, True)])
def test_thread_orders_and_segments_give_the_same_bits(library, kernels, spatial_dims, needs):
    img1, img2 = images(*((1, 1, 45, 60) if spatial_dims == 2 else (1, 1, 23, 20, 20)))
    options = SSIMOptions()
    results = []
    for order, seed in ((0, 0), (1, 0), (SHUFFLED, 2), (SHUFFLED, 3), (WARPS, 4)):
        library.splat_emulation_configure(order, seed, -1, 0)
        grads = wanted(img1, img2, needs)
        found = launch.photometric(kernels, 0, img1, img2, None, 0.7, 0.4, False, options, grads)
        results.append([*found, *(grad for grad in grads if grad is not None)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("blocks", [1, 2, 5])
def test_scaling_reads_the_upstream_value_on_the_device(kernels, blocks):
    kernels.multiprocessors = blocks
    gradient = torch.randn(3, 1, 40, 50)
    per_image = torch.tensor([0.3, 1.0, -2.0])
    for upstream in (torch.tensor(0.25), torch.tensor(1.0), per_image, torch.tensor(0.5).expand(3), per_image[::2]):
        images_ = gradient[: upstream.shape[0]] if upstream.ndim else gradient
        found = images_.clone()
        assert launch.scale(kernels, 0, found, upstream)
        assert torch.equal(found, images_ * (upstream.view(-1, 1, 1, 1) if upstream.ndim else upstream))
    for layout in (gradient[..., 1:], gradient.transpose(0, 2).contiguous().transpose(0, 2), gradient[:2]):
        assert not launch.scale(kernels, 0, layout, per_image[: layout.shape[0]])


def test_scaling_by_1_touches_nothing(kernels, monkeypatch):
    count = ctypes.CDLL(str(build_emulation("count")))
    counts = (ctypes.c_double * 8)()
    moved = []
    for value in (1.0, 2.0):
        count.splat_emulation_take_counts(counts)
        gradient = torch.ones(1, 3, 64, 64)
        assert launch.scale(_cuda_kernels.Kernels(count, None, 1), 0, gradient, torch.tensor(value))
        count.splat_emulation_take_counts(counts)
        moved.append((counts[4] + counts[5]) / gradient.numel())
    blocks = 4
    assert moved[0] == 4 * 256 * blocks / (3 * 64 * 64)  # every thread reads the value: one transaction per warp
    assert moved[1] == moved[0] + 8


class _Recorder(TorchDispatchMode):
    """Records the operations of torch that run."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, arguments=(), keyword_arguments=None):
        self.names.add(function.overloadpacket.__name__)
        return function(*arguments, **(keyword_arguments or {}))


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("needs", [(False, False), (True, False), (True, True)])
def test_beside_the_kernels_nothing_runs_but_allocation(kernels, spatial_dims, padding, needs):
    """There is no fill, no copy and no read by the host. Nothing synchronises, so a CUDA graph can capture it."""
    img1, img2 = images(*((1, 2, 12, 30) if spatial_dims == 2 else (1, 2, 12, 13, 14)))
    options = SSIMOptions(padding=padding)
    grads = wanted(img1, img2, needs)
    torch.use_deterministic_algorithms(False)  # in that mode, the filling of new tensors is an operation
    kernels.arrivals(0, img1.device)  # the first call on a stream allocates these
    with _Recorder() as recorder:
        launch.photometric(kernels, 0, img1, img2, None, 0.7, 0.4, False, options, grads)
    views = {"detach", "unsqueeze", "permute", "alias", "view", "select", "unbind"}
    assert recorder.names - views <= {"empty", "empty_like"}


def lazy(shape, dtype=torch.float32):
    """Zeros of any size. They take memory only for pages that are touched."""
    bytes_ = math.prod(shape) * dtype.itemsize
    unreserved = getattr(mmap, "MAP_NORESERVE", 0x4000)  # Linux's value, which older Pythons do not name
    mapped = mmap.mmap(-1, bytes_, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | unreserved)
    return torch.frombuffer(mapped, dtype=dtype).view(shape)


def test_a_batch_beyond_65535(library, kernels):
    """Only the last blocks run. Planes beyond the first 65,535 must get the results of the same images on their own."""
    batch, last, shape = 70_000, 3, (1, 9, 20)
    img1, img2 = images(last, *shape)
    many = [lazy((batch, *shape)) for _ in range(2)]
    for whole, part in zip(many, (img1, img2), strict=True):
        whole[-last:] = part
    for options, needs in (
        (SSIMOptions(), (True, False)),
        (SSIMOptions(), (True, True)),
        (SSIMOptions(13), (True, False)),
    ):
        found, alone = wanted(*many, needs), wanted(img1, img2, needs)
        library.splat_emulation_only_last(ctypes.c_longlong(last))
        launch.photometric(kernels, 0, *many, None, 0.7, 0.4, True, options, found)
        library.splat_emulation_only_last(ctypes.c_longlong(-1))
        launch.photometric(kernels, 0, img1, img2, None, 0.7, 0.4, True, options, alone)
        for a, b in zip(found, alone, strict=True):
            assert a is None or (torch.equal(a[-last:], b) and a[:-last].isnan().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("needs", [(True, False), (True, True)])
def test_more_than_2_31_elements(library, kernels, monkeypatch, dtype, spatial_dims, needs):
    """Only the last block runs. Its offsets in every tensor and workspace are beyond 32 bits."""
    shape = (1, 1, 12, 190_000_000) if spatial_dims == 2 else (1, 1, 12, 14, 14_000_000)
    assert math.prod(shape) > 2**31
    tail = 90 if spatial_dims == 2 else 60
    part = images(*shape[:-1], tail, dtype=dtype)
    whole = [lazy(shape, dtype) for _ in range(2)]
    for image, values in zip(whole, part, strict=True):
        image[..., -tail:] = values
    found = [lazy(shape, dtype) if need else None for need in needs]
    alone = wanted(*part, needs)
    options = SSIMOptions()
    kernels.multiprocessors = 1  # one segment, so that the last block has all rows of its columns
    weights = [0.7 * math.prod(shape), 0.4 * math.prod(shape)]
    allocate = launch._Call.empty
    monkeypatch.setattr(launch._Call, "empty", lambda call, *size: lazy(size) if size else allocate(call))
    library.splat_emulation_only_last(ctypes.c_longlong(1))
    launch.photometric(kernels, 0, *whole, None, *weights, False, options, found)
    library.splat_emulation_only_last(ctypes.c_longlong(-1))
    weights = [weight * part[0].numel() / math.prod(shape) for weight in weights]
    launch.photometric(kernels, 0, *part, None, *weights, False, options, alone)
    for a, b in zip(found, alone, strict=True):
        if a is not None:
            # The columns whose gradients only depend on windows within the last block.
            a, b = a[..., -20:].float(), b[..., -20:].float()
            assert (a - b).abs().max() <= 1e-3 * b.abs().max()


def test_nothing_outside_the_gradients_is_written(kernels):
    for shape, needs in (
        ((1, 1, 21, 251), (True, False)),
        ((1, 2, 9, 30), (True, True)),
        ((1, 1, 5, 17, 33), (True,) * 2),
    ):
        img1, img2 = images(*shape)
        fenced = [torch.full((img1.numel() + 600,), 7.0) for _ in range(2)]
        grads = tuple(f[300:-300].view(shape) if need else None for f, need in zip(fenced, needs, strict=True))
        options = SSIMOptions()
        launch.photometric(kernels, 0, img1, img2, None, 0.7, 0.4, False, options, grads)
        assert all((f[:300] == 7).all() and (f[-300:] == 7).all() for f in fenced)


BARRIERS = [
    (name, number)
    for name in ("ssim2d.h", "ssim3d.h", "reduce.h")
    for number, line in enumerate((ROOT / "csrc" / "cuda" / name).read_text().splitlines(), start=1)
    if re.search(r"\bbarrier\(\);", line)
]


@pytest.mark.parametrize("barrier", [*BARRIERS, ("fused2d.h", -2)])
def test_a_missing_barrier_is_caught(library, kernels, barrier):
    """Leaves out each barrier of a march or a sum in turn. The run must stop with a fault or give wrong numbers.

    Shuffled threads find most missing barriers. Orders in which warps run ahead find the rest: there, others overwrite
    what thread 0 still has to read.
    """
    name, line = barrier
    # Large enough for sums over two warps, inside a block and over the blocks of 40 planes.
    shapes = {"ssim3d.h": (1, 1, 12, 14, 34), "reduce.h": (1, 40, 3, 80)}
    img1, img2 = images(*shapes.get(name, (1, 1, 30, 80)))
    options = SSIMOptions()
    # The fused kernel makes two sums over a block, one after the other.
    needs = (True, False) if name in ("fused2d.h", "reduce.h") else (True, True)
    caught = 0
    for order, seed in (SHUFFLED, 1), (WARPS, 1), (WARPS, 2), (WARPS, 3):
        library.splat_emulation_configure(order, seed, -1, 0)
        check_photometric(kernels, img1, img2, options, needs)
        library.splat_emulation_configure(order, seed, line, 0)
        try:
            check_photometric(kernels, img1, img2, options, needs)
        except (AssertionError, RuntimeError):
            caught += 1
            kernels._arrivals.clear()  # left by a run that stopped; on a GPU the context would be lost
    assert caught > 0


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("needs", [(True, False), (True, True)])
def test_an_overrun_of_shared_memory_is_caught(library, kernels, spatial_dims, needs):
    img1, img2 = images(*((1, 1, 30, 300) if spatial_dims == 2 else (1, 1, 12, 17, 34)))
    library.splat_emulation_configure(2, 1, -1, 4)
    with pytest.raises(RuntimeError, match="could not be started"):
        check_photometric(kernels, img1, img2, SSIMOptions(), needs)
    assert b"overrun" in library.splat_emulation_fault()


def test_arguments_the_launchers_refuse(kernels):
    img1, img2 = images(1, 1, 8, 8)
    for options in (SSIMOptions(window_size=4), SSIMOptions(window_size=17), SSIMOptions(padding="valid")):
        with pytest.raises(RuntimeError, match=r"do not take images of size \[1, 1, 1, 8, 8\]"):
            launch.photometric(kernels, 0, img1, img2, None, 0.7, 0.4, False, options, (None, None))


@pytest.fixture(scope="session")
def sanitized():
    """Runs csrc/emulation/sanitize.cpp, under AddressSanitizer and UndefinedBehaviorSanitizer."""

    def run(*arguments):
        environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
        command = [build_emulation("sanitize"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)

    return run


@pytest.mark.long
def test_every_kernel_under_the_sanitizers(sanitized):
    done = sanitized()
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(" launches\n")


@pytest.mark.long  # 65 s of compiling, for the program of the test above alone; test_guard_pages.py finds such overruns
def test_an_overrun_of_global_memory_is_caught(sanitized):
    done = sanitized("--overrun")
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr
