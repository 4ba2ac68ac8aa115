"""A dense voxel grid with trilinear interpolation: the baseline, and the target of distilling a radiance field."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .grid import VoxelGrid


def interpolation_matrix(
    nodes: int, voxels: int, start: int = 0, size: int | None = None, device: torch.device | None = None
) -> Tensor:
    """(size, nodes): linear interpolation of `nodes` values spread over `voxels` positions, ends on ends.

    Row i gives the weights at position start + i; `size` rows, by default to the end.
    """
    size = voxels - start if size is None else size
    at = torch.arange(start, start + size, dtype=torch.float64, device=device)
    at = at * ((nodes - 1) / (voxels - 1)) if voxels > 1 else at * 0.0
    low = at.floor().clamp(0, max(nodes - 2, 0)).long()
    matrix = torch.zeros(size, nodes, dtype=torch.float64, device=device)
    rows = torch.arange(size, device=device)
    matrix[rows, low] = 1 - (at - low)
    if nodes > 1:
        matrix[rows, low + 1] = at - low
    return matrix.float()


class GridField(nn.Module):
    """A volume interpolated trilinearly from the nodes of a coarser grid: `field(grid)` is the volume.

    Args:
        nodes: (C, m0, m1, m2) values of the nodes.
        grid: Voxels that it spans. The first and last nodes lie on the first and last voxel centres.

    Example:
        >>> import torch
        >>> from splat_ssim.volume import VoxelGrid
        >>> from splat_ssim.volume.grid_model import GridField
        >>> field = GridField.from_volume(torch.rand(1, 8, 8, 8), VoxelGrid.regular((8, 8, 8)), (4, 4, 4))
        >>> field(VoxelGrid.regular((8, 8, 8))).shape
        torch.Size([1, 8, 8, 8])
    """

    def __init__(self, nodes: Tensor, grid: VoxelGrid) -> None:
        super().__init__()
        self.tensors = nn.ParameterDict({"nodes": nn.Parameter(nodes)})
        self.grid = grid

    @property
    def nbytes(self) -> int:
        """Bytes of the parameters."""
        count: int = self.tensors["nodes"].numel() * self.tensors["nodes"].element_size()
        return count

    def forward(self, grid: VoxelGrid) -> Tensor:
        """Returns the volume (C, *grid.shape) on the voxels that the field spans, or on a crop of them.

        Raises:
            ValueError: The grid lies on another lattice.
        """
        if grid.affine != self.grid.affine:
            raise ValueError(f"a GridField is read on the lattice it spans, got affine {grid.affine}")
        volume: Tensor = self.tensors["nodes"]
        for axis in range(3):
            start = grid.start[axis] - self.grid.start[axis]
            # Computed on the device, since an upload would wait for it.
            matrix = interpolation_matrix(
                volume.shape[1 + axis], self.grid.shape[axis], start, grid.shape[axis], volume.device
            )
            volume = torch.movedim(torch.tensordot(matrix, volume, ([1], [1 + axis])), 0, 1 + axis)
        return volume

    @classmethod
    def from_volume(cls, target: Tensor, grid: VoxelGrid, shape: Sequence[int]) -> GridField:
        """Finds the grid of `shape` nodes that is nearest to a volume: the exact least-squares solution.

        Trilinear reading is a matrix for each axis, so the least squares are three small pseudo-inverses.

        Raises:
            ValueError: Along an axis there are more nodes than voxels, or no nodes.
        """
        if any(not 1 <= nodes <= voxels for nodes, voxels in zip(shape, grid.shape, strict=True)):
            raise ValueError(f"shape must be from 1 to {grid.shape} nodes, got {tuple(shape)}")
        values = target.double()
        for axis, nodes in enumerate(shape):
            inverse = torch.linalg.pinv(interpolation_matrix(nodes, grid.shape[axis]).double()).to(values.device)
            values = torch.movedim(torch.tensordot(inverse, values, ([1], [1 + axis])), 0, 1 + axis)
        return cls(values.float().contiguous(), grid)

    @torch.no_grad()
    def upsampled(self, shape: Sequence[int]) -> GridField:
        """The same field, sampled at more nodes."""
        fine = GridField(self.tensors["nodes"].detach(), VoxelGrid(tuple(shape)))
        return GridField(fine(VoxelGrid(tuple(shape))).contiguous(), self.grid)


def grid_shape(parameters: int, grid: VoxelGrid, channels: int = 1) -> tuple[int, ...]:
    """Nodes along each axis, in the proportions of the volume, with at most so many parameters in all."""
    voxels = grid.shape[0] * grid.shape[1] * grid.shape[2]
    scale = min(1.0, (parameters / channels / voxels) ** (1 / 3))
    shape = [max(1, min(n, round(n * scale))) for n in grid.shape]
    while shape[0] * shape[1] * shape[2] * channels > parameters and max(shape) > 1:
        shape[shape.index(max(shape))] -= 1
    return tuple(shape)
