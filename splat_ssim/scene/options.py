"""Parts of the options of training a scene, and which options each strategy has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from splat_ssim.trainer.config import OutputConfig


@dataclass
class DataConfig:
    """Options of reading the scene."""

    #: Format of the scene: auto (recognised by its files), blender, colmap or nerfstudio.
    format: str = "auto"
    #: Divides width and height of the images. A folder images_{factor} is read where there is one.
    factor: int = 1
    #: Every n-th view in the order of file names is a test view, where n is this number, unless the files define a
    #: split. 0 trains on all views.
    test_every: int = 8
    #: Colour behind images with an alpha channel.
    background: Literal["white", "black"] = "white"
    #: Put a random colour behind transparent training images at each step of full size, so that no Gaussian can paint
    #: the background.
    random_background: bool = False
    #: How the loss treats masked pixels. weight: they do not count. normalize: the windows of SSIM do not see them
    #: either. zero: both images are black there.
    mask_mode: Literal["weight", "normalize", "zero"] = "weight"
    #: Gaussians whose centre is nearer to a camera than this are not rendered, in units of the scene. By default 0.01,
    #: or less in a small scene.
    near: float | None = None
    #: Gaussians whose centre is farther from a camera than this are not rendered, in units of the scene. By default
    #: there is no limit.
    far: float | None = None
    #: Box that Gaussians stay inside: x y z of one corner, then x y z of the opposite one, in the scene's coordinates.
    #: By default there is none.
    box: tuple[float, float, float, float, float, float] | None = None
    #: Folder for decoded images, used where they would take more than half of the free memory. By default .cache in the
    #: scene folder.
    cache: Path | None = None
    #: Training starts with images reduced by this power of 2, which is halved at equal intervals until coarse_stop. 1
    #: trains at full size throughout.
    coarse_factor: int = 1
    #: Step from which images have their full size. By default at 0.3 of the run.
    coarse_stop: int | None = None


@dataclass
class ModelConfig:
    """The Gaussians and how they are rendered."""

    #: Highest degree of the spherical harmonics, 0 to 3.
    sh_degree: int = 3
    #: Number of steps between one degree and the next. By default a tenth of the run, or 1 with init ply.
    sh_degree_interval: int | None = None
    #: Where the Gaussians start. points: at the scene's point cloud. random: inside the object's outline in all images
    #: if they are transparent, otherwise in view of the cameras. ply: as the Gaussians in init_ply. auto: points if the
    #: scene has any, otherwise random.
    init: Literal["auto", "points", "random", "ply"] = "auto"
    #: File of Gaussians to start from, such as the scene.ply of another run, in any format that export.py writes.
    init_ply: Path | None = None
    #: Number of Gaussians of a random start.
    init_count: int = 10_000
    #: Half the edge of the cube, in units of the scene, that a random start fills around what the cameras look at. By
    #: default it depends on the format.
    init_box: float | None = None
    #: Initial opacity of a Gaussian, between 0 and 1.
    init_opacity: float = 0.1
    #: Compensate for the blur on the screen, as Mip-Splatting does.
    antialiased: bool = False


@dataclass
class OptimizerConfig:
    """Adam and its learning rates. Positions decay log-linearly over the whole run, the others over its last part."""

    #: adam: compiled on the CPU. torch_adam: torch's own. sparse_adam: compiled, and changes only the Gaussians in
    #: view.
    name: Literal["adam", "torch_adam", "sparse_adam"] = "adam"
    #: Number of steps between updates of shN (spherical harmonics of degree 1 and higher). An update uses the sum of
    #: the gradients since the last one. Taming 3DGS uses 16. steps_scaler does not change this number.
    sh_every: int = 1
    #: Initial learning rate of positions, in units of the scene's extent. 0 keeps them where they start.
    means: float = 5e-4
    #: Final learning rate of positions, in units of the scene's extent.
    means_final: float = 5e-6
    #: Initial learning rate of the logarithms of the scales.
    scales: float = 5e-3
    #: Initial learning rate of the quaternions.
    quats: float = 1e-3
    #: Initial learning rate of the logits of the opacities.
    opacities: float = 2.5e-2
    #: Initial learning rate of the colours, spherical harmonics of degree 0.
    sh0: float = 2.5e-3
    #: Initial learning rate of the spherical harmonics of higher degrees.
    shN: float = 1.25e-4
    #: Step from which the learning rates other than that of positions decay log-linearly. By default at 0.7 of the run.
    decay_start: int | None = None
    #: Their final value as a fraction of the initial one.
    final_factor: float = 0.1


#: Options of `OptimizerConfig` that are learning rates; 0 keeps a parameter as it starts.
LEARNING_RATES = ("means", "means_final", "scales", "quats", "opacities", "sh0", "shN")


@dataclass
class StrategyConfig:
    """Densification. An option that the chosen strategy does not have is refused."""

    #: Densification strategy: capped, default (gsplat's), mcmc or taming.
    name: str = "capped"
    #: Largest number of Gaussians (capped, mcmc, taming).
    budget: int = 30_000
    #: Sets the budget to this multiple of the number of Gaussians at the start (capped, mcmc, taming).
    budget_multiplier: float | None = None
    #: Densification happens only after this step.
    refine_start: int = 100
    #: Number of steps between densification events.
    refine_every: int = 100
    #: Densification happens only before this step. By default at 0.6 of the run.
    refine_stop: int | None = None
    #: Number of steps between resets of the opacities (default, taming). By default a tenth of the run.
    reset_every: int | None = None
    #: Largest number of Gaussians that an event adds, as a fraction of the current number (capped). By default 0.05. If
    #: that does not reach the budget before refine_stop, a larger fraction is used, up to 0.5.
    growth: float | None = None
    #: Fraction of the Gaussians removed when densification ends: those that contribute least to training views
    #: (capped).
    final_prune: float = 0.0
    #: Gaussians with a lower opacity are removed or recycled.
    prune_opacity: float = 0.005
    #: Threshold of the image-plane gradient above which a Gaussian is cloned or split (default, taming). Its unit of
    #: length is half the image's size. By default 2e-4, or 8e-4 with absgrad.
    grow_gradient: float | None = None
    #: Sum absolute gradients over pixels, so that opposite ones do not cancel, as AbsGS does (default).
    absgrad: bool = False
    #: Gaussians up to this fraction of the scene's extent are cloned, larger ones are split (default, taming).
    grow_scale: float = 0.01
    #: Learning rate of the positional noise (mcmc).
    noise: float = 5e5
    #: Number of training views scored at each event (taming), or before final_prune (capped). With 0, taming computes
    #: no scores and chooses Gaussians at random.
    score_views: int = 10
    #: Whether opacities may exceed 1 late in the run (taming). off: no. intended: yes, and they are optimised, as the
    #: paper intends. released: yes, but they are frozen, as in the paper's published code.
    high_opacity: Literal["off", "intended", "released"] = "off"
    #: Step from which opacities may exceed 1. By default refine_stop.
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
    """Corrects for exposure and white balance of each training image. Test views are rendered without it."""

    #: affine: a 3x4 colour matrix for each training image. bilateral: a grid of such matrices over position and
    #: brightness.
    name: Literal["none", "affine", "bilateral"] = "none"
    #: Initial learning rate; it decays log-linearly to a tenth. By default 0.01 (affine) or 0.002 (bilateral).
    rate: float | None = None
    #: Images keep their colours before this step, so that the Gaussians find theirs first. By default a tenth of the
    #: run.
    start: int | None = None
    #: Cells of a bilateral grid: horizontal, vertical, brightness.
    grid: tuple[int, int, int] = (16, 16, 8)
    #: Weight of the total variation of a view's bilateral grid in the loss.
    smoothness: float = 10.0


#: Options of `ExposureConfig` that each kind has.
EXPOSURE_OPTIONS: dict[str, tuple[str, ...]] = {
    "none": (),
    "affine": ("rate", "start"),
    "bilateral": ("rate", "start", "grid", "smoothness"),
}


@dataclass
class PoseConfig:
    """Refinement of the training cameras' poses, which are only approximate for photographs."""

    #: Optimise the poses of the training cameras too. Motion that all cameras share is removed after each step.
    refine: bool = False
    #: Initial learning rate of rotations, in radians, and of translations, in units of the scene's extent; it decays
    #: log-linearly to a hundredth. By default such that a camera can turn by 0.3 degrees over the run.
    rate: float | None = None
    #: Step from which poses are optimised. By default at a twentieth of the run.
    start: int | None = None


@dataclass
class DepthConfig:
    """Supervision by depths: of the scene's depth files, or of the points that COLMAP found in each image."""

    #: Weight in the loss of the mean difference of inverse depths, in units of the scene's extent. With 0, no depths
    #: are read. gsplat's trainer uses 0.01.
    weight: float = 0.0
    #: Size of one unit of a depth file (nerfstudio's depth_file_path) in units of the scene; 0.001 for millimetres in a
    #: scene in metres.
    unit: float = 1e-3


@dataclass
class SceneOutputConfig(OutputConfig):
    """Files that a run writes besides metrics.json, config.yaml and the last checkpoint."""

    #: Padding of the SSIM that evaluation reports.
    ssim_padding: Literal["same", "valid", "reflect", "replicate"] = "same"
    #: Also report cc_psnr and cc_ssim, of renders whose colours are first fitted to each test view by an affine map.
    #: With exposure correction (exposure.name) they are always reported.
    color_corrected: bool = False
    #: Number of test views written at the end as render | truth | error.
    images: int = 25
    #: Write the Gaussians as scene.ply, which viewers of splats open.
    ply: bool = True
    #: Write an orbit around the scene as MP4 at the end.
    video: bool = False
    #: Number of frames of the orbit.
    video_frames: int = 120
    #: Write a page about the run, report.html, at the end.
    report: bool = True
    #: Also report LPIPS, by this network (extra [lpips]).
    lpips: Literal["off", "alex", "vgg", "squeeze"] = "off"
