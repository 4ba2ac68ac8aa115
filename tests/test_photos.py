"""Images that do not fit in memory are kept decoded on disk, and give the same views as in memory."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from splat_ssim.scene.data import load_scene, photos
from splat_ssim.scene.training import SceneTask
from splat_ssim.trainer.cli import parse
from tests.scenes import write_blender, write_colmap, write_nerfstudio


def write_distorted(folder):
    return write_colmap(folder, camera="OPENCV 64 48 40 41 32 24 0.1 0.01 0 0")


def write_masked(folder):
    write_colmap(folder)
    (folder / "masks").mkdir()
    for index in range(2):
        mask = np.full((48, 64), 255, np.uint8)
        mask[:, : 8 * (index + 1)] = 0
        Image.fromarray(mask).save(folder / "masks" / f"{index}.png.png")
    return folder


SCENES = {
    "blender": write_blender,
    "nerfstudio": write_nerfstudio,
    "colmap": write_colmap,
    "distorted": write_distorted,
    "masked": write_masked,
}


@pytest.fixture
def no_memory(monkeypatch):
    monkeypatch.setattr(photos, "available_memory", lambda: 1000)


def assert_same_views(found, wanted):
    for a, b in zip([*found.train, *found.test], [*wanted.train, *wanted.test], strict=True):
        assert (a.name, a.background) == (b.name, b.background)
        for name in ("image", "K", "viewmat"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name
            assert getattr(a, name).dtype == getattr(b, name).dtype
        assert (a.mask is None) == (b.mask is None)
        assert a.mask is None or torch.equal(a.mask, b.mask)


@pytest.mark.parametrize("kind", SCENES)
def test_views_on_disk_are_those_in_memory(tmp_path, monkeypatch, kind):
    folder = SCENES[kind](tmp_path / kind)
    wanted = load_scene(folder)
    wanted.test = [view.to(torch.device("cpu")) for view in wanted.test]  # with their images
    assert not (folder / ".cache").exists()
    monkeypatch.setattr(photos, "available_memory", lambda: 1000)
    found = load_scene(folder)
    assert_same_views(found, wanted)
    assert any("more than 50% of the free memory" in note and ".cache" in note for note in found.notes)
    # When the scene is read again, nothing is decoded.
    monkeypatch.setattr(photos.Photo, "view", lambda *_: pytest.fail("decoded twice"))
    assert_same_views(load_scene(folder), wanted)


def test_the_cache_follows_its_files(tmp_path, no_memory):
    folder = write_blender(tmp_path / "ball")
    load_scene(folder)
    Image.fromarray(np.full((32, 32, 4), 77, np.uint8)).save(folder / "train" / "r_2.png")
    view = next(view for view in load_scene(folder).train if view.name.endswith("r_2.png"))
    assert (view.image == 77).all()
    half = load_scene(folder, factor=2)
    assert half.train[0].image.shape == (16, 16, 4)


def test_an_unfinished_cache_is_done_again(tmp_path, no_memory):
    folder = write_blender(tmp_path / "ball")
    wanted = load_scene(folder).train[0].image.clone()
    one = next((folder / ".cache").iterdir())
    (one / "K.npy").unlink()
    (one / "image.npy").write_bytes(b"half")
    assert any(torch.equal(view.image, wanted) for view in load_scene(folder).train)


def test_the_cache_goes_where_it_is_told(tmp_path, no_memory):
    folder = write_blender(tmp_path / "ball")
    load_scene(folder, cache=tmp_path / "elsewhere")
    assert len(list((tmp_path / "elsewhere").iterdir())) == 8 and not (folder / ".cache").exists()


def test_a_training_on_disk_is_that_in_memory(tmp_path, monkeypatch):
    folder = write_blender(tmp_path / "ball")
    results = []
    for name, free in (("memory", 1 << 40), ("disk", 1000)):
        monkeypatch.setattr(photos, "available_memory", lambda free=free: free)
        options = ["--data-dir", str(folder), "--steps", "12", "--result-dir", str(tmp_path / name)]
        task = SceneTask(parse([*options, "--model.init-count", "60", "--strategy.budget", "70"])[1])
        for step in range(12):
            task.step(step)
        results.append(task.splats["means"].detach().clone())
    assert torch.equal(*results)


def test_what_memory_there_is():
    from splat_ssim.trainer.device import available_memory

    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = available_memory()
    assert free is not None and 0 < free <= installed
