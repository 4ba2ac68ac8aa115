"""Estimates the memory that a fit will take, before the volume is read, and refuses a fit that needs too much."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..trainer.device import available_memory
from .io import stored_shape

#: Bytes for each voxel and channel besides the file's own: while it is scaled and compared, on the CPU; where a GPU
#: computes, the host only reads and scales. Measured at 288³ and 352³.
_BYTES = {"cpu": 36, "cuda": 22}
#: Bytes that a fit takes regardless of its size.
_FIXED = 150e6


def fit_bytes(shape: tuple[int, ...], itemsize: int, device: str = "cpu") -> float:
    """Estimates the bytes of the host's memory that a fit of an array takes.

    Args:
        shape: Shape of the array, channels included.
        itemsize: Number of bytes of each of its numbers.
        device: Device that fits: cpu or cuda.
    """
    return _FIXED + math.prod(shape) * (_BYTES.get(device, _BYTES["cpu"]) + itemsize)


def check_memory(path: Path, read: Mapping[str, Any], device: str = "cpu") -> str | None:
    """Describes in a line how much memory a fit of a file will take. The file's voxels are not read.

    Args:
        path: Volume file.
        read: Options of `load_volume`.
        device: Device that fits: cpu or cuda.

    Returns:
        The line, or None if the size is unknown until the file is read (npz, DICOM, or a choice of channel or time), or
        it is no volume.

    Raises:
        ValueError: The fit takes more memory than there is, or the file cannot be read.
    """
    found = stored_shape(path, **{name: read[name] for name in ("shape", "dtype", "key") if name in read})
    if found is None or len(found[0]) < 3 or (len(found[0]) > 3 and not {"channel", "time"}.isdisjoint(read)):
        return None
    shape, itemsize = found
    needed, there = fit_bytes(shape, itemsize, device), available_memory()
    size = "x".join(str(n) for n in shape)
    if there is not None and needed > there:
        raise ValueError(
            f"{path}: a fit of {size} voxels requires about {needed / 1e9:.3g} GB of memory, got {there / 1e9:.3g} GB; "
            f"fit it brick by brick (--config configs/bricks.yaml), or cut it"
        )
    return f"{path}: memory: a fit of {size} voxels takes about {needed / 1e9:.2g} GB" + (
        f" of the {there / 1e9:.3g} GB there are" if there is not None else ""
    )
