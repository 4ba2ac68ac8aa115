"""Fits that once silently went wrong: signed values, bounds, outlying voxels, masks."""

import errno
import importlib.util
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from splat_ssim import distributed
from splat_ssim.comparison import compare
from splat_ssim.errors import UserError
from splat_ssim.trainer.cli import call, main, render_run, report_run
from splat_ssim.volume import VoxelGrid, load_field, load_volume
from splat_ssim.volume.evaluation import evaluate_volume
from splat_ssim.volume.export import FieldSource, load_gaussians_ply, save_gaussians_ply
from splat_ssim.volume.gaussians import GaussianField
from splat_ssim.volume.normalization import choose_normalization
from splat_ssim.volume.pictures import slice_sheet
from splat_ssim.volume.rebuild import rebuild
from tests.volumes import GRID, SHAPE, VOXELS, ball, fit, save, true_psnr

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


def test_a_window_beside_the_data_is_refused(tmp_path):
    scan = save(tmp_path / "ct.nii.gz", ball(0, 1700, "int16"))
    with pytest.raises(SystemExit, match=r"the window \(data.low and data.high\) must hold some of"):
        fit(tmp_path / "run", scan, "--data.low", "5000", "--data.high", "6000")


def test_a_range_far_from_zero_is_kept_and_told(tmp_path, capsys):
    source = ball(1e8, 1e8 + 113, "float64")
    scan = save(tmp_path / "far.npy", source)
    metrics = fit(tmp_path / "run", scan, "--data.normalize", "minmax", "--output.format", "npy")
    assert "values: 100000000 to 100000113 in the file" in capsys.readouterr().err
    exported = load_volume(tmp_path / "run" / "volume.npy").data
    assert exported.dtype == np.float64
    assert true_psnr(tmp_path / "run" / "volume.npy", source) == pytest.approx(metrics["psnr3d"], abs=0.01)
    rebuilt = rebuild(tmp_path / "run" / "gaussians.ply", tmp_path / "again.npy")
    np.testing.assert_allclose(load_volume(rebuilt).data, exported, atol=1e-3)
    rendered = load_field(tmp_path / "run").render()
    np.testing.assert_allclose(rendered.detach().numpy(), exported, atol=1e-3)


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
    """A small ball off the centre. Its surroundings have as much structure as the ball."""
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
    # Gaussians at the rim move out by a voxel or two. A sixth of the volume is that near.
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


@pytest.mark.parametrize("given", [{"low": math.nan}, {"high": math.inf}, {"low": 5, "high": 1}, {"low": 9, "high": 9}])
def test_intensities_that_mean_nothing_are_refused(tmp_path, given):
    field = GaussianField.from_volume(torch.rand(1, *SHAPE), GRID, 20)
    path = save_gaussians_ply(tmp_path / "field.ply", field, FieldSource(GRID, 0.0, 200.0))
    with pytest.raises(UserError, match=r"--low and --high must be finite with LOW < HIGH, got "):
        rebuild(path, tmp_path / "out.npy", **given)
    save_gaussians_ply(path, field, FieldSource(GRID, 3.0, 3.0))
    with pytest.raises(UserError, match=r"the intensities of .*field.ply must be finite with LOW < HIGH, got 3 and 3"):
        rebuild(path, tmp_path / "out.npy")
    assert not (tmp_path / "out.npy").exists()


@pytest.mark.parametrize("brick", [False, True])
@pytest.mark.parametrize(("low", "high"), [(-1e308, 5e307), (0.0, 1e-310)])
def test_extreme_intensities_have_their_psnr(tmp_path, low, high, brick):
    values = (ball(0, 1, "float64") * (high - low) + low).astype(np.float64)
    np.save(tmp_path / "a.npy", values)
    more = (
        ["--config", "configs/bricks.yaml", "--brick-steps", "4"] if brick else ["--config", "configs/voxel_mri.yaml"]
    )
    more += [] if brick else ["--steps", "4", "--output.no-video"]
    places = ["--data-dir", str(tmp_path / "a.npy"), "--result-dir", str(tmp_path / "run"), "--output.no-progress"]
    metrics = main([*more, *places, "--strategy.budget", "20"])
    back = load_volume(rebuild(tmp_path / "run" / "gaussians.ply", tmp_path / "back.npy")).data[0]
    errors = (back - values) / (values.max() - values.min())
    assert metrics["psnr3d_source"] == pytest.approx(-10 * np.log10(np.square(errors).mean()), abs=0.01)


def test_values_as_they_are_must_be_those_of_float32(tmp_path):
    for values, text in ((1e300, "must hold numbers of float32 for mode 'none'"), (3e38, "must span a range")):
        with pytest.raises(ValueError, match=text):
            choose_normalization(np.array([-values, values]), "none")


@pytest.mark.parametrize("config", ["voxel_mri", "bricks"])
def test_one_voxel_is_fitted(tmp_path, config):
    np.save(tmp_path / "a.npy", np.ones((1, 1, 1)))
    places = ["--data-dir", str(tmp_path / "a.npy"), "--result-dir", str(tmp_path / "run"), "--output.no-progress"]
    steps = ["--brick-steps", "4"] if config == "bricks" else ["--steps", "4", "--output.no-video"]
    metrics = main(["--config", f"configs/{config}.yaml", *places, *steps, "--strategy.budget", "1"])
    assert metrics["num_gaussians"] == 1 and metrics["psnr3d"] > 20


# --- compare.py gives the figures of metrics.json


def test_compare_has_the_figures_of_a_run(tmp_path):
    source = save(tmp_path / "ct.nii.gz", ball(-1000, 1500, "int16"))
    metrics = fit(tmp_path / "run", source, "--data.low", "-500", "--data.high", "1200")
    pair = (source, tmp_path / "run" / "volume.nii.gz")
    result = compare(*pair, window=(-500, 1200))
    assert result["ssim"] == pytest.approx(metrics["ssim3d"], abs=1e-5) and result["data_range"] == 1
    assert result["psnr"] == pytest.approx(metrics["psnr3d"], abs=1e-3)
    assert compare(*pair)["psnr"] == pytest.approx(metrics["psnr3d_source"], abs=0.01)


def test_compare_takes_arrays_by_their_key(tmp_path, capsys):
    one = np.random.default_rng(0).random((2, 14, 15, 16)).astype(np.float32)
    np.savez(tmp_path / "two.npz", raw=one[0], sharp=one[1])
    path = tmp_path / "two.npz"
    assert compare(path, path, key="raw", output=tmp_path / "same.json")["psnr"] == 100
    assert json.loads((tmp_path / "same.json").read_text())["ssim"] == pytest.approx(1)
    assert compare(path, path, key="raw", key_b="sharp", map=tmp_path / "map.nii")["ssim"] < 0.5
    assert load_volume(tmp_path / "map.nii").data.shape == (1, 14, 15, 16)


def test_compare_says_what_it_assumed(tmp_path, capsys):
    np.save(tmp_path / "c.npy", np.random.default_rng(0).random((12, 14, 15, 3)))
    compare(tmp_path / "c.npy", tmp_path / "c.npy")
    written = capsys.readouterr()
    assert json.loads(written.out)["psnr"] == 100
    assert written.err.count(f"{tmp_path / 'c.npy'}: shape (12, 14, 15, 3) is read as 3 channels") == 2


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"data_range": 1e37}, "--data-range must be from 1e-36 to 1e36, got 1e.37"),
        ({"window": (0, math.inf)}, "--window LOW HIGH must be finite with LOW < HIGH, got 0 and inf"),
        ({"window": (math.nan, 1)}, "LOW < HIGH, got nan and 1"),
        ({"data_range": 0.0}, "--data-range must be from 1e-36 to 1e36, got 0"),
        ({"data_range": 1.0, "window": (0, 1)}, "--window excludes --data-range"),
        ({"window": (1, 1)}, "LOW < HIGH"),
        ({"key": "c"}, r"key must be one of \['a', 'b'\]"),
    ],
)
def test_mistakes_in_a_comparison_are_one_sentence(tmp_path, options, text):
    np.savez(tmp_path / "two.npz", a=np.zeros(SHAPE), b=np.ones(SHAPE))
    with pytest.raises(UserError, match=text):
        compare(tmp_path / "two.npz", tmp_path / "two.npz", **{"key": "a", "key_b": "b", **options})


def test_images_have_no_blocks(tmp_path):
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="--key-b and --block are for volumes, got them for two of kind image"):
        compare(tmp_path / "a.png", tmp_path / "a.png", block=64)


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize(
    ("low", "high", "dtype", "text"),
    [
        (-8e307, 8e307, "float64", r"must span a range from 1e-36 to 1e\+36, got 1.6e\+308"),
        (-3e38, 3e38, "float32", r"must span a range from 1e-36 to 1e\+36, got 6e\+38"),
        (0, 1e-310, "float64", "must span a range from 1e-36 to .* got 1e-310"),
        (0, 1e37, "float32", r"must span a range from 1e-36 to 1e\+36, got 1e\+37"),
    ],
)
def test_ranges_that_ssim_does_not_take(tmp_path, low, high, dtype, text):
    values = np.linspace(low / 2, high / 2, 1000, dtype=dtype).reshape(10, 10, 10) * 2
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(UserError, match=f"a.npy and .*a.npy {text}"):
        compare(tmp_path / "a.npy", tmp_path / "a.npy")
    np.save(tmp_path / "b.npy", values[::-1])
    if high > 1e200:
        with pytest.raises(UserError, match="must differ by numbers whose squares float64 holds"):
            compare(tmp_path / "a.npy", tmp_path / "b.npy", data_range=1.0)
    with pytest.raises(ValueError, match="data_range must be in"):
        distributed.ssim3d(values, values, data_range=1e37)


def test_blockwise_ssim_takes_real_numbers_only():
    volume = np.zeros((12, 12, 12))
    with pytest.raises(TypeError, match="the volumes must hold real numbers, got complex128"):
        distributed.ssim3d(volume + 1j, volume)


# --- what a user can put right is one sentence


def without_codec(path):
    """A TIFF that claims LZW compression, as Fiji and most microscopes write it. tifffile alone cannot read it."""
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(path, VOXELS, photometric="minisblack")
    with tifffile.TiffFile(path, mode="r+b") as file:
        for page in file.pages:
            page.tags["Compression"].overwrite(5)


@pytest.mark.parametrize("folder", [False, True])
def test_a_tiff_that_needs_a_codec_says_which_package(tmp_path, folder):
    if importlib.util.find_spec("imagecodecs"):
        pytest.skip("imagecodecs is installed")
    without_codec(tmp_path / "lzw.tif")
    with pytest.raises(SystemExit, match=r"lzw.tif must be a TIFF .* got LZW, which needs pip install imagecodecs$"):
        fit(tmp_path / "run", tmp_path if folder else tmp_path / "lzw.tif")


def npy(path, data):
    np.save(path, data, allow_pickle=True)


@pytest.mark.parametrize(
    ("write", "options", "text"),
    [
        (lambda p: npy(p, np.array([[["a"]]], object)), [], "scan.npy must hold an array of real numbers, got Python"),
        (lambda p: npy(p, np.zeros((4, 4, 4), complex)), [], "scan.npy must hold real numbers, got complex128"),
        (
            lambda p: npy(p, np.full((4, 4, 4), np.nan)),
            [],
            r"pass nonfinite=0.0 \(--data.read '\{nonfinite: 0.0\}' of train",
        ),
        (
            lambda p: npy(p, np.zeros((9, 9, 9))),
            [],
            "give a window .--data.normalize window --data.low LOW",
        ),
        (lambda p: p.write_bytes(b"\x93NUMPY"), [], "scan.npy must be a complete npy volume, got "),
    ],
)
def test_wrong_arrays_end_in_one_sentence(tmp_path, write, options, text):
    write(tmp_path / "scan.npy")
    with pytest.raises(SystemExit, match=text):
        fit(tmp_path / "run", tmp_path / "scan.npy", *options)


@pytest.mark.parametrize(
    ("sidecar", "options", "text"),
    [
        ("{shape: ", [], r"scan.raw.json must be JSON that describes scan.raw, got "),
        ("[1]", [], "scan.raw.json must be a JSON object, got list"),
        (None, ["--data.read", "{shape: 40x44x36, dtype: int16}"], r"shape must be whole numbers, .* got '40x44x36'"),
        (None, ["--data.read", "{shape: [4, 4, 4.5], dtype: int16}"], "shape must be whole numbers"),
        (None, ["--data.read", "{shape: [4, 4, 4], dtype: int16, axes: abc}"], "axes must name x, y, z"),
    ],
)
def test_wrong_descriptions_of_raw_files_end_in_one_sentence(tmp_path, sidecar, options, text):
    (tmp_path / "scan.raw").write_bytes(bytes(128))
    if sidecar is not None:
        (tmp_path / "scan.raw.json").write_text(sidecar)
    with pytest.raises(SystemExit, match=text):
        fit(tmp_path / "run", tmp_path / "scan.raw", *options)


@pytest.mark.parametrize("error", [MemoryError("Unable to allocate"), OSError(errno.ENOMEM, "Cannot allocate")])
@pytest.mark.parametrize("place", ["numpy.load", "splat_ssim.volume.target.describe_values"])
def test_too_little_memory_is_said(tmp_path, monkeypatch, error, place):
    np.save(tmp_path / "scan.npy", ball(0, 1, "float32"))

    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(place, fail)
    with pytest.raises(SystemExit, match=r"memory|Cannot allocate") as caught:
        fit(tmp_path / "run", tmp_path / "scan.npy")
    assert "complete" not in str(caught.value)


def test_more_gaussians_than_voxels_names_the_option(tmp_path):
    np.save(tmp_path / "scan.npy", np.random.default_rng(0).random((12, 12, 12)))
    with pytest.raises(SystemExit, match=r"as many Gaussians as voxels, 1728, got 2500 of strategy.budget 5000"):
        fit(tmp_path / "run", tmp_path / "scan.npy", budget=5000)


def test_a_report_of_a_volume_has_no_viewer_of_scenes(tmp_path):
    fit(tmp_path / "run", save(tmp_path / "scan.npy", ball(0, 200, "uint8")), steps=2)
    with pytest.raises(
        UserError, match=r"--viewer-package is the viewer of a scene, and .*run is a run of another kind"
    ):
        report_run(tmp_path / "run", viewer_package=tmp_path)
    with pytest.raises(UserError, match="--frames applies to a video, such as an orbit, got --views slices and"):
        render_run(tmp_path / "run", views="slices", frames=9)


def test_slices_show_red_green_and_blue():
    colours = torch.stack([torch.full(SHAPE, level) for level in (1.0, 0.5, 0.0)])
    sheet = slice_sheet(colours)
    assert (sheet == [255, 128, 0]).all(2).any() and not (sheet == 255).all(2).any()


def test_the_size_floor_is_in_voxels_along_every_axis():
    grid = VoxelGrid.regular(SHAPE, spacing=(1.0, 1.0, 10.0), axes="xyz")
    field = GaussianField.from_volume(torch.rand(1, *SHAPE), grid, 20)
    turn = torch.tensor([[math.sqrt(0.5), 0.0, math.sqrt(0.5), 0.0]])  # about y: the first axis points along z
    field.tensors["quats"].data[:] = torch.tensor([1.0, 0, 0, 0])
    field.tensors["quats"].data[:5] = turn
    field.tensors["log_scales"].data.fill_(-9.0)
    field.tensors["log_scales"].data[7] = 3.0
    field.keep_size(0.45, grid)
    sizes = field.tensors["log_scales"].detach().exp()
    torch.testing.assert_close(sizes[8], torch.tensor([0.45, 0.45, 4.5]))
    torch.testing.assert_close(sizes[0], torch.tensor([4.5, 0.45, 0.45]))
    torch.testing.assert_close(sizes[7].log(), torch.full((3,), 3.0))


def test_label_maps_are_told(tmp_path, capsys):
    labels = np.repeat(np.repeat(np.arange(5, dtype=np.uint8).repeat(4)[:, None, None], 20, 1), 20, 2)
    grid = VoxelGrid.regular(labels.shape)
    fit(tmp_path / "run", save(tmp_path / "labels.nii.gz", labels, grid), steps=1)
    assert "it seems to hold 5 whole numbers only, as label maps do" in capsys.readouterr().err
    fit(tmp_path / "floats", save(tmp_path / "floats.nii.gz", labels.astype(np.float32), grid), steps=1)
    assert "label maps" not in capsys.readouterr().err
