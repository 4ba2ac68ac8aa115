"""The console commands outside the source folder, and the files that they find there."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

import splat_ssim_commands
from splat_ssim.scene.config import SceneConfig
from splat_ssim.trainer import places
from splat_ssim.trainer.cli import parse
from splat_ssim.trainer.config import ConfigError

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
#: Command -> start of the description in --help.
PURPOSES = {
    "splat-train": "Trains a Gaussian scene.",
    "splat-eval": "Evaluates a run folder's last checkpoint.",
    "splat-render": "Draws a run folder's last checkpoint.",
    "splat-export": "Writes a trained scene in the formats",
    "splat-report": "Writes the page about a run",
    "splat-viewer": "Shows a run folder's last checkpoint in a browser",
    "splat-compare": "Compares two images, two folders of images",
    "splat-prepare": "Makes a COLMAP scene from photographs",
    "splat-voxelize": "Writes the volume that fitted Gaussians stand for",
    "splat-compress": "Writes a volume as a file of Gaussians",
    "splat-decompress": "Writes the volume that a file of Gaussians stands for",
    "splat-project": "Writes projections of a volume",
}

#: Runs command lines as their entry points do, one after the other in one process. Writes each result.
RUNNER = """
import contextlib, importlib, io, json, sys
sys.path.insert(0, sys.argv[1])
results = []
for line in json.loads(sys.argv[2]):
    sys.argv = line["line"]
    for name in line["missing"]:
        sys.modules[name] = None
    output, status = io.StringIO(), 0
    with contextlib.redirect_stdout(output):
        try:
            module, _, function = line["target"].partition(":")
            getattr(importlib.import_module(module), function)()
        except SystemExit as end:
            status = end.code
    results.append([status, output.getvalue()])
print(json.dumps(results))
"""


def run(site, cwd, *lines, missing=()):
    """Runs command lines in another folder with the package in `site`. Returns (status or message, output) of each."""
    jobs = [{"line": list(line), "target": COMMANDS[line[0]], "missing": list(missing)} for line in lines]
    command = [sys.executable, "-c", RUNNER, str(site), json.dumps(jobs)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The package as `pip install .` installs it: with its configs, but without the source folder."""
    site = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "splat_ssim", site / "splat_ssim", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "configs", site / "splat_ssim" / "configs", dirs_exist_ok=True)
    shutil.copy(ROOT / "splat_ssim_commands.py", site)
    return site


def test_every_command_has_its_function_and_its_script():
    assert COMMANDS.keys() == PURPOSES.keys()
    for name, target in COMMANDS.items():
        assert callable(getattr(splat_ssim_commands, target.partition(":")[2]))
        text = (ROOT / "scripts" / f"{name.removeprefix('splat-')}.py").read_text(encoding="utf-8")
        assert f"from splat_ssim_commands import {target.partition(':')[2]}\n" in text


def test_commands_without_the_source_folder(tmp_path, installed):
    lines = [[name, "--help"] for name in PURPOSES]
    lines += [["splat-train", "--config", config] for config in ("fast.yaml", "configs/fast.yaml")]
    results = run(installed, tmp_path, *lines)
    for (name, *_), (status, output) in zip(lines, results, strict=True):
        if status == 0:
            assert f"usage: {name}" in output and PURPOSES[name] in output
    # The config was read. Only the example is missing.
    example = (
        "error: assets/chair_200: required data to train on, got nothing there: the examples are in the source folder "
        "alone, so start there or name your own data (--data-dir)"
    )
    assert [status for status, _ in results] == [0] * len(PURPOSES) + [example] * 2


def test_an_installation_of_the_loss_alone_says_what_is_missing(tmp_path, installed):
    assert run(installed, tmp_path, ["splat-train"], missing=["tyro"]) == [
        ["error: splat-train requires the package tyro, got none: install splat_ssim with its extra 'train'", ""]
    ]


def test_the_example_of_a_checkout_is_found_from_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse(["--config", "fast.yaml"])[1].data_dir == ROOT / "assets" / "chair_200"
    assert parse(["--config", "configs/voxel_mri.yaml"])[1].data_dir == ROOT / "assets" / "brain_mri" / "T1.nii.gz"
    chosen = parse([])[1]
    assert chosen.data_dir == ROOT / "assets" / "chair_200" and chosen.steps == SceneConfig.steps
    with pytest.raises(ConfigError, match=r"other.fast.yaml: required a YAML file, got No such file"):
        parse(["--config", "other/fast.yaml"])


def test_a_file_of_the_working_folder_comes_before_the_shipped_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fast.yaml").write_text("steps: 7\n")
    assert parse(["--config", "fast.yaml"])[1].steps == 7


def test_only_the_examples_of_the_source_folder_have_their_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(places, "source_folder", lambda: None)
    places.check_example(Path("elsewhere"))
    with pytest.raises(ConfigError, match=r"assets.lund: required data to train on, got nothing there"):
        places.check_example(Path("assets/lund"))
    (tmp_path / "assets" / "lund").mkdir(parents=True)
    places.check_example(Path("assets/lund"))


def test_the_command_to_go_on_with_is_the_one_that_was_used(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["scripts/train.py"])
    assert places.program("train") == "python scripts/train.py"
    monkeypatch.setattr(sys, "argv", ["/some/bin/splat-prepare"])
    assert places.program("train") == "splat-train"
    monkeypatch.setattr(sys, "argv", ["notebook.py"])
    monkeypatch.setattr(places, "source_folder", lambda: None)
    assert places.program("train") == "splat-train"


def test_a_missing_package_that_is_no_extra_keeps_its_traceback():
    with pytest.raises(ModuleNotFoundError), splat_ssim_commands._with_its_packages("splat-train"):
        import a_package_that_is_not_there  # noqa: F401


def test_a_reader_that_has_left_ends_a_program_quietly():
    text = "import splat_ssim_commands as c\nwith c._with_its_packages('splat-train'): print('line\\n' * 99999)"
    with subprocess.Popen(
        [sys.executable, "-c", text], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.readline().strip() == b"line"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_an_interrupt_while_packages_are_imported_ends_a_program_quietly(capfd):
    with pytest.raises(SystemExit) as ended, splat_ssim_commands._with_its_packages("splat-train"):
        raise KeyboardInterrupt
    assert ended.value.code == 130 and capfd.readouterr().err == ""
