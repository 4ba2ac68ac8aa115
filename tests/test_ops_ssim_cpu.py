"""The CPU's SSIM kernels: instruction sets, threads, scratch memory, strides, and PyTorch's checks of operators."""

import ctypes
import functools
import math
import os
import random
import subprocess
import sys

import pytest
import torch

from splat_ssim.ops import compiled, dispatch, ssim_cpu
from splat_ssim.ops import ssim as ops
from splat_ssim.ops.photometric import photometric
from splat_ssim.options import SSIMOptions
from tests.ssim_checks import PADDINGS, assert_close, check_all, differentiate, options_for, pair

pytestmark = pytest.mark.usefixtures("threads")
needs_library = pytest.mark.skipif(compiled.library() is None, reason="built without a compiler")


def processors():
    """The number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


@needs_library
@pytest.mark.parametrize("shape", [(2, 3, 40, 53), (1, 2, 12, 14, 30)], ids=str)
def test_channels_last_memory_format_is_read_in_place(shape):
    memory_format = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    img1, img2 = (image.to(memory_format=memory_format) for image in pair(shape))
    options = options_for(shape)
    call = ssim_cpu.KernelCall(img1, img2, options)
    assert (call.first.data_ptr(), call.second.data_ptr()) == (img1.data_ptr(), img2.data_ptr())
    check_all(img1, img2, options)
    assert ops.ssim_map(img1, img2, options).is_contiguous(memory_format=memory_format)


@needs_library
def test_strides_are_read_in_place():
    """Rows, channels and images may have any stride. Only a stride other than 1 along the row needs a copy."""
    large1, large2 = pair((4, 6, 60, 80))
    options = SSIMOptions()
    cut = (slice(None, None, 2), slice(1, 4), slice(5, 45), slice(7, 60))
    img1, img2 = large1[cut], large2[cut]
    assert ssim_cpu.KernelCall(img1, img2, options).first.data_ptr() == img1.data_ptr()
    check_all(img1, img2, options)
    check_all(large1[..., ::2], large2.transpose(2, 3)[:, :, :60, :40], options)
    check_all(large1[:1, :1].expand(2, 3, -1, -1), large2[:2, :3].flip(3), options)


@needs_library
@pytest.mark.parametrize("isa", compiled.available_isas())
@pytest.mark.parametrize("shape", [(1, 3, 45, 130), (1, 1, 20, 21, 40)], ids=str)
def test_every_instruction_set(monkeypatch, shape, isa):
    monkeypatch.setattr(compiled, "kernel", functools.partial(compiled.kernel, isa_name=isa))
    check_all(*pair(shape), options_for(shape))
    check_all(*pair(shape), options_for(shape, padding="reflect", window_size=7))
    last = [image.to(memory_format=torch.channels_last) for image in pair((2, 3, 20, 37))]
    check_all(*last, SSIMOptions())
    for dtype in (torch.float16, torch.bfloat16):
        check_all(*(image.to(dtype) for image in pair((1, 1, 15, 19))), SSIMOptions(), gradient=8e-3)
    target = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    same = target.float() / 255
    assert photometric(same, target, SSIMOptions(), l1_weight=1.0, dssim_weight=1.0)[0] == 0


def objects(shape, boxes, seed=0):
    """Two images that only differ in boxes (rows, columns)."""
    img1, other = pair(shape, seed)
    img2 = img1.clone()
    for rows, columns in boxes:
        img2[..., rows, columns] = other[..., rows, columns]
    return img1, img2


@needs_library
@pytest.mark.parametrize("isa", compiled.available_isas())
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("seed", range(4))
def test_images_that_differ_in_a_part_only(monkeypatch, isa, padding, seed):
    """Equal parts are skipped: on both sides, between different parts, in the last lanes of a row, in whole rows."""
    monkeypatch.setattr(compiled, "kernel", functools.partial(compiled.kernel, isa_name=isa))
    random_ = random.Random(seed)
    shape = (1, random_.choice([1, 3]), random_.randint(40, 160), random_.randint(60, 500))

    def stretch(side):
        start = random_.choice([0, side - 1, random_.randrange(side)])
        return slice(start, start + random_.randint(1, 1 + side // 3))

    boxes = [(stretch(shape[2]), stretch(shape[3])) for _ in range(random_.randint(1, 3))]
    images = objects(shape, boxes, seed)
    for layout in (torch.contiguous_format, torch.channels_last):
        check_all(*(image.contiguous(memory_format=layout) for image in images), options_for(shape, padding=padding))


@needs_library
def test_equal_images_lose_nothing_and_have_no_gradient():
    image = pair((1, 3, 90, 130))[0]
    loss, *gradients = differentiate(
        lambda x, y: photometric(x, y, SSIMOptions(), l1_weight=0.8, dssim_weight=0.2)[0], image, image.clone()
    )
    assert loss == 0
    assert not any(gradient.any() for gradient in gradients)


@needs_library
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_spoils_equal_images_too(value):
    image = pair((1, 1, 60, 100))[0]
    image[..., 30, 40] = value
    found = ops.ssim_map(image, image.clone(), SSIMOptions())
    spoilt = torch.zeros(1, 1, 60, 100, dtype=torch.bool)
    spoilt[..., 25:36, 35:46] = True
    assert torch.equal(~found.isfinite(), spoilt)


@needs_library
@pytest.mark.parametrize("padding", ["same", "valid", "reflect"])
@pytest.mark.parametrize(
    "shape", [(1, 3, 256, 256), (1, 3, 100, 1100), (1, 1, 64, 64, 64), (2, 3, 29, 75, 20)], ids=str
)
def test_same_result_for_any_number_of_threads(threads, shape, padding):
    """Results are equal bit by bit. Threads wait for each other's blocks of slices, and many threads split rows too."""
    img1, img2 = pair(shape)
    options = options_for(shape)._replace(padding=padding)

    def run():
        loss = differentiate(lambda x, y: photometric(x, y, options, l1_weight=0.8, dssim_weight=0.2)[0], img1, img2)
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
        photometric(img1, img2, options, l1_weight=0.8, dssim_weight=0.2)
        return compiled.library().splat_ssim_last_thread_count()

    threads(1)
    assert {used() for _ in range(5)} == {1}
    threads(2)
    assert any(used() == 2 for _ in range(500))


@needs_library
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads cannot be bound to a processor here")
@pytest.mark.parametrize("shape", [(1, 3, 256, 256), (1, 1, 64, 64, 64)], ids=str)
def test_no_more_threads_are_started_than_there_are_processors(threads, shape):
    img1, img2 = pair(shape)
    library, processors = compiled.library(), os.sched_getaffinity(0)
    threads(64)
    library.splat_ssim_oversubscribe(False)
    os.sched_setaffinity(0, {min(processors)})
    try:
        assert library.splat_ssim_processors() == 1
        photometric(img1, img2, options_for(shape), l1_weight=0.8, dssim_weight=0.2)
        assert library.splat_ssim_last_thread_count() == 1
    finally:
        os.sched_setaffinity(0, processors)


@needs_library
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_threads_after_a_fork():
    """OpenMP's worker threads do not survive a fork, and OpenMP would wait for them."""
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
            return photometric(x, y, options, l1_weight=0.8, dssim_weight=0.2)[0]

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
    return img1, img2, weight, None, 0.8, 0.2, 0.0, per_image, *options, img1.requires_grad, img2.requires_grad


def sample_inputs():
    """Yields (operator, arguments) for every operator, layout and combination of gradients worth checking."""
    calls = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        img1, img2 = (image.to(memory_format=memory_format).requires_grad_() for image in pair((2, 3, 12, 13)))
        calls += [
            ("ssim_map", (img1, img2, *SSIMOptions())),
            ("ssim_map", (img1, img2.detach(), *SSIMOptions(padding="valid"))),
            ("ssim_channel_means", (img1, img2, *SSIMOptions(padding="valid"))),
            ("photometric", photometric_arguments(img1, img2)),
            ("photometric", photometric_arguments(img1, img2.detach(), torch.rand(2, 1, 12, 13), True)),
        ]
    img1, img2 = (image.requires_grad_() for image in pair((1, 11, 12, 13, 2)))
    calls.append(("photometric", photometric_arguments(img1.detach(), img2, channels_last=True)))
    calls.append(("ssim_map", (img1, img2, *options_for(img1.shape, channels_last=True))))
    rgba = torch.randint(256, (2, 4, 11, 12), dtype=torch.uint8)
    options = (0.8, 0.2, 0.0, False, *SSIMOptions(), True, False)
    calls.append(("photometric", (torch.rand(2, 3, 11, 12).requires_grad_(), rgba, None, torch.rand(2, 3), *options)))
    return calls


@needs_library
@pytest.mark.parametrize("index", range(len(sample_inputs())))
def test_opcheck(index):
    name, arguments = sample_inputs()[index]
    torch.library.opcheck(getattr(torch.ops.splat_ssim, name).default, arguments)


def test_what_has_no_kernel_takes_the_definition(monkeypatch):
    """Without the compiled library, and for float64, the same numbers come from plain torch."""
    img1, img2 = pair((1, 3, 20, 21))
    options = SSIMOptions()

    def run():
        loss = differentiate(lambda x, y: photometric(x, y, options, l1_weight=0.8, dssim_weight=0.2)[0], img1, img2)
        return *loss, ops.ssim_map(img1, img2, options), ops.ssim_channel_means(img1, img2, options)

    found = run()
    monkeypatch.setitem(dispatch.DEVICES, "cpu", dispatch.DEVICES["cpu"]._replace(supports=lambda *_: False))
    for value, expected in zip(found, run(), strict=True):
        assert value.dtype == expected.dtype
        assert_close(value, expected, 2e-6)


@needs_library
def test_a_call_keeps_its_window():
    """Other threads' windows may evict a window from the cache while the kernel reads it."""
    images = pair((1, 1, 24, 24))
    call = ssim_cpu.KernelCall(*images, SSIMOptions())
    totals = (ctypes.c_double * 3)()
    coefficients = (ctypes.c_double * 3)()
    packed = call.pack(ctypes.addressof(coefficients), ctypes.addressof(totals))
    ssim_cpu._window.cache_clear()
    taken = [(ctypes.c_double * 11)(*[float("nan")] * 11) for _ in range(1000)]
    call.call("ssim2d", packed)
    assert totals[0] == call.run(coefficients)[0]
    assert len(taken) == 1000
