"""Fitting a volume from the command line to the run folder, on small volumes."""

import json

import numpy as np
import pytest
import torch

from splat_ssim.ply import save_ply
from splat_ssim.trainer._old import Fitting
from splat_ssim.trainer.cli import main
from splat_ssim.trainer.config import ConfigError, read_yaml
from splat_ssim.volume import Volume, VoxelGrid, load_volume, save_volume
from splat_ssim.volume.config import VolumeConfig, VolumeOutputConfig
from splat_ssim.volume.distill import distill, radiance_volume
from splat_ssim.volume.export import load_gaussians_ply, load_quantized
from splat_ssim.volume.target import read_target

SHAPE = (18, 20, 16)
GRID = VoxelGrid.regular(SHAPE, spacing=(0.5, 1.0, 2.0), origin=(-3, 4, 5))


def phantom(channels=1):
    """uint8 ellipsoids with a little texture."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    inside = (x**2 + y**2 + z**2 < 0.8) * 0.5 + ((x - 0.2) ** 2 + y**2 + (z + 0.3) ** 2 < 0.15) * 0.3
    volume = inside * (1 + 0.1 * np.sin(9 * x) * np.cos(7 * y))
    scale = np.array([1.0, 0.3, 0.8, 0.5])[:channels]
    return np.round(220 * scale[:, None, None, None] * volume).astype(np.uint8)


def fit_until(config, step):
    """Begins a run and leaves it with a checkpoint of this step, as if it had been interrupted."""
    part = Fitting(config)
    while part.step < step:
        part.fit_step(part.step)
        part.step += 1
        part.change_model()
    part.save()


@pytest.fixture
def scan(tmp_path):
    return save_volume(tmp_path / "scan.nii.gz", Volume(phantom(), GRID))


def run(folder, scan, *more, steps=40):
    arguments = ["--config", "configs/voxel_mri.yaml", "--data-dir", str(scan), "--result-dir", str(folder)]
    arguments += ["--steps", str(steps), "--strategy.budget", "150", "--output.no-progress", *more]
    return main(arguments)


def test_a_run_from_the_command_line(tmp_path, scan):
    metrics = run(tmp_path / "run", scan)
    assert metrics["psnr3d"] > 20 and metrics["ssim3d"] > 0.8
    assert metrics["num_gaussians"] == 150 and metrics["bytes"] == 150 * 44
    assert metrics["step"] == 40 and metrics["device"] == "cpu" and metrics["loss"] == "fused_ssim"
    assert metrics["source_bytes"] == scan.stat().st_size
    assert metrics == json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert read_yaml(tmp_path / "run" / "config.yaml")["strategy"]["budget"] == 150
    # The exports have the file's intensities and position.
    exported = load_volume(tmp_path / "run" / "volume.nii.gz")
    np.testing.assert_allclose(exported.grid.matrix, GRID.matrix)
    error = np.square(exported.data.astype(float) - phantom()).mean()
    assert 10 * np.log10(phantom().max() ** 2.0 / error) == pytest.approx(metrics["psnr3d"], abs=0.01)
    field = load_gaussians_ply(tmp_path / "run" / "gaussians.ply")(GRID).clamp(0, 1)
    np.testing.assert_allclose(field.detach().numpy() * phantom().max(), exported.data, atol=0.01)
    quantized = tmp_path / "run" / "gaussians.quantized"
    assert metrics["bytes_quantized"] == quantized.stat().st_size < metrics["bytes"]
    assert len(load_quantized(quantized)) == 150
    assert metrics["psnr3d_quantized"] > metrics["psnr3d"] - 1
    for name in ("slices.png", "mip.mp4"):
        assert (tmp_path / "run" / "pictures" / name).stat().st_size > 0


def test_a_run_that_was_killed_before_its_first_step_goes_on(tmp_path, scan):
    whole = run(tmp_path / "whole", scan, steps=4)
    config = VolumeConfig(data_dir=scan, result_dir=tmp_path / "part", steps=4)
    config.strategy.budget, config.output = 150, VolumeOutputConfig(progress=False)
    fit_until(config, 0)
    resumed = main(["--resume", str(tmp_path / "part")])
    assert resumed["final_loss"] == whole["final_loss"] and resumed["psnr3d"] == whole["psnr3d"]


def test_resuming_gives_the_same_metrics(tmp_path, scan):
    whole = run(tmp_path / "whole", scan)
    # The checkpoint lies between two rounds of growth. The process ends later, without another checkpoint.
    config = VolumeConfig(data_dir=scan, result_dir=tmp_path / "part", steps=40)
    config.strategy.budget, config.output = 150, VolumeOutputConfig(progress=False)
    interrupted = Fitting(config)
    for step in range(12):
        interrupted.fit_step(step)
        interrupted.step += 1
        interrupted.change_model()
        if interrupted.step == 9:
            interrupted.save()
    resumed = main(["--resume", str(tmp_path / "part")])
    # These measure the process, not the fit.
    measured = {"train_seconds": 0, "peak_memory_bytes": 0}
    assert resumed | measured == whole | measured


@pytest.mark.parametrize("name", ["default", "mcmc"])
def test_resuming_a_strategy_gives_the_same_metrics(tmp_path, scan, name):
    config = VolumeConfig(data_dir=scan, steps=30)
    config.strategy.budget, config.strategy.name, config.output = 150, name, VolumeOutputConfig(progress=False)
    config.result_dir = tmp_path / "whole"
    whole = Fitting(config)
    whole.run()
    config.result_dir = tmp_path / "part"
    fit_until(config, 7)
    resumed = main(["--resume", str(tmp_path / "part")])
    assert 75 < resumed["num_gaussians"] <= 150
    assert resumed["psnr3d"] == whole.evaluate()["psnr3d"]


@pytest.mark.parametrize(
    "options",
    [
        ["--crop", "8"],
        ["--loss", "l1"],
        ["--loss", "ssim", "--loss-kwargs", "{lambda_dssim: 0.5}"],
        ["--loss", "torch.nn.functional:mse_loss"],
        ["--tv", "0.01"],
        ["--loss-every", "3"],
        ["--strategy.name", "none"],
        ["--strategy.recycle", "0.2"],
        ["--data.normalize", "percentile", "--data.low", "1", "--data.high", "99"],
        ["--model.name", "grid", "--model.grid-parameters", "700"],
    ],
)
def test_options_all_fit(tmp_path, scan, options):
    metrics = run(tmp_path / "run", scan, "--output.format", "", "--output.no-video", *options, steps=15)
    assert metrics["psnr3d"] > 16.5, metrics


@pytest.mark.parametrize("name", ["capped", "default", "mcmc"])
def test_strategies_of_the_trainer_fit(tmp_path, scan, name):
    metrics = run(tmp_path / "run", scan, "--strategy.name", name, "--output.format", "", "--output.no-video")
    assert metrics["psnr3d"] > 19 and 130 <= metrics["num_gaussians"] <= 150, metrics


@pytest.mark.parametrize("crop", [0, 8])
def test_a_window_for_each_axis(tmp_path, scan, crop):
    """The window comes from a YAML file. A crop's halo follows it, and the metric does not change."""
    yaml = tmp_path / "thick.yaml"
    options = "{window_size: [1, 11, 5], sigma: [1.0, 1.5, 0.8]}"
    yaml.write_text(f"task: volume\ncrop: {crop}\nloss: fused_ssim\nloss_kwargs: {options}\n")
    arguments = ["--config", str(yaml), "--data-dir", str(scan), "--result-dir", str(tmp_path / "run")]
    metrics = main([*arguments, "--steps", "12", "--strategy.budget", "150", "--output.no-progress"])
    assert metrics["psnr3d"] > 10 and 0 < metrics["ssim3d"] < 1
    saved = read_yaml(tmp_path / "run" / "config.yaml")["loss_kwargs"]
    assert saved == {"window_size": [1, 11, 5], "sigma": [1.0, 1.5, 0.8]}
    resumed = main(["--resume", str(tmp_path / "run"), "--steps", "14", "--output.no-progress"])
    assert resumed["step"] == 14


def test_grid_refines_in_levels(tmp_path, scan):
    metrics = run(tmp_path / "run", scan, "--model.name", "grid", "--model.grid-levels", "2", "--output.no-video")
    assert 0.8 * 150 * 11 < metrics["parameters"] <= 150 * 11
    assert metrics["num_gaussians"] == 0 and metrics["bytes"] == 4 * metrics["parameters"]
    assert not (tmp_path / "run" / "gaussians.ply").exists()
    resumed = main(["--resume", str(tmp_path / "run")])
    assert resumed["psnr3d"] == metrics["psnr3d"]


def test_density_and_colour(tmp_path):
    data = phantom(channels=4).astype(np.float32) / 255
    np.save(tmp_path / "rgba.npy", data)
    metrics = run(tmp_path / "run", tmp_path / "rgba.npy", "--output.format", "npz", "--loss", "l1")
    assert metrics["psnr3d"] > 22
    assert metrics["bytes"] == 150 * (11 + 3) * 4
    assert load_volume(tmp_path / "run" / "volume.npz").data.shape == (4, *SHAPE)
    grid = run(
        tmp_path / "grid", tmp_path / "rgba.npy", "--model.name", "grid", "--loss", "l1", "--output.no-video", steps=5
    )
    assert grid["parameters"] <= 150 * 14


def test_a_mask_says_what_counts(tmp_path, scan):
    mask = np.zeros((1, *SHAPE), np.uint8)
    mask[:, :, :10] = 1
    path = save_volume(tmp_path / "mask.nii.gz", Volume(mask, GRID))
    run(tmp_path / "run", scan, "--data.mask", str(path), "--output.no-video")
    data = phantom()[0] / phantom().max()
    fitted = load_volume(tmp_path / "run" / "volume.nii.gz").data[0] / phantom().max()
    error = np.abs(fitted - data)
    assert error[:, :10].mean() < 0.7 * error[:, 10:].mean()
    moved = VoxelGrid.regular(SHAPE, spacing=(0.5, 1.0, 2.0), origin=(-3, 4, 8))
    elsewhere = save_volume(tmp_path / "elsewhere.nii.gz", Volume(mask, moved))
    with pytest.raises(SystemExit, match=r"mask must lie where the volume does, .* up to 1.5 voxels away"):
        run(tmp_path / "again", scan, "--data.mask", str(elsewhere))
    # A file without a position is accepted as it is.
    np.save(tmp_path / "mask.npy", mask[0])
    run(tmp_path / "again", scan, "--data.mask", str(tmp_path / "mask.npy"), "--output.no-video", steps=2)
    empty = save_volume(tmp_path / "empty.nii.gz", Volume(mask * 0, GRID))
    with pytest.raises(SystemExit, match="mask must be one channel of weights"):
        run(tmp_path / "empty", scan, "--data.mask", str(empty))


@pytest.mark.parametrize(
    "change,text",
    [
        (["--loss", "nonsense"], "a loss must be one of"),
        (
            ["--loss-kwargs", "{window_size: [3, 11]}"],
            r"on volumes ValueError: window_size must be one number, or three",
        ),
        (["--strategy.budget", "0"], "strategy.budget must be at least 1"),
        (["--strategy.name", "taming"], "must not be taming for a volume: its score is over training views"),
        (
            ["--strategy.name", "none_such"],
            "one of residual, none, capped, default, mcmc for a volume, got 'none_such'",
        ),
        (["--data.normalize", "window"], "a window must be given by both data.low and data.high"),
        (["--data-dir", "nowhere.nii.gz"], "no volume at nowhere.nii.gz"),
        (["--data-dir", "README.md"], "a volume file must end in one of"),
        (["--data.read", "{spacings: 1}"], "data.read must hold shape, dtype, spacing, .* only, got 'spacings'"),
        (["--data.read", "{spacing: [1, 2]}"], r"spacing must be one finite number or three .*, got \[1, 2\]"),
        (["--data.read", "{spacing: wide}"], "spacing must be one finite number or three .*, got 'wide'"),
        (["--data.read", "{spacing: [0, 1, 1]}"], r"spacing must not be 0, got \[0, 1, 1\]"),
    ],
)
def test_mistakes_end_in_one_sentence(tmp_path, scan, change, text):
    with pytest.raises(SystemExit, match=text):
        run(tmp_path / "run", scan, *change)


def test_a_constant_volume_needs_a_window(tmp_path):
    np.save(tmp_path / "flat.npy", np.zeros((12, 12, 12), np.float32))
    with pytest.raises(ValueError, match="must span a range"):
        read_target(tmp_path / "flat.npy", VolumeConfig().data)
    np.save(tmp_path / "three.npy", np.full((12, 12, 12), 3.0, np.float32))
    metrics = run(tmp_path / "run", tmp_path / "three.npy", "--output.no-video", steps=10)
    assert metrics["psnr3d"] > 5


def test_a_volume_smaller_than_the_window(tmp_path):
    np.save(tmp_path / "tiny.npy", np.random.default_rng(0).random((4, 5, 3)).astype(np.float32))
    metrics = run(tmp_path / "run", tmp_path / "tiny.npy", "--strategy.budget", "20", "--output.no-video", steps=30)
    assert metrics["psnr3d"] > 12


def test_scaled_steps_and_ranges():
    assert VolumeConfig(steps=100, steps_scaler=0.25).resolved().steps == 25
    with pytest.raises(ConfigError, match=r"tv must be at least 0, got -1"):
        VolumeConfig(tv=-1.0).resolved()
    with pytest.raises(ConfigError, match=r"model.start must be from 1e-06 to 1, got 2"):
        config = VolumeConfig()
        config.model.start = 2.0
        config.resolved()


def test_seeds_decide(tmp_path, scan):
    fields = []
    for seed in (0, 0, 1):
        config = VolumeConfig(data_dir=scan, result_dir=tmp_path / "seeds", steps=3, seed=seed)
        config.strategy.budget, config.output.progress = 50, False
        fitting = Fitting(config)
        fitting.run()
        fields.append(fitting.field())
    assert torch.equal(fields[0], fields[1]) and not torch.equal(fields[0], fields[2])


def test_a_trained_scene_becomes_a_volume(tmp_path):
    generator = torch.Generator().manual_seed(0)
    count = 300
    points = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=1)
    red = torch.tensor([1.0, 0.0, 0.0])
    splats = {
        "means": points + torch.tensor([5.0, 0.0, 0.0]),
        "scales": torch.full((count, 3), 0.15).log(),
        "quats": torch.randn(count, 4, generator=generator),
        "opacities": torch.full((count,), 2.0),
        "sh0": ((red - 0.5) / 0.28209479).expand(count, 1, 3),
        "shN": torch.zeros(count, 0, 3),
    }
    save_ply(tmp_path / "scene.ply", splats)
    volume = load_volume(distill(tmp_path / "scene.ply", tmp_path / "scene.npz", size=24))
    assert max(volume.data.shape) <= 30 and volume.data.shape[0] == 4
    density, *colors = volume.data
    # A hollow red ball centred at (5, 0, 0).
    radius = (volume.grid.points() - torch.tensor([5.0, 0.0, 0.0])).norm(dim=-1).numpy()
    assert density[abs(radius - 1) < 0.1].mean() > 10 * density[radius < 0.5].mean()
    np.testing.assert_allclose(colors[0], density, atol=1e-5)
    assert not np.any(colors[1]) and not np.any(colors[2])
    # A surface thinner than a voxel keeps its mass.
    thin = {**splats, "scales": splats["scales"] - 5.0}
    spacing = volume.grid.spacing[0]
    mass = float(radiance_volume(thin, volume.grid)[0].sum()) * spacing**3
    exact = float(torch.sigmoid(torch.tensor(2.0)) * count * (2 * torch.pi) ** 1.5 * (0.15 * np.exp(-5.0)) ** 3)
    assert mass == pytest.approx(exact, rel=0.1)
    with pytest.raises(ValueError, match=r"opacity above 0\.05, got none among 300"):
        save_ply(tmp_path / "clear.ply", {**splats, "opacities": splats["opacities"] - 20})
        distill(tmp_path / "clear.ply", tmp_path / "clear.npz")
