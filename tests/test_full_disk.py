"""On a full disk, the old file stays intact, and one sentence says which file could not be written."""

import resource
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from splat_ssim._files import replacing, replacing_path, write_json
from splat_ssim.errors import UserError, WriteError
from splat_ssim.ply import save_ply
from splat_ssim.trainer.checkpoint import load_checkpoint, save_checkpoint
from splat_ssim.trainer.cli import main
from splat_ssim.trainer.pictures import save_bytes, write_video
from splat_ssim.volume import Volume, VoxelGrid, load_volume, save_volume

SIDE = 40


@contextmanager
def full(size=50_000):
    """Limits the length of files. The system answers as on a full disk, with another error number."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def noise(side=SIDE):
    return Volume(
        np.random.default_rng(0).random((1, side, side, side)).astype(np.float32), VoxelGrid.regular((side,) * 3)
    )


def refused(path):
    return pytest.raises(WriteError, match=f"^{path}: required room and permission to write it, got File too large$")


@pytest.mark.parametrize("suffix", ["npy", "npz", "raw", "nii.gz", "nii", "tif", "nrrd", "mha", "h5", "mrc"])
def test_a_volume_is_the_old_one_or_the_new(tmp_path, suffix):
    path = save_volume(tmp_path / f"volume.{suffix}", noise(8))
    before = path.read_bytes()
    with full(), refused(path):
        save_volume(path, noise())
    assert path.read_bytes() == before
    assert not [left.name for left in tmp_path.iterdir() if "tmp" in left.name]
    save_volume(path, noise())
    assert load_volume(path).data.shape == (1, SIDE, SIDE, SIDE)


def test_a_zarr_folder_is_the_old_one_or_the_new(tmp_path):
    path = save_volume(tmp_path / "volume.zarr", noise(8))
    with full(), refused(path):
        save_volume(path, noise())
    np.testing.assert_array_equal(load_volume(path).data, noise(8).data)
    save_volume(path, noise())
    np.testing.assert_array_equal(load_volume(path).data, noise().data)
    assert [left.name for left in tmp_path.iterdir()] == ["volume.zarr"]


def test_a_checkpoint_is_the_old_one(tmp_path):
    save_checkpoint(tmp_path, {"step": 100})
    with full(), refused(tmp_path / "checkpoint.pt"):
        save_checkpoint(tmp_path, {"step": 200, "means": torch.rand(100_000)})
    assert load_checkpoint(tmp_path, torch.device("cpu"))["step"] == 100
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_pictures_scenes_and_numbers(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)
    splats = {"means": torch.rand(3000, 3), "scales": torch.rand(3000, 3), "quats": torch.rand(3000, 4)}
    splats |= {"opacities": torch.rand(3000), "sh0": torch.rand(3000, 1, 3), "shN": torch.rand(3000, 0, 3)}
    with full():
        for name, act in {
            "a.png": lambda path: save_bytes(path, pixels),
            "a.ply": lambda path: save_ply(path, splats),
            "a.json": lambda path: write_json(path, list(range(50_000))),
        }.items():
            with refused(tmp_path / name):
                act(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_video_appears_when_it_is_whole(tmp_path, capfd):
    def frames():
        yield np.zeros((16, 16, 3), np.uint8)
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        write_video(tmp_path / "a.mp4", frames())
    assert not list(tmp_path.iterdir())
    write_video(tmp_path / "a.mp4", [np.zeros((16, 16, 3), np.uint8)] * 3)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    before = (tmp_path / "a.mp4").read_bytes()
    rng = np.random.default_rng(0)
    capfd.readouterr()
    with full(5_000), refused(tmp_path / "a.mp4"):
        write_video(tmp_path / "a.mp4", (rng.integers(0, 255, (64, 64, 3), np.uint8) for _ in range(4)))
    assert (tmp_path / "a.mp4").read_bytes() == before and "Error" not in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("name", ["a.webm", "a.gif", "a.png", "frames.v1", "frames"])
def test_a_video_is_an_mp4(tmp_path, name):
    with pytest.raises(UserError, match=rf"{name}: required a name with \.mp4 for a video, got"):
        write_video(tmp_path / name, [np.zeros((16, 16, 3), np.uint8)] * 3)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("opened", [replacing, replacing_path])
def test_other_errors_keep_their_kind(tmp_path, opened):
    """A defect keeps its traceback, and a UserError, which is more specific already, is not replaced."""
    for error in (ZeroDivisionError("a bug"), UserError("a sentence"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as raised, opened(tmp_path / "a"):
            raise error
        assert raised.value is error
    assert not list(tmp_path.iterdir())


def test_a_fit_says_where_to_go_on_from(tmp_path):
    np.save(tmp_path / "scan.npy", noise().data[0])
    line = ["--config", "configs/voxel_mri.yaml", "--data-dir", str(tmp_path / "scan.npy"), "--steps", "4"]
    line += ["--result-dir", str(tmp_path / "run"), "--strategy.budget", "40", "--output.no-progress"]
    line += ["--output.no-video", "--output.no-slices", "--output.format", "npy"]
    with full(), pytest.raises(SystemExit) as ended:
        main(line)
    assert str(ended.value) == (
        f"error: {tmp_path}/run/volume.npy: required room and permission to write it, got {_reason(ended)}; its "
        f"checkpoint is that of step 4, which python scripts/train.py --resume {tmp_path}/run goes on from"
    )
    assert not (tmp_path / "run" / "volume.npy").exists() and not (tmp_path / "run" / "metrics.json").exists()
    assert main(["--resume", str(tmp_path / "run")])["step"] == 4
    assert load_volume(tmp_path / "run" / "volume.npy").data.shape == (1, SIDE, SIDE, SIDE)


def _reason(ended):
    return str(ended.value).partition("got ")[2].partition(";")[0]
