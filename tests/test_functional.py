"""The public functions against the definition, over options, dtypes, layouts and transforms; and their refusals."""

import numpy as np
import pytest
import torch

import splat_ssim
from splat_ssim import reference
from splat_ssim.options import SSIMOptions
from tests import devices
from tests.compare import random_pair

pytestmark = pytest.mark.usefixtures("device")

#: A GPU computes approximate reciprocals.
LOOSENED = {"cpu": 1, "emulation": 1, "cuda": 3}
# (dtype, value, gradient relative to its maximum). float32 moments about a mean; half precision only rounds the inputs,
# and the reference sees the rounded ones: its error is the rounding of the returned gradient.
TOLERANCES = [
    (torch.float64, 1e-12, 1e-11),
    (torch.float32, 2e-7, 5e-6),
    (torch.float16, 2e-7, 2e-3),
    (torch.bfloat16, 2e-7, 1e-2),
]


def pair(*shape, seed=0, dtype=torch.float32):
    return tuple(random_pair(torch.Generator().manual_seed(seed), shape, dtype))


def run(function, img1, img2, weigh=None, **options):
    """Returns the value and both gradients. `weigh` is the upstream gradient of an output that is not a scalar."""
    img1, img2 = img1.detach().clone().requires_grad_(), img2.detach().clone().requires_grad_()
    value = function(img1, img2, **options)
    upstream = torch.ones_like(value) if weigh is None else weigh.to(value)
    return value.detach(), *torch.autograd.grad(value, (img1, img2), upstream)


def check(function, definition, img1, img2, tolerance=None, **options):
    value_error, grad_error = tolerance or dict((d, (v, g)) for d, v, g in TOLERANCES)[img1.dtype]
    shape = definition(img1, img2, **options).shape
    weigh = torch.rand(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64, device="cpu")
    value_error, grad_error = (bound * LOOSENED[devices.current()] for bound in (value_error, grad_error))
    found = run(function, img1, img2, weigh, **options)
    wide = {key: x.double() if key == "mask" and x is not None else x for key, x in options.items()}
    expected = run(definition, img1.double(), img2.double(), weigh, **wide)
    assert found[0].dtype == (torch.float64 if img1.dtype == torch.float64 else torch.float32)
    scale = max(1.0, expected[0].abs().max().item()) if expected[0].numel() else 1.0
    torch.testing.assert_close(found[0].double(), expected[0], rtol=0, atol=value_error * scale * 20 ** (shape != ()))
    for grad, true_grad in zip(found[1:], expected[1:], strict=True):
        assert grad.dtype == img1.dtype
        atol = grad_error * (true_grad.abs().max().item() if true_grad.numel() else 0.0)
        torch.testing.assert_close(grad.double(), true_grad, rtol=0, atol=atol)


@pytest.mark.parametrize("padding", ["same", "valid", "reflect", "replicate"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "image"])
@pytest.mark.parametrize("dtype", [dtype for dtype, _, _ in TOLERANCES])
def test_agrees_with_the_definition(padding, reduction, dtype):
    options = {"padding": padding, "reduction": reduction}
    check(splat_ssim.ssim, reference.ssim, *pair(2, 3, 21, 34, dtype=dtype), **options)
    check(splat_ssim.ssim3d, reference.ssim, *pair(1, 2, 12, 13, 14, dtype=dtype), **options)


@pytest.mark.parametrize("mask_mode", ["zero", "weight", "normalize"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "image"])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_masks(mask_mode, channels, reduction, padding):
    mask = pair(2, channels, 19, 23, seed=4)[0]
    mask = torch.where(mask > 0.3, mask, 0)
    options = {"mask": mask, "mask_mode": mask_mode, "reduction": reduction, "padding": padding}
    check(splat_ssim.ssim, reference.ssim, *pair(2, 3, 19, 23), tolerance=(1e-6, 1e-5), **options)


def test_a_bool_mask_is_weights_of_one():
    img1, img2 = pair(1, 3, 16, 17)
    mask = pair(1, 1, 16, 17, seed=4)[0] > 0.5
    for mode in ("zero", "weight", "normalize"):
        as_bool = splat_ssim.ssim(img1, img2, mask=mask, mask_mode=mode)
        assert as_bool == splat_ssim.ssim(img1, img2, mask=mask.float(), mask_mode=mode)


def test_a_mask_without_weight_gives_one():
    img1, img2 = pair(2, 3, 16, 17)
    mask = torch.zeros(2, 1, 16, 17)
    mask[0] = 1
    for mode in ("weight", "normalize"):
        values = splat_ssim.ssim(img1, img2, mask=mask, mask_mode=mode, reduction="image")
        assert values[0] < 1
        assert values[1] == 1


@pytest.mark.parametrize("window_size", [3, 5, 7, 9, 13, 15, 21, 33])
def test_windows_and_constants(window_size):
    options = {"window_size": window_size, "sigma": window_size / 6, "data_range": 3.0, "k1": 0.03, "k2": 0.07}
    for padding in ("same", "valid"):
        check(splat_ssim.ssim, reference.ssim, *pair(1, 2, 34, 37), padding=padding, **options)
    check(splat_ssim.ssim3d, reference.ssim, *pair(1, 1, 6, 8, 35), **options)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 1, 7), (1, 3, 5, 4), (1, 5, 64, 3), (3, 1, 300, 2)])
def test_small_and_odd_shapes(shape):
    check(splat_ssim.ssim, reference.ssim, *pair(*shape), tolerance=(1e-6, 1e-5))
    check(splat_ssim.ssim3d, reference.ssim, *pair(*shape, 3), tolerance=(1e-6, 1e-5))


def test_empty_batch():
    empty = torch.zeros(0, 3, 12, 12)
    assert splat_ssim.ssim(empty, empty, reduction="none").shape == (0, 3, 12, 12)
    assert splat_ssim.ssim(empty, empty, reduction="image").shape == (0,)
    assert splat_ssim.ssim(empty, empty, reduction="sum") == 0
    with pytest.raises(ValueError, match=r"reduction 'mean' needs at least one image, got the shape \(0, 3, 12, 12\)"):
        splat_ssim.ssim(empty, empty)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_strides(reduction):
    img1, img2 = pair(2, 3, 40, 46)
    views = {
        "sliced": lambda img: img[:, :, ::2, 1::2],
        "transposed": lambda img: img.transpose(2, 3),
        "channels_last memory": lambda img: img.to(memory_format=torch.channels_last),
        "expanded": lambda img: img[:1, :1].expand(2, 3, -1, -1),
        "flipped channels": lambda img: img.permute(0, 2, 1, 3),
    }
    for view in views.values():

        def read_in_place(a, b, view=view):
            return splat_ssim.ssim(view(a), view(b), reduction=reduction)

        def copied(a, b, view=view):
            return splat_ssim.ssim(view(a).contiguous(), view(b).contiguous(), reduction=reduction)

        for found, expected in zip(run(read_in_place, img1, img2), run(copied, img1, img2), strict=True):
            # The order of the sums may differ by a few roundings of the gradient's largest value.
            torch.testing.assert_close(found, expected, rtol=0, atol=2e-6 * expected.abs().max().item())
    turned = views["transposed"](img2)
    mixed = splat_ssim.ssim(img1, turned.contiguous().transpose(2, 3), reduction=reduction)
    torch.testing.assert_close(mixed, splat_ssim.ssim(img1, img2, reduction=reduction), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "none", "image"])
@pytest.mark.parametrize("padding", ["same", "valid", "reflect"])
def test_channels_last(reduction, padding):
    options = {"channels_last": True, "reduction": reduction, "padding": padding}
    check(splat_ssim.ssim, reference.ssim, *pair(2, 20, 27, 3), **options)
    check(splat_ssim.ssim3d, reference.ssim, *pair(1, 11, 12, 13, 2), **options)
    mask = pair(2, 20, 27, 1, seed=7)[0]
    check(splat_ssim.ssim, reference.ssim, *pair(2, 20, 27, 3), mask=mask, tolerance=(1e-6, 1e-5), **options)


def test_uint8_means_a_share_of_the_range():
    generator = torch.Generator().manual_seed(0)
    shape, options = (1, 3, 20, 20), {"generator": generator, "dtype": torch.uint8, "device": "cpu"}
    img1, img2 = (torch.randint(0, 256, shape, **options).to(devices.torch_device()) for _ in range(2))
    float1, float2 = (img.float() * (4 / 255) for img in (img1, img2))
    expected, grad, _ = run(splat_ssim.ssim, float1, float2, data_range=4.0)
    assert splat_ssim.ssim(img1, img2, data_range=4.0).item() == pytest.approx(expected.item(), abs=1e-6)
    for first, second in ((float1, img2), (img2, float1)):
        asked = float1.clone().requires_grad_()
        images = [asked if img is float1 else img for img in (first, second)]
        value = splat_ssim.ssim(*images, data_range=4.0)
        assert value.item() == pytest.approx(expected.item(), abs=1e-6)
        torch.testing.assert_close(torch.autograd.grad(value, asked)[0], grad, rtol=1e-4, atol=1e-8)


def test_mixed_float_dtypes_take_the_wider():
    img1, img2 = pair(1, 3, 20, 20)
    expected = splat_ssim.ssim(img1.half().double(), img2.double())
    torch.testing.assert_close(splat_ssim.ssim(img1.half(), img2).double(), expected, rtol=0, atol=1e-6)
    assert splat_ssim.ssim(img1.half(), img2.double()).dtype == torch.float64


def test_gradient_of_the_image_that_asks():
    img1, img2 = pair(1, 3, 20, 20)
    _, grad1, grad2 = run(splat_ssim.ssim, img1, img2)
    for reduction in ("mean", "none"):
        for first, second, expected in ((True, False, grad1), (False, True, grad2)):
            a, b = img1.clone().requires_grad_(first), img2.clone().requires_grad_(second)
            splat_ssim.ssim(a, b, reduction=reduction).mean().backward()
            torch.testing.assert_close((a if first else b).grad, expected, rtol=1e-4, atol=1e-8)
            assert (b if first else a).grad is None


def test_value_needs_no_gradient():
    img1, img2 = pair(1, 3, 20, 20)
    asked = img1.clone().requires_grad_()
    with torch.no_grad():
        quiet = splat_ssim.ssim(asked, img2)
    assert not quiet.requires_grad
    torch.testing.assert_close(quiet, splat_ssim.ssim(asked, img2).detach(), rtol=0, atol=1e-7)
    with torch.inference_mode():
        assert splat_ssim.ssim(img1, img2) == quiet


def test_identical_images_give_exactly_one():
    for shape in ((2, 3, 30, 31), (1, 3, 5, 5)):
        img1, _ = pair(*shape)
        value, grad1, _ = run(splat_ssim.ssim, img1, img1)
        assert value == 1
        # The documented bound is 1e-6 / N. A typical gradient is 1 / N.
        assert grad1.abs().max() < 1e-6 / img1.numel()


def test_autocast_computes_in_float32():
    img1, img2 = pair(1, 3, 24, 24)
    expected = splat_ssim.ssim(img1, img2)
    wide = splat_ssim.ms_ssim(*pair(1, 1, 40, 40), window_size=3)
    with torch.autocast(devices.torch_device().type, dtype=torch.bfloat16):
        assert splat_ssim.ssim(img1, img2) == expected
        assert splat_ssim.ms_ssim(*pair(1, 1, 40, 40), window_size=3) == wide
        assert splat_ssim.ssim(img1.bfloat16(), img2.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("shape", [(2, 3, 37, 34), (1, 1, 17, 18, 19)])
def test_ms_ssim_agrees_with_the_definition(shape):
    options = {"window_size": 3, "weights": (0.3, 0.3, 0.4)}
    images = pair(*shape)
    for reduction, reduce in {
        "mean": lambda x: x.mean(),
        "sum": lambda x: x.sum(),
        "image": lambda x: x.mean(1),
        "none": lambda x: x,
    }.items():
        check(
            lambda a, b, r=reduction: splat_ssim.ms_ssim(a, b, reduction=r, **options),
            lambda a, b, f=reduce: f(reference.ms_ssim(a, b, **options)),
            *images,
            tolerance=(1e-6, 2e-5),
        )
    last = [img.movedim(1, -1).contiguous() for img in images]
    expected = splat_ssim.ms_ssim(*images, **options)
    torch.testing.assert_close(splat_ssim.ms_ssim(*last, channels_last=True, **options), expected)


def test_ms_ssim_with_its_defaults():
    def definition(a, b):
        return reference.ms_ssim(a, b).mean()

    check(splat_ssim.ms_ssim, definition, *pair(1, 1, 163, 161), tolerance=(1e-6, 2e-5))


def test_ms_ssim_is_zero_without_nan():
    img1, _ = pair(1, 1, 33, 33)
    value, grad1, _ = run(splat_ssim.ms_ssim, img1, 1 - img1, window_size=3, weights=(0.5, 0.5))
    assert value == 0
    assert (grad1 == 0).all()


@pytest.mark.parametrize("reduction", ["mean", "none", "image"])
def test_gradcheck(reduction):
    img1, img2 = (img.requires_grad_() for img in pair(2, 1, 7, 6, dtype=torch.float64))
    mask = pair(2, 1, 7, 6, seed=3, dtype=torch.float64)[0]
    for padding in ("same", "valid", "reflect", "replicate"):
        for options in ({}, {"mask": mask}, {"mask": mask, "mask_mode": "zero"}):

            def function(a, b, options=options, padding=padding):
                return splat_ssim.ssim(a, b, window_size=5, padding=padding, reduction=reduction, **options)

            assert torch.autograd.gradcheck(function, (img1, img2), fast_mode=True)


@pytest.mark.parametrize("shape", [(1, 2, 12, 14), (1, 1, 6, 7, 8)])
@pytest.mark.parametrize("reduction", ["mean", "none", "image"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_second_derivative_is_right_or_refused(shape, reduction, dtype):
    function = splat_ssim.ssim if len(shape) == 4 else splat_ssim.ssim3d
    img1, img2 = pair(*shape, dtype=dtype)
    img1.requires_grad_()

    def gradient(f, a, b):
        return torch.autograd.grad(f(a, b, reduction=reduction).sum(), a, create_graph=True)[0]

    try:
        (found,) = torch.autograd.grad(gradient(function, img1, img2).square().sum(), img1)
    except NotImplementedError as error:
        assert "differentiable once" in str(error)
    else:
        (expected,) = torch.autograd.grad(gradient(reference.ssim, img1, img2).square().sum(), img1)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("reduction", ["mean", "none", "image", "sum"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_vmap_over_the_batch(reduction, dtype):
    img1, img2 = pair(4, 2, 3, 15, 16, dtype=dtype)

    def function(a, b):
        return splat_ssim.ssim(a, b, reduction=reduction)

    found = torch.func.vmap(function)(img1, img2)
    expected = torch.stack([function(a, b) for a, b in zip(img1, img2, strict=True)])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=2e-6)
    shared = torch.func.vmap(function, in_dims=(0, None))(img1, img2[0])
    torch.testing.assert_close(shared, torch.stack([function(a, img2[0]) for a in img1]), rtol=1e-6, atol=2e-6)


def test_vmap_of_gradients():
    img1, img2 = pair(4, 1, 3, 15, 16)
    found = torch.func.vmap(torch.func.grad(splat_ssim.ssim))(img1, img2)
    for grad, a, b in zip(found, img1, img2, strict=True):
        expected = run(splat_ssim.ssim, a, b)[1]
        torch.testing.assert_close(grad, expected, rtol=0, atol=2e-6 * expected.abs().max().item())


def test_operators_are_registered_correctly():
    img1, img2 = (img.requires_grad_() for img in pair(2, 3, 14, 13))
    options = SSIMOptions()
    operators = torch.ops.splat_ssim
    upstream = torch.rand(2, 3, 14, 13)
    for operator, arguments in (
        (operators.ssim_map, (img1, img2, *options)),
        (operators.ssim_channel_means, (img1, img2, *options)),
        (operators.photometric, (img1, img2, None, None, 0.8, 0.2, 0.0, True, *options, True, True)),
        (operators.ssim_map_backward, (upstream, img1.detach(), img2.detach(), *options, True, False)),
        (operators.ms_ssim, (img1, img2, [0.4, 0.6], *options._replace(window_size=5, padding="valid"))),
    ):
        torch.library.opcheck(operator, arguments)


@pytest.mark.parametrize("function", [splat_ssim.ssim, splat_ssim.ssim3d])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compiles_to_one_graph(function, reduction):
    shape = (1, 3, 20, 24) if function is splat_ssim.ssim else (1, 1, 12, 13, 14)
    img1, img2 = pair(*shape)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    found = run(compiled, img1, img2, reduction=reduction)
    expected = run(function, img1, img2, reduction=reduction)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_modules_keep_their_options():
    img1, img2 = pair(1, 3, 20, 20)
    module = splat_ssim.SSIM(padding="valid", window_size=7, sigma=1.1, reduction="image")
    expected = splat_ssim.ssim(img1, img2, padding="valid", window_size=7, sigma=1.1, reduction="image")
    assert module(img1, img2) == expected
    assert "window_size=7" in repr(module)
    mask = torch.rand(1, 1, 20, 20)
    assert splat_ssim.SSIM()(img1, img2, mask=mask) == splat_ssim.ssim(img1, img2, mask=mask)
    volumes = pair(1, 1, 8, 9, 10)
    assert splat_ssim.SSIM3D()(*volumes) == splat_ssim.ssim3d(*volumes)
    assert splat_ssim.MSSSIM(window_size=3, weights=[1, 2])(img1, img2) == splat_ssim.ms_ssim(
        img1, img2, window_size=3, weights=(1, 2)
    )
    for wrong in ({"padding": "zero"}, {"window_size": 4}, {"reduction": "total"}, {"mask_mode": "x"}, {"sigma": 0}):
        with pytest.raises(ValueError, match="must be"):
            splat_ssim.SSIM(**wrong)


IMAGE = torch.zeros(1, 3, 16, 16)


@pytest.mark.parametrize(
    ("images", "options", "error", "text"),
    [
        ((IMAGE.numpy(), IMAGE), {}, TypeError, "img1 must be a torch.Tensor, got ndarray"),
        ((IMAGE, IMAGE.long()), {}, TypeError, "img2 must be of dtype .* got int64"),
        ((IMAGE, IMAGE.to(torch.complex64)), {}, TypeError, "got complex64"),
        ((IMAGE[0], IMAGE[0]), {}, ValueError, r"img1 must have the shape \(B, C, H, W\), got \(3, 16, 16\)"),
        ((IMAGE, IMAGE[..., 1:]), {}, ValueError, r"the same shape, got \(1, 3, 16, 16\) and \(1, 3, 16, 15\)"),
        ((IMAGE, IMAGE.to("meta")), {}, ValueError, "same device, got cpu and meta"),
        ((IMAGE[..., :0], IMAGE[..., :0]), {}, ValueError, "no empty axis"),
        ((IMAGE, IMAGE), {"window_size": 4}, ValueError, "window_size must be odd, from 3 to 33, got 4"),
        ((IMAGE, IMAGE), {"window_size": 35}, ValueError, "got 35"),
        ((IMAGE, IMAGE), {"window_size": 11.0}, TypeError, "window_size must be an int, got float"),
        ((IMAGE, IMAGE), {"sigma": 0.0}, ValueError, "sigma must be a finite number above 0, got 0.0"),
        ((IMAGE, IMAGE), {"data_range": -1}, ValueError, "data_range must be"),
        ((IMAGE, IMAGE), {"data_range": float("nan")}, ValueError, "data_range must be .* got nan"),
        ((IMAGE, IMAGE), {"data_range": IMAGE}, TypeError, "data_range must be a number, got Tensor"),
        ((IMAGE, IMAGE), {"k2": float("inf")}, ValueError, "k2 must be"),
        ((IMAGE, IMAGE), {"padding": "circular"}, ValueError, "padding must be one of 'same', .* got 'circular'"),
        ((IMAGE, IMAGE), {"reduction": "max"}, ValueError, "reduction must be one of"),
        ((IMAGE, IMAGE), {"mask_mode": "soft"}, ValueError, "mask_mode must be one of"),
        ((IMAGE, IMAGE), {"mask": IMAGE[:, :2]}, ValueError, r"mask must have the shape \(1, 1, 16, 16\) or"),
        ((IMAGE, IMAGE), {"mask": IMAGE.int()}, TypeError, "mask must be bool or floating point, got int32"),
        ((IMAGE, IMAGE), {"mask": IMAGE.to("meta")}, ValueError, "mask must be on the device"),
        ((IMAGE, IMAGE), {"mask": torch.ones(1, 1, 16, 16, requires_grad=True)}, ValueError, "mask must not require"),
        ((IMAGE, IMAGE), {"mask": [1]}, TypeError, "mask must be a torch.Tensor, got list"),
        (
            (IMAGE[..., :10], IMAGE[..., :10]),
            {"padding": "valid"},
            ValueError,
            r"at least window_size=11, got \(16, 10\)",
        ),
        ((IMAGE[..., :5], IMAGE[..., :5]), {"padding": "reflect"}, ValueError, r"// 2 = 5, got \(16, 5\)"),
        ((IMAGE[..., :5], IMAGE[..., :5]), {"padding": "replicate"}, ValueError, "larger than"),
    ],
)
def test_refusals(images, options, error, text):
    with pytest.raises(error, match=text):
        splat_ssim.ssim(*images, **options)


def test_refusals_of_ms_ssim():
    with pytest.raises(ValueError, match=r"larger than 160, got \(160, 170\)"):
        splat_ssim.ms_ssim(torch.zeros(1, 1, 160, 170), torch.zeros(1, 1, 160, 170))
    with pytest.raises(ValueError, match="at least one exponent"):
        splat_ssim.ms_ssim(IMAGE, IMAGE, weights=())
    with pytest.raises(ValueError, match="weights must be"):
        splat_ssim.ms_ssim(IMAGE, IMAGE, window_size=3, weights=(0.5, -1))
    with pytest.raises(ValueError, match=r"\(B, C, D, H, W\), got"):
        splat_ssim.ssim3d(IMAGE, IMAGE)


@pytest.mark.parametrize(
    "wrap", [np.float32, np.float64, np.array, torch.tensor], ids=["float32", "float64", "array", "tensor"]
)
def test_options_may_be_scalars_of_numpy_and_torch(wrap):
    img1, img2 = pair(1, 2, 20, 22)
    options = {"sigma": 1.25, "data_range": 2.0, "k1": 0.015625, "k2": 0.03125}
    wrapped = {name: wrap(value) for name, value in options.items()}
    size = np.int64(5) if wrap in (np.float32, np.float64) else wrap(5)
    assert splat_ssim.ssim(img1, img2, window_size=size, **wrapped) == splat_ssim.ssim(
        img1, img2, window_size=5, **options
    )
    assert splat_ssim.SSIM(window_size=size, **wrapped)(img1, img2) == splat_ssim.SSIM(window_size=5, **options)(
        img1, img2
    )
    exponents = wrap([0.5, 0.5]) if wrap in (np.array, torch.tensor) else [wrap(0.5), wrap(0.5)]
    assert splat_ssim.ms_ssim(img1, img2, window_size=size, weights=exponents, **wrapped) == splat_ssim.ms_ssim(
        img1, img2, window_size=5, weights=[0.5, 0.5], **options
    )


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"sigma": np.ones(2)}, TypeError, r"sigma must be a number, got ndarray of shape \(2,\)"),
        ({"sigma": "1.5"}, TypeError, "sigma must be a number, got str"),
        ({"sigma": True}, TypeError, "sigma must be a number, got bool"),
        ({"k1": np.bool_(True)}, TypeError, "k1 must be a number, got bool"),
        ({"window_size": 5.0}, TypeError, "window_size must be an int, got float"),
        ({"window_size": np.float32(5)}, TypeError, "window_size must be an int, got float32"),
        ({"data_range": torch.tensor(1.0, requires_grad=True)}, ValueError, "data_range must be a constant: it is not"),
        ({"data_range": float("nan")}, ValueError, "data_range must be a finite number above 0, got nan"),
    ],
)
def test_options_that_are_no_numbers_are_refused(options, error, text):
    with pytest.raises(error, match=text):
        splat_ssim.ssim(*pair(1, 2, 20, 22), **options)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("function", [splat_ssim.ssim, splat_ssim.ms_ssim])
def test_under_checkpointing(function, reduction):
    """torch.utils.checkpoint refuses a backward that unpacks its saved tensors twice."""
    from torch.utils.checkpoint import checkpoint

    options = {
        "reduction": reduction,
        "window_size": 5,
        **({"weights": (0.4, 0.6)} if function is splat_ssim.ms_ssim else {}),
    }
    grads = []
    for run in (lambda f, *images: f(*images), lambda f, *images: checkpoint(f, *images, use_reentrant=False)):
        leaf = torch.rand(1, 2, 20, 21, generator=torch.Generator().manual_seed(0), device="cpu")
        leaf = leaf.to(devices.torch_device()).requires_grad_()
        run(lambda x, y: function(x * 1.0, y, **options), leaf, torch.full_like(leaf, 0.3)).backward()
        grads.append(leaf.grad)
    assert torch.equal(*grads)
