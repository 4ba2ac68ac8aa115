import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from splat_ssim.scene.data import SceneError, load_scene
from splat_ssim.scene.data.images import make_view
from splat_ssim.scene.data.scene import split_views
from splat_ssim.scene.data.summary import summary
from splat_ssim.scene.model import random_points
from tests.scenes import write_blender, write_colmap, write_nerfstudio

ASSETS = Path(__file__).parent.parent / "assets"


def test_blender_views(tmp_path):
    scene = load_scene(write_blender(tmp_path / "ball"))
    assert scene.name == "ball"
    assert (len(scene.train), len(scene.test)) == (6, 2)
    view = scene.train[0]
    focal = 16 / math.tan(0.345)
    torch.testing.assert_close(view.K, torch.tensor([[focal, 0, 16], [0, focal, 16], [0, 0, 1]]))
    # The origin, which every camera looks at, lies on the optical axis at the camera's distance.
    torch.testing.assert_close(view.viewmat[:3, 3], torch.tensor([0.0, 0.0, 4.0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(view.center.norm(), torch.tensor(4.0))
    # World up is image up: OpenCV's y points down.
    assert view.viewmat[1, 2] < 0


def test_blender_composites_over_the_background(tmp_path):
    folder = write_blender(tmp_path)
    Image.fromarray(np.array([[[255, 0, 0, 51]] * 32] * 32, np.uint8)).save(folder / "train" / "r_0.png")
    view = load_scene(folder, background=(1.0, 1.0, 1.0)).train[0]
    torch.testing.assert_close(view.pixels()[0, :, 0, 0], torch.tensor([1.0, 0.8, 0.8]))
    assert view.pixels().shape == (1, 3, 32, 32)
    view = load_scene(folder, background=(0.0, 0.0, 0.0)).train[0]
    assert view.pixels()[0, :, 0, 0].tolist() == pytest.approx([0.2, 0, 0])


def test_blender_factor_keeps_the_field_of_view(tmp_path):
    full, half = (load_scene(write_blender(tmp_path), factor=factor).train[0] for factor in (1, 2))
    assert half.image.shape == (16, 16, 4)
    torch.testing.assert_close(half.K[:2], full.K[:2] / 2)


def test_random_points_lie_inside_the_silhouettes(tmp_path):
    scene = load_scene(write_blender(tmp_path))
    points = torch.from_numpy(random_points(scene, 500, np.random.default_rng(0)))
    # The disc's radius, 8 of 32 pixels, is 8/44.5·4 = 0.72 at the origin; a cell and its ball add at most 0.2.
    for view in scene.train:
        camera = points @ view.viewmat[:3, :3].T + view.viewmat[:3, 3]
        assert (camera[:, :2].norm(dim=1) / camera[:, 2] * 4).max() < 0.95
    assert points.std(0).min() > 0.2


def test_test_images_stay_in_their_files(tmp_path):
    root = write_blender(tmp_path)
    first, again = load_scene(root), load_scene(root)
    assert [view.nbytes for view in first.test] == [0] * len(first.test)
    assert all(view.nbytes == view.image.nbytes > 0 for view in first.train)
    assert f"MB, without {len(first.test)} that every evaluation decodes anew; " in summary(first, "")[2]
    view, other = first.test[0], again.test[0]
    assert view.image is not view.image and torch.equal(view.image, other.image)
    assert (view.height, view.width, 4) == view.shape == tuple(view.image.shape)
    # Views derived from such a view have its pixels.
    moved = view.to(torch.device("cpu"))
    assert moved.nbytes == view.image.nbytes and torch.equal(moved.image, view.image)
    file = root / "test" / view.name.rsplit("/")[-1]
    assert file.is_file()
    Image.new("RGBA", (view.width, view.height)).save(file)
    for change in (lambda: None, file.unlink):
        change()
        with pytest.raises(SceneError, match=f"{file.name}: required image and mask as they were when the scene was"):
            view.pixels()


def test_the_chair_is_complete():
    scene = load_scene(ASSETS / "chair_200")
    assert (len(scene.train), len(scene.test)) == (100, 25)
    assert scene.train[0].image.shape == (200, 200, 4)


def test_colmap_lund():
    scene = load_scene(ASSETS / "lund", factor=2)
    assert (len(scene.train), len(scene.test)) == (23, 4)
    assert scene.points.shape == (1543, 3)
    assert scene.test[0].name == min(view.name for view in scene.train + scene.test)
    view = next(view for view in scene.train if view.name == "10.jpg")
    assert view.image.shape == (288, 384, 3)
    assert view.image.dtype == torch.uint8
    # COLMAP's points project into the image they were seen in.
    points = torch.from_numpy(scene.points)
    camera = points @ view.viewmat[:3, :3].T + view.viewmat[:3, 3]
    pixel = camera @ view.K.T / camera[:, 2:]
    inside = (camera[:, 2] > 0) & (pixel[:, :2] > 0).all(1) & (pixel[:, 0] < 384) & (pixel[:, 1] < 288)
    assert inside.float().mean() > 0.3


def test_colmap_reads_the_ready_made_images_and_rescales_K(tmp_path):
    folder = write_colmap(tmp_path / "scene")
    view = (load_scene(folder, factor=2)).train[0]
    assert view.image.shape == (24, 32, 3)
    torch.testing.assert_close(view.K, torch.tensor([[20.0, 0, 16], [0, 20.5, 12], [0, 0, 1]]))
    assert view.viewmat[0, 3] == 1  # The second image: the first is the test view.


def test_colmap_masks(tmp_path):
    folder = write_colmap(tmp_path / "scene")
    (folder / "masks").mkdir()
    mask = np.zeros((48, 64), np.uint8)
    mask[:, 32:] = 255
    Image.fromarray(mask).save(folder / "masks" / "1.png.png")
    view = load_scene(folder).train[0]
    assert view.mask[:, :32].sum() == 0
    assert view.mask[:, 32:].all()


@pytest.mark.parametrize(
    "camera",
    [
        "SIMPLE_PINHOLE 64 48 40 32 24",
        "SIMPLE_RADIAL 64 48 40 32 24 0.1",
        "RADIAL 64 48 40 32 24 0.1 0.01",
        "OPENCV 64 48 40 40 32 24 0.1 0.01 0.001 0.001",
        "OPENCV_FISHEYE 64 48 40 40 32 24 0.1 0.01 0 0",
        "FULL_OPENCV 64 48 40 40 32 24 0.1 0.01 0.001 0.001 0.01 0 0 0",
        "FOV 64 48 40 40 32 24 0.1",
        "SIMPLE_RADIAL_FISHEYE 64 48 40 32 24 0.1",
        "RADIAL_FISHEYE 64 48 40 32 24 0.1 0.01",
        "THIN_PRISM_FISHEYE 64 48 40 40 32 24 0.1 0.01 0.001 0.001 0 0 0 0",
    ],
)
def test_colmap_camera_models(tmp_path, camera):
    view = load_scene(write_colmap(tmp_path / "scene", camera=camera)).train[0]
    # No pixel is invented: the image is constant, so the undistorted image must be constant too.
    assert (view.image == 120).all()
    assert abs(view.K[0, 2] - view.width / 2) < 1.5


def test_undistortion_moves_pixels_to_where_a_pinhole_sees_them():
    import pycolmap

    camera = pycolmap.Camera(model="SIMPLE_RADIAL", width=128, height=96, params=[90, 64, 48, -0.2])
    direction = np.array([0.35, -0.2, 1.0])
    column, row = np.asarray(camera.img_from_cam(direction))
    image = np.zeros((96, 128, 3), np.uint8)
    image[int(row) - 1 : int(row) + 2, int(column) - 1 : int(column) + 2] = 255
    view = make_view("a", image, np.eye(4), camera, mask=np.ones((96, 128), bool))
    bright = view.image[..., 0].float()
    rows, columns = torch.meshgrid(torch.arange(view.height), torch.arange(view.width), indexing="ij")
    found = torch.stack([((grid + 0.5) * bright).sum() / bright.sum() for grid in (columns, rows)])
    expected = (view.K.double() @ torch.tensor(direction))[:2].float()
    torch.testing.assert_close(found, expected, atol=1.0, rtol=0)
    assert view.mask.shape == bright.shape


def test_nerfstudio_views(tmp_path):
    scene = load_scene(write_nerfstudio(tmp_path))
    assert (len(scene.train), len(scene.test)) == (7, 2)
    assert [view.name for view in scene.test] == ["images/00.png", "images/08.png"]
    torch.testing.assert_close(scene.train[0].K, torch.tensor([[45.0, 0, 16], [0, 44, 15], [0, 0, 1]]))
    assert load_scene(tmp_path, factor=2).train[0].image.shape == (16, 16, 3)


def test_nerfstudio_splits_distortion_masks_and_points(tmp_path):
    write_nerfstudio(tmp_path, k1=0.1, camera_model="OPENCV", ply_file_path="points.ply")
    content = json.loads((tmp_path / "transforms.json").read_text())
    content["train_filenames"] = ["images/03.png"]
    content["val_filenames"] = ["images/04.png"]
    content["frames"][3]["mask_path"] = "mask.png"
    (tmp_path / "transforms.json").write_text(json.dumps(content))
    Image.fromarray(np.full((32, 32), 255, np.uint8)).save(tmp_path / "mask.png")
    header = "ply\nformat ascii 1.0\nelement vertex 2\nproperty float x\nproperty float y\nproperty float z\n"
    colors = "property uchar red\nproperty uchar green\nproperty uchar blue\nend_header\n"
    (tmp_path / "points.ply").write_text(header + colors + "0 1 2 255 0 0\n3 4 5 0 51 0\n")
    scene = load_scene(tmp_path)
    assert [view.name for view in scene.train] == ["images/03.png"]
    assert [view.name for view in scene.test] == ["images/04.png"]
    assert scene.train[0].mask.all()
    assert scene.points.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert scene.colors[1].tolist() == pytest.approx([0, 0.2, 0])


def test_split_convention():
    views = [type("V", (), {"name": f"{index:02d}"})() for index in reversed(range(17))]
    train, test = split_views(views, 8)
    assert [view.name for view in test] == ["00", "08", "16"]
    assert len(train) == 14


@pytest.mark.parametrize(
    ("breakage", "message"),
    [
        (lambda folder: None, "required a scene folder"),
        (lambda folder: folder.mkdir(), "required transforms_train.json"),
        (lambda folder: _broken(folder, "transforms_train.json", b"{"), "transforms_train.json: required JSON"),
        (lambda folder: _broken(folder, "transforms_train.json", b"[]"), "required a JSON object, got list"),
        (lambda folder: _broken(folder, "transforms_train.json", b"{}"), "required a non-empty list 'frames'"),
        (lambda folder: _edited(folder, "camera_angle_x", "wide"), "required a number 'camera_angle_x', got 'wide'"),
        (lambda folder: _edited(folder, "camera_angle_x", 7), "required camera_angle_x in"),
        (lambda folder: _edited_frame(folder, "transform_matrix", [[1]]), "frame 2: required a 4x4"),
        (lambda folder: _edited_frame(folder, "file_path", None), "frame 2: required 'file_path'"),
        (lambda folder: _broken(folder, "train/r_3.png", b"\x89PNG no image"), "r_3.png: required an image that deco"),
        (lambda folder: _emptied(folder), "r_0.png: required an image, got nothing there, as for 3 of 6 views"),
    ],
)
def test_errors_name_the_file_and_what_was_expected(tmp_path, breakage, message):
    folder = tmp_path / "scene"
    breakage(folder)
    with pytest.raises(SceneError, match=message):
        load_scene(folder)


def _broken(folder, name, content):
    write_blender(folder)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)


def _emptied(folder):
    write_blender(folder)
    for index in range(3):
        (folder / "train" / f"r_{index}.png").unlink()


def _edited(folder, key, value):
    path = write_blender(folder) / "transforms_train.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))


def _edited_frame(folder, key, value):
    path = write_blender(folder) / "transforms_train.json"
    content = json.loads(path.read_text())
    content["frames"][2][key] = value
    path.write_text(json.dumps(content))


def test_a_truncated_image_is_refused(tmp_path):
    path = write_blender(tmp_path) / "train" / "r_1.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 4), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(SceneError, match=r"r_1\.png: required an image that decodes"):
        load_scene(tmp_path)


def test_colmap_errors(tmp_path):
    with pytest.raises(SceneError, match=r"required a camera model among PINHOLE.*got SIMPLE_DIVISION.*image_undist"):
        load_scene(write_colmap(tmp_path / "sphere", camera="SIMPLE_DIVISION 64 48 40 32 24 0.1"))
    folder = write_colmap(tmp_path / "cut")
    (folder / "sparse" / "0" / "points3D.txt").unlink()
    with pytest.raises(SceneError, match=r"required points3D\.bin or points3D\.txt"):
        load_scene(folder)
    folder = write_colmap(tmp_path / "garbage")
    (folder / "sparse" / "0" / "images.txt").write_text("1 nonsense\n")
    with pytest.raises(SceneError, match="required a COLMAP reconstruction"):
        load_scene(folder)
    folder = write_colmap(tmp_path / "gone")
    (folder / "images" / "1.png").unlink()
    with pytest.raises(SceneError, match=r"1\.png: required an image, got nothing there"):
        load_scene(folder)


def test_nerfstudio_errors(tmp_path):
    write_nerfstudio(tmp_path, camera_model="EQUIRECTANGULAR")
    with pytest.raises(SceneError, match=r"transforms\.json: required a camera_model among.*EQUIRECTANGULAR"):
        load_scene(tmp_path)
    write_nerfstudio(tmp_path, ply_file_path="gone.ply")
    with pytest.raises(SceneError, match=r"gone\.ply: required the point cloud"):
        load_scene(tmp_path)
    write_nerfstudio(tmp_path, train_filenames=["images/99.png"])
    with pytest.raises(SceneError, match=r"train_filenames: required names of frames, got 'images/99\.png'"):
        load_scene(tmp_path)
