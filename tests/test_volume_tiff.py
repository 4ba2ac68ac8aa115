"""TIFF files cut short or mixed, names and voxel sizes of slices, and pixels that mean something else."""

import logging

import numpy as np
import pytest

from splat_ssim.volume import Volume, VoxelGrid, load_volume, save_volume
from tests.volumes import VOXELS

tifffile = pytest.importorskip("tifffile")


CUBES = {"axes": "ZYX", "PhysicalSizeX": 1.0, "PhysicalSizeY": 1.0, "PhysicalSizeZ": 1.0}


def write_pages(path, pages):
    """A file of pages one by one, as most programs write them."""
    with tifffile.TiffWriter(path) as file:
        for page in pages:
            file.write(page, contiguous=False, metadata=None, photometric="minisblack")


def write_slices(folder, names, **options):
    for name, plane in zip(names, VOXELS, strict=False):
        tifffile.imwrite(folder / name, plane, **options)


# --- cut short, or mixed


def interleaved(path):
    """Pixels beside the directory of each page, as PIL writes them: a part of the file is a file of whole pages."""
    image = pytest.importorskip("PIL.Image")
    first, *others = (image.fromarray(plane) for plane in VOXELS)
    first.save(path, save_all=True, append_images=others)


@pytest.mark.parametrize(
    "write",
    [
        interleaved,
        lambda path: write_pages(path, VOXELS),
        lambda path: tifffile.imwrite(path, VOXELS, ome=True, metadata=CUBES),
        lambda path: tifffile.imwrite(path, VOXELS, resolution=(10, 10)),
    ],
)
@pytest.mark.parametrize("part", [0.3, 0.5, 0.99])
def test_a_file_cut_short_is_refused(tmp_path, write, part, capfd):
    write(tmp_path / "whole.tif")
    content = (tmp_path / "whole.tif").read_bytes()
    assert load_volume(tmp_path / "whole.tif").notes == ()
    (tmp_path / "half.tif").write_bytes(content[: int(len(content) * part)])
    with pytest.raises(ValueError, match=r"half.tif must be a complete (TIFF|tiff volume), got [^\n]*$"):
        load_volume(tmp_path / "half.tif")
    assert capfd.readouterr().err == ""
    assert not logging.getLogger("tifffile").handlers


def test_ome_tiff_of_several_files_needs_them_all(tmp_path):
    plane = "<TiffData IFD='{}' FirstZ='{}' PlaneCount='1'><UUID FileName='{}.ome.tif'>urn:uuid:{}</UUID></TiffData>"
    planes = "".join(plane.format(z % 7, z, z // 7, z // 7) for z in range(14))
    for number in range(2):
        xml = (
            f"<OME xmlns='http://www.openmicroscopy.org/Schemas/OME/2016-06' UUID='urn:uuid:{number}'><Image ID='i'>"
            f"<Pixels ID='p' DimensionOrder='XYZCT' Type='uint8' SizeX='16' SizeY='12' SizeZ='14' SizeC='1' SizeT='1' "
            f"PhysicalSizeX='1' PhysicalSizeY='1' PhysicalSizeZ='1'>{planes}</Pixels></Image></OME>"
        )
        with tifffile.TiffWriter(tmp_path / f"{number}.ome.tif") as file:
            for z in range(7):
                text = xml if z == 0 else None
                file.write(VOXELS[7 * number + z], description=text, metadata=None, contiguous=False)
    np.testing.assert_array_equal(load_volume(tmp_path / "0.ome.tif").data[0], VOXELS)
    with pytest.raises(ValueError, match=r"must be one slice .*; a stack is read by the path of its file"):
        load_volume(tmp_path)
    (tmp_path / "1.ome.tif").unlink()
    with pytest.raises(
        ValueError, match=r"0.ome.tif must be a complete TIFF, got OME series failed to read '1.ome.tif'"
    ):
        load_volume(tmp_path / "0.ome.tif")


def test_pages_that_differ_are_refused(tmp_path):
    write_pages(tmp_path / "a.tif", [*VOXELS[:5], VOXELS[5].astype(np.uint16), *VOXELS[6:]])
    with pytest.raises(ValueError, match=r"pages of one shape and dtype, got \(12, 16\) uint16 on page 5 and .* uint8"):
        load_volume(tmp_path / "a.tif")


def test_other_warnings_of_tifffile_are_told(tmp_path):
    # Another program kept ImageJ's description, and wrote other pages.
    description = "ImageJ=1.54\nimages=14\nslices=0\n"
    tifffile.imwrite(tmp_path / "a.tif", VOXELS, description=description, metadata=None, photometric="minisblack")
    volume = load_volume(tmp_path / "a.tif")
    np.testing.assert_array_equal(volume.data[0], VOXELS)
    assert volume.notes == ("tifffile warns: ImageJ series metadata invalid or corrupted file",)


@pytest.mark.parametrize("shape", [(1, 1, 6, 7), (2, 1, 6, 7), (1, 5, 6, 1)])
def test_thin_volumes_of_ours_have_no_warnings(tmp_path, shape):
    grid = VoxelGrid.regular(shape[1:], axes="xyz")
    path = save_volume(tmp_path / "a.tif", Volume(np.ones(shape, np.uint8), grid))
    assert load_volume(path).notes == ()


# --- folders of slices


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ([f"C{c}-{z:03}.tif" for c in (1, 2) for z in range(4)], r"such as C1-000.tif and C2-003.tif"),
        ([*(f"img_{z}.tif" for z in range(4)), "mask.tif"], r"such as img_0.tif and mask.tif"),
    ],
)
def test_names_of_several_stacks_are_refused(tmp_path, names, text):
    write_slices(tmp_path, names)
    with pytest.raises(
        ValueError, match=rf"must hold the slices of one stack, got names of several, {text}; each needs"
    ):
        load_volume(tmp_path)


@pytest.mark.parametrize(
    ("names", "between"),
    [
        (["s_1.tif", "s_2.tif", "s_4.tif", "s_5.tif"], "s_2.tif and s_4.tif"),
        (["s_10.tif", "s_20.tif", "s_30.tif"], None),
        (["z0.0.tif", "z0.5.tif", "z1.0.tif", "z1.5.tif"], None),
        (["1_at_1030.tif", "2_at_1031.tif", "3_at_1035.tif"], None),
        (["front.tif", "middle.tif"], None),
    ],
)
def test_missing_numbers_of_slices_are_told(tmp_path, names, between):
    write_slices(tmp_path, names)
    told = [f"its numbers are uneven, as between {between}: the slices are taken for evenly spaced"] if between else []
    assert list(load_volume(tmp_path).notes[1:]) == told


def test_slices_have_the_voxel_size_of_the_first(tmp_path):
    write_slices(tmp_path, [f"{z}.tif" for z in range(14)], imagej=True, resolution=(10, 5), metadata={"unit": "um"})
    volume = load_volume(tmp_path)
    np.testing.assert_array_equal(volume.data[0], VOXELS)
    assert volume.grid.spacing == pytest.approx((1, 0.2, 0.1)) and volume.unit == "um"
    assert volume.notes[1:] == ("its voxel size along x, y, z, 0.1, 0.2, 1 um, is 0.tif's",)
    assert load_volume(tmp_path, spacing=(0.1, 0.2, 0.7)).grid.spacing == pytest.approx((0.7, 0.2, 0.1))


# --- pixels that are not intensities


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"photometric": "miniswhite"}, "its values are inverted (MINISWHITE): the least is the brightest"),
        (
            {"photometric": "palette", "colormap": np.zeros((3, 256), np.uint16)},
            "its values are numbers of colours in a palette, which are taken for intensities",
        ),
    ],
)
def test_what_pixels_mean_is_told(tmp_path, options, text):
    tifffile.imwrite(tmp_path / "a.tif", VOXELS, **options)
    assert load_volume(tmp_path / "a.tif").notes == (text,)
    (tmp_path / "slices").mkdir()
    write_slices(tmp_path / "slices", ["1.tif", "2.tif"], **options)
    assert load_volume(tmp_path / "slices").notes[1:] == (text,)
