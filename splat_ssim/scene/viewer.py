"""A viewer of a scene in the browser, during training or after it: viser with our renderer."""

from __future__ import annotations

import io
import math
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from splat_ssim.errors import UserError, user_errors
from splat_ssim.scene.data import View
from splat_ssim.scene.modes import MODES, Scale, draw
from splat_ssim.trainer.pictures import to_bytes
from splat_ssim.trainer.task import Report

if TYPE_CHECKING:
    from splat_ssim.scene.training import SceneTask

#: Seconds after its last movement that a camera counts as moving.
STILL = 0.25
#: Seconds between two pictures of a still camera while the scene trains, and between two lines of the status.
REFRESH = 1.0
#: Fraction of the time that training gets at least while a browser is connected.
TRAINING_SHARE = 0.5
#: Largest number of the scene's cameras that are drawn as frustums, spread evenly.
FRUSTUMS = 200
#: Seconds between two checks of the browsers while nothing is trained.
POLL = 0.01


@dataclass
class _Eye:
    """The state of one browser's picture."""

    client: Any
    #: Time of its camera's last movement, and whether its picture is out of date.
    moved: float = 0.0
    dirty: bool = True
    #: Whether its picture has the low resolution of a moving camera.
    coarse: bool = False
    #: When its picture was drawn.
    drawn: float = 0.0
    size: tuple[int, int] = field(default=(0, 0))


class SceneViewer:
    """Shows a scene to browsers. Everything is drawn in the thread that trains, between steps.

    Browsers' messages arrive in viser's own threads, which only note the requests.

    Args:
        task: Task with the scene's model.
        port: Port to listen at. 0 takes any free port.
        host: Address to listen at. By default only this machine can connect.

    Raises:
        UserError: viser is not installed, or the port is not free.
    """

    def __init__(self, task: SceneTask, port: int = 8080, host: str = "127.0.0.1") -> None:
        try:
            import viser
        except ImportError as error:
            raise UserError(
                f"a viewer requires the package viser, got none: install splat_ssim with its extra 'viewer': {error}"
            ) from None
        self.task = task
        port = port or _free_port(host)
        _check_port(host, port)
        # viser prints its own message; the command already prints the viewer's address.
        with user_errors(), redirect_stdout(io.StringIO()):
            self.server = viser.ViserServer(host=host, port=port, label=task.name, verbose=False)
        self.url = f"http://{'localhost' if host == '127.0.0.1' else host}:{self.server.get_port()}"
        self._lock = threading.Lock()
        self._eyes: dict[int, _Eye] = {}
        self._told = self._rested = 0.0
        self._cost = 0.0
        self.paused = False
        self._views = [*task.scene.train, *task.scene.test]
        self._ahead = self._views[0].viewmat[2, :3].double().cpu().numpy()
        self._up = -torch.stack([view.viewmat[1, :3] for view in task.scene.train]).mean(0).numpy()
        self.server.scene.set_up_direction(self._up)
        self._make_controls()
        self._make_frustums()
        self.server.on_client_connect(self._connected)
        self.server.on_client_disconnect(self._disconnected)

    def close(self) -> None:
        """Frees the port."""
        with redirect_stdout(io.StringIO()):
            self.server.stop()

    # --- what the loop asks

    def due(self) -> bool:
        """Whether a browser waits for a picture and training has had its share of the time."""
        if not self._eyes:
            return False
        if self.paused:
            return True
        now = time.monotonic()
        rest = self._cost * TRAINING_SHARE / (1 - TRAINING_SHARE)
        return now - self._rested >= rest and (now - self._told >= REFRESH or self._waiting(now) is not None)

    def look(self, step: int, report: Report, stopped: Callable[[], bool]) -> None:
        """Draws what is due. While training is paused, it does not return until training continues or is stopped."""
        start = time.monotonic()
        self._tell(step, report)
        self._draw_one(start, training=True)
        self._rested = time.monotonic()
        self._cost = self._rested - start
        while self.paused and not stopped():
            # What is shown goes with this step from now on.
            self._told = 0.0
            if not self._draw_one(time.monotonic(), training=False):
                time.sleep(POLL)

    def serve(self, stopped: Callable[[], bool], step: int) -> None:
        """Shows a scene that is not being trained, until `stopped()` is true."""
        self._pause.visible = False
        self._status.content = f"step {step:,}, {len(self.task.splats['means']):,} Gaussians"
        while not stopped():
            if not self._draw_one(time.monotonic(), training=False):
                time.sleep(POLL)

    # --- pictures

    def _waiting(self, now: float, training: bool = True) -> _Eye | None:
        """The browser with the oldest picture among those that need a new one."""
        with self._lock:
            eyes = list(self._eyes.values())
        wanting = [eye for eye in eyes if self._wants(eye, now, training)]
        return min(wanting, key=lambda eye: eye.drawn, default=None)

    def _wants(self, eye: _Eye, now: float, training: bool) -> bool:
        still = now - eye.moved > STILL
        return eye.dirty or (eye.coarse and still) or (training and now - eye.drawn >= REFRESH)

    def _draw_one(self, now: float, *, training: bool) -> bool:
        """Draws the most urgent picture, if one is wanted."""
        eye = self._waiting(now, training)
        if eye is None:
            return False
        eye.dirty, eye.drawn = False, now
        eye.coarse = now - eye.moved <= STILL and self._coarse.value > 1
        view = self._view_of(eye)
        if view is not None:
            mode = self._mode.value
            scale = None if self._depths.value[1] <= self._depths.value[0] else Scale(*self._depths.value)
            pixels = to_bytes(draw(self.task, view, mode, scale))
            eye.size = pixels.shape[1], pixels.shape[0]
            if eye.client.client_id in self._eyes:  # it may have disconnected meanwhile
                eye.client.scene.set_background_image(pixels, format="jpeg", jpeg_quality=70 if eye.coarse else 90)
        return True

    def _view_of(self, eye: _Eye) -> View | None:
        """The browser's camera, at the size to render. None until the browser has sent a camera."""
        camera = eye.client.camera
        if camera.update_timestamp == 0.0 or not camera.image_height or not camera.image_width:
            return None
        if not (0 < camera.fov < math.pi and np.isfinite(camera.position).all() and np.isfinite(camera.wxyz).all()):
            return None
        longest = self._longest.value / (self._coarse.value if eye.coarse else 1)
        factor = min(1.0, longest / max(camera.image_height, camera.image_width))
        height = max(1, round(camera.image_height * factor))
        width = max(1, round(camera.image_width * factor))
        return view_of_camera(camera.wxyz, camera.position, camera.fov, width, height)

    # --- the controls

    def _make_controls(self) -> None:
        gui, count = self.server.gui, len(self.task.splats["means"])
        self._status = gui.add_markdown(f"{count:,} Gaussians")
        self._pause = gui.add_button("Pause", hint="Training waits after its step; Ctrl-C still saves.")
        self._pause.on_click(lambda _: self._toggle())
        with gui.add_folder("Picture"):
            self._mode = gui.add_dropdown("Mode", MODES, initial_value="rgb")
            self._longest = gui.add_slider("Longest side", min=64, max=2048, step=32, initial_value=512)
            self._coarse = gui.add_slider("Coarser while moving", min=1, max=8, step=1, initial_value=2)
            self._depths = gui.add_vector2("Depths", (0.0, 0.0), min=(0.0, 0.0), step=0.01, hint="0, 0: of the picture")
        with gui.add_folder("Cameras"):
            shown = gui.add_checkbox("Show", True)
            self._jump = gui.add_dropdown("Go to", ["…", *(view.name for view in self._views)], initial_value="…")
        for control in (self._mode, self._longest, self._depths):
            control.on_update(lambda _: self._all_dirty())
        shown.on_update(lambda _: self._show_frustums(shown.value))
        self._jump.on_update(self._jumped)

    def _toggle(self) -> None:
        self.paused = not self.paused
        self._pause.label = "Go on" if self.paused else "Pause"

    def _tell(self, step: int, report: Report) -> None:
        """Updates the status line, once a second."""
        now = time.monotonic()
        if now - self._told < REFRESH and not self.paused:
            return
        self._told = now
        words = [f"step {step:,} of {self.task.config.steps:,}"]
        if "psnr" in report:
            words.append(f"PSNR {report['psnr']:.2f} dB")
        words.append(f"{len(self.task.splats['means']):,} Gaussians")
        self._status.content = ", ".join(words) + (" — paused" if self.paused else "")

    def _make_frustums(self) -> None:
        self._frustums = []
        every = -(-len(self._views) // FRUSTUMS)
        train = len(self.task.scene.train)
        for index, view in list(enumerate(self._views))[::every]:
            wxyz, position = pose_of(view)
            frustum = self.server.scene.add_camera_frustum(
                f"/cameras/{index:05d}",
                fov=vertical_field(view),
                aspect=view.width / view.height,
                scale=0.03 * self.task.extent,
                thickness=1.5,
                thickness_units="screen",
                color=(9, 105, 218) if index < train else (188, 76, 0),
                wxyz=wxyz,
                position=position,
            )
            frustum.on_click(self._goer(view))
            self._frustums.append(frustum)

    def _show_frustums(self, shown: bool) -> None:
        for frustum in self._frustums:
            frustum.visible = shown

    def _goer(self, view: View) -> Callable[[Any], None]:
        return lambda event: self._go(event.client, view)

    def _jumped(self, event: Any) -> None:
        for view in self._views:
            if view.name == self._jump.value and event.client is not None:
                self._go(event.client, view)
                return

    def _go(self, client: Any, view: View) -> None:
        """Moves a browser's camera to where a photograph was taken."""
        wxyz, position = pose_of(view)
        with client.atomic():
            client.camera.position = position
            client.camera.wxyz = wxyz
            client.camera.fov = vertical_field(view)

    # --- browsers that come and go, in viser's threads

    def _connected(self, client: Any) -> None:
        eye = _Eye(client)

        def moved(_: Any) -> None:
            eye.moved, eye.dirty = time.monotonic(), True

        client.camera.on_update(moved)
        self._go(client, self.task.scene.train[0])
        # A little behind the first camera, so that its frustum is visible too.
        client.camera.position = client.camera.position - 0.4 * self.task.extent * self._ahead
        with self._lock:
            self._eyes[client.client_id] = eye

    def _disconnected(self, client: Any) -> None:
        """Continues a paused training when the last browser has left."""
        with self._lock:
            self._eyes.pop(client.client_id, None)
            if not self._eyes and self.paused:
                self._toggle()

    def _all_dirty(self) -> None:
        with self._lock:
            for eye in self._eyes.values():
                eye.dirty = True


def pose_of(view: View) -> tuple[np.ndarray, np.ndarray]:
    """The camera to world rotation of a view, wxyz, and its position, as viser has them."""
    from scipy.spatial.transform import Rotation

    rotation = view.viewmat[:3, :3].double().cpu().numpy().T
    x, y, z, w = Rotation.from_matrix(rotation).as_quat()
    return np.array([w, x, y, z]), view.center.double().cpu().numpy()


def vertical_field(view: View) -> float:
    """Vertical field of view in radians."""
    return 2 * math.atan(0.5 * view.height / float(view.K[1, 1]))


def view_of_camera(wxyz: Any, position: Any, fov: float, width: int, height: int) -> View:
    """Makes the view of a viser camera.

    Args:
        wxyz: Rotation from the camera, with OpenCV axes, to the world.
        position: Position in the world.
        fov: Vertical field of view in radians.
        width: Width of the image in pixels.
        height: Height of the image in pixels.
    """
    from scipy.spatial.transform import Rotation

    w, x, y, z = wxyz
    rotation = Rotation.from_quat([x, y, z, w]).as_matrix().T
    viewmat = np.eye(4)
    viewmat[:3, :3], viewmat[:3, 3] = rotation, -rotation @ np.asarray(position)
    focal = 0.5 * height / np.tan(0.5 * fov)
    K = torch.tensor([[focal, 0, 0.5 * width], [0, focal, 0.5 * height], [0, 0, 1]], dtype=torch.float32)
    # One pixel that stands for all.
    image = torch.zeros(1, 1, 3, dtype=torch.uint8).expand(height, width, 3)
    return View("viewer", torch.from_numpy(viewmat).float(), K, image)


def _free_port(host: str) -> int:
    import socket

    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _check_port(host: str, port: int) -> None:
    """Raises UserError if another program listens at the port, because viser would take the next free one."""
    import socket

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(f"the viewer requires a free port, got {port}: {error.strerror}") from None
