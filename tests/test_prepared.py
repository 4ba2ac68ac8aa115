"""Prepared calls give the same results as the first call. Under tracers and modes, calls are not prepared."""

import threading

import numpy as np
import pytest
import torch

import splat_ssim
from splat_ssim.loss import photometric_loss
from splat_ssim.ops import prepared
from tests import devices

pytestmark = pytest.mark.usefixtures("device")


@pytest.fixture(autouse=True)
def forgotten():
    prepared.forget()
    yield
    prepared.forget()


def pair(*shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(len(shape))
    img1 = torch.rand(shape, generator=generator, device="cpu")
    img2 = (img1 + 0.1 * torch.randn(shape, generator=generator, device="cpu")).clamp(0, 1)
    device = torch.empty(0).device
    return img1.to(device, dtype).requires_grad_(), img2.to(device, dtype)


def loss_and_gradient(function, img1, img2, **options):
    found = function(img1, img2, **options)
    loss, terms = found if isinstance(found, tuple) else (found, {})
    (grad,) = torch.autograd.grad(loss.sum(), img1)
    return loss.detach(), grad, *terms.values()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("function", "shape", "options"),
    [
        (photometric_loss, (1, 3, 21, 30), {}),
        (photometric_loss, (2, 3, 21, 30), {"reduction": "image", "return_terms": True}),
        (photometric_loss, (1, 21, 30, 3), {"channels_last": True, "window_size": 7, "return_terms": True}),
        (photometric_loss, (1, 2, 12, 13, 14), {"padding": "valid"}),
        (splat_ssim.ssim, (2, 3, 21, 30), {"padding": "reflect"}),
        (splat_ssim.ssim, (2, 3, 21, 30), {"reduction": "image"}),
        (splat_ssim.ssim3d, (1, 1, 12, 13, 14), {}),
    ],
)
def test_a_prepared_call_gives_the_bits_of_the_long_way(monkeypatch, function, shape, options, dtype):
    img1, img2 = pair(*shape, dtype=dtype)
    first = loss_and_gradient(function, img1, img2, **options)
    again = loss_and_gradient(function, img1, img2, **options)
    monkeypatch.setattr(prepared, "key", lambda *arguments: None)
    long_way = loss_and_gradient(function, img1, img2, **options)
    for a, b, c in zip(first, again, long_way, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
        assert (a.dtype, a.shape, a.stride()) == (c.dtype, c.shape, c.stride())


def test_only_what_a_call_depends_on_names_it():
    img1, img2 = pair(1, 3, 21, 30)
    losses = [photometric_loss(img1, img2), photometric_loss(img1 * 0.5, img2), photometric_loss(img1, img2 * 0.5)]
    assert len({loss.item() for loss in losses}) == 3
    assert len(prepared._prepared) == 1
    photometric_loss(img1, img2, lambda_dssim=0.3)
    photometric_loss(img1.detach(), img2)
    with torch.no_grad():
        photometric_loss(img1, img2)  # the same as the call before
    assert len(prepared._prepared) == 3


def test_what_was_refused_before_is_refused_after():
    img1, img2 = pair(1, 3, 21, 30)
    photometric_loss(img1, img2)
    with pytest.raises(TypeError, match="data_range"):
        photometric_loss(img1, img2, data_range=True)
    with pytest.raises(ValueError, match="mask_mode"):
        photometric_loss(img1, img2, mask_mode="unknown")
    with pytest.raises(ValueError, match="same shape"):
        photometric_loss(img1, img2[..., :-1])
    with pytest.raises(TypeError, match="sigma"):
        photometric_loss(img1, img2, sigma=[1.5])


def test_an_option_that_may_change_is_read_at_every_call():
    img1, img2 = pair(1, 3, 21, 30)
    share = torch.tensor(0.2)
    first = photometric_loss(img1, img2, lambda_dssim=share)
    share.fill_(0.9)
    second = photometric_loss(img1, img2, lambda_dssim=share)
    assert second == photometric_loss(img1, img2, lambda_dssim=share.item())
    assert first != second
    assert photometric_loss(img1, img2, lambda_dssim=np.float64(0.9)) == photometric_loss(img1, img2, lambda_dssim=0.9)
    assert photometric_loss(img1, img2, sigma=np.array(1.5)) == photometric_loss(img1, img2)


def test_a_second_backward():
    img1, img2 = pair(1, 3, 21, 30)
    loss = photometric_loss(img1, img2)
    first = torch.autograd.grad(loss, img1, retain_graph=True)[0].clone()
    assert torch.equal(torch.autograd.grad(3 * loss, img1, retain_graph=True)[0], 3 * first)
    assert torch.equal(torch.autograd.grad(loss, img1)[0], first)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, img1)
    (grad,) = torch.autograd.grad(photometric_loss(img1, img2), img1, create_graph=True)
    with pytest.raises(NotImplementedError, match="differentiable once"):
        grad.sum().backward()


def test_the_loss_may_change_in_place():
    img1, img2 = pair(1, 3, 21, 30)
    loss = photometric_loss(img1, img2)
    loss += 1.0
    loss.backward()
    (expected,) = torch.autograd.grad(photometric_loss(img1, img2), img1)
    assert torch.equal(img1.grad, expected)


def test_both_gradients_and_the_second_alone():
    img1, img2 = pair(1, 3, 21, 30)
    both = [image.detach().requires_grad_() for image in (img1, img2)]
    grads = torch.autograd.grad(photometric_loss(*both), both)
    (second,) = torch.autograd.grad(photometric_loss(img1.detach(), both[1]), both[1])
    (first,) = torch.autograd.grad(photometric_loss(img1, img2), img1)
    for found, expected in zip(grads, (first, second), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-9)


def test_images_that_overlap_in_memory():
    batch, _ = pair(1, 3, 24, 30)
    batch = batch.detach()
    upper, lower = batch[..., :21, :], batch[..., 3:, :]
    for _ in range(2):
        found = photometric_loss(upper, lower)
        assert found == photometric_loss(upper.clone(), lower.clone())
        assert photometric_loss(batch, batch) == 0
    other = torch.rand_like(lower)
    assert photometric_loss(upper, other) == photometric_loss(upper.clone(), other)


def test_lazily_negated_images():
    """The imaginary part of a conjugate shares the number's memory, which holds the opposite sign."""
    img1, img2 = pair(1, 3, 21, 30)
    wrapped = torch.complex(torch.zeros_like(img2), -img2).conj().imag
    assert wrapped.is_neg()
    assert torch.equal(wrapped, img2)
    expected = photometric_loss(img1, img2)
    for _ in range(2):
        assert torch.allclose(photometric_loss(img1, wrapped), expected)
        assert torch.allclose(splat_ssim.ssim(wrapped, img1), splat_ssim.ssim(img2, img1))


def test_threads_share_what_is_prepared():
    if devices.current() == "emulation":
        pytest.skip("the emulation runs one kernel at a time")
    pairs = [pair(1, 3, 20 + i, 30) for i in range(4)]
    expected = [photometric_loss(*images).item() for images in pairs]
    wrong = []

    def work(offset):
        for i in range(40):
            k = (i + offset) % len(pairs)
            if photometric_loss(*pairs[k]).item() != expected[k]:
                wrong.append(k)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_no_more_are_kept_than_an_application_has():
    for i in range(prepared._MOST + 5):
        img = torch.rand(1, 1, 3, 3 + i)
        photometric_loss(img, img)
    assert len(prepared._prepared) <= prepared._MOST
