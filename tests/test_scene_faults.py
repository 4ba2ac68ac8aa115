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
