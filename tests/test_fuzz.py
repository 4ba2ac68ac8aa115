"""The fuzzer's cases by derandomized hypothesis, equal in every run, and planted faults that it must find.

`make fuzz SECONDS=600 SEED=1` runs for a given time. tests/fuzz.py says how to replay a finding.
"""

import dataclasses
import functools
import itertools

import hypothesis
import pytest
import torch
from hypothesis import strategies

import splat_ssim
from tests import bounds, devices, fuzz, fuzz_cases, fuzz_checks, oracle
from tests.fuzz_cases import Case, Layout, Mask, Setting
from tests.fuzz_checks import MismatchError

pytestmark = pytest.mark.usefixtures("threads")


class HypothesisSource:
    """Decisions of hypothesis. A chance comes true for large numbers, since hypothesis tries small ones more often."""

    def __init__(self, data):
        self._data = data

    def choice(self, options):
        return options[self.integer(0, len(options) - 1)]

    def integer(self, low, high):
        return self._data.draw(_integers(low, high))

    def chance(self, probability):
        return self.integer(0, 999) >= 1000 - round(1000 * probability)


_integers = functools.cache(strategies.integers)


def tried(cases):
    """Settings of a test with this many cases: no database, no time limit, and no shrinking but the fuzzer's."""
    return hypothesis.settings(
        max_examples=cases,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(hypothesis.Phase.generate,),
        suppress_health_check=list(hypothesis.HealthCheck),
    )


def check(case, device):
    finding = fuzz.find(case, device)
    if finding is not None:
        case, finding = fuzz.shrink(case, finding, device, seconds=5)
        pytest.fail(f"{finding}\n{fuzz_cases.literal(case)}\n{fuzz.snippet(case)}", pytrace=False)


GROUPS = {
    "ssim": fuzz_cases.SSIM_KINDS,
    "pyramids": fuzz_cases.PYRAMID_KINDS,
    "plain": fuzz_cases.PLAIN_KINDS,
    "drop-ins": fuzz_cases.COMPAT_KINDS,
    "pixels": fuzz_cases.PIXEL_KINDS,
}
#: Some hundred cases, of which every option is a part many times; `make fuzz` goes on for as long as is wanted.
CASES = {"ssim": 450, "pyramids": 100, "plain": 80, "drop-ins": 140, "pixels": 80}


@pytest.mark.parametrize("group", GROUPS)
def test_random_calls_on_the_cpu(group):
    @tried(CASES[group])
    @hypothesis.given(strategies.data())
    def run(data):
        check(fuzz_cases.draw(HypothesisSource(data), "cpu", GROUPS[group]), "cpu")

    run()


@pytest.mark.emulation
def test_random_calls_of_the_emulated_kernels():
    @tried(60)
    @hypothesis.given(strategies.data())
    def run(data):
        check(fuzz_cases.draw(HypothesisSource(data), "emulation"), "emulation")

    with devices.use("emulation"):
        run()


# --------------------------------------------------------------------------------------------------------------------
# Faults that the fuzzer finds
# --------------------------------------------------------------------------------------------------------------------

PLAIN = Case(shape=(1, 2, 9, 10), options={"window_size": 5})


def planted(monkeypatch, change):
    """Plants a fault in `splat_ssim.ssim`: `change` gets the images and the result."""
    ssim = splat_ssim.ssim

    def faulty(options, x, y, mask):
        value = ssim(x, y, **({} if mask is None else {"mask": mask}), **options)
        return change(x, y, value)

    function = fuzz_checks.FUNCTIONS["ssim"]
    monkeypatch.setitem(fuzz_checks.FUNCTIONS, "ssim", fuzz_checks.Function(faulty, function.expected, function.dtype))


def test_a_sound_call_passes():
    assert fuzz_checks.check(PLAIN) == 1


class _TwiceTheGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, grad):
        return 1.001 * grad


def _write(x, y, value):
    x.detach().numpy().flat[0] += 1  # torch does not detect the change
    return value


def _read_outside(x, y, value):
    """Adds 0 times the memory beside the image."""
    with torch.no_grad():
        beside = x.detach().as_strided((1,), (1,), x.storage_offset() - 1)
    return value + 0 * beside.sum()


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("value", lambda x, y, value: value + 1e-5),
        ("gradient", lambda x, y, value: _TwiceTheGradient.apply(value)),
        ("dtype", lambda x, y, value: value.double()),
        ("shape", lambda x, y, value: value.view(1)),
        ("graph", lambda x, y, value: value.detach()),
        ("input written", _write),
        ("error RuntimeError", lambda x, y, value: value.view(7)),
        ("finite", _read_outside),
    ],
)
def test_a_planted_fault_is_found(monkeypatch, kind, change):
    planted(monkeypatch, change)
    inside = Layout(margins=(1, 1, 1, 1), offset=3)
    case = dataclasses.replace(PLAIN, settings=(Setting(layouts=(inside, Layout(), Layout(), Layout())),))
    with pytest.raises(MismatchError) as caught:
        fuzz_checks.check(case)
    assert caught.value.kind == kind


def test_a_call_that_must_be_refused():
    case = Case(shape=(1, 1, 4, 20), options={"window_size": 5, "padding": "valid"})
    assert fuzz_checks.refused(case)
    assert fuzz_checks.check(case) == 1
    fuzz_checks.check_refusal(ValueError("sigma must be a finite number above 0, got 0.0"))
    for error in (RuntimeError("sigma must be a number"), ValueError("bad")):
        with pytest.raises(MismatchError):
            fuzz_checks.check_refusal(error)


def test_a_finding_is_shrunk(monkeypatch):
    planted(monkeypatch, lambda x, y, value: value + (1e-3 if x.shape[-1] > 6 else 0))
    options = {"window_size": 5, "sigma": 0.8, "reduction": "image"}
    case = Case(shape=(2, 3, 9, 13), content="ramp", options=options, mask=Mask(), settings=(Setting(), Setting()))
    finding = fuzz.find(case, "cpu")
    smallest, finding = fuzz.shrink(case, finding, "cpu")
    assert finding.kind == "value"
    assert smallest == Case(shape=(1, 1, 1, 7), settings=(Setting(),))
    text = fuzz.report(3, smallest, finding, "cpu")
    assert "--case 3" in text
    assert "splat_ssim.ssim(img1, img2)" in text


def test_a_number_is_a_case():
    cases = [fuzz.case_of(number, "cpu", None) for number in range(200)]
    assert cases == [fuzz.case_of(number, "cpu", None) for number in range(200)]
    for case in cases[:50]:
        assert eval(fuzz_cases.literal(case), vars(fuzz_cases)) == case


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 3, 1, 5), (2, 1, 3, 1, 4)], ids=str)
def test_layouts_hold_the_values_among_poison(shape):
    values = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    rank = len(shape)
    orders = [(), tuple(reversed(range(rank))), (0, *range(2, rank), 1)]
    for order, steps, margins, offset, single in itertools.product(
        orders, [(), (1, 2, 3, 1, 2)[:rank]], [(), (0, 1, 0, 2, 1)[:rank]], [0, 5], [None, 0, 2**33]
    ):
        laid, buffer = fuzz_cases.lay_out(values, Layout(order, steps, margins, offset, single))
        assert torch.equal(laid, values)
        assert buffer.numel() == values.numel() or buffer.isnan().sum() == buffer.numel() - values.numel()
    repeated, _ = fuzz_cases.lay_out(values[:, :1].expand(shape), Layout(repeated=True, offset=1))
    assert torch.equal(repeated, values[:, :1].expand(shape))
    assert repeated.stride(1) == 0


def test_bounds_grow_where_the_data_do():
    """On ordinary images, the promise is the bound. It cannot hold for bright and dark parts at a tiny data range."""
    arithmetic = bounds.Arithmetic(torch.float32)

    def largest(content, **options):
        images = [image.double() for image in fuzz_cases.images(dataclasses.replace(PLAIN, content=content))]

        def function(x, y):
            return oracle.ssim(x, y, window_size=3, reduction="none", **options)

        return bounds.of_value(function, *images, arithmetic).max().item()

    promised, unit = bounds.PROMISED[torch.float32][0], bounds.UNITS[torch.float32]
    for content in ("near", "noise", "flat"):
        assert largest(content) <= promised + 8 * unit, content
    assert max(map(largest, ("ramp", "patches"))) <= 8 * promised  # dark parts have means of about sqrt(C1)
    assert largest("patches", data_range=1e-3) > 20 * promised
