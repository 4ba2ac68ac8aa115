"""Calls through transforms: torch.func, forward mode, batched gradients, tracers, checkpoints, second derivatives.

Each gives the oracle's result or is refused by a sentence. A number that is silently wrong is a finding. The
images are well-conditioned here (see `plain`), so one bound serves: 2e-5 of the largest entry in float32, where inside
torch.func the plain float32 definition may run, and 1e-9 in float64.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.autograd.forward_ad as fwad
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

from tests import fuzz_checks
from tests.fuzz_cases import Case, images, mask_of, upstream_of
from tests.fuzz_checks import FUNCTIONS, MismatchError, check_refusal, flat

_TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-9}
#: Largest number of entries of an output that a Jacobian is computed for.
_ROWS = 12

Function = Callable[..., Tensor]


def plain(case: Case) -> Case:
    """The case with images of the same float dtype and without ill-conditioned windows."""
    dtype = "float64" if "float64" in case.dtypes else "float32"
    options = dict(case.options)
    for name in ("sigma", "win_sigma"):
        if name in options:
            options[name] = max(0.8, options[name])
    for name in ("k1", "k2", "data_range", "max_val"):
        options.pop(name, None)
    if case.kind == "kornia.psnr_loss":
        options["max_val"] = 1.0
    if case.kind == "kornia.MS_SSIMLoss":
        options["data_range"] = 1.0
        dtype = "float32"  # the original rounds its windows to float32
    options.pop("train", None)
    return dataclasses.replace(
        case, dtypes=(dtype, dtype), content="near", offset=0.0, constant=((), ()), spoilt=(), options=options
    )


class _Call:
    """The function of a case and the oracle's, with two pairs of images and two masks."""

    def __init__(self, case: Case):
        self.case = case
        self.mask = mask_of(case)
        self.pair = images(case)
        self.other = images(dataclasses.replace(case, seed=case.seed + 7))
        self.wide = tuple(image.double() for image in self.pair)
        self.other_wide = tuple(image.double() for image in self.other)
        #: Scale of the error of a tangent whose terms cancel.
        self.scale = 0.0
        self.oracle(*self.wide)  # Values that it caches must not be created inside a transform.
        self.dtype = FUNCTIONS[case.kind].dtype(*(image.dtype for image in self.pair))

    def product(self, x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
        mask = self.mask if mask is None else mask
        return flat(FUNCTIONS[self.case.kind].call(self.case.options, x, y, mask))[0]

    def oracle(self, x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
        mask = self.mask if mask is None else mask
        return flat(FUNCTIONS[self.case.kind].expected(self.case, x, y, mask))[0]

    def tangent(self) -> tuple[tuple[Tensor, Tensor], Any]:
        """Returns tangents of both images, and the oracle's value and tangent."""
        seeds = zip((1, 2), self.pair, strict=True)
        tangents = tuple(
            upstream_of(dataclasses.replace(self.case, upstream="random", seed=seed), x.shape) for seed, x in seeds
        )
        gradients = torch.func.grad(lambda x, y: self.oracle(x, y).sum(), argnums=(0, 1))(*self.wide)
        self.scale = sum((g * t).norm().item() for g, t in zip(gradients, tangents, strict=True))
        return tangents, torch.func.jvp(self.oracle, self.wide, tangents)

    def gradient(self, x: Tensor, y: Tensor, create_graph: bool = False) -> Tensor:
        """Returns the oracle's gradient of the summed value with respect to x."""
        x = x.detach().requires_grad_()
        return torch.autograd.grad(self.oracle(x, y).sum(), x, create_graph=create_graph)[0]


def _vmap(call: _Call) -> tuple[Any, Any]:
    pairs = [torch.stack(both) for both in zip(call.pair, call.other, strict=True)]
    expected = torch.stack([call.oracle(*call.wide), call.oracle(*call.other_wide)])
    return torch.func.vmap(call.product)(*pairs), expected


def _vmap_first(call: _Call) -> tuple[Any, Any]:
    firsts = torch.stack([call.pair[0], call.other[0]])
    expected = torch.stack([call.oracle(call.wide[0], call.wide[1]), call.oracle(call.other_wide[0], call.wide[1])])
    return torch.func.vmap(call.product, in_dims=(0, None))(firsts, call.pair[1]), expected


def _vmap_mask(call: _Call) -> tuple[Any, Any]:
    if call.mask is None:
        return _vmap(call)
    masks = torch.stack([call.mask, call.mask.roll(1, -1)])
    expected = torch.stack([call.oracle(*call.wide, mask) for mask in masks])
    return torch.func.vmap(lambda mask: call.product(*call.pair, mask))(masks), expected


def _vmap_grad(call: _Call) -> tuple[Any, Any]:
    pairs = [torch.stack(both) for both in zip(call.pair, call.other, strict=True)]
    expected = torch.stack([call.gradient(*call.wide), call.gradient(*call.other_wide)])
    return torch.func.vmap(torch.func.grad(lambda x, y: call.product(x, y).sum()))(*pairs), expected


def _forward_ad(call: _Call) -> tuple[Any, Any]:
    tangents, expected = call.tangent()
    with fwad.dual_level():
        duals = [fwad.make_dual(x, t.to(x.dtype)) for x, t in zip(call.pair, tangents, strict=True)]
        value, tangent = fwad.unpack_dual(call.product(*duals))
    if tangent is None:
        raise MismatchError("tangent", "forward AD gives None, which stands for a tangent of 0")
    return (value, tangent), expected


def _jvp(call: _Call) -> tuple[Any, Any]:
    tangents, expected = call.tangent()
    narrow = tuple(t.to(x.dtype) for x, t in zip(call.pair, tangents, strict=True))
    return torch.func.jvp(call.product, call.pair, narrow), expected


def _grad(call: _Call) -> tuple[Any, Any]:
    return torch.func.grad(lambda x, y: call.product(x, y).sum())(*call.pair), call.gradient(*call.wide)


def _jacobian(call: _Call) -> tuple[Any, Any]:
    def rows(function: Function, y: Tensor) -> Function:
        return lambda x: function(x, y).flatten()[:_ROWS]

    jacobian = torch.autograd.functional.jacobian
    expected = jacobian(rows(call.oracle, call.wide[1]), call.wide[0])
    return jacobian(rows(call.product, call.pair[1]), call.pair[0], vectorize=True), expected


def _batched_grad(call: _Call) -> tuple[Any, Any]:
    shape = call.oracle(*call.wide).shape
    weights = torch.stack(
        [upstream_of(dataclasses.replace(call.case, upstream="random", seed=s), shape) for s in (3, 4)]
    )
    x = call.pair[0].clone().requires_grad_()
    value = call.product(x, call.pair[1])
    (found,) = torch.autograd.grad(value, x, weights.to(value.dtype), is_grads_batched=True)
    wide = call.wide[0].clone().requires_grad_()
    truth = call.oracle(wide, call.wide[1])
    expected = [torch.autograd.grad(truth, wide, weight, retain_graph=True)[0] for weight in weights]
    return found, torch.stack(expected)


def _trace(call: _Call) -> tuple[Any, Any]:
    traced = torch.jit.trace(call.product, call.pair, check_trace=False)
    return traced(*call.other), call.oracle(*call.other_wide)


def _make_fx(call: _Call) -> tuple[Any, Any]:
    traced = make_fx(lambda x, y: call.product(x, y))(*call.pair)
    return traced(*call.other), call.oracle(*call.other_wide)


def _make_fx_grad(call: _Call) -> tuple[Any, Any]:
    def gradient(x: Tensor, y: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(call.product(x, y).sum(), x)[0]

    return make_fx(gradient)(*call.pair)(*call.other), call.gradient(*call.other_wide)


def _checkpoint(call: _Call) -> tuple[Any, Any]:
    x = call.pair[0].clone().requires_grad_()
    value = checkpoint(call.product, x, call.pair[1], use_reentrant=False)
    return torch.autograd.grad(value.sum(), x)[0], call.gradient(*call.wide)


def _second(call: _Call) -> tuple[Any, Any]:
    x = call.pair[0].clone().requires_grad_()
    (first,) = torch.autograd.grad(call.product(x, call.pair[1]).sum(), x, create_graph=True)
    (found,) = torch.autograd.grad(first.square().sum(), x)
    wide = call.wide[0].clone().requires_grad_()
    (first,) = torch.autograd.grad(call.oracle(wide, call.wide[1]).sum(), wide, create_graph=True)
    return found, torch.autograd.grad(first.square().sum(), wide)[0]


TRANSFORMS: dict[str, Callable[[_Call], tuple[Any, Any]]] = {
    "vmap": _vmap,
    "vmap first": _vmap_first,
    "vmap mask": _vmap_mask,
    "vmap grad": _vmap_grad,
    "forward AD": _forward_ad,
    "jvp": _jvp,
    "grad": _grad,
    "jacobian": _jacobian,
    "batched grad": _batched_grad,
    "trace": _trace,
    "make_fx": _make_fx,
    "make_fx grad": _make_fx_grad,
    "checkpoint": _checkpoint,
    "second derivative": _second,
}

#: Transforms whose first result is the value.
_VALUES = ("vmap", "vmap first", "vmap mask", "forward AD", "jvp", "trace", "make_fx")

#: How many times each transform was refused by a sentence, for the report.
refusals: dict[str, int] = {}


def check(case: Case) -> int:
    """Runs the transform of a case and returns the number of calls, 1 or 0.

    Raises:
        MismatchError: The result differs from the oracle's, or an error message is not a sentence.
    """
    case = plain(case)
    if fuzz_checks.refused(case) or fuzz_checks.undefined(case) or 0 in case.shape:
        return 0
    assert case.transform is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        call = _Call(case)
        try:
            found, expected = TRANSFORMS[case.transform](call)
        except MismatchError:
            raise
        except Exception as error:
            check_refusal(error)
            name = f"{case.transform}: {str(error)[:60]}"
            refusals[name] = refusals.get(name, 0) + 1
            return 1
    values = case.transform in _VALUES
    for index, (result, truth) in enumerate(zip(_tuple(found), _tuple(expected), strict=True)):
        if result.dtype != call.dtype and result.dtype != call.pair[0].dtype:
            raise MismatchError(f"{case.transform}: dtype", f"must be {call.dtype}, got {result.dtype}")
        if result.shape != truth.shape:
            raise MismatchError(f"{case.transform}: shape", f"must be {tuple(truth.shape)}, got {tuple(result.shape)}")
        if not truth.numel():
            continue
        # A similarity near 1 has the rounding error of 1, however it is computed.
        scale = max(truth.abs().max().item(), call.scale, 0.1 if values and index == 0 else 1e-6)
        # The definition takes moments about the image's own mean. Zeros of the padding or of a mask lie far from it.
        zeroed = case.mask is not None and case.options.get("mask_mode") == "zero"
        scale *= 4 if zeroed or min(case.shape[2:]) < case.options.get("window_size", 11) // 2 else 1
        # Where the originals do not smooth a short axis, they subtract x² from x² in float32.
        scale *= 8 if case.kind.startswith("pytorch_msssim.") else 1
        error = (result.detach().double() - truth.detach()).abs().max().item()
        if not error <= _TOLERANCE[result.dtype] * scale:
            raise MismatchError(f"{case.transform}: value", f"the error is {error:.2e} of {scale:.3g}")
    return 1


def _tuple(results: Any) -> tuple[Tensor, ...]:
    return results if isinstance(results, tuple) else (results,)
