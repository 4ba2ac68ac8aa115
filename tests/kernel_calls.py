"""Calls that reach every compiled kernel with awkward shapes, layouts and dtypes.

They test which memory kernels access, not their results: guard pages (tests/guard.py) and sanitizers
(scripts/sanitize.py) run them. The memory of an input ends with its last element.
"""

import ctypes
import functools
import random
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

import splat_ssim
from splat_ssim.compat import pytorch_msssim
from splat_ssim.ct import project
from splat_ssim.loss import photometric_loss
from splat_ssim.ops import compiled, voxelize_cuda, xray_cuda
from splat_ssim.ops import ssim as operators
from splat_ssim.optim import Adam, SelectiveAdam, step_together
from splat_ssim.options import SSIMOptions
from splat_ssim.render import rasterization
from splat_ssim.volume import VoxelGrid, voxelize
from tests import devices
from tests.test_rasterize import make_scene, render
from tests.test_voxelize import rotated, sample
from tests.test_xray import GEOMETRIES
from tests.test_xray import sample as sample_xray


class Call(NamedTuple):
    """`run` makes its inputs, runs kernels on them and returns their outputs."""

    name: str
    run: Callable[[], Sequence[Tensor]]


# --------------------------------------------------------------------------------------------------------------------
# SSIM
# --------------------------------------------------------------------------------------------------------------------

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.uint8)
PADDINGS = ("same", "valid", "reflect", "replicate")
PLANES = ((1, 1), (1, 2), (1, 3), (2, 3), (1, 4), (2, 5))
#: "gaps": rows, slices, channels and images have gaps between them. "shared": all planes are one
#: (stride 0). "columns": every second column. "swapped": the last two axes are transposed. "loose":
#: axes of length 1 have strides of 0 or 7.
LAYOUTS = ("planar", "planar", "interleaved", "gaps", "shared", "columns", "swapped", "loose")
SIDES = (1, 2, 3, 5, 7, 8, 9, 11, 12, 13, 15, 16, 17, 19, 23, 31, 32, 33, 40)


class Case(NamedTuple):
    """One call of SSIM. `shape` is (B, C, spatial…) whatever the layout."""

    function: str  # "ssim" or "loss"
    shape: tuple[int, ...]
    window_size: int | tuple[int, ...] = 11  # for all axes, or for each
    sigma: float = 1.5
    padding: str = "same"
    dtypes: tuple[torch.dtype, torch.dtype] = (torch.float32, torch.float32)
    layouts: tuple[str, str, str] = ("planar", "planar", "planar")  # of both images and of the upstream gradient
    channels_last: bool = False
    mask: str = "none"  # or "one" channel, "all" channels, "bool", "shared" by the batch
    mask_mode: str = "weight"
    reduction: str = "mean"
    upstream: str = "ones"  # expanded; or "noise"
    gradients: str = "xy"  # or "", "x", "y"
    values: str = "noise"  # or "bright", with a flat part far from 0; "broken", with pixels that are not finite
    seed: int = 0

    def describe(self) -> str:
        """Describes a case: the function, the shape, and every value that is not the default."""
        changed = (
            f"{name}={value}" for name, value in self._asdict().items() if value != self._field_defaults.get(name)
        )
        return " ".join(changed).replace("torch.", "")


def make_tensor(shape: Sequence[int], layout: str, values: Tensor) -> Tensor:
    """A copy of `values`, of that shape, with the layout's strides and no memory beyond its last element."""
    rank = len(shape)
    if layout == "shared":
        first = values[(slice(0, 1), slice(0, 1))]
        return first.clone(memory_format=torch.contiguous_format).expand(shape)
    order = [*range(rank)]
    if layout == "interleaved":
        order = [0, *range(2, rank), 1]
    elif layout == "swapped":
        order = [*range(rank - 2), rank - 1, rank - 2]
    strides = [0] * rank
    step = 2 if layout == "columns" else 1
    for position in reversed(range(rank)):
        axis = order[position]
        strides[axis] = step
        step *= shape[axis]
        if layout == "gaps":
            step += 3 if position == rank - 1 else 5
    if layout == "loose":
        strides = [(0, 7)[axis % 2] if shape[axis] == 1 else stride for axis, stride in enumerate(strides)]
    return torch.empty_strided(tuple(shape), tuple(strides), dtype=values.dtype).copy_(values)


def _image(case: Case, which: int) -> Tensor:
    generator = torch.Generator().manual_seed(case.seed)
    base = torch.rand(case.shape, generator=generator)
    values = base if which == 0 else (base + 0.1 * torch.randn(case.shape, generator=generator)).clamp(0, 1)
    if case.values == "bright":
        # A flat bright part beside noise makes the kernels sum variances again.
        left = torch.arange(case.shape[-1]) < case.shape[-1] // 2
        values = torch.where(left, 0.95 + 0.001 * values, values)
    elif case.values == "broken":
        values = torch.where(torch.rand(case.shape, generator=generator) < 0.02, float("nan"), values)
    dtype = case.dtypes[which]
    values = (values * 255).to(dtype) if dtype == torch.uint8 else values.to(dtype)
    return _in_layout(case, values, case.layouts[which])


def _in_layout(case: Case, values: Tensor, layout: str) -> Tensor:
    """(B, C, spatial…) values in the layout, with the channels moved last where the case asks for it."""
    if case.channels_last:
        values = values.movedim(1, -1)
    return make_tensor(values.shape, layout, values)


def _mask(case: Case) -> Tensor | None:
    if case.mask == "none":
        return None
    shape = (case.shape[0], case.shape[1] if case.mask == "all" else 1, *case.shape[2:])
    values = torch.rand(shape, generator=torch.Generator().manual_seed(case.seed + 1))
    if case.mask == "bool":
        values = values > 0.3
    return _in_layout(case, values, "shared" if case.mask == "shared" else case.layouts[1])


def _run_ssim(case: Case) -> list[Tensor]:
    images = [_image(case, 0), _image(case, 1)]
    for image, name in zip(images, "xy", strict=True):
        image.requires_grad_(name in case.gradients)
    options = dict(
        window_size=case.window_size, sigma=case.sigma, padding=case.padding, channels_last=case.channels_last
    )
    options |= dict(reduction=case.reduction, mask=_mask(case), mask_mode=case.mask_mode)
    if case.function == "loss":
        result = photometric_loss(*images, **options)
    else:
        result = (splat_ssim.ssim if len(case.shape) == 4 else splat_ssim.ssim3d)(*images, **options)
    found = [result.detach()]
    if not case.gradients:
        return found
    if case.upstream == "ones":
        result.sum().backward()
    else:
        noise = torch.randn(result.shape, generator=torch.Generator().manual_seed(case.seed + 2))
        result.backward(make_tensor(result.shape, case.layouts[2], noise) if result.ndim > 2 else noise)
    return found + [image.grad for image in images if image.requires_grad]


def _draw(
    draw: random.Random,
    spatial_dims: int,
    sides: Sequence[int],
    windows: Sequence[int],
    planes: Sequence[tuple[int, int]],
    seed: int,
) -> Case:
    """Draws the case with the number `seed`."""
    padding = draw.choice(PADDINGS)
    window_size = draw.choice(windows)
    smallest = {"same": 1, "valid": window_size}.get(padding, window_size // 2 + 1)
    allowed = [side for side in sides if side >= smallest] or [smallest]
    # The shortest side that the padding allows is drawn more often than others.
    spatial = [smallest if draw.random() < 0.2 else draw.choice(allowed) for _ in range(spatial_dims)]
    function = draw.choice(("ssim", "loss"))
    channels_last = draw.random() < 0.3
    layouts = ("planar", "loose", "gaps", "shared") if channels_last else LAYOUTS
    gradients = draw.choice(("", "x", "y", "xy", "x"))
    floating = DTYPES[:3]
    return Case(
        function=function,
        shape=(*draw.choice(planes), *spatial),
        window_size=window_size,
        sigma=draw.choice((1.5, 1.5, 0.5, 3.0)),
        padding=padding,
        dtypes=(
            draw.choice(floating if "x" in gradients else DTYPES),
            draw.choice(floating if "y" in gradients else DTYPES),
        ),
        layouts=(draw.choice(layouts), draw.choice(layouts), draw.choice(layouts)),
        channels_last=channels_last,
        mask=draw.choice(("none", "none", "one", "all", "bool", "shared")),
        mask_mode=draw.choice(("weight", "weight", "zero")),
        reduction=draw.choice(("mean", "image") if function == "loss" else ("mean", "image", "sum", "none", "none")),
        upstream=draw.choice(("ones", "noise")),
        gradients=gradients,
        values=draw.choice(("noise", "noise", "noise", "bright", "broken")),
        seed=seed,
    )


def _ssim_calls(
    spatial_dims: int,
    count: int,
    sides: Sequence[int],
    windows: Sequence[int],
    planes: Sequence[tuple[int, int]] = PLANES,
) -> Iterator[Call]:
    draw = random.Random(spatial_dims)
    for seed in range(count):
        case = _draw(draw, spatial_dims, sides, windows, planes, seed)
        yield Call(case.describe(), lambda case=case: _run_ssim(case))


def _axis_calls(count: int, windows: Sequence[int]) -> Iterator[Call]:
    """Volumes whose window size differs between axes and is 1 along some."""
    draw = random.Random(7)
    for seed in range(count):
        case = _draw(draw, 3, (1, 2, 5, 8, 9, 16, 17), [3], PLANES[:4], seed)
        sizes = [draw.choice((1, *windows)) for _ in range(3)]
        sizes[draw.randrange(3)] = draw.choice(windows)
        least = {"same": [1] * 3, "valid": sizes}.get(case.padding, [size // 2 + 1 for size in sizes])
        sides = [max(side, low) for side, low in zip(case.shape[2:], least, strict=True)]
        case = case._replace(window_size=tuple(sizes), shape=(*case.shape[:2], *sides))
        yield Call(case.describe(), lambda case=case: _run_ssim(case))


def _named(function: str, shape: tuple[int, ...], **changes) -> Call:
    case = Case(function, shape, **changes)
    return Call(case.describe(), lambda: _run_ssim(case))


def _wide_ssim_calls() -> Iterator[Call]:
    """Images and volumes of several strips and bands, and of many blocks of slices; and maps one column wide."""
    for channels_last in (False, True):
        for shape in ((1, 3, 64, 11), (1, 3, 13, 12, 11)):
            yield _named("ssim", shape, padding="valid", reduction="sum", channels_last=channels_last)
    for padding in PADDINGS:
        yield _named("ssim", (1, 1, 300, 19), padding=padding)
        yield _named("loss", (1, 1, 23, 1290), padding=padding, gradients="x", mask="one")
        yield _named("ssim", (1, 3, 13, 260), padding=padding, channels_last=True, reduction="none")
        yield _named("ssim", (1, 1, 30, 17, 25), padding=padding, reduction="sum")
        yield _named("loss", (2, 1, 12, 40, 30), padding=padding, gradients="x", mask="all")
        yield _named("ssim", (1, 3, 12, 13, 240), padding=padding, channels_last=True, gradients="y")
    yield _named("ssim", (1, 1, 11, 20, 700), window_size=5, gradients="x")
    yield _named("ssim", (1, 1, 13, 300, 20), window_size=5)


def _run_pair(function: Callable[..., Tensor], shape: tuple[int, ...], layout: str, gradients: str) -> list[Tensor]:
    """A function of two float32 images, and its gradients."""
    generator = torch.Generator().manual_seed(0)
    images = [make_tensor(shape, layout, torch.rand(shape, generator=generator)) for _ in range(2)]
    for image, name in zip(images, "xy", strict=True):
        image.requires_grad_(name in gradients)
    result = function(*images)
    if gradients:
        result.sum().backward()
    return [result.detach(), *(image.grad for image in images if image.requires_grad)]


def _pair_calls(name: str, function: Callable[..., Tensor], shape: tuple[int, ...]) -> Iterator[Call]:
    for layout, gradients in (("planar", ""), ("interleaved", "x"), ("gaps", "xy"), ("shared", "y"), ("loose", "xy")):
        arguments = (function, shape, layout, gradients)
        yield Call(f"{name} of {shape}, {layout}, gradients {gradients!r}", lambda a=arguments: _run_pair(*a))


def _multi_scale_calls() -> Iterator[Call]:
    """MS-SSIM with the shortest possible sides, odd and even on every scale."""
    for shape, window_size, scales in (
        ((2, 3, 21, 24), 11, 2),
        ((1, 2, 9, 12), 3, 3),
        ((1, 1, 17, 33), 3, 4),
        ((1, 2, 7, 5, 10), 3, 2),
        ((1, 1, 9, 12, 15), 3, 3),
    ):
        options = {"window_size": window_size, "weights": (0.3, 0.2, 0.4, 0.1)[:scales], "reduction": "none"}
        function = functools.partial(splat_ssim.ms_ssim, **options)
        yield from _pair_calls(f"ms_ssim with {window_size} taps, {scales} scales", function, shape)


def _other_ssim_calls() -> Iterator[Call]:
    """Means of channels, and S with eps in its denominator, which only drop-ins use."""
    means = functools.partial(pytorch_msssim.ssim, data_range=1.0, nonnegative_ssim=True)
    for shape in ((2, 3, 13, 21), (1, 2, 11, 11), (1, 2, 12, 13, 14)):
        yield from _pair_calls("means of channels", means, shape)
        options = SSIMOptions(eps=1e-4)
        function = functools.partial(operators.ssim_map, options=options)
        yield from _pair_calls("S with eps", function, shape)


def _run_rgba(shape: tuple[int, int, int], interleaved: bool, target_last: bool, options: dict) -> list[Tensor]:
    torch.manual_seed(0)
    batch, height, width = shape
    layout = "interleaved" if interleaved else "planar"
    pred = make_tensor((batch, 3, height, width), layout, torch.rand(batch, 3, height, width)).requires_grad_()
    layout = "interleaved" if target_last else "planar"
    pixels = torch.randint(256, (batch, 4, height, width), dtype=torch.uint8)
    rgba, background = make_tensor(tuple(pixels.shape), layout, pixels), torch.rand(batch, 3)
    loss = photometric_loss(pred, rgba, background=background, **options)
    return [loss, *torch.autograd.grad(loss.sum(), pred)]


def _rgba_calls(sides: Sequence[int] = (1, 5, 16, 17, 33, 70)) -> Iterator[Call]:
    for width in sides:
        for interleaved in (False, True):
            for options in ({}, {"mask": "alpha"}, {"padding": "reflect", "window_size": 3}):
                if width < 5 and "padding" in options:
                    continue
                shape = (2, 3 + width % 5, width)
                name = f"RGBA {shape} interleaved={interleaved} {options}"
                yield Call(name, functools.partial(_run_rgba, shape, interleaved, True, options))
    yield Call("RGBA planar", functools.partial(_run_rgba, (2, 9, 20), False, False, {}))


def ssim_calls() -> Iterator[Call]:
    yield from _ssim_calls(2, 400, SIDES, (3, 5, 7, 11, 11, 13, 33))
    yield from _ssim_calls(3, 150, SIDES[:14], (3, 5, 7, 11, 11, 13))
    yield from _axis_calls(120, (3, 5, 11, 13))
    yield from _wide_ssim_calls()
    yield from _multi_scale_calls()
    yield from _other_ssim_calls()
    yield from _rgba_calls()


# --------------------------------------------------------------------------------------------------------------------
# The renderer
# --------------------------------------------------------------------------------------------------------------------


def _fitted(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Contiguous copies, each in its own memory, because a view may lie inside a larger tensor."""
    return [tensor.detach().clone(memory_format=torch.contiguous_format) for tensor in tensors]


def _run_render(count: int, cameras: int, width: int, height: int, scene: dict, options: dict) -> list[Tensor]:
    tensors = make_scene(count, cameras, width=width, height=height, **scene)
    if "channels" in options:
        options = dict(options)
        tensors[4] = torch.rand(count, options.pop("channels"), generator=torch.Generator().manual_seed(1))
    if options.get("pixel_weights"):
        weights = torch.rand(cameras, height, width, generator=torch.Generator().manual_seed(3))
        options = options | {"pixel_weights": weights}
    if options.get("backgrounds"):
        shown = (
            tensors[4].shape[-1] if "D" not in options.get("render_mode", "") or "RGB" in options["render_mode"] else 1
        )
        options = options | {"backgrounds": torch.rand(cameras, shown, generator=torch.Generator().manual_seed(4))}
    if options.get("raw"):
        tensors[2], tensors[3] = tensors[2].log(), tensors[3].logit()
    values, gradients = render(_fitted(tensors), width, height, torch.float32, **options)
    return [*values.values(), *gradients.values()]


def _run_parts_of_harmonics(count: int) -> list[Tensor]:
    tensors = _fitted(make_scene(count))
    parts = [part.contiguous().requires_grad_() for part in tensors[4].split([1, 15], 1)]
    means = tensors[0].requires_grad_()
    image, _, _ = rasterization(means, *tensors[1:4], tuple(parts), *tensors[5:], 40, 36, sh_degree=2)
    image.square().sum().backward()
    return [image.detach(), means.grad, *(part.grad for part in parts)]


def raster_calls() -> Iterator[Call]:
    def call(count=17, cameras=1, width=20, height=18, scene=None, **options) -> Call:
        scene = scene or {}
        name = f"rasterization of {count} by {cameras} in {width}x{height} {scene} {options}"
        return Call(name, lambda: _run_render(count, cameras, width, height, scene, options))

    for count in (0, 1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 255, 256, 257, 1025):
        yield call(count, 2, sh_degree=3)
    for degree in range(4):
        for coefficients in ((degree + 1) ** 2, 16, 25):
            yield call(21, sh_degree=degree, scene={"coefficients": coefficients})
    for width, height in ((1, 1), (3, 50), (16, 16), (17, 16), (33, 31), (64, 64), (65, 5)):
        for tile_size in (16, 32):
            yield call(40, width=width, height=height, tile_size=tile_size, sh_degree=1)
    for channels in (1, 2, 3, 4, 5, 9):
        yield call(channels=channels, backgrounds=True)
        yield call(channels=channels, cameras=2, absgrad=True, tile_size=32)
        yield call(channels=channels, tile_size=32)
    for mode in ("D", "ED", "RGB+D", "RGB+ED"):
        yield call(render_mode=mode, sh_degree=1, backgrounds=True)
        yield call(render_mode=mode, channels=2, packed=True, absgrad=True)
    for packed in (False, True):
        for tile_size in (16, 32):
            yield call(60, 2, packed=packed, tile_size=tile_size, sh_degree=3, backgrounds=True, pixel_weights=True)
            yield call(60, 2, packed=packed, tile_size=tile_size, sh_degree=1, rasterize_mode="antialiased", raw=True)
            yield call(60, packed=packed, tile_size=tile_size, sh_degree=0, absgrad=True)
    # Many Gaussians on a tile, and tiles that are full before the list ends.
    for tile_size in (16, 32):
        yield call(300, scene={"size": (0.3, 0.6)}, tile_size=tile_size, sh_degree=0, pixel_weights=True)
    yield call(50, sh_degree=1, near_plane=1.8, far_plane=2.3, radius_clip=4.0)
    yield call(50, sh_degree=1, scene={"spread": 6.0})
    for count in (1, 16, 33):
        yield Call(f"rasterization of {count}, harmonics in two parts", lambda n=count: _run_parts_of_harmonics(n))


# --------------------------------------------------------------------------------------------------------------------
# The voxeliser
# --------------------------------------------------------------------------------------------------------------------

GRIDS = {
    "one voxel": VoxelGrid.regular((1, 1, 1)),
    "narrow": VoxelGrid.regular((9, 11, 7)),
    "vector": VoxelGrid.regular((5, 6, 16)),
    "vector and one": VoxelGrid.regular((6, 5, 17)),
    "spacing": VoxelGrid.regular((12, 10, 33), spacing=(0.7, 1.0, 2.0), origin=(5, -3, 2), axes="xyz"),
    "oblique": rotated((7, 9, 18)),
    "crop": VoxelGrid.regular((40, 40, 40)).crop((3, 9, 12), (10, 8, 19)),
}


def _run_voxelize(
    grid: VoxelGrid, count: int, sizes: tuple[float, float], features: int, gradients: bool
) -> list[Tensor]:
    tensors = _fitted(sample(grid, count, smallest=sizes[0], largest=sizes[1], features=features))
    for tensor in tensors:
        tensor.requires_grad_(gradients)
    volume = voxelize(*tensors[:4], grid, features=tensors[4] if features else None)
    if not gradients:
        return [volume]
    upstream = torch.randn(volume.shape, generator=torch.Generator().manual_seed(1))
    return [volume.detach(), *torch.autograd.grad(volume, tensors, upstream)]


def voxel_calls() -> Iterator[Call]:
    def call(name: str, count: int, sizes: tuple[float, float], features: int, gradients: bool) -> Call:
        text = f"voxelize {count} on {name!r}, sizes {sizes}, {features} features{', gradients' * gradients}"
        return Call(text, lambda: _run_voxelize(GRIDS[name], count, sizes, features, gradients))

    for name in GRIDS:
        for sizes in ((0.3, 0.5), (0.4, 3.0), (5.0, 14.0), (0.4, 25.0)):
            for features in (0, 1, 3, 4, 7):
                yield call(name, 20, sizes, features, gradients=features != 1)
    for count in (0, 1, 63, 64, 65, 200):
        yield call("crop", count, (0.5, 3.0), 2, gradients=True)


# --------------------------------------------------------------------------------------------------------------------
# The projector
# --------------------------------------------------------------------------------------------------------------------


def _run_project(name: str, count: int, sizes: tuple[float, float], features: int) -> list[Tensor]:
    tensors = _fitted(sample_xray(count, smallest=sizes[0], largest=sizes[1], features=features))
    for tensor in tensors:
        tensor.requires_grad_()
    pictures = project(*tensors[:4], GEOMETRIES[name], features=tensors[4] if features else None)
    upstream = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(1))
    return [pictures.detach(), *torch.autograd.grad(pictures, tensors, upstream)]


def xray_calls() -> Iterator[Call]:
    for name in GEOMETRIES:
        for sizes in ((0.3, 0.5), (0.4, 3.0), (5.0, 14.0)):
            for features in (0, 1, 3, 4, 7):
                text = f"project 20 on {name!r}, sizes {sizes}, {features} features"
                yield Call(text, lambda a=(name, 20, sizes, features): _run_project(*a))
    for count in (0, 1, 63, 64, 65, 200):
        yield Call(f"project {count}", lambda count=count: _run_project("cone", count, (0.5, 3.0), 2))


# --------------------------------------------------------------------------------------------------------------------
# Adam, and the measurements of the machine
# --------------------------------------------------------------------------------------------------------------------


def _parameter(shape: tuple[int, ...]) -> torch.nn.Parameter:
    generator = torch.Generator().manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(shape, generator=generator))
    parameter.grad = torch.randn(shape, generator=generator)
    return parameter


def _run_adam(shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    parameters = [_parameter(shape) for shape in shapes]
    optimizers = [Adam([parameter], lr=0.1) for parameter in parameters]
    for _ in range(2):
        step_together(optimizers)
    return [parameter.detach() for parameter in parameters]


def _run_selective_adam(shape: tuple[int, ...], share: float) -> list[Tensor]:
    parameter = _parameter(shape)
    optimizer = SelectiveAdam([parameter], lr=0.1)
    for seed in range(2):
        optimizer.step(torch.rand(shape[0], generator=torch.Generator().manual_seed(seed)) < share)
    return [parameter.detach(), *(optimizer.state[parameter][name] for name in ("exp_avg", "exp_avg_sq"))]


def _copy(source: Tensor, target: Tensor, count: int) -> None:
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    kernel = compiled.kernel("peak_copy", (pointer, pointer, size, ctypes.c_int))
    kernel(source.data_ptr(), target.data_ptr(), count, 2)


def _run_copy(count: int) -> list[Tensor]:
    source, target, sums = torch.arange(count, dtype=torch.float32), torch.empty(count), torch.empty(2)
    _copy(source, target, count)
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    compiled.kernel("peak_fma", (size, ctypes.c_int, pointer), size)(4, 2, sums.data_ptr())
    return [target, sums]


def overrun() -> None:
    """Copies one value too many, which every memory checker must report."""
    _copy(torch.zeros(17), torch.zeros(17), 18)


def adam_calls() -> Iterator[Call]:
    shapes = [(0,), (1,), (3,), (4,), (5,), (8,), (9,), (15,), (16,), (17,), (400, 3), (16384,), (16385,), (33000,)]
    for shape in shapes:
        yield Call(f"adam {shape}", lambda shape=shape: _run_adam([shape]))
    yield Call("adam together", lambda: _run_adam(shapes))
    for shape in ((0, 3), (1, 1), (1,), (17,), (16, 4), (33, 3), (50, 15, 3), (1025, 5), (2048, 1), (5, 0)):
        for share in (0.0, 0.3, 0.9, 1.0):
            yield Call(f"selective adam {shape}, {share}", lambda s=shape, share=share: _run_selective_adam(s, share))
    for count in (1, 15, 16, 17, 31, 33, 100):
        yield Call(f"copy {count}", lambda count=count: _run_copy(count))


# --------------------------------------------------------------------------------------------------------------------
# The emulated CUDA kernels: these calls run inside devices.use("emulation")
# --------------------------------------------------------------------------------------------------------------------


def _run_emulated_voxelize(grid: VoxelGrid, count: int, features: int) -> list[Tensor]:
    kernels = devices.emulated()
    means, quats, scales, densities = _fitted(sample(grid, count))
    values = densities[:, None] * torch.rand(count, 1 + features, generator=torch.Generator().manual_seed(2))
    scene = (means, quats, scales, values.contiguous())
    geometry = ([number for row in grid.affine for number in row], [*grid.start, *grid.shape])
    volume = voxelize_cuda.forward(kernels, 0, scene, *geometry)
    upstream = torch.randn(volume.shape, generator=torch.Generator().manual_seed(1))
    return [volume, *voxelize_cuda.backward(kernels, 0, upstream, scene, *geometry)]


def _run_emulated_project(name: str, count: int, features: int) -> list[Tensor]:
    kernels, geometry = devices.emulated(), GEOMETRIES[name]
    means, quats, scales, densities = _fitted(sample_xray(count))
    values = densities[:, None] * torch.rand(count, 1 + features, generator=torch.Generator().manual_seed(2))
    scene = (means, quats, scales, values.contiguous())
    beam = (geometry.frames(), list(geometry.detector), geometry.kind == "cone")
    pictures = xray_cuda.forward(kernels, 0, scene, *beam)
    upstream = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(1))
    return [pictures, *xray_cuda.backward(kernels, 0, upstream, scene, *beam)]


def emulated_calls() -> Iterator[Call]:
    # Tiny images: the emulation runs every thread of a block.
    yield from _ssim_calls(2, 60, SIDES[:14], (3, 5, 7, 11, 11, 13, 15), PLANES[:3])
    yield from _ssim_calls(3, 24, SIDES[:7], (3, 5, 11, 13), PLANES[:3])
    yield from _axis_calls(16, (3, 5, 11, 15))
    yield _named("loss", (1, 2, 13, 29), gradients="")
    yield _named("ssim", (1, 2, 13, 29), gradients="", padding="valid")
    yield _named("loss", (1, 1, 21, 251), gradients="x", upstream="noise")
    yield _named("ssim", (1, 1, 14, 17, 35), gradients="x")
    yield from list(_multi_scale_calls())[5:7]
    yield from list(_other_ssim_calls())[:10]
    yield from _rgba_calls((1, 17, 70))
    yield _named("loss", (1, 1, 5, 251), gradients="x")
    for name in GRIDS:
        for count, features in ((1, 0), (30, 2)):
            text = f"emulated voxelize {count} on {name!r}, {features} features"
            yield Call(text, lambda a=(GRIDS[name], count, features): _run_emulated_voxelize(*a))
    for name in GEOMETRIES:
        for count, features in ((1, 0), (30, 4)):
            text = f"emulated project {count} on {name!r}, {features} features"
            yield Call(text, lambda a=(name, count, features): _run_emulated_project(*a))


def cpu_calls() -> Iterator[Call]:
    yield from ssim_calls()
    yield from raster_calls()
    yield from voxel_calls()
    yield from xray_calls()
    yield from adam_calls()


GROUPS: dict[str, Callable[[], Iterator[Call]]] = {"cpu": cpu_calls, "emulation": emulated_calls}


def run_all(calls: Iterator[Call]) -> int:
    """Runs calls, most of them on one thread, because more do not make small calls faster. Returns their number."""
    for number, call in enumerate(calls):
        torch.set_num_threads(2 if number % 8 == 0 else 1)
        call.run()
    return number + 1


if __name__ == "__main__":
    print(f"{run_all(cpu_calls())} calls")
