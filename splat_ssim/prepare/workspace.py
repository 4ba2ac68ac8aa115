"""The work folder SCENE/prepare: which stages are done, with which inputs, and what is under way.

A stage writes below `parts/` and renames its result to its own name when it is whole; only then is it entered in
state.json. So a stage counts as done only if it ran to its end, whenever the process died.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from pathlib import Path
from typing import Any

from splat_ssim._files import to_json, write_json
from splat_ssim._locks import take_lock
from splat_ssim.errors import UserError

#: The stages in their order.
STAGES = ("photos", "features", "matching", "mapping", "undistortion")
#: What each leaves in the work folder; the last one fills the scene folder itself.
RESULTS = {"photos": "photos", "features": "features.db", "matching": "matching.db", "mapping": "models"}
#: Files and folders of a finished scene; "sparse", by which readers recognise it, comes last.
OUTPUTS = ("images", "images_2", "images_4", "images_8", "masks", "sparse")
REPORT = "report.json"
#: How long a scene in use is waited for.
LOCK_SECONDS = 3.0


def fingerprint(*content: Any) -> str:
    """A hash of nested mappings and sequences of text and numbers.

    Example:
        >>> from splat_ssim.prepare.workspace import fingerprint
        >>> fingerprint({"a": 1}) == fingerprint({"a": 1}), fingerprint({"a": 1}) == fingerprint({"a": 2})
        (True, False)
    """
    return hashlib.sha256(to_json(content).encode()).hexdigest()[:32]


class Workspace:
    """The work folder of one scene, locked until `close`.

    Args:
        scene: Scene folder. It is created.
        source: The photographs or the video that the scene is made from.

    Raises:
        UserError: The folder holds another scene, is in use, or cannot be written to.
    """

    def __init__(self, scene: Path, source: Path) -> None:
        self.scene, self.folder = scene, scene / "prepare"
        self.parts, self.logs = self.folder / "parts", self.folder / "logs"
        path = self.folder / "state.json"
        if scene.exists() and not scene.is_dir():
            raise UserError(f"{scene}: required a folder for the scene, got a file")
        kept = [name for name in (*OUTPUTS, REPORT) if (scene / name).exists()]
        if kept and not path.is_file():
            raise UserError(f"{scene}: required a new folder or one that prepare.py made, got one with {kept[0]}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self.folder / "lock").open("a")
        except OSError as error:
            raise UserError(f"{scene}: required a folder to write to, got {error.strerror}") from None
        self._take_lock()
        self.state = self._read(path)
        before = self.state.setdefault("source", str(source.resolve()))
        if before != str(source.resolve()):
            self.close()
            raise UserError(
                f"{scene}: required the photographs it was begun with, {before}, got {source}: name another folder"
            )

    def _take_lock(self) -> None:
        # The child of a run that was killed needs a moment to notice.
        until = time.monotonic() + LOCK_SECONDS
        while True:
            if take_lock(self._lock):
                return
            if time.monotonic() > until:
                break
            time.sleep(0.05)
        self._lock.close()
        raise UserError(f"{self.scene}: required a scene that no other prepare.py works on, got one in use")

    @staticmethod
    def _read(path: Path) -> dict[str, Any]:
        if not path.is_file():
            return {"stages": {}}
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path}: required the JSON that prepare.py wrote, got {error}: delete it") from None
        if not isinstance(state, dict) or not isinstance(state.get("stages"), dict):
            raise UserError(f"{path}: required the state that prepare.py wrote, got something else: delete it")
        return state

    def _write(self) -> None:
        write_json(self.folder / "state.json", self.state)

    def lock_descriptor(self) -> int:
        """The descriptor of the lock, for children to inherit, so that it is held until the last of them has ended."""
        return self._lock.fileno()

    def close(self) -> None:
        """Gives the lock back."""
        self._lock.close()

    def is_done(self, stage: str, key: str) -> bool:
        """Whether a stage has run to its end with these inputs and options, and its result is still there."""
        place = self.scene / "sparse" if stage == "undistortion" else self.folder / RESULTS[stage]
        return self.state["stages"].get(stage, {}).get("key") == key and place.exists()

    def info(self, stage: str) -> dict[str, Any]:
        """The results of a finished stage."""
        recorded: dict[str, Any] = self.state["stages"][stage]["info"]
        return recorded

    def seconds(self) -> dict[str, float]:
        """Seconds of the stages that are done."""
        return {stage: self.state["stages"][stage]["seconds"] for stage in STAGES if stage in self.state["stages"]}

    def start(self, stage: str, key: str) -> bool:
        """Records that a stage has started. The stage and all later ones no longer count as done.

        Returns:
            Whether the stage had been done before, with other inputs or options.
        """
        again = stage in self.state["stages"]
        for later in STAGES[STAGES.index(stage) :]:
            self.state["stages"].pop(later, None)
        if self.state.get("started") != [stage, key]:
            # What is in parts belongs to something else.
            shutil.rmtree(self.parts, ignore_errors=True)
            self.state["started"] = [stage, key]
        self._write()
        self.parts.mkdir(exist_ok=True)
        self.logs.mkdir(exist_ok=True)
        return again

    def finish(self, stage: str, key: str, seconds: float, info: dict[str, Any]) -> None:
        """Enters that a stage has run to its end."""
        self.state["stages"][stage] = {"key": key, "seconds": round(seconds, 2), "info": info}
        self.state.pop("started", None)
        self._write()

    def place(self, name: str) -> Path:
        """Renames parts/<name> to its place in the work folder, where it replaces what was there."""
        place = self.folder / name
        if place.is_dir():
            shutil.rmtree(place)
        (self.parts / name).replace(place)
        return place

    def publish(self, made: Path) -> None:
        """Moves a complete scene from `made` to the scene folder. The model comes last: readers look for it."""
        (self.scene / REPORT).unlink(missing_ok=True)
        shutil.rmtree(self.scene / "sparse", ignore_errors=True)
        for name in OUTPUTS:
            shutil.rmtree(self.scene / name, ignore_errors=True)
            if (made / name).is_dir():
                (made / name).replace(self.scene / name)
