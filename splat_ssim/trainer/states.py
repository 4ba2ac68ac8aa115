"""Checks parts of a checkpoint against what the resumed run expects. Parts that fit are loaded, others are refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def check_rows(
    tensors: Any, like: Mapping[str, Tensor] | torch.nn.ParameterDict, name: str, *, rows: int | None = None
) -> int:
    """Checks the names, dtypes and shapes of a model's tensors. The first axis must have the same length for all.

    Args:
        tensors: Name -> (N, …) tensor that was read.
        like: The tensors of a new model, with any N.
        name: Name of the tensors as a whole, for messages.
        rows: Required N. By default any N is accepted.

    Returns:
        N, the number of rows.

    Raises:
        ValueError: A tensor does not fit. The message names it and says what was required and what was found.
    """
    like = dict(like.items())
    if not isinstance(tensors, Mapping) or set(tensors) != set(like):
        got = ", ".join(map(str, tensors)) if isinstance(tensors, Mapping) else type(tensors).__name__
        raise ValueError(f"{name}: required {', '.join(like)}, got {got}")
    for key, expected in like.items():
        tensor = tensors[key]
        if rows is None and isinstance(tensor, Tensor) and tensor.ndim:
            rows = len(tensor)
        shape = (rows, *expected.shape[1:])
        if not isinstance(tensor, Tensor) or tensor.shape != shape or tensor.dtype != expected.dtype:
            raise ValueError(f"{name}.{key}: required {_in_words(expected.dtype, shape)}, got {_described(tensor)}")
    if not rows:
        raise ValueError(f"{name}: required at least one row, got none")
    return rows


def check_values(state: Any, like: Mapping[str, Any], name: str, *, rows: int, optional: tuple[str, ...] = ()) -> None:
    """Checks a strategy's running state: its keys, and that each value is of the same kind as in a new run.

    Args:
        state: State that was read.
        like: State of a new run. None stands for a value that is made later: a tensor with a number for each row, or
            numbers.
        name: Name of the state, for messages.
        rows: Number of rows of the model.
        optional: Keys that old checkpoints lack.

    Raises:
        ValueError: A value does not fit. The message names it and says what was required and what was found.
    """
    if not isinstance(state, Mapping) or not set(like) - set(optional) <= set(state):
        got = ", ".join(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
        raise ValueError(f"{name}: required {', '.join(like) or 'nothing'}, got {got or 'nothing'}")
    for key, value in state.items():
        # A strategy adds values later for which `like` has None or no key.
        expected = like.get(key)
        if expected is None:
            plain = value is None or isinstance(value, bool) or _is_number(value) or _is_numbers(value)
            fits = plain or _is_floats(value, (rows,))
        elif isinstance(expected, list):
            fits = _is_numbers(value)
        elif isinstance(expected, float | int) and not isinstance(expected, bool):
            fits = _is_number(value)
        else:
            fits = type(value) is type(expected)
        if not fits:
            raise ValueError(f"{name}.{key}: required a value for {rows} rows, got {_described(value)}")


def load_optimizer(optimizer: torch.optim.Optimizer, state: Any, name: str = "optimizer") -> torch.optim.Optimizer:
    """Loads an optimiser's state, after checking that it fits the optimiser's parameters.

    Args:
        optimizer: A new optimiser, an Adam of some kind.
        state: State that its `state_dict` returned.
        name: Name of the optimiser, for messages.

    Returns:
        The optimiser.

    Raises:
        ValueError: The state belongs to another optimiser or to other parameters.
    """
    own = optimizer.state_dict()
    groups = state.get("param_groups") if isinstance(state, Mapping) else None
    moments = state.get("state") if isinstance(state, Mapping) else None
    if not isinstance(groups, list) or not isinstance(moments, Mapping) or len(groups) != len(own["param_groups"]):
        raise ValueError(f"{name}: required {len(own['param_groups'])} param_groups and their state, got others")
    for group, expected in zip(groups, own["param_groups"], strict=True):
        _check_group(group, expected, name)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, values in moments.items():
        if type(index) is not int or not 0 <= index < len(parameters):
            raise ValueError(f"{name}.state: required at most {len(parameters)} parameters, got one numbered {index!r}")
        _check_moments(values, parameters[index], f"{name}.state.{index}")
    optimizer.load_state_dict(dict(state))
    return optimizer


def load_generator(generator: torch.Generator, state: Any, name: str) -> None:
    """Sets a generator to a state that was read from a file.

    Args:
        generator: Generator on the CPU.
        state: State that its `get_state` returned, on any device.
        name: Name of the generator, for messages.

    Raises:
        ValueError: The state is not that of a generator.
    """
    own = generator.get_state()
    if not isinstance(state, Tensor) or state.shape != own.shape or state.dtype != own.dtype:
        raise ValueError(f"{name}: required {_in_words(own.dtype, tuple(own.shape))}, got {_described(state)}")
    try:
        generator.set_state(state.cpu())
    except RuntimeError as broken:
        raise ValueError(f"{name}: required the state of a generator, got other bytes") from broken


def names_of(state: Any, name: str) -> list[str]:
    """Checks a list of names that was read from a file, and returns it.

    Args:
        state: Value that was read.
        name: Name of the list, for messages.

    Raises:
        ValueError: The value is not a list of names.
    """
    if not isinstance(state, list | tuple) or not all(isinstance(item, str) for item in state):
        raise ValueError(f"{name}: required names, got {_described(state)}")
    return list(state)


def number_of(state: Any, name: str) -> float:
    """Checks a number that was read from a file, and returns it. It may be NaN.

    Args:
        state: Value that was read.
        name: Name of the number, for messages.

    Raises:
        ValueError: The value is not a number, or is too large for one.
    """
    if type(state) not in (float, int):
        raise ValueError(f"{name}: required a number, got {type(state).__name__}")
    try:
        return float(state)
    except OverflowError:
        raise ValueError(f"{name}: required a number that float64 holds, got a larger integer") from None


#: Options that older versions of torch's Adam lack. Adam fills them in if a state has none.
_ADDED_SINCE = ("amsgrad", "maximize", "foreach", "capturable", "differentiable", "fused", "decoupled_weight_decay")


def _check_group(group: Any, expected: Mapping[str, Any], name: str) -> None:
    """Checks a parameter group. Rates and decays may differ from the new optimiser's, all else must agree."""
    if not isinstance(group, dict):
        raise ValueError(f"{name}.param_groups: required options, got {_described(group)}")
    for key, value in expected.items():
        there = group.get(key, value if key in _ADDED_SINCE else None)
        if isinstance(value, float):
            fits = _is_rate(there)
        elif isinstance(value, tuple):
            fits = _are_decays(there, len(value))
        elif isinstance(value, list):
            fits = _is_numbers(there) and there == value
        else:
            fits = type(there) is type(value) and there == value
        if not fits:
            raise ValueError(f"{name}.param_groups: required {key} as {value!r}, got {_described(there)}")


#: State of our Adams that has the shape of the parameter.
_LIKE_PARAMETER = ("exp_avg", "exp_avg_sq", "held_gradient")


def _check_moments(values: Any, parameter: Tensor, name: str) -> None:
    """Checks that moments have the parameter's shape, and that the count of steps is one number."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{name}: required moments, got {_described(values)}")
    missing = [key for key in ("step", "exp_avg", "exp_avg_sq") if values and key not in values]
    if missing:
        raise ValueError(f"{name}: required {missing[0]}, got {', '.join(map(str, values))}")
    for key, value in values.items():
        shape = tuple(parameter.shape) if key in _LIKE_PARAMETER else tuple(parameter.shape[:1])
        shape = () if key == "step" else shape
        if not _is_floats(value, shape):
            raise ValueError(f"{name}.{key}: required {_in_words(torch.float32, shape)}, got {_described(value)}")
        if key == "step" and not 0 <= float(value) < 2**63:
            raise ValueError(f"{name}.step: required a number of steps, got {float(value):g}")


def tensors_problem(value: Any) -> str | None:
    """Describes the first tensor in nested containers that `save_checkpoint` would not have written, if there is one.

    Strides of 0 can make one number look like many. Tensors can be sparse, or have no values at all.
    """
    if isinstance(value, Tensor):
        whole = value.layout == torch.strided and not value.is_meta and not value.is_quantized
        if not whole or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            return f"a tensor of shape {tuple(value.shape)} without as many numbers"
        return None
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return next((problem for problem in map(tensors_problem, value) if problem is not None), None)
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool) and -1e300 < value < 1e300


def _is_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_number, value))


def _is_rate(value: Any) -> bool:
    return _is_number(value) and value >= 0


def _are_decays(value: Any, count: int) -> bool:
    """Whether a value is `count` decays of moments. They are below 1, because otherwise a step divides by zero."""
    if not isinstance(value, list | tuple) or len(value) != count:
        return False
    return _is_numbers(list(value)) and all(0 <= decay < 1 for decay in value)


def _is_floats(value: Any, shape: tuple[int, ...]) -> bool:
    return isinstance(value, Tensor) and value.shape == shape and value.dtype == torch.float32


def is_count(value: Any) -> bool:
    """Whether a value is a whole number of at least 0 that fits into 64 bits."""
    return type(value) is int and 0 <= value < 2**63


def is_seconds(value: Any) -> bool:
    """Whether a value is a length of time in seconds."""
    return _is_number(value) and value >= 0


def _described(value: Any) -> str:
    return _in_words(value.dtype, tuple(value.shape)) if isinstance(value, Tensor) else f"{type(value).__name__}"


def _in_words(dtype: torch.dtype, shape: tuple[int | None, ...]) -> str:
    return f"{str(dtype).removeprefix('torch.')} of shape ({', '.join('N' if n is None else str(n) for n in shape)})"
