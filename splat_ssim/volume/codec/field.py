"""The field of Gaussians as it is trained for a file: by place, shape and weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..gaussians import GaussianField
from ..grid import VoxelGrid
from ..reference import rotation_matrices
from ..voxelize import voxelize
from .exact import eigen
from .quantizer import UNIT_WEIGHT, Codes, Steps, quantize

#: Eigenvalues that are nearer are told apart by so much, lest gradients divide by 0.
_GAP = 1e-3
#: Two turns of an eigenbasis about its own axis k mix the axes that follow k.
_FOLLOWING = ((1, 2), (2, 0), (0, 1))


class _Eigen(torch.autograd.Function):
    """Shapes (N, 6) to log scales (N, 3) and quaternions (N, 4)."""

    @staticmethod
    def forward(ctx: Any, shapes: Tensor) -> tuple[Tensor, Tensor]:
        log_scales, quats = eigen(shapes, torch, sweeps=4)
        ctx.save_for_backward(log_scales, quats)
        return log_scales, quats

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        v_scales, v_quats = gradients
        log_scales, quats = ctx.saved_tensors
        w, x, y, z = quats.unbind(1)
        # By a turn about the Gaussian's own axis k: half of q times the unit quaternion k.
        turned = [torch.stack(row, 1) for row in ((-x, w, z, -y), (-y, -z, w, x), (-z, y, -x, w))]
        v_turns = 0.5 * (torch.stack(turned, 1) * v_quats[:, None]).sum(2)  # [N, 3]
        a, b, c = log_scales.unbind(1)
        gaps = torch.stack([b - c, c - a, a - b], 1)
        gaps = torch.where(gaps.abs() < _GAP, torch.where(gaps < 0, -_GAP, _GAP).to(gaps), gaps)
        # With M = Rᵀ dL R, the turn about axis k is M_ij / (l_i - l_j) for the axes i, j that follow k.
        across = 0.5 * v_turns / gaps
        inner = torch.diag_embed(v_scales)
        for k, (i, j) in enumerate(_FOLLOWING):
            inner[:, i, j] = inner[:, j, i] = across[:, k]
        R = rotation_matrices(quats)
        G = R @ inner @ R.transpose(1, 2)
        return torch.stack([G[:, 0, 0], G[:, 1, 1], G[:, 2, 2], 2 * G[:, 0, 1], 2 * G[:, 0, 2], 2 * G[:, 1, 2]], 1)


def shapes_of(log_scales: Tensor, quats: Tensor) -> Tensor:
    """(N, 6) the shape R diag(log_scales) Rᵀ, as xx, yy, zz, xy, xz, yz."""
    R = rotation_matrices(quats)
    L = (R * log_scales[:, None]) @ R.transpose(1, 2)
    return torch.stack([L[:, 0, 0], L[:, 1, 1], L[:, 2, 2], L[:, 0, 1], L[:, 0, 2], L[:, 1, 2]], 1)


class CodedField(nn.Module):
    """Gaussians by the numbers that a file stores for them.

    Args:
        tensors: means (N, 3) in voxels, shapes (N, 6) and weights (N,), see `quantizer`.
        shape: Shape of the volume in voxels.
    """

    def __init__(self, tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        self.tensors = nn.ParameterDict({name: nn.Parameter(tensor) for name, tensor in tensors.items()})

    @classmethod
    @torch.no_grad()
    def of_field(cls, field: GaussianField, shape: tuple[int, ...]) -> CodedField:
        """From Gaussians in voxels."""
        tensors = {name: tensor.detach() for name, tensor in field.tensors.items()}
        weights = tensors["densities"] * (0.5 * tensors["log_scales"].sum(1)).exp() * UNIT_WEIGHT
        shapes = shapes_of(tensors["log_scales"], tensors["quats"])
        return cls({"means": tensors["means"].clone(), "shapes": shapes, "weights": weights}, shape)

    def __len__(self) -> int:
        return len(self.tensors["weights"])

    def forward(self, grid: VoxelGrid) -> Tensor:
        """The volume (1, *grid.shape), before anything is rounded; differentiable."""
        tensors = self.tensors
        eigen: Callable[[Tensor], tuple[Tensor, Tensor]] = _Eigen.apply
        log_scales, quats = eigen(tensors["shapes"])
        densities = tensors["weights"] / UNIT_WEIGHT * (-0.5 * tensors["shapes"][:, :3].sum(1)).exp()
        return voxelize(tensors["means"], quats, log_scales.exp(), densities, grid)

    @torch.no_grad()
    def codes(self, steps: Steps) -> Codes:
        """The codes of all Gaussians, in their order."""
        arrays = {name: tensor.detach().cpu().numpy().astype(np.float64) for name, tensor in self.tensors.items()}
        return quantize(arrays["means"], arrays["shapes"], arrays["weights"], steps, self.shape)

    @torch.no_grad()
    def taken(self, chosen: Tensor) -> CodedField:
        """A field of some of the Gaussians."""
        return CodedField({name: tensor.detach()[chosen] for name, tensor in self.tensors.items()}, self.shape)
