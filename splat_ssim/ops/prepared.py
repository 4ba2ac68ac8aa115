"""Prepared losses: a cache of what the first call works out from shapes, layouts and options.

Checking the arguments takes longer than the loss of a small image, and on a GPU the next kernel waits for Python. The
public functions therefore look a call up here first. The key holds everything that the call depends on except the
values of the images. A device prepares a loss (`dispatch.Device.prepare`). Only `photometric` stores it, because only
there the arguments are known to be checked.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from ..options import SSIMOptions
from . import dispatch

#: Loss, l1, dssim (the last two are None if they were not asked for) and both gradients, empty where not needed.
Results = tuple[Tensor, "Tensor | None", "Tensor | None", Tensor, Tensor]
#: Function (img1, img2, background) that computes the results. The background is None unless img2 is RGBA.
Run = Callable[[Tensor, Tensor, "Tensor | None"], Results]

#: The cache is cleared once it holds this many losses: a program with so many shapes gains nothing from it.
_MOST = 256
_PLAIN = (Tensor, torch.nn.Parameter)
_NUMBERS = (int, float, bool, str)


class Prepared:
    """A loss prepared for one kind of call.

    Attributes:
        run: Function that computes the loss.
        arguments: Arguments of the operator `photometric` after the background. A second backward through the same
            graph calls the operator with them.
        needs: Whether a gradient is needed.
        terms: Whether l1 and dssim are needed too.
        dtypes: Dtypes of the images and so of their gradients.
    """

    __slots__ = ("arguments", "dtypes", "needs", "run", "terms")

    def __init__(
        self, run: Run, arguments: tuple[Any, ...], terms: bool, dtypes: tuple[torch.dtype, torch.dtype]
    ) -> None:
        self.run, self.arguments, self.terms, self.dtypes = run, arguments, terms, dtypes
        self.needs = any(arguments[-2:])


_prepared: dict[Hashable, Prepared] = {}


def key(name: str, img1: Tensor, img2: Tensor, mask: Tensor | None, options: tuple[Any, ...]) -> Hashable | None:
    """Returns the key of a call of the public function `name` with such images and options.

    Returns:
        The key, or None if the call cannot be prepared: there is a mask, something traces, transforms, profiles or
        batches the call, or a tensor is of a subclass.
    """
    if mask is not None or torch.compiler.is_compiling():
        return None
    if type(img1) not in _PLAIN or type(img2) not in _PLAIN or dispatch.is_watched(img1, img2):
        return None
    kinds = tuple(map(type, options))
    if tuple in kinds:  # a tuple holds a number for each axis
        kinds = tuple(kind for value in options for kind in map(type, value if type(value) is tuple else (value,)))
    recording = torch.is_grad_enabled()
    return (
        name,
        options,
        kinds,
        img1.shape,
        img1.stride(),
        img1.dtype,
        img1.device,
        recording and img1.requires_grad,
        img2.shape,
        img2.stride(),
        img2.dtype,
        img2.device,
        recording and img2.requires_grad,
    )


def find(key: Hashable | None) -> Prepared | None:
    """The loss prepared for a key, or None."""
    try:
        return _prepared.get(key)
    except TypeError:  # an option that has no hash, such as an array without axes
        return None


def store(key: Hashable | None, prepared: Prepared) -> None:
    """Keeps a prepared loss under its key if all options are numbers or strings. The value of a tensor could change."""
    if isinstance(key, tuple) and all(kind in _NUMBERS for kind in key[2]):
        if len(_prepared) >= _MOST:
            _prepared.clear()
        _prepared[key] = prepared


def forget() -> None:
    """Clears the cache. Tests call it after they exchange the kernels."""
    _prepared.clear()


def prepare(
    img1: Tensor, img2: Tensor, background: Tensor | None, arguments: tuple[Any, ...], terms: bool
) -> Prepared | None:
    """Prepares the operator `photometric` without a weight for these images, or returns None if their device cannot.

    The device is asked by `Device.prepare(img1, img2, background, weights, per_image, options, needs, terms)`, which
    returns a `Run` or None.

    Args:
        img1: First images, as for the operator.
        img2: Second images, as for the operator.
        background: Background, as for the operator.
        arguments: Arguments of the operator after the background.
        terms: Whether l1 and dssim are needed.
    """
    device = dispatch.DEVICES.get(img1.device.type)
    if device is None or device.prepare is None:
        return None
    l1_weight, dssim_weight, offset, per_image, *values, need1, need2 = arguments
    weights, options = (l1_weight, dssim_weight, offset), SSIMOptions.of(*values)
    run = device.prepare(img1, img2, background, weights, per_image, options, (need1, need2), terms)
    return None if run is None else Prepared(run, arguments, terms, (img1.dtype, img2.dtype))
