"""A few hundred damaged files of `make fuzz-files`, planted faults that it must find, and its earlier findings."""

import json
import os
import random
import shutil
import struct
import time
import zipfile

import numpy as np
import pytest
import torch
import yaml

from splat_ssim.errors import UserError
from splat_ssim.ply import PlyError, load_ply
from splat_ssim.scene.data import SceneError, load_scene
from splat_ssim.scene.data.colmap_files import check_binary
from splat_ssim.trainer.checkpoint import CheckpointError, load_checkpoint, saved_step
from splat_ssim.trainer.config import ConfigError, RunConfig, from_mapping, read_values, read_yaml
from splat_ssim.trainer.loop import Run, reopen
from splat_ssim.trainer.states import check_rows, check_values, load_optimizer, number_of, tensors_problem
from splat_ssim.volume import VoxelGrid
from splat_ssim.volume.export import FieldSource, load_gaussians_ply, load_quantized, save_gaussians_ply, save_quantized
from splat_ssim.volume.gaussians import GaussianField
from splat_ssim.volume.rebuild import rebuild
from tests import fuzz_files
from tests.fuzz_file_readers import Target
from tests.scenes import write_blender, write_colmap, write_nerfstudio
from tests.test_resume import part_of

CPU = torch.device("cpu")


# --- the fuzzer


@pytest.mark.slow
def test_some_hundred_files(tmp_path):
    fuzzing = fuzz_files.Fuzzing(tmp_path)
    fuzzing.run(7 * 10**9, 7 * 10**9 + 250)
    assert not fuzzing.findings and sum(fuzzing.counts.values()) == 250
    assert set(fuzzing.counts) == {target.name for target in fuzzing.targets}
    # Some damage is harmless.
    assert 0 < sum(fuzzing.read.values()) < 125


def _raise(error):
    raise error


@pytest.mark.parametrize(
    ("read", "problem"),
    [
        (lambda path: None, None),
        (lambda path: _raise(UserError(f"{path}: no")), None),
        (lambda path: _raise(UserError("no")), "a message that does not name the file"),
        (lambda path: _raise(ValueError("no")), "ValueError in test_fuzz_files.py:_raise"),
        (lambda path: os.abort(), "the worker ended by exit code -6"),
        (lambda path: bytes(3 << 30), "MemoryError in test_fuzz_files.py:<lambda>"),
        (lambda path: [None for _ in iter(int, 1)], "a hang of"),
    ],
)
def test_the_fuzzer_sees(tmp_path, monkeypatch, read, problem):
    (tmp_path / "seeds").mkdir()
    (tmp_path / "seeds" / "a.txt").write_text("a")
    target = Target("text", 1, ("a.txt",), lambda source, content: content, lambda path, source: read(path))
    monkeypatch.setattr(fuzz_files, "TARGETS", [target])
    monkeypatch.setattr(fuzz_files, "COMPUTING", 0.5)
    fuzzing = fuzz_files.Fuzzing(tmp_path)
    fuzzing.run(0, 2)
    assert fuzzing.counts["text"] == 2
    if problem is None:
        assert not fuzzing.findings
    else:
        ((kind, found),) = {(kind, found[: len(problem)]) for kind, found in fuzzing.findings}
        assert (kind, found) == ("text", problem)


def test_a_case_is_drawn_from_its_number(tmp_path):
    (tmp_path / "a.bin").write_bytes(bytes(range(200)))
    target = Target("bytes", 1, ("a.bin",), fuzz_files.TARGETS[3].change, lambda path, source: None)
    contents = [fuzz_files.draw(number, [target], tmp_path)[3] for number in (1, 1, 2)]
    assert contents[0] == contents[1] != contents[2]


# --- messages


def test_a_message_is_one_line_of_printable_characters():
    assert str(UserError("a\n  b\x1b[31m\u2028c")) == "a b [31m c"
    assert str(UserError("two  blanks stay")) == "two  blanks stay"
    long = str(UserError("a.yaml: got " + "x" * 100_000))
    assert long.startswith("a.yaml: got ") and len(long) < 1100


# --- configs


@pytest.mark.parametrize(
    "text",
    [
        "a: 1\n b: 2",
        "steps: 2020-13-45",
        "steps: !!timestamp x",
        "steps: !!int x",
        "steps: " + "[" * 5000,
        "steps: &a [*a]",
        "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 20)),
        "[1]: 2\n",
    ],
)
def test_a_config_that_no_yaml_reader_expects(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    start = time.thread_time()
    with pytest.raises(ConfigError, match=r"config\.yaml: ") as refused:
        from_mapping(RunConfig, read_yaml(path), str(path))
    assert len(str(refused.value).splitlines()) == 1 and time.thread_time() - start < 30


def test_aliases_are_read_where_they_stand_for_little(tmp_path):
    (tmp_path / "config.yaml").write_text("loss_kwargs: &a {x: [1, 2]}\noutput: {}\nother: *a\n")
    assert read_yaml(tmp_path / "config.yaml")["other"] == {"x": [1, 2]}


def test_numbers_and_names_beyond_what_the_system_takes(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"data_dir": "x" * 5000, "steps_scaler": 10**400}))
    values = read_values(path)
    assert values["data_dir"] == "x" * 5000
    with pytest.raises(ConfigError, match=r"config\.yaml: steps_scaler: required float"):
        from_mapping(RunConfig, values, str(path))
    with pytest.raises(ConfigError, match="steps times steps_scaler must be below"):
        RunConfig(steps=10**400).resolved()
    with pytest.raises(SceneError, match="required a scene folder"):
        load_scene("x" * 5000)


# --- scenes


@pytest.mark.parametrize(
    ("write", "name"), [(write_blender, "transforms_train.json"), (write_nerfstudio, "transforms.json")]
)
def test_frames_that_name_the_root(tmp_path, write, name):
    path = write(tmp_path / "scene") / name
    content = json.loads(path.read_text())
    for frame in content["frames"]:
        frame["file_path"] = "/"
    path.write_text(json.dumps(content))
    with pytest.raises(SceneError, match=rf"required an image, got nothing there.* of {name}"):
        load_scene(path.parent)


def test_a_frame_whose_name_is_too_long(tmp_path):
    folder = write_nerfstudio(tmp_path / "scene", count=3)
    content = json.loads((folder / "transforms.json").read_text())
    for frame in content["frames"]:
        frame["file_path"] = "images/" + "x" * 5000
    (folder / "transforms.json").write_text(json.dumps(content))
    with pytest.raises(SceneError, match=r"required an image, got nothing there.* of transforms\.json"):
        load_scene(folder)
    write_nerfstudio(folder, count=3, ply_file_path="x" * 5000)
    with pytest.raises(SceneError, match=r"required the point cloud that transforms\.json names"):
        load_scene(folder)
    write_nerfstudio(folder, count=3)
    content = json.loads((folder / "transforms.json").read_text())
    content["frames"][0]["mask_path"] = "x" * 5000
    (folder / "transforms.json").write_text(json.dumps(content))
    with pytest.raises(SceneError, match="required an image, got nothing there"):
        load_scene(folder)


@pytest.mark.parametrize("width", [1e300, 2.0**64, 2**31, 0, -1, 8.5])
def test_a_size_that_no_camera_has(tmp_path, width):
    folder = write_nerfstudio(tmp_path / "scene", count=3, k1=0.01, w=width)
    with pytest.raises(SceneError, match=r"transforms\.json: frame 0: required a positive whole number 'w', got"):
        load_scene(folder)


def test_a_ply_with_a_number_of_thousands_of_digits(tmp_path):
    path = tmp_path / "a.ply"
    path.write_text("ply\nformat ascii 1.0\nelement vertex " + "9" * 5000 + "\nproperty float x\nend_header\n")
    with pytest.raises(PlyError, match=r"a\.ply: required a format, a number of vertices"):
        load_ply(path)


@pytest.fixture
def model(tmp_path):
    """A binary COLMAP model."""
    import pycolmap

    folder = write_colmap(tmp_path / "scene", points=4) / "sparse" / "0"
    reconstruction = pycolmap.Reconstruction(str(folder))
    for path in folder.iterdir():
        path.unlink()
    reconstruction.write_binary(str(folder))
    return folder


@pytest.mark.parametrize("name", ["cameras", "images", "points3D", "rigs", "frames"])
def test_counts_of_a_binary_colmap_model(model, name):
    path = model / f"{name}.bin"
    whole = path.read_bytes()
    check_binary(model)
    load_scene(model.parents[1])
    counts = [struct.pack("<Q", count) for count in (0, 2**62, 2**64 - 1, whole[0] + 1)]
    for damaged in (*(count + whole[8:] for count in counts), whole[:-1], whole + b"\0", b"", whole[:20]):
        path.write_bytes(damaged)
        with pytest.raises(SceneError, match=rf"{name}\.bin: required a binary file of COLMAP whose counts fit"):
            load_scene(model.parents[1])


def test_a_track_that_claims_more_than_there_is(model):
    path = model / "points3D.bin"
    content = bytearray(path.read_bytes())
    content[8 + 43 : 8 + 51] = b"\xff" * 8
    path.write_bytes(content)
    with pytest.raises(SceneError, match=r"points3D\.bin: required a binary file"):
        load_scene(model.parents[1])


def test_the_check_of_a_large_colmap_model_is_quick(tmp_path):
    count = 100_000
    point = bytes(43) + struct.pack("<Q", 3) + bytes(24)
    (tmp_path / "points3D.bin").write_bytes(struct.pack("<Q", count) + point * count)
    start = time.process_time()
    check_binary(tmp_path)
    assert time.process_time() - start < 0.5  # 0.03 s on a quiet machine


def test_the_name_of_an_image_in_another_encoding(model):
    path = model / "images.bin"
    path.write_bytes(path.read_bytes().replace(b"0.png", b"\xff.png"))
    with pytest.raises(SceneError, match="required names of images in UTF-8"):
        load_scene(model.parents[1])


# --- checkpoints


def test_a_number_that_float64_does_not_hold():
    with pytest.raises(ValueError, match=r"^last_loss: required a number that float64 holds, got a larger integer$"):
        number_of(10**400, "last_loss")


def test_damage_that_torch_passes_over_is_found(tmp_path):
    part_of(tmp_path / "run", 30)
    path = tmp_path / "run" / "checkpoint.pt"
    with zipfile.ZipFile(path) as file:
        largest = max(file.infolist(), key=lambda entry: entry.file_size)
    content = bytearray(path.read_bytes())
    name, extra = struct.unpack_from("<HH", content, largest.header_offset + 26)
    content[largest.header_offset + 30 + name + extra + 1000] ^= 64
    path.write_bytes(content)
    torch.load(path, weights_only=True)
    with pytest.raises(CheckpointError, match=r"required a checkpoint of splat_ssim, got (one whose|BadZip)"):
        load_checkpoint(path.parent, CPU)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": "3"}, "a step and seconds"),
        ({"step": -1}, "a step and seconds"),
        ({"step": 10**30}, "a step and seconds"),
        ({"train_seconds": float("nan")}, "a step and seconds"),
        ({"generators": [1]}, "one without generators"),
        ({"generators": {"cpu": torch.zeros(3)}}, "TypeError"),
        ({"value": torch.tensor(float("nan"))}, "value must be finite"),
        ({"value": torch.zeros(1).expand(10**13)}, "a tensor of shape"),
        ({"value": torch.zeros(3, device="meta")}, "a tensor of shape"),
        ({"value": torch.eye(3).to_sparse()}, "a tensor of shape"),
    ],
)
def test_a_checkpoint_of_other_values(tmp_path, change, message):
    part_of(tmp_path / "run", 30)
    path = tmp_path / "run" / "checkpoint.pt"
    state = torch.load(path, weights_only=True)
    torch.save({**state, **change}, path)
    with pytest.raises(CheckpointError, match=rf"checkpoint\.pt: required a checkpoint of splat_ssim, got .*{message}"):
        reopen(tmp_path / "run").go_on()
    assert saved_step(tmp_path / "run") == (30 if "step" not in change else None)
    torch.save({key: value for key, value in state.items() if key != "value"}, path)
    with pytest.raises(CheckpointError, match="got KeyError"):
        reopen(tmp_path / "run")


def test_rows_of_a_model():
    like = {"means": torch.zeros(5, 3), "opacities": torch.zeros(5)}
    assert check_rows({"means": torch.zeros(2, 3), "opacities": torch.zeros(2)}, like, "splats") == 2
    for other, message in (
        ({"means": torch.zeros(2, 3)}, "splats: required means, opacities, got means"),
        ({"means": torch.zeros(2, 3), "opacities": torch.zeros(3)}, r"opacities: required float32 of shape \(2\), got"),
        ({"means": torch.zeros(2, 4), "opacities": torch.zeros(2)}, r"means: required float32 of shape \(2, 3\), got"),
        ({"means": torch.zeros(2, 3).double(), "opacities": torch.zeros(2)}, "got float64"),
        ({"means": torch.zeros(0, 3), "opacities": torch.zeros(0)}, "required at least one row"),
        ({"means": [1], "opacities": torch.zeros(2)}, "got list"),
        ([], "got list"),
    ):
        with pytest.raises(ValueError, match=message):
            check_rows(other, like, "splats")


def test_values_of_a_strategy():
    like = {"sums": None, "scale": 1.0, "curve": [], "kind": "a"}
    whole = {"sums": torch.zeros(4), "scale": 2, "curve": [1, 2], "kind": "b", "added": 0}
    check_values(whole, like, "strategy", rows=4)
    check_values({**whole, "sums": None}, like, "strategy", rows=4)
    for change in (
        {"sums": torch.zeros(3)},
        {"sums": "x"},
        {"scale": "x"},
        {"curve": [[]]},
        {"kind": 1},
        {"added": "x"},
    ):
        with pytest.raises(ValueError, match=f"strategy.{next(iter(change))}: required a value for 4 rows"):
            check_values({**whole, **change}, like, "strategy", rows=4)
    with pytest.raises(ValueError, match="strategy: required sums, scale, curve, kind, got nothing"):
        check_values({}, like, "strategy", rows=4)


@pytest.mark.parametrize(
    "damage",
    [
        lambda state: state["state"][0].update(exp_avg=torch.zeros(4)),
        lambda state: state["state"][0].update(step=torch.zeros(0)),
        lambda state: state["state"][0].update(step="x"),
        lambda state: state["state"][0].pop("exp_avg_sq"),
        lambda state: state["state"].update({1: {}}),
        lambda state: state["state"].update({0: 3}),
        lambda state: state["state"][0].update(step=torch.tensor(-1.0)),
        lambda state: state["param_groups"][0].update(betas="ab"),
        lambda state: state["param_groups"][0].update(betas=(0.9, 1.0)),
        lambda state: state["param_groups"][0].update(betas=(-3, 0.9)),
        lambda state: state["param_groups"][0].update(lr=-1.0),
        lambda state: state["param_groups"][0].update(differentiable=True),
        lambda state: state["param_groups"][0].update(params=[5]),
        lambda state: state["param_groups"][0].pop("lr"),
        lambda state: state["param_groups"].append({}),
        lambda state: state.pop("state"),
    ],
)
def test_the_state_of_an_optimizer(damage):
    weights = torch.nn.Parameter(torch.ones(3, 4))
    optimizer = torch.optim.Adam([weights])
    weights.sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    state = {"state": {0: dict(state["state"][0])}, "param_groups": [dict(state["param_groups"][0])]}
    load_optimizer(torch.optim.Adam([weights]), state)
    del state["param_groups"][0]["foreach"]  # from a torch that did not have it yet
    load_optimizer(torch.optim.Adam([weights]), state)
    damage(state)
    with pytest.raises(ValueError, match=r"^optimizer"):
        load_optimizer(torch.optim.Adam([weights]), state)


def test_tensors_that_are_whole():
    assert tensors_problem({"a": [torch.zeros(3), (torch.eye(2).T, 1)], "b": None}) is None
    assert tensors_problem([{"a": (torch.zeros(1).expand(9),)}]) == "a tensor of shape (9,) without as many numbers"


# --- fitted Gaussians


@pytest.fixture
def fitted(tmp_path):
    """A quantised field, and the same field as a PLY."""
    grid = VoxelGrid.regular((6, 6, 6))
    field = GaussianField.from_volume(torch.rand(1, 6, 6, 6), grid, count=5)
    source = FieldSource(grid, 0.0, 1.0)
    save_gaussians_ply(tmp_path / "a.ply", field, source)
    return save_quantized(tmp_path / "a.quantized", field, grid, source=source), tmp_path / "a.ply"


def _with_header(path, change):
    content = path.read_bytes()
    size = int.from_bytes(content[9:13], "little")
    header = json.loads(content[13 : 13 + size])
    change(header)
    head = json.dumps(header).encode()
    path.write_bytes(content[:9] + len(head).to_bytes(4, "little") + head + content[13 + size :])


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header.update(count=10**12),
        lambda header: header.update(count="x"),
        lambda header: header.pop("fields"),
        lambda header: header["fields"].pop("means"),
        lambda header: header["fields"]["means"].pop("high"),
        lambda header: header["fields"]["means"].update(low=[[]]),
        lambda header: header["fields"]["means"].update(low=[float("nan")] * 3),
        lambda header: header["fields"]["log_scales"].update(high=[1e5] * 3),
        lambda header: header["fields"]["quats"].update(bits=10**9),
        lambda header: header["fields"]["quats"].update(low=[1e39, 0, 0]),
        lambda header: header["fields"].update(other={}),
        lambda header: header["source"].update(shape=[10**6] * 3),
        lambda header: header["source"].update(shape=3),
        lambda header: header["source"].update(affine=[]),
        lambda header: header["source"].update(low=float("inf")),
    ],
)
def test_the_header_of_a_quantised_field(fitted, tmp_path, change):
    path, _ = fitted
    rebuild(path, tmp_path / "out.npy")
    _with_header(path, change)
    with pytest.raises(UserError, match=r"a\.quantized"):
        rebuild(path, tmp_path / "out.npy")


def test_codes_and_properties_of_fitted_gaussians(fitted, tmp_path):
    quantized, ply = fitted
    rebuild(ply, tmp_path / "out.npy")
    content = quantized.read_bytes()
    for damaged in (content[:-9], content[:40], content[:9], content[:13] + b"[" * 5000, b""):
        quantized.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a\.quantized must be a"):
            load_quantized(quantized)
    content = ply.read_bytes()
    nan = np.float32("nan").tobytes()
    for damaged in (
        content.replace(b"property float x\n", b"property float\n"),
        content.replace(b"property float x\n", b"property float y\n"),
        content.replace(b"vertex 5", b"vertex -5"),
        content.replace(b"vertex 5", b"vertex " + b"9" * 5000),
        content[:-4] + nan,
        content[:-1],
    ):
        ply.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a\.ply must (be|have|hold) "):
            load_gaussians_ply(ply)


def test_the_changes_keep_what_they_are_given(tmp_path):
    """A changed tree is a copy, because the valid file is damaged again for each case."""
    from tests.fuzz_file_changes import change_tree

    tree = {"a": [1, {"b": 2}], "c": "d"}
    before = json.dumps(tree)
    for number in range(200):
        change_tree(random.Random(number), tree)
    assert json.dumps(tree) == before


def test_a_run_goes_on_after_a_checkpoint_was_put_back(tmp_path):
    part_of(tmp_path / "run", 30)
    path = tmp_path / "run" / "checkpoint.pt"
    shutil.copy(path, tmp_path / "whole.pt")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="got BadZipFile"):
        reopen(tmp_path / "run")
    shutil.copy(tmp_path / "whole.pt", path)
    assert isinstance(reopen(tmp_path / "run"), Run)
