"""Configs as nested mappings: makes dataclasses from them, and reads and writes them as YAML files."""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from splat_ssim._files import exists, write_text
from splat_ssim.errors import UserError


class ConfigError(UserError):
    """A configuration names an unknown key or gives a value of the wrong kind."""


def overlaid(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Merges nested mappings. Values of the second replace those of the first.

    Example:
        >>> from splat_ssim.trainer.mappings import overlaid
        >>> overlaid({"steps": 5, "data": {"factor": 2, "format": "auto"}}, {"data": {"factor": 4}})
        {'steps': 5, 'data': {'factor': 4, 'format': 'auto'}}
    """
    result = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = overlaid(result[key], value) if both else value
    return result


T = TypeVar("T")


def from_mapping(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Makes a dataclass from nested mappings that hold only the values that differ from its defaults.

    Args:
        cls: The dataclass.
        values: Field name -> value. Nested dataclasses are nested mappings.
        where: Source of the mapping, such as a file name, for messages.

    Raises:
        ConfigError: A key is not a field, or a value does not have the field's type. The message names the key.
    """
    every = typing.get_type_hints(cls)
    hints = {field.name: every[field.name] for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: required a mapping of {cls.__name__}, got {values!r}")
    arguments = {}
    for key, value in values.items():
        if key not in hints:
            raise ConfigError(f"{where}: unknown key {key!r}, required one of {', '.join(hints)}")
        arguments[key] = _convert(hints[key], value, f"{where}: {key}")
    return cls(**arguments)


def _convert(hint: Any, value: Any, where: str) -> Any:
    """Converts `value` to the type of a field, or raises ConfigError."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return from_mapping(hint, value, where)
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in options:
            return None
        return _convert(next(option for option in options if option is not type(None)), value, where)
    if origin is Literal:
        if value is False and "off" in options:  # as YAML reads off
            return "off"
        if value not in options:
            raise ConfigError(f"{where}: required one of {', '.join(map(str, options))}, got {value!r}")
        return value
    if origin is dict and isinstance(value, Mapping):
        return dict(value)
    if origin is tuple and isinstance(value, list | tuple):
        kinds = options[:1] * len(value) if options[-1] is Ellipsis else options
        if len(kinds) != len(value):
            raise ConfigError(f"{where}: required {len(kinds)} values, got {value!r}")
        return tuple(_convert(kind, item, where) for kind, item in zip(kinds, value, strict=True))
    if hint is Path and isinstance(value, str) and value:
        return Path(value)
    # YAML reads 5e5 as a string and 1 as an int.
    if hint is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)
        except (ValueError, OverflowError):
            pass
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    # Python 3.10 takes list[int] for a type.
    is_plain = origin is None and isinstance(hint, type)
    if is_plain and isinstance(value, hint) and isinstance(value, bool) == (hint is bool):
        return value
    kind = f"a list of {options[0].__name__}" if origin is tuple else getattr(hint, "__name__", hint)
    raise ConfigError(f"{where}: required {kind}, got {value!r}")


#: Largest number of values in a YAML file, counting what each alias stands for.
_MOST_VALUES = 100_000


def _size(value: Any, known: dict[int, float]) -> float:
    """Counts the values inside a YAML value, where every alias counts as what it stands for. The count may be infinite.

    Args:
        value: Value as YAML has read it.
        known: Sizes of the containers counted so far, by identity.
    """
    if not isinstance(value, list | dict | tuple | set):
        return 1
    if id(value) not in known:
        known[id(value)] = math.inf  # the size that a container inside itself has
        inside = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_size(item, known) for item in inside)
    return known[id(value)]


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML without what is read as something else in silence.

    A repeated key is refused, of which PyYAML keeps the last. 010 and 1:30, to YAML 1.1 the numbers 8 and 90, are text,
    which a number refuses.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if (key.tag, key.value) in seen:
                    mark = key.start_mark
                    raise yaml.YAMLError(f"the key {key.value!r} a second time in line {mark.line + 1}")
                seen.add((key.tag, key.value))
        return node


_TEXT = ("tag:yaml.org,2002:str", re.compile(r"[-+]?(0[0-7_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)$"))
_Loader.yaml_implicit_resolvers = {
    first: [_TEXT, *others] for first, others in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def load_yaml(text: str) -> Any:
    """The value of a YAML text; see `_Loader`.

    Raises:
        ValueError: It is no YAML.
    """
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise ValueError("values nested too deep") from None
    # The constructors of values such as dates raise errors of their own.
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, OverflowError) as broken:
        raise ValueError(f"a syntax error: {broken}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads the mapping in a YAML file.

    Raises:
        ConfigError: The file is missing, is not YAML, or does not hold a mapping.
    """
    try:
        values = load_yaml(path.read_text(encoding="utf-8"))
    except OSError as missing:
        raise ConfigError(f"{path}: required a YAML file, got {missing.strerror}") from None
    except UnicodeDecodeError as broken:
        raise ConfigError(f"{path}: required YAML in UTF-8, got another encoding: {broken}") from None
    except ValueError as broken:
        raise ConfigError(f"{path}: required YAML, got {broken}") from None
    if _size(values, {}) > _MOST_VALUES:
        raise ConfigError(f"{path}: required at most {_MOST_VALUES} values, got aliases that expand to more")
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: required a mapping, got {type(values).__name__}")
    return values


def read_values(path: Path) -> dict[str, Any]:
    """Reads the mapping of a config file. A relative data_dir may be relative to the file's folder or to one above it.

    A path that exists from the working directory stays as it is.
    """
    values = read_yaml(path)
    named = values.get("data_dir")
    if not isinstance(named, str) or Path(named).is_absolute() or exists(Path(named)):
        return values
    for folder in path.absolute().parents:
        if exists(folder / named):
            return {**values, "data_dir": str(folder / named)}
    return values


def write_yaml(path: Path, config: Any) -> None:
    """Writes a config dataclass atomically, with all its values, so that `from_mapping` reads it back equal."""
    write_text(path, yaml.safe_dump(_plain(dataclasses.asdict(config)), sort_keys=False))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return str(value) if isinstance(value, Path) else value
