"""Losses by name: the built-in ones, importable ones, and refused ones."""

import pytest
import torch
import torch.nn.functional as F

from splat_ssim.loss import ms_ssim_l1_loss, photometric_loss
from splat_ssim.registry import LOSSES, get_loss
from tests.test_functional import pair

# Plug-ins, found by name as tests.test_registry:<name>.


def masked_l1(pred, target, *, mask=None, power=1.0):
    weights = torch.ones_like(pred) if mask is None else mask.expand_as(pred)
    value = ((pred - target).abs() ** power * weights).sum() / weights.sum()
    return value, {"distance": value.detach()}


class ModuleLoss(torch.nn.Module):
    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = scale

    def forward(self, pred, target):
        return self.scale * F.mse_loss(pred, target)


def volumes_only(pred, target):
    batch, channels, depth, height, width = pred.shape
    return (pred - target).square().sum() / (batch * channels * depth * height * width)


def similarity(pred, target, *, mask=None):
    return 1 - F.mse_loss(pred, target)


def no_scalar(pred, target):
    return (pred - target).abs()


def random_loss(pred, target):
    return F.mse_loss(pred, target) + 0 * torch.rand(())


NOT_CALLABLE = 3


@pytest.mark.parametrize("shape", [(2, 3, 20, 21), (1, 2, 6, 7, 8)])
def test_built_in_losses(shape):
    pred, target = pair(*shape)
    mask = (pair(shape[0], 1, *shape[2:], seed=2)[0] > 0.5).float()
    weights = mask.expand(shape)
    torch.testing.assert_close(get_loss("l1")(pred, target), F.l1_loss(pred, target))
    torch.testing.assert_close(get_loss("l2")(pred, target), F.mse_loss(pred, target))
    masked = ((pred - target).abs() * weights).sum() / weights.sum()
    torch.testing.assert_close(get_loss("l1")(pred, target, mask=mask), masked)
    masked = ((pred - target).square() * weights).sum() / weights.sum()
    torch.testing.assert_close(get_loss("l2")(pred, target, mask=mask), masked)
    for options in ({}, {"lambda_dssim": 0.5, "padding": "valid", "window_size": 5}):
        for given in (None, mask):
            fused, fused_terms = get_loss("fused_ssim", **options)(pred, target, mask=given)
            plain, plain_terms = get_loss("ssim", **options)(pred, target, mask=given)
            assert fused == photometric_loss(pred, target, mask=given, **options)
            torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-7)
            torch.testing.assert_close(fused_terms, plain_terms, rtol=1e-5, atol=1e-6)


def test_ms_ssim_by_name():
    pred, target = pair(1, 1, 40, 41)
    value, terms = get_loss("ms_ssim", window_size=3)(pred, target)
    assert value == ms_ssim_l1_loss(pred, target, window_size=3)
    assert set(terms) == {"l1", "ms_ssim"}


def test_gradients_flow():
    for name in LOSSES:
        pred, target = pair(1, 1, 176, 176)
        result = get_loss(name)(pred.requires_grad_(), target)
        (result[0] if isinstance(result, tuple) else result).backward()
        assert pred.grad.abs().max() > 0


def test_imported_function_with_options_and_mask():
    pred, target = pair(1, 3, 20, 20)
    loss, terms = get_loss("tests.test_registry:masked_l1", power=2.0)(pred, target)
    torch.testing.assert_close(loss, F.mse_loss(pred, target))
    assert terms["distance"] == loss
    mask = torch.zeros(1, 1, 20, 20)
    mask[..., :5] = 1
    loss, _ = get_loss("tests.test_registry:masked_l1")(pred, target, mask=mask)
    torch.testing.assert_close(loss, F.l1_loss(pred[..., :5], target[..., :5]))


def test_imported_class_is_constructed():
    pred, target = pair(1, 3, 20, 20)
    criterion = get_loss("tests.test_registry:ModuleLoss", scale=3.0)
    torch.testing.assert_close(criterion(pred, target), 3 * F.mse_loss(pred, target))
    with pytest.raises(ValueError, match="must have a keyword argument `mask`"):
        criterion(pred, target, mask=torch.ones(1, 1, 20, 20))
    with pytest.raises(ValueError, match="must take the options"):
        get_loss("tests.test_registry:ModuleLoss", unknown=1)


def test_a_loss_of_volumes_only():
    volumes = pair(1, 1, 6, 6, 6)
    torch.testing.assert_close(get_loss("tests.test_registry:volumes_only")(*volumes), F.mse_loss(*volumes))


def test_the_probe_leaves_the_random_numbers_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    get_loss("tests.test_registry:random_loss")
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        (
            "lpips",
            {},
            "a loss must be one of l1, l2, ssim, fused_ssim, ms_ssim, or 'package.module:function', got 'lpips'",
        ),
        ("no_such_package:loss", {}, "must be importable .* No module named"),
        ("torch:no_such_function", {}, "must be importable .* no attribute"),
        ("tests.test_registry:NOT_CALLABLE", {}, "must be callable, got int"),
        ("tests.test_registry:similarity", {}, "it is a similarity. Wrap it .* 1 minus its value"),
        ("pytorch_msssim:ssim", {}, "it is a similarity"),
        ("tests.test_registry:no_scalar", {}, r"must return a scalar tensor, .* got shape \(1, 3, 176, 176\)"),
        ("tests.test_registry:masked_l1", {"exponent": 2}, "unexpected keyword argument 'exponent'"),
        ("fused_ssim", {"lambda": 0.3}, "unexpected keyword argument"),
        ("ssim", {"padding": "circular"}, "padding must be one of"),
        ("l1", {"scale": 2}, "unexpected keyword argument"),
    ],
)
def test_refusals(name, options, text):
    with pytest.raises(ValueError, match=text):
        get_loss(name, **options)
