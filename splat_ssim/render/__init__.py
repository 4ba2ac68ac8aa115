"""Rendering 3D Gaussians: one function with gsplat's names, gsplat itself on CUDA, our own kernels on the CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..ops import compiled
from . import _arguments, _pipeline, cpu, gsplat_cuda, reference
from ._problem import Options, Scene
from .reference import Accumulators

__all__ = ["Accumulators", "rasterization"]


def rasterization(
    means: Tensor,  # [N, 3]
    quats: Tensor,  # [N, 4]
    scales: Tensor,  # [N, 3]
    opacities: Tensor,  # [N]
    colors: Tensor | tuple[Tensor, Tensor],  # [(C,) N, D] or [(C,) N, K, 3] or ([N, 1, 3], [N, K - 1, 3])
    viewmats: Tensor,  # [C, 4, 4]
    Ks: Tensor,  # [C, 3, 3]
    width: int,
    height: int,
    *,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    radius_clip: float = 0.0,
    eps2d: float = 0.3,
    sh_degree: int | None = None,
    packed: bool = False,
    tile_size: int | None = None,
    backgrounds: Tensor | None = None,
    render_mode: str = "RGB",
    absgrad: bool = False,
    rasterize_mode: str = "classic",
    max_alpha: float = 0.999,
    raw: bool = False,
    pixel_weights: Tensor | None = None,
    distributed: bool = False,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Renders Gaussians to the images of C cameras, differentiably.

    The result is that of gsplat 1.5.3. Gaussians are composited in the order of depth. A Gaussian contributes to a
    pixel if its alpha is at least 1/255. Compositing of a pixel stops before its transmittance would fall to 1e-4 or
    below. Gaussians that contain NaN are left out. The result is differentiable with respect to means, quats, scales,
    opacities, colors, backgrounds and `info["means2d"]`.

    Args:
        means: [N, 3] centres in world coordinates.
        quats: [N, 4] rotations as quaternions wxyz, which need not be normalised.
        scales: [N, 3] standard deviations along the Gaussian's own axes.
        opacities: [N] opacities in [0, 1]. Larger ones are allowed, since `max_alpha` bounds alpha in a pixel.
        colors: [N, D] or [C, N, D], any number of channels. With `sh_degree`, spherical harmonics [N, K, 3] or
            [C, N, K, 3]; or a pair of [N, 1, 3] and [N, K - 1, 3], as trainers keep them, which avoids joining them.
        viewmats: [C, 4, 4] world to camera, OpenCV axes: a rotation and a translation. The last row is not read.
        Ks: [C, 3, 3] intrinsics in pixels; the centre of the first pixel is (0.5, 0.5). Only the two focal lengths and
            the principal point are read, so there is no skew.
        width: Width of the images in pixels.
        height: Height of the images in pixels.
        near_plane: Gaussians whose centre is nearer than this, in world units, are left out.
        far_plane: Gaussians whose centre is farther than this, in world units, are left out.
        radius_clip: Gaussians whose radius is at most this many pixels are left out.
        eps2d: Number added to the variances of the projected Gaussians, in square pixels.
        sh_degree: Degree of the spherical harmonics to use, 0 to 3. None: `colors` are colours, not harmonics.
        packed: Whether `info` has one row for each visible Gaussian of each camera instead of C×N.
        tile_size: 16 or 32 pixels, on the CPU. By default the size of the image decides. It changes no pixel.
        backgrounds: [C, D] colours behind everything; by default black. "D" and "ED" show none.
        render_mode: "RGB"; "D", which is Σ weight·depth; "ED", which is D divided by alpha; "RGB+D" or "RGB+ED", where
            depth is the last channel.
        absgrad: Whether the backward pass stores Σ|gradient| over pixels in `info["means2d"].absgrad`.
        rasterize_mode: "classic" or "antialiased", which reduces opacities in proportion to the area that
            `eps2d` adds.
        max_alpha: Upper bound of alpha. Alpha is clamped to it, and a clamped alpha has no gradient.
        raw: Whether `scales` are logarithms and `opacities` logits, as trainers keep them.
        pixel_weights: [C, H, W]. If given, `info["accumulators"]` has sums for each Gaussian over the pixels that it
            contributes to: `count`, `weight` (Σ pixel weight), `opacity` (Σ transmittance·alpha) and `distance` (Σ
            distance from its centre in pixels). They have no gradient.
        distributed: Whether the processes of torch.distributed render together. Each passes Gaussians and cameras of
            its own and gets its cameras' images of all Gaussians. `info` then describes its own Gaussians for the
            cameras of all processes. All must have as many cameras, of the same size, and call this and the backward
            pass at the same time. On the CPU, `packed` must be False.

    Returns:
        Images [C, H, W, D] (or D + 1, or 1, see `render_mode`), alphas [C, H, W, 1], and `info` with gsplat's keys:
        "radii" [C, N, 2] int32 (0 where not visible), "means2d" [C, N, 2], "depths", "opacities" [C, N], "conics"
        [C, N, 3], "width", "height", "n_cameras", "tile_size", "camera_ids", "gaussian_ids" and others. On the CPU,
        gsplat's lists of tile intersections are missing.

    Raises:
        ValueError, TypeError: Shapes, dtypes, devices or options do not fit. The message says what was given.
        RuntimeError: `distributed` without a process group.

    Source: B. Kerbl et al., "3D Gaussian Splatting for Real-Time Radiance Field Rendering", 2023; gsplat's conventions.

    Example:
        >>> import torch
        >>> from splat_ssim.render import rasterization
        >>> means = torch.tensor([[0.0, 0.0, 2.0]])
        >>> quats, scales = torch.tensor([[1.0, 0.0, 0.0, 0.0]]), torch.full((1, 3), 0.1)
        >>> K = torch.tensor([[[16.0, 0.0, 8.0], [0.0, 16.0, 8.0], [0.0, 0.0, 1.0]]])
        >>> image, alpha, info = rasterization(
        ...     means, quats, scales, torch.ones(1), torch.ones(1, 3), torch.eye(4)[None], K, 16, 16)
        >>> image.shape, alpha.shape, info["radii"].tolist()
        (torch.Size([1, 16, 16, 3]), torch.Size([1, 16, 16, 1]), [[[4, 4]]])
    """
    _arguments.check_choices(render_mode, rasterize_mode, tile_size)
    scene = Scene(means, quats, scales, opacities, colors, viewmats, Ks, width, height)
    options = Options(
        near_plane=near_plane,
        far_plane=far_plane,
        radius_clip=radius_clip,
        eps2d=eps2d,
        sh_degree=sh_degree,
        packed=packed,
        tile_size=tile_size,
        backgrounds=backgrounds,
        render_mode=render_mode,
        absgrad=absgrad,
        antialiased=rasterize_mode == "antialiased",
        max_alpha=max_alpha,
        raw=raw,
        pixel_weights=pixel_weights,
        distributed=distributed,
    )
    _arguments.check_numbers(scene, options)
    _arguments.check_scene(scene, options)
    if means.is_cuda:
        return gsplat_cuda.render(*scene, **options._asdict())
    # In float64, and where there is no compiled library, the definition itself: same meaning, more slowly.
    has_kernels = means.device.type == "cpu" and means.dtype == torch.float32 and compiled.library() is not None
    return _pipeline.render(cpu if has_kernels else reference, scene, options)
