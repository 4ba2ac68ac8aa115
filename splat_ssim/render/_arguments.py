"""Checks of what the caller of `rasterization` gave."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._problem import Options, Scene

RENDER_MODES = ("RGB", "D", "ED", "RGB+D", "RGB+ED")
RASTERIZE_MODES = ("classic", "antialiased")


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _expect(name: str, tensor: Tensor, wanted: tuple[int, ...], letters: str) -> None:
    if _shape(tensor) != wanted:
        raise ValueError(f"{name} must have shape {letters} = {wanted}, got {_shape(tensor)}")


def check_scene(scene: Scene, options: Options) -> None:
    """Raises ValueError or TypeError, with what was required and what was got, unless all tensors fit together."""
    means, quats, scales, opacities, colors, viewmats, Ks, width, height = scene
    backgrounds, pixel_weights = options.backgrounds, options.pixel_weights
    parts = colors if isinstance(colors, tuple) else (colors,)
    named = {"means": means, "quats": quats, "scales": scales, "opacities": opacities, "viewmats": viewmats, "Ks": Ks}
    named |= {"colors" if len(parts) == 1 else f"colors[{i}]": part for i, part in enumerate(parts)}
    for name, optional in (("backgrounds", backgrounds), ("pixel_weights", pixel_weights)):
        if optional is not None:
            named[name] = optional
    for name, value in named.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
        if not value.is_floating_point() or value.dtype != means.dtype:
            raise TypeError(f"{name} must have the floating dtype of means, {means.dtype}, got {value.dtype}")
        if value.device != means.device:
            raise ValueError(f"{name} must be on the device of means, {means.device}, got {value.device}")
    if means.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"means must be float32 or float64, got {means.dtype}")
    if means.dim() != 2 or means.shape[1] != 3:
        raise ValueError(f"means must have shape [N, 3], got {_shape(means)}")
    if viewmats.dim() != 3 or len(viewmats) < 1:
        raise ValueError(f"viewmats must have shape [C, 4, 4] with C >= 1, got {_shape(viewmats)}")
    n, cameras = len(means), len(viewmats)
    _expect("quats", quats, (n, 4), "[N, 4]")
    _expect("scales", scales, (n, 3), "[N, 3]")
    _expect("opacities", opacities, (n,), "[N]")
    _expect("viewmats", viewmats, (cameras, 4, 4), "[C, 4, 4]")
    _expect("Ks", Ks, (cameras, 3, 3), "[C, 3, 3]")
    channels = _check_colors(parts, n, cameras, options.sh_degree)
    if options.distributed:
        _check_distributed(parts, options)
    if backgrounds is not None and "RGB" in options.render_mode:
        _expect("backgrounds", backgrounds, (cameras, channels), "[C, D]")
    if pixel_weights is not None:
        _expect("pixel_weights", pixel_weights, (cameras, height, width), "[C, H, W]")


def _check_colors(parts: tuple[Tensor, ...], n: int, cameras: int, sh_degree: int | None) -> int:
    """Returns the number of channels."""
    first = parts[0]
    if sh_degree is None:
        if len(parts) != 1:
            raise ValueError("colors must be one tensor where sh_degree is None, got a tuple")
        if _shape(first)[:-1] not in ((n,), (cameras, n)) or first.shape[-1] < 1:
            raise ValueError(f"colors must have shape [N, D] or [C, N, D], N = {n}, C = {cameras}, got {_shape(first)}")
        return first.shape[-1]
    if sh_degree not in (0, 1, 2, 3):
        raise ValueError(f"sh_degree must be None, 0, 1, 2 or 3, got {sh_degree!r}")
    if len(parts) == 2:
        _expect("colors[0]", first, (n, 1, 3), "[N, 1, 3]")
        if parts[1].dim() != 3 or _shape(parts[1])[::2] != (n, 3):
            raise ValueError(f"colors[1] must have shape [N, K - 1, 3], N = {n}, got {_shape(parts[1])}")
        found = 1 + parts[1].shape[1]
    elif len(parts) == 1 and (*first.shape[:-2], *first.shape[-1:]) in ((n, 3), (cameras, n, 3)) and first.dim() > 2:
        found = first.shape[-2]
    else:
        raise ValueError(
            "with sh_degree, colors must be [N, K, 3], [C, N, K, 3] or a pair of [N, 1, 3] and [N, K - 1, 3], "
            f"N = {n}, C = {cameras}, got {[_shape(part) for part in parts]}"
        )
    if found < (sh_degree + 1) ** 2:
        raise ValueError(f"sh_degree {sh_degree} needs {(sh_degree + 1) ** 2} coefficients, got {found}")
    return 3


def _check_distributed(colors: tuple[Tensor, ...], options: Options) -> None:
    """Raises ValueError for what processes cannot exchange, here or in gsplat."""
    if options.absgrad:
        raise ValueError("absgrad must be False with distributed, as in gsplat, got True")
    if options.pixel_weights is not None:
        raise ValueError(f"pixel_weights must be None with distributed, got {_shape(options.pixel_weights)}")
    if colors[0].dim() != (2 if options.sh_degree is None else 3):
        raise ValueError(f"colors must be the same for all cameras with distributed, got {_shape(colors[0])}")
    if options.packed and colors[0].device.type == "cpu":
        raise ValueError("packed must be False with distributed on the CPU, got True")


def check_choices(render_mode: str, rasterize_mode: str, tile_size: int | None) -> None:
    """Raises ValueError for a mode or a tile size that there is not."""
    if tile_size not in (None, 16, 32) or isinstance(tile_size, float):
        raise ValueError(f"tile_size must be None (chosen by image size), 16 or 32, got {tile_size!r}")
    if render_mode not in RENDER_MODES:
        raise ValueError(f"render_mode must be one of {', '.join(RENDER_MODES)}, got {render_mode!r}")
    if rasterize_mode not in RASTERIZE_MODES:
        raise ValueError(f"rasterize_mode must be one of {', '.join(RASTERIZE_MODES)}, got {rasterize_mode!r}")


def check_numbers(scene: Scene, options: Options) -> None:
    """Raises ValueError for a number out of its range."""
    for name, side in (("width", scene.width), ("height", scene.height)):
        if not hasattr(side, "__index__") or isinstance(side, (bool, Tensor)):
            raise TypeError(f"{name} must be a whole number, got {side!r}")
    if scene.width < 1 or scene.height < 1:
        raise ValueError(f"width and height must be at least 1, got {scene.width} and {scene.height}")
    if not 0 < options.near_plane < options.far_plane:
        raise ValueError(f"0 < near_plane < far_plane is required, got {options.near_plane} and {options.far_plane}")
    if not 0 <= options.radius_clip < math.inf or not 0 <= options.eps2d < math.inf:
        raise ValueError(
            f"radius_clip and eps2d must be finite and not negative, got {options.radius_clip} and {options.eps2d}"
        )
    if not 1 / 255 < options.max_alpha < 1:
        raise ValueError(f"max_alpha must lie between 1/255 and 1, both excluded, got {options.max_alpha}")
