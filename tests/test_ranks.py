"""Several processes train one scene. The result has the same bytes as one process with the same views in a step."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from splat_ssim.errors import UserError
from splat_ssim.scene.config import SceneConfig
from splat_ssim.scene.training import SceneTask
from splat_ssim.trainer.cli import main
from splat_ssim.trainer.ranks import Ranks
from tests import forked
from tests.scenes import write_blender

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gloo of torch for Windows needs libuv")


def arguments_of(scene, folder, *options):
    """A training with every part that processes share."""
    return [
        *("--data-dir", str(scene), "--result-dir", str(folder), "--preset", "none", "--device", "cpu"),
        *("--steps", "12", "--model.init-count", "60", "--strategy.budget", "90", "--output.images", "0"),
        *("--strategy.refine-start", "2", "--strategy.refine-every", "3", "--strategy.refine-stop", "10"),
        *("--exposure.name", "affine", "--poses.refine", "--poses.start", "2", "--opacity-penalty", "0.01"),
        *("--output.no-progress", *options),
    ]


def by_itself(scene, folder, *options):
    """Trains in this process. Returns the path of the checkpoint."""
    main(arguments_of(scene, folder, *options))
    return folder / "checkpoint.pt"


def as_one_of(rank, count, port, arguments):
    """Trains in a process with the environment that torchrun makes."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    main(arguments)


def leaves(path):
    """Name -> tensor or number, for everything in a checkpoint except the times."""
    state = torch.load(path, weights_only=True)
    state.pop("train_seconds")
    return dict(torch.utils._pytree.tree_flatten_with_path(state)[0])


def test_two_processes_write_the_checkpoint_of_one(tmp_path):
    scene = write_blender(tmp_path / "scene", train=7)
    one, two = by_itself(scene, tmp_path / "one", "--batch-size", "2"), tmp_path / "two" / "checkpoint.pt"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(ROOT / "scripts" / "train.py")]
    command = [sys.executable, *launcher, *arguments_of(scene, tmp_path / "two", "--batch-size", "2")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
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
    for path in (one, two):
        by_itself(scene, path.parent, *longer, "--resume", str(path.parent))
    splats = [torch.load(path, weights_only=True)["splats"] for path in (one, two)]
    assert all(torch.equal(splats[0][name], splats[1][name]) for name in splats[0])


@pytest.mark.slow
def test_three_processes_with_a_view_each_write_the_checkpoint_of_one(tmp_path):
    scene = write_blender(tmp_path / "scene", train=7)
    one, three = by_itself(scene, tmp_path / "one", "--batch-size", "3"), tmp_path / "three" / "checkpoint.pt"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    forked.start(as_one_of, (3, port, arguments_of(scene, tmp_path / "three", "--batch-size", "3")), 3)
    splats = [torch.load(path, weights_only=True)["splats"] for path in (one, three)]
    assert all(torch.equal(splats[0][name], splats[1][name]) for name in splats[0])


def test_views_that_cannot_be_shared_evenly_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("splat_ssim.scene.training.launched", lambda: Ranks(0, 2))
    config = SceneConfig(data_dir=write_blender(tmp_path), batch_size=3, device="cpu")
    with pytest.raises(UserError, match=r"batch_size must be a multiple of the 2 processes .* got 3 \(--batch-size\)"):
        SceneTask(config)


def test_a_task_that_does_not_share_its_steps_is_refused_in_two_processes(tmp_path, monkeypatch):
    """As torchrun starts the first of two; that the second is there too is known of the tests above."""
    np.save(tmp_path / "a.npy", np.linspace(0, 1, 512, dtype=np.float32).reshape(8, 8, 8))
    line = ["--config", "configs/voxel_grid.yaml", "--data-dir", tmp_path / "a.npy", "--result-dir", tmp_path / "run"]
    for name, value in {"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    # The processes would meet here.
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    with pytest.raises(SystemExit, match=r"^error: .*required one process, got 2 \(torchrun\)$"):
        main([*map(str, line), "--steps", "2", "--device", "cpu", "--output.no-progress"])
