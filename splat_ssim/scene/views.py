"""The training views that each step renders, and the images that they are compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from splat_ssim.errors import UserError
from splat_ssim.scene.coarse import CoarseViews
from splat_ssim.scene.config import SceneConfig, coarseness
from splat_ssim.scene.data import Scene, View
from splat_ssim.trainer.draws import drawn_in_turn, seeded
from splat_ssim.trainer.ranks import ALONE, Ranks
from splat_ssim.trainer.upload import Ahead


class TrainingViews:
    """The training views of each step. Each pass over the views has its own order, which follows from the seed.

    If several processes train, each has its share of a step's views.

    Args:
        scene: Scene with the training views.
        config: Resolved config. It gives the number of views in a step, their resolution and their background.
        device: Device that the views are uploaded to.
        ranks: The processes that train.

    Raises:
        UserError: The views of a step cannot be shared evenly by the ranks; the coarse factor exceeds a side of a view;
            or random backgrounds are requested, and no view is transparent.
    """

    def __init__(self, scene: Scene, config: SceneConfig, device: torch.device, ranks: Ranks = ALONE) -> None:
        self.views, self.config, self.ranks = scene.train, config, ranks
        if config.batch_size % ranks.count:
            raise UserError(
                f"batch_size must be a multiple of the {ranks.count} processes that share its views, got "
                f"{config.batch_size} (--batch-size)"
            )
        if config.data.random_background and not any(view.is_transparent for view in self.views):
            raise UserError(f"{scene.name}: data.random_background requires transparent training images, got none")
        side = min(min(view.height, view.width) for view in self.views)
        if coarseness(config.data, 0) > side:
            raise UserError(
                f"data.coarse_factor must be at most {side}, the shortest side of a training image, got "
                f"{config.data.coarse_factor}"
            )
        #: Training views at a part of their size, while the run asks for such.
        self.coarse: CoarseViews | None = None
        self._ahead = Ahead(self.of_step, _each_mapped, device)

    def take(self, step: int) -> list[View]:
        """The views of a step, on the device."""
        return self._ahead.take(step)

    def start(self, step: int) -> None:
        """Begins to upload the views of a step to the device."""
        self._ahead.start(step)

    def of_step(self, step: int) -> list[View]:
        """This process's views of a step, not uploaded yet."""
        own = self.config.batch_size // self.ranks.count
        chosen = self.indices(step)[self.ranks.rank * own : (self.ranks.rank + 1) * own]
        return [self._over_background(self._reduced(index, step), step) for index in chosen]

    def indices(self, step: int) -> list[int]:
        """Indices of the views of a step, including those of other processes."""
        size = self.config.batch_size
        return [drawn_in_turn(step * size + place, len(self.views), self.config.seed) for place in range(size)]

    def _reduced(self, index: int, step: int) -> View:
        """A view at the resolution of a step."""
        factor = coarseness(self.config.data, step)
        if factor == 1:
            self.coarse = None
            return self.views[index]
        if self.coarse is None or self.coarse.factor != factor:
            self.coarse = CoarseViews(self.views, factor)
        return self.coarse[index]

    def _over_background(self, view: View, step: int) -> View:
        """The view over the random colour of its step, if it is transparent and random backgrounds are asked for."""
        if not self.config.data.random_background or not view.is_transparent:
            return view
        red, green, blue = torch.rand(3, generator=seeded(self.config.seed, step)).tolist()
        return replace(view, background=(red, green, blue))


def _each_mapped(views: Sequence[View], function: Callable[[Tensor], Tensor]) -> list[View]:
    return [view.mapped(function) for view in views]
