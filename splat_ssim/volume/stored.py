"""The result of a reader, before its axes are put in order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

#: Names of units of length as formats spell them -> the name here.
_UNITS = {
    "m": ("m", "meter", "metre", "meters"),
    "cm": ("cm", "centimeter", "centimetre"),
    "mm": ("mm", "millimeter", "millimetre", "millimeters"),
    "um": ("um", "µm", "μm", "\\u00b5m", "micron", "microns", "micrometer", "micrometre", "micrometers"),
    "nm": ("nm", "nanometer", "nanometre", "nanometers"),
    "angstrom": ("angstrom", "å"),
    "inch": ("inch", "inches", "in"),
}
#: Metres in each.
METRES = {"m": 1.0, "cm": 1e-2, "mm": 1e-3, "um": 1e-6, "nm": 1e-9, "angstrom": 1e-10, "inch": 0.0254}


@dataclass
class Stored:
    """The array of a file as it is stored, and what the file states about it.

    Args:
        array: A numpy array, or one that is read piece by piece.
        axes: A letter for each axis of the array: x, y, z, c (channel), t (time), ? (none of them). Empty if the file
            does not say.
        affine: 4x4 map from an index along the three spatial axes, in the array's order, to world x, y, z (RAS). None
            if the file has none.
        unit: Unit of the world: m, cm, mm, um, nm, angstrom, inch, or empty if the file does not say.
        order: The letters of the spatial axes to assume if `axes` has none and no affine is given.
        notes: One sentence for each thing that was assumed.
        itemsize: Bytes of a number in the file that it was read from, or None if they are those of `data`.
    """

    array: Any
    axes: str = ""
    affine: np.ndarray | None = None
    unit: str = ""
    order: str = "zyx"
    notes: list[str] = field(default_factory=list)
    itemsize: int | None = None

    def name_axes(self, names: Any) -> None:
        """Takes a file's names of its axes, a word or a list, where each is one of x, y, z, c and t."""
        if isinstance(names, bytes):
            names = names.decode(errors="replace")
        listed = [names] if np.ndim(names) == 0 and not isinstance(names, str) else list(names)
        words = ["" if name is None else name.decode() if isinstance(name, bytes) else str(name) for name in listed]
        letters = [word.lower() for word in words]
        if len(letters) == self.array.ndim == len(set(letters)) and set("xyz") <= set(letters) <= set("xyzct"):
            self.axes = "".join(letters)
        elif any(words):
            self.notes.append(
                f"its names of axes, {', '.join(words)}, are left out: x, y and z, and c and t where there are such, "
                f"must name its {self.array.ndim} axes"
            )

    def note_absent(self, absent: int, total: int, fill: Any) -> None:
        """Says how many chunks of an array its file does not have."""
        if absent > 0:
            self.notes.append(f"{absent} of its {total} chunks are absent and are read as {fill}")

    def axes_in_space(self) -> str:
        """The letters of the spatial axes in the array's order."""
        return "".join(letter for letter in self.axes if letter in "xyz") or self.order


def plain_array(array: Any, name: str) -> np.ndarray:
    """An array as numpy has it.

    Raises:
        ValueError: A masked array, whose mask would be lost.
    """
    if np.ma.is_masked(array):
        raise ValueError(
            f"{name} must be an array without a mask, got one with {int(np.ma.getmaskarray(array).sum())} masked "
            f"voxels; fill them by filled(0), and pass ~mask as the mask of a fit"
        )
    return np.asarray(array)


def read_option(text: str) -> str:
    """How commands take an option of `load_volume`, for messages."""
    return f"(--data.read '{{{text}}}' of train, --read of compress and project)"


def unit_name(text: Any) -> str:
    """Our name of a unit of length that a file spells in its own way. Empty for any other word.

    Example:
        >>> from splat_ssim.volume.stored import unit_name
        >>> unit_name("micrometer"), unit_name("pixel")
        ('um', '')
    """
    word = str(text or "").strip().strip('"').lower()
    return next((name for name, spellings in _UNITS.items() if word in spellings), "")


def in_unit(length: float, unit: str, target: str) -> float:
    """A length in another unit; as it is where one of the two is not known."""
    if unit in METRES and target in METRES and unit != target:
        return length * METRES[unit] / METRES[target]
    return length
