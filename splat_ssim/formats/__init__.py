"""Gaussians in the files of viewers: PLY, compressed PLY, .splat, SPZ, SOG and glTF, written and read back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from splat_ssim._files import replacing
from splat_ssim.errors import user_errors
from splat_ssim.formats import compressed_ply, glb, sog, splat, spz
from splat_ssim.formats.cloud import Cloud as Cloud
from splat_ssim.formats.cloud import FormatError as FormatError
from splat_ssim.formats.cloud import check_finite, cloud_of, comments_of, large_offset, said_by_comments
from splat_ssim.ply import ply_count, read_gaussians, save_ply

__all__ = ["FORMATS", "Cloud", "Format", "FormatError", "count_splats", "format_of", "read_splats", "save_splats"]


@dataclass(frozen=True)
class Format:
    """One format: its name, how its files end, and what writes and reads them."""

    name: str
    suffix: str
    write: Callable[[Cloud, Path], None]
    read: Callable[[Path], Cloud]


def _with_bytes(
    name: str, suffix: str, encode: Callable[[Cloud, Path], bytes], decode: Callable[[bytes, Path], Cloud]
) -> Format:
    """A format whose files are encoded and decoded in memory."""

    def write(cloud: Cloud, path: Path) -> None:
        content = encode(cloud, path)
        with replacing(path) as file:
            file.write(content)

    return Format(name, suffix, write, lambda path: decode(path.read_bytes(), path))


def _write_ply(cloud: Cloud, path: Path) -> None:
    save_ply(path, cloud.splats(), comments=comments_of(cloud.offset, cloud.antialiased))


def _read_ply(path: Path) -> Cloud:
    (x, y, z), antialiased = said_by_comments(path)
    splats = read_gaussians(path)
    moved = large_offset(splats["means"], splats["scales"])
    splats["means"] = splats["means"] - torch.tensor(moved, dtype=splats["means"].dtype)
    offset = (x + moved[0], y + moved[1], z + moved[2])
    cloud = cloud_of(splats, antialiased=antialiased, offset=offset, source=path)
    if any(moved):
        words = ", ".join(f"{each + 0.0:.10g}" for each in moved)
        cloud.notes.append(f"coordinates are too large for float32: the offset ({words}) is subtracted")
    return cloud


def _write_compressed_ply(cloud: Cloud, path: Path) -> None:
    content = compressed_ply.encode(cloud, path)
    with replacing(path) as file:
        file.write(content)


#: Name -> format, the lossless one first.
FORMATS: dict[str, Format] = {
    each.name: each
    for each in (
        Format("ply", ".ply", _write_ply, _read_ply),
        Format("compressed-ply", ".compressed.ply", _write_compressed_ply, compressed_ply.decode),
        _with_bytes("splat", ".splat", splat.encode, splat.decode),
        _with_bytes("spz", ".spz", spz.encode, spz.decode),
        _with_bytes("sog", ".sog", sog.encode, sog.decode),
        _with_bytes("glb", ".glb", glb.encode, glb.decode),
    )
}


def format_of(path: str | Path) -> Format:
    """Returns the format that the suffix of a file names.

    Raises:
        FormatError: No format has this suffix.

    Example:
        >>> from splat_ssim.formats import format_of
        >>> format_of("chair.compressed.ply").name, format_of("chair.ply").name
        ('compressed-ply', 'ply')
    """
    name = Path(path).name.lower()
    found = [each for each in FORMATS.values() if name.endswith(each.suffix)]
    if not found:
        suffixes = ", ".join(each.suffix for each in FORMATS.values())
        raise FormatError(f"{path}: required a name that ends in {suffixes}, got {Path(path).suffix or 'none'}")
    return max(found, key=lambda each: len(each.suffix))


def save_splats(
    path: str | Path,
    splats: Mapping[str, Tensor],
    *,
    format: str | None = None,
    antialiased: bool = False,
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> list[str]:
    """Writes Gaussians atomically in a format that viewers open.

    Args:
        path: File to write.
        splats: Tensors as `splat_ssim.save_ply` takes them: means (N, 3), scales (N, 3) logarithms, quats (N, 4) wxyz,
            opacities (N,) logits, sh0 (N, 1, 3) and shN (N, K-1, 3), any float dtype, on any device. They have the axes
            of PLY files, which viewers take as right, down, front. SPZ and glTF files get their own axes.
        format: ply, compressed-ply, splat, spz, sog or glb. By default the suffix decides.
        antialiased: Whether they were trained with Mip-Splatting's compensation. Some formats record it.
        offset: Offset that was subtracted from the world's coordinates. Some formats record it.

    Returns:
        One line for each thing that was cut, left out or rounded more than usual.

    Raises:
        ValueError: A tensor is missing or has another shape.
        FormatError: There are no Gaussians, a number is NaN, or the format cannot hold them.

    Example:
        >>> import tempfile, torch
        >>> from splat_ssim.formats import read_splats, save_splats
        >>> shapes = {"means": (3,), "scales": (3,), "quats": (4,), "opacities": (), "sh0": (1, 3), "shN": (8, 3)}
        >>> splats = {name: torch.rand(5, *shape) for name, shape in shapes.items()}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     notes = save_splats(f"{folder}/scene.spz", splats)
        ...     read_splats(f"{folder}/scene.spz").splats()["shN"].shape
        torch.Size([5, 8, 3])
    """
    path = Path(path)
    kind = format_of(path) if format is None else named_format(format)
    cloud = cloud_of(splats, antialiased=antialiased, offset=offset, source=path)
    kind.write(cloud, path)
    return cloud.notes


def count_splats(path: str | Path) -> int:
    """Returns the number of Gaussians in a file. Of a PLY, only the header is read.

    Raises:
        PlyError, FormatError: The file does not hold Gaussians, or is damaged.
    """
    return ply_count(path) if format_of(path).name == "ply" else len(read_splats(path))


def read_splats(path: str | Path, *, format: str | None = None) -> Cloud:
    """Reads Gaussians from a file of any of the formats, in the axes of PLY files.

    Args:
        path: File to read.
        format: One of the formats of `save_splats`. By default the suffix decides; a compressed PLY is recognised by
            its contents.

    Returns:
        The Gaussians. `Cloud.splats()` returns them as the tensors that `splat_ssim.load_ply` returns.

    Raises:
        UserError: The file is missing, is broken, or is not what its name says.

    Example: see `save_splats`.
    """
    path = Path(path)
    kind = format_of(path) if format is None else named_format(format)
    with user_errors():
        if kind.name == "ply" and "packed_position" in _vertex_properties(path):
            kind = FORMATS["compressed-ply"]
        cloud = kind.read(path)
    check_finite(vars(cloud), path)
    return cloud


def named_format(name: str) -> Format:
    """Returns the format of this name.

    Raises:
        FormatError: No format has this name.
    """
    if name not in FORMATS:
        raise FormatError(f"the format must be one of {', '.join(FORMATS)}, got {name!r}")
    return FORMATS[name]


def _vertex_properties(path: Path) -> list[str]:
    """The names in the header of a PLY after "element vertex", without reading what follows it."""
    with path.open("rb") as file:
        head = file.read(65536).partition(b"end_header")[0].decode("ascii", "replace")
    return [words[-1] for line in head.splitlines() if (words := line.split())[:1] == ["property"]]
