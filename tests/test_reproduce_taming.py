import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import tyro

from splat_ssim.scene.config import SceneConfig as Config
from splat_ssim.scene.strategies import make_strategy
from splat_ssim.trainer.config import from_mapping, read_yaml
from tests.scenes import write_colmap

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "reproduce_taming.py"
sys.path.insert(0, str(SCRIPT.parent))

import reproduce_taming  # noqa: E402


def here(*arguments):
    """Runs the script in this process, which has imported torch. Returns its status."""
    return reproduce_taming.main(tyro.cli(reproduce_taming.Options, args=[*map(str, arguments)]))


def run(*arguments):
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, timeout=120)


def test_dry_run_names_each_scene_s_images_and_budget(tmp_path, capsys):
    for scene in ("room", "truck"):
        (tmp_path / "data" / scene).mkdir(parents=True)
    base = ("--dataset-root", tmp_path / "data", "--result-dir", tmp_path / "out", "--dry-run")
    assert here(*base, "--scenes", "room", "truck", "garden") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "--data.factor 2" in lines[0] and lines[0].endswith("--strategy.budget-multiplier 2")
    assert "--data.factor 1" in lines[2] and "taming_budget.yaml" in lines[2]
    assert lines[-1] == f"garden: skipped: {tmp_path / 'data' / 'garden'} is missing"
    assert here(*base, "--mode", "big", "--scenes", "room") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("--strategy.budget 1548960") and "taming_big.yaml" in lines[0]


@pytest.mark.parametrize("mode,every,events", [("budget", 500, 28), ("big", 100, 144)])
def test_the_configs_are_the_published_schedule(mode, every, events):
    path = ROOT / "configs" / f"taming_{mode}.yaml"
    config = from_mapping(Config, read_yaml(path), str(path)).resolved()
    strategy = make_strategy(config.strategy, lambda count: iter(()))
    assert (config.steps, config.model.sh_degree_interval, strategy.num_views) == (30_000, 1000, 10)
    assert strategy.event_steps == [step for step in range(500 + every, 15_000, every)]
    assert len(strategy.event_steps) == events
    assert (strategy.grow_grad2d, strategy.grow_scale3d) == (2e-4, 0.01)
    assert (strategy.prune_opa, strategy.prune_scale3d, strategy.prune_fraction) == (0.005, 0.1, 0.5)
    resets = [step for step in range(1, strategy.refine_stop_iter) if step % strategy.reset_every == 0]
    assert resets == [3000, 6000, 9000, 12000] and strategy.reset_opacity == 0.01
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.sh_every, optimizer.means, optimizer.means_final) == (
        *("sparse_adam", 16),
        *(1.6e-4, 1.6e-6),
    )
    rates = (optimizer.sh0, optimizer.shN, optimizer.opacities, optimizer.scales, optimizer.quats)
    assert rates == (2.5e-3, 2.5e-4, 0.025, 5e-3, 1e-3)
    # Only the learning rate of positions decays.
    assert optimizer.decay_start == config.steps


@pytest.mark.long
def test_a_failed_scene_stops_no_other_and_an_interrupted_one_goes_on(tmp_path):
    data, out = tmp_path / "data", tmp_path / "out"
    (data / "counter").mkdir(parents=True)
    write_colmap(data / "room")
    # 60 steps of 30,000.
    options = ("--dataset-root", data, "--result-dir", out, "--device", "cpu", "--steps-scaler", 0.002)
    done = run(*options, "--scenes", "counter", "kitchen", "room")
    assert done.returncode == 1, done.stderr
    assert "counter: failed with exit status 1; run again to resume it" in done.stdout
    assert f"kitchen: skipped: {data / 'kitchen'} is missing" in done.stdout
    assert "room: done" in done.stdout
    metrics = json.loads((out / "room" / "metrics.json").read_text())
    # Three points at first, twice as many at the end.
    assert metrics["num_gaussians"] == metrics["budget"] == metrics["budget_curve"][-1] == 6
    assert len(metrics["budget_counts"]) == 28 and metrics["budget_counts"] == metrics["budget_curve"]
    text = (out / "results.md").read_text()
    assert "* counter: failed" in text and "* kitchen: skipped" in text and "LPIPS is n/a:" in text
    assert (out / "results.png").stat().st_size > 0
    (line,) = csv.DictReader((out / "results.csv").open())
    assert (line["scene"], line["lpips"], line["num_gaussians"]) == ("room", "n/a", "6")
    assert line["psnr_published"] == "31.390" and int(line["peak_memory_bytes"]) > 0

    # The run was killed before its evaluation, but it has a checkpoint.
    (out / "room" / "metrics.json").unlink()
    done = run(*options, "--scenes", "room")
    assert done.returncode == 0 and f"--resume {out / 'room'}" in done.stdout, done.stderr
    assert json.loads((out / "room" / "metrics.json").read_text())["psnr"] == metrics["psnr"]
    done = run(*options, "--scenes", "room")
    assert done.returncode == 0 and "room: done before" in done.stdout


def test_unknown_scene(tmp_path):
    done = run("--dataset-root", tmp_path, "--scenes", "kitchenette")
    assert done.returncode == 1 and "got kitchenette" in done.stderr


def test_finished_scenes_are_set_beside_the_published_figures(tmp_path):
    metrics = {"psnr": 30.0, "ssim": 0.8, "num_gaussians": 100, "train_seconds": 9.0, "peak_memory_bytes": 10}
    for scene, psnr in (("truck", 24.0), ("train", 22.0), ("room", 31.0)):
        folder = tmp_path / "out" / scene
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text(json.dumps({**metrics, "psnr": psnr}))
    assert here("--dataset-root", tmp_path, "--result-dir", tmp_path / "out", "--scenes", "truck", "train", "room") == 0
    rows = {(row["dataset"], row["scene"]): row for row in csv.DictReader((tmp_path / "out" / "results.csv").open())}
    assert rows["Mip-NeRF 360", "room"]["psnr_difference"] == "-0.390"  # 31.0 against the published 31.39
    # Both scenes of Tanks & Temples are there, so their mean is set beside the published 23.89.
    mean = rows["Tanks & Temples", "mean"]
    assert (mean["psnr"], mean["psnr_difference"], mean["lpips"]) == ("23.000", "-0.890", "n/a")
    assert (mean["num_gaussians_published"], mean["num_gaussians_difference"]) == ("290000", "-289900")
    assert ("Mip-NeRF 360", "mean") not in rows
