"""Volumes that once went wrong in silence: signed values, masks, world axes, slices, microscopes' files."""

import json
import math

import numpy as np
import pytest
import torch

from splat_ssim.trainer.cli import main
from splat_ssim.volume import Volume, VoxelGrid, load_volume, save_volume
from splat_ssim.volume.evaluation import evaluate_volume
from splat_ssim.volume.export import load_gaussians_ply
from splat_ssim.volume.io import open_array, open_grid

SHAPE = (14, 12, 16)
GRID = VoxelGrid.regular(SHAPE, spacing=(0.5, 1.0, 2.0), origin=(-3, 4, 5), axes="xyz")


def ball(low, high, dtype):
    """A ball with texture, whose intensities span low to high exactly."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    values = (x**2 + y**2 + z**2 < 0.6) * (1 + 0.2 * np.sin(5 * x) * np.cos(4 * y))
    return (low + (high - low) * values / values.max()).astype(dtype)


def save(path, data, grid=GRID):
    return save_volume(path, Volume(data[None], grid))


def fit(folder, scan, *more, steps=12, budget=100):
    arguments = ["--data-dir", str(scan), "--result-dir", str(folder), "--steps", str(steps)]
    arguments += ["--strategy.budget", str(budget), "--output.no-progress", "--output.no-video", *more]
    return main(["--config", "configs/voxel_mri.yaml", *arguments])


def true_psnr(exported, source):
    """PSNR of a run's exported volume against the file's own intensities, over their span."""
    error = np.square(load_volume(exported).data[0].astype(np.float64) - source).mean()
    return 10 * np.log10(float(source.max() - source.min()) ** 2 / error)


# --- the source's values are what is measured


@pytest.mark.parametrize(
    ("low", "high", "dtype"), [(-1000, 1500, "int16"), (-0.6, 1.4, "float32"), (-9, -2, "float32")]
)
def test_signed_volumes_are_fitted_whole(tmp_path, capsys, low, high, dtype):
    source = ball(low, high, dtype)
    metrics = fit(tmp_path / "run", save(tmp_path / "ct.nii.gz", source))
    assert metrics["low"] == metrics["source_low"] == pytest.approx(low, rel=1e-6)
    assert metrics["high"] == metrics["source_high"] == pytest.approx(high, rel=1e-6)
    assert metrics["cut_below"] == metrics["cut_above"] == 0
    expected = true_psnr(tmp_path / "run" / "volume.nii.gz", source)
    assert metrics["psnr3d"] == pytest.approx(expected, abs=0.01)
    assert metrics["psnr3d_source"] == pytest.approx(expected, abs=0.01)
    assert f"values: {low:.6g} to {high:.6g} in the file" in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["low"] == metrics["low"]


@pytest.mark.parametrize("mode", [[], ["--data.normalize", "window"]])
def test_bounds_mean_a_window_and_what_they_cut_off_is_said(tmp_path, capsys, mode):
    source = ball(-1000, 1500, "int16")
    scan = save(tmp_path / "ct.nii.gz", source)
    metrics = fit(tmp_path / "run", scan, *mode, "--data.low", "-200", "--data.high", "1400")
    assert (metrics["low"], metrics["high"]) == (-200, 1400)
    assert metrics["cut_below"] == np.mean(source < -200) > 0
    assert metrics["cut_above"] == np.mean(source > 1400) > 0
    assert metrics["psnr3d_source"] == pytest.approx(true_psnr(tmp_path / "run" / "volume.nii.gz", source), abs=0.01)
    assert metrics["psnr3d_source"] < metrics["psnr3d"] - 3
    assert "cut off: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--data.low", "5"], "a window must be given by both data.low and data.high, got low=5.0, high=None"),
        (["--data.normalize", "max", "--data.low", "5"], "data.low: normalize max takes no bounds"),
        (["--data.normalize", "none", "--data.high", "5"], "data.high: normalize none takes no bounds"),
    ],
)
def test_bounds_that_mean_nothing_are_refused(tmp_path, options, text):
    with pytest.raises(SystemExit, match=text):
        fit(tmp_path / "run", save(tmp_path / "ct.nii.gz", ball(0, 100, "uint8")), *options)


def test_one_percentile_keeps_the_default_of_the_other(tmp_path):
    source = ball(-1000, 1500, "int16")
    scan = save(tmp_path / "ct.nii.gz", source)
    metrics = fit(tmp_path / "run", scan, "--data.normalize", "percentile", "--data.high", "90", steps=1)
    assert (metrics["low"], metrics["high"]) == tuple(np.percentile(source, [0.5, 90]))


def test_values_as_they_are_have_their_own_range(tmp_path):
    source = ball(-1000, 1500, "int16")
    scan = save(tmp_path / "ct.nii.gz", source)
    metrics = fit(tmp_path / "none", scan, "--data.normalize", "none", steps=30)
    expected = true_psnr(tmp_path / "none" / "volume.nii.gz", source)
    assert metrics["psnr3d"] == pytest.approx(expected, abs=0.01)
    assert metrics["psnr3d"] > 12 and 0 < metrics["ssim3d"] < 1


def test_outlying_voxels_are_said(tmp_path, capsys):
    source = ball(0, 1, "float32")
    source[3, 3, 3] = 1e6
    metrics = fit(tmp_path / "run", save(tmp_path / "hot.nii.gz", source), steps=1)
    assert "warning: 99.8% of the voxels lie between 0 and " in capsys.readouterr().err
    assert metrics["bulk_high"] <= 1 and metrics["source_high"] == 1e6
    fit(tmp_path / "fine", save(tmp_path / "fine.nii.gz", ball(0, 1, "float32")), steps=1)
    assert "warning" not in capsys.readouterr().err


# --- a mask steers the start, the growth and the metrics


def region(radius):
    """A small ball off the centre, whose surroundings are as busy as it is."""
    i, j, k = np.indices(SHAPE)
    return (((i - 5) ** 2 + (j - 6) ** 2 + (k - 6) ** 2) <= radius**2).astype(np.uint8)


@pytest.mark.parametrize("options", [[], ["--strategy.recycle", "0.3"], ["--crop", "6"], ["--strategy.name", "none"]])
def test_gaussians_go_where_the_mask_counts(tmp_path, options):
    noise = np.random.default_rng(0).random(SHAPE).astype(np.float32)
    scan, mask = save(tmp_path / "scan.nii.gz", noise), region(3)
    masked = ["--data.mask", str(save(tmp_path / "roi.nii.gz", mask))]
    metrics = fit(tmp_path / "masked", scan, *masked, *options, steps=20)
    means = load_gaussians_ply(tmp_path / "masked" / "gaussians.ply").tensors["means"].detach()
    at = GRID.to_index(means).round().long().numpy().clip(0, np.array(SHAPE) - 1)
    # Those at the rim move out by a voxel or two; a sixth of the volume is that near.
    assert region(5)[tuple(at.T)].mean() > 0.9
    fitted = load_volume(tmp_path / "masked" / "volume.nii.gz").data[0]
    inside = 10 * np.log10(noise.max() ** 2 / np.square(fitted - noise)[mask > 0].mean())
    assert metrics["psnr3d_masked"] == pytest.approx(inside, abs=0.01)
    assert metrics["psnr3d_masked"] > metrics["psnr3d"] + 3
    assert metrics["ssim3d_masked"] > metrics["ssim3d"] + 0.1


def test_weights_of_a_mask_weigh_its_metrics():
    pred, target = torch.rand(2, 2, 6, 7, 8, generator=torch.Generator().manual_seed(0))
    weights = torch.zeros(1, 1, 6, 7, 8)
    weights[..., :2], weights[..., 5] = 1.0, 3.0
    result = evaluate_volume(pred, target, data_range=2.0, mask=weights)
    squares = (pred - target).square()
    mse = (squares[..., :2].sum() + 3 * squares[..., 5].sum()) / (2 * 42 * 2 + 3 * 42 * 2)
    assert result["psnr3d_masked"] == pytest.approx(10 * math.log10(4 / float(mse)), abs=1e-4)


def test_a_mask_of_fewer_voxels_than_gaussians(tmp_path, capsys):
    scan = save(tmp_path / "scan.nii.gz", ball(0, 200, "uint8"))
    mask = save(tmp_path / "roi.nii.gz", region(1))
    metrics = fit(tmp_path / "run", scan, "--data.mask", str(mask), steps=8)
    assert "mask: 7 voxels count; the fit starts with as many Gaussians, not 50" in capsys.readouterr().err
    assert 7 <= metrics["num_gaussians"] <= 100


# --- one world, RAS, through every reader and writer

VOXELS = np.random.default_rng(1).integers(0, 200, SHAPE).astype(np.uint8)
#: Left-handed and turned, as scanners write: x to the left, z downwards along the first axis.
TURNED = np.array([[0, 0, -0.7, 120.5], [0, 0.8, 0, -90.25], [-2.5, 0, 0, 33], [0, 0, 0, 1]])
RAS_TO = {"right-anterior-superior": (1, 1, 1), "left-anterior-superior": (-1, 1, 1), "LPS": (-1, -1, 1)}


@pytest.mark.parametrize("space", RAS_TO)
def test_nrrd_spaces_are_read_as_ras(tmp_path, space):
    nrrd = pytest.importorskip("nrrd")
    theirs = np.diag([*RAS_TO[space], 1]) @ TURNED
    header = {"space": space, "space directions": theirs[:3, :3].T, "space origin": theirs[:3, 3]}
    nrrd.write(str(tmp_path / "itk.nrrd"), VOXELS, header, index_order="F")
    volume = load_volume(tmp_path / "itk.nrrd")
    np.testing.assert_allclose(volume.grid.matrix, TURNED, atol=1e-12)
    np.testing.assert_array_equal(volume.data[0], VOXELS)
    assert volume.notes == ()


def test_nrrd_is_written_as_lps(tmp_path):
    nrrd = pytest.importorskip("nrrd")
    path = save_volume(tmp_path / "out.nrrd", Volume(VOXELS[None], VoxelGrid(SHAPE, TURNED.tolist()), "mm"))
    header = nrrd.read_header(str(path))
    assert header["space"] == "left-posterior-superior" and header["space units"][0].strip('"') == "mm"
    np.testing.assert_allclose(header["space origin"], [-120.5, 90.25, 33])
    np.testing.assert_allclose(header["space directions"][2], [0.7, 0, 0], atol=1e-12)


def test_nrrd_without_a_space_says_what_is_assumed(tmp_path):
    nrrd = pytest.importorskip("nrrd")
    header = {"space dimension": 3, "space directions": TURNED[:3, :3].T, "space origin": TURNED[:3, 3]}
    nrrd.write(str(tmp_path / "plain.nrrd"), VOXELS, header, index_order="F")
    volume = load_volume(tmp_path / "plain.nrrd")
    np.testing.assert_allclose(volume.grid.matrix, TURNED)
    assert "says no space: its axes are taken for RAS" in volume.notes[0]


def test_itk_reads_the_same_place_from_both(tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    image = sitk.GetImageFromArray(VOXELS)
    image.SetSpacing((0.7, 0.8, 2.5)), image.SetOrigin((-120.5, -90.25, 33))
    for name in ("itk.nrrd", "itk.nii.gz"):
        sitk.WriteImage(image, str(tmp_path / name))
    one, other = (load_volume(tmp_path / name) for name in ("itk.nrrd", "itk.nii.gz"))
    np.testing.assert_allclose(one.grid.matrix, other.grid.matrix, atol=1e-5)
    for name in ("back.nrrd", "back.nii.gz"):
        back = sitk.ReadImage(str(save_volume(tmp_path / name, one)))
        np.testing.assert_allclose(back.GetOrigin(), image.GetOrigin(), atol=1e-4)
        np.testing.assert_allclose(back.GetDirection(), image.GetDirection(), atol=1e-6)


@pytest.mark.parametrize("suffix", [".nii", ".nrrd", ".npy", ".npz", ".raw", ".zarr", ".tif"])
@pytest.mark.parametrize("dtype", ["uint8", "float64", "int64"])
def test_place_unit_and_channels_survive_every_format(tmp_path, suffix, dtype):
    if (suffix, dtype) == (".nii", "int64"):
        pytest.skip("NIfTI's readers take int64 badly")
    grid = VoxelGrid(SHAPE, TURNED.tolist())
    for channels in (1, 3):
        data = np.stack([VOXELS] * channels).astype(dtype)
        data[-1] //= 2
        back = load_volume(save_volume(tmp_path / f"{channels}{suffix}", Volume(data, grid, "um")))
        np.testing.assert_array_equal(back.data, data)
        np.testing.assert_allclose(back.grid.matrix, TURNED, atol=1e-5)
        assert back.unit == "um"


# --- spacing, axes, channels and time have one meaning


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_spacing_keeps_the_directions_of_the_file(tmp_path, suffix):
    path = save_volume(tmp_path / f"scan{suffix}", Volume(VOXELS[None], VoxelGrid(SHAPE, TURNED.tolist())))
    expected = TURNED.copy()
    expected[:3, :3] = [[0, 0, -1], [0, 2, 0], [-3, 0, 0]]
    volume = load_volume(path, spacing=(1, 2, 3))
    np.testing.assert_allclose(volume.grid.matrix, expected, atol=1e-5)
    moved = load_volume(path, spacing=(1, 2, 3), origin=(7, 8, 9))
    np.testing.assert_allclose(moved.grid.matrix[:3], [*np.c_[expected[:3, :3], [7, 8, 9]]], atol=1e-5)


def test_spacing_goes_along_x_y_z_where_a_file_has_no_directions(tmp_path):
    nibabel, nrrd = pytest.importorskip("nibabel"), pytest.importorskip("nrrd")
    nrrd.write(str(tmp_path / "bare.nrrd"), VOXELS, index_order="F")
    image = nibabel.Nifti1Image(VOXELS, np.eye(4))
    image.header["sform_code"], image.header["qform_code"] = 1, 0
    for row in ("srow_x", "srow_y", "srow_z"):
        image.header[row] = 0
    content = bytearray(image.to_bytes())
    content[280:328] = bytes(48)
    (tmp_path / "flat.nii").write_bytes(content)
    for name in ("bare.nrrd", "flat.nii"):
        grid = load_volume(tmp_path / name, spacing=(0.7, 0.8, 2.5)).grid
        np.testing.assert_allclose(grid.matrix, np.diag([0.7, 0.8, 2.5, 1]))
    with pytest.raises(
        ValueError, match=r"flat.nii: affine must be invertible.*--data.read '\{spacing: 1.0\}'\), along x"
    ):
        load_volume(tmp_path / "flat.nii")
    grid = load_volume(tmp_path / "bare.nrrd", spacing=(0.7, 0.8, 2.5), axes="zyx").grid
    assert grid.spacing == (2.5, 0.8, 0.7)


def test_axes_name_channels_and_time(tmp_path):
    data = np.random.default_rng(2).random((2, 3, 5, 6, 7)).astype(np.float32)
    np.save(tmp_path / "five.npy", data)
    path = tmp_path / "five.npy"
    np.testing.assert_array_equal(load_volume(path, axes="tczyx", time=1).data, data[1])
    np.testing.assert_array_equal(load_volume(path, axes="tczyx", channel=2).data, data[:, 2])
    np.testing.assert_array_equal(load_volume(path, axes="ctzyx", channel=1, time=2).data, data[1:2, 2])
    np.testing.assert_array_equal(np.asarray(open_array(path, axes="tczyx", time=1)), data[1])
    with pytest.raises(ValueError, match=r"got shape \(2, 3, 5, 6, 7\); name its axes by axes"):
        load_volume(path)
    with pytest.raises(ValueError, match="2 time points and 3 channels: time or channel must be given"):
        load_volume(path, axes="tczyx")
    with pytest.raises(ValueError, match=r"time must be from 0 to 1 for the 2 time points of .*five.npy, got 2"):
        load_volume(path, axes="tczyx", time=2)
    with pytest.raises(ValueError, match=r"axes must name x, y, z, .* got 'zyy'"):
        load_volume(path, axes="zyy")


@pytest.mark.parametrize("first", [False, True])
def test_colours_are_channels_wherever_they_lie(tmp_path, first):
    nrrd = pytest.importorskip("nrrd")
    rgb = np.random.default_rng(3).integers(0, 255, (16, 17, 18, 3)).astype(np.uint8)
    expected = np.moveaxis(rgb, 3, 0)
    stored = expected if first else rgb
    np.save(tmp_path / "rgb.npy", stored)
    nrrd.write(str(tmp_path / "rgb.nrrd"), stored, index_order="F")
    for name in ("rgb.npy", "rgb.nrrd"):
        volume = load_volume(tmp_path / name)
        np.testing.assert_array_equal(volume.data, expected)
        assert "is read as 3 channels, axes" in volume.notes[0]
    assert load_volume(tmp_path / "rgb.npy", channel=1).data.shape == (1, 16, 17, 18)


def test_axes_of_length_one_are_dropped(tmp_path):
    np.save(tmp_path / "ones.npy", VOXELS[None, None])
    np.testing.assert_array_equal(load_volume(tmp_path / "ones.npy").data[0], VOXELS)


def test_a_frame_of_a_series(tmp_path, capsys):
    nibabel = pytest.importorskip("nibabel")
    frames = np.stack([ball(0, 100 + 20 * i, "uint8") for i in range(4)], 3)
    nibabel.save(nibabel.Nifti1Image(frames, GRID.matrix), tmp_path / "bold.nii.gz")
    np.testing.assert_array_equal(load_volume(tmp_path / "bold.nii.gz", time=2).data, frames[None, ..., 2])
    metrics = fit(tmp_path / "run", tmp_path / "bold.nii.gz", "--data.read", "{time: 3}", steps=1)
    assert metrics["source_high"] == frames[..., 3].max()
    assert "time points" not in capsys.readouterr().err
    fit(tmp_path / "all", tmp_path / "bold.nii.gz", steps=1)
    assert "bold.nii.gz: its 4 time points become channels of one volume; time: 0" in capsys.readouterr().err
