"""RGBA targets are composited over a background as they are read: every device and layout, compared with float64."""

import numpy as np
import pytest
import torch

import splat_ssim
from splat_ssim import _background
from splat_ssim.loss import PhotometricLoss, photometric_loss
from splat_ssim.ops import dispatch, prepared
from splat_ssim.options import SSIMOptions
from tests import devices, oracle

pytestmark = pytest.mark.usefixtures("device")


def scene(batch, height, width, pred_last=False, target_last=False, dtype=torch.float32, seed=0):
    """A prediction near the composited target, and an RGBA target with opaque, transparent and translucent parts."""
    generator = torch.Generator().manual_seed(seed)
    rgba = torch.randint(256, (batch, 4, height, width), dtype=torch.uint8, generator=generator, device="cpu")
    alpha = torch.randint(3, (batch, 1, height, width), generator=generator, device="cpu")
    rgba[:, 3:] = torch.where(alpha == 0, 0, torch.where(alpha == 1, 255, rgba[:, 3:])).to(torch.uint8)
    pred = torch.rand((batch, 3, height, width), generator=generator, device="cpu")
    if pred_last:
        pred = pred.contiguous(memory_format=torch.channels_last)
    if target_last:
        rgba = rgba.contiguous(memory_format=torch.channels_last)
    return pred.to(devices.torch_device(), dtype).requires_grad_(), rgba.to(devices.torch_device())


def by_hand(pred, rgba, background, *, mask=None, lambda_dssim=0.2, data_range=1.0, **options):
    """Loss and gradient by the oracle, with the target composited in numpy."""
    bytes_ = rgba.cpu().numpy().astype(np.float64) / 255
    behind = np.asarray(background, dtype=np.float64).reshape(-1, 3)[:, :, None, None]
    target = bytes_[:, :3] * data_range * bytes_[:, 3:] + behind * (1 - bytes_[:, 3:])
    x, y = pred.detach().double().cpu().requires_grad_(), torch.from_numpy(target)
    weight = torch.from_numpy(bytes_[:, 3:]) if mask == "alpha" else None
    ssim = oracle.ssim(x, y, data_range=data_range, mask=weight, **options)
    l1 = oracle.reduce((x - y).abs(), weight, "mean", empty=0.0)
    loss = (1 - lambda_dssim) * l1 + lambda_dssim * (1 - ssim)
    return loss.detach(), torch.autograd.grad(loss, x)[0]


def agree(pred, rgba, background, **options):
    loss = photometric_loss(pred, rgba, background=background, **options)
    (grad,) = torch.autograd.grad(loss, pred)
    values = (
        background.cpu().double().numpy() if isinstance(background, torch.Tensor) else np.broadcast_to(background, 3)
    )
    expected, expected_grad = by_hand(pred, rgba, values, **options)
    assert abs(loss.item() - expected.item()) < 3e-6
    wrong = (grad.double().cpu() - expected_grad).abs() > 2e-5 * expected_grad.abs().max()
    # Where the images are equal up to rounding, the sign of their difference is arbitrary.
    assert wrong.double().mean() <= 2e-3


@pytest.mark.parametrize("pred_last", [False, True])
@pytest.mark.parametrize("target_last", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"mask": "alpha"}, {"padding": "valid"}, {"window_size": 5, "lambda_dssim": 1.0}]
)
def test_every_layout(pred_last, target_last, options):
    for shape, background in (((1, 23, 31), 1.0), ((2, 23, 31), (0.1, 0.5, 0.9)), ((2, 12, 257), torch.rand(2, 3))):
        pred, rgba = scene(*shape, pred_last, target_last)
        agree(pred, rgba, background, **options)
        last = {name: value for name, value in options.items() if name != "channels_last"}
        found = photometric_loss(
            pred.movedim(1, -1), rgba.movedim(1, -1), background=background, channels_last=True, **last
        )
        torch.testing.assert_close(found, photometric_loss(pred, rgba, background=background, **options))


@pytest.mark.parametrize("seed", range(24))
def test_random_shapes_and_ranges(seed):
    if devices.current() == "emulation" and seed >= 6:
        pytest.skip("the emulation is slow")
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randint(1, 64, (3,), generator=generator, device="cpu").tolist()
    shape, data_range = (
        (draw[0] % 3 + 1, draw[1] if seed >= 6 else draw[1] % 9 + 1, draw[2]),
        (1.0, 3.0, 255.0)[seed % 3],
    )
    pred, rgba = scene(*shape, pred_last=seed % 2 == 0, target_last=seed % 4 > 1, seed=seed)
    pred = (pred.detach() * data_range).requires_grad_()
    background = torch.rand(shape[0], 3, generator=generator, device="cpu") * data_range
    loss = photometric_loss(pred, rgba, background=background.to(pred.device), data_range=data_range)
    expected, _ = by_hand(pred, rgba, background.double().numpy(), data_range=data_range)
    assert abs(loss.item() - expected.item()) < 3e-6 * data_range


def test_cut_and_padded_views_are_read():
    pred, rgba = scene(1, 40, 60, target_last=True)
    for cut in ((..., slice(3, 37), slice(5, 55)), (..., slice(0, 40, 2), slice(0, 60, 3))):
        whole = photometric_loss(pred[cut].clone(), rgba[cut].clone(), background=0.5)
        torch.testing.assert_close(photometric_loss(pred[cut], rgba[cut], background=0.5), whole)
    wide = torch.zeros(1, 40, 60, 7, dtype=torch.uint8, device=rgba.device)
    wide[..., 2:6] = rgba.movedim(1, -1)
    found = photometric_loss(pred, wide[..., 2:6].movedim(-1, 1), background=0.5)
    torch.testing.assert_close(found, photometric_loss(pred, rgba, background=0.5))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_dtypes(dtype):
    pred, rgba = scene(1, 20, 30, dtype=dtype)
    loss = photometric_loss(pred, rgba, background=(0.25, 0.5, 1.0))
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected, expected_grad = by_hand(pred, rgba, (0.25, 0.5, 1.0))
    assert abs(loss.item() - expected.item()) < (1e-12 if dtype == torch.float64 else 3e-6)
    (grad,) = torch.autograd.grad(loss, pred)
    assert grad.dtype == dtype
    bound = {torch.float64: 1e-10, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[dtype]
    assert (grad.cpu().double() - expected_grad).abs().max() <= bound * expected_grad.abs().max()


def test_the_kernel_composites():
    """The target is not copied to float: the loss of a prepared call only allocates its outputs."""
    pred, rgba = scene(1, 20, 30, target_last=True)
    assert dispatch.DEVICES[pred.device.type].composites(pred, SSIMOptions(), True)
    photometric_loss(pred, rgba, background=1.0)
    known = list(prepared._prepared.values())
    assert len(known) == 1
    assert known[0].dtypes == (torch.float32, torch.uint8)


@pytest.fixture(autouse=True)
def forgotten():
    prepared.forget()
    yield
    prepared.forget()


def test_a_background_may_change_between_calls():
    pred, rgba = scene(1, 20, 30)
    colour = torch.zeros(3, device=pred.device)
    first = photometric_loss(pred, rgba, background=colour).item()
    colour.fill_(1.0)
    second = photometric_loss(pred, rgba, background=colour).item()
    assert first == photometric_loss(pred, rgba, background=0.0).item()
    assert second == photometric_loss(pred, rgba, background=1.0).item()
    assert first != second


def test_terms_images_and_masks_of_other_meanings():
    pred, rgba = scene(2, 20, 30)
    loss, terms = photometric_loss(pred, rgba, background=0.3, return_terms=True, reduction="image")
    assert loss.shape == terms["l1"].shape == (2,)
    alone = [photometric_loss(pred[i : i + 1], rgba[i : i + 1], background=0.3) for i in range(2)]
    torch.testing.assert_close(loss, torch.stack(alone))
    target = rgba[:, :3].double() / 255 * (rgba[:, 3:].double() / 255) + 0.3 * (1 - rgba[:, 3:].double() / 255)
    alpha = rgba[:, 3:].double() / 255
    for mode in ("zero", "normalize"):
        expected = photometric_loss(pred.double(), target, mask=alpha, mask_mode=mode)
        for mask in ("alpha", alpha.float()):
            found = photometric_loss(pred, rgba, background=0.3, mask=mask, mask_mode=mode)
            torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    module = PhotometricLoss(mask_mode="weight")
    expected = photometric_loss(pred, rgba, background=0.3, mask="alpha")
    assert module(pred, rgba, background=0.3, mask="alpha") == expected


def test_a_second_backward_and_no_gradient():
    pred, rgba = scene(1, 20, 30)
    loss = photometric_loss(pred, rgba, background=1.0)
    first = torch.autograd.grad(loss, pred, retain_graph=True)[0].clone()
    assert torch.equal(torch.autograd.grad(loss, pred)[0], first)
    with torch.no_grad():
        torch.testing.assert_close(photometric_loss(pred, rgba, background=1.0), loss)


def test_compiled_and_traced():
    pred, rgba = scene(1, 20, 30)
    expected = photometric_loss(pred, rgba, background=(0.1, 0.2, 0.3))
    compiled = torch.compile(
        lambda x, y: photometric_loss(x, y, background=(0.1, 0.2, 0.3)), backend="aot_eager", fullgraph=True
    )
    torch.testing.assert_close(compiled(pred, rgba), expected)
    gradients = torch.func.grad(lambda x: photometric_loss(x, rgba, background=(0.1, 0.2, 0.3)))(pred.detach())
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, pred)[0], rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"background": (1.0, 0.0)}, ValueError, "background must be one number or three, got 2"),
        ({"background": torch.rand(3, 3)}, ValueError, r"background must be floating point of the shape \(3,\) or"),
        ({"background": torch.rand(3).requires_grad_()}, ValueError, "must not require a gradient"),
        ({"background": "white"}, TypeError, "background must be a number, got str"),
        ({"background": float("nan")}, ValueError, "background must be"),
        ({"mask": "red"}, ValueError, "mask must be a tensor, or 'alpha'"),
        ({"background": None, "mask": "alpha"}, ValueError, "mask must be a tensor, or 'alpha' where a background"),
        ({"background": None}, ValueError, "must have the same shape"),
        ({"target": torch.rand(2, 4, 20, 30)}, ValueError, r"target must be uint8 of the shape \(B, 4, H, W\)"),
        ({"target": torch.zeros(2, 3, 20, 30, dtype=torch.uint8)}, ValueError, "target must be uint8"),
        ({"pred": torch.rand(2, 4, 20, 30)}, ValueError, "pred must have the size of target and 3 channels"),
        ({"channels_last": True}, ValueError, r"shape \(B, H, W, 4\)"),
    ],
)
def test_what_is_refused(change, error, message):
    pred, rgba = scene(2, 20, 30)
    arguments = {"pred": pred, "target": rgba, "background": 1.0, **change}
    arguments = {
        name: value.to(pred.device) if isinstance(value, torch.Tensor) else value for name, value in arguments.items()
    }
    with pytest.raises(error, match=message):
        splat_ssim.photometric_loss(arguments.pop("pred"), arguments.pop("target"), **arguments)


def test_constants_are_kept_once():
    pred, _ = scene(1, 3, 3)
    with torch.inference_mode():
        first = _background.as_tensor((0.1, 0.2, 0.3), pred)
    assert not first.is_inference()
    assert _background.as_tensor((0.1, 0.2, 0.3), pred) is first
