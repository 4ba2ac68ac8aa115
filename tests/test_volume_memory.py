"""The memory that a fit takes is printed before the volume is read. If there is less, the fit is refused."""

import numpy as np
import pytest

import splat_ssim.volume.memory as memory
from splat_ssim.volume import Volume, fit, save_volume
from splat_ssim.volume.io import load_volume, stored_shape
from tests.volumes import GRID, SHAPE, VOXELS
from tests.volumes import fit as fit_by_command


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha", ".tif", ".mrc", ".h5", ".zarr", ".npy", ".raw"])
@pytest.mark.parametrize("channels", [1, 2])
def test_shapes_are_known_before_reading(tmp_path, suffix, channels):
    if (suffix, channels) == (".mrc", 2):
        pytest.skip("MRC holds one channel")
    path = save_volume(tmp_path / f"a{suffix}", Volume(np.stack([VOXELS.astype(np.int16)] * channels), GRID))
    shape, itemsize = stored_shape(path)
    assert sorted(n for n in shape if n > 1) == sorted(n for n in (channels, *SHAPE) if n > 1) and itemsize == 2


def test_what_only_reading_tells(tmp_path):
    path = save_volume(tmp_path / "a.npz", Volume(VOXELS[None], GRID))
    assert stored_shape(path) is None and memory.check_memory(path, {}) is None
    np.save(tmp_path / "number.npy", np.float32(3))  # no volume, which reading it says
    assert memory.check_memory(tmp_path / "number.npy", {}) is None


def test_scaled_nifti_goes_through_float64(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    image = nibabel.Nifti1Image(VOXELS.astype(np.int16), np.eye(4))
    image.header.set_slope_inter(0.5, 3)
    nibabel.save(image, tmp_path / "a.nii")
    assert stored_shape(tmp_path / "a.nii") == (SHAPE, 8)
    assert load_volume(tmp_path / "a.nii").data.dtype == np.float32


def test_a_fit_that_does_not_fit_is_refused_before_it_is_read(tmp_path, monkeypatch):
    """A file of 2048³ voxels that only consists of the header."""
    path = tmp_path / "huge.npy"
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<u2", "fortran_order": False, "shape": (2048,) * 3})
        file.truncate(file.tell() + 2 * 2048**3)
    text = r"huge.npy: a fit of 2048x2048x2048 voxels requires about 327 GB of memory, got 10 GB; fit it brick by brick"
    monkeypatch.setattr(memory, "available_memory", lambda: 10_000_000_000)
    with pytest.raises(ValueError, match=text):
        fit(path, device="cpu")
    with pytest.raises(SystemExit, match=text):
        fit_by_command(tmp_path / "run", path)
    assert not (tmp_path / "run").exists()


def test_the_line_of_a_run(tmp_path, capsys):
    fit_by_command(tmp_path / "run", save_volume(tmp_path / "a.nii", Volume(VOXELS[None], GRID)), steps=1)
    assert "a.nii: memory: a fit of 14x12x16 voxels takes about 0.15 GB of the " in capsys.readouterr().err


def test_available_memory_is_that_of_this_machine():
    found = memory.available_memory()
    assert found is None or 1e8 < found < 1e14
