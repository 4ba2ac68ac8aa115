"""scripts/export.py: converts runs and files to files for viewers, and reports on them."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from splat_ssim.errors import UserError
from splat_ssim.formats import FORMATS, read_splats, save_splats
from splat_ssim.ply import load_ply, ply_comments, save_ply
from splat_ssim.scene import train
from splat_ssim.scene.export import export
from splat_ssim.trainer.cli import main

from .gaussians import make
from .scenes import write_blender

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(run folder, trained task) of a ball, antialiased, with harmonics of degree 1."""
    folder = tmp_path_factory.mktemp("export")
    scene = write_blender(folder / "ball")
    options = {"model": {"antialiased": True, "sh_degree": 1}, "output": {"images": 0, "video": False}}
    return folder / "run", train(scene, steps=40, budget=300, device="cpu", folder=folder / "run", options=options)


def lines(capsys):
    return capsys.readouterr().out.splitlines()


def test_a_run_in_every_format(run, tmp_path, capsys):
    folder, trained = run
    written = export(folder, tmp_path, all=True, views=2)
    assert [path.name for path in written] == [f"scene{kind.suffix}" for kind in FORMATS.values()]
    said = [line for line in lines(capsys) if not line.startswith(" ")]
    assert len(said) == len(FORMATS)
    count = len(trained.splats["means"])
    for line, path in zip(said, written, strict=True):
        size = path.stat().st_size
        assert line.startswith(f"{path}: {size} bytes, {size / count:.1f} for each of {count} Gaussians; ")
        loss = float(re.search(r"dB on 2 test views \(([+-][\d.]+) dB\)", line)[1])
        alike = float(re.search(r"([\d.]+) dB against the run's own renders", line)[1])
        assert loss > -0.5 or path.suffix == ".splat"
        assert alike > {".ply": 45, ".glb": 90, ".splat": 15}.get(path.suffix, 35)
        back = read_splats(path)
        assert len(back) == count and back.antialiased == (path.suffix != ".splat")
    # A format without losses has the PSNR of the run.
    first = float(re.search(r"([\d.]+) dB on 2", said[0])[1])
    assert first == pytest.approx(trained.metrics["psnr"], abs=0.006)


def test_an_old_scene_ply_is_not_exported(tmp_path, capsys):
    scene, folder = write_blender(tmp_path / "ball", train=2, test=1, size=12), tmp_path / "run"
    options = {"output": {"images": 0, "video": False}}
    train(scene, steps=4, budget=60, device="cpu", folder=folder, options=options)
    trained = main(["--resume", str(folder), "--steps", "8", "--output.no-ply", "--output.no-progress"])
    assert f"{folder}: scene.ply is that of an earlier step (--output.ply writes it anew)" in lines(capsys)
    export(folder, tmp_path / "new.ply")
    assert trained["step"] == 8
    assert not torch.equal(load_ply(tmp_path / "new.ply")["means"], load_ply(folder / "scene.ply")["means"])


def test_one_file_by_its_name_and_without_the_photographs(run, tmp_path, capsys, monkeypatch):
    folder, trained = run
    monkeypatch.setattr("splat_ssim.scene.export.reopen", None)
    assert export(folder, tmp_path / "ball.spz") == [tmp_path / "ball.spz"]
    assert len(lines(capsys)) >= 1
    assert export(folder, tmp_path / "ball.bin", formats=("glb",)) == [tmp_path / "ball.bin"]
    back = read_splats(tmp_path / "ball.bin", format="glb")
    torch.testing.assert_close(back.splats()["means"], trained.splats["means"])
    assert export(folder, formats=("splat", "spz", "splat")) == [folder / "scene.splat", folder / "scene.spz"]


def test_an_unfinished_run_by_its_checkpoint(run, tmp_path, capsys):
    folder, trained = run
    (folder / "metrics.json").rename(folder / "metrics.kept")
    (folder / "scene.ply").rename(folder / "scene.kept")
    try:
        export(folder, tmp_path / "a.ply")
    finally:
        (folder / "metrics.kept").rename(folder / "metrics.json")
        (folder / "scene.kept").rename(folder / "scene.ply")
    torch.testing.assert_close(load_ply(tmp_path / "a.ply")["means"], trained.splats["means"])


def test_a_file_in_another_format(tmp_path, capsys):
    save_splats(tmp_path / "a.spz", make(30, 2))
    (tmp_path / "out").mkdir()
    assert export(tmp_path / "a.spz", tmp_path / "out", formats=("ply", "sog"))[0] == tmp_path / "out" / "a.ply"
    means = read_splats(tmp_path / "a.spz").splats()["means"]
    torch.testing.assert_close(load_ply(tmp_path / "out" / "a.ply")["means"], means)
    assert export(tmp_path / "out" / "a.ply", formats=("compressed-ply",)) == [tmp_path / "out" / "a.compressed.ply"]
    assert export(tmp_path / "out" / "a.compressed.ply", tmp_path / "b.ply") == [tmp_path / "b.ply"]
    assert len(load_ply(tmp_path / "b.ply")["means"]) == 30


def test_a_lossy_file_does_not_replace_what_it_was_made_from(run, tmp_path, capsys):
    folder, _ = run
    export(folder, formats=("splat",))
    save_splats(tmp_path / "a.ply", make(30, 2))
    export(tmp_path / "a.ply", formats=("spz",))
    before = [(folder / "scene.ply").read_bytes(), (tmp_path / "a.ply").read_bytes()]
    for output in (None, folder, folder / "scene.ply"):
        with pytest.raises(UserError, match=r"scene\.ply: required an output other than the scene\.ply of a run, got "):
            export(folder / "scene.splat", output, formats=("ply",))
    for output in (None, tmp_path):
        with pytest.raises(UserError, match=r"a\.ply: required an output that is not there, .*a\.spz was made from"):
            export(tmp_path / "a.spz", output, formats=("ply",))
    assert before == [(folder / "scene.ply").read_bytes(), (tmp_path / "a.ply").read_bytes()]
    # A run may write its own again, and a PLY that is named may be replaced.
    assert export(folder, formats=("ply",)) == [folder / "scene.ply"]
    assert export(tmp_path / "a.spz", tmp_path / "a.ply") == [tmp_path / "a.ply"]


def test_scene_ply_says_that_the_run_is_antialiased(run, tmp_path, capsys):
    folder, _ = run
    assert ply_comments(folder / "scene.ply") == ["antialiased"]
    export(folder / "scene.ply", tmp_path / "a.spz")
    assert read_splats(tmp_path / "a.spz").antialiased


def test_the_offset_goes_along_and_is_said(tmp_path, capsys):
    save_ply(tmp_path / "a.ply", make(9, 0), comments=["offset 400000.0 5000000.0 0.0"])
    export(tmp_path / "a.ply", tmp_path, formats=("compressed-ply", "glb", "sog", "spz"))
    assert [line for line in lines(capsys) if line.startswith("  the offset")] == [
        "  the offset of the coordinates is not kept: .spz has no place for it"
    ]
    for suffix in (".glb", ".sog", ".compressed.ply"):
        assert read_splats(tmp_path / f"a{suffix}").offset == (400000.0, 5000000.0, 0.0)
    assert "offset 400000.0 5000000.0 0.0" in ply_comments(tmp_path / "a.compressed.ply")


def test_trained_scenes_are_saved_by_the_name(run, tmp_path):
    _, trained = run
    assert trained.save(tmp_path / "a.ply") == []
    torch.testing.assert_close(load_ply(tmp_path / "a.ply")["means"], trained.splats["means"])
    assert any("harmonics of degree 1 to 1" in note for note in trained.save(str(tmp_path / "a.splat")))
    trained.save(tmp_path / "a.sog")
    assert len(read_splats(tmp_path / "a.sog")) == len(trained.splats["means"])
    with pytest.raises(UserError, match=r"a.obj: required a name that ends in"):
        trained.save(tmp_path / "a.obj")


@pytest.mark.parametrize(
    "arguments,options,message",
    [
        (["nowhere", "a.spz"], {}, "required a run folder or a file of Gaussians, got nothing at nowhere"),
        (["a.ply"], {}, r"required a file to write \(.ply, .*\), --formats or --all, got none"),
        (["a.ply", "."], {}, r"--formats or --all, got the folder \."),
        (["a.ply", "b.obj"], {}, r"b.obj: required a name that ends in .ply, .*, got .obj"),
        (["a.ply", "b.spz"], {"formats": ("spz", "sog")}, "several formats require a folder to write to, got the file"),
        (["a.ply", "a.ply"], {}, "required an output other than the input, got the same file"),
        (["a.ply"], {"all": True}, "required an output other than the input, got the same file"),
        (["a.ply", "b.spz"], {"views": 3}, "--views requires a run folder, got the file a.ply"),
        (["a.ply", "b.spz"], {"views": -1}, "--views must be 0 or more, got -1"),
        (["empty.ply", "b.spz"], {}, "empty.ply: required at least one Gaussian, got none"),
        (["broken.ply", "b.spz"], {}, "broken.ply: required a PLY file, got one without its header"),
        ([".", "b.spz"], {}, "config.yaml: required a YAML file, got No such file"),
    ],
)
def test_what_cannot_be_exported_is_one_sentence(tmp_path, monkeypatch, arguments, options, message):
    monkeypatch.chdir(tmp_path)
    save_ply("a.ply", make(5, 1))
    save_ply("empty.ply", make(0, 1))
    Path("broken.ply").write_bytes(b"no ply")
    before = Path("a.ply").read_bytes()
    with pytest.raises(UserError, match=message):
        export(*map(Path, arguments), **options)
    assert Path("a.ply").read_bytes() == before and not Path("b.spz").exists()


def test_a_run_of_a_volume_is_refused(tmp_path):
    (tmp_path / "config.yaml").write_text("task: volume\n")
    with pytest.raises(UserError, match=r"required a run that trained a scene, got one of splat_ssim\.volume"):
        export(tmp_path, tmp_path / "a.spz")


def test_the_script(tmp_path, monkeypatch):
    save_ply(tmp_path / "a.ply", make(5, 1))
    command = [sys.executable, str(ROOT / "scripts" / "export.py"), str(tmp_path / "a.ply"), str(tmp_path / "o.glb")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r".*o\.glb: \d+ bytes, \d+\.\d for each of 5 Gaussians\n", done.stdout)
    # That an error is one sentence is known of the other scripts.
    monkeypatch.setattr(sys, "argv", [*command[1:-1], str(tmp_path / "o.obj")])
    with pytest.raises(SystemExit, match=r"^error: [^\n]+$"):
        runpy.run_path(command[1], run_name="__main__")
