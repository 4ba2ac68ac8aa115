"""The host side of the CUDA operators without a GPU: a fake driver, and the operators on the emulation."""

import ctypes
import warnings

import pytest
import torch

from splat_ssim.ops import _cuda_kernels, _cuda_module, compiled, dispatch, layout, photometric_cuda, ssim_cuda
from splat_ssim.ops import _cuda_launch as launch
from splat_ssim.ops.photometric import photometric
from splat_ssim.options import SSIMOptions
from tests.test_cuda_emulation import images, kernels, library  # noqa: F401


class FakeDriver:
    """Records its calls. It returns made-up handles, and callbacks where the launcher needs addresses."""

    def __init__(self, refuse=()):
        self.calls, self.launches, self.contexts, self.refuse = [], [], [], list(refuse)
        self.current = self.result = 0
        self.capture_mode, self.capture_modes = 1, []

        def launch_kernel(function, *rest):
            self.launches.append((function, *rest[:8]))
            return self.result

        def get_current(context):
            context[0] = self.current or None
            return 0

        def set_current(context):
            self.contexts.append(context)
            self.current = context or 0
            return 0

        pointer, unsigned = ctypes.c_void_p, ctypes.c_uint
        self.callbacks = {
            "cuLaunchKernel": ctypes.CFUNCTYPE(
                ctypes.c_int, pointer, *([unsigned] * 7), pointer, ctypes.POINTER(pointer), pointer
            )(launch_kernel),
            "cuCtxGetCurrent": ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(pointer))(get_current),
            "cuCtxSetCurrent": ctypes.CFUNCTYPE(ctypes.c_int, pointer)(set_current),
        }

    def call(self, name, *arguments):
        self.calls.append(name)
        if name == "cuModuleLoadData" and self.refuse:
            raise RuntimeError(self.refuse.pop())
        if name == "cuThreadExchangeStreamCaptureMode":
            mode = arguments[0]._obj
            self.capture_modes.append(mode.value)
            self.capture_mode, mode.value = mode.value, self.capture_mode
        if name == "cuDevicePrimaryCtxRetain":
            arguments[0]._obj.value = 77
        if name == "cuModuleGetFunction":
            arguments[0]._obj.value = 1000 + self.calls.count(name)

    def address(self, name):
        return ctypes.cast(self.callbacks[name], ctypes.c_void_p).value


@pytest.fixture
def driver(monkeypatch):
    fake = FakeDriver()
    properties = type("Properties", (), {"major": 9, "minor": 0, "multi_processor_count": 132})
    monkeypatch.setattr(_cuda_module, "_driver", lambda: fake)
    for name in ("_devices", "_ready", "_paused", "_told"):
        monkeypatch.setattr(_cuda_module, name, type(getattr(_cuda_module, name))())
    monkeypatch.setattr(_cuda_module, "embedded_image", lambda: 4096)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    return fake


def test_kernels_start_through_the_driver(driver):
    found = _cuda_module.load(0, 11)
    names = _cuda_kernels.kernel_names(compiled.library())
    assert driver.calls.count("cuModuleGetFunction") == len(names)
    assert found.multiprocessors == 132
    img1, img2 = images(1, 3, 1080, 1920)
    driver.current = 55  # another context is current on this thread
    launch.photometric(found, 99, img1, img2, None, 0.8, 0.2, False, SSIMOptions(), (torch.empty_like(img1), None))
    ((fused, grid, *rest),) = driver.launches  # its last block computes the means
    assert fused == 1001 + names.index("splat_fused2d")
    # 8 strips of 246 columns times 3 channels. 11 segments fill the 2 places of 132 multiprocessors in one wave.
    assert grid == 8 * 3 * 11
    assert rest == [1, 1, 256, 1, 1, 0, 99]
    assert driver.contexts == [77, 55]


def test_the_own_context_stays_current(driver):
    found = _cuda_module.load(0, 11)
    driver.current = 77
    img1, img2 = images(1, 1, 20, 30)
    launch.photometric(found, 0, img1, img2, None, 0.8, 0.2, False, SSIMOptions(), (None, None))
    assert driver.contexts == []


def test_a_refused_image_is_compiled_unit_by_unit_instead(driver, monkeypatch):
    asked = []
    driver.refuse = ["no kernel image is available"]
    monkeypatch.setattr(_cuda_module._nvrtc, "cached_kernels", lambda *a: asked.append(a) or b"cubin")
    names, units = _cuda_kernels.kernel_names(compiled.library()), _cuda_kernels.kernel_units(compiled.library())
    for unit, expected in ((11, {_cuda_kernels.SHARED, 11}), (7, {_cuda_kernels.SHARED, 11, 7})):
        found = _cuda_module.load(0, unit)
        assert asked == [(_cuda_module.source(), "sm_90", u) for u in (_cuda_kernels.SHARED, 11, 7) if u in expected]
        table = (ctypes.c_void_p * (4 + len(names))).from_address(found.module)[4:]
        assert {u for u, function in zip(units, table, strict=True) if function} == expected
        assert all(function or u not in expected for u, function in zip(units, table, strict=True))
    # The compiled image is tried only once.
    assert driver.calls.count("cuModuleLoadData") == 4


def test_no_kernels_is_a_warning_with_the_cause(driver, monkeypatch):
    def no_compiler(*arguments):
        raise RuntimeError("no NVRTC found")

    driver.refuse = ["refused"]
    now = [100.0]
    monkeypatch.setattr(_cuda_module._nvrtc, "cached_kernels", no_compiler)
    monkeypatch.setattr(_cuda_module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Card")
    with pytest.warns(RuntimeWarning, match="no CUDA kernels for Card.*no NVRTC found"):
        assert _cuda_module.kernels(0, 11) is None
    # Loading is not retried at every call, but it is retried: the cause may have been a temporary lack of memory.
    monkeypatch.setattr(_cuda_module._nvrtc, "cached_kernels", lambda *arguments: b"cubin")
    now[0] += 0.5
    assert _cuda_module.kernels(0, 11) is None
    now[0] += 1.0
    found = _cuda_module.kernels(0, 11)
    assert found is not None
    assert _cuda_module.kernels(0, 11) is found


def test_a_failed_unit_leaves_the_others_alone(driver, monkeypatch):
    causes = {15: "window 15: out of memory", 17: "window 17: no space left"}

    def compiled_kernels(text, architecture, unit):
        if unit in causes:
            raise RuntimeError(causes[unit])
        return b"cubin"

    driver.refuse = ["refused"]
    now = [100.0]
    monkeypatch.setattr(_cuda_module._nvrtc, "cached_kernels", compiled_kernels)
    monkeypatch.setattr(_cuda_module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Card")
    with pytest.warns(RuntimeWarning, match="window 15: out of memory"):
        assert _cuda_module.kernels(0, 15) is None
    assert _cuda_module.kernels(0, 11) is not None
    with pytest.warns(RuntimeWarning, match="window 17: no space left"):  # a different cause is reported too
        assert _cuda_module.kernels(0, 17) is None
    now[0] += 2.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _cuda_module.kernels(0, 15) is None  # the same cause is not reported again
    now[0] += 1.5  # the pause of this unit has doubled
    del causes[15]
    assert _cuda_module.kernels(0, 15) is None
    now[0] += 1.0
    assert _cuda_module.kernels(0, 15) is not None


def test_kernels_load_while_a_graph_is_captured(driver):
    """During a capture, the driver refuses to load modules unless the thread has relaxed its capture mode."""
    _cuda_module.load(0, 11)
    calls = [name for name in driver.calls if "Capture" in name or name == "cuModuleLoadData"]
    assert calls == ["cuThreadExchangeStreamCaptureMode", "cuModuleLoadData", "cuThreadExchangeStreamCaptureMode"] * (
        len(calls) // 3
    )
    assert "cuModuleLoadData" in calls
    assert driver.capture_modes == [2, 1] * (len(calls) // 3)


def test_a_failed_launch_raises(driver):
    found = _cuda_module.load(0, 11)
    driver.result = 2  # CUDA_ERROR_OUT_OF_MEMORY
    img1, img2 = images(1, 1, 20, 30)
    with pytest.raises(RuntimeError, match=r"CUDA kernel 'ssim' could not be started \(CUDA error 2\)"):
        launch.photometric(found, 0, img1, img2, None, 0.8, 0.2, False, SSIMOptions(), (None, None))


@pytest.mark.emulation
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("per_image", [False, True])
def test_backward_scales_on_the_device(kernels, monkeypatch, channels_last, per_image):  # noqa: F811
    """The CUDA kernel replaces the CPU's multiplication. It works in place, and the host does not read the value."""
    monkeypatch.setattr(_cuda_module, "target", lambda tensor, unit: (kernels, 0))
    used = []
    scale = lambda *a: used.append(ssim_cuda.scale(*a)) or used[-1]  # noqa: E731
    monkeypatch.setitem(dispatch.DEVICES, "cpu", dispatch.DEVICES["cpu"]._replace(scale=scale))
    img1, img2 = images(3, 2, 13, 40, channels_last=channels_last)
    img1.requires_grad_()
    options, weights = SSIMOptions(channels_last=channels_last), {"l1_weight": 0.7, "dssim_weight": 0.4}
    upstream = torch.tensor([0.5, 1.0, -3.0]) if per_image else torch.tensor(0.5)
    loss = photometric(img1, img2, options, per_image=per_image, **weights)[0]
    (found,) = torch.autograd.grad(loss, img1, upstream)
    *_, plain, _ = torch.ops.splat_ssim.photometric(
        img1, img2, None, None, 0.7, 0.4, 0.0, per_image, *options, True, False
    )
    assert used == [True]
    assert torch.equal(found, plain * (upstream.view(3, 1, 1, 1) if per_image else upstream))


@pytest.mark.emulation
@pytest.mark.parametrize(
    "spatial_dims, padding, channels_last",
    [
        *((2, padding, layout) for padding in ("same", "valid", "replicate") for layout in (False, True)),
        # Volumes take long. The layout is that of images, whatever the padding.
        *((3, "same", False), (3, "valid", True), (3, "replicate", False)),
    ],
)
def test_cuda_operators_give_what_the_cpu_operators_give(kernels, monkeypatch, spatial_dims, padding, channels_last):  # noqa: F811
    """Compares values, gradients, shapes, dtypes and strides of all five. The emulation runs the CUDA operators."""
    monkeypatch.setattr(_cuda_module, "target", lambda tensor, unit: (kernels, 0))
    img1, img2 = images(*((2, 3, 13, 40) if spatial_dims == 2 else (1, 2, 12, 13, 14)), channels_last=channels_last)
    options = SSIMOptions(padding=padding, channels_last=channels_last)
    cpu = torch.ops.splat_ssim
    map_ = cpu.ssim_map(img1, img2, *options)
    grad_map, grad_means = torch.randn_like(map_), torch.randn(*layout.map_shape(img1, options)[:2], 2)
    weight = torch.rand(img1[..., :1].shape if channels_last else img1[:, :1].shape)
    calls = [
        (ssim_cuda._ssim_map, cpu.ssim_map, (img1, img2, *options)),
        (ssim_cuda._ssim_channel_means, cpu.ssim_channel_means, (img1, img2, *options)),
    ]
    for needs in ((True, False), (False, True), (True, True), (False, False)):
        tail = (*options, *needs)
        for mask, per_image in ((None, False), (None, True), (weight, False)):
            arguments = (img1, img2, mask, None, 0.7, 0.4, 0.0, per_image, *tail)
            calls.append((photometric_cuda._photometric, cpu.photometric, arguments))
        if any(needs):
            calls.append((ssim_cuda._ssim_map_backward, cpu.ssim_map_backward, (grad_map, img1, img2, *tail)))
            backward = (ssim_cuda._ssim_channel_means_backward, cpu.ssim_channel_means_backward)
            calls.append((*backward, (grad_means, img1, img2, *tail)))
    for cuda_function, cpu_function, arguments in calls:
        found, expected = cuda_function(*arguments), cpu_function(*arguments)
        pairs = zip(found, expected, strict=True) if isinstance(expected, (tuple, list)) else [(found, expected)]
        for a, b in pairs:
            assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())
            if b.numel():
                assert (a - b).abs().max() <= 2e-5 * b.abs().max()


def test_starts_are_counted(driver):
    found = _cuda_module.load(0, 11)
    img1, img2 = images(1, 1, 20, 30)
    arguments = (img1, img2, None, 0.8, 0.2, False, SSIMOptions(), (torch.empty_like(img1), None))
    before = _cuda_kernels.kernel_starts(found.library)
    launch.photometric(found, 0, *arguments)
    driver.result = 2
    with pytest.raises(RuntimeError):
        launch.photometric(found, 0, *arguments)
    after = _cuda_kernels.kernel_starts(found.library)
    started = {name: after[name] - count for name, count in before.items() if after[name] != count}
    assert started == {"splat_fused2d": 1}


def test_few_means_are_made_by_the_last_block(driver):
    """More means, such as those of each image of a large batch, have a kernel of their own with a block for each."""
    found = _cuda_module.load(0, 11)
    names = _cuda_kernels.kernel_names(compiled.library())
    for batch, per_image, kernels_started in ((40, False, 1), (8, True, 1), (9, True, 2)):
        img1, img2 = images(batch, 1, 20, 30)
        driver.launches.clear()
        launch.photometric(
            found, 0, img1, img2, None, 0.8, 0.2, per_image, SSIMOptions(), (torch.empty_like(img1), None)
        )
        assert len(driver.launches) == kernels_started
    assert driver.launches[1][:2] == (1001 + names.index("splat_reduce"), 9)


def test_streams_and_graphs_do_not_share_the_counter_of_blocks(driver, monkeypatch):
    found = _cuda_module.load(0, 11)
    cpu = torch.device("cpu")
    assert found.arrivals(5, cpu) is found.arrivals(5, cpu)
    assert found.arrivals(5, cpu) is not found.arrivals(6, cpu)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(torch, "zeros", lambda *size, dtype, device: torch.empty(size, dtype=dtype).zero_())
    cuda = torch.device("cuda", 0)
    assert found.arrivals(5, cuda) is not found.arrivals(5, cuda)
