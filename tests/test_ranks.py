"""Several processes train one scene. The result has the same bytes as one process with the same views in a step."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from splat_ssim.errors import UserError
from splat_ssim.scene.config import SceneConfig
from splat_ssim.scene.training import SceneTask
from splat_ssim.trainer.ranks import Ranks
from tests.scenes import write_blender

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gloo of torch for Windows needs libuv")


def train(scene, folder, processes, *options):
    """Trains with every part that processes share. Returns the contents of the checkpoint."""
    launcher = (
        [] if processes == 1 else ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    )
    arguments = [
        *("--data-dir", str(scene), "--result-dir", str(folder), "--preset", "none", "--device", "cpu"),
        *("--steps", "12", "--model.init-count", "60", "--strategy.budget", "90", "--output.images", "0"),
        *("--strategy.refine-start", "2", "--strategy.refine-every", "3", "--strategy.refine-stop", "10"),
        *("--exposure.name", "affine", "--poses.refine", "--poses.start", "2", "--opacity-penalty", "0.01"),
        *options,
    ]
    result = subprocess.run(
        [sys.executable, *launcher, str(ROOT / "scripts" / "train.py"), "--output.no-progress", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
    )
    return result, folder / "checkpoint.pt"


def leaves(path):
    """Name -> tensor or number, for everything in a checkpoint except the times."""
    state = torch.load(path, weights_only=True)
    state.pop("train_seconds")
    return dict(torch.utils._pytree.tree_flatten_with_path(state)[0])


def test_two_processes_write_the_checkpoint_of_one(tmp_path):
    scene = write_blender(tmp_path / "scene", train=7)
    _, one = train(scene, tmp_path / "one", 1, "--batch-size", "2")
    result, two = train(scene, tmp_path / "two", 2, "--batch-size", "2")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("scene (blender)") == 1, "only the first process speaks"
    alone, shared = leaves(one), leaves(two)
    assert alone.keys() == shared.keys()
    for name, value in alone.items():
        same = torch.equal(value, shared[name]) if isinstance(value, torch.Tensor) else value == shared[name]
        assert same, name
    assert len(torch.load(two, weights_only=True)["splats"]["means"]) > 60

    # The run goes on in one process, and ends like a run in one process.
    longer = ("--steps", "14", "--batch-size", "2")
    _, whole = train(scene, tmp_path / "one", 1, *longer, "--resume", str(tmp_path / "one"))
    _, resumed = train(scene, tmp_path / "two", 1, *longer, "--resume", str(tmp_path / "two"))
    splats = [torch.load(path, weights_only=True)["splats"] for path in (whole, resumed)]
    assert all(torch.equal(splats[0][name], splats[1][name]) for name in splats[0])


@pytest.mark.slow
def test_three_processes_with_a_view_each_write_the_checkpoint_of_one(tmp_path):
    scene = write_blender(tmp_path / "scene", train=7)
    _, one = train(scene, tmp_path / "one", 1, "--batch-size", "3")
    result, three = train(scene, tmp_path / "three", 3, "--batch-size", "3")
    assert result.returncode == 0, result.stderr
    splats = [torch.load(path, weights_only=True)["splats"] for path in (one, three)]
    assert all(torch.equal(splats[0][name], splats[1][name]) for name in splats[0])


def test_views_that_cannot_be_shared_evenly_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("splat_ssim.scene.training.launched", lambda: Ranks(0, 2))
    config = SceneConfig(data_dir=write_blender(tmp_path), batch_size=3, device="cpu")
    with pytest.raises(UserError, match=r"batch_size must be a multiple of the 2 processes .* got 3 \(--batch-size\)"):
        SceneTask(config)


def test_a_task_that_does_not_share_its_steps_is_refused_in_two_processes():
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    config = ["--config", "configs/voxel_grid.yaml", "--steps", "2", "--device", "cpu"]
    result = subprocess.run(
        [sys.executable, *launcher, str(ROOT / "scripts" / "train.py"), *config],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
    )
    assert result.returncode != 0
    assert "required one process, got 2 (torchrun)" in result.stderr
