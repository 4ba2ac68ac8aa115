"""Checkpoints: everything that a run needs to resume as if it had never stopped, written atomically."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from splat_ssim._files import replacing
from splat_ssim.errors import UserError
from splat_ssim.trainer.states import is_count, tensors_problem

NAME = "checkpoint.pt"


class CheckpointError(UserError):
    """A checkpoint is missing or cannot be read. The message names it."""


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Writes `state` and the random number generators' to folder/checkpoint.pt.

    If the process dies, the folder holds either the previous checkpoint or the new one.
    """
    generators: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        generators["cuda"] = torch.cuda.get_rng_state_all()
    with replacing(folder / NAME) as file:
        torch.save({**state, "generators": generators}, file)


def fingerprint(text: str, *parts: Tensor | np.ndarray | str) -> str:
    """Describes data in words and by a checksum, which differs for different data with near certainty.

    Example:
        >>> import torch
        >>> from splat_ssim.trainer.checkpoint import fingerprint
        >>> fingerprint("3 numbers", torch.arange(3))
        '3 numbers (checksum 4f8c5ccc)'
    """
    total = 0
    for part in parts:
        content = part.encode() if isinstance(part, str) else np.ascontiguousarray(part).reshape(-1).view(np.uint8).data
        total = zlib.crc32(content, total)
    return f"{text} (checksum {total:08x})"


def saved_step(folder: Path) -> int | None:
    """The step of folder/checkpoint.pt, without reading its tensors. None if there is none or it does not read."""
    step = saved_value(folder, "step")
    return step if is_count(step) else None


def saved_value(folder: Path, key: str, default: Any = None) -> Any:
    """Reads a value that is not a tensor from folder/checkpoint.pt. Returns None without a readable checkpoint.

    Args:
        folder: Run folder.
        key: Key of the value.
        default: Value to return if the checkpoint has no such key.
    """
    try:
        return torch.load(folder / NAME, map_location="cpu", mmap=True, weights_only=True).get(key, default)
    except Exception:  # torch raises many kinds of errors for a damaged file
        return None


def load_checkpoint(folder: Path, device: torch.device, *, restore_generators: bool = True) -> dict[str, Any]:
    """Reads the state in folder/checkpoint.pt to a device. For a resumed run, it also restores torch's generators.

    Nothing in the folder is changed, so a run can be inspected while it trains.

    Args:
        folder: Run folder.
        device: Device of the tensors.
        restore_generators: Whether to set torch's generators, as a resumed run needs.

    Raises:
        CheckpointError: There is no checkpoint, or it was not written by `save_checkpoint`.
    """
    path = folder / NAME
    if not path.is_file():
        raise CheckpointError(f"{path}: required a checkpoint, got nothing there")
    # Torch and zipfile raise many kinds of errors for a damaged file.
    with refusing(path, Exception):
        state, generators = _read(path, device)
        if restore_generators:
            torch.set_rng_state(generators["cpu"].cpu())
            if "cuda" in generators and torch.cuda.is_available():
                # The machine that resumes the run may have fewer devices.
                states = generators["cuda"][: torch.cuda.device_count()]
                torch.cuda.set_rng_state_all([generator.cpu() for generator in states])
    return state


def _read(path: Path, device: torch.device) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads the state in a file, and the states of the random generators.

    Raises:
        Exception: The file is damaged: any error of zipfile or torch, or a ValueError.
    """
    # torch ignores the checksums in its files, so a run would go on with damaged numbers.
    with zipfile.ZipFile(path) as file:
        damaged = file.testzip()
    if damaged is not None:
        raise ValueError(f"one whose {damaged} is damaged")
    # Only tensors, numbers, strings and containers, so that a checkpoint from elsewhere cannot run code.
    state = torch.load(path, map_location=device, weights_only=True)
    if not isinstance(state, dict) or not isinstance(state.get("generators"), dict):
        raise ValueError("one without generators")
    problem = tensors_problem(state)
    if problem is not None:
        raise ValueError(problem)
    return state, state.pop("generators")


@contextmanager
def refusing(path: Path, *kinds: type[Exception]) -> Iterator[None]:
    """Converts errors in the block to a CheckpointError, which says that the file is not as required.

    Args:
        path: Path of the checkpoint.
        *kinds: Types of the errors to convert. By default those of checks and missing keys. Any other error is a bug
            and passes.
    """
    turned = kinds or (ValueError, KeyError)
    try:
        yield
    except UserError:
        raise
    except turned as broken:
        what = str(broken).partition("\n")[0] if isinstance(broken, ValueError) else type(broken).__name__
        raise CheckpointError(f"{path}: required a checkpoint of splat_ssim, got {what}") from broken
