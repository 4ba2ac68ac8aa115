"""The loop, run folders and the command line, with a task that is neither a scene nor a volume."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from splat_ssim.errors import UserError
from splat_ssim.trainer import Report, load, run
from splat_ssim.trainer import loop as loop_module
from splat_ssim.trainer.cli import evaluate_run, main, parse, render_run
from splat_ssim.trainer.config import ConfigError, OutputConfig, RunConfig, read_yaml
from splat_ssim.trainer.loop import Interrupted, Run
from splat_ssim.trainer.profiling import stage

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class LineConfig(RunConfig):
    """Options of a task that fits a number to a target number."""

    steps: int = 60
    task: str = "tests.test_loop:LineTask"
    target: float = 3.0
    output: OutputConfig = field(default_factory=lambda: OutputConfig(progress=False))


class LineTask:
    """The smallest task: it moves one number to another."""

    Config: ClassVar = LineConfig
    VIEWS: ClassVar = {"number": "number.txt"}

    def __init__(self, config):
        self.config = config.resolved()
        self.name, self.device = "line", torch.device("cpu")
        self.value = torch.zeros(())
        self.read = []

    def step(self, index):
        with stage("all"):
            self.value = self.value + 0.1 * (self.config.target - self.value)
        loss = (self.config.target - self.value).abs()
        return Report({"loss": loss, "index": lambda: self.read.append(index) or index})

    def evaluate(self, pictures):
        return {"psnr": float("inf"), "value": float(self.value), "rows": [1, float("nan")]}

    def state_dict(self):
        return {"value": self.value, "draws": torch.rand(())}

    def load_state_dict(self, state):
        self.value = state["value"]

    def export(self, folder):
        (folder / "number.txt").write_text(str(float(self.value)))
        return {"exported": 1}

    def render(self, views, output, frames):
        output.write_text(views)


def config(folder, **changes):
    return LineConfig(result_dir=folder, **changes)


def test_steps_to_save_beyond_the_last_are_named(tmp_path, capsys):
    path = tmp_path / "a.yaml"
    path.write_text("task: tests.test_loop:LineTask\nsteps: 20\noutput: {save_steps: [5, 20, 25, 900]}")
    main(["--config", str(path), "--result-dir", str(tmp_path / "run")])
    assert "output.save_steps: the run ends at step 20, before 25, 900" in capsys.readouterr().out.splitlines()
    assert [folder.name for folder in sorted((tmp_path / "run" / "steps").iterdir())] == ["0000005", "0000020"]


def test_a_run_from_python_and_back(tmp_path):
    metrics = run(LineTask(config(tmp_path / "run")))
    assert metrics["value"] == pytest.approx(3, abs=0.01) and metrics["exported"] == 1
    assert metrics["step"] == 60 and metrics["device"] == "cpu" and metrics["loss"] == "fused_ssim"
    assert metrics["train_seconds"] >= 0 and metrics["peak_memory_bytes"] > 0
    assert metrics == json.loads((tmp_path / "run" / "metrics.json").read_text())
    # Only the evaluation's own file has its rows. Values that are not finite are null in JSON.
    assert "rows" not in metrics and metrics["psnr"] is None
    assert json.loads((tmp_path / "run" / "eval" / "0000060.json").read_text())["rows"] == [1, None]
    assert read_yaml(tmp_path / "run" / "config.yaml")["task"] == "tests.test_loop:LineTask"
    task = load(tmp_path / "run")
    assert type(task) is LineTask and float(task.value) == metrics["value"]


def test_scripts_serve_any_task(tmp_path, capsys):
    folder = tmp_path / "run"
    (tmp_path / "line.yaml").write_text("task: tests.test_loop:LineTask\ntarget: 2\nsteps: 80\n")
    metrics = main(["--config", str(tmp_path / "line.yaml"), "--result-dir", str(folder)])
    assert metrics["value"] == pytest.approx(2, abs=0.01)
    assert evaluate_run(folder)["value"] == metrics["value"]
    assert "step 80: psnr inf dB, value" in capsys.readouterr().out
    assert render_run(folder).read_text() == "number"
    with pytest.raises(UserError, match="--views must be one of number for this run, got 'orbit'"):
        render_run(folder, views="orbit")
    with pytest.raises(UserError, match="--frames applies to a video, such as an orbit, got --views number"):
        render_run(folder, frames=5)
    with pytest.raises(SystemExit, match="required a new folder for a new run"):
        main(["--config", str(tmp_path / "line.yaml"), "--result-dir", str(folder)])


def test_profile_tensorboard_and_evaluations_serve_any_task(tmp_path, capfd):
    output = OutputConfig(progress=False, tensorboard=True, eval_every=25)
    run(LineTask(config(tmp_path / "run", profile=True, output=output, checkpoint_every=10, steps=101)))
    told = capfd.readouterr()
    assert "ms: all " in told.out + told.err and ", step " in told.out + told.err
    assert sorted(path.stem for path in (tmp_path / "run" / "eval").iterdir()) == [
        "0000025",
        "0000050",
        "0000075",
        "0000100",
        "0000101",
    ]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert {"train/loss", "train/index", "test/value"} <= set(events.Tags()["scalars"])
    assert [e.step for e in events.Scalars("test/value")] == [25, 50, 75, 100]


def test_a_report_is_read_only_when_it_is_shown(tmp_path):
    task = LineTask(config(tmp_path / "run", steps=59))
    Run(task).train()
    # Only the reports of steps 25 and 50 were read.
    assert task.read == [24, 49]


def test_a_resumed_run_goes_on(tmp_path):
    part = Run(LineTask(config(tmp_path / "run")))
    while part.step < 30:
        part.task.step(part.step)
        part.step += 1
    part.save()
    # A config that only names the folder takes every option that it does not set from the folder.
    resumed = LineTask(LineConfig(resume=tmp_path / "run", checkpoint_every=7))
    assert resumed.config.result_dir == tmp_path / "run" and resumed.config.checkpoint_every == 7
    again = Run(resumed)
    assert again.step == 30 and torch.equal(again.task.value, part.task.value)
    again.train()
    with pytest.raises(ConfigError, match=r"a resumed run must write to its own folder .*run, got result_dir"):
        LineTask(LineConfig(resume=tmp_path / "run", result_dir=tmp_path / "other"))
    with pytest.raises(ConfigError, match=r"config\.yaml: required a YAML file, got No such file"):
        LineTask(LineConfig(resume=tmp_path / "nothing"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_saves(tmp_path, number, capfd):
    task = LineTask(config(tmp_path / "a run", steps=1000))
    step = task.step

    def step_and_signal(index):
        if index == 17:
            os.kill(os.getpid(), number)
        return step(index)

    task.step = step_and_signal
    one = Run(task)
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as stopped:
        one.train()
    assert stopped.value.status == 128 + number and signal.getsignal(number) == before
    assert load(tmp_path / "a run").value == task.value and one.step == 18
    told = capfd.readouterr().out
    assert f"stopped by {number.name} after step 18" in told
    assert f"python scripts/train.py --resume '{tmp_path / 'a run'}'" in told


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_after_the_last_step_ends_at_once(tmp_path, number, capfd):
    """While a run is evaluated and exported, its checkpoint has already been written."""
    task = LineTask(config(tmp_path / "run"))
    before, reached = signal.getsignal(number), []

    def export(folder):
        os.kill(os.getpid(), number)
        reached.append("the end")
        return {}

    task.export = export
    with pytest.raises(Interrupted) as stopped:
        run(task)
    assert stopped.value.status == 128 + number and signal.getsignal(number) == before and not reached
    assert f"stopped by {number.name} after step 60; to go on: python scripts" in capfd.readouterr().out
    assert not (tmp_path / "run" / "metrics.json").exists()
    assert main(["--resume", str(tmp_path / "run")])["step"] == 60


def test_a_signal_while_data_are_read_ends_without_a_traceback(tmp_path, monkeypatch, capfd):
    def slow(self, config):
        raise KeyboardInterrupt

    monkeypatch.setattr(LineTask, "__init__", slow)
    (tmp_path / "line.yaml").write_text("task: tests.test_loop:LineTask\n")
    with pytest.raises(SystemExit) as ended:
        main(["--config", str(tmp_path / "line.yaml"), "--result-dir", str(tmp_path / "run")])
    assert ended.value.code == 130 and capfd.readouterr().err == "stopped by SIGINT\n"


def test_the_clock_runs_from_one_idle_device_to_the_next(tmp_path, monkeypatch):
    """The device's work from before the first step, and its work for evaluations, is not training time."""
    now, pending = [0.0], [7.0]  # seven seconds of uploads are still pending
    monkeypatch.setattr(loop_module.time, "perf_counter", lambda: now[0])

    def wait(device):
        now[0], pending[0] = now[0] + pending[0], 0.0

    monkeypatch.setattr(loop_module, "wait", wait)
    output = OutputConfig(progress=False, eval_every=10)
    task = LineTask(config(tmp_path / "run", steps=30, output=output))
    step, evaluate = task.step, task.evaluate

    def work(seconds, result):
        pending[0] += seconds
        return result

    task.step = lambda index: work(2.0, step(index))
    task.evaluate = lambda pictures: work(100.0, evaluate(pictures))
    one = Run(task)
    one.train()
    assert one.train_seconds == 30 * 2.0


@pytest.mark.slow
@pytest.mark.parametrize("number,status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_program_says_how_to_go_on(tmp_path, number, status):
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, 20),) * 3, indexing="ij")
    np.save(tmp_path / "ball.npy", (x**2 + y**2 + z**2 < 0.7).astype(np.float32))
    line = ["--config", "configs/voxel_mri.yaml", "--data-dir", tmp_path / "ball.npy", "--result-dir", tmp_path / "run"]
    line += ["--steps", 100_000, "--strategy.budget", 60, "--strategy.name", "none", "--output.no-progress"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "scripts/train.py", *map(str, line)]
    program = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not (tmp_path / "run" / "checkpoint.pt").exists():
        assert program.poll() is None, program.stderr.read().decode()
        threading.Event().wait(0.02)
    threading.Event().wait(1.0)
    program.send_signal(number)
    out, errors = program.communicate(timeout=60)
    assert program.returncode == status, errors.decode()
    assert f"--resume {tmp_path / 'run'}" in out.decode() and "Traceback" not in errors.decode()
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert 0 < state["step"] < 100_000


def test_in_another_thread_signals_are_left_alone(tmp_path):
    results = []
    thread = threading.Thread(target=lambda: results.append(run(LineTask(config(tmp_path / "run")))))
    thread.start()
    thread.join()
    assert results[0]["step"] == 60


def test_seconds_wait_for_the_device(tmp_path, monkeypatch):
    """House bug 11: on CUDA a step only queues its work, and the clock was read too early."""
    now = [0.0]
    monkeypatch.setattr(loop_module.time, "perf_counter", lambda: now[0])
    pending = [0.0]

    def wait(device):
        now[0] += pending[0]
        pending[0] = 0.0

    monkeypatch.setattr(loop_module, "wait", wait)
    task = LineTask(config(tmp_path / "run", steps=10))
    step = task.step

    def slow_step(index):
        now[0] += 1.0
        pending[0] += 5.0
        return step(index)

    task.step = slow_step
    one = Run(task)
    one.train()
    assert one.train_seconds == 10 * (1 + 5)


# --- which task a config names


class NoTask:
    Config = LineConfig


@pytest.mark.parametrize(
    "task,text",
    [
        ("cooking", r"required one of scene, ct, image, volume or package\.module:Class, got 'cooking'"),
        ("tests.test_loop:Nothing", r"got 'tests\.test_loop:Nothing': .*no attribute 'Nothing'"),
        ("nowhere.at:All", r"got 'nowhere\.at:All': No module named 'nowhere'"),
        ("tests.test_loop:NoTask", r"required a class with the interface of a task, got .* without VIEWS, step"),
        ("tests.test_loop:config", r"required a class with the interface of a task, got 'tests\.test_loop:config'"),
        ("'3'", r"got '3'"),
        ("3", r"required a class with the interface of a task, got 3"),
        ("'a:b:c'", r"got 'a:b:c'"),
        ("''", r"got ''"),
    ],
)
def test_what_is_no_task_is_refused(tmp_path, task, text):
    (tmp_path / "a.yaml").write_text(f"task: {task}\n")
    with pytest.raises(ConfigError, match=rf"a\.yaml: task: .*{text}"):
        parse(["--config", str(tmp_path / "a.yaml")])


@pytest.mark.parametrize("name", ["scene", "volume", "image"])
def test_short_names_are_a_rule(name):
    from splat_ssim.trainer.task import find_task, import_path

    assert import_path(name) == f"splat_ssim.{name}:Task"
    assert find_task(name, "here") is find_task(f"splat_ssim.{name}:Task", "here")


def test_the_interface_is_the_protocol_s():
    from splat_ssim.trainer import task

    members = {name for name in (*vars(task.Task), *task.Task.__annotations__) if not name.startswith("_")}
    assert members - {"config", "name", "device"} == set(task._INTERFACE)


# --- options


@pytest.mark.parametrize(
    "line,text",
    [
        (["--strategy.name", "mcmc", "--strategy.growth", "0.1"], r"command line: strategy\.growth: strategy mcmc has"),
        (
            ["--strategy.reset-every=50"],
            r"strategy\.reset_every: strategy capped has no such option, only",
        ),
        (["--strategy.name", "default", "--strategy.budget", "9"], r"strategy\.budget: strategy default has no such"),
        (["--config", "configs/voxel_mri.yaml", "--strategy.noise", "1.0"], r"strategy\.noise: strategy residual has"),
        (["--config", "configs/voxel_grid.yaml", "--strategy.rounds", "3"], r"a grid has no such option, only budget"),
    ],
)
def test_options_a_strategy_lacks_are_refused(line, text):
    with pytest.raises(ConfigError, match=text):
        parse(line)


def test_a_file_is_held_to_its_own_strategy(tmp_path, capsys):
    path = tmp_path / "a.yaml"
    path.write_text("strategy: {name: mcmc, growth: 0.1}\n")
    with pytest.raises(ConfigError, match=r"a\.yaml: strategy\.growth: strategy mcmc has no such option, only budget"):
        parse(["--config", str(path)])
    path.write_text("strategy: {name: mcmc, noise: 3}\n")
    parse(["--config", str(path), "--strategy.name", "capped"])
    assert "strategy.noise is left out: strategy capped has no such option" in capsys.readouterr().err
    # Options that are set to their defaults are accepted.
    assert parse(["--strategy.name", "default"])[1].strategy.growth is None


def test_every_option_of_a_strategy_reaches_it():
    from splat_ssim.scene.config import STRATEGY_OPTIONS, SceneConfig, StrategyConfig
    from splat_ssim.scene.strategies import STRATEGIES, make_strategy

    assert STRATEGY_OPTIONS.keys() == STRATEGIES.keys()
    for name, options in STRATEGY_OPTIONS.items():
        config = SceneConfig(strategy=StrategyConfig(name=name)).resolved().strategy
        strategy = make_strategy(config, lambda count: iter(()))
        for option, own in options.items():
            assert own is None or getattr(strategy, own) == getattr(config, option), (name, option)
    known = {field.name for field in dataclasses.fields(StrategyConfig)}
    assert known == {"name"}.union(*STRATEGY_OPTIONS.values())


@pytest.mark.parametrize("line", [["--help"], ["--config", "configs/voxel_mri.yaml", "--help"]])
def test_help_names_the_options(line, capsys):
    with pytest.raises(SystemExit) as done:
        parse(line)
    text = capsys.readouterr().out
    assert done.value.code == 0
    assert "--checkpoint-every" in text and "Print the mean time of each stage" in text
    assert "--task" not in text and "Largest number of Gaussians" in text
