"""Messages of a scene's task before training: about splits, missing views and small images."""

import pytest

from splat_ssim.scene.config import DataConfig, SceneConfig
from splat_ssim.scene.data import load_scene
from splat_ssim.trainer.cli import evaluate_run, main, render_run
from splat_ssim.trainer.config import ConfigError
from tests.scenes import write_blender, write_nerfstudio


def train(folder, run, *more):
    line = ["--data-dir", folder, "--result-dir", run, "--steps", 4, "--model.init-count", 30, *more]
    return main([*map(str, line), "--output.no-progress"])


def test_without_held_out_views_all_train(tmp_path, capsys):
    scene = write_nerfstudio(tmp_path / "scene", count=5, size=16)
    loaded = load_scene(scene, test_every=0)
    assert len(loaded.train) == 5 and not loaded.test
    assert len(load_scene(scene, test_every=2).test) == 3
    metrics = train(scene, tmp_path / "run", "--data.test-every", 0)
    # W21: the metrics say which views they were computed on.
    assert metrics["evaluated_on"] == "training views"
    assert "evaluated_on training views" in capsys.readouterr().out
    assert evaluate_run(tmp_path / "run")["evaluated_on"] == "training views"
    assert "evaluated_on" not in train(scene, tmp_path / "other")
    with pytest.raises(SystemExit, match=r"^error: data\.test_every must be at least 0, got -1"):
        train(scene, tmp_path / "third", "--data.test-every", -1)


def test_views_that_a_scene_lacks_cannot_be_drawn(tmp_path):
    scene = write_nerfstudio(tmp_path / "scene", count=3, size=16)
    train(scene, tmp_path / "run", "--data.test-every", 0)
    with pytest.raises(ValueError, match=f"--views test requires test views, got a scene without any: {scene}"):
        render_run(tmp_path / "run", views="test")
    assert not (tmp_path / "run" / "test").exists()
    assert len(list(render_run(tmp_path / "run", views="train").iterdir())) == 3


@pytest.mark.parametrize("size,padding", [(8, "valid"), (5, "reflect")])
def test_images_too_small_for_the_padding_are_refused_before_the_training(tmp_path, size, padding):
    scene = write_blender(tmp_path / "ball", size=size)
    with pytest.raises(SystemExit, match=rf"^error: test/r_0\.png: output\.ssim_padding {padding}: "):
        train(scene, tmp_path / "run", "--output.ssim-padding", padding)
    assert not (tmp_path / "run").exists()
    assert train(scene, tmp_path / "run")["step"] == 4


def test_a_video_without_pixels_is_refused_before_the_training(tmp_path):
    scene = write_blender(tmp_path / "dot", size=1)
    with pytest.raises(SystemExit, match=r"^error: a video requires images of at least 2x2 pixels, got 1x1"):
        train(scene, tmp_path / "run", "--output.video")
    assert not (tmp_path / "run").exists()
    train(scene, tmp_path / "run")
    with pytest.raises(ValueError, match="a video requires images of at least 2x2 pixels"):
        render_run(tmp_path / "run")


def test_a_factor_below_one_is_refused():
    with pytest.raises(ConfigError, match=r"data\.factor must be at least 1, got 0"):
        SceneConfig(data=DataConfig(factor=0)).resolved()
