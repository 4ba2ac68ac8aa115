"""The drop-in for gsplat.losses, compared with the definition, and with gsplat's own losses from gsplat 1.6 on."""

import random
import sys
import types

import pytest
import torch

from splat_ssim import reference
from splat_ssim.compat import gsplat as ours
from tests import devices
from tests.compare import assert_same, assert_same_error, in_float64, random_pair

try:
    import gsplat.losses as theirs
except ImportError:
    theirs = None

pytestmark = pytest.mark.usefixtures("device", "threads")
needs_gsplat = pytest.mark.skipif(theirs is None, reason="gsplat is older than 1.6 and has no gsplat.losses")

#: Tolerances over the largest entry. The original computes E[x²] - E[x]², and float64 windows are rounded to float32.
TOLERANCE = {torch.float64: 2e-5, torch.float32: 2e-3}


def draw(seed, least=1):
    rng = random.Random(seed)
    window = rng.choice([3, 5, 7, 11, 11, 11])
    shape = (rng.randint(1, 2), rng.randint(1, 4), *[rng.randint(max(least, window), window + 9) for _ in range(2)])
    dtype = rng.choice([torch.float32, torch.float32, torch.float64])
    return rng, window, random_pair(torch.Generator().manual_seed(seed), shape, dtype)


@pytest.mark.parametrize(("device", "seed"), devices.draws(20, emulated=8), indirect=["device"])
def test_both_paddings(seed):
    rng, window, pair = draw(seed)
    padding = rng.choice(["same", "valid"])

    def expected(img1, img2):
        return 1 - reference.ssim(img1, img2, window_size=window, padding=padding)

    def found(img1, img2):
        return ours.ssim_loss(img1, img2, window_size=window, padding=padding)

    assert_same(found, in_float64(expected), pair, 1e-5)


@needs_gsplat
@pytest.mark.parametrize(("device", "seed"), devices.draws(40, emulated=8), indirect=["device"])
def test_as_gsplat(seed):
    """On the CPU gsplat pads with zeros. Even windows are not centred."""
    rng, window, pair = draw(seed)
    if rng.random() < 0.3:
        window = rng.choice([1, 2, 4, 6, 10, 12, 35])
    options = {"padding": "same"} if pair[0].is_cuda else {}
    if rng.random() < 0.5:
        mask = (torch.rand(1, 1, *pair[0].shape[2:], device=pair[0].device) > 0.3).to(pair[0].dtype)
        assert_same(
            lambda a, b: ours.masked_ssim(a, b, mask, **options),
            lambda a, b: theirs.masked_ssim(a, b, mask),
            pair,
            TOLERANCE[pair[0].dtype],
        )
    else:
        assert_same(
            lambda a, b: ours.ssim_loss(a, b, window, **options),
            lambda a, b: theirs.ssim_loss(a, b, window),
            pair,
            TOLERANCE[pair[0].dtype],
        )


@pytest.mark.parametrize(
    ("module", "is_cpu", "window", "target_grad", "padding"),
    [
        (True, False, 11, False, "valid"),
        (True, True, 11, False, "same"),
        (True, False, 7, False, "same"),
        (True, False, 11, True, "same"),
        (False, False, 11, False, "same"),
    ],
)
@pytest.mark.parametrize("device", ["cpu"], indirect=True)
def test_auto_is_the_rule_of_gsplat(monkeypatch, module, is_cpu, window, target_grad, padding):
    """gsplat uses fused_ssim if it can be imported, off the CPU, for 11 taps and a target without a gradient."""
    monkeypatch.setitem(sys.modules, "fused_ssim", types.ModuleType("fused_ssim"))
    if not module:
        monkeypatch.delitem(sys.modules, "fused_ssim")
        monkeypatch.setattr(ours.importlib.util, "find_spec", lambda name: None)
    images = [types.SimpleNamespace(is_cpu=is_cpu, requires_grad=need) for need in (True, target_grad)]
    assert ours._takes_fused(*images, window) == (padding == "valid")


def test_half_precision_is_rounded_once():
    for dtype in (torch.float16, torch.bfloat16):
        pair = random_pair(torch.Generator().manual_seed(0), (1, 3, 24, 24), dtype)
        found = ours.ssim_loss(*pair, padding="same")
        assert found.dtype == dtype
        exact = 1 - reference.ssim(*(image.double() for image in pair))
        torch.testing.assert_close(found.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_mask():
    pair = random_pair(torch.Generator().manual_seed(0), (2, 3, 20, 20), torch.float32)
    mask = (torch.arange(20) < 12).float().expand(2, 1, 20, 20)
    for padding in ("same", "valid"):
        found = ours.masked_ssim(*pair, mask, padding=padding)
        expected = 1 - reference.ssim(*(image.double() * mask for image in pair), padding=padding)
        assert found.item() == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize("device", devices.NATIVE, indirect=True)
def test_contracts(monkeypatch):
    image = torch.rand(1, 1, 12, 12)
    ours.ssim_loss(image + 1, image, padding="same")
    losses = types.ModuleType("gsplat.losses")
    losses.ENFORCE_CONTRACTS = True
    monkeypatch.setitem(sys.modules, "gsplat.losses", losses)
    ours.ssim_loss(image, image)
    for pair, text in (((image + 1, image), r"img1 must be in \[0, 1\], got \[1"), ((image, -image), "img2 must be")):
        for error in (AssertionError, ValueError):
            with pytest.raises(error, match=text):
                ours.ssim_loss(*pair)


@pytest.mark.parametrize("device", devices.NATIVE, indirect=True)
def test_errors():
    image = torch.rand(1, 1, 12, 12)
    calls = [
        ((image, image[..., :9]), {}, RuntimeError, r"same shape, got \(1, 1, 12, 12\) and \(1, 1, 12, 9\)"),
        ((image[0, 0], image[0, 0]), {}, RuntimeError, r"img1 must have the shape \(B, C, H, W\), got \(12, 12\)"),
        ((image, 1.0), {}, AttributeError, "img2 must be a torch.Tensor, got float"),
        ((image, image.double()), {}, RuntimeError, "must have the same dtype and device, got torch.float32 on"),
        ((image.byte(), image.byte()), {}, TypeError, "img1 must be of a floating-point dtype, got torch.uint8"),
        ((image, image), {"window_size": 0}, RuntimeError, "window_size must be 1 or more, got 0"),
        ((image, image), {"padding": "reflect"}, ValueError, "padding must be one of 'auto', .*, got 'reflect'"),
        ((image, image), {"padding": "valid", "window_size": 13}, ValueError, "sides of at least window_size=13"),
    ]
    for pair, options, error, text in calls:
        with pytest.raises(error, match=text) as found:
            ours.ssim_loss(*pair, **options)
        assert isinstance(found.value, (ValueError, TypeError))
    with pytest.raises(ValueError, match=r"pred and gt must have the same shape"):
        ours.masked_ssim(image, image[..., :9], image)


@needs_gsplat
@pytest.mark.parametrize("device", ["cpu"], indirect=True)
def test_errors_as_gsplat():
    image = torch.rand(1, 1, 12, 12)
    for pair in ((image, 1.0), (image[..., :9], image), (image, image.double())):
        assert_same_error(ours.ssim_loss, theirs.ssim_loss, *pair)
    assert_same_error(ours.masked_ssim, theirs.masked_ssim, image, image[..., :9], image)
