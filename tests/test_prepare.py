"""scripts/prepare.py: from photographs and videos to scenes that our own reader reads."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from splat_ssim._files import write_json
from splat_ssim.errors import UserError, WriteError
from splat_ssim.prepare import Options, colmap, prepare, video
from splat_ssim.prepare.photos import Photo, find_photos, write_upright
from splat_ssim.prepare.reduced import finish_images
from splat_ssim.prepare.workspace import Workspace
from splat_ssim.scene.data import load_scene
from splat_ssim.trainer.pictures import read_image, write_video
from tests import photos

ROOT = Path(__file__).resolve().parent.parent
COUNT = 10
#: Two threads, and as many features as small pictures need.
QUICK = {"threads": 2, "progress": False, "features": 1000}


def lines(capsys):
    return capsys.readouterr().out.splitlines()


def turned_back(pixels):
    """The stored pixels that EXIF orientation 6, a quarter turn clockwise, turns into `pixels`."""
    return np.rot90(pixels, 1).copy()


def hidden(pixels):
    """(H, W) bool, true where the tests' masks hide a picture: an asymmetric part of the corner."""
    mask = np.zeros(pixels.shape[:2], bool)
    mask[40:120, 200:290] = True
    return mask


def to_mask(mask):
    return Image.fromarray(np.where(mask, 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Makes a scene from photographs of every kind, two of them broken. Returns folder, viewmats by name and report."""
    base = tmp_path_factory.mktemp("prepare")
    folder, truth = base / "shots", {}
    for index, viewmat in enumerate(photos.viewmats(COUNT)):
        # The third photograph is upright but stored on its side.
        size = (photos.HEIGHT, photos.WIDTH) if index == 2 else (photos.WIDTH, photos.HEIGHT)
        pixels = photos.render(viewmat, *size)
        stem = f"{index:02d}"
        if index == 2:
            photos.write_jpeg(folder / f"{stem}.jpg", turned_back(pixels), orientation=6, focal_35mm=photos.FOCAL_35MM)
        elif index == 4:
            alpha = np.where(hidden(pixels), 0, 255).astype(np.uint8)
            Image.fromarray(np.dstack([pixels, alpha])).save(folder / f"{stem}.png")
        elif index == 6:
            grey = np.asarray(Image.fromarray(pixels).convert("L"))
            Image.fromarray(grey.astype(np.uint16) * 257).save(folder / f"{stem}.png")
        elif index == 7:
            Image.fromarray(pixels).save(folder / f"{stem}.tif")
        else:
            photos.write_jpeg(folder / f"{stem}.jpg", pixels, focal_35mm=photos.FOCAL_35MM)
        name = f"{stem}.png" if index in (4, 6, 7) else f"{stem}.jpg"
        truth[name] = viewmat
    masks = folder / "masks"
    masks.mkdir()
    blank = np.zeros((photos.HEIGHT, photos.WIDTH))
    # One mask is named as for COLMAP, one as for nerfstudio, and one is stored on its side like its photograph.
    to_mask(hidden(blank)).save(masks / "00.jpg.png")
    to_mask(hidden(blank)).save(masks / "01.png")
    upright = np.zeros((photos.WIDTH, photos.HEIGHT), bool)
    upright[200:290, 40:100] = True
    to_mask(turned_back(upright)).save(masks / "02.png")
    whole = (folder / "00.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "text.png").write_text("no picture")
    (folder / "notes.txt").write_text("no photograph")
    (folder / "more").mkdir()
    shutil.copyfile(folder / "00.jpg", folder / "more" / "00.jpg")
    scene = base / "scene"
    return scene, truth, prepare(folder, scene, Options(**QUICK))


def test_every_photograph_is_placed_where_it_was_taken(made):
    scene, truth, report = made
    assert report["registered"] == COUNT and report["not_registered"] == []
    views = {view.name: view for view in load_scene(scene, test_every=0).train}
    assert sorted(views) == sorted(truth)
    names = sorted(truth)
    degrees, distances = photos.angles_to_truth(
        [truth[name] for name in names], [views[name].viewmat.double().numpy() for name in names]
    )
    # An error of half a pixel at a focal length of 300 pixels is a tenth of a degree.
    assert degrees.max() < 0.5, degrees
    assert distances.max() < 0.02, distances


def test_focal_lengths_are_found(made):
    _, _, report = made
    assert report["exif_focal"] == COUNT - 3
    for camera in report["cameras"]:
        np.testing.assert_allclose(camera["focal"], photos.FOCAL, rtol=0.03)
    # The cameras are one with EXIF, one without, and one on its side.
    assert len(report["cameras"]) == 3


def test_the_upright_photograph_is_upright(made):
    scene, truth, _ = made
    view = next(view for view in load_scene(scene, test_every=0).train if view.name == "02.jpg")
    assert view.height > view.width
    expected = photos.render(truth["02.jpg"], photos.HEIGHT, photos.WIDTH)[2:-2, 2:-2].astype(float)
    # The undistorted picture is a pixel or two smaller, and its remaining distortion is a fraction of a pixel.
    result = np.asarray(Image.fromarray(view.image.numpy()).resize((photos.HEIGHT, photos.WIDTH)), float)[2:-2, 2:-2]
    assert np.corrcoef(expected.ravel(), result.ravel())[0, 1] > 0.9
    assert np.corrcoef(expected.ravel(), result[::-1, ::-1].ravel())[0, 1] < 0.5


@pytest.mark.parametrize("factor", [1, 2])
def test_masks_and_alpha_reach_the_reader(made, factor):
    scene, _, report = made
    views = {view.name: view for view in load_scene(scene, test_every=0, factor=factor).train}
    assert report["masks"] == 3
    assert {name for name, view in views.items() if view.mask is not None} == {"00.jpg", "01.jpg", "02.jpg"}
    assert {name for name, view in views.items() if view.alpha is not None} == {"04.png"}
    expected = hidden(np.zeros((photos.HEIGHT, photos.WIDTH)))
    upright = np.zeros((photos.WIDTH, photos.HEIGHT), bool)
    upright[200:290, 40:100] = True
    for name, area in (("00.jpg", expected), ("01.jpg", expected), ("02.jpg", upright), ("04.png", expected)):
        view = views[name]
        masked = ~view.mask if view.mask is not None else view.alpha < 0.5
        rows, columns = (
            axis.float() / factor_of for axis, factor_of in zip(masked.nonzero().T, masked.shape, strict=True)
        )
        true_rows, true_columns = (axis / size for axis, size in zip(area.nonzero(), area.shape, strict=True))
        # Compares edges of the area as fractions of the picture. Undistortion moves them by a pixel or two.
        for result, truth in ((rows, true_rows), (columns, true_columns)):
            assert result.min() == pytest.approx(truth.min(), abs=0.02), name
            assert result.max() == pytest.approx(truth.max(), abs=0.02), name


def test_no_feature_is_masked(made):
    import pycolmap

    scene, _, _ = made
    with pycolmap.Database.open(scene / "prepare" / "features.db") as database:
        for image in database.read_all_images():
            x, y = database.read_keypoints(image.image_id)[:, :2].astype(int).T
            inside = hidden(np.zeros((photos.HEIGHT, photos.WIDTH)))
            if image.name == "02.jpg":
                continue
            count = int(inside[y.clip(0, photos.HEIGHT - 1), x.clip(0, photos.WIDTH - 1)].sum())
            # Without a mask this part of the corner is full of features.
            assert (count == 0) == (image.name in ("00.jpg", "01.jpg", "04.png")), (image.name, count)


def test_reduced_copies_and_report(made):
    scene, truth, report = made
    assert json.loads((scene / "report.json").read_text()) == json.loads(json.dumps(report))
    for factor in (2, 4, 8):
        assert {path.name for path in (scene / f"images_{factor}").iterdir()} == set(truth)
    assert report["found"] == COUNT + 2 and report["read"] == COUNT
    assert report["points"] > 300 and report["mean_reprojection_error"] < 1 and report["mean_track_length"] > 2
    notes = "\n".join(report["notes"])
    assert "cut.jpg: required an image that decodes" in notes and "text.png: required an image" in notes
    assert "no photographs: 1 (notes.txt)" in notes and "(--recursive): 1 (more/00.jpg)" in notes
    assert "masks for 3 of 12 photographs" in notes
    assert report["next"] == f"python scripts/train.py --data-dir {scene}"
    assert not (scene / "prepare" / "parts").exists()


def test_options_redo_the_stages_that_they_touch(made, tmp_path, capsys):
    scene, _, _ = made
    work = tmp_path / "scene"
    shutil.copytree(scene, work)
    source = scene.parent / "shots"
    before = (work / "prepare" / "features.db").stat().st_mtime_ns
    prepare(source, work, Options(**QUICK))
    assert lines(capsys)[:5] == [
        f"{stage}: done before" for stage in ("photos", "features", "matching", "mapping", "undistortion")
    ]
    prepare(source, work, Options(**QUICK, seed=5))
    told = lines(capsys)
    assert told[:2] == ["photos: done before", "features: done before"]
    assert "matching: its inputs or options have changed, so it is done again" in told
    assert (work / "prepare" / "features.db").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="required the photographs it was begun with"):
        prepare(scene.parent, work, Options(**QUICK))


# --- videos


def blurred(pixels):
    image = Image.fromarray(pixels)
    return np.asarray(image.resize((image.width // 6, image.height // 6)).resize(image.size, Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A video of 24 frames, and their poses. Every third frame, from the second on, is sharp."""
    path = tmp_path_factory.mktemp("clip") / "walk.mp4"
    viewmats = photos.viewmats(24)
    frames = [photos.render(viewmat) for viewmat in viewmats]
    write_video(path, [frame if index % 3 == 1 else blurred(frame) for index, frame in enumerate(frames)])
    return path, viewmats


def test_a_video_becomes_a_scene_of_its_sharpest_frames(clip, tmp_path):
    path, viewmats = clip
    report = prepare(path, tmp_path / "scene", Options(**QUICK, frames=8))
    scene = load_scene(tmp_path / "scene", test_every=0)
    assert [view.name for view in scene.train] == [f"frame_{index:06d}.jpg" for index in range(1, 24, 3)]
    assert report["found"] == 24 and report["read"] == 8
    degrees, _ = photos.angles_to_truth(viewmats[1::3], [view.viewmat.double().numpy() for view in scene.train])
    assert degrees.max() < 1.0, degrees


def test_a_short_video_gives_all_of_its_frames(clip, tmp_path):
    sizes = video.write_sharpest(clip[0], tmp_path, count=100, total=24, max_size=160, threads=1, step=lambda: None)
    assert len(sizes) == 24 and set(sizes.values()) == {(160, 120)}


def test_a_broken_video_is_one_sentence(tmp_path):
    path = tmp_path / "broken.mp4"
    path.write_bytes(b"no video" * 100)
    with pytest.raises(UserError, match=r"broken\.mp4: required a video that ffmpeg reads, got"):
        prepare(path, tmp_path / "scene", Options(**QUICK))


def test_similar_photographs_are_found_by_retrieval(tmp_path):
    # Two places that share nothing, with the names of their photographs mixed.
    source = tmp_path / "shots"
    for index, viewmat in enumerate(photos.viewmats(5)):
        photos.write_jpeg(source / f"{index}_a.jpg", photos.render(viewmat), focal_35mm=photos.FOCAL_35MM)
        other = photos.render(viewmat, textures=photos.OTHER_TEXTURES)
        photos.write_jpeg(source / f"{index}_b.jpg", other, focal_35mm=photos.FOCAL_35MM)
    report = prepare(source, tmp_path / "scene", Options(**QUICK, exhaustive_limit=5, similar=5))
    assert report["pairs"]["kind"] == "retrieval"
    # One place has 10 pairs of photographs, and both together have 45.
    assert report["pairs"]["pairs"] < 36 and report["pairs"]["verified"] >= 16
    assert [model["photos"] for model in report["other_models"]] == [5]
    assert report["registered"] == 5 and len({name[2] for name in report["not_registered"]}) == 1


def test_photographs_inside_the_scene_folder(tmp_path):
    scene = tmp_path / "scene"
    source = corner(scene / "input", 3)
    # Files written there are not mistaken for inputs, although masks beside the photographs are inputs.
    (scene / "masks").mkdir()
    assert find_photos(source, recursive=False, masks=None, scene=scene).notes == []
    assert "masks for 0 of 3 photographs" in find_photos(source, recursive=False, masks=None).notes[0]
    with pytest.raises(UserError, match="images: required photographs outside the folders written in"):
        prepare(corner(scene / "images", 3), scene, Options(**QUICK))


# --- runs that are stopped


def corner(folder, count=5):
    for index, viewmat in enumerate(photos.viewmats(count)):
        photos.write_jpeg(folder / f"{index}.jpg", photos.render(viewmat), focal_35mm=photos.FOCAL_35MM)
    return folder


#: Runs prepare with a worker that stops for good before the matching.
HANGING = """
import sys
from pathlib import Path
from splat_ssim.prepare import colmap
colmap.WORKER = Path(sys.argv.pop(1))
from splat_ssim.trainer.cli import call
call("splat_ssim.prepare:prepare")
"""


def worker(path, stage, instead):
    """A worker that runs `instead` in place of one stage, and the real code for all others."""
    real = colmap.WORKER
    path.write_text(
        f"import json, os, runpy, sys, time\njob = json.load(open(sys.argv[1]))\n"
        f"if job['job'] == {stage!r}:\n    {instead}\nrunpy.run_path({str(real)!r}, run_name='__main__')\n"
    )
    return path


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A process that has ended but was not waited for does not count as alive.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_run_goes_on(tmp_path, capsys, monkeypatch, number):
    source, scene, told = corner(tmp_path / "shots"), tmp_path / "scene", tmp_path / "pid"
    # It has begun to compare photographs, and has left half a database.
    instead = f"open({str(told)!r}, 'w').write(str(os.getpid())); sys.stdin.read(); os._exit(1)"
    hanging = worker(tmp_path / "worker.py", "matching", instead)
    options = ["--threads", "2", "--features", "1000", "--no-progress"]
    command = [sys.executable, "-c", HANGING, str(hanging), str(source), str(scene), *options]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while not (told.is_file() and told.read_text()):
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.05)
    assert (scene / "prepare" / "features.db").is_file() and not (scene / "prepare" / "matching.db").exists()
    assert not (scene / "sparse").exists() and not (scene / "report.json").exists()
    with monkeypatch.context() as patched, pytest.raises(UserError, match="got one in use"):
        patched.setattr("splat_ssim.prepare.workspace.LOCK_SECONDS", 0.0)
        Workspace(scene, source)
    process.send_signal(number)
    error = process.communicate(timeout=20)[1]
    if number == signal.SIGINT:
        assert process.returncode == 130 and "stopped in matching; the same command goes on there" in error
        assert not is_alive(int(told.read_text()))
        return
    report = prepare(source, scene, Options(**QUICK))
    assert not is_alive(int(told.read_text()))
    assert lines(capsys)[:2] == ["photos: done before", "features: done before"]
    assert report["registered"] == 5


def test_photographs_that_changed_are_read_again(tmp_path, capsys, monkeypatch):
    source, scene = corner(tmp_path / "shots", 4), tmp_path / "scene"
    monkeypatch.setattr(colmap, "WORKER", worker(tmp_path / "worker.py", "features", "os.abort()"))
    for _ in range(2):
        with pytest.raises(UserError):
            prepare(source, scene, Options(**QUICK))
    assert "photos: done before" in lines(capsys)
    photos.write_jpeg(source / "9.jpg", photos.render(photos.viewmats(4)[0]))
    with pytest.raises(UserError):
        prepare(source, scene, Options(**QUICK))
    assert "photos: its inputs or options have changed, so it is done again" in lines(capsys)
    assert (scene / "prepare" / "photos" / "images" / "9.jpg").is_file()


@pytest.mark.parametrize(
    ("instead", "told"),
    [
        ("os.abort()", "mapping: required COLMAP to reach its end, got signal SIGABRT after 'no output'"),
        ("sys.exit('the reason')", "mapping: required COLMAP to reach its end, got an error after 'the reason'"),
        ("time.sleep(60)", "mapping: required progress of COLMAP within 0.01 minutes"),
    ],
)
def test_what_ends_colmap_is_one_sentence(tmp_path, monkeypatch, instead, told):
    monkeypatch.setattr(colmap, "WORKER", worker(tmp_path / "worker.py", "mapping", instead))
    job = {"job": "mapping"}
    with (
        (tmp_path / "lock").open("w") as lock,
        video_bar() as bar,
        pytest.raises(UserError, match=told.replace(".", r"\.")),
    ):
        colmap.run_job(job, log=tmp_path / "log.txt", bar=bar, stall_minutes=0.01, lock=lock.fileno())


def video_bar():
    from tqdm import tqdm

    return tqdm(total=3, disable=True)


def test_defects_keep_their_traceback(tmp_path):
    with (
        (tmp_path / "lock").open("w") as lock,
        video_bar() as bar,
        pytest.raises(RuntimeError, match="KeyError: 'names'"),
    ):
        job = {"job": "features", "database": "x", "images": "x"}
        colmap.run_job(job, log=tmp_path / "log.txt", bar=bar, stall_minutes=1, lock=lock.fileno())


# --- one sentence each


def test_photographs_of_different_things_are_refused(tmp_path):
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 255, (60, 80, 3), dtype=np.uint8)
        photos.write_jpeg(tmp_path / "shots" / f"{index}.jpg", np.kron(pixels, np.ones((4, 4, 1), np.uint8)))
    with pytest.raises(
        UserError, match="shots: required photographs that show the same things, got none among 3 pairs"
    ):
        prepare(tmp_path / "shots", tmp_path / "scene", Options(**QUICK))


def test_folders_that_are_not_as_required(tmp_path):
    source = corner(tmp_path / "shots", 2)
    options = Options(**QUICK)
    with pytest.raises(UserError, match="required at least 3 photographs, got 2"):
        prepare(source, tmp_path / "scene", options)
    with pytest.raises(UserError, match="nowhere: required a folder of photographs or a video, got nothing there"):
        prepare(tmp_path / "nowhere", tmp_path / "scene", options)
    (tmp_path / "taken" / "sparse").mkdir(parents=True)
    with pytest.raises(
        UserError, match=r"taken: required a new folder or one that prepare\.py made, got one with sparse"
    ):
        prepare(source, tmp_path / "taken", options)
    with pytest.raises(UserError, match="required a scene folder outside the photographs"):
        prepare(source, source, options)
    for index in range(2, 4):
        (source / f"{index}.jpg").write_bytes(b"no picture")
    with pytest.raises(
        UserError, match=r"at least 3 photographs that can be read, got 2 \(left out: .*2\.jpg: required"
    ):
        prepare(source, tmp_path / "scene", options)
    with pytest.raises(UserError, match="masks: required a folder of masks, got nothing there"):
        prepare(source, tmp_path / "other", Options(**QUICK, masks=tmp_path / "masks"))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"frames": 2}, "--frames must be at least 3, got 2"),
        ({"max_size": 7}, "--max-size must be 0 or at least 64 pixels, got 7"),
        ({"stall_minutes": float("nan")}, "--stall-minutes must be at least 0, got nan"),
    ],
)
def test_options_out_of_range(tmp_path, options, told):
    with pytest.raises(UserError, match=told):
        prepare(tmp_path, tmp_path / "scene", Options(**options))


def test_heic_names_its_extra(tmp_path, monkeypatch):
    for index in range(3):
        (tmp_path / f"{index}.heic").write_bytes(b"x")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"0\.heic: reading HEIC needs the package pillow-heif: pip install"):
        find_photos(tmp_path, recursive=False, masks=None)


def test_the_command_line_ends_in_one_sentence(tmp_path):
    command = [sys.executable, "scripts/prepare.py", str(tmp_path / "none"), str(tmp_path / "scene")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert not (tmp_path / "scene").exists()


# --- single photographs


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mask_is_turned", [False, True])
def test_every_orientation(tmp_path, orientation, mask_is_turned):
    from PIL import ImageOps

    random = np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    stored = np.kron(random, np.ones((8, 8, 1), np.uint8))
    path = tmp_path / "x.jpg"
    photos.write_jpeg(path, stored, orientation=orientation)
    with Image.open(path) as file:
        expected = np.asarray(ImageOps.exif_transpose(file).convert("RGB"))
    mask = np.zeros(stored.shape[:2], np.uint8)
    mask[:20, :30] = 255
    with Image.open(path) as file:
        exif = file.getexif()
        file = Image.fromarray(mask)
        file.save(tmp_path / "mask.png", exif=exif)
        shown = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "mask.png"))) > 0
    if mask_is_turned:
        Image.fromarray(shown.astype(np.uint8) * 255).save(tmp_path / "mask.png")
    write_upright(Photo(path, "x.jpg", tmp_path / "mask.png"), tmp_path / "out", 0)
    result = read_image(tmp_path / "out" / "images" / "x.jpg")
    # It is compressed once again.
    assert np.abs(result.astype(int) - expected).mean() < 3
    with Image.open(tmp_path / "out" / "images" / "x.jpg") as file:
        assert file.getexif().get(274, 1) == 1
    np.testing.assert_array_equal(read_image(tmp_path / "out" / "masks" / "x.jpg.png")[..., 0] > 0, shown)


def test_a_mask_as_the_photograph_is_stored_is_turned_with_it(tmp_path):
    stored = np.zeros((48, 64, 3), np.uint8)
    photos.write_jpeg(tmp_path / "x.jpg", stored, orientation=6)
    mask = np.zeros((48, 64), np.uint8)
    mask[:10, :10] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    write_upright(Photo(tmp_path / "x.jpg", "x.jpg", tmp_path / "mask.png"), tmp_path / "out", 32)
    result = read_image(tmp_path / "out" / "masks" / "x.jpg.png")[..., 0]
    assert result.shape == (32, 24)
    # After a clockwise turn, the top left corner is at the top right.
    assert result[0, -1] == 255 and result[0, 0] == 0 and (result > 0).sum() == 25


def test_a_mask_of_another_shape_leaves_its_photograph_out(tmp_path):
    source = corner(tmp_path / "shots", 4)
    (source / "masks").mkdir()
    Image.new("L", (50, 50)).save(source / "masks" / "1.png")
    found = find_photos(source, recursive=False, masks=None)
    with pytest.raises(
        UserError, match=r"1\.png: required a mask of its photograph's shape, got a mask of 50x50 and a"
    ):
        write_upright(found.photos[1], tmp_path / "out", 0)


def test_wide_samples_and_tiff_orientation(tmp_path):
    ramp = np.linspace(0, 65535, 48 * 64).reshape(48, 64).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "grey.tif", tiffinfo={274: 6})
    write_upright(Photo(tmp_path / "grey.tif", "grey.png"), tmp_path / "out", 0)
    result = read_image(tmp_path / "out" / "images" / "grey.png")
    expected = np.rot90((ramp / 257.0).round(), -1)
    np.testing.assert_array_equal(result[..., 1], expected)


def test_colours_of_16_bits(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    wide = np.random.default_rng(0).integers(0, 2**16, (48, 64, 3), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "x.tif", wide, photometric="rgb")
    write_upright(Photo(tmp_path / "x.tif", "x.png"), tmp_path / "out", 0)
    # The upper eight bits.
    np.testing.assert_array_equal(read_image(tmp_path / "out" / "images" / "x.png"), wide >> 8)


def test_names_in_the_scene_are_unique(tmp_path):
    for name in ("a.jpg", "a.tif", "a.png", "a.webp", "b.tiff", "sub/a.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = find_photos(tmp_path, recursive=True, masks=None)
    names = {photo.path.relative_to(tmp_path).as_posix(): photo.name for photo in found.photos}
    assert names == {
        "a.jpg": "a.jpg",
        "a.png": "a.png",
        "a.tif": "a_tif.png",
        "a.webp": "a_webp.png",
        "b.tiff": "b.png",
        "sub/a.jpg": "sub/a.jpg",
    }


def test_a_full_disk_is_no_broken_photograph(tmp_path, monkeypatch):
    source = corner(tmp_path / "shots", 3)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(WriteError, match="required room and permission to write it, got No space left on device"):
        from splat_ssim.prepare.photos import write_all

        found = find_photos(source, recursive=False, masks=None)
        write_all(found.photos, tmp_path / "out", max_size=0, threads=1, step=lambda: None)


def test_reduced_copies_are_means_over_areas(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (32, 48, 3), dtype=np.uint8)
    (tmp_path / "images").mkdir()
    Image.fromarray(pixels).save(tmp_path / "images" / "x.png")
    finish_images(tmp_path, ["x.png"], threads=1, step=lambda: None)
    for factor in (2, 4, 8):
        expected = pixels.reshape(32 // factor, factor, 48 // factor, factor, 3).mean((1, 3))
        result = read_image(tmp_path / f"images_{factor}" / "x.png")
        assert np.abs(result - expected).max() <= 1  # two passes, each rounded


def test_transparent_colours_do_not_bleed(tmp_path):
    pixels, alpha = np.zeros((16, 16, 3), np.uint8), np.zeros((16, 16), np.uint8)
    pixels[:, :9], alpha[:, :9] = (200, 100, 50), 255
    for folder, content in (("images", pixels), ("alphas", alpha)):
        (tmp_path / folder).mkdir()
        Image.fromarray(content).save(tmp_path / folder / ("x.png" if folder == "images" else "x.png.png"))
    finish_images(tmp_path, ["x.png"], threads=1, step=lambda: None)
    result = read_image(tmp_path / "images_2" / "x.png")
    assert result[0, 4, 3] == pytest.approx(128, abs=1)
    np.testing.assert_allclose(result[0, 4, :3], (200, 100, 50), atol=2)
    assert not (tmp_path / "alphas").exists()


def test_a_state_that_does_not_read_is_refused(tmp_path):
    (tmp_path / "scene" / "prepare").mkdir(parents=True)
    (tmp_path / "scene" / "prepare" / "state.json").write_text("{")
    with pytest.raises(UserError, match=r"state\.json: required the JSON that prepare\.py wrote"):
        Workspace(tmp_path / "scene", tmp_path)


def test_what_is_under_way_is_kept_for_the_same_inputs_alone(tmp_path):
    work = Workspace(tmp_path / "scene", tmp_path)
    assert not work.start("features", "a")
    (work.parts / "features.db").write_text("half")
    assert not work.is_done("features", "a")
    work.close()
    work = Workspace(tmp_path / "scene", tmp_path)
    work.start("features", "a")
    assert (work.parts / "features.db").is_file()
    work.start("features", "b")
    assert not (work.parts / "features.db").exists()
    (work.parts / "features.db").write_text("whole")
    work.place("features.db")
    work.finish("features", "b", 1.0, {})
    assert work.is_done("features", "b") and not work.is_done("features", "a")
    assert work.start("features", "c") and not work.is_done("features", "b")
    work.close()


def test_a_scene_that_is_half_moved_is_none(tmp_path, monkeypatch):
    scene, made = tmp_path / "scene", tmp_path / "made"
    for folder in (scene, made):
        for name in ("images", "masks", "sparse"):
            (folder / name).mkdir(parents=True)
            (folder / name / "of").write_text(folder.name)
    (scene / "prepare").mkdir()
    write_json(scene / "prepare" / "state.json", {"stages": {}})
    work, replace = Workspace(scene, tmp_path), Path.replace

    def dies(path, target):
        if path.name == "masks":
            raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        work.publish(made)
    # There is neither the old model with new pictures nor half of the new scene.
    assert (scene / "images" / "of").read_text() == "made" and not (scene / "sparse").exists()
    work.close()


def test_sharpness_prefers_the_sharp():
    pixels = photos.render(photos.viewmats(1)[0])
    assert video.sharpness(pixels) > 2 * video.sharpness(blurred(pixels))
