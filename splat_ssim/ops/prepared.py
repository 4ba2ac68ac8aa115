"""Prepared losses: what follows from shapes, layouts and options is worked out at the first call and kept.

A loss of a small image takes less time than its checks, and on a GPU the next kernel waits for Python. So the public
functions ask here first, by a key of everything that a call depends on but the numbers in the images. A device
prepares (`dispatch.Device.prepare`); `photometric` stores, since it alone knows that the arguments were checked.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from ..options import SSIMOptions
from . import dispatch

#: Loss, l1, dssim (these two are None where they were not asked for) and both gradients, empty where not needed.
Results = tuple[Tensor, "Tensor | None", "Tensor | None", Tensor, Tensor]
#: Computes them for two images, and the background of the second where it is RGBA.
Run = Callable[[Tensor, Tensor, "Tensor | None"], Results]

#: Beyond this many all are forgotten: an application that has so many shapes gains nothing.
_MOST = 256
_PLAIN = (Tensor, torch.nn.Parameter)
_NUMBERS = (int, float, bool, str)


class Prepared:
    """A loss prepared for one kind of call.

    Attributes:
        run: Computes it.
        arguments: Of the operator `photometric` after the background, for a second backward through the same graph.
        needs: Whether a gradient is needed.
        terms: Whether l1 and dssim are wanted too.
        dtypes: Of the images, which their gradients take.
    """

    __slots__ = ("arguments", "dtypes", "needs", "run", "terms")

    def __init__(
        self, run: Run, arguments: tuple[Any, ...], terms: bool, dtypes: tuple[torch.dtype, torch.dtype]
    ) -> None:
        self.run, self.arguments, self.terms, self.dtypes = run, arguments, terms, dtypes
        self.needs = any(arguments[-2:])


_prepared: dict[Hashable, Prepared] = {}


def key(name: str, img1: Tensor, img2: Tensor, mask: Tensor | None, options: tuple[Any, ...]) -> Hashable | None:
    """What names a call of the public function `name` with these images and options.

    Returns:
        None where the call has to take the long way: there is a mask, somebody traces, transforms, profiles or batches
        the call, or a tensor is of a subclass.
    """
    if mask is not None or torch.compiler.is_compiling():
        return None
    if type(img1) not in _PLAIN or type(img2) not in _PLAIN or dispatch.is_watched(img1, img2):
        return None
    kinds = tuple(map(type, options))
    if tuple in kinds:  # of numbers, one for each axis
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
    """The loss prepared for a key, if it was."""
    try:
        return _prepared.get(key)
    except TypeError:  # an option that has no hash, such as an array without axes
        return None


def store(key: Hashable | None, prepared: Prepared) -> None:
    """Keeps a prepared loss for the calls of a key, unless an option is no plain number: a tensor's may change."""
    if isinstance(key, tuple) and all(kind in _NUMBERS for kind in key[2]):
        if len(_prepared) >= _MOST:
            _prepared.clear()
        _prepared[key] = prepared


def forget() -> None:
    """Forgets all: kernels were exchanged, as tests do."""
    _prepared.clear()


def prepare(
    img1: Tensor, img2: Tensor, background: Tensor | None, arguments: tuple[Any, ...], terms: bool
) -> Prepared | None:
    """Prepares the operator `photometric` without a weight for these images, if their device does that.

    The device is asked by `Device.prepare(img1, img2, background, weights, per_image, options, needs, terms)`, which
    returns a `Run` or None.

    Args:
        img1: As for the operator.
        img2: As for the operator.
        background: As for the operator.
        arguments: Of the operator, after the background.
        terms: Whether l1 and dssim are wanted.
    """
    device = dispatch.DEVICES.get(img1.device.type)
    if device is None or device.prepare is None:
        return None
    l1_weight, dssim_weight, offset, per_image, *values, need1, need2 = arguments
    weights, options = (l1_weight, dssim_weight, offset), SSIMOptions.of(*values)
    run = device.prepare(img1, img2, background, weights, per_image, options, (need1, need2), terms)
    return None if run is None else Prepared(run, arguments, terms, (img1.dtype, img2.dtype))
