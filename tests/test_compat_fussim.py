"""The fussim drop-in, compared with the definition because the original needs a GPU."""

import random

import pytest
import torch

from splat_ssim import reference
from splat_ssim.compat import fussim as ours
from tests import devices
from tests.compare import assert_same, in_float64, random_pair

pytestmark = pytest.mark.usefixtures("device", "threads")


def draw(seed):
    rng = random.Random(seed)
    window, top = rng.choice([7, 9, 11]), rng.choice([1.0, 255.0])
    shape = (rng.randint(1, 3), rng.randint(1, 4), *[rng.randint(window, window + 8) for _ in range(2)])
    dtype = rng.choice([torch.float32, torch.float32, torch.float64])
    return rng, window, top, random_pair(torch.Generator().manual_seed(seed), shape, dtype, top)


@pytest.mark.parametrize(("device", "seed"), devices.draws(24, emulated=10), indirect=["device"])
def test_fused_ssim(seed):
    rng, window, top, pair = draw(seed)
    pair = [image / top for image in pair]
    padding = rng.choice(["same", "valid"])
    expected = in_float64(lambda a, b: reference.ssim(a, b, padding=padding, window_size=window))
    assert_same(lambda a, b: ours.fused_ssim(a, b, padding, True, window), expected, pair, 1e-5)
    maps = in_float64(
        lambda a, b: reference.ssim(a, b, padding=padding, window_size=window, k1=0.1, k2=0.2, reduction="none")
    )
    assert_same(lambda a, b: ours.FusedSSIMMap.apply(0.01, 0.04, a, b, padding, True, window), maps, pair, 1e-5)


@pytest.mark.parametrize(("device", "seed"), devices.draws(24, emulated=10), indirect=["device"])
def test_ssim(seed):
    rng, window, top, pair = draw(seed)
    options = {"data_range": top, "win_size": window, "size_average": rng.random() < 0.5}
    options |= {"K": rng.choice([(0.01, 0.03), [0.05, 0.2]]), "nonnegative_ssim": rng.random() < 0.5}
    if rng.random() < 0.5:
        pair[1] = top - pair[0] + 0 * pair[1]  # many pixels with negative S

    def expected(img1, img2):
        k1, k2 = options["K"]
        given = {"window_size": window, "data_range": top, "k1": k1, "k2": k2, "padding": "valid", "reduction": "none"}
        found = reference.ssim(img1, img2, **given)
        found = found.clamp(min=0) if options["nonnegative_ssim"] else found
        return found.mean() if options["size_average"] else found.mean((1, 2, 3))

    assert_same(lambda a, b: ours.ssim(a, b, **options), in_float64(expected), pair, 1e-5)
    module = ours.SSIM(**options)
    torch.testing.assert_close(module(*pair), ours.ssim(*pair, **options), rtol=0, atol=0)


def test_half_precision_and_training():
    pair = random_pair(torch.Generator().manual_seed(0), (1, 2, 16, 17), torch.float32)
    expected = ours.FusedSSIMMap.apply(1e-4, 9e-4, *(image.half() for image in pair))
    torch.testing.assert_close(ours.FusedSSIMMapFP16.apply(1e-4, 9e-4, *pair), expected, rtol=0, atol=0)
    value = ours.fused_ssim(pair[0].requires_grad_(), pair[1], train=False)
    assert not value.requires_grad
    assert value == ours.fused_ssim(*pair).detach()


@pytest.mark.parametrize("device", devices.NATIVE, indirect=True)
def test_what_it_tells_of_its_build():
    assert ours.check_compatibility() == (True, [])
    assert ours.get_build_info()["version"] == ours.__version__


@pytest.mark.parametrize("device", devices.NATIVE, indirect=True)
def test_errors():
    image = torch.rand(1, 1, 12, 12)
    calls = [
        (ours.fused_ssim, (image, image, "reflect"), {}, "padding must be 'same' or 'valid', got 'reflect'"),
        (ours.fused_ssim, (image, image), {"window_size": 5}, r"window_size must be one of \(7, 9, 11\), got 5"),
        (ours.fused_ssim, (image, image[..., :9]), {}, "must have the same shape"),
        (ours.fused_ssim, (image[0], image[0]), {}, "must have the shape"),
        (ours.fused_ssim, (image[..., :9], image[..., :9], "valid"), {}, "at least window_size=11"),
        (ours.ssim, (image, image), {"win_size": 8}, r"win_size must be one of \(7, 9, 11\), got 8"),
        (ours.ssim, (image, image), {"win_sigma": 2.0}, "win_sigma must be 1.5, got 2.0"),
        (ours.ssim, (image, image), {"win": image}, "win must be None, the window is that of win_size, got Tensor"),
        (ours.ssim, (image, image), {"K": (0.01, 1.5)}, r"between 0 and 1, got \(0.01, 1.5\)"),
        (ours.ssim, (image, image), {"K": 0.01}, "K must be two numbers, got float"),
        (ours.ssim, (image, image), {"K": (0.01,)}, "K must be two numbers, got"),
        (ours.ssim, (image[..., :9],) * 2, {"nonnegative_ssim": True}, "at least window_size=11"),
        (ours.SSIM, (), {"spatial_dims": 3}, "spatial_dims must be 2, got 3"),
        (ours.SSIM, (), {"win_size": 13}, r"win_size must be one of \(7, 9, 11\), got 13"),
    ]
    for function, arguments, options, text in calls:
        with pytest.raises(ValueError, match=text):
            function(*arguments, **options)
    with pytest.raises(RuntimeError, match="must be on the same device, got"):
        ours.fused_ssim(image, image.to("meta"))
