"""The arguments of `rasterization` as two tuples: the scene, and the options of rendering."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Scene(NamedTuple):
    """Gaussians and the cameras that see them. Shapes are as for `rasterization`."""

    means: Tensor  # [N, 3]
    quats: Tensor  # [N, 4]
    scales: Tensor  # [N, 3]
    opacities: Tensor  # [N]
    colors: Tensor | tuple[Tensor, Tensor]
    viewmats: Tensor  # [C, 4, 4]
    Ks: Tensor  # [C, 3, 3]
    width: int
    height: int


class Options(NamedTuple):
    """Options of rendering a scene, as for `rasterization`."""

    near_plane: float = 0.01
    far_plane: float = 1e10
    radius_clip: float = 0.0
    eps2d: float = 0.3
    sh_degree: int | None = None
    packed: bool = False
    tile_size: int | None = None
    backgrounds: Tensor | None = None  # [C, D]
    render_mode: str = "RGB"
    absgrad: bool = False
    antialiased: bool = False
    max_alpha: float = 0.999
    raw: bool = False
    pixel_weights: Tensor | None = None  # [C, H, W]
    distributed: bool = False
