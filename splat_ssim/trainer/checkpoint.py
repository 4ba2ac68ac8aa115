"""Checkpoints: everything a run needs to go on as if it had never stopped, written all at once or not at all."""

from __future__ import annotations

import pickle
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from splat_ssim._files import replacing
from splat_ssim.errors import UserError

NAME = "checkpoint.pt"


class CheckpointError(UserError):
    """A checkpoint is missing or does not read; the message names it."""


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Writes `state` and the random number generators' to folder/checkpoint.pt.

    Whenever the process dies, there is either the previous checkpoint or the new one.
    """
    generators: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        generators["cuda"] = torch.cuda.get_rng_state_all()
    with replacing(folder / NAME) as file:
        torch.save({**state, "generators": generators}, file)


def fingerprint(text: str, *parts: Tensor | np.ndarray | str) -> str:
    """What data are, in words, and a checksum of them: equal only for equal data, as good as.

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
    """The step of folder/checkpoint.pt, its tensors unread; None where there is none or it does not read."""
    step = saved_value(folder, "step")
    return None if step is None else int(step)


def saved_value(folder: Path, key: str, default: Any = None) -> Any:
    """A value of folder/checkpoint.pt that is no tensor; None where there is no checkpoint or it does not read.

    Args:
        folder: Run folder.
        key: Of the value.
        default: Where the checkpoint has no such key.
    """
    try:
        return torch.load(folder / NAME, map_location="cpu", mmap=True, weights_only=True).get(key, default)
    except Exception:  # whatever torch makes of a damaged file
        return None


def load_checkpoint(folder: Path, device: torch.device, *, restore_generators: bool = True) -> dict[str, Any]:
    """Reads the state of folder/checkpoint.pt to a device and, for a run that goes on, sets the generators to theirs.

    Nothing in the folder is changed: a run may be looked at while it trains.

    Args:
        folder: Run folder.
        device: Where tensors go.
        restore_generators: Whether to set torch's generators; not for a run that is only looked at.

    Raises:
        CheckpointError: There is no checkpoint, or it is no file of `save_checkpoint`.
    """
    path = folder / NAME
    if not path.is_file():
        raise CheckpointError(f"{path}: required a checkpoint, got nothing there")
    try:
        # Tensors, numbers, strings and containers only: a checkpoint from elsewhere runs no code.
        state = torch.load(path, map_location=device, weights_only=True)
        generators = state.pop("generators")
    except (RuntimeError, KeyError, EOFError, pickle.UnpicklingError, AttributeError) as broken:
        raise CheckpointError(f"{path}: required a checkpoint of splat_ssim, got {type(broken).__name__}") from None
    if restore_generators:
        torch.set_rng_state(generators["cpu"].cpu())
        if "cuda" in generators and torch.cuda.is_available():
            # The machine that goes on may have fewer devices.
            states = generators["cuda"][: torch.cuda.device_count()]
            torch.cuda.set_rng_state_all([generator.cpu() for generator in states])
    return state
