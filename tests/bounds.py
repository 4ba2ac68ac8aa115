"""Bounds on the distance between a result and the oracle's, derived for each call in float64 from rounding errors.

A bound is the larger of two things.

1. The promise. In float32 S is within 3e-6 of the truth wherever sigma is 0.7 or more, a mean of S is closer
   (below), and a gradient is within 5e-6 of its largest entry.
2. The error of the arithmetic on these pixels, to first order. It counts where S or its gradient is ill-conditioned:
   data far outside `data_range`, small constants, dark parts of bright images. With s = x + y and d = x - y about means
   c1 and c2 of their planes, one rounding each of x - c1, y - c2 and their sum gives |Δs| <= 2 u (|x - c1| + |y - c2|),
   with u = 2⁻²⁴. The moments of n axes, each a sum of products, which round twice, change by

       |Δmu| <= u |mu| + (2 + 2 n) u Σ w (|x - c1| + |y - c2|),    |ΔV| <= 2 Σ w |s - mu| |Δs|,

   whatever else a kernel does, and S by the sum of |∂S/∂moment| |Δmoment|. Bytes are rounded once more (value / 255 ·
   range), and so are products with a soft mask and the means of a pyramid: by u |x| each, not u |x - c|.

A gradient is a sum over windows, dL/dx(q) = Σ_p w(p - q) [a + 2 b (s(q) - mu(p))], which kernels take apart into
s(q) (w * 2b) and w * (a - 2 b mu). So

   |ΔG(q)| <= 2 n u T(q) + 6e-6 R(q),    T = Σ_p w [|a| + 2 |b| (|s(q) - c| + |mu(p) - c|)],

where c is the constant that is taken off the plane, at worst its value that is farthest from the pixel. Of d, kernels
take it off the averages, which are rounded by u |mu_d| before that: where images are equal, d has to stay 0. R(q) holds
the same terms without the part that cancels and with 1 / B in place of b: b is a quotient of moments over
B = V_s + V_d + 2 C2, such as (1 + CS) / B, and errors of the moments within the promise for S, 3e-6 of B and of CS,
change it by twice that share.

Where S is computed by the plain float32 definition about the images' mean (`form` "definition": normalized masks,
inside torch.func, devices without a kernel, and the CUDA kernels, which do not sum V again where it cancels), or the
window is so narrow that sigma is below 0.7, E[s²] - E[s]² cancels: S may be wrong by twice as much as that definition
is, computed here in float32 with other operations. "textbook" is the same about 0: what the drop-ins keep from their
originals.

MS-SSIM multiplies powers of means T of contrast-structure; the gradient by each has its T in the denominator, so that
the shares ΔT / T of all scales add to the errors of 1 / B. Where a T is nearly 0 they are what counts.

Means: the errors of windows that do not overlap are independent. Of windows of n = 1 / Σ w² taps, a sum of errors e is
therefore within 3 sqrt(n Σ e²), three standard deviations, where that is less than Σ e. Errors repeat in images that
are constant along an axis: a mean does not average them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

import torch
from torch import Tensor

from tests import oracle

#: The unit roundoffs of the dtypes.
UNITS = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
#: The smallest step of float16, between its subnormal numbers. The other dtypes' are too small to matter here.
STEPS = {torch.float16: 2.0**-24}
#: Dtype of the computation -> promised errors of S, and of gradients relative to their largest entry.
PROMISED = {torch.float32: (3e-6, 5e-6), torch.float64: (1e-10, 1e-10)}

Function = Callable[[Tensor, Tensor], Tensor]


@dataclass
class Evaluation:
    """One evaluation of the index inside the oracle: its inputs and outputs."""

    img1: Tensor
    img2: Tensor
    weights: Tensor
    padding: str
    valid: Tensor | None
    moments: oracle.Moments
    terms: oracle.Terms | None = None
    constants: tuple[float, float, float] = (0.0, 0.0, 0.0)


@contextmanager
def recording() -> Iterator[list[Evaluation]]:
    """Records every evaluation of the index inside the block."""
    evaluations: list[Evaluation] = []
    moments, terms = oracle.moments, oracle.terms

    def noted_moments(img1, img2, weights, padding, valid=None):
        found = moments(img1, img2, weights, padding, valid)
        evaluations.append(Evaluation(img1.detach(), img2.detach(), weights, padding, valid, found))
        return found

    def noted_terms(found, c1, c2, eps=0.0):
        result = terms(found, c1, c2, eps)
        evaluations[-1].terms = result
        evaluations[-1].constants = (c1, c2, eps)
        return result

    with mock.patch.object(oracle, "moments", noted_moments), mock.patch.object(oracle, "terms", noted_terms):
        yield evaluations


@dataclass(frozen=True)
class Arithmetic:
    """The arithmetic of a function.

    Attributes:
        dtype: Dtype of the computation, float32 or float64.
        form: "kernel", "definition" or "textbook".
        rounded: How many times the pixels themselves are rounded before the moments are computed.
        sigma: Standard deviation of the window.
        slack: Factor on the error bound of the definition's arithmetic. The CUDA kernels take moments about the mean of
            a few samples, which may lie farther from a window's values than the image's own mean.
    """

    dtype: torch.dtype
    form: str = "kernel"
    rounded: int = 0
    sigma: float = 1.5
    slack: float = 1.0

    @property
    def unit(self) -> float:
        return UNITS[self.dtype]

    @property
    def cancels(self) -> bool:
        """Whether E[s²] - E[s]² is formed about a constant of the whole plane."""
        return self.form != "kernel" or self.sigma < 0.7 or self.dtype == torch.float64


class _Windows:
    """The quantities for the bounds of an evaluation's windows, (B, C, positions…, taps) or without the taps."""

    def __init__(self, evaluation: Evaluation, arithmetic: Arithmetic):
        e, u = evaluation, arithmetic.unit
        self.unit = u
        finite = e.img1.isfinite() & e.img2.isfinite()
        sizes, self.padding = e.weights.shape, e.padding
        self.flat = e.weights.flatten()
        if e.valid is not None:
            seen = self.flat * oracle.windows(e.valid, sizes, e.padding)
            total = seen.sum(-1, keepdim=True)
            self.flat = seen / torch.where(total > 0, total, 1.0)
        self.sizes = sizes
        axes = tuple(range(2, e.img1.ndim))
        counted = finite.double() if e.valid is None else finite * e.valid
        total = counted.sum(axes, keepdim=True).clamp(min=1e-300)
        self.centre1, self.centre2 = (
            (torch.where(finite, image, 0.0) * counted).sum(axes, keepdim=True) / total for image in (e.img1, e.img2)
        )
        images = [
            torch.where(finite, image, centre) for image, centre in ((e.img1, self.centre1), (e.img2, self.centre2))
        ]
        self.sums, self.differences = images[0] + images[1], images[0] - images[1]
        self.x, self.y = (oracle.windows(image, sizes, e.padding) for image in images)
        self.c1, self.c2 = (centre[..., None] for centre in (self.centre1, self.centre2))
        # Kernels subtract a float32 number near the mean.
        self.size = (self.x - self.c1).abs() + (self.y - self.c2).abs() + 2 * u * (self.c1.abs() + self.c2.abs())
        self.s, self.d = self.x + self.y, self.x - self.y
        self.mu_s, self.mu_d = (self.mean(values) for values in (self.s, self.d))
        self.var_s = self.mean((self.s - self.mu_s[..., None]) ** 2)
        self.var_d = self.mean((self.d - self.mu_d[..., None]) ** 2)
        # Errors of a pixel of s or d, and of the moments.
        pixel = self.pixel = 2 * u * self.size + arithmetic.rounded * u * (self.x.abs() + self.y.abs())
        mean = self.mean(pixel) + 2 * len(sizes) * u * self.mean(self.size)
        self.error_mu_s, self.error_mu_d = mean + u * self.mu_s.abs(), mean + u * self.mu_d.abs()
        self.error_var_s = 2 * self.mean((self.s - self.mu_s[..., None]).abs() * pixel)
        self.error_var_d = 2 * self.mean((self.d - self.mu_d[..., None]).abs() * pixel)
        self.two_c1, self.two_c2 = 2 * evaluation.constants[0], 2 * evaluation.constants[1]
        self.b = self.var_s + self.var_d + self.two_c2
        self.a = self.mu_s**2 + self.mu_d**2 + self.two_c1
        # The error that roundings of E[s²] leave, where s is taken about the plane's centre or about 0.
        about = self.size if arithmetic.form != "textbook" else self.x.abs() + self.y.abs()
        self.lost = 2 * len(sizes) * u * self.mean(about**2)
        if arithmetic.form != "kernel" or arithmetic.dtype == torch.float64:
            self.error_var_s, self.error_var_d = self.error_var_s + self.lost, self.error_var_d + self.lost

    def mean(self, values: Tensor) -> Tensor:
        return (self.flat * values).sum(-1)

    @staticmethod
    def farthest(values: Tensor, plane: Tensor) -> Tensor:
        """The largest distance of each value from any value of its plane, (B, C, spatial…)."""
        axes = tuple(range(2, plane.ndim))
        low, high = plane.amin(axes, keepdim=True)[..., None], plane.amax(axes, keepdim=True)[..., None]
        return torch.maximum((values - low).abs(), (values - high).abs())

    def spread(self, shape: torch.Size, kernel: Tensor) -> Tensor:
        """Sums `kernel`, (positions…, taps), for each pixel over the windows that see it. `shape` is the images'."""
        pixels = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
        total = (oracle.windows(pixels, self.sizes, self.padding) * kernel).sum()
        return torch.autograd.grad(total, pixels)[0]


def plain_error(evaluation: Evaluation, form: str) -> float:
    """The largest error of S by the plain float32 definition, with moments about the images' mean or about 0."""
    assert evaluation.terms is not None
    e = evaluation
    finite = e.img1.isfinite() & e.img2.isfinite()
    axes = tuple(range(2, e.img1.ndim))
    images = []
    centres = []
    for image in (e.img1, e.img2):
        image = torch.where(finite, image, 0.0)
        share = finite.double() if e.valid is None else finite * e.valid
        centre = (image * share).sum(axes, keepdim=True) / share.sum(axes, keepdim=True).clamp(min=1e-300)
        centre = (centre if form != "textbook" else torch.zeros_like(centre)).float()
        images.append(image.float())
        centres.append(centre)
    flat = e.weights.flatten().float()
    if e.valid is not None:
        seen = flat * oracle.windows(e.valid.float(), e.weights.shape, e.padding)
        total = seen.sum(-1, keepdim=True)
        flat = seen / torch.where(total > 0, total, 1.0)
    x, y = (
        oracle.windows(image, e.weights.shape, e.padding) - centre[..., None]
        for image, centre in zip(images, centres, strict=True)
    )
    mu1, mu2 = (flat * x).sum(-1), (flat * y).sum(-1)
    var1, var2 = (flat * x * x).sum(-1) - mu1 * mu1, (flat * y * y).sum(-1) - mu2 * mu2
    cov = (flat * x * y).sum(-1) - mu1 * mu2
    mu1, mu2 = mu1 + centres[0], mu2 + centres[1]
    c1, c2, eps = (torch.tensor(constant, dtype=torch.float32) for constant in e.constants)
    found = (2 * mu1 * mu2 + c1) * (2 * cov + c2) / ((mu1 * mu1 + mu2 * mu2 + c1) * (var1 + var2 + c2) + eps)
    error = (found.double() - e.terms.ssim.detach()).abs()
    return error[error.isfinite()].max().item() if error.isfinite().any() else 0.0


def _derivatives(value: Tensor, upstream: Tensor, evaluation: Evaluation) -> tuple[dict[str, Tensor], Tensor]:
    """|dL/d moment| of s and d and of x and y, and the sum of |dL/d term|, for L = Σ value · upstream."""
    assert evaluation.terms is not None
    inputs = (*evaluation.moments, *evaluation.terms)
    found = torch.autograd.grad(value, inputs, upstream, retain_graph=True, allow_unused=True)
    zero = torch.zeros_like(evaluation.moments.mu1)
    mu1, mu2, var1, _, cov, *by_terms = (zero if g is None else g.nan_to_num(0, 0, 0) for g in found)
    by = {
        "mu_s": (mu1 + mu2).abs() / 2,
        "mu_d": (mu1 - mu2).abs() / 2,
        "var_s": (var1 / 2 + cov / 4).abs(),
        "var_d": (var1 / 2 - cov / 4).abs(),
        "var": var1.abs(),
        "cov": cov.abs(),
    }
    return by, sum(term.abs() for term in by_terms)


def _like(errors: Tensor, value: Tensor, channels_last: bool) -> Tensor:
    """Sums the errors of positions (B, C, positions…) to the shape of the value."""
    if value.ndim == 0:
        return errors.sum()
    if value.ndim == 1:
        return errors.flatten(1).sum(1)
    if value.ndim == 2:
        return errors.flatten(2).sum(2)
    if value.ndim == errors.ndim - 1:  # averaged over the channels
        return errors.sum(1)
    return errors.movedim(1, -1) if channels_last else errors


def of_value(
    function: Function, img1: Tensor, img2: Tensor, arithmetic: Arithmetic, channels_last: bool = False
) -> Tensor:
    """The bound of a value's error, in the value's shape. `function` is the oracle's; the images are float64."""
    leaves = [image.detach().clone().requires_grad_() for image in (img1, img2)]
    with recording() as evaluations:
        value = function(*leaves)
    promised = PROMISED[arithmetic.dtype][0]
    bound = 4 * arithmetic.unit * (value.detach().abs() + 1)
    for evaluation in evaluations:
        by, by_terms = _derivatives(value, torch.ones_like(value), evaluation)
        windows = _Windows(evaluation, arithmetic)
        costs = (
            by["mu_s"] * windows.error_mu_s
            + by["mu_d"] * windows.error_mu_d
            + by["var_s"] * windows.error_var_s
            + by["var_d"] * windows.error_var_d
        )
        share = promised
        if arithmetic.cancels and arithmetic.dtype == torch.float32:
            share = max(promised, 2 * arithmetic.slack * plain_error(evaluation, arithmetic.form))
        # The first-order bound underestimates the roundings of products, by a few hundredths for small images.
        # In float64 values may be a million ranges from 0: then the second order counts as well.
        factor = 1.25 * arithmetic.slack if arithmetic.form == "definition" else 1.0
        factor = 2.0 if arithmetic.dtype == torch.float64 else factor
        errors = torch.maximum(share * by_terms, costs) * factor
        found = _like(errors, value, channels_last)
        if value.ndim < errors.ndim - 1 and not _repeats(evaluation):
            taps = 1 / (evaluation.weights**2).sum().item()
            found = torch.minimum(found, 3 * (taps * _like(errors**2, value, channels_last)).sqrt())
        bound = bound + found
    return bound.nan_to_num(math.inf)


def _repeats(evaluation: Evaluation) -> bool:
    """Whether an image is constant along an axis. Its errors are then equal too, and a mean does not average them."""
    return any(
        image.shape[dim] > 1 and bool((image.diff(dim=dim) == 0).all())
        for image in (evaluation.img1, evaluation.img2)
        for dim in range(2, image.ndim)
    )


def _share_of_term(evaluation: Evaluation, windows: _Windows) -> Tensor:
    """(B, C): the error of a mean contrast-structure as a share of it, which is what MS-SSIM's gradient depends on."""
    assert evaluation.terms is not None
    values = evaluation.terms.contrast_structure.detach()
    errors = 2 * (windows.error_var_s + windows.error_var_d) / windows.b + 2 * windows.unit * (1 + values.abs())
    # The roundings of pixels and quotients are independent, so the error of the mean is that of independent errors.
    error = errors.flatten(2).mean(-1) * min(1.0, 3 / math.sqrt(max(1, values[0, 0].numel())))
    return error / values.flatten(2).mean(-1).abs().clamp(min=1e-12)


def of_gradient(
    function: Function,
    img1: Tensor,
    img2: Tensor,
    upstream: Tensor,
    arithmetic: Arithmetic,
    pyramid: bool = False,
) -> float:
    """The bound of the largest error of a gradient by its arithmetic, without the promise.

    With several evaluations of the index at one scale, a product, the error of each reaches the gradients of all.
    """
    leaves = [image.detach().clone().requires_grad_() for image in (img1, img2)]
    with recording() as evaluations:
        value = function(*leaves)
    u = arithmetic.unit
    bound = 0.0
    all_windows = [_Windows(evaluation, arithmetic) for evaluation in evaluations]
    shares = [_share_of_term(*each) for each in zip(evaluations, all_windows, strict=True)] if pyramid else []
    for scale, (evaluation, w) in enumerate(zip(evaluations, all_windows, strict=True)):
        by, by_terms = _derivatives(value, upstream, evaluation)
        expand = {name: values[..., None] for name, values in by.items()}
        mus = (evaluation.moments.mu1.abs() + evaluation.moments.mu2.abs()).detach()
        if (
            arithmetic.form == "textbook"
        ):  # Of x and y, about 0: neither the luminance's nor the variances' parts cancel.
            sizes = w.x.abs() + w.y.abs() + mus[..., None]
            parts = 2 * (expand["var"] + expand["cov"]) * sizes + (8 * by_terms * mus / w.a)[..., None]
        else:
            far_s = w.farthest(w.s, w.sums) + w.farthest(w.mu_s[..., None], w.sums)
            far_d = w.farthest(w.d, w.differences) + w.farthest(w.mu_d[..., None], w.differences)
            if arithmetic.form == "kernel":  # the kernels subtract a constant from d after averaging it
                far_d = far_d + w.mu_d.abs()[..., None]
            parts = 2 * expand["var_s"] * far_s + 2 * expand["var_d"] * far_d
        taken_apart = w.flat * (expand["mu_s"] + expand["mu_d"] + parts)
        distance = (w.s - w.mu_s[..., None]).abs() + (w.d - w.mu_d[..., None]).abs()
        inner = by_terms[..., None] * (
            2 * distance / w.b[..., None]
            + ((w.mu_d / w.a).abs() * 2 + w.mu_d**2 * w.mu_s.abs() / w.a**2 * 2)[..., None]
        )
        # Relative errors of B and A. A's counts twice: in 1 / A, and in the luminance, a factor of the slopes by B.
        share = (w.error_var_s + w.error_var_d) / w.b + 4 * (
            w.mu_s.abs() * w.error_mu_s + w.mu_d.abs() * w.error_mu_d
        ) / w.a
        share = 6e-6 * (1 if arithmetic.dtype == torch.float32 else 1e-4) + share
        if arithmetic.cancels and arithmetic.form == "kernel":
            share = share + w.lost / w.b
        if pyramid:  # The slope of a product of powers has the terms in its denominator.
            share = share + 3 * sum(shares).reshape(*share.shape[:2], *[1] * (share.ndim - 2))
        # The error of the oracle itself: it subtracts quotients by A and by B that nearly cancel.
        own = 2.0**-50 * by_terms[..., None] * (8 * (mus / w.a)[..., None] + distance / w.b[..., None])
        shape = evaluation.img1.shape
        pixels = w.pixel + w.mean(w.pixel)[..., None]
        of_pixels = w.flat * 2 * (expand["var_s"] + expand["var_d"]) * pixels
        passes = 2 * len(w.sizes)  # a product and a sum for each axis
        total = w.spread(shape, passes * u * taken_apart + of_pixels + w.flat * (share[..., None] * inner + own))
        total = total + w.spread(shape, w.flat * (by_terms * 2 * w.error_mu_d / w.a)[..., None])
        if total.numel():
            bound += total.nan_to_num(0, 0, 0).max().item() / 2 ** ((total.ndim - 2) * scale * pyramid)
    if arithmetic.form == "definition":
        # The first-order bound underestimates the roundings of products, for a row of 5 pixels by a tenth.
        bound *= 1.5 * arithmetic.slack
    return bound if pyramid else bound * len(evaluations)


def of_rounding(values: Tensor, dtype: torch.dtype) -> Tensor:
    """The error of rounding values to a dtype."""
    return UNITS[dtype] * values.abs() + STEPS.get(dtype, 0.0) / 2
