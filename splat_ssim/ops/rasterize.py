"""The renderer's operators on `torch.library`, CPU and float32: projection, compositing and the sums of a score.

Each has a fake kernel and, where it makes sense, a gradient, so that eager mode, torch.compile and opcheck work.
`records` and `lists` are what compositing leaves for its backward pass; csrc/cpu/layout.h and raster_bins.h have their
layout.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import _library

_P, _D = ctypes.c_void_p, ctypes.c_double
_PROJECT = (_P,) * 9
_PROJECT_BACKWARD = (_P,) * 8
_RECORDS = (_P,) * 9
_COMPOSITE = (_P, _D) + (_P,) * 7
_COMPOSITE_BACKWARD = (_P, _D) + (_P,) * 13
_ACCUMULATE = (_P, _D) + (_P,) * 4


def _call(name: str, argtypes: tuple[type, ...], *arguments: object) -> None:
    _library.check(_library.kernel(name, argtypes)(*arguments), name)


def _sizes(*values: int) -> ctypes.Array:
    return (ctypes.c_int64 * len(values))(*values)


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _pointers(tensors: Sequence[Tensor | None]) -> ctypes.Array:
    return (_P * len(tensors))(*map(_pointer, tensors))


def _dense(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _below_autograd(operator: torch._ops.OpOverload, inputs: Sequence[object]) -> tuple[Tensor, ...]:
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*inputs)


def _differentiable(name: str, function: type[torch.autograd.Function]) -> None:
    """Gives an operator its gradient. torch.library.register_autograd does the same, but takes 0.2 ms a call more."""
    torch.library.impl(name, "Autograd", lambda *inputs: function.apply(*inputs))


# --- projection ------------------------------------------------------------------------------------------------------

_SCENE = (
    "Tensor means, Tensor quats, Tensor scales, Tensor opacities, Tensor? sh0, Tensor? shN, Tensor viewmats, "
    "Tensor Ks, int width, int height, float near_plane, float far_plane, float radius_clip, float eps2d, "
    "int degree, bool antialiased, bool raw"
)
torch.library.define("splat_ssim::raster_project", f"({_SCENE}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)")
torch.library.define(
    "splat_ssim::raster_project_backward",
    f"({_SCENE}, Tensor radii, Tensor colors, Tensor? v_means2d, Tensor? v_depths, Tensor? v_conics, "
    "Tensor? v_opacities, Tensor? v_colors, bool pose) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)


class _Scene(NamedTuple):
    """The first arguments of both operators of the projection, in the order of `_SCENE`."""

    means: Tensor
    quats: Tensor
    scales: Tensor
    opacities: Tensor
    sh0: Tensor | None
    shN: Tensor | None
    viewmats: Tensor
    Ks: Tensor
    width: int
    height: int
    near_plane: float
    far_plane: float
    radius_clip: float
    eps2d: float
    degree: int
    antialiased: bool
    raw: bool


_SCENE_LENGTH = len(_Scene._fields)


def _project_options(scene: _Scene) -> tuple[ctypes.Array, ctypes.Array, list[Tensor | None]]:
    """The kernels' sizes and planes, and the tensors, dense, that they read."""
    *tensors, width, height, near_plane, far_plane, radius_clip, eps2d, degree, antialiased, raw = scene
    sizes = _sizes(
        scene.means.shape[0],
        scene.viewmats.shape[0],
        0 if scene.sh0 is None else scene.sh0.shape[1],
        0 if scene.shN is None else scene.shN.shape[1],
        degree,
        width,
        height,
        antialiased,
        raw,
        torch.get_num_threads(),
    )
    return sizes, (_D * 4)(near_plane, far_plane, radius_clip, eps2d), [_dense(tensor) for tensor in tensors]


def _projected_like(scene: _Scene) -> tuple[Tensor, ...]:
    """Of means2d, depths, conics, opacities, colours and radii."""
    means, viewmats = scene.means, scene.viewmats
    shape = (viewmats.shape[0], means.shape[0])
    return (
        means.new_empty((*shape, 2)),
        means.new_empty(shape),
        means.new_empty((*shape, 3)),
        means.new_empty(shape),
        means.new_empty((*shape, 3) if scene.degree >= 0 else (0,)),
        means.new_empty((*shape, 2), dtype=torch.int32),
    )


@torch.library.impl("splat_ssim::raster_project", "CPU")
def _project(*arguments) -> tuple[Tensor, ...]:
    scene = _Scene(*arguments)
    outputs = _projected_like(scene)
    sizes, planes, tensors = _project_options(scene)
    _call("raster_project", _PROJECT, sizes, planes, _pointers(tensors), *map(_pointer, outputs))
    return outputs


@torch.library.register_fake("splat_ssim::raster_project")
def _(*arguments):
    return _projected_like(_Scene(*arguments))


def _project_gradients_like(scene: _Scene, v_colors: Tensor | None, pose: bool) -> list[Tensor]:
    """Of means, quats, scales, opacities, sh0, shN and viewmats."""
    means, viewmats, used = scene.means, scene.viewmats, (scene.degree + 1) ** 2
    results = [torch.empty(t.shape, dtype=t.dtype) for t in (means, scene.quats, scene.scales, scene.opacities)]
    for part in (scene.sh0, scene.shN):
        if part is None or v_colors is None or scene.degree < 0:
            results.append(means.new_empty((0,)))
            continue
        # Coefficients above the degree in use get a gradient of zero, which the kernel leaves alone.
        results.append(torch.empty(part.shape) if part.shape[1] <= used else torch.zeros(part.shape))
        used -= part.shape[1]
    results.append(torch.empty(viewmats.shape) if pose else means.new_empty((0,)))
    return results


@torch.library.impl("splat_ssim::raster_project_backward", "CPU")
def _project_backward(*arguments) -> tuple[Tensor, ...]:
    scene, (radii, colors, *v_outputs, pose) = _Scene(*arguments[:_SCENE_LENGTH]), arguments[_SCENE_LENGTH:]
    means, viewmats = scene.means, scene.viewmats
    sizes, planes, tensors = _project_options(scene)
    v_dense = [_dense(v_output) for v_output in v_outputs]
    results = _project_gradients_like(scene, v_outputs[4], pose)
    constants = _library.constants()
    tasks = -(-means.shape[0] // constants["project_task"])
    poses = means.new_zeros((tasks, viewmats.shape[0], constants["pose_sums"])) if pose else None
    _call(
        "raster_project_backward",
        _PROJECT_BACKWARD,
        sizes,
        planes,
        _pointers(tensors),
        _pointer(radii),
        _pointer(colors),
        _pointers(v_dense),
        _pointers(results[:6]),
        _pointer(poses),
    )
    if poses is not None:
        results[6].copy_(_viewmat_gradient(poses.double().sum(0), viewmats.double()))
    return tuple(results)


def _viewmat_gradient(sums: Tensor, viewmats: Tensor) -> Tensor:
    """From gradients by rotation, translation and position of the camera, [C, 15], to [C, 4, 4]."""
    gradient = viewmats.new_zeros(viewmats.shape)
    gradient[:, :3, :3] = sums[:, :9].unflatten(1, (3, 3))
    gradient[:, :3, 3] = sums[:, 9:12]
    # The position is inverse(viewmat)[:3, 3], and d(A⁻¹) = -A⁻¹ dA A⁻¹.
    position = torch.zeros_like(gradient)
    position[:, :3, 3] = sums[:, 12:]
    inverse = torch.linalg.inv(viewmats).mT
    return gradient - inverse @ position @ inverse


@torch.library.register_fake("splat_ssim::raster_project_backward")
def _(*arguments):
    scene, (_radii, _colors, *v_outputs, pose) = _Scene(*arguments[:_SCENE_LENGTH]), arguments[_SCENE_LENGTH:]
    return tuple(_project_gradients_like(scene, v_outputs[4], pose))


class _Project(torch.autograd.Function):
    """The gradient of raster_project."""

    @staticmethod
    def forward(ctx, *inputs):
        outputs = _below_autograd(torch.ops.splat_ssim.raster_project.default, inputs)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(outputs[5])
        ctx.save_for_backward(*inputs[:8], outputs[5], outputs[4])
        ctx.options = inputs[8:]
        return outputs

    @staticmethod
    def backward(ctx, v_means2d, v_depths, v_conics, v_opacities, v_colors, _radii):
        *scene, radii, colors = ctx.saved_tensors
        needs = ctx.needs_input_grad
        v_outputs = (v_means2d, v_depths, v_conics, v_opacities, v_colors)
        gradients = torch.ops.splat_ssim.raster_project_backward.default(
            *scene, *ctx.options, radii, colors, *v_outputs, needs[6]
        )
        wanted = [gradient if need else None for gradient, need in zip(gradients, needs, strict=False)]
        if v_colors is None:
            wanted[4:6] = None, None
        return (*wanted, None, *(None for _ in ctx.options))


_differentiable("splat_ssim::raster_project", _Project)


# --- compositing -----------------------------------------------------------------------------------------------------

torch.library.define(
    "splat_ssim::raster_composite",
    "(Tensor means2d, Tensor conics, Tensor opacities, Tensor colors, Tensor radii, Tensor depths, "
    "Tensor? backgrounds, int width, int height, int tile_size, float max_alpha, bool absgrad) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
)
torch.library.define(
    "splat_ssim::raster_composite_backward",
    "(Tensor conics, Tensor opacities, Tensor records, Tensor lists, Tensor images, Tensor alphas, Tensor? v_images, "
    "Tensor? v_alphas, int tile_size, float max_alpha, bool absgrad) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
torch.library.define(
    "splat_ssim::raster_accumulate",
    "(Tensor opacities, Tensor records, Tensor lists, Tensor pixel_weights, int tile_size, float max_alpha) -> Tensor",
)


def max_channels() -> int:
    """Channels that one pass of compositing takes."""
    return _library.constants()["max_channels"]


def _record_floats() -> int:
    return _library.constants()["sizeof_record"] // 4


def _tile_count(width: int, height: int, tile_size: int) -> int:
    return -(-width // tile_size) * -(-height // tile_size)


def _composite_sizes(opacities: Tensor, images: Tensor, tile_size: int, lists: Tensor | None = None) -> tuple[int, ...]:
    """C, N, width, height, tile, channels and, with `lists`, the bound of pairs it was made for."""
    cameras, height, width, channels = images.shape
    sizes = (*opacities.shape, width, height, tile_size, channels)
    if lists is None:
        return sizes
    # The length of `lists`, see list_size in csrc/cpu/layout.h, solved for the pairs.
    constants, tiles = _library.constants(), cameras * _tile_count(width, height, tile_size)
    rest = constants["list_rest"] + constants["list_per_instance"] * opacities.numel()
    return (*sizes, (len(lists) - rest - constants["list_per_tile"] * tiles) // constants["list_per_pair"])


@torch.library.impl("splat_ssim::raster_composite", "CPU")
def _composite(
    means2d: Tensor,
    conics: Tensor,
    opacities: Tensor,
    colors: Tensor,
    radii: Tensor,
    depths: Tensor,
    backgrounds: Tensor | None,
    width: int,
    height: int,
    tile_size: int,
    max_alpha: float,
    absgrad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    cameras, n, channels = colors.shape
    inputs = [_dense(t) for t in (means2d, conics, opacities, colors, radii)]
    depths, backgrounds = depths.contiguous(), _dense(backgrounds)
    images = means2d.new_empty((cameras, height, width, channels))
    alphas = means2d.new_empty((cameras, height, width, 1))
    records = means2d.new_empty((cameras * n, _record_floats()))
    boxes = radii.new_empty((cameras * n, 2))
    totals = (ctypes.c_int64 * 2)()
    sizes = _composite_sizes(opacities, images, tile_size)
    threads = torch.get_num_threads()
    _call(
        "raster_records",
        _RECORDS,
        _sizes(*sizes, threads),
        *map(_pointer, inputs),
        *map(_pointer, (records, boxes)),
        totals,
    )
    lists = radii.new_empty((totals[1],))
    _call(
        "raster_composite",
        _COMPOSITE,
        _sizes(*sizes, totals[0], threads),
        max_alpha,
        *map(_pointer, (records, lists, boxes, depths, backgrounds, images, alphas)),
    )
    return images, alphas, records, lists


@torch.library.register_fake("splat_ssim::raster_composite")
def _(means2d, conics, opacities, colors, radii, depths, backgrounds, width, height, tile_size, max_alpha, absgrad):
    cameras, n, channels = colors.shape
    length = torch.library.get_ctx().new_dynamic_size()
    return (
        means2d.new_empty((cameras, height, width, channels)),
        means2d.new_empty((cameras, height, width, 1)),
        means2d.new_empty((cameras * n, _record_floats())),
        radii.new_empty((length,)),
    )


@torch.library.impl("splat_ssim::raster_composite_backward", "CPU")
def _composite_backward(
    conics: Tensor,
    opacities: Tensor,
    records: Tensor,
    lists: Tensor,
    images: Tensor,
    alphas: Tensor,
    v_images: Tensor | None,
    v_alphas: Tensor | None,
    tile_size: int,
    max_alpha: float,
    absgrad: bool,
) -> tuple[Tensor, ...]:
    inputs = [_dense(t) for t in (records, lists, conics, opacities, images, alphas, v_images, v_alphas)]
    results = _composite_gradients_like(conics, opacities, images, absgrad)
    outputs = results if absgrad else (*results[:4], None)
    sizes = _composite_sizes(opacities, images, tile_size, lists)
    _call(
        "raster_composite_backward",
        _COMPOSITE_BACKWARD,
        _sizes(*sizes, torch.get_num_threads()),
        max_alpha,
        *map(_pointer, (*inputs, *outputs)),
    )
    return results


def _composite_gradients_like(conics: Tensor, opacities: Tensor, images: Tensor, absgrad: bool) -> tuple[Tensor, ...]:
    """Of means2d, conics, colours, opacities, and |means2d|."""
    shape = opacities.shape
    return (
        conics.new_empty((*shape, 2)),
        conics.new_empty((*shape, 3)),
        conics.new_empty((*shape, images.shape[-1])),
        conics.new_empty(shape),
        conics.new_empty((*shape, 2) if absgrad else (0,)),
    )


@torch.library.register_fake("splat_ssim::raster_composite_backward")
def _(conics, opacities, records, lists, images, alphas, v_images, v_alphas, tile_size, max_alpha, absgrad):
    return _composite_gradients_like(conics, opacities, images, absgrad)


class _Composite(torch.autograd.Function):
    """The gradient of raster_composite."""

    @staticmethod
    def forward(ctx, *inputs):
        images, alphas, records, lists = _below_autograd(torch.ops.splat_ssim.raster_composite.default, inputs)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(records, lists)
        ctx.save_for_backward(*inputs[:3], records, lists, images, alphas)
        ctx.options = inputs[9:]
        return images, alphas, records, lists

    @staticmethod
    def backward(ctx, v_images, v_alphas, _records, _lists):
        means2d, *saved = ctx.saved_tensors
        v_means2d, v_conics, v_colors, v_opacities, absolute = torch.ops.splat_ssim.raster_composite_backward.default(
            *saved, v_images, v_alphas, *ctx.options
        )
        if ctx.options[-1]:
            means2d.absgrad = absolute
        v_backgrounds = None
        if ctx.needs_input_grad[6] and v_images is not None:
            alphas = saved[-1]
            v_backgrounds = (v_images * (1 - alphas)).sum((1, 2))
        return v_means2d, v_conics, v_opacities, v_colors, None, None, v_backgrounds, *(None,) * 5


_differentiable("splat_ssim::raster_composite", _Composite)


@torch.library.impl("splat_ssim::raster_accumulate", "CPU")
def _accumulate(
    opacities: Tensor, records: Tensor, lists: Tensor, pixel_weights: Tensor, tile_size: int, max_alpha: float
) -> Tensor:
    sums = opacities.new_empty((4, *opacities.shape))
    sizes = _composite_sizes(opacities, pixel_weights[..., None], tile_size, lists)
    _call(
        "raster_accumulate",
        _ACCUMULATE,
        _sizes(*sizes, torch.get_num_threads()),
        max_alpha,
        *map(_pointer, (records, lists, pixel_weights.contiguous(), sums)),
    )
    return sums


@torch.library.register_fake("splat_ssim::raster_accumulate")
def _(opacities, records, lists, pixel_weights, tile_size, max_alpha):
    return opacities.new_empty((4, *opacities.shape))
