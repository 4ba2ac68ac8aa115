"""The training losses: value, terms and gradient against the definition."""

import pytest
import torch

from splat_ssim import reference
from splat_ssim.loss import PhotometricLoss, ms_ssim_l1_loss, photometric_loss
from tests import typed_use
from tests.test_functional import check, pair, run

pytestmark = pytest.mark.usefixtures("device")


def definition(pred, target, **options):
    return reference.photometric_loss(pred, target, **options)[0]


@pytest.mark.parametrize("shape", [(2, 3, 21, 34), (1, 2, 9, 12, 13), (1, 1, 3, 2)])
@pytest.mark.parametrize("reduction", ["mean", "image"])
@pytest.mark.parametrize("mask_mode", [None, "zero", "weight", "normalize"])
def test_agrees_with_the_definition(shape, reduction, mask_mode):
    options = {"reduction": reduction, "lambda_dssim": 0.3}
    if mask_mode is not None:
        options |= {"mask": pair(shape[0], 1, *shape[2:], seed=4)[0], "mask_mode": mask_mode}
    check(photometric_loss, definition, *pair(*shape), tolerance=(3e-7, 1e-5), **options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_dtypes_and_layouts(dtype):
    check(photometric_loss, definition, *pair(2, 3, 20, 21, dtype=dtype))
    check(photometric_loss, definition, *pair(2, 20, 21, 3, dtype=dtype), channels_last=True)
    check(photometric_loss, definition, *pair(1, 2, 9, 8, 7, dtype=dtype), padding="reflect")


@pytest.mark.parametrize("lambda_dssim", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("padding", ["same", "valid", "reflect", "replicate"])
def test_terms_make_up_the_loss(lambda_dssim, padding):
    pred, target = pair(2, 3, 20, 22)
    options = {"padding": padding, "lambda_dssim": lambda_dssim}
    loss, terms = photometric_loss(pred.requires_grad_(), target, return_terms=True, **options)
    assert loss.requires_grad
    assert not terms["l1"].requires_grad
    assert not terms["ssim"].requires_grad
    expected = (1 - lambda_dssim) * terms["l1"] + lambda_dssim * (1 - terms["ssim"])
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(terms["l1"], (pred - target).abs().mean().detach(), rtol=1e-6, atol=0)
    torch.testing.assert_close(terms["ssim"], reference.ssim(pred, target, padding=padding).detach())
    assert photometric_loss(pred, target, **options) == loss


def test_a_scaled_loss_scales_the_gradient():
    pred, target = pair(2, 3, 20, 22)
    _, grad1, grad2 = run(photometric_loss, pred, target)
    _, scaled1, scaled2 = run(lambda a, b: 1000 * photometric_loss(a, b), pred, target)
    torch.testing.assert_close(scaled1, 1000 * grad1)
    torch.testing.assert_close(scaled2, 1000 * grad2)


def test_uint8_target():
    pred, target = pair(1, 3, 20, 20)
    target = (target * 255).round().to(torch.uint8)
    for data_range in (1.0, 255.0):
        as_float = target.float() * (data_range / 255)
        expected, grad, _ = run(photometric_loss, pred * data_range, as_float, data_range=data_range)
        asked = (pred * data_range).requires_grad_()
        loss = photometric_loss(asked, target, data_range=data_range)
        torch.testing.assert_close(loss.detach(), expected, rtol=1e-5, atol=0)
        torch.testing.assert_close(torch.autograd.grad(loss, asked)[0], grad, rtol=1e-3, atol=1e-3 * grad.abs().max())


def test_a_mask_without_weight_gives_zero():
    pred, target = pair(1, 3, 20, 20)
    for mode in ("zero", "weight", "normalize"):
        value, grad, _ = run(photometric_loss, pred, target, mask=torch.zeros(1, 1, 20, 20), mask_mode=mode)
        assert value == 0
        assert (grad == 0).all()


@pytest.mark.parametrize("shape", [(1, 3, 20, 24), (1, 1, 9, 8, 7)])
def test_compiles_to_one_graph(shape):
    pred, target = pair(*shape)
    module = PhotometricLoss()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for found, expected in zip(run(compiled, pred, target), run(module, pred, target), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)


def test_module_keeps_its_options():
    pred, target = pair(1, 20, 20, 3)
    mask = torch.rand(1, 20, 20, 1)
    module = PhotometricLoss(lambda_dssim=0.5, channels_last=True, padding="valid", return_terms=True)
    loss, terms = module(pred, target, mask=mask)
    assert loss == photometric_loss(pred, target, lambda_dssim=0.5, channels_last=True, padding="valid", mask=mask)
    assert set(terms) == {"l1", "ssim"}
    assert "lambda_dssim=0.5" in repr(module)


def test_ms_ssim_l1():
    pred, target = pair(1, 2, 37, 40)
    options = {"window_size": 3, "weights": (0.5, 0.5)}

    def expected(a, b):
        return 0.3 * (a - b).abs().mean() + 0.7 * (1 - reference.ms_ssim(a, b, **options).mean())

    def loss(a, b):
        return ms_ssim_l1_loss(a, b, lambda_ms_ssim=0.7, **options)

    check(loss, expected, pred, target, tolerance=(1e-6, 1e-5))
    value, terms = ms_ssim_l1_loss(pred, target, lambda_ms_ssim=0.7, return_terms=True, **options)
    torch.testing.assert_close(value, 0.3 * terms["l1"] + 0.7 * (1 - terms["ms_ssim"]))
    mask = (torch.rand(1, 1, 37, 40) > 0.5).float()
    masked = ms_ssim_l1_loss(pred, target, mask=mask, **options)
    torch.testing.assert_close(masked, ms_ssim_l1_loss(pred * mask, target * mask, **options))


IMAGE = torch.zeros(1, 3, 16, 16)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"lambda_dssim": 1.5}, ValueError, r"lambda_dssim must be in \[0, 1\], got 1.5"),
        ({"lambda_dssim": "a"}, TypeError, "lambda_dssim must be a number, got str"),
        ({"reduction": "none"}, ValueError, "reduction must be one of 'mean', 'image', got 'none'"),
        ({"target": IMAGE[:, :2]}, ValueError, "pred and target must have the same shape"),
        (
            {"pred": IMAGE[0], "target": IMAGE[0]},
            ValueError,
            r"pred must have the shape \(B, C, H, W\) or \(B, C, D, H, W",
        ),
        ({"pred": IMAGE[:0], "target": IMAGE[:0]}, ValueError, "at least one image"),
        ({"mask": IMAGE[0]}, ValueError, "mask must have the shape"),
        ({"padding": "none"}, ValueError, "padding must be one of"),
    ],
)
def test_refusals(options, error, text):
    with pytest.raises(error, match=text):
        photometric_loss(**{"pred": IMAGE, "target": IMAGE, **options})


def test_refusals_of_ms_ssim_l1():
    with pytest.raises(ValueError, match="lambda_ms_ssim must be"):
        ms_ssim_l1_loss(IMAGE, IMAGE, lambda_ms_ssim=2)
    with pytest.raises(ValueError, match="larger than 160"):
        ms_ssim_l1_loss(IMAGE, IMAGE)


def test_a_retained_graph_gives_the_gradient_again():
    pred, target = pair(2, 3, 20, 22)
    pred.requires_grad_()
    loss = photometric_loss(pred, target)
    first, second = (torch.autograd.grad(loss, pred, 2 * torch.ones(()), retain_graph=True)[0] for _ in range(2))
    first_copy = first.clone()
    first.zero_()  # If a caller changes one gradient, the next is not affected.
    (third,) = torch.autograd.grad(loss, pred, 2 * torch.ones(()))
    torch.testing.assert_close(second, first_copy, rtol=0, atol=0)
    torch.testing.assert_close(third, first_copy, rtol=0, atol=0)


def test_typed_use_runs():
    """mypy checks typed_use.py; this test runs it."""
    assert all(loss.ndim == 0 for loss in typed_use.losses())
