import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from splat_ssim.trainer.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from splat_ssim.trainer.cli import main
from tests.scenes import write_blender

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")


def test_round_trip_restores_the_generator(tmp_path):
    torch.manual_seed(3)
    save_checkpoint(tmp_path, {"step": 7, "splats": {"means": torch.arange(3.0)}})
    expected = torch.rand(4)
    torch.manual_seed(4)
    state = load_checkpoint(tmp_path, CPU)
    assert state["step"] == 7
    assert state["splats"]["means"].tolist() == [0, 1, 2]
    assert torch.equal(torch.rand(4), expected)


def test_a_write_that_fails_leaves_the_last_checkpoint(tmp_path):
    save_checkpoint(tmp_path, {"step": 1})

    class Unwritable:
        def __reduce__(self):
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        save_checkpoint(tmp_path, {"step": 2, "bad": Unwritable()})
    assert load_checkpoint(tmp_path, CPU)["step"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_errors(tmp_path):
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt: required a checkpoint, got nothing there"):
        load_checkpoint(tmp_path, CPU)
    save_checkpoint(tmp_path, {"step": 1})
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="required a checkpoint of splat_ssim"):
        load_checkpoint(tmp_path, CPU)


def start(*arguments: object) -> subprocess.Popen:
    # One thread, so that this process does not wait at every barrier for processors that other tests use.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def run(*arguments: object) -> None:
    process = start(*arguments)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors.decode()


def kill_after_a_checkpoint(folder: Path, *options: object) -> None:
    """Begins a run and kills it before its end, once it has a checkpoint later than step 0."""
    killed = start(*options, "--result-dir", folder)
    checkpoint, first = folder / "checkpoint.pt", None
    while first is None or checkpoint.stat().st_ino == first:
        assert killed.poll() is None, killed.stderr.read().decode()
        if first is None and checkpoint.exists():
            first = checkpoint.stat().st_ino
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (folder / "metrics.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["capped", "mcmc"])
def test_a_killed_run_resumed_ends_like_an_uninterrupted_one(tmp_path, strategy):
    options = ["--data-dir", write_blender(tmp_path / "scene"), "--steps", 200, "--checkpoint-every", 40]
    options += ["--model.init-count", 60, "--strategy.budget", 120, "--strategy.refine-every", 15]
    options += ["--strategy.refine-start", 10, "--strategy.name", strategy]
    options += ["--strategy.growth", 0.2] if strategy == "capped" else []
    main([*map(str, options), "--result-dir", str(tmp_path / "whole"), "--output.no-progress"])

    kill_after_a_checkpoint(tmp_path / "killed", *options)
    assert load_checkpoint(tmp_path / "killed", CPU, restore_generators=False)["step"] < 200

    (tmp_path / "killed" / "checkpoint.pt.tmp").write_bytes(b"cut short")
    # A fresh process for one of them: nothing of the run is left but its folder.
    resume = run if strategy == "capped" else lambda *line: main([*map(str, line), "--output.no-progress"])
    resume("--resume", tmp_path / "killed")
    whole, resumed = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("whole", "killed"))
    # These measure the process, not the scene.
    for measured in ("train_seconds", "peak_memory_bytes"):
        del whole[measured], resumed[measured]
    assert resumed == whole
    assert whole["num_gaussians"] > 60
    for name in ("scene.ply", "pictures/0000.png"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not list((tmp_path / "killed").glob("*.tmp"))
