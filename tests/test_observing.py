"""The history that a run keeps of its steps, and the observers that are called between steps."""

import json
import os
import signal

import pytest
import torch

from splat_ssim.trainer import run
from splat_ssim.trainer.cli import main
from splat_ssim.trainer.history import NAME, History, read_rows
from splat_ssim.trainer.loop import Interrupted, Run
from tests.test_loop import LineTask, config


class Watcher:
    """An observer that acts at every `every`-th call."""

    def __init__(self, every=1, act=None):
        self.asked, self.every, self.act, self.seen = 0, every, act, []

    def due(self):
        self.asked += 1
        return self.asked % self.every == 0

    def look(self, step, report, stopped):
        self.seen.append((step, report["loss"]))
        if self.act is not None:
            self.act(stopped)


def test_an_observer_looks_when_it_is_due_and_changes_nothing(tmp_path):
    watcher = Watcher(every=7)
    run(LineTask(config(tmp_path / "watched")), [watcher])
    run(LineTask(config(tmp_path / "alone")))
    assert watcher.asked == 60 and [step for step, _ in watcher.seen] == [7, 14, 21, 28, 35, 42, 49, 56]
    assert all(isinstance(loss, float) for _, loss in watcher.seen)
    states = [torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("watched", "alone")]
    assert torch.equal(states[0]["value"], states[1]["value"])


def test_the_clock_of_training_stands_while_an_observer_looks(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("splat_ssim.trainer.loop.time.perf_counter", lambda: now[0])

    def hour(_):
        now[0] += 3600

    one = Run(LineTask(config(tmp_path / "run")), [Watcher(every=20, act=hour)])
    one.train()
    assert now[0] == 3 * 3600 and one.train_seconds == 0


def test_a_signal_while_an_observer_looks_saves_the_step(tmp_path):
    def strike(stopped):
        assert not stopped()
        os.kill(os.getpid(), signal.SIGINT)
        assert stopped()

    with pytest.raises(Interrupted) as ended:
        run(LineTask(config(tmp_path / "run")), [Watcher(every=13, act=strike)])
    assert ended.value.status == 130
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"] == 13


# --- the history


def test_a_history_has_what_was_shown_and_goes_on_with_the_run(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(Interrupted):
        run(LineTask(config(folder)), [Watcher(30, lambda _: os.kill(os.getpid(), signal.SIGTERM))])
    # As if the run had gone on and died before its next checkpoint.
    with (folder / NAME).open("a") as file:
        file.write(json.dumps({"step": 50, "seconds": 9.0, "loss": 77.0}) + "\n")
    run(LineTask(config(folder, resume=folder)))
    rows = read_rows(folder)
    assert [row["step"] for row in rows] == [25, 50]
    assert [row["index"] for row in rows] == [24, 49] and rows[1]["loss"] < rows[0]["loss"] < 3
    run(LineTask(config(tmp_path / "whole")))
    assert [row["loss"] for row in read_rows(tmp_path / "whole")] == [row["loss"] for row in rows]


def test_a_new_run_in_the_folder_of_a_dead_one_begins_its_own_history(tmp_path):
    folder = tmp_path / "run"
    Run(LineTask(config(folder)))
    (folder / NAME).write_text('{"step": 25, "seconds": 1.0, "loss": 77.0}\n')
    run(LineTask(config(folder)))
    assert all(row["loss"] < 3 for row in read_rows(folder))


def test_a_profiled_run_keeps_the_times_of_its_stages(tmp_path):
    run(LineTask(config(tmp_path / "run", profile=True)))
    (row,) = [row for row in read_rows(tmp_path / "run") if "milliseconds" in row]
    assert row["step"] == 60 and row["milliseconds"].keys() == {"all", "step"}


@pytest.mark.parametrize(
    "text,told",
    [
        ('{"step": 25, "seconds": 1.0}\n{"step": 5', "line 2: required JSON"),
        ("[25, 1.0]\n", "line 1: required an object with step and seconds"),
        ('{"step": 25, "seconds": true}\n', "line 1: required an object with step and seconds"),
        ('{"step": 25, "seconds": 1, "loss": "low"}\n', "line 1: loss: required a number, got 'low'"),
        ('{"step": 25, "seconds": 1, "loss": 1' + "0" * 400 + "}\n", "line 1: loss: required a number"),
        ("\xff\n", "required lines of JSON"),
    ],
)
def test_a_damaged_history_is_left_out_with_one_line(tmp_path, capsys, text, told):
    (tmp_path / NAME).write_bytes(text.encode("latin-1"))
    assert History.read(tmp_path, 100).rows == []
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line and str(tmp_path / NAME) in line


def test_numbers_that_json_lacks_are_null(tmp_path):
    history = History()
    history.note(1, 0.0, {"loss": float("inf")})
    history.save(tmp_path)
    assert read_rows(tmp_path) == [{"step": 1, "seconds": 0.0, "loss": None}]


def test_a_viewer_is_refused_where_there_is_none_to_open(tmp_path):
    (tmp_path / "line.yaml").write_text(f"task: tests.test_loop:LineTask\nresult_dir: {tmp_path / 'run'}\n")
    with pytest.raises(SystemExit, match=r"^error: a viewer requires a task that has one"):
        main(["--config", str(tmp_path / "line.yaml"), "--viewer"])
