"""Refinement of the training cameras' poses together with the Gaussians."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from splat_ssim.scene.data import View
from splat_ssim.scene.options import PoseConfig
from splat_ssim.scene.per_view import PerView, rate_that_reaches

#: Final learning rate as a fraction of the initial one.
_FINAL = 0.01
#: How far a camera may turn over a run, in radians, and move, in units of the scene's extent.
_REACH = 0.005


class RefinedPoses:
    """A small rotation and translation for each training camera.

    If Gaussians and cameras move together, no image changes. The motion that all cameras have in common (a rotation, a
    translation and a scale of the scene) is therefore removed after each step, so that test views, whose poses are
    fixed, still fit.

    Args:
        config: Options: learning rate and first step.
        views: Training views.
        extent: Extent of the scene, which is the unit of translations.
        device: Device of the changes.
        updates: Number of times that the run trains on each view. The learning rate follows from it.
    """

    def __init__(
        self, config: PoseConfig, views: Sequence[View], extent: float, device: torch.device, updates: float = 100.0
    ) -> None:
        self.extent = extent
        rate = rate_that_reaches(_REACH, updates, _FINAL) if config.rate is None else config.rate
        #: For each view the axis of rotation times its angle, in world axes, and the move in units of the extent.
        self.changes = PerView(len(views), (6,), device, rate, _FINAL)
        centers = torch.stack([view.center for view in views]).to(device)
        self._places = (centers - centers.mean(0)) / extent

    def apply(self, view: View) -> View:
        """Returns a training view with its camera refined. The camera is differentiable with respect to the changes."""
        change = self.changes[view.index]
        return replace(view, viewmat=moved(view.viewmat, change[:3], self.extent * change[3:]))

    @torch.no_grad()
    def step(self, progress: float, *, moving: bool = True) -> None:
        """Performs one step for the cameras that were used, and removes the motion that all cameras have in common.

        Args:
            progress: Fraction of the run that is done.
            moving: Whether cameras are optimised yet. If not, their gradients are dropped.
        """
        if not moving:
            self.changes.optimizer.zero_grad(set_to_none=True)
            return
        self.changes.step(progress)
        changes = without_common(torch.stack(list[Tensor](self.changes.values)), self._places)
        for own, change in zip(self.changes.values, changes, strict=True):
            own.copy_(change)

    def state_dict(self) -> dict[str, Any]:
        """The changes and their optimiser."""
        return self.changes.state_dict()

    def load_state_dict(self, state: Any) -> None:
        """Restores the state that `state_dict` returned.

        Raises:
            ValueError: The state belongs to other views.
        """
        self.changes.load_state_dict(state, "poses")


def moved(viewmat: Tensor, rotation: Tensor, move: Tensor) -> Tensor:
    """Turns a camera about its own centre and then moves it.

    Args:
        viewmat: (4, 4) world to camera.
        rotation: (3,) axis of rotation times the angle in radians, in world axes.
        move: (3,) translation of the centre, in world units.

    Returns:
        (4, 4) world to camera, differentiable with respect to rotation and move, also at 0.

    Example:
        >>> import torch
        >>> from splat_ssim.scene.poses import moved
        >>> moved(torch.eye(4), torch.zeros(3), torch.tensor([1.0, 2.0, 4.0]))[:3, 3]
        tensor([-1., -2., -4.])
    """
    center = -viewmat[:3, :3].T @ viewmat[:3, 3] + move
    turned = viewmat[:3, :3] @ _rotation(rotation).T
    top = torch.cat([turned, -(turned @ center)[:, None]], 1)
    return torch.cat([top, viewmat[3:]])


def _rotation(vector: Tensor) -> Tensor:
    """(3, 3) rotation matrix of an axis times an angle, by Rodrigues' formula."""
    x, y, z = vector
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero]).reshape(3, 3)
    # The small number keeps the gradient of the square root finite at 0 and does not change results in float32.
    angle = (vector.square().sum() + 1e-16).sqrt()
    half = torch.sinc(angle / (2 * torch.pi))
    return torch.eye(3, device=vector.device) + torch.sinc(angle / torch.pi) * cross + 0.5 * half**2 * cross @ cross


def without_common(changes: Tensor, places: Tensor) -> Tensor:
    """Removes from changes of cameras the rotation, translation and scale that all of them have in common.

    Args:
        changes: (N, 6) rotation and translation of each camera.
        places: (N, 3) positions of the cameras relative to their mean, in the unit of the translations.
    """
    rotations, moves = changes[:, :3], changes[:, 3:]
    common = rotations.mean(0)
    moves = moves - moves.mean(0) - torch.linalg.cross(common.expand_as(places), places)
    spread = places.square().sum().clamp(min=1e-12)
    return torch.cat([rotations - common, moves - (moves * places).sum() / spread * places], 1)
