"""Training views at a part of their size, for the start of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from splat_ssim.scene.data import View


class CoarseViews:
    """Views reduced by a factor. Each is made when it is first used, and kept as bytes.

    They share one block of memory. Separate blocks would lie between the larger temporary ones that reducing a view
    needs, and would keep the allocator from reusing these.

    Args:
        views: Views at full size.
        factor: Factor for `View.reduced`.
    """

    def __init__(self, views: Sequence[View], factor: int) -> None:
        self.views, self.factor = views, factor
        sizes = [3 * (view.height // factor) * (view.width // factor) for view in views]
        self._pieces: Sequence[Tensor] = torch.empty(sum(sizes), dtype=torch.uint8).split(sizes)
        self._made: dict[int, View] = {}

    def __getitem__(self, index: int) -> View:
        """Returns the reduced view of this index.

        Raises:
            SceneError: The view is smaller than the factor.
        """
        if index not in self._made:
            view = self.views[index].reduced(self.factor)
            image = self._pieces[index].view(view.image.shape)
            image.copy_((view.image * 255).round_())
            self._made[index] = replace(view, image=image)
        return self._made[index]
