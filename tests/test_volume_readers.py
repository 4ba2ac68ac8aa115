"""Volume files that once were read or written wrongly: world axes, spacing, channels, slices, microscopes' files."""

import numpy as np
import pytest

from splat_ssim.volume import Volume, VoxelGrid, load_volume, save_volume
from splat_ssim.volume.io import open_grid
from splat_ssim.volume.opened import open_volume
from tests.volumes import GRID, SHAPE, TURNED, VOXELS, ball, fit, nrrd_place, write_nrrd

# --- one world, RAS, through every reader and writer

RAS_TO = {"right-anterior-superior": (1, 1, 1), "left-anterior-superior": (-1, 1, 1), "LPS": (-1, -1, 1)}


@pytest.mark.parametrize("space", RAS_TO)
def test_nrrd_spaces_are_read_as_ras(tmp_path, space):
    pytest.importorskip("SimpleITK")
    theirs = np.diag([*RAS_TO[space], 1]) @ TURNED
    write_nrrd(tmp_path / "itk.nrrd", VOXELS, f"space: {space}", *nrrd_place(theirs))
    volume = load_volume(tmp_path / "itk.nrrd")
    np.testing.assert_allclose(volume.grid.matrix, TURNED, atol=1e-12)
    np.testing.assert_array_equal(volume.data[0], VOXELS)
    assert volume.notes == ()


@pytest.mark.parametrize(
    ("space", "told"), [("space dimension: 3", "says no space"), ("space: scanner-xyz", "says 'scanner-xyz'")]
)
def test_nrrd_without_a_known_space_says_what_is_assumed(tmp_path, space, told):
    pytest.importorskip("SimpleITK")
    write_nrrd(tmp_path / "plain.nrrd", VOXELS, space, *nrrd_place(TURNED))
    volume = load_volume(tmp_path / "plain.nrrd")
    np.testing.assert_allclose(volume.grid.matrix, TURNED)
    assert f"{told}: its axes are taken for RAS" in volume.notes[0]


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


@pytest.mark.parametrize("suffix", [".nii", ".nrrd", ".mha", ".h5", ".npy", ".npz", ".raw", ".zarr", ".tif"])
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


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha", ".h5"])
def test_spacing_keeps_the_directions_of_the_file(tmp_path, suffix):
    path = save_volume(tmp_path / f"scan{suffix}", Volume(VOXELS[None], VoxelGrid(SHAPE, TURNED.tolist())))
    expected = TURNED.copy()
    expected[:3, :3] = [[0, 0, -1], [0, 2, 0], [-3, 0, 0]]
    volume = load_volume(path, spacing=(1, 2, 3))
    np.testing.assert_allclose(volume.grid.matrix, expected, atol=1e-5)
    moved = load_volume(path, spacing=(1, 2, 3), origin=(7, 8, 9))
    np.testing.assert_allclose(moved.grid.matrix[:3], [*np.c_[expected[:3, :3], [7, 8, 9]]], atol=1e-5)


def test_spacing_goes_along_x_y_z_where_a_file_has_no_directions(tmp_path):
    nibabel, _ = pytest.importorskip("nibabel"), pytest.importorskip("SimpleITK")
    write_nrrd(tmp_path / "bare.nrrd", VOXELS)
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
        ValueError, match=r"flat.nii: affine must be invertible.*--data.read '\{spacing: 1.0\}' of train.*\), along x"
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
    np.testing.assert_array_equal(np.asarray(open_volume(path, axes="tczyx", time=1).array), data[1])
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
    pytest.importorskip("SimpleITK")
    rgb = np.random.default_rng(3).integers(0, 255, (16, 17, 18, 3)).astype(np.uint8)
    expected = np.moveaxis(rgb, 3, 0)
    stored = expected if first else rgb
    np.save(tmp_path / "rgb.npy", stored)
    write_nrrd(tmp_path / "rgb.nrrd", stored)
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


# --- folders of slices


def test_slices_are_sorted_by_their_numbers(tmp_path, capsys):
    tifffile = pytest.importorskip("tifffile")
    for i in range(12):
        tifffile.imwrite(tmp_path / f"img_{i}.TIF", np.full((13, 14), 10 * i, np.uint8))
    (tmp_path / "._img_0.tif").write_bytes(b"\0\5\26\7 macOS")
    (tmp_path / ".hidden.tif").write_bytes(b"")
    volume = load_volume(tmp_path)
    np.testing.assert_array_equal(volume.data[0, :, 0, 0], 10 * np.arange(12))
    assert volume.notes == ("12 slices in the order of their numbers, img_0.TIF to img_11.TIF",)
    fit(tmp_path / "run", tmp_path, steps=1)
    assert "12 slices in the order of their numbers" in capsys.readouterr().err


@pytest.mark.parametrize("planar", [False, True])
def test_slices_in_colour_have_their_channels_first(tmp_path, planar):
    tifffile = pytest.importorskip("tifffile")
    slices = np.random.default_rng(0).integers(0, 255, (4, 7, 8, 3)).astype(np.uint8)
    for i, plane in enumerate(slices):
        plane = np.moveaxis(plane, 2, 0) if planar else plane
        options = {"planarconfig": "separate"} if planar else {}
        tifffile.imwrite(tmp_path / f"{i}.tif", plane, photometric="rgb", **options)
    np.testing.assert_array_equal(load_volume(tmp_path).data, np.moveaxis(slices, 3, 0))


@pytest.mark.parametrize(
    ("odd", "text"),
    [
        (np.zeros((7, 9), np.uint8), r"one shape and dtype, got \(7, 9\) uint8 in .*2.tif and \(7, 8\) uint8 in 0.tif"),
        (np.zeros((7, 8), np.int16), r"one shape and dtype, got \(7, 8\) int16 in .*2.tif"),
        (np.zeros((5, 7, 8), np.uint8), r"2.tif must be one slice .* got shape \(5, 7, 8\)"),
        (None, "2.tif must be a TIFF slice, got not a TIFF file"),
    ],
)
def test_the_slice_that_differs_is_named(tmp_path, odd, text):
    tifffile = pytest.importorskip("tifffile")
    for i in range(3):
        tifffile.imwrite(tmp_path / f"{i}.tif", np.zeros((7, 8), np.uint8))
    if odd is None:
        (tmp_path / "2.tif").write_bytes(b"no picture")
    else:
        tifffile.imwrite(tmp_path / "2.tif", odd, photometric="minisblack")
    with pytest.raises(ValueError, match=text):
        load_volume(tmp_path)


# --- files of microscopes

CELLS = np.random.default_rng(5).integers(0, 99, (2, 4, 15, 16)).astype(np.uint16)


@pytest.mark.parametrize("axes", ["ZYX", "CZYX", "ZCYX", "TZYX"])
def test_ome_tiff_has_its_voxel_size(tmp_path, axes):
    tifffile = pytest.importorskip("tifffile")
    data = {"ZYX": CELLS[0], "ZCYX": CELLS.swapaxes(0, 1)}.get(axes, CELLS)
    sizes = {"PhysicalSizeX": 0.1, "PhysicalSizeY": 0.2, "PhysicalSizeZ": 500.0, "PhysicalSizeZUnit": "nm"}
    metadata = {"axes": axes, **sizes}
    tifffile.imwrite(tmp_path / "cells.ome.tif", data, ome=True, metadata=metadata)
    volume = load_volume(tmp_path / "cells.ome.tif")
    assert volume.grid.spacing == pytest.approx((0.5, 0.2, 0.1)) and volume.unit == "um"
    np.testing.assert_array_equal(volume.data, CELLS[:1] if axes == "ZYX" else CELLS)


def test_time_and_channels_of_an_ome_tiff(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    data = np.stack([CELLS, CELLS + 1, CELLS + 2])
    tifffile.imwrite(tmp_path / "live.ome.tif", data, ome=True, metadata={"axes": "TCZYX"})
    np.testing.assert_array_equal(load_volume(tmp_path / "live.ome.tif", time=2).data, data[2])
    np.testing.assert_array_equal(load_volume(tmp_path / "live.ome.tif", time=2, channel=1).data[0], data[2, 1])
    with pytest.raises(ValueError, match="3 time points and 2 channels"):
        load_volume(tmp_path / "live.ome.tif")


def test_the_largest_series_is_read_and_key_chooses(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    with tifffile.TiffWriter(tmp_path / "two.tif") as file:
        file.write(np.zeros((3, 3), np.uint8), photometric="minisblack")
        file.write(CELLS[0], photometric="minisblack")
        file.write(CELLS[0, :2] + 1, photometric="minisblack")
    volume = load_volume(tmp_path / "two.tif")
    np.testing.assert_array_equal(volume.data[0], CELLS[0])
    assert "it holds 3 series, the largest is read" in volume.notes[0]
    np.testing.assert_array_equal(load_volume(tmp_path / "two.tif", key="2").data[0], CELLS[0, :2] + 1)
    with pytest.raises(ValueError, match=r"key must name one of the series .* got '7'"):
        load_volume(tmp_path / "two.tif", key="7")


@pytest.fixture(params=["0.4", "0.5"])
def ome_zarr(request, tmp_path):
    """An OME-Zarr tczyx image with one time point and channel in three resolutions, and a raw array."""
    zarr = pytest.importorskip("zarr")
    root = zarr.open_group(str(tmp_path / "cells.zarr"), mode="w")
    datasets = []
    for level in (2, 0, 1):
        array = CELLS[:1, None, :: 2**level, :: 2**level, :: 2**level]
        root.create_array(f"s{level}", shape=array.shape, dtype=array.dtype)[...] = array
        scale = [1, 1, 250.0 * 2**level, 0.05 * 2**level, 0.1 * 2**level]
        changes = [{"type": "scale", "scale": scale}, {"type": "translation", "translation": [0, 0, 500, 3, 4]}]
        datasets.append({"path": f"s{level}", "coordinateTransformations": changes})
    units = {"z": "nanometer", "y": "micrometer", "x": "micrometer"}
    axes = [{"name": n, "unit": units[n]} if n in units else {"name": n} for n in "tczyx"]
    whole = [{"type": "scale", "scale": [1, 1, 2, 2, 2]}]
    images = [{"axes": axes, "datasets": datasets, "coordinateTransformations": whole}]
    root.attrs.update({"multiscales": images} if request.param == "0.4" else {"ome": {"multiscales": images}})
    root.create_group("vol").create_array("raw", shape=(3, 4, 5), dtype="u1")[...] = np.arange(60).reshape(3, 4, 5)
    return tmp_path / "cells.zarr"


def test_ome_zarr_is_read_at_full_resolution_in_its_place(ome_zarr):
    volume = load_volume(ome_zarr)
    np.testing.assert_array_equal(volume.data, CELLS[:1])
    assert volume.unit == "um" and volume.grid.spacing == pytest.approx((0.5, 0.1, 0.2))
    assert volume.grid.origin == pytest.approx((8, 6, 1))
    assert "the full one, s0, is read" in volume.notes[0]
    np.testing.assert_array_equal(np.asarray(open_volume(ome_zarr).array[1:3, ..., 5]), CELLS[0, 1:3, :, 5])
    assert open_grid(ome_zarr) == volume.grid
    coarse = load_volume(ome_zarr, key="s1")
    assert coarse.data.shape == (1, 2, 8, 8) and coarse.grid.spacing == pytest.approx((1.0, 0.2, 0.4))
    assert load_volume(ome_zarr / "s1").grid == coarse.grid
    with pytest.raises(ValueError, match=r"key must be one of \['s0', 's1', 's2', 'vol/raw'\] in .*, got 's7'"):
        load_volume(ome_zarr, key="s7")


def test_a_key_is_a_path_in_a_group(ome_zarr):
    expected = np.arange(60).reshape(3, 4, 5)
    for path, key in ((ome_zarr, "vol/raw"), (ome_zarr / "vol", "raw"), (ome_zarr / "vol" / "raw", None)):
        np.testing.assert_array_equal(load_volume(path, key=key).data[0], expected)


def test_tiff_stacks_have_voxel_size_and_z_on_pages(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    for dtype in ("float32", "uint8", "float64"):
        data = np.stack([VOXELS, VOXELS // 2]).astype(dtype)
        path = save_volume(tmp_path / f"{dtype}.tif", Volume(data, GRID, "um"))
        with tifffile.TiffFile(path) as file:
            series = file.series[0]
            pages = series.asarray()
            pages = pages if series.axes == "CZYX" else pages.swapaxes(0, 1)
            np.testing.assert_array_equal(pages, data.transpose(0, 3, 2, 1))
            assert sorted(series.axes) == sorted("CZYX") and series.axes.endswith("YX")
            if dtype == "float64":
                assert 'PhysicalSizeZ="2.0"' in file.ome_metadata and 'PhysicalSizeX="0.5"' in file.ome_metadata
            else:
                assert file.imagej_metadata["spacing"] == 2.0 and file.imagej_metadata["unit"] == "um"
                assert file.pages[0].tags["XResolution"].value == (2, 1)
                assert file.pages[0].tags["YResolution"].value == (1, 1)


def test_nifti_under_another_name(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    packed, plain = (save_volume(tmp_path / f"a{s}", Volume(VOXELS[None], GRID, "mm")) for s in (".nii.gz", ".nii"))
    (tmp_path / "packed.nii").write_bytes(packed.read_bytes())
    (tmp_path / "plain.nii.gz").write_bytes(plain.read_bytes())
    nibabel.save(nibabel.Nifti1Pair(VOXELS, GRID.matrix), tmp_path / "pair.img")
    for name in ("packed.nii", "plain.nii.gz", "pair.img", "pair.hdr"):
        volume = load_volume(tmp_path / name)
        np.testing.assert_array_equal(volume.data[0], VOXELS)
        np.testing.assert_allclose(volume.grid.matrix, GRID.matrix)
        assert not volume.notes or "whatever its name says" in volume.notes[0]
    with pytest.raises(ValueError, match=r"must be written as .nii or .nii.gz, got 'b.hdr'"):
        save_volume(tmp_path / "b.hdr", Volume(VOXELS[None], GRID))


@pytest.mark.parametrize(
    ("stored", "slope", "inter", "read"),
    [
        ("int16", 1, -1024, "int16"),
        (">i2", 1, -1024, "int16"),
        ("uint8", 2, -100, "int16"),
        ("uint16", 1, -1024, "int16"),
        ("uint16", 500, 0, "int32"),
        ("int16", 0.25, -1000, "float32"),
        ("int32", 0.001, 1e6, "float64"),
        ("float32", 2, 1, "float64"),
    ],
)
def test_numbers_with_a_slope_need_no_more_bytes_than_they_must(tmp_path, stored, slope, inter, read):
    nibabel = pytest.importorskip("nibabel")
    header = nibabel.Nifti1Header(endianness=">" if stored[0] == ">" else "<")
    header.set_data_dtype(stored)
    image = nibabel.Nifti1Image(VOXELS.astype(stored), GRID.matrix, header)
    image.header.set_slope_inter(slope, inter)
    nibabel.save(image, tmp_path / "ct.nii")
    volume = load_volume(tmp_path / "ct.nii")
    assert volume.data.dtype == read
    np.testing.assert_allclose(volume.data[0], VOXELS * float(np.float32(slope)) + inter, atol=1e-9)
    assert volume.stored_bytes == VOXELS.size * np.dtype(stored).itemsize
    name = np.dtype(stored).name
    assert volume.notes == (
        f"its numbers, {name}, have slope {slope:g} and intercept {inter:g}: they are read as {read}",
    )


@pytest.mark.parametrize("axes", ["TYX", "CYX"])
def test_pages_are_slices_where_there_are_no_others(tmp_path, axes):
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "stack.tif", VOXELS, imagej=True, metadata={"axes": axes})
    volume = load_volume(tmp_path / "stack.tif")
    np.testing.assert_array_equal(volume.data[0], VOXELS)
    assert "are taken for slices: it has none" in volume.notes[0]


def test_options_that_a_format_has_no_use_for_are_said(tmp_path):
    path = save_volume(tmp_path / "scan.npy", Volume(VOXELS[None], GRID))
    notes = load_volume(path, key="a", dtype="int16").notes
    assert notes == (
        "key a is left out: a npy file holds one array",
        "shape and dtype are left out: a npy file says its own",
    )
