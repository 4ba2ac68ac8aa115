"""Volume files come back as they were written, with their affine. Damaged files are refused."""

import json
import math

import numpy as np
import pytest

from splat_ssim.volume import VoxelGrid
from splat_ssim.volume.io import Volume, load_volume, open_grid, save_volume, volume_format
from splat_ssim.volume.normalization import Normalization, choose_normalization
from splat_ssim.volume.opened import open_volume
from tests.volumes import write_nrrd

FORMATS = [".npy", ".npz", ".raw", ".nii.gz", ".nii", ".tif", ".nrrd", ".mha", ".h5", ".zarr"]


def oblique_grid(shape):
    matrix = np.eye(4)
    matrix[:3, :3] = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0] * [1.0, 0.5, 3.0]
    matrix[:3, 3] = [-10.0, 4.0, 7.5]
    return VoxelGrid(shape, matrix.tolist())


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_round_trip(tmp_path, suffix, channels, dtype):
    data = (np.random.default_rng(0).random((channels, 5, 6, 7)) * 100).astype(dtype)
    grid = oblique_grid((5, 6, 7))
    path = save_volume(tmp_path / f"volume{suffix}", Volume(data, grid))
    back = load_volume(path)
    np.testing.assert_array_equal(back.data, data)
    assert back.data.dtype == dtype
    # NIfTI keeps its affine in float32.
    np.testing.assert_allclose(back.grid.matrix, grid.matrix, rtol=1e-6, atol=1e-5)
    assert open_grid(path) == back.grid
    lazily = open_volume(path).array
    np.testing.assert_array_equal(np.asarray(lazily[...]).reshape(data.shape), data)


def test_a_crop_is_saved_where_it_lies(tmp_path):
    grid = oblique_grid((9, 9, 9)).crop((2, 3, 4), (2, 2, 2))
    back = load_volume(save_volume(tmp_path / "crop.nrrd", Volume(np.zeros((1, 2, 2, 2), np.float32), grid)))
    assert back.grid.origin == pytest.approx(grid.origin)


def test_raw_by_shape_and_dtype(tmp_path):
    data = np.arange(24, dtype=">i2").reshape(2, 3, 4)
    data.tofile(tmp_path / "scan.raw")
    volume = load_volume(tmp_path / "scan.raw", shape=(2, 3, 4), dtype=">i2", spacing=(0.5, 1, 2), origin=(1, 2, 3))
    np.testing.assert_array_equal(volume.data[0], data)
    assert volume.grid.spacing == (2.0, 1.0, 0.5) and volume.grid.origin == (1.0, 2.0, 3.0)
    with pytest.raises(ValueError, match="shape and dtype must be given"):
        load_volume(tmp_path / "scan.raw")
    with pytest.raises(ValueError, match=r"dtype must be one of numpy's, such as \"int16\", got 'short int'"):
        load_volume(tmp_path / "scan.raw", shape=(2, 3, 4), dtype="short int")
    with pytest.raises(ValueError, match=r"must have 120 bytes .* got 48"):
        load_volume(tmp_path / "scan.raw", shape=(3, 4, 5), dtype="int16")


def test_a_sidecar_says_everything_once_and_in_numbers(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((2, 3, 4)))
    (tmp_path / "a.npy.json").write_text('{"unit": "mm", "unit": "um"}')
    with pytest.raises(ValueError, match=r"a.npy.json must be JSON that describes a.npy, got the key 'unit' must be"):
        load_volume(tmp_path / "a.npy")
    (tmp_path / "a.npy.json").write_text(json.dumps({"affine": [list("1000"), *np.eye(4)[1:].tolist()]}))
    with pytest.raises(ValueError, match="affine"):
        load_volume(tmp_path / "a.npy")
    with pytest.raises(ValueError, match=r"spacing must be one finite number or three \(x, y, z\), got '2'"):
        load_volume(tmp_path / "a.npy", spacing="2")


@pytest.mark.parametrize("axes", ["xy", "xyzc", 5])
def test_axes_of_a_sidecar_that_do_not_fit(tmp_path, axes):
    np.save(tmp_path / "a.npy", np.zeros((2, 3, 4)))
    (tmp_path / "a.npy.json").write_text(json.dumps({"axes": axes}))
    with pytest.raises(ValueError, match=rf"a.npy.json must name the 3 axes of a.npy by .*, got axes {axes!r}$"):
        load_volume(tmp_path / "a.npy")


def test_tiff_slices_and_imagej_spacing(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    data = np.random.default_rng(0).integers(0, 255, (4, 5, 6)).astype(np.uint8)
    for i, plane in enumerate(data):
        (tmp_path / "slices").mkdir(exist_ok=True)
        tifffile.imwrite(tmp_path / "slices" / f"{i:03d}.tif", plane)
    np.testing.assert_array_equal(load_volume(tmp_path / "slices").data[0], data)
    tifffile.imwrite(
        tmp_path / "cells.tif", data, imagej=True, resolution=(4.0, 2.0), metadata={"spacing": 3.0, "axes": "ZYX"}
    )
    volume = load_volume(tmp_path / "cells.tif")
    np.testing.assert_array_equal(volume.data[0], data)
    assert volume.grid.spacing == pytest.approx((3.0, 0.5, 0.25))


def test_nrrd_without_directions(tmp_path):
    pytest.importorskip("SimpleITK")
    data = np.random.default_rng(0).random((4, 5, 6)).astype(np.float32)
    write_nrrd(tmp_path / "plain.nrrd", data, "spacings: 1 2 3")
    volume = load_volume(tmp_path / "plain.nrrd")
    np.testing.assert_array_equal(volume.data[0], data)
    assert volume.grid.spacing == (1.0, 2.0, 3.0)


def test_several_arrays_need_a_key(tmp_path):
    np.savez(tmp_path / "two.npz", a=np.zeros((2, 2, 2)), b=np.ones((2, 2, 2)))
    assert load_volume(tmp_path / "two.npz", key="b").data.all()
    with pytest.raises(ValueError, match=r"key must name one of \['a', 'b'\]"):
        load_volume(tmp_path / "two.npz")
    with pytest.raises(ValueError, match=r"key must be one of \['a', 'b'\].*got 'c'"):
        load_volume(tmp_path / "two.npz", key="c")


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".npy", ".npz", ".tif", ".nrrd", ".mha", ".h5", ".mrc"])
def test_truncated_files(tmp_path, suffix):
    data = np.random.default_rng(0).random((1, 16, 16, 16)).astype(np.float32)
    path = save_volume(tmp_path / f"volume{suffix}", Volume(data, VoxelGrid.regular((16, 16, 16))))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(ValueError):
        load_volume(path)


def test_wrong_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no volume at"):
        load_volume(tmp_path / "missing.npy")
    with pytest.raises(ValueError, match=r"must end in one of .*got 'scan.doc'"):
        volume_format("scan.doc")
    np.save(tmp_path / "flat.npy", np.zeros((4, 4)))
    with pytest.raises(ValueError, match=r"must hold \(n0, n1, n2\).*got shape \(4, 4\)"):
        load_volume(tmp_path / "flat.npy")
    np.save(tmp_path / "complex.npy", np.zeros((2, 2, 2), complex))
    with pytest.raises(TypeError, match="real numbers, got complex128"):
        load_volume(tmp_path / "complex.npy")


def test_an_affine_without_spacing(tmp_path):
    np.savez(tmp_path / "flat.npz", data=np.zeros((2, 2, 2)), affine=np.diag([0.0, 1.0, 1.0, 1.0]))
    with pytest.raises(ValueError, match=r"flat.npz: affine must be invertible \(spacing above 0\).* pass spacing=1.0"):
        load_volume(tmp_path / "flat.npz")
    assert load_volume(tmp_path / "flat.npz", spacing=2.0).grid.spacing == (2.0, 2.0, 2.0)


def test_nan_voxels(tmp_path):
    data = np.zeros((3, 3, 3), np.float32)
    data[1, 2, 0] = np.nan
    np.save(tmp_path / "nan.npy", data)
    with pytest.raises(ValueError, match=r"got 1 NaN or infinite ones, the first at .*\(0, 1, 2, 0\)"):
        load_volume(tmp_path / "nan.npy")
    replaced = load_volume(tmp_path / "nan.npy", nonfinite=0)
    assert not replaced.data.any()
    assert replaced.notes == ("1 NaN or infinite voxels are replaced by 0, as nonfinite says",)
    assert load_volume(tmp_path / "nan.npy", nonfinite=2.5).data.max() == 2.5


@pytest.mark.parametrize("nonfinite", [math.nan, math.inf, 1e6, "zero", True, [0]])
def test_what_nonfinite_must_be(tmp_path, nonfinite):
    np.save(tmp_path / "half.npy", np.zeros((3, 3, 3), np.float16))
    with pytest.raises(ValueError, match=r"must be a finite number that float16 holds, got .* for .*half\.npy"):
        load_volume(tmp_path / "half.npy", nonfinite=nonfinite)


def test_normalization():
    data = np.array([-1000.0, 0.0, 40.0, 80.0, 3000.0])
    ct = choose_normalization(data, "window", window=(0, 80))
    np.testing.assert_allclose(ct.apply(data), [0, 0, 0.5, 1, 1])
    np.testing.assert_allclose(ct.invert(ct.apply(data)), [0, 0, 40, 80, 80])
    assert choose_normalization(data, "max") == Normalization(0.0, 3000.0)
    middle = choose_normalization(np.arange(101.0), "percentile", percentiles=(10, 90))
    assert (middle.low, middle.high) == (10.0, 90.0)
    np.testing.assert_allclose(choose_normalization(data, "none").apply(data), data)


def test_a_constant_volume_may_lie_at_an_end_of_its_window():
    assert choose_normalization(np.zeros(5), "window", window=(0, 80)) == Normalization(0.0, 80.0)


@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [
        (0, 1, "float32"),
        (-1024, 3071, "float32"),
        (1e8, 1e8 + 113, "float64"),
        (0, 1e300, "float64"),
        (0, 1e-310, "float64"),
    ],
)
def test_intensities_have_the_dtype_that_their_range_needs(low, high, dtype):
    scale = Normalization(low, high)
    values = scale.invert(np.linspace(0, 1, 101))
    assert values.dtype == scale.dtype == dtype and len(np.unique(values)) == 101
    np.testing.assert_allclose(values, np.linspace(low, high, 101), rtol=1e-7, atol=1e-4 * (high - low))


@pytest.mark.parametrize(
    "data,arguments,text",
    [
        (np.zeros(5), {"mode": "max"}, "must span a range .* give a window"),
        (np.full(5, 3.0), {"mode": "percentile"}, "must span a range"),
        (np.arange(5), {"mode": "window"}, r"window must be \(low, high\)"),
        (np.arange(5), {"mode": "window", "window": (4, 4)}, "LOW < HIGH, got 4 and 4"),
        (np.arange(5), {"mode": "window", "window": (0, np.inf)}, "must be finite with LOW < HIGH, got 0 and inf"),
        (np.arange(5), {"mode": "percentile", "percentiles": (50, 50)}, "percentiles must be"),
        (np.arange(5), {"mode": "zscore"}, "mode must be one of"),
        (np.arange(1701), {"mode": "window", "window": (5000, 6000)}, "hold some .* from 0 to 1700, got 5000 to 6000"),
        (np.arange(1701), {"mode": "window", "window": (-9, 0)}, "hold some .* from 0 to 1700, got -9 to 0"),
        (np.array([-1.7e308, 1.7e308]), {"mode": "minmax"}, "must span a range that float64 holds"),
    ],
)
def test_normalization_errors(data, arguments, text):
    with pytest.raises(ValueError, match=text):
        choose_normalization(data, **arguments)
