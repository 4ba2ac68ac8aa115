"""Outputs replace nothing but files, and folders that hold nothing but what is written there; they are never inputs."""

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

from splat_ssim import _files
from splat_ssim._files import check_output, check_output_folder, replacing, replacing_path
from splat_ssim.comparison import compare
from splat_ssim.errors import UserError, WriteError
from splat_ssim.volume import Volume, VoxelGrid, load_volume, save_volume
from splat_ssim.volume.codec import commands
from splat_ssim.volume.codec.commands import compress, decompress
from splat_ssim.volume.codec.container import Packed
from splat_ssim.volume.codec.quantizer import Codes, Steps
from splat_ssim.volume.distill import distill
from splat_ssim.volume.export import FieldSource, save_gaussians_ply
from splat_ssim.volume.gaussians import GaussianField
from splat_ssim.volume.rebuild import rebuild
from tests.test_full_disk import full

SUFFIXES = [".nii.gz", ".nii", ".tif", ".nrrd", ".mha", ".mrc", ".h5", ".npy", ".npz", ".raw", ".zarr"]
SIDE = 12


def noise(seed=0, side=SIDE):
    voxels = np.random.default_rng(seed).random((1, side, side, side)).astype(np.float32)
    return Volume(voxels, VoxelGrid.regular((side,) * 3))


def coded(path):
    path.write_bytes(Packed(FieldSource(VoxelGrid((4, 5, 6)), 0, 1), "uint8", Steps(1.0), Codes.none()).to_bytes())
    return path


def everything(folder):
    """Names below a folder -> contents of the files."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("suffix", [*SUFFIXES, ""])
def test_a_volume_does_not_replace_a_folder(tmp_path, suffix):
    file, output = coded(tmp_path / "a.gsv"), tmp_path / f"out{suffix}"
    (output / "deep").mkdir(parents=True)
    (output / "deep" / "thesis.txt").write_text("years")
    before = everything(tmp_path)
    with pytest.raises(UserError, match="must end in one of" if suffix == "" else r"out.*: required a .* got a folder"):
        decompress(file, output)
    with pytest.raises(ValueError, match="out"):
        save_volume(output, noise())
    assert everything(tmp_path) == before


def test_a_zarr_folder_is_replaced_if_all_of_it_is_zarr(tmp_path):
    path = save_volume(tmp_path / "a.zarr", noise(0))
    save_volume(path, noise(1))
    np.testing.assert_array_equal(load_volume(path).data, noise(1).data)
    (path / "0" / "notes.md").write_text("mine")
    with pytest.raises(
        WriteError, match=r"a\.zarr: required a zarr folder to write, got a folder with 0/notes\.md, wh"
    ):
        save_volume(path, noise(2))
    np.testing.assert_array_equal(load_volume(path).data, noise(1).data)
    (tmp_path / "b.zarr" / "0" / "1").mkdir(parents=True)
    with pytest.raises(WriteError, match=r"b\.zarr: required a zarr folder to write, got a folder without zarr\.json"):
        save_volume(tmp_path / "b.zarr", noise())
    (tmp_path / "c.zarr").write_text("a file")
    with pytest.raises(WriteError, match=r"c\.zarr: required a zarr folder to write, got a file"):
        save_volume(tmp_path / "c.zarr", noise())
    (tmp_path / "empty.zarr").mkdir()
    save_volume(tmp_path / "empty.zarr", noise())
    with pytest.raises(ValueError, match=r"a volume must be written outside of zarr folders, got .*/a\.zarr/0/b\.npy"):
        save_volume(path / "0" / "b.npy", noise())


def test_a_death_while_a_folder_is_replaced_leaves_both(tmp_path, monkeypatch):
    path = save_volume(tmp_path / "a.zarr", noise(0))

    def killed(source, target):
        raise KeyboardInterrupt

    # The old folder has been renamed when the process ends, and the new one is still to be.
    rename = os.rename
    monkeypatch.setattr(os, "rename", lambda source, target: (rename if source == path else killed)(source, target))
    with pytest.raises(KeyboardInterrupt):
        _files._replace_folder(tmp_path / "new", path)
    (aside,) = tmp_path.iterdir()
    assert aside.name == f"a.zarr.{os.getpid()}.old"
    monkeypatch.undo()
    rename(aside, path)
    np.testing.assert_array_equal(load_volume(path).data, noise(0).data)

    def refused(source, target):
        if source != path and target == path and not source.name.endswith(".old"):
            raise OSError(13, "Permission denied")
        rename(source, target)

    monkeypatch.setattr(os, "rename", refused)
    with pytest.raises(WriteError, match="got Permission denied"):
        save_volume(path, noise(1))
    np.testing.assert_array_equal(load_volume(path).data, noise(0).data)
    assert [left.name for left in tmp_path.iterdir()] == ["a.zarr"]


@pytest.mark.parametrize("opened", [replacing, replacing_path])
def test_what_is_never_replaced(tmp_path, opened):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "lost").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    before = sorted(tmp_path.iterdir())
    for name, got in {
        "folder": "a file to write, got a folder",
        "link": "a file to write, got a link to file, which is to be named itself",
        "lost": "a file to write, got a link to nowhere, which is to be named itself",
        "pipe": "a file to write, got a device or a pipe",
        "file/below": f"a folder to write it to, got the file {tmp_path}/file",
        "file/far/below": f"a folder to write it to, got the file {tmp_path}/file",
        "..": "a file to write, got a folder",
        "x" * 255: "room and permission to write it, got File name too long",
    }.items():
        with pytest.raises(WriteError, match=f"{name}: required {got}$"), opened(tmp_path / name):
            pass
        with pytest.raises(WriteError, match=f"{name}: required {got}$"):
            check_output(tmp_path / name)
    for path in ("/dev/null", "/proc/x.gsv"):
        with pytest.raises(WriteError, match=f"{path}: required"):
            check_output(path)
    assert sorted(tmp_path.iterdir()) == before and (tmp_path / "file").read_text() == "old"
    assert (tmp_path / "link").is_symlink()
    check_output(tmp_path / "new" / "x.json")
    assert sorted(tmp_path.iterdir()) == before


def test_folders_to_write_to(tmp_path):
    (tmp_path / "file").write_text("old")
    for name in ("file", "file/below"):
        with pytest.raises(WriteError, match=rf"{name}: required a folder to write .*to, got (a|the) file"):
            check_output_folder(tmp_path / name)
    check_output_folder(tmp_path)
    check_output_folder(tmp_path / "new" / "folder")
    with pytest.raises(WriteError, match=r"required an output apart from the input .*, got the same"):
        check_output_folder(tmp_path, inputs=[tmp_path / "." / "../" / tmp_path.name])
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# --- splat-compare


@pytest.fixture
def pair(tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        for suffix in (".zarr", ".npy"):
            save_volume(tmp_path / f"{name}{suffix}", noise(seed))
    return tmp_path


@pytest.mark.parametrize(
    ("kind", "option", "name", "got"),
    [
        (".zarr", "map", "a.zarr", "the same"),
        (".zarr", "map", "b.zarr", "the same"),
        (".zarr", "map", "b.zarr/m.npy", "outside of zarr folders"),
        (".zarr", "output", "b.zarr", "got a folder"),
        (".npy", "map", "a.npy", "the same"),
        (".npy", "map", "../{}/b.npy", "the same"),
        (".npy", "map", "sub/a.npy", "got a link"),
        (".npy", "output", "b.npy", "the same"),
        (".npy", "output", "a.npy.json", "the same"),
    ],
)
def test_no_output_of_a_comparison_is_its_input(pair, kind, option, name, got):
    (pair / "sub").mkdir()
    (pair / "sub" / "a.npy").symlink_to("../a.npy")
    before = everything(pair)
    with pytest.raises(UserError, match=got):
        compare(pair / f"a{kind}", pair / f"b{kind}", **{option: pair / name.format(pair.name)})
    assert everything(pair) == before


def test_no_picture_of_a_comparison_is_its_input(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.full((16, 16, 3), 9, np.uint8)).save(tmp_path / folder / "0.png")
    before = everything(tmp_path)
    a, b = tmp_path / "a", tmp_path / "b"
    for arguments, options in (
        ((a, b), {"map": a}),
        ((a, b), {"output": b / "0.png"}),
        ((a / "0.png", b / "0.png"), {"map": b / "0.png"}),
        ((a / "0.png", b / "0.png"), {"output": a / "0.png"}),
        ((a / "0.png", b / "0.png"), {"map": tmp_path / "m.png", "output": tmp_path / "m.png"}),
    ):
        with pytest.raises(UserError, match=r"required an output apart from the input .*, got the same"):
            compare(*arguments, **options)
    assert everything(tmp_path) == before


def test_a_map_in_zarr_is_the_old_one_or_the_new(pair):
    path = pair / "map.zarr"
    compare(pair / "a.zarr", pair / "b.zarr", map=path)
    before = everything(path)
    for name, seed in (("big", 0), ("bigger", 1)):
        save_volume(pair / f"{name}.npy", noise(seed, 40))
    names = sorted(each.name for each in pair.iterdir())
    with full(), pytest.raises(WriteError, match=r"map\.zarr: required room and permission to write it, got File too"):
        compare(pair / "big.npy", pair / "bigger.npy", map=path)
    assert everything(path) == before and sorted(each.name for each in pair.iterdir()) == names
    compare(pair / "a.zarr", pair / "a.zarr", map=path)
    assert (load_volume(path).data > 0.99).all()
    (path / "thesis").write_text("years")
    with pytest.raises(UserError, match=r"map\.zarr: required a zarr folder to write, got a folder with thesis"):
        compare(pair / "a.npy", pair / "b.npy", map=path)
    assert (path / "thesis").read_text() == "years"


# --- the other commands: refused before the work


@pytest.mark.parametrize(
    ("name", "got"),
    [
        ("folder.gsv", "got a folder"),
        ("file/x.gsv", "got the file"),
        ("link.gsv", "got a link"),
        ("scan.gsv", "the sam"),
    ],
)
def test_compress_looks_at_its_output_before_the_fit(tmp_path, monkeypatch, name, got):
    (tmp_path / "folder.gsv").mkdir()
    (tmp_path / "file").write_text("old")
    (tmp_path / "link.gsv").symlink_to("file")
    (tmp_path / "scan.gsv").write_text("old")
    scan = tmp_path / "scan.gsv" if name == "scan.gsv" else save_volume(tmp_path / "scan.npy", noise())
    before = everything(tmp_path)
    monkeypatch.setattr(commands, "compress_volume", None)
    with pytest.raises(UserError, match=got):
        compress(scan, tmp_path / name, bytes=500)
    assert everything(tmp_path) == before


def test_decompress_and_voxelize_and_distill_keep_their_inputs(tmp_path):
    file = coded(tmp_path / "a.npy")  # whatever its name
    with pytest.raises(UserError, match=r"required an output apart from the input .*, got the same"):
        decompress(file, file)
    grid = VoxelGrid.regular((SIDE,) * 3)
    field = GaussianField.from_volume(torch.from_numpy(noise().data), grid, 5)
    fitted = save_gaussians_ply(tmp_path / "fit.ply", field, FieldSource(grid, 0, 1))
    like = save_volume(tmp_path / "like.npy", noise())
    (tmp_path / "run.nii.gz").mkdir()
    before = everything(tmp_path)
    for output in (like, tmp_path / "run.nii.gz"):
        with pytest.raises(UserError, match=r"got the same|got a folder"):
            rebuild(fitted, output, like=like)
        with pytest.raises(UserError, match=r"got the same|got a folder"):
            distill(like, output)
    assert everything(tmp_path) == before


# --- two files that belong together


@pytest.mark.parametrize("suffix", [".npy", ".raw"])
def test_a_volume_is_not_read_with_the_description_of_another(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"a{suffix}"
    save_volume(path, Volume(noise(0).data, VoxelGrid.regular((SIDE,) * 3, spacing=0.5), "mm"))
    before = everything(tmp_path)
    replace, seen = _files._replace, []

    def stopped(source, target):
        seen.append(everything(tmp_path))
        replace(source, target)
        seen.append(everything(tmp_path))

    monkeypatch.setattr(_files, "_replace", stopped)
    save_volume(path, Volume(noise(1).data, VoxelGrid.regular((SIDE,) * 3, spacing=2), "um"))
    monkeypatch.undo()
    after = everything(tmp_path)
    assert sorted(after) == sorted(before)
    # As a process would leave the folder that dies before or after any of the three times that a file is renamed.
    states = {}
    for at, state in enumerate(seen):
        (folder := tmp_path / str(at)).mkdir()
        for name, content in state.items():
            (folder / name).write_bytes(content)
        own = {name: content for name, content in state.items() if not name.endswith(".tmp")}
        states[at] = own
        if own in (before, after):
            assert load_volume(folder / path.name).unit == ("mm" if own == before else "um")
            continue
        with pytest.raises(
            ValueError, match=rf"{path.name} and {path.name}\.json must be of one writing, got the end of"
        ):
            load_volume(folder / path.name)
        both = json.loads(own[f"{path.name}.json"])[_files.UNFINISHED]
        assert both["before"].encode() == before[f"{path.name}.json"]
        assert both["after"] == json.loads(after[f"{path.name}.json"])
        save_volume(folder / path.name, noise(2))
        np.testing.assert_array_equal(load_volume(folder / path.name).data, noise(2).data)
    assert states[0] == before and states[5] == after and before not in list(states.values())[1:]


def test_a_description_stays_if_its_file_does(tmp_path, monkeypatch):
    for start in (False, True):
        path = tmp_path / str(start) / "a.npy"
        path.parent.mkdir()
        if start:
            save_volume(path, noise(0))
        before, replace = everything(path.parent), _files._replace

        def refused(source, target, path=path, replace=replace):
            if target == path:
                raise PermissionError(13, "Permission denied")
            replace(source, target)

        monkeypatch.setattr(_files, "_replace", refused)
        with pytest.raises(
            WriteError, match=r"a\.npy: required room and permission to write it, got Permission denied"
        ):
            save_volume(path, noise(1))
        monkeypatch.undo()
        assert everything(path.parent) == before
    (path.parent / "a.npy.json").unlink()
    (path.parent / "a.npy.json").mkdir()
    with pytest.raises(WriteError, match=r"a\.npy\.json: required a file to write, got a folder"):
        save_volume(path, noise(1))
    np.testing.assert_array_equal(np.load(path), noise(0).data[0])
