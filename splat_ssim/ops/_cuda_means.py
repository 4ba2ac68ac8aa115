"""Arguments of the CUDA kernels' reduction, which turns block sums into the loss and its terms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ._cuda_kernels import KernelReduction

#: Up to this many means, the last block of a fused kernel computes them; for more, a separate kernel does.
FEW_GROUPS = 8


def reduction_of(sums: Sequence[Tensor], results: Sequence[Tensor], scale: Sequence[float]) -> KernelReduction:
    """The argument of a reduction: each of `sums` fills one of `results`, whose elements are scaled sums of a group."""
    groups = results[0].numel()
    argument = KernelReduction(result_stride=results[0].stride(-1) if results[0].ndim else 1, groups=groups)
    argument.kinds = len(sums)
    for kind, (values, result) in enumerate(zip(sums, results, strict=True)):
        argument.values[kind] = values.data_ptr()
        argument.count[kind] = values.numel() // groups
        argument.results[kind] = result.data_ptr()
        argument.scale[kind] = scale[kind]
    return argument


class Means(NamedTuple):
    """Tensors for the loss and its terms, () or (B,), and how they follow from block sums of |x - y| and 1 - S."""

    results: Sequence[Tensor]
    scale: tuple[float, float]
    weights: tuple[float, float]
    offset: float

    @property
    def groups(self) -> int:
        return self.results[0].numel()

    def reduction(self, l1: Tensor, dssim: Tensor) -> KernelReduction:
        """The argument of the reduction, for a kernel of its own or for the last block of a fused one."""
        argument = reduction_of([l1, dssim], self.results[1:], self.scale)
        argument.combine[:2] = self.weights
        argument.offset = self.offset
        argument.combined = self.results[0].data_ptr()
        return argument
