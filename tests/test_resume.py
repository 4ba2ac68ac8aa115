"""Protection of run folders, and changes by --resume, which are recorded or refused by one sentence."""

import json
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from splat_ssim.errors import UserError
from splat_ssim.scene.data import load_scene
from splat_ssim.scene.export import export
from splat_ssim.scene.reading import scene_fingerprint
from splat_ssim.trainer import run
from splat_ssim.trainer.checkpoint import saved_step
from splat_ssim.trainer.cli import evaluate_run, main, render_run
from splat_ssim.trainer.config import ConfigError, read_yaml
from splat_ssim.trainer.folder import held
from splat_ssim.trainer.loop import Run
from tests.scenes import write_blender, write_colmap, write_nerfstudio
from tests.test_loop import LineConfig, LineTask, config


def part_of(folder, steps, task=LineTask, **changes):
    """A run that is killed after the given number of steps, with a checkpoint of the last step."""
    one = Run(task(config(folder, **changes)))
    while one.step < steps:
        one.task.step(one.step)
        one.step += 1
    one.save()
    return one


# --- F2 of the trainer's cases, W7 of the volumes'


def test_the_same_command_again_leaves_the_checkpoint(tmp_path):
    folder = tmp_path / "run"
    part_of(folder, 30)
    before = (folder / "checkpoint.pt").read_bytes()
    with pytest.raises(UserError, match=r"got one with a run at step 30: --resume it or choose another --result-dir$"):
        run(LineTask(config(folder)))
    assert (folder / "checkpoint.pt").read_bytes() == before and saved_step(folder) == 30
    (folder / "checkpoint.pt").write_bytes(b"torn")
    with pytest.raises(UserError, match="got one with an unreadable checkpoint: --resume it or"):
        run(LineTask(config(folder)))


def test_a_run_that_never_got_anywhere_is_begun_again(tmp_path):
    Run(LineTask(config(tmp_path / "run")))
    assert run(LineTask(config(tmp_path / "run")))["step"] == 60


# --- W16


@pytest.mark.parametrize("below", [(), ("deeper",), ("deeper", "still")])
def test_a_result_dir_that_is_a_file_is_refused_before_the_data_are_read(tmp_path, below):
    (tmp_path / "file").write_text("")
    folder = Path(tmp_path / "file", *below)
    text = f"^error: {folder}: required a folder to write to, got the file {tmp_path / 'file'} "
    with pytest.raises(SystemExit, match=text):
        main(["--data-dir", str(tmp_path / "nowhere"), "--result-dir", str(folder)])


def test_a_result_dir_without_permission_is_refused(tmp_path, monkeypatch):
    # Root may write anywhere, so os.access is replaced.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    folder = tmp_path / "a" / "b"
    with pytest.raises(
        SystemExit, match=rf"{folder}: required a folder to write to, got no permission for {tmp_path} "
    ):
        main(["--data-dir", str(tmp_path / "nowhere"), "--result-dir", str(folder)])
    monkeypatch.undo()

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(UserError, match="required a folder to write to, got No space left on device"):
        run(LineTask(config(folder)))


def test_one_folder_holds_one_live_run(tmp_path):
    folder = tmp_path / "run"
    text = f"^{folder}: required a folder that no other run writes to, got one in use$"
    with held(config(folder), "line"):
        # Its checkpoint of step 0 looks like that of a run that died.
        before = Run(LineTask(config(folder))) and (folder / "checkpoint.pt").read_bytes()
        for options in (config(folder), LineConfig(resume=folder)):
            with pytest.raises(UserError, match=text):
                run(LineTask(options))
        assert (folder / "checkpoint.pt").read_bytes() == before
    assert run(LineTask(LineConfig(resume=folder)))["step"] == 60
    assert run(LineTask(LineConfig(resume=folder, steps=61)))["step"] == 61


# --- F3


def test_what_a_resume_changes_is_written_down(tmp_path, capfd):
    folder = tmp_path / "run"
    run(LineTask(config(folder)))
    part = LineTask(LineConfig(resume=folder, steps=300, target=5.0))
    assert (folder / "metrics.json").exists()
    one = Run(part)
    told = capfd.readouterr().err
    assert f"{folder}: goes on with steps 300 instead of 60\n" in told
    assert f"{folder}: goes on with target 5.0 instead of 3.0\n" in told
    assert "schedules keep their steps" in told
    # The run is no longer finished. If it were killed now, --resume would go on to the new end with the new options.
    assert not (folder / "metrics.json").exists()
    assert one.step == 60
    saved = read_yaml(folder / "config.yaml")
    assert saved["steps"] == 300 and saved["resume"] is None and saved["task"] == "tests.test_loop:LineTask"
    metrics = main(["--resume", str(folder)])
    assert metrics["step"] == 300 and metrics["value"] == pytest.approx(5)
    assert evaluate_run(folder)["value"] == metrics["value"]
    # Without a change, nothing is written, and only the result is printed.
    before = (folder / "config.yaml").stat().st_mtime_ns
    capfd.readouterr()
    main(["--resume", str(folder)])
    assert (folder / "config.yaml").stat().st_mtime_ns == before and "goes on" not in capfd.readouterr().err


def test_a_run_cannot_end_before_it_is(tmp_path):
    part_of(tmp_path / "run", 30)
    with pytest.raises(SystemExit, match=r"--resume: steps must be at least the 30 that .*run has done, got 20"):
        main(["--resume", str(tmp_path / "run"), "--steps", "20"])
    assert read_yaml(tmp_path / "run" / "config.yaml")["steps"] == 60
    with pytest.raises(SystemExit, match=r"--resume: seed must stay 0 as in .*run, got 3: the draws of the run are"):
        main(["--resume", str(tmp_path / "run"), "--seed", "3"])
    with pytest.raises(ConfigError, match="seed must stay 0"):
        LineTask(LineConfig(resume=tmp_path / "run", seed=3))


# --- with data: F3 c, F14, W8 of the volumes' cases


@pytest.fixture
def ball(tmp_path):
    """A scene's run of 20 steps of 40, past the end of its densification."""
    scene = write_blender(tmp_path / "ball", size=16)
    line = ["--data-dir", scene, "--result-dir", tmp_path / "run", "--steps", 20, "--model.init-count", 50]
    line += ["--strategy.budget", 60, "--strategy.refine-every", 5, "--strategy.refine-start", 2, "--output.images", 0]
    main([*map(str, line), "--output.no-progress"])
    return tmp_path / "run"


def test_a_scene_evaluates_as_it_was_resumed(ball, capfd):
    metrics = main(["--resume", str(ball), "--steps", "30", "--model.antialiased", "--data.factor", "2"])
    again = evaluate_run(ball)
    assert (again["psnr"], again["ssim"]) == (metrics["psnr"], metrics["ssim"])
    assert f"{ball}: growth ended at step 12, so the model keeps its size" in capfd.readouterr().err


@pytest.mark.parametrize(
    "change,text",
    [
        (["--strategy.name", "taming"], r"strategy\.name must stay capped as in .*run, got taming: a strategy goes on"),
        (["--strategy.name", "default"], r"strategy\.name must stay capped"),
        (["--model.sh-degree", "2"], r"model\.sh_degree must stay 3 as in .*run, got 2: the Gaussians have"),
        (["--model.init-count", "70"], r"model\.init_count must stay 50 .* it says where a run starts"),
        (["--data.test-every", "3"], r"data\.test_every must stay 8 .* trained on the other views"),
    ],
)
def test_what_a_scene_cannot_change_is_refused(ball, change, text):
    before = {path.name: path.read_bytes() for path in ball.glob("*.*")}
    with pytest.raises(SystemExit, match=f"^error: --resume: {text}"):
        main(["--resume", str(ball), *change])
    assert before == {name: (ball / name).read_bytes() for name in before}


@pytest.mark.parametrize("strategy", ["capped", "default", "mcmc", "taming"])
def test_every_strategy_resumes_in_the_middle_of_its_growth_and_as_no_other(tmp_path, strategy):
    scene = write_blender(tmp_path / "ball", size=16)
    line = ["--data-dir", scene, "--result-dir", tmp_path / "run", "--steps", 8, "--model.init-count", 50]
    line += ["--strategy.name", strategy, "--strategy.refine-every", 3, "--strategy.refine-stop", 30]
    line += ["--strategy.refine-start", 2]
    main([*map(str, line), "--output.no-progress"])
    for other in {"capped", "default", "mcmc", "taming"} - {strategy}:
        with pytest.raises(SystemExit, match=rf"strategy\.name must stay {strategy} "):
            main(["--resume", str(tmp_path / "run"), "--strategy.name", other, "--steps", "12"])
    assert main(["--resume", str(tmp_path / "run"), "--steps", "12"])["step"] == 12


def test_taming_keeps_its_budget_curve(tmp_path):
    line = ["--data-dir", str(write_blender(tmp_path / "ball", size=16)), "--result-dir", str(tmp_path / "run")]
    line += ["--steps", "8", "--model.init-count", "50", "--strategy.name", "taming", "--strategy.budget", "60"]
    main([*line, "--output.no-progress"])
    with pytest.raises(SystemExit, match=r"strategy\.budget must stay 60 .*: the budget curve was made from it"):
        main(["--resume", str(tmp_path / "run"), "--strategy.budget", "90"])


def test_another_scene_is_refused_and_a_moved_one_is_not(ball, tmp_path):
    other = write_blender(tmp_path / "other", train=5, size=16)
    text = rf"{other}: required the data that {ball} was trained on, 6 training and 2 test views .*, got 5"
    with pytest.raises(SystemExit, match=text):
        main(["--resume", str(ball), "--data-dir", str(other)])
    moved = (tmp_path / "ball").rename(tmp_path / "moved")
    metrics = main(["--resume", str(ball), "--data-dir", str(moved)])
    assert metrics["step"] == 20 and read_yaml(ball / "config.yaml")["data_dir"] == str(moved)
    for look in (evaluate_run, render_run, partial(export, formats=("spz",), views=1)):
        with pytest.raises(UserError, match=rf"^{other}: required the data that {ball} was trained on, 6 training"):
            look(ball, data_dir=other)
    main(["--resume", str(ball)])


def test_changed_lenses_are_refused(ball, tmp_path):
    path = tmp_path / "ball" / "transforms_train.json"
    before = path.read_text()
    path.write_text(before.replace('"camera_angle_x": 0.69', '"camera_angle_x": 0.7'))
    with pytest.raises(
        SystemExit, match=r"required the data .* 6 training and 2 test views \(checksum (\w+)\), lenses"
    ):
        main(["--resume", str(ball)])
    path.write_text(before)
    # Older checkpoints know the names and the poses alone.
    state = torch.load(ball / "checkpoint.pt", weights_only=True)
    state["data"] = state["data"].partition(", lenses")[0]
    torch.save(state, ball / "checkpoint.pt")
    assert main(["--resume", str(ball), "--steps", "21"])["step"] == 21


def test_lenses_are_the_same_at_any_size(tmp_path):
    opencv = {"camera_model": "OPENCV", "k1": 0.1, "p1": 0.01}
    folders = [
        write_blender(tmp_path / "blender", train=1, test=1, size=37),
        write_nerfstudio(tmp_path / "nerfstudio", count=1, size=37),
        write_nerfstudio(tmp_path / "lens", count=1, size=37, **opencv),
        write_colmap(tmp_path / "colmap", camera="OPENCV 64 48 40 41 32 24 0.1 0.01 0.001 0.001"),
    ]
    found = []
    for folder in folders:
        of_sizes = {scene_fingerprint(load_scene(folder, factor=factor)) for factor in (1, 2)}
        assert len(of_sizes) == 1
        found += of_sizes
    write_nerfstudio(folders[2], count=1, size=37, **{**opencv, "k1": 0.11})
    assert scene_fingerprint(load_scene(folders[2])).partition(",")[0] == found[2].partition(",")[0]
    assert scene_fingerprint(load_scene(folders[2])) != found[2] != found[1]


def test_a_volume_that_was_exchanged_is_refused(tmp_path):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "scan.npy", rng.random((9, 8, 7)).astype(np.float32))
    line = ["--config", "configs/voxel_mri.yaml", "--data-dir", str(tmp_path / "scan.npy"), "--steps", "4"]
    line += ["--result-dir", str(tmp_path / "run"), "--strategy.budget", "20", "--output.no-progress"]
    line += ["--output.no-video", "--output.format", "npz"]
    main(line)
    with pytest.raises(SystemExit, match=r"required a new folder for a new run, got one with metrics\.json"):
        main(line)
    for data, shape in ((rng.random((5, 8, 7)), "5x8x7"), (rng.random((9, 8, 7)), "9x8x7")):
        np.save(tmp_path / "scan.npy", data.astype(np.float32))
        text = rf"trained on, voxels of shape 1x9x8x7 \(checksum \w+\), got voxels of shape 1x{shape} \(checksum"
        with pytest.raises(SystemExit, match=text):
            main(["--resume", str(tmp_path / "run"), "--steps", "8"])
    assert read_yaml(tmp_path / "run" / "config.yaml")["steps"] == 4
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["step"] == 4
    with pytest.raises(SystemExit, match=r"data\.normalize must stay auto .*: the model has the volume's values as"):
        main(["--resume", str(tmp_path / "run"), "--data.normalize", "none"])
    with pytest.raises(SystemExit, match=r"model\.name must stay gaussians .*, got grid"):
        main(["--resume", str(tmp_path / "run"), "--model.name", "grid"])


def test_an_image_that_was_exchanged_is_refused(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (12, 10, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    line = ["--config", "configs/image.yaml", "--data-dir", str(tmp_path / "a.png"), "--steps", "4"]
    main([*line, "--result-dir", str(tmp_path / "run"), "--model.budget", "20", "--output.no-progress"])
    Image.fromarray(pixels[::-1]).save(tmp_path / "a.png")
    with pytest.raises(SystemExit, match=r"a\.png: required the data that .* on, 10x12 pixels \(.*got 10x12 pixels"):
        main(["--resume", str(tmp_path / "run"), "--steps", "8"])


def test_a_checkpoint_that_does_not_say_its_data_resumes(tmp_path):
    one = part_of(tmp_path / "run", 30)
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert state["data"] is None
    del state["data"]
    torch.save(state, tmp_path / "run" / "checkpoint.pt")
    task = LineTask(LineConfig(resume=tmp_path / "run"))
    task.fingerprint = "a line (checksum 0)"
    assert run(task)["step"] == 60 and one.step == 30
