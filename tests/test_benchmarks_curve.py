"""benchmarks/curve.py on the evaluations that a run leaves."""

import csv

import tyro

from benchmarks import curve
from splat_ssim.trainer.cli import main
from tests.scenes import write_blender


def called(*arguments):
    return curve.main(tyro.cli(curve.Options, args=[str(argument) for argument in arguments]))


def test_a_curve_is_that_of_the_evaluations(tmp_path, capsys):
    ball, run = write_blender(tmp_path / "ball"), tmp_path / "run"
    options = ["--steps", "6", "--preset", "none", "--output.eval-every", "2", "--output.no-progress"]
    main(["--data-dir", str(ball), *options, "--result-dir", str(run)])
    assert called(run, "--output", tmp_path / "curve", "--lines", "theirs=20.5") == 0
    with (tmp_path / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [2, 4, 6]
    seconds = [float(row["train_seconds"]) for row in rows]
    assert 0 < seconds[0] < seconds[1] < seconds[2] and all(float(row["psnr"]) > 0 for row in rows)
    assert all(row["commit"] and row["device"] and int(row["threads"]) > 0 for row in rows)
    assert (tmp_path / "curve.png").stat().st_size > 1000


def test_what_makes_no_curve_is_one_sentence(tmp_path, capsys):
    assert called(tmp_path, "--output", tmp_path / "none") == 2
    assert "required evaluations in" in capsys.readouterr().err
    run = tmp_path / "run"
    (run / "eval").mkdir(parents=True)
    (run / "eval" / "0000001.json").write_text('{"step": 1, "train_seconds": 2.0, "psnr": 3.0, "ssim": 0.5}')
    assert called(run, "--output", tmp_path / "none", "--lines", "theirs") == 2
    assert "--lines required NAME=DECIBELS, got 'theirs'" in capsys.readouterr().err
