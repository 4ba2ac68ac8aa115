"""Correction of the exposure and white balance of each training image, which a camera changes between photographs."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from splat_ssim._importing import imported
from splat_ssim.scene.options import ExposureConfig
from splat_ssim.scene.per_view import PerView

#: Brightness of a colour: luma of ITU-R BT.601.
_LUMA = (0.299, 0.587, 0.114)
#: Final learning rate as a fraction of the initial one.
_FINAL = 0.1
#: Initial learning rates by kind: those of 3DGS and of gsplat's trainer.
_RATES = {"affine": 0.01, "bilateral": 0.002}


class Exposures:
    """An affine map of colours for each training image: one for the whole image, or a bilateral grid of them.

    The maps of all images average to the identity. A view without a map of its own, such as a test view, therefore has
    the colours of the average photograph.

    Args:
        config: Options. `name` is affine or bilateral.
        count: Number of training views.
        device: Device of the maps.

    Source: affine: B. Kerbl et al., "A Hierarchical 3D Gaussian Representation", 2024; bilateral: Y. Wang et al.,
    "Bilateral Guided Radiance Field Processing", 2024, on J. Chen et al., "Real-time edge-aware image processing with
    the bilateral grid", 2007.
    """

    def __init__(self, config: ExposureConfig, count: int, device: torch.device) -> None:
        rate = _RATES[config.name] if config.rate is None else config.rate
        width, height, depth = config.grid
        self.bilateral, self.smoothness = config.name == "bilateral", config.smoothness
        shape = (12, depth, height, width) if self.bilateral else (12,)
        self.maps = PerView(count, shape, device, rate, _FINAL)
        #: The mean over the views of their maps less the identity.
        self.common = torch.zeros(shape, device=device)
        self.identity = torch.eye(3, 4, device=device).reshape(12, *[1] * (len(shape) - 1))

    def map_of(self, index: int) -> Tensor:
        """(12,) or (12, depth, height, width): rows of the 3x4 matrices of a training view."""
        return self.maps[index] - self.common + self.identity

    def apply(self, colors: Tensor, index: int, behind: Tensor | None = None, alphas: Tensor | None = None) -> Tensor:
        """Maps rendered colours to those of the photograph of a training view.

        Args:
            colors: (1, H, W, 3) rendered colours.
            index: Index of the view.
            behind: (3,) colour behind a transparent photograph. It is not mapped, because the camera has not seen it.
                None: the photograph is opaque.
            alphas: (1, H, W, 1) opacity of the render. It is needed with `behind`.

        Returns:
            (1, H, W, 3) colours as the photograph would have them.
        """
        own = self.map_of(index)
        if behind is None or alphas is None:
            return self._mapped(own, colors, colors.new_ones(()))
        rest = (1 - alphas) * behind
        return self._mapped(own, colors - rest, alphas) + rest

    def _mapped(self, own: Tensor, colors: Tensor, alphas: Tensor) -> Tensor:
        """Applies a map to colours that are premultiplied with alpha."""
        if not self.bilateral:
            matrix = own.reshape(3, 4)
            return colors @ matrix[:, :3].T + alphas * matrix[:, 3]
        sample = _fused_sample() if colors.is_cuda and alphas.dim() == 0 else None
        if sample is not None:
            return _fused(sample, own, colors)
        cells = _sliced(own, colors[0])
        rows = torch.einsum("ijhw,hwj->hwi", cells.reshape(3, 4, *cells.shape[1:])[:, :3], colors[0])
        return rows[None] + alphas * cells[3::4].permute(1, 2, 0)[None]

    def penalty(self, index: int) -> Tensor | None:
        """The term that is added to the loss of a training view: the total variation of its grid."""
        if not self.bilateral or self.smoothness == 0:
            return None
        own = self.maps[index]
        return self.smoothness * sum((own.diff(dim=axis).square().mean() for axis in (1, 2, 3)), own.new_zeros(()))

    @torch.no_grad()
    def step(self, used: Sequence[int], progress: float, *, learning: bool = True) -> None:
        """Performs one optimiser step for the maps of the views that were rendered, and updates the mean of all maps.

        Args:
            used: Indices of the views.
            progress: Fraction of the run that is done.
            learning: Whether the maps are optimised yet. If not, their gradients are dropped.
        """
        if not learning:
            self.maps.optimizer.zero_grad(set_to_none=True)
            return
        chosen = sorted(set(used))
        before = [self.maps[index].clone() for index in chosen]
        self.maps.step(progress)
        for index, old in zip(chosen, before, strict=True):
            self.common += (self.maps[index] - old) / len(self.maps)

    def state_dict(self) -> dict[str, Any]:
        """The maps, their mean and their optimiser."""
        return {**self.maps.state_dict(), "common": self.common}

    def load_state_dict(self, state: Any) -> None:
        """Restores the state that `state_dict` returned.

        Raises:
            ValueError: The state belongs to other views or to another kind of map.
        """
        common = state.get("common") if isinstance(state, Mapping) else None
        if not isinstance(common, Tensor) or common.shape != self.common.shape or common.dtype != self.common.dtype:
            raise ValueError(f"exposures.common: required a tensor of shape {tuple(self.common.shape)}, got another")
        self.maps.load_state_dict(state, "exposures")
        self.common = common.clone()

    @torch.no_grad()
    def matrices(self) -> list[list[list[float]]]:
        """The 3x4 matrix of each training view's map; for a grid, the mean of its matrices."""
        return [self.map_of(index).reshape(12, -1).mean(1).reshape(3, 4).tolist() for index in range(len(self.maps))]


@functools.cache
def _fused_sample() -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
    """The CUDA kernel of the package fused-bilagrid for opaque images, or None if it is not installed.

    It takes grids (1, 12, depth, height, width), places (1, 1, H, W, 2) in [0, 1] and colours (1, 1, H, W, 3), and
    returns the mapped colours: what `_sliced` and the product with the matrices compute in torch.
    """
    if importlib.util.find_spec("fused_bilagrid") is None:
        return None
    found: Callable[[Tensor, Tensor, Tensor], Tensor] = imported("fused_bilagrid:fused_bilagrid_sample")
    return found


def _fused(sample: Callable[[Tensor, Tensor, Tensor], Tensor], grid: Tensor, colors: Tensor) -> Tensor:
    """Applies a grid (12, depth, height, width) to colours (1, H, W, 3) by the kernel `sample`."""
    return sample(grid[None], _places(colors[0])[None, None], colors[None])[0]


def _places(colors: Tensor) -> Tensor:
    """(H, W, 2): x and y of the centre of each pixel, from 0 at the first edge of the image to 1 at the last."""
    height, width = colors.shape[:2]
    rows = (torch.arange(height, device=colors.device) + 0.5) / height
    columns = (torch.arange(width, device=colors.device) + 0.5) / width
    return torch.stack([columns.expand(height, width), rows[:, None].expand(height, width)], dim=-1)


def _sliced(grid: Tensor, colors: Tensor) -> Tensor:
    """(12, H, W): a grid (12, depth, height, width) at each pixel, at the brightness that colours (H, W, 3) have."""
    brightness = (colors @ colors.new_tensor(_LUMA)).clamp(0, 1)
    # grid_sample counts from -1 to 1.
    places = torch.cat([_places(colors), brightness[..., None]], dim=-1) * 2 - 1
    return F.grid_sample(grid[None], places[None, None], align_corners=True, padding_mode="border")[0, :, 0]


def color_corrected(pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Applies the affine map of colours that brings a render closest to the truth, by least squares.

    This removes the effect of a test view's unknown exposure. The map has twelve numbers. Other trainers fit a
    quadratic map, which gives higher figures.

    Args:
        pred: (1, 3, H, W) in [0, 1].
        target: Same shape as `pred`.
        mask: (H, W) bool, true for the pixels that count, or None.

    Returns:
        (1, 3, H, W) in [0, 1], in the dtype of `pred`.

    Source: the colour correction of MultiNeRF, B. Mildenhall et al., 2022, with a map of first degree.

    Example:
        >>> import torch
        >>> from splat_ssim.scene.exposure import color_corrected
        >>> truth = torch.rand(1, 3, 8, 8)
        >>> bool((color_corrected(0.5 * truth + 0.1, truth) - truth).abs().max() < 1e-5)
        True
    """
    values = pred[0].permute(1, 2, 0).double()
    wanted = target[0].permute(1, 2, 0).double()
    rows = torch.cat([values, torch.ones_like(values[..., :1])], -1)
    chosen = rows.reshape(-1, 4) if mask is None else rows[mask]
    truth = wanted.reshape(-1, 3) if mask is None else wanted[mask]
    # A view of a single colour does not determine the map. The smallest change keeps it near the identity.
    change = torch.linalg.lstsq(_with_identity(chosen), torch.cat([truth - chosen[:, :3], truth.new_zeros(4, 3)]))
    corrected = values + rows @ change.solution
    batch: Tensor = corrected.clamp(0, 1).permute(2, 0, 1)[None].to(pred.dtype)
    return batch


def _with_identity(rows: Tensor) -> Tensor:
    """Rows of a least-squares problem (N, 4), and four more that ask for small solutions."""
    weight = 1e-6 * max(1.0, len(rows)) ** 0.5
    return torch.cat([rows, weight * torch.eye(4, dtype=rows.dtype, device=rows.device)])
