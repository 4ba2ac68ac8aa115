"""The drop-ins for torchmetrics, MONAI, piq, gsplat and fussim under torch.compile, torch.func and torch.jit.trace."""

import pytest
import torch

from splat_ssim.compat import fused_ssim, fussim, gsplat, kornia, monai, piq, pytorch_msssim
from splat_ssim.compat import torchmetrics as metrics
from tests.compare import random_pair

pytestmark = [
    pytest.mark.usefixtures("threads"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]


def single(**options):
    return lambda a, b: metrics.structural_similarity_index_measure(a, b, **options)


def multiscale(a, b):
    return metrics.multiscale_structural_similarity_index_measure(
        a, b, data_range=1.0, betas=(0.5, 0.5), kernel_size=5, sigma=0.8
    )


CALLS = {
    "torchmetrics": single(data_range=1.0),
    "torchmetrics without a range": single(),
    "torchmetrics by axis": single(data_range=1.0, sigma=(1.0, 0.5)),
    "torchmetrics uniform": single(data_range=1.0, gaussian_kernel=False),
    "torchmetrics multiscale": multiscale,
    "MONAI": monai.SSIMLoss(2),
    "MONAI multiscale": lambda a, b: monai.compute_ms_ssim(a, b, 2, kernel_size=5, weights=(0.5, 0.5)).sum(),
    "gsplat": gsplat.ssim_loss,
    "fussim": lambda a, b: fussim.ssim(a, b, data_range=1.0),
}
#: Drop-ins that are exported, piq's excepted, which reads its images as the original does.
EXPORTED = {
    **CALLS,
    "MONAI maps": lambda a, b: monai.compute_ssim_and_cs(a, b, 2, (5, 5), (0.8, 0.8))[0],
    "kornia": kornia.SSIMLoss(5),
    "kornia multiscale": kornia.MS_SSIMLoss((0.5, 1.0)),
    "pytorch_msssim": pytorch_msssim.SSIM(1.0, channel=2),
    "pytorch_msssim multiscale": pytorch_msssim.MS_SSIM(1.0, win_size=3, channel=2, weights=[0.5, 0.5]),
    "fused_ssim": fused_ssim.fused_ssim,
}
#: Drop-ins that read numbers from the images to check them.
READING = {
    "piq": piq.SSIMLoss(),
    "piq multiscale": piq.MultiScaleSSIMLoss(5, scale_weights=torch.ones(2)),
}


@pytest.fixture
def pair():
    return random_pair(torch.Generator().manual_seed(0), (1, 2, 40, 44), torch.float32)


def value_and_gradients(function, pair):
    inputs = [image.clone().requires_grad_() for image in pair]
    value = function(*inputs)
    return value.detach(), *torch.autograd.grad(value, inputs)


@pytest.mark.parametrize("name", [*CALLS, *READING])
def test_compile(name, pair):
    function = {**CALLS, **READING}[name]
    torch._dynamo.reset()
    compiled = torch.compile(function, backend="aot_eager", fullgraph=name in CALLS)
    found, expected = value_and_gradients(compiled, pair), value_and_gradients(function, pair)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


class Module(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, img1, img2):
        return self.function(img1, img2)


@pytest.mark.parametrize("name", EXPORTED)
def test_export(name, pair):
    function = EXPORTED[name]
    program = torch.export.export(Module(function), tuple(pair), strict=False)
    for images in (pair, pair[::-1]):
        torch.testing.assert_close(program.module()(*images), function(*images), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["torchmetrics", "torchmetrics uniform", "gsplat"])
def test_compile_with_symbols(name, pair):
    torch._dynamo.reset()
    compiled = torch.compile(CALLS[name], backend="aot_eager", fullgraph=True, dynamic=True)
    found, expected = value_and_gradients(compiled, pair), value_and_gradients(CALLS[name], pair)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [*CALLS, *READING])
def test_forward_derivative(name, pair):
    function = {**CALLS, **READING}[name]
    tangent = torch.cos(torch.arange(pair[0].numel(), dtype=torch.float32)).reshape(pair[0].shape)
    value, derivative = torch.func.jvp(lambda image: function(image, pair[1]), (pair[0],), (tangent,))
    expected, gradient, _ = value_and_gradients(function, pair)
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(derivative, (gradient * tangent).sum(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", CALLS)
def test_second_derivative(name, pair):
    """The kernels refuse it and name what does it: float64 (MONAI's is float32 throughout) or torch.func."""
    function = CALLS[name]

    def penalty(image, target):
        (gradient,) = torch.autograd.grad(function(image, target), image, create_graph=True)
        return torch.autograd.grad((gradient**2).sum(), image)[0]

    with pytest.raises(NotImplementedError, match=r"pass float64 images or use torch\.func"):
        penalty(pair[0].clone().requires_grad_(), pair[1])
    found = torch.func.grad(lambda image: (torch.func.grad(lambda img: function(img, pair[1]))(image) ** 2).sum())(
        pair[0]
    )
    assert found.isfinite().all()
    if not name.startswith("MONAI"):
        expected = penalty(pair[0].double().requires_grad_(), pair[1].double())
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-3 * expected.abs().max().item())


@pytest.mark.parametrize("name", CALLS)
def test_vmap(name, pair):
    function = CALLS[name]
    found = torch.func.vmap(lambda image: function(image, pair[1]))(torch.stack([pair[0], pair[1]]))
    expected = torch.stack([function(*pair), function(pair[1], pair[1])])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", [*CALLS, *READING])
def test_trace(name, pair):
    function = {**CALLS, **READING}[name]
    traced = torch.jit.trace(function, tuple(pair))
    for images in (pair, pair[::-1]):
        torch.testing.assert_close(traced(*images), function(*images), rtol=0, atol=1e-6)
