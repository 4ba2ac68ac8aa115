"""HDF5, MRC, OME-Zarr and compressed TIFF. For other formats, the error names a converter."""

import sys

import numpy as np
import pytest
import torch

from splat_ssim.volume import Volume, VoxelGrid, load_volume, save_volume
from splat_ssim.volume.io import array_volume, open_grid
from splat_ssim.volume.opened import open_volume
from tests.volumes import GRID, SHAPE, TURNED, VOXELS

PLACED = VoxelGrid.regular(SHAPE, spacing=(0.5, 1.0, 2.0), origin=(-3, 4, 5), axes="zyx")

# --- HDF5


def test_a_dataset_is_chosen_by_name(tmp_path):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "cells.h5"
    with h5py.File(path, "w") as file:
        file["raw"] = VOXELS
        file["meta/times"] = np.arange(3)
        file["names"] = np.array([[[b"a"]]])
    np.testing.assert_array_equal(load_volume(path).data[0], VOXELS)
    with h5py.File(path, "a") as file:
        file["volumes/labels"] = VOXELS[:3].astype(np.uint16)
    with pytest.raises(
        ValueError,
        match=r"cells.h5 must hold one array of three or more axes, or key must name one of: raw \(14, 12, 16\) uint8, "
        r"volumes/labels \(3, 12, 16\) uint16",
    ):
        load_volume(path)
    np.testing.assert_array_equal(load_volume(path, key="volumes/labels").data[0], VOXELS[:3])
    np.testing.assert_array_equal(np.asarray(open_volume(path, key="/raw").array[2:5]), VOXELS[2:5])
    assert open_grid(path, key="raw").shape == SHAPE
    for key in ("volumes", "nothing"):
        with pytest.raises(ValueError, match=rf"key must name an array .* in .*cells.h5, raw .*; got '{key}'"):
            load_volume(path, key=key)


def test_what_hdf5_says_of_its_voxels(tmp_path):
    h5py = pytest.importorskip("h5py")
    channels = np.stack([VOXELS, VOXELS + 1], -1)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = file.create_dataset("exported", data=channels)
        for dimension, letter in zip(data.dims, "zyxc", strict=True):
            dimension.label = letter
        data.attrs["element_size_um"] = [2.0, 0.5, 0.25]
    volume = load_volume(tmp_path / "a.h5")
    np.testing.assert_array_equal(volume.data, np.moveaxis(channels, 3, 0))
    assert volume.grid.spacing == (2.0, 0.5, 0.25) and volume.unit == "um"
    assert volume.notes == ("its attribute element_size_um is taken for the voxel size in um, along zyx",)
    tags = '{"axes": [{"key": "x"}, {"key": "y"}, {"key": "z"}]}'
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file.create_dataset("data", data=VOXELS).attrs.update({"axistags": tags, "resolution": [4, 5, 6]})
    volume = load_volume(tmp_path / "b.h5")
    np.testing.assert_array_equal(volume.grid.matrix, np.diag([4.0, 5, 6, 1]))
    assert volume.unit == "nm"


@pytest.mark.parametrize("names", ["xyz", np.bytes_(b"xyz"), ["x", "y", "z"]])
def test_axes_of_hdf5_are_a_word_or_a_list(tmp_path, names):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("data", data=VOXELS).attrs["axes"] = names
    volume = load_volume(tmp_path / "a.h5")
    np.testing.assert_array_equal(volume.grid.matrix, np.eye(4))
    assert volume.notes == ()


def test_what_hdf5_has_not_is_told(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("part", shape=SHAPE, chunks=(7, 12, 16), dtype="u1", fillvalue=3)[:7] = 1
        file.create_dataset("none", shape=SHAPE, dtype="u1")
        file.create_dataset("named", data=VOXELS).dims[0].label = "depth"
        layout = h5py.VirtualLayout(SHAPE, dtype="u1")
        layout[...] = h5py.VirtualSource("gone.h5", "data", SHAPE)
        file.create_virtual_dataset("other", layout)
    notes = {key: load_volume(tmp_path / "a.h5", key=key).notes for key in ("part", "none", "named", "other")}
    assert notes["part"] == ("1 of its 2 chunks are absent and are read as 3",)
    assert notes["none"] == ("1 of its 1 chunks are absent and are read as 0",)
    assert notes["other"] == ("of its source files gone.h5 are absent and read as 0",)
    assert notes["named"][0].startswith("its names of axes, depth, , , are left out: x, y and z")
    with h5py.File(tmp_path / "gone.h5", "w") as file:
        file["data"] = VOXELS
    assert load_volume(tmp_path / "a.h5", key="other").notes == ()


# --- MRC


def test_mrc_has_voxel_size_origin_and_order_of_axes(tmp_path):
    mrcfile = pytest.importorskip("mrcfile")
    with mrcfile.new(tmp_path / "map.mrc", data=VOXELS.astype(np.float32)) as file:
        file.voxel_size = (1.5, 2.0, 3.0)
        file.header.origin.x, file.header.origin.y, file.header.origin.z = 10, 20, 30
    volume = load_volume(tmp_path / "map.mrc")
    np.testing.assert_array_equal(volume.data[0], VOXELS)
    assert volume.grid == VoxelGrid.regular(SHAPE, spacing=(1.5, 2, 3), origin=(10, 20, 30), axes="zyx")
    assert volume.unit == "angstrom" and volume.notes == ()
    # Columns along z, rows along x: a CCP4 map.
    with mrcfile.open(tmp_path / "map.mrc", "r+") as file:
        file.header.mapc, file.header.mapr, file.header.maps = 3, 1, 2
        file.header.mx, file.header.my, file.header.mz = SHAPE[1], SHAPE[0], SHAPE[2]
        file.header.cella.x, file.header.cella.y, file.header.cella.z = SHAPE[1] * 1.5, SHAPE[0] * 2.0, SHAPE[2] * 3.0
        file.header.origin.x = file.header.origin.y = file.header.origin.z = 0
        file.header.nxstart, file.header.nystart, file.header.nzstart = 4, 5, 6
    volume = load_volume(tmp_path / "map.mrc")
    expected = VoxelGrid.regular(SHAPE, spacing=(1.5, 2, 3), origin=(5 * 1.5, 6 * 2.0, 4 * 3.0), axes="yxz")
    np.testing.assert_allclose(volume.grid.matrix, expected.matrix)


@pytest.mark.parametrize("suffix", [".mrc", ".map.gz"])
def test_mrc_is_written_along_z(tmp_path, suffix):
    mrcfile = pytest.importorskip("mrcfile")
    # Along TURNED's first axis, z decreases; along its last, x decreases.
    path = save_volume(tmp_path / f"out{suffix}", Volume(VOXELS[None], VoxelGrid(SHAPE, TURNED.tolist()), "nm"))
    with mrcfile.open(path) as file:
        np.testing.assert_array_equal(file.data, VOXELS[::-1, :, ::-1])
        assert file.voxel_size.tolist() == pytest.approx((7, 8, 25)) and file.is_volume()
    volume = load_volume(path)
    last = VoxelGrid(SHAPE, TURNED.tolist()).to_world(torch.tensor([13.0, 0, 15])).numpy()
    np.testing.assert_allclose(volume.grid.origin, 10 * last, rtol=1e-6)
    assert load_volume(save_volume(tmp_path / "again.mrc", volume)).grid == volume.grid


def test_what_mrc_cannot_hold(tmp_path):
    pytest.importorskip("mrcfile")
    turned = np.eye(4)
    turned[:2, :2] = [[0.8, -0.6], [0.6, 0.8]]
    for volume, text in (
        (Volume(VOXELS[None], VoxelGrid(SHAPE, turned.tolist())), "must lie along the world's axes"),
        (Volume(VOXELS[None].astype(float), GRID), "must have dtype .*, got float64"),
        (Volume(np.stack([VOXELS] * 2), GRID), "must have one channel, got 2"),
    ):
        with pytest.raises(ValueError, match=text):
            save_volume(tmp_path / "a.mrc", volume)


def test_stacks_and_missing_voxel_sizes_are_told(tmp_path):
    mrcfile = pytest.importorskip("mrcfile")
    with mrcfile.new(tmp_path / "tilts.mrc", data=VOXELS.astype(np.int8)) as file:
        file.set_image_stack()
        file.voxel_size = 0
    volume = load_volume(tmp_path / "tilts.mrc")
    assert volume.grid.spacing == (1, 1, 1) and volume.unit == ""
    assert volume.notes == (
        "it is a stack of 14 images, which are taken for slices",
        "its bytes are read with a sign, as MRC2014 says",
        "its header has no voxel size: 1 is taken",
    )


def test_angles_of_an_mrc_cell_are_told(tmp_path):
    mrcfile = pytest.importorskip("mrcfile")
    with mrcfile.new(tmp_path / "a.mrc", data=VOXELS.astype(np.float32)) as file:
        file.voxel_size = 1.5
        file.header.cellb.gamma = 120
    assert load_volume(tmp_path / "a.mrc").notes == ("the angles of its cell are 90, 90, 120: right angles are taken",)


# --- OME-Zarr out


@pytest.mark.parametrize("channels", [1, 2])
def test_zarr_is_written_as_an_ome_zarr_image(tmp_path, channels):
    zarr = pytest.importorskip("zarr")
    data = np.stack([VOXELS] * channels)
    path = save_volume(tmp_path / "out.zarr", Volume(data, PLACED, "um"))
    attributes = dict(zarr.open_group(str(path), mode="r").attrs)
    image = attributes.get("ome", attributes)["multiscales"][0]
    names = [axis["name"] for axis in image["axes"]]
    assert names == ["c", "z", "y", "x"][-data[0].ndim - (channels > 1) :]
    assert image["axes"][-1] == {"name": "x", "type": "space", "unit": "micrometer"}
    scale, translation = image["datasets"][0]["coordinateTransformations"]
    assert scale["scale"][-3:] == [2.0, 1.0, 0.5] and translation["translation"][-3:] == [5.0, 4.0, -3.0]
    # Without our extra attributes for turned volumes, other readers get the same position.
    array = zarr.open_array(str(path / "0"), mode="r+")
    array.attrs.clear()
    volume = load_volume(path)
    assert volume.grid == PLACED and volume.unit == "um"
    np.testing.assert_array_equal(volume.data, data)


def test_others_take_it_for_ome_zarr(tmp_path):
    zarr = pytest.importorskip("zarr")
    models = pytest.importorskip("ome_zarr_models")
    path = save_volume(tmp_path / "out.zarr", Volume(np.stack([VOXELS] * 2), PLACED, "um"))
    image = models.open_ome_zarr(zarr.open_group(str(path), mode="r"))
    assert type(image).__name__ == "Image" and image.ome_zarr_version == "0.5"


def test_zarr_3_needs_a_newer_python(tmp_path, monkeypatch):
    zarr = pytest.importorskip("zarr")
    path = save_volume(tmp_path / "out.zarr", Volume(VOXELS[None], PLACED))
    if not (path / "zarr.json").exists():
        (path / "zarr.json").write_text("{}")
    monkeypatch.setattr(zarr, "__version__", "2.18.3")
    with pytest.raises(ValueError, match=r"is of zarr's format 3, which Python 3.11 and newer read, got zarr 2.18.3"):
        load_volume(path)


# --- zarr of others


def zarr_array(path, names=None, **attributes):
    """VOXELS in two chunks, with names of axes as zarr 3 has them, and attributes."""
    zarr = pytest.importorskip("zarr", minversion="3")
    array = zarr.create_array(path, shape=SHAPE, chunks=(7, 12, 16), dtype="u1", dimension_names=names)
    array[...] = VOXELS + 1
    array.attrs.update(attributes)
    return path


@pytest.mark.parametrize(
    ("names", "attributes"),
    [("xyz", {}), (None, {"_ARRAY_DIMENSIONS": ["x", "y", "z"]}), ("zyx", {"axes": ["x", "y", "z"]})],
)
def test_names_of_axes_in_zarr(tmp_path, names, attributes):
    volume = load_volume(zarr_array(tmp_path / "a.zarr", names, **attributes))
    np.testing.assert_array_equal(volume.grid.matrix, np.eye(4))
    assert volume.notes == ()


def test_other_names_of_axes_in_zarr_are_told(tmp_path):
    volume = load_volume(zarr_array(tmp_path / "a.zarr", ["depth", "y", "x"]))
    assert volume.notes[0].startswith("its names of axes, depth, y, x, are left out: x, y and z")


def test_absent_chunks_of_zarr_are_told(tmp_path):
    path = zarr_array(tmp_path / "a.zarr")
    next(path.rglob("c/1/0/0")).unlink()
    assert load_volume(path).notes == ("1 of its 2 chunks are absent and are read as 0",)


@pytest.mark.parametrize("kind", ["scale", "affine"])
def test_ome_zarr_with_paths_of_several_parts(tmp_path, kind):
    zarr = pytest.importorskip("zarr")
    root = zarr.open_group(str(tmp_path / "a.zarr"), mode="w")
    datasets = []
    for level in (1, 2):
        path = f"scale{level}/image"
        array = zarr.open_array(str(tmp_path / "a.zarr" / path), mode="w", shape=SHAPE, dtype="u1")
        array[...] = VOXELS // level + 1
        changes = [{"type": "scale", "scale": [2.0 * level, 1.0, 0.5]}, {"type": kind, kind: [2, 2, 2]}]
        datasets.append({"path": path, "coordinateTransformations": changes})
    axes = [{"name": letter, "type": "space", "unit": "micrometer"} for letter in "zyx"]
    root.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
    volume = load_volume(tmp_path / "a.zarr", key="scale2/image")
    np.testing.assert_array_equal(volume.data[0], VOXELS // 2 + 1)
    assert volume.unit == "um" and volume.grid.spacing == ((8, 2, 1) if kind == "scale" else (4, 1, 0.5))
    told = "its transformation of type affine is left out: scales and translations are read"
    assert [note[: len(told)] for note in volume.notes] == ([] if kind == "scale" else [told])


# --- TIFF


@pytest.mark.parametrize("compression", ["lzw", "zstd", "jpeg2000", "packbits", "lerc"])
def test_compressed_tiff(tmp_path, compression):
    tifffile = pytest.importorskip("tifffile")
    pytest.importorskip("imagecodecs")
    tifffile.imwrite(tmp_path / "a.tif", VOXELS, compression=compression, photometric="minisblack")
    np.testing.assert_array_equal(load_volume(tmp_path / "a.tif").data[0], VOXELS)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_a_name_of_ome_makes_ome_tiff(tmp_path, dtype):
    tifffile = pytest.importorskip("tifffile")
    data = np.stack([VOXELS, VOXELS // 2]).astype(dtype)
    path = save_volume(tmp_path / "out.ome.tif", Volume(data, PLACED, "um"))
    with tifffile.TiffFile(path) as file:
        pixels = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]["Pixels"]
        assert file.is_ome and not file.is_imagej and file.series[0].axes == "CZYX"
    assert (pixels["PhysicalSizeX"], pixels["PhysicalSizeZ"], pixels["PhysicalSizeXUnit"]) == (0.5, 2.0, "µm")
    volume = load_volume(path)
    np.testing.assert_array_equal(volume.data, data)
    assert volume.grid == PLACED and volume.unit == "um"


# --- what is not read, and what is not installed


@pytest.mark.parametrize(
    ("name", "tool"),
    [("cells.CZI", "bioformats2raw"), ("brain.mgz", "mri_convert"), ("k3.dm4", "dm2mrc"), ("scan.zip", "unpacking")],
)
def test_other_formats_name_what_converts_them(tmp_path, name, tool):
    (tmp_path / name).write_bytes(b"something")
    with pytest.raises(ValueError, match=rf"{name} is of a format that is not read here: .*{tool}.* converts it"):
        load_volume(tmp_path / name)


@pytest.mark.parametrize(
    ("package", "name"),
    [("SimpleITK", "a.nrrd"), ("SimpleITK", "a.mha"), ("h5py", "a.h5"), ("mrcfile", "a.mrc"), ("nibabel", "a.nii")],
)
def test_a_missing_package_is_one_sentence(tmp_path, monkeypatch, package, name):
    (tmp_path / name).write_bytes(b"something")
    monkeypatch.setitem(sys.modules, package, None)
    for call in (
        lambda: load_volume(tmp_path / name),
        lambda: save_volume(tmp_path / name, Volume(VOXELS[None], GRID)),
    ):
        with pytest.raises(ImportError, match=rf"\w+ volumes needs pip install 'splat_ssim\[volume\]': .*{package}"):
            call()


def test_analyze_says_what_is_assumed(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    nibabel.save(nibabel.AnalyzeImage(VOXELS, np.diag([-2.0, 3, 4, 1])), tmp_path / "old.img")
    volume = load_volume(tmp_path / "old.hdr")
    np.testing.assert_array_equal(volume.data[0], VOXELS)
    assert volume.grid.spacing == (2, 3, 4)
    assert "it is an Analyze file, which says no directions" in volume.notes[0]


def test_a_nifti_file_without_directions_or_with_two_says_so(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    one = np.diag([2.0, 3.0, 4.0, 1.0])
    expected = {
        (0, 0, 0): "its header has no directions, sform_code and qform_code are 0: x is taken to run to the left",
        (1, 1, 0): None,
        (1, 0, 9): None,
        (1, 1, 0.1): None,
        (1, 1, 9): "its sform and its qform are up to 9 apart: the sform is taken",
    }
    for (sform, qform, apart), told in expected.items():
        image = nibabel.Nifti1Image(VOXELS, one)
        other = one.copy()
        other[0, 3] = apart
        image.set_sform(one, sform), image.set_qform(other, qform)
        nibabel.save(image, tmp_path / "a.nii")
        notes = load_volume(tmp_path / "a.nii").notes
        assert not notes if told is None else len(notes) == 1 and notes[0].startswith(told)


def test_background_in_our_zarr_is_no_absent_chunk(tmp_path):
    array = np.zeros((70, 8, 8), np.float32)
    array[3, 3, 3] = 1
    save_volume(tmp_path / "a.zarr", array_volume(array))
    assert load_volume(tmp_path / "a.zarr").notes == ()
