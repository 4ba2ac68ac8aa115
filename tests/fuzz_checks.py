"""Runs a case of tests/fuzz_cases.py and compares the results with the oracle's."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

import splat_ssim
from splat_ssim import loss as losses
from splat_ssim import registry
from splat_ssim.compat import fused_ssim, fused_ssim3d, kornia, pytorch_msssim
from splat_ssim.ops import compiled
from splat_ssim.ops import ssim as ops
from splat_ssim.options import SSIMOptions
from tests import bounds, fuzz_cases, oracle
from tests.fuzz_cases import Case, Setting, images, lay_out, mask_of, upstream_of

#: Results of a function. The first is the tensor that is differentiated.
Results = tuple[Tensor, ...]


@dataclass(eq=False)
class MismatchError(Exception):
    """A result differs from the oracle's, or an error is not one that the rules allow."""

    kind: str
    text: str
    setting: Setting | None = None

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


# --------------------------------------------------------------------------------------------------------------------
# The functions
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Function:
    """A function of the package, and the oracle's counterpart.

    Attributes:
        call: Function (options, img1, img2, mask) -> the package's result.
        expected: Function (case, img1, img2, mask) -> the oracle's result, in float64.
        dtype: Function (dtypes of both images) -> dtype of the result.
    """

    call: Callable[[dict[str, Any], Tensor, Tensor, Tensor | None], Any]
    expected: Callable[[Case, Tensor, Tensor, Tensor | None], Any]
    dtype: Callable[[torch.dtype, torch.dtype], torch.dtype]


def _wider(first: torch.dtype, second: torch.dtype) -> torch.dtype:
    return torch.float64 if torch.float64 in (first, second) else torch.float32


def _promoted(first: torch.dtype, second: torch.dtype) -> torch.dtype:
    dtype = torch.promote_types(first, second)
    return dtype if dtype.is_floating_point else torch.float32


def _counted(first: torch.dtype, second: torch.dtype) -> torch.dtype:
    """The same where an integer image counts as float32, whatever the other is."""
    return torch.promote_types(*(dtype if dtype.is_floating_point else torch.float32 for dtype in (first, second)))


def _masked(function: Callable) -> Callable:
    return lambda options, x, y, mask: function(x, y, **({} if mask is None else {"mask": mask}), **options)


def _of_module(module: type) -> Callable:
    def call(options, x, y, mask):
        return module(**options)(x, y, **({} if mask is None else {"mask": mask}))

    return call


def _oracle(name: str) -> Callable:
    """Calls the oracle's function of this name with the case's options, which have the same names."""

    def expected(case, x, y, mask):
        options = {key: value for key, value in case.options.items() if key != "return_terms"}
        keywords = {} if mask is None else {"mask": mask}
        return getattr(oracle, name)(x, y, **keywords, **options)

    return expected


def _loss_alone(name: str) -> Callable:
    """Returns the loss, and its terms if the function returns them."""

    def expected(case, x, y, mask):
        results = _oracle(name)(case, x, y, mask)
        terms = case.options.get("return_terms") or case.kind.startswith("registry.")
        return results if terms else results[0]

    return expected


def _power_of_difference(power: int) -> Callable:
    def expected(case, x, y, mask):
        distance = (oracle.pixels(x) - oracle.pixels(y)).abs() ** power
        return oracle.reduce(distance, mask, "mean", empty=0.0)

    return expected


def _ssim_map(options, x, y, mask):
    return ops.ssim_map(x, y, SSIMOptions(**options))


def _expected_fused(case, x, y, mask):
    return oracle.ssim(x, y, padding=case.options.get("padding", "same"))


#: Names of the options of other packages in the oracle.
_RENAMED = {"win_size": "window_size", "win_sigma": "sigma", "max_val": "data_range"}


def _renamed(case: Case) -> dict[str, Any]:
    options = {_RENAMED.get(name, name): value for name, value in case.options.items()}
    k = options.pop("K", None)
    return options if k is None else {**options, "k1": k[0], "k2": k[1]}


@functools.lru_cache(100)
def _float32_taps(size: int, sigma: float) -> tuple[float, ...]:
    """The taps of a Gaussian of one axis, computed in float32."""
    offsets = torch.arange(size, dtype=torch.float32, device="cpu") - size // 2
    taps = torch.exp(-(offsets**2) / (2 * sigma**2))
    return tuple((taps / taps.sum()).tolist())


def _msssim_window(case: Case, sides: Sequence[int]) -> Tensor | None:
    """pytorch_msssim's window where it differs: shorter axes are not smoothed, and float64 images get float32 taps."""
    options = _renamed(case)
    size, sigma = options.get("window_size", 11), options.get("sigma", 1.5)
    if case.dtypes[0] != "float64" and min(sides) >= size:
        return None
    taps = _float32_taps(size, sigma)
    return oracle.outer([taps if side >= size else [1.0] for side in sides])


def _expected_msssim(case, x, y, mask):
    options = _renamed(case)
    average, nonnegative = options.pop("size_average", True), options.pop("nonnegative_ssim", False)
    kept = [side for side in x.shape[2:] if side != 1]
    x, y = (image.reshape(*image.shape[:2], *kept) for image in (x, y))
    options.setdefault("data_range", 255.0)
    weights = _msssim_window(case, kept)
    values = oracle.ssim_terms(x, y, padding="valid", weights=weights, **options).ssim.flatten(2).mean(-1)
    values = torch.relu(values) if nonnegative else values
    return values.mean() if average else values.mean(1)


def _expected_ms_msssim(case, x, y, mask):
    options = _renamed(case)
    average, exponents = options.pop("size_average", True), options.pop("weights", oracle.WANG_2003)
    options.setdefault("data_range", 255.0)
    window = _msssim_window(case, x.shape[2:])
    values = oracle.ms_ssim_product(oracle.ms_ssim_terms(x, y, len(exponents), weights=window, **options), exponents)
    return values.mean() if average else values.mean(1)


def _expected_kornia(case, x, y, mask):
    options = _renamed(case)
    reduction = options.pop("reduction", "mean")
    padding = {"same": "reflect", "valid": "valid"}[options.pop("padding", "same")]
    found = oracle.ssim_map(x, y, padding=padding, **{"eps": 1e-12, **options})
    return oracle.half_dissimilarity(found, reduction) if case.kind.endswith("loss") else found


def _expected_kornia_ms(case, x, y, mask):
    return oracle.kornia_ms_ssim_loss(x, y, taps=_float32_taps, **case.options)


def _expected_robust(case, x, y, mask):
    name = case.kind.partition(".")[2].removesuffix("_loss")
    return oracle.reduce(oracle.robust(x - y, name), None, case.options.get("reduction", "none"), empty=0.0)


def _expected_psnr(case, x, y, mask):
    return 10 * torch.log10(((x - y) ** 2).mean() / case.options["max_val"] ** 2)


FUNCTIONS: dict[str, Function] = {
    "ssim": Function(_masked(splat_ssim.ssim), _oracle("ssim"), _wider),
    "ssim3d": Function(_masked(splat_ssim.ssim3d), _oracle("ssim"), _wider),
    "SSIM": Function(_of_module(splat_ssim.SSIM), _oracle("ssim"), _wider),
    "SSIM3D": Function(_of_module(splat_ssim.SSIM3D), _oracle("ssim"), _wider),
    "ms_ssim": Function(_masked(splat_ssim.ms_ssim), _oracle("ms_ssim"), _wider),
    "MSSSIM": Function(_of_module(splat_ssim.MSSSIM), _oracle("ms_ssim"), _wider),
    "photometric_loss": Function(_masked(losses.photometric_loss), _loss_alone("photometric_loss"), _wider),
    "PhotometricLoss": Function(_of_module(losses.PhotometricLoss), _loss_alone("photometric_loss"), _wider),
    "ms_ssim_l1_loss": Function(_masked(losses.ms_ssim_l1_loss), _loss_alone("ms_ssim_l1_loss"), _wider),
    "registry.fused_ssim": Function(_masked(registry.LOSSES["fused_ssim"]), _loss_alone("photometric_loss"), _wider),
    "registry.ssim": Function(_masked(registry.LOSSES["ssim"]), _loss_alone("photometric_loss"), _wider),
    "registry.ms_ssim": Function(_masked(registry.LOSSES["ms_ssim"]), _loss_alone("ms_ssim_l1_loss"), _wider),
    "registry.l1": Function(_masked(registry.LOSSES["l1"]), _power_of_difference(1), _wider),
    "registry.l2": Function(_masked(registry.LOSSES["l2"]), _power_of_difference(2), _wider),
    "ssim_map": Function(_ssim_map, _oracle("ssim_map"), _wider),
    "fused_ssim.fused_ssim": Function(_masked(fused_ssim.fused_ssim), _expected_fused, _wider),
    "fused_ssim.fused_ssim3d": Function(_masked(fused_ssim.fused_ssim3d), _expected_fused, _wider),
    "fused_ssim3d.fused_ssim2d": Function(_masked(fused_ssim3d.fused_ssim2d), _expected_fused, _wider),
    "pytorch_msssim.ssim": Function(_masked(pytorch_msssim.ssim), _expected_msssim, lambda first, _: first),
    "pytorch_msssim.ms_ssim": Function(_masked(pytorch_msssim.ms_ssim), _expected_ms_msssim, lambda first, _: first),
    "kornia.ssim": Function(_masked(kornia.ssim), _expected_kornia, _counted),
    "kornia.ssim3d": Function(_masked(kornia.ssim3d), _expected_kornia, _counted),
    "kornia.ssim_loss": Function(_masked(kornia.ssim_loss), _expected_kornia, _counted),
    "kornia.ssim3d_loss": Function(_masked(kornia.ssim3d_loss), _expected_kornia, _counted),
    **{
        f"kornia.{name}_loss": Function(_masked(getattr(kornia, f"{name}_loss")), _expected_robust, _promoted)
        for name in ("charbonnier", "welsch", "cauchy", "geman_mcclure")
    },
    "kornia.psnr_loss": Function(_masked(kornia.psnr_loss), _expected_psnr, _counted),
    "kornia.MS_SSIMLoss": Function(_of_module(kornia.MS_SSIMLoss), _expected_kornia_ms, _counted),
}


def flat(result: object) -> Results:
    """A result and its terms as a tuple of tensors."""
    if isinstance(result, Tensor):
        return (result,)
    assert isinstance(result, tuple)
    if len(result) == 2 and isinstance(result[1], dict):
        return (result[0], *result[1].values())
    return result


# --------------------------------------------------------------------------------------------------------------------
# What is invalid, by rules of the documentation
# --------------------------------------------------------------------------------------------------------------------

_REFUSALS = (ValueError, TypeError, NotImplementedError)


def refused(case: Case) -> bool:
    """Whether this call must raise, according to the documentation."""
    options, sides = case.options, case.shape[2:]
    package, _, name = case.kind.rpartition(".")
    if package == "pytorch_msssim":
        kept = [side for side in sides if side != 1]
        if len(kept) not in (2, 3) or (len(kept) != len(sides) and name == "ms_ssim"):
            return True
        return name == "ms_ssim" and min(sides[-2:]) <= (options.get("win_size", 11) - 1) * 16
    if name in ("ms_ssim", "MSSSIM", "ms_ssim_l1_loss"):
        scales = len(options.get("weights", oracle.WANG_2003))
        small = min(sides) <= (options.get("window_size", 11) - 1) * 2 ** (scales - 1)
        return small or (case.shape[0] == 0 and options.get("reduction", "mean") == "mean")
    if name in ("l1", "l2", "MS_SSIMLoss") or case.kind in fuzz_cases.PIXEL_KINDS:
        return case.shape[0] == 0
    window, padding = options.get("window_size", 11), options.get("padding", "same")
    if package == "kornia" and padding == "same":
        padding = "reflect"
    if padding == "valid" and min(sides) < window:
        return True
    if padding in ("reflect", "replicate") and min(sides) <= window // 2:
        return True
    return case.shape[0] == 0 and case.kind != "ssim_map" and options.get("reduction", "mean") == "mean"


def undefined(case: Case) -> bool:
    """Whether nothing is promised, as for a weight of 0 times an S of NaN, or for the slope of log(infinity)."""
    if case.spoilt and case.kind == "kornia.psnr_loss":
        return True
    if case.kind == "ssim_map" and refused(dataclasses.replace(case, kind="ssim")):
        return True  # The operators leave these checks to the public functions.
    weighted = case.mask is not None and case.options.get("mask_mode", "weight") == "weight"
    return bool(case.spoilt) and weighted and case.kind not in fuzz_cases.PYRAMID_KINDS


def check_refusal(error: BaseException) -> None:
    """Checks that an error has a promised type and a sentence that says what was required and what was got."""
    if not isinstance(error, _REFUSALS):
        raise MismatchError(f"error {type(error).__name__}", str(error)) from error
    text = str(error)
    if not ((" must " in text or " needs " in text or "not " in text) and len(text) > 20):
        raise MismatchError("sentence", f"{type(error).__name__}: {text}") from error


# --------------------------------------------------------------------------------------------------------------------
# Calls
# --------------------------------------------------------------------------------------------------------------------


def _numbers(options: dict[str, Any], kind: str) -> dict[str, Any]:
    """Converts the numbers among the options to another type."""
    if kind == "python":
        return options
    changed = {}
    for name, value in options.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            changed[name] = value
        elif kind == "numpy":
            changed[name] = np.int64(value) if isinstance(value, int) else np.float64(value)
        elif isinstance(value, float):
            changed[name] = torch.tensor(value, dtype=torch.float64, device="cpu")
        else:
            changed[name] = value
    return changed


@contextlib.contextmanager
def environment(setting: Setting) -> Iterator[None]:
    """Sets the threads, instruction set, default device and modes of a setting for the block."""
    with contextlib.ExitStack() as stack:
        if torch.get_num_threads() != setting.threads:
            before = torch.get_num_threads()
            torch.set_num_threads(setting.threads)
            stack.callback(torch.set_num_threads, before)
        isas = compiled.available_isas()
        if setting.isa and isas:
            kernel = functools.partial(compiled.kernel, isa_name=isas[setting.isa % len(isas)])
            stack.enter_context(mock.patch.object(compiled, "kernel", kernel))
        if setting.fill:
            torch.use_deterministic_algorithms(True)
            stack.callback(torch.use_deterministic_algorithms, False)
        if setting.default_device:
            stack.enter_context(torch.device(setting.default_device))
        if setting.mode == "no_grad":
            stack.enter_context(torch.no_grad())
        elif setting.mode == "inference":
            stack.enter_context(torch.inference_mode())
        elif setting.mode == "autocast":
            stack.enter_context(torch.autocast("cpu", dtype=torch.bfloat16))
        yield


@dataclass
class Outcome:
    """The results of a call, and the gradients with respect to img1 and img2 if they were requested."""

    results: Results
    gradients: tuple[Tensor | None, Tensor | None]


def run(case: Case, setting: Setting, mask: Tensor | None, pixels: tuple[Tensor, Tensor]) -> Outcome:
    """Calls the function of a case. Errors pass, and a changed input raises a MismatchError."""
    laid: list[tuple[Tensor, Tensor]] = []
    same = case.content == "same"
    for index, values in enumerate(pixels):
        if index == 1 and same:
            laid.append(laid[0])
        else:
            laid.append(lay_out(values, setting.layouts[index]))
    if mask is not None:
        laid.append(lay_out(mask, setting.layouts[2]))
    before = [buffer.clone() for _, buffer in laid]
    tensors = [tensor for tensor, _ in laid]
    asks = setting.requires in ("both", "first"), setting.requires in ("both", "second")
    if same:
        asks = asks[0], asks[0]
    if setting.mode in ("no_grad", "inference"):
        asks = False, False
    leaves: list[Tensor] = []
    for index in (0, 1):
        wanted = asks[index] and tensors[index].is_floating_point()
        if index == 1 and same:
            leaves.append(leaves[0])
        else:
            leaves.append(tensors[index].detach().requires_grad_(wanted) if wanted else tensors[index])
    asked = [leaf for index, leaf in enumerate(leaves) if leaf.requires_grad and not (same and index == 1)]
    options = _numbers(case.options, setting.numbers)
    with environment(setting):
        results = flat(FUNCTIONS[case.kind].call(options, *leaves, tensors[2] if mask is not None else None))
        gradients: list[Tensor | None] = [None, None]
        trains = case.options.get("train", True)
        if asked and trains:
            value = results[0]
            if not value.requires_grad:
                raise MismatchError("graph", "the result does not require a gradient")
            upstream = upstream_of(case, value.shape).to(value.dtype)
            if case.upstream == "ones" and value.ndim == 0:
                weight = None
            else:
                weight, poisoned = lay_out(upstream, _fitted(setting.layouts[3], upstream.ndim))
                laid.append((weight, poisoned))
                before.append(poisoned.clone())
            if setting.again:
                other = torch.full(value.shape, 0.5, dtype=value.dtype, device=value.device)
                torch.autograd.grad(value, asked, other, retain_graph=True)
            found = iter(torch.autograd.grad(value, asked, weight))
            for index, leaf in enumerate(leaves):
                if leaf.requires_grad and not (same and index == 1):
                    gradients[index] = next(found)
        elif results[0].requires_grad:
            raise MismatchError("graph", "the result requires a gradient, which nobody asked for")
    for (_, buffer), copy in zip(laid, before, strict=True):
        if buffer.numel() and not torch.equal(_bits(buffer), _bits(copy)):
            raise MismatchError("input written", "a call changed a tensor it was given")
    return Outcome(tuple(result.detach() for result in results), (gradients[0], gradients[1]))


def _bits(buffer: Tensor) -> Tensor:
    return buffer.detach().reshape(-1).view(torch.uint8) if buffer.numel() else buffer


def _fitted(layout: fuzz_cases.Layout, rank: int) -> fuzz_cases.Layout:
    """Adapts a layout made for the images to a tensor with another number of axes."""
    if rank in (len(layout.order), len(layout.steps), len(layout.margins)):
        return layout
    return fuzz_cases.Layout(offset=layout.offset, single=layout.single, repeated=layout.repeated)


# --------------------------------------------------------------------------------------------------------------------
# Comparison
# --------------------------------------------------------------------------------------------------------------------


def arithmetic_of(case: Case, device: str = "cpu", transformed: bool = False) -> bounds.Arithmetic:
    """The arithmetic that the function of a case is expected to use. Its bounds follow from it."""
    options = _renamed(case)
    sigma, window = options.get("sigma", 1.5), options.get("window_size", 11)
    wide = torch.float64 if "float64" in case.dtypes else torch.float32
    form = "kernel"
    if case.mask is not None and options.get("mask_mode") == "normalize":
        form = "definition"
    if case.kind == "registry.ssim" or transformed or device == "emulation" or wide == torch.float64:
        form = "definition"
    if case.kind == "kornia.MS_SSIMLoss":  # Its windows are rounded to float32 for float64 images too.
        form, sigma, wide = "textbook", min(options["sigmas"]), torch.float32
    if case.kind == "pytorch_msssim.ssim" and min(side for side in case.shape[2:] if side != 1) < window:
        form = "textbook"
    elif wide == torch.float64 and case.kind.partition(".")[0] == "pytorch_msssim":
        form = "textbook"
    rounded = 0
    if "uint8" in case.dtypes:
        rounded += 1
    if case.mask is not None and case.mask.content == "soft":
        if options.get("mask_mode") == "zero" or case.kind in ("ms_ssim_l1_loss", "registry.ms_ssim"):
            rounded += 1
    if case.kind in fuzz_cases.PYRAMID_KINDS or case.kind == "pytorch_msssim.ms_ssim":
        rounded += 3
    return bounds.Arithmetic(wide, form, rounded, sigma, 3.0 if device == "emulation" else 1.0)


@dataclass
class Truth:
    """The oracle's results of a case, and its gradients for the upstream gradient of the case."""

    case: Case
    results: Results
    gradients: tuple[Tensor, Tensor]
    function: Callable[[Tensor, Tensor], Tensor]
    images: tuple[Tensor, Tensor]
    upstream: Tensor
    arithmetic: bounds.Arithmetic
    _value_bounds: dict[int, Tensor] = field(default_factory=dict)

    def value_bound(self, index: int) -> Tensor:
        """The bound of a result's error, computed when it is used."""
        if index not in self._value_bounds:
            self._value_bounds[index] = _value_bound(self.case, index, self)
        return self._value_bounds[index]

    @functools.cached_property
    def gradient_bound(self) -> float:
        """The bound of a gradient's largest error."""
        pyramid = self.case.kind in fuzz_cases.PYRAMID_KINDS or self.case.kind == "pytorch_msssim.ms_ssim"
        bound = bounds.of_gradient(self.function, *self.images, self.upstream, self.arithmetic, pyramid)
        bound *= 2 if self.case.content == "same" else 1
        if self.case.kind == "registry.l2":  # the gradient is 2 (x - y) / N, and a byte is rounded first
            scale = max(_largest(image.nan_to_num(0, 0, 0).abs()) for image in self.images)
            bound += 8 * self.arithmetic.unit * scale * _largest(self.upstream.abs()) / self.images[0].numel()
        mask = mask_of(self.case)
        return bound if mask is None else bound * max(1.0, _largest(mask.double()))

    @functools.cached_property
    def kinks(self) -> Tensor | None:
        """Mask of the pixels where rounding of bytes or of masked pixels may cross the kink of |x - y|."""
        if not self.arithmetic.rounded:
            return None
        x, y = self.images
        return (x - y).abs() <= 4 * self.arithmetic.unit * (x.abs() + y.abs())


def truth_of(case: Case, pixels: tuple[Tensor, Tensor], mask: Tensor | None, arithmetic: bounds.Arithmetic) -> Truth:
    """The oracle's results and gradients."""
    raw = case.kind.startswith("kornia.")  # bytes are not rescaled
    wide = tuple(p.double() if raw else oracle.pixels(p, case.data_range) for p in pixels)
    leaves = [image.clone().requires_grad_() for image in wide]
    expected = FUNCTIONS[case.kind].expected
    results = flat(expected(case, *leaves, mask))
    value = results[0]
    # The upstream gradient is rounded to the dtype of the result.
    dtype = FUNCTIONS[case.kind].dtype(*(p.dtype for p in pixels))
    upstream = upstream_of(case, value.shape).to(dtype).double()
    if value.requires_grad:
        gradients = torch.autograd.grad(value, leaves, upstream, allow_unused=True)
    else:
        gradients = (None, None)
    gradients = tuple(torch.zeros_like(i) if g is None else g for g, i in zip(gradients, wide, strict=True))
    if case.content == "same":
        gradients = (gradients[0] + gradients[1], gradients[1])
    return Truth(
        case,
        tuple(result.detach() for result in results),
        gradients,
        lambda x, y: flat(expected(case, x, y, mask))[0],
        wide,
        upstream,
        arithmetic,
    )


#: (kind, ratio of error to bound, case) of the results closest to their bounds, for the report of a run.
closest: dict[str, tuple[float, Case]] = {}


def _note(kind: str, ratio: float, case: Case) -> None:
    if ratio > closest.get(kind, (0.0, case))[0]:
        closest[kind] = (ratio, case)


def _largest(values: Tensor) -> float:
    return values.max().item() if values.numel() else 0.0


def check_value(case: Case, index: int, found: Tensor, truth: Truth, expected_dtype: torch.dtype) -> None:
    """Checks a result: dtype, device, shape, the places where it is finite, and its distance from the oracle's."""
    expected = truth.results[index]
    if found.dtype != expected_dtype:
        raise MismatchError("dtype", f"the result must be {expected_dtype}, got {found.dtype}")
    if found.device.type != "cpu":
        raise MismatchError("device", f"the result must be on the CPU, got {found.device}")
    if found.shape != expected.shape:
        raise MismatchError(
            "shape", f"the result must have the shape {tuple(expected.shape)}, got {tuple(found.shape)}"
        )
    if not found.numel():
        return
    result = found.double()
    error = (result - expected).abs()
    floor = 0.0 if case.kind in fuzz_cases.PIXEL_KINDS else 1e-7 * (found.dtype != torch.float64) + 1e-12
    if _largest(error) <= floor:  # False where something is not finite
        return
    usable = expected.isfinite()
    if not torch.equal(result.isfinite(), usable):
        lost, kept = (usable & ~result.isfinite()).sum().item(), (result.isfinite() & ~usable).sum().item()
        text = f"of {usable.numel()} values {lost} are not finite where the oracle's are, {kept} the other way round"
        raise MismatchError("finite", text)
    error = torch.where(usable, error, 0.0)
    if _largest(error) <= floor:
        return
    tolerance = truth.value_bound(index) + bounds.of_rounding(expected, expected_dtype).nan_to_num(0)
    ratio = torch.where(usable, error / tolerance, 0.0)
    name = f"value, {truth.arithmetic.form}"
    _note(name, _largest(ratio), case)
    if _largest(ratio) > 1:
        at = ratio.flatten().argmax()
        raise MismatchError(
            "value",
            f"result {index} is {result.flatten()[at].item():.9g}, the oracle's {expected.flatten()[at].item():.9g}: "
            f"{error.flatten()[at].item():.2e} apart, bound {tolerance.flatten()[at].item():.2e}",
        )


def _value_bound(case: Case, index: int, truth: Truth) -> Tensor:
    """The bound of a result's error, from its arithmetic; for L1 and L2 from the roundings of the terms."""
    arithmetic = truth.arithmetic
    if case.kind in fuzz_cases.PIXEL_KINDS:  # A few roundings of each entry. A logarithm makes them absolute.
        size = truth.results[index].abs() + (8 if case.kind == "kornia.psnr_loss" else 0)
        return 8 * arithmetic.unit * size
    if case.kind in ("registry.l1", "registry.l2") or (index == 1 and len(truth.results) == 3):
        # Differences are rounded once, or three times with bytes and soft masks, relative to the pixels.
        scale = max((_largest(image.nan_to_num(0, 0, 0).abs()) for image in truth.images), default=0.0)
        power = 2 if case.kind == "registry.l2" else 1
        allowed = 8 * arithmetic.unit * (1 + arithmetic.rounded) * max(scale, scale**power)  # torch sums in float32
        if case.kind == "registry.l2":
            allowed += (
                4 * arithmetic.unit * _largest((truth.images[0] - truth.images[1]).nan_to_num(0, 0, 0).abs()) ** 2
            )
        return torch.full_like(truth.results[index], allowed)

    def function(x: Tensor, y: Tensor) -> Tensor:
        if index == 0:
            return truth.function(x, y)
        return flat(FUNCTIONS[case.kind].expected(case, x, y, mask_of(case)))[index]

    bound = bounds.of_value(function, *truth.images, arithmetic, case.channels_last)
    if len(truth.results) == 3 or "loss" in case.kind.lower():
        scale = max((_largest(image.nan_to_num(0, 0, 0).abs()) for image in truth.images), default=0.0)
        bound = bound + 4 * arithmetic.unit * (1 + arithmetic.rounded) * scale
    return bound


def check_gradient(case: Case, index: int, found: Tensor, truth: Truth, image: Tensor) -> None:
    """Checks a gradient: dtype, shape, and its distance from the oracle's relative to its largest entry.

    Each entry may also have one rounding to the dtype of the image.
    """
    expected = truth.gradients[index]
    if found.dtype != image.dtype:
        raise MismatchError("gradient dtype", f"must be {image.dtype}, got {found.dtype}")
    if found.shape != expected.shape or found.device.type != "cpu":
        raise MismatchError("gradient shape", f"must be {tuple(expected.shape)} on the CPU, got {tuple(found.shape)}")
    if not found.numel():
        return
    result = found.double()
    error = (result - expected).abs()
    if bounds.UNITS[found.dtype] > truth.arithmetic.unit:
        error = (error - bounds.of_rounding(expected, found.dtype)).clamp(min=0)
    largest = _largest(expected.abs())
    if _largest(error) <= bounds.PROMISED[truth.arithmetic.dtype][1] * largest < math.inf:
        return
    usable = expected.isfinite()
    if not bool(result[usable].isfinite().all()):
        limit = torch.finfo(found.dtype).max
        if not bool((expected[usable].abs() > limit).any()):
            raise MismatchError("gradient finite", f"{(~result[usable].isfinite()).sum()} entries are not finite")
        return
    usable = usable if truth.kinks is None else usable & ~truth.kinks
    error = torch.where(usable, error, 0.0)
    largest = _largest(torch.where(usable, expected.abs(), 0.0))
    floor = bounds.PROMISED[truth.arithmetic.dtype][1] * largest
    if _largest(error) <= floor:
        return
    bound = floor if case.kind in fuzz_cases.PIXEL_KINDS else max(floor, truth.gradient_bound)
    if case.kind in ("kornia.ssim_loss", "kornia.ssim3d_loss") and truth.arithmetic.dtype == torch.float64:
        # The original's clamp drops the gradient where S rounds to 1: there it is the root of a rounding.
        bound = max(bound, 1e-7 * largest, largest if largest < 1e-7 else 0.0)
    bound = max(bound, torch.finfo(found.dtype).tiny)  # smaller errors count as 0
    if case.kind == "registry.l2":  # The difference of nearly equal pixels is as exact as they are.
        scale = max((_largest(each.nan_to_num(0, 0, 0).abs()) for each in truth.images), default=0.0)
        bound = max(bound, 8 * truth.arithmetic.unit * (1 + truth.arithmetic.rounded) * scale)
    if case.kind.startswith("pytorch_msssim.") and truth.arithmetic.dtype == torch.float64:
        # The original rounds its window to float32. Far from 0, the order of these roundings matters.
        bound = max(bound, 1e-4 * largest if abs(case.offset) > 10 * case.data_range else 0.0)
    if (
        bound < _largest(error) <= bound + 3 * bounds.UNITS[found.dtype] * largest
        and bounds.UNITS[found.dtype] > truth.arithmetic.unit
    ):
        raise MismatchError(
            "rounding",
            f"gradient {index} in {found.dtype} is rounded more than once: {_largest(error):.2e} beyond one rounding",
        )
    ratio = _largest(error) / bound if bound else math.inf
    _note(f"gradient, {truth.arithmetic.form}", ratio, case)
    if ratio > 1:
        at = error.flatten().argmax()
        raise MismatchError(
            "gradient",
            f"gradient {index} is {result.flatten()[at].item():.9g}, the oracle's {expected.flatten()[at].item():.9g}; "
            f"the largest is {largest:.3g}, the error {_largest(error):.2e}, its bound {bound:.2e}",
        )


def check(case: Case, device: str = "cpu") -> int:
    """Runs every setting of a case and returns the number of calls.

    Raises:
        MismatchError: A result differs from the oracle's. The message names the setting.
    """
    if case.transform is not None:
        from tests import fuzz_transforms

        return fuzz_transforms.check(case)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if undefined(case):
            return 0
        if refused(case):
            return _check_refused(case)
        pixels, mask = images(case), mask_of(case)
        truth = truth_of(case, pixels, mask, arithmetic_of(case, device))
        dtype = FUNCTIONS[case.kind].dtype(*(p.dtype for p in pixels))
        for setting in case.settings:
            try:
                _check_setting(case, setting, pixels, mask, truth, dtype)
            except MismatchError as finding:
                raise MismatchError(finding.kind, finding.text, setting) from finding
    return len(case.settings)


def _check_refused(case: Case) -> int:
    pixels, mask = images(case), mask_of(case)
    for setting in case.settings:
        try:
            run(case, setting, mask, pixels)
        except MismatchError:
            raise
        except Exception as error:
            check_refusal(error)
        else:
            raise MismatchError("not refused", "the call is outside the documented domain and returned", setting)
    return len(case.settings)


def _check_setting(case, setting, pixels, mask, truth: Truth, dtype: torch.dtype) -> None:
    try:
        outcome = run(case, setting, mask, pixels)
    except MismatchError:
        raise
    except Exception as error:
        raise MismatchError(f"error {type(error).__name__}", f"{error}") from error
    if len(outcome.results) != len(truth.results):
        raise MismatchError("results", f"must be {len(truth.results)}, got {len(outcome.results)}")
    for index, found in enumerate(outcome.results):
        check_value(case, index, found, truth, dtype)
    for index, gradient in enumerate(outcome.gradients):
        if gradient is not None:
            check_gradient(case, index, gradient, truth, pixels[index])
