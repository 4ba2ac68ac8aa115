"""report.html: a single page that needs no network and agrees with the run's files."""

import base64
import gzip
import hashlib
import io
import json
import re
import tarfile
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from splat_ssim.errors import UserError
from splat_ssim.formats import read_splats
from splat_ssim.ply import load_ply
from splat_ssim.scene import report as scene_report
from splat_ssim.trainer import load, viewer_package
from splat_ssim.trainer.cli import main, report_run
from splat_ssim.trainer.loop import run as run_task
from splat_ssim.trainer.report import embedded, table
from splat_ssim.volume import Volume, VoxelGrid, save_volume
from splat_ssim.volume import report as volume_report
from splat_ssim.volume.bricks import BrickConfig, BrickTask
from splat_ssim.volume.pictures import plane_picture
from tests.scenes import write_blender
from tests.test_loop import LineTask, config
from tests.test_loop import run as run_line
from tests.volumes import GRID, ball

VOID = {"meta", "img", "input", "br"}
SCRIPT, STYLE, LICENSE = b"export const createViewer = 1; // </script>", b".sse{}", b"MIT -- of somebody"


@pytest.fixture(scope="module", autouse=True)
def no_cache(tmp_path_factory):
    """Keeps tests from using or filling the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPLAT_SSIM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of a ball, profiled, with evaluations."""
    place = tmp_path_factory.mktemp("report")
    scene = write_blender(place / "ball", train=6, test=5, size=24)
    names = json.loads((scene / "transforms_test.json").read_text())
    (scene / "test" / "r_0.png").rename(scene / "test" / "<b>&.png")
    names["frames"][0]["file_path"] = "./test/<b>&"
    (scene / "transforms_test.json").write_text(json.dumps(names))
    line = f"--data-dir {scene} --result-dir {place / 'run'} --steps 60 --model.init-count 200 --profile"
    main([*line.split(), "--output.eval-every", "20", "--output.no-progress"])
    return place / "run"


class Page(HTMLParser):
    """Checks that tags match. Collects what the page loads, its pictures, and the text of its scripts by identifier."""

    def __init__(self, text):
        super().__init__()
        self.open, self.loaded, self.sources, self.scripts, self.rows, self.current = [], [], [], {}, [], None
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.sources += [values["src"]] if tag == "img" and "src" in values else []
        self.loaded += [values[key] for key in ("src", "href") if not values.get(key, "data:").startswith("data:")]
        if tag == "script":
            self.current = values.get("id")
        if tag == "tr":
            self.rows.append([])
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script" and self.current:
            self.scripts[self.current] = self.scripts.get(self.current, "") + data
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1].append(data)


def packed(page, name):
    return gzip.decompress(base64.b64decode(page.scripts[name]))


def frames_of(page, name):
    """Frames and labels of a slider."""
    return json.loads(page.scripts[f"frames-{name}"])


def pixels_of(uri):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def test_a_run_leaves_a_page_that_needs_nothing_else(trained):
    text = (trained / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.loaded == [] and "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    # A colour scale, and for each of the five test views the render, the photograph and the error.
    assert len(page.sources) == 1 + 5 * 3
    shown = Image.open(io.BytesIO(base64.b64decode(page.sources[1].partition(",")[2])))
    assert shown.size == (24, 24)
    assert len(frames_of(page, "orbit-around-the-scene")["frames"]) == scene_report.FRAMES
    assert "<b>&.png" not in text and "&lt;b&gt;&amp;.png" in text


def test_the_page_says_what_the_files_say(trained):
    page = Page((trained / "report.html").read_text(encoding="utf-8"))
    metrics = json.loads((trained / "metrics.json").read_text())
    last = json.loads((trained / "eval" / "0000060.json").read_text())
    charts = {chart["name"]: chart for chart in json.loads(page.scripts["curve-data"])}
    assert [point[0] for point in charts["PSNR, dB"]["train"]] == [25, 50]
    assert [point[0] for point in charts["PSNR, dB"]["test"]] == [20, 40, 60]
    assert charts["PSNR, dB"]["test"][2] == [60, last["train_seconds"], metrics["psnr"]]
    assert charts["gaussians"]["train"][0][2] == 200 and not charts["gaussians"]["noisy"]
    worst = sorted(last["views"], key=lambda row: row["psnr"])
    at = page.rows.index(["view", "psnr", "ssim"])
    assert [row[0] for row in page.rows[at + 1 : at + 6]] == [row["name"] for row in worst]
    assert ["model.init_count", "200", "10000"] in page.rows
    assert ["torch", torch.__version__] in page.rows
    assert any("backward" in row and "render" in row for row in page.rows)


def test_the_page_is_written_again_with_other_views(trained, tmp_path):
    text = (trained / "report.html").read_text(encoding="utf-8")
    assert report_run(trained, views=2) == trained / "report.html"
    page = Page((trained / "report.html").read_text(encoding="utf-8"))
    assert len(page.sources) == 1 + 2 * 3
    worst = sorted(json.loads((trained / "eval" / "0000060.json").read_text())["views"], key=lambda row: row["psnr"])
    names = re.findall(r'alt="photograph ([^"]*)"', (trained / "report.html").read_text(encoding="utf-8"))
    assert len(names) == 2 and "r_" in (names[0] + names[1]) and worst[0]["name"] != worst[-1]["name"]
    report_run(trained)
    assert len((trained / "report.html").read_text(encoding="utf-8")) == pytest.approx(len(text), rel=0.01)
    with pytest.raises(UserError, match="--views must be at least 0, got -1"):
        report_run(trained, views=-1)


def test_without_the_viewer_the_page_says_how_to_get_it(trained, capsys):
    report_run(trained, views=0)
    told = capsys.readouterr().err
    text = (trained / "report.html").read_text(encoding="utf-8")
    assert "report.py --install-viewer" in told and "report.py --install-viewer" in text
    assert "scene-viewer" not in text and "frames-orbit-around-the-scene" in Page(text).scripts


def test_a_run_without_a_page_writes_none(trained, tmp_path):
    line = f"--data-dir {trained.parent / 'ball'} --result-dir {tmp_path / 'run'} --steps 3 --model.init-count 50"
    main([*line.split(), "--output.no-progress", "--output.no-report"])
    assert not (tmp_path / "run" / "report.html").exists()
    # An unfinished run gets a page too.
    (tmp_path / "run" / "metrics.json").unlink()
    (tmp_path / "run" / "versions.json").unlink()
    text = report_run(tmp_path / "run").read_text(encoding="utf-8")
    Page(text)
    assert "There is no versions.json" in text


def npm_folder(place):
    (place / "public").mkdir(parents=True)
    for name, content in (("public/index.js", SCRIPT), ("public/index.css", STYLE), ("LICENSE", LICENSE)):
        (place / name).write_bytes(content)
    return place


def tarball(place):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in (("public/index.js", SCRIPT), ("public/index.css", STYLE), ("LICENSE", LICENSE)):
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    place.write_bytes(buffer.getvalue())
    return place


def test_with_the_viewer_the_page_holds_the_scene_and_the_license(trained, tmp_path):
    report_run(trained, viewer_package=npm_folder(tmp_path / "npm"))
    text = (trained / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert packed(page, "viewer-script") == SCRIPT
    (tmp_path / "scene.compressed.ply").write_bytes(packed(page, "scene-file"))
    back = read_splats(tmp_path / "scene.compressed.ply").splats()
    assert len(back["means"]) == len(load_ply(trained / "scene.ply")["means"]) == 200
    told = json.loads(page.scripts["scene-data"])
    assert told["filename"] == "scene.compressed.ply" and len(told["settings"]["animTracks"]) == 1
    # The viewer's y axis and the scene's z axis point up, so the camera is equally high above the target in both.
    position, target = (told["settings"]["cameras"][0]["initial"][key] for key in ("position", "target"))
    assert position[1] - target[1] == pytest.approx(4 * 0.389, abs=0.02)
    assert "MIT - - of somebody" in text
    assert page.loaded == []


def test_a_large_scene_is_not_embedded_and_the_page_says_so(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(scene_report, "LARGEST_SCENE", 1000)
    report_run(trained, viewer_package=npm_folder(tmp_path / "npm"))
    text = (trained / "report.html").read_text(encoding="utf-8")
    assert "a page embeds up to 0 MiB" in text and "scene-file" not in text


def test_a_scene_without_gaussians_has_a_page_all_the_same(trained, tmp_path):
    task = load(trained)
    task.splats = {name: value[:0] for name, value in task.splats.items()}
    content, told = scene_report.scene_file(task)
    assert content is None and told.startswith("the scene cannot be embedded: ")


def test_the_viewer_is_installed_once_its_checksum_is_right(tmp_path, monkeypatch, capsys):
    source = tarball(tmp_path / "viewer.tgz")
    monkeypatch.setattr(viewer_package, "ADDRESS", source.as_uri())
    kept = tmp_path / "kept.tgz"
    with pytest.raises(UserError, match=r"required @playcanvas/supersplat-viewer .* with sha512-"):
        report_run(install_viewer=True, viewer_package=kept)
    assert not kept.exists()
    checksum = base64.b64encode(hashlib.sha512(source.read_bytes()).digest()).decode()
    monkeypatch.setattr(viewer_package, "INTEGRITY", f"sha512-{checksum}")
    assert report_run(install_viewer=True, viewer_package=kept) == kept
    assert viewer_package.find_viewer(kept).script == SCRIPT
    assert viewer_package.find_viewer() is None
    viewer_package.install_viewer()
    assert viewer_package.find_viewer().license == LICENSE
    # A kept file may be damaged later.
    kept.write_bytes(kept.read_bytes()[:-1])
    with pytest.raises(UserError, match=rf"{kept}: required @playcanvas"):
        viewer_package.find_viewer(kept)


def test_what_is_no_viewer_is_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"nothing: required the package @playcanvas/supersplat-viewer"):
        viewer_package.find_viewer(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"got no public/index\.js in it"):
        viewer_package.find_viewer(tmp_path)
    monkeypatch.setattr(viewer_package, "ADDRESS", (tmp_path / "nothing").as_uri())
    with pytest.raises(UserError, match="nothing: required the package"):
        viewer_package.install_viewer(tmp_path / "kept.tgz")


def test_a_kind_of_training_without_a_page_is_refused(tmp_path):
    run_line(LineTask(config(tmp_path / "run")))
    with pytest.raises(UserError, match="a report requires a task that has one"):
        report_run(tmp_path / "run")
    with pytest.raises(UserError, match="required a run folder to report on, got none"):
        report_run()


def test_embedded_json_cannot_end_its_script():
    text = embedded("a", {"name": "</script><b>", "value": float("nan")})
    assert text.count("</script>") == 1
    assert json.loads(Page(text).scripts["a"]) == {"name": "</script><b>", "value": None}
    assert "<td>&lt;i&gt;</td>" in table(["x"], [["<i>"]])


# --- volumes


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A run of a ball on voxels with unequal spacing."""
    place = tmp_path_factory.mktemp("volume")
    save_volume(place / "ball.nii.gz", Volume(ball(0, 200, np.uint8)[None], GRID, "mm"))
    line = f"--config configs/voxel_mri.yaml --data-dir {place / 'ball.nii.gz'} --result-dir {place / 'run'} --steps 60"
    main(
        [
            *line.split(),
            "--strategy.budget",
            "150",
            "--output.eval-every",
            "30",
            "--output.no-progress",
            "--output.no-video",
        ]
    )
    return place / "run"


def test_a_volume_leaves_a_page_with_slices_across_each_axis(fitted):
    text = (fitted / "report.html").read_text(encoding="utf-8")
    page, task = Page(text), load(fitted)
    assert page.loaded == [] and "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    fit, volume = task.target.shown(task.field()), task.target.shown(task.target.values)
    for axis, count in enumerate(task.target.grid.shape):
        told = frames_of(page, f"slices-{axis}")
        assert len(told["frames"]) == 12 and told["labels"][0].startswith(f"Slice 1 of {count}, 0 mm from the first")
    # The pictures are slices of fit, volume and error, with the second remaining axis pointing up.
    last = pixels_of(frames_of(page, "slices-2")["frames"][-1]).astype(float) / 255
    index = round((12 - 0.5) * 16 / 12 - 0.5)
    sides = [(fit[0, :, :, index], 0), (volume[0, :, :, index], 1)]
    width = (last.shape[1] - 8) // 3
    for plane, place in sides:
        shown = last[:, place * (width + 4) : place * (width + 4) + width, 0]
        expected = torch.nn.functional.interpolate(plane[None, None], (width, last.shape[0]), mode="bilinear")[0, 0]
        assert np.abs(shown - expected.T.flip(0).clamp(0, 1).numpy()).mean() < 0.03
    assert len(frames_of(page, "turn")["frames"]) == volume_report.FRAMES
    metrics = json.loads((fitted / "metrics.json").read_text())
    assert f"{metrics['psnr3d']:.2f} dB" in text
    charts = {chart["name"]: chart for chart in json.loads(page.scripts["curve-data"])}
    assert [point[0] for point in charts["PSNR3D, dB"]["test"]] == [30, 60]


def test_a_page_of_a_volume_is_written_again_with_other_slices(fitted):
    report_run(fitted, views=3)
    page = Page((fitted / "report.html").read_text(encoding="utf-8"))
    assert frames_of(page, "slices-0")["labels"][1].startswith("Slice 7 of 14, 3 mm from the first")
    with pytest.raises(UserError, match="--views must be at least 1, got 0"):
        report_run(fitted, views=0)


@pytest.mark.parametrize(("channels", "sliders"), [(2, 6), (3, 3), (6, 12)])
def test_every_channel_of_a_volume_is_shown(tmp_path, channels, sliders):
    values = np.random.default_rng(0).random((channels, 9, 8, 7), np.float32)
    field = torch.from_numpy(values)
    shown = volume_report.Shown(
        lambda axis, index: (field.select(1 + axis, index), None), VoxelGrid((9, 8, 7)), channels
    )
    html = volume_report._slices(shown, 4, ["a <note>"])
    assert html.count("<figure") == sliders and "a &lt;note&gt;" in html
    assert ("The first 4 of 6 channels" in html) == (channels == 6)


def test_a_fit_by_bricks_leaves_a_page_without_reading_the_volume_whole(tmp_path):
    np.save(tmp_path / "volume.npy", ball(0, 200, np.uint8))
    config = BrickConfig(data_dir=tmp_path / "volume.npy", result_dir=tmp_path / "run", brick=16, brick_steps=4)
    config.strategy.budget, config.output.progress = 20, False
    run_task(BrickTask(config))
    page = Page((tmp_path / "run" / "report.html").read_text(encoding="utf-8"))
    assert len(frames_of(page, "slices-1")["frames"]) == 12 and "frames-turn" not in page.scripts
    # The maxima of the volume's voxels, collected from eight blocks, and beside them those of the fit.
    task = load(tmp_path / "run")
    task.evaluate()
    values = ball(0, 200, np.uint8) / 200
    fit = task.field(((0, 0, 0), values.shape))[0]
    told = frames_of(page, "projections")
    assert told["labels"] == ["Along axis 0", "Along axis 1", "Along axis 2"]
    for axis, frame in enumerate(told["frames"]):
        of_fit, of_volume = (plane[0] for plane in task.projections.planes[axis])
        assert np.abs(of_volume.numpy() - values.max(axis)).max() < 1e-6
        assert torch.allclose(of_fit, fit.amax(axis), atol=1e-5)
        width = (pixels_of(frame).shape[1] - 8) // 3
        shown = pixels_of(frame)[:, width + 4 : 2 * width + 4, 0] / 255
        assert np.abs(shown - values.max(axis).T[::-1]).mean() < 0.03


@pytest.mark.parametrize("views", [5, 40])
def test_a_page_of_a_volume_stays_below_its_size_and_says_what_it_leaves_out(monkeypatch, views):
    # JPEG files of noise are the largest.
    values = torch.from_numpy(np.random.default_rng(0).random((3, 40, 400, 24), np.float32))
    shown = volume_report.Shown(
        lambda axis, index: (values.select(1 + axis, index), values.select(1 + axis, index) / 2),
        VoxelGrid((40, 400, 24)),
        3,
    )
    monkeypatch.setattr(volume_report, "MOST_BYTES", 900_000)
    html = volume_report._slices(shown, views, [])
    assert "Slices of up to 400 pixels a side are shown at 320, each a mean." in html
    sliders = [json.loads(text) for name, text in Page(html).scripts.items() if name.startswith("frames-")]
    assert len(sliders) == 3 and sum(len(frame) for told in sliders for frame in told["frames"]) <= 900_000
    counts = {len(told["frames"]) for told in sliders}
    assert (views == 5 and counts == {5} and "instead of" not in html) or f"{max(counts)} instead of 40 slices" in html
    # The remaining slices are spread evenly.
    places = [int(label.split()[1]) for label in sliders[1]["labels"]]
    assert len(places) == 1 or max(np.diff(places)) <= 2 * min(np.diff(places)) + 1


def test_a_slice_that_is_shown_smaller_is_averaged():
    fine = torch.zeros(1, 64, 64)
    fine[:, ::4] = 1.0
    small = plane_picture(fine, (16, 16))
    assert abs(small[2:-2, 2:-2].mean() - 255 / 4) < 3 and small[2:-2, 2:-2].std() < 3
