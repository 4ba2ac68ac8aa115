"""One way to compute mean SSIM, of this package or of a peer, and its counterpart: ours computing the same."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import splat_ssim

WINDOW, SIGMA = 11, 1.5

#: What a candidate takes: float32 tensors (B, C, spatial…) in [0, 1]; or bytes as files hold them, (H, W, 3) or (H, W).
FLOAT32, BYTES, GREY_BYTES = "float32", "bytes, RGB", "bytes, grey"


@dataclass(frozen=True)
class Candidate:
    """A function (img1, img2, *, data_range) -> mean SSIM, and what is to know about it."""

    name: str
    package: str  # As on the package index, where it is there.
    function: Callable[..., Any]
    padding: str = "same"  # What its mean is over, in the words of splat_ssim.ssim.
    form: str = ""  # How it is called, in words.
    images: str = FLOAT32
    definition: str = f"{WINDOW}-tap Gaussian"
    same: bool = True  # Whether the counterpart computes the same value.
    counterpart: Callable[..., Any] | None = None  # Ours on the same images; by default SSIM with the same padding.
    dims: tuple[int, ...] = (2, 3)
    channels_last: bool = False  # Whether the tensors get torch's channels_last memory format.
    differentiable: bool = True
    compiled: bool = False
    cuda_only: bool = False
    clocked: bool = False  # Whether `function` is a factory of calls that have a clock of their own.
    module: str = ""  # What is imported, where its name is not the package's.
    find: Callable[[], str] | None = None  # Its version; raises ImportError with what is missing.
    set_threads: Callable[[int], object] | None = None  # Beside torch.set_num_threads.

    @property
    def version(self) -> str:
        """The version of the package.

        Raises:
            ImportError: The package is not installed. The message says what is missing.
        """
        if self.package == "splat_ssim":
            return splat_ssim.__version__
        if self.find is not None:
            return self.find()
        module = self.module or self.package.replace("-", "_")
        if importlib.util.find_spec(module) is None:
            raise ImportError(f"the package {self.package} is not installed")
        return importlib.metadata.version(self.package)

    @property
    def family(self) -> str:
        """The name without that of the form: of the forms of a family one is the fastest."""
        return self.name.partition(",")[0].removesuffix(" NHWC")

    @property
    def about(self) -> dict[str, object]:
        """Columns of a row: what was measured."""
        computes = f"{self.definition}, {self.padding}" if self.padding else self.definition
        return {
            "name": self.name,
            "peer": self.family,
            "version": self.version,
            "form": self.form,
            "images": self.images,
            "computes": computes,
            "same_as_ours": "yes" if self.same else "no",
        }

    def prepare(self, images: Tensor) -> Any:
        """The images in [0, 1] as this candidate takes them; of a batch of bytes the first."""
        if self.images == FLOAT32:
            if not self.channels_last:
                return images.contiguous()
            return images.contiguous(memory_format=torch.channels_last if images.ndim == 4 else torch.channels_last_3d)
        pixels = images[0].mul(255).round().byte().permute(1, 2, 0)
        return (pixels[..., 0] if self.images == GREY_BYTES else pixels).contiguous().numpy()

    def callable(self, data_range: float | None = None) -> Callable[..., Any]:
        """The function of two images, compiled where that is the form, for torch's number of threads."""
        if self.set_threads is not None:
            self.set_threads(torch.get_num_threads())
        function = self.function
        if self.compiled:
            # All forms in this process count against the limit after which torch runs eagerly, without a word.
            torch._dynamo.config.recompile_limit = 256
            function = torch.compile(function, dynamic=False, options={"cpp.threads": torch.get_num_threads()})
        return functools.partial(function, data_range=self.data_range if data_range is None else data_range)

    def ours(self) -> Callable[..., Any]:
        """This package's function of the same two images."""
        return functools.partial(self.counterpart or ours, data_range=self.data_range, padding=self.padding or "same")

    @property
    def data_range(self) -> float:
        """The range of the images that `prepare` makes."""
        return 1.0 if self.images == FLOAT32 else 255.0


def ours(x: Any, y: Any, data_range: float, padding: str = "same") -> Tensor:
    """`splat_ssim.ssim` or `ssim3d` of tensors, or of arrays of bytes (H, W, C) or (H, W), which are read in place."""
    if not isinstance(x, Tensor):
        x, y = (torch.from_numpy(a if a.ndim == 3 else a[..., None]).permute(2, 0, 1)[None] for a in (x, y))
    function = splat_ssim.ssim if x.ndim == 4 else splat_ssim.ssim3d
    return function(x, y, data_range=data_range, padding=padding)
