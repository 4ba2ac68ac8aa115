import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import splat_ssim
from splat_ssim.scene.cameras import orbit
from splat_ssim.scene.config import SceneConfig as Config
from splat_ssim.scene.evaluation import evaluate
from splat_ssim.scene.model import create_splats, neighbour_distance
from splat_ssim.scene.optimizers import make_optimizers, set_learning_rates
from splat_ssim.scene.training import SceneTask
from splat_ssim.strategy import CappedStrategy, DefaultStrategy, MCMCStrategy, TamingStrategy
from splat_ssim.trainer._old import Trainer
from splat_ssim.trainer.cli import call, evaluate_run, main, parse, render_run
from splat_ssim.trainer.config import ConfigError, from_mapping, read_yaml, write_yaml
from splat_ssim.trainer.metrics import psnr
from tests.scenes import write_blender, write_colmap

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def ball(tmp_path_factory):
    return write_blender(tmp_path_factory.mktemp("scenes") / "ball", size=16)


@pytest.fixture
def options(ball, tmp_path):
    """A command line that trains the ball in a short time."""
    chosen = ["--data-dir", ball, "--result-dir", tmp_path / "run", "--steps", 40, "--model.init-count", 50]
    chosen += ["--strategy.budget", 60, "--strategy.refine-every", 10, "--strategy.refine-start", 5]
    return [*map(str, chosen), "--output.no-progress"]


# Config


def test_yaml_states_differences_and_the_command_line_overrides_them(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("steps: 70\nstrategy:\n  budget: 5000\n  growth: 1e-1\noptimizer: {sh0: 1e-3}\n")
    task, config = parse(["--config", str(path), "--strategy.budget", "6000", "--loss-kwargs", "{lambda_dssim: 0.4}"])
    assert task is SceneTask
    assert (config.steps, config.strategy.budget, config.strategy.growth) == (70, 6000, 0.1)
    assert config.optimizer.sh0 == 1e-3
    assert config.optimizer.means == Config().optimizer.means
    assert config.loss_kwargs == {"lambda_dssim": 0.4}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepz: 3", r"a\.yaml: unknown key 'stepz', required one of config, data_dir"),
        ("strategy: {bugdet: 3}", r"a\.yaml: strategy: unknown key 'bugdet', required one of name, budget"),
        ("steps: many", r"a\.yaml: steps: required int, got 'many'"),
        ("steps: 1.5", r"a\.yaml: steps: required int, got 1\.5"),
        ("profile: 1", r"a\.yaml: profile: required bool, got 1"),
        ("steps: true", r"a\.yaml: steps: required int, got True"),
        ("device: tpu", r"a\.yaml: device: required one of auto, cpu, cuda, got 'tpu'"),
        ("model: 3", r"a\.yaml: model: required a mapping of ModelConfig, got 3"),
        ("task: cooking", r"a\.yaml: task: required one of scene.*, got 'cooking'"),
        ("- 1", r"a\.yaml: required a mapping, got list"),
        ("a: [", r"a\.yaml: required YAML, got a syntax error"),
        ("steps: 5\nseed: 1\nsteps: 6", r"a\.yaml: required YAML, .*: the key 'steps' a second time in line 3$"),
        ("data: {factor: 2, factor: 4}", r"a\.yaml: required YAML, .*: the key 'factor' a second time in line 1$"),
        ("seed: 010", r"a\.yaml: seed: required int, got '010'$"),
        ("steps: 1:30", r"a\.yaml: steps: required int, got '1:30'$"),
        ("output: {save_steps: 5}", r"a\.yaml: output: save_steps: required a list of int, got 5$"),
        ("asks: [a]", r"a\.yaml: unknown key 'asks', required one of config, .*, depth$"),
    ],
)
def test_wrong_yaml_is_refused_by_name(tmp_path, text, message):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        parse(["--config", str(path)])


def test_yaml_means_what_it_says(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("""
        data: &data {factor: 010, test_every: 5}
        later: &more {<<: *data, <<: {background: black}, test_every: 7}
        last: {<<: *more}
        off: {lpips: off, tensorboard: on, far: 1e3, seed: 0, steps: 1_000, date: 08, hex: 0x10}
    """)
    values = read_yaml(path)
    assert values["last"] == {"factor": "010", "test_every": 7, "background": "black"}
    text = {"date": "08", "hex": 16, "steps": 1000, "seed": 0, "far": "1e3"}
    assert values[False] == {"lpips": False, "tensorboard": True, **text}
    config = from_mapping(Config, {"output": {"lpips": False}, "strategy": {"high_opacity": False}}, "a")
    assert (config.output.lpips, config.strategy.high_opacity) == ("off", "off")
    with pytest.raises(ConfigError, match="a: preset: required one of auto, object, photos, none, got False"):
        from_mapping(Config, {"preset": False}, "a")


def test_missing_config_and_contradicting_options(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: required a YAML file, got No such file"):
        parse(["--config", str(tmp_path / "none.yaml")])
    with pytest.raises(ConfigError, match="excludes --config, got both"):
        parse(["--config", "a.yaml", "--resume", "b"])


def test_an_empty_value_is_no_path(capsys):
    # As from "$OUT" where OUT is not set: the working folder would become the run's.
    for words in (["--result-dir", ""], ["--result-dir="]):
        with pytest.raises(SystemExit):
            parse(words)
        assert "required a path, got an empty one" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(SystemExit):
        call("splat_ssim.trainer.cli:evaluate_run", [""])
    assert "required a path, got an empty one" in " ".join(capsys.readouterr().err.split())
    assert parse(["--config", str(ROOT / "configs" / "voxel_mri.yaml"), "--output.format", ""])[1].output.format == ""
    with pytest.raises(ConfigError, match="a: result_dir: required Path, got ''"):
        from_mapping(Config, {"result_dir": ""}, "a")


def test_a_config_in_a_config_is_left_out_with_a_note(tmp_path, capsys):
    (tmp_path / "a.yaml").write_text("config: b.yaml\nsteps: 5")
    assert parse(["--config", str(tmp_path / "a.yaml")])[1].steps == 5
    assert capsys.readouterr().err == f"{tmp_path}/a.yaml: config is left out: a config file does not read another\n"


def test_a_written_config_reads_back_equal(tmp_path):
    config = Config(loss_kwargs={"padding": "valid"}, result_dir=Path("somewhere"), steps=1234).resolved()
    write_yaml(tmp_path / "a.yaml", config)
    assert from_mapping(Config, read_yaml(tmp_path / "a.yaml"), "a") == config
    assert config.resolved() == config


def test_every_schedule_follows_steps_and_steps_scaler():
    config = Config(steps=1000).resolved()
    assert config.model.sh_degree_interval == 100
    assert (config.optimizer.decay_start, config.strategy.refine_stop, config.strategy.reset_every) == (700, 600, 100)
    base = Config(steps=1000)
    base.strategy.refine_stop = 0
    base.model.sh_degree_interval = 40
    base.steps_scaler = 0.5
    scaled = base.resolved()
    assert (scaled.steps, scaled.steps_scaler, scaled.model.sh_degree_interval) == (500, 1.0, 20)
    assert (scaled.strategy.refine_start, scaled.strategy.refine_every, scaled.strategy.refine_stop) == (50, 50, 0)
    # The original config is unchanged.
    assert base.steps == 1000
    assert base.model.sh_degree_interval == 40


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps"),
        ({"checkpoint_every": -1}, "checkpoint_every must be at least 0, got -1"),
        ({"model": {"sh_degree": 4}}, r"model\.sh_degree must be 0, 1, 2 or 3, got 4"),
        ({"model": {"init_opacity": 1.0}}, r"model\.init_opacity must be in \(0, 1\), got 1\.0"),
        ({"strategy": {"budget": 0}}, r"strategy\.budget must be at least 1, got 0"),
    ],
)
def test_values_out_of_range_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        from_mapping(Config, change, "a").resolved()


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configs_are_valid(path):
    _, config = parse(["--config", str(path)])
    assert config.task in read_yaml(path).get("task", "scene")
    if config.task == "scene":
        assert (ROOT / config.data_dir).is_dir()
        config.resolved()


# The run


def test_a_run_writes_what_it_promises(options, tmp_path):
    metrics = main([*options, "--output.tensorboard", "--output.video", "--output.video-frames", "3", "--profile"])
    folder = tmp_path / "run"
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    expected = {"psnr", "ssim", "ssim_padding", "num_gaussians", "train_seconds", "step", "device", "loss"} | {
        "peak_memory_bytes"
    }
    assert set(metrics) == expected
    assert (metrics["step"], metrics["device"], metrics["loss"]) == (40, "cpu", "fused_ssim")
    assert metrics["ssim_padding"] == "same"
    assert 50 <= metrics["num_gaussians"] <= 60
    assert yaml.safe_load((folder / "config.yaml").read_text())["strategy"]["refine_stop"] == 24
    assert len(splat_ssim.load_ply(folder / "scene.ply")["means"]) == metrics["num_gaussians"]
    picture = np.asarray(Image.open(folder / "pictures" / "0001.png"))
    assert picture.shape == (16, 48, 3)
    evaluation = json.loads((folder / "eval" / "0000040.json").read_text())
    assert [view["name"] for view in evaluation["views"]] == ["test/r_0.png", "test/r_1.png"]
    assert np.mean([view["psnr"] for view in evaluation["views"]]) == pytest.approx(metrics["psnr"])
    assert (folder / "orbit.mp4").stat().st_size > 0
    assert list((folder / "tensorboard").iterdir())

    again = evaluate_run(folder)
    assert (again["psnr"], again["ssim"]) == (metrics["psnr"], metrics["ssim"])
    frame = np.asarray(Image.open(render_run(folder, views="test") / "0001.png"))
    assert (frame == picture[:, :16]).all()


def test_training_improves_the_picture(options):
    trainer = Trainer(parse([*options, "--steps", "160"])[1])
    before = trainer.evaluate()["psnr"]
    trainer.run()
    assert trainer.evaluate()["psnr"] > before + 3


def test_equal_seeds_give_equal_scenes(options, tmp_path):
    scenes = []
    for seed in (0, 0, 1):
        trainer = Trainer(parse([*options, "--steps", "12", "--seed", str(seed)])[1])
        trainer.run()
        scenes.append(trainer.splats["means"].detach())
    assert torch.equal(scenes[0], scenes[1])
    assert not torch.equal(scenes[0], scenes[2])


@pytest.mark.parametrize("strategy", ["capped", "default", "mcmc", "taming"])
def test_every_strategy_drives_the_loop(options, strategy):
    if strategy == "default":
        # The strategy without a budget, which refuses one.
        at = options.index("--strategy.budget")
        options = options[:at] + options[at + 2 :]
    metrics = main([*options, "--strategy.name", strategy, "--steps", "30"])
    assert math.isfinite(metrics["psnr"])
    if strategy == "taming":
        assert metrics["budget"] == metrics["num_gaussians"] == 60
        assert metrics["budget_curve"][-1] == 60


def test_the_loop_knows_no_strategy():
    for name in ("trainer/loop.py", "scene/training.py"):
        source = (ROOT / "splat_ssim" / name).read_text()
        assert "isinstance(self.strategy" not in source
        assert "strategy.name" not in source


def own_loss(pred, target, *, mask=None, power=1.0):
    return (pred - target).abs().pow(power).mean(), {"largest": (pred - target).abs().max()}


@pytest.mark.parametrize("loss", ["l1", "ssim", "tests.test_trainer:own_loss"])
def test_a_loss_is_chosen_by_name(options, loss):
    keywords = ["--loss-kwargs", "{power: 2.0}"] if ":" in loss else []
    assert main([*options, "--loss", loss, "--steps", "5", *keywords])["loss"] == loss


def test_fused_and_plain_ssim_train_alike(options, tmp_path):
    results = []
    for loss in ("fused_ssim", "ssim"):
        results.append(main([*options, "--loss", loss, "--steps", "20", "--result-dir", str(tmp_path / loss)])["psnr"])
    # The formulas are equal but summed in different orders. After a few steps the results are still close.
    assert results[0] == pytest.approx(results[1], abs=0.05)


def test_penalties_lower_what_they_penalise(options, tmp_path):
    trainers = []
    for name, penalty in (("without", "0"), ("with", "1")):
        extra = ["--opacity-penalty", penalty, "--scale-penalty", penalty, "--result-dir", str(tmp_path / name)]
        trainer = Trainer(parse([*options, *extra])[1])
        trainer.run()
        trainers.append(trainer.splats)
    for name in ("opacities", "scales"):
        assert trainers[1][name].mean() < trainers[0][name].mean()


def test_a_mask_hides_what_it_covers(tmp_path):
    folder = write_colmap(tmp_path / "scene")
    (folder / "masks").mkdir()
    for index in range(2):
        mask = np.zeros((48, 64), np.uint8)
        mask[:, 32:] = 255
        Image.fromarray(mask).save(folder / "masks" / f"{index}.png.png")
    config = Config(data_dir=folder, result_dir=tmp_path / "run", steps=5)
    config.output.progress = False
    trainer = Trainer(config)
    hidden = trainer.scene.train[0]
    trainer.run()
    hidden.image[:, :32] = 255
    before = trainer.evaluate()
    trainer.scene.test[0].image[:, :32] = 0
    after = trainer.evaluate()
    assert after["psnr"] == before["psnr"]


def test_each_epoch_shows_every_view_once(options):
    trainer = Trainer(parse(options)[1])
    epochs = [[trainer.views.of_step(6 * epoch + i)[0].name for i in range(6)] for epoch in range(3)]
    assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs)
    assert len(set(map(tuple, epochs))) > 1


def test_one_sentence_and_no_traceback_for_what_the_user_can_put_right(tmp_path):
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), "--data-dir", str(tmp_path / "nowhere")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == (
        f"error: {tmp_path / 'nowhere'}: required a scene folder, got nothing there (--data-dir)"
    )
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "results").exists()


def test_wrong_options_end_before_training(options, tmp_path):
    for extra, message in (
        (["--loss", "l3"], "a loss must be one of l1, l2"),
        (["--strategy.name", "adc"], "strategy.name must be one of capped"),
        (["--data.format", "obj"], "format must be auto, blender"),
        (["--model.init", "points"], "requires a scene with a point cloud"),
    ):
        with pytest.raises(SystemExit, match=message):
            main([*options, *extra])
    main([*options, "--steps", "1"])
    with pytest.raises(SystemExit, match="required a new folder for a new run"):
        main(options)


# Parts


def test_psnr_and_evaluation():
    assert psnr(torch.full((1, 3, 4, 4), 0.6), torch.full((1, 3, 4, 4), 0.5)) == pytest.approx(20, abs=1e-4)
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[0] = True
    pred = torch.zeros(1, 3, 4, 4)
    pred[..., 0, :] = 0.1
    assert psnr(pred, torch.zeros(1, 3, 4, 4), mask) == pytest.approx(20, abs=1e-4)


def test_learning_rates():
    config = Config(steps=100).resolved().optimizer
    params = torch.nn.ParameterDict({"means": torch.zeros(1, 3), "sh0": torch.zeros(1, 1, 3)})
    optimizers = make_optimizers(params, config)
    rates = {}
    for step in (0, 50, 70, 85, 100):
        set_learning_rates(optimizers, config, step=step, steps=100, extent=2.0)
        rates[step] = [optimizers[name].param_groups[0]["lr"] for name in ("means", "sh0")]
    assert rates[0] == pytest.approx([2 * config.means, config.sh0])
    assert rates[50] == pytest.approx([2 * math.sqrt(config.means * config.means_final), config.sh0])
    assert rates[70][1] == pytest.approx(config.sh0)
    assert rates[85][1] == pytest.approx(config.sh0 * math.sqrt(config.final_factor))
    assert rates[100] == pytest.approx([2 * config.means_final, config.sh0 * config.final_factor])


def test_initial_gaussians(ball):
    grid = np.stack(np.meshgrid(*[np.arange(4.0)] * 3), -1).reshape(-1, 3)
    assert neighbour_distance(grid) == pytest.approx(1.0)
    assert neighbour_distance(np.zeros((1, 3))).shape == (1,)
    assert neighbour_distance(np.zeros((5, 3))).min() > 0
    from splat_ssim.scene.data import load_scene

    scene = load_scene(ROOT / "assets" / "lund", factor=2)
    splats = create_splats(scene, Config().model, seed=0, device=torch.device("cpu"))
    assert len(splats["means"]) == 1543
    torch.testing.assert_close(torch.sigmoid(splats["opacities"]), torch.full((1543,), 0.1))
    few = create_splats(scene, Config().model, seed=0, device=torch.device("cpu"), max_count=50)
    assert {len(value) for value in few.values()} == {50}
    assert CappedStrategy(budget=50).max_start == MCMCStrategy(cap_max=50).max_start == 50
    assert TamingStrategy(budget=50, score_views=list).max_start == 50
    assert DefaultStrategy().max_start is None
    # The constant harmonic gives the point's colour back.
    colors = 0.5 + 0.28209479 * splats["sh0"][:, 0]
    torch.testing.assert_close(colors, torch.from_numpy(scene.colors), atol=1e-6, rtol=0)


def test_the_orbit_looks_at_the_scene_from_the_cameras_distance(ball):
    from splat_ssim.scene.data import load_scene

    views = orbit(load_scene(ball).train, 8)
    for view in views:
        torch.testing.assert_close(view.viewmat[:3, 3], torch.tensor([0.0, 0.0, 4.0]), atol=1e-4, rtol=0)
        assert torch.linalg.det(view.viewmat).item() == pytest.approx(1, abs=1e-5)
        # Upright: the world's z axis is up in the image.
        assert view.viewmat[1, 2] < -0.5
    centers = torch.stack([view.center for view in views])
    torch.testing.assert_close(centers.roll(-4, 0)[:, :2], -centers[:, :2], atol=1e-4, rtol=0)


def test_evaluation_names_its_padding(options):
    trainer = Trainer(parse(options)[1])
    views = trainer.scene.test
    for padding in ("same", "valid"):
        result = evaluate(lambda view: trainer.render(view)[0], views, ssim_padding=padding)
        assert result["ssim_padding"] == padding
    perfect = evaluate(lambda view: view.pixels().permute(0, 2, 3, 1), views)
    assert perfect["psnr"] == pytest.approx(100)
    assert perfect["ssim"] == pytest.approx(1, abs=1e-5)


def test_what_is_built_and_used():
    command = [sys.executable, "-m", "splat_ssim"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    lines = dict(line.split(":", 1) for line in done.stdout.splitlines())
    assert lines["splat_ssim"].strip() == splat_ssim.__version__
    assert lines["threads"].strip().isdigit()
    assert {"library", "CPU kernels", "CUDA architectures", "torch", "device"} <= set(lines)
