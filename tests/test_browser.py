"""The viewer and the report page in a headless Chromium, if there is one.

Chromium is playwright's own (`playwright install chromium-headless-shell`), or one of the system; SPLAT_SSIM_CHROMIUM
names another. The scene in the page needs the viewer's package: `python scripts/report.py --install-viewer`.
"""

import base64
import functools
import http.server
import json
import os
import shutil
import threading
import time

import numpy as np
import pytest
import torch

from splat_ssim.formats import save_splats
from splat_ssim.ply import SH0
from splat_ssim.scene import report
from splat_ssim.scene.cameras import orbit
from splat_ssim.scene.modes import draw
from splat_ssim.trainer import load
from splat_ssim.trainer.cli import main, report_run
from splat_ssim.trainer.loop import run
from splat_ssim.trainer.viewer_package import find_viewer
from splat_ssim.volume.config import VolumeConfig
from splat_ssim.volume.training import VolumeTask
from tests.scenes import write_blender

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra [browser])")

#: WebGL by the processor alone.
ARGUMENTS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
PATIENCE = 90_000


def chromium():
    """Path of the system's browser, None for playwright's own."""
    named = os.environ.get("SPLAT_SSIM_CHROMIUM")
    found = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    return named or next(filter(None, found), None)


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        try:
            opened = playwright.chromium.launch(executable_path=chromium(), args=ARGUMENTS)
        except sync_api.Error as error:
            pytest.skip(f"no Chromium to drive: {str(error).splitlines()[0]}")
        yield opened
        opened.close()


@pytest.fixture
def page(browser):
    """A page that must not have errors or load anything but itself."""
    opened, errors = browser.new_page(viewport={"width": 1000, "height": 700}), []
    opened.set_default_timeout(PATIENCE)
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.errors = errors
    yield opened
    opened.close()
    assert errors == []


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    place = tmp_path_factory.mktemp("browser")
    scene = write_blender(place / "ball", train=8, test=3, size=48)
    line = f"--data-dir {scene} --result-dir {place / 'run'} --steps 150 --model.init-count 300 --profile"
    main([*line.split(), "--output.eval-every", "50", "--output.no-progress", "--output.no-report"])
    return place / "run"


def test_the_report_page_in_a_browser(trained, page, monkeypatch, tmp_path):
    monkeypatch.setenv("SPLAT_SSIM_CACHE", str(tmp_path))
    report_run(trained, views=3)
    requests = []
    page.on("request", lambda request: requests.append(request.url.split(":")[0]))
    page.goto((trained / "report.html").as_uri())
    assert page.locator("#curves svg").count() == 5
    assert page.locator("#curves svg path.train").count() == 5 and page.locator("#curves circle").count() == 6
    before = page.locator("#curves svg").first.inner_html()
    page.get_by_role("button", name="seconds").click()
    assert page.locator("#curves svg").first.inner_html() != before
    # The pointer over a curve shows its values.
    page.locator("#curves svg").first.hover()
    assert "training" in page.locator("#curves .read").first.inner_text()
    # The slider uncovers the photograph up to the pointer.
    slider = page.locator(".slider").first
    box = slider.bounding_box()
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    page.mouse.click(box["x"] + 0.25 * box["width"], box["y"] + box["height"] / 2)
    assert float(slider.evaluate("s => s.style.getPropertyValue('--cut')").rstrip("%")) == pytest.approx(25, abs=3)
    # The orbit turns.
    turntable = page.locator(".turntable")
    first = turntable.locator("img").get_attribute("src")
    turntable.locator("input").evaluate("i => { i.value = 12; i.dispatchEvent(new Event('input')); }")
    assert turntable.locator("img").get_attribute("src") != first
    assert set(requests) <= {"file", "data", "blob"}


def test_the_page_about_a_volume_in_a_browser(page, tmp_path):
    values = np.indices((24, 20, 16)).sum(0)
    np.save(tmp_path / "volume.npy", ((values % 15) * 12 + 20).astype(np.uint8))
    config = VolumeConfig(data_dir=tmp_path / "volume.npy", result_dir=tmp_path / "run", steps=50, device="cpu")
    config.strategy.budget, config.output.progress, config.output.video = 60, False, False
    config.output.eval_every = 25
    run(VolumeTask(config))
    requests = []
    page.on("request", lambda request: requests.append(request.url.split(":")[0]))
    page.goto((tmp_path / "run" / "report.html").as_uri())
    assert page.locator("#curves svg path.train").count() > 0 and page.locator("#curves circle").count() > 0
    sliders = page.locator(".turntable")
    assert sliders.count() == 4
    for place in range(4):
        image, told = sliders.nth(place).locator("img"), sliders.nth(place).locator("output")
        assert image.evaluate("i => i.decode().then(() => i.naturalWidth)") > 16
        before = image.get_attribute("src"), told.inner_text()
        sliders.nth(place).locator("input").focus()
        page.keyboard.press("ArrowRight")
        assert image.get_attribute("src") != before[0]
        if place < 3:
            assert told.inner_text() != before[1] and told.inner_text().startswith("Slice ")
    assert set(requests) <= {"file", "data", "blob"}


def blobs():
    """Blobs of three colours on three axes, one of them seen in another colour from every side."""
    sh0 = (torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.8, 0.1], [0.4, 0.4, 0.4]]) - 0.5) / SH0
    shN = torch.zeros(3, 15, 3)
    shN[2, :3] = torch.tensor([[0.6, 0, -0.6], [0, 0.6, 0], [-0.6, 0, 0.6]])
    return {
        "means": torch.tensor([[0.8, 0, 0], [0, 0.8, 0.2], [0, 0, 0.9]]),
        "scales": torch.tensor([[0.3, 0.1, 0.1], [0.15, 0.15, 0.15], [0.2, 0.2, 0.3]]).log(),
        "quats": torch.tensor([[0.9, 0.2, 0.3, 0.1], [1.0, 0, 0, 0], [0.7, 0, 0.7, 0]]),
        "opacities": torch.full((3,), 4.0),
        "sh0": sh0[:, None],
        "shN": shN,
    }


def test_the_scene_in_the_page_is_what_we_render(trained, page):
    if find_viewer() is None:
        pytest.skip("the viewer's package is not installed: python scripts/report.py --install-viewer")
    task = load(trained)
    task.splats = blobs()
    task.report(trained, {"step": 150, **task.evaluate()}, views=0)
    requests = []
    page.on("request", lambda request: requests.append(request.url.split(":")[0]))
    page.goto((trained / "report.html").as_uri())
    page.wait_for_selector("#scene-viewer[data-loaded]")
    seen, field = captured(page, "document.getElementById('scene-viewer').viewer")
    assert set(requests) <= {"file", "data", "blob"} and 10 < field < 120
    first, second = likenesses(task, seen, field)
    # The two renderers agree to 47 dB. The next picture of the orbit is 15 degrees further and must not match.
    assert first > 40 and second < 30, (first, second)


def captured(page, viewer):
    """Returns the viewer's (192, 192, 3) picture at the start of its orbit, and its angle of view in degrees."""
    field = page.evaluate(
        f"() => {{ const viewer = {viewer}; viewer.state.animationPaused = true; viewer.seek(0);"
        "return viewer.app.root.findByName('camera').camera.fov; }"
    )
    time.sleep(1)
    data = page.evaluate(f"{viewer}.captureFrame({{ width: 192, height: 192 }}).then((frame) => frame.data)")
    return np.frombuffer(base64.b64decode(data), np.uint8).reshape(192, 192, 4)[..., :3] / 255.0, field


def likenesses(task, seen, field):
    """PSNR of a viewer's picture and each of our renderer's first two of the orbit, with that angle of view."""
    focal = 96 / np.tan(np.radians(field) / 2)
    for view in orbit(task.scene.train, 24)[:2]:
        view.image = torch.zeros(192, 192, 3, dtype=torch.uint8)
        view.K = torch.tensor([[focal, 0, 96], [0, focal, 96], [0, 0, 1]], dtype=torch.float32)
        ours = draw(task, view)[0].permute(1, 2, 0).numpy()
        yield -10 * np.log10(((seen - ours) ** 2).mean())


@pytest.fixture
def served(tmp_path):
    """Address of a web server of `tmp_path`."""
    handler = functools.partial(QuietHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


#: Opens a file by its address as the viewer does. The scene's node is rotated as on the report page.
VIEWER_PAGE = """<!doctype html><div id=box style="width:400px;height:400px"></div><script type=module>
import { createViewer } from "./index.js";
const told = await (await fetch("told.json")).json();
const viewer = await createViewer({
  container: document.getElementById("box"), settings: told.settings, contentUrl: told.file, renderer: "webgl" });
viewer.app.root.on("childinsert", (node) => { if (node.name === "gsplat") node.setLocalRotation(...told.rotation); });
window.viewer = viewer;
viewer.events.on("loaded:changed", () => { document.body.dataset.loaded = "true"; });
</script>"""


@pytest.mark.parametrize("suffix", [".ply", ".compressed.ply", ".sog"])
def test_an_exported_file_opens_in_an_independent_viewer(trained, page, served, tmp_path, suffix):
    """supersplat-viewer fetches the file by its address and shows what we render."""
    package = find_viewer()
    if package is None:
        pytest.skip("the viewer's package is not installed: python scripts/report.py --install-viewer")
    task = load(trained)
    task.splats = blobs()
    up, frames = report._up_and_orbit(task)
    rotation = report._upright(up)
    save_splats(tmp_path / f"scene{suffix}", task.splats)
    told = {
        "file": f"scene{suffix}",
        "settings": report._settings(task, frames, rotation),
        "rotation": report._quaternion(rotation),
    }
    (tmp_path / "told.json").write_text(json.dumps(told))
    (tmp_path / "index.js").write_bytes(package.script)
    (tmp_path / "index.html").write_text(VIEWER_PAGE)
    (tmp_path / "favicon.ico").write_bytes(b"")
    page.goto(f"{served}/index.html")
    page.wait_for_selector("body[data-loaded]")
    first, second = likenesses(task, *captured(page, "window.viewer"))
    assert first > 35 and second < 30, (first, second)


def test_the_viewer_follows_a_training(page, tmp_path):
    pytest.importorskip("viser", reason="viser is not installed (extra [viewer])")
    from splat_ssim.scene.config import SceneConfig, SceneOutputConfig
    from splat_ssim.scene.training import SceneTask
    from splat_ssim.scene.viewer import SceneViewer
    from splat_ssim.trainer.loop import Run

    scene = write_blender(tmp_path / "ball", train=6, test=2, size=48)
    output = SceneOutputConfig(progress=False, report=False)
    config = SceneConfig(data_dir=scene, result_dir=tmp_path / "run", steps=1_000_000, output=output)
    config.model.init_count, config.strategy.budget = 300, 300
    task = SceneTask(config)
    viewer = SceneViewer(task, 0)
    one = Run(task, [viewer])
    ended = threading.Event()

    def train():
        try:
            task.finished = False
            one.train()
        finally:
            ended.set()

    thread = threading.Thread(target=train, daemon=True)
    thread.start()
    try:
        page.goto(viewer.url)
        status = page.get_by_text("step ").filter(has_text="PSNR").first
        status.wait_for()
        page.get_by_role("button", name="Pause").click()
        page.get_by_text("paused").first.wait_for()
        time.sleep(0.5)
        step = one.step
        time.sleep(1)
        assert one.step == step
        assert f"step {step:,} of 1,000,000" in status.inner_text()
        (eye,) = viewer._eyes.values()
        before, drawn = eye.drawn, eye.size
        assert max(drawn) == 512
        page.get_by_role("combobox", name="Mode").click()
        page.get_by_role("option", name="depth").click()
        until(lambda: eye.drawn > before and viewer._mode.value == "depth")
        # "Go to" moves the browser's camera to a camera of the scene.
        page.get_by_role("combobox", name="Go to").click()
        page.get_by_role("option", name="test/r_1.png").click()
        expected = task.scene.test[1].center.numpy()
        until(lambda: np.allclose(eye.client.camera.position, expected, atol=1e-3))
        # Dragging moves the camera. The picture is coarser at first and then as before.
        page.mouse.move(300, 400)
        page.mouse.down()
        page.mouse.move(420, 430, steps=4)
        page.mouse.up()
        until(lambda: not np.allclose(eye.client.camera.position, expected, atol=1e-2))
        until(lambda: not eye.coarse and not eye.dirty and eye.size == drawn)
        page.get_by_role("button", name="Go on").click()
        until(lambda: one.step > step)
        # When the last browser leaves, a paused training goes on.
        page.get_by_role("button", name="Pause").click()
        until(lambda: viewer.paused)
        page.close()
        until(lambda: not viewer.paused and not viewer.due())
    finally:
        task.finished = True
        viewer.paused = False
        ended.wait(60)
        viewer.close()
    assert ended.is_set()


def until(true, patience=30):
    end = time.monotonic() + patience
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)
