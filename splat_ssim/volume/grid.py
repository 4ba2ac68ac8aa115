from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..trainer.upload import upload

_IDENTITY = tuple(tuple(float(i == j) for j in range(4)) for i in range(4))


def real_numbers(value: Any) -> np.ndarray:
    """A value's numbers in float64; none, of shape (0,), if it holds others or text, which numpy would convert too."""
    none = np.zeros(0)
    try:
        array = np.asarray(value)
        # Beside a number, numpy takes true and false for numbers as well.
        mixed = () if isinstance(value, np.ndarray) else np.asarray(value, dtype=object).flat
    except (ValueError, TypeError):
        return none
    if array.dtype.kind not in "iuf" or any(isinstance(v, bool) for v in mixed):
        return none
    return array.astype(np.float64)


def _vector(value: float | Sequence[float], name: str) -> np.ndarray:
    vector = real_numbers(value)
    if vector.shape not in ((), (1,), (3,)) or not np.isfinite(vector).all():
        raise ValueError(f"{name} must be one finite number or three (x, y, z), got {value!r}")
    return np.broadcast_to(vector, (3,))


@dataclass(frozen=True)
class VoxelGrid:
    """Positions in the world of the voxels of an array.

    Args:
        shape: Number of voxels along the three axes of the array.
        affine: 4x4, row by row. It maps an index (i0, i1, i2) of the array to the world x, y, z of the centre of that
            voxel. Its columns carry spacing, orientation and axis order, as a NIfTI header's do. Identity by default.
        start: Index of the array's first voxel on the lattice that the affine describes. It is not zero for a crop.

    Raises:
        ValueError: A size is below 1, or the affine is not finite and invertible.

    Example:
        >>> from splat_ssim.volume import VoxelGrid
        >>> grid = VoxelGrid.regular((4, 5, 6), spacing=(1.0, 1.0, 2.0), axes="zyx")
        >>> grid.points().shape, grid.points()[1, 0, 0].tolist()
        (torch.Size([4, 5, 6, 3]), [0.0, 0.0, 2.0])
    """

    shape: tuple[int, ...]
    affine: Sequence[Sequence[float]] = _IDENTITY
    start: tuple[int, ...] = (0, 0, 0)

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or any(int(n) != n or n < 1 for n in self.shape):
            raise ValueError(f"shape must be three sizes of at least 1, got {tuple(self.shape)}")
        if len(self.start) != 3 or any(int(n) != n for n in self.start):
            raise ValueError(f"start must be three indices, got {tuple(self.start)}")
        matrix = real_numbers(self.affine)
        if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or not np.array_equal(matrix[3], (0, 0, 0, 1)):
            raise ValueError(f"affine must be a finite 4x4 matrix with last row 0 0 0 1, got {self.affine!r}")
        spacing = np.linalg.norm(matrix[:3, :3], axis=0)
        if not (spacing > 0).all() or abs(np.linalg.det(matrix[:3, :3] / spacing)) < 1e-6:
            raise ValueError(f"affine must be invertible (spacing above 0), got {matrix[:3, :3].tolist()}")
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        object.__setattr__(self, "start", tuple(int(n) for n in self.start))
        object.__setattr__(self, "affine", tuple(tuple(float(v) for v in row) for row in matrix))

    @classmethod
    def regular(
        cls,
        shape: Sequence[int],
        *,
        spacing: float | Sequence[float] = 1.0,
        origin: float | Sequence[float] = 0.0,
        axes: str = "zyx",
    ) -> VoxelGrid:
        """A grid along the world's axes.

        Args:
            shape: Number of voxels along the three axes of the array.
            spacing: Distance between voxel centres along x, y, z, or one for all. A negative one reverses the axis.
            origin: World x, y, z of the centre of voxel (0, 0, 0).
            axes: The world axis that each array axis follows: "zyx" for (depth, height, width) arrays, "xyz" for NIfTI.

        Raises:
            ValueError: The axes are not a permutation of "xyz", or a spacing is zero or infinite.
        """
        if sorted(axes) != ["x", "y", "z"]:
            raise ValueError(f'axes must be a permutation of "xyz", got {axes!r}')
        steps = _vector(spacing, "spacing")
        if (steps == 0).any():
            raise ValueError(f"spacing must not be 0, got {spacing!r}")
        matrix = np.eye(4)
        matrix[:3, :3] = 0
        for column, axis in enumerate(axes):
            row = "xyz".index(axis)
            matrix[row, column] = steps[row]
        matrix[:3, 3] = _vector(origin, "origin")
        return cls(tuple(shape), matrix.tolist())

    @property
    def matrix(self) -> np.ndarray:
        """The affine as a (4, 4) float64 array."""
        return np.asarray(self.affine, dtype=np.float64)

    @property
    def spacing(self) -> tuple[float, ...]:
        """Distance of neighbouring voxel centres along each array axis."""
        return tuple(float(s) for s in np.linalg.norm(self.matrix[:3, :3], axis=0))

    @property
    def origin(self) -> tuple[float, ...]:
        """World x, y, z of the array's first voxel."""
        matrix = self.matrix
        return tuple(float(v) for v in matrix[:3, :3] @ np.asarray(self.start) + matrix[:3, 3])

    @property
    def upright(self) -> tuple[int, bool]:
        """The array axis nearest to the world's z, and whether it runs down."""
        along_z = self.matrix[2, :3] / self.spacing
        axis = int(np.abs(along_z).argmax())
        return axis, bool(along_z[axis] < 0)

    def crop(self, start: Sequence[int], shape: Sequence[int]) -> VoxelGrid:
        """The grid of `array[start:start + shape]`. A voxel rendered there has the same bits as in the whole grid."""
        return VoxelGrid(tuple(shape), self.affine, tuple(a + int(b) for a, b in zip(self.start, start, strict=True)))

    def moved(self, offset: Sequence[float]) -> VoxelGrid:
        """The same voxels, shifted: `offset` (x, y, z) is added to their world positions."""
        matrix = self.matrix
        matrix[:3, 3] += np.asarray(offset, dtype=np.float64)
        return VoxelGrid(self.shape, matrix.tolist(), self.start)

    def rebased(self) -> VoxelGrid:
        """The same voxels with `start` zero, the affine moved: what a file's header can hold."""
        matrix = self.matrix
        matrix[:3, 3] = self.origin
        return VoxelGrid(self.shape, matrix.tolist())

    def points(self, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
        """World x, y, z of every voxel centre, shape (*shape, 3)."""
        ranges = [
            torch.arange(s, s + n, dtype=torch.float64, device=device)
            for s, n in zip(self.start, self.shape, strict=True)
        ]
        indices = torch.stack(torch.meshgrid(*ranges, indexing="ij"), dim=-1)
        matrix = torch.as_tensor(self.matrix, device=device)
        return (indices @ matrix[:3, :3].T + matrix[:3, 3]).to(dtype)

    def to_index(self, points: Tensor) -> Tensor:
        """World points (..., 3) to fractional indices of the array (..., 3), in the points' dtype."""
        device = points.device
        inverse = upload(torch.from_numpy(np.linalg.inv(self.matrix[:3, :3])), device)
        start = upload(torch.tensor(self.start, dtype=torch.float64), device)
        offset = upload(torch.from_numpy(self.matrix[:3, 3]), device)
        return ((points.double() - offset) @ inverse.T - start).to(points.dtype)

    def to_world(self, indices: Tensor) -> Tensor:
        """Fractional indices of the array (..., 3) to world points (..., 3), in the indices' dtype."""
        matrix = upload(torch.from_numpy(self.matrix), indices.device)
        start = upload(torch.tensor(self.start, dtype=torch.float64), indices.device)
        return ((indices.double() + start) @ matrix[:3, :3].T + matrix[:3, 3]).to(indices.dtype)

    def apart(self, other: VoxelGrid) -> float:
        """How far another grid of the same shape puts a voxel from where this one does, at most, in voxels of `other`.

        Example:
            >>> from splat_ssim.volume import VoxelGrid
            >>> VoxelGrid.regular((4, 4, 4)).apart(VoxelGrid.regular((4, 4, 4), spacing=(0.5, 1.0, 1.0)))
            4.0
        """
        # The first corner and one along each axis: two opposite corners alone would not tell swapped axes of a cube.
        corners = torch.tensor(self.shape, dtype=torch.float64) * torch.tensor([[0.0] * 3, *torch.eye(3).tolist()])
        return float((other.to_index(self.to_world(corners)) - corners).abs().max())
