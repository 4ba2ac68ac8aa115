"""splat-compress and splat-decompress."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Literal

import tyro

from ..._files import check_output, replacing
from ...errors import UserError, user_errors
from ...trainer.config import YamlMapping
from ...trainer.device import available_memory
from ...trainer.metrics import in_words
from ...trainer.signals import Interrupted
from ..formats import written_dtype
from ..io import load_volume, save_volume
from ..memory import check_memory
from ..suffixes import check_written, files_of
from ..target import check_read
from .compress import Compressed, compress_volume
from .container import load_packed

#: Bytes that a voxel takes while a file is decoded.
_DECODED = 32


def compress(
    volume: tyro.conf.Positional[Path],
    output: tyro.conf.Positional[Path],
    *,
    bytes: int | None = None,
    psnr: float | None = None,
    ratio: float | None = None,
    read: YamlMapping = {},  # noqa: B006 - never changed
    steps: int = 4000,
    seed: int = 0,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    progress: bool = True,
) -> Compressed:
    """Writes a volume as a file of Gaussians. Exactly one of --bytes, --psnr and --ratio sets its size.

    Args:
        volume: Volume file with one channel.
        output: File to write. Its name must end in .gsv.
        bytes: Largest size of the file in bytes.
        psnr: Lowest PSNR of the decoded volume in dB, at most 100. If it is not reached, the best file found is
            written, and the command ends with an error that says so.
        ratio: Lowest compression ratio: the size of the voxels, in the dtype of their file, over that of the file.
        read: Options of splat_ssim.volume.load_volume, such as '{channel: 0}'.
        steps: Number of steps of the fit. 4000 give good quality, 1000 take a quarter of the time.
        seed: Seed of every random draw.
        device: auto, cpu or cuda.
        progress: Whether to show progress bars.

    Returns:
        Description of the file written, with its metrics.

    Raises:
        UserError: The volume or an option is not as required, or the PSNR was not reached.
        Interrupted: SIGINT or SIGTERM came. Nothing is written.
    """
    if output.suffix.lower() != ".gsv":
        raise UserError(f"output must end in .gsv, got {output.name!r}")
    if steps < 1:
        raise UserError(f"steps must be at least 1, got {steps}")
    check_output(output, inputs=files_of(volume))
    with user_errors():
        check_read(read, "read")
        # The package that codes is asked for before the fit, not after it.
        from .entropy import library

        library()
        if (line := check_memory(volume, read)) is not None:
            print(line, file=sys.stderr)
        loaded = load_volume(volume, **read)
        for note in loaded.notes:
            print(f"{volume}: {note}", file=sys.stderr)
        try:
            made = compress_volume(
                loaded,
                bytes=bytes,
                psnr=psnr,
                ratio=ratio,
                steps=steps,
                seed=seed,
                device=device,
                progress=progress,
                name=str(volume),
            )
        except Interrupted as stopped:
            print(f"stopped by {stopped}; {output} is not written", file=sys.stderr)
            raise
    with replacing(output) as file:
        file.write(made.content)
    print(f"{output}: {in_words(made.metrics)}")
    if not made.reached:
        raise UserError(
            f"{output}: required a PSNR of {psnr:g} dB, which was not reached; it has {made.metrics['psnr3d']:.2f} dB"
        )
    return made


def decompress(file: tyro.conf.Positional[Path], output: tyro.conf.Positional[Path]) -> Path:
    """Writes the volume that a file of Gaussians stands for, with the dtype and the position of the original.

    Args:
        file: A file that splat-compress has written.
        output: Volume file to write: nii.gz, nii, npy, npz, raw, tif, nrrd, mha, h5, mrc or zarr.

    Returns:
        The file written.

    Raises:
        UserError: The file cannot be read, or the output cannot be written.
    """
    if not file.is_file():
        raise UserError(f"required a file of splat-compress, got no file {file}")
    with user_errors():
        kind = check_written(output, inputs=[file])
        packed = load_packed(file)
        needed, room = _DECODED * math.prod(packed.source.grid.shape), available_memory()
        if room is not None and needed > room:
            raise UserError(
                f"{file}: required {needed / 1e9:.1f} GB of memory for {packed.source.grid.shape} voxels, got "
                f"{room / 1e9:.1f} GB"
            )
        volume = packed.volume()
        save_volume(output, volume)
    written = written_dtype(kind, volume.data.dtype).name
    widened = "" if written == packed.dtype else f", as the format has no {packed.dtype}"
    print(f"{output}: {len(packed.codes)} Gaussians on {packed.source.grid.shape} voxels, {written}{widened}")
    return output
