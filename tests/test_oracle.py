"""The oracle of the tests, compared with other packages, finite differences and results computed by hand."""

import ast
import math
from pathlib import Path

import numpy as np
import pytest
import pytorch_msssim
import torch
from skimage.metrics import structural_similarity

from tests import oracle

PADDINGS = ("same", "valid", "reflect", "replicate")
#: numpy's name of each padding.
MODES = {"same": "constant", "reflect": "reflect", "replicate": "edge"}


def pair(*shape, seed=0, top=1.0):
    generator = torch.Generator().manual_seed(seed)
    img1 = torch.rand(shape, generator=generator, dtype=torch.float64)
    img2 = (img1 + 0.2 * torch.randn(shape, generator=generator, dtype=torch.float64)).clamp(0, 1)
    return img1 * top, img2 * top


def msssim_window(size, shape):
    """The window of pytorch_msssim with that package's roundings."""
    taps = pytorch_msssim.ssim.__globals__["_fspecial_gauss_1d"](size, 1.5).flatten().double()
    return oracle.outer([taps] * (len(shape) - 2))


def test_it_imports_nothing_of_the_package():
    tree = ast.parse(Path(oracle.__file__).read_text())
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    assert imported <= {"__future__", "math", "collections", "typing", "numpy", "torch"}


@pytest.mark.parametrize("shape", [(1, 1, 24, 31), (2, 3, 13, 14), (1, 2, 12, 11, 13)])
@pytest.mark.parametrize(
    "options",
    [{}, {"window_size": 9, "sigma": 1.0}, {"window_size": 11, "sigma": 1.4, "data_range": 7.0, "k1": 0.2, "k2": 0.1}],
)
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_map_agrees_with_scikit_image(shape, options, offset):
    options = {"window_size": 11, "sigma": 1.5, "data_range": 1.0, "k1": 0.01, "k2": 0.03, **options}
    img1, img2 = (img + offset for img in pair(*shape, top=options["data_range"]))
    result = oracle.ssim_map(img1, img2, padding="valid", **options)
    radius = options["window_size"] // 2
    assert radius == int(3.5 * options["sigma"] + 0.5)  # scikit-image truncates there
    for b, c in np.ndindex(shape[:2]):
        _, full = structural_similarity(
            img1[b, c].numpy(),
            img2[b, c].numpy(),
            data_range=options["data_range"],
            gaussian_weights=True,
            sigma=options["sigma"],
            use_sample_covariance=False,
            K1=options["k1"],
            K2=options["k2"],
            full=True,
        )
        # Both compute in float64. scikit-image's E[x²] - E[x]² has an error of 2⁻⁵³ x² / C2, 1.2e-7 for values of 1000.
        tolerance = 1e-12 if offset == 0 else 1e-6
        np.testing.assert_allclose(result[b, c], full[(slice(radius, -radius),) * (len(shape) - 2)], atol=tolerance)


@pytest.mark.parametrize("padding", ["same", "reflect", "replicate"])
@pytest.mark.parametrize("shape", [(1, 2, 12, 9), (2, 1, 6, 8, 7)])
def test_padding_is_that_of_numpy(padding, shape):
    img1, img2 = pair(*shape)
    widths = [(0, 0), (0, 0)] + [(5, 5)] * (len(shape) - 2)
    padded = [torch.from_numpy(np.pad(img.numpy(), widths, mode=MODES[padding])) for img in (img1, img2)]
    expected = oracle.ssim_map(*padded, padding="valid")
    torch.testing.assert_close(oracle.ssim_map(img1, img2, padding=padding), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("shape", [(2, 3, 21, 18), (1, 2, 12, 13, 11)])
@pytest.mark.parametrize("data_range", [1.0, 255.0])
def test_mean_agrees_with_pytorch_msssim(shape, data_range):
    img1, img2 = pair(*shape, top=data_range)
    expected = pytorch_msssim.ssim(img1, img2, data_range=data_range, size_average=False)
    result = oracle.ssim(img1, img2, data_range=data_range, padding="valid", reduction="image")
    # Its taps are rounded to float32. Their sum differs from 1 by 6e-8, which leaves 6e-8 mu² in its variances.
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)
    found = oracle.ssim_terms(img1, img2, data_range=data_range, padding="valid", weights=msssim_window(11, shape))
    torch.testing.assert_close(oracle.reduce(found.ssim, None, "image", 1.0), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("shape", [(2, 3, 34, 49), (1, 1, 35, 33, 34)])
@pytest.mark.parametrize("weights", [None, (0.2, 0.3, 0.5)])
def test_ms_ssim_agrees_with_pytorch_msssim(shape, weights):
    img1, img2 = pair(*shape)
    expected = pytorch_msssim.ms_ssim(img1, img2, 1.0, size_average=False, win_size=3, weights=weights)
    options = {} if weights is None else {"weights": weights}
    result = oracle.ms_ssim(img1, img2, window_size=3, reduction="image", **options)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-6)  # its taps are rounded to float32
    means = oracle.ms_ssim_terms(img1, img2, len(weights or oracle.WANG_2003), weights=msssim_window(3, shape))
    result = oracle.ms_ssim_product(means, weights or oracle.WANG_2003).mean(1)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-11)


def test_ms_ssim_gradient_agrees_with_pytorch_msssim():
    img1, img2 = pair(1, 2, 34, 37)
    x = img1.clone().requires_grad_()
    pytorch_msssim.ms_ssim(x, img2, 1.0, win_size=3).backward()

    def function(a, b):
        return oracle.ms_ssim_product(oracle.ms_ssim_terms(a, b, 5, weights=window), oracle.WANG_2003).mean()

    window = msssim_window(3, img1.shape)
    _, grad, _ = oracle.differentiate(function, img1, img2)
    torch.testing.assert_close(grad, x.grad, rtol=0, atol=1e-10 * x.grad.abs().max().item())


def test_a_term_below_zero_makes_ms_ssim_zero():
    img1, _ = pair(1, 1, 33, 33)
    value, *grads = oracle.differentiate(
        lambda a, b: oracle.ms_ssim(a, b, window_size=3, weights=(0.5, 0.5)), img1, 1 - img1
    )
    assert value == 0
    assert all((grad == 0).all() for grad in grads)


def test_halving_by_hand():
    image = torch.tensor([[[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]]], dtype=torch.float64)
    assert oracle.halved(image).tolist() == [[[[(1 + 4) / 4, (2 + 3 + 5 + 6) / 4]]]]
    pooled = torch.nn.functional.avg_pool3d(pair(1, 2, 4, 5, 7)[0], 2, padding=(0, 1, 1))
    torch.testing.assert_close(oracle.halved(pair(1, 2, 4, 5, 7)[0]), pooled)


@pytest.mark.parametrize("padding", ["same", "replicate"])
def test_a_window_by_hand(padding):
    """Three by three taps on an image of one row with two pixels, computed in plain Python."""
    x, y = [0.2, 0.7], [0.5, 0.1]
    side = math.exp(-1 / (2 * 0.8**2))
    taps = [side / (1 + 2 * side), 1 / (1 + 2 * side), side / (1 + 2 * side)]
    # The rows above and below are black, or copies of the only row.
    share = taps[1] if padding == "same" else 1.0
    expected = []
    for at in (0, 1):
        seen = []
        for row in (x, y):
            row = [0.0, *row, 0.0] if padding == "same" else [row[0], *row, row[1]]
            seen.append([(share * tap, value) for tap, value in zip(taps, row[at : at + 3], strict=True)])
        black = 1 - share
        mu1, mu2 = (sum(weight * value for weight, value in values) for values in seen)
        var1, var2 = (
            sum(weight * (value - mu) ** 2 for weight, value in values) + black * mu**2
            for values, mu in zip(seen, (mu1, mu2), strict=True)
        )
        both = zip(*seen, strict=True)
        cov = sum(weight * (a - mu1) * (b - mu2) for (weight, a), (_, b) in both) + black * mu1 * mu2
        luminance = (2 * mu1 * mu2 + 1e-4) / (mu1**2 + mu2**2 + 1e-4)
        expected.append(luminance * (2 * cov + 9e-4) / (var1 + var2 + 9e-4))
    images = [torch.tensor([[[row]]], dtype=torch.float64) for row in (x, y)]
    result = oracle.ssim_map(*images, window_size=3, sigma=0.8, padding=padding)
    assert result[0, 0, 0].tolist() == pytest.approx(expected, abs=1e-15)


def test_masks_by_hand():
    img1, img2 = pair(2, 3, 15, 16)
    mask = pair(2, 1, 15, 16, seed=9)[0] * (pair(2, 1, 15, 16, seed=10)[0] > 0.5)
    full = oracle.ssim_map(img1, img2)
    weighted = oracle.ssim(img1, img2, mask=mask)
    assert weighted.item() == pytest.approx(((full * mask).sum() / (3 * mask.sum())).item())
    assert torch.equal(oracle.ssim(img1, img2, mask=mask, reduction="none"), full * mask)
    zeroed = oracle.ssim(img1, img2, mask=mask, mask_mode="zero")
    assert zeroed.item() == pytest.approx(oracle.ssim_map(img1 * mask, img2 * mask).mean().item())
    inner = mask[..., 5:-5, 5:-5]
    valid = (oracle.ssim_map(img1, img2, padding="valid") * inner).sum() / (3 * inner.sum())
    assert oracle.ssim(img1, img2, mask=mask, padding="valid").item() == pytest.approx(valid.item())
    per_image = [oracle.ssim(img1[i : i + 1], img2[i : i + 1], mask=mask[i : i + 1]).item() for i in range(2)]
    assert oracle.ssim(img1, img2, mask=mask, reduction="image").tolist() == pytest.approx(per_image)
    nothing = torch.zeros_like(mask)
    assert oracle.ssim(img1, img2, mask=nothing) == 1
    assert oracle.photometric_loss(img1, img2, mask=nothing)[0] == 0


def test_normalize_sees_the_valid_pixels_alone():
    img1, img2 = pair(1, 2, 14, 17)
    mask = torch.zeros(1, 1, 14, 17)
    crop = (..., slice(3, 11), slice(5, 14))
    mask[crop] = 1
    spoilt = torch.where(mask > 0, img1, torch.nan)
    result = oracle.ssim(spoilt, img2, mask=mask, mask_mode="normalize", reduction="none")
    alone = oracle.ssim(img1[crop], img2[crop], mask=mask[crop], mask_mode="normalize", reduction="none")
    torch.testing.assert_close(result[crop], alone, rtol=0, atol=1e-14)
    assert (torch.where(mask > 0, 0.0, result) == 0).all()
    # If every pixel is valid, windows inside the image are the plain ones.
    whole = oracle.ssim(
        img1, img2, mask=torch.ones_like(mask), mask_mode="normalize", padding="valid", reduction="none"
    )
    torch.testing.assert_close(whole, oracle.ssim_map(img1, img2, padding="valid"), rtol=0, atol=1e-14)


def test_bytes_are_shares_of_the_range_and_layouts_move_axes():
    generator = torch.Generator().manual_seed(0)
    img1, img2 = (torch.randint(0, 256, (2, 3, 9, 8), generator=generator, dtype=torch.uint8) for _ in range(2))
    as_float = oracle.ssim_map(img1.double() * 4 / 255, img2.double() * 4 / 255, data_range=4.0)
    torch.testing.assert_close(oracle.ssim_map(img1, img2, data_range=4.0), as_float, rtol=0, atol=1e-14)
    last = [img.permute(0, 2, 3, 1) for img in (img1, img2)]
    moved = oracle.ssim_map(*last, data_range=4.0, channels_last=True)
    assert torch.equal(moved, oracle.ssim_map(img1, img2, data_range=4.0).permute(0, 2, 3, 1))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_spoils_the_windows_that_hold_it(value):
    img1, img2 = pair(1, 1, 12, 13)
    clean = oracle.ssim_map(img1, img2, window_size=5, sigma=0.3)
    img1[0, 0, 4, 6] = value
    result = oracle.ssim_map(img1, img2, window_size=5, sigma=0.3)
    held = torch.zeros_like(result, dtype=torch.bool)
    held[..., 2:7, 4:9] = True
    assert (~result[held].isfinite()).all()
    assert torch.equal(result[~held], clean[~held])


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("mask_mode", [None, "zero", "weight", "normalize"])
def test_gradients_against_finite_differences(padding, mask_mode):
    images = tuple(img.requires_grad_() for img in pair(2, 2, 6, 7))
    mask = None if mask_mode is None else (pair(2, 1, 6, 7, seed=3)[0] * (pair(2, 1, 6, 7, seed=4)[0] > 0.3))
    options = {"window_size": 5, "sigma": 1.1, "padding": padding, "mask": mask, "mask_mode": mask_mode or "weight"}
    for reduction in ("mean", "sum", "none", "image"):
        assert torch.autograd.gradcheck(
            lambda a, b, r=reduction: oracle.ssim(a, b, reduction=r, **options), images, fast_mode=True
        )
    assert torch.autograd.gradcheck(lambda a, b: oracle.photometric_loss(a, b, **options), images, fast_mode=True)


def test_gradients_of_volumes_and_pyramids_against_finite_differences():
    images = tuple(img.requires_grad_() for img in pair(1, 2, 5, 6, 4))
    for padding in PADDINGS:
        assert torch.autograd.gradcheck(
            lambda a, b, p=padding: oracle.ssim(a, b, window_size=3, padding=p), images, fast_mode=True
        )
    images = tuple(img.requires_grad_() for img in pair(1, 2, 9, 10))
    options = {"window_size": 3, "weights": (0.4, 0.6)}
    assert torch.autograd.gradcheck(lambda a, b: oracle.ms_ssim(a, b, **options), images, fast_mode=True)
    assert torch.autograd.gradcheck(lambda a, b: oracle.ms_ssim_l1_loss(a, b, **options), images, fast_mode=True)


def test_tangents_against_finite_differences():
    img1, img2 = pair(1, 1, 8, 9)
    t1, t2 = (torch.randn(img1.shape, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in (1, 2))
    step = 1e-6
    ahead, behind = (oracle.ssim(img1 + h * t1, img2 + h * t2) for h in (step, -step))
    found = oracle.tangent(oracle.ssim, img1, img2, t1, t2)
    assert found.item() == pytest.approx(((ahead - behind) / (2 * step)).item(), rel=1e-7)


def test_kornia_forms():
    import kornia

    img1, img2 = pair(2, 3, 9, 10)
    for padding, ours in (("same", "reflect"), ("valid", "valid")):
        for eps in (1e-12, 1e-3):
            expected = kornia.losses.ssim_loss(img1, img2, 5, eps=eps, padding=padding, reduction="sum")
            found = oracle.ssim_map(img1, img2, window_size=5, padding=ours, eps=eps)
            torch.testing.assert_close(oracle.half_dissimilarity(found, "sum"), expected, rtol=1e-9, atol=0)
    options = {"sigmas": (0.5, 1.0, 2.0), "data_range": 1.0, "K": (0.01, 0.03), "alpha": 0.3, "compensation": 10.0}
    # kornia 0.8, the last version for Python 3.10, defines this loss differently.
    is_newest = tuple(map(int, kornia.__version__.split(".")[:2])) >= (0, 9)
    for reduction in ("mean", "none") if is_newest else ():
        expected = kornia.losses.MS_SSIMLoss(**options, reduction=reduction)(img1, img2)
        result = oracle.kornia_ms_ssim_loss(img1, img2, reduction=reduction, **options)
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)  # its windows are rounded to float32
    for name in ("charbonnier", "welsch", "cauchy", "geman_mcclure"):
        expected = getattr(kornia.losses, f"{name}_loss")(img1, img2)
        torch.testing.assert_close(oracle.robust(img1 - img2, name), expected, rtol=0, atol=1e-15)
