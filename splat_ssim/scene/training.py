"""Training a Gaussian scene by images: what one step does, how a scene is evaluated and what it leaves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from splat_ssim.errors import UserError, user_errors
from splat_ssim.ply import save_ply
from splat_ssim.registry import get_loss
from splat_ssim.scene.cameras import orbit
from splat_ssim.scene.coarse import CoarseViews
from splat_ssim.scene.config import SceneConfig, coarseness
from splat_ssim.scene.data import Scene, View, load_scene
from splat_ssim.scene.data.summary import summary
from splat_ssim.scene.evaluation import check_padding, evaluate
from splat_ssim.scene.model import (
    OPACITY_ACTIVATIONS,
    Splats,
    activated_opacities,
    create_splats,
    render,
    standard_splats,
    start_count,
)
from splat_ssim.scene.optimizers import make_optimizers, set_learning_rates, step_optimizers
from splat_ssim.scene.plan import plan_lines
from splat_ssim.scene.presets import KINDS
from splat_ssim.scene.scoring import score_views
from splat_ssim.scene.strategies import growth_note, make_strategy, settle_budget
from splat_ssim.strategy.scoring import ViewStats
from splat_ssim.trainer.checkpoint import NAME as CHECKPOINT
from splat_ssim.trainer.checkpoint import fingerprint, refusing, saved_value
from splat_ssim.trainer.config import RunConfig, given
from splat_ssim.trainer.device import pick_device
from splat_ssim.trainer.metrics import psnr
from splat_ssim.trainer.pictures import said_without_video, save_image, to_bytes, write_video
from splat_ssim.trainer.profiling import stage
from splat_ssim.trainer.states import check_rows, check_values, load_optimizer, names_of
from splat_ssim.trainer.task import Report
from splat_ssim.trainer.upload import Ahead

#: Losses that take bytes as they are, and composite transparent ones themselves.
LOSSES_OF_BYTES = ("fused_ssim",)
#: `Scene.origin` of a checkpoint that has none: coordinates were those of the first model, as they are.
FIRST_ORIGIN = {"offset": [0.0, 0.0, 0.0], "model": ""}


class SceneTask:
    """Gaussians that are rendered and compared with photographs: scene, model, loss, strategy and optimisers.

    Args:
        config: Its data_dir names the scene.
        scene: In its place, a scene that was read already.

    Raises:
        UserError: Something in the config or on disk is not as required.
    """

    Config: ClassVar[type[RunConfig]] = SceneConfig
    VIEWS: ClassVar[Mapping[str, str]] = {"orbit": "orbit.mp4", "train": "train", "test": "test"}

    def __init__(self, config: SceneConfig, scene: Scene | None = None) -> None:
        self.config = config = config.resolved()
        self.device = pick_device(config.device)
        torch.manual_seed(config.seed)
        with user_errors():
            self.loss = get_loss(config.loss, **config.loss_kwargs)
        # A run that goes on keeps its coordinates, whatever would be chosen today.
        origin = saved_value(config.resume, "origin", FIRST_ORIGIN) if config.resume is not None else None
        with refusing(Path() if config.resume is None else config.resume / CHECKPOINT):
            check_origin(origin)
        self.scene = scene if scene is not None else read_scene(config, origin)
        self.name, self.fingerprint = self.scene.name, scene_fingerprint(self.scene)
        check_padding(self.evaluated, config.output.ssim_padding)
        if config.output.video:
            self._check_orbit()
        #: Training views at a part of their size, while the run asks for such.
        self.coarse_views: CoarseViews | None = None
        self.views = Ahead(lambda step: self.view_of_step(step), View.mapped, self.device)
        self.extent, self.near = self.scene.extent, self.scene.near
        self.background = torch.tensor(self.scene.background, device=self.device)
        settle_budget(config.strategy, start_count(self.scene, config.model))
        with user_errors():
            self.strategy = make_strategy(config.strategy, self.score_views)
        self.splats = create_splats(
            self.scene, config.model, seed=config.seed, device=self.device, max_count=self.strategy.max_start
        )
        growth = growth_note(config.strategy, len(self.splats["means"]))
        preset = f"preset {config.preset}, quality {config.quality} (--preset, --quality)"
        self.notes = [*summary(self.scene, self._start()), *self.scene.notes, *([growth] if growth else [])]
        if config.preset in KINDS:
            self.notes.insert(0, preset)
        self.optimizers = make_optimizers(self.splats, config.optimizer)
        self.strategy.check_sanity(self.splats, self.optimizers)
        self.strategy_state = self.strategy.initialize_state(scene_scale=self.extent)

    def plan(self) -> list[str]:
        """What the run would do and take, in words."""
        return plan_lines(self.scene, self.config, self.strategy, len(self.splats["means"]))

    def _start(self) -> str:
        """What the Gaussians start from, in words."""
        start, drawn = start_count(self.scene, self.config.model), len(self.splats["means"])
        random = self.config.model.init == "random" or self.scene.points is None
        what = f"{start} {'random points' if random else 'points of the scene'}"
        return what if drawn == start else f"{drawn} of {what}"

    def step(self, index: int) -> Report:
        """Renders a view, compares it with the photograph, steps the optimisers, densifies."""
        config, splats = self.config, self.splats
        with stage("render"):
            view = self.views.take(index)
            degree = min(config.model.sh_degree, index // given(config.model.sh_degree_interval))
            colors, _, info = self.render_view(view, degree)
            pred = colors.permute(0, 3, 1, 2)
            self.strategy.step_pre_backward(splats, self.optimizers, self.strategy_state, index, info)

        with stage("loss"):
            loss = self.compare(pred, view)
            loss, terms = loss if isinstance(loss, tuple) else (loss, {})
            if config.opacity_penalty:
                loss = loss + config.opacity_penalty * activated_opacities(splats, self.opacity_activation).mean()
            if config.scale_penalty:
                loss = loss + config.scale_penalty * torch.exp(splats["scales"]).mean()

        with stage("backward"):
            loss.backward()

        with stage("optimiser"):
            set_learning_rates(self.optimizers, config.optimizer, step=index, steps=config.steps, extent=self.extent)
            step_optimizers(self.optimizers, config.optimizer, step=index, radii=info["radii"])

        with stage("strategy"):
            self.strategy.step_post_backward(splats, self.optimizers, self.strategy_state, index, info, packed=False)
        if index + 1 < config.steps:
            self.views.start(index + 1)

        return Report(
            {
                "loss": loss,
                **terms,
                "psnr": lambda: psnr(pred.detach(), view.pixels(), view.mask),
                "gaussians": lambda: len(splats["means"]),
            }
        )

    def compare(self, pred: Tensor, view: View) -> Any:
        """What the loss says of a render (1, 3, H, W) and its photograph."""
        mask = None if view.mask is None else view.mask[None, None]
        if self.config.loss not in LOSSES_OF_BYTES or view.image.dtype != torch.uint8:
            return self.loss(pred, view.pixels(), mask=mask)
        background = {"background": view.background} if view.is_transparent else {}
        return self.loss(pred, view.image.permute(2, 0, 1)[None], mask=mask, **background)

    def view_of_step(self, step: int) -> View:
        """The training view of a step: each pass over the views has its own order, known from the seed alone."""
        views = self.scene.train
        epoch, position = divmod(step, len(views))
        # Torch takes seeds below 2^63.
        generator = torch.Generator().manual_seed((self.config.seed * 1_000_003 + epoch) % 2**63)
        index = int(torch.randperm(len(views), generator=generator)[position])
        factor = coarseness(self.config.data, step)
        if factor == 1:
            self.coarse_views = None
            return views[index]
        if self.coarse_views is None or self.coarse_views.factor != factor:
            self.coarse_views = CoarseViews(views, factor)
        return self.coarse_views[index]

    def score_views(self, count: int) -> Iterator[ViewStats]:
        """What `count` training views say of each Gaussian, for the strategies that ask."""
        return score_views(self.render_view, self.scene.train, count, self.device)

    def render_view(
        self, view: View, sh_degree: int | None = None, pixel_weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor, dict]:
        """Colours (1, H, W, 3), alphas and info of a view on the device, by default at the model's degree."""
        model = self.config.model
        return render(
            self.splats,
            view,
            sh_degree=model.sh_degree if sh_degree is None else sh_degree,
            background=self.background,
            near=self.near,
            antialiased=model.antialiased,
            opacity_activation=self.opacity_activation,
            pixel_weights=pixel_weights,
        )

    @torch.no_grad()
    def picture(self, view: View) -> Tensor:
        """(1, H, W, 3) colours of a view, wherever its tensors are."""
        return self.render_view(view.to(self.device))[0]

    @property
    def opacity_activation(self) -> str:
        """How opacities are stored at present, which a strategy may change: see `activated_opacities`."""
        return self.strategy_state.get("opacity_activation", "sigmoid")

    def evaluate(self, pictures: Path | None = None) -> dict[str, Any]:
        """Means over the test views, or over the training views where there are none, which the result then says."""
        result = evaluate(
            lambda view: self.render_view(view)[0],
            (view.to(self.device) for view in self.evaluated),
            ssim_padding=self.config.output.ssim_padding,
            pictures=pictures,
            max_pictures=self.config.output.images,
        )
        return result if self.scene.test else {**result, "evaluated_on": "training views"}

    @property
    def evaluated(self) -> list[View]:
        """The views that a scene is evaluated on."""
        return self.scene.test or self.scene.train

    def state_dict(self) -> dict[str, Any]:
        """The Gaussians, their optimisers and the strategy's state."""
        return {
            "splats": {name: param.detach() for name, param in self.splats.items()},
            "frozen": [name for name, param in self.splats.items() if not param.requires_grad],
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "strategy": self.strategy_state,
            "origin": self.scene.origin,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from `state_dict`."""
        origin = state.get("origin", FIRST_ORIGIN)
        check_origin(origin)
        if origin != self.scene.origin:
            self.scene = read_scene(self.config, origin)
            self.extent, self.near = self.scene.extent, self.scene.near
            self.coarse_views = None
        count = check_rows(state["splats"], self.splats, "splats")
        fresh = self.strategy.initialize_state(scene_scale=self.extent)
        check_values(state["strategy"], fresh, "strategy", rows=count, optional=("opacity_activation",))
        if state["strategy"].get("opacity_activation", "sigmoid") not in OPACITY_ACTIVATIONS:
            raise ValueError(f"strategy.opacity_activation: required {' or '.join(OPACITY_ACTIVATIONS)}, got another")
        # A checkpoint from before there were frozen parameters has none.
        frozen = names_of(state.get("frozen", ()), "frozen")
        self.splats = Splats(
            {name: torch.nn.Parameter(value, name not in frozen) for name, value in state["splats"].items()}
        )
        self.optimizers = make_optimizers(self.splats, self.config.optimizer)
        if not isinstance(state["optimizers"], Mapping):
            raise ValueError(f"optimizers: required one for each parameter, got {type(state['optimizers']).__name__}")
        for name, optimizer in self.optimizers.items():
            load_optimizer(optimizer, state["optimizers"][name], f"optimizers.{name}")
        self.strategy_state = state["strategy"]

    def export(self, folder: Path) -> dict[str, Any]:
        """scene.ply and orbit.mp4, as asked for; the number of Gaussians and how it grew under a budget."""
        metrics: dict[str, Any] = {"num_gaussians": len(self.splats["means"])}
        if any(self.scene.offset):
            # Coordinates of the files = those of scene.ply + offset.
            metrics["offset"] = list(self.scene.offset)
        if self.strategy_state.get("budget_curve") is not None:
            metrics["budget"] = self.config.strategy.budget
            metrics["budget_curve"] = self.strategy_state["budget_curve"]
            metrics["budget_counts"] = self.strategy_state["num_gaussians"]
        if self.config.output.ply:
            comments = [f"offset {' '.join(map(repr, self.scene.offset))}"] if any(self.scene.offset) else []
            splats = standard_splats(self.splats, self.opacity_activation)
            save_ply(folder / "scene.ply", splats, comments=comments)
        if self.config.output.video:
            with said_without_video():
                self.render("orbit", folder / self.VIEWS["orbit"], self.config.output.video_frames)
        return metrics

    def render(self, views: str, output: Path, frames: int) -> None:
        """An orbit as MP4, or the training or test views as a folder of PNG."""
        if views == "orbit":
            self._check_orbit()
            path = orbit(self.scene.train, frames)
            write_video(output, (to_bytes(self.picture(view).permute(0, 3, 1, 2)) for view in path))
            return
        chosen = getattr(self.scene, views)
        if not chosen:
            raise UserError(f"--views {views} requires {views} views, got a scene without any: {self.config.data_dir}")
        output.mkdir(parents=True, exist_ok=True)
        for index, view in enumerate(chosen):
            save_image(output / f"{index:04d}.png", self.picture(view).permute(0, 3, 1, 2))

    def _check_orbit(self) -> None:
        """Raises UserError where a video would have no pixels: its sides are even."""
        view = self.scene.train[0]
        if min(view.height, view.width) < 2:
            raise UserError(f"a video requires images of at least 2x2 pixels, got {view.height}x{view.width}")


def scene_fingerprint(scene: Scene) -> str:
    """Of the views by name and camera, not by image: those may be read at another size."""
    views = [*scene.train, *scene.test]
    viewmats = scene.world_viewmats or [view.viewmat for view in views]
    parts = [part for view, viewmat in zip(views, viewmats, strict=True) for part in (view.name, viewmat)]
    return fingerprint(f"{len(scene.train)} training and {len(scene.test)} test views", *parts)


def check_origin(origin: Any) -> None:
    """Raises ValueError where the origin in a checkpoint is not what `Scene.origin` says; None says nothing."""
    if origin is None:
        return
    offset = origin.get("offset") if isinstance(origin, Mapping) else None
    numbers = isinstance(offset, list) and len(offset) == 3 and all(type(value) in (float, int) for value in offset)
    if not numbers or not all(abs(value) < 1e30 for value in offset or ()) or type(origin.get("model")) is not str:
        raise ValueError("origin: required an offset of three finite numbers and a model, got others")


def read_scene(config: SceneConfig, origin: Mapping[str, Any] | None = None) -> Scene:
    """The scene of a config, in the coordinates of an origin or in those that are chosen for it."""
    backgrounds = {"white": (1.0, 1.0, 1.0), "black": (0.0, 0.0, 0.0)}
    return load_scene(
        config.data_dir,
        format=config.data.format,
        factor=config.data.factor,
        test_every=config.data.test_every,
        background=backgrounds[config.data.background],
        cache=config.data.cache,
        origin=origin,
    )
