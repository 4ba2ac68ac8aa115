"""benchmarks/: its peers, its measurements, its refusals, and that each command runs."""

import csv
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import by_value, calls, ffmpeg, measure, scaling, speed
from benchmarks.candidate import Candidate, ours
from benchmarks.peers import _ALL, candidates, missing
from splat_ssim.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
NAMES = [c.name for c in _ALL if not c.compiled and not c.cuda_only and c.same]


@pytest.fixture
def threads():
    """Restores the number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# --- peers


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_a_peer_computes_what_ours_does(name, dims, threads):
    torch.set_num_threads(1)
    candidate = next(c for c in _ALL if c.name == name)
    if dims not in candidate.dims:
        return
    try:
        assert candidate.version
    except ImportError as error:
        pytest.skip(str(error))
    mode = "forward+backward" if candidate.differentiable else "forward"
    found = speed.differences_of(calls.make_calls(candidate, "21x34" if dims == 2 else "13x15x17", mode, "cpu"), mode)
    assert found["value_difference"] < 1e-5
    assert found["gradient_difference"] == "" or found["gradient_difference"] < 1e-4


@pytest.mark.parametrize("name", ["ssim", "libvmaf"])
def test_a_filter_of_ffmpeg_gives_a_value_and_its_own_time(name):
    try:
        ffmpeg.ffmpeg_version(name)
    except ImportError as error:
        pytest.skip(str(error))
    make = {"ssim": ffmpeg.ssim_filter_call, "libvmaf": ffmpeg.libvmaf_call}[name]
    generator = np.random.default_rng(0)
    smooth = np.add.outer(np.arange(48), np.arange(64)).astype(np.uint8) + 40
    noisy = (smooth + generator.integers(-20, 21, smooth.shape)).clip(0, 255).astype(np.uint8)
    ffmpeg_work, ffmpeg._WORK = ffmpeg._WORK, 0.0
    try:
        same, different = make(smooth, smooth, 255), make(smooth, noisy, 255)
    finally:
        ffmpeg._WORK = ffmpeg_work
    assert same() == pytest.approx(1, abs=1e-6)
    # Their windows differ slightly, so results are near ours but not equal.
    assert abs(different() - float(ours(smooth, noisy, 255, "valid"))) < 0.2 and different() < 0.9
    assert isinstance(different.seconds(), float)


def test_what_is_missing_is_said_in_a_line(monkeypatch):
    monkeypatch.delenv(by_value.RMGR, raising=False)
    by_value._rmgr.cache_clear()
    assert f"not measured: rmgr::ssim: {by_value.RMGR} does not name its shared library" in missing()
    monkeypatch.setenv(by_value.RMGR, "/none.so")
    (line,) = [line for line in missing() if "rmgr" in line]
    assert "required a shared library of rmgr::ssim with OpenMP, got /none.so" in line
    assert "rmgr::ssim" not in {candidate.name for candidate in candidates()}
    assert not any(candidate.cuda_only for candidate in candidates())


def test_bytes_are_read_as_files_hold_them():
    img1, img2 = calls.image_pair("12x17", "cpu")
    colour = Candidate("", "", ours, images="bytes, RGB").prepare(img1)
    grey = Candidate("", "", ours, images="bytes, grey").prepare(img1)
    assert colour.shape == (12, 17, 3) and colour.dtype == np.uint8
    assert grey.shape == (12, 17) and (grey == colour[..., 0]).all()
    planes = [(img * 255).round() for img in (img1, img2)]
    pixels = [Candidate("", "", ours, images="bytes, RGB").prepare(img) for img in (img1, img2)]
    for padding in ("same", "reflect"):
        torch.testing.assert_close(ours(*pixels, 255, padding), ours(*planes, 255, padding), atol=2e-6, rtol=0)


# --- how it is timed


class Counted:
    """A call that takes a fixed time by its own clock."""

    def __init__(self, seconds):
        self._seconds, self.calls = seconds, 0

    def __call__(self):
        self.calls += 1

    def seconds(self):
        return self._seconds


def test_rounds_are_pairs_and_a_failure_is_reported(threads, capsys):
    def fails():
        raise RuntimeError("no kernel")

    pairs = {"slow": (Counted(0.6), Counted(0.2)), "broken": (fails, Counted(1.0))}
    times = measure.interleaved(measure.Machine("cpu", 1), pairs, seconds=9, min_rounds=2, max_rounds=4)
    assert times == {"slow": [(0.6, 0.2)] * 4}
    assert pairs["slow"][1].calls == 4
    assert measure.medians(times["slow"])["ratio"] == pytest.approx(3)
    assert "broken failed: RuntimeError: no kernel" in capsys.readouterr().err


def test_a_peer_that_disagrees_is_left_out(threads, capsys):
    arguments = calls.parser_of(None).parse_args(["--seconds", "0"])
    wrong = Candidate("wrong", "splat_ssim", lambda x, y, data_range: ours(x, y, data_range) + 0.01)
    right = Candidate("right", "splat_ssim", ours)
    rows = speed.rows_of(measure.Machine("cpu", 1), "16x16", "forward+backward", [wrong, right], arguments)
    assert [row["name"] for row in rows] == ["right"]
    assert "wrong left out: it differs from ours on 16x16" in capsys.readouterr().err


def test_the_fastest_form_of_a_peer_is_marked():
    names = ["splat_ssim", "a", "a NHWC", "a, compiled NHWC", "b"]
    peers = [Candidate(name, "", ours) for name in names]
    rows = [{"name": name, "milliseconds": ms} for name, ms in zip(names, (1, 5, 4, 6, 9), strict=True)]
    speed.mark_fastest(rows, peers)
    assert [row["name"] for row in rows if row["fastest"]] == ["a NHWC", "b"]


# --- whose figures they are


@pytest.mark.parametrize("state", ["1234567-dirty", "unknown"])
def test_figures_without_a_commit_are_refused(state, monkeypatch, tmp_path):
    monkeypatch.setattr(measure, "commit", lambda: state)
    for output in (None, tmp_path):
        with pytest.raises(UserError, match=f"figures required a clean commit, got {state}"):
            measure.output_folder(output, dirty_ok=False)
    assert measure.output_folder(None, dirty_ok=True) == measure.DEVELOPMENT
    assert measure.output_folder(tmp_path, dirty_ok=True) == tmp_path
    for output in (measure.RESULTS, measure.RESULTS / "deeper"):
        with pytest.raises(UserError, match="required a folder outside"):
            measure.output_folder(output, dirty_ok=True)
    monkeypatch.setattr(measure, "commit", lambda: "1234567")
    assert measure.output_folder(None, dirty_ok=False) == measure.RESULTS


def test_results_do_not_make_a_tree_dirty(tmp_path, monkeypatch):
    def git(*arguments):
        line = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        subprocess.run(line, check=True, capture_output=True)

    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    (results / "speed.csv").write_text("a\n")
    (tmp_path / "code.py").write_text("a\n")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    monkeypatch.delenv("COMMIT", raising=False)
    monkeypatch.setattr(measure, "ROOT", tmp_path)
    monkeypatch.setattr(measure, "RESULTS", results)
    clean = measure.commit()
    assert len(clean) >= 9 and "dirty" not in clean
    (results / "speed.csv").write_text("b\n")
    assert measure.commit() == clean
    (tmp_path / "code.py").write_text("b\n")
    assert measure.commit() == f"{clean}-dirty"
    monkeypatch.setenv("COMMIT", "named")
    assert measure.commit() == "named"


# --- commands


def run_command(*words, **environment):
    return subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
    )


def test_a_refusal_is_one_sentence():
    done = run_command("scripts/benchmark.py", "speed", "--sizes", "8x8", COMMIT="abc-dirty")
    expected = "error: figures required a clean commit, got abc-dirty: commit, or add --dirty-ok for a trial\n"
    assert done.returncode == 1 and done.stderr == expected


@pytest.mark.parametrize("words", [["accuracy"], ["benchmark", "memory"], ["benchmark_volume"], ["benchmark_voxelize"]])
def test_the_old_commands_are_there(words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [*words, "--help"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "scripts" / f"{words[0]}.py"), run_name="__main__")
    assert not ended.value.code and "--dirty-ok" in capsys.readouterr().out


def test_speed_and_its_chart_by_the_old_command(tmp_path):
    line = ["--quick", "--sizes", "24x24", "--seconds", "0", "--threads", "1", "--output", str(tmp_path)]
    line += ["--modes", "forward", "--peers", "splat_ssim", "pytorch-msssim NHWC"]
    done = run_command("scripts/benchmark.py", "speed", "plot", *line)
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in rows_of(tmp_path / "speed.csv")}
    row = rows["pytorch-msssim NHWC"]
    assert row["computes"] == "11-tap Gaussian, valid" and row["form"] == "separable, channels last"
    assert row["images"] == "float32" and row["mode"] == "forward" and row["same_as_ours"] == row["fastest"] == "yes"
    assert float(row["ratio"]) > 1 and float(row["value_difference"]) < 1e-5
    assert all(r["version"] and r["commit"] and r["device"] and r["threads"] == "1" for r in rows.values())


def test_scaling_over_threads(tmp_path, threads, monkeypatch):
    for module in (calls, scaling):  # Measuring the machine's peaks takes seconds.
        monkeypatch.setattr(module, "describe", lambda m: {"fma_gflops": 1, "copy_gb_s": 1, "threads": m.threads})
    options = ["--quick", "--sizes", "16x16", "--seconds", "0", "--peers", "splat_ssim", "3DGS form NHWC"]
    monkeypatch.setattr(sys, "argv", ["", *options, "--thread-counts", "1", "2", "--output", str(tmp_path)])
    scaling.main()
    rows = rows_of(tmp_path / "scaling.csv")
    assert [(row["threads"], row["peer"]) for row in rows] == [
        (count, peer) for count in "12" for peer in ("splat_ssim", "3DGS form")
    ]
    assert all(row["cores"] and row["mode"] == "forward+backward" and float(row["ratio"]) > 0 for row in rows)


def test_counts_of_threads_end_with_all_cores():
    assert [scaling.counts_to(most) for most in (1, 2, 3, 8)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4, 8]]
