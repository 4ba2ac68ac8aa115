"""The right results for the faults of scene readers in shared/cases/trainer.md, by the fault's number."""

import json
import shutil

import numpy as np
import pycolmap
import pytest
import torch
from PIL import Image

from splat_ssim.ply import load_ply
from splat_ssim.scene.data import SceneError, load_scene
from splat_ssim.scene.data.images import mask_of_size
from splat_ssim.scene.data.placement import ordinary
from splat_ssim.scene.data.transforms import read_json
from splat_ssim.scene.start import random_points
from splat_ssim.trainer import load
from splat_ssim.trainer.cli import evaluate_run, main
from tests.scenes import camera_to_world, write_blender, write_colmap, write_nerfstudio

WHITE = (1.0, 1.0, 1.0)


def edit(folder, change, name="transforms.json"):
    """Changes the JSON object of a transforms file in place."""
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))
    return folder


def grey(size=32):
    """(size, size) uint8 from black to white."""
    return np.linspace(0, 255, size * size).reshape(size, size).astype(np.uint8)


# --- F1: one background under the truth and behind the Gaussians


@pytest.mark.parametrize("write", [write_blender, write_nerfstudio, write_colmap])
@pytest.mark.parametrize("background", [WHITE, (0.0, 0.0, 0.0)])
def test_transparent_images_have_the_background_of_the_render(tmp_path, write, background):
    folder = write(tmp_path / "scene")
    for path in folder.rglob("*.png"):
        with Image.open(path) as file:
            clear = np.zeros((file.height, file.width, 4), np.uint8)
        Image.fromarray(clear).save(path)
    scene = load_scene(folder, background=background)
    assert scene.background == background
    assert tuple(scene.train[0].pixels()[0, :, 0, 0].tolist()) == background


# --- F5: every bit depth


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.pgm"])
def test_16_bit_grey_is_read_by_its_whole_range(tmp_path, name):
    path = tmp_path / name
    wide = grey().astype(np.uint16) * 257
    if name == "x.pgm":
        path.write_bytes(b"P5 32 32 65535\n" + wide.astype(">u2").tobytes())
    else:
        Image.fromarray(wide).save(path)
    write_nerfstudio(tmp_path)
    edit(tmp_path, lambda content: content["frames"][1].update(file_path=name))
    view = next(view for view in load_scene(tmp_path, test_every=0).train if view.name == name)
    assert view.image.dtype == torch.uint8
    np.testing.assert_array_equal(view.image[..., 0].numpy(), grey())


def test_grey_with_white_as_zero_is_turned_round(tmp_path):
    from splat_ssim.trainer.pictures import read_image

    path = tmp_path / "x.tif"
    Image.fromarray(grey().astype(np.uint16) * 257).save(path, tiffinfo={262: 0})
    assert Image.open(path).tag_v2[262] == 0
    np.testing.assert_array_equal(read_image(path)[..., 1], 255 - grey())


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_one_grey_may_be_transparent_at_every_depth(tmp_path, dtype):
    values = np.full((32, 32), 200, dtype) * dtype(np.iinfo(dtype).max // 255)
    values[:, :8] = 0
    for path in (write_nerfstudio(tmp_path) / "images").iterdir():
        Image.fromarray(values).save(path, transparency=0)
    view = load_scene(tmp_path, background=WHITE).train[0]
    assert view.pixels()[0, 0, 0, [0, 7, 8]].tolist() == pytest.approx([1.0, 1.0, 200 / 255])


def test_alpha_of_255_everywhere_is_none(tmp_path):
    for path in (write_nerfstudio(tmp_path) / "images").iterdir():
        Image.fromarray(grey()).convert("RGBA").save(path)
    scene = load_scene(tmp_path, background=WHITE)
    assert scene.train[0].shape == (32, 32, 3) and scene.background == (0.0, 0.0, 0.0)


def test_what_is_not_read_of_a_picture_is_said(tmp_path):
    images, exif = write_nerfstudio(tmp_path, count=8) / "images", Image.Exif()
    exif[274] = 3
    for index, suffix in ((1, ".png"), (2, ".jpg"), (3, ".webp"), (4, ".tif")):
        Image.fromarray(grey()).convert("RGB").save(images / f"{index}{suffix}", exif=exif)
    Image.fromarray(grey()).save(images / "5.tif", save_all=True, append_images=[Image.fromarray(grey())])
    Image.fromarray(grey().astype(np.uint16) * 16).save(images / "6.png")

    def change(content):
        for index, suffix in enumerate((".png", ".jpg", ".webp", ".tif", ".tif", ".png"), 1):
            content["frames"][index]["file_path"] = f"images/{index}{suffix}"

    assert load_scene(edit(tmp_path, change)).notes == [
        "read as stored, not turned as EXIF says: 3 (images/1.png, images/2.jpg, images/3.webp)",
        "of several pictures in a file the first is read: 1 (images/5.tif)",
        "read as nearly black, since the values of 16 bits use at most 12 of them: 1 (images/6.png)",
    ]


@pytest.mark.parametrize(("dtype", "kind"), [(np.float32, "floating-point"), (np.int32, "integer")])
def test_samples_of_unknown_range_are_refused(tmp_path, dtype, kind):
    Image.fromarray(grey().astype(dtype)).save(tmp_path / "x.tif")
    write_nerfstudio(tmp_path)
    edit(tmp_path, lambda content: content["frames"][1].update(file_path="x.tif"))
    with pytest.raises(SceneError, match=rf"x\.tif: required samples of 8 or 16 bits.*got 32-bit {kind}"):
        load_scene(tmp_path)


# --- F6: every convention of masks


def half_kept(dtype, value):
    """(32, 32) array with `value` in the right half."""
    mask = np.zeros((32, 32), dtype)
    mask[:, 16:] = value
    return mask


def in_alpha(color):
    rgba = np.full((32, 32, 4), color, np.uint8)
    rgba[..., 3] = half_kept(np.uint8, 255)
    return rgba


MASKS = {
    "255.png": half_kept(np.uint8, 255),
    "1.png": half_kept(np.uint8, 1),
    "labels.png": half_kept(np.uint8, 1) + half_kept(np.uint8, 1) * (np.arange(32) > 20).astype(np.uint8),
    "bit.png": half_kept(bool, True),
    "wide.png": half_kept(np.uint16, 65535),
    "wide1.png": half_kept(np.uint16, 1),
    "float.tif": half_kept(np.float32, 1.0),
    "alpha_of_black.png": in_alpha(0),
    "alpha_of_white.png": in_alpha(255),
    "opaque.png": np.concatenate(
        [half_kept(np.uint8, 1)[..., None].repeat(3, 2), np.full((32, 32, 1), 255, np.uint8)], 2
    ),
    "small.png": half_kept(np.uint8, 1)[::2, ::2],
    "lossy.jpg": half_kept(np.uint8, 255),
    "nan.tif": np.where(half_kept(bool, True), np.float32(1), np.float32(np.nan)),
}


def masked(folder, masks):
    """A nerfstudio scene of five views. `masks` are by the view's index."""
    write_nerfstudio(folder, count=5)
    for index, (name, values) in masks.items():
        Image.fromarray(values).save(folder / name)
        edit(folder, lambda content, index=index, name=name: content["frames"][index].update(mask_path=name))
    return folder


@pytest.mark.parametrize("name", MASKS)
def test_masks_of_every_convention(tmp_path, name):
    mask = load_scene(masked(tmp_path, {1: (name, MASKS[name])})).train[0].mask
    expected = torch.from_numpy(half_kept(bool, True))
    torch.testing.assert_close(mask, expected)


@pytest.mark.parametrize(
    ("name", "options"), [("m.jpg", {}), ("m.avif", {"quality": 60}), ("m.tif", {"compression": "jpeg"})]
)
def test_the_ringing_of_lossy_masks_is_not_kept(tmp_path, name, options):
    distance = 10 - np.sqrt(((np.mgrid[:32, :32] - 15.5) ** 2).sum(0))
    soft = (distance * 100 + 128).clip(0, 255).astype(np.uint8)
    masked(tmp_path, {1: (name, soft)})
    Image.fromarray(soft).save(tmp_path / name, **options)
    with Image.open(tmp_path / name) as file:
        assert 0 < np.asarray(file.convert("L"))[soft == 0].max() < 128
    mask = load_scene(tmp_path).train[0].mask.numpy()
    sure = np.abs(distance) > 0.5
    np.testing.assert_array_equal(mask[sure], distance[sure] > 0)


def test_blender_scenes_have_masks_too(tmp_path):
    folder = write_blender(tmp_path)
    Image.fromarray(MASKS["1.png"]).save(folder / "m.png")
    edit(folder, lambda content: content["frames"][0].update(mask_path="m.png"), "transforms_train.json")
    views = load_scene(folder).train
    torch.testing.assert_close(views[0].mask, torch.from_numpy(half_kept(bool, True)))
    assert views[1].mask is None


def test_views_of_which_nothing_counts_are_left_out(tmp_path):
    nothing = np.zeros((32, 32), np.uint8)
    scene = load_scene(masked(tmp_path / "some", {0: ("0.png", nothing), 2: ("2.png", nothing)}), test_every=2)
    assert [view.name for view in scene.train] == ["images/01.png", "images/03.png"]
    assert [view.name for view in scene.test] == ["images/04.png"]
    assert scene.notes == ["left out, since their masks keep no pixel: 2 (images/00.png, images/02.png)"]
    with pytest.raises(SceneError, match="required masks that keep a pixel of a training view, got none of 4"):
        load_scene(masked(tmp_path / "all", {index: (f"{index}.png", nothing) for index in range(5)}))


# --- F4, W14: poses and cameras are checked in every format

NAN, INF = float("nan"), float("inf")
SINGULAR = np.diag([1.0, 1.0, 0.0, 1.0]).tolist()


def moved(value):
    """A pose with `value` in its translation."""
    matrix = np.eye(4).tolist()
    matrix[0][3] = value
    return matrix


def sheared():
    matrix = np.eye(4)
    matrix[0, 1] = 0.5
    return matrix.tolist()


POSES = [
    (moved(NAN), "required finite numbers, got nan"),
    (moved(INF), "required finite numbers, got inf"),
    (moved(10**400), "required a 4x4 'transform_matrix' of numbers"),
    ([["a"] * 4] * 4, "required a 4x4 'transform_matrix' of numbers"),
    (SINGULAR, "required an invertible matrix, got a singular one"),
    (np.zeros((4, 4)).tolist(), "required an invertible matrix"),
    (np.ones((4, 4)).tolist(), "required an invertible matrix"),
    (np.diag([1.0, 1.0, 1.0, 2.0]).tolist(), "required 0 0 0 1 as its last row, got 0 0 0 2"),
    (sheared(), "required axes at right angles"),
    (np.diag([1.0, -1.0, 1.0, 1.0]).tolist(), r"required poses of one handedness, got 1 \(\S+\) mirrored"),
    (moved(1e39), "required a position that float32 holds"),
]


@pytest.mark.parametrize(("matrix", "message"), POSES)
@pytest.mark.parametrize(
    ("write", "name"),
    [
        (write_blender, "transforms_train.json"),
        (write_blender, "transforms_test.json"),
        (write_nerfstudio, "transforms.json"),
    ],
)
def test_a_bad_pose_is_refused(tmp_path, write, name, matrix, message):
    folder = edit(write(tmp_path), lambda content: content["frames"][1].update(transform_matrix=matrix), name)
    with pytest.raises(SceneError, match=rf"(?s){message}"):
        load_scene(folder)


@pytest.mark.parametrize("scale", [(2.0, 2.0, 2.0), (0.5, 1.0, 3.0)])
def test_the_scale_of_a_pose_is_removed(tmp_path, scale):
    """Blender's cameras may inherit a scale."""
    expected = load_scene(write_nerfstudio(tmp_path / "plain")).train[0].viewmat
    folder = write_nerfstudio(tmp_path / "scaled")
    pose = np.array(json.loads((folder / "transforms.json").read_text())["frames"][1]["transform_matrix"])
    pose[:3, :3] *= scale
    edit(folder, lambda content: content["frames"][1].update(transform_matrix=pose.tolist()))
    scene = load_scene(folder)
    torch.testing.assert_close(scene.train[0].viewmat, expected)
    assert scene.notes == ["transforms.json: poses with a scale, which was removed: 1 (images/01.png)"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fl_x": 0}, "required a positive focal length 'fl_x', got 0"),
        ({"fl_x": -45.0}, "required a positive focal length 'fl_x', got -45"),
        ({"fl_y": -1}, "required a positive focal length 'fl_y', got -1"),
        ({"fl_x": NAN}, "required a number 'fl_x', got nan"),
        ({"fl_x": 10**400}, "required a number 'fl_x'"),
        ({"fl_x": 1e39}, "required finite camera parameters"),
        ({"fl_x": None, "fl_y": None}, "required a number 'fl_x', got None"),
        ({"cx": INF}, "required a number 'cx', got inf"),
        ({"w": 0}, "required a positive whole number 'w', got 0"),
        ({"h": -32}, "required a positive whole number 'h', got -32"),
        ({"k1": NAN}, "required a number 'k1', got nan"),
        ({"k1": "0.1"}, "required a number 'k1', got '0.1'"),
    ],
)
@pytest.mark.parametrize(
    ("write", "name"), [(write_blender, "transforms_train.json"), (write_nerfstudio, "transforms.json")]
)
def test_a_bad_camera_is_refused(tmp_path, write, name, change, message):
    with pytest.raises(SceneError, match=rf"{name}: frame 0: .*{message}|{name}: frame 0: {message}"):
        load_scene(edit(write(tmp_path), lambda content: content.update(change), name))


@pytest.mark.parametrize(
    ("camera", "message"),
    [
        ("PINHOLE 64 48 0 41 32 24", "required a positive focal length, got 0"),
        ("PINHOLE 64 48 40 -41 32 24", "required a positive focal length, got -41"),
        ("PINHOLE 0 48 40 41 32 24", "required a camera of a positive size, got 0x48"),
        ("PINHOLE 64 48 nan 41 32 24", r"sparse/0: required (finite camera|a COLMAP)"),
        ("OPENCV 64 48 40 40 32 24 inf 0 0 0", r"sparse/0: required (finite camera|a COLMAP)"),
    ],
)
def test_a_bad_camera_of_colmap_is_refused(tmp_path, camera, message):
    with pytest.raises(SceneError, match=message):
        load_scene(write_colmap(tmp_path / "scene", camera=camera))


@pytest.mark.parametrize("bad", ["nan", "inf", "1e39"])
def test_a_bad_pose_of_colmap_is_refused(tmp_path, bad):
    folder = write_colmap(tmp_path / "scene")
    text = f"1 1 0 0 0 {bad} 0.2 0.3 1 0.png\n\n2 1 0 0 0 1 0 0 1 1.png\n\n"
    (folder / "sparse" / "0" / "images.txt").write_text(text)
    with pytest.raises(SceneError, match=r"required (a COLMAP|finite|a position)"):
        load_scene(folder)


def test_the_mirror_image_of_a_scene_is_read(tmp_path):
    """Left-handed coordinates are as good as right-handed ones."""
    mirror = np.diag([-1.0, 1, 1, 1])

    def mirrored(content):
        for frame in content["frames"]:
            frame["transform_matrix"] = (mirror @ np.array(frame["transform_matrix"])).tolist()

    scene = load_scene(edit(write_nerfstudio(tmp_path), mirrored))
    assert len(scene.train) == 7
    # An axis of the cameras that is reversed by mistake has the same sign, so it is said.
    assert scene.notes == ["all poses are mirrored: coordinates are left-handed, or an axis of the cameras is reversed"]


# --- F9: an image must have its camera's shape


@pytest.mark.parametrize("size", [(48, 64), (64, 33), (100, 48)])
@pytest.mark.parametrize("write", [write_nerfstudio, write_colmap, write_blender])
def test_an_image_of_another_shape_than_its_camera_is_refused(tmp_path, write, size):
    folder = write(tmp_path / "scene")
    name = {write_nerfstudio: "images/01.png", write_colmap: "images/1.png", write_blender: "train/r_1.png"}[write]
    camera = "64x48" if write is write_colmap else "32x32"
    if write is write_blender:
        edit(folder, lambda content: content.update(w=32, h=32), "transforms_train.json")
    Image.fromarray(np.zeros((size[1], size[0], 3), np.uint8)).save(folder / name)
    got = f"got an image of {size[0]}x{size[1]} and a camera of {camera}$"
    message = f"{name}: required an image of its camera's shape, {got}"
    with pytest.raises(SceneError, match=message):
        load_scene(folder)


def test_an_unapplied_orientation_is_named(tmp_path):
    folder = write_colmap(tmp_path / "scene")
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(np.zeros((64, 48, 3), np.uint8)).save(folder / "images" / "1.png", exif=exif)
    with pytest.raises(SceneError, match=r"image of 48x64 and a camera of 64x48 \(EXIF orientation 6, which is not"):
        load_scene(folder)
    # COLMAP ignores EXIF orientation. If the camera fits the stored pixels, we ignore it too.
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(folder / "images" / "1.png", exif=exif)
    assert load_scene(folder).train[0].image.shape == (48, 64, 3)


@pytest.mark.parametrize("size", [(64, 48), (32, 24), (21, 16), (22, 17), (128, 96)])
def test_an_image_of_another_size_is_read(tmp_path, size):
    folder = write_colmap(tmp_path / "scene")
    Image.fromarray(np.zeros((size[1], size[0], 3), np.uint8)).save(folder / "images" / "1.png")
    K = load_scene(folder).train[0].K
    torch.testing.assert_close(K[0], torch.tensor([40.0, 0, 32]) * size[0] / 64)


@pytest.mark.parametrize("of_image", [(204, 201), (408, 401), (1631, 1605)])
def test_a_mask_of_the_full_size_fits_a_reduced_image(tmp_path, of_image):
    """The reduced sides are rounded: 1631 / 8 = 203.9 and 1605 / 8 = 200.6."""
    path = tmp_path / "mask.png"
    Image.fromarray(np.full((1605, 1631), 255, np.uint8)).save(path)
    assert mask_of_size(path, (of_image[1], of_image[0])).all()


def test_a_mask_of_another_shape_is_refused(tmp_path):
    folder = masked(tmp_path, {1: ("m.png", np.ones((32, 48), np.uint8))})
    with pytest.raises(SceneError, match=r"m\.png: required a mask of its image's shape, got a mask of 48x32"):
        load_scene(folder)


# --- F10, W2, W11: every flavour of the camera fields


def K_of(folder, **fields):
    """The intrinsics of a Blender scene and of a nerfstudio scene that only have these fields."""
    found = []
    for write, name in ((write_blender, "transforms_train.json"), (write_nerfstudio, "transforms.json")):

        def change(content):
            for key in ("camera_angle_x", "fl_x", "fl_y", "cx", "cy", "w", "h"):
                content.pop(key, None)
            content.update(fields)

        found.append(load_scene(edit(write(folder / name[:-5]), change, name)).train[0].K)
    torch.testing.assert_close(found[0], found[1])
    return found[0]


ANGLE = 2 * np.arctan(16 / 45)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"camera_angle_x": ANGLE}, (45, 45, 16, 16)),
        ({"camera_angle_y": ANGLE}, (45, 45, 16, 16)),
        ({"camera_angle_x": ANGLE, "camera_angle_y": 2 * np.arctan(16 / 50)}, (45, 50, 16, 16)),
        ({"fl_x": 45}, (45, 45, 16, 16)),
        ({"fl_y": 45}, (45, 45, 16, 16)),
        ({"fl_x": 45, "fl_y": 50, "cx": 10, "cy": 20}, (45, 50, 10, 20)),
        ({"camera_angle_x": 1.0, "fl_x": 45, "cx": 10}, (45, 45, 10, 16)),
        ({"fl_x": 90, "cx": 20, "w": 64, "h": 64}, (45, 45, 10, 16)),
    ],
)
def test_camera_fields_are_read_in_both_formats(tmp_path, fields, expected):
    fx, fy, cx, cy = expected
    torch.testing.assert_close(K_of(tmp_path, **fields), torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]]))


@pytest.mark.parametrize(
    ("write", "name"), [(write_blender, "transforms_train.json"), (write_nerfstudio, "transforms.json")]
)
def test_a_frame_has_its_own_camera(tmp_path, write, name):
    def change(content):
        for frame in content["frames"]:
            frame["camera_angle_x"] = ANGLE

    folder = edit(write(tmp_path), change, name)
    # The frame's angle overrides the file's focal length.
    assert load_scene(folder).train[0].K[0, 0] == pytest.approx(45)
    edit(folder, lambda content: [content.pop(key, None) for key in ("camera_angle_x", "fl_x", "fl_y")], name)
    assert load_scene(folder).train[0].K[0, 0] == pytest.approx(45)


@pytest.mark.parametrize(
    ("write", "name"), [(write_blender, "transforms_train.json"), (write_nerfstudio, "transforms.json")]
)
def test_distortion_is_undone_or_refused_in_both_formats(tmp_path, write, name):
    plain = load_scene(write(tmp_path)).train[0]
    for fields in (
        {"k1": 0.2},
        {"k3": 0.2},
        {"p1": 0.1},
        {"k1": 0.2, "camera_model": "OPENCV_FISHEYE"},
        {"k1": 0.2, "is_fisheye": True},
    ):
        folder = edit(write(tmp_path), lambda content, fields=fields: content.update(fields), name)
        view = load_scene(folder).train[0]
        assert view.image.shape != plain.image.shape or not torch.equal(view.K, plain.K), fields
    for fields, message in (
        ({"k4": 0.1}, "required k4 = 0 for camera_model FULL|required k4 = 0 for camera_model OPENCV, got 0.1"),
        ({"k5": 0.1}, "required k5 = 0"),
        ({"p1": 0.1, "camera_model": "OPENCV_FISHEYE"}, "required p1 = 0 for camera_model OPENCV_FISHEYE"),
    ):
        folder = edit(write(tmp_path), lambda content, fields=fields: content.update(fields), name)
        with pytest.raises(SceneError, match=message):
            load_scene(folder)


def test_k3_is_the_k3_of_opencv(tmp_path):
    import pycolmap

    from splat_ssim.scene.data.transforms import read_camera

    camera = read_camera({"fl_x": 45, "k1": 0.1, "k2": 0.02, "k3": 0.003, "p1": 0.01, "p2": -0.01}, "a", (32, 32))
    x, y, (k1, k2, k3, p1, p2) = 0.3, -0.2, (0.1, 0.02, 0.003, 0.01, -0.01)
    r2 = x * x + y * y
    radial = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3
    u = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
    v = y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y
    assert isinstance(camera, pycolmap.Camera)
    found = np.asarray(camera.img_from_cam(np.array([x, y, 1.0]))).ravel()
    np.testing.assert_allclose(found, [45 * u + 16, 45 * v + 16], atol=1e-9)


# --- F11: named splits


def split(folder, **lists):
    scene = load_scene(write_nerfstudio(folder, count=6, **lists))
    return [[view.name[7:9] for view in views] for views in (scene.train, scene.test)], scene.notes


@pytest.mark.parametrize(
    ("write", "name"), [(write_blender, "transforms_train.json"), (write_nerfstudio, "transforms.json")]
)
def test_an_image_of_two_frames_is_refused(tmp_path, write, name):
    path = write(tmp_path) / name
    content = json.loads(path.read_text())
    file = content["frames"][1]["file_path"].removeprefix("./")
    content["frames"].append({**content["frames"][1], "file_path": f"./{file}"})
    path.write_text(json.dumps(content))
    with pytest.raises(SceneError, match=rf"frame \d: required an image of its own, got {file} of frame 1$"):
        load_scene(tmp_path)


def test_principal_points_outside_the_image_are_said(tmp_path):
    note = "cameras whose principal point (cx, cy) lies outside their image: "
    assert load_scene(write_nerfstudio(tmp_path / "a", count=3)).notes == []
    scene = load_scene(write_nerfstudio(tmp_path / "a", count=3, cx=200.0))
    assert scene.notes == [f"{note}3 (images/01.png, images/02.png, images/00.png)"]
    scene = load_scene(write_colmap(tmp_path / "b", camera="PINHOLE 64 48 40 41 32 -1"))
    assert scene.notes == [f"{note}2 (1.png, 0.png)"]


def test_test_views_that_are_trained_on_are_said(tmp_path):
    write_blender(tmp_path)
    (tmp_path / "transforms_test.json").write_bytes((tmp_path / "transforms_train.json").read_bytes())
    scene = load_scene(tmp_path)
    assert len(scene.test) == 6 and scene.notes == [
        "transforms_test.json names images that are trained on: 6 (train/r_0.png, train/r_1.png, train/r_2.png, …)"
    ]


def images(*names):
    return [f"images/{name}.png" for name in names]


def test_what_a_split_leaves_unnamed(tmp_path):
    rest = "transforms.json names no training views: all that it does not name train"
    named, notes = split(tmp_path, test_filenames=images("01", "03"))
    assert named == [["00", "02", "04", "05"], ["01", "03"]] and notes == [rest]
    named, notes = split(tmp_path, val_filenames=images("02"), train_filenames=[])
    assert named == [["00", "01", "03", "04", "05"], ["02"]] and notes == [rest]
    named, notes = split(tmp_path, val_filenames=images("02"), test_filenames=images("01"))
    assert named == [["00", "03", "04", "05"], ["01"]] and notes == [rest]
    named, notes = split(tmp_path, train_filenames=images("00", "01"), test_filenames=images("02"))
    assert named == [["00", "01"], ["02"]]
    assert notes == ["not used, by the split of transforms.json: 3 (images/03.png, images/04.png, images/05.png)"]
    named, notes = split(
        tmp_path, train_filenames=["./images/00.png", ".\\images\\01.png"], test_filenames=images("01")
    )
    assert named == [["00", "01"], ["01"]]
    assert notes[0] == "transforms.json names views both for training and as held out: 1 (images/01.png)"
    assert split(tmp_path) == ([["01", "02", "03", "04", "05"], ["00"]], [])
    with pytest.raises(SceneError, match=r"test_filenames: required a list of file names, got 'images/01\.png'"):
        split(tmp_path, test_filenames="images/01.png")
    with pytest.raises(SceneError, match="required at least one training view, got none"):
        split(tmp_path, test_filenames=images("00", "01", "02", "03", "04", "05"))


# --- W4, W7, W8, W9, W32, W33: files that are named otherwise, or are not there


@pytest.mark.parametrize("name", ["1.png.png", "1.png", "1.jpg", "1.PNG"])
def test_masks_of_colmap_by_name_or_by_stem(tmp_path, name):
    folder = write_colmap(tmp_path / "scene")
    (folder / "masks").mkdir()
    mask = np.zeros((48, 64), np.uint8)
    mask[:, 32:] = 255
    Image.fromarray(mask).save(folder / "masks" / name)
    scene = load_scene(folder)
    assert scene.train[0].mask[:, 32:].all() and not scene.train[0].mask[:, :32].any()
    assert [note.split(": ")[1] for note in scene.notes] == [
        "masks for 1 of 2 images, named <image>.png or as the image is"
    ]


def test_a_test_split_without_images_is_passed_over(tmp_path):
    for path in (write_blender(tmp_path) / "test").iterdir():
        path.unlink()
    scene = load_scene(tmp_path)
    assert (len(scene.train), len(scene.test)) == (6, 0)
    assert scene.notes == ["transforms_test.json is skipped: none of its 2 images is there"]


@pytest.mark.parametrize("write", [write_blender, write_nerfstudio])
def test_views_without_an_image_are_left_out(tmp_path, write):
    scene = write(tmp_path)
    lost = ("train/r_1.png", "train/r_4.png") if write is write_blender else images("01", "04")
    before = len(load_scene(scene).train)
    for name in lost:
        (tmp_path / name).unlink()
    scene = load_scene(tmp_path)
    assert len(scene.train) + len(scene.test) == (6 if write is write_blender else 7)
    assert "since their images are missing: 2 (" in scene.notes[0] and len(scene.train) < before
    for path in list(tmp_path.rglob("*.png"))[:5] if write is write_nerfstudio else tmp_path.glob("train/*.png"):
        path.unlink()
    with pytest.raises(SceneError, match=r"required an image, got nothing there, as for .* views of transforms"):
        load_scene(tmp_path)


def test_names_as_windows_writes_them(tmp_path):
    for write, name in ((write_blender, "transforms_train.json"), (write_nerfstudio, "transforms.json")):

        def change(content):
            for frame in content["frames"]:
                frame["file_path"] = ".\\" + frame["file_path"].removeprefix("./").replace("/", "\\")

        folder = write(tmp_path / name[:-5])
        before = len(load_scene(folder).train)
        assert len(load_scene(edit(folder, change, name)).train) == before


def test_reduced_images_with_another_extension_or_gaps(tmp_path):
    folder = write_colmap(tmp_path / "scene")
    with Image.open(folder / "images_2" / "1.png") as image:
        image.save(folder / "images_2" / "1.jpg", quality=100)
    for index in range(2):
        (folder / "images_2" / f"{index}.png").unlink()
    scene = load_scene(folder, factor=2)
    assert [view.name for view in scene.train + scene.test] == ["1.png", "0.png"]
    # The first from the full size, the second as JPEG.
    assert [view.image.shape for view in scene.train + scene.test] == [(24, 32, 3)] * 2
    assert [int(view.image[0, 0, 0]) for view in scene.train + scene.test] == [120, 60]


@pytest.mark.parametrize("suffix", [".Png", ".PNG", ".WEBP", ".avif", ".Jpg", ".bmp"])
def test_images_of_names_without_an_extension(tmp_path, suffix):
    folder = write_blender(tmp_path)
    for path in (folder / "train").iterdir():
        with Image.open(path) as file:
            file.convert("RGB").save(path.with_suffix(suffix))
        path.unlink()
    assert len(load_scene(folder).train) == 6


def test_a_number_behind_a_point_is_no_extension(tmp_path):
    folder = write_blender(tmp_path, train=5)
    edit(folder, lambda content: content["frames"][2].update(file_path="./train/r_1.5"), "transforms_train.json")
    scene = load_scene(folder)
    assert len(scene.train) == 4
    assert scene.notes == ["left out of transforms_train.json, since their images are missing: 1 (r_1.5) of 5"]
    (folder / "train" / "r_2.png").rename(folder / "train" / "r_1.5.png")
    assert len(load_scene(folder).train) == 5


def test_a_name_that_colmap_cut_at_a_blank(tmp_path):
    folder = write_colmap(tmp_path / "scene")
    path = folder / "sparse" / "0" / "images.txt"
    path.write_text(path.read_text().replace("1.png", "my image 1.png"))
    (folder / "images" / "1.png").rename(folder / "images" / "my image 1.png")
    with pytest.raises(
        SceneError, match=r"images/my: required an image.*\(COLMAP cuts names in images\.txt at a blank"
    ):
        load_scene(folder)


# --- F7, F8, F15, W6: scenes of any place and size


def transformed(folder, name, *, scale=1.0, shift=(0.0, 0.0, 0.0)):
    """A transforms file with all camera positions scaled, then moved."""

    def change(content):
        for frame in content["frames"]:
            matrix = np.array(frame["transform_matrix"])
            matrix[:3, 3] = matrix[:3, 3] * scale + shift
            frame["transform_matrix"] = matrix.tolist()

    return edit(folder, change, name)


def ball(folder, **change):
    """A ball of radius 0.72 seen from all around, moved and scaled."""
    angles = [(index * 2.4, elevation) for index, elevation in enumerate((0.0, 0.5, -0.5, 1.0, -1.0, 1.4, 0.2, -0.2))]
    poses = [camera_to_world(angle, elevation) for angle, elevation in angles]
    for name in ("transforms_train.json", "transforms_test.json"):
        if name == "transforms_train.json":
            write_blender(folder, train=8)
            edit(
                folder,
                lambda content: [
                    f.update(transform_matrix=p.tolist()) for f, p in zip(content["frames"], poses, strict=True)
                ],
                name,
            )
        transformed(folder, name, **change)
    return load_scene(folder)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return random_points(ball(tmp_path_factory.mktemp("here")), 4000, np.random.default_rng(0))


@pytest.mark.parametrize(
    "change",
    [
        {"shift": (5.0, 0.0, 0.0)},
        {"scale": 10.0},
        {"scale": 0.1},
        {"scale": 0.002},
        {"scale": 50.0, "shift": (300.0, 0.0, 0.0)},
    ],
)
def test_a_blender_scene_starts_where_it_is(tmp_path, change, expected):
    """The starting points are those of the scene at the origin, moved and scaled."""
    points = random_points(ball(tmp_path / "there", **change), 4000, np.random.default_rng(0))
    points = (points - change.get("shift", (0, 0, 0))) / change.get("scale", 1.0)
    for function in (np.mean, np.std):
        np.testing.assert_allclose(function(points, 0), function(expected, 0), atol=0.12)


def test_a_wrong_box_is_said(tmp_path):
    scene = ball(tmp_path, shift=(5.0, 0.0, 0.0))
    random_points(scene, 10, np.random.default_rng(0))
    assert "Gaussians start in a cube of half edge 1.437 about (5, " in scene.notes[-1]
    points = random_points(scene, 2000, np.random.default_rng(0), half_edge=0.2)
    assert np.abs(points - (5, 0, 0)).max() == pytest.approx(0.2, abs=0.01)


def test_opaque_blender_scenes_have_the_box_of_their_cameras(tmp_path):
    ball(tmp_path, shift=(5.0, 0.0, 0.0))
    for path in tmp_path.rglob("*.png"):
        with Image.open(path) as image:
            image.convert("RGB").save(path)
    points = random_points(load_scene(tmp_path), 2000, np.random.default_rng(0))
    assert np.abs(points.mean(0) - (5, 0, 0)).max() < 0.2


FAR = (500000.0, 4600000.0, 100.0)


@pytest.mark.parametrize(
    ("write", "name"), [(write_blender, "transforms_train.json"), (write_nerfstudio, "transforms.json")]
)
def test_far_coordinates_are_centred(tmp_path, write, name):
    here = load_scene(write(tmp_path / "here"), test_every=0)
    folder = transformed(write(tmp_path / "there"), name, shift=FAR)
    if write is write_blender:
        transformed(folder, "transforms_test.json", shift=FAR)
    there = load_scene(folder, test_every=0)
    assert here.offset == (0, 0, 0) and not here.notes
    assert np.abs(np.subtract(there.offset, FAR)).max() < 4
    assert there.notes == [
        f"coordinates are large: ({', '.join(f'{v:.10g}' for v in there.offset)}) is subtracted, also in scene.ply"
    ]
    for a, b in zip(here.train, there.train, strict=True):
        # In float64, the camera's position is exact to a billionth of its distance.
        center = b.center.numpy() + np.subtract(there.offset, FAR)
        np.testing.assert_allclose(center, a.center.numpy(), atol=2e-6)
    if here.box is not None:
        np.testing.assert_allclose(np.add(there.box, there.offset), here.box, atol=1e-6)


def far_colmap(folder, shift):
    """The COLMAP scene with cameras and points moved. Its rotations are the identity."""
    write_colmap(folder)
    model = folder / "sparse" / "0"
    rows = []
    for index, t in enumerate(((0.1, 0.2, 0.3), (1, 0, 0))):
        moved_t = " ".join(f"{a - b:.10f}" for a, b in zip(t, shift, strict=True))
        rows.append(f"{index + 1} 1 0 0 0 {moved_t} 1 {index}.png\n\n")
    (model / "images.txt").write_text("".join(rows))
    points = [[index + shift[0], index + shift[1], 5 + shift[2]] for index in range(3)]
    text = "".join(f"{i + 1} {x:.10f} {y:.10f} {z:.10f} 255 128 0 0.5\n" for i, (x, y, z) in enumerate(points))
    (model / "points3D.txt").write_text(text)
    return folder


def test_far_points_move_with_the_cameras(tmp_path):
    here, there = load_scene(far_colmap(tmp_path / "a", (0, 0, 0))), load_scene(far_colmap(tmp_path / "b", FAR))
    shift = there.train[0].center.numpy() - here.train[0].center.numpy()
    np.testing.assert_allclose(there.points - here.points, np.tile(shift, (3, 1)), atol=1e-5)
    assert there.points.dtype == np.float32 and np.abs(there.points).max() < 10
    # Read again with the coordinates of an earlier reading.
    again = load_scene(tmp_path / "b", origin={"offset": [0.0, 0.0, 0.0], "model": ""})
    assert again.points[0, 1] == FAR[1] and not again.notes


def test_a_run_keeps_its_offset(tmp_path):
    folder = far_colmap(tmp_path / "scene", FAR)
    line = ["--data-dir", str(folder), "--result-dir", str(tmp_path / "run"), "--steps", "4", "--output.no-progress"]
    metrics = main(line)
    offset = load_scene(folder).offset
    assert metrics["offset"] == list(offset)
    header = (tmp_path / "run" / "scene.ply").read_bytes().split(b"end_header")[0].decode()
    assert f"comment offset {' '.join(map(repr, offset))}" in header
    assert load_ply(tmp_path / "run" / "scene.ply")["means"].abs().max() < 100
    task = load(tmp_path / "run")
    assert task.scene.offset == offset
    assert task.evaluate(None)["psnr"] == pytest.approx(metrics["psnr"], abs=1e-4)
    # A checkpoint from before the introduction of offsets has the coordinates of the files.
    path = tmp_path / "run" / "checkpoint.pt"
    state = torch.load(path, weights_only=True)
    del state["origin"]
    state["splats"]["means"] += torch.tensor(offset)
    torch.save(state, path)
    task = load(tmp_path / "run")
    assert task.scene.offset == (0, 0, 0) and task.scene.points[0, 1] == FAR[1]
    assert task.fingerprint == state["data"]
    assert main([*line[:2], "--resume", str(tmp_path / "run"), "--steps", "5", "--output.no-progress"])["step"] == 5


@pytest.mark.parametrize("distance", [1e3, 2e4, 1e5])
def test_one_displaced_camera_does_not_set_the_extent(tmp_path, distance):
    extent = load_scene(write_nerfstudio(tmp_path, count=27)).extent
    edit(tmp_path, lambda content: content["frames"][4]["transform_matrix"][0].__setitem__(3, distance))
    scene = load_scene(tmp_path)
    assert scene.extent == pytest.approx(extent, rel=0.05)
    assert scene.notes == ["cameras far from all the others, which the scene's extent leaves out: 1 (images/04.png)"]
    assert scene.offset == (0, 0, 0)


@pytest.mark.parametrize(
    "centers",
    [
        np.linspace(0, 100, 30)[:, None] * [1, 0, 0],
        np.vstack([np.zeros((20, 3)), np.random.default_rng(0).normal(size=(10, 3)) * 5]),
        np.vstack(
            [np.random.default_rng(1).normal(size=(20, 3)) * 0.01, np.random.default_rng(0).normal(size=(10, 3))]
        ),
        np.array([[0, 0, 0], [0.001, 0, 0], [5, 0, 0.0]]),
        np.zeros((5, 3)),
    ],
)
def test_ordinary_captures_keep_all_their_cameras(centers):
    assert ordinary(torch.tensor(centers)).all()


def quality(folder, scale):
    """PSNR after a short training on the ball, with all lengths scaled."""
    transformed(write_nerfstudio(folder / "scene", count=5), "transforms.json", scale=scale)
    options = [
        "--steps",
        "30",
        "--model.init-count",
        "200",
        "--output.no-progress",
        "--output.images",
        "0",
        "--seed",
        "3",
    ]
    return main(["--data-dir", str(folder / "scene"), "--result-dir", str(folder / "run"), *options])["psnr"]


def test_training_does_not_depend_on_the_unit(tmp_path):
    expected = quality(tmp_path / "1", 1.0)
    for scale in (1e-6, 1e-4, 1e4):
        assert quality(tmp_path / str(scale), scale) == pytest.approx(expected, abs=0.5)


def test_points_that_no_view_shows_are_refused(tmp_path):
    folder = write_colmap(tmp_path / "scene")
    path = folder / "sparse" / "0" / "points3D.txt"
    path.write_text("1 0 0 -5 255 128 0 0.5\n2 0 900 5 255 128 0 0.5\n")
    with pytest.raises(SystemExit, match=r"^error: scene: required points in the view of a training camera.*among 2"):
        main(["--data-dir", str(folder), "--result-dir", str(tmp_path / "run"), "--steps", "1"])


# --- W5, W23: what was read is said


def test_the_largest_model_is_read(tmp_path):
    folder = write_colmap(tmp_path / "scene")
    small, large = folder / "sparse" / "0", folder / "sparse" / "1"
    shutil.copytree(small, large)
    (small / "images.txt").write_text("# a comment\n1 1 0 0 0 0.1 0.2 0.3 1 0.png\n1 2 -1 3 4 -1 5 6 -1 7 8 -1\n")
    scene = load_scene(folder)
    assert len(scene.train) + len(scene.test) == 2
    assert scene.notes == ["of the COLMAP models sparse/0 of 1, sparse/1 of 2 images sparse/1 is read"]
    assert scene.origin == {"offset": [0.0, 0.0, 0.0], "model": "sparse/1"}
    # A run from before this rule keeps using the first model.
    assert len(load_scene(folder, origin={"offset": [0.0] * 3, "model": ""}).train) == 1
    shutil.rmtree(small)
    assert len(load_scene(folder).train) == 1
    pycolmap.Reconstruction(str(large)).write_binary(str(large))
    shutil.copytree(large, folder / "sparse" / "2")
    (large / "images.bin").write_bytes(b"\0" * 8)
    assert load_scene(folder).model == "sparse/2"


def test_an_old_run_keeps_its_model_when_it_is_resumed(tmp_path):
    folder = write_colmap(tmp_path / "scene")
    model = folder / "sparse" / "0"
    (model / "images.txt").write_text("1 1 0 0 0 0.1 0.2 0.3 1 0.png\n\n")
    line = ["--data-dir", str(folder), "--output.no-progress", "--steps"]
    main([*line, "2", "--result-dir", str(tmp_path / "run")])
    path = tmp_path / "run" / "checkpoint.pt"
    state = torch.load(path, weights_only=True)
    del state["origin"]
    torch.save(state, path)
    shutil.copytree(write_colmap(tmp_path / "other") / "sparse" / "0", folder / "sparse" / "1")
    assert len(load_scene(folder).train) + len(load_scene(folder).test) == 2
    assert main([*line, "3", "--resume", str(tmp_path / "run")])["step"] == 3
    assert len(load(tmp_path / "run").scene.train) == 1


def lines_of(capsys, tmp_path, folder, *more):
    capsys.readouterr()
    line = ["--data-dir", str(folder), "--result-dir", str(tmp_path / "run"), "--steps", "1", "--output.no-progress"]
    main([*line, "--preset", "none", *more])
    return capsys.readouterr().out.splitlines()


def test_three_lines_say_what_was_read(tmp_path, capsys):
    lines = lines_of(capsys, tmp_path / "a", write_blender(tmp_path / "ball"), "--model.init-count", "50")
    assert lines[:3] == [
        "ball (blender): 6 training and 2 test views of 32x32 pixels, split by transforms_test.json",
        "masks: none; transparent images: 8 of 8, over white; start: 50 random points",
        "memory of the images: 0.0 MB, without 2 that every evaluation decodes anew; extent: 4.053; near plane: 0.0081",
    ]
    folder = masked(tmp_path / "masked", {1: ("1.png", MASKS["1.png"]), 2: ("2.png", np.zeros((32, 32), np.uint8))})
    lines = lines_of(capsys, tmp_path / "b", folder, "--data.test-every", "0", "--model.init-count", "50")
    assert lines[0] == "masked (nerfstudio): 4 training and 0 test views of 32x32 pixels, all to train on"
    assert lines[1] == "masks: 1 of 4; transparent images: none; start: 50 random points"
    assert lines[3] == "left out, since their masks keep no pixel: 1 (images/02.png)"
    lines = lines_of(capsys, tmp_path / "c", write_colmap(tmp_path / "colmap"))
    assert lines[0] == "colmap (colmap): 1 training and 1 test views of 64x48 pixels, split by test_every 8"
    assert lines[1] == "masks: none; transparent images: none; start: 3 points of the scene"


# --- W12, W14: paths and values of another kind than asked for


@pytest.mark.parametrize("write", [write_blender, write_nerfstudio])
def test_the_transforms_file_stands_for_its_folder(tmp_path, write):
    folder = write(tmp_path / "scene")
    file = next(folder.glob("transforms*.json"))
    assert load_scene(file).name == "scene" and len(load_scene(file).train) == len(load_scene(folder).train)
    other = tmp_path / "x.txt"
    other.write_text("")
    with pytest.raises(SceneError, match=r"x\.txt: required a scene folder, got a file"):
        load_scene(other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content["frames"][1].update(mask_path=3), "frame 1: required a path 'mask_path', got 3"),
        (lambda content: content.update(ply_file_path=["a"]), "required a path 'ply_file_path', got .'a'."),
        (lambda content: content["frames"][1].update(file_path=3), "frame 1: required 'file_path'"),
        (lambda content: content["frames"].append(7), "frame 9: required 'file_path', got 7"),
        (lambda content: content.update(frames={}), "required a non-empty list 'frames', got dict"),
        (lambda content: content.update(camera_model=5), "required a camera_model among"),
        (lambda content: content.update(w=[1]), "required a number 'w'"),
        (lambda content: content["frames"][1].update(transform_matrix={"a": 1}), "frame 1: required a 4x4"),
    ],
)
def test_values_of_another_kind_are_refused(tmp_path, change, message):
    with pytest.raises(SceneError, match=message):
        load_scene(edit(write_nerfstudio(tmp_path), change))


def test_files_of_another_encoding_are_refused(tmp_path):
    write_nerfstudio(tmp_path / "scene")
    (tmp_path / "scene" / "transforms.json").write_bytes('{"a": "é"}'.encode("latin-1"))
    with pytest.raises(SceneError, match=r"transforms\.json: required JSON in UTF-8"):
        load_scene(tmp_path / "scene")
    (tmp_path / "run.yaml").write_bytes("data_dir: é".encode("latin-1"))
    with pytest.raises(SystemExit, match=r"^error: .*run\.yaml: required YAML in UTF-8"):
        main(["--config", str(tmp_path / "run.yaml")])


@pytest.mark.parametrize("bad", ["nan", "inf", "1e39"])
def test_points_of_colmap_are_finite(tmp_path, bad):
    folder = write_colmap(tmp_path / "scene")
    path = folder / "sparse" / "0" / "points3D.txt"
    path.write_text(path.read_text() + f"9 {bad} 0 5 255 128 0 0.5\n")
    with pytest.raises(SceneError, match=r"scene.*: required (points|a COLMAP)"):
        load_scene(folder)


# --- W25, W26: point clouds


def cloud(tmp_path, header, body, name="points.ply"):
    """A nerfstudio scene with a PLY point cloud, whose lines after `format` are given."""
    write_nerfstudio(tmp_path, ply_file_path=name)
    lines = ["ply", *header, "end_header", ""]
    (tmp_path / name).write_bytes("\n".join(lines).encode() + body)
    return load_scene(tmp_path)


XYZ = [f"property float {name}" for name in "xyz"]


def colored(kind, prefix=""):
    names = [f"property {kind} {prefix}{name}" for name in ("red", "green", "blue")]
    return ["format ascii 1.0", "element vertex 2", *XYZ, *names]


@pytest.mark.parametrize(
    ("header", "rows"),
    [
        (colored("uchar"), b"0 1 2 255 51 0\n3 4 5 0 51 0\n"),
        (colored("float"), b"0 1 2 1.0 0.2 0\n3 4 5 0 0.2 0\n"),
        (colored("float"), b"0 1 2 255 51 0\n3 4 5 0 51 0\n"),
        (colored("ushort"), b"0 1 2 65535 13107 0\n3 4 5 0 13107 0\n"),
        (colored("uchar", "diffuse_"), b"0 1 2 255 51 0\n3 4 5 0 51 0\n"),
        (
            ["format ascii 1.0", "element camera 1", "property float a", *colored("uchar")[1:]],
            b"7\n0 1 2 255 51 0\n3 4 5 0 51 0\n",
        ),
        (
            ["format ascii 1.0", "element face 1", "property list uchar int v", *colored("uchar")[1:]],
            b"3 0 1 2\n0 1 2 255 51 0\n3 4 5 0 51 0\n",
        ),
    ],
)
def test_point_clouds_of_every_kind(tmp_path, header, rows):
    scene = cloud(tmp_path, header, rows)
    assert scene.points.tolist() == [[0, 1, 2], [3, 4, 5]]
    np.testing.assert_allclose(scene.colors, [[1, 0.2, 0], [0, 0.2, 0]], atol=1e-6)


def test_binary_point_clouds_with_an_element_before_the_vertices(tmp_path):
    body = np.array([9.5, 8.5], "<f8").tobytes() + np.arange(6, dtype="<f4").tobytes()
    header = ["format binary_little_endian 1.0", "element camera 2", "property double a", "element vertex 2", *XYZ]
    scene = cloud(tmp_path, header, body)
    assert scene.points.tolist() == [[0, 1, 2], [3, 4, 5]] and scene.colors is None
    with pytest.raises(SceneError, match=r"points\.ply: required 24 bytes of vertices, got 12: the file is cut off"):
        cloud(tmp_path, header, body[:-12])
    header[2] = "property list uchar int v"
    with pytest.raises(SceneError, match="required the vertices before elements with lists, got camera first"):
        cloud(tmp_path, header, body)


def test_windows_line_ends_of_a_point_cloud(tmp_path):
    write_nerfstudio(tmp_path, ply_file_path="points.ply")
    text = "\n".join(["ply", *colored("uchar"), "end_header", "0 1 2 255 51 0", "3 4 5 0 51 0", ""])
    (tmp_path / "points.ply").write_bytes(text.replace("\n", "\r\n").encode())
    assert load_scene(tmp_path).points.tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("name", "header", "body", "message"),
    [
        (
            "a.ply",
            ["format ascii 1.0", "element vertex 1", *XYZ],
            b"nan 0 0\n",
            r"a\.ply: required finite positions, got 1 of 1",
        ),
        ("a.ply", ["format ascii 1.0", "element vertex 1", *XYZ], b"inf 0 0\n", r"a\.ply: required finite positions"),
        (
            "a.ply",
            ["format ascii 1.0", "element vertex 0", *XYZ],
            b"",
            r"a\.ply: required at least one point, got none",
        ),
        (
            "a.ply",
            [
                "format binary_little_endian 1.0",
                "element chunk 1",
                "property float min_x",
                "element vertex 1",
                "property uint packed_position",
            ],
            b"",
            r"a\.ply: required an uncompressed PLY, got SuperSplat's compressed PLY",
        ),
    ],
)
def test_point_clouds_that_are_refused(tmp_path, name, header, body, message):
    with pytest.raises(SceneError, match=message):
        cloud(tmp_path, header, body, name)


@pytest.mark.parametrize(
    ("name", "kind"), [("a.spz", "SPZ"), ("a.splat", r"a \.splat file"), ("a.ply", "SPZ or another")]
)
def test_other_formats_of_gaussians_are_named(tmp_path, name, kind):
    write_nerfstudio(tmp_path, ply_file_path=name)
    (tmp_path / name).write_bytes(b"\x1f\x8b\x08\x00 and so on")
    with pytest.raises(SceneError, match=rf"{name}: required a PLY file, got {kind}.*: convert it"):
        load_scene(tmp_path)


# --- W20, W28


@pytest.mark.parametrize("name", ["capped", "mcmc"])
@pytest.mark.parametrize("count", [1, 3, 12])
def test_few_gaussians_grow(tmp_path, capsys, name, count):
    folder = write_colmap(tmp_path / "scene", points=count)
    options = ["--strategy.name", name, "--strategy.refine-start", "1", "--strategy.refine-every", "2"]
    options += ["--preset", "none", *(["--strategy.growth", "0.05"] if name == "capped" else [])]
    line = ["--data-dir", str(folder), "--result-dir", str(tmp_path / "run"), "--steps", "20", "--output.no-progress"]
    metrics = main([*line, *options, "--strategy.refine-stop", "12"])
    # Events at steps 2, 4, 6, 8 and 10.
    expected = count + 5
    assert (
        f"{count} Gaussians at the start become at most about {expected}, less than the budget"
        in capsys.readouterr().out
    )
    assert count < metrics["num_gaussians"] <= expected


def test_a_run_is_found_from_elsewhere(tmp_path, monkeypatch):
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    write_blender(home / "scenes" / "ball")
    elsewhere.mkdir()
    (home / "configs").mkdir()
    (home / "configs" / "ball.yaml").write_text("data_dir: scenes/ball\nsteps: 2\nmodel: {init_count: 50}\n")
    monkeypatch.chdir(home)
    main(["--config", "configs/ball.yaml", "--result-dir", "run", "--output.no-progress"])
    monkeypatch.chdir(elsewhere)
    # The data are found for a run, and for a config whose data_dir is relative to the folder above it.
    assert evaluate_run(home / "run")["psnr"] > 0
    assert main(["--resume", str(home / "run"), "--steps", "3", "--output.no-progress"])["step"] == 3
    line = ["--config", str(home / "configs" / "ball.yaml"), "--result-dir", "run", "--output.no-progress"]
    assert main(line)["step"] == 2
    # An older run folder has a relative path.
    path = home / "run" / "config.yaml"
    path.write_text(path.read_text().replace(str(home / "scenes" / "ball"), "scenes/ball"))
    assert "data_dir: scenes/ball" in path.read_text()
    assert evaluate_run(home / "run")["psnr"] > 0


def test_a_key_of_a_transforms_file_is_there_once(tmp_path):
    (tmp_path / "a.json").write_text('{"fl_x": 20, "fl_x": 30, "frames": []}')
    with pytest.raises(SceneError, match=r"a\.json: required JSON, .*the key 'fl_x' must be there once, got it twice"):
        read_json(tmp_path / "a.json")
