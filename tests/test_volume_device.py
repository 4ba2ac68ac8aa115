"""Fitting a volume on a device other than the CPU: every tensor is on the right device, and results match the CPU's.

Without a GPU, the device is pretended. Tests marked cuda need a GPU.
"""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_map

from splat_ssim.ops import dispatch
from splat_ssim.trainer import checkpoint, loop
from splat_ssim.trainer._old import Fitting
from splat_ssim.trainer.cli import main
from splat_ssim.volume import VoxelGrid, load_volume, morton_order, save_volume, voxelize
from splat_ssim.volume import device as device_of_volumes
from splat_ssim.volume import training as fitting
from splat_ssim.volume.config import VolumeConfig, VolumeOutputConfig
from splat_ssim.volume.device import pick_volume_device
from splat_ssim.volume.io import Volume
from tests.devices import needs_gpu
from tests.pretend_device import DEVICE, pretend_device
from tests.test_volume_fitting import GRID, SHAPE, fit_until, phantom

CASES = {
    "residual": {"strategy.recycle": 0.2},
    "none": {"strategy.name": "none"},
    "capped": {"strategy.name": "capped"},
    "default": {"strategy.name": "default"},
    "mcmc": {"strategy.name": "mcmc"},
    "crop": {"crop": 8, "mask": True, "tv": 0.01},
    "whole": {"mask": True, "loss_every": 2},
    "grid": {"model.name": "grid", "model.grid_levels": 2},
    "features": {"channels": 4, "loss": "l1"},
    "ssim": {"loss": "ssim"},
}


def make_config(folder, case="residual", *, device="auto", steps=12):
    """A config on files in `folder`, which writes to folder/run."""
    options = dict(CASES[case])
    data = save_volume(folder / "scan.npz", Volume(phantom(options.pop("channels", 1)), GRID))
    config = VolumeConfig(data_dir=data, result_dir=folder / "run", steps=steps, device=device)
    config.output, config.strategy.budget = VolumeOutputConfig(progress=False, format="npz"), 60
    if options.pop("mask", False):
        weights = (phantom(1) > 0).astype(np.uint8)
        config.data.mask = save_volume(folder / "mask.npz", Volume(weights, GRID))
    for name, value in options.items():
        part = config
        for step in name.split(".")[:-1]:
            part = getattr(part, step)
        assert hasattr(part, name.split(".")[-1])
        setattr(part, name.split(".")[-1], value)
    return config


@pytest.fixture
def pretend(monkeypatch):
    """Runs everything on the pretended device with the kernels of the CPU. Checkpoints are moved to it."""
    monkeypatch.setattr(fitting, "pick_volume_device", lambda config: DEVICE)
    monkeypatch.setitem(voxelize.__globals__, "_has_kernels", lambda device: True)
    monkeypatch.setitem(dispatch.DEVICES, "meta", dispatch.Device({}, dispatch.DEVICES["cpu"].supports))
    # torch.optim.optimizer is hidden behind a class of that name.
    optim = sys.modules["torch.optim.optimizer"]
    monkeypatch.setattr(optim, "_get_fused_kernels_supported_devices", lambda: ["cpu", "meta"])

    def on(tree, device):
        return tree_map(lambda t: t.detach().to(device) if isinstance(t, torch.Tensor) else t, tree)

    def save(folder, state):
        checkpoint.save_checkpoint(folder, on(state, "cpu"))

    def load(folder, device, **options):
        return on(checkpoint.load_checkpoint(folder, torch.device("cpu"), **options), device)

    monkeypatch.setattr(loop, "save_checkpoint", save)
    monkeypatch.setattr(loop, "load_checkpoint", load)
    with pretend_device():
        yield


def fitted(config):
    run = Fitting(config)
    run.run()
    return run, run.finish()


@pytest.mark.parametrize("case", CASES)
def test_a_run_elsewhere_is_the_cpus(tmp_path, case, request):
    config = make_config(tmp_path, case, device="cpu")
    start = Fitting(config).field()
    # A finished run is not overwritten.
    _, metrics = fitted(replace(config, result_dir=tmp_path / "cpu"))
    request.getfixturevalue("pretend")
    torch.testing.assert_close(Fitting(config).field().cpu(), start, rtol=0, atol=1e-5)
    run, found = fitted(config)
    assert all(tensor.device == DEVICE for tensor in run.model.tensors.values())
    assert all(t.device == DEVICE for s in run.optimizer.state.values() for t in s.values())
    assert run.field().device == DEVICE
    assert found["device"] == "meta" and metrics["device"] == "cpu"
    # torch splits some operations here that are fused on the CPU, and Adam amplifies the different roundings.
    for name in ("psnr3d", "ssim3d", "num_gaussians", "bytes", "psnr3d_quantized", "bytes_quantized", "final_loss"):
        assert (name in found) == (name in metrics), name
        assert found.get(name, 0) == pytest.approx(metrics.get(name, 0), rel=0.1), name
    assert load_volume(tmp_path / "run" / "volume.npz").data.shape[1:] == SHAPE
    assert (tmp_path / "run" / "pictures" / "mip.mp4").exists()


@pytest.mark.parametrize("case", ["residual", "mcmc", "grid"])
def test_a_run_goes_on_on_another_device(tmp_path, case, request):
    config = make_config(tmp_path, case, device="cpu")
    _, expected = fitted(replace(config, result_dir=tmp_path / "cpu"))
    fit_until(config, 5)
    request.getfixturevalue("pretend")
    found = main(["--resume", str(tmp_path / "run"), "--device", "auto"])
    assert found["device"] == "meta" and found["step"] == 12
    # mcmc draws the Gaussians to move by their opacities, so roundings change the choice.
    assert found["psnr3d"] == pytest.approx(expected["psnr3d"], rel=0.01 if case == "mcmc" else 1e-4)


def test_the_pretended_device_refuses_what_cuda_refuses():
    with pretend_device() as device:
        tensor = torch.rand(2, 3).to(device)
        assert (tensor + 1).device == device and torch.equal(
            (2 * tensor)[torch.tensor([1])].cpu(), 2 * tensor.cpu()[1:]
        )
        for mistake, text in (
            (lambda: tensor + torch.ones(3), "same device"),
            (lambda: torch.cat([tensor, torch.ones(1, 3)]), "same device"),
            (lambda: tensor.numpy(), "numpy"),
            (lambda: torch.rand(3, device=device, generator=torch.Generator()), "a generator on the device"),
        ):
            with pytest.raises(RuntimeError, match=text):
                mistake()


# --- which device


def test_cuda_not_reached_is_an_error(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("CUDA is reached")
    config = make_config(tmp_path)
    assert pick_volume_device(config).type == "cpu"
    line = ["--config", "configs/voxel_mri.yaml", "--data-dir", str(config.data_dir), "--device", "cuda"]
    with pytest.raises(SystemExit, match="--device cuda requires a CUDA device and a CUDA build of torch, got none"):
        main([*line, "--result-dir", str(tmp_path / "run")])


def test_gaussians_are_not_fitted_without_their_kernels(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    seen = []
    monkeypatch.setattr(device_of_volumes, "has_kernels", lambda device: bool(seen.append(device)))
    config = make_config(tmp_path)
    assert pick_volume_device(config).type == "cpu" and seen == [torch.device("cuda", 0)]
    config.device = "cuda"
    with pytest.raises(ValueError, match="requires this package's CUDA kernels to fit Gaussians, got none"):
        pick_volume_device(config)
    config.model.name = "grid"
    assert pick_volume_device(config).type == "cuda"
    config.model.name = "gaussians"
    monkeypatch.setattr(device_of_volumes, "has_kernels", lambda device: True)
    assert pick_volume_device(config).type == "cuda"


# --- on a GPU

needs_cuda = [pytest.mark.cuda, needs_gpu]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_cuda)])
@pytest.mark.parametrize("case", CASES)
def test_every_kind_of_run(tmp_path, case, device):
    run, metrics = fitted(make_config(tmp_path, case, device=device, steps=30))
    assert metrics["device"] == device and metrics["psnr3d"] > 13
    assert all(tensor.device.type == device for tensor in run.model.tensors.values())


@pytest.mark.parametrize("first,then", [pytest.param(*p, marks=needs_cuda) for p in (("cpu", "cuda"), ("cuda", "cpu"))])
@pytest.mark.parametrize("case", ["residual", "mcmc", "grid"])
def test_a_run_goes_on_between_cpu_and_cuda(tmp_path, case, first, then):
    config = make_config(tmp_path, case, device=first)
    fit_until(config, 5)
    found = main(["--resume", str(tmp_path / "run"), "--device", then])
    assert found["device"] == then and found["step"] == 12 and found["psnr3d"] > 12


@pytest.mark.cuda
@needs_cuda[1]
def test_order_and_volume_are_on_the_device():
    grid = VoxelGrid.regular((9, 8, 7))
    means = (torch.rand(20, 3, generator=torch.Generator().manual_seed(0)) * 7).cuda()
    order = morton_order(means, grid)
    assert order.is_cuda and torch.equal(order.cpu(), morton_order(means.cpu(), grid))
    quats = torch.eye(4, device="cuda")[:1].expand(20, 4)
    assert voxelize(means, quats, torch.ones_like(means), torch.ones_like(means[:, 0]), grid).is_cuda
