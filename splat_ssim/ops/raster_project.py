"""The renderer's projection operator on `torch.library`, for the CPU and float32: from Gaussians to 2D splats.

It has a fake kernel and a gradient, so that eager mode, torch.compile and opcheck work.
"""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import compiled
from ._raster_calls import D, P, below_autograd, call, dense, differentiable, int_array, pointer, pointers

_PROJECT = (P,) * 9
_PROJECT_BACKWARD = (P,) * 8

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


def _project_options(scene: _Scene) -> tuple[ctypes.Array[Any], ctypes.Array[Any], list[Tensor | None]]:
    """The kernels' sizes and switches, the planes with radius_clip and eps2d, and the tensors as contiguous ones."""
    *tensors, width, height, near_plane, far_plane, radius_clip, eps2d, degree, antialiased, raw = scene
    sizes = int_array(
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
    return sizes, (D * 4)(near_plane, far_plane, radius_clip, eps2d), [dense(tensor) for tensor in tensors]


def _projected_like(scene: _Scene) -> tuple[Tensor, ...]:
    """Uninitialised outputs: means2d, depths, conics, opacities, colours and radii."""
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
def _project(*arguments: Any) -> tuple[Tensor, ...]:
    scene = _Scene(*arguments)
    outputs = _projected_like(scene)
    sizes, planes, tensors = _project_options(scene)
    call("raster_project", _PROJECT, sizes, planes, pointers(tensors), *map(pointer, outputs))
    return outputs


@torch.library.register_fake("splat_ssim::raster_project")
def _(*arguments: Any) -> tuple[Tensor, ...]:
    return _projected_like(_Scene(*arguments))


def _project_gradients_like(scene: _Scene, v_colors: Tensor | None, pose: bool) -> list[Tensor]:
    """Tensors for the gradients of means, quats, scales, opacities, sh0, shN and viewmats; empty where not needed."""
    means, viewmats, used = scene.means, scene.viewmats, (scene.degree + 1) ** 2
    results = [torch.empty(t.shape, dtype=t.dtype) for t in (means, scene.quats, scene.scales, scene.opacities)]
    for part in (scene.sh0, scene.shN):
        if part is None or v_colors is None or scene.degree < 0:
            results.append(means.new_empty((0,)))
            continue
        # Coefficients above the degree in use have a gradient of zero, and the kernel does not write it.
        results.append(torch.empty(part.shape) if part.shape[1] <= used else torch.zeros(part.shape))
        used -= part.shape[1]
    results.append(torch.empty(viewmats.shape) if pose else means.new_empty((0,)))
    return results


@torch.library.impl("splat_ssim::raster_project_backward", "CPU")
def _project_backward(*arguments: Any) -> tuple[Tensor, ...]:
    scene, (radii, colors, *v_outputs, pose) = _Scene(*arguments[:_SCENE_LENGTH]), arguments[_SCENE_LENGTH:]
    means, viewmats = scene.means, scene.viewmats
    sizes, planes, tensors = _project_options(scene)
    v_dense = [dense(v_output) for v_output in v_outputs]
    results = _project_gradients_like(scene, v_outputs[4], pose)
    constants = compiled.constants()
    tasks = -(-means.shape[0] // constants["project_task"])
    poses = means.new_zeros((tasks, viewmats.shape[0], constants["pose_sums"])) if pose else None
    call(
        "raster_project_backward",
        _PROJECT_BACKWARD,
        sizes,
        planes,
        pointers(tensors),
        pointer(radii),
        pointer(colors),
        pointers(v_dense),
        pointers(results[:6]),
        pointer(poses),
    )
    if poses is not None:
        results[6].copy_(_viewmat_gradient(poses.double().sum(0), viewmats.double()))
    return tuple(results)


def _viewmat_gradient(sums: Tensor, viewmats: Tensor) -> Tensor:
    """The gradient of viewmats, [C, 4, 4], from [C, 15]: those of the cameras' rotation, translation and position."""
    gradient = viewmats.new_zeros(viewmats.shape)
    gradient[:, :3, :3] = sums[:, :9].unflatten(1, (3, 3))
    gradient[:, :3, 3] = sums[:, 9:12]
    # The position is inverse(viewmat)[:3, 3], and d(A⁻¹) = -A⁻¹ dA A⁻¹.
    position = torch.zeros_like(gradient)
    position[:, :3, 3] = sums[:, 12:]
    inverse = torch.linalg.inv(viewmats).mT
    total: Tensor = gradient - inverse @ position @ inverse
    return total


@torch.library.register_fake("splat_ssim::raster_project_backward")
def _(*arguments: Any) -> tuple[Tensor, ...]:
    scene, (_radii, _colors, *v_outputs, pose) = _Scene(*arguments[:_SCENE_LENGTH]), arguments[_SCENE_LENGTH:]
    return tuple(_project_gradients_like(scene, v_outputs[4], pose))


class _Project(torch.autograd.Function):
    """The gradient of raster_project."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        outputs = below_autograd(torch.ops.splat_ssim.raster_project.default, inputs)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(outputs[5])
        ctx.save_for_backward(*inputs[:8], outputs[5], outputs[4])
        ctx.options = inputs[8:]
        return outputs

    @staticmethod
    def backward(
        ctx: Any, v_means2d: Any, v_depths: Any, v_conics: Any, v_opacities: Any, v_colors: Any, _radii: Any
    ) -> tuple[Tensor | None, ...]:
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


differentiable("splat_ssim::raster_project", _Project)
