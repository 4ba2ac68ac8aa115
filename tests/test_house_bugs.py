"""Defects that were found by reading the code, each under its number in the list of them."""

import json
import os
import resource
import sys
import traceback
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image

from splat_ssim import distributed
from splat_ssim._files import replacing, without_infinities, write_json
from splat_ssim.comparison import compare
from splat_ssim.errors import UserError
from splat_ssim.loss import photometric_loss
from splat_ssim.scene.data import load_scene
from splat_ssim.trainer import device, run
from splat_ssim.trainer.checkpoint import load_checkpoint, save_checkpoint
from splat_ssim.trainer.cli import main
from splat_ssim.trainer.loop import Run
from splat_ssim.trainer.metrics import MAX_PSNR, psnr
from splat_ssim.volume.config import VolumeConfig, VolumeOutputConfig
from splat_ssim.volume.crops import loss_reach, make_crop
from splat_ssim.volume.evaluation import evaluate_volume
from splat_ssim.volume.training import VolumeTask
from tests.pretend_device import DEVICE, pretend_device
from tests.scenes import write_blender, write_colmap
from tests.test_loop import LineTask
from tests.test_loop import config as line_config


@pytest.mark.parametrize("background", [(1.0, 1.0, 1.0), (0.0, 0.0, 0.0)])
def test_1_colmap_images_with_alpha_have_one_background(tmp_path, background):
    folder = write_colmap(tmp_path / "scene")
    assert load_scene(folder, background=background).background == (0.0, 0.0, 0.0)  # opaque photographs
    for index in range(2):
        pixels = np.zeros((48, 64, 4), np.uint8)
        pixels[:, 32:] = (200, 100, 50, 255)
        Image.fromarray(pixels).save(folder / "images" / f"{index}.png")
    scene = load_scene(folder, background=background)
    # The photographs and the Gaussians have the same background.
    assert scene.background == background
    assert scene.train[0].pixels()[0, :, 0, 0].tolist() == list(background)


def test_2_looking_at_a_run_leaves_its_next_checkpoint_alone(tmp_path):
    save_checkpoint(tmp_path, {"step": 1})
    with replacing(tmp_path / "checkpoint.pt") as file:
        torch.save({"step": 2, "generators": {"cpu": torch.get_rng_state()}}, file)
        # Another process evaluates the run at this moment.
        assert load_checkpoint(tmp_path, torch.device("cpu"), restore_generators=False)["step"] == 1
        assert load_checkpoint(tmp_path, torch.device("cpu"))["step"] == 1
    assert load_checkpoint(tmp_path, torch.device("cpu"))["step"] == 2


def test_2_two_processes_write_one_file_without_meeting(tmp_path, monkeypatch):
    with replacing(tmp_path / "a.json") as first:
        first.write(b"one")
        monkeypatch.setattr(os, "getpid", lambda: -1)
        with replacing(tmp_path / "a.json") as second:
            second.write(b"two")
        assert (tmp_path / "a.json").read_text() == "two"
    assert (tmp_path / "a.json").read_text() == "one" and len(list(tmp_path.iterdir())) == 1


def test_3_zarr_is_written_by_what_both_its_versions_have(tmp_path, monkeypatch):
    """Python 3.10 has zarr 2, which lacks create_array."""
    zarr = pytest.importorskip("zarr")
    from splat_ssim.volume import Volume, VoxelGrid, load_volume, save_volume

    monkeypatch.delattr(zarr, "create_array", raising=False)
    data = np.random.default_rng(0).random((2, 5, 6, 70)).astype(np.float32)
    path = save_volume(tmp_path / "a.zarr", Volume(data, VoxelGrid.regular((5, 6, 70))))
    np.testing.assert_array_equal(load_volume(path).data, data)


@pytest.fixture
def fit(tmp_path):
    """A config that fits a small volume in a moment."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in (14, 12, 13)), indexing="ij")
    np.save(tmp_path / "ball.npy", ((x**2 + y**2 + z**2 < 0.7) * (1 + 0.1 * np.sin(9 * x))).astype(np.float32))
    config = VolumeConfig(data_dir=tmp_path / "ball.npy", result_dir=tmp_path / "run", steps=4)
    config.output = VolumeOutputConfig(progress=False, format="", video=False, slices=False)
    config.strategy.budget = 40
    return config


def test_4_a_finished_fit_is_not_overwritten(fit):
    metrics = run(VolumeTask(fit))
    with pytest.raises(UserError, match=r"run: required a new folder for a new run, got one with metrics\.json"):
        run(VolumeTask(replace(fit, seed=1)))
    assert json.loads((fit.result_dir / "metrics.json").read_text()) == metrics


def test_4_resume_from_python_takes_the_folder_it_names(fit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    part = Run(VolumeTask(fit))
    part.task.step(0)
    part.step = 1
    part.save()
    resumed = Run(VolumeTask(VolumeConfig(resume=fit.result_dir)))
    assert resumed.step == 1 and resumed.folder == fit.result_dir
    assert resumed.task.config.data_dir == fit.data_dir and resumed.task.config.strategy.budget == 40
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("window_size", [3, 11, 17, (1, 11, 5), (9, 3, 13)])
def test_5_crops_see_as_far_as_the_window(window_size):
    generator = torch.Generator().manual_seed(0)
    shape, core_start, core_shape = (40, 38, 36), (12, 10, 11), (9, 8, 10)
    target = torch.rand(1, 1, *shape, generator=generator)
    pred = (target + 0.2 * torch.randn(target.shape, generator=generator)).clamp(0, 1)
    options = {"window_size": window_size, "lambda_dssim": 0.9}
    core = make_crop(shape, core_start, core_shape, halo=0)
    mask = torch.zeros(1, 1, *shape)
    core.of(mask).fill_(1)
    expected = photometric_loss(pred, target, mask=mask, **options)
    crop = make_crop(shape, core_start, core_shape, halo=loss_reach(options))
    found = photometric_loss(crop.of(pred).contiguous(), crop.of(target).contiguous(), mask=crop.mask(), **options)
    assert float(found) == pytest.approx(float(expected), abs=1e-6)


def test_5_the_fit_takes_the_halo_from_its_loss(fit):
    assert VolumeTask(fit).halo == 5
    assert VolumeTask(replace(fit, loss_kwargs={"window_size": 17})).halo == 8
    assert VolumeTask(replace(fit, loss_kwargs={"window_size": [1, 3, 11]})).halo == (0, 1, 5)


def test_7_the_planes_are_counted_on_their_device(monkeypatch):
    """NCCL can only reduce tensors on CUDA devices."""
    places = []
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda group=None: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda group=None: 1)
    monkeypatch.setattr(dist, "all_reduce", lambda tensor, **options: places.append(tensor.device))
    with pretend_device() as elsewhere:
        pred = torch.rand(1, 1, 12, 12, 12).to(elsewhere)
        # The code after the counts needs kernels, which the pretended device lacks.
        with suppress(RuntimeError, NotImplementedError, ValueError):
            distributed.photometric_loss(pred, pred)
    assert places and set(places) == {DEVICE}


def test_8_equal_images_have_a_number_that_json_knows(tmp_path):
    image = torch.rand(1, 3, 16, 16)
    assert psnr(image, image) == float("inf")
    assert evaluate_volume(image[0][None], image[0][None])["psnr3d"] == MAX_PSNR == 100
    pixels = (255 * image[0].permute(1, 2, 0)).byte().numpy()
    for name in ("a.png", "b.png"):
        Image.fromarray(pixels).save(tmp_path / name)
    result = compare(tmp_path / "a.png", tmp_path / "b.png", output=tmp_path / "result.json")
    assert result["psnr"] == MAX_PSNR and result["mse"] == 0
    text = (tmp_path / "result.json").read_text()
    assert json.loads(text, parse_constant=lambda name: pytest.fail(name)) == result
    np.save(tmp_path / "a.npy", np.random.default_rng(0).random((12, 12, 12)).astype(np.float32))
    assert compare(tmp_path / "a.npy", tmp_path / "a.npy")["psnr"] == MAX_PSNR


def test_8_no_file_of_ours_holds_what_is_no_json(tmp_path):
    write_json(
        tmp_path / "a.json", {"a": float("nan"), "b": [float("inf"), (1.5, -float("inf"))], "c": "NaN", "d": True}
    )
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text, parse_constant=lambda name: pytest.fail(name)) == {
        "a": None,
        "b": [None, [1.5, None]],
        "c": "NaN",
        "d": True,
    }
    assert without_infinities(3) == 3


def test_10_defects_keep_their_traceback(tmp_path, monkeypatch):
    def broken(self, index):
        raise ValueError("shapes that cannot be")

    monkeypatch.setattr(LineTask, "step", broken)
    line = ["--config", str(tmp_path / "line.yaml"), "--result-dir", str(tmp_path / "run")]
    (tmp_path / "line.yaml").write_text("task: tests.test_loop:LineTask\n")
    with pytest.raises(ValueError, match="shapes that cannot be") as raised:
        main(line)
    assert "broken" in [frame.name for frame in traceback.extract_tb(raised.value.__traceback__)]

    # Errors from this package's own checks, in the middle of a scene's training, keep their traceback too.
    ball = write_blender(tmp_path / "ball", size=16)
    monkeypatch.setattr("splat_ssim.scene.training.render", lambda *a, **k: psnr(torch.ones(2), torch.ones(3)))
    with pytest.raises(RuntimeError):
        main(["--data-dir", str(ball), "--result-dir", str(tmp_path / "scene"), "--output.no-progress"])


def test_10_and_what_the_user_can_mend_is_one_sentence(tmp_path):
    (tmp_path / "line.yaml").write_text("task: tests.test_loop:LineTask\nsteps: 0\n")
    with pytest.raises(SystemExit, match=r"error: steps times steps_scaler must be at least 1, got 0 times 1\.0"):
        main(["--config", str(tmp_path / "line.yaml")])


def test_12_memory_is_in_bytes_on_every_system(monkeypatch):
    monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=5_000))
    cpu = torch.device("cpu")
    for platform, expected in (("linux", 5_120_000), ("darwin", 5_000)):
        monkeypatch.setattr(sys, "platform", platform)
        assert device.peak_memory(cpu) == expected
    # Windows does not have this module.
    monkeypatch.setitem(sys.modules, "resource", None)
    assert device.peak_memory(cpu) is None


def test_a_failed_write_leaves_nothing_behind(tmp_path):
    class Unwritable:
        def __reduce__(self):
            raise RuntimeError("disk full")

    task = LineTask(line_config(tmp_path / "run"))
    one = Run(task)
    task.state_dict = lambda: {"bad": Unwritable()}
    with pytest.raises(RuntimeError, match="disk full"):
        one.save()
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["checkpoint.pt", "config.yaml"]
