"""Training a Gaussian scene on images: its steps, its evaluation and its exports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from splat_ssim.errors import user_errors
from splat_ssim.registry import get_loss
from splat_ssim.scene.batch import Seen, together
from splat_ssim.scene.config import SceneConfig
from splat_ssim.scene.data import Scene, View
from splat_ssim.scene.data.summary import summary
from splat_ssim.scene.depth import depth_loss
from splat_ssim.scene.drawing import check_orbit, previews, render_path, render_views
from splat_ssim.scene.evaluation import check_padding, evaluate
from splat_ssim.scene.exposure import Exposures
from splat_ssim.scene.lpips import Perceptual, make_lpips
from splat_ssim.scene.model import (
    FAR,
    OPACITY_ACTIVATIONS,
    Splats,
    create_splats,
    penalty_of,
    render,
)
from splat_ssim.scene.modes import MODES
from splat_ssim.scene.optimizers import make_optimizers, set_learning_rates, step_optimizers
from splat_ssim.scene.outputs import write_outputs
from splat_ssim.scene.plan import plan_lines
from splat_ssim.scene.poses import RefinedPoses
from splat_ssim.scene.presets import KINDS
from splat_ssim.scene.reading import FIRST_ORIGIN, check_origin, in_box, read_scene, scene_fingerprint
from splat_ssim.scene.scoring import score_views
from splat_ssim.scene.shards import Collected, Shards
from splat_ssim.scene.start import keep_inside, start_count, start_words
from splat_ssim.scene.strategies import growth_note, make_strategy, settle_budget
from splat_ssim.scene.views import TrainingViews
from splat_ssim.strategy.scoring import ViewStats
from splat_ssim.trainer.checkpoint import NAME as CHECKPOINT
from splat_ssim.trainer.checkpoint import refusing, saved_value
from splat_ssim.trainer.config import RunConfig, given
from splat_ssim.trainer.device import pick_device
from splat_ssim.trainer.profiling import stage
from splat_ssim.trainer.ranks import launched
from splat_ssim.trainer.states import check_rows, check_values, load_optimizer, names_of
from splat_ssim.trainer.task import Report, Viewer
from splat_ssim.trainer.upload import upload

#: Losses that accept images of bytes, and composite transparent ones themselves.
LOSSES_OF_BYTES = ("fused_ssim",)


class SceneTask:
    """Trains Gaussians by rendering them and comparing the images with photographs.

    Args:
        config: Options of the run. Its data_dir names the scene.
        scene: A scene that has already been read, instead of the one in data_dir.

    Raises:
        UserError: Something in the config or on disk is not as required.
    """

    Config: ClassVar[type[RunConfig]] = SceneConfig
    VIEWS: ClassVar[Mapping[str, str]] = {"orbit": "orbit.mp4", "train": "train", "test": "test"}
    MODES: ClassVar[tuple[str, ...]] = MODES

    def __init__(self, config: SceneConfig, scene: Scene | None = None) -> None:
        self.config = config = config.resolved()
        self.device = pick_device(config.device)
        torch.manual_seed(config.seed)
        with user_errors():
            self.loss = get_loss(config.loss, **config.loss_options())
        # A resumed run keeps its coordinates, even if others would be chosen today.
        origin = saved_value(config.resume, "origin", FIRST_ORIGIN) if config.resume is not None else None
        with refusing(Path() if config.resume is None else config.resume / CHECKPOINT):
            check_origin(origin)
        self.scene = read_scene(config, origin) if scene is None else in_box(scene, config)
        self.name, self.fingerprint = self.scene.name, scene_fingerprint(self.scene)
        check_padding(self.evaluated, config.output.ssim_padding)
        if config.output.video:
            check_orbit(self.scene.train[0])
        #: LPIPS, once an evaluation needs it.
        self.perceptual: Perceptual | None = None
        self.ranks = launched()
        self.views = TrainingViews(self.scene, config, self.device, self.ranks)
        self.extent, self.near = self.scene.extent, config.data.near or self.scene.near
        self.background = torch.tensor(self.scene.background, device=self.device)
        settle_budget(config.strategy, start_count(self.scene, config.model))
        self.shards = Shards(config, self.ranks, self.scene)
        with user_errors():
            self.strategy = make_strategy(self.shards.own_strategy(config.strategy), self.score_views)
        most = None if self.strategy.max_start is None else config.strategy.budget
        splats = create_splats(self.scene, config.model, seed=config.seed, device=self.device, max_count=most)
        #: The Gaussians that this process trains; from `collect` to the next step those of all processes.
        self.splats = self.shards.own_start(splats)
        self.collected: Collected | None = None
        count = len(splats["means"])
        growth = growth_note(config.strategy, count)
        preset = f"preset {config.preset}, quality {config.quality} (--preset, --quality)"
        self.notes = [*summary(self.scene, start_words(self.scene, config.model, count)), *self.scene.notes]
        self.notes += [*self.shards.notes(config), *([growth] if growth else [])]
        if config.preset in KINDS:
            self.notes.insert(0, preset)
        self.optimizers = make_optimizers(self.splats, config.optimizer, config.batch_size)
        self.strategy.check_sanity(self.splats, self.optimizers)
        self.strategy_state = self.strategy.initialize_state(scene_scale=self.extent)
        count = len(self.scene.train)
        updates = config.steps * config.batch_size / count
        self.exposures = self.poses = None
        if config.exposure.name != "none":
            self.exposures = Exposures(config.exposure, count, self.device)
        if config.poses.refine:
            self.poses = RefinedPoses(config.poses, self.scene.train, self.extent, self.device, updates)

    def plan(self) -> list[str]:
        """Describes what the run would do and how much memory it would take."""
        return plan_lines(self.scene, self.config, self.strategy, len(self.splats["means"]))

    def step(self, index: int) -> Report:
        """Renders the views of a step, compares them with their photographs, steps the optimisers and densifies."""
        if self.collected is not None:
            self.splats, self.collected = self.collected.own, None
        config, splats = self.config, self.splats
        self.shards.seed_step(index)
        seen = [self._see(view, index) for view in self.views.take(index)]
        with stage("backward"):
            step = together(seen, splats, self.ranks, sharded=self.shards.active)
            penalty = penalty_of(splats, config, self.opacity_activation)
            if penalty is not None:
                penalty = self.shards.weighted(penalty, len(splats["means"]))
                penalty.backward()

        with stage("optimiser"):
            set_learning_rates(
                self.optimizers,
                config.optimizer,
                step=index,
                steps=config.steps,
                extent=self.extent,
                batch_size=config.batch_size,
            )
            step_optimizers(self.optimizers, config.optimizer, step=index, radii=step.info["radii"])
            self._step_views(index)

        with stage("strategy"):
            self.strategy.step_post_backward(
                splats, self.optimizers, self.strategy_state, index, step.info, packed=False
            )
            if config.data.box is not None:
                keep_inside(splats["means"], self.scene.box)
        if index + 1 < config.steps:
            self.views.start(index + 1)

        count = self.shards.total(len(splats["means"]))
        return Report(
            {
                "loss": step.loss if penalty is None else step.loss + self.shards.sum(penalty),
                **step.terms,
                "psnr": lambda: sum(one.psnr() for one in seen) / len(seen),
                "gaussians": lambda: count,
            }
        )

    def _see(self, view: View, index: int) -> Seen:
        """Renders a view of a step, compares it with its photograph and backpropagates its share of the loss."""
        config, splats = self.config, self.splats
        with stage("render"):
            degree = min(config.model.sh_degree, index // given(config.model.sh_degree_interval))
            with_depth = config.depth.weight > 0 and (view.depth is not None or view.sparse_depth is not None)
            mode = "RGB+ED" if with_depth else "RGB"
            colors, alphas, info = self.render_view(view, degree, render_mode=mode, distributed=self.shards.active)
            pred = colors[..., :3].permute(0, 3, 1, 2)
            self.strategy.step_pre_backward(splats, self.optimizers, self.strategy_state, index, info)

        with stage("loss"):
            loss = self.compare(pred, view)
            loss, terms = loss if isinstance(loss, tuple) else (loss, {})
            difference = loss.new_zeros(())
            if with_depth:
                difference = depth_loss(colors[..., 3:], alphas, view, self.extent)
                loss = loss + config.depth.weight * difference
            if config.depth.weight > 0:
                terms = {**terms, "depth": difference.detach()}
            smoothness = None if self.exposures is None else self.exposures.penalty(view.index)
            if smoothness is not None:
                loss = loss + smoothness

        with stage("backward"):
            (loss if config.batch_size == 1 else loss / config.batch_size).backward()
        return Seen(view, loss.detach(), terms, pred.detach(), info)

    def _step_views(self, index: int) -> None:
        """Steps the parameters of each training view: exposures and poses."""
        if self.exposures is None and self.poses is None:
            return
        progress, used = index / self.config.steps, self.views.indices(index)
        if self.exposures is not None:
            self.exposures.maps.share(used, self.ranks)
            self.exposures.step(used, progress, learning=index >= given(self.config.exposure.start))
        if self.poses is not None:
            self.poses.changes.share(used, self.ranks)
            self.poses.step(progress, moving=index >= given(self.config.poses.start))

    def compare(self, pred: Tensor, view: View) -> Any:
        """The loss of a render (1, 3, H, W) and its photograph."""
        mask = None if view.mask is None else view.mask[None, None]
        if self.config.loss not in LOSSES_OF_BYTES or view.image.dtype != torch.uint8:
            return self.loss(pred, view.pixels(), mask=mask)
        background = {"background": view.background} if view.is_transparent else {}
        return self.loss(pred, view.image.permute(2, 0, 1)[None], mask=mask, **background)

    def score_views(self, count: int) -> Iterator[ViewStats]:
        """Statistics of each Gaussian over `count` training views, for strategies that score them."""
        whole, own = self.shards.everywhere(self.splats)
        seen = score_views(partial(self.render_view, splats=whole), self.scene.train, count, self.device)
        return (stats.of(own) for stats in seen)

    def render_view(
        self,
        view: View,
        sh_degree: int | None = None,
        pixel_weights: Tensor | None = None,
        render_mode: str = "RGB",
        distributed: bool = False,
        splats: Splats | None = None,
    ) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Colours (1, H, W, 3), alphas and info of a view on the device, by default at the model's degree.

        A training view is seen from its refined pose and with its own exposure, any other camera without them.
        `distributed` renders the Gaussians of all processes, which must call this at the same time.
        """
        model, data = self.config.model, self.config.data
        if self.poses is not None and view.index >= 0:
            view = self.poses.apply(view)
        noisy = data.random_background and view.is_transparent
        background = upload(torch.tensor(view.background), self.device) if noisy else self.background
        colors, alphas, info = render(
            self.splats if splats is None else splats,
            view,
            sh_degree=model.sh_degree if sh_degree is None else sh_degree,
            background=background,
            near=self.near,
            far=FAR if data.far is None else data.far,
            antialiased=model.antialiased,
            opacity_activation=self.opacity_activation,
            render_mode=render_mode,
            pixel_weights=pixel_weights,
            absgrad=self.config.strategy.absgrad,
            distributed=distributed,
        )
        if self.exposures is not None and view.index >= 0:
            # This must also hold for a coarse view of a transparent image, which has no alpha channel any more.
            behind = background if self.scene.train[view.index].is_transparent else None
            own = self.exposures.apply(colors[..., :3], view.index, behind, alphas)
            colors = own if colors.shape[-1] == 3 else torch.cat([own, colors[..., 3:]], -1)
        return colors, alphas, info

    @torch.no_grad()
    def picture(self, view: View) -> Tensor:
        """(1, H, W, 3) colours of a view, whose tensors may be on any device."""
        return self.render_view(view.to(self.device))[0]

    @property
    def opacity_activation(self) -> str:
        """The current activation of opacities, see `activated_opacities`. A strategy may change it."""
        activation: str = self.strategy_state.get("opacity_activation", "sigmoid")
        return activation

    def evaluate(self, pictures: Path | None = None) -> dict[str, Any]:
        """Means over the test views. Without test views: over the training views, and the result says so."""
        if self.perceptual is None:
            self.prepare_evaluation()
        result = evaluate(
            lambda view: self.render_view(view)[0],
            (view.to(self.device) for view in self.evaluated),
            ssim_padding=self.config.output.ssim_padding,
            pictures=pictures,
            max_pictures=self.config.output.images,
            corrected=self.exposures is not None or self.config.output.color_corrected,
            perceptual=self.perceptual,
        )
        return result if self.scene.test else {**result, "evaluated_on": "training views"}

    @property
    def evaluated(self) -> list[View]:
        """The views that a scene is evaluated on."""
        return self.scene.test or self.scene.train

    def collect(self) -> None:
        """Brings the Gaussians of a sharded run together in the first process, until the next step."""
        if not self.shards.active:
            return
        state = self.shards.whole_state(self.state_dict())
        if state is not None:
            whole = {name: torch.nn.Parameter(value.to(self.device), False) for name, value in state["splats"].items()}
            self.splats, self.collected = Splats(whole), Collected(state, self.splats)

    def state_dict(self) -> dict[str, Any]:
        """The Gaussians, their optimisers and the strategy's state."""
        if self.collected is not None:
            return self.collected.state
        state: dict[str, Any] = {
            "splats": {name: param.detach() for name, param in self.splats.items()},
            "frozen": [name for name, param in self.splats.items() if not param.requires_grad],
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "strategy": self.strategy_state,
            "origin": self.scene.origin,
        }
        own = {"exposures": self.exposures, "poses": self.poses}
        return {**state, **{name: part.state_dict() for name, part in own.items() if part is not None}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        origin = state.get("origin", FIRST_ORIGIN)
        check_origin(origin)
        if origin != self.scene.origin:
            self.scene = read_scene(self.config, origin)
            self.fingerprint = scene_fingerprint(self.scene)
            self.extent, self.near = self.scene.extent, self.config.data.near or self.scene.near
            self.views = TrainingViews(self.scene, self.config, self.device, self.ranks)
        count = check_rows(state["splats"], self.splats, "splats")
        fresh = self.strategy.initialize_state(scene_scale=self.extent)
        check_values(state["strategy"], fresh, "strategy", rows=count, optional=("opacity_activation",))
        if state["strategy"].get("opacity_activation", "sigmoid") not in OPACITY_ACTIVATIONS:
            raise ValueError(f"strategy.opacity_activation: required {' or '.join(OPACITY_ACTIVATIONS)}, got another")
        # Older checkpoints do not list frozen parameters.
        frozen = names_of(state.get("frozen", ()), "frozen")
        state = self.shards.own_state(state, count)
        self.splats = Splats(
            {name: torch.nn.Parameter(value, name not in frozen) for name, value in state["splats"].items()}
        )
        self.optimizers = make_optimizers(self.splats, self.config.optimizer, self.config.batch_size)
        if not isinstance(state["optimizers"], Mapping):
            raise ValueError(f"optimizers: required one for each parameter, got {type(state['optimizers']).__name__}")
        for name, optimizer in self.optimizers.items():
            load_optimizer(optimizer, state["optimizers"][name], f"optimizers.{name}")
        self.strategy_state = state["strategy"]
        for name, part in (("exposures", self.exposures), ("poses", self.poses)):
            if part is not None:
                part.load_state_dict(state[name])

    def export(self, folder: Path) -> dict[str, Any]:
        """Writes the files of a finished run, and returns further metrics; see `scene.outputs.write_outputs`."""
        return write_outputs(self, folder)

    def report(
        self, folder: Path, evaluation: Mapping[str, Any], *, views: int = 12, viewer_package: Path | None = None
    ) -> Path:
        """Writes report.html; see `scene.report.write_report`."""
        from splat_ssim.scene.report import write_report

        return write_report(self, folder, evaluation, views=views, viewer_package=viewer_package)

    def viewer(self, port: int) -> Viewer:
        """Opens a viewer of the scene; see `scene.viewer`."""
        from splat_ssim.scene.viewer import SceneViewer

        return SceneViewer(self, port)

    def render(self, views: str, output: Path, frames: int, mode: str = "rgb") -> None:
        """Draws an orbit, or the training or test views; see `scene.drawing.render_views`."""
        render_views(self, views, output, frames, mode)

    def render_path(self, path: Path, output: Path, **options: Any) -> None:
        """Draws a camera path; see `scene.drawing.render_path`."""
        render_path(self, path, output, **options)

    def previews(self) -> dict[str, Tensor]:
        """A picture of a test view for TensorBoard."""
        return previews(self)

    def prepare_evaluation(self) -> None:
        """Prepares what evaluations need, before training, so that a failure loses nothing.

        Raises:
            UserError: LPIPS was asked for and cannot be computed.
        """
        self.perceptual = make_lpips(self.config.output.lpips, self.evaluated, self.device)
