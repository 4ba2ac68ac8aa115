"""Training a Gaussian scene: from a config to a run folder."""

from __future__ import annotations

import gc
import resource
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from splat_ssim.registry import get_loss
from splat_ssim.strategy import make_strategy
from splat_ssim.strategy.scoring import ViewStats
from splat_ssim.trainer.checkpoint import load_checkpoint, save_checkpoint
from splat_ssim.trainer.config import Config, DataConfig, given, write_yaml
from splat_ssim.trainer.data import Scene, View, load_scene
from splat_ssim.trainer.evaluation import evaluate, psnr, write_json
from splat_ssim.trainer.model import Splats, activated_opacities, create_splats, render, standard_splats
from splat_ssim.trainer.optimizers import make_optimizers, set_learning_rates, step_optimizers
from splat_ssim.trainer.ply import save_ply
from splat_ssim.trainer.profiling import StageClock
from splat_ssim.trainer.scoring import score_views
from splat_ssim.trainer.video import orbit, write_video

#: Steps between two refreshes of the progress bar, of TensorBoard and of the profile's own lines.
REPORT_EVERY, SCALARS_EVERY, PROFILE_EVERY = 25, 100, 1000


def train(config: Config) -> dict[str, Any]:
    """Runs a config: scene, training, evaluation, export. Returns what metrics.json holds.

    Raises:
        ValueError: Something in the config or on disk is not as required; nothing has been trained yet.
    """
    trainer = Trainer(config)
    trainer.run()
    return trainer.finish()


def pick_device(name: str) -> torch.device:
    """The device of --device: auto is CUDA where torch sees one."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda requires a CUDA device and a CUDA build of torch, got none")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


class Trainer:
    """One run: scene, Gaussians, loss, strategy and optimisers, and the loop over them."""

    def __init__(self, config: Config) -> None:
        self.config = config = config.resolved()
        self.device = pick_device(config.device)
        torch.manual_seed(config.seed)
        self.loss = get_loss(config.loss, **config.loss_kwargs)
        self.scene = read_scene(config)
        self.coarse_views: dict[tuple[int, int], View] = {}
        self.extent = self.scene.extent
        self.background = torch.tensor(self.scene.background, device=self.device)
        self.splats = create_splats(
            self.scene, config.model, seed=config.seed, device=self.device, most=config.strategy.most_at_start
        )
        self.optimizers = make_optimizers(self.splats, config.optimizer)
        if config.strategy.budget_multiplier is not None:
            config.strategy.budget = max(1, int(config.strategy.budget_multiplier * len(self.splats["means"])))
        self.strategy = make_strategy(config.strategy, self.score_views)
        self.strategy.check_sanity(self.splats, self.optimizers)
        self.strategy_state = self.strategy.initialize_state(scene_scale=self.extent)
        self.clock = StageClock(config.profile, self.device)
        self.step = 0
        self.train_seconds = 0.0
        self.folder = self._open_folder()
        if config.resume is not None:
            self._load()
        else:
            # So that a run killed before its first checkpoint resumes like any other.
            self.save()

    def run(self) -> None:
        """Trains from the current step to the last."""
        # What exists now stays: else Python's collector walks through all of torch's modules every so many steps.
        gc.freeze()
        try:
            self._run()
        finally:
            gc.unfreeze()

    def _run(self) -> None:
        config = self.config
        bar = tqdm(
            total=config.steps, initial=self.step, unit="it", disable=not config.output.progress, dynamic_ncols=True
        )
        scalars = self._scalars()
        while self.step < config.steps:
            start = time.perf_counter()
            report = self.train_step(self.step)
            self.train_seconds += time.perf_counter() - start
            self.step += 1
            bar.update()
            if self.step % REPORT_EVERY == 0:
                bar.set_postfix({key: f"{value:.4g}" for key, value in report().items()}, refresh=False)
            if scalars is not None and self.step % SCALARS_EVERY == 0:
                for key, value in report().items():
                    scalars.add_scalar(f"train/{key}", value, self.step)
            if config.profile and (self.step % PROFILE_EVERY == 0 or self.step == config.steps):
                stages = ", ".join(f"{stage} {value:.2f}" for stage, value in self.clock.milliseconds().items())
                bar.write(f"step {self.step}, {len(self.splats['means'])} Gaussians, ms: {stages}")
            if config.output.eval_every and self.step % config.output.eval_every == 0 and self.step < config.steps:
                result = self.evaluate()
                bar.write(f"step {self.step}: {result['psnr']:.2f} dB on {len(result['views'])} test views")
                if scalars is not None:
                    scalars.add_scalar("test/psnr", result["psnr"], self.step)
            if config.checkpoint_every and self.step % config.checkpoint_every == 0:
                self.save()
        bar.close()

    def train_step(self, step: int) -> Callable[[], dict[str, float]]:
        """One step: render a view, compare, step the optimisers, densify. Returns what reports on it when called."""
        config, splats, clock = self.config, self.splats, self.clock
        with clock("render"):
            view = self.view_of_step(step).to(self.device)
            target = view.pixels()
            colors, _, info = self.render(
                view, min(config.model.sh_degree, step // given(config.model.sh_degree_interval))
            )
            pred = colors.permute(0, 3, 1, 2)
            self.strategy.step_pre_backward(splats, self.optimizers, self.strategy_state, step, info)

        with clock("loss"):
            mask = None if view.mask is None else view.mask[None, None]
            loss = self.loss(pred, target, mask=mask)
            loss, terms = loss if isinstance(loss, tuple) else (loss, {})
            if config.opacity_penalty:
                loss = loss + config.opacity_penalty * activated_opacities(splats, self.opacity_activation).mean()
            if config.scale_penalty:
                loss = loss + config.scale_penalty * torch.exp(splats["scales"]).mean()

        with clock("backward"):
            loss.backward()

        with clock("optimiser"):
            set_learning_rates(self.optimizers, config.optimizer, step=step, steps=config.steps, extent=self.extent)
            step_optimizers(self.optimizers, config.optimizer, step=step, radii=info["radii"])

        with clock("strategy"):
            self.strategy.step_post_backward(splats, self.optimizers, self.strategy_state, step, info, packed=False)
        clock.finish_step()

        def report() -> dict[str, float]:
            values = {key: float(value) for key, value in {"loss": loss.detach(), **terms}.items()}
            return {**values, "psnr": psnr(pred.detach(), target, view.mask), "gaussians": len(splats["means"])}

        return report

    def view_of_step(self, step: int) -> View:
        """The training view of a step: each pass over the views has its own order, known from the seed alone."""
        views = self.scene.train
        epoch, position = divmod(step, len(views))
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + epoch)
        index = int(torch.randperm(len(views), generator=generator)[position])
        factor = coarseness(self.config.data, step)
        if factor == 1:
            return views[index]
        if (index, factor) not in self.coarse_views:
            self.coarse_views[index, factor] = views[index].reduced(factor)
        return self.coarse_views[index, factor]

    def score_views(self, count: int) -> Iterator[ViewStats]:
        """What `count` training views say of each Gaussian, for the strategies that ask."""
        return score_views(self.render, self.scene.train, count, self.device)

    def render(
        self, view: View, sh_degree: int | None = None, pixel_weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor, dict]:
        """Colours (1, H, W, 3), alphas and info of a view on the device, by default at the model's degree."""
        model = self.config.model
        return render(
            self.splats,
            view,
            sh_degree=model.sh_degree if sh_degree is None else sh_degree,
            background=self.background,
            antialiased=model.antialiased,
            opacity_activation=self.opacity_activation,
            pixel_weights=pixel_weights,
        )

    @property
    def opacity_activation(self) -> str:
        """How opacities are stored at present, which a strategy may change: see `activated_opacities`."""
        return self.strategy_state.get("opacity_activation", "sigmoid")

    def evaluate(self, pictures: Path | None = None) -> dict[str, Any]:
        """Means over the test views, or the training views where there are none, written to eval/<step>.json too."""
        views = [view.to(self.device) for view in self.scene.test or self.scene.train]
        result = evaluate(
            lambda view: self.render(view)[0],
            views,
            ssim_padding=self.config.output.ssim_padding,
            pictures=pictures,
            max_pictures=self.config.output.images,
        )
        (self.folder / "eval").mkdir(exist_ok=True)
        write_json(self.folder / "eval" / f"{self.step:07d}.json", {"step": self.step, **result})
        return result

    def finish(self) -> dict[str, Any]:
        """Last checkpoint, evaluation, pictures, PLY, video, metrics.json."""
        self.save()
        result = self.evaluate(self.folder / "pictures")
        metrics = {
            **{key: result[key] for key in ("psnr", "ssim", "ssim_padding")},
            "num_gaussians": len(self.splats["means"]),
            "train_seconds": round(self.train_seconds, 3),
            "peak_memory_bytes": peak_memory(self.device),
            "step": self.step,
            "device": self.device.type,
            "loss": self.config.loss,
        }
        if self.strategy_state.get("budget_curve") is not None:
            metrics["budget"] = self.config.strategy.budget
            metrics["budget_curve"] = self.strategy_state["budget_curve"]
            metrics["budget_counts"] = self.strategy_state["num_gaussians"]
        if self.config.output.ply:
            save_ply(self.folder / "scene.ply", standard_splats(self.splats, self.opacity_activation))
        if self.config.output.video:
            with torch.no_grad():
                path = [view.to(self.device) for view in orbit(self.scene.train, self.config.output.video_frames)]
                write_video(self.folder / "orbit.mp4", lambda view: self.render(view)[0], path)
        write_json(self.folder / "metrics.json", metrics)
        print(
            f"{metrics['psnr']:.2f} dB, SSIM {metrics['ssim']:.4f} on {len(result['views'])} test views, "
            f"{metrics['num_gaussians']} Gaussians, {metrics['train_seconds']:.1f} s of training: {self.folder}"
        )
        return metrics

    def save(self) -> None:
        """Writes a checkpoint from which a run goes on exactly."""
        save_checkpoint(
            self.folder,
            {
                "step": self.step,
                "train_seconds": self.train_seconds,
                "splats": {name: param.detach() for name, param in self.splats.items()},
                "frozen": [name for name, param in self.splats.items() if not param.requires_grad],
                "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
                "strategy": self.strategy_state,
            },
        )

    def _load(self) -> None:
        state = load_checkpoint(self.folder, self.device)
        self.step, self.train_seconds = state["step"], state["train_seconds"]
        # A checkpoint from before there were frozen parameters has none.
        frozen = state.get("frozen", ())
        self.splats = Splats(
            {name: torch.nn.Parameter(value, name not in frozen) for name, value in state["splats"].items()}
        )
        self.optimizers = make_optimizers(self.splats, self.config.optimizer)
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.strategy_state = state["strategy"]

    def _open_folder(self) -> Path:
        config = self.config
        folder = config.result_dir
        if folder is None:
            folder = Path("results") / self.scene.name / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        if config.resume is None and (folder / "metrics.json").exists():
            raise ValueError(f"{folder}: required a new folder for a new run, got one with metrics.json (--result-dir)")
        folder.mkdir(parents=True, exist_ok=True)
        if config.resume is None:
            write_yaml(folder / "config.yaml", config)
        return folder

    def _scalars(self):
        """TensorBoard's writer, if asked for."""
        if not self.config.output.tensorboard:
            return None
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self.folder / "tensorboard"), purge_step=self.step)


def coarseness(config: DataConfig, step: int) -> int:
    """By what the training images of a step are reduced: coarse_factor at first, 1 from coarse_stop on."""
    stop, halvings = given(config.coarse_stop), config.coarse_factor.bit_length() - 1
    return 1 if step >= stop else config.coarse_factor >> (step * halvings // stop)


def peak_memory(device: torch.device) -> int:
    """Most bytes in use so far: of torch on a CUDA device, of the whole process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def read_scene(config: Config) -> Scene:
    """The scene of a config."""
    backgrounds = {"white": (1.0, 1.0, 1.0), "black": (0.0, 0.0, 0.0)}
    return load_scene(
        config.data_dir,
        format=config.data.format,
        factor=config.data.factor,
        test_every=config.data.test_every,
        background=backgrounds[config.data.background],
    )
