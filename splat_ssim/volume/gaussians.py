"""The field of Gaussians as a model, and its start from a volume."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..reference import correlate, gaussian_taps
from ..trainer.upload import upload
from .grid import VoxelGrid
from .reference import rotation_matrices
from .sampling import sample_gaussians
from .voxelize import voxelize

if TYPE_CHECKING:
    from .export import FieldSource

#: float32 numbers of a Gaussian without features: mean, log scale, quaternion, density.
GAUSSIAN_FLOATS = 11


class GaussianField(nn.Module):
    """Gaussians as parameters. `field(grid)` is their volume; `render` and `sample` give the source's intensities.

    Args:
        tensors: means (N, 3) world x, y, z; log_scales (N, 3), natural logarithms of standard deviations; quats (N, 4);
            densities (N,), of any sign; and, for more channels, features (N, F), see `voxelize`.
        source: The grid and the intensities of the volume that they were fitted to, or None if unknown.
        offset: World x, y, z that the means are relative to, so that float32 is precise far from the world's origin.

    Attributes:
        source, offset: The arguments of these names.
        metrics: Metrics of the fit, as `VolumeTask.evaluate` returns them. A loaded field has none.
        notes: What was read, cut off or assumed in the fit, one sentence each.

    Example:
        >>> import torch
        >>> from splat_ssim.volume import VoxelGrid
        >>> from splat_ssim.volume.gaussians import GaussianField
        >>> field = GaussianField.from_volume(torch.rand(1, 8, 8, 8), VoxelGrid.regular((8, 8, 8)), count=10)
        >>> field(VoxelGrid.regular((8, 8, 8))).shape
        torch.Size([1, 8, 8, 8])
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        source: FieldSource | None = None,
        offset: Sequence[float] = (0.0, 0.0, 0.0),
    ) -> None:
        super().__init__()
        self.source = source
        self.offset = tuple(float(v) for v in offset)
        self.metrics: dict[str, Any] = {}
        self.notes: tuple[str, ...] = ()
        self.tensors = nn.ParameterDict({name: nn.Parameter(tensor) for name, tensor in tensors.items()})

    def __len__(self) -> int:
        return len(self.tensors["means"])

    @property
    def nbytes(self) -> int:
        """Bytes of the parameters."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    def local(self, grid: VoxelGrid) -> VoxelGrid:
        """A grid in the coordinates of the means: their offset is subtracted."""
        return grid.moved([-v for v in self.offset]) if any(self.offset) else grid

    def forward(self, grid: VoxelGrid) -> Tensor:
        """The volume (C, *grid.shape)."""
        tensors = self.tensors
        return voxelize(
            tensors["means"],
            tensors["quats"],
            tensors["log_scales"].exp(),
            tensors["densities"],
            self.local(grid),
            features=tensors["features"] if "features" in tensors else None,
        )

    def render(self, grid: VoxelGrid | None = None) -> Tensor:
        """Evaluates the field on a grid, in the intensities of its source. It is differentiable.

        Args:
            grid: Voxels of any spacing and direction. By default those of the source.

        Returns:
            (C, *grid.shape) float32. If values outside the fitted range were cut off, the result is clamped to that
            range.

        Raises:
            ValueError: There is no grid and the field has no source.
        """
        if grid is None and self.source is None:
            raise ValueError("render must be given a grid, as the field has no source, got None")
        return self._intensities(self(grid or self.source.grid))  # type: ignore[union-attr]

    def sample(self, points: Tensor) -> Tensor:
        """Evaluates the field at any points, in the intensities of its source.

        `field.sample(grid.points())` is `field.render(grid)`.

        Each value is that of the formula of `voxelize`, cut-off included; nothing is interpolated.

        Args:
            points: (..., 3) world x, y, z, on the field's device. float64 points are computed in float64.

        Returns:
            (C, ...) in the dtype of the points, differentiable with respect to the points and the Gaussians.

        Raises:
            ValueError: The points have another shape or are on another device.
            TypeError: The points are neither float32 nor float64.
        """
        tensors = self.tensors
        values = tensors["densities"][:, None]
        if "features" in tensors:
            values = torch.cat([values, values * tensors["features"]], dim=1)
        gaussians = (tensors["means"], tensors["quats"], tensors["log_scales"].exp(), values)
        if any(self.offset):
            points = (points.double() - points.new_tensor(self.offset, dtype=torch.float64)).to(points.dtype)
        return self._intensities(sample_gaussians(*gaussians, points))

    def _intensities(self, values: Tensor) -> Tensor:
        if self.source is None:
            return values
        low, high = self.source.low, self.source.high
        values = values.double() if self.source.normalization.dtype == np.float64 else values
        return (values.clamp(0, 1) if self.source.clip else values) * (high - low) + low

    @torch.no_grad()
    def crop(self, box: Sequence[Sequence[float]]) -> GaussianField:
        """Keeps the Gaussians that reach into a box, and cuts the source's grid to it. The field inside is unchanged.

        Args:
            box: Smallest and largest world x, y, z, such as ((0, 0, 0), (10, 10, 5)).

        Raises:
            ValueError: The box is not a box, no Gaussian reaches it, or it lies outside the source's grid.
        """
        from .sampling import crop_field

        return crop_field(self, box)

    def save(self, path: str | Path) -> Path:
        """Writes the field with its source: .ply in full precision, .quantized in about 11 bytes a Gaussian.

        Raises:
            ValueError: The suffix is another one, or the field has no source although it is to be quantised.
        """
        from .export import save_field

        return save_field(path, self)

    @torch.no_grad()
    def keep_size(self, min_sigma: float, grid: VoxelGrid) -> None:
        """Raises standard deviations to at least `min_sigma` voxels, measured along each axis of a Gaussian."""
        scales = self.tensors["log_scales"].data
        if max(grid.spacing) < 1.001 * min(grid.spacing):
            scales.clamp_(min=math.log(min_sigma * voxel_size(grid)))
            return
        # A unit of length along an axis of the Gaussian crosses so many voxels: |A⁻¹ r| for the columns r of R.
        inverse = upload(torch.from_numpy(np.linalg.inv(grid.matrix[:3, :3])).float(), scales.device)
        crossed = (inverse @ rotation_matrices(self.tensors["quats"])).norm(dim=1)  # [N, 3]
        torch.maximum(scales, math.log(min_sigma) - crossed.log(), out=scales)

    def positions(self) -> Tensor:
        """(N, 3) world x, y, z of the Gaussians, float64 where they have an offset."""
        means = self.tensors["means"]
        moved: Tensor = (
            means.double() + means.new_tensor(self.offset, dtype=torch.float64) if any(self.offset) else means
        )
        return moved

    @torch.no_grad()
    def mass(self) -> Tensor:
        """(N,) |density| times volume: how much each Gaussian contributes."""
        mass: Tensor = self.tensors["densities"].abs() * self.tensors["log_scales"].sum(1).exp()
        return mass

    @torch.no_grad()
    def spawn(
        self,
        chosen: Tensor,
        sigma: Tensor | float,
        residual: Tensor,
        target: Tensor,
        grid: VoxelGrid,
        generator: torch.Generator | None,
    ) -> dict[str, Tensor]:
        """Makes Gaussians that reduce the residual, see `new_gaussians`. Features start from the target's."""
        new = new_gaussians(chosen, sigma, residual, grid, generator)
        # Gaussians that are placed close together share the residual, so that their sum does not overshoot.
        alone = GaussianField({**new, "densities": torch.ones_like(new["densities"])})
        new["densities"] /= alone(grid)[0].flatten()[chosen].clamp(min=1.0)
        if "features" in new:
            # Ratios of the residual's channels are arbitrary, so the target's colour is a better start.
            new["features"] = new_gaussians(chosen, sigma, target, grid, generator)["features"]
        return new

    @classmethod
    def from_volume(
        cls,
        target: Tensor,
        grid: VoxelGrid,
        count: int,
        *,
        spread: float = 0.3,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> GaussianField:
        """Places Gaussians where a volume has edges and mass, small where they are dense, with fitted densities.

        Args:
            target: (C, n0, n1, n2), the volume to fit.
            grid: Voxels of the volume.
            count: Number of Gaussians, at most the number of voxels, or of voxels in the mask.
            spread: Standard deviation as a fraction of the local distance between Gaussians.
            mask: (n0, n1, n2) weights of 0 or more. Gaussians are drawn in proportion to them, and none where they are
                0.
            generator: Generator of the random positions, on the CPU.

        Returns:
            The field, on the target's device. Random numbers are drawn on the CPU, so they are the same for every
            device.

        Raises:
            ValueError: The count is below 1, or above the number of voxels (in the mask).
        """
        voxels = target[0].numel() if mask is None else int((mask > 0).sum())
        if not 1 <= count <= voxels:
            raise ValueError(
                f"count must be from 1 to the {voxels} voxels{'' if mask is None else ' in the mask'}, got {count}"
            )
        density = target[0]
        slope = density.new_zeros(density.shape)
        for axis in range(3):
            if density.shape[axis] > 1:
                slope = slope + torch.gradient(density, dim=axis)[0].abs()
        # Above 0 everywhere, so that there are enough voxels to draw from even in an empty volume.
        weight = slope + 0.05 * density.abs() + 1e-9
        weight = weight if mask is None else weight * mask
        chosen = sample_voxels(weight, count, generator)
        # Density of Gaussians, in Gaussians a voxel, where each was drawn. Their distance follows from it.
        crowd = blur(weight / weight.sum() * count).flatten()[chosen]
        sigma = (spread * crowd.clamp(min=1e-4) ** (-1 / 3)).clamp(0.6, 4.0)
        field = cls(new_gaussians(chosen, sigma, target, grid, generator))
        with torch.no_grad():
            # Where Gaussians overlap, their sum would be too bright: divide by the field of unit densities.
            field.tensors["densities"].fill_(1.0)
            unit = field(grid)[0].flatten()[chosen]
            field.tensors["densities"].copy_(density.flatten()[chosen] / unit.clamp(min=0.3))
        return field


def sample_voxels(weight: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
    """Draws `count` different flat indices in proportion to the weights, of any number of voxels (Gumbel's trick)."""
    noise = upload(torch.rand(weight.numel(), generator=generator), weight.device).clamp_(1e-20, 1.0 - 1e-7)
    keys = weight.flatten().clamp(min=1e-30).log() - (-noise.log()).log()
    return keys.topk(count, sorted=False).indices.sort().values


def blur(volume: Tensor) -> Tensor:
    """Filters (n0, n1, n2) by SSIM's Gaussian window, with zeros outside. An axis of one voxel is not filtered."""
    shape = [n for n in volume.shape if n > 1]
    if not shape:
        return volume
    padded = nn.functional.pad(volume.reshape(shape), (5,) * (2 * len(shape)))
    return correlate(padded, gaussian_taps(), len(shape)).reshape(volume.shape)


def new_gaussians(
    chosen: Tensor, sigma: Tensor | float, values: Tensor, grid: VoxelGrid, generator: torch.Generator | None
) -> dict[str, Tensor]:
    """Makes Gaussians in the chosen voxels: aligned with the lattice up to a small rotation, round if voxels are cubes.

    Args:
        chosen: (N,) flat indices of voxels, on the device for the Gaussians.
        sigma: Standard deviation in voxels: one number, or (N,).
        values: (C, n0, n1, n2). A Gaussian's density is channel 0 at its voxel; its features are the other channels
            divided by channel 0.
        grid: The voxels.
        generator: Generator of the positions inside the voxels and of the orientations, on the CPU.
    """
    count, device = len(chosen), chosen.device
    _, rows, columns = grid.shape
    # torch.unravel_index would upload the shape.
    places = (chosen // (rows * columns), chosen // columns % rows, chosen % columns)
    indices = torch.stack(places, -1).float()
    indices += upload(torch.rand(count, 3, generator=generator), device) - 0.5
    frame = torch.from_numpy(lattice_frame(grid)).float()
    quats = upload(frame + 0.1 * torch.randn(count, 4, generator=generator), device)
    sigmas = sigma.expand(count) if isinstance(sigma, Tensor) else torch.full((count,), sigma, device=device)
    sizes = sigmas[:, None] * upload(torch.tensor(grid.spacing), device)
    at = values.flatten(1)[:, chosen]  # [C, N]
    tensors = {
        "means": grid.to_world(indices),
        "log_scales": sizes.log(),
        "quats": quats,
        "densities": at[0].clone(),
    }
    if len(values) > 1:
        sign = torch.where(at[0] < 0, -1.0, 1.0)
        tensors["features"] = (at[1:] / (at[0].abs().clamp(min=1e-2) * sign)).T.contiguous()
    return tensors


def lattice_frame(grid: VoxelGrid) -> np.ndarray:
    """The quaternion (4,), w x y z, of the rotation whose axes are the lattice's, signs aside."""
    left, _, right = np.linalg.svd(grid.matrix[:3, :3] / np.asarray(grid.spacing))
    R = left @ right
    if np.linalg.det(R) < 0:
        R = R * np.array([1.0, 1.0, -1.0])
    # The eigenvector of the largest eigenvalue of this symmetric matrix (Bar-Itzhack 2000, eq. 7).
    K = np.array(
        [
            [R[0, 0] + R[1, 1] + R[2, 2], R[2, 1] - R[1, 2], R[0, 2] - R[2, 0], R[1, 0] - R[0, 1]],
            [0.0, R[0, 0] - R[1, 1] - R[2, 2], R[0, 1] + R[1, 0], R[0, 2] + R[2, 0]],
            [0.0, 0.0, R[1, 1] - R[0, 0] - R[2, 2], R[1, 2] + R[2, 1]],
            [0.0, 0.0, 0.0, R[2, 2] - R[0, 0] - R[1, 1]],
        ]
    )
    return np.linalg.eigh(K, UPLO="U")[1][:, -1]


def voxel_size(grid: VoxelGrid) -> float:
    """Edge of a cube that has the volume of a voxel, in world units."""
    a, b, c = grid.spacing
    edge: float = (a * b * c) ** (1 / 3)
    return edge
