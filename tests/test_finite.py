"""A run whose loss or state is not finite stops, says where, and leaves the last good checkpoint."""

import os
import signal
from pathlib import Path
from unittest import mock

import pytest
import torch

from splat_ssim.errors import UserError
from splat_ssim.image import ImageConfig, ImageOutputConfig
from splat_ssim.image import Task as ImageTask
from splat_ssim.scene.config import SceneConfig
from splat_ssim.scene.training import SceneTask
from splat_ssim.trainer import Report, load
from splat_ssim.trainer import loop as loop_module
from splat_ssim.trainer.cli import main
from splat_ssim.trainer.finite import LossWatch, NotFiniteError, state_problem
from splat_ssim.trainer.loop import Run
from splat_ssim.volume import Volume, save_volume
from splat_ssim.volume.config import VolumeConfig, VolumeOutputConfig
from splat_ssim.volume.training import VolumeTask
from tests.pretend_device import DEVICE, _run, pretend_device
from tests.scenes import write_blender
from tests.test_loop import LineTask, config
from tests.test_volume_fitting import GRID, phantom


class BadAt(LineTask):
    """A LineTask whose loss and number become NaN at a step."""

    bad = 67

    def step(self, index):
        report = super().step(index)
        if index + 1 < self.bad:
            return report
        self.value = self.value * float("nan")
        loss = report.known()["loss"] * float("nan")
        return Report({"loss": loss, "l1": loss + 1, "fine": torch.tensor(2.0), "lazy": lambda: 1 / 0})


def test_a_bad_loss_ends_the_run_at_its_step(tmp_path):
    one = Run(BadAt(config(tmp_path / "run", steps=200, checkpoint_every=20)))
    text = r"run: the loss must be finite, got nan at step 67 \(l1 nan, fine 2\); its checkpoint is that of step 60$"
    with pytest.raises(NotFiniteError, match=text):
        one.train()
    assert one.step == 67
    assert torch.isfinite(load(tmp_path / "run").value) and isinstance(NotFiniteError("x"), UserError)
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"] == 60


class Elsewhere(BadAt):
    """The same task on a device that works asynchronously."""

    def __init__(self, config):
        super().__init__(config)
        self.device = DEVICE
        self.value = self.value.to(DEVICE)

    def state_dict(self):
        return {"value": self.value}


@pytest.fixture
def pretended(monkeypatch):
    """Pretends the device. Checkpoints are moved from it to the CPU."""
    save = loop_module.save_checkpoint
    on_cpu = lambda state: {k: v.cpu() if isinstance(v, torch.Tensor) else v for k, v in state.items()}  # noqa: E731
    monkeypatch.setattr(loop_module, "save_checkpoint", lambda folder, state: save(folder, on_cpu(state)))
    with pretend_device():
        yield


@pytest.mark.parametrize("every,seen,kept", [(1000, 75, 0), (20, 75, 60), (34, 68, 34)])
def test_on_a_device_the_first_bad_loss_is_found_within_25_steps(tmp_path, pretended, every, seen, kept):
    one = Run(Elsewhere(config(tmp_path / "run", steps=500, checkpoint_every=every)))
    with pytest.raises(NotFiniteError, match=rf"got nan at step 67 \(l1 nan, fine 2\); .* of step {kept}$"):
        one.train()
    assert one.step == seen
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert state["step"] == kept and torch.isfinite(state["value"])


def test_on_a_device_the_end_of_a_run_is_looked_at_too(tmp_path, pretended):
    with pytest.raises(NotFiniteError, match="got nan at step 67"):
        loop_module.run(Elsewhere(config(tmp_path / "run", steps=70)))
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_on_a_device_a_signal_saves_nothing_bad(tmp_path, pretended):
    task = Elsewhere(config(tmp_path / "run", steps=200))
    step = task.step
    task.step = lambda index: (index == 69 and os.kill(os.getpid(), signal.SIGTERM)) or step(index)
    with pytest.raises(NotFiniteError, match="got nan at step 67"):
        Run(task).train()
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"] == 0


def test_noting_a_loss_on_a_device_neither_computes_nor_waits():
    watch, ran = LossWatch(), []

    def run(function, *rest):
        ran.append(function._schema.name)
        return _run(function, *rest)

    with pretend_device(), mock.patch("tests.pretend_device._run", run):
        report = Report({"loss": torch.ones((), device=DEVICE), "l1": torch.ones((), device=DEVICE)})
        ran.clear()
        assert watch.note(1, report) is None
        assert set(ran) == {"aten::detach"}  # a view, which starts no kernel
        assert watch.check() is None and "aten::_to_copy" in ran
    # Reading the losses clears them, so that none is read twice.
    with pretend_device():
        watch = LossWatch()
        watch.note(3, Report({"loss": torch.tensor(float("inf"), device=DEVICE)}))
        watch.note(4, Report({"loss": torch.tensor(float("nan"), device=DEVICE)}))
        assert watch.check() == "the loss must be finite, got inf at step 3" and watch.check() is None


def test_a_finite_loss_does_not_hide_a_broken_model(tmp_path):
    task = LineTask(config(tmp_path / "run", steps=60, checkpoint_every=20))
    step, task.moments = task.step, {"seen": torch.ones(4)}
    plain = task.state_dict
    task.state_dict = lambda: {**plain(), "optimizer": [task.moments]}

    def poisoned(index):
        if index == 30:
            task.moments["seen"][1:3] = float("inf")
        return step(index)

    task.step = poisoned
    with pytest.raises(
        NotFiniteError,
        match=r"optimizer\.0\.seen must be finite, got 2 of 4 values that are not after step 40; .* of step 20$",
    ):
        Run(task).train()
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"] == 20


def test_a_broken_start_is_not_saved(tmp_path):
    task = LineTask(config(tmp_path / "run"))
    task.value = torch.tensor(float("nan"))
    with pytest.raises(NotFiniteError, match=r"value must be finite, .* after step 0; nothing was saved"):
        Run(task)
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_large_values_are_finite_although_their_sum_is_not():
    large = torch.full((4,), 3e38)
    assert state_problem(1, {"a": large, "b": -large, "half": torch.full((9,), 6e4).half()}) is None
    assert "b.1 must be" in state_problem(1, {"a": large, "b": [large, torch.tensor([1.0, -float("inf")])]})
    assert state_problem(1, {"name": "x", "empty": torch.zeros(0), "count": torch.tensor(1 << 60), "n": None}) is None


# --- every kind of training


def nan_loss(pred, target, *, mask=None, start=12):
    """L1 that becomes NaN at the `start`-th call after the trial calls of `get_loss`."""
    nan_loss.calls += 1
    loss = (pred - target).abs().mean()
    return loss * float("nan") if nan_loss.calls == start else loss


@pytest.fixture
def calls():
    nan_loss.calls = 0
    yield
    nan_loss.calls = 0


def tasks(folder):
    scan = save_volume(folder / "scan.npz", Volume(phantom(), GRID))
    line = {"result_dir": folder / "run", "steps": 300, "checkpoint_every": 5, "loss": "tests.test_finite:nan_loss"}
    scene = SceneConfig(data_dir=write_blender(folder / "ball", size=16), **line)
    scene.model.init_count, scene.strategy.budget, scene.output.progress = 40, 50, False
    volume = VolumeConfig(data_dir=scan, output=VolumeOutputConfig(progress=False), **line)
    volume.strategy.budget = 60
    image = ImageConfig(data_dir=folder / "ball" / "train" / "r_0.png", **line)
    image.model.budget, image.output = 40, ImageOutputConfig(progress=False)
    return {"scene": (SceneTask, scene), "volume": (VolumeTask, volume), "image": (ImageTask, image)}


@pytest.mark.parametrize("kind", ["scene", "volume", "image"])
def test_every_kind_of_training_stops(tmp_path, kind, calls):
    task, options = tasks(tmp_path)[kind]
    one = Run(task(options))
    nan_loss.calls = 0
    with pytest.raises(NotFiniteError, match=r"the loss must be finite, got nan at step 12; .* that of step 10$"):
        one.train()
    assert state_problem(10, torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)) is None


def test_the_program_ends_with_one_sentence(tmp_path, calls):
    scene = write_blender(tmp_path / "ball", size=16)
    line = ["--data-dir", str(scene), "--result-dir", str(tmp_path / "run"), "--model.init-count", "30"]
    line += ["--loss", "tests.test_finite:nan_loss", "--output.no-progress", "--strategy.budget", "40"]
    with pytest.raises(
        SystemExit, match=r"^error: .*run: the loss must be finite, got nan at step \d+; its checkpoint"
    ):
        main([*line, "--loss-kwargs", "{start: 30}"])
    assert not Path(tmp_path / "run" / "metrics.json").exists()
