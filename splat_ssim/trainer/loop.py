"""The loop around every kind of training: it owns the clock, the folder and the checkpoints."""

from __future__ import annotations

import dataclasses
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from splat_ssim._files import without_infinities, write_json
from splat_ssim.errors import UserError, WriteError
from splat_ssim.trainer.checkpoint import NAME, load_checkpoint, refusing, save_checkpoint
from splat_ssim.trainer.device import garbage_frozen, peak_memory, wait
from splat_ssim.trainer.finite import LossWatch, NotFiniteError, state_problem
from splat_ssim.trainer.folder import METRICS, held, open_folder, read_config, record_resume, write_config
from splat_ssim.trainer.history import History
from splat_ssim.trainer.metrics import in_words, scalars
from splat_ssim.trainer.places import program
from splat_ssim.trainer.profiling import StageClock, profiled
from splat_ssim.trainer.ranks import ALONE, launched
from splat_ssim.trainer.signals import Interrupted, Signals
from splat_ssim.trainer.states import is_count, is_seconds
from splat_ssim.trainer.task import Observer, Report, Task
from splat_ssim.trainer.tensorboard import add_pictures, add_scalars, open_writer
from splat_ssim.trainer.versions import write_versions

#: Steps between two refreshes of the progress bar, two entries in TensorBoard and two lines of the profile.
REPORT_EVERY, SCALARS_EVERY, PROFILE_EVERY = 25, 100, 1000
#: Starts of the names of the metrics in the last line that is printed.
TOLD = ("psnr", "ssim", "lpips", "num_", "bytes", "evaluated")
#: Folder inside a run folder for the steps that `output.save_steps` keeps.
STEPS = "steps"


def run(task: Task, observers: Sequence[Observer] = ()) -> dict[str, Any]:
    """Trains or resumes a task, evaluates and exports it. Returns the metrics, as metrics.json holds them.

    Args:
        task: The task to train.
        observers: Observers that are called between steps, such as a viewer.

    Raises:
        UserError: A file is not as required. Nothing has been trained.
        WriteError: A file could not be written, for example on a full disk. The last checkpoint is intact.
        NotFiniteError: The loss or the model has become NaN or infinite. The checkpoint is the last good one.
        Interrupted: SIGINT or SIGTERM came. The checkpoint is that of the last completed step.
    """
    from splat_ssim.trainer.unkept import Follower  # it is made of this module's Run

    ranks = launched()
    if ranks.count > 1 and getattr(task, "ranks", ALONE).count != ranks.count:
        raise UserError(f"task {task.config.task or task.name}: required one process, got {ranks.count} (torchrun)")
    with held(task.config, task.name) if ranks.is_first else nullcontext() as folder:
        one = Run(task, observers, folder) if ranks.is_first else Follower(task)
        try:
            one.train()
            with one.stoppable():
                return one.finish()
        except WriteError as error:
            raise WriteError(f"{error}; {one._kept()}, which {one.resume_command()} goes on from") from error


def load(folder: Path, *, device: str = "auto", data_dir: Path | None = None) -> Task:
    """Returns the task of a run folder, with the model of its last checkpoint.

    Args:
        folder: Run folder of any kind of training.
        device: auto, cpu or cuda.
        data_dir: Where the data are now. By default where the run read them.

    Raises:
        UserError: The folder is not a run folder, or its data cannot be read or are others.
    """
    return reopen(folder, device=device, data_dir=data_dir).task


def reopen(folder: Path, *, device: str = "auto", data_dir: Path | None = None, with_loss: bool = True) -> Run:
    """Loads a run folder's last checkpoint for viewing, like `load`. The folder and torch's generators do not change.

    Without its loss, which only training needs, a run whose loss cannot be imported any more can be looked at too.
    """
    kind, config = read_config(folder)
    changes: dict[str, Any] = {"device": device, "result_dir": folder, "resume": None}
    if not with_loss:
        changes.update(loss="l1", loss_kwargs={})
    if data_dir is not None:
        changes["data_dir"] = data_dir
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        task = kind(dataclasses.replace(config, **changes))  # type: ignore[call-arg]
    one = Run.__new__(Run)
    one._begin(task)
    one.folder = folder
    one.restore(load_checkpoint(folder, task.device, restore_generators=False))
    return one


class Run:
    """A run of a task: its step, the seconds that it has trained, and its folder.

    A new run writes its config and a first checkpoint at once, so that it can be resumed even if killed early.
    """

    def __init__(self, task: Task, observers: Sequence[Observer] = (), folder: Path | None = None) -> None:
        self._begin(task, observers)
        getattr(task, "prepare_evaluation", lambda: None)()
        self.folder = open_folder(self.config, task.name, folder)
        if self.config.resume is None:
            self._collect()
            self.save()
        else:
            self.go_on()
            for line in record_resume(self.folder, self.config, self.step):
                print(line, file=sys.stderr)

    def _begin(self, task: Task, observers: Sequence[Observer] = ()) -> None:
        """Sets the state of a run before its first step, except the folder."""
        self.task, self.config, self.observers = task, task.config, observers
        self.step, self.train_seconds, self.history = 0, 0.0, History()
        self._losses = LossWatch()
        self._saved: int | None = None

    def train(self) -> None:
        """Trains from the current step to the last.

        Raises:
            Interrupted: SIGINT or SIGTERM came. The step was completed and the checkpoint saved.
            NotFiniteError: The loss is NaN or infinite: on the CPU in the last step, elsewhere in one of the last 25.
        """
        bar = tqdm(
            total=self.config.steps,
            initial=self.step,
            unit="it",
            disable=not self.config.output.progress,
            dynamic_ncols=True,
        )
        device, ranks = self.task.device, getattr(self.task, "ranks", ALONE)
        with garbage_frozen(), profiled(self.config.profile, device) as stages, Signals() as signals, bar:
            with open_writer(self) as scalars_writer:
                # Work that was queued before does not count as training. From here on the clock runs between moments
                # at which the device has finished all work.
                wait(device)
                start = time.perf_counter()
                while self.step < self.config.steps and not self._finished():
                    report = self.task.step(self.step)
                    self.step += 1
                    self._refuse(self._losses.note(self.step, report))
                    bar.update()
                    if stages is not None:
                        stages.finish_step()
                    due, caught = self._due(), ranks.largest(signals.caught)
                    watching = [observer for observer in self.observers if observer.due()]
                    if due or caught or watching:
                        wait(device)
                        self.train_seconds += time.perf_counter() - start
                        if due:
                            self._look(report, bar, scalars_writer, stages)
                        for observer in watching:
                            observer.look(self.step, report, lambda: bool(signals.caught))
                        caught = caught or signals.caught
                        if caught:
                            self._stop(caught)
                        wait(device)
                        start = time.perf_counter()

    def _finished(self) -> bool:
        """Whether the task has reached its goal, which ends the run before its last step."""
        return getattr(self.task, "finished", False)

    def _is_last(self) -> bool:
        return self.step == self.config.steps or self._finished()

    def _due(self) -> bool:
        """Whether this step is shown, evaluated or saved."""
        config, step = self.config, self.step
        return (
            step % REPORT_EVERY == 0
            or self._is_last()
            or _divides(config.output.eval_every, step)
            or _divides(config.checkpoint_every, step)
            or step in config.output.save_steps
        )

    def _collect(self) -> None:
        """Lets a task whose model is divided among processes bring it together in the first, which writes files.

        All processes call it at the same moments.
        """
        getattr(self.task, "collect", lambda: None)()

    def _before_end(self, every: int) -> bool:
        """Whether what happens every `every` steps is due now. After the last step `finish` does it."""
        return _divides(every, self.step) and not self._is_last()

    def _writes(self) -> bool:
        """Whether this step is evaluated, saved or kept."""
        config = self.config
        every = (config.output.eval_every, config.checkpoint_every)
        return any(map(self._before_end, every)) or self.step in config.output.save_steps

    def _look(self, report: Report, bar: tqdm, writer: Any, stages: StageClock | None) -> None:
        """Shows progress, evaluates and saves, each if it is due after this step."""
        config, step = self.config, self.step
        # The device has finished its work, so reading the losses that it keeps costs almost nothing.
        self._refuse(self._losses.check())
        if step % REPORT_EVERY == 0:
            values = dict(report.items())
            self.history.note(step, self.train_seconds, values)
            shown = {key: f"{value:.4g}" if isinstance(value, float) else str(value) for key, value in values.items()}
            bar.set_postfix(shown, refresh=False)
        if step % SCALARS_EVERY == 0:
            add_scalars(writer, "train", report, step)
        if stages is not None and (step % PROFILE_EVERY == 0 or self._is_last()):
            milliseconds = stages.milliseconds()
            self.history.note(step, self.train_seconds, {"milliseconds": milliseconds})
            times = ", ".join(f"{stage} {value:.2f}" for stage, value in milliseconds.items())
            bar.write(f"step {step}, {in_words(report)}; ms: {times}")
        if self._writes():
            self._collect()
        if self._before_end(config.output.eval_every):
            result = scalars(self.evaluate())
            bar.write(f"step {step}, {self.train_seconds:.0f} s: {in_words(result)}")
            add_scalars(writer, "test", result, step)
            add_pictures(writer, self.task, step)
        if self._before_end(config.checkpoint_every):
            self.save()
        if step in config.output.save_steps:
            self.keep(self.folder / STEPS / f"{step:07d}")

    def keep(self, folder: Path) -> None:
        """Writes the current state to a separate folder, which eval, render and --resume accept as a run folder.

        Raises:
            NotFiniteError: A loss so far, or the state, is NaN or infinite.
        """
        folder.mkdir(parents=True, exist_ok=True)
        write_config(folder, dataclasses.replace(self.config, result_dir=folder))
        save_checkpoint(folder, self._state())
        self.task.export(folder)

    def _stop(self, number: int) -> None:
        self._collect()
        self.save()
        self._tell_stop(number)
        raise Interrupted(number)

    def _tell_stop(self, number: int) -> None:
        name = signal.Signals(number).name
        print(f"stopped by {name} after step {self.step}; to go on: {self.resume_command()}", flush=True)

    @contextmanager
    def stoppable(self) -> Iterator[None]:
        """Interrupts the block at the first SIGINT or SIGTERM. It is for work after training, with nothing to save.

        Raises:
            Interrupted: A signal came. How to go on has been printed.
        """
        try:
            with Signals(at_once=True):
                yield
        except Interrupted as stopped:
            self._tell_stop(stopped.number)
            raise

    def resume_command(self) -> str:
        """The command line that goes on with this run."""
        return f"{program('train')} --resume {shlex.quote(str(self.folder))}"

    def evaluate(self, pictures: Path | None = None) -> dict[str, Any]:
        """Evaluates the task in its current state, and also writes the result to eval/<step>.json."""
        result = self.task.evaluate(pictures)
        write_json(self.folder / "eval" / f"{self.step:07d}.json", self.dated(result))
        return result

    def dated(self, result: dict[str, Any]) -> dict[str, Any]:
        """An evaluation's result with its step and the seconds of training."""
        return {"step": self.step, "train_seconds": round(self.train_seconds, 3), **result}

    def finish(self) -> dict[str, Any]:
        """Writes the last checkpoint, evaluation, pictures and exports, and metrics.json. Returns the metrics."""
        self._collect()
        self.save()
        result = self.evaluate(self.folder / "pictures")
        with open_writer(self) as writer:
            add_pictures(writer, self.task, self.step)
        found = {
            **scalars(result),
            **self.task.export(self.folder),
            "train_seconds": round(self.train_seconds, 3),
            "peak_memory_bytes": peak_memory(self.task.device),
            "step": self.step,
            "device": self.task.device.type,
            "loss": self.config.loss,
        }
        metrics: dict[str, Any] = without_infinities(found)
        write_versions(self.folder)
        write_json(self.folder / METRICS, metrics)
        told = {key: value for key, value in metrics.items() if key.startswith(TOLD)}
        print(f"{in_words(told)}, {self.train_seconds:.1f} s of training: {self.folder}")
        if getattr(self.config.output, "report", False):
            self.task.report(self.folder, self.dated(result))  # type: ignore[attr-defined]
        return metrics

    def save(self) -> None:
        """Writes a checkpoint from which the run can go on exactly.

        Raises:
            NotFiniteError: A loss so far, or the state, is NaN or infinite. The last checkpoint is kept.
        """
        state = self._state()
        # Saved before the checkpoint, because a resumed run drops the rows after its checkpoint.
        self.history.save(self.folder)
        save_checkpoint(self.folder, state)
        self._saved = self.step

    def _state(self) -> dict[str, Any]:
        """The content of a checkpoint, after a check that it is finite."""
        self._refuse(self._losses.check())
        state = self.task.state_dict()
        self._refuse(state_problem(self.step, state))
        return {"step": self.step, "train_seconds": self.train_seconds, "data": self._fingerprint(), **state}

    def _refuse(self, problem: str | None) -> None:
        """Raises NotFiniteError if `trainer.finite` has found a problem."""
        if problem is None:
            return
        raise NotFiniteError(f"{self.folder}: {problem}; {self._kept()}")

    def _kept(self) -> str:
        return "nothing was saved" if self._saved is None else f"its checkpoint is that of step {self._saved}"

    def _fingerprint(self) -> str | None:
        return getattr(self.task, "fingerprint", None)

    def _check_data(self, state: dict[str, Any]) -> None:
        """Raises UserError if the checkpoint is of other data. Old checkpoints tell less, and some tasks nothing."""
        before, now = state.get("data"), self._fingerprint()
        if before is not None and now is not None and not now.startswith(str(before)):
            required = f"the data that {self.folder} was trained on, {before}"
            raise UserError(f"{self.config.data_dir}: required {required}, got {now}")

    def go_on(self) -> None:
        """Restores the checkpoint in the folder, including torch's random generators.

        Raises:
            UserError: The checkpoint cannot be read, is not of such a run, or was made with other data.
        """
        self.restore(load_checkpoint(self.folder, self.task.device))
        self.history = History.read(self.folder, self.step)

    def restore(self, state: dict[str, Any]) -> None:
        """Restores a checkpoint.

        Raises:
            UserError: The state does not belong to such a run, or was made with other data.
        """
        with refusing(self.folder / NAME):
            problem = state_problem(state["step"], state)
            if not is_count(state["step"]) or not is_seconds(state["train_seconds"]) or problem is not None:
                raise ValueError(problem or "one without a step and seconds")
            self.step, self.train_seconds = state["step"], state["train_seconds"]
            self._saved = self.step
            try:
                self.task.load_state_dict(state)
            finally:  # not before: a task may read its data anew, in the coordinates of the checkpoint
                self._check_data(state)


def _divides(every: int, step: int) -> bool:
    """Whether something that happens every `every` steps (never, for 0) is due after `step` steps."""
    return every > 0 and step % every == 0
