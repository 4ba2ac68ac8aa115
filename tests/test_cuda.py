"""The operators on a GPU: their results, and what can only be tested there (streams, graphs, devices, memory, size).

`make gpu` sets SPLAT_SSIM_GPU=1: then these tests fail, rather than being skipped, where CUDA is not reached.
"""

import threading

import pytest
import torch

import splat_ssim
from splat_ssim import _maps, reference
from splat_ssim.ct import XrayGeometry, circle, project
from splat_ssim.ops import _cuda_module, dispatch
from splat_ssim.ops import ssim as ops
from splat_ssim.ops.photometric import photometric, photometric_definition
from splat_ssim.options import SSIMOptions
from splat_ssim.volume import VoxelGrid, voxelize
from tests.devices import needs_gpu
from tests.test_voxelize import compare, rotated, sample
from tests.test_xray import GEOMETRIES
from tests.test_xray import compare as compare_xray
from tests.test_xray import sample as sample_xray

pytestmark = [pytest.mark.cuda, needs_gpu]

PADDINGS = ("same", "valid", "reflect", "replicate")
#: float32 accumulation over up to 15³ taps; reciprocals with one rounding error more than the emulation's.
VALUE, MAP, GRADIENT = 3e-6, 1e-5, 1e-5


def images(*shape, dtype=torch.float32, channels_last=False, device="cuda"):
    generator = torch.Generator().manual_seed(0)
    img1 = torch.linspace(0, 9, shape[-1]).sin() * 0.3 + 0.5 + 0.2 * torch.rand(shape, generator=generator)
    img2 = img1 + 0.1 * torch.randn(shape, generator=generator)
    pair = (img1.clamp(0, 1), img2.clamp(0, 1))
    if channels_last:
        pair = tuple(img.movedim(1, -1).contiguous() for img in pair)
    return tuple(img.to(device, dtype) for img in pair)


def exact(img):
    return _maps.as_float(img, torch.float64).detach().requires_grad_()


def keywords(options):
    return options._asdict()


def check(img1, img2, options, weight=None, per_image=False, gradients=(True, True), tolerance=1.0):
    """The photometric operator against the definition in float64."""
    img1, img2 = (
        img.detach().requires_grad_(need and img.is_floating_point())
        for img, need in zip((img1, img2), gradients, strict=True)
    )
    assert dispatch.has_kernel(img1, img2, options)
    terms = {"l1_weight": 0.7, "dssim_weight": 0.4, "weight": weight, "per_image": per_image}
    found = photometric(img1, img2, options, **terms)
    x, y = exact(img1), exact(img2)
    exact_weight = None if weight is None else weight.double()
    expected = photometric_definition(x, y, options, 0.7, 0.4, exact_weight, per_image)
    for value, truth in zip(found, expected, strict=True):
        assert (value - truth).abs().max() < VALUE * tolerance
    if any(img.requires_grad for img in (img1, img2)):
        found[0].sum().backward()
        expected[0].sum().backward()
        for img, truth in ((img1, x.grad), (img2, y.grad)):
            if img.requires_grad:
                assert img.grad.dtype == img.dtype
                assert (img.grad - truth).abs().max() < GRADIENT * tolerance * truth.abs().max()


def test_kernels_are_loaded():
    assert _cuda_module.kernels(torch.cuda.current_device(), 11) is not None


def test_kernels_compiled_by_nvrtc(monkeypatch, tmp_path):
    monkeypatch.setattr(_cuda_module, "embedded_image", lambda: None)
    monkeypatch.setenv("SPLAT_SSIM_CACHE", str(tmp_path))
    monkeypatch.setattr(_cuda_module, "_devices", {})
    monkeypatch.setattr(_cuda_module, "kernels", _cuda_module.load)
    check(*images(1, 3, 50, 70), SSIMOptions())
    assert len(list(tmp_path.iterdir())) == 2  # two units: the window's, and the one that every window needs


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("window_size", [3, 5, 7, 9, 11, 13, 15])
@pytest.mark.parametrize("gradients", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("shape", [(2, 3, 65, 301), (1, 2, 33, 40, 50)])
def test_numbers(padding, window_size, gradients, shape):
    options = SSIMOptions(window_size, padding=padding)
    check(*images(*shape), options, gradients=gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("target", [None, torch.uint8])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 65, 301), (2, 3, 16, 20, 30)])
def test_dtypes_and_layouts(dtype, target, channels_last, shape):
    img1, img2 = images(*shape, dtype=dtype, channels_last=channels_last)
    if target:
        img2 = (img2.float() * 255).to(torch.uint8)
    options = SSIMOptions(channels_last=channels_last)
    rounding = {torch.float32: 1.0, torch.float16: 2**-10 / GRADIENT, torch.bfloat16: 2**-7 / GRADIENT}[dtype]
    for gradients in ((True, False), (True, True)):
        check(img1, img2, options, per_image=True, gradients=gradients, tolerance=rounding)


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (3, 1, 5, 7), (1, 3, 2160, 3840), (1, 1, 1, 1, 1), (1, 1, 100, 90, 80)]
)
def test_tiny_and_large(shape):
    check(*images(*shape), SSIMOptions(), gradients=(True, False))


def test_a_batch_beyond_65535():
    check(*images(70_000, 1, 2, 3), SSIMOptions(), per_image=True)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 65, 301), (2, 1, 16, 20, 30)])
def test_weights(padding, per_image, shape):
    weight = torch.rand(shape[0], 1, *shape[2:], device="cuda")
    weight[0] = 0
    for gradients in ((True, False), (False, True), (True, True)):
        options = SSIMOptions(padding=padding)
        check(*images(*shape), options, weight, per_image, gradients)


@pytest.mark.parametrize("window_size", [7, 11])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 65, 301), (2, 3, 16, 20, 30)])
def test_weights_in_any_layout(window_size, channels_last, shape):
    """Tests the kernels for one gradient, for plain and for strided tensors."""
    img1, img2 = images(*shape, channels_last=channels_last)
    weight = torch.rand(img1[..., :1].shape if channels_last else img1[:, :1].shape, device="cuda")
    options = SSIMOptions(window_size, channels_last=channels_last)
    check(img1, img2, options, weight, gradients=(True, False))


@pytest.mark.parametrize("window_size", [3, 11, 13])
@pytest.mark.parametrize("shape", [(2, 3, 65, 301), (1, 2, 16, 20, 30)])
def test_eps(window_size, shape):
    for gradients in ((False, False), (True, False), (True, True)):
        check(*images(*shape), SSIMOptions(window_size, eps=1e-3), gradients=gradients)


@pytest.mark.parametrize("window_size", [3, 7, 11, 13])
@pytest.mark.parametrize("shape", [(1, 1, 65, 301), (1, 1, 33, 40, 50)])
def test_what_is_not_finite_stays_where_it_is(window_size, shape):
    img1, img2 = images(*shape)
    img1[(..., *(20,) * (len(shape) - 2))] = float("nan")
    options, radius = SSIMOptions(window_size), window_size // 2
    spoilt, reached = torch.zeros(2, *shape, dtype=torch.bool, device="cuda")
    spoilt[(..., *(slice(20 - radius, 21 + radius),) * (len(shape) - 2))] = True
    reached[(..., *(slice(20 - 2 * radius, 21 + 2 * radius),) * (len(shape) - 2))] = True
    for gradients in ((True, False), (True, True)):
        x, y = (img.clone().requires_grad_(need) for img, need in zip((img1, img2), gradients, strict=True))
        map_ = ops.ssim_map(x, y, options)
        assert torch.equal(~map_.isfinite(), spoilt)
        map_.sum().backward()
        assert all(img.grad is None or torch.equal(~img.grad.isfinite(), reached) for img in (x, y))


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("shape", [(2, 3, 65, 301), (1, 2, 16, 20, 30)])
def test_map_and_channel_means(padding, shape):
    img1, img2 = (img.requires_grad_() for img in images(*shape))
    options = SSIMOptions(padding=padding)
    x, y = exact(img1), exact(img2)
    for name, bound in (("ssim_map", MAP), ("ssim_channel_means", VALUE)):
        found = getattr(ops, name)(img1, img2, options)
        expected = getattr(reference, name)(x, y, **keywords(options))
        assert (found - expected).abs().max() < bound
        upstream = torch.randn_like(found)
        # One gradient and both gradients have different kernels, except for channel means.
        for of in ((0,), (1,), (0, 1)):
            grads = torch.autograd.grad(found, [(img1, img2)[i] for i in of], upstream, retain_graph=True)
            truths = torch.autograd.grad(expected, [(x, y)[i] for i in of], upstream.double(), retain_graph=True)
            for grad, truth in zip(grads, truths, strict=True):
                assert (grad - truth).abs().max() < 2 * GRADIENT * truth.abs().max()


def test_ssim_never_exceeds_1_and_flat_images_are_accurate():
    flat = 0.9 + 1e-3 * torch.randn(1, 3, 300, 300, device="cuda")
    close = flat + 1e-5 * torch.randn_like(flat)
    assert splat_ssim.ssim(flat, flat, reduction="none").max() <= 1
    assert splat_ssim.ssim(flat, close, reduction="none").max() <= 1
    check(flat, close, SSIMOptions(), gradients=(True, False))
    check(1000 + flat, 1000 + close, SSIMOptions(), gradients=(True, False))


def loss_and_gradient(img1, img2):
    img1 = img1.detach().requires_grad_()
    loss = photometric(img1, img2, SSIMOptions(), l1_weight=0.8, dssim_weight=0.2)[0]
    return loss.detach(), torch.autograd.grad(loss, img1)[0]


@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_upstream_value_scales_the_gradient(per_image, channels_last):
    img1, img2 = images(3, 2, 200, 300, channels_last=channels_last)
    img1.requires_grad_()
    terms = {"l1_weight": 0.7, "dssim_weight": 0.4, "per_image": per_image}
    upstreams = [torch.ones(3), torch.tensor([0.5, 1.0, -3.0])] if per_image else [torch.tensor(1.0), torch.tensor(0.3)]
    found = []
    for upstream in upstreams:
        loss = photometric(img1, img2, SSIMOptions(channels_last=channels_last), **terms)[0]
        found += torch.autograd.grad(loss, img1, upstream.cuda())
    ratio = upstreams[1].view(3, 1, 1, 1) if per_image else upstreams[1]
    assert torch.equal(found[1], found[0] * ratio.cuda())


def test_runs_repeat_bit_by_bit():
    img1, img2 = images(2, 3, 500, 700)
    first = loss_and_gradient(img1, img2)
    assert all(torch.equal(a, b) for _ in range(5) for a, b in zip(first, loss_and_gradient(img1, img2), strict=True))


def test_nothing_synchronises():
    img1, img2 = images(1, 3, 200, 300)
    loss_and_gradient(img1, img2)
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss_and_gradient(img1, img2)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_current_stream_is_used():
    img1, img2 = images(1, 3, 1080, 1920)
    expected = loss_and_gradient(img1, img2)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        late = torch.zeros_like(img1)
        torch.cuda._sleep(50_000_000)  # a launch on another stream would read zeros
        late.copy_(img1)
        found = loss_and_gradient(late, img2)
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_graphs_capture_and_replay():
    img1, img2 = images(1, 3, 300, 400)
    static = torch.zeros_like(img1)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        loss_and_gradient(static, img2)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = loss_and_gradient(static, img2)
    static.copy_(img1)
    graph.replay()
    expected = loss_and_gradient(img1, img2)
    assert all(torch.equal(a, b) for a, b in zip(expected, captured, strict=True))


def test_a_fresh_thread_has_the_context():
    img1, img2 = images(1, 3, 100, 100)
    expected, found = loss_and_gradient(img1, img2), []
    thread = threading.Thread(target=lambda: found.append(loss_and_gradient(img1, img2)))
    thread.start()
    thread.join()
    assert all(torch.equal(a, b) for a, b in zip(expected, found[0], strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
def test_the_device_of_the_images_is_used():
    img1, img2 = images(1, 3, 100, 130)
    expected = loss_and_gradient(img1, img2)
    found = loss_and_gradient(img1.to("cuda:1"), img2.to("cuda:1"))  # while device 0 is current
    assert torch.cuda.current_device() == 0
    assert all(b.device.index == 1 and torch.equal(a, b.cpu().cuda()) for a, b in zip(expected, found, strict=True))


def test_backward_keeps_4_bytes_an_element():
    img1, img2 = images(1, 3, 1080, 1920)
    img1.requires_grad_()
    before = torch.cuda.memory_stats()["requested_bytes.all.current"]
    loss = photometric(img1, img2, SSIMOptions(), l1_weight=0.8, dssim_weight=0.2)[0]
    assert torch.cuda.memory_stats()["requested_bytes.all.current"] - before <= 4 * img1.numel() + 8192
    loss.backward()


def test_operators_pass_opcheck():
    img1, img2 = images(1, 2, 20, 30)
    arguments = (img1.requires_grad_(), img2, None, None, 0.8, 0.2, 0.0, False, *SSIMOptions(), True, False)
    torch.library.opcheck(torch.ops.splat_ssim.photometric, arguments)
    torch.library.opcheck(torch.ops.splat_ssim.ssim_map, (img1, img2, *SSIMOptions()))
    torch.library.opcheck(torch.ops.splat_ssim.ssim_channel_means, (img1, img2, *SSIMOptions()))


@pytest.mark.slow
def test_more_than_2_31_elements():
    side = 46_350  # side² > 2³¹
    needed = 14 * side * side
    if torch.cuda.get_device_properties(0).total_memory < needed * 1.2:
        pytest.skip(f"needs {needed / 2**30:.0f} GiB of device memory")
    img1 = torch.empty(1, 1, side, side, device="cuda", dtype=torch.float16).uniform_(generator=None)
    img2 = img1 + 0.05
    img1.requires_grad_()
    loss, l1, _ = photometric(img1, img2, SSIMOptions(), l1_weight=1e6, dssim_weight=1e6)
    loss.backward()
    # The far corner, which 32-bit offsets would miss, has the same values as that corner on its own.
    corner = img1.detach()[..., -200:, -300:].clone().requires_grad_()
    scale = corner.numel() / img1.numel()
    weights = {"l1_weight": 1e6 * scale, "dssim_weight": 1e6 * scale}
    photometric(corner, img2[..., -200:, -300:], SSIMOptions(), **weights)[0].backward()
    whole, alone = img1.grad[..., -180:, -280:].float(), corner.grad[..., -180:, -280:].float()
    assert (whole - alone).abs().max() <= 2e-3 * alone.abs().max()
    assert abs(l1.item() - 0.05) < 1e-3


def on_gpu(tensors):
    return [t.detach().cuda().requires_grad_() for t in tensors]


def run_voxelizer(tensors, grid):
    return voxelize(*tensors[:4], grid, features=tensors[4] if len(tensors) > 4 else None)


@pytest.mark.parametrize("features", [0, 3, 6])
@pytest.mark.parametrize("smallest,largest", [(0.4, 6.0), (1.0, 2.0), (0.4, 25.0)])
def test_voxelizer_numbers(features, smallest, largest):
    def run(tensors, grid):
        # The definition runs on the CPU. The kernels get copies on the device.
        return run_voxelizer([t.cuda() for t in tensors], grid).cpu()

    for grid in (VoxelGrid.regular((30, 26, 40)), rotated((20, 30, 25)), VoxelGrid.regular((1, 1, 1))):
        errors = compare(sample(grid, 40, smallest=smallest, largest=largest, features=features), grid, run)
        assert max(errors.values()) < 3e-5, errors


def test_voxelizer_repeats_bit_by_bit_and_agrees_with_the_cpu():
    grid = VoxelGrid.regular((128, 128, 128))
    tensors = sample(grid, 50_000, smallest=1.0, largest=2.0)
    expected = run_voxelizer(tensors, grid)
    upstream = torch.randn(expected.shape)
    wanted = torch.autograd.grad(expected, tensors, upstream)
    results = []
    for _ in range(3):
        device = on_gpu(tensors)
        volume = run_voxelizer(device, grid)
        results.append([volume.detach(), *torch.autograd.grad(volume, device, upstream.cuda())])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    # Voxels within rounding of the cut-off, where g jumps by 0.011, may fall on either side.
    assert (results[0][0].cpu() - expected).abs().gt(1e-4).float().mean() < 1e-4
    for found, truth in zip(results[0][1:], wanted, strict=True):
        assert (found.cpu() - truth).norm() < 1e-3 * truth.norm()


def test_a_crop_of_the_voxelizer_has_the_bits_of_the_whole():
    grid = VoxelGrid.regular((40, 33, 50), spacing=(1.0, 2.0, 0.7), origin=(3, 4, 5))
    tensors = on_gpu(sample(grid, 300, smallest=0.4, largest=6.0, features=1, seed=2))
    whole = run_voxelizer(tensors, grid)
    part = run_voxelizer(tensors, grid.crop((3, 7, 11), (20, 21, 9)))
    assert torch.equal(whole[:, 3:23, 7:28, 11:20], part)


def test_voxelizer_passes_opcheck():
    from splat_ssim.ops import voxelize as voxel_ops

    grid = VoxelGrid.regular((6, 7, 18))
    means, quats, scales, densities = on_gpu(sample(grid, 6))
    affine = [v for row in grid.affine for v in row]
    values = densities.detach()[:, None].requires_grad_()
    torch.library.opcheck(voxel_ops.voxelize, (means, quats, scales, values, affine, [0, 0, 0, *grid.shape]))


def run_projector(tensors, geometry):
    return project(*tensors[:4], geometry, features=tensors[4] if len(tensors) > 4 else None)


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("features", [0, 3, 6])
def test_projector_numbers(name, features):
    def run(tensors, geometry):
        # The definition runs on the CPU. The kernels get copies on the device.
        on_device = tensors[0].dtype == torch.float32
        return run_projector([t.cuda() for t in tensors] if on_device else tensors, geometry).cpu()

    for smallest, largest in ((0.5, 3.0), (0.2, 6.0)):
        errors = compare_xray(
            sample_xray(40, smallest=smallest, largest=largest, features=features), GEOMETRIES[name], run
        )
        # Reciprocals and roots with one rounding error more than the emulation's.
        assert errors.pop("value") < 4e-6
        assert max(errors.values()) < 6e-5, errors


def test_projector_repeats_bit_by_bit_and_agrees_with_the_cpu():
    geometry = XrayGeometry("cone", (190, 200), (1, 1), circle(11, "cone"), source_object=300, source_detector=450)
    tensors = sample_xray(50_000, smallest=0.8, largest=1.6, spread=60.0)
    expected = run_projector(tensors, geometry)
    upstream = torch.randn(expected.shape)
    wanted = torch.autograd.grad(expected, tensors, upstream)
    results = []
    for _ in range(3):
        device = on_gpu(tensors)
        pictures = run_projector(device, geometry)
        results.append([pictures.detach(), *torch.autograd.grad(pictures, device, upstream.cuda())])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    assert (results[0][0].cpu() - expected).abs().max() < 1e-5 * expected.abs().max()
    # Gradients have a pole at the rims of the shadows, so the tolerance is on the Euclidean norm.
    for found, truth in zip(results[0][1:], wanted, strict=True):
        assert (found.cpu() - truth).norm() < 1e-2 * truth.norm()


def test_projector_passes_opcheck():
    from splat_ssim.ops import xray as xray_ops

    geometry = GEOMETRIES["cone"]
    means, quats, scales, densities = on_gpu(sample_xray(6))
    values = densities.detach()[:, None].requires_grad_()
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    arguments = (means, quats, scales, values, geometry.frames(), list(geometry.detector), True)
    torch.library.opcheck(xray_ops.xray, arguments, test_utils=checks)
    with pytest.raises(ValueError, match="quats must be on cuda:0, where means is, got cpu"):
        xray_ops.xray(means, quats.cpu(), *arguments[2:])
