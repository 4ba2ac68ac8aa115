"""The fuzzer's cases. A `Case` says which function is called on which images, a `Setting` where and how.

`draw` makes a case from a source of decisions: a seeded generator (tests/fuzz.py) or hypothesis (test_fuzz.py). Simple
choices come first, so that hypothesis shrinks towards them. A case holds plain values only: its `repr` rebuilds it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

T = TypeVar("T")


class Source(Protocol):
    """A source of decisions."""

    def choice(self, options: Sequence[T]) -> T: ...
    def integer(self, low: int, high: int) -> int: ...
    def chance(self, probability: float) -> bool: ...


class RandomSource:
    """Decisions of a seeded generator."""

    def __init__(self, seed: int):
        self._random = random.Random(seed)

    def choice(self, options: Sequence[T]) -> T:
        return self._random.choice(options)

    def integer(self, low: int, high: int) -> int:
        return self._random.randint(low, high)

    def chance(self, probability: float) -> bool:
        return self._random.random() < probability


# --------------------------------------------------------------------------------------------------------------------
# Cases
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """How the elements of a tensor lie in a buffer whose other elements are poison.

    Attributes:
        order: The axes from the outermost in memory to the innermost. Empty: the usual order.
        steps: Distance of neighbours along each axis, in elements of an otherwise packed buffer. Empty: 1.
        margins: Number of poisoned elements behind each axis. Empty: none.
        offset: Number of elements in the buffer before the first one.
        single: Stride of every axis of length 1, which has no effect on the elements. None: the stride that follows
            from the other axes.
        repeated: Whether axes along which the values are constant get the stride 0.
    """

    order: tuple[int, ...] = ()
    steps: tuple[int, ...] = ()
    margins: tuple[int, ...] = ()
    offset: int = 0
    single: int | None = None
    repeated: bool = False


@dataclass(frozen=True)
class Setting:
    """Where and how a call runs. No setting may change the result.

    Attributes:
        layouts: Layouts of img1, img2, the mask and the upstream gradient.
        requires: Which images require a gradient: "none", "first", "second" or "both".
        threads: Number of threads, for torch.set_num_threads.
        isa: Instruction set of the CPU kernels. 0 is the best one; numbers wrap around at the number of those
            available.
        default_device: torch's default device during the call.
        fill: Whether torch fills fresh memory with NaN (deterministic mode).
        numbers: Type of the number options: "python", "numpy" or "tensor".
        mode: "plain", "no_grad", "inference" or "autocast".
        again: Whether backward runs twice through a retained graph, first with another upstream gradient.
    """

    layouts: tuple[Layout, Layout, Layout, Layout] = (Layout(), Layout(), Layout(), Layout())
    requires: str = "both"
    threads: int = 1
    isa: int = 0
    default_device: str | None = None
    fill: bool = False
    numbers: str = "python"
    mode: str = "plain"
    again: bool = False


@dataclass(frozen=True)
class Mask:
    """A mask: `content` is "ones", "half", "sparse", "soft", "single" or "zeros"."""

    content: str = "half"
    dtype: str = "bool"
    channels: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Case:
    """A call of a function on two images, which is made in each of the settings.

    Attributes:
        kind: Name of the function, a key of tests.fuzz_checks.FUNCTIONS.
        shape: (B, C, spatial…), whatever the layout.
        dtypes: Dtypes of img1 and img2.
        content: Content of the images, see `images`.
        offset: Number added to all pixels.
        uneven: Whether the offset applies to the first of three channels only. The second then gets 0 and the third
            -1/2 of it. This is a constant for each plane, but not for pixels with interleaved channels.
        constant: For each image the axes along which it is constant.
        spoilt: Pixels (image, flat index, value) that are not finite.
        options: Keyword arguments of the function.
        mask: The mask, or None.
        upstream: Gradient that backward starts from: "ones", "random", "single", "rows" (constant along the last axis),
            or "scaled" (a constant other than 1).
        transform: Transform that the function is called through, see tests.fuzz_transforms. None: a plain call.
        seed: Seed of the pixels.
        settings: Settings of the calls.
    """

    kind: str = "ssim"
    shape: tuple[int, ...] = (1, 1, 8, 8)
    dtypes: tuple[str, str] = ("float32", "float32")
    content: str = "near"
    offset: float = 0.0
    uneven: bool = False
    constant: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    spoilt: tuple[tuple[int, int, str], ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    mask: Mask | None = None
    upstream: str = "ones"
    transform: str | None = None
    seed: int = 0
    settings: tuple[Setting, ...] = (Setting(),)

    @property
    def spatial_dims(self) -> int:
        return len(self.shape) - 2

    @property
    def channels_last(self) -> bool:
        return bool(self.options.get("channels_last"))

    @property
    def data_range(self) -> float:
        """The data range that the pixels are made for."""
        default = {"pytorch_msssim": 255.0}.get(self.kind.partition(".")[0], 1.0)
        return float(self.options.get("data_range", self.options.get("max_val", default)))


def literal(value: object) -> str:
    """`repr` of a dataclass without the fields that have their default."""
    if dataclasses.is_dataclass(value):
        fields = []
        for each in dataclasses.fields(value):
            default = each.default_factory() if each.default is dataclasses.MISSING else each.default
            if getattr(value, each.name) != default:
                fields.append(f"{each.name}={literal(getattr(value, each.name))}")
        return f"{type(value).__name__}({', '.join(fields)})"
    if isinstance(value, tuple):
        return f"({', '.join(map(literal, value))}{',' if len(value) == 1 else ''})"
    return repr(value)


# --------------------------------------------------------------------------------------------------------------------
# Tensors
# --------------------------------------------------------------------------------------------------------------------

CONTENTS = (
    *(
        "near",
        "noise",
        "equal",
        "same",
        "object",
        "flat",
        "constant",
        "patches",
        "ramp",
        "sparse",
        "opposite",
        "signed",
    ),
)


def _content(kind: str, shape: tuple[int, ...], random_: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two images, as fractions of the range."""
    x = random_.random(shape)
    if kind == "noise":
        return x, random_.random(shape)
    if kind in ("equal", "same"):
        return x, x
    if kind == "object":  # equal except in a box, like a render in front of a plain background
        starts, ends = np.sort(random_.integers(0, np.asarray(shape[2:]) + 1, (2, len(shape) - 2)), axis=0)
        box = (..., *(slice(start, end) for start, end in zip(starts, ends, strict=True)))
        y = x.copy()
        y[box] = random_.random(y[box].shape)
        return x, y
    if kind == "flat":
        return 0.9 + 1e-3 * x, 0.9 + 1e-3 * random_.random(shape)
    if kind == "constant":
        return np.full(shape, 0.25), np.full(shape, 0.75)
    if kind == "patches":  # black, white and a little noise on both, in blocks of four pixels
        blocks = sum(np.ix_(*(np.arange(side) // 4 for side in shape[2:]))) % 2
        x = blocks * 0.99 + 0.01 * x
        return x, np.clip(x + 0.01 * random_.standard_normal(shape), 0, 1)
    if kind == "ramp":
        x = np.broadcast_to(np.linspace(0, 1, shape[-1]), shape) + 1e-3 * x
    elif kind == "sparse":
        x = np.where(x > 0.9, x, 0.0)
        return x, np.where(random_.random(shape) > 0.9, x, 0.0)
    elif kind == "opposite":
        return x, 1 - x
    elif kind == "signed":
        x = 2 * x - 1
        return x, x + 0.1 * random_.standard_normal(shape)
    return x, np.clip(x + 0.1 * random_.standard_normal(shape), 0, 1)


def _levels(case: Case) -> np.ndarray:
    """The factor of the offset for each channel."""
    levels = np.resize([1.0, 0.0, -0.5], case.shape[1]) if case.uneven else np.ones(case.shape[1])
    return levels.reshape(1, -1, *[1] * case.spatial_dims)


def _cast(values: np.ndarray, dtype: str) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(getattr(torch, dtype))


def images(case: Case) -> tuple[Tensor, Tensor]:
    """The two images (B, C, spatial…) or with the channels last, contiguous."""
    random_ = np.random.default_rng(case.seed)
    made = []
    for index, values in enumerate(_content(case.content, case.shape, random_)):
        for axis in case.constant[index]:
            values = np.repeat(values.take([0], axis), values.shape[axis], axis) if values.shape[axis] else values
        dtype = case.dtypes[index]
        if dtype == "uint8":
            values = np.clip(np.rint(values * 255), 0, 255)
        else:
            values = values * case.data_range + case.offset * _levels(case)
        image = _cast(values, dtype)
        for which, at, value in case.spoilt:
            if which == index and image.numel() and dtype != "uint8":
                image.view(-1)[at % image.numel()] = float(value)
        made.append(image.movedim(1, -1).contiguous() if case.channels_last else image)
    return made[0], made[0] if case.content == "same" else made[1]


def mask_of(case: Case) -> Tensor | None:
    """The mask in the layout of the images, contiguous."""
    mask = case.mask
    if mask is None:
        return None
    shape = (case.shape[0], case.shape[1] if mask.channels else 1, *case.shape[2:])
    values = np.random.default_rng(mask.seed).random(shape)
    values = {
        "ones": lambda: np.ones(shape),
        "half": lambda: values > 0.5,
        "sparse": lambda: values > 0.95,
        "soft": lambda: np.where(values > 0.2, values, 0.0),
        "single": lambda: (np.arange(values.size) == mask.seed % max(1, values.size)).reshape(shape),
        "zeros": lambda: np.zeros(shape),
    }[mask.content]()
    made = _cast(np.asarray(values), mask.dtype)
    return made.movedim(1, -1).contiguous() if case.channels_last else made


def upstream_of(case: Case, shape: Sequence[int]) -> Tensor:
    """The gradient that backward starts from, float64."""
    shape = tuple(shape)
    values = np.random.default_rng(case.seed + 1).standard_normal(shape)
    if case.upstream == "ones":
        values = np.ones(shape)
    elif case.upstream == "scaled":
        values = np.full(shape, -2.5)
    elif case.upstream == "single" and values.size:
        values = np.where(np.arange(values.size) == case.seed % values.size, 1.5, 0.0).reshape(shape)
    elif case.upstream == "rows" and len(shape) and values.size:
        values = np.repeat(values[..., :1], shape[-1], -1)
    return torch.from_numpy(np.asarray(values, dtype=np.float64))


#: The value between the elements of a tensor. A result that depends on it is spoilt.
_POISON = {torch.uint8: 255, torch.bool: True}


def lay_out(values: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """Returns a tensor of this layout with the values, and its buffer."""
    if layout == Layout() or values.ndim == 0:
        values = values.clone()
        return values, values
    rank = values.ndim
    order = layout.order or tuple(range(rank))
    steps, margins = layout.steps or (1,) * rank, layout.margins or (0,) * rank
    repeated = [layout.repeated and _is_constant(values, axis) for axis in range(rank)]
    strides, distance = [0] * rank, 1
    for axis in reversed(order):
        if repeated[axis]:
            continue
        strides[axis] = steps[axis] * distance
        distance *= max(1, values.shape[axis] * steps[axis] + margins[axis])
    buffer = torch.full(
        (layout.offset + distance,), _POISON.get(values.dtype, math.nan), dtype=values.dtype, device="cpu"
    )
    once = values
    for axis in range(rank):
        once = once.narrow(axis, 0, min(1, once.shape[axis])) if repeated[axis] else once
    buffer.as_strided(once.shape, strides, layout.offset).copy_(once)
    if layout.single is not None:
        strides = [layout.single if side == 1 else stride for side, stride in zip(values.shape, strides, strict=True)]
    return buffer.as_strided(values.shape, strides, layout.offset), buffer


def _is_constant(values: Tensor, axis: int) -> bool:
    first = values.narrow(axis, 0, min(1, values.shape[axis]))
    return bool((values == first).all())


# --------------------------------------------------------------------------------------------------------------------
# Drawing
# --------------------------------------------------------------------------------------------------------------------

SSIM_KINDS = ("ssim", "ssim3d", "SSIM", "SSIM3D", "photometric_loss", "PhotometricLoss", "registry.fused_ssim")
PYRAMID_KINDS = ("ms_ssim", "MSSSIM", "ms_ssim_l1_loss", "registry.ms_ssim")
PLAIN_KINDS = ("registry.ssim", "registry.l1", "registry.l2", "ssim_map")
COMPAT_KINDS = (
    "fused_ssim.fused_ssim",
    "fused_ssim.fused_ssim3d",
    "fused_ssim3d.fused_ssim2d",
    "pytorch_msssim.ssim",
    "pytorch_msssim.ms_ssim",
    "kornia.ssim",
    "kornia.ssim3d",
    "kornia.ssim_loss",
    "kornia.ssim3d_loss",
    "kornia.MS_SSIMLoss",
)
#: kornia's losses of single pixels.
PIXEL_KINDS = (
    "kornia.charbonnier_loss",
    "kornia.welsch_loss",
    "kornia.cauchy_loss",
    "kornia.geman_mcclure_loss",
    "kornia.psnr_loss",
)
PADDINGS = ("same", "valid", "reflect", "replicate")
MASK_MODES = ("weight", "zero", "normalize")
TRANSFORMS = (
    "vmap",
    "vmap first",
    "vmap mask",
    "vmap grad",
    "forward AD",
    "jvp",
    "grad",
    "jacobian",
    "batched grad",
    "trace",
    "make_fx",
    "make_fx grad",
    "checkpoint",
    "second derivative",
)

#: Largest number of windows times taps that the oracle gathers for an image, which determines its time. One case in 30
#: may have 8 times as many. Emulated kernels take time for every thread of a tile, even if the image is narrower.
_BUDGET = {"cpu": 30_000, "emulation": 8_000}


def _budget(source: Source, device: str, dims: int) -> int:
    return _BUDGET[device] * (2 if dims == 3 else 1) * (8 if source.chance(0.03) else 1)


def _side(source: Source, window: int) -> int:
    near = [window // 2, window // 2 + 1, window - 1, window, window + 1, 2 * window]
    if source.chance(0.4):
        return max(1, source.choice(near))
    if source.chance(0.06):
        return source.choice([31, 32, 33, 47, 63, 64, 65, 100, 129, 250, 257, 641])
    return source.integer(1, 9) if source.chance(0.5) else source.integer(8, 24)


def _shape(source: Source, dims: int, window: int, least: int, budget: int) -> tuple[int, ...]:
    """(B, C, spatial…) with sides of `least` or more whose gathered windows stay within the budget."""
    sides = [max(least, _side(source, window)) for _ in range(dims)]
    while math.prod(sides) * window**dims > budget and max(sides) > least:
        longest = sides.index(max(sides))
        sides[longest] = max(least, sides[longest] // 2)
    room = budget // max(1, math.prod(sides) * window**dims)
    batch = source.choice([1, 1, 1, 2, 3])
    channels = source.choice([1, 1, 2, 3, 3, 4, 5, 8, 16, 17])
    channels = channels if channels <= room else 1
    return (batch if batch * channels <= room else 1, channels, *sides)


def _dtypes(source: Source) -> tuple[str, str]:
    if source.chance(0.5):
        return "float32", "float32"
    if source.chance(0.4):
        one = source.choice(["float16", "bfloat16", "float64"])
        return one, one
    options = ["float32", "float16", "bfloat16", "uint8", "float64"]
    return source.choice(options), source.choice(options)


def _layout(source: Source, rank: int) -> Layout:
    kind = source.choice(["plain", "plain", "offset", "cut", "step", "permuted", "channels last", "any"])
    order: tuple[int, ...] = ()
    steps: tuple[int, ...] = ()
    margins: tuple[int, ...] = ()
    offset = 0
    if kind in ("permuted", "any"):
        left = list(range(rank))
        order = tuple(left.pop(source.integer(0, len(left) - 1)) for _ in range(rank))
    elif kind == "channels last" and rank > 2:
        order = (0, *range(2, rank), 1)
    if kind in ("step", "any"):
        steps = tuple(source.choice([1, 1, 2, 3]) for _ in range(rank))
    if kind in ("cut", "any"):
        margins = tuple(source.choice([0, 1, 2, 7]) for _ in range(rank))
    if kind in ("offset", "any", "cut"):
        offset = source.choice([1, 2, 3, 5, 16])
    # Views of expanded or of huge tensors have strides of 0 or beyond 32 bits.
    single = source.choice([0, 1, 3, 17, 2**33]) if source.chance(0.3) else None
    return Layout(order, steps, margins, offset, single, source.chance(0.5))


def _setting(source: Source, rank: int, device: str) -> Setting:
    layouts = tuple(_layout(source, rank) if source.chance(0.6) else Layout() for _ in range(4))
    requires = source.choice(["both", "first", "second", "none"])
    mode = source.choice(["no_grad", "inference", "autocast"]) if source.chance(0.06) else "plain"
    return Setting(
        layouts=layouts,  # type: ignore[arg-type]
        requires=requires,
        threads=source.choice([2, 3, 7]) if device == "cpu" and source.chance(0.06) else 1,
        isa=source.integer(0, 2) if source.chance(0.4) else 0,
        default_device="meta" if source.chance(0.08) else None,
        fill=source.chance(0.2),
        numbers=source.choice(["numpy", "tensor"]) if source.chance(0.06) else "python",
        mode=mode,
        again=source.chance(0.1),
    )


def _mask(source: Source) -> Mask:
    content = source.choice(["half", "soft", "sparse", "single", "ones", "zeros"])
    dtypes = ["float32", "float64", "float16", "bfloat16"]
    dtype = source.choice(dtypes if content == "soft" else ["bool", "bool", *dtypes])
    return Mask(content, dtype, source.chance(0.4), source.integer(0, 999))


def _constants(source: Source, dims: int, kind: str) -> dict[str, Any]:
    """Draws the window and the constants. Those with the function's defaults are left out."""
    options: dict[str, Any] = {}
    if source.chance(0.7 if dims == 2 else 0.9):
        common, rare = ([3, 5, 7, 9], [13, 15, 17, 21, 33]) if dims == 2 else ([3, 3, 5, 7], [9, 13, 15])
        options["window_size"] = source.choice(rare if source.chance(0.15) else common)
    if source.chance(0.6):
        options["sigma"] = source.choice([0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0, 2.0, 3.0, 8.0])
    if source.chance(0.5):
        options["data_range"] = source.choice([255.0, 0.1, 30.0, 1e-3, 1e4, 2, 255])
    if source.chance(0.1):
        options["k1"] = source.choice([0.03, 0.1, 0.005])
    if source.chance(0.1):
        options["k2"] = source.choice([0.01, 0.1, 0.3])
    return options


def draw(source: Source, device: str = "cpu", kinds: Sequence[str] | None = None) -> Case:
    """Draws a case for a device, "cpu" or "emulation"."""
    if kinds is None:
        group = source.integer(0, 99)
        groups = ((60, SSIM_KINDS), (72, PYRAMID_KINDS), (82, PLAIN_KINDS), (98, COMPAT_KINDS), (100, PIXEL_KINDS))
        kinds = next(kinds for below, kinds in groups if group < below)
    kind = source.choice(kinds)
    if kind in PYRAMID_KINDS or kind == "pytorch_msssim.ms_ssim":
        case = _draw_pyramid(source, kind, device)
    elif kind in COMPAT_KINDS:
        case = _draw_compat(source, kind, device)
    elif kind in PIXEL_KINDS:
        case = _draw_pixels(source, kind, device)
    else:
        case = _draw_ssim(source, kind, device)
    rank = len(case.shape)
    changes: dict[str, Any] = {
        "content": source.choice(CONTENTS),
        "offset": source.choice([1.0, 100.0, 1000.0, -0.5]) if source.chance(0.3) else 0.0,
        "uneven": source.chance(0.3),
        "upstream": source.choice(["ones", "random", "scaled", "single", "rows"]),
        "seed": source.integer(0, 99999),
    }
    if source.chance(0.15):
        changes["constant"] = tuple(
            tuple(axis for axis in range(rank) if source.chance(0.4)) if source.chance(0.7) else () for _ in range(2)
        )
    if source.chance(0.05):
        spoilt = [
            (source.integer(0, 1), source.integer(0, 9999), source.choice(["nan", "inf", "-inf"]))
            for _ in range(source.integer(1, 3))
        ]
        changes["spoilt"] = tuple(spoilt)
    if case.kind == "kornia.MS_SSIMLoss" or case.kind == "pytorch_msssim.ssim":
        changes["offset"] = 0.0
    case = dataclasses.replace(case, **changes)
    if case.content == "same":
        case = dataclasses.replace(case, dtypes=(case.dtypes[0],) * 2, constant=(case.constant[0],) * 2)
        case = dataclasses.replace(case, spoilt=tuple((0, at, value) for _, at, value in case.spoilt))
    if device == "cpu" and source.chance(0.05):
        return dataclasses.replace(case, transform=source.choice(TRANSFORMS), settings=(Setting(),), spoilt=())
    settings = tuple(_setting(source, rank, device) for _ in range(3 if device == "cpu" else 1))
    if kind in PIXEL_KINDS:  # They are in plain torch, where a tensor among the options would change the dtype.
        settings = tuple(dataclasses.replace(setting, numbers="python") for setting in settings)
    if "." in kind and not kind.startswith("registry."):  # Nothing is promised of drop-ins under autocast.
        settings = tuple(dataclasses.replace(s, mode="plain") if s.mode == "autocast" else s for s in settings)
    return dataclasses.replace(case, settings=settings)


def _draw_ssim(source: Source, kind: str, device: str) -> Case:
    volumes = kind.lower() == "ssim3d" or (kind.lower() != "ssim" and source.chance(0.35))
    dims = 3 if volumes else 2
    options: dict[str, Any] = {}
    window, padding = 11, "same"
    if kind not in ("registry.l1", "registry.l2"):
        options = _constants(source, dims, kind)
        if source.chance(0.6):
            padding = options["padding"] = source.choice(PADDINGS)
        window = options.get("window_size", 11)
    least = {"same": 1, "valid": window}.get(padding, window // 2 + 1)
    if kind != "ssim_map" and source.chance(0.02):
        least = 1  # sometimes too small, which must be refused
    budget = _budget(source, device, dims)
    shape = _shape(source, dims, window, least, budget)
    mask = None
    if kind == "ssim_map":
        options["eps"] = source.choice([0.0, 1e-12, 1e-6, 1e-3])
        options["channels_last"] = source.chance(0.3)
        return Case(kind, shape, _dtypes(source), options=options)
    if kind not in ("registry.l1", "registry.l2"):
        whole = kind.lower() in ("ssim", "ssim3d")
        reductions = ["mean", "none", "image", "sum"] if whole else ["mean", "image"]
        reduction = source.choice(reductions)
        if reduction != "mean":
            options["reduction"] = reduction
        if not kind.startswith("registry.") and source.chance(0.3):
            options["channels_last"] = True
        if not whole and source.chance(0.6):
            options["lambda_dssim"] = source.choice([0.0, 1.0, 0.5])
        if kind in ("photometric_loss", "PhotometricLoss") and source.chance(0.3):
            options["return_terms"] = True
        if source.chance(0.04):
            shape = (0, *shape[1:])
    if source.chance(0.35):
        mask = _mask(source)
        if kind not in ("registry.l1", "registry.l2"):
            options["mask_mode"] = source.choice(MASK_MODES)
    return Case(kind, shape, _dtypes(source), options=options, mask=mask)


def _draw_pyramid(source: Source, kind: str, device: str) -> Case:
    drop_in = kind == "pytorch_msssim.ms_ssim"
    volumes = source.chance(0.25) and not drop_in
    dims = 3 if volumes else 2
    options: dict[str, Any] = {}
    window = options["window_size"] = 3 if source.chance(0.8) else 5
    scales = 1 if volumes else source.choice([1, 2, 2, 3])
    if volumes and source.chance(0.4):
        scales = 2
    if source.chance(0.04) and not volumes:
        window, scales = 3, 5
        options["window_size"] = 3
    else:
        weights = {1: (1.0,), 2: (0.4, 0.6), 3: (0.2, 0.5, 0.3)}[scales]
        options["weights"] = tuple(
            source.choice([weight, 1.0, 2.0]) if source.chance(0.3) else weight for weight in weights
        )
    if source.chance(0.5):
        options["sigma"] = source.choice([0.5, 0.8, 1.0, 3.0])
    if source.chance(0.4):
        options["data_range"] = source.choice([255.0, 0.1, 30, 2.0])
    if source.chance(0.1):
        options["k2"] = source.choice([0.1, 0.3])
    least = (window - 1) * 2 ** ((5 if drop_in else scales) - 1) + (0 if source.chance(0.02) else 1)
    sides = [max(1, least + source.integer(0, 6)) for _ in range(dims)]
    shape = (source.choice([1, 1, 2]), source.choice([1, 2, 3]) if max(sides) < 40 else 1, *sides)
    if drop_in:
        options = _pytorch_msssim_options(source, options)
        dtype = source.choice(["float32", "float64", "float16", "bfloat16"])
        return Case(kind, shape, (dtype, dtype), options=options)
    if kind in ("ms_ssim", "MSSSIM"):
        reduction = source.choice(["mean", "none", "image", "sum"])
        if reduction != "mean":
            options["reduction"] = reduction
        if source.chance(0.04):
            shape = (0, *shape[1:])
    elif source.chance(0.5):
        options["lambda_ms_ssim"] = source.choice([0.0, 1.0, 0.5])
    mask = _mask(source) if "loss" in kind and source.chance(0.35) else None
    if source.chance(0.25) and not kind.startswith("registry."):
        options["channels_last"] = True
    return Case(kind, shape, _dtypes(source), options=options, mask=mask)


def _pytorch_msssim_options(source: Source, options: dict[str, Any]) -> dict[str, Any]:
    renamed = {"window_size": "win_size", "sigma": "win_sigma"}
    options = {renamed.get(name, name): value for name, value in options.items() if name not in ("k1", "k2")}
    if source.chance(0.5):
        options["size_average"] = False
    if source.chance(0.2):
        options["K"] = (0.05, 0.02)
    return options


def _draw_compat(source: Source, kind: str, device: str) -> Case:
    name = kind.partition(".")[2]
    dims = 3 if "3d" in name else 2
    budget = _budget(source, device, dims)
    options: dict[str, Any] = {}
    if kind.startswith("fused_ssim"):
        if source.chance(0.5):
            options["padding"] = source.choice(["same", "valid"])
        if source.chance(0.1):
            options["train"] = False
        least = 11 if options.get("padding") == "valid" else 1
        return Case(kind, _shape(source, dims, 11, least, budget), _dtypes(source), options=options)
    if kind == "pytorch_msssim.ssim":
        dims = source.choice([2, 3])
        options = _pytorch_msssim_options(source, _constants(source, dims, kind))
        if source.chance(0.2):
            options["nonnegative_ssim"] = True
        dtype = source.choice(["float32", "float32", "float64", "float16", "bfloat16"])
        # Axes shorter than the window are not smoothed. Those of one pixel are dropped, and enough axes must remain.
        least = 2 if source.chance(0.3) else options.get("win_size", 11)
        shape = _shape(source, dims, options.get("win_size", 11), least, budget)
        return Case(kind, shape, (dtype, dtype), options=options)
    if kind == "kornia.MS_SSIMLoss":
        options = {
            "sigmas": source.choice([(1.0, 2.0), (0.5, 1.0, 2.0, 4.0, 8.0), (1.5,), (0.5, 1.0)]),
            "data_range": source.choice([1.0, 2.0, 255.0]),
            "K": source.choice([(0.01, 0.03), (0.05, 0.1)]),
            "alpha": source.choice([0.025, 0.8]),
            "compensation": source.choice([200.0, 1.0]),
            "reduction": source.choice(["mean", "sum", "none"]),
        }
        # Like the original, it takes moments about 0. Bytes, which are not rescaled, would cancel.
        dtypes = tuple("float32" if dtype == "uint8" else dtype for dtype in _dtypes(source))
        shape = (source.integer(1, 2), source.choice([1, 3, 2]), source.integer(3, 9), source.integer(3, 9))
        return Case(kind, shape, dtypes, options=options)
    window = options["window_size"] = source.choice([3, 5, 7, 11] if dims == 2 else [3, 3, 5])
    if source.chance(0.5):
        options["max_val"] = source.choice([2.0, 255.0, 0.1])
    if source.chance(0.5):
        options["eps"] = source.choice([0.0, 1e-6, 1e-3])
    if source.chance(0.4):
        options["padding"] = "valid"
    if name.endswith("loss") and source.chance(0.6):
        options["reduction"] = source.choice(["sum", "none"])
    least = window if "padding" in options else window // 2 + 1
    return Case(kind, _shape(source, dims, window, least, budget), _dtypes(source), options=options)


def _draw_pixels(source: Source, kind: str, device: str) -> Case:
    """Draws losses of pixels, with differences down to 1e-4, where the formulas as published cancel."""
    dims = source.choice([2, 3])
    if kind == "kornia.psnr_loss":
        options: dict[str, Any] = {"max_val": source.choice([1.0, 2.0, 255.0])}
    else:
        options = {"reduction": source.choice(["mean", "sum", "none"])} if source.chance(0.8) else {}
    shape = _shape(source, dims, 3, 1, _budget(source, device, dims))
    dtypes = tuple("float32" if dtype == "uint8" else dtype for dtype in _dtypes(source))
    return Case(kind, shape, dtypes, options=options)  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------------------------
# Shrinking
# --------------------------------------------------------------------------------------------------------------------


def simpler(case: Case) -> list[Case]:
    """Yields cases with one simplification of this one, the largest simplification first."""
    change = functools.partial(dataclasses.replace, case)
    found: list[Case] = []
    if len(case.settings) > 1:
        found += [change(settings=(setting,)) for setting in case.settings]
    for axis, side in enumerate(case.shape):
        for smaller in dict.fromkeys((1, side // 2, side - 4, side - 1)):
            if 0 < smaller < side:
                found.append(change(shape=(*case.shape[:axis], smaller, *case.shape[axis + 1 :])))
    plain = Case()
    for name in ("spoilt", "constant", "mask", "uneven", "offset", "content", "upstream", "dtypes", "seed"):
        if getattr(case, name) != getattr(plain, name):
            found.append(change(**{name: getattr(plain, name)}))
    if len(case.spoilt) > 1:
        found += [change(spoilt=(one,)) for one in case.spoilt]
    for name in case.options:
        found.append(change(options={key: value for key, value in case.options.items() if key != name}))
    for name in ("window_size", "win_size"):
        size = case.options.get(name, 0)
        found += [change(options={**case.options, name: smaller}) for smaller in (3, size - 2) if 3 <= smaller < size]
    if case.mask is not None:
        found += [change(mask=mask) for mask in (Mask(), dataclasses.replace(case.mask, channels=False))]
    if len(case.settings) == 1:
        (setting,) = case.settings
        for each in dataclasses.fields(Setting):
            default = getattr(Setting(), each.name)
            if getattr(setting, each.name) != default:
                found.append(change(settings=(dataclasses.replace(setting, **{each.name: default}),)))
        for index, layout in enumerate(setting.layouts):
            for smaller in _simpler_layouts(layout):
                layouts = (*setting.layouts[:index], smaller, *setting.layouts[index + 1 :])
                found.append(change(settings=(dataclasses.replace(setting, layouts=layouts),)))
    return [smaller for smaller in found if smaller != case]


def _simpler_layouts(layout: Layout) -> list[Layout]:
    if layout == Layout():
        return []
    found = [Layout()]
    for each in dataclasses.fields(Layout):
        if getattr(layout, each.name) != getattr(Layout(), each.name):
            found.append(dataclasses.replace(layout, **{each.name: getattr(Layout(), each.name)}))
    return found
