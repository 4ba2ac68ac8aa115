"""A volume to a file of Gaussians of a given size or quality, and back."""

from __future__ import annotations

import dataclasses
import math
import operator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..._checks import check_number
from ...trainer.device import check_device
from ...trainer.metrics import MAX_PSNR, psnr_of_mse
from ...trainer.unkept import Unkept
from ..config import VolumeConfig
from ..evaluation import evaluate_volume
from ..export import FieldSource
from ..gaussians import GaussianField
from ..grid import VoxelGrid
from ..io import Volume
from ..target import Target, make_target
from ..training import VolumeTask
from .allocation import BITS, encoded_size, most_worthy, steps_for_size, suitable_steps
from .container import DTYPES, Packed
from .field import CodedField
from .quantizer import Codes, Steps
from .rounding import round_field

#: dB that twice as many Gaussians gain, about, and that rounding costs.
_DOUBLING, _ROUNDING = 4.0, 0.8
#: A quality may be better by so many dB.
_GOOD = 0.4
#: Fits that a quality is sought by, at most.
_TRIES = 6
#: Steps of rounding for those of the fit.
_ROUNDING_STEPS = 0.2
#: Rounding changes the size a little: it is begun with so much less.
_SPARE = 0.994
#: No cell is asked to hold more Gaussians than this share of the voxels.
_CROWDED = 0.25


@dataclass(frozen=True)
class Compressed:
    """The result of `compress_volume`.

    Args:
        content: Content of the file.
        metrics: Metrics of the decoded volume: bytes, num_gaussians, ratio (of the voxels' bytes in their file), psnr3d
            and ssim3d over the range of the volume, and max_error in the intensities of the volume.
        reached: Whether the requested PSNR was reached. A requested size always is.
    """

    content: bytes
    metrics: dict[str, Any]
    reached: bool = True


def compress_volume(
    volume: Volume,
    *,
    bytes: int | None = None,
    psnr: float | None = None,
    ratio: float | None = None,
    steps: int = 4000,
    seed: int = 0,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    progress: bool = False,
    name: str = "volume",
) -> Compressed:
    """Fits Gaussians to a volume and codes them.

    Args:
        volume: Volume of one channel, of any dtype in `DTYPES`.
        bytes: Largest size of the file in bytes.
        psnr: Lowest PSNR in dB of the decoded volume, at most 100. Its peak is the difference between the volume's
            maximum and minimum.
        ratio: How many times smaller the file must be than the voxels in the dtype of their file.
        steps: Number of steps of each fit.
        seed: Seed of every random draw.
        device: Device that fits.
        progress: Whether to show progress bars.
        name: Name of the volume, in messages.

    Raises:
        ValueError: Not exactly one of bytes, psnr and ratio is given, or it is out of range; or the bytes do not
            suffice for one Gaussian; or the volume has several channels, NaN or infinities.
        TypeError: One of these is not a number, or bytes or steps not a whole one.
        Interrupted: SIGINT or SIGTERM came.

    Example:
        >>> import numpy as np
        >>> from splat_ssim.volume import Volume, VoxelGrid
        >>> from splat_ssim.volume.codec import Packed, compress_volume
        >>> z, y, x = np.mgrid[-1:1:20j, -1:1:20j, -1:1:20j]
        >>> ball = (1000 * np.exp(-3 * (x**2 + y**2 + z**2))).astype(np.int16)  # (20, 20, 20)
        >>> made = compress_volume(Volume(ball[None], VoxelGrid.regular(ball.shape)), bytes=500, steps=50, device="cpu")
        >>> len(made.content) <= 500, made.metrics["psnr3d"] > 30
        (True, True)
        >>> Packed.of_bytes(made.content).volume().data.dtype
        dtype('int16')
    """
    check_device(device)
    goal, steps = _goal(volume, bytes, psnr, ratio, name), _whole("steps", steps)
    source = FieldSource(volume.grid, *_extremes(volume.data), unit=volume.unit)
    if source.low == source.high:
        made = _finished(volume, Packed(source, volume.data.dtype.name, Steps(1.0), Codes.none()))
        if goal is not None:
            goal.check(len(made.content), "the header of this volume")
        return made
    config = VolumeConfig(steps=steps, seed=seed, device=device, checkpoint_every=0, data_dir=Path(name))
    config.loss = "splat_ssim.volume.codec.loss:cut_error"
    config.output.progress = progress
    config.data.normalize = "minmax"
    target = make_target(dataclasses.replace(volume, data=_fitted_as(volume.data)), config.data, name=name)
    maker = _Maker(volume, source, target, config)
    return maker.of_size(goal) if goal is not None else maker.of_quality(float(psnr))  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Size:
    """The largest size of a file, and how it was asked for.

    Args:
        bytes: The size.
        voxels: Bytes of the voxels.
        ratio: The ratio that was given in place of bytes, or None.
    """

    bytes: int
    voxels: int
    ratio: float | None

    def check(self, least: int, what: str) -> None:
        """Refuses a size below the one that something takes; the message names the option that was given."""
        if self.bytes >= least:
            return
        if self.ratio is None:
            raise ValueError(f"bytes must be at least {least} for {what}, got {self.bytes}")
        most = math.floor(1000 * self.voxels / least) / 1000
        raise ValueError(f"ratio must be at most {most:.10g} for {what}, got {self.ratio:g}")


def _extremes(data: np.ndarray) -> tuple[float, float]:
    """The least and the largest number, exact also where float64 does not hold it: whole ones as int."""
    low, high = data.min().item(), data.max().item()
    return (int(low), int(high)) if data.dtype.kind == "b" else (low, high)


def _fitted_as(data: np.ndarray) -> np.ndarray:
    """Numbers that have the same differences: those of 64 bits begin at 0, as float64 has 53 bits."""
    if data.dtype.kind not in "iu" or data.dtype.itemsize < 8:
        return data
    above: np.ndarray = data.astype(np.uint64) - data.min().astype(np.uint64)
    return above


def _goal(volume: Volume, size: int | None, psnr: float | None, ratio: float | None, name: str) -> _Size | None:
    """Returns the largest size of the file, or None if a PSNR is requested.

    Raises:
        ValueError: In the same cases as `compress_volume`.
    """
    given = {key: value for key, value in (("bytes", size), ("psnr", psnr), ("ratio", ratio)) if value is not None}
    if len(given) != 1:
        raise ValueError(f"exactly one of bytes, psnr and ratio must be given, got {', '.join(given) or 'none'}")
    if len(volume.data) != 1:
        raise ValueError(
            f"{name}: required one channel, got {len(volume.data)}; --read '{{channel: 0}}' takes one of a file"
        )
    if volume.data.dtype.name not in DTYPES:
        raise ValueError(f"{name}: required voxels of {', '.join(DTYPES)}, got {volume.data.dtype}")
    if volume.data.dtype.kind == "f" and not np.isfinite(volume.data).all():
        raise ValueError(
            f"{name}: required finite voxels, got NaN or infinities; --read '{{nonfinite: 0}}' replaces them"
        )
    for key, value in given.items():
        check_number(key, value)
    if psnr is not None:
        # No reported PSNR is larger.
        check_number("psnr", psnr, high=MAX_PSNR, closed=True)
        return None
    voxels = volume.stored_bytes
    if size is not None:
        return _Size(min(_whole("bytes", size), 1 << 62), voxels, None)
    assert ratio is not None
    ratio = float(min(max(ratio, 1e-9), 1e300))
    return _Size(int(voxels / ratio), voxels, ratio)


def _whole(name: str, value: Any) -> int:
    """A whole number above 0."""
    check_number(name, value)
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, got {value!r}") from None


def _finished(volume: Volume, packed: Packed, content: bytes | None = None, reached: bool = True) -> Compressed:
    """A file with what it is worth."""
    content = packed.to_bytes() if content is None else content
    decoded, source = packed.volume().data, volume.data
    whole = source.dtype.kind in "iub"
    # Differences of 64-bit integers are taken in whole numbers, which wrap around to the right ones.
    low, span = volume.data.min(), packed.source.high - packed.source.low or 1.0
    kind = np.uint64 if whole else np.float64
    scaled = [
        torch.from_numpy(((each.astype(kind) - low.astype(kind)).astype(np.float64) / span).astype(np.float32))
        for each in (decoded, source)
    ]
    errors = np.maximum(decoded, source).astype(kind) - np.minimum(decoded, source).astype(kind)
    metrics = {
        "bytes": len(content),
        "ratio": volume.stored_bytes / len(content),
        "num_gaussians": len(packed.codes),
        **evaluate_volume(scaled[0], scaled[1]),
        "max_error": float(errors.max()),
    }
    return Compressed(content, metrics, reached)


def _decibels(made: Compressed) -> float:
    """The PSNR of a file; infinite where every voxel is the same."""
    return math.inf if made.metrics["psnr3d"] is None else made.metrics["psnr3d"]


class _FitInside(VolumeTask):
    """A fit whose means stay inside the volume, where a file can place them.

    Without this, Gaussians beyond the border shape the voxels at it. A file would move them onto the border, where they
    are many times too bright.
    """

    def fit_step(self, step: int) -> Tensor:
        """Performs a step as in other fits. Then it moves means outside the volume to its border."""
        loss = super().fit_step(step)
        assert isinstance(self.model, GaussianField)
        means = self.model.tensors["means"].data
        means.clamp_(min=means.new_tensor(-0.5), max=means.new_tensor(self.target.grid.shape) - 0.5)
        return loss


class _Maker:
    """Makes compressed files of one volume.

    Args:
        volume: Volume to compress.
        source: Its grid and the range of its intensities.
        target: The same volume as the target of a fit.
        config: Config of a fit. The number of Gaussians is set for each fit.
    """

    def __init__(self, volume: Volume, source: FieldSource, target: Target, config: VolumeConfig) -> None:
        self.volume, self.source, self.config = volume, source, config
        #: Half of the voxels lie below it: often it is the background, which then takes no Gaussian.
        self.base = float(target.values.median())
        self.target = dataclasses.replace(target, values=target.values - self.base)
        self.voxels = math.prod(volume.grid.shape)
        self.most = max(1, int(_CROWDED * self.voxels))
        self.overhead = len(self._packed(Steps(0.1), Codes.none()).to_bytes()) + 24

    def of_size(self, size: _Size) -> Compressed:
        """The file of at most that size."""
        size.check(self.overhead + 1, "the header of this volume and a Gaussian")
        room = size.bytes - self.overhead
        field = self._fitted(int(min(self.most, max(1, room * 8 / BITS))))
        steps = self._steps(field)
        steps = steps_for_size(field, steps, int(room * _SPARE))
        while len(field) > 1 and (excess := encoded_size(field, steps) / (room * _SPARE)) > 1:
            field = field.taken(most_worthy(field, steps, max(1, min(len(field) - 1, int(len(field) / excess)))))
        self._round(field, steps)
        return self._within(field, steps, size)

    def _within(self, field: CodedField, steps: Steps, size: _Size) -> Compressed:
        """Makes the file of a rounded field. The least valuable Gaussians are left out until it fits."""
        while True:
            packed = self._packed(steps, field.codes(steps))
            content = packed.to_bytes()
            if len(content) <= size.bytes:
                return _finished(self.volume, packed, content)
            if len(field) <= 1:
                size.check(len(content), "one Gaussian")
            excess = (len(content) - size.bytes) / (len(content) - self.overhead + 8)
            count = max(1, len(field) - max(1, math.ceil(len(field) * excess)))
            field = field.taken(most_worthy(field, steps, count))

    def of_quality(self, psnr: float) -> Compressed:
        """A small file whose volume has a PSNR in dB, or the best one found."""
        tried: list[tuple[int, Compressed]] = []
        count = min(self.most, max(16, int(self.voxels / 150 * 2 ** ((psnr - 35.0) / _DOUBLING))))
        for _ in range(_TRIES):
            made = self._of_count(count, psnr)
            tried.append((count, made))
            spare = _decibels(made) - psnr
            enough = min((n for n, one in tried if _decibels(one) >= psnr), default=self.most + 1)
            lacking = max((n for n, one in tried if _decibels(one) < psnr), default=0)
            if 0 <= spare <= _GOOD or enough <= lacking + max(1, lacking // 20) or lacking >= self.most:
                break
            guess = count * 2 ** (-(spare - _GOOD / 2) / _DOUBLING)
            count = int(min(max(guess, lacking + 1, 1.03 * lacking), enough - 1, 0.97 * enough))
            count = max(1, lacking + 1, count)
        reached = [made for _, made in tried if _decibels(made) >= psnr]
        if reached:
            return min(reached, key=lambda made: len(made.content))
        best = max((made for _, made in tried), key=_decibels)
        return Compressed(best.content, best.metrics, reached=False)

    def _of_count(self, count: int, psnr: float) -> Compressed:
        """The smallest file of a fit of at most so many Gaussians that has a PSNR, or the best one."""
        field = self._fitted(count)
        spare = self._psnr(field) - psnr
        best: Compressed | None = None
        # Where the fit itself is good enough, finer steps can do what more Gaussians would; where it is much too good,
        # fewer may do.
        for finer in self._finenesses(spare):
            made = self._rounded(field, finer, spare)
            if best is None or _decibels(made) > _decibels(best):
                best = made
            if _decibels(made) >= psnr:
                break
        assert best is not None
        return best

    @staticmethod
    def _finenesses(spare: float) -> tuple[float, ...]:
        """Factors of the quantisation steps to try in turn, for a fit that exceeds the requested PSNR by `spare` dB."""
        if spare < 0.05:
            return (1.0,)
        return (2.0, 1.0, 0.5, 0.25) if spare > 2 * _ROUNDING else (1.0, 0.5, 0.25)

    def _rounded(self, field: CodedField, finer: float, spare: float) -> Compressed:
        """Makes the file of a fit with the suitable steps times `finer`. The fit is not changed.

        Coarse steps take fewer Gaussians too, for a fit that is `spare` dB better than it must be.
        """
        if finer > 1:
            count = max(1, int(len(field) * max(0.75, 2 ** ((2 * _ROUNDING - spare) / _DOUBLING))))
            field = field.taken(most_worthy(field, self._steps(field), count))
        steps = self._steps(field)
        steps = dataclasses.replace(steps, weight=float(np.float32(finer * steps.weight)))
        rounded = CodedField({name: tensor.detach().clone() for name, tensor in field.tensors.items()}, field.shape)
        self._round(rounded, steps)
        return _finished(self.volume, self._packed(steps, rounded.codes(steps)))

    def _packed(self, steps: Steps, codes: Codes) -> Packed:
        return Packed(self.source, self.volume.data.dtype.name, steps, codes, self.base)

    def _fitted(self, count: int) -> CodedField:
        """A fit of so many Gaussians, in voxels."""
        self.config.strategy.budget = count
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            task = _FitInside(self.config, self.target)
            Unkept(task).train()
        assert isinstance(task.model, GaussianField)
        self.target = task.target
        return CodedField.of_field(task.model, self.volume.grid.shape)

    @torch.no_grad()
    def _mse(self, field: CodedField) -> float:
        values: Tensor = field(VoxelGrid(field.shape)).clamp_(-self.base, 1 - self.base) - self.target.values
        return float(values.double().square().mean())

    def _psnr(self, field: CodedField) -> float:
        return psnr_of_mse(self._mse(field), 1.0)

    def _steps(self, field: CodedField) -> Steps:
        return suitable_steps(self._mse(field), self.voxels, len(field))

    def _round(self, field: CodedField, steps: Steps) -> None:
        length = max(1, round(_ROUNDING_STEPS * self.config.steps))
        show = self.config.output.progress
        round_field(
            field, self.target.values, steps, low=-self.base, length=length, seed=self.config.seed, progress=show
        )
