"""Reads the exported names of a shared library from an ELF, PE or Mach-O file, without that system's tools."""

from __future__ import annotations

import struct
from pathlib import Path


def _text(data: bytes, offset: int) -> str:
    return data[offset : data.index(b"\0", offset)].decode()


def _elf(data: bytes) -> list[str]:
    """Global symbols that .dynsym of a 64-bit little-endian file defines."""
    first, size, count = struct.unpack_from("<Q", data, 40)[0], *struct.unpack_from("<HH", data, 58)
    # Of each section header: type, offset, size, link, size of an entry.
    sections = [struct.unpack_from("<4xI16xQQI12xQ", data, first + i * size) for i in range(count)]
    names = []
    for kind, offset, length, link, entry in sections:
        if kind != 11:  # SHT_DYNSYM
            continue
        strings = sections[link][1]
        for at in range(offset, offset + length, entry):
            name, info, section = struct.unpack_from("<IBxH", data, at)
            if section and info >> 4 in (1, 2) and info & 15 in (1, 2):  # global or weak, object or function
                names.append(_text(data, strings + name))
    return names


def _pe(data: bytes) -> list[str]:
    """The names of the export directory of a 64-bit file."""
    header = struct.unpack_from("<I", data, 60)[0]
    count, optional = struct.unpack_from("<H12xH", data, header + 6)
    # Of each section: size in memory, address, size in the file, offset in the file.
    sections = [struct.unpack_from("<8xIIII", data, header + 24 + optional + 40 * i) for i in range(count)]

    def offset(address: int) -> int:
        place_in_file: int = next(
            place + address - start for _, start, size, place in sections if start <= address < start + size
        )
        return place_in_file

    directory = struct.unpack_from("<I", data, header + 24 + 112)[0]
    if directory == 0:
        return []
    total, names = struct.unpack_from("<I4xI", data, offset(directory) + 24)
    addresses = struct.unpack_from(f"<{total}I", data, offset(names))
    return [_text(data, offset(address)) for address in addresses]


def _mach_o(data: bytes) -> list[str]:
    """External symbols that the file defines, without the underscore that C puts before them."""
    names, at = [], 32
    for _ in range(struct.unpack_from("<I", data, 16)[0]):
        command, size = struct.unpack_from("<II", data, at)
        if command == 2:  # LC_SYMTAB
            table, count, strings = struct.unpack_from("<III", data, at + 8)
            for i in range(count):
                name, kind = struct.unpack_from("<IB", data, table + 16 * i)
                # External, not private to this library, not for debuggers, and defined in a section.
                if kind & 1 and not kind & 0x10 and not kind & 0xE0 and kind & 0x0E == 0x0E:
                    names.append(_text(data, strings + name).removeprefix("_"))
        at += size
    return names


def exported(library: Path) -> list[str]:
    """The names that a shared library exports, sorted.

    Raises:
        ValueError: The file is not a 64-bit library of Linux, macOS or Windows.
    """
    data = library.read_bytes()
    for magic, read in ((b"\x7fELF\x02", _elf), (b"MZ", _pe), (b"\xcf\xfa\xed\xfe", _mach_o)):
        if data.startswith(magic):
            return sorted(read(data))
    raise ValueError(f"{library} must be a 64-bit ELF, PE or Mach-O library, got {data[:4]!r}")
