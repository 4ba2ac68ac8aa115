"""How good a scene is: PSNR and SSIM on views, pictures of render, truth and error."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import splat_ssim
from splat_ssim.trainer.data import View

#: The error picture is |render - truth| times this, so that one grey level in ten is seen.
ERROR_GAIN = 5.0


def psnr(pred: Tensor, target: Tensor, mask: Tensor | None = None) -> float:
    """Peak signal-to-noise ratio in dB of images (1, 3, H, W) in [0, 1], over the pixels of a mask (H, W)."""
    squares = (pred - target).square()
    if mask is not None:
        squares = squares[..., mask]
    return float(-10 * torch.log10(squares.mean().clamp(min=1e-10)))


@torch.no_grad()
def evaluate(
    render_view: Callable[[View], Tensor],
    views: Sequence[View],
    *,
    ssim_padding: str = "same",
    pictures: Path | None = None,
    max_pictures: int = 0,
) -> dict[str, Any]:
    """PSNR and SSIM of rendered views, the mean over views of each.

    Args:
        render_view: View -> (1, H, W, 3) colours.
        views: What to compare with.
        ssim_padding: See `splat_ssim.ssim`.
        pictures: Folder for render | truth | error of the first `max_pictures` views.
        max_pictures: How many pictures.

    Returns:
        psnr, ssim, ssim_padding and, for each view, name, psnr, ssim.
    """
    rows = []
    for index, view in enumerate(views):
        target = view.pixels()
        pred = render_view(view).permute(0, 3, 1, 2).clamp(0, 1)
        mask = None if view.mask is None else view.mask[None, None].to(pred.dtype)
        similarity = splat_ssim.ssim(pred, target, padding=ssim_padding, mask=mask)
        rows.append({"name": view.name, "psnr": psnr(pred, target, view.mask), "ssim": float(similarity)})
        if pictures is not None and index < max_pictures:
            pictures.mkdir(parents=True, exist_ok=True)
            save_comparison(pictures / f"{index:04d}.png", pred, target)
    return {
        "psnr": float(np.mean([row["psnr"] for row in rows])),
        "ssim": float(np.mean([row["ssim"] for row in rows])),
        "ssim_padding": ssim_padding,
        "views": rows,
    }


def save_comparison(path: Path, pred: Tensor, target: Tensor) -> None:
    """Writes render | truth | five times the error of images (1, 3, H, W) in [0, 1] as one PNG."""
    error = (ERROR_GAIN * (pred - target).abs()).clamp(0, 1)
    save_image(path, torch.cat([pred, target, error], 3))


def save_image(path: Path, image: Tensor) -> None:
    """Writes an image (1, 3, H, W) in [0, 1]."""
    Image.fromarray(to_bytes(image)).save(path)


def to_bytes(image: Tensor) -> np.ndarray:
    """(H, W, 3) uint8 of an image (1, 3, H, W) in [0, 1]."""
    return (image[0].permute(1, 2, 0).clamp(0, 1) * 255).round().byte().cpu().numpy()


def write_json(path: Path, content: Any) -> None:
    """Writes JSON all at once: a temporary file is renamed."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(temporary, path)
