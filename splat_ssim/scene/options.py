"""Parts of the options of training a scene, and which options each strategy has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from splat_ssim.trainer.config import OutputConfig


@dataclass
class DataConfig:
    """How the scene is read."""

    #: auto, blender, colmap or nerfstudio.
    format: str = "auto"
    #: Images at 1/factor of their size, from images_{factor} where there is one.
    factor: int = 1
    #: Without a split in the files, every such view by file name is a test view; 0: all views train.
    test_every: int = 8
    #: Behind images with an alpha channel.
    background: Literal["white", "black"] = "white"
    #: Each step at full size draws a colour to put behind transparent training images, so that no Gaussian paints it.
    random_background: bool = False
    #: What a mask means to the loss: weight: masked pixels do not count; normalize: nor do they enter the windows of
    #: SSIM; zero: both images are black there.
    mask_mode: Literal["weight", "normalize", "zero"] = "weight"
    #: Gaussians whose centre is nearer to a camera are not rendered, in the scene's unit; by default 0.01, or less in a
    #: small scene.
    near: float | None = None
    #: Gaussians whose centre is farther from a camera are not rendered, in the scene's unit; by default none.
    far: float | None = None
    #: Gaussians stay inside this box: x y z of one corner and x y z of the opposite one, in the scene's coordinates.
    box: tuple[float, float, float, float, float, float] | None = None
    #: Folder of decoded images, where they take more than half of the free memory; by default .cache in the scene's.
    cache: Path | None = None
    #: Training starts on images reduced by this power of 2, which halves at equal intervals; 1: full size throughout.
    coarse_factor: int = 1
    #: From this step on images are of full size; by default from 0.3 of the run on.
    coarse_stop: int | None = None


@dataclass
class ModelConfig:
    """The Gaussians and how they are rendered."""

    #: Highest degree of the spherical harmonics.
    sh_degree: int = 3
    #: Steps from one degree to the next; by default a tenth of the run.
    sh_degree_interval: int | None = None
    #: points: from the scene's point cloud; random: inside the silhouettes or the cameras' view; auto: points if any;
    #: ply: from the Gaussians in init_ply.
    init: Literal["auto", "points", "random", "ply"] = "auto"
    #: A file of Gaussians to go on from, such as the scene.ply of another run: a PLY, or any that export.py writes.
    init_ply: Path | None = None
    #: Number of Gaussians of a random start.
    init_count: int = 10_000
    #: Half the edge of the cube, about what the cameras look at, of a random start; by default the format's box.
    init_box: float | None = None
    #: Opacity of a Gaussian at the start.
    init_opacity: float = 0.1
    #: Mip-Splatting's compensation of the screen-space blur.
    antialiased: bool = False


@dataclass
class OptimizerConfig:
    """Adam and its learning rates. Positions decay log-linearly over the run, the others over its last part."""

    #: adam: compiled on the CPU; torch_adam: torch's own; sparse_adam: compiled, changes only the Gaussians in view.
    name: Literal["adam", "torch_adam", "sparse_adam"] = "adam"
    #: shN takes a step each so many steps, on the sum of the gradients (Taming 3DGS: 16); steps_scaler leaves it alone.
    sh_every: int = 1
    #: Initial learning rate of positions, in units of the scene's extent; 0: they stay where they start.
    means: float = 5e-4
    #: Final learning rate of positions, in the same units.
    means_final: float = 5e-6
    scales: float = 5e-3
    quats: float = 1e-3
    opacities: float = 2.5e-2
    sh0: float = 2.5e-3
    shN: float = 1.25e-4
    #: From this step on the rates other than the positions' decay log-linearly; by default at 0.7 of the run.
    decay_start: int | None = None
    #: Final learning rate of these as a fraction of the initial one.
    final_factor: float = 0.1


#: Options of `OptimizerConfig` that are learning rates; 0 keeps a parameter as it starts.
LEARNING_RATES = ("means", "means_final", "scales", "quats", "opacities", "sh0", "shN")


@dataclass
class StrategyConfig:
    """Densification. An option that the chosen strategy lacks is refused, see STRATEGY_OPTIONS."""

    #: capped, default (gsplat's), mcmc or taming.
    name: str = "capped"
    #: Largest number of Gaussians (capped, mcmc, taming).
    budget: int = 30_000
    #: Where given, the budget is this multiple of the Gaussians at the start.
    budget_multiplier: float | None = None
    #: Densification happens after refine_start, every refine_every steps, before refine_stop (default 0.6 of the run).
    refine_start: int = 100
    refine_every: int = 100
    refine_stop: int | None = None
    #: Opacities are reset every so many steps (default strategy); by default a tenth of the run.
    reset_every: int | None = None
    #: Share of the Gaussians added at most at each event (capped); by default 0.05, or more where only that reaches the
    #: budget before refine_stop, up to 0.5.
    growth: float | None = None
    #: Share of the Gaussians removed when densification ends: those that training views see least of (capped).
    final_prune: float = 0.0
    #: Gaussians less opaque than this are removed or put to use elsewhere.
    prune_opacity: float = 0.005
    #: Image-plane gradient, in half images, above which a Gaussian is cloned or split (default, taming); by default
    #: 2e-4, and 8e-4 with absgrad.
    grow_gradient: float | None = None
    #: Sum the absolute gradients of the pixels, which opposite ones do not cancel, as AbsGS does (default strategy).
    absgrad: bool = False
    #: Up to this share of the scene's extent a Gaussian is cloned, a larger one is split (default, taming).
    grow_scale: float = 0.01
    #: Learning rate of the positional noise (mcmc).
    noise: float = 5e5
    #: Training views scored at each event (taming); 0: no score, growth and pruning are drawn evenly.
    score_views: int = 10
    #: Opacities may pass 1 late in the run (taming): intended: and are optimised; released: frozen, as published.
    high_opacity: Literal["off", "intended", "released"] = "off"
    #: From this step on; by default from refine_stop on.
    high_opacity_start: int | None = None


#: Options of `StrategyConfig` that each strategy has -> their names in its class, see `scene.strategies`.
_EVENTS = {"refine_start": "refine_start_iter", "refine_stop": "refine_stop_iter", "refine_every": "refine_every"}
_BUDGET = {"budget": "budget", "budget_multiplier": None}
STRATEGY_OPTIONS: dict[str, dict[str, str | None]] = {
    "capped": {
        **_BUDGET,
        **_EVENTS,
        "growth": "growth",
        "final_prune": "final_prune",
        "score_views": "num_views",
        "prune_opacity": "prune_opa",
    },
    "default": {
        **_EVENTS,
        "prune_opacity": "prune_opa",
        "grow_gradient": "grow_grad2d",
        "grow_scale": "grow_scale3d",
        "reset_every": "reset_every",
        "absgrad": "absgrad",
    },
    "mcmc": {
        **_BUDGET,
        "budget": "cap_max",
        **_EVENTS,
        "noise": "noise_lr",
        "prune_opacity": "min_opacity",
    },
    "taming": {
        **_BUDGET,
        **_EVENTS,
        "grow_gradient": "grow_grad2d",
        "grow_scale": "grow_scale3d",
        "prune_opacity": "prune_opa",
        "reset_every": "reset_every",
        "score_views": "num_views",
        "high_opacity": "high_opacity",
        "high_opacity_start": "high_opacity_start",
    },
}


@dataclass
class ExposureConfig:
    """Colours of each photograph, which exposure and white balance change. Test views are rendered without them."""

    #: affine: a 3x4 matrix for each training image; bilateral: a grid of such matrices over place and brightness.
    name: Literal["none", "affine", "bilateral"] = "none"
    #: Initial learning rate, which decays log-linearly to a tenth; by default 0.01 (affine) or 0.002 (bilateral).
    rate: float | None = None
    #: Images keep their colours before this step, until the Gaussians have theirs; by default a tenth of the run.
    start: int | None = None
    #: Cells of a bilateral grid: horizontal, vertical, brightness.
    grid: tuple[int, int, int] = (16, 16, 8)
    #: Times the total variation of a view's bilateral grid, added to the loss.
    smoothness: float = 10.0


#: Options of `ExposureConfig` that each kind has.
EXPOSURE_OPTIONS: dict[str, tuple[str, ...]] = {
    "none": (),
    "affine": ("rate", "start"),
    "bilateral": ("rate", "start", "grid", "smoothness"),
}


@dataclass
class PoseConfig:
    """Refinement of the training cameras' poses, which photographs give only nearly."""

    #: Move and turn the training cameras too. What is common to all of them is taken out again.
    refine: bool = False
    #: Initial learning rate of turning, in radians, and of moving, in units of the scene's extent, which decays
    #: log-linearly to a hundredth; by default one by which a camera may turn by 0.3 degrees over the run.
    rate: float | None = None
    #: Poses stay as they are before this step; by default a twentieth of the run.
    start: int | None = None


@dataclass
class DepthConfig:
    """Supervision by depths: those of the scene's files, or of the points that COLMAP has seen in an image."""

    #: Times the mean difference of the inverse depths, in units of the scene's extent, added to the loss; 0: depths are
    #: not read. gsplat's trainer has 0.01.
    weight: float = 0.0
    #: Units of the scene for each unit of a depth file (depth_file_path of nerfstudio); 0.001: millimetres.
    unit: float = 1e-3


@dataclass
class SceneOutputConfig(OutputConfig):
    """What a run writes besides metrics.json, config.yaml and the last checkpoint."""

    #: Padding of the SSIM that evaluation reports: same, valid, reflect or replicate.
    ssim_padding: Literal["same", "valid", "reflect", "replicate"] = "same"
    #: Also report cc_psnr and cc_ssim, of renders whose colours were fitted to each test view's by an affine map. With
    #: exposures they are reported in any case.
    color_corrected: bool = False
    #: Test views written as render | truth | error at the end.
    images: int = 25
    #: The Gaussians as scene.ply, which splat viewers open.
    ply: bool = True
    #: An orbit around the scene as MP4 at the end.
    video: bool = False
    video_frames: int = 120
    #: A page about the run at the end, report.html.
    report: bool = True
    #: Evaluate LPIPS too, by this network (extra [lpips]).
    lpips: Literal["off", "alex", "vgg", "squeeze"] = "off"
