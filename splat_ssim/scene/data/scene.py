"""The views and the scene that readers return."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from splat_ssim.errors import UserError
from splat_ssim.scene.data.placement import extent_of
from splat_ssim.trainer.pictures import over_background

#: Near plane, and its largest multiple of a scene's extent.
NEAR, NEAR_EXTENT = 0.01, 0.002


class SceneError(UserError):
    """A scene on disk does not conform to its format. The message names the file and says what was expected."""


@dataclass(frozen=True)
class LateImage:
    """An image that stays in its file. It is decoded again each time its pixels are used.

    Attributes:
        shape: (H, W, 3 or 4). It is known without decoding.
        decode: Function that returns the uint8 image.
    """

    shape: tuple[int, int, int]
    decode: Callable[[], Tensor]


class _Image:
    """The attribute `image` of a view: always a tensor, even if a `LateImage` was assigned."""

    def __get__(self, view: View | None, owner: type[View]) -> Tensor:
        if view is None:  # dataclass asks the class whether the field has a default
            raise AttributeError("image")
        stored = view.stored_image
        return stored.decode() if isinstance(stored, LateImage) else stored

    def __set__(self, view: View, value: Tensor | LateImage) -> None:
        vars(view)["stored_image"] = value


@dataclass
class View:
    """One photograph and the camera that took it."""

    name: str
    #: (4, 4) float32, world to camera, OpenCV axes (x right, y down, z forward).
    viewmat: Tensor
    #: (3, 3) float32, in pixels; pixel centres at +0.5.
    K: Tensor
    #: (H, W, 3) uint8 [0, 255] or float32 [0, 1]; or (H, W, 4) uint8 with straight alpha, which the background shows
    #: through. A `LateImage` assigned here is read as the tensor it decodes to.
    image: _Image = _Image()
    #: (H, W) bool, true where the image counts, or None.
    mask: Tensor | None = None
    #: RGB in [0, 1] behind a transparent image.
    background: tuple[float, float, float] = (0.0, 0.0, 0.0)
    #: Index among the training views; -1 for any other camera.
    index: int = -1
    #: (H, W) float32 depth along the camera's z axis in the scene's unit, 0 where unknown, or None.
    depth: Tensor | None = None
    #: (M, 3) float32, columns, rows and depths of points seen in the image, or None.
    sparse_depth: Tensor | None = None
    #: The camera of the file, see `lens.proportions`, which is the same at any size of the image. None: that of K.
    proportions: tuple[float, ...] | None = None

    @property
    def stored_image(self) -> Tensor | LateImage:
        """The image as it was assigned."""
        stored: Tensor | LateImage = vars(self)["stored_image"]
        return stored

    @property
    def is_transparent(self) -> bool:
        """Whether the image has an alpha channel."""
        return self.shape[2] == 4

    @property
    def alpha(self) -> Tensor | None:
        """(H, W) float32 in [0, 1] of a transparent image, or None."""
        return self.image[..., 3].float() / 255.0 if self.is_transparent else None

    @property
    def shape(self) -> tuple[int, ...]:
        """(H, W, channels) of the image, without decoding it."""
        return tuple(self.stored_image.shape)

    @property
    def is_late(self) -> bool:
        """Whether the image stays in its file."""
        return isinstance(self.stored_image, LateImage)

    @property
    def height(self) -> int:
        """Number of pixel rows."""
        return self.shape[0]

    @property
    def width(self) -> int:
        """Number of pixel columns."""
        return self.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes in memory of image, mask and depths. An image that stays in its file counts 0."""
        parts = (self.stored_image, self.mask, self.depth, self.sparse_depth)
        return sum(part.nbytes for part in parts if isinstance(part, Tensor))

    @property
    def center(self) -> Tensor:
        """(3,) position of the camera in the world."""
        return -self.viewmat[:3, :3].T @ self.viewmat[:3, 3]

    def pixels(self) -> Tensor:
        """(1, 3, H, W) float32 in [0, 1], channels last in memory: what a loss compares with."""
        return over_background(self.image, self.background)

    def to(self, device: torch.device) -> View:
        """The same view with its tensors on `device`."""
        return self.mapped(lambda tensor: tensor.to(device))

    def mapped(self, function: Callable[[Tensor], Tensor]) -> View:
        """The same view with a function applied to each of its tensors."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        moved: dict[str, Any] = {key: function(value) for key, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **moved)

    def reduced(self, factor: int) -> View:
        """Returns the view at 1/factor of its size, by a box filter. Rows and columns beyond a whole box are left out.

        A transparent image is composited over its background. A masked one is averaged over the pixels that count, and
        a reduced pixel counts if half of its box does, or, if no box has that many, if any of it does.

        Raises:
            SceneError: The image is smaller than one box.
        """
        if min(self.height, self.width) < factor:
            raise SceneError(
                f"{self.name}: required at least {factor}x{factor} pixels to reduce by {factor}, "
                f"got {self.height}x{self.width}"
            )
        pixels, mask = self.pixels(), None
        reduced = F.avg_pool2d(pixels, factor)
        if self.mask is not None:
            counted = self.mask[None].float()
            share = F.avg_pool2d(counted, factor)
            reduced = torch.where(share > 0, F.avg_pool2d(pixels * counted, factor) / share, reduced)
            mask = share[0] >= 0.5 if (share >= 0.5).any() else share[0] > 0
        pixels = reduced[0].permute(1, 2, 0).contiguous()
        K = self.K.clone()
        K[:2] /= factor
        # Take a depth in the middle of the box, because the mean of a near and a far depth is neither.
        middle = slice(factor // 2, None, factor)
        depth = None if self.depth is None else self.depth[middle, middle][: pixels.shape[0], : pixels.shape[1]]
        sparse = (
            None if self.sparse_depth is None else self.sparse_depth / self.sparse_depth.new_tensor([factor] * 2 + [1])
        )
        return replace(self, image=pixels, mask=mask, K=K, depth=depth, sparse_depth=sparse)


@dataclass
class Scene:
    """Views of one scene and what is known of its points."""

    name: str
    train: list[View]
    test: list[View]
    #: (N, 3) float32 positions and (N, 3) float32 colours in [0, 1] of a sparse reconstruction, or None.
    points: np.ndarray | None = None
    colors: np.ndarray | None = None
    #: RGB in [0, 1] behind the Gaussians.
    background: tuple[float, float, float] = (0.0, 0.0, 0.0)
    #: Corners of the box that holds the scene, where the format promises one (Blender: [-1.3, 1.3] cubed).
    box: tuple[Sequence[float], Sequence[float]] | None = field(default=None)
    #: Whether the user asked for that box, so that no other replaces it.
    box_is_given: bool = False
    #: Name of the format.
    format: str = ""
    #: How views were split into training and test views, in words.
    split: str = ""
    #: What was left out, cut or assumed, a line each.
    notes: list[str] = field(default_factory=list)

    #: Subtracted from all coordinates of the files, in float64, where they are too large for float32.
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    #: Folder of the COLMAP model below the scene's, where it is not the first one.
    model: str = ""
    #: (4, 4) float32 of training and test views, as in the files, where an offset was subtracted.
    world_viewmats: list[Tensor] | None = None

    @property
    def extent(self) -> float:
        """1.1 times the largest distance of a training camera from their mean: the unit of position learning rates.

        Cameras far from all the others do not count.
        """
        return extent_of(self.centers)

    @property
    def centers(self) -> Tensor:
        """(N, 3) float64 positions of the training cameras."""
        return torch.stack([view.center for view in self.train]).double()

    @property
    def near(self) -> float:
        """Distance from a camera below which Gaussians are left out: 0.01, less in a small scene."""
        return min(NEAR, NEAR_EXTENT * self.extent)

    @property
    def origin(self) -> dict[str, Any]:
        """The choice of coordinates when the scene was read. `load_scene` can repeat it."""
        return {"offset": list(self.offset), "model": self.model}


def split_words(test_every: int) -> str:
    """Describes what `split_views` does."""
    return f"split by test_every {test_every}" if test_every else "all to train on"


def shortened(names: Sequence[str], count: int = 3) -> str:
    """Shortens a list of names to their number and the first few.

    Example:
        >>> from splat_ssim.scene.data.scene import shortened
        >>> shortened(["a", "b", "c", "d"])
        '4 (a, b, c, …)'
    """
    return f"{len(names)} ({', '.join(names[:count])}{', …' if len(names) > count else ''})"


def grouped(remarks: Iterable[tuple[str, Sequence[str]]]) -> list[str]:
    """A line for each remark on files, with the files that it is about.

    Example:
        >>> from splat_ssim.scene.data.scene import grouped
        >>> grouped([("a", ["turned"]), ("b", ["turned", "dark"])])
        ['turned: 2 (a, b)', 'dark: 1 (b)']
    """
    files: dict[str, list[str]] = {}
    for name, words in remarks:
        for remark in words:
            files.setdefault(remark, []).append(name)
    return [f"{remark}: {shortened(names)}" for remark, names in files.items()]


def split_views(views: list[View], test_every: int) -> tuple[list[View], list[View]]:
    """Training and test views: sorted by file name, each `test_every`-th, from the first on, is a test view.

    With 0 all are training views.
    """
    views = sorted(views, key=lambda view: view.name)
    if len(views) < 2 or test_every == 0:
        return views, []
    train = [view for index, view in enumerate(views) if index % test_every != 0]
    test = [view for index, view in enumerate(views) if index % test_every == 0]
    return train or test, test
