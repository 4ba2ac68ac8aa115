"""The scripts that compare runs: the runs that they start, those that they skip, and the tables that they write."""

import csv
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import tyro
import yaml

from benchmarks import runs
from splat_ssim.trainer.cli import main
from tests.scenes import write_blender

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import ablate  # noqa: E402
import compare_strategies  # noqa: E402


@pytest.fixture
def script(capfd, monkeypatch):
    """Runs a script's main with a command line. Returns the exit status and everything that it and its runs print."""

    def train(line):
        # It runs in this process, because a new one would have to import torch first.
        assert line[1].endswith("train.py")
        try:
            main(line[2:])
        except SystemExit as error:
            print(error.code)
            return SimpleNamespace(returncode=1)
        return SimpleNamespace(returncode=0)

    # subprocess.run itself is not replaced: matplotlib runs fc-list if it has no list of fonts yet.
    monkeypatch.setattr(runs, "subprocess", SimpleNamespace(run=train))

    def run(module, *arguments):
        try:
            status = module.main(tyro.cli(module.Options, args=[str(argument) for argument in arguments]))
        except SystemExit as error:
            return 1, str(error.code)
        return status, "".join(capfd.readouterr())

    return run


def metrics(psnr, seconds, count=100, **more):
    return json.dumps({"psnr": psnr, "ssim": psnr / 40, "num_gaussians": count, "train_seconds": seconds, **more})


def finished(folder, content):
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(content)


@pytest.mark.parametrize("recipe", ["taming", "fast"])
def test_each_variant_takes_one_ingredient_out(script, tmp_path, recipe):
    status, output = script(ablate, "--recipe", recipe, "--dry-run", "--result-dir", tmp_path / "out", "--steps", 300)
    assert status == 0 and not list((tmp_path / "out").iterdir())
    taken = {}
    for line in output.splitlines():
        if "train.py" in line:
            name = line.split("--result-dir ")[1].split()[0].rsplit("/", 1)[1]
            taken[name] = line.split("--output.images 0")[1].strip()
    assert taken["full_0"] == ""
    wanted = {
        "taming": {
            "no-budget_0": "--strategy.name default",
            "no-lazy-sh_0": "--optimizer.sh-every 1 --optimizer.shN 0.000125",
        },
        "fast": {
            "no-progressive-resolution_0": "--data.coarse-factor 1",
            "no-final-pruning_0": "--strategy.final-prune 0",
        },
    }
    assert wanted[recipe].items() <= taken.items()
    # The variant that removes everything consists of the same options, each once.
    words = taken["none_0"].split()
    assert len(words[::2]) == len(set(words[::2])) and set(words) <= set(" ".join(taken.values()).split())
    assert ("--strategy.score-views" if recipe == "taming" else "torch_adam") in words


def test_tables_of_runs_that_are_done(script, tmp_path):
    for seed, (full, none) in enumerate([((30.0, 10.0), (28.0, 20.0)), ((32.0, 12.0), (31.0, 25.0))]):
        finished(tmp_path / f"full_{seed}", metrics(*full))
        finished(tmp_path / f"none_{seed}", metrics(*none))
    status, output = script(ablate, "--result-dir", tmp_path, "--seeds", 0, 1, "--variants", "full", "none")
    assert status == 0 and "full_0: done before" in output
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert [(row["variant"], row["seed"]) for row in rows] == [
        ("full", "0"),
        ("none", "0"),
        ("full", "1"),
        ("none", "1"),
    ]
    text = (tmp_path / "results.md").read_text()
    # Differences are between runs of the same seed: -2 and -1 dB, 10 and 13 seconds.
    assert "| none | 29.50 ± 2.12 | -1.50 ± 0.71 |" in text and "| +11.5 ± 2.1 | 2 |" in text
    assert (tmp_path / "results.png").stat().st_size > 0


def test_a_failed_run_stops_no_other_and_other_options_are_no_resumption(script, tmp_path):
    scene = write_blender(tmp_path / "scene", size=16)
    options = ["--data-dir", scene, "--steps", 12, "--budget", 60, "--result-dir", tmp_path / "out", "--device", "cpu"]
    folder = tmp_path / "out" / "full_0"
    folder.mkdir(parents=True)
    (folder / "checkpoint.pt").write_bytes(b"broken")
    (folder / "config.yaml").write_text("steps: many\n")
    status, output = script(ablate, *options, "--variants", "full", "no-score")
    assert status == 1 and "required int, got 'many'" in output
    assert "full_0: failed with exit status 1; run again to resume it" in output
    assert "no-score_0: done" in output
    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").open()))
    assert [row["variant"] for row in rows] == ["no-score"] and float(rows[0]["psnr"]) > 5
    status, output = script(ablate, *options, "--variants", "no-score")
    assert status == 0 and "no-score_0: done before" in output
    status, output = script(ablate, *options, "--variants", "no-score", "--config", ROOT / "configs" / "fast.yaml")
    assert status == 1 and "holds a run with other options; choose another --result-dir" in output
    status, output = script(ablate, *options, "--variants", "no-luck")
    assert status == 1 and "got no-luck" in output


def test_strategies_are_compared_at_half_and_at_equal_count(script, tmp_path):
    curve = {"budget": 50, "budget_curve": [20, 50], "budget_counts": [20, 50]}
    for seed, psnr in enumerate((30.0, 31.0)):
        finished(tmp_path / f"default_{seed}", metrics(psnr, 10.0))
        finished(tmp_path / f"taming-half_{seed}", metrics(psnr - 0.1 * (1 + seed), 8.0, 50, **curve))
        # DefaultStrategy also improves with the recipe's optimiser. The recipe is compared with that run.
        finished(tmp_path / f"recipe-default_{seed}", metrics(psnr + 1.25, 9.0))
        for name in ("recipe-half", "recipe-equal"):
            finished(tmp_path / f"{name}_{seed}", metrics(psnr + 1.0, 8.0, 50, **curve))
        equal = {"budget": 100, "budget_curve": [20, 100], "budget_counts": [20, 100 - seed]}
        finished(tmp_path / f"taming-equal_{seed}", metrics(psnr + 0.5, 9.0, **equal))
    status, text = script(compare_strategies, "--result-dir", tmp_path, "--seeds", 0, 1)
    assert "| taming-half | 30.35 ± 0.64 | -0.15 ± 0.07 | default |" in text and "| 2 of 2 runs |" in text
    assert "| recipe-half | 31.50 ± 0.71 | -0.25 ± 0.00 | recipe-default |" in text
    # The second run of taming-equal departed from its budget curve.
    assert "| +0.50 ± 0.00 |" in text and "| 1 of 2 runs |" in text and status == 1
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert len(rows) == 12 and rows[1]["psnr_difference"].startswith("-0.1") and rows[0]["psnr_difference"] == ""
    assert (tmp_path / "results.png").stat().st_size > 0


def test_the_budget_is_what_the_default_strategy_ends_with(script, tmp_path):
    scene = write_blender(tmp_path / "scene", size=16)
    optimizer = "optimizer: {name: sparse_adam, sh_every: 4}"
    schedule = "{refine_start: 2, refine_every: 4, refine_stop: 16, reset_every: 9}"
    (tmp_path / "short.yaml").write_text(f"steps: 24\nmodel: {{init_count: 50}}\nstrategy: {schedule}\n{optimizer}\n")
    options = ["--data-dir", scene, "--config", tmp_path / "short.yaml", "--seeds", 3, "--device", "cpu"]
    status, output = script(compare_strategies, *options, "--result-dir", tmp_path / "out")
    assert status == 0, output
    rows = {row["run"]: row for row in csv.DictReader((tmp_path / "out" / "results.csv").open())}
    for baseline, kind in (("default", "taming"), ("recipe-default", "recipe")):
        count = int(rows[baseline]["num_gaussians"])
        assert int(rows[f"{kind}-equal"]["num_gaussians"]) == int(rows[f"{kind}-equal"]["budget"]) == count
        assert int(rows[f"{kind}-half"]["num_gaussians"]) == count // 2
        # Only the strategies differ.
        optimizers = [
            yaml.safe_load((tmp_path / "out" / f"{name}_3" / "config.yaml").read_text())["optimizer"]
            for name in (baseline, f"{kind}-half", f"{kind}-equal")
        ]
        assert optimizers[0] == optimizers[1] == optimizers[2]
        assert optimizers[0]["name"] == ("adam" if kind == "taming" else "sparse_adam")
    assert rows["taming-half"]["count_is_curve"] == "True"


def test_without_the_default_strategy_there_is_no_budget(script, tmp_path):
    options = ["--data-dir", tmp_path / "missing", "--seeds", 0, "--result-dir", tmp_path / "out"]
    status, output = script(compare_strategies, *options)
    assert status == 1 and "taming-half_0: skipped: default, which says its budget, has not finished" in output
    assert "recipe-half_0: skipped: recipe-default, which says its budget" in output
