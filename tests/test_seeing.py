"""Pictures of depth, normals and opacity; camera paths from files; LPIPS; pictures in TensorBoard; the viewer."""

import json
import math
import socket
import sys
import types
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from splat_ssim.ct.config import CTConfig
from splat_ssim.ct.training import CTTask
from splat_ssim.errors import UserError
from splat_ssim.scene import modes
from splat_ssim.scene.camera_path import read_path
from splat_ssim.scene.data import Scene, View
from splat_ssim.scene.data.scene import SceneError
from splat_ssim.scene.evaluation import evaluate
from splat_ssim.scene.export import export
from splat_ssim.scene.lpips import make_lpips
from splat_ssim.scene.viewer import SceneViewer, pose_of, view_of_camera
from splat_ssim.trainer import load, pictures
from splat_ssim.trainer.cli import evaluate_run, main, render_run, report_run
from splat_ssim.trainer.colormap import colored
from splat_ssim.trainer.folder import read_config
from splat_ssim.volume import Volume, VoxelGrid
from splat_ssim.volume.codec import compress_volume
from tests.scenes import camera_to_world, write_blender
from tests.test_loop import LineTask, config
from tests.test_loop import run as run_line


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of a ball, without its page."""
    place = tmp_path_factory.mktemp("seeing")
    scene = write_blender(place / "ball", train=6, test=3, size=24)
    line = f"--data-dir {scene} --result-dir {place / 'run'} --steps 40 --model.init-count 300 --output.tensorboard"
    main([*line.split(), "--output.eval-every", "20", "--output.no-progress", "--output.no-report"])
    return place / "run"


def view(size=16, focal=20.0, viewmat=None):
    K = torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1.0]])
    return View("v", torch.eye(4) if viewmat is None else viewmat, K, torch.zeros(size, size, 3, dtype=torch.uint8))


# --- colours of numbers


def test_the_colours_are_those_of_cubehelix_and_their_lightness_rises():
    values = torch.linspace(0, 1, 256)
    colors = colored(values, 0, 1)
    grey = colors @ torch.tensor([0.30, 0.59, 0.11])
    assert (grey.diff() > 0).all() and (colors[0] == 0).all() and (colors[-1] > 0.999).all()
    matplotlib = pytest.importorskip("matplotlib")
    expected = matplotlib.colormaps["cubehelix"](np.linspace(0, 1, 256))[:, :3]
    np.testing.assert_allclose(colors.numpy(), expected.clip(0, 1), atol=1e-6)
    odd = colored(torch.tensor([-5.0, float("nan"), 9.0]), 0, 1)
    assert (odd[:2] == 0).all() and (odd[2] > 0.999).all()
    assert (colored(values, 3, 3) == 0).all()


# --- modes


def test_normals_of_a_tilted_plane_are_its_own(trained):
    # The plane n·X = -4 in camera coordinates. The camera is rotated in the world.
    n = torch.nn.functional.normalize(torch.tensor([0.3, -0.2, -1.0], dtype=torch.float64), dim=0)
    turn = torch.tensor(camera_to_world(0.7)[:3, :3].T.copy())
    viewmat = torch.eye(4, dtype=torch.float64)
    viewmat[:3, :3] = turn
    seen = view(12, viewmat=viewmat)
    seen.K = seen.K.double()
    rows, columns = torch.meshgrid(*[torch.arange(12, dtype=torch.float64) + 0.5] * 2, indexing="ij")
    rays = torch.stack([(columns - 6) / 20, (rows - 6) / 20, torch.ones_like(rows)], -1)
    depth = -4 / (rays @ n)
    result = modes.normals_of(depth, seen)
    torch.testing.assert_close(result, (n @ turn).expand(12, 12, 3), atol=1e-9, rtol=0)
    assert (modes.normals_of(depth[:1], seen) == 0).all()


def test_depth_and_alpha_are_those_of_the_renderer(trained):
    task = load(trained)
    one = task.scene.test[0]
    depth, alpha = (values.detach() for values in modes.depth_of(task, one))
    solid = alpha[0, 0] > 0.9
    # A ball of radius about 0.7 whose centre is 4 from the camera.
    assert solid.any() and 2.5 < float(depth[0, 0][solid].median()) < 4.5
    assert (depth[alpha == 0] == 0).all()
    scale = modes.Scale(2.0, 5.0)
    picture = modes.draw(task, one, "depth", scale)
    torch.testing.assert_close(picture, colored(depth[0, 0], 2, 5).permute(2, 0, 1)[None] * alpha.clamp(0, 1))
    assert torch.equal(modes.draw(task, one, "alpha")[:, :1], alpha.clamp(0, 1))
    torch.testing.assert_close(modes.draw(task, one, "rgb"), task.picture(one).permute(0, 3, 1, 2).clamp(0, 1))
    normals = modes.draw(task, one, "normal")
    assert normals.shape == (1, 3, 24, 24) and 0 <= float(normals.min()) and float(normals.max()) <= 1
    with pytest.raises(UserError, match="--mode must be one of rgb, depth, normal, alpha, got 'heat'"):
        modes.draw(task, one, "heat")


def test_one_scale_serves_all_depths_and_is_printed(trained, tmp_path, capsys):
    render_run(trained, views="test", mode="depth", output=tmp_path / "depth")
    told = capsys.readouterr().out.splitlines()[0]
    low, high = (float(told.split()[i]) for i in (1, 4))
    assert told.startswith("depth ") and "(black) to" in told and 2 < low < high < 6
    task = load(trained)
    assert str(modes.depth_scale(task, task.scene.test)) == told
    pictures = sorted((tmp_path / "depth").iterdir())
    assert len(pictures) == 3
    expected = modes.draw(task, task.scene.test[1], "depth", modes.depth_scale(task, task.scene.test))
    got = np.asarray(Image.open(pictures[1])) / 255.0
    np.testing.assert_allclose(got, expected[0].permute(1, 2, 0).numpy(), atol=0.5 / 255 + 1e-6)


def test_modes_have_files_of_their_own_and_other_runs_have_none(trained, tmp_path):
    assert render_run(trained, views="test", mode="normal") == trained / "test_normal"
    assert render_run(trained, frames=2, mode="alpha") == trained / "orbit_alpha.mp4"
    run_line(LineTask(config(tmp_path / "run")))
    with pytest.raises(UserError, match="--mode must be one of rgb for this run, got 'depth'"):
        render_run(tmp_path / "run", mode="depth")
    with pytest.raises(UserError, match="--path requires a run with cameras"):
        render_run(tmp_path / "run", path=tmp_path / "a.json")


def test_pictures_of_two_orbits_do_not_mix(trained, tmp_path):
    folder = tmp_path / "orbit"
    render_run(trained, frames=3, output=folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UserError, match=r"orbit: required a folder for 2 pictures, got one with 0002\.png already"):
        render_run(trained, frames=2, output=folder)
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}
    render_run(trained, frames=3, output=folder)
    for frames in (0, -3):
        with pytest.raises(UserError, match=f"--frames must be at least 1, got {frames}"):
            render_run(trained, frames=frames, output=tmp_path / "none")


# --- camera paths


def nerfstudio_path(cameras, angle, **more):
    frames = [{"camera_to_world": matrix.reshape(-1).tolist(), "fov": angle, "aspect": 1} for matrix in cameras]
    return {"camera_type": "perspective", "render_width": 24, "render_height": 24, "camera_path": frames, **more}


def cameras(count=3):
    return [camera_to_world(2 * math.pi * (index + 0.5) / count) for index in range(count)]


def test_pictures_do_not_replace_files_or_photographs(trained, tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(UserError, match=r"file: required a folder to write to, got a file$"):
        render_run(trained, views="test", output=tmp_path / "file")
    for name in ("file/x.mp4", "file/x"):
        with pytest.raises(UserError, match=r"x.*: required a folder to write it to, got the file"):
            render_run(trained, frames=2, output=tmp_path / name)
    data = read_config(trained)[1].data_dir
    with pytest.raises(UserError, match=r"required an output apart from the input .*, got the same"):
        render_run(trained, views="test", output=data)
    (data / "photos").mkdir()
    (data / "photos" / "0000.png").write_bytes(b"a photograph")
    with pytest.raises(UserError, match=r"photos: required a folder apart from .*, got one there with 0000"):
        render_run(trained, views="test", output=data / "photos")
    assert (data / "photos" / "0000.png").read_bytes() == b"a photograph" and (tmp_path / "file").read_text() == "old"


@pytest.mark.parametrize("device", ["foo", "gpu", "cuda:1", "CUDA", ""])
def test_a_device_of_another_name_is_refused(trained, tmp_path, device):
    for look in (evaluate_run, report_run, partial(render_run, frames=1), partial(export, formats=("spz",))):
        with pytest.raises(UserError, match=rf"--device must be auto, cpu or cuda, got '{device}'$"):
            look(trained, device=device)
    with pytest.raises(UserError, match="--device must be auto, cpu or cuda, got"):
        compress_volume(Volume(np.zeros((1, 3, 3, 3), np.uint8), VoxelGrid.regular((3, 3, 3))), ratio=1, device=device)
    with pytest.raises(UserError, match="--device must be auto, cpu or cuda, got"):
        CTTask(CTConfig(data_dir=tmp_path, device=device))


def test_a_path_through_the_test_cameras_draws_the_test_views(trained, tmp_path, capsys):
    # Blender's camera_angle_x is the angle over the width, which for a square is also that over the height.
    path = tmp_path / "path.json"
    path.write_text(json.dumps(nerfstudio_path(cameras(), math.degrees(0.69), seconds=1.5)))
    render_run(trained, path=path, output=tmp_path / "path")
    assert "path.json: 3 cameras, 24x24 pixels, 2 frames a second" in capsys.readouterr().out
    render_run(trained, views="test", output=tmp_path / "test")
    for one, other in zip(sorted((tmp_path / "path").iterdir()), sorted((tmp_path / "test").iterdir()), strict=True):
        difference = np.abs(np.asarray(Image.open(one), int) - np.asarray(Image.open(other), int))
        assert difference.max() <= 1
    frames = {"frames": [{"file_path": "x", "transform_matrix": m.tolist()} for m in cameras()]}
    path.write_text(json.dumps({"camera_angle_x": 0.69, "w": 24, "h": 24, "fps": 12, **frames}))
    render_run(trained, path=path, output=tmp_path / "again")
    for one, other in zip(sorted((tmp_path / "path").iterdir()), sorted((tmp_path / "again").iterdir()), strict=True):
        assert np.abs(np.asarray(Image.open(one), int) - np.asarray(Image.open(other), int)).max() <= 1


def test_a_path_becomes_a_video_of_its_size_and_speed(trained, tmp_path):
    imageio = pytest.importorskip("imageio.v2")
    path = tmp_path / "flight.json"
    content = nerfstudio_path(cameras(6), 40.0, fps=12)
    content["render_width"], content["render_height"] = 41, 30
    path.write_text(json.dumps(content))
    assert render_run(trained, path=path) == trained / "flight.mp4"
    reader = imageio.get_reader(trained / "flight.mp4")
    assert reader.get_meta_data()["fps"] == 12 and reader.count_frames() == 6
    assert reader.get_data(0).shape == (30, 40, 3)


def test_a_path_in_nerfstudios_coordinates_is_undone(tmp_path):
    # nerfstudio rotates, moves and then scales the poses of a scene: positions become scale (R x + t).
    rotation, translation, scale = camera_to_world(1.0)[:3, :3], np.array([1.0, -2, 3]), 0.25
    moved = []
    for matrix in cameras():
        turned = matrix.copy()
        turned[:3, :3] = rotation @ matrix[:3, :3]
        turned[:3, 3] = scale * (rotation @ matrix[:3, 3] + translation)
        moved.append(turned)
    transform = {"transform": np.column_stack([rotation, translation]).tolist(), "scale": scale}
    (tmp_path / "t.json").write_text(json.dumps(transform))
    scene = Scene("s", [view()], [], offset=(5.0, 6.0, 7.0))
    found = []
    for name, poses, undo in (("a", cameras(), None), ("b", moved, tmp_path / "t.json")):
        (tmp_path / name).write_text(json.dumps(nerfstudio_path(poses, 40.0, fps=24)))
        found.append(read_path(tmp_path / name, scene, undo).views)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one.viewmat, other.viewmat, atol=1e-5, rtol=0)
    # The scene's coordinates are those of the files less the offset.
    np.testing.assert_allclose(found[0][0].center.numpy(), cameras()[0][:3, 3] - [5, 6, 7], atol=1e-5)


def broken(**changes):
    return {**nerfstudio_path(cameras(1), 40.0, fps=24), **changes}


@pytest.mark.parametrize(
    "content,told",
    [
        ({"keyframes": []}, "required a 'camera_path' or 'frames', got keyframes"),
        (broken(camera_path=[]), "required a non-empty list 'camera_path'"),
        (broken(camera_path=[3]), r"camera_path\[0\]: required an object, got int"),
        (broken(camera_type="equirectangular"), "required camera_type 'perspective', got 'equirectangular'"),
        (broken(render_width=0), "required a positive whole number 'render_width', got 0"),
        (broken(render_width=10**6, render_height=10**6), "required pictures of at most"),
        (broken(render_height=None), "required a number 'render_height', got None"),
        (broken(fps=0), "required 0.01 to 1000 frames a second, got 0"),
        (broken(camera_path=[{"camera_to_world": [1, 2], "fov": 40}]), "required the 16 numbers of camera_to_world"),
        (broken(camera_path=[{"camera_to_world": [0] * 16, "fov": 40}]), "required an invertible matrix"),
        (broken(camera_path=[{"camera_to_world": list(range(16)), "fov": 180}]), r"required a fov in \(0, 180\)"),
        ({"frames": [{"file_path": "x", "transform_matrix": np.eye(4).tolist()}]}, "required a number 'w', got None"),
    ],
)
def test_a_path_that_cannot_be_drawn_is_refused_by_name(tmp_path, content, told):
    (tmp_path / "path.json").write_text(json.dumps(content))
    with pytest.raises(SceneError, match=rf"path\.json.*{told}"):
        read_path(tmp_path / "path.json", Scene("s", [view()], []))


def test_what_a_path_leaves_out_is_said(tmp_path):
    frames = [{"file_path": "x", "transform_matrix": np.eye(4).tolist()}]
    content = {"fl_x": 20, "k1": 0.1, "w": 24, "h": 24, "frames": frames}
    (tmp_path / "path.json").write_text(json.dumps(content))
    found = read_path(tmp_path / "path.json", Scene("s", [view()], []))
    assert found.notes == [
        "path.json: 1 of 1 lenses distort; they are drawn without distortion",
        "path.json: says no fps: 30 frames a second",
    ]
    (tmp_path / "t.json").write_text(json.dumps({"transform": np.eye(4)[:3].tolist(), "scale": 0}))
    with pytest.raises(SceneError, match=r"t\.json: required a positive scale"):
        read_path(tmp_path / "path.json", Scene("s", [view()], []), tmp_path / "t.json")


# --- LPIPS


def test_lpips_enters_the_evaluation_of_each_view():
    views = [view(), view()]
    views[1].mask = torch.zeros(16, 16, dtype=torch.bool)
    views[1].mask[:4] = True
    asked = []

    def distance(pred, target, mask):
        asked.append(mask)
        return float((pred - target).abs().mean()) + len(asked)

    result = evaluate(lambda one: torch.full((1, 16, 16, 3), 0.5), views, perceptual=distance)
    assert [row["lpips"] for row in result["views"]] == [1.5, 2.5] and result["lpips"] == 2.0
    assert asked[0] is None and torch.equal(asked[1], views[1].mask)
    assert "lpips" not in evaluate(lambda one: torch.full((1, 16, 16, 3), 0.5), views)


def test_lpips_that_cannot_be_had_is_refused_before_the_run(tmp_path, monkeypatch):
    scene = write_blender(tmp_path / "ball", train=2, test=1, size=16)
    line = ["--data-dir", str(scene), "--result-dir", str(tmp_path / "run"), "--output.lpips", "vgg"]
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(SystemExit, match=r"^error: output\.lpips requires torchmetrics, and the torchvision that fits"):
        main(line)

    class Metric:
        def __init__(self, net_type, normalize):
            assert net_type == "vgg" and normalize
            raise OSError("<urlopen error no route>")

    lpip = types.ModuleType("torchmetrics.image.lpip")
    lpip.LearnedPerceptualImagePatchSimilarity = Metric
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchmetrics.image.lpip", lpip)
    with pytest.raises(SystemExit, match=r"^error: output\.lpips vgg: required the network's weights, .*no route>"):
        main(line)
    assert not (tmp_path / "run").exists()


def test_masked_pixels_are_alike_for_lpips(monkeypatch):
    class Metric:
        """A fake LPIPS network: the mean difference. It requires sides of at least 9 pixels."""

        def __init__(self, net_type, normalize):
            self.values = []

        def to(self, device):
            return self

        def reset(self):
            self.values = []

        def update(self, pred, target):
            if pred.shape[2] < 9:
                raise RuntimeError("Output size is too small")
            self.values.append((pred - target).abs().mean())

        def compute(self):
            return torch.stack(self.values).mean()

    lpip = types.ModuleType("torchmetrics.image.lpip")
    lpip.LearnedPerceptualImagePatchSimilarity = Metric
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchmetrics.image.lpip", lpip)
    distance = make_lpips("alex", [view()], torch.device("cpu"))
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[:8] = True
    one, other = torch.ones(1, 3, 16, 16), torch.zeros(1, 3, 16, 16)
    assert distance(one, other, None) == 1 and distance(one, other, mask) == 0.5
    with pytest.raises(UserError, match=r"^v: output\.lpips alex requires larger pictures, got 8x8: Output size"):
        make_lpips("alex", [view(), view(8)], torch.device("cpu"))
    assert make_lpips("off", [], torch.device("cpu")) is None


def test_lpips_is_that_of_torchmetrics(tmp_path, monkeypatch):
    try:
        import torchvision
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"no torchvision that fits this torch: {error}")
    from torchmetrics.functional.image.lpips import learned_perceptual_image_patch_similarity

    # The real weights would have to be downloaded. Random weights suffice here.
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.manual_seed(0)
    weights = torchvision.models.squeezenet1_1().state_dict()
    torch.save(weights, tmp_path / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth")
    pred, target = torch.rand(2, 1, 3, 40, 48)
    distance = make_lpips("squeeze", [view(40)], torch.device("cpu"))(pred, target, None)
    expected = learned_perceptual_image_patch_similarity(pred, target, net_type="squeeze", normalize=True)
    assert distance == pytest.approx(float(expected), abs=1e-6) and distance > 0


# --- TensorBoard


def test_tensorboard_has_a_picture_of_a_test_view_for_each_evaluation(trained):
    module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = module.EventAccumulator(str(trained / "tensorboard"))
    events.Reload()
    (tag,) = events.Tags()["images"]
    assert tag == "test/test/r_0.png"
    assert [(event.step, event.width, event.height) for event in events.Images(tag)] == [(20, 72, 24), (40, 72, 24)]


# --- the viewer


def test_a_browsers_camera_is_a_view_of_the_scene():
    matrix = camera_to_world(0.4)
    matrix[:3, 1:3] *= -1
    seen = view(16, focal=20.0, viewmat=torch.from_numpy(np.linalg.inv(matrix)).float())
    wxyz, position = pose_of(seen)
    result = view_of_camera(wxyz, position, 2 * math.atan(0.5 * 16 / 20), 16, 16)
    torch.testing.assert_close(result.viewmat, seen.viewmat, atol=1e-6, rtol=0)
    torch.testing.assert_close(result.K, seen.K)
    assert (result.height, result.width) == (16, 16)


def test_without_viser_a_viewer_is_refused_in_one_sentence(trained, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "viser", None)
    line = f"--data-dir {trained.parent / 'ball'} --result-dir {tmp_path / 'run'} --steps 3 --viewer"
    with pytest.raises(SystemExit, match=r"^error: a viewer requires the package viser, got none: .* extra 'viewer'"):
        main(line.split())
    assert not (tmp_path / "run").exists()


def test_a_port_that_is_taken_is_refused(trained):
    pytest.importorskip("viser", reason="viser is not installed")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(UserError, match="the viewer requires a free port, got"):
            SceneViewer(load(trained), other.getsockname()[1])


def test_a_viewer_that_nobody_looks_at_changes_no_bit_and_is_never_due(trained, tmp_path, capsys):
    pytest.importorskip("viser", reason="viser is not installed")
    line = f"--data-dir {trained.parent / 'ball'} --steps 12 --model.init-count 60 --output.no-report"
    for name, more in (("seen", ["--viewer", "--viewer-port", "0"]), ("alone", [])):
        main([*line.split(), "--output.no-progress", "--result-dir", str(tmp_path / name), *more])
    assert "viewer: http://localhost:" in capsys.readouterr().out
    seen, alone = (torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("seen", "alone"))
    assert all(torch.equal(seen["splats"][name], alone["splats"][name]) for name in alone["splats"])
    # Whether the viewer was open is not recorded as an option of the run.
    assert "viewer: false" in (tmp_path / "seen" / "config.yaml").read_text()
    viewer = SceneViewer(load(trained), 0)
    try:
        assert not viewer.due()
    finally:
        viewer.close()


@pytest.mark.parametrize("name", ["a.mp4", "a.foo", "a.gsv"])
def test_a_picture_is_written_under_the_name_of_a_picture(tmp_path, name):
    with pytest.raises(UserError, match=rf"{name}: required a name of a picture, such as .png, got \{name[1:]}"):
        pictures.save_bytes(tmp_path / name, np.zeros((2, 2, 3), np.uint8))
    assert not list(tmp_path.iterdir())
    pictures.save_bytes(tmp_path / "a", np.zeros((2, 2, 3), np.uint8))
    assert (tmp_path / "a").read_bytes().startswith(b"\x89PNG")
