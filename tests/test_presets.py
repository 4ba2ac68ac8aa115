"""Presets, which suit the data and which other options override; growth to the budget; --dry-run; `scene.train`."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from splat_ssim.errors import UserError
from splat_ssim.scene import train
from splat_ssim.scene.data import load_scene
from splat_ssim.scene.presets import KINDS, PRESETS, QUALITIES, preset_values
from splat_ssim.scene.training import SceneTask
from splat_ssim.trainer.cli import main, parse
from splat_ssim.trainer.config import differences
from tests.scenes import disc, write_blender, write_colmap, write_nerfstudio


def config_of(*options):
    return parse([*map(str, options), "--result-dir", "unused"])[1]


@pytest.fixture
def ball(tmp_path):
    return write_blender(tmp_path / "ball")


@pytest.fixture
def street(tmp_path):
    return write_colmap(tmp_path / "street", points=30)


def test_every_preset_is_a_whole_config():
    assert set(PRESETS) == {(kind, quality) for kind in KINDS for quality in QUALITIES}
    for kind, quality in PRESETS:
        config = config_of("--preset", kind, "--quality", quality)
        assert (config.preset, config.quality) == (kind, quality)
        config.resolved()
    lengths = [[config_of("--preset", kind, "--quality", quality).steps for quality in QUALITIES] for kind in KINDS]
    assert all(fast < default < most for fast, default, most in lengths)


def test_the_preset_follows_the_data(ball, street, tmp_path):
    assert config_of("--data-dir", ball).preset == "object"
    assert config_of("--data-dir", street).preset == "photos"
    silhouettes = write_nerfstudio(tmp_path / "nerfstudio")
    assert config_of("--data-dir", silhouettes).preset == "photos"
    for path in (silhouettes / "images").iterdir():
        Image.fromarray(disc(32)).save(path)
    assert config_of("--data-dir", silhouettes).preset == "object"
    assert config_of(f"--data_dir={street}").preset == "photos"


def test_what_is_asked_for_lies_above_the_preset(street, tmp_path):
    config = config_of("--data-dir", street, "--quality", "fast", "--steps", 77, "--strategy.budget", 5)
    values = PRESETS["photos", "fast"]
    assert (config.steps, config.strategy.budget) == (77, 5)
    assert config.strategy.refine_every == values["strategy"]["refine_every"]
    file = tmp_path / "own.yaml"
    file.write_text("preset: photos\nstrategy: {budget: 9}\n")
    config = config_of("--config", file)
    assert (config.steps, config.strategy.budget) == (PRESETS["photos", "default"]["steps"], 9)


def test_a_config_file_without_a_preset_has_none(street, tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("steps: 50\n")
    config = config_of("--config", file, "--data-dir", street)
    plain = config_of("--preset", "none", "--steps", 50, "--data-dir", street)
    assert config.preset == "none" and not differences(config, plain)


@pytest.mark.parametrize(("name", "options"), [("chair", []), ("fast", ["--quality", "fast"])])
def test_a_file_of_a_preset_is_the_preset(name, options):
    file = Path(__file__).parent.parent / "configs" / f"{name}.yaml"
    assert not differences(config_of(*options), config_of("--config", file))


@pytest.mark.parametrize(("value", "told"), [("[photos]", r"\['photos'\]"), ("landscape", "'landscape'"), ("3", "3")])
def test_a_preset_that_a_file_misspells_is_told_with_the_file(street, tmp_path, value, told):
    path = tmp_path / "own.yaml"
    path.write_text(f"data_dir: {street}\npreset: {value}\n")
    with pytest.raises(UserError, match=rf"own\.yaml: preset: required one of auto, object, photos, none, got {told}"):
        parse(["--config", str(path)])


def test_a_resumed_run_keeps_its_preset(street, tmp_path):
    options = ["--data-dir", str(street), "--quality", "fast", "--steps", "3", "--output.no-progress"]
    main([*options, "--result-dir", str(tmp_path / "run")])
    config = parse(["--resume", str(tmp_path / "run")])[1]
    assert (config.preset, config.quality, config.steps) == ("photos", "fast", 3)


def test_an_unknown_preset_is_one_sentence(ball):
    with pytest.raises(ValueError, match=r"required a preset among auto, none, object, photos and a"):
        preset_values("objects", "fast", ball)


# --- growth


@pytest.mark.parametrize(("steps", "budget"), [(1200, 200), (2400, 400), (6000, 100)])
def test_a_sparse_start_reaches_its_budget(street, steps, budget):
    options = ("--data-dir", street, "--preset", "none", "--steps", steps, "--strategy.budget", budget)
    task = SceneTask(config_of(*options))
    assert not any("less than the budget" in note for note in task.notes), task.notes
    assert 0.05 <= task.config.strategy.growth <= 0.5
    count, strategy = len(task.splats["means"]), task.strategy
    for step in range(steps):
        if strategy.refine_start_iter < step < strategy.refine_stop_iter and step % strategy.refine_every == 0:
            count = min(budget, count + max(int(strategy.growth * count), 1))
    assert count == budget


def test_a_growth_that_is_given_stays(street):
    options = ("--data-dir", street, "--preset", "none", "--steps", 600, "--strategy.budget", 4000)
    task = SceneTask(config_of(*options, "--strategy.growth", 0.1))
    assert task.config.strategy.growth == 0.1 and any("less than the budget" in note for note in task.notes)


# --- dry run


def test_a_dry_run_says_what_it_would_do_and_writes_nothing(street, tmp_path, capsys):
    folder = tmp_path / "run"
    result = main(["--data-dir", str(street), "--quality", "fast", "--dry-run", "--result-dir", str(folder)])
    lines = capsys.readouterr().out.splitlines()
    assert result == {} and not folder.exists()
    assert lines[0] == "preset photos, quality fast (--preset, --quality)"
    assert lines[1].startswith("street (colmap): 1 training and 1 test views")
    assert lines[-3].startswith("would train 2000 steps, 2000.0 for each view, at 1/4 of the size, then 1/2, full from")
    assert lines[-2].startswith("30 Gaussians at the start, at most 40000, by capped until step 1200; loss fused_ssim")
    assert "GB of memory" in lines[-1] and "are free" in lines[-1]


def test_the_memory_that_is_told_is_about_right(ball):
    """The estimate grows with the number of Gaussians by the memory that they take."""
    from splat_ssim.scene.plan import memory_bytes

    task = SceneTask(config_of("--data-dir", ball))
    few, many = (memory_bytes(task.scene, task.config, count) for count in (1000, 101_000))
    gaussian = sum(param[0].numel() for param in task.splats.values())
    assert many - few == 100_000 * gaussian * 4 * 5


# --- from Python


def test_train_from_python_is_the_command_line(ball, tmp_path):
    command = ["--data-dir", str(ball), "--steps", "40", "--strategy.budget", "80", "--model.init-count", "60"]
    metrics = main([*command, "--result-dir", str(tmp_path / "run"), "--output.no-progress"])
    trained = train(ball, steps=40, budget=80, options={"model": {"init_count": 60}})
    for name in ("psnr", "ssim", "num_gaussians", "step"):
        assert trained.metrics[name] == metrics[name], name
    again = train(load_scene(ball), steps=40, budget=80, options={"model": {"init_count": 60}})
    assert torch.equal(again.splats["means"], trained.splats["means"])


def test_train_keeps_a_run_where_it_is_told(ball, tmp_path):
    folder = tmp_path / "kept"
    trained = train(ball, steps=5, budget=60, folder=folder, options={"model": {"init_count": 50}})
    assert json.loads((folder / "metrics.json").read_text())["psnr"] == trained.metrics["psnr"]
    assert (folder / "scene.ply").exists() and (folder / "config.yaml").exists()


def test_train_leaves_a_callers_draws_alone_and_no_files(ball, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.rglob("*"))
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    trained = train(ball, steps=3, budget=50, options={"model": {"init_count": 50}})
    assert torch.equal(torch.rand(2), expected) and set(tmp_path.rglob("*")) == before
    picture = trained.render(trained.task.scene.test[0])
    assert picture.shape == (32, 32, 3) and 0 <= float(picture.min()) <= float(picture.max()) <= 1
    trained.save(tmp_path / "out.ply")
    assert (tmp_path / "out.ply").stat().st_size > 1000


def test_train_refuses_what_it_does_not_know(ball, tmp_path):
    with pytest.raises(ValueError, match="options: unknown key 'stepz'"):
        train(ball, options={"stepz": 5})
    with pytest.raises(ValueError, match="required a scene folder, got nothing there"):
        train(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="an empty folder"):
        train(tmp_path / "empty")


def test_a_first_image_that_does_not_decode_is_passed_over(street):
    (street / "images" / "!.png").write_bytes(b"no picture")
    assert config_of("--data-dir", street).preset == "photos"
    assert np.asarray(Image.open(street / "images" / "0.png")).ndim == 3
