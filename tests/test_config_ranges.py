"""Invalid numbers on the command line are refused by one sentence before anything is read."""

import dataclasses
import math

import pytest
import torch

from splat_ssim.image import ImageConfig
from splat_ssim.scene.config import LEARNING_RATES, SceneConfig
from splat_ssim.scene.optimizers import make_optimizers, set_learning_rates
from splat_ssim.trainer.cli import main, parse
from splat_ssim.trainer.config import ConfigError
from splat_ssim.trainer.loop import Run
from splat_ssim.volume.config import VolumeConfig
from tests.scenes import write_blender

VOLUME = ["--config", "configs/voxel_mri.yaml"]
IMAGE = ["--config", "configs/image.yaml"]


@pytest.mark.parametrize(
    "line,text",
    [
        (["--seed", "-1"], r"seed must be from 0 to 9223372036854775807, got -1"),
        (["--seed", "99999999999999999999"], r"seed must be from 0 to .*, got 99999999999999999999"),
        ([*VOLUME, "--seed", "-1"], r"seed must be from 0"),
        ([*IMAGE, "--seed", "-1"], r"seed must be from 0"),
        (["--steps-scaler", "inf"], r"steps_scaler must be finite, got inf"),
        (["--steps-scaler", "nan"], r"steps_scaler must be finite, got nan"),
        (["--steps-scaler", "-1"], r"steps times steps_scaler must be at least 1, got 6500 times -1\.0"),
        (["--opacity-penalty", "nan"], r"opacity_penalty must be finite, got nan"),
        (["--optimizer.scales", "nan"], r"optimizer\.scales must be finite, got nan"),
        (["--optimizer.means", "-1"], r"optimizer\.means must be at least 0, got -1\.0"),
        (["--optimizer.means-final", "-1"], r"optimizer\.means_final must be at least 0, got -1\.0"),
        ([*VOLUME, "--optimizer.means", "-1"], r"optimizer\.means must be at least 0"),
        ([*VOLUME, "--optimizer.beta2", "1"], r"optimizer\.beta2 must be from 0 to 0\.99"),
        ([*VOLUME, "--tv", "nan"], r"tv must be finite, got nan"),
        ([*IMAGE, "--optimizer.colors", "-1"], r"optimizer\.colors must be at least 0"),
        ([*IMAGE, "--model.sigma", "inf"], r"model\.sigma must be finite, got inf"),
        (
            ["--strategy.name", "default", "--strategy.prune-opacity", "0.9"],
            r"strategy\.prune_opacity must be in \[0, 0\.5\), got 0\.9",
        ),
        (["--strategy.prune-opacity", "1"], r"strategy\.prune_opacity must be in \[0, 1\), got 1\.0"),
        (["--strategy.growth", "-0.1"], r"strategy\.growth must be at least 0, got -0\.1"),
    ],
)
def test_numbers_out_of_range_end_in_one_sentence(line, text, tmp_path):
    with pytest.raises(SystemExit, match=f"^error: {text}"):
        main([*line, "--result-dir", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def floats(config, prefix=""):
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from floats(value, f"{prefix}{field.name}.")
        elif "float" in str(field.type):
            yield prefix + field.name


@pytest.mark.parametrize(
    "kind,name", [(kind, name) for kind in (SceneConfig, VolumeConfig, ImageConfig) for name in floats(kind())]
)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_number_of_a_config_may_be_infinite(kind, name, value):
    config = kind()
    part, _, option = name.rpartition(".")
    setattr(getattr(config, part) if part else config, option, value)
    with pytest.raises(ConfigError, match=f"^{name} must be finite, got {value}$"):
        config.resolved()


def test_positions_may_be_frozen(tmp_path):
    """F13: a rate of 0 was once divided by itself."""
    line = ["--data-dir", str(write_blender(tmp_path / "ball", size=16)), "--result-dir", str(tmp_path / "run")]
    task, config = parse([*line, "--steps", "5", "--model.init-count", "30", "--optimizer.means", "0"])
    one = Run(task(config))
    before = one.task.splats["means"].detach().clone()
    one.train()
    assert torch.equal(one.task.splats["means"], before)
    # Every other parameter may be frozen too.
    config = SceneConfig()
    for name in LEARNING_RATES:
        setattr(config.optimizer, name, 0.0)
    resolved = config.resolved()
    optimizers = make_optimizers(one.task.splats, resolved.optimizer)
    for step in (0, 1, resolved.steps):
        set_learning_rates(optimizers, resolved.optimizer, step=step, steps=resolved.steps, extent=2.0)
        assert all(optimizer.param_groups[0]["lr"] == 0 for optimizer in optimizers.values())


def test_the_largest_seed_trains(tmp_path):
    line = ["--data-dir", str(write_blender(tmp_path / "ball", size=16)), "--result-dir", str(tmp_path / "run")]
    line += ["--steps", "8", "--model.init-count", "30", "--output.no-progress", "--seed", str(2**63 - 1)]
    assert math.isfinite(main(line)["psnr"])
