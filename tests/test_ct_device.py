"""Reconstruction on a device other than the CPU: every tensor is on the right device, and results match the CPU's.

Without a GPU, the device is pretended. Tests marked cuda need a GPU.
"""

import pytest
import torch

from splat_ssim.ct import device as device_of_ct
from splat_ssim.ct import project
from splat_ssim.ct import training as fitting
from splat_ssim.ct.config import CTConfig
from splat_ssim.ct.device import pick_ct_device
from splat_ssim.ct.fdk import fdk
from splat_ssim.errors import UserError
from splat_ssim.trainer.cli import main
from splat_ssim.trainer.loop import load
from splat_ssim.volume import load_volume
from tests.devices import needs_gpu
from tests.pretend_device import DEVICE
from tests.test_ct import GEOMETRY, GRID, fit, folder  # noqa: F401
from tests.test_volume_device import pretend as pretend_volumes  # noqa: F401 - a fixture

CASES = {
    "residual": ("--strategy.recycle", "0.2", "--strategy.rounds", "2"),
    "random": ("--model.start-from", "random", "--strategy.name", "none"),
    "whole": ("--tv-block", "0", "--model.no-nonnegative", "--loss", "l1"),
}


@pytest.fixture
def pretend(monkeypatch, request):
    """Runs everything on the pretended device with the kernels of the CPU."""
    monkeypatch.setattr(fitting, "pick_ct_device", lambda name: DEVICE)
    monkeypatch.setitem(project.__globals__, "_has_kernels", lambda device: True)
    request.getfixturevalue("pretend_volumes")


def run(folder, result, case, *more):  # noqa: F811
    truth = ("--data.truth", str(folder.parent / "truth.npy"))
    return fit(folder, result, "--steps", "30", "--output.format", "npz", *truth, *CASES[case], *more)


@pytest.mark.parametrize("case", CASES)
def test_a_run_on_the_device(folder, tmp_path, case, request):  # noqa: F811
    metrics = run(folder, tmp_path / "cpu", case)
    request.getfixturevalue("pretend")
    found = run(folder, tmp_path / "run", case)
    assert found["device"] == "meta" and metrics["device"] == "cpu"
    # torch splits some operations here that are fused on the CPU, and Adam amplifies the different roundings.
    for name in ("psnr3d", "ssim3d", "psnr_projections", "ssim_projections", "num_gaussians", "scale", "final_loss"):
        assert found[name] == pytest.approx(metrics[name], rel=0.05), name
    assert load_volume(tmp_path / "run" / "volume.npz").data.shape[1:] == GRID.shape
    assert (tmp_path / "run" / "gaussians.ply").exists()
    task = load(tmp_path / "run")
    assert all(tensor.device == DEVICE for tensor in task.model.tensors.values())
    assert all(t.device == DEVICE for state in task.optimizer.state.values() for t in state.values())
    assert task.volume().device == task.pictures.device == task.truth.device == DEVICE
    for views in task.VIEWS:
        task.render(views, tmp_path / f"seen.{'mp4' if views == 'orbit' else 'png'}", 2)


def test_a_run_goes_on_on_another_device(folder, tmp_path, request):  # noqa: F811
    expected = run(folder, tmp_path / "cpu", "residual")
    saved = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        step = fitting.CTTask.step

        def interrupted(self, index):
            if index == 17:
                raise RuntimeError("power cut")
            return step(self, index)

        patch.setattr(fitting.CTTask, "step", interrupted)
        with pytest.raises(RuntimeError, match="power cut"):
            run(folder, saved, "residual", "--checkpoint-every", "10")
    request.getfixturevalue("pretend")
    found = main(["--resume", str(saved), "--device", "auto", "--output.no-progress"])
    assert found["device"] == "meta" and found["step"] == 30
    assert found["psnr3d"] == pytest.approx(expected["psnr3d"], rel=1e-2)


def test_backprojection_on_the_device(folder, request):  # noqa: F811
    pictures = torch.rand(12, 24, 30, generator=torch.Generator().manual_seed(0))
    expected = fdk(pictures, GEOMETRY, GRID)
    request.getfixturevalue("pretend")
    found = fdk(pictures.to(DEVICE), GEOMETRY, GRID)
    assert found.device == DEVICE
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-6)


# --- which device


def test_cuda_not_reached_is_an_error(folder, tmp_path):  # noqa: F811
    if torch.cuda.is_available():
        pytest.skip("CUDA is reached")
    assert pick_ct_device("auto").type == "cpu"
    with pytest.raises(SystemExit, match="--device cuda requires a CUDA device and a CUDA build of torch, got none"):
        fit(folder, tmp_path / "run", "--device", "cuda")


@pytest.mark.parametrize("missing", ["xray_cuda", "voxelize_cuda"])
def test_gaussians_are_not_fitted_without_their_kernels(monkeypatch, missing):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    asked = []
    for name in ("xray_cuda", "voxelize_cuda"):
        module = getattr(device_of_ct, name)
        monkeypatch.setattr(module, "has_kernels", lambda device, name=name: asked.append(device) or name != missing)
    assert pick_ct_device("auto").type == "cpu" and set(asked) == {torch.device("cuda", 0)}
    assert pick_ct_device("cpu").type == "cpu"
    with pytest.raises(UserError, match="requires this package's CUDA kernels to fit Gaussians, got none"):
        pick_ct_device("cuda")
    monkeypatch.setattr(getattr(device_of_ct, missing), "has_kernels", lambda device: True)
    assert pick_ct_device("auto").type == pick_ct_device("cuda").type == "cuda"


# --- on a GPU

needs_cuda = [pytest.mark.cuda, needs_gpu]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_cuda)])
@pytest.mark.parametrize("case", CASES)
def test_every_kind_of_run(folder, tmp_path, case, device):  # noqa: F811
    metrics = run(folder, tmp_path / "run", case, "--device", device, "--steps", "60")
    assert metrics["device"] == device and metrics["psnr_projections"] > 15
    task = load(tmp_path / "run", device=device)
    assert all(tensor.device.type == device for tensor in task.model.tensors.values())


@pytest.mark.parametrize("first,then", [pytest.param(*p, marks=needs_cuda) for p in (("cpu", "cuda"), ("cuda", "cpu"))])
def test_a_run_goes_on_between_cpu_and_cuda(folder, tmp_path, first, then):  # noqa: F811
    config = CTConfig(data_dir=folder, views=4, device=first)
    config.strategy.budget = 100
    task = fitting.CTTask(config)
    task.step(0)
    state = task.state_dict()
    config.device = then
    other = fitting.CTTask(config)
    other.load_state_dict(
        {
            name: {key: t.to(then) for key, t in value.items()} if name == "tensors" else value
            for name, value in state.items()
        }
    )
    assert float(other.step(1)["loss"]) == pytest.approx(float(task.step(1)["loss"]), rel=1e-4)
