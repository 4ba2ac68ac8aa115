"""An image in any format that SimpleITK writes is read as the same volume and written back; DICOM series."""

import locale

import numpy as np
import pytest

from splat_ssim.volume import Volume, VoxelGrid, load_volume, save_volume
from tests.volumes import fit, write_nrrd

sitk = pytest.importorskip("SimpleITK")

TURN, TILT = 0.3, 0.2
#: An oblique, proper rotation.
DIRECTION = np.array([[np.cos(TURN), -np.sin(TURN), 0], [np.sin(TURN), np.cos(TURN), 0], [0, 0, 1]]) @ np.array(
    [[1, 0, 0], [0, np.cos(TILT), -np.sin(TILT)], [0, np.sin(TILT), np.cos(TILT)]]
)
SPACING, ORIGIN = (0.7, 0.8, 2.5), (-120.5, -90.25, 33.0)
#: Hounsfield units, z first.
HU = np.random.default_rng(7).integers(-1024, 3000, (9, 8, 7)).astype(np.int16)
UID = "1.2.826.0.1.3680043.2.1125.1"


def image(voxels=HU, direction=DIRECTION, spacing=SPACING, origin=ORIGIN):
    made = sitk.GetImageFromArray(voxels)
    made.SetSpacing(spacing), made.SetOrigin(origin), made.SetDirection(direction.ravel())
    return made


def ras_affine(direction=DIRECTION, spacing=SPACING, origin=ORIGIN):
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = direction * spacing, origin
    return np.diag([-1.0, -1, 1, 1]) @ affine


def write_series(folder, made, *, uid=UID, description="axial", skip=(), **more):
    """Writes slices to files whose names have the reverse order of their positions."""
    folder.mkdir(exist_ok=True)
    direction = np.reshape(made.GetDirection(), (3, 3))
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    # When GDCM writes, it leaves the process in the locale C. When it reads, it does not.
    before = locale.setlocale(locale.LC_ALL)
    for i in range(made.GetSize()[2]):
        if i in skip:
            continue
        one = made[:, :, i]
        tags = {
            "0008|0008": "DERIVED\\SECONDARY",
            "0008|0018": f"{uid}.{i}",
            "0008|0060": "CT",
            "0008|103e": description,
            "0010|0010": "SECRET^PATIENT",
            "0010|0020": "SECRETID",
            "0018|0050": "2.5",
            "0020|000d": "1.2.3.4",
            "0020|000e": uid,
            "0020|0013": str(i),
            "0020|0032": "\\".join(repr(float(v)) for v in made.TransformIndexToPhysicalPoint((0, 0, i))),
            "0020|0037": "\\".join(repr(float(v)) for v in (*direction[:, 0], *direction[:, 1])),
            **more,
        }
        for name, value in tags.items():
            one.SetMetaData(name, value)
        writer.SetFileName(str(folder / f"{uid[-1]}_{99 - i}.dcm"))
        writer.Execute(one)
    locale.setlocale(locale.LC_ALL, before)
    return folder


@pytest.fixture
def written(tmp_path):
    """The same image as DICOM series, NRRD, MetaImage and NIfTI, by SimpleITK."""
    made = image()
    names = ("a.nrrd", "a.nhdr", "a.mha", "a.mhd", "a.nii.gz", "a.img")
    for name in names:
        sitk.WriteImage(made, str(tmp_path / name))
    return {"dicom": write_series(tmp_path / "dicom", made), **{name: tmp_path / name for name in names}}


@pytest.mark.parametrize("name", ["dicom", "a.nrrd", "a.nhdr", "a.mha", "a.mhd", "a.nii.gz", "a.img"])
def test_one_image_is_one_volume_in_every_format(written, name):
    volume = load_volume(written[name])
    voxels, affine = volume.data[0], volume.grid.matrix
    if name == "dicom":  # z first
        voxels, affine = voxels.T, affine[:, [2, 1, 0, 3]]
    np.testing.assert_array_equal(voxels, HU.T)
    assert voxels.dtype == np.int16
    np.testing.assert_allclose(affine, ras_affine(), atol=1e-5)
    assert volume.notes == ()
    if name in ("dicom", "a.nii.gz"):
        assert volume.unit == "mm"


@pytest.mark.parametrize("source", ["dicom", "a.nrrd", "a.nii.gz"])
@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".nii.gz"])
def test_what_is_written_is_the_image_that_was_read(written, tmp_path, source, suffix):
    volume = load_volume(written[source])
    back = sitk.ReadImage(str(save_volume(tmp_path / f"back{suffix}", volume)))
    made = image()
    # The order of axes differs, so voxels are compared at their positions in the world.
    for index in ((0, 0, 0), (6, 0, 0), (0, 7, 0), (0, 0, 8), (3, 4, 5)):
        place = made.TransformIndexToPhysicalPoint(index)
        there = back.TransformPhysicalPointToContinuousIndex(place)
        np.testing.assert_allclose(there, np.round(there), atol=1e-4)
        assert back[tuple(round(v) for v in there)] == made[index]
    if source != "dicom":
        np.testing.assert_array_equal(sitk.GetArrayFromImage(back), HU)
        np.testing.assert_allclose(back.GetOrigin(), ORIGIN, atol=1e-5)
        np.testing.assert_allclose(back.GetSpacing(), SPACING, atol=1e-5)
        np.testing.assert_allclose(back.GetDirection(), DIRECTION.ravel(), atol=1e-5)
    assert back.GetPixelID() == sitk.sitkInt16


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_channels_and_time(tmp_path, suffix):
    colours = np.random.default_rng(1).integers(0, 255, (5, 6, 7, 3)).astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(colours, isVector=True), str(tmp_path / f"c{suffix}"))
    np.testing.assert_array_equal(load_volume(tmp_path / f"c{suffix}").data, colours.T)
    frames = sitk.JoinSeries([image(HU + i) for i in range(3)])
    sitk.WriteImage(frames, str(tmp_path / f"t{suffix}"))
    volume = load_volume(tmp_path / f"t{suffix}", **({"axes": "xyzt"} if suffix == ".nrrd" else {}), time=2)
    np.testing.assert_array_equal(volume.data[0], HU.T + 2)
    np.testing.assert_allclose(volume.grid.spacing, SPACING)
    if suffix == ".mha":
        np.testing.assert_allclose(volume.grid.matrix, ras_affine(), atol=1e-5)


def test_a_detached_header_is_not_written(tmp_path):
    volume = Volume(HU[None], VoxelGrid.regular(HU.shape))
    with pytest.raises(ValueError, match=r"must be written as .mha, got 'a.mhd'"):
        save_volume(tmp_path / "a.mhd", volume)
    with pytest.raises(ValueError, match=r"dicom volumes are read only: save as .nii.gz, .nrrd or .mha, got 'a.dcm'"):
        save_volume(tmp_path / "a.dcm", volume)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_a_damaged_file_is_told_in_one_sentence(tmp_path, suffix):
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(b"no image at all")
    with pytest.raises(ValueError, match=rf"bad{suffix} must be a complete \w+ volume, got [^\n]*$") as caught:
        load_volume(path)
    assert "0x" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.mha", "a.mhd"])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_metaimage_cut_short_is_told_in_one_sentence(tmp_path, name, compressed, capfd):
    sitk.WriteImage(image(), str(tmp_path / name), useCompression=compressed)
    data = next(iter({*tmp_path.glob("*raw")} or {tmp_path / name}))
    data.write_bytes(data.read_bytes()[:-40])
    with pytest.raises(
        ValueError, match=rf"{name} must be a complete metaimage .* \d+ of \d+ bytes of voxels in a.\w+$"
    ):
        load_volume(tmp_path / name)
    if name == "a.mhd":
        data.unlink()
        with pytest.raises(ValueError, match=rf"must be a complete .*, got no file {data.name} for its voxels"):
            load_volume(tmp_path / name)
    assert capfd.readouterr().err == ""


def test_a_spacing_that_is_no_number_is_told(tmp_path):
    write_nrrd(tmp_path / "a.nrrd", HU, "spacings: 1 2 nan", "thicknesses: nan nan 3")
    volume = load_volume(tmp_path / "a.nrrd")
    assert volume.grid.spacing == (1, 2, 1)
    assert volume.notes == ("its header has no spacing along z: 1 is taken",)


# --- DICOM


def test_two_series_need_a_choice(tmp_path):
    write_series(tmp_path, image(), description="thin axial")
    write_series(tmp_path, image(HU[:4] + 1), uid=f"{UID}.2", description="localizer")
    with pytest.raises(
        ValueError,
        match=rf"must hold one DICOM series, or key must name one of them .*: 0 {UID} 'thin axial' \(CT, 9 files\), "
        rf"1 {UID}.2 'localizer' \(CT, 4 files\)",
    ):
        load_volume(tmp_path)
    for key in ("localizer", "1", 1, f"{UID}.2"):
        volume = load_volume(tmp_path, key=key)
        np.testing.assert_array_equal(volume.data[0], HU[:4] + 1)
        assert volume.notes == (f"of 2 DICOM series {UID}.2 'localizer' is read",)
    with pytest.raises(ValueError, match=r"key must name one of the DICOM series .* got '7'"):
        load_volume(tmp_path, key="7")


def test_rescaled_values_are_hounsfield_units(tmp_path):
    stored = (HU.astype(np.int32) + 1024).clip(0, 4000).astype(np.int16)
    write_series(tmp_path, image(stored), **{"0028|1052": "-1024", "0028|1053": "1"})
    found = load_volume(tmp_path).data[0]
    header = sitk.ImageFileReader()
    header.SetFileName(str(next(tmp_path.glob("*.dcm"))))
    header.ReadImageInformation()
    # The same files, read by SimpleITK's own series reader.
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path)))
    np.testing.assert_array_equal(found, sitk.GetArrayFromImage(reader.Execute()))


def test_a_tilted_gantry_shears_the_grid(tmp_path):
    """The slices are shifted along their rows. The affine contains the shear, which ITK's series reader ignores."""
    made = image(direction=np.eye(3))
    folder = tmp_path / "tilted"
    for i in range(9):
        one = image(HU[i : i + 1], direction=np.eye(3), origin=(ORIGIN[0], ORIGIN[1] + 0.5 * i, ORIGIN[2] + 2.5 * i))
        write_series(folder, one, **{"0008|0018": f"{UID}.{i}", "0020|0013": str(i)})
        (folder / "1_99.dcm").rename(folder / f"{i}.dcm")
    volume = load_volume(folder)
    np.testing.assert_array_equal(volume.data[0], HU)
    np.testing.assert_allclose(volume.grid.matrix[:3, 0], [0, -0.5, 2.5], atol=1e-6)
    assert made.GetSize() == (7, 8, 9)


def test_missing_and_doubled_slices_are_refused(tmp_path):
    write_series(tmp_path / "gap", image(), skip=(4,))
    with pytest.raises(
        ValueError, match=r"must hold evenly spaced slices, got distances from 2.5 to 5 mm, usually 2.5"
    ):
        load_volume(tmp_path / "gap")
    write_series(tmp_path / "twice", image())
    for file in list((tmp_path / "twice").glob("*.dcm")):
        (tmp_path / "twice" / f"again_{file.name}").write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match=r"must hold one slice at each place, got several .* dcm2niix separates them"):
        load_volume(tmp_path / "twice")


def test_slices_without_a_position_are_refused(tmp_path):
    write_series(tmp_path, image())
    for file in tmp_path.glob("*.dcm"):
        content = file.read_bytes()
        # The element ends where the next, the orientation, begins.
        at, end = (content.index(bytes([0x20, 0, tag, 0])) for tag in (0x32, 0x37))
        file.write_bytes(content[:at] + content[end:])
    with pytest.raises(ValueError, match=r"with a position \(0020,0032\), got 9 without, such as 1_9\d.dcm; dcm2niix"):
        load_volume(tmp_path)


def test_files_that_gdcm_leaves_out_are_named(tmp_path):
    write_series(tmp_path, image())
    (tmp_path / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    assert load_volume(tmp_path).notes == ()
    names = sorted(file.name for file in tmp_path.glob("*.dcm"))
    (tmp_path / names[0]).write_bytes((tmp_path / names[0]).read_bytes()[:200])
    told = f"1 DICOM files that GDCM does not read as slices are left out: {names[0]}"
    volume = load_volume(tmp_path)
    assert volume.data.shape[1] == 8 and volume.notes == (told,)
    (tmp_path / names[4]).write_bytes(b"cut")
    with pytest.raises(ValueError, match=f"2 DICOM files .* left out: {names[0]}, {names[4]}: some may be missing"):
        load_volume(tmp_path)


def test_a_series_among_other_files(tmp_path):
    write_series(tmp_path, image())
    for number in range(25):
        (tmp_path / f"0_{number}.txt").write_text("a file whose name comes first")
    np.testing.assert_array_equal(load_volume(tmp_path).data[0], HU)
    (tmp_path / "preview.tif").write_bytes(b"II*")
    with pytest.raises(ValueError, match="must hold TIFF slices or a DICOM series, got files of both; move one kind"):
        load_volume(tmp_path)


def test_slices_that_differ_are_refused(tmp_path):
    write_series(tmp_path, image())
    write_series(tmp_path, image(HU[:2], direction=np.eye(3)[:, [1, 2, 0]]), **{"0008|0018": "1.2.9"})
    with pytest.raises(ValueError, match="must have one size and one orientation"):
        load_volume(tmp_path)


def test_one_slice_says_so(tmp_path):
    write_series(tmp_path, image())
    volume = load_volume(tmp_path / "1_99.dcm")
    np.testing.assert_array_equal(volume.data[0], HU[:1])
    assert volume.notes == ("it is one slice, taken to be 2.5 mm thick; its folder is the series",)
    np.testing.assert_allclose(volume.grid.matrix[:, [2, 1, 3]], ras_affine()[:, [0, 1, 3]], atol=1e-5)


def test_segmentations_name_their_tool(tmp_path):
    write_series(tmp_path, image(), **{"0008|0060": "SEG"})
    with pytest.raises(ValueError, match="got one of modality SEG; dcmqi's segimage2itkimage converts it"):
        load_volume(tmp_path)


def test_reading_leaves_the_locale_alone(tmp_path):
    before = locale.setlocale(locale.LC_ALL)
    write_series(tmp_path, image())
    load_volume(tmp_path)
    assert locale.setlocale(locale.LC_ALL) == before


def test_a_folder_without_images_says_so(tmp_path):
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(ValueError, match="must hold TIFF slices or the files of a DICOM series, got none"):
        load_volume(tmp_path)


def test_no_patient_reaches_an_output(tmp_path, capsys):
    write_series(tmp_path / "scan", image())
    metrics = fit(tmp_path / "run", tmp_path / "scan", "--output.format", "nrrd", steps=2, budget=20)
    assert metrics["source_low"] == HU.min() and metrics["source_high"] == HU.max()
    said = capsys.readouterr()
    assert "SECRET" not in said.out + said.err
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(files) > 5
    for path in files:
        assert b"SECRET" not in path.read_bytes(), path
