"""The definition of the renderer in plain torch, any float dtype and device: the oracle of the compiled one.

It is written to be read and to be differentiated by autograd, not to be fast. Conventions are gsplat's: world to camera
`viewmats`, pixel centres at half integers, quaternions wxyz, depth along the camera's z axis.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ._problem import Options, Scene

#: A Gaussian touches a pixel where its alpha reaches this.
MIN_ALPHA = 1.0 / 255.0
#: A pixel is finished before the Gaussian that would bring its transmittance to this or below.
MIN_TRANSMITTANCE = 1e-4
#: No extent is longer than this many standard deviations: alpha is 1/255 there for an opacity of one.
MAX_EXTENT = 3.33
#: The covariance is linearised inside the field of view widened by this share of its half width.
FOV_MARGIN = 0.3

# Pixels of a square that is composited at a time, to bound memory.
_TILE = 32


class Projection(NamedTuple):
    """Gaussians as a camera sees them. All values are zero for Gaussians that it does not see."""

    radii: Tensor  # [C, N, 2] int32, pixels, zero where not visible
    means2d: Tensor  # [C, N, 2] pixels
    depths: Tensor  # [C, N]
    conics: Tensor  # [C, N, 3] inverse covariance: xx, xy, yy
    opacities: Tensor  # [C, N] compensated where antialiased
    colors: Tensor | None  # [C, N, 3] from spherical harmonics, None without


class Accumulators(NamedTuple):
    """Sums over the pixels each Gaussian contributes to."""

    count: Tensor  # type: ignore[assignment]  # [C, N] number of pixels; takes the place of tuple's method
    weight: Tensor  # [C, N] sum of pixel_weights
    opacity: Tensor  # [C, N] sum of transmittance times alpha
    distance: Tensor  # [C, N] sum of the distance, in pixels, from the pixel's centre to the Gaussian's


def rotations(quats: Tensor) -> Tensor:
    """Rotation matrices [..., 3, 3] of quaternions [..., 4] (wxyz), which are normalised first."""
    w, x, y, z = F.normalize(quats, dim=-1).unbind(-1)
    entries = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    matrices: Tensor = torch.stack(entries, -1).unflatten(-1, (3, 3))
    return matrices


def harmonics_basis(degree: int, directions: Tensor) -> Tensor:
    """Real spherical harmonics [..., (degree + 1)²] of unit directions [..., 3], degree 0 to 3.

    Source: the real form with the Condon-Shortley sign that 3D Gaussian splatting uses, ordered by (l, m).
    """
    x, y, z = directions.unbind(-1)
    basis = [torch.full_like(x, 0.28209479177387814)]
    if degree >= 1:
        basis += [-0.4886025119029199 * y, 0.4886025119029199 * z, -0.4886025119029199 * x]
    xx, yy, zz = x * x, y * y, z * z
    if degree >= 2:
        basis += [
            1.0925484305920792 * x * y,
            -1.0925484305920792 * y * z,
            0.31539156525252005 * (2 * zz - xx - yy),
            -1.0925484305920792 * x * z,
            0.5462742152960396 * (xx - yy),
        ]
    if degree >= 3:
        basis += [
            -0.5900435899266435 * y * (3 * xx - yy),
            2.890611442640554 * x * y * z,
            -0.4570457994644658 * y * (4 * zz - xx - yy),
            0.3731763325901154 * z * (2 * zz - 3 * xx - 3 * yy),
            -0.4570457994644658 * x * (4 * zz - xx - yy),
            1.445305721320277 * z * (xx - yy),
            -0.5900435899266435 * x * (xx - 3 * yy),
        ]
    return torch.stack(basis, -1)


def harmonics_colors(means: Tensor, coefficients: Tensor, viewmats: Tensor, degree: int) -> Tensor:
    """Colours [C, N, 3] of Gaussians, seen from each camera: 0.5 + the harmonics' sum, not below 0."""
    camera = torch.linalg.inv(viewmats)[:, :3, 3]  # [C, 3]
    directions = F.normalize(means - camera[:, None], dim=-1)  # [C, N, 3]
    basis = harmonics_basis(degree, directions)
    return (torch.einsum("cnk,nkd->cnd", basis, coefficients[:, : basis.shape[-1]]) + 0.5).clamp(min=0)


def project(
    scene: Scene,
    sh0: Tensor | None,  # [N, K, 3], or [N, 1, 3] with the rest in shN
    shN: Tensor | None,  # [N, K - 1, 3]
    options: Options,
) -> Projection:
    """Projects Gaussians by the local affine approximation of the perspective map, and evaluates their colours.

    The colours are those of the harmonics; `scene.colors` is not looked at.

    Source: M. Zwicker et al., "EWA Splatting", 2002; compensation: Z. Yu et al., "Mip-Splatting", 2024, with
    sqrt(det(covariance) / det(covariance + eps2d·1)).
    """
    means, quats, scales, opacities, _, viewmats, Ks, width, height = scene
    if options.raw:
        scales, opacities = scales.exp(), opacities.sigmoid()
    R, t = viewmats[:, None, :3, :3], viewmats[:, None, :3, 3]  # [C, 1, 3, 3], [C, 1, 3]
    means_c = (R @ means[None, :, :, None]).squeeze(-1) + t  # [C, N, 3]
    depths = means_c[..., 2]
    visible = (depths >= options.near_plane) & (depths <= options.far_plane)
    # A Gaussian that is not visible is computed at a harmless place, so that nothing it gives is infinite.
    harmless = means_c.new_tensor([0.0, 0.0, 1.0])
    x, y, z = torch.where(visible[..., None], means_c, harmless).unbind(-1)

    fx, fy, cx, cy = (Ks[:, i, j, None] for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))  # [C, 1]
    u, v = x / z, y / z
    means2d = torch.stack([fx * u + cx, fy * v + cy], -1)

    margin_x, margin_y = FOV_MARGIN * 0.5 * width / fx, FOV_MARGIN * 0.5 * height / fy
    u = torch.minimum(torch.maximum(u, -cx / fx - margin_x), (width - cx) / fx + margin_x)
    v = torch.minimum(torch.maximum(v, -cy / fy - margin_y), (height - cy) / fy + margin_y)
    zero = torch.zeros_like(z)
    jacobian = torch.stack([fx / z, zero, -fx * u / z, zero, fy / z, -fy * v / z], -1).unflatten(-1, (2, 3))
    # A covariance is M Mᵀ with M = J R rotation(q) diag(s).
    M = jacobian @ R @ (rotations(quats) * scales[:, None, :])  # [C, N, 2, 3]
    covariance = M @ M.transpose(-1, -2)
    xx, xy, yy = covariance[..., 0, 0], covariance[..., 0, 1], covariance[..., 1, 1]
    sharp = xx * yy - xy * xy
    xx, yy = xx + options.eps2d, yy + options.eps2d
    determinant = xx * yy - xy * xy
    visible = visible & (determinant > 0)
    determinant = torch.where(visible, determinant, 1.0)
    conics = torch.stack([yy, -xy, xx], -1) / determinant[..., None]

    opacities = opacities.expand(len(viewmats), -1)
    if options.antialiased:
        ratio = sharp / determinant
        positive = ratio > 0
        opacities = opacities * torch.where(positive, torch.where(positive, ratio, 1.0).sqrt(), 0.0)

    with torch.no_grad():
        visible = visible & (opacities >= MIN_ALPHA) & torch.isfinite(means2d).all(-1) & torch.isfinite(conics).all(-1)
        # The ellipse where alpha = opacity·exp(-½ d²) reaches 1/255.
        extent = (2 * (opacities / MIN_ALPHA).clamp(min=1).log()).sqrt().clamp(max=MAX_EXTENT)
        radii = (extent[..., None] * torch.stack([xx, yy], -1).sqrt()).ceil()
        size = radii.new_tensor([width, height])
        visible &= (radii > options.radius_clip).any(-1)
        visible &= (means2d + radii > 0).all(-1) & (means2d - radii < size).all(-1)
        radii = torch.where(visible[..., None], radii, 0.0).clamp(max=2**30).to(torch.int32)

    colors = None
    if options.sh_degree is not None:
        assert sh0 is not None
        coefficients = sh0 if shN is None else torch.cat([sh0, shN], 1)
        colors = harmonics_colors(means, coefficients, viewmats, options.sh_degree)
        colors = torch.where(visible[..., None], colors, 0.0)
    return Projection(
        radii=radii,
        means2d=torch.where(visible[..., None], means2d, 0.0),
        depths=torch.where(visible, depths, 0.0),
        conics=torch.where(visible[..., None], conics, 0.0),
        opacities=opacities,
        colors=colors,
    )


def _tiles(width: int, height: int) -> Iterator[tuple[slice, slice]]:
    for top in range(0, height, _TILE):
        for left in range(0, width, _TILE):
            yield slice(top, min(top + _TILE, height)), slice(left, min(left + _TILE, width))


def _tile_weights(
    means2d: Tensor,
    conics: Tensor,
    opacities: Tensor,
    depths: Tensor,
    radii: Tensor,
    rows: slice,
    columns: slice,
    max_alpha: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The Gaussians of a camera that reach a tile, front to back: ids [G], offsets [P, G, 2], weights [P, G], T [P]."""
    with torch.no_grad():
        low = means2d.new_tensor([columns.start, rows.start])
        high = means2d.new_tensor([columns.stop, rows.stop])
        # Opacities above one reach further than their radii.
        reach = radii * (opacities.clamp(min=1)[:, None].log() * 2 / MAX_EXTENT**2 + 1).sqrt() + 1
        near = (radii > 0).all(-1) & (means2d + reach > low).all(-1) & (means2d - reach < high).all(-1)
        ids = near.nonzero().squeeze(1)
        ids = ids[torch.sort(depths[ids], stable=True).indices]
    ys = torch.arange(rows.start, rows.stop, device=means2d.device, dtype=means2d.dtype) + 0.5
    xs = torch.arange(columns.start, columns.stop, device=means2d.device, dtype=means2d.dtype) + 0.5
    pixels = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), -1).reshape(-1, 1, 2)  # [P, 1, 2]
    offsets = pixels - means2d[ids]  # [P, G, 2]
    dx, dy = offsets.unbind(-1)
    a, b, c = conics[ids].unbind(-1)
    sigma = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
    alphas = (opacities[ids] * torch.exp(-sigma)).clamp(max=max_alpha)
    with torch.no_grad():
        touches = alphas >= MIN_ALPHA
        # Transmittance only falls, so a pixel that has finished stays finished.
        counts = touches & (torch.cumprod(torch.where(touches, 1 - alphas, 1.0), 1) > MIN_TRANSMITTANCE)
    alphas = torch.where(counts, alphas, 0.0)
    behind = torch.cumprod(1 - alphas, 1)  # transmittance behind each Gaussian
    before = torch.cat([torch.ones_like(behind[:, :1]), behind[:, :-1]], 1)[:, : alphas.shape[1]]
    final = behind[:, -1] if behind.shape[1] else torch.ones_like(pixels[:, 0, 0])
    return ids, offsets, alphas * before, final


def composite(
    projection: Projection,
    colors: Tensor,  # [C, N, D]
    backgrounds: Tensor | None,  # [C, D]
    width: int,
    height: int,
    *,
    max_alpha: float,
    absgrad: bool,
    tile_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Composites front to back: colors [C, H, W, D], alphas [C, H, W, 1]. `tile_size` changes nothing here.

    colour = Σ_i c_i α_i T_i + T background, T_i = Π_{j<i} (1 - α_j), α = min(max_alpha, o·exp(-½ dᵀ conic d)).
    """
    images, masks = [], []
    for camera in range(len(colors)):
        means2d, conics, opacities = (t[camera] for t in (projection.means2d, projection.conics, projection.opacities))
        image = colors.new_zeros(height, width, colors.shape[-1])
        alpha = colors.new_zeros(height, width, 1)
        for rows, columns in _tiles(width, height):
            ids, offsets, weights, final = _tile_weights(
                means2d,
                conics,
                opacities,
                projection.depths[camera],
                projection.radii[camera],
                rows,
                columns,
                max_alpha,
            )
            if absgrad and offsets.requires_grad:
                _sum_absolute(projection.means2d, camera, ids, offsets)
            shape = (rows.stop - rows.start, columns.stop - columns.start, -1)
            value = weights @ colors[camera, ids]
            if backgrounds is not None:
                value = value + final[:, None] * backgrounds[camera]
            image = image.index_put(_grid(rows, columns, image), value.reshape(shape))
            alpha = alpha.index_put(_grid(rows, columns, alpha), (1 - final).reshape(shape))
        images.append(image)
        masks.append(alpha)
    return torch.stack(images), torch.stack(masks)


def _grid(rows: slice, columns: slice, like: Tensor) -> tuple[Tensor, Tensor]:
    ys = torch.arange(rows.start, rows.stop, device=like.device)
    xs = torch.arange(columns.start, columns.stop, device=like.device)
    return ys[:, None], xs[None, :]


def absolute_gradient(means2d: Tensor) -> Tensor:
    """`means2d.absgrad`, where gsplat's strategies look for the sums of |gradient|: zeros at first."""
    attributes = vars(means2d)
    if attributes.get("absgrad") is None:
        attributes["absgrad"] = torch.zeros_like(means2d)
    sums: Tensor = attributes["absgrad"]
    return sums


def _sum_absolute(means2d: Tensor, camera: int, ids: Tensor, offsets: Tensor) -> None:
    """Adds up |gradient| over pixels in `means2d.absgrad` when the backward pass comes through `offsets`."""

    def hook(gradient: Tensor) -> None:
        absolute_gradient(means2d)[camera].index_add_(0, ids, gradient.detach().abs().sum(0))

    offsets.register_hook(hook)


@torch.no_grad()
def accumulate(
    projection: Projection,
    pixel_weights: Tensor,  # [C, H, W]
    *,
    max_alpha: float,
    tile_size: int | None = None,
) -> Accumulators:
    """Sums over the pixels each Gaussian contributes to; see `Accumulators`. `tile_size` changes nothing here."""
    cameras, height, width = pixel_weights.shape
    sums = projection.means2d.new_zeros(4, *projection.depths.shape)
    for camera in range(cameras):
        fields = (f[camera] for f in (projection.means2d, projection.conics, projection.opacities))
        means2d, conics, opacities = fields
        for rows, columns in _tiles(width, height):
            ids, offsets, weights, _ = _tile_weights(
                means2d,
                conics,
                opacities,
                projection.depths[camera],
                projection.radii[camera],
                rows,
                columns,
                max_alpha,
            )
            counts = (weights > 0).to(weights.dtype)
            pixels = pixel_weights[camera, rows, columns].reshape(-1, 1).to(weights.dtype)
            parts = (counts, counts * pixels, weights, counts * offsets.norm(dim=-1))
            sums[:, camera, ids] += torch.stack([part.sum(0) for part in parts])
    return Accumulators(*sums)
