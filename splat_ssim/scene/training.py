"""Training a Gaussian scene by images: what one step does, how a scene is evaluated and what it leaves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from splat_ssim._files import write_json
from splat_ssim.errors import UserError, user_errors
from splat_ssim.ply import save_ply
from splat_ssim.registry import get_loss
from splat_ssim.scene.batch import joined
from splat_ssim.scene.cameras import orbit
from splat_ssim.scene.config import SceneConfig
from splat_ssim.scene.data import Scene, View
from splat_ssim.scene.data.summary import summary
from splat_ssim.scene.depth import depth_loss
from splat_ssim.scene.evaluation import check_padding, evaluate
from splat_ssim.scene.exposure import Exposures
from splat_ssim.scene.model import (
    FAR,
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
from splat_ssim.scene.poses import RefinedPoses
from splat_ssim.scene.presets import KINDS
from splat_ssim.scene.reading import FIRST_ORIGIN, check_origin, in_box, read_scene, scene_fingerprint
from splat_ssim.scene.scoring import score_views
from splat_ssim.scene.strategies import growth_note, make_strategy, settle_budget
from splat_ssim.scene.views import TrainingViews
from splat_ssim.strategy.scoring import ViewStats
from splat_ssim.trainer.checkpoint import NAME as CHECKPOINT
from splat_ssim.trainer.checkpoint import refusing, saved_value
from splat_ssim.trainer.config import RunConfig, given
from splat_ssim.trainer.device import pick_device
from splat_ssim.trainer.metrics import psnr
from splat_ssim.trainer.pictures import said_without_video, save_image, to_bytes, write_video
from splat_ssim.trainer.profiling import stage
from splat_ssim.trainer.states import check_rows, check_values, load_optimizer, names_of
from splat_ssim.trainer.task import Report
from splat_ssim.trainer.upload import upload

#: Losses that take bytes as they are, and composite transparent ones themselves.
LOSSES_OF_BYTES = ("fused_ssim",)


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
            self.loss = get_loss(config.loss, **self._loss_options())
        # A run that goes on keeps its coordinates, whatever would be chosen today.
        origin = saved_value(config.resume, "origin", FIRST_ORIGIN) if config.resume is not None else None
        with refusing(Path() if config.resume is None else config.resume / CHECKPOINT):
            check_origin(origin)
        self.scene = read_scene(config, origin) if scene is None else in_box(scene, config)
        self.name, self.fingerprint = self.scene.name, scene_fingerprint(self.scene)
        check_padding(self.evaluated, config.output.ssim_padding)
        if config.output.video:
            self._check_orbit()
        self.views = TrainingViews(self.scene, config, self.device)
        self.extent, self.near = self.scene.extent, config.data.near or self.scene.near
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
        self.optimizers = make_optimizers(self.splats, config.optimizer, config.batch_size)
        self.strategy.check_sanity(self.splats, self.optimizers)
        self.strategy_state = self.strategy.initialize_state(scene_scale=self.extent)
        count = len(self.scene.train)
        exposed = config.exposure.name != "none"
        self.exposures = Exposures(config.exposure, count, self.device) if exposed else None
        refined = config.poses.refine
        self.poses = RefinedPoses(config.poses, self.scene.train, self.extent, self.device) if refined else None

    def _loss_options(self) -> dict[str, Any]:
        """The options of the loss, with the meaning of masks where it is not the loss's own."""
        mode = {} if self.config.data.mask_mode == "weight" else {"mask_mode": self.config.data.mask_mode}
        return {**mode, **self.config.loss_kwargs}

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
        """Renders views, compares them with their photographs, steps the optimisers, densifies."""
        config, splats = self.config, self.splats
        views = self.views.take(index)
        seen = [self._see(view, index, len(views)) for view in views]
        with stage("backward"):
            loss = self._penalised(sum(one.loss for one in seen) / len(seen))

        with stage("optimiser"):
            info = joined([one.info for one in seen])
            set_learning_rates(
                self.optimizers,
                config.optimizer,
                step=index,
                steps=config.steps,
                extent=self.extent,
                batch_size=len(views),
            )
            step_optimizers(self.optimizers, config.optimizer, step=index, radii=info["radii"])
            self._step_views(views, index)

        with stage("strategy"):
            self.strategy.step_post_backward(splats, self.optimizers, self.strategy_state, index, info, packed=False)
            self._keep_in_box()
        if index + 1 < config.steps:
            self.views.start(index + 1)

        terms = {name: sum(one.terms[name] for one in seen) / len(seen) for name in seen[0].terms}
        return Report(
            {
                "loss": loss,
                **terms,
                "psnr": lambda: sum(one.psnr() for one in seen) / len(seen),
                "gaussians": lambda: len(splats["means"]),
            }
        )

    def _see(self, view: View, index: int, count: int) -> Seen:
        """Renders one of the `count` views of a step, compares it with its photograph and goes backward."""
        config, splats = self.config, self.splats
        with stage("render"):
            degree = min(config.model.sh_degree, index // given(config.model.sh_degree_interval))
            with_depth = config.depth.weight > 0 and (view.depth is not None or view.sparse_depth is not None)
            colors, alphas, info = self.render_view(view, degree, render_mode="RGB+ED" if with_depth else "RGB")
            pred = colors[..., :3].permute(0, 3, 1, 2)
            self.strategy.step_pre_backward(splats, self.optimizers, self.strategy_state, index, info)

        with stage("loss"):
            loss = self.compare(pred, view)
            loss, terms = loss if isinstance(loss, tuple) else (loss, {})
            if with_depth:
                difference = depth_loss(colors[..., 3:], alphas, view, self.extent)
                if difference is not None:
                    loss = loss + config.depth.weight * difference
                    terms = {**terms, "depth": difference.detach()}
            smoothness = None if self.exposures is None else self.exposures.penalty(view.index)
            if smoothness is not None:
                loss = loss + smoothness

        with stage("backward"):
            (loss if count == 1 else loss / count).backward()
        return Seen(view, loss.detach(), terms, pred.detach(), info)

    def _penalised(self, loss: Any) -> Tensor:
        """The loss of a step with what is added for the Gaussians themselves, which goes backward here."""
        config, splats = self.config, self.splats
        penalty = None
        if config.opacity_penalty:
            penalty = config.opacity_penalty * activated_opacities(splats, self.opacity_activation).mean()
        if config.scale_penalty:
            scales = config.scale_penalty * torch.exp(splats["scales"]).mean()
            penalty = scales if penalty is None else penalty + scales
        if penalty is None:
            return loss
        penalty.backward()
        return loss + penalty.detach()

    def _step_views(self, views: Sequence[View], index: int) -> None:
        """Steps what training views have for themselves: exposures and poses."""
        progress = index / self.config.steps
        if self.exposures is not None:
            self.exposures.step([view.index for view in views], progress)
        if self.poses is not None and index >= given(self.config.poses.start):
            self.poses.step(progress)

    @torch.no_grad()
    def _keep_in_box(self) -> None:
        """Moves centres that have left the box back to its surface."""
        if self.config.data.box is not None and self.scene.box is not None:
            low, high = (torch.tensor(corner, dtype=torch.float32) for corner in self.scene.box)
            means = self.splats["means"]
            means.copy_(means.maximum(low.to(self.device)).minimum(high.to(self.device)))

    def compare(self, pred: Tensor, view: View) -> Any:
        """What the loss says of a render (1, 3, H, W) and its photograph."""
        mask = None if view.mask is None else view.mask[None, None]
        if self.config.loss not in LOSSES_OF_BYTES or view.image.dtype != torch.uint8:
            return self.loss(pred, view.pixels(), mask=mask)
        background = {"background": view.background} if view.is_transparent else {}
        return self.loss(pred, view.image.permute(2, 0, 1)[None], mask=mask, **background)

    def score_views(self, count: int) -> Iterator[ViewStats]:
        """What `count` training views say of each Gaussian, for the strategies that ask."""
        return score_views(self.render_view, self.scene.train, count, self.device)

    def render_view(
        self,
        view: View,
        sh_degree: int | None = None,
        pixel_weights: Tensor | None = None,
        render_mode: str = "RGB",
    ) -> tuple[Tensor, Tensor, dict]:
        """Colours (1, H, W, 3), alphas and info of a view on the device, by default at the model's degree.

        A training view is seen from its refined pose and with its own exposure, any other camera without them.
        """
        model, data = self.config.model, self.config.data
        if self.poses is not None and view.index >= 0:
            view = self.poses.apply(view)
        noisy = data.random_background and view.is_transparent
        colors, alphas, info = render(
            self.splats,
            view,
            sh_degree=model.sh_degree if sh_degree is None else sh_degree,
            background=upload(torch.tensor(view.background), self.device) if noisy else self.background,
            near=self.near,
            far=FAR if data.far is None else data.far,
            antialiased=model.antialiased,
            opacity_activation=self.opacity_activation,
            render_mode=render_mode,
            pixel_weights=pixel_weights,
            absgrad=self.config.strategy.absgrad,
        )
        if self.exposures is not None and view.index >= 0:
            own = self.exposures.apply(colors[..., :3], view.index)
            colors = own if colors.shape[-1] == 3 else torch.cat([own, colors[..., 3:]], -1)
        return colors, alphas, info

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
            corrected=self.exposures is not None,
        )
        return result if self.scene.test else {**result, "evaluated_on": "training views"}

    @property
    def evaluated(self) -> list[View]:
        """The views that a scene is evaluated on."""
        return self.scene.test or self.scene.train

    def state_dict(self) -> dict[str, Any]:
        """The Gaussians, their optimisers and the strategy's state."""
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
        """Goes on from `state_dict`."""
        origin = state.get("origin", FIRST_ORIGIN)
        check_origin(origin)
        if origin != self.scene.origin:
            self.scene = read_scene(self.config, origin)
            self.extent, self.near = self.scene.extent, self.config.data.near or self.scene.near
            self.views = TrainingViews(self.scene, self.config, self.device)
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
        if self.exposures is not None or self.poses is not None:
            write_json(folder / "cameras.json", self._cameras())
        if self.config.output.video:
            with said_without_video():
                self.render("orbit", folder / self.VIEWS["orbit"], self.config.output.video_frames)
        return metrics

    @torch.no_grad()
    def _cameras(self) -> list[dict[str, Any]]:
        """For each training view its name, its camera to world matrix in the files' coordinates, and its exposure."""
        matrices = None if self.exposures is None else self.exposures.matrices()
        rows: list[dict[str, Any]] = []
        for view in self.scene.train:
            seen = view if self.poses is None else self.poses.apply(view.to(self.device))
            camera = torch.linalg.inv(seen.viewmat.double()).cpu()
            camera[:3, 3] += torch.tensor(self.scene.offset, dtype=torch.float64)
            row = {"name": view.name, "camera_to_world": camera.tolist()}
            rows.append(row if matrices is None else {**row, "exposure": matrices[view.index]})
        return rows

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


@dataclass
class Seen:
    """A view of a step after its backward pass."""

    view: View
    loss: Tensor
    terms: Mapping[str, Tensor]
    #: (1, 3, H, W)
    pred: Tensor
    info: dict[str, Any]

    def psnr(self) -> float | Tensor:
        """Of the render."""
        return psnr(self.pred, self.view.pixels(), self.view.mask)
