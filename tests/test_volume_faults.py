"""Fits that once went wrong in silence: signed values, bounds, outlying voxels, masks."""

import json
import math

import numpy as np
import pytest
import torch

from splat_ssim.errors import UserError
from splat_ssim.trainer.cli import call
from splat_ssim.volume import load_volume
from splat_ssim.volume.evaluation import evaluate_volume
from splat_ssim.volume.export import load_gaussians_ply, save_gaussians_ply
from splat_ssim.volume.gaussians import GaussianField
from splat_ssim.volume.rebuild import rebuild
from tests.volumes import GRID, SHAPE, ball, fit, save, true_psnr

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


# --- the Gaussians hold what it takes to rebuild the volume


@pytest.mark.parametrize("options", [[], ["--data.low", "-200", "--data.high", "1000"], ["--data.normalize", "none"]])
def test_the_volume_is_rebuilt_from_the_gaussians_alone(tmp_path, capsys, options):
    source = ball(-1000, 1500, "int16")
    metrics = fit(tmp_path / "run", save(tmp_path / "ct.nii.gz", source), *options)
    (tmp_path / "ct.nii.gz").unlink()
    exported = load_volume(tmp_path / "run" / "volume.nii.gz")
    arguments = [str(tmp_path / "run" / "gaussians.ply"), str(tmp_path / "ply.nrrd")]
    call("splat_ssim.volume.rebuild:rebuild", arguments)
    back = load_volume(tmp_path / "ply.nrrd")
    np.testing.assert_allclose(back.data, exported.data, atol=0.02)
    np.testing.assert_allclose(back.grid.matrix, exported.grid.matrix, atol=1e-5)
    rebuild(tmp_path / "run" / "gaussians.quantized", tmp_path / "quantized.nii.gz")
    quantized = true_psnr(tmp_path / "quantized.nii.gz", source)
    assert quantized == pytest.approx(metrics["psnr3d_source_quantized"], abs=0.01)
    assert "100 Gaussians on (14, 12, 16) voxels" in capsys.readouterr().out


def test_a_volume_is_rebuilt_with_another_spacing(tmp_path):
    fit(tmp_path / "run", save(tmp_path / "scan.nii.gz", ball(0, 200, "uint8")))
    quantized = tmp_path / "run" / "gaussians.quantized"
    whole = load_volume(rebuild(quantized, tmp_path / "whole.npz"))
    fine = load_volume(rebuild(quantized, tmp_path / "fine.npz", spacing=(0.5, 1.0 / 3, 1.0)))
    assert fine.data.shape == (1, 14, 36, 32)
    # The middle one of three voxels is where the coarse voxel was; of two neighbours in z it lies between.
    assert fine.grid.to_world(torch.tensor([0.0, 1.0, 0.5])).tolist() == pytest.approx(list(whole.grid.origin))
    between = (fine.data[:, :, 1::3, ::2] + fine.data[:, :, 1::3, 1::2]) / 2
    assert np.abs(between - whole.data).mean() < 10


def test_gaussians_of_before_their_source_was_kept(tmp_path):
    field = GaussianField.from_volume(torch.rand(1, *SHAPE), GRID, 20)
    path = save_gaussians_ply(tmp_path / "old.ply", field)
    with pytest.raises(UserError, match=r"old.ply must hold its grid, .* give --like VOLUME"):
        rebuild(path, tmp_path / "out.npy")
    scan = save(tmp_path / "scan.nii.gz", ball(0, 200, "uint8"))
    with pytest.raises(UserError, match=r"old.ply must hold its intensities, .* give --low and --high"):
        rebuild(path, tmp_path / "out.npy", like=scan)
    assert load_volume(rebuild(path, tmp_path / "out.npy", like=scan, low=0, high=9)).data.max() <= 9
    with pytest.raises(UserError, match=r"required gaussians.quantized or gaussians.ply of a run, got no file"):
        rebuild(tmp_path / "none.ply", tmp_path / "out.npy")
