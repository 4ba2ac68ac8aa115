"""The faults of shared/cases/trainer.md that readers of scenes had: each right value, by the fault's number."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from splat_ssim.scene.data import SceneError, load_scene
from tests.scenes import write_blender, write_colmap, write_nerfstudio

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


@pytest.mark.parametrize(("dtype", "kind"), [(np.float32, "floating-point"), (np.int32, "integer")])
def test_samples_of_unknown_range_are_refused(tmp_path, dtype, kind):
    Image.fromarray(grey().astype(dtype)).save(tmp_path / "x.tif")
    write_nerfstudio(tmp_path)
    edit(tmp_path, lambda content: content["frames"][1].update(file_path="x.tif"))
    with pytest.raises(SceneError, match=rf"x\.tif: required samples of 8 or 16 bits.*got 32-bit {kind}"):
        load_scene(tmp_path)


# --- F6: every convention of masks


def half_kept(dtype, value):
    """(32, 32), `value` in the right half."""
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
}


def masked(folder, masks):
    """A nerfstudio scene of five views with these masks, by the view's index."""
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


def test_views_of_which_nothing_counts_are_left_out(tmp_path):
    nothing = np.zeros((32, 32), np.uint8)
    scene = load_scene(masked(tmp_path / "some", {0: ("0.png", nothing), 2: ("2.png", nothing)}), test_every=2)
    assert [view.name for view in scene.train] == ["images/01.png", "images/03.png"]
    assert [view.name for view in scene.test] == ["images/04.png"]
    assert scene.notes == ["left out, since their masks keep no pixel: 2 (images/00.png, images/02.png)"]
    with pytest.raises(SceneError, match="required masks that keep a pixel of a training view, got none of 4"):
        load_scene(masked(tmp_path / "all", {index: (f"{index}.png", nothing) for index in range(5)}))
