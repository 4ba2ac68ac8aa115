"""Damages valid files: changes their bytes, their numbers, their lines and their structure."""

from __future__ import annotations

import copy
import json
import math
import random
import re
import struct
import zlib
from collections.abc import Callable
from typing import Any

import torch

NUMBERS: list[Any] = [
    *[0, 1, -1, 2, 0.5, -0.0, 3, 7, 255, 65536, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63)],
    *[1e-320, 1e-30, 1e9, 1e19, 1e30, 1e39, 1e300, -1e300, math.inf, -math.inf, math.nan, True, False],
]
WORDS = [
    "nan",
    "inf",
    "-inf",
    "1e999",
    "-1",
    "0",
    "1e308",
    "9" * 30,
    "9" * 5000,
    "0x10",
    "1_0",
    "",
    "a",
    "NaN(1)",
    "é",
    "٣",
]
STRINGS = [
    *[
        "",
        "a",
        "\0",
        "a\0b",
        "x" * 300,
        "x" * 5000,
        "\ud800",
        "é漢",
        "/",
        ".",
        "..",
        "/dev/null",
        "/dev/zero",
    ],
    *["line\nbreak", "\r", "\u2028", "\x1b[31m", "a\\b", "~", "%s", "{}", "1", "nan", "1e999", "images", "None"],
]
#: Stands for nested lists that are deeper than a recursive parser can read.
DEEP = "deeper than any"


def value(source: random.Random) -> Any:
    """Draws a number, a string or a container that a reader does not expect."""
    kind = source.randrange(6)
    if kind < 2:
        return source.choice(NUMBERS)
    if kind == 2:
        return source.choice(STRINGS)
    if kind == 3:
        return source.choice(
            [None, [], {}, [[]], [None], {"": None}, [0] * 4, [[0.0] * 4] * 4, [1, [2]], {"a": {"b": []}}]
        )
    if kind == 4:
        return source.choice([10**400, -(10**400), DEEP, "x" * 100_000, [0] * 10_000])
    return source.uniform(-1, 1) * 10 ** source.uniform(-12, 12)


# --- bytes


def _flip(source: random.Random, data: bytearray) -> None:
    for _ in range(source.choice([1, 1, 1, 2, 5, 50])):
        data[source.randrange(len(data))] ^= 1 << source.randrange(8)


def _cut(source: random.Random, data: bytearray) -> None:
    del data[source.choice([source.randrange(len(data)), max(0, len(data) - source.randint(1, 16))]) :]


def _insert(source: random.Random, data: bytearray) -> None:
    at, size = source.randint(0, len(data)), source.choice([1, 2, 4, 8, 100, 5000])
    data[at:at] = source.choice([source.randbytes(size), b"\0" * size, b"\xff" * size, b" " * size, b"\n" * size])


def _delete(source: random.Random, data: bytearray) -> None:
    at = source.randrange(len(data))
    del data[at : at + source.choice([1, 1, 2, 4, 8, 24, 1000])]


def _repeat(source: random.Random, data: bytearray) -> None:
    start = source.randrange(len(data))
    end = min(len(data), start + source.choice([1, 8, 60, 500, len(data)]))
    data[end:end] = data[start:end] * source.choice([1, 1, 3, 20])


def _overwrite(source: random.Random, data: bytearray) -> None:
    at, size = source.randrange(len(data)), source.choice([1, 2, 4, 8, 64])
    data[at : at + size] = source.choice([b"\0", b"\xff", b"\x7f", b"\x80"]) * min(size, len(data) - at)


def _binary(source: random.Random, data: bytearray) -> None:
    """Replaces a number of 4 or 8 bytes, usually one of the first, which are often counts."""
    form = source.choice(["<Q", "<I", "<d", "<f", "<q", ">I"])
    size = struct.calcsize(form)
    at = source.choice([0, 8, source.randrange(len(data)), source.randrange(len(data)) // 4 * 4])
    number = source.choice([number for number in NUMBERS if not isinstance(number, bool)])
    try:
        packed = struct.pack(form, float(number) if form[1] in "df" else int(number))
    except (OverflowError, ValueError, struct.error):
        packed = b"\xff" * size
    data[at : at + size] = packed


def _encode(source: random.Random, data: bytearray) -> None:
    text = data.decode("latin-1")
    codec = source.choice(["utf-16", "utf-32", "utf-8-sig", "cp037", "utf-7"])
    data[:] = text.encode(codec, "replace")


def _empty(source: random.Random, data: bytearray) -> None:
    data[:] = source.choice([b"", b"\n", b"\0", b" ", b"\xef\xbb\xbf", source.randbytes(200)])


_BYTES = [_flip, _flip, _cut, _cut, _insert, _delete, _repeat, _overwrite, _binary, _binary, _binary]
_RARE = [_encode, _empty]


def change_bytes(source: random.Random, content: bytes) -> bytes:
    """Changes, removes or repeats some bytes."""
    data = bytearray(content)
    for _ in range(source.choice([1, 1, 1, 2, 4])):
        if data:
            source.choice(_RARE if source.random() < 0.03 else _BYTES)(source, data)
    return bytes(data)


# --- text

_NUMBER = re.compile(rb"-?\d+(\.\d+)?([eE][-+]?\d+)?")


def change_words(source: random.Random, content: bytes, end: int | None = None) -> bytes:
    """Changes numbers or words of a text. What follows `end` is not changed."""
    head, rest = content[:end], content[end:] if end is not None else b""
    places = list((_NUMBER if source.random() < 0.6 else re.compile(rb"\S+")).finditer(head))
    for place in sorted(source.sample(places, min(len(places), source.choice([1, 1, 2, 5]))), key=lambda p: -p.start()):
        word = source.choice(
            [*WORDS, *map(str, NUMBERS), *STRINGS[:3], source.choice(places).group().decode("latin-1")]
        )
        head = head[: place.start()] + word.encode("utf-8", "replace") + head[place.end() :]
    return head + rest


def change_lines(source: random.Random, content: bytes, end: int | None = None) -> bytes:
    """Removes, repeats, reorders or cuts lines of a text, or changes their line ends."""
    head, rest = content[:end], content[end:] if end is not None else b""
    lines = head.split(b"\n")
    at, other = source.randrange(len(lines)), source.randrange(len(lines))
    kind = source.randrange(7)
    if kind == 0:
        del lines[at]
    elif kind == 1:
        lines[at:at] = [lines[other]] * source.choice([1, 1, 2, 2000])
    elif kind == 2:
        lines[at], lines[other] = lines[other], lines[at]
    elif kind == 3:
        lines[at] = lines[at][: source.randint(0, len(lines[at]))]
    elif kind == 4:
        lines[at] = b" ".join(lines[at].split()[: source.randint(0, 5)])
    elif kind == 5:
        lines[at] = lines[at] + b" " + source.choice([b"0", b"x", b"1 2 3", lines[other]])
    else:
        return source.choice([b"\r\n", b"\r", b"\n\n", b" \n"]).join(lines) + rest
    return b"\n".join(lines) + rest


# --- structure


def _places(tree: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Yields every (container, key) of a tree."""
    for key in tree if isinstance(tree, dict) else range(len(tree)):
        found.append((tree, key))
        if isinstance(tree[key], dict | list) and tree[key]:
            _places(tree[key], found)
    return found


def change_tree(source: random.Random, tree: Any, evil: Callable[[random.Random], Any] = value) -> Any:
    """Copies nested mappings and lists, with some values changed, removed, repeated or moved."""
    tree = copy.deepcopy(tree)
    for _ in range(source.choice([1, 1, 1, 2, 3])):
        places = _places(tree, [])
        if not places:
            break
        container, key = source.choice(places)
        kind = source.randrange(8)
        if kind == 0:
            del container[key]
        elif kind == 1:
            container[key] = [container[key]]
        elif kind == 2:
            # Another part of the tree, as the earlier changes have left it.
            other, at = source.choice(places)
            there = at in other if isinstance(other, dict) else at < len(other)
            container[key] = copy.deepcopy(other[at]) if there else None
        elif kind == 3 and isinstance(container, dict):
            container[source.choice(STRINGS[:6]) + str(key)[:3]] = container[key]
        elif kind == 3:
            container.append(copy.deepcopy(container[key]))
        else:
            container[key] = evil(source)
    return tree if source.random() > 0.01 else evil(source)


def to_json(source: random.Random, tree: Any) -> bytes:
    """JSON text of a tree. NaN and infinities are written as Python does."""
    depth = source.choice([50, 900, 5000, 100_000])
    text = json.dumps(tree, ensure_ascii=source.random() < 0.8, indent=source.choice([None, 1]))
    deep = source.choice(["[" * depth + "]" * depth, "[" * depth, '{"a":' * depth + "1" + "}" * depth])
    text = text.replace(json.dumps(DEEP), deep)
    return text.encode("utf-8", "surrogatepass")


def tensor(source: random.Random, old: torch.Tensor) -> Any:
    """Makes a tensor to replace another, with another shape, kind or content."""
    kind = source.randrange(10)
    if kind == 0:
        return old[: len(old) // 2].clone() if old.ndim else old.reshape(1)
    if kind == 1:
        return torch.cat([old, old]) if old.ndim else torch.zeros(3)
    if kind == 2:
        return old.to(
            source.choice([torch.float64, torch.int64, torch.uint8, torch.float16, torch.bool, torch.complex64])
        )
    if kind == 3:
        return torch.full_like(old, source.choice([0, 1, 200])) if old.numel() else old
    if kind == 4:
        new = old.clone()
        if new.numel() and new.is_floating_point():
            new.view(-1)[source.randrange(new.numel())] = source.choice(
                [math.nan, math.inf, -math.inf, 3e38, -3e38, 1e30]
            )
        return new
    if kind == 5:
        return torch.zeros(0)
    if kind == 6:
        return old.unsqueeze(source.choice([0, -1]))
    if kind == 7:
        # A single number with strides of 0, so that it looks like many.
        return torch.zeros(1, dtype=old.dtype).expand(source.choice([10**6, 10**9, 10**13]))
    if kind == 8:
        return old.transpose(0, -1) if old.ndim > 1 else old.flip(0) if old.ndim else old
    return source.choice([old.to_sparse() if old.ndim else old, old.to("meta"), value(source), old.tolist()])


def change_state(source: random.Random, state: dict[str, Any]) -> dict[str, Any]:
    """Copies a checkpoint's state and changes tensors and values."""
    if source.random() < 0.5:
        state = copy.deepcopy(state)
        places = [(tree, key) for tree, key in _places(state, []) if torch.is_tensor(tree[key])]
        for tree, key in source.sample(places, min(len(places), source.choice([1, 1, 2]))):
            tree[key] = tensor(source, tree[key])
        return state
    return change_tree(source, state)


def change_packed(source: random.Random, content: bytes) -> bytes:
    """Damages a .gsv file: changes bytes, or changes the header or body and corrects the checksum."""
    if source.random() < 0.3:
        return change_bytes(source, content)
    size = int.from_bytes(content[9:13], "little")
    head, body = content[17 : 17 + size], content[17 + size :]
    if source.random() < 0.3:
        body = change_bytes(source, body)
    if source.random() < 0.8:
        head = zlib.compress(to_json(source, change_tree(source, json.loads(zlib.decompress(head)))))
    return content[:9] + struct.pack("<II", len(head), zlib.crc32(head + body)) + head + body
