"""benchmarks/volume.py: the fits that it runs, those that it skips, and its tables."""

import csv
import json
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import volume as benchmark_volume
from splat_ssim.trainer.cli import main


@pytest.fixture
def lines(monkeypatch):
    """The command lines that were run. Each runs in this process, because a new one would have to import torch."""
    seen = []

    def run(line, **keywords):
        if line[0] == "git":
            return SimpleNamespace(stdout="abc1234\n" if "rev-parse" in line else "", returncode=0)
        assert line[1].endswith("train.py")
        seen.append(line[2:])
        main(line[2:])
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", run)
    return seen


def test_every_kind_is_run_once_and_compared(tmp_path, lines, capsys):
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in (14, 12, 13)), indexing="ij")
    np.save(tmp_path / "ball.npy", ((x**2 + y**2 + z**2 < 0.7) * (1 + 0.1 * np.sin(9 * x))).astype(np.float32))
    options = benchmark_volume.Options(
        sizes=(60,),
        seeds=2,
        steps=6,
        data_dir=tmp_path / "ball.npy",
        result_dir=tmp_path / "runs",
        output=tmp_path / "tables",
    )
    assert benchmark_volume.main(options) == 0
    assert len(lines) == 6  # two seeds of the methods that draw at random, one of the grids
    with (tmp_path / "tables" / "volume.csv").open() as file:
        rows = list(csv.DictReader(file))
    kinds = [(row["kind"], row["seed"]) for row in rows]
    assert sorted(kinds) == sorted(
        [(kind, seed) for kind in ("L1", "L1 + SSIM3D") for seed in "01"]
        + [("grid, L1 + SSIM3D", "0"), ("grid, least squares", "0")]
    )
    assert {row["commit"] for row in rows} == {"abc1234"}
    steps = {row["kind"]: row["step"] for row in rows}
    assert steps == {"L1": "6", "L1 + SSIM3D": "6", "grid, L1 + SSIM3D": "6", "grid, least squares": "1"}
    for row in rows:
        folder = (
            tmp_path
            / "runs"
            / f"60_{row['kind'].replace(' + ', '_').replace(', ', '_').replace(' ', '_')}_{row['seed']}"
        )
        assert float(row["psnr3d"]) == json.loads((folder / "metrics.json").read_text())["psnr3d"]
    table = (tmp_path / "tables" / "volume.md").read_text()
    assert table in capsys.readouterr().out
    by_seed = {(row["kind"], row["seed"]): float(row["psnr3d"]) for row in rows}
    gain = np.mean([by_seed["L1 + SSIM3D", s] - by_seed["L1", s] for s in "01"])
    assert f"60: SSIM3D beside L1 changes PSNR3D by {gain:.2f} ± " in table
    # Finished runs are not run again. Other options make another run.
    lines.clear()
    assert benchmark_volume.main(options) == 0 and not lines
    options.steps = 7
    assert benchmark_volume.main(options) == 1
    assert "holds a run with other options" in (tmp_path / "tables" / "volume.md").read_text()


def test_steps_go_with_the_size():
    found = {
        (size, kind): job.arguments
        for size, kind, _, job in benchmark_volume.jobs(benchmark_volume.Options(sizes=(10_000, 70_000)))
    }
    for kind in ("L1", "L1 + SSIM3D"):
        for size, steps in ((10_000, "1600"), (70_000, "4000")):
            arguments = found[size, kind]
            assert arguments[arguments.index("--steps") + 1] == steps
    assert "--steps" not in found[10_000, "grid, L1 + SSIM3D"]
