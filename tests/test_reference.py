"""The definition compared with scikit-image, and its derivatives with finite differences, in float64."""

import functools

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from splat_ssim import reference
from tests import oracle

check_gradient = functools.partial(torch.autograd.gradcheck, fast_mode=True)


def pair(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    img1 = torch.rand(shape, generator=generator, dtype=dtype)
    img2 = (img1 + 0.2 * torch.randn(shape, generator=generator, dtype=dtype)).clamp(0, 1)
    return img1, img2


def skimage_map(img1, img2, window_size=11, sigma=1.5, data_range=1.0, k1=0.01, k2=0.03):
    """scikit-image's S of a single-channel image or volume without the border. It derives the window from sigma."""
    assert window_size == 2 * int(3.5 * sigma + 0.5) + 1
    radius = window_size // 2
    _, full = structural_similarity(
        img1.numpy(),
        img2.numpy(),
        data_range=data_range,
        gaussian_weights=True,
        sigma=sigma,
        use_sample_covariance=False,
        K1=k1,
        K2=k2,
        full=True,
    )
    return full[(slice(radius, -radius),) * img1.ndim]


@pytest.mark.parametrize("shape", [(1, 1, 24, 31), (2, 3, 13, 40), (1, 2, 17, 13, 19)])
@pytest.mark.parametrize(
    "options",
    [{}, {"window_size": 9, "sigma": 1.0}, {"window_size": 13, "sigma": 1.8, "data_range": 7.0, "k1": 0.02, "k2": 0.1}],
)
def test_map_agrees_with_scikit_image(shape, options):
    img1, img2 = (img * options.get("data_range", 1.0) for img in pair(*shape))
    found = reference.ssim_map(img1, img2, padding="valid", **options)
    for b, c in np.ndindex(shape[:2]):
        expected = skimage_map(img1[b, c], img2[b, c], **options)
        # Both compute the same formula in float64.
        np.testing.assert_allclose(found[b, c].numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("padding", "mode"), [("same", "constant"), ("reflect", "reflect"), ("replicate", "edge")])
@pytest.mark.parametrize("shape", [(1, 2, 12, 9), (1, 1, 7, 8, 9)])
def test_padding_is_that_of_the_images(padding, mode, shape):
    img1, img2 = pair(*shape)
    widths = [(0, 0), (0, 0)] + [(5, 5)] * (len(shape) - 2)
    padded = [torch.from_numpy(np.pad(img.numpy(), widths, mode=mode)) for img in (img1, img2)]
    expected = reference.ssim_map(*padded, padding="valid")
    torch.testing.assert_close(reference.ssim_map(img1, img2, padding=padding), expected, rtol=0, atol=1e-12)


def test_identical_images_give_exactly_one_and_no_gradient():
    img1, _ = pair(2, 3, 20, 20, dtype=torch.float32)
    img1.requires_grad_()
    value = reference.ssim(img1, img1.detach().clone())
    assert value.item() == 1.0
    (grad,) = torch.autograd.grad(value, img1)
    assert grad.abs().max() == 0


@pytest.mark.parametrize("noise", ["natural", "flat", "high"])
def test_float32_stays_close_to_float64(noise):
    generator = torch.Generator().manual_seed(1)
    base = torch.rand(1, 3, 64, 64, generator=generator, dtype=torch.float64)
    change = torch.randn(1, 3, 64, 64, generator=generator, dtype=torch.float64)
    img1, img2 = {
        "natural": (base, (base + 0.1 * change).clamp(0, 1)),
        "flat": (torch.full_like(base, 0.9), 0.9 + 1e-3 * change),
        "high": (1000 + base, 1000 + (base + 0.1 * change).clamp(0, 1)),
    }[noise]
    img1, img2 = img1.float(), img2.float()
    results = []
    for dtype in (torch.float32, torch.float64):
        x = img1.to(dtype).requires_grad_()
        value = reference.ssim(x, img2.to(dtype), padding="valid")
        results.append((value.double(), torch.autograd.grad(value, x)[0].double()))
    (value, grad), (true_value, true_grad) = results
    # The targets of the kernels are 1e-7 and 2e-6, and 1e-5 if the mean is a thousand times the range.
    tolerance = 1e-5 if noise == "high" else 1e-7
    assert abs(value - true_value) <= tolerance
    assert (grad - true_grad).abs().max() <= (1e-5 if noise == "high" else 2e-6) * true_grad.abs().max()


@pytest.mark.parametrize("padding", ["same", "valid", "reflect", "replicate"])
@pytest.mark.parametrize("mask_mode", [None, "zero", "weight", "normalize"])
def test_gradcheck(padding, mask_mode):
    img1, img2 = (img.requires_grad_() for img in pair(2, 2, 6, 7))
    mask = None if mask_mode is None else (pair(2, 1, 6, 7, seed=3)[0] > 0.4)
    options = {"window_size": 5, "sigma": 1.1, "padding": padding, "mask": mask, "mask_mode": mask_mode or "weight"}
    for reduction in ("mean", "sum", "none", "image"):
        assert check_gradient(lambda a, b, r=reduction: reference.ssim(a, b, reduction=r, **options), (img1, img2))
    assert check_gradient(lambda a, b: reference.photometric_loss(a, b, **options), (img1, img2))


def test_gradcheck_3d():
    img1, img2 = (img.requires_grad_() for img in pair(1, 2, 5, 6, 4))
    assert check_gradient(lambda a, b: reference.ssim(a, b, window_size=3, padding="reflect"), (img1, img2))


def test_masks_by_hand():
    img1, img2 = pair(2, 3, 15, 16)
    mask = pair(2, 1, 15, 16, seed=9)[0]
    full = reference.ssim_map(img1, img2)
    weighted = reference.ssim(img1, img2, mask=mask, mask_mode="weight")
    torch.testing.assert_close(weighted, (full * mask).sum() / (3 * mask.sum()))
    zeroed = reference.ssim(img1, img2, mask=mask, mask_mode="zero")
    torch.testing.assert_close(zeroed, reference.ssim_map(img1 * mask, img2 * mask).mean())
    # "valid" reads the weights at the centres of the windows.
    cropped = reference.ssim(img1, img2, mask=mask, padding="valid")
    inner = mask[..., 5:-5, 5:-5]
    expected = (reference.ssim_map(img1, img2, padding="valid") * inner).sum() / (3 * inner.sum())
    torch.testing.assert_close(cropped, expected)


def test_normalize_sees_only_valid_pixels():
    img1, img2 = pair(1, 2, 20, 22)
    mask = torch.zeros(1, 1, 20, 22, dtype=torch.bool)
    mask[..., 4:15, 6:20] = True
    spoilt = torch.where(mask, img1, torch.nan)
    found = reference.ssim(spoilt, img2, mask=mask, mask_mode="normalize")
    torch.testing.assert_close(found, reference.ssim(img1, img2, mask=mask, mask_mode="normalize"))
    # A masked rectangle gives the same result as the rectangle on its own.
    crop = (..., slice(4, 15), slice(6, 20))
    alone = reference.ssim(img1[crop], img2[crop], mask=mask[crop], mask_mode="normalize")
    torch.testing.assert_close(found, alone)
    # By hand, at one corner of it.
    taps = torch.tensor(reference.gaussian_taps()[5:], dtype=torch.float64)
    window = taps[:, None] * taps
    window = window / window.sum()
    x, y = img1[0, 0, 4:10, 6:12], img2[0, 0, 4:10, 6:12]
    mu1, mu2 = (window * x).sum(), (window * y).sum()
    var1, var2 = (window * x * x).sum() - mu1**2, (window * y * y).sum() - mu2**2
    cov = (window * x * y).sum() - mu1 * mu2
    corner = (2 * mu1 * mu2 + 1e-4) * (2 * cov + 9e-4) / ((mu1**2 + mu2**2 + 1e-4) * (var1 + var2 + 9e-4))
    options = {"mask": mask, "mask_mode": "normalize", "reduction": "none"}
    torch.testing.assert_close(reference.ssim(img1, img2, **options)[0, 0, 4, 6], corner)


@pytest.mark.parametrize("size", [1, 5, 6, 33])
def test_windows_of_extreme_sigmas(size):
    """The square of such a sigma is 0, which nothing can be divided by, or overflows."""
    middle = [place in ((size - 1) // 2, size // 2) for place in range(size)]
    narrow = [is_middle / sum(middle) for is_middle in middle]
    for sigma in (1e-12, 1e-160, 5e-324):
        assert reference.gaussian_taps(size, sigma) == pytest.approx(narrow)
    for sigma in (1e12, 1e160, 1.7e308, float("inf")):
        assert reference.gaussian_taps(size, sigma) == pytest.approx([1 / size] * size)
    assert reference.gaussian_taps(size, -0.8) == reference.gaussian_taps(size, 0.8)


def test_uint8_and_layouts():
    generator = torch.Generator().manual_seed(0)
    img1, img2 = (torch.randint(0, 256, (2, 3, 14, 15), generator=generator, dtype=torch.uint8) for _ in range(2))
    as_float = reference.ssim(img1.double() / 255 * 4, img2.double() / 255 * 4, data_range=4.0)
    torch.testing.assert_close(reference.ssim(img1, img2.double() / 255 * 4, data_range=4.0), as_float)
    last = [img.movedim(1, -1) for img in (img1, img2)]
    kept = reference.ssim(*last, channels_last=True, reduction="none")
    torch.testing.assert_close(kept, reference.ssim(img1, img2, reduction="none").movedim(1, -1))


def test_ms_ssim_is_zero_with_zero_gradient_where_a_term_is_not_positive():
    img1, _ = pair(1, 1, 33, 33)
    img1.requires_grad_()
    value = reference.ms_ssim(img1, 1 - img1.detach(), window_size=3, weights=(0.5, 0.5))
    assert value.item() == 0
    (grad,) = torch.autograd.grad(value.sum(), img1)
    assert grad.abs().max() == 0


def test_ms_ssim_gradcheck():
    img1, img2 = (img.requires_grad_() for img in pair(1, 2, 9, 10))
    assert check_gradient(lambda a, b: reference.ms_ssim(a, b, window_size=3, weights=(0.4, 0.6)), (img1, img2))


# --------------------------------------------------------------------------------------------------------------------
# The definition against the oracle, which shares no code with it: two float64 computations, of gradients 1e-10
# --------------------------------------------------------------------------------------------------------------------

PADDINGS = ("same", "valid", "reflect", "replicate")
VALUE, GRADIENT = 1e-12, 1e-10


def agree(function, definition, images):
    """Compares value and both gradients relative to the largest entry, for an asymmetric upstream gradient."""
    expected = oracle.differentiate(definition, *images)
    upstream = torch.cos(torch.arange(expected[0].numel(), dtype=torch.float64)).reshape(expected[0].shape)
    expected = oracle.differentiate(definition, *images, upstream)
    result = oracle.differentiate(function, *images, upstream)
    for found, truth, tolerance in zip(result, expected, (VALUE, GRADIENT, GRADIENT), strict=True):
        assert found.shape == truth.shape
        scale = max(truth.abs().max().item(), 1e-30)
        assert (found - truth).abs().max().item() <= tolerance * max(scale, 1.0 if tolerance == VALUE else 0.0)


def masks(shape, channels):
    """Three masks: bool, soft with zeros, and one with no weight in the first image."""
    soft = pair(shape[0], channels, *shape[2:], seed=9)[0]
    soft = torch.where(soft > 0.3, soft, 0)
    empty = soft.clone()
    empty[0] = 0
    return soft > 0.5, soft, empty


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("shape", [(2, 2, 9, 12), (1, 2, 6, 7, 8)], ids=str)
@pytest.mark.parametrize(("window_size", "sigma"), [(3, 1.5), (5, 0.4), (5, 8.0)])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_maps_agree_with_the_oracle(padding, shape, window_size, sigma, offset):
    images = [img + offset for img in pair(*shape)]
    options = {"window_size": window_size, "sigma": sigma, "data_range": 2.0, "k1": 0.02, "k2": 0.07}
    for eps in (0.0, 1e-3):
        agree(
            lambda a, b, e=eps: reference.ssim_map(a, b, padding=padding, eps=e, **options),
            lambda a, b, e=eps: oracle.ssim_map(a, b, padding=padding, eps=e, **options),
            images,
        )


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("mask_mode", ["weight", "zero", "normalize"])
@pytest.mark.parametrize("channels", [1, 3])
def test_masks_and_means_agree_with_the_oracle(padding, mask_mode, channels):
    shape = (2, 3, 8, 9)
    for mask in (None, *masks(shape, channels)):
        for reduction in ("mean", "sum", "image", "none"):
            options = {"window_size": 5, "padding": padding, "mask": mask, "mask_mode": mask_mode}
            agree(
                lambda a, b, o=options, r=reduction: reference.ssim(a, b, reduction=r, **o),
                lambda a, b, o=options, r=reduction: oracle.ssim(a, b, reduction=r, **o),
                pair(*shape),
            )


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("mask_mode", ["weight", "zero", "normalize"])
@pytest.mark.parametrize("reduction", ["mean", "image"])
def test_the_loss_agrees_with_the_oracle(padding, mask_mode, reduction):
    shape = (2, 3, 8, 9)
    for mask in (None, *masks(shape, 1)):
        options = {"window_size": 5, "padding": padding, "mask": mask, "mask_mode": mask_mode, "reduction": reduction}
        for term in range(3):
            agree(
                lambda a, b, o=options, t=term: reference.photometric_loss(a, b, lambda_dssim=0.3, **o)[t],
                lambda a, b, o=options, t=term: oracle.photometric_loss(a, b, lambda_dssim=0.3, **o)[t],
                pair(*shape),
            )


def test_channels_last_agrees_with_the_oracle():
    shape = (2, 8, 9, 3)
    for reduction in ("mean", "image", "none"):
        for mask in (None, pair(2, 8, 9, 1, seed=9)[0]):
            options = {"channels_last": True, "window_size": 5, "reduction": reduction, "mask": mask}
            agree(
                lambda a, b, o=options: reference.ssim(a, b, **o),
                lambda a, b, o=options: oracle.ssim(a, b, **o),
                pair(*shape),
            )


@pytest.mark.parametrize("shape", [(2, 2, 9, 12), (1, 2, 6, 9, 7)], ids=str)
@pytest.mark.parametrize("weights", [(1.0,), (0.4, 0.6), (2.0, 0.5)])
def test_pyramids_agree_with_the_oracle(shape, weights):
    options = {"window_size": 3, "weights": weights}
    agree(
        lambda a, b: reference.ms_ssim(a, b, **options),
        lambda a, b: oracle.ms_ssim(a, b, reduction="none", **options),
        pair(*shape),
    )
    last = [img.movedim(1, -1) for img in pair(*shape)]
    agree(
        lambda a, b: reference.ms_ssim(a, b, channels_last=True, **options),
        lambda a, b: oracle.ms_ssim(a, b, channels_last=True, reduction="none", **options),
        last,
    )


@pytest.mark.parametrize("padding", PADDINGS)
def test_channel_means_agree_with_the_oracle(padding):
    def means(a, b):
        found = oracle.ssim_terms(a, b, window_size=5, padding=padding)
        return torch.stack([found.ssim.flatten(2).mean(2), found.contrast_structure.flatten(2).mean(2)], -1)

    agree(lambda a, b: reference.ssim_channel_means(a, b, window_size=5, padding=padding), means, pair(2, 3, 8, 9))


@pytest.mark.parametrize("mask_mode", [None, "zero", "normalize"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_windows(mask_mode, value):
    img1, img2 = pair(1, 2, 12, 13)
    img1[0, 0, 4, 6] = value
    options = {"window_size": 5, "reduction": "none"}
    if mask_mode is not None:
        options |= {"mask": pair(1, 1, 12, 13, seed=9)[0] + 0.1, "mask_mode": mask_mode}
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        images = [img.to(dtype) for img in (img1, img2)]
        found, expected = reference.ssim(*images, **options).double(), oracle.ssim(*images, **options)
        assert (found.isfinite() != expected.isfinite()).sum() == 0
        assert (found - expected)[expected.isfinite()].abs().max() <= tolerance
