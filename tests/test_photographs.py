"""Features for photographs: exposures, refined poses, depths, several views in a step, and a bounding box."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from splat_ssim.errors import UserError
from splat_ssim.formats import save_splats
from splat_ssim.loss import photometric_loss
from splat_ssim.ply import load_ply
from splat_ssim.scene import exposure
from splat_ssim.scene.batch import joined
from splat_ssim.scene.cameras import camera_rows
from splat_ssim.scene.config import SceneConfig
from splat_ssim.scene.data import SceneError, load_scene
from splat_ssim.scene.exposure import Exposures, color_corrected
from splat_ssim.scene.options import DataConfig, DepthConfig, ExposureConfig, ModelConfig, PoseConfig, StrategyConfig
from splat_ssim.scene.poses import moved, without_common
from splat_ssim.scene.start import trained_splats
from splat_ssim.scene.training import SceneTask
from splat_ssim.trainer.config import ConfigError
from splat_ssim.trainer.loop import load, run
from splat_ssim.trainer.ranks import ALONE
from tests import devices
from tests.gaussians import make, write_doubles
from tests.scenes import write_blender, write_colmap, write_nerfstudio


def config_of(folder, **changes):
    """A short run of 40 Gaussians on a tiny scene."""
    values = {
        "data_dir": folder,
        "steps": 6,
        "device": "cpu",
        "model": ModelConfig(init_count=40, sh_degree=1),
        "strategy": StrategyConfig(budget=60),
        "checkpoint_every": 0,
        **changes,
    }
    config = SceneConfig(**values)
    config.output.progress, config.output.images = False, 0
    return config


# --- exposures


@pytest.mark.parametrize("name", ["affine", "bilateral"])
def test_a_new_exposure_leaves_colours_as_they_are(name):
    exposures = Exposures(ExposureConfig(name, rate=0.01, grid=(4, 3, 2)), 3, torch.device("cpu"))
    colors = torch.rand(1, 7, 9, 3)
    assert (exposures.apply(colors, 1) - colors).abs().max() < 1e-6


def test_what_is_behind_a_transparent_photograph_has_no_exposure():
    exposures = Exposures(ExposureConfig("affine", rate=0.01), 2, torch.device("cpu"))
    with torch.no_grad():
        exposures.maps[0][0], exposures.maps[0][3] = -0.5, 0.1  # halves red, and adds a little red everywhere
    alphas, behind = torch.rand(1, 5, 6, 1), torch.tensor([1.0, 0.5, 0.0])
    object_colors = torch.rand(1, 5, 6, 3)
    seen = alphas * object_colors + (1 - alphas) * behind
    expected = alphas * (object_colors * torch.tensor([0.5, 1, 1]) + torch.tensor([0.1, 0, 0])) + (1 - alphas) * behind
    assert (exposures.apply(seen, 0, behind, alphas) - expected).abs().max() < 1e-6


def test_affine_exposures_learn_planted_gains_up_to_what_is_common(tmp_path):
    generator = torch.Generator().manual_seed(0)
    colors = torch.rand(1, 24, 24, 3, generator=generator)
    gains = torch.tensor([0.6, 1.0, 1.3, 1.1])
    exposures = Exposures(ExposureConfig("affine", rate=0.02), 4, torch.device("cpu"))
    for step in range(1200):
        index = step % 4
        (exposures.apply(colors, index) - gains[index] * colors).square().mean().backward()
        exposures.step([index], step / 1200)
    matrices = torch.tensor(exposures.matrices())
    # The mean of the maps is the identity, whatever the gains.
    assert (matrices.mean(0) - torch.eye(3, 4)).abs().max() < 1e-5
    learned = matrices[:, range(3), range(3)].mean(1)
    assert (learned - (1 + gains - gains.mean())).abs().max() < 0.02


def a_fused_kernel(grids, places, colors):
    """What fused_bilagrid_sample computes, by its documentation, for one image."""
    assert grids.dim() == places.dim() == colors.dim() == 5 and 0 < places.min() and places.max() < 1
    brightness = colors @ torch.tensor([0.299, 0.587, 0.114])
    where = 2 * torch.cat([places, brightness[..., None]], -1) - 1
    cells = torch.nn.functional.grid_sample(grids, where, align_corners=True, padding_mode="border")
    matrices = cells.permute(0, 2, 3, 4, 1).unflatten(-1, (3, 4))
    return (matrices[..., :3] @ colors[..., None])[..., 0] + matrices[..., 3]


@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=[pytest.mark.cuda, devices.needs_gpu])], ids=["stand-in", "package"]
)
def test_a_fused_kernel_of_bilateral_grids_gives_the_same(device):
    """On a GPU with the package fused-bilagrid; elsewhere with a stand-in that shows how it is called."""
    sample = a_fused_kernel
    if device == "cuda":
        sample = pytest.importorskip("fused_bilagrid").fused_bilagrid_sample
    exposures = Exposures(ExposureConfig("bilateral", grid=(3, 4, 5)), 2, torch.device(device))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        exposures.maps[1].copy_(torch.randn(12, 5, 4, 3, generator=generator))
    results = []
    for fused in (False, True):
        colors = torch.rand(1, 20, 30, 3, generator=torch.Generator().manual_seed(1)).to(device).requires_grad_()
        own = exposures.map_of(1)
        mapped = exposure._fused(sample, own, colors) if fused else exposures.apply(colors, 1)
        results.append((mapped, *torch.autograd.grad(mapped.square().sum(), (colors, exposures.maps[1]))))
    for first, second in zip(*results, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)


def test_a_bilateral_grid_has_its_cells_at_place_and_brightness():
    config = ExposureConfig("bilateral", rate=0.01, grid=(2, 2, 2), smoothness=1.0)
    exposures = Exposures(config, 1, torch.device("cpu"))
    with torch.no_grad():
        exposures.maps[0][3, 1, 0, 1] = 0.5  # adds to red in bright pixels at the top right
    colors = torch.stack([torch.zeros(8, 8, 3), torch.ones(8, 8, 3)])
    dark, bright = (exposures.apply(one[None], 0)[0] - one for one in colors)
    assert dark.abs().max() < 1e-6
    assert bright[..., 1:].abs().max() < 1e-6 and bright[..., 0].argmax() == 7
    corner = (15 / 16) ** 2 * 0.5  # the pixel's centre is a sixteenth of the image away from the edge
    assert abs(float(bright[0, 7, 0].detach()) - corner) < 1e-5
    assert exposures.penalty(0).item() > 0


def test_exposures_raise_the_quality_of_unequal_photographs(tmp_path):
    write_blender(tmp_path, train=8, test=4, size=32)
    for index in range(8):
        path = tmp_path / "train" / f"r_{index}.png"
        pixels = np.asarray(Image.open(path)).copy()
        pixels[..., :3] = (pixels[..., :3] * (0.5 + 0.5 * (index % 2))).astype(np.uint8)
        Image.fromarray(pixels).save(path)
    results = {}
    for name in ("none", "affine"):
        config = config_of(tmp_path, steps=150, exposure=ExposureConfig(name))
        task = SceneTask(config)
        for step in range(task.config.steps):
            task.step(step)
        results[name] = task.evaluate(None)
    assert "cc_psnr" in results["affine"] and "cc_psnr" not in results["none"]
    # Test views have the brighter exposure. The average exposure lies between the two.
    assert results["affine"]["cc_psnr"] > results["none"]["psnr"] + 1


def test_colour_correction_undoes_any_affine_map_and_keeps_to_the_mask():
    generator = torch.Generator().manual_seed(1)
    truth = torch.rand(1, 3, 16, 16, generator=generator) * 0.6 + 0.2
    map_ = torch.tensor([[0.7, 0.1, 0.0], [0.0, 0.9, 0.1], [0.1, 0.0, 0.8]])
    pred = torch.einsum("ij,bjhw->bihw", map_, truth) + 0.03
    assert (color_corrected(pred, truth) - truth).abs().max() < 1e-5
    mask = torch.ones(16, 16, dtype=torch.bool)
    mask[:, 8:] = False
    spoiled = truth.clone()
    spoiled[..., 8:] = 0
    assert (color_corrected(pred, spoiled, mask) - truth).abs().max() < 1e-5
    # A single colour does not determine the map. The result must still match that colour.
    assert (color_corrected(truth * 0 + 0.5, truth * 0 + 0.25) - 0.25).abs().max() < 1e-4


# --- poses


def test_a_moved_camera_is_the_matrix_exponential_about_its_own_centre():
    generator = torch.Generator().manual_seed(2)
    viewmat = torch.eye(4, dtype=torch.float64)
    viewmat[:3, :3] = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))[0]
    viewmat[:3, 3] = torch.randn(3, generator=generator, dtype=torch.float64)
    for size in (0.0, 1e-9, 0.3, 2.0):
        rotation = size * torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64)
        move = torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64)
        camera = torch.linalg.inv(viewmat)
        x, y, z = rotation.tolist()
        turn = torch.linalg.matrix_exp(torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64))
        expected = camera.clone()
        expected[:3, :3] = turn @ camera[:3, :3]
        expected[:3, 3] = camera[:3, 3] + move
        result = torch.linalg.inv(moved(viewmat, rotation, move))
        assert (result - expected).abs().max() < 1e-7
    zero = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    moved(viewmat, zero[:3], zero[3:]).sum().backward()
    assert torch.isfinite(zero.grad).all() and zero.grad.abs().max() > 0


def test_a_motion_of_all_cameras_is_taken_out_and_others_stay():
    generator = torch.Generator().manual_seed(3)
    places = torch.randn(20, 3, generator=generator)
    places -= places.mean(0)
    turn, move = torch.tensor([0.01, 0.02, -0.01]), torch.tensor([0.3, 0.1, 0.2])
    common = torch.cat([turn.expand(20, 3), move + torch.linalg.cross(turn.expand(20, 3), places) + 0.05 * places], 1)
    assert without_common(common, places).abs().max() < 1e-6
    own = without_common(torch.randn(20, 6, generator=generator), places)
    assert (without_common(own + common, places) - own).abs().max() < 1e-5


def test_a_planted_rotation_of_one_camera_is_found(tmp_path):
    write_blender(tmp_path, train=8, test=2, size=48)
    path = tmp_path / "transforms_train.json"
    content = json.loads(path.read_text())
    true = np.array(content["frames"][2]["transform_matrix"])
    angle = 0.03
    turned = true.copy()
    turned[:3, :3] = turned[:3, :3] @ [
        [math.cos(angle), 0, math.sin(angle)],
        [0, 1, 0],
        [-math.sin(angle), 0, math.cos(angle)],
    ]
    content["frames"][2]["transform_matrix"] = turned.tolist()
    path.write_text(json.dumps(content))
    task = SceneTask(config_of(tmp_path, steps=400, poses=PoseConfig(refine=True, rate=2e-3)))
    for step in range(400):
        task.step(step)
    index = next(view.index for view in task.scene.train if view.name.endswith("r_2.png"))
    row = camera_rows(task.scene, task.poses, None, task.device)[index]
    # The third axis of OpenCV's camera is opposite to OpenGL's.
    backward = -np.array(row["camera_to_world"])[:3, 2]
    error, before = np.linalg.norm(backward - true[:3, 2]), np.linalg.norm(turned[:3, 2] - true[:3, 2])
    assert error < 0.7 * before


# --- depths


def write_depths(folder, depth, unit=1000):
    """Writes a constant depth map for each frame of a nerfstudio scene."""
    path = folder / "transforms.json"
    content = json.loads(path.read_text())
    (folder / "depths").mkdir()
    for index, frame in enumerate(content["frames"]):
        values = np.full((32, 32), round(depth * unit), np.uint16)
        values[0] = 0
        Image.fromarray(values).save(folder / "depths" / f"{index}.png")
        frame["depth_file_path"] = f"depths/{index}.png"
    path.write_text(json.dumps(content))
    return folder


def test_depth_maps_are_read_in_their_unit_and_reduced_with_their_images(tmp_path):
    write_depths(write_nerfstudio(tmp_path), 3.25)
    assert load_scene(tmp_path).train[0].depth is None
    scene = load_scene(tmp_path, depth_unit=1e-3)
    depth = scene.train[0].depth
    assert depth.shape == (32, 32) and depth.dtype == torch.float32
    assert depth[0].abs().max() == 0 and (depth[1:] - 3.25).abs().max() < 1e-6
    assert scene.train[0].reduced(4).depth.shape == (8, 8)
    assert "depth maps of 7 of 7 training views, depths 3.25 to 3.25 (--depth.unit 0.001)" in scene.notes


def test_depth_maps_count_where_a_depth_is_known(tmp_path):
    write_depths(write_nerfstudio(tmp_path), 3.0)
    Image.fromarray(np.zeros((32, 32), np.uint16)).save(tmp_path / "depths" / "3.png")
    assert any("depth maps of 6 of 7 training views" in note for note in load_scene(tmp_path, depth_unit=1e-3).notes)
    for path in (tmp_path / "depths").iterdir():
        Image.fromarray(np.zeros((32, 32), np.uint16)).save(path)
    with pytest.raises(SceneError, match=r"depth\.weight requires depths, .*, got 7 maps in which none is known"):
        load_scene(tmp_path, depth_unit=1e-3)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "depths/3.png").unlink(), r"3\.png: required the depth file that .*frame 3 names, got nothing"),
        (lambda f: Image.new("RGB", (32, 32)).save(f / "depths/3.png"), r"^\S*3\.png: required depths of one channel"),
        (
            lambda f: Image.fromarray(np.ones((10, 32), np.uint16)).save(f / "depths/3.png"),
            r"3\.png: required a depth map of its image's shape, got 32x10 and an image of 32x32",
        ),
        (lambda f: (f / "depths/3.png").write_bytes(b"no"), r"3\.png: required"),
    ],
)
def test_a_depth_map_that_cannot_be_right_is_refused(tmp_path, spoil, message):
    write_depths(write_nerfstudio(tmp_path), 3.0)
    spoil(tmp_path)
    with pytest.raises(SceneError, match=message):
        load_scene(tmp_path, depth_unit=1e-3)


def test_depths_that_are_asked_for_and_absent_are_refused(tmp_path):
    write_blender(tmp_path)
    with pytest.raises(UserError, match=r"depth\.weight requires depths"):
        SceneTask(config_of(tmp_path, depth=DepthConfig(weight=0.1)))


def test_colmap_points_become_depths_where_they_were_seen(tmp_path):
    write_colmap(tmp_path)
    model = tmp_path / "sparse" / "0"
    # The first image has seen points 1 and 2, the second point 3.
    (model / "images.txt").write_text(
        "1 1 0 0 0 0.1 0.2 0.3 1 0.png\n1 2 1 3 4 2 5 6 -1\n2 1 0 0 0 1 0 0 1 1.png\n7 8 3\n"
    )
    (model / "points3D.txt").write_text(
        "1 0.5 0.25 5 255 128 0 0.5 1 0\n2 -0.5 0 4 255 128 0 0.5 1 1\n3 -1 0.5 8 255 128 0 0.5 2 0\n"
    )
    first, second = load_scene(tmp_path, depth_unit=1.0, test_every=0).train
    # By hand: fx 40, fy 41, the centre at 32, 24; points in the camera are x + 0.1, y + 0.2, z + 0.3.
    expected = [[32 + 40 * 0.6 / 5.3, 24 + 41 * 0.45 / 5.3, 5.3], [32 + 40 * -0.4 / 4.3, 24 + 41 * 0.2 / 4.3, 4.3]]
    assert (first.sparse_depth - torch.tensor(expected)).abs().max() < 1e-4
    assert (second.sparse_depth - torch.tensor([[32.0, 24 + 41 * 0.5 / 8, 8.0]])).abs().max() < 1e-4


def test_depth_supervision_moves_gaussians_to_the_depth(tmp_path):
    """All cameras are at one place and see a plain colour, so only the depths determine its distance."""
    write_nerfstudio(tmp_path, count=4)
    path = tmp_path / "transforms.json"
    content = json.loads(path.read_text())
    for frame in content["frames"]:
        Image.new("RGB", (32, 32), (120, 90, 60)).save(tmp_path / frame["file_path"])
    path.write_text(json.dumps(content))
    write_depths(tmp_path, 4.0)
    errors = []
    for weight in (0.0, 0.5):
        config = config_of(tmp_path, steps=150, depth=DepthConfig(weight=weight))
        config.strategy.refine_stop = 0
        task = SceneTask(config)
        for step in range(150):
            report = task.step(step)
        assert ("depth" in report) == (weight > 0)
        colors, _, _ = task.render_view(task.scene.train[0], render_mode="ED")
        errors.append((colors[0, 4:-4, 4:-4, 0] - 4).abs().mean().item())
    assert errors[1] < 0.5 * errors[0]


# --- several views a step


def test_a_step_on_two_views_has_the_mean_of_their_gradients(tmp_path):
    write_blender(tmp_path)
    task = SceneTask(config_of(tmp_path, batch_size=2))
    views = task.views.of_step(0)
    assert len(views) == 2 and views[0].name != views[1].name
    splats = {name: value.detach().clone().requires_grad_() for name, value in task.splats.items()}
    own = task.splats
    task.splats = torch.nn.ParameterDict({name: torch.nn.Parameter(value.detach()) for name, value in splats.items()})
    losses = []
    for view in views:
        colors = task.render_view(view, 0)[0]
        losses.append(photometric_loss(colors.permute(0, 3, 1, 2), view.pixels()))
    (sum(losses) / 2).backward()
    expected = {name: value.grad for name, value in task.splats.items()}
    task.splats = own
    kept = {}
    task.optimizers["means"].register_step_pre_hook(lambda *_: kept.update(means=own["means"].grad.clone()))
    report = task.step(0)
    assert abs(report["loss"] - float(sum(losses) / 2)) < 1e-6
    assert (kept["means"] - expected["means"]).abs().max() < 1e-6 * expected["means"].abs().max()


def test_views_of_a_step_are_joined_in_half_images():
    infos = []
    for width, height, value in ((40, 20, 1.0), (8, 6, 2.0)):
        means2d = torch.zeros(1, 3, 2, requires_grad=True)
        means2d.grad = torch.full((1, 3, 2), value)
        radii = torch.ones(1, 3, 2, dtype=torch.int32)
        infos.append({"means2d": means2d, "radii": radii, "depths": torch.ones(1, 3), "width": width, "height": height})
    both = joined(infos, ALONE)
    assert both["means2d"].grad.tolist() == [[[20.0, 10.0]] * 3, [[8.0, 6.0]] * 3]
    assert both["n_cameras"] == 2 and both["width"] == both["height"] == 2 and both["radii"].shape == (2, 3, 2)


@pytest.mark.parametrize("name", ["capped", "default", "mcmc", "taming"])
def test_every_strategy_takes_several_views_of_different_sizes(tmp_path, name):
    write_nerfstudio(tmp_path)
    image = Image.open(tmp_path / "images" / "03.png").resize((64, 64))
    image.save(tmp_path / "images" / "03.png")
    config = config_of(tmp_path, steps=24, batch_size=3)
    config.strategy = StrategyConfig(name=name, refine_start=2, refine_every=4, refine_stop=20)
    config.strategy.absgrad = name == "default"
    if name == "default":
        config.strategy.grow_gradient, config.strategy.reset_every = 1e-7, 1000
    config.strategy.budget = 80
    task = SceneTask(config)
    for step in range(24):
        task.step(step)
    assert len(task.splats["means"]) > 40


# --- space


def test_gaussians_stay_in_the_box_and_points_outside_are_left_out(tmp_path):
    write_colmap(tmp_path, points=6)
    config = config_of(tmp_path, data=DataConfig(box=(0.5, 0.5, 4.0, 3.5, 3.5, 6.0), test_every=0))
    config.optimizer.means = 0.5
    task = SceneTask(config)
    assert any("outside of data.box and left out: 3 of 6 points" in note for note in task.notes)
    for step in range(6):
        task.step(step)
    means = task.splats["means"]
    assert (means >= torch.tensor([0.5, 0.5, 4.0])).all() and (means <= torch.tensor([3.5, 3.5, 6.0])).all()


def test_near_and_far_leave_gaussians_out(tmp_path):
    write_blender(tmp_path)
    whole = SceneTask(config_of(tmp_path))
    view = whole.scene.train[0]
    shown = whole.render_view(view)[2]["radii"].gt(0).all(-1).sum()
    cut = SceneTask(config_of(tmp_path, data=DataConfig(near=3.9, far=4.1)))
    info = cut.render_view(view)[2]
    visible = info["radii"].gt(0).all(-1)
    assert 0 < int(visible.sum()) < int(shown)
    assert ((info["depths"][visible] > 3.9) & (info["depths"][visible] < 4.1)).all()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"near": 2.0, "far": 1.0}, "data.far must be greater than data.near 2.0, got 1.0"),
        ({"box": (0.0, 0.0, 0.0, 1.0, 0.0, 1.0)}, "data.box must be the low corner x y z, then the high one"),
        ({"near": -1.0}, "data.near must be at least 0"),
    ],
)
def test_a_space_without_room_is_refused(tmp_path, data, message):
    with pytest.raises(ConfigError, match=message):
        config_of(tmp_path, data=DataConfig(**data)).resolved()


def test_random_backgrounds_differ_by_step_and_not_by_run(tmp_path):
    write_blender(tmp_path)
    task = SceneTask(config_of(tmp_path, data=DataConfig(random_background=True)))
    colors = [task.views.of_step(step)[0].background for step in range(3)]
    assert len(set(colors)) == 3 and colors == [task.views.of_step(step)[0].background for step in range(3)]
    view = task.views.of_step(0)[0]
    task.splats["opacities"].data.fill_(-20)
    assert (task.render_view(view)[0] - torch.tensor(colors[0])).abs().max() < 1e-3
    assert task.scene.test[0].background == (1.0, 1.0, 1.0)
    write_nerfstudio(tmp_path / "opaque")
    with pytest.raises(UserError, match=r"data\.random_background requires transparent training images, got none"):
        SceneTask(config_of(tmp_path / "opaque", data=DataConfig(random_background=True)))


@pytest.mark.parametrize("mode", ["weight", "normalize", "zero"])
def test_the_loss_has_the_meaning_of_masks_that_is_asked_for(tmp_path, mode):
    write_blender(tmp_path)
    task = SceneTask(config_of(tmp_path, data=DataConfig(mask_mode=mode)))
    view = dataclasses.replace(task.scene.train[0], mask=torch.rand(32, 32) > 0.4)
    pred = torch.rand(1, 3, 32, 32)
    loss = task.compare(pred, view)[0]
    expected = photometric_loss(pred, view.pixels(), mask=view.mask[None, None], mask_mode=mode)
    assert abs(float(loss - expected)) < 1e-6


# --- from a trained scene


def test_a_run_starts_from_the_gaussians_of_another(tmp_path):
    write_blender(tmp_path / "scene")
    first = config_of(tmp_path / "scene", result_dir=tmp_path / "first", steps=30)
    trained = run(SceneTask(first))["psnr"]
    second = config_of(tmp_path / "scene", model=ModelConfig(init="ply", init_ply=tmp_path / "first" / "scene.ply"))
    task = SceneTask(second)
    assert abs(task.evaluate(None)["psnr"] - trained) < 0.05
    assert len(task.splats["means"]) == 40 and task.splats["shN"].shape[1] == 15
    assert any("harmonics of degree 1, the model has degree 3" in note for note in task.notes)


@pytest.mark.parametrize("suffix", [".spz", ".compressed.ply", ".splat", ".glb"])
def test_a_run_starts_from_any_file_that_export_writes(tmp_path, suffix):
    write_blender(tmp_path / "scene")
    first = SceneTask(config_of(tmp_path / "scene"))
    path = tmp_path / f"scene{suffix}"
    save_splats(path, first.splats, antialiased=True, offset=(0.0, 0.0, 0.0))
    task = SceneTask(config_of(tmp_path / "scene", model=ModelConfig(init="ply", init_ply=path)))
    assert len(task.splats["means"]) == 40
    closest = torch.cdist(task.splats["means"], first.splats["means"]).min(1).values
    assert closest.max() < 0.01 * first.extent


def test_a_start_from_gaussians_of_another_blur_is_said(tmp_path):
    write_blender(tmp_path / "scene")
    path = tmp_path / "scene.ply"
    save_splats(path, SceneTask(config_of(tmp_path / "scene")).splats, antialiased=True)
    task = SceneTask(config_of(tmp_path / "scene", model=ModelConfig(init="ply", init_ply=path)))
    assert any("trained with the compensation of blur, the model is rendered without it" in note for note in task.notes)
    with pytest.raises(UserError, match=r"required a name that ends in \.ply"):
        SceneTask(config_of(tmp_path / "scene", model=ModelConfig(init="ply", init_ply=tmp_path / "scene.obj")))


def test_a_start_from_more_gaussians_than_the_budget_is_refused(tmp_path):
    write_blender(tmp_path / "scene")
    run(SceneTask(config_of(tmp_path / "scene", result_dir=tmp_path / "first")))
    model = ModelConfig(init="ply", init_ply=tmp_path / "first" / "scene.ply")
    with pytest.raises(UserError, match="required at most 10 Gaussians, the budget, got 40"):
        SceneTask(config_of(tmp_path / "scene", model=model, strategy=StrategyConfig(budget=10)))
    with pytest.raises(ConfigError, match=r"model\.init_ply requires model.init ply, and the reverse"):
        config_of(tmp_path / "scene", model=ModelConfig(init="ply")).resolved()


def test_a_start_from_large_coordinates_in_double_precision_loses_none(tmp_path):
    place = (500_000.0, 4_600_000.0, 80.0)
    path = write_nerfstudio(tmp_path) / "transforms.json"
    content = json.loads(path.read_text())
    for frame in content["frames"]:
        for row, value in zip(frame["transform_matrix"], place, strict=False):
            row[3] += value
    path.write_text(json.dumps(content))
    world = write_doubles(tmp_path / "a.ply", make(50, 1, spread=0.1), place)
    scene = load_scene(tmp_path)
    splats = trained_splats(scene, ModelConfig(init="ply", init_ply=tmp_path / "a.ply"), None)
    np.testing.assert_allclose(splats["means"], world - scene.offset, atol=1e-6, rtol=0)
    assert any("a.ply: coordinates are too large for float32: the offset" in note for note in scene.notes)


def test_an_offset_that_is_none_is_refused_and_a_true_one_is_undone(tmp_path):
    write_blender(tmp_path / "scene")
    run(SceneTask(config_of(tmp_path / "scene", result_dir=tmp_path / "first")))
    whole = (tmp_path / "first" / "scene.ply").read_bytes()
    moved_by = tmp_path / "moved.ply"
    model = ModelConfig(init="ply", init_ply=moved_by)
    means = load_ply(tmp_path / "first" / "scene.ply")["means"]
    moved_by.write_bytes(whole.replace(b"element vertex", b"comment offset 0.25 0 -0.5\nelement vertex", 1))
    task = SceneTask(config_of(tmp_path / "scene", model=model))
    assert (task.splats["means"] - means - torch.tensor([0.25, 0.0, -0.5])).abs().max() < 1e-6
    moved_by.write_bytes(whole.replace(b"element vertex", b"comment offset 0.25 0 east\nelement vertex", 1))
    with pytest.raises(UserError, match="required three numbers after comment offset"):
        SceneTask(config_of(tmp_path / "scene", model=model))


# --- checkpoints


def test_all_of_it_resumes_to_the_same_bytes(tmp_path):
    write_depths(write_nerfstudio(tmp_path / "scene"), 3.0)

    def config(name, **changes):
        return config_of(
            tmp_path / "scene",
            result_dir=tmp_path / name,
            batch_size=2,
            exposure=ExposureConfig("bilateral", grid=(4, 4, 4)),
            poses=PoseConfig(refine=True, start=2),
            depth=DepthConfig(weight=0.05),
            **changes,
        )

    run(SceneTask(config("whole", steps=8)))
    half = config("half", steps=8)
    half.output.save_steps = (4,)
    run(SceneTask(half))
    kept = tmp_path / "half" / "steps" / "0000004"
    assert {"config.yaml", "checkpoint.pt", "scene.ply", "cameras.json"} <= {path.name for path in kept.iterdir()}
    assert load(kept).evaluate(None)["psnr"] > 0
    run(SceneTask(SceneConfig(resume=kept)))
    whole, resumed = (torch.load(path / "checkpoint.pt", weights_only=True) for path in (tmp_path / "whole", kept))
    for name in ("splats", "exposures", "poses"):
        for a, b in zip(*(torch.utils._pytree.tree_leaves(state[name]) for state in (whole, resumed)), strict=True):
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    cameras = json.loads((kept / "cameras.json").read_text())
    assert len(cameras) == 7 and np.shape(cameras[0]["exposure"]) == (3, 4)


def test_options_without_meaning_are_refused(tmp_path):
    config = config_of(tmp_path)
    unused = config.resolved().unused()
    assert {"exposure.rate", "exposure.grid", "poses.rate", "depth.unit", "strategy.absgrad"} <= set(unused)
