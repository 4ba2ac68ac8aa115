"""Two images, two folders of images or two volumes compared: PSNR, SSIM, MS-SSIM, a map of SSIM."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from torch import Tensor

from splat_ssim import distributed, functional
from splat_ssim._checks import DATA_RANGES
from splat_ssim._files import check_output, check_output_folder, replacing_path, to_json, write_text
from splat_ssim.errors import UserError, user_errors
from splat_ssim.reference import MS_SSIM_WEIGHTS
from splat_ssim.scene.data.scene import grouped
from splat_ssim.trainer.metrics import psnr_of_mse, reported_psnr
from splat_ssim.trainer.pictures import SUFFIXES, is_wide, opened, over_background, read_image, remarks, save_bytes
from splat_ssim.volume.grid import VoxelGrid
from splat_ssim.volume.io import Volume, save_volume, volume_format
from splat_ssim.volume.normalization import Normalization, check_span, check_window
from splat_ssim.volume.ome_zarr import foreign
from splat_ssim.volume.opened import OpenVolume, open_volume
from splat_ssim.volume.suffixes import check_written, files_of

#: A TIFF, and a folder of nothing but TIFFs, is a volume.
_TIFF = (".tif", ".tiff")
#: What is behind transparent images.
_WHITE = (1.0, 1.0, 1.0)

#: Voxels that two volumes may lie apart without a line: headers keep float32.
_APART = 0.1
#: Volumes of more voxels are never held whole: MS-SSIM is left out for them.
_WHOLE = 1 << 28


def compare(
    a: tyro.conf.Positional[Path],
    b: tyro.conf.Positional[Path],
    *,
    map: Annotated[Path | None, tyro.conf.arg(name="map")] = None,
    data_range: float | None = None,
    window: tuple[float, float] | None = None,
    key: str | None = None,
    key_b: str | None = None,
    padding: str = "same",
    block: int | None = None,
    output: Path | None = None,
) -> dict[str, Any]:
    """Compares two images, two folders of images with the same names, or two volumes.

    Images are compared as 8 bits, transparent ones over white.

    Volumes in zarr, HDF5, npy and raw files are read block by block and may be larger than memory. They are compared
    voxel by voxel: spacing and orientation are ignored, and a map gets those of `a`. SSIM changes if a constant is
    added to the intensities. To get the figures of a fit's metrics.json, pass the fit's low and high as --window LOW
    HIGH.

    Args:
        a: Image, folder or volume file.
        b: The same kind and shape.
        map: File to write the map of SSIM to: a picture, a folder for folders, or a volume file.
        data_range: Difference between the largest and the smallest possible value. By default 1 for images, where 8-bit
            values are divided by 255; for volumes 255 if they are uint8, otherwise the range that both span together.
        window: Intensities LOW and HIGH of volumes that become 0 and 1; values outside are cut off.
        key: The array in a zarr group or npz file, or the series of a TIFF file, for volumes in both `a` and `b`.
        key_b: The same for `b`, if it differs.
        padding: "same" pads with zeros outside the borders, as for metrics.json. "valid" uses only windows that lie
            inside, as scikit-image and most others do; the result is larger for noisy pairs.
        block: Edge of a block of a volume in voxels, 128 by default.
        output: JSON file to write the result to.

    Returns:
        psnr, mse, ssim, ms_ssim and data_range; for folders also `images`, with one entry for each pair. ms_ssim is
        None if a side is too short for five scales or a volume is too large. PSNR is capped at 100 dB, the value for
        equal images. The mean squared error is not capped.

    Raises:
        UserError: The two differ in kind or shape, or cannot be read.
    """
    kinds = [_kind(path) for path in (a, b)]
    if kinds[0] != kinds[1]:
        raise UserError(f"a and b must be of one kind, got {kinds[0]} {a} and {kinds[1]} {b}")
    if data_range is not None and not DATA_RANGES[0] <= data_range <= DATA_RANGES[1]:
        raise UserError(f"--data-range must be from 1e-36 to 1e36, got {data_range:g}")
    if kinds[0] != "volume" and (window, key, key_b, block) != (None,) * 4:
        raise UserError(f"--window, --key, --key-b and --block are for volumes, got them for two of kind {kinds[0]}")
    if window is not None:
        if data_range is not None:
            raise UserError(f"--window excludes --data-range, got {window} and {data_range}")
        with user_errors():
            check_window(*window, "--window LOW HIGH")
    _check_outputs(kinds[0], a, b, map, output)
    if kinds[0] == "volume":
        with user_errors():
            volumes = [open_volume(path, key=name) for path, name in ((a, key), (b, key if key_b is None else key_b))]
        for volume in volumes:
            if volume.array.dtype.kind not in "biuf":
                raise UserError(f"{volume.path} must hold real numbers, got {volume.array.dtype}")
            for line in volume.notes:
                print(f"{volume.path}: {line}", file=sys.stderr)
        if (apart := _elsewhere(*volumes)) is not None:
            print(apart, file=sys.stderr)
        result = _compare_volumes(
            volumes, map, data_range, window, padding, distributed.BLOCK if block is None else block
        )
    else:
        images = _Images(data_range or 1.0, padding)
        result = (images.compare if kinds[0] == "image" else images.compare_folders)(a, b, map)
        for line in images.notes():
            print(line, file=sys.stderr)
    text = to_json(result)
    if output is not None:
        write_text(output, text + "\n")
    print(text)
    return result


def _kind(path: Path) -> str:
    if not path.exists():
        raise UserError(f"required an image, a folder or a volume, got nothing at {path}")
    if path.suffix.lower() in SUFFIXES and path.suffix.lower() not in _TIFF:
        return "image"
    if path.is_dir() and path.suffix.lower() != ".zarr":
        if any(not name.lower().endswith(_TIFF) for name in _pictures(path)):
            return "folder"
    with user_errors():
        volume_format(path)
    return "volume"


def _check_outputs(kind: str, a: Path, b: Path, map_path: Path | None, output: Path | None) -> None:
    """Refuses outputs that could not be written once they are computed, or that are what is compared."""
    if kind == "volume":
        inputs = [file for volume in (a, b) for file in files_of(volume)]
    elif kind == "folder":
        inputs = [folder / name for folder in (a, b) for name in _pictures(folder)]
    else:
        inputs = [a, b]
    if map_path is not None:
        if kind == "image" and map_path.suffix.lower() not in SUFFIXES:
            raise UserError(f"--map must end in one of {', '.join(SUFFIXES)} for images, got {map_path.name!r}")
        with user_errors():
            if kind == "volume":
                check_written(map_path, inputs=[a, b])
            elif kind == "folder":
                check_output_folder(map_path, inputs=[a, b])
            else:
                check_output(map_path, inputs=inputs)
    if output is not None:
        check_output(output, inputs=[*inputs, *([] if map_path is None else files_of(map_path))])


def _elsewhere(first: OpenVolume, second: OpenVolume) -> str | None:
    """A line for volumes whose files say that they lie differently in the world."""
    if first.grid.shape != second.grid.shape:
        return None
    apart = first.grid.apart(second.grid)
    if apart <= _APART:
        return None
    return (
        f"{second.path} lies elsewhere than {first.path} by their affines, up to {apart:.3g} voxels away: they are "
        f"compared voxel by voxel all the same"
    )


class _Voxels:
    """The array of a volume, whose errors of reading name the file."""

    def __init__(self, volume: OpenVolume) -> None:
        self._volume = volume
        self.shape, self.dtype, self.ndim = volume.array.shape, volume.array.dtype, len(volume.array.shape)

    def __getitem__(self, index: Any) -> np.ndarray:
        with user_errors():
            return self._volume.read(index)


def _pictures(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)


def _errors(mse: float, data_range: float) -> dict[str, float]:
    """PSNR, as every metric of this package reports it, and the mean squared error."""
    return {"psnr": reported_psnr(psnr_of_mse(mse, data_range)), "mse": mse}


def _ms_ssim(first: Tensor, second: Tensor, data_range: float) -> float | None:
    # The coarsest of the scales has to hold a window.
    if min(first.shape[2:]) <= 10 * 2 ** (len(MS_SSIM_WEIGHTS) - 1):
        return None
    return float(functional.ms_ssim(first, second, data_range=data_range))


class _Images:
    """Comparisons of images, and remarks on the files that were read."""

    def __init__(self, data_range: float, padding: str) -> None:
        self.data_range, self.padding = data_range, padding
        self._remarks: list[tuple[str, list[str]]] = []

    def notes(self) -> list[str]:
        """A line for each remark."""
        return grouped(self._remarks)

    def _read(self, path: Path) -> Tensor:
        """(1, 3, H, W) float32 in [0, 1]."""
        pixels, found = read_image(path), remarks(path)
        with opened(path) as file:
            if is_wide(file):
                found.append("of 16 bits, compared as 8")
        if pixels.shape[2] == 4:
            found.append("transparent, compared over white")
        self._remarks.append((str(path), found))
        return over_background(torch.from_numpy(pixels.copy()), _WHITE).contiguous()

    def compare(self, a: Path, b: Path, map_path: Path | None) -> dict[str, Any]:
        """The figures of two images."""
        first, second = self._read(a), self._read(b)
        if first.shape != second.shape:
            raise UserError(f"{a} and {b} must have the same size, got {first.shape[2:]} and {second.shape[2:]}")
        options: dict[str, Any] = {"data_range": self.data_range, "padding": self.padding}
        with user_errors():
            ssim_map = functional.ssim(first, second, reduction="none", **options)
        if map_path is not None:
            save_bytes(map_path, (ssim_map[0].mean(0).clamp(0, 1) * 255).round().byte().numpy())
        return {
            **_errors(float((first.double() - second.double()).square().mean()), self.data_range),
            "ssim": float(ssim_map.double().mean()),
            "ms_ssim": _ms_ssim(first, second, self.data_range),
            "data_range": self.data_range,
        }

    def compare_folders(self, a: Path, b: Path, map_path: Path | None) -> dict[str, Any]:
        """The figures of the pairs of images in two folders, and their means."""
        names = _pictures(a)
        if names != _pictures(b):
            different = sorted(set(names) ^ set(_pictures(b)))
            raise UserError(f"{a} and {b} must hold images of the same names, got {different} in only one of them")
        for folder in (a, b):
            others = [path for path in sorted(folder.iterdir()) if path.is_file() and path.name not in names]
            self._remarks += [(str(path), ["passed over, since it is no image"]) for path in others]
        rows = [
            {"name": name, **self.compare(a / name, b / name, map_path and map_path / f"{name}.png")} for name in names
        ]

        def mean(key: str) -> float | None:
            values = [row[key] for row in rows]
            return None if None in values else float(np.mean(values))

        means = {key: mean(key) for key in ("psnr", "mse", "ssim", "ms_ssim")}
        return {**means, "data_range": self.data_range, "images": rows}


def _compare_volumes(
    volumes: list[OpenVolume],
    map_path: Path | None,
    data_range: float | None,
    window: tuple[float, float] | None,
    padding: str,
    block: int,
) -> dict[str, Any]:
    a, b = (volume.path for volume in volumes)
    sources: list[Any] = [_Voxels(volume) for volume in volumes]
    with user_errors():
        import dask
        import dask.array as da
    first, second = (da.from_array(source, chunks="auto") for source in sources)
    if first.shape != second.shape:
        raise UserError(f"{a} and {b} must have the same shape, got {first.shape} and {second.shape}")
    if window is not None:
        scale, data_range = Normalization(*window), 1.0
        finite_parts = [da.isfinite(v).all() for v in (first, second)]
        first, second = sources = [v.map_blocks(scale.apply, dtype=np.float32) for v in (first, second)]
    else:
        finite_parts = []
    if data_range is None and first.dtype == second.dtype == np.uint8:
        data_range = 255.0
    # Bytes are intensities here, not fractions of a range.
    first, second = (v.astype(distributed.float_dtype(v.dtype)) for v in (first, second))
    finite = da.isfinite(first).all() & da.isfinite(second).all()
    for part in finite_parts:
        finite = finite & part
    low, high = da.minimum(first.min(), second.min()), da.maximum(first.max(), second.max())
    error = da.square(first.astype(np.float64) - second).mean()
    finite, low, high, error = dask.compute(finite, low, high, error)
    if not finite:
        raise UserError(f"{a} and {b} must hold finite voxels, got NaN or infinite ones")
    if max(abs(float(low)), abs(float(high))) > 2**53 and "f" not in (sources[0].dtype.kind, sources[1].dtype.kind):
        print(f"{a} and {b} hold integers above 2^53: they are compared as float64, which rounds them", file=sys.stderr)
    if not math.isfinite(error):
        raise UserError(f"{a} and {b} must differ by numbers whose squares float64 holds, got larger ones")
    if data_range is None:
        span = float(high) - float(low)
        data_range = float(high - low) if span <= float(np.finfo(np.float32).max) else span
    if data_range <= 0:
        raise UserError(f"two equal constant volumes require --data-range, got the value {float(low):g}")
    with user_errors():
        check_span(f"{a} and {b}", data_range)
    # Read by slices where they may be: as floats only bytes that mean no 255ths of the range.
    floats = [first, second] if data_range != 255 and np.uint8 in (sources[0].dtype, sources[1].dtype) else sources
    options: dict[str, Any] = {"data_range": data_range, "padding": padding, "block": block}
    ms_ssim = None
    if first.size <= _WHOLE:
        pair = [torch.from_numpy(v.compute()).reshape(1, -1, *v.shape[-3:]) for v in (first, second)]
        ms_ssim = _ms_ssim(pair[0], pair[1], data_range)
    with user_errors():
        # Nothing is computed yet: the options are checked.
        ssim_map = distributed.ssim3d(floats[0], floats[1], reduction="none", **options)
    if map_path is not None:
        _save_map(map_path, ssim_map, volumes[0].grid, radius=5 if padding == "valid" else 0)
    return {
        **_errors(float(error), data_range),
        "ssim": distributed.ssim3d(floats[0], floats[1], **options),
        "ms_ssim": ms_ssim,
        "data_range": data_range,
    }


def _save_map(path: Path, ssim_map: Any, grid: VoxelGrid, *, radius: int) -> None:
    """Writes the map where the grid has its voxels: to zarr block by block, else whole."""
    grid = grid.crop((radius,) * 3, ssim_map.shape[1:])
    if volume_format(path) == "zarr":
        import dask.array as da
        import zarr

        with replacing_path(path, store=foreign) as new:
            da.to_zarr(ssim_map.rechunk((1, 64, 64, 64)), str(new), overwrite=True)
            zarr.open(str(new), mode="r+").attrs["affine"] = grid.rebased().matrix.tolist()
        return
    whole = np.asarray(ssim_map.compute(), np.float32)
    with user_errors():
        save_volume(path, Volume(whole, grid))
