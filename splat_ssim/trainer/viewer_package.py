"""The viewer that report pages show a scene in: an npm package, fetched on demand and never part of this one."""

from __future__ import annotations

import base64
import hashlib
import tarfile
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from splat_ssim._files import cache_folder, replacing
from splat_ssim.errors import UserError
from splat_ssim.trainer.places import program

#: PlayCanvas' viewer of splats (MIT), with its engine in one file.
NAME, VERSION = "@playcanvas/supersplat-viewer", "1.36.2"
#: Of the tarball, as the npm registry states it.
INTEGRITY = "sha512-L7w0BlagAonRHQg5qhaDyBB8zrRtiU9QgglNU3kUgsqHpokCAtuf9j4P0kxsUaQn61FZ1qJGkRKsOCbrLCDR0w=="
ADDRESS = f"https://registry.npmjs.org/{NAME}/-/supersplat-viewer-{VERSION}.tgz"
_FILE = f"supersplat-viewer-{VERSION}.tgz"
#: What a page needs of it.
_SCRIPT, _STYLE, _LICENSE = "public/index.js", "public/index.css", "LICENSE"
#: Far above the size of any of them: a file that is larger is not the package.
_LARGEST = 64 * 2**20


@dataclass
class ViewerPackage:
    """The files of the viewer that a page embeds, and where they come from."""

    script: bytes
    style: bytes
    license: bytes
    source: str


def find_viewer(path: Path | None = None) -> ViewerPackage | None:
    """Finds the viewer's package. Returns None if it has not been installed.

    Args:
        path: Its tarball, or its folder below node_modules, as `npm install` leaves it. By default the package that
            `install_viewer` keeps. A tarball must have the checksum of the pinned version.

    Raises:
        UserError: The path holds no such package, or a damaged one.
    """
    if path is not None and path.is_dir():
        return _of_folder(path)
    tarball = path if path is not None else _kept()
    if tarball is None or not tarball.exists():
        if path is not None:
            raise UserError(f"{path}: required the package {NAME}, a folder or a tarball, got nothing there")
        return None
    try:
        content = tarball.read_bytes()
    except OSError as error:
        raise UserError(f"{tarball}: required the package {NAME}, got {error.strerror}") from None
    _check(content, str(tarball))
    with tarball.open("rb") as file:
        return _of_tarball(file)


def install_viewer(path: Path | None = None) -> Path:
    """Downloads the viewer's package from the npm registry, checks its checksum and keeps it.

    Args:
        path: File to write. By default it lies in `splat_ssim`'s cache.

    Returns:
        The tarball written.

    Raises:
        UserError: The registry cannot be reached, or sends something else.
        WriteError: The system refused to write the file.
    """
    target = path or _kept()
    if target is None:
        raise UserError(f"{NAME}: required a folder to keep it in, got a user without a home (SPLAT_SSIM_CACHE)")
    try:
        with urllib.request.urlopen(ADDRESS, timeout=60) as answer:
            content = answer.read(_LARGEST)
    except (OSError, urllib.error.URLError) as error:
        raise UserError(f"{ADDRESS}: required the package {NAME}, got {error}") from None
    _check(content, ADDRESS)
    with replacing(target) as file:
        file.write(content)
    return target


def how_to_install() -> str:
    """The text of a page if the package is missing."""
    return (
        f"to turn the scene in the page: {program('report')} --install-viewer ({NAME} {VERSION}, MIT, 3 MB), then again"
    )


def _kept() -> Path | None:
    folder = cache_folder()
    return None if folder is None else folder / _FILE


def _check(content: bytes, where: str) -> None:
    """Raises UserError where a tarball is not that of the pinned version."""
    found = f"sha512-{base64.b64encode(hashlib.sha512(content).digest()).decode()}"
    if found != INTEGRITY:
        raise UserError(f"{where}: required {NAME} {VERSION} with {INTEGRITY}, got {len(content)} bytes with {found}")


def _of_tarball(file: BinaryIO) -> ViewerPackage:
    with tarfile.open(fileobj=file, mode="r:gz") as archive:
        parts = []
        for name in (_SCRIPT, _STYLE, _LICENSE):
            member = archive.extractfile(f"package/{name}")
            assert member is not None, name  # the checksum was right
            parts.append(member.read())
    script, style, license = parts
    return ViewerPackage(script, style, license, f"{NAME} {VERSION}")


def _of_folder(folder: Path) -> ViewerPackage:
    parts = []
    for name in (_SCRIPT, _STYLE, _LICENSE):
        try:
            parts.append((folder / name).read_bytes())
        except OSError:
            raise UserError(f"{folder}: required the npm package {NAME}, got no {name} in it") from None
    script, style, license = parts
    return ViewerPackage(script, style, license, f"{NAME} from {folder}")
