"""In a step on a device, the host does not wait for the device, except where gsplat itself does.

A GPU does its work while the host prepares the next step. Reading a number, indexing by a mask, or uploading from
ordinary memory makes them wait for each other. The device is pretended, and `waits` lists where the host would wait.
"""

import os
from contextlib import contextmanager
from types import SimpleNamespace

import gsplat
import pytest
import torch

from splat_ssim.ct import project
from splat_ssim.ct import training as ct_training
from splat_ssim.ct.config import CTConfig
from splat_ssim.image import ImageConfig, ImageOutputConfig
from splat_ssim.image import Task as ImageTask
from splat_ssim.ops import dispatch
from splat_ssim.optim import SelectiveAdam
from splat_ssim.scene import model as scene_model
from splat_ssim.scene import training as scene_training
from splat_ssim.scene.config import SceneConfig
from splat_ssim.scene.training import SceneTask
from splat_ssim.trainer import upload as upload_module
from splat_ssim.trainer.upload import Ahead, upload
from splat_ssim.volume.training import VolumeTask
from tests.pretend_device import DEVICE, pretend_device, waits
from tests.scenes import write_blender
from tests.test_ct import folder as projections  # noqa: F401 - a fixture
from tests.test_volume_device import CASES, make_config
from tests.test_volume_device import pretend as volume_device  # noqa: F401 - a fixture

GSPLAT = os.path.dirname(gsplat.__file__)


def project_and_blend(means, quats, scales, opacities, colors, viewmats, Ks, width, height, **options):
    """A simple renderer that never waits: every Gaussian is evaluated at every pixel."""
    camera = means @ viewmats[0, :3, :3].T + viewmats[0, :3, 3]
    depth = camera[:, 2].clamp(min=0.1)
    means2d = (camera[:, :2] / depth[:, None] * Ks[0, 0, 0] + Ks[0, :2, 2])[None]
    y = torch.arange(height, device=means.device)[:, None, None] + 0.5
    x = torch.arange(width, device=means.device)[None, :, None] + 0.5
    size = scales.exp().mean(1) * Ks[0, 0, 0] / depth + 0.3 * quats.norm(dim=1)
    squares = ((x - means2d[0, :, 0]) ** 2 + (y - means2d[0, :, 1]) ** 2) / size**2
    weights = torch.exp(-0.5 * squares) * torch.sigmoid(opacities)  # [H, W, N]
    sh0, shN = colors
    picture = (weights @ (0.5 + sh0[:, 0] + 0.1 * shN.sum(1)))[None]
    info = {"means2d": means2d, "radii": torch.ones(1, len(means), 2, dtype=torch.int32, device=means.device)}
    info |= {"width": width, "height": height, "n_cameras": 1, "gaussian_ids": None, "depths": depth[None]}
    return picture, weights.sum(-1)[None, ..., None], info


@pytest.fixture
def scene_device(monkeypatch):
    monkeypatch.setattr(scene_training, "pick_device", lambda name: DEVICE)
    monkeypatch.setattr(scene_model, "rasterization", project_and_blend)
    monkeypatch.setitem(dispatch.DEVICES, "meta", dispatch.Device({}, dispatch.DEVICES["cpu"].supports))
    with pretend_device():
        yield


def outside_gsplat(found):
    return [place for place in found if not place[1].startswith(GSPLAT)]


SCENES = {
    "capped": {},
    "default": {},
    "mcmc": {},
    "taming": {},
    "sparse": {"optimizer.name": "sparse_adam"},
    "lazy": {"optimizer.name": "sparse_adam", "optimizer.sh_every": 4},
    "penalties": {"opacity_penalty": 0.1, "scale_penalty": 0.1, "data.coarse_factor": 2},
    "l1": {"loss": "l1"},
    "ssim": {"loss": "ssim"},
}


@contextmanager
def scene_task(folder, case):
    config = SceneConfig(data_dir=write_blender(folder / "ball", size=16), result_dir=folder / "run", steps=300)
    config.model.init_count, config.strategy.budget = 30, 60
    config.strategy.name = case if case in ("default", "mcmc", "taming") else "capped"
    for name, value in SCENES[case].items():
        part, _, option = name.rpartition(".")
        setattr(getattr(config, part) if part else config, option, value)
    task = SceneTask(config)
    for view in task.scene.train:
        view.mask = torch.ones(view.height, view.width, dtype=torch.bool)
    yield task


@pytest.mark.parametrize("case", SCENES)
def test_a_step_of_a_scene(tmp_path, case, scene_device):
    with scene_task(tmp_path, case) as task:
        assert task.splats["means"].device == DEVICE
        first = task.splats["means"].detach().cpu().clone()
        for index in range(3):
            task.step(index)
        with waits() as found:
            reports = [task.step(index) for index in range(3, 12)]
        assert not outside_gsplat(found), found
        assert bool(found) == (case == "default")  # gsplat's own strategy lists what is visible
        assert not torch.equal(task.splats["means"].detach().cpu(), first)
        # Reading a report does wait, which shows that waits are counted.
        with waits() as found:
            assert dict(reports[-1])["loss"] > 0
        assert found


@pytest.mark.parametrize("case", CASES)
def test_a_step_of_a_volume(tmp_path, case, volume_device):  # noqa: F811
    config = make_config(tmp_path, case, device="cpu", steps=40)
    task = VolumeTask(config)
    due = _growing(task)
    waited = {}
    for index in range(12):
        with waits() as found:
            task.step(index)
        waited[index] = outside_gsplat(found)
    assert task.target.values.device == DEVICE
    for index, places in waited.items():
        assert not places or index in due, (index, places)


def _growing(task):
    """The steps at which Gaussians are added. The host must know their number, so it may wait there."""
    if task.growth is None:
        return set(range(0))
    if hasattr(task.growth, "at_steps"):
        return {step - 1 for step in task.growth.at_steps}
    every = task.growth.strategy.refine_every
    return {step - 1 for step in range(every, 40, every)}


def test_rounds_of_growth_by_the_residual_wait_for_nothing_either(tmp_path, volume_device):  # noqa: F811
    task = VolumeTask(make_config(tmp_path, "residual", device="cpu", steps=40))
    assert task.growth.at_steps[0] == 2
    with waits() as found:
        task.step(0)
        task.step(1)
    assert not found


def test_a_step_of_a_reconstruction(projections, volume_device, monkeypatch):  # noqa: F811
    """The projector's kernels, which wait for the length of their lists, are the CPU's here."""
    monkeypatch.setattr(ct_training, "pick_ct_device", lambda name: DEVICE)
    monkeypatch.setitem(project.__globals__, "_has_kernels", lambda device: True)
    config = CTConfig(data_dir=projections, steps=40)
    config.strategy.budget = 100
    task = ct_training.CTTask(config)
    due = _growing(task)
    assert due
    for index in range(12):
        with waits() as found:
            task.step(index)
        assert not found or index in due, (index, found)


def test_a_step_of_an_image(tmp_path, volume_device, monkeypatch):  # noqa: F811
    monkeypatch.setattr("splat_ssim.image.pick_device", lambda name: DEVICE)
    write_blender(tmp_path / "ball", size=16)
    config = ImageConfig(data_dir=tmp_path / "ball" / "train" / "r_0.png", steps=400)
    config.model.budget, config.output = 60, ImageOutputConfig(progress=False)
    task = ImageTask(config)
    with waits() as found:
        for index in range(10):
            task.step(index)
    assert not found


def test_sorting_waits_for_nothing(tmp_path, volume_device):  # noqa: F811
    task = VolumeTask(make_config(tmp_path, "none", device="cpu", steps=400))
    with waits() as found:
        task.change_model(200)
    assert not found


def test_what_waits_is_listed():
    with pretend_device():
        tensor = torch.arange(4.0).to(DEVICE)
        for act in (
            lambda: tensor.sum().item(),
            lambda: bool(tensor[0] > 0),
            lambda: float(tensor.max()),
            lambda: tensor.cpu(),
            lambda: tensor.nonzero(),
            lambda: torch.where(tensor > 1),
            lambda: tensor[tensor > 1],
            lambda: tensor.masked_select(tensor > 1),
            lambda: torch.tensor([1.0, 2.0], device=DEVICE),
            lambda: torch.ones(3).to(DEVICE),
            lambda: tensor.unique(),
            lambda: torch.equal(tensor, tensor),
            lambda: tensor.index_put_((tensor > 1,), torch.zeros((), device=DEVICE)),
        ):
            with waits() as found:
                act()
            assert len(found) >= 1
        for act in (
            lambda: torch.where(tensor > 1, tensor, 0),
            lambda: torch.ones(3).to(DEVICE, non_blocking=True),
            lambda: upload(torch.ones(3), DEVICE),
            lambda: tensor[torch.tensor([1, 2])] + 2.0 * tensor.sum(),
            lambda: torch.zeros(3, device=DEVICE),
            lambda: torch.ones(3).sum().item(),
        ):
            with waits() as found:
                act()
            assert not found


def test_selective_adam_waits_for_nothing_and_is_the_compiled_one(scene_device):
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(7, 3, generator=generator) for _ in range(4)]
    seen = torch.tensor([True, False, True, True, False, True, False])
    results = []
    for device in (torch.device("cpu"), DEVICE):
        parameter = torch.nn.Parameter(values[0].clone().to(device))
        optimizer = SelectiveAdam([parameter], lr=0.1)
        gradients, visible = [value.to(device) for value in values[1:]], seen.to(device)
        with waits() as found:
            for gradient in gradients:
                parameter.grad = gradient
                optimizer.step(visible)
        assert not found
        results.append(parameter.detach().cpu())
    torch.testing.assert_close(*results)
    assert torch.equal(results[1][~seen], values[0][~seen])


# --- uploads


class Recorder:
    """Stands for a tensor and for CUDA, and records all calls in order."""

    def __init__(self, log, name):
        self.log, self.name = log, name

    def pin_memory(self):
        self.log.append(f"pin {self.name}")
        return self

    def to(self, device, non_blocking=False):
        self.log.append(f"copy {self.name} {'ahead' if non_blocking else 'and wait'} on {_stream[-1]}")
        return self

    def record_stream(self, stream):
        self.log.append(f"{self.name} used by {stream.name}")


_stream = ["main"]


@pytest.fixture
def fake_cuda(monkeypatch):
    log = []

    class Stream:
        def __init__(self, name):
            self.name = name

        def wait_stream(self, other):
            log.append(f"{self.name} waits for {other.name}")

    @contextmanager
    def stream(which):
        _stream.append(which.name)
        yield
        _stream.pop()

    cuda = SimpleNamespace(
        Stream=lambda device: Stream("side"), stream=stream, current_stream=lambda device: Stream("main")
    )
    monkeypatch.setattr(upload_module, "torch", SimpleNamespace(cuda=cuda, device=torch.device))
    return log


def test_views_are_uploaded_ahead_on_a_side_stream_from_pinned_memory(fake_cuda):
    ahead = Ahead(lambda step: Recorder(fake_cuda, f"view{step}"), lambda view, put: put(view), torch.device("cuda"))
    ahead.take(0)
    fake_cuda.append("step 0")
    ahead.start(1)
    fake_cuda.append("step 1")
    ahead.take(1)
    assert fake_cuda == [
        "pin view0",
        "copy view0 ahead on side",
        "main waits for side",
        "view0 used by main",
        "step 0",
        "pin view1",
        "copy view1 ahead on side",
        "step 1",
        "main waits for side",
        "view1 used by main",
    ]
    # A run that jumps to another step gets the data of that step.
    ahead.start(2)
    assert ahead.take(9).name == "view9"


def test_a_step_starts_the_upload_of_the_next_view_and_no_other(tmp_path, scene_device):
    with scene_task(tmp_path, "capped") as task:
        task.config.steps = 5
        read, views, read_of = [], task.views._ahead, task.views.of_step
        views._read = lambda step: read.append(step) or read_of(step)
        for index in range(5):
            task.step(index)
            assert read == list(range(min(index + 2, 5)))
